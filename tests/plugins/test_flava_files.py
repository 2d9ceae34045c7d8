"""FLAVA's files by the command line: what transformers saved comes in, what goes out transformers loads; wrong files are told."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from test_flava import BASELINES, POOLERS, SMALL, ask, batch, recipe, theirs  # noqa: F401  a fixture

from xtoolkit.cli.convert import main
from xtoolkit.engine.initial import load_model_weights
from xtoolkit.model import Model

LOSSES = {"contrast": "global_contrastive", "itm": "itm", "mmm_image": "mmm_image", "mmm_text": "mmm_text"}


def convert(*arguments) -> int:
    """The command on FLAVA's recipe at a small size."""
    return main(["--config", str(BASELINES / "flava.yaml"), *(str(a) for a in arguments), *SMALL, *POOLERS])


@pytest.fixture(scope="module")
def folder(theirs, tmp_path_factory):  # noqa: F811
    """``hf``, what ``save_pretrained`` leaves; ``hf.bin``, a file of all names; ``ours.safetensors``, converted from ``hf``."""
    folder = tmp_path_factory.mktemp("flava")
    theirs.float().save_pretrained(folder / "hf")
    torch.save(theirs.state_dict(), folder / "hf.bin")
    theirs.double()
    assert convert("--from", "flava", folder / "hf", folder / "ours.safetensors") == 0
    return folder


def ours(file):
    model = Model(recipe("flava", *SMALL, *POOLERS))
    load_model_weights(model, file)
    return model.double().eval()


def same_losses(theirs, model):  # noqa: F811
    made, hidden = batch(padded=True, mismatched=True)
    told, found = ask(theirs, model, made, hidden), model("pairs", made)
    for name, of in LOSSES.items():
        torch.testing.assert_close(found[name], told.loss_info[of], atol=1e-10, rtol=0)


def test_what_transformers_saved_comes_in(folder, theirs, tmp_path):  # noqa: F811
    same_losses(theirs, ours(folder / "ours.safetensors"))
    assert convert("--from", "flava", folder / "hf.bin", tmp_path / "all.safetensors") == 0
    one, other = load_file(folder / "ours.safetensors"), load_file(tmp_path / "all.safetensors")
    assert one.keys() == other.keys() and all(torch.equal(one[n], other[n]) for n in one)


def test_what_goes_out_transformers_loads(folder, tmp_path):
    from transformers import FlavaForPreTraining

    model = ours(folder / "ours.safetensors").float()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(0.9)
    save_file({n: t.clone() for n, t in model.state_dict().items()}, tmp_path / "trained.safetensors")
    (tmp_path / "back").mkdir()
    shutil.copy(folder / "hf/config.json", tmp_path / "back")
    assert convert("--to", "flava", tmp_path / "trained.safetensors", tmp_path / "back/model.safetensors") == 0
    back, found = FlavaForPreTraining.from_pretrained(tmp_path / "back", output_loading_info=True)
    assert not any(found[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    same_losses(back.double().eval(), model.double())


@pytest.mark.slow
def test_the_comparison_of_steps_compares_the_same_losses():
    root = BASELINES.parents[2]
    command = [sys.executable, "tests/compare_flava.py", "--small", "--batch", "8", "--rounds", "1", "--threads", "1"]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": str(root)})
    assert done.returncode == 0, done.stderr[-2000:]
    assert float(re.search(r"losses in float32: .* at most (\S+)", done.stdout)[1]) < 1e-5
    assert float(re.search(r"in bf16, .* at most: losses ([^,]+),", done.stdout)[1]) < 2e-2
    assert "by the median of the rounds" in done.stdout


def without(state, *ends):
    return {n: t for n, t in state.items() if not n.endswith(ends)}


def unheaded(state):
    """As ``FlavaModel.save_pretrained`` writes it."""
    return {n.removeprefix("flava."): t for n, t in state.items() if n.startswith("flava.")}


BLOCK = "flava.multimodal_model.encoder.layer.1"
WRONG = {
    "missing": (lambda s: without(s, "itm_head.seq_relationship.bias"), "missing: losses.itm.head.bias"),
    "no scale": (lambda s: without(s, "logit_scale"), "missing: flava.logit_scale"),
    "half a layer": (lambda s: without(s, f"{BLOCK}.attention.attention.value.weight"),
                     f"missing: {BLOCK}.attention.attention.value.weight"),
    "a layer less": (lambda s: {n: t for n, t in s.items() if BLOCK not in n}, "missing: encoders.fusion.blocks.1.qkv.weight"),
    "a layer more": (lambda s: s | {n.replace("layer.1", "layer.2"): t for n, t in s.items() if BLOCK in n},
                     "unexpected: encoders.fusion.blocks.2.qkv.weight"),
    "unknown": (lambda s: s | {"flava.extra.weight": torch.zeros(2)}, "unexpected: flava.extra.weight (2,)"),
    "vocabulary": (lambda s: {n: torch.cat([t, t]) if n.endswith("word_embeddings.weight") else t for n, t in s.items()},
                   "other shape: encoders.text_layers.words.weight (120, 24) there, (60, 24) here"),
    "no heads": (unheaded, "missing: flava.logit_scale"),
    "another system": (lambda s: dict.fromkeys(("vision_encoder.cls_token", "text_encoder.bert.x", "temp"), torch.zeros(1)),
                       "not what --from flava reads; convert it: xtoolkit convert --config F --from x2vlm"),
    "a model of ours": (lambda s: {"encoders.fusion.cls_token": torch.zeros(1)},
                        "holds a model of this toolkit, not what --from flava reads"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_file_is_one_clear_error(folder, tmp_path, capsys, case):
    change, said = WRONG[case]
    torch.save(change(torch.load(folder / "hf.bin", weights_only=True)), tmp_path / "wrong.bin")
    assert convert("--from", "flava", tmp_path / "wrong.bin", tmp_path / "out.safetensors") == 2
    told = capsys.readouterr().err
    assert told.startswith("xtoolkit convert: ") and said in told and "Traceback" not in told
    assert not (tmp_path / "out.safetensors").exists()


def test_what_is_no_flava_here_is_told(folder, tmp_path, capsys):
    arguments = ["--config", BASELINES.parent / "tiny.yaml", "--from", "flava", folder / "hf.bin", tmp_path / "out.safetensors"]
    assert main([str(a) for a in arguments]) == 2
    assert "FLAVAImage" in capsys.readouterr().err
    assert convert("--to", "flava", folder / "hf.bin", tmp_path / "out.safetensors") == 2
    assert "holds transformers' FLAVA, not a model of this toolkit" in capsys.readouterr().err
    (tmp_path / "cut.safetensors").write_bytes((folder / "ours.safetensors").read_bytes()[:999])
    for way in ("--from", "--to"):
        assert convert(way, "flava", tmp_path / "cut.safetensors", tmp_path / "out.safetensors") == 2
        assert "cut.safetensors: not a whole safetensors file" in capsys.readouterr().err
    assert not (tmp_path / "out.safetensors").exists()
