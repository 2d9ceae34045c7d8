"""A checkpoint under X2-VLM's released names goes in and out bit for bit, and gives the released code's losses and gradients.

``x2vlm_forward`` computes every loss in plain float64 from the released tensors; texts, masks and negatives are given, as
``test_release_losses`` gives them, whose docstring also says where the toolkit means to differ. Padding has the id 1 here, as there.
"""

import hashlib
from pathlib import Path

import pytest
import torch
from commands import tool
from release_names import listing, release_state
from safetensors.torch import load_file, save_file
from test_release_losses import SIZES, SMALL, error, make_batch
from x2vlm_forward import BASE, LISTING_SHA256, X2VLM, x2vlm_shapes, x2vlm_state

from xtoolkit import recipe as recipes
from xtoolkit.cli.releases import releases
from xtoolkit.model import Model
from xtoolkit.weights.report import ConversionError

from_release, to_release = releases()["x2vlm"].from_release, releases()["x2vlm"].to_release
BASELINES = Path(__file__).resolve().parents[2] / "projects/xfm/baselines"
TINY = [*SMALL, "encoders.text.pad_id=1", "encoders.fusion.init=null", "encoders.fusion.layers=3"]
BERT = ["tokenizer=bert-base-uncased", "encoders.text={type: BERT, inputs: {text: $text}}", "encoders.fusion.layer_norm_eps=1e-12",
        *(k for k in TINY if k != "encoders.fusion.init=null")]
RECIPES = {"x2vlm_base": TINY, "x2vlm": BERT}
LOSSES = {"text": {"mlm": ["mlm"]}, "pairs": {"itc": ["itc"], "itm": ["itm"], "imlm": ["imlm"]},
          "region": {"itc": ["itc"], "itm": ["itm"], "imlm": ["imlm"], "bbp": ["bbp.l1", "bbp.giou"]}}
CASES = [("x2vlm_base", "pairs"), ("x2vlm_base", "region"), ("x2vlm", "text"), ("x2vlm", "pairs"), ("x2vlm", "region")]
HEAD = "text_encoder.cls.predictions"
TIED = {f"{HEAD}.decoder.weight": "text_encoder.bert.embeddings.word_embeddings.weight", f"{HEAD}.decoder.bias": f"{HEAD}.bias"}


def small(name="x2vlm_base", *overrides):
    return recipes.load(str(BASELINES / f"{name}.yaml"), [*RECIPES[name], *overrides], missing_files=False)


class Pair:
    """The toolkit's model in ``dtype`` and the release's tensors in float64, of one checkpoint."""

    def __init__(self, name, dtype=torch.float64):
        self.dtype, self.recipe = dtype, small(name)
        state = {n: t.to(dtype) if t.is_floating_point() else t for n, t in x2vlm_state(seed=1, std=0.2, **state_sizes()).items()}
        self.tensors = {n: t.double().requires_grad_() for n, t in state.items() if t.is_floating_point()}
        self.model = Model(self.recipe).to(dtype).train()
        self.model.load_state_dict(from_release(state, self.recipe)[0], strict=True)
        self.release = X2VLM(self.tensors, text_layers=2, text_heads=SIZES["heads"], giou_eps=1e-7)

    def losses(self, stream):
        batch, given = make_batch(stream, self.dtype)
        if stream != "text":
            torch.manual_seed(11)
            image, text, legal = self.model.losses["itm"].draw(self.model.features(batch)["sim"], batch)
            assert legal.all() and not torch.equal(image, text)
            given |= {"image_negative": image, "text_negative": text}
        torch.manual_seed(11)
        return self.model(stream, batch), getattr(self.release, stream)(given)

    def gradients(self, ours, theirs):
        named = dict(self.model.named_parameters())
        found = torch.autograd.grad(ours, list(named.values()), retain_graph=True, allow_unused=True)
        back, _ = to_release({n: g for n, g in zip(named, found) if g is not None}, self.recipe)
        want = torch.autograd.grad(theirs, list(self.tensors.values()), retain_graph=True, allow_unused=True)
        return {TIED.get(n, n): g.double() for n, g in back.items() if g.is_floating_point()}, \
            {n: g for n, g in zip(self.tensors, want) if g is not None}


def state_sizes():
    return {**SIZES, "layers": 2, "fusion_layers": 3}


@pytest.fixture(scope="module")
def exact():
    return {name: Pair(name) for name in RECIPES}


def check(pair, stream, tolerance):
    ours, theirs = pair.losses(stream)
    assert set(ours) == set(LOSSES[stream])
    moved = set()
    for loss, parts in LOSSES[stream].items():
        want = sum(theirs[part] for part in parts)
        assert ours[loss].item() == pytest.approx(want.item(), rel=tolerance), loss
        got, wanted = pair.gradients(ours[loss], want)
        assert got.keys() == wanted.keys(), loss
        # A bias on keys has no true gradient, only rounding: it is held against the largest gradient of all.
        most = max(g.abs().max().item() for g in wanted.values())
        errors = {n: error(got[n], wanted[n], most if n.endswith("key.bias") else 1e-3 * most) for n in wanted}
        worst = max(errors, key=errors.get)
        assert errors[worst] < tolerance, (loss, worst, errors[worst])
        moved |= wanted.keys()
    return moved


@pytest.mark.parametrize(("name", "stream"), CASES)
def test_every_loss_and_every_gradient_is_the_release_s(exact, name, stream):
    moved = check(exact[name], stream, 1e-10)
    if stream == "region":
        still = {n for n in exact[name].tensors if n not in moved and n not in TIED}
        assert not still, "every tensor of the release moves"


@pytest.mark.parametrize("stream", ["pairs", "region"])
def test_and_in_float32_within_its_rounding(stream):
    check(Pair("x2vlm_base", torch.float32), stream, 1e-5)


# ---- names --------------------------------------------------------------------------------------------------------------
def test_the_released_listing_and_the_base_recipe_fit():
    shapes = x2vlm_shapes(**BASE)
    assert len(shapes) == 587
    lines = sorted(listing(shapes).splitlines())
    assert hashlib.sha256("\n".join(lines).encode()).hexdigest() == LISTING_SHA256
    recipe = recipes.load(str(BASELINES / "x2vlm_base.yaml"), missing_files=False)
    with torch.device("meta"):
        own = {n: t.shape for n, t in Model(recipe).state_dict().items()}
        state = {n: torch.empty(s, dtype=d) for n, (s, d) in shapes.items() if not n.endswith(("_index", "_ids")) and n not in TIED}
    found, _ = from_release(state, recipe)
    assert {n: t.shape for n, t in found.items()} == own
    assert sum(t.numel() for n, t in found.items() if not n.endswith("mask_token")) == 254_758_401


def test_large_by_hand():
    """From the paper's Table 2: width 1024, 24 image layers, 12 of text, 6 of fusion; BERT-large has heads of 64 channels, too."""
    d, linear, norm = 1024, lambda i, o: i * o + o, 2 * 1024
    table = (27 ** 2 + 3) * 16
    feed = linear(d, 4 * d) + linear(4 * d, d)
    block = d * 3 * d + 2 * d + linear(d, d) + 2 * norm + feed + 2 * d + table
    vision = linear(3 * 16 * 16, d) + d + 24 * block + norm
    attention = 4 * linear(d, d) + norm
    words = 30522 * d + 512 * d + 2 * d + norm
    text = words + 12 * (attention + feed + norm) + linear(d, d) + norm + 30522
    fusion = 6 * (2 * attention + feed + norm)
    head = lambda outputs: linear(d, 2 * d) + 2 * 2 * d + linear(2 * d, outputs)
    with torch.device("meta"):
        model = Model(recipes.load(str(BASELINES / "x2vlm_large.yaml"), missing_files=False))
    count = lambda module: sum(p.numel() for p in module.parameters())
    parts = {name: count(model.encoders[name]) for name in ("vision", "text", "fusion")}
    assert parts == {"vision": vision + d, "text": text, "fusion": fusion}, "and the mask token"
    assert count(model) == vision + d + text + fusion + 2 * linear(d, 256) + 1 + head(2) + head(4)
    assert count(model) - d == 592_949_057, "593M in the paper's Table 3"


def convert(*arguments) -> int:
    return tool("convert_checkpoint").main([str(a) for a in arguments])


def config(tmp_path):
    from xtoolkit.recipe import config as yaml

    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.load(str(BASELINES / "x2vlm_base.yaml"), TINY).dump())
    return path


def test_the_release_goes_in_and_out_bit_for_bit(tmp_path, capsys):
    state, recipe = x2vlm_state(**state_sizes()), config(tmp_path)
    torch.save({"model": state, "config": {"image_res": 224}}, tmp_path / "x2vlm.th")
    assert convert("--config", recipe, "--from", "x2vlm", tmp_path / "x2vlm.th", tmp_path / "ours.safetensors") == 0
    assert "changed: encoders.sim.temperature: () reshaped to (1,)" in capsys.readouterr().out
    for name in ("back.th", "back.safetensors"):
        assert convert("--config", recipe, "--to", "x2vlm", tmp_path / "ours.safetensors", tmp_path / name) == 0
    for back in (torch.load(tmp_path / "back.th", weights_only=True)["model"], load_file(tmp_path / "back.safetensors")):
        assert back.keys() == state.keys()
        assert all(back[n].dtype == state[n].dtype and torch.equal(back[n], state[n]) for n in state)


def wrong(change):
    state = x2vlm_state(**state_sizes())
    change(state)
    return state


@pytest.mark.parametrize(("state", "said"), [
    (lambda: wrong(lambda s: s.update({f"{HEAD}.decoder.weight": s[f"{HEAD}.decoder.weight"] + 1})), f"not tied: {HEAD}.decoder.weight"),
    (lambda: wrong(lambda s: s.update(extra=torch.zeros(2))), "unexpected: extra (2,)"),
    (lambda: wrong(lambda s: s.pop("temp")), "missing: encoders.sim.temperature"),
    (lambda: wrong(lambda s: s.pop("text_encoder.bert.encoder.layer.4.output.dense.bias")), "missing: encoders.fusion.layer.2.output.dense"),
    (lambda: wrong(lambda s: s.update({"itm_head.0.weight": torch.zeros(3, 3)})), "other shape: losses.itm.head.0.weight (3, 3) there"),
    (lambda: wrong(lambda s: s["vision_encoder.blocks.0.attn.relative_position_index"].add_(1)), "another layout: vision_encoder.blocks.0"),
    (release_state, "holds the X-FM release, not what --from x2vlm reads")])
def test_a_wrong_file_is_one_clear_error(tmp_path, capsys, state, said):
    save_file({n: t.clone().contiguous() for n, t in state().items()}, tmp_path / "x.safetensors")
    assert convert("--config", config(tmp_path), "--from", "x2vlm", tmp_path / "x.safetensors", tmp_path / "out.safetensors") == 2
    found = capsys.readouterr().err
    assert said in found and "Traceback" not in found and not (tmp_path / "out.safetensors").exists()


def test_a_recipe_without_bert_and_one_with_two_parts_of_a_kind():
    with pytest.raises(ConversionError, match="builds no BERT encoder of .text: the X2-VLM release has BERT's words"):
        to_release({}, recipes.load(str(BASELINES / "x2vlm.yaml"), missing_files=False))
