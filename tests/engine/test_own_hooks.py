"""Hooks of a recipe: when they are called, what they keep over a resume, and what GradientAudit finds."""

import json

import numpy as np
import pytest
import torch

from engine_toy import ToyModel, loaders, recipe
from xtoolkit.engine import checkpoint
from xtoolkit.engine.hooks import default_hooks
from xtoolkit.engine.trainer import Trainer
from xtoolkit.hooks import GradientAudit, Hook
from xtoolkit.hooks.gradients import part_of
from xtoolkit.recipe.folder import latest
from xtoolkit.recipe.settings import Optim, ScheduleBlock
from xtoolkit.registry import HOOK_REGISTRY, ConfigError


class Counter(Hook):
    """Counts, and notes what it is called for."""

    def __init__(self, name="counter"):
        self.name, self.calls, self.count = name, [], 0

    def after_backward(self, trainer):
        norm = torch.stack([p.grad.norm() for p in trainer.model.parameters() if p.grad is not None]).norm()
        self.calls.append(("after_backward", trainer.done, float(norm)))

    def after_step(self, trainer):
        self.count += 1
        self.calls.append(("after_step", trainer.done, float(trainer.values["norm"])))
        trainer.write({f"{self.name}.count": self.count})

    def state_dict(self):
        return {"count": self.count}

    def load_state_dict(self, state):
        self.count = state["count"]


def train(output, *own, resume=False, **changes):
    trainer = Trainer(ToyModel(), recipe(output, **changes), loaders(), hooks=default_hooks(own=own), resume=resume)
    trainer.fit()
    return trainer


def lines(output):
    return [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]


def test_after_backward_sees_each_groups_gradient_before_it_is_clipped(tmp_path):
    counter = Counter()
    train(tmp_path, counter, steps=1, optim=Optim(lr=1e-2, clip=1e-3), schedule=ScheduleBlock(every_step=[["a"], ["b"]]))
    assert [call[:2] for call in counter.calls] == [("after_backward", 0), ("after_backward", 0), ("after_step", 1)]
    norms = [call[2] for call in counter.calls]
    assert norms[2] == pytest.approx(max(norms[:2]), rel=1e-6) and norms[2] > 1e-2


def test_a_hooks_state_is_in_the_checkpoint_and_comes_back(tmp_path):
    train(tmp_path, Counter(), steps=5)
    assert checkpoint.read_record(latest(tmp_path))["hooks"] == {"counter": {"count": 5}}
    known, fresh = Counter(), Counter("fresh")
    train(tmp_path, known, fresh, steps=8, resume=True)
    assert known.count == 8 and fresh.count == 3
    assert [(line["step"], line["counter.count"]) for line in lines(tmp_path)] == [(n, n) for n in range(1, 9)]
    assert "fresh.count" not in lines(tmp_path)[4] and lines(tmp_path)[7]["fresh.count"] == 3
    train(tmp_path, steps=9, resume=True)  # hooks may go as they came
    assert checkpoint.read_record(latest(tmp_path))["hooks"] == {}


def test_a_state_that_json_cannot_hold_is_named(tmp_path):
    class Wrong(Counter):
        def state_dict(self):
            return {"count": torch.zeros(1)}

    with pytest.raises(TypeError, match=r"hook `counter` \(Wrong\): its state_dict must hold what JSON has: .*Tensor"):
        train(tmp_path, Wrong(), steps=1)
    assert latest(tmp_path) is None


def test_a_hook_changes_no_number_of_the_run(tmp_path):
    with_one, without = train(tmp_path / "a", Counter(), audit()), train(tmp_path / "b")
    assert all(torch.equal(p, q) for p, q in zip(with_one.model.parameters(), without.model.parameters()))


def audit(every=2):
    made = HOOK_REGISTRY.build({"type": "GradientAudit", "every": every}, "hooks.audit")
    made.name = "audit"
    return made


def test_gradient_audit_finds_the_silent_part_and_counts_on_after_a_resume(tmp_path):
    hook = audit()
    assert isinstance(hook, GradientAudit)
    trainer = train(tmp_path, hook, steps=5, optim=Optim(lr=1e-2, clip=1e-3))
    found = {line["step"]: line for line in lines(tmp_path)}
    assert "audit.body.norm" not in found[1] and {"audit.body.norm", "audit.body.zero", "loss"} <= found[2].keys()
    # One row of the relative-position table of four is read; head `idle` stands in no stream.
    body = trainer.model.encoders["body"]
    unread = body.relative_position_bias_table[1:].numel() / sum(p.numel() for p in body.parameters())
    assert found[2]["audit.body.zero"] == pytest.approx(unread, rel=1e-5)
    assert found[2]["audit.body.norm"] == pytest.approx(found[2]["norm.body"], rel=1e-5) and found[2]["norm.body"] > 1e-2
    assert (found[4]["audit.idle.zero"], found[4]["audit.idle.norm"], found[4]["audit.idle.silent"]) == (1, 0, 2)
    assert "audit.one.silent" not in found[4]
    train(tmp_path, audit(), steps=8, resume=True)
    assert {line["step"]: line.get("audit.idle.silent") for line in lines(tmp_path)}[8] == 4


def test_parts_are_layers_and_heads():
    assert part_of("encoders.vision.blocks.3.attn.proj.weight") == "vision.blocks.3"
    assert part_of("encoders.vision.cls_token") == "vision" and part_of("losses.bbp.head.0.weight") == "bbp"


class Writer(Hook):
    """Writes what it is told to."""

    def __init__(self, values):
        self.name, self.values = "mine", values

    def after_step(self, trainer):
        trainer.write({"mine.first": 1})
        trainer.write(self.values)

    def after_train(self, trainer):
        self.after_step(trainer)


def test_what_a_hook_writes_is_converted_once_and_is_no_line_of_the_log(tmp_path, capsys):
    given = {"loss": 3, "mine.t": torch.tensor(0.5), "mine.n": np.float32(0.25), "mine.none": None, "step": 99}
    trainer = train(tmp_path, Writer(given), steps=2, log_every=2)
    first, second = lines(tmp_path)
    assert first == {"step": 1, "mine.first": 1, "loss": 3, "mine.t": 0.5, "mine.n": 0.25, "mine.none": None}
    assert second["loss"] == trainer.latest["loss"] != 3 and "eta_s" in trainer.latest
    out = capsys.readouterr().out
    assert "step 1/2  loss 3  mine.t 0.5  mine.n 0.25" in out and "eta" in out


@pytest.mark.parametrize("values, said", [
    ({"mine.x": torch.zeros(2)}, "`mine.x` must be a number, not the Tensor of shape (2,)"),
    ({"mine.x": "word"}, "`mine.x` must be a number, not the str 'word'"),
    ({7: 1}, "a name must be text, not 7"),
    ([1], "must be {name: number}, not list")])
def test_what_is_no_number_names_the_hook_and_the_key(tmp_path, values, said):
    with pytest.raises(ConfigError) as caught:
        train(tmp_path, Writer(values), Counter(), steps=1)
    assert caught.value.problems == [f"hook `mine` (Writer): {said}"]
