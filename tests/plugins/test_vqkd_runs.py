"""VQ-KD in runs: two ranks as one, its run as another's tokenizer, the released names."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from xtoolkit import recipe as recipes
from xtoolkit.engine import checkpoint
from xtoolkit.engine.initial import load_initial
from xtoolkit.model import Model, trainable
from xtoolkit.recipe.folder import latest
from xtoolkit.recipe.plugins import import_components
from xtoolkit.weights.files import WeightsError

import_components()
from xtoolkit.plugins.singles import release  # noqa: E402

ROOT = Path(__file__).resolve().parents[2]
HERE = Path(__file__).parent
SIZES = "codes: 12, dim: 4, width: 16, layers: 1, heads: 2, patch_size: 8, image_size: 32"


def train(output, *overrides, ranks=1):
    command = [sys.executable] if ranks == 1 else [sys.executable, "-m", "torch.distributed.run", "--standalone",
                                                   "--nproc-per-node", str(ranks)]
    done = subprocess.run([*command, "tools/train_net.py", "--config", "tests/plugins/vqkd.yaml", f"train.output={output}",
                           *overrides], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    lines = (output / "metrics.jsonl").read_text().splitlines()
    return checkpoint.read_model(latest(output)), [json.loads(line) for line in lines]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    output = tmp_path_factory.mktemp("vqkd") / "run"
    return output, *train(output)


def test_two_ranks_take_the_steps_of_one(run, tmp_path):
    both = train(tmp_path / "two", ranks=2)
    for name, tensor in run[1].items():
        assert torch.allclose(tensor.float(), both[0][name].float(), rtol=1e-4, atol=2e-5), name
    assert run[1]["encoders.tokens.quantize.cluster_size"].sum() > 100
    for one, other in zip(run[2], both[1]):
        for key in ("image.vqkd.cosine", "image.vqkd.commitment", "image.vqkd.cosine.guess", "loss"):
            assert one[key] == pytest.approx(other[key], rel=1e-4, abs=1e-6), key


@pytest.mark.slow
def test_updates_lower_the_loss(tmp_path):
    """Made-up pictures: those forty can be told apart by heart."""
    lines = train(tmp_path / "run", "train.steps=150", "optim.lr=3e-3", "train.log_every=10", "encoders.tokens.wait=30")[1]
    assert lines[-2]["image.vqkd"] < 0.75 * lines[-2]["image.vqkd.guess"] and lines[-2]["image.vqkd.used"] >= 6


# ---- as another's tokenizer ---------------------------------------------------------------------------------------------
def mim(*overrides):
    return recipes.load(str(HERE / "vqkd.yaml"), [
        f"encoders.tokens={{type: VQKD, inputs: {{image: $image}}, {SIZES}, trained: false}}", "losses.vqkd=null",
        "losses.mim={type: MIMCodes, feature: vision@mask_image, codes: tokens}",
        "streams.image.losses={mim: 1}", "streams.image.data.image_mask={patches: 6, min_block: 2}", *overrides])


def test_a_run_is_loaded_as_a_frozen_tokenizer(run):
    recipe = mim(f"encoders.tokens.init={run[0]}")
    model = Model(recipe)
    load_initial(model, recipe)
    tokens = model.encoders["tokens"]
    for name, tensor in tokens.state_dict().items():
        assert torch.equal(tensor, run[1][f"encoders.tokens.{name}"]), name
    assert trainable(tokens) == 0 and model.losses["mim"].decoder.out_features == 12


def test_what_is_no_tokenizer_is_told(run, tmp_path):
    from safetensors.torch import save_file

    def refused(init, *overrides):
        recipe = mim(f"encoders.tokens.init={init}", *overrides)
        with pytest.raises(WeightsError) as error:
            load_initial(Model(recipe), recipe)
        return str(error.value)

    others = {n: t.clone() for n, t in run[1].items() if "tokens" not in n}
    save_file(others, tmp_path / "none.safetensors")
    assert "has no VQKD tokenizer: no tensor `encoders.NAME.quantize.weight`" in refused(tmp_path / "none.safetensors")
    twice = run[1] | {n.replace("tokens", "more"): t for n, t in run[1].items() if "tokens" in n}
    save_file({n: t.clone() for n, t in twice.items()}, tmp_path / "two.safetensors")
    assert "has several tokenizers: encoders.more, encoders.tokens" in refused(tmp_path / "two.safetensors")
    told = refused(run[0], "encoders.tokens.codes=13")
    assert "other shape: quantize.weight (12, 4) there, (13, 4) here" in told and "check codes, dim, width" in told


# ---- the released names -------------------------------------------------------------------------------------------------
def released():
    """A state of the released names and shapes at toy size, random: 1 block each, CLIP's teacher left in."""
    w, d, c, n, t = 16, 4, 12, 17, 16
    shapes = {"teacher_model.logit_scale": (), "scaling_layer.shift": (1, 3, 1, 1), "quantize.cluster_size": (c,),
              "quantize.embedding.weight": (c, d), "quantize.embedding.embed_avg": (c, d),
              "quantize.embedding.cluster_size": (c,),
              "encoder.patch_embed.proj.weight": (w, 3, 8, 8), "decoder.patch_embed.proj.weight": (w, d, 1, 1)}
    for part, out in (("encode", d), ("decode", t)):
        shapes |= {f"{part}_task_layer.0.weight": (w, w), f"{part}_task_layer.0.bias": (w,),
                   f"{part}_task_layer.2.weight": (out, w), f"{part}_task_layer.2.bias": (out,),
                   f"{part}r.patch_embed.proj.bias": (w,), f"{part}r.cls_token": (1, 1, w), f"{part}r.pos_embed": (1, n, w),
                   f"{part}r.fc_norm.weight": (w,), f"{part}r.fc_norm.bias": (w,)}
        block = {"norm1.weight": (w,), "norm1.bias": (w,), "norm2.weight": (w,), "norm2.bias": (w,), "attn.q_bias": (w,),
                 "attn.v_bias": (w,), "attn.qkv.weight": (3 * w, w), "attn.proj.weight": (w, w), "attn.proj.bias": (w,),
                 "mlp.fc1.weight": (4 * w, w), "mlp.fc1.bias": (4 * w,), "mlp.fc2.weight": (w, 4 * w), "mlp.fc2.bias": (w,)}
        shapes |= {f"{part}r.blocks.0.{name}": shape for name, shape in block.items()}
    return {name: torch.randn(shape) for name, shape in shapes.items()} | {"quantize.embedding.initted": torch.ones(1)}


def test_released_names_come_in_and_go_out_bit_for_bit(tmp_path):
    theirs, recipe = released(), recipes.load(str(HERE / "vqkd.yaml"), [])
    ours, report = release.from_release(theirs, recipe)
    own = {n: t for n, t in Model(recipe).state_dict().items() if ".vision." not in n}
    assert {n: t.shape for n, t in ours.items()} == {n: t.shape for n, t in own.items()}
    assert all(ours[n].dtype == own[n].dtype for n in own) and ours["encoders.tokens.quantize.started"]
    assert {*report.renamed, *report.dropped} == theirs.keys()
    back, report = release.to_release(ours, recipe)
    for name, tensor in theirs.items():
        if not name.startswith(("teacher_model.", "scaling_layer.", "quantize.embedding.embed", "quantize.embedding.cluster")):
            assert torch.equal(tensor, back.pop(name)), name
    assert set(back) == {"quantize.embedding.embed_avg", "quantize.embedding.cluster_size"} == set(report.made)
    again, _ = release.from_release(release.to_release(ours, recipe)[0], recipe)
    assert all(torch.equal(again[n], ours[n]) for n in ours)
    alone, report = release.from_release(theirs, mim())
    assert alone.keys() == {n for n in ours if n.startswith("encoders.")}
    assert "this recipe builds no VQKDLoss" == report.dropped["decoder.cls_token"]


def test_the_tool_converts_both_ways(tmp_path, capsys):
    from xtoolkit.cli.convert import main

    theirs = released()
    torch.save({"model": theirs}, tmp_path / "vqkd.pth")
    config = ["--config", str(HERE / "vqkd.yaml"), "--allow-missing", "encoders.vision.*"]
    assert main([*config, "--from", "singles", str(tmp_path / "vqkd.pth"), str(tmp_path / "ours.safetensors")]) == 0
    assert "dropped: teacher_model.logit_scale: the teacher is an encoder of its own here" in capsys.readouterr().out
    assert main([*config, "--to", "singles", str(tmp_path / "ours.safetensors"), str(tmp_path / "back.pth")]) == 0
    back = torch.load(tmp_path / "back.pth", weights_only=True)["model"]
    dead = ("quantize.embedding.embed_avg", "quantize.embedding.cluster_size")
    assert all(torch.equal(back[n], t) for n, t in theirs.items() if n in back and n not in dead)
    assert {n for n in theirs if n not in back} == {"teacher_model.logit_scale", "scaling_layer.shift"}
    assert main([*config, "--from", "beitv2", str(tmp_path / "vqkd.pth"), str(tmp_path / "no.safetensors")]) == 2
    told = capsys.readouterr().err
    assert "holds the released VQ-KD tokenizer, not what --from beitv2 reads" in told and "--from singles" in told


WRONG = {
    "missing": (lambda s: {n: t for n, t in s.items() if n != "encode_task_layer.2.bias"},
                "missing: encoders.tokens.encode_task_layer.2.bias"),
    "not begun": (lambda s: {n: t for n, t in s.items() if "initted" not in n}, "missing: encoders.tokens.quantize.started"),
    "a layer more": (lambda s: s | {n.replace("blocks.0", "blocks.1"): t for n, t in s.items() if "encoder.blocks.0" in n},
                     "unexpected: encoders.tokens.encoder.blocks.1.attn.proj.bias"),
    "more codes": (lambda s: s | {"quantize.embedding.weight": torch.zeros(13, 4), "quantize.cluster_size": torch.zeros(13)},
                   "other shape: encoders.tokens.quantize.weight (13, 4) there, (12, 4) here"),
    "unknown": (lambda s: s | {"head.weight": torch.zeros(2)}, "unexpected: head.weight"),
    "another system": (lambda s: {"flava.logit_scale": torch.zeros(())},
                       "not what --from singles reads; convert it: xtoolkit convert --config F --from flava"),
    "a run of ours": (lambda s: {"encoders.tokens.quantize.weight": torch.zeros(12, 4)},
                      "holds a model of this toolkit, not what --from"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_file_is_one_clear_error(tmp_path, capsys, case):
    from xtoolkit.cli.convert import main

    change, said = WRONG[case]
    torch.save({"model": change(released())}, tmp_path / "wrong.pth")
    assert main(["--config", str(HERE / "vqkd.yaml"), "--allow-missing", "encoders.vision.*", "--from", "singles",
                 str(tmp_path / "wrong.pth"), str(tmp_path / "out.safetensors")]) == 2
    told = capsys.readouterr().err
    assert told.startswith("xtoolkit convert: ") and said in told and "Traceback" not in told
    assert not (tmp_path / "out.safetensors").exists()


def test_the_released_file_is_an_init(tmp_path):
    theirs = released()
    torch.save({"model": theirs}, tmp_path / "vqkd.pth")
    recipe = mim(f"encoders.tokens.init={tmp_path / 'vqkd.pth'}")
    model = Model(recipe)
    load_initial(model, recipe)
    state = model.encoders["tokens"].state_dict()
    assert torch.equal(state["quantize.weight"], theirs["quantize.embedding.weight"])
    assert torch.equal(state["encoder.blocks.0.attn.q_bias"], theirs["encoder.blocks.0.attn.q_bias"])


def test_names_that_the_release_does_not_have_are_refused():
    with pytest.raises(WeightsError, match="not a released VQ-KD checkpoint:\n  unexpected: blocks.3.bias"):
        release.from_release(released() | {"blocks.3.bias": torch.zeros(1)}, recipes.load(str(HERE / "vqkd.yaml"), []))
    with pytest.raises(WeightsError, match="has no place for:\n  unexpected: encoders.vision.x"):
        release.to_release({"encoders.vision.x": torch.zeros(1)}, recipes.load(str(HERE / "vqkd.yaml"), []))
