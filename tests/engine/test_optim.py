"""Rates against torch's and transformers' schedulers; which parameter is in which group, by name."""

import pytest
import torch

from engine_toy import ToyModel
from xtoolkit.engine.optim import build_optimizer, lr_at, set_lr
from xtoolkit.recipe.settings import Optim, optim_problems


def curve_of(scheduler_of, lr, steps):
    """The rates of a torch scheduler from its second step on: ours is read one step later, as its first rate is 0."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=lr)
    scheduler, rates = scheduler_of(optimizer), []
    for _ in range(steps):
        optimizer.step()
        scheduler.step()
        rates.append(scheduler.get_last_lr()[0])
    return rates


@pytest.mark.parametrize("decay, name", [("linear", "get_linear_schedule_with_warmup"),
                                         ("cosine", "get_cosine_schedule_with_warmup"),
                                         ("constant", "get_constant_schedule_with_warmup")])
@pytest.mark.parametrize("warmup", [0, 7])
def test_rates_equal_transformers(decay, name, warmup):
    from transformers import optimization

    total = {} if decay == "constant" else {"num_training_steps": 40}
    expected = curve_of(lambda o: getattr(optimization, name)(o, num_warmup_steps=warmup, **total), 3e-4, 40)
    optim = Optim(lr=3e-4, warmup=warmup, decay=decay)
    assert [lr_at(step, optim, 40) for step in range(40)] == pytest.approx(expected, rel=1e-12, abs=1e-18)


def test_rates_equal_lambda_lr_with_a_floor():
    share = lambda step: step / 10 if step < 10 else 0.1 + 0.9 * (50 - step) / 40
    expected = curve_of(lambda o: torch.optim.lr_scheduler.LambdaLR(o, share), 2e-3, 50)
    optim = Optim(lr=2e-3, warmup=0.2, min_lr=2e-4)
    assert [lr_at(step, optim, 50) for step in range(50)] == pytest.approx(expected, rel=1e-12)


def test_first_peak_and_last_rate():
    optim = Optim(lr=1.0, warmup=4, min_lr=0.25)
    assert (lr_at(0, optim, 20), lr_at(3, optim, 20), lr_at(19, optim, 20)) == (0.25, 1.0, 0.25)


def test_groups_by_name():
    optimizer = build_optimizer(ToyModel(), Optim(lr=1e-3, weight_decay=0.1, lr_mult={"side": 2, "two": 2, "one": 0.5}))
    members = {group["name"]: (set(group["names"]), group["weight_decay"]) for group in optimizer.param_groups}
    body = {"gamma", "relative_position_bias_table", "dense.bias", "norm.weight", "norm.bias"}
    assert members == {
        "decay_x1": ({"encoders.body.dense.weight", "losses.idle.weight"}, 0.1),
        "no_decay_x1": ({f"encoders.body.{n}" for n in body} | {"losses.idle.bias"}, 0.0),
        "decay_x2": ({"encoders.side.dense.weight", "losses.two.weight"}, 0.1),
        "no_decay_x2": ({f"encoders.side.{n}" for n in body} | {"losses.two.bias", "losses.two.temperature"}, 0.0),
        "decay_x0.5": ({"losses.one.weight"}, 0.1),
        "no_decay_x0.5": ({"losses.one.bias"}, 0.0)}
    assert set_lr(optimizer, 0, Optim(lr=1e-3, warmup=2), 10) == 5e-4
    assert {g["name"]: g["lr"] for g in optimizer.param_groups}["decay_x2"] == pytest.approx(1e-3)


def test_frozen_parameters_are_left_out():
    model = ToyModel()
    model.encoders["body"].requires_grad_(False)
    names = {n for group in build_optimizer(model, Optim(lr=1e-3)).param_groups for n in group["names"]}
    assert names and not any(n.startswith("encoders.body") for n in names)


def test_mistakes_are_named():
    bad = Optim(lr=1e-3, lr_mult={"vison": 2}, betas=(0.9, 1.0), clip=0, warmup=30, min_lr=1)
    found = str(optim_problems(bad, ["vision", "mlm"], steps=20))
    for words in ("('lr_mult', 'vison'), '`lr_mult` names neither", "`vison`; did you mean `vision`?", "('betas',)",
                  "null switches clipping off", "30 steps are more than the run's 20", "above the peak"):
        assert words in found
    assert optim_problems(Optim(lr=1e-3, lr_mult={"vision": 2}), ["vision"], 20) == []
