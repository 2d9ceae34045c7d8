"""FLAVA on two processes: the gradients of pairs are those of one process, however similarities are gathered."""

import os
import socket
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from xtoolkit import recipe as recipes
from xtoolkit.batch import Batch, ImageField, TextField
from xtoolkit.engine import distributed
from xtoolkit.engine.trainer import Trainer
from xtoolkit.hooks.base import Hook
from xtoolkit.model import Model
from xtoolkit.recipe.plugins import import_components

import_components()
from xtoolkit.plugins.flava.data import MatchField  # noqa: E402

ROOT = Path(__file__).resolve().parents[2]
ROWS, LENGTH, WORDS, GRID = 6, 9, 60, 4
ENCODERS = ("image_layers", "text_layers", "fusion")
MATCH = torch.tensor([1, 0, 0, 1, 1, 1])  # one of the first process's rows, all of the second's
SMALL = ["encoders.image_layers={width: 24, layers: 1, heads: 3, image_size: 32, patch_size: 8}",
         "encoders.text_layers={width: 24, layers: 1, heads: 3, vocab_size: 60, max_tokens: 12}",
         "encoders.fusion={layers: 1, heads: 3}", "encoders.vision_proj.dim=24", "encoders.text_proj.dim=24",
         *(f"encoders.{e}.init_std=0.3" for e in ENCODERS),
         "encoders.tokens={image_size: 32, patch_size: 8, codes: 16, hidden: 8, blocks: 1, init: null}",
         "streams.text=null", "streams.image=null", "losses.mim=null", "losses.mlm=null", "streams.pairs.batch_size=6",
         "schedule={every_step: [[pairs]], sample: null}", "evaluate=null", "optim.warmup=0", "train.steps=1",
         "train.precision=fp32", "train.device=cpu"]


def pairs(rows: slice) -> Batch:
    """Some rows of one batch of six: padded texts, masks of both, pairs that do not match."""
    torch.manual_seed(1)
    mask = torch.arange(LENGTH) < torch.tensor([LENGTH, 5, 7, LENGTH, 4, 6])[:, None]
    ids = torch.randint(3, WORDS, (ROWS, LENGTH)).masked_fill(~mask, 0)
    hidden = (torch.rand(ROWS, LENGTH) < 0.4) & mask
    hidden[:, 1] = True
    patches, pixels = torch.rand(ROWS, GRID ** 2) < 0.4, torch.randn(ROWS, 3, 32, 32, dtype=torch.float64)
    mask, ids, hidden, patches, pixels, match = (t[rows] for t in (mask, ids, hidden, patches, pixels, MATCH))
    asked = (hidden & match.bool()[:, None]).flatten().nonzero()[:, 0]
    told = patches & match.bool()[:, None]
    text = TextField(ids, mask, torch.arange(len(ids)), ids.masked_fill(hidden, 2), asked, ids.flatten()[asked])
    image = ImageField(pixels, torch.arange(len(ids)), patches, list("abcdef")[rows], int(told.sum()), told)
    return Batch(image=image, text=text, match=MatchField(match))


class Loader:
    """Gives the rows of a process, or of a part of the step."""

    def __init__(self, parts):
        self.parts, self.dataset, self.wait_s = parts, SimpleNamespace(digests={}), 0.0

    def at(self, visit, part=0):
        count = ROWS // (distributed.world() * self.parts)
        first = (distributed.rank() * self.parts + part) * count
        return pairs(slice(first, first + count))


class Keep(Hook):
    def after_backward(self, trainer):
        self.gradients = {n: p.grad.clone() for n, p in trainer.model.named_parameters() if p.grad is not None}


def step(output, gather: str, parts: int = 1) -> dict:
    """{parameter: its gradient} of one step, and its ``loss``."""
    keys = [f"encoders.sim.gather={gather}", f"train.accumulate={parts}", f"train.output={output}"]
    recipe = recipes.load(str(ROOT / "projects/xfm/baselines/flava.yaml"), [*SMALL, *keys], missing_files=False)
    keep = Keep()
    trainer = Trainer(Model(recipe).double(), recipe, {"pairs": Loader(parts)}, hooks=[keep])
    values = trainer.step()
    return keep.gradients | {"loss": values["loss"].double()}


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    """What each of two processes found, by ``gather``."""
    folder = tmp_path_factory.mktemp("ranks")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    told = {**os.environ, "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "OMP_NUM_THREADS": "1",
            "PYTHONPATH": str(ROOT)}
    started = [subprocess.Popen([sys.executable, __file__, str(folder)], stderr=subprocess.PIPE, text=True,
                                env=told | {"RANK": str(rank), "LOCAL_RANK": str(rank)}) for rank in range(2)]
    for process in started:
        _, trouble = process.communicate(timeout=300)
        assert process.returncode == 0, trouble[-3000:]
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(2)]


@pytest.mark.parametrize("gather, parts", [("global", 1), ("local", 2)])
def test_two_processes_have_the_gradients_of_one(ranks, tmp_path, gather, parts):
    """``local`` compares within a process, as one process does within each of two parts of its step."""
    wanted = step(tmp_path / "one", gather, parts)
    assert {"encoders.sim.logit_scale", "losses.itm.head.weight"} < wanted.keys() and not any("tokens" in n for n in wanted)
    for found in (rank[gather] for rank in ranks):
        assert found.keys() == wanted.keys()
        for name, gradient in wanted.items():
            exact = dict(rtol=1e-6, atol=0) if name == "loss" else dict(rtol=1e-9, atol=1e-12)  # a loss is summed in float32
            torch.testing.assert_close(found[name], gradient, **exact, msg=lambda said, name=name: f"{name}: {said}")


def test_how_similarities_are_gathered_matters(ranks):
    one, other = (ranks[0][gather]["encoders.vision_proj.linear.weight"] for gather in ("global", "local"))
    assert (one - other).norm() > 0.1 * one.norm()


if __name__ == "__main__":
    torch.set_num_threads(1)
    folder, rank = Path(sys.argv[1]), distributed.rank()
    torch.save({gather: step(folder / gather, gather) for gather in ("global", "local")}, folder / f"{rank}.pt")
    distributed.leave()
