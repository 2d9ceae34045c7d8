"""Every target of masked pictures that projects/xfm/README.md lists: planned, and trained for three steps on the sample pack."""

import json
import shlex
import sys
from pathlib import Path

import pytest
import torch

from xtoolkit import recipe as recipes
from xtoolkit.ablation.table import read
from xtoolkit.cli.train import main as train
from xtoolkit.engine import checkpoint
from xtoolkit.plan import make_plan

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests"))
from commands import SMALL, TINY  # noqa: E402

ROWS = (ROOT / "projects/xfm/README.md").read_text().partition("## Targets of masked pictures")[2].partition("\n## ")[0]
CELLS = [[cell.strip() for cell in line.strip("|").split(" | ", 1)] for line in ROWS.splitlines() if line.startswith("| ")]
TARGETS = {what: shlex.split(keys.strip("`")) if keys.startswith("`") else []
           for what, keys in CELLS if what != "target" and "---" not in what}
SMALL_CODES = {"VQKD": "encoders.tokens={codes: 16, dim: 8, width: 32, layers: 1, heads: 2, image_size: 96, init: null}",
               "DVAE": "encoders.tokens={codes: 16, hidden: 8, blocks: 1, image_size: 96, init: null}"}


def test_the_readme_has_the_columns_of_the_table():
    table = read(str(ROOT / "projects/xfm/ablations/mim_targets.yaml"))
    assert [column.set for column in table.columns.values()] == list(TARGETS.values()) and len(TARGETS) == 7


def codes(target):
    """The image tokenizer whose codes are told, if any."""
    return next((kind for kind in SMALL_CODES for key in TARGETS[target] if kind in key), None)


def added(target):
    """The target's pass, and the parameters that it brings to a width of D with patches of 16: pixels or codes have a matrix."""
    if not TARGETS[target]:
        return "vision", lambda d: 0
    if codes(target):
        return "tokens", lambda d: d * 8192 + 8192
    return (None, lambda d: d * 768 + 768) if "losses.mim.target=$image" in TARGETS[target] else ("target", lambda d: 0)


@pytest.mark.parametrize("target", [pytest.param(t, marks=pytest.mark.slow) if codes(t) == "DVAE" else t for t in TARGETS])
@pytest.mark.parametrize("name, width, parameters", [("tiny", 192, 7_475_007), ("base", 768, 365_898_873)])
def test_it_is_planned(target, name, width, parameters):
    if name == "base" and not codes(target):
        return  # the others add nothing that depends on the size
    keys = [*TARGETS[target], *([SMALL_CODES[codes(target)].replace("codes: 16, ", "")] if codes(target) and name == "tiny" else [])]
    found = make_plan(recipes.load(str(ROOT / f"projects/xfm/{name}.yaml"), keys, missing_files=False))
    image = {p.name: p for p in next(s for s in found.streams if s.name == "image").passes}
    other, more = added(target)
    assert image.pop("vision@mask_image").graph and list(image) == ([other] if other else [])
    assert not any(p.graph for p in image.values())
    assert found.parameters["trainable"] == parameters + more(width)


@pytest.mark.parametrize("target", TARGETS)
def test_it_takes_steps(target, tmp_path):
    keys = [*TARGETS[target], *([SMALL_CODES[codes(target)]] if codes(target) else [])]
    command = ["--config", TINY, *SMALL, "encoders.vision.stem=[8, 8, 8]", "streams.text=null", "streams.region=null",
               "streams.pairs=null", "losses.mlm=null", "losses.bbp=null", "stop_gradient=null",
               "schedule={every_step: [[image, match]]}", "evaluate=null", *keys, "train.steps=3",
               "train.checkpoint_every=1", "train.keep=3", f"train.output={tmp_path}"]
    assert train(command) == 0
    lines = [line for line in map(json.loads, (tmp_path / "metrics.jsonl").read_text().splitlines()) if "loss" in line]
    assert len(lines) == 3 and all(line[f"{stream}.mim"] > 0 and line[f"{stream}.mim.guess"] > 0
                                   for line in lines for stream in ("image", "match"))
    one, two = (checkpoint.read_model(tmp_path / "checkpoints" / f"step_{n:08}") for n in (1, 2))
    moved = {n.split(".")[1] for n in one if n.startswith("encoders.") and not torch.equal(one[n], two[n])}
    assert "vision" in moved and ("target" in moved) == any("ema" in key for key in keys) and "tokens" not in moved
