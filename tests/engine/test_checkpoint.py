"""Checkpoints are whole or absent, and fit or are refused name by name."""

import multiprocessing
import os
import pickle
import random
import time

import pytest
import torch
from torch import nn

from engine_toy import ToyModel
from xtoolkit.recipe.folder import latest
from xtoolkit.engine import checkpoint
from xtoolkit.engine.checkpoint import CheckpointError
from xtoolkit.engine.optim import build_optimizer
from xtoolkit.recipe.settings import Optim


def trained():
    model = ToyModel()
    optimizer = build_optimizer(model, Optim(lr=1e-2))
    sum(p.square().sum() for n, p in model.named_parameters() if "idle" not in n).backward()
    optimizer.step()
    return model, optimizer


def test_what_is_saved_comes_back_exactly(tmp_path):
    model, optimizer = trained()
    path = checkpoint.save(tmp_path, 3, model, optimizer, {"config": {"a": [1, 1e-4]}}, keep=2)
    fresh = ToyModel()
    with torch.no_grad():
        for parameter in fresh.parameters():
            parameter.fill_(9)
    other = build_optimizer(fresh, Optim(lr=1e-2))
    assert checkpoint.load(path, fresh, other) == {"step": 3, "config": {"a": [1, 1e-4]}}
    for (name, p), q in zip(model.named_parameters(), fresh.parameters()):
        assert torch.equal(p, q), name
        assert optimizer.state[p].keys() == other.state[q].keys() and ("idle" in name) == (not other.state[q])
        assert all(torch.equal(optimizer.state[p][key], other.state[q][key]) for key in optimizer.state[p])


def test_every_name_that_does_not_fit_is_listed_and_nothing_is_changed(tmp_path):
    model, optimizer = trained()
    path = checkpoint.save(tmp_path, 1, model, optimizer, {"config": {}}, keep=1)
    other = ToyModel()
    other.losses["one"] = nn.Linear(8, 3)
    other.losses["extra"] = nn.Linear(2, 2, bias=False)
    del other.losses["two"]
    before = {n: t.clone() for n, t in other.state_dict().items()}
    with pytest.raises(CheckpointError) as caught:
        checkpoint.load(path, other, build_optimizer(other, Optim(lr=1)))
    message = str(caught.value)
    for words in ("missing in the checkpoint: `losses.extra.weight`", "unexpected in the checkpoint: `losses.two.bias`",
                  "unexpected in the checkpoint: `losses.two.temperature`",
                  "unexpected in the checkpoint: `exp_avg.losses.two",
                  "mis-shaped: `losses.one.weight` is [1, 8] torch.float32 in the checkpoint, [3, 8] torch.float32"):
        assert words in message
    assert all(torch.equal(t, before[n]) for n, t in other.state_dict().items())


def test_weights_alone_load_without_an_optimizer(tmp_path):
    model, optimizer = trained()
    fresh = ToyModel()
    checkpoint.load(checkpoint.save(tmp_path, 1, model, optimizer, {"config": {}}, keep=1), fresh)
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), fresh.parameters()))


def test_unfinished_ones_are_not_seen_and_are_cleared_away(tmp_path):
    model, optimizer = trained()
    whole = checkpoint.save(tmp_path, 2, model, optimizer, {"config": {}}, keep=2)
    (tmp_path / "checkpoints" / ".unfinished-step_00000004").mkdir()
    (tmp_path / "checkpoints" / "step_00000009").mkdir()
    assert latest(tmp_path) == whole
    with pytest.raises(CheckpointError, match="step_00000009: no checkpoint"):
        checkpoint.read_record(tmp_path / "checkpoints" / "step_00000009")
    checkpoint.save(tmp_path, 4, model, optimizer, {"config": {}}, keep=2)
    assert not list((tmp_path / "checkpoints").glob(".unfinished*"))
    assert latest(tmp_path / "nowhere") is None


def test_an_index_that_would_run_code_is_refused(tmp_path):
    class Evil:
        def __reduce__(self):
            return os.system, ("true",)

    model, optimizer = trained()
    path = checkpoint.save(tmp_path, 1, model, optimizer, {"config": {}}, keep=1)
    (path / ".metadata").write_bytes(pickle.dumps(Evil()))
    with pytest.raises(CheckpointError, match="posix.system"):
        checkpoint.load(path, model, optimizer)


def big():
    return nn.ModuleDict({"encoders": nn.ModuleDict({"big": nn.Linear(900, 900)}), "losses": nn.ModuleDict()})


def save_for_ever(output, step):
    model = big()
    optimizer = build_optimizer(model, Optim(lr=1e-3))
    while True:
        step += 1
        nn.init.constant_(model["encoders"]["big"].weight, step)
        checkpoint.save(output, step, model, optimizer, {"config": {}}, keep=2)


def test_killed_at_any_instant_the_newest_checkpoint_is_whole(tmp_path):
    model, step, torn, luck = big(), 0, 0, random.Random(3)
    checkpoint.save(tmp_path, 0, model, build_optimizer(model, Optim(lr=1e-3)), {"config": {}}, keep=2)
    for _ in range(12):
        process = multiprocessing.get_context("fork").Process(target=save_for_ever, args=(tmp_path, step))
        process.start()
        time.sleep(0.1 + luck.random() / 5)
        process.kill()
        process.join()
        torn += any((tmp_path / "checkpoints").glob(".unfinished*"))
        newest = checkpoint.load(latest(tmp_path), model)["step"]
        assert newest >= step
        assert newest == 0 or bool((model["encoders"]["big"].weight == newest).all())
        step = newest
    assert step > 0 and torn > 0, "no save was cut short: the test has shown nothing"
