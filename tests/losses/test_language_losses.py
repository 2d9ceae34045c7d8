"""MLM and IMLM against a float64 computation written plainly from the encoders' states."""

import importlib
import math
from dataclasses import replace

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from xtoolkit.batch import Batch
from xtoolkit.losses.masked_tokens import token_losses
from xtoolkit.registry import LOSS_REGISTRY

from .tiny import VOCAB, Tiny, make_batch

kernel = importlib.import_module("xtoolkit.kernels.linear_cross_entropy")


@pytest.fixture(scope="module")
def model():
    return Tiny()


def plain_head(x, dense, norm, matrix, bias):
    """dense, exact GELU, LayerNorm (1e-5), output matrix: one hidden state (D,) in float64."""
    x = dense.weight.double() @ x + dense.bias.double()
    x = x * 0.5 * (1 + torch.erf(x / math.sqrt(2)))
    x = (x - x.mean()) / torch.sqrt(((x - x.mean()) ** 2).mean() + 1e-5) * norm.weight.double() + norm.bias.double()
    return matrix.double() @ x + bias.double()


def plain_loss(tokens, text, head):
    """Token by token: -log of the softmax at the original word, averaged."""
    length, terms = text.ids.shape[1], []
    for flat, label in zip(text.masked_pos.tolist(), text.labels.tolist()):
        logits = head(tokens[flat // length, flat % length].double())
        terms.append((torch.log(torch.exp(logits).sum()) - logits[label]).item())
    return sum(terms) / len(terms)


@torch.no_grad()
def test_mlm(model):
    batch = make_batch("text")
    encoder = model.encoders["text"]
    attend = batch.text.mask[:, None, None]
    states = encoder.roberta(input_ids=batch.text.masked_ids, attention_mask=attend).last_hidden_state
    words, head = encoder.roberta.embeddings.word_embeddings.weight, encoder.lm_head
    want = plain_loss(states, batch.text, lambda x: plain_head(x, head.dense, head.layer_norm, words, head.bias))
    assert model.run(batch, "mlm")[0]["mlm"].item() == pytest.approx(want, rel=1e-5)


@pytest.mark.parametrize("stream", ["pairs", "region"])
@torch.no_grad()
def test_imlm(model, stream):
    batch = make_batch(stream)
    states = model.features(batch).bound("imlm")["fusion@mask_text"].tokens
    head = model.losses["imlm"]
    want = plain_loss(states, batch.text,
                      lambda x: plain_head(x, head.dense, head.layer_norm, head.decoder.weight, head.decoder.bias))
    assert model.run(batch, "imlm")[0]["imlm"].item() == pytest.approx(want, rel=1e-5)


@pytest.mark.parametrize("loss, stream", [("mlm", "text"), ("imlm", "pairs"), ("imlm", "region")])
@torch.no_grad()
def test_the_losses_of_single_words_are_those_of_the_mean(model, loss, stream):
    batch, head = make_batch(stream), model.losses[loss]
    f = model.features(batch, [loss]).bound(loss)
    losses, right = head.word_losses(f, f[head.feature], batch.text)
    assert losses.shape == right.shape == batch.text.labels.shape and losses.std() > 0
    assert losses.mean().item() == pytest.approx(model.run(batch, loss)[0][loss].item(), rel=1e-5)
    asked = lambda word: replace(batch.text, labels=torch.full_like(batch.text.labels, word))
    scores = torch.stack([head.word_losses(f, f[head.feature], asked(word))[0] for word in range(VOCAB)])
    assert right.tolist() == (scores.argmin(0) == batch.text.labels).tolist()
    torch.testing.assert_close((-scores).exp().sum(0), torch.ones(len(right)))


def test_words_in_chunks_are_words():
    hidden, labels, matrix = torch.randn(7, 4), torch.arange(7), torch.randn(9, 4)
    layer = lambda states: states @ matrix.t()
    whole, parts = token_losses(hidden, labels, layer), token_losses(hidden, labels, layer, chunk=3)
    assert all(map(torch.equal, whole, parts)) and token_losses(hidden[:0], labels[:0], layer)[0].shape == (0,)


def without_masked_tokens(batch):
    nothing = torch.zeros(0, dtype=torch.long)
    return batch.with_fields(text=replace(batch.text, masked_ids=batch.text.ids, masked_pos=nothing, labels=nothing))


@pytest.mark.parametrize("loss, stream", [("mlm", "text"), ("imlm", "pairs"), ("imlm", "region")])
def test_nothing_masked_is_exactly_zero_and_attached(model, loss, stream):
    value = model.run(without_masked_tokens(make_batch(stream)), loss)[0][loss]
    assert value.item() == 0 and value.requires_grad
    for g in torch.autograd.grad(value, list(model.parameters().values()), allow_unused=True):
        assert g is None or (g == 0).all()


@pytest.mark.parametrize("loss, stream", [("mlm", "text"), ("imlm", "pairs"), ("imlm", "region")])
def test_scores_are_made_for_the_masked_tokens_only(model, loss, stream):
    batch, shapes = make_batch(stream), []

    class Shapes(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            if func is torch.ops.aten.addmm.default:
                shapes.append(tuple(out.shape))
            return out

    with Shapes():
        model.run(batch, loss)
    assert [s for s in shapes if s[1] == VOCAB] == [(len(batch.text.labels), VOCAB)]


@pytest.mark.parametrize("loss, stream", [("mlm", "text"), ("imlm", "pairs"), ("imlm", "region")])
def test_in_parts_the_loss_and_every_gradient_are_the_same(model, loss, stream, monkeypatch):
    found = []
    for size in (1 << 40, -1):
        monkeypatch.setattr(kernel, "PLAIN_BYTES", size)
        monkeypatch.setattr(kernel, "WORDS", 16)
        value = model.run(make_batch(stream), loss)[0][loss]
        found.append((value, torch.autograd.grad(value, list(model.parameters().values()), allow_unused=True)))
    (plain, gradients), (parts, others) = found
    assert parts.item() == pytest.approx(plain.item(), rel=1e-6)
    for name, a, b in zip(model.parameters(), gradients, others, strict=True):
        assert (a is None) == (b is None), name
        if a is not None:
            torch.testing.assert_close(b, a, rtol=1e-4, atol=1e-7, msg=name)


def test_an_encoder_that_only_gives_scores_will_do(model, monkeypatch):
    batch = make_batch("text")
    want = model.run(batch, "mlm")[0]["mlm"]
    head = model.encoders["text"].lm_logits
    monkeypatch.setattr(type(model.encoders["text"]), "lm_logits", lambda self, hidden: head(hidden))
    assert torch.equal(model.run(batch, "mlm")[0]["mlm"], want)


def test_a_feature_without_the_texts_tokens_is_refused():
    wrong = Tiny(losses={"imlm": {"type": "IMLM", "feature": "vision"}})
    with pytest.raises(ValueError, match=r"`feature` must name a text or fusion encoder.*\(6, 9\).*\(6, 17\)"):
        wrong.run(make_batch("pairs"), "imlm")


def test_a_stream_without_masked_text_is_refused(model):
    batch = make_batch("text")
    with pytest.raises(ValueError, match="no masked text.*`mask: {prob, max, ngram}`"):
        model.run(Batch(text=replace(batch.text, masked_ids=None)), "mlm")


def test_imlm_owns_its_head_of_the_paper_s_size():
    with torch.device("meta"):
        loss = LOSS_REGISTRY.build({"type": "IMLM", "feature": "fusion@mask_text"}, "here",
                                   widths={"fusion@mask_text": 768}, vocab_size_of=50265)
    assert loss.decoder.weight.numel() == 38_603_520
    assert sum(p.numel() for p in loss.parameters()) == 38_603_520 + 642_393


def test_imlm_starts_as_released():
    head = Tiny().losses["imlm"]
    assert head.decoder.out_features == VOCAB
    for layer in (head.dense, head.decoder):
        assert layer.weight.std().item() == pytest.approx(0.02, rel=0.1) and abs(layer.weight.mean().item()) < 2e-3
        assert (layer.bias == 0).all()
