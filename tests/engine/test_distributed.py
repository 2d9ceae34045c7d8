"""Two processes on half the batch each do what one process does on the whole of it."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from engine_toy import ToyModel, loaders, recipe
from xtoolkit.recipe.folder import latest
from xtoolkit.engine import checkpoint, distributed
from xtoolkit.engine.hooks import Checkpoint, JsonLines, Log
from xtoolkit.recipe.settings import ScheduleBlock
from xtoolkit.engine.trainer import Trainer

HERE = Path(__file__).resolve().parent
SCHEDULE = ScheduleBlock(every_step=[["a"], ["b"]], every={"b": 2})


def train(output, rank=0, world=1):
    trainer = Trainer(ToyModel(dropout=0), recipe(output, steps=4, schedule=SCHEDULE), loaders(rank=rank, world=world),
                      hooks=[Log(), JsonLines(), Checkpoint()])
    trainer.fit()


def reduce_where_one_process_has_no_gradient(rank):
    """Only the first process used `mine`, none used `nobodys`; buckets of 12 bytes cut between the parameters."""
    mine, both, nobodys = (torch.nn.Parameter(torch.zeros(3)) for _ in range(3))
    both.grad = torch.full((3,), 1.0 + rank)
    if rank == 0:
        mine.grad = torch.full((3,), 4.0)
    distributed.BUCKET = 12
    distributed.reduce_gradients([mine, both, nobodys])
    assert mine.grad.tolist() == [2.0] * 3 and both.grad.tolist() == [1.5] * 3 and nobodys.grad is None
    assert distributed.agree(rank * 15) == 15


def test_two_processes_equal_one(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    environment = {**os.environ, "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port,
                   "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join([str(HERE), str(HERE.parents[1])])}
    processes = [subprocess.Popen([sys.executable, __file__, str(tmp_path / "two")], stderr=subprocess.PIPE, text=True,
                                  env={**environment, "RANK": str(rank), "LOCAL_RANK": str(rank)}) for rank in range(2)]
    for process in processes:
        _, trouble = process.communicate(timeout=120)
        assert process.returncode == 0, trouble
    train(tmp_path / "one")
    one, two = ToyModel(), ToyModel()
    checkpoint.load(latest(tmp_path / "one"), one)
    checkpoint.load(latest(tmp_path / "two"), two)
    start = dict(ToyModel().named_parameters())
    moved = [name for name, p in one.named_parameters() if not torch.equal(p, start[name])]
    assert "losses.one.weight" in moved and "encoders.body.dense.weight" in moved
    for (name, p), q in zip(one.named_parameters(), two.parameters()):
        torch.testing.assert_close(p, q, rtol=2e-4, atol=2e-6, msg=lambda text, name=name: f"{name}: {text}")
    first, second = ([json.loads(line) for line in open(tmp_path / part / "metrics.jsonl")] for part in ("one", "two"))
    for line, other in zip(first, second, strict=True):
        for name in ("loss", "one", "two", "a.one", "norm", "norm.side", "a.one.guess", "one.guess", "a.one.seen"):
            assert line[name] == pytest.approx(other[name], rel=2e-4), (line["step"], name)
    files = sorted(path.name for path in (tmp_path / "two").iterdir())
    assert files == ["checkpoints", "metrics.jsonl"]


if __name__ == "__main__":
    torch.set_num_threads(1)
    train(sys.argv[1], int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"]))
    reduce_where_one_process_has_no_gradient(int(os.environ["RANK"]))
    distributed.leave()
