"""SigLIP 2's parts against computations by hand in float64: losses, gradients, what sees what; each in X-FM's recipe; the small recipe."""

import re
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from xtoolkit import build
from xtoolkit.recipe.plugins import import_components
from xtoolkit.registry import ConfigError

import_components()
ROOT = Path(__file__).resolve().parents[2]
XFM = str(ROOT / "projects/xfm/tiny.yaml")
ENCODERS = {"vision": {"stem": [8, 8, 8], "width": 32, "layers": 1, "heads": 2}, "text": {"width": 32, "layers": 1, "heads": 2},
            "fusion": {"layers": 1, "heads": 2}, "vision_proj": {"dim": 32}, "text_proj": {"dim": 32}}
DECODER = {"type": "CaptionDecoder", "inputs": {"text": "$text", "image": "vision"}, "width": 32, "layers": 2, "heads": 2,
           "vocab_size": 4000, "bins": 50, "max_positions": 40, "init_std": 0.2}


def beside(encoders: dict, losses: dict, **streams):
    """X-FM's small recipe at very small sizes with parts beside its own; its streams but these are left out."""
    blocks = {name: {"batch_size": 8, "losses": weights} for name, weights in streams.items()}
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


def same_gradients(found, wanted, model):
    ours, theirs = gradients(found, model), gradients(wanted, model)
    assert ours.keys() == theirs.keys() and len(ours) > 10
    for name, gradient in ours.items():
        torch.testing.assert_close(gradient, theirs[name], rtol=1e-8, atol=1e-12, msg=lambda m: f"{name}: {m}")


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
    assert torch.equal(model.losses["locca"].told(model.features(batch)), decoder.boxes(torch.stack(found)))


# ---- what is wrong --------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(("losses", "said"), [
    ({"cappa": {"type": "CapPa", "decoder": "text"}}, "CapPa: `decoder` must name an encoder of type CaptionDecoder; `text` is RoBERTa"),
    ({"cappa": {"type": "CapPa", "decoder": "decoder", "parallel": 1.5}}, "parallel"),
    ({"cappa": {"type": "LocCa", "decoder": "decoder"}}, "write `decoder@whole`")])
def test_one_clear_error(losses, said):
    with pytest.raises(ConfigError) as error:
        beside({"decoder": DECODER}, losses, region={"cappa": 1})
    assert said in str(error.value)


def test_too_long_for_the_decoder(captions):
    run = beside({"decoder": DECODER | {"max_positions": 6}}, {"cappa": {"type": "CapPa", "decoder": "decoder"}}, pairs={"cappa": 1})
    with pytest.raises(ValueError, match="tokens do not fit CaptionDecoder's 6 positions: lower the stream's `max_tokens`, or raise"):
        run.model("pairs", run.batch("pairs"))


# ---- in X-FM's recipe -----------------------------------------------------------------------------------------------------
BLOCKS = re.findall(r"```yaml\n(.*?)```", (ROOT / "plugins/siglip2/README.md").read_text(), re.S)


@pytest.mark.parametrize("block", BLOCKS, ids=[str(n) for n in range(len(BLOCKS))])
def test_what_the_readme_adds_to_xfm_is_planned_and_takes_a_step(block, tmp_path):
    from xtoolkit import recipe as recipes
    from xtoolkit.plan import make_plan

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
    assert {"vision"} | {name for name in added if run.model.encoders[name].TRAINABLE} <= learn
