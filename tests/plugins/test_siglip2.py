"""SigLIP 2's parts against computations by hand in float64: losses, gradients, what sees what; each in X-FM's recipe; the small recipe."""

import copy
import json
import math
import random
import re
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
import timm
import torch
import torch.nn.functional as F
from safetensors.torch import save_file

from xtoolkit import build, load
from xtoolkit import recipe as recipes
from xtoolkit.batch import Batch, ImageField, TextField
from xtoolkit.cli.train import main as train
from xtoolkit.data.images import Augment
from xtoolkit.encoders.similarity import Scores
from xtoolkit.engine import checkpoint
from xtoolkit.features import Encoded
from xtoolkit.model import Model, trainable
from xtoolkit.plan import make_plan
from xtoolkit.recipe.folder import latest
from xtoolkit.recipe.plugins import import_components
from xtoolkit.registry import ENCODER_REGISTRY, ConfigError

import_components()
from xtoolkit.plugins.siglip2.contrast import GlobalSigLIP  # noqa: E402
from xtoolkit.plugins.siglip2.crops import Crops, MultiCrop  # noqa: E402
from xtoolkit.plugins.siglip2.towers import MAPHead  # noqa: E402

ROOT = Path(__file__).resolve().parents[2]
XFM, BASELINES = str(ROOT / "projects/xfm/tiny.yaml"), ROOT / "projects/xfm/baselines"
ENCODERS = {"vision": {"stem": [8, 8, 8], "width": 32, "layers": 1, "heads": 2}, "text": {"width": 32, "layers": 1, "heads": 2},
            "fusion": {"layers": 1, "heads": 2}, "vision_proj": {"dim": 32}, "text_proj": {"dim": 32}}
DECODER = {"type": "CaptionDecoder", "inputs": {"text": "$text", "image": "vision"}, "width": 32, "layers": 2, "heads": 2,
           "vocab_size": 4000, "bins": 50, "max_positions": 40, "init_std": 0.2}


def beside(encoders: dict, losses: dict, data=None, **streams):
    """X-FM's small recipe at very small sizes with parts beside its own; its streams but these, {loss: weight}, are left out."""
    blocks = {name: {"batch_size": 8, "losses": weights} | ({"data": data} if data else {}) for name, weights in streams.items()}
    return build({"_BASE_": XFM, "encoders": {**ENCODERS, **encoders}, "losses": losses, "evaluate": None, "schedule": None,
                  "streams": {**dict.fromkeys(("text", "image", "pairs", "match", "region")), **blocks}})


@pytest.fixture(scope="module")
def captions():
    run = beside({"decoder": DECODER}, {"cappa": {"type": "CapPa", "decoder": "decoder", "parallel": 0.5},
                                        "locca": {"type": "LocCa", "decoder": "decoder@whole"}},
                 pairs={"cappa": 1}, region={"locca": 1, "cappa": 1})
    return run.model.double().eval(), {stream: double(run.batch(stream)) for stream in ("pairs", "region")}


def double(batch):
    return batch.map(lambda t: t.double() if t.is_floating_point() else t)


def gradients(value, model):
    named = [(n, p) for n, p in model.named_parameters() if p.requires_grad]
    found = torch.autograd.grad(value, [p for _, p in named], retain_graph=True, allow_unused=True)
    return {name: g for (name, _), g in zip(named, found) if g is not None}


def same_gradients(found, wanted, model, rtol=1e-8, atol=1e-12):
    ours, theirs = gradients(found, model), gradients(wanted, model)
    assert ours.keys() == theirs.keys() and len(ours) > 10
    for name, gradient in ours.items():
        torch.testing.assert_close(gradient, theirs[name], rtol=rtol, atol=atol, msg=lambda m: f"{name}: {m}")


# ---- the decoder ---------------------------------------------------------------------------------------------------------
def decoded(model, ids, image, causal: bool):
    """(L, D) states of one row of ids (L,), written again without masks of padding: every token is there."""
    decoder, x = model.encoders["decoder"], None
    x = F.layer_norm(decoder.word_embeddings.weight[ids] + decoder.positions[:len(ids)], (32,), decoder.norm.weight, decoder.norm.bias)
    post = lambda part, x, y: F.layer_norm(F.linear(y, part.dense.weight, part.dense.bias) + x, (32,), part.LayerNorm.weight,
                                           part.LayerNorm.bias, part.LayerNorm.eps)
    linear = lambda part, x: F.linear(x, part.weight, part.bias)

    def attend(heads, x, source, causal):
        found = []
        for q, k, v in zip(*(linear(part, t).chunk(2, 1) for part, t in ((heads.query, x), (heads.key, source), (heads.value, source)))):
            scores = q @ k.T / 4
            if causal:
                scores = scores + torch.full_like(scores, float("-inf")).triu(1)
            found.append(scores.softmax(1) @ v)
        return torch.cat(found, 1)

    for layer in decoder.transformer.layer:
        x = post(layer.attention.output, x, attend(layer.attention.self, x, x, causal))
        x = post(layer.crossattention.output, x, attend(layer.crossattention.self, x, image, False))
        x = post(layer.output, x, F.gelu(linear(layer.intermediate.dense, x)))
    return x


def scores(model, states):
    head = model.encoders["decoder"].lm_logits
    return F.linear(states, head.weight, head.bias)


def test_captions_are_told_left_to_right_and_at_once(captions):
    model, batch = captions[0], captions[1]["pairs"]
    image, decoder, costs = model.features(batch)["vision"].tokens, model.encoders["decoder"], {True: [], False: []}
    for row in range(8):
        ids, at_once = batch.text.ids[row][batch.text.mask[row]], row % 2 == 1  # every second at 0.5
        read = torch.full_like(ids[:-1], decoder.mask_id) if at_once else ids[:-1]
        told = scores(model, decoded(model, read, image[row, 1:], not at_once)).log_softmax(1)
        costs[at_once] += [-told[place, word] for place, word in enumerate(ids[1:].tolist())]
    found = model("pairs", batch)
    wanted = torch.stack(costs[True] + costs[False]).mean()
    torch.testing.assert_close(found["cappa"], wanted, rtol=1e-9, atol=0)
    torch.testing.assert_close(found.log["cappa.causal"], torch.stack(costs[False]).mean())
    torch.testing.assert_close(found.log["cappa.parallel"], torch.stack(costs[True]).mean())
    same_gradients(found["cappa"], wanted, model)


def test_no_later_word_is_seen_and_none_at_all_in_parallel(captions):
    model, batch = captions[0], captions[1]["pairs"]
    text, loss = batch.text, model.losses["cappa"]
    ids = text.ids.clone()
    ids[:, 3:-1] = (ids[:, 3:-1] + 7) % 3000 + 5   # every word from the fourth on is another

    def states(ids):
        import dataclasses
        read, _, at_once = loss.targets(dataclasses.replace(text, ids=ids))
        return model.encoders["decoder"](view=None, text=read, image=model.features(batch)["vision"]).tokens, at_once

    (before, at_once), (after, _) = states(text.ids), states(ids)
    assert at_once.tolist() == [False, True] * 4
    assert torch.equal(before[:, :3], after[:, :3]), "the first three tokens see no later one"
    assert not torch.allclose(before[~at_once, 3:], after[~at_once, 3:])
    assert torch.equal(before[at_once], after[at_once]), "masks alone"


@pytest.mark.parametrize(("share", "rows"), [(0.0, []), (0.25, [3, 7]), (0.75, [1, 2, 3, 5, 6, 7]), (1.0, list(range(8)))])
def test_the_share_that_is_decoded_in_parallel(captions, share, rows):
    loss = captions[0].losses["cappa"]
    loss.parallel, before = share, loss.parallel
    found = loss.targets(captions[1]["pairs"].text)[2]
    loss.parallel = before
    assert found.nonzero()[:, 0].tolist() == rows


def test_what_guessing_costs(captions):
    """Words as frequent as in the batch before, which was the same one here; each coordinate likewise, among coordinates."""
    model, batches = captions
    for stream, name in (("pairs", "cappa"), ("region", "locca")):
        batch, decoder = batches[stream], model.encoders["decoder"]
        words = batch.text.ids[:, 1:][batch.text.mask[:, 1:]].tolist()
        box = decoder.box_tokens(batch.region.box)[batch.region.is_box].flatten().tolist() if stream == "region" else []
        count = Counter(words + box)
        rate = {w: (n - 0.75 + 0.75 * len(count) / 4054) / len(words + box) for w, n in count.items()}
        sides = [sum(rate.get(w, 0.75 * len(count) / 4054 / len(words + box)) for w in side) for side in (range(4004), range(4004, 4054))]
        cost = lambda side, all: -sum(math.log(rate[w] / all) for w in side) / len(side)
        log = model(stream, batch, known=Known()).log
        if stream == "pairs":
            assert log["cappa.guess"].item() == pytest.approx(cost(words, 1.0), rel=1e-6)
        else:
            assert log["locca.describe.guess"].item() == pytest.approx(cost(words, sides[0]), rel=1e-6)
            assert log["locca.refer.guess"].item() == pytest.approx(cost(box, sides[1]), rel=1e-6)


class Known:
    """What a guess may know: one process, and the batch before, which was this one."""

    def total(self, sums):
        return sums

    def counts(self, reader, zero, now):
        return now


# ---- boxes ---------------------------------------------------------------------------------------------------------------
def test_boxes_go_to_tokens_and_back(captions):
    decoder = captions[0].encoders["decoder"]
    low = torch.rand(500, 2) * 0.9
    size = (1 - low) * torch.rand(500, 2)
    box = torch.cat([low + size / 2, size], 1)
    tokens = decoder.box_tokens(box)
    assert tokens.min() >= 4004 and tokens.max() < 4054
    assert tokens.tolist()[:3] == [[4004 + round(float(v) * 49) for v in (x, y, x + w, y + h)]
                                   for (x, y), (w, h) in zip(low.tolist()[:3], size.tolist()[:3])]
    corners = lambda b: torch.cat([b[:, :2] - b[:, 2:] / 2, b[:, :2] + b[:, 2:] / 2], 1)
    assert (corners(decoder.boxes(tokens)) - corners(box)).abs().max() <= 0.5 / 49 + 1e-6
    whole = torch.tensor([[0.5, 0.5, 1.0, 1.0]])
    assert torch.equal(decoder.boxes(decoder.box_tokens(whole)), whole)
    assert decoder.boxes(torch.tensor([[4050, 4050, 4010, 4010]]))[0, 2:].tolist() == [0, 0], "no box of a negative width"


def test_phrases_and_boxes_are_told_from_each_other(captions):
    model, batch = captions[0], captions[1]["region"]
    decoder, region, costs = model.encoders["decoder"], batch.region, {"refer": [], "describe": []}
    image, log_p = model.features(batch)["vision@whole"].tokens, lambda states: scores(model, states).log_softmax(1)
    assert region.is_box.any() and len(set(batch.text.mask.sum(1).tolist())) > 1, "the batch must show what is tested"
    for row, own in enumerate(decoder.box_tokens(region.box)):
        words, patches = batch.text.ids[row][batch.text.mask[row]][1:], image[row, 1:]
        token = lambda number: torch.tensor([number])
        read = torch.cat([token(decoder.refer_id), words, token(decoder.box_id), own[:3]])
        if region.is_box[row]:
            told = log_p(decoded(model, read, patches, True))[-4:]
            costs["refer"] += [-told[place, number] for place, number in enumerate(own.tolist())]
        read = torch.cat([token(decoder.describe_id), own, words[:-1]])
        told = log_p(decoded(model, read, patches, True))[4:]
        costs["describe"] += [-told[place, word] for place, word in enumerate(words.tolist())]
    found = model("region", batch)
    wanted = {name: torch.stack(values).mean() for name, values in costs.items()}
    for name, value in wanted.items():
        torch.testing.assert_close(found.log[f"locca.{name}"], value.detach(), rtol=1e-9, atol=0)
    same_gradients(found["locca"], sum(wanted.values()), model)


def test_boxes_are_said_one_coordinate_after_the_other(captions):
    model, batch = captions[0], captions[1]["region"]
    decoder, image, found = model.encoders["decoder"], model.features(batch)["vision@whole"].tokens, []
    for row in range(len(batch.text.ids)):
        said = torch.cat([torch.tensor([decoder.refer_id]), batch.text.ids[row][batch.text.mask[row]][1:], torch.tensor([decoder.box_id])])
        for _ in range(4):
            best = scores(model, decoded(model, said, image[row, 1:], True))[-1, decoder.first_bin:].argmax()
            said = torch.cat([said, decoder.first_bin + best[None]])
        found.append(said[-4:])
    assert torch.equal(model.losses["locca"].boxes(model.features(batch)), decoder.boxes(torch.stack(found)))


# ---- towers ---------------------------------------------------------------------------------------------------------------
def tower(**keys):
    return ENCODER_REGISTRY.get("TimmTower")(**{"model": "vit_tiny_patch16_224", "width": 24, "layers": 2, "heads": 3, "image_size": 32,
                                               "patch_size": 8} | keys)


def pictures(rows=2, size=32, mask=None):
    return ImageField(torch.randn(rows, 3, size, size, generator=torch.Generator().manual_seed(1)).double(), patch_mask=mask)


@pytest.mark.parametrize(("model", "summary"), [("vit_tiny_patch16_224", "cls"), ("vit_base_patch16_siglip_224", "mean")])
def test_a_tower_is_timms_own_model(model, summary, tmp_path):
    theirs = timm.create_model(model, num_classes=7, img_size=48, patch_size=8, embed_dim=24, depth=2, num_heads=3).double().eval()
    with torch.no_grad():
        theirs.pos_embed.normal_()
    save_file(theirs.state_dict(), tmp_path / "model.safetensors")
    ours = tower(model=model, summary=summary, image_size=48, init=str(tmp_path)).double().eval()
    ours.load_init()
    wanted, found = theirs.forward_features(pictures(size=48).pixels), ours(view=None, image=pictures(size=48)).tokens
    patches = wanted[:, theirs.num_prefix_tokens:]
    assert patches.shape[1] == 36
    torch.testing.assert_close(found, torch.cat([wanted[:, :1] if summary == "cls" else patches.mean(1, keepdim=True), patches], 1))
    if model.endswith("siglip_224"):  # its pooling is MAPHead, with the weights of the same file
        head = MAPHead({"x": 24}, heads=3, init=str(tmp_path)).double()
        head.load_init()
        pooled = head(view=None, x=ours(view=None, image=pictures(size=48)))
        torch.testing.assert_close(pooled.pooled, theirs.attn_pool(wanted))
        assert torch.equal(pooled.tokens[:, 1:], found[:, 1:])
    theirs.set_input_size(img_size=32)
    smaller = ours(view=None, image=pictures()).tokens[:, 1:]   # as the crops of a picture are
    torch.testing.assert_close(smaller, theirs.forward_features(pictures().pixels)[:, theirs.num_prefix_tokens:])


def test_a_tower_hides_masked_patches_and_nothing_else():
    mask = torch.zeros(2, 16, dtype=torch.bool)
    mask[0, [3, 7]] = True
    for stem in (None, [8, 8]):
        ours = tower(stem=stem).double().eval()
        plain, masked = ours(view=None, image=pictures()).tokens, ours(view="mask_image", image=pictures(mask=mask)).tokens
        assert not torch.allclose(plain[0], masked[0]) and torch.equal(plain[1], masked[1])
        changed = pictures(mask=mask)
        changed.pixels[0, :, 0:8, 24:32] += 5.0   # the fourth patch of the first row, which is masked
        if stem is None:
            assert torch.equal(ours(view="mask_image", image=changed).tokens, masked)
        else:
            torch.testing.assert_close(ours(view="mask_image", image=changed).tokens, masked)


def test_pooling_sees_the_patches_of_a_box_alone():
    torch.manual_seed(0)
    full, head = Encoded.of(torch.randn(2, 17, 24).double()), MAPHead({"x": 24}, heads=3).double()
    chosen = torch.rand(3, 16) < 0.5
    rows = torch.tensor([1, 0, 1])
    found = head(view=None, x=full.subset(rows, chosen))
    for row in range(3):
        patches = full.tokens[rows[row], 1:][chosen[row]]
        k, v = F.linear(patches, head.kv.weight, head.kv.bias).chunk(2, 1)
        q = F.linear(head.latent[0, 0], head.q.weight, head.q.bias)
        parts = [(ks @ qs / 8**0.5).softmax(0) @ vs for qs, ks, vs in zip(q.chunk(3), k.chunk(3, 1), v.chunk(3, 1))]
        x = F.linear(torch.cat(parts), head.proj.weight, head.proj.bias)
        torch.testing.assert_close(found.pooled[row], x + head.mlp(head.norm(x)))


def test_the_last_token_is_none_of_the_padding():
    mask = torch.tensor([[True] * 5, [True] * 2 + [False] * 3])
    tokens = torch.randn(2, 5, 4)
    last = ENCODER_REGISTRY.get("LastToken")({"x": 4})(view=None, x=Encoded.of(tokens, mask))
    assert torch.equal(last.pooled, torch.stack([tokens[0, 4], tokens[1, 1]]))


@pytest.mark.parametrize("kind", ["SigLIP", "GlobalSigLIP"])
def test_sigmoid_contrast_with_its_bias_and_temperature(kind):
    run = beside({}, {"sigmoid": {"type": kind, "sim": "sim", "bias": -3.0}}, pairs={"sigmoid": 1})
    model, batch = run.model.double().eval(), double(run.batch("pairs"))
    losses, f, same = model("pairs", batch, known=Known()), model.features(batch), batch.same_rows()
    image, text, costs = f["vision_proj"], f["text_proj"], []
    for i in range(8):
        for j in range(8):
            if i == j or not same[i, j]:
                logit = image[i] @ text[j] / model.encoders["sim"].temperature + model.losses["sigmoid"].bias
                costs.append(torch.log1p(torch.exp(-logit if i == j else logit)).sum())
    found, wanted = losses["sigmoid"], torch.stack(costs).sum() / 8
    torch.testing.assert_close(found, wanted, rtol=1e-6, atol=0)   # SigLIP is made in float32
    same_gradients(found, wanted, model, rtol=1e-5, atol=1e-7)
    assert {"encoders.sim.temperature", "losses.sigmoid.bias"} <= gradients(found, model).keys()
    rate = 8 / len(costs)
    assert losses.log["sigmoid.guess"].item() == pytest.approx(-(rate * math.log(rate) + (1 - rate) * math.log(1 - rate)) / rate)


def test_sigmoid_contrast_of_a_rank_among_others(monkeypatch):
    """The second of two ranks: its rows are columns 4 to 7; the other's second text is the same as its own third."""
    loss = GlobalSigLIP("sim", bias=-2.0)
    scores = Scores(torch.randn(4, 8), torch.randn(4, 8), 4, torch.ones(1))
    other = torch.tensor([[100, 100], [2, 102], [103, 103], [104, 104]])
    monkeypatch.setattr(Scores, "columns", lambda self, rows: torch.cat([other, rows]))
    text = TextField(torch.zeros(4, 2, dtype=torch.long), torch.ones(4, 2, dtype=torch.bool), torch.arange(4))
    batch = Batch(text=text, image=ImageField(torch.zeros(4, 3, 1, 1), torch.arange(4) + 10))
    assert batch.row_keys().tolist() == [[0, 10], [1, 11], [2, 12], [3, 13]]
    wanted = sum(math.log1p(math.exp((-1 if column == 4 + row else 1) * (float(scores.image_to_text[row, column]) - 2)))
                 for row in range(4) for column in range(8) if (row, column) != (2, 1))
    assert loss({"sim": scores}, batch).item() == pytest.approx(wanted / 4, rel=1e-5)


# ---- self-distillation ----------------------------------------------------------------------------------------------------
DISTILLED = {"vision_ema": {"type": "Teacher", "of": "vision", "momentum": 0.9},
             "vision_crops": {"shares": "vision", "inputs": {"image": "$crops"}},
             "proto": {"type": "Prototypes", "inputs": {"x": "vision"}, "prototypes": 12, "hidden": 16, "bottleneck": 8, "init_std": 0.3},
             "proto_ema": {"type": "Teacher", "of": "proto", "momentum": 0.8, "inputs": {"x": "vision_ema"}},
             "proto_crops": {"shares": "proto", "inputs": {"x": "vision_crops"}}}
VIEWS = {"local": {"type": "LocalToGlobal", "student": "proto_crops", "teacher": "proto_ema", "teacher_temperature": 0.2},
         "patches": {"type": "MaskedPatches", "student": "proto@mask_image", "teacher": "proto_ema", "teacher_temperature": 0.2}}
CROPPED = {"type": "MultiCrop", "path": "sample://picturebook/images", "image_mask": {"patches": 18, "min_block": 2},
           "augment": {"crop_scale": [0.4, 1.0]}, "crops": {"number": 3}}


@pytest.fixture(scope="module")
def distilled():
    run = beside(DISTILLED, VIEWS, CROPPED, image={"local": 1, "patches": 0.25})
    model = run.model.double().eval()
    with torch.no_grad():  # teachers that are not their students, and a centre that is not 0
        for name, parameter in model.named_parameters():
            if "_ema" in name:
                parameter.add_(0.1 * torch.randn_like(parameter))
        for name in VIEWS:
            model.losses[name].centre.normal_()
    return model, double(run.batch("image")), run


def cosines(head, x):
    for number, layer in enumerate(head.layers):
        x = F.linear(F.gelu(x) if number else x, layer.weight, layer.bias)
    weight = head.weight / head.weight.square().sum(1, keepdim=True).sqrt()
    return x / x.square().sum(-1, keepdim=True).sqrt() @ weight.T


def costs_by_hand(model, name, pairs):
    """[cost of each (student's token, teacher's token)], and the teacher's scores."""
    proto, teacher, loss = model.encoders["proto"], model.encoders["proto_ema"].encoder, model.losses[name]
    found, scores = [], []
    for seen, whole in pairs:
        said = cosines(teacher, whole).detach()
        scores.append(said)
        target = torch.exp((said - loss.centre) / 0.2) / torch.exp((said - loss.centre) / 0.2).sum()
        found.append(-(target * (cosines(proto, seen) / 0.1).log_softmax(0)).sum())
    return torch.stack(found), torch.stack(scores)


def views(model, batch):
    """{loss: [(student's token, teacher's token)]} of a batch."""
    vision, crops = model.encoders["vision"], batch["crops"].pixels
    whole = model.encoders["vision_ema"].encoder(view=None, image=batch.image.clean()).tokens
    masked = vision(view="mask_image", image=batch.image).tokens
    local = [(vision(view=None, image=ImageField(crop[None])).pooled[0], whole[row, 0]) for row, several in enumerate(crops) for crop in several]
    hidden = batch.image.patch_mask.nonzero().tolist()
    assert len(local) == 24 and len(hidden) == 8 * 18
    return {"local": local, "patches": [(masked[row, 1 + place], whole[row, 1 + place]) for row, place in hidden]}


@pytest.mark.parametrize("name", VIEWS)
def test_self_distillation_by_hand(distilled, name):
    model, batch, _ = distilled
    wanted, scores = costs_by_hand(model, name, views(model, batch)[name])
    losses = model("image", batch, known=Known())
    torch.testing.assert_close(losses[name], wanted.mean(), rtol=1e-8, atol=0)
    same_gradients(losses[name], wanted.mean(), model)
    assert not any("_ema" in n for n in gradients(losses[name], model))
    target = ((scores - model.losses[name].centre) / 0.2).softmax(1)
    torch.testing.assert_close(losses.log[f"{name}.target_entropy"], -(target * target.log()).sum(1).mean())
    mean = target.mean(0)   # the one answer that costs least in hindsight
    torch.testing.assert_close(losses.log[f"{name}.guess"].double(), -(mean * mean.log()).sum(), rtol=1e-6, atol=0)
    assert losses.log[f"{name}.guess"] > losses.log[f"{name}.target_entropy"]


def test_the_centre_moves_once_an_update_and_teachers_with_it(distilled, monkeypatch):
    model, batch, run = distilled
    model = copy.deepcopy(model)
    other = double(run.batch("image", 1))
    before = {n: p.clone() for n, p in model.state_dict().items()}
    model("image", batch)
    model.after_update()
    assert all(torch.equal(model.losses[name].centre, before[f"losses.{name}.centre"]) for name in VIEWS), "evaluation moves none"
    means = {name: torch.cat([costs_by_hand(model, name, views(model, b)[name])[1] for b in (batch, other)]).mean(0) for name in VIEWS}
    model.train()
    for part in (batch, other):    # two parts of one step
        model("image", part)
    with torch.no_grad():
        model.encoders["proto"].weight += 1.0
    teacher = model.encoders["proto_ema"].encoder.weight.clone()
    model.after_update()
    for name, mean in means.items():
        torch.testing.assert_close(model.losses[name].centre, 0.9 * before[f"losses.{name}.centre"] + 0.1 * mean)
    torch.testing.assert_close(model.encoders["proto_ema"].encoder.weight, 0.8 * teacher + 0.2 * model.encoders["proto"].weight)
    centre = model.losses["local"].centre.clone()
    model.after_update()
    assert torch.equal(model.losses["local"].centre, centre), "an update without the stream"
    # Another rank saw eight pictures more, whose scores are all 1.
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "all_reduce", lambda sums: sums.add_(torch.tensor([8.0] * 12 + [8.0])))
    mean = costs_by_hand(model, "local", views(model, batch)["local"])[1].mean(0)
    model.losses["local"](model.features(batch), batch)
    model.losses["local"].after_update()
    torch.testing.assert_close(model.losses["local"].centre, 0.9 * centre + 0.1 * (8 * mean + 8) / 16)


def test_crops_are_parts_of_their_picture(distilled):
    batch, run = distilled[2].batch("image"), distilled[2]
    crops = batch["crops"]
    assert crops.pixels.shape == (8, 3, 3, 96, 96) and torch.equal(crops.clean().pixels[7], crops.pixels[2, 1])
    assert torch.equal(run.batch("image")["crops"].pixels, crops.pixels) and not torch.equal(run.batch("image", 1)["crops"].pixels, crops.pixels)
    made = MultiCrop(96, 16, path="sample://picturebook/images", augment=Augment(crop_scale=None, flip=0, randaugment=None),
                     crops=Crops(number=1, scale=(0.25, 0.25), size=32, flip=0, randaugment=None))
    shown = made.figures(batch, None)[-1]["items"]
    assert len(shown) == 9 and torch.equal(shown[4]["image"], made.images.picture(crops.pixels[1, 1])) and shown[4]["caption"] == batch.image.image_id[1]
    item = made.load(0, 0, 1, random.Random(0))
    crop, whole = item.fields["crops"][0], item.image.pixels
    assert crop.shape == (3, 32, 32)
    # A quarter of the picture, at about half its sides, is found somewhere in it.
    best = min((F.interpolate(whole[None, :, y:y + h, x:x + w], (32, 32), mode="area") - crop).abs().mean().item()
               for h in range(40, 60, 4) for w in range(40, 60, 4) for y in range(0, 97 - h, 4) for x in range(0, 97 - w, 4))
    assert best < 0.35 * (F.interpolate(whole[None], (32, 32), mode="area") - crop).abs().mean()


# ---- what is wrong --------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(("losses", "said"), [
    ({"cappa": {"type": "CapPa", "decoder": "text"}}, "CapPa: `decoder` must name an encoder of type CaptionDecoder; `text` is RoBERTa"),
    ({"cappa": {"type": "CapPa", "decoder": "decoder", "parallel": 1.5}}, "parallel"),
    ({"cappa": {"type": "LocCa", "decoder": "decoder"}}, "write `decoder@whole`"),
    ({"cappa": {"type": "MaskedPatches", "student": "proto", "teacher": "proto_ema"}}, "write `proto@mask_image`")])
def test_one_clear_error(losses, said):
    with pytest.raises(ConfigError) as error:
        beside({"decoder": DECODER, **DISTILLED}, losses, region={"cappa": 1})
    assert said in str(error.value)


@pytest.mark.parametrize(("keys", "said"), [
    ({"size": 50}, "data.crops.size: 50 is not a multiple of the encoder's patch_size 16; nearest: 48"),
    ({"scale": [0.5, 0.1]}, "must be [smallest, largest]"), ({"nubmer": 3}, "did you mean `number`")])
def test_crops_that_cannot_be(keys, said):
    with pytest.raises(ConfigError) as error:
        run = beside(DISTILLED, VIEWS, CROPPED | {"crops": keys}, image={"local": 1})
        run.batch("image")
    assert said in str(error.value)


@pytest.mark.parametrize(("keys", "said"), [
    ({"model": "vit_tiny_patch16_242"}, "timm has no VisionTransformer `vit_tiny_patch16_242`; did you mean `vit_tiny_patch16_224`?"),
    ({"image_size": 30}, "image_size 30 is not a multiple of patch_size 8; nearest: 32"),
    ({"model": "vit_base_patch16_siglip_224", "summary": "cls"}, "has no class token: take `summary: mean`")])
def test_towers_that_cannot_be(keys, said):
    with pytest.raises(ValueError) as error:
        tower(**keys)
    assert said in str(error.value)
    with pytest.raises(ValueError, match="pictures of 30 x 30 are no multiple"):
        tower()(view=None, image=ImageField(torch.zeros(1, 3, 30, 30)))


def test_too_long_for_the_decoder(captions):
    run = beside({"decoder": DECODER | {"max_positions": 6}}, {"cappa": {"type": "CapPa", "decoder": "decoder"}}, pairs={"cappa": 1})
    with pytest.raises(ValueError, match="tokens do not fit CaptionDecoder's 6 positions: lower the stream's `max_tokens`, or raise"):
        run.model("pairs", run.batch("pairs"))


# ---- in X-FM's recipe -----------------------------------------------------------------------------------------------------
BLOCKS = re.findall(r"```yaml\n(.*?)```", (ROOT / "plugins/siglip2/README.md").read_text(), re.S)


@pytest.mark.parametrize("block", BLOCKS, ids=[str(n) for n in range(len(BLOCKS))])
def test_what_the_readme_adds_to_xfm_is_planned_and_takes_a_step(block, tmp_path):
    assert block.startswith("_BASE_: projects/")
    (path := tmp_path / "more.yaml").write_text(block.replace("_BASE_: projects/", f"_BASE_: {ROOT}/projects/", 1))
    plain, more = (recipes.load(str(p)) for p in (XFM, path))
    new = more.needs.keys() - plain.needs.keys()
    run = build({"_BASE_": str(path), "evaluate": None, "schedule": None, "streams": {
        name: {"batch_size": 8} if new & stream.losses.keys() else None for name, stream in more.streams.items()}})
    assert new and not [s.unknown for s in make_plan(run.recipe).streams if s.unknown]
    for stream in run.recipe.streams:
        losses = run.model(stream, run.batch(stream))
        sum(losses[name] for name in new & losses.keys()).backward()
        assert all(torch.isfinite(value) for value in losses.values())
    learn = {name.split(".")[1] for name, p in run.model.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}
    added = {run.recipe.graph.encoders[name].owner for name in more.reached if name not in plain.reached}
    assert {"vision"} | {name for name in added if any(p.requires_grad for p in run.model.encoders[name].parameters())} <= learn


# ---- its recipes ------------------------------------------------------------------------------------------------------------
def test_parameters_of_the_towers_are_those_of_siglip():
    """ViT-B/16 at 224 px: patches, places, twelve blocks, the last norm; a query, its attention and a perceptron. A mask token beside."""
    width, block = 768, 4 * (768**2 + 768) + 2 * 4 * 768**2 + 5 * 768 + 4 * 768
    tower = (16 * 16 * 3 + 1) * width + 196 * width + 12 * block + 2 * width
    pooling = width + 4 * (width**2 + width) + 2 * width + 2 * 4 * width**2 + 5 * width
    assert tower + pooling == 92_884_224   # timm's vit_base_patch16_siglip_224
    with torch.device("meta"):
        encoders = Model(recipes.load(str(BASELINES / "siglip2.yaml"), missing_files=False)).encoders
    assert (trainable(encoders["tower"]), trainable(encoders["vision"])) == (tower + width, pooling)
    assert {trainable(encoders[f"{name}_ema"]) for name in ("tower", "vision", "proto")} == {0}


SMALL = ["--config", str(BASELINES / "tiny/siglip2.yaml"), *(f"encoders.{k}={v}" for k, v in {
    "tower.width": 32, "tower.layers": 1, "tower.heads": 2, "tower.stem": "[8,8,8]", "vision.heads": 2, "text.width": 32,
    "text.layers": 1, "text.heads": 2, "vision_proj.dim": 32, "text_proj.dim": 32, "decoder.width": 32, "decoder.layers": 1,
    "decoder.heads": 2, "proto.prototypes": 16, "proto.hidden": 16, "proto.bottleneck": 8}.items()),
    "streams.*.batch_size=8", "schedule.every={pairs: 1, region: 1, image: 1}", "evaluate.*.limit=16", "train.log_every=1",
    "train.checkpoint_every=1", "train.device=cpu", "train.steps=2"]


def test_two_steps_of_the_small_recipe_resumed_evaluated_and_loaded(tmp_path):
    assert train([*SMALL, f"train.output={tmp_path / 'whole'}"]) == 0
    shutil.copytree(tmp_path / "whole", tmp_path / "cut")
    shutil.rmtree(latest(tmp_path / "cut"))
    assert train([*SMALL, f"train.output={tmp_path / 'cut'}", "evaluate=null", "--resume"]) == 0
    one, other = (checkpoint.read_model(latest(tmp_path / name)) for name in ("whole", "cut"))
    assert one.keys() == other.keys() and [n for n in one if not torch.equal(one[n], other[n])] == []
    assert one["losses.local.centre"].abs().sum() > 0 and one["losses.patches.centre"].abs().sum() > 0
    logged = json.loads((tmp_path / "whole/metrics.jsonl").read_text().splitlines()[-1])
    assert {f"{name}{part}" for name in ("pairs.itc", "pairs.cappa", "region.locca", "region.locca.refer", "image.local", "image.patches")
            for part in ("", ".guess")} <= logged.keys()
    results = json.loads((tmp_path / "whole/results.json").read_text())
    assert results["evaluations"].keys() == {"retrieval", "boxes", "neighbours"} and "accuracy" in results["evaluations"]["boxes"]
    model = load(tmp_path / "whole")
    box = model.ground(torch.zeros(3, 40, 80, dtype=torch.uint8), ["a cat", "the red ball"])
    assert box.shape == (2, 4) and (box >= 0).all() and (box[:, 2:] <= torch.tensor([80.0, 40.0])).all()


@pytest.mark.slow
def test_two_ranks_take_the_steps_of_one_process(tmp_path):
    """Contrast over both ranks' rows, means over all words and boxes, one centre for both."""
    for name, how in (("one", ()), ("two", ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"))):
        done = subprocess.run([sys.executable, *how, "tools/train_net.py", *SMALL, "train.precision=fp32", "evaluate=null",
                               f"train.output={tmp_path / name}"], cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-2000:]
    one, two = (checkpoint.read_model(latest(tmp_path / name)) for name in ("one", "two"))
    for name, tensor in one.items():
        torch.testing.assert_close(two[name], tensor, rtol=1e-4, atol=2e-6, msg=lambda m: f"{name}: {m}")
