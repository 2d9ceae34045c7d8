"""Captioning against Hugging Face's decoders in float64, one word at a time; its gradients; what it refuses."""

import copy
import math
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch

from xtoolkit.batch import Batch
from xtoolkit.data.left_to_right import field
from xtoolkit.encoders.cross_attention import CrossAttention
from xtoolkit.engine.guessing import Known

from .tiny import VOCAB, WIDTH, Tiny, image_field

MASK, SMOOTHING = 4, 0.1
TEXTS = [([0, 10, 11, 12, 13, 14, 2], [3, 4, 6]), ([0, 20, 21, 2], [1, 2, 3]), ([0, 30, 31, 32, 30, 2], [5])]


@pytest.fixture(scope="module")
def model():
    return Tiny(losses={"caption": {"type": "Captioning", "feature": "fusion@left_to_right", "smoothing": SMOOTHING}})


def batch(texts=TEXTS):
    made = field([(np.array(ids), np.array(places, np.int64), MASK) for ids, places in texts], 1)
    image = image_field(len(texts), torch.Generator().manual_seed(3), masks=False)
    return Batch(text=replace(made, left_to_right=made), image=image)


def decoders(model):
    """The text and the fusion encoder as Hugging Face's decoders, and the head, in float64."""
    from transformers import RobertaConfig
    from transformers.models.roberta.modeling_roberta import RobertaEncoder

    text = copy.deepcopy(model.encoders["text"].roberta).double().eval()
    text.config.is_decoder, text.config._attn_implementation = True, "eager"
    config = RobertaConfig(hidden_size=WIDTH, num_hidden_layers=2, num_attention_heads=2, intermediate_size=4 * WIDTH,
                           is_decoder=True, add_cross_attention=True, layer_norm_eps=1e-5, use_cache=False)
    config._attn_implementation = "eager"
    fusion = RobertaEncoder(config).double().eval()
    fusion.load_state_dict(model.encoders["fusion"].state_dict())
    return text, fusion, copy.deepcopy(model.losses["caption"]).double()


def told(text, fusion, head, vision, row, known):
    """(V,) log p of what comes after the tokens ``known``, by a mask behind them."""
    ids = torch.tensor([[*known, MASK]])
    states = text(input_ids=ids, attention_mask=torch.ones_like(ids)).last_hidden_state
    seen = torch.ones(len(known) + 1, len(known) + 1).tril().bool()
    additive = torch.zeros(seen.shape, dtype=torch.float64).masked_fill(~seen, -1e30)[None, None]
    x = fusion(states, attention_mask=additive, encoder_hidden_states=vision[row:row + 1], use_cache=False).last_hidden_state[0, -1]
    x = head.dense.weight @ x + head.dense.bias
    x = x * 0.5 * (1 + torch.erf(x / math.sqrt(2)))
    x = (x - x.mean()) / torch.sqrt(((x - x.mean()) ** 2).mean() + 1e-5) * head.layer_norm.weight + head.layer_norm.bias
    scores = head.decoder.weight @ x + head.decoder.bias
    return scores - torch.log(torch.exp(scores).sum())


def plain(parts, vision, texts=TEXTS, smoothing=SMOOTHING):
    """The loss and the loss without smoothing, word by word."""
    terms, exact = [], []
    for row, (ids, places) in enumerate(texts):
        for place in places:
            log_p = told(*parts, vision, row, ids[:place])
            target = torch.full((VOCAB,), smoothing / (VOCAB - 2), dtype=torch.float64)
            target[0], target[ids[place]] = 0, 1 - smoothing
            assert target.sum() == pytest.approx(1)
            terms.append(-(target * log_p).sum())
            exact.append(-log_p[ids[place]])
    return sum(terms) / len(terms), sum(exact) / len(exact)


def test_loss_and_every_gradient_equal_a_word_at_a_time(model):
    it, parts = batch(), decoders(model)
    value, log = model.run(it, "caption")
    vision = model.encoders["vision"](view=None, image=it.image).tokens.detach().double().requires_grad_()
    want, exact = plain(parts, vision)
    assert value["caption"].item() == pytest.approx(want.item(), rel=1e-5)
    assert log["caption.nll"].item() == pytest.approx(exact.item(), rel=1e-5)
    ours = dict(zip(model.parameters(), torch.autograd.grad(value["caption"], list(model.parameters().values()), allow_unused=True)))
    want.backward()
    theirs = {f"{prefix}.{name}": p.grad for prefix, part in zip(("encoders.text.roberta", "encoders.fusion", "losses.caption"), parts)
              for name, p in part.named_parameters()}
    checked = 0
    for name, gradient in theirs.items():
        if gradient is not None and not name.endswith("key.bias"):  # exactly zero in truth, rounding in practice
            checked += 1
            torch.testing.assert_close(ours[name].double(), gradient, rtol=1e-4, atol=1e-5 * gradient.abs().max().item(), msg=name)
    assert checked > 70
    assert ours["encoders.vision.patch_embed.proj.weight"].abs().sum() > 0
    assert {n for n, g in ours.items() if g is not None and n.startswith("losses.")} == {
        n for n in ours if n.startswith("losses.caption.")}


def test_the_gradient_at_the_picture_is_that_of_a_word_at_a_time(model):
    it, parts = batch(), decoders(model)
    f = model.features(it, ["caption"]).bound("caption")
    leaf = f["fusion@left_to_right"]  # the pass that the loss reads, and the tokens of the pictures under it
    source = next(v for node, v in f._memo.items() if node.encoder == "vision").parts[0][0].tokens
    loss = model.losses["caption"](f, it)
    vision = source.detach().double().requires_grad_()
    torch.testing.assert_close(torch.autograd.grad(loss, source)[0].double(), torch.autograd.grad(plain(parts, vision)[0], vision)[0],
                               rtol=1e-4, atol=1e-7)
    assert leaf.attention is it.text.attention


def test_no_word_knows_itself_or_what_follows(model):
    """Another word at or behind a place changes nothing for it; one before does."""
    def losses(ids):
        it = batch([(ids, [3])])
        f = model.features(it, ["caption"]).bound("caption")
        return model.losses["caption"].next_words(f["fusion@left_to_right"], it.text)[0]

    with torch.no_grad():
        first = losses([0, 10, 11, 12, 13, 2])
        torch.testing.assert_close(losses([0, 10, 11, 50, 51, 52]), first, rtol=1e-5, atol=1e-5)
        assert not torch.allclose(losses([0, 10, 50, 12, 13, 2]), first, atol=1e-3)


def test_padding_and_company_change_nothing(model):
    with torch.no_grad():
        count = [len(places) for _, places in TEXTS]
        alone = [model.run(Batch(text=batch([text]).text, image=batch().image.select(torch.tensor([row]))), "caption")[0]["caption"]
                 for row, text in enumerate(TEXTS)]
        together = model.run(batch(), "caption")[0]["caption"]
    assert together.item() == pytest.approx(sum(n * one.item() for n, one in zip(count, alone)) / sum(count), rel=1e-5)


def test_nothing_to_predict_is_exactly_zero_and_attached(model):
    value = model.run(batch([([0, 10, 2], []), ([0, 11, 2], [])]), "caption")[0]["caption"]
    assert value.item() == 0 and value.requires_grad


def test_without_smoothing_it_is_the_plain_loss():
    model = Tiny(losses={"caption": {"type": "Captioning", "feature": "fusion@left_to_right", "smoothing": 0}})
    value, log = model.run(batch(), "caption")
    assert value["caption"].item() == log["caption.nll"].item()


def test_its_parameters_are_those_of_imlm(model):
    assert {n: p.shape for n, p in model.losses["caption"].named_parameters()} == {
        n: p.shape for n, p in model.losses["imlm"].named_parameters()}


def test_wrong_data_and_wrong_encoders_are_told(model, monkeypatch):
    it = batch()
    with pytest.raises(ValueError, match="no text from left to right.*`left_to_right: {prob, max}`"):
        model.run(Batch(text=replace(it.text, left_to_right=None), image=it.image), "caption")
    forward = CrossAttention.forward
    monkeypatch.setattr(CrossAttention, "forward", lambda self, **slots: replace(forward(self, **slots), attention=None))
    with pytest.raises(ValueError, match="`fusion@left_to_right` does not heed the attention of its text.*a word would see itself"):
        model.run(it, "caption")


def test_it_asks_the_device_for_nothing():
    model = Tiny(losses={"caption": {"type": "Captioning", "feature": "fusion@left_to_right"}}).to("meta")
    value, log = model.run(batch().to("meta"), "caption")
    value["caption"].backward()
    assert value["caption"].shape == log["caption.nll"].shape == ()


def test_words_are_guessed_as_often_as_they_were_asked_for(model):
    kept, seen = {}, Counter()
    for texts in (TEXTS, TEXTS[1:], TEXTS):
        f = model.features(batch(texts), ["caption"]).bound("caption")
        f._known = Known("pairs", kept)
        n, d, want = sum(seen.values()), 0.75, 0.0
        share = [(max(seen[w] - d, 0) + d * len(seen) / VOCAB) / n if n else 1 / VOCAB for w in range(VOCAB)]
        log_p = [math.log((1 - SMOOTHING) * p + SMOOTHING * (1 - p) / (VOCAB - 2)) for p in share]
        labels = [ids[place] for ids, places in texts for place in places]
        for label in labels:
            others = [log_p[w] for w in range(VOCAB) if w not in (0, label)]
            want -= ((1 - SMOOTHING) * log_p[label] + SMOOTHING * sum(others) / len(others)) / len(labels)
        assert model.losses["caption"].guess(f, f.batch).item() == pytest.approx(want, rel=1e-6)
        seen.update(labels)
