"""Means are over the whole step: two ranks, or four micro-batches, with unequal counts take the steps of one process."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from xtoolkit.engine import checkpoint
from xtoolkit.recipe.folder import latest

ROOT = Path(__file__).resolve().parents[2]
TRAIN = ["tools/train_net.py", "--config", "tests/contracts/unequal.yaml"]


def trained(output, *command) -> tuple[dict, list[dict]]:
    """Parameters after two steps, and the lines logged."""
    done = subprocess.run([*command, *TRAIN, f"train.output={output}"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    lines = (output / "metrics.jsonl").read_text().splitlines()
    return checkpoint.read_model(latest(output)), [json.loads(line) for line in lines]


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    return trained(tmp_path_factory.mktemp("one") / "run", sys.executable)


@pytest.mark.parametrize("how", ["ranks", "micro-batches"])
def test_unequal_counts(alone, how, tmp_path):
    if how == "ranks":
        found = trained(tmp_path / "run", sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
    else:
        found = trained(tmp_path / "run", sys.executable, *(["-c", "import sys; from xtoolkit.cli.train import main; "
                        "sys.exit(main(sys.argv[2:] + ['train.accumulate=4']))"]))
    for name, parameter in alone[0].items():
        assert torch.allclose(parameter, found[0][name], rtol=1e-4, atol=2e-6), name
    for one, other in zip(alone[1], found[1]):
        for loss in ("text.mlm", "region.imlm", "region.bbp.l1", "region.bbp.giou", "loss"):
            assert one[loss] == pytest.approx(other[loss], rel=1e-5), loss
        for loss in ("text.mlm", "region.imlm", *(("region.bbp.l1", "region.bbp.giou") if how == "ranks" else ())):
            assert one[f"{loss}.guess"] == pytest.approx(other[f"{loss}.guess"], rel=1e-5), loss
