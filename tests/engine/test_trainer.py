"""The loop as a user relies on it: exact resuming, groups as one sum, errors that name the culprit, folders kept."""

import json
import math

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from engine_toy import ToyData, ToyModel, loaders, recipe
from xtoolkit.recipe.folder import latest
from xtoolkit.engine.hooks import Checkpoint, JsonLines, Log, default_hooks
from xtoolkit.recipe.settings import Optim, ScheduleBlock
from xtoolkit.engine.finite import NonFiniteError
from xtoolkit.engine.trainer import Trainer
from xtoolkit.registry import ConfigError


def run(output, resume=False, until=None, hooks=None, model=None, faulty=False, **changes):
    trainer = Trainer(model or ToyModel(), recipe(output, **changes), loaders(faulty=faulty),
                      hooks=hooks or [Log(), JsonLines(), Checkpoint()], resume=resume)
    if until is None:
        trainer.fit()
        return trainer
    # As a process that is killed between two steps: nothing is told that the end is near.
    trainer._call("before_train")
    while trainer.done < until:
        trainer._call("before_step")
        trainer.step()
        trainer._call("after_step")
    return trainer


def state_of(trainer):
    """{name: tensor} of weights and of the optimizer."""
    tensors = dict(trainer.model.state_dict())
    for group in trainer.optimizer.param_groups:
        for name, parameter in zip(group["names"], group["params"]):
            tensors |= {f"{name}/{key}": value for key, value in trainer.optimizer.state[parameter].items()}
    return tensors


def lines(output):
    return [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]


def without_times(line):
    return {k: v for k, v in line.items() if k not in ("seconds", "samples_per_s", "eta_s", "memory_gb", "memory_now_gb", "data_share",
                                                       "cpu_share")}


@pytest.mark.parametrize("schedule", [ScheduleBlock(every_step=[["a"], ["b"]], every={"b": 2}),
                                      ScheduleBlock(sample={"a": 2, "b": 1})])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_ten_steps_equal_five_a_resume_and_five_more(tmp_path, schedule, precision):
    changes = {"schedule": schedule, "precision": precision, "faulty": True}
    whole = run(tmp_path / "whole", **changes)
    # Two steps beyond the checkpoint are lost, and must not leave a trace: nor the bad samples that they met.
    run(tmp_path / "parts", until=7, **changes)
    resumed = run(tmp_path / "parts", resume=True, **changes)
    assert resumed.resumed_from.name == "step_00000005"
    assert resumed.loaders["a"].visits[0] == resumed.schedule.visit("a", 5)
    expected, found = state_of(whole), state_of(resumed)
    assert expected.keys() == found.keys() and any("exp_avg_sq" in name for name in found)
    assert [name for name in expected if not torch.equal(expected[name], found[name])] == []
    logged = {part: [without_times(line) for line in lines(tmp_path / part)] for part in ("whole", "parts")}
    assert logged["whole"] == logged["parts"] and logged["whole"][-1]["bad.a"] > logged["whole"][4]["bad.a"] > 0
    assert [x["step"] for x in lines(tmp_path / "parts")] == list(range(1, 11))


def test_dropout_is_drawn_anew_each_step_and_seed(tmp_path):
    rates = dict(steps=2, optim=Optim(lr=1e-30), schedule=ScheduleBlock(every_step=[["a", "b"]]))
    same = loaders()
    trainer = Trainer(ToyModel(), recipe(tmp_path / "x", **rates), same)
    same["a"].at = same["b"].at = lambda visit, part, at=same["a"].at: at(0)
    first = {k: float(v) for k, v in trainer.step().items()}
    second = {k: float(v) for k, v in trainer.step().items()}
    assert first["a.one"] != first["b.one"] and first["a.one"] != second["a.one"]
    other = loaders()
    other["a"].at = other["b"].at = lambda visit, part, at=other["a"].at: at(0)
    assert float(Trainer(ToyModel(), recipe(tmp_path / "x", seed=7, **rates), other).step()["a.one"]) != first["a.one"]


def test_a_group_is_one_update_on_the_gradient_of_the_weighted_sum(tmp_path):
    optim = Optim(lr=1e-2, clip=0.5, weight_decay=0.1)
    together = ScheduleBlock(every_step=[["a", "b"]])
    trainer = Trainer(ToyModel(dropout=0), recipe(tmp_path, schedule=together, optim=optim, steps=9), loaders())
    values = trainer.step()
    twin = ToyModel(dropout=0)
    a, b = twin("a", loaders()["a"].at(0)), twin("b", loaders()["b"].at(0))
    total = a["one"] + 0.5 * a["two"] + 2 * b["one"]
    total.backward()
    used = [p for p in twin.parameters() if p.grad is not None]
    norm = math.sqrt(sum(float(p.grad.double().square().sum()) for p in used))
    assert float(values["loss"]) == pytest.approx(float(total.detach()), rel=1e-6)
    assert float(values["norm"]) == pytest.approx(norm, rel=1e-5)
    side = math.sqrt(sum(float(p.grad.double().square().sum()) for p in twin.encoders["side"].parameters()))
    assert float(values["norm.side"]) == pytest.approx(side, rel=1e-5)
    gradients = {n: p.grad * min(1, 0.5 / norm) if p.grad is not None else None for n, p in twin.named_parameters()}
    for name, parameter in trainer.model.named_parameters():
        if gradients[name] is None:
            assert parameter.grad is None, name
        else:
            torch.testing.assert_close(parameter.grad, gradients[name], rtol=1e-4, atol=1e-7)
    # The first AdamW update by hand, in float64: decay where it applies, then lr * sign-like step.
    rate = 1e-2 * (1 - 1 / 9)
    for name, before in ToyModel(dropout=0).named_parameters():
        if gradients[name] is not None:
            decay = 0.1 if name.endswith(("dense.weight", "one.weight", "two.weight")) else 0
            g = gradients[name].double()
            expected = before.double() * (1 - rate * decay) - rate * g / (g.abs() + 1e-8)
            torch.testing.assert_close(trainer.model.get_parameter(name).double(), expected, rtol=1e-4, atol=1e-6)
        else:
            assert torch.equal(trainer.model.get_parameter(name), before), name


class Asked(TorchDispatchMode):
    """Notes each operation that makes the host wait for a value or a shape of the device."""

    def __init__(self):
        super().__init__()
        self.found = []

    def __torch_dispatch__(self, op, types, args=(), kwargs=None):
        if op.overloadpacket in (torch.ops.aten._local_scalar_dense, torch.ops.aten.nonzero, torch.ops.aten.equal):
            self.found.append(str(op))
        return op(*args, **(kwargs or {}))


def test_a_step_asks_the_device_nothing(tmp_path):
    trainer = Trainer(ToyModel(), recipe(tmp_path, precision="bf16", steps=6), loaders())
    trainer.step()
    # On CPU each step ends with the question whether all is finite, on CUDA only log steps do.
    trainer.check_finite = lambda: None
    with Asked() as asked:
        trainer.step()
    assert asked.found == []
    with Asked() as asked:
        Trainer.check_finite(trainer)
    assert len(asked.found) == 1


def test_groups_update_one_after_the_other_and_encoders_hear_of_each(tmp_path):
    trainer = Trainer(ToyModel(), recipe(tmp_path, schedule=ScheduleBlock(every_step=[["a"], ["b"]])), loaders())
    trainer.step()
    assert trainer.model.encoders["body"].updates == 2
    assert trainer.optimizer.state[trainer.model.losses["one"].weight]["step"] == 2
    assert trainer.optimizer.state[trainer.model.losses["two"].weight]["step"] == 1


def test_micro_batches_give_the_gradient_of_the_whole_batch(tmp_path):
    schedule, optim = ScheduleBlock(every_step=[["a", "b"]]), Optim(lr=1e-2, clip=None)
    one = Trainer(ToyModel(0), recipe(tmp_path, schedule=schedule, optim=optim), loaders())
    two = Trainer(ToyModel(0), recipe(tmp_path, schedule=schedule, optim=optim, accumulate=2), loaders(parts=2))
    for _ in range(2):
        first, second = one.step(), two.step()
        assert float(first["a.two"]) == pytest.approx(float(second["a.two"]), rel=1e-5)
        assert float(first["loss"]) == pytest.approx(float(second["loss"]), rel=1e-5)
        for p, q in zip(one.model.parameters(), two.model.parameters()):
            if p.grad is not None:
                torch.testing.assert_close(p.grad, q.grad, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("factor", [float("nan"), float("inf")])
def test_a_bad_loss_stops_the_run_by_name_and_leaves_weights_and_checkpoint(tmp_path, factor):
    class Poison(Log):
        def before_step(self, trainer):
            if trainer.done == 6:
                self.before = {n: t.clone() for n, t in state_of(trainer).items()}
                trainer.model.poison["b"] = ("one", factor)

    model, poison = ToyModel(), Poison()
    with pytest.raises(NonFiniteError) as caught:
        run(tmp_path, model=model, hooks=[poison, JsonLines(), Checkpoint()])
    message = str(caught.value)
    assert "step 7, stream `b`: loss `one` is" in message and "step_00000005, is whole" in message
    assert "encoders.body" in message and "optim.lr" in message
    trainer = Trainer(ToyModel(), recipe(tmp_path), loaders(), resume=True)
    assert trainer.done == 5 and all(torch.isfinite(t).all() for t in state_of(trainer).values())
    assert [line["step"] for line in lines(tmp_path)] == list(range(1, 7))
    assert [n for n, t in model.state_dict().items() if not torch.equal(t, poison.before[n])] == []


def test_a_bad_gradient_of_finite_losses_is_found_too(tmp_path):
    model = ToyModel()
    model.encoders["side"].dense.weight.register_hook(lambda g: g * float("inf"))
    with pytest.raises(NonFiniteError, match=r"step 1, streams \['a', 'b'\]: the gradient norm is .*side.dense.weight"):
        Trainer(model, recipe(tmp_path), loaders()).fit()


def test_a_folder_in_use_is_refused_and_an_empty_one_is_not(tmp_path):
    (tmp_path / "empty").mkdir()
    run(tmp_path / "empty", steps=2)
    with pytest.raises(ConfigError, match="exists and is not empty; go on from its last checkpoint with --resume"):
        Trainer(ToyModel(), recipe(tmp_path / "empty"), loaders())


def test_resuming_nothing_starts_at_zero_and_says_so(tmp_path, capsys):
    assert run(tmp_path / "new", resume=True, steps=2, hooks=default_hooks()).done == 2
    assert "nothing to resume in" in capsys.readouterr().out


def test_resuming_another_recipe_is_refused_key_by_key(tmp_path):
    run(tmp_path, steps=5)
    changed = recipe(tmp_path, steps=20, log_every=3)
    changed.config["encoders"]["body"]["dropout"] = 0.1
    changed.config["train"]["seed"] = 1
    changed.config["streams"]["new"] = {"batch_size": 4}
    with pytest.raises(ConfigError) as caught:
        Trainer(ToyModel(), changed, loaders(), resume=True)
    assert [line.partition(f": {tmp_path}")[0] for line in caught.value.problems] == [
        f"--resume: {line}" for line in ("encoders.body.dropout: was 0.3, is 0.1", "streams.new.batch_size: was absent, is 4",
                                         "train.seed: was 42, is 1")]
    other = loaders()
    other["b"].dataset = ToyData(65)
    with pytest.raises(ConfigError, match="data of stream `b`: had 64 samples, has 65"):
        Trainer(ToyModel(), recipe(tmp_path), other, resume=True)
    assert Trainer(ToyModel(), recipe(tmp_path, steps=20, log_every=3), loaders(), resume=True).done == 5


def test_no_more_checkpoints_than_asked_and_the_last_step_is_kept(tmp_path):
    run(tmp_path, steps=11, checkpoint_every=2, keep=3)
    left = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    assert left == ["step_00000008", "step_00000010", "step_00000011"]
    assert latest(tmp_path).name == "step_00000011"
