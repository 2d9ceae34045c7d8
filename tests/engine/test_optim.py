"""Rates against torch's and transformers' schedulers; which parameter is in which group, by name."""

import pytest
import torch
from torch import nn

from engine_toy import ToyEncoder, ToyModel
from xtoolkit.engine.optim import build_optimizer, depths, lr_at, set_lr
from xtoolkit.recipe.settings import Optim, optim_problems
from xtoolkit.registry import ConfigError


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


@pytest.mark.parametrize("decay", ["linear", "cosine", "constant"])
def test_a_run_of_one_update_has_the_peak(decay):
    assert lr_at(0, Optim(lr=0.5, warmup=0.03, decay=decay), 1) == 0.5
    assert lr_at(1, Optim(lr=0.5, warmup=0.03, decay="linear"), 2) == 0, "a run of two still ends at min_lr"


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


def factors(encoder, **optim):
    """{parameter of the encoder: its rate over the peak}."""
    model = nn.ModuleDict({"encoders": nn.ModuleDict({"body": encoder, "side": ToyEncoder(0)}),
                           "losses": nn.ModuleDict({"head": nn.Linear(2, 2)})})
    optimizer = build_optimizer(model, Optim(lr=1.0, **optim))
    return {name: group["lr_mult"] for group in optimizer.param_groups for name in group["names"]}


def test_layer_decay_of_beit_equals_a_table_by_hand():
    from xtoolkit.encoders.beit import BEiTv2

    made = BEiTv2(width=8, layers=3, heads=2, patch_size=16, image_size=32)
    found = factors(made, layer_decay={"body": 0.5}, lr_mult={"body": 2, "head": 3})
    # get_num_layer_for_vit with three blocks: 0 tokens and patches, 1 to 3 the blocks, 4 what comes after; 0.5 ** (4 - depth).
    by_hand = {"cls_token": 1 / 16, "mask_token": 1 / 16, "patch_embed.proj.weight": 1 / 16, "patch_embed.proj.bias": 1 / 16,
               "blocks.0.attn.qkv.weight": 1 / 8, "blocks.0.attn.relative_position_bias_table": 1 / 8, "blocks.0.gamma_1": 1 / 8,
               "blocks.1.mlp.fc1.weight": 1 / 4, "blocks.1.norm1.bias": 1 / 4, "blocks.2.attn.q_bias": 1 / 2,
               "blocks.2.attn.relative_position_bias_table": 1 / 2, "fc_norm.weight": 1, "fc_norm.bias": 1}
    assert {name: found[f"encoders.body.{name}"] for name in by_hand} == {n: 2 * f for n, f in by_hand.items()}
    assert found["losses.head.weight"] == 3 and found["encoders.side.dense.weight"] == 1


def test_layer_decay_equals_timms_on_its_beit():
    import timm
    from timm.optim import param_groups_layer_decay

    model = timm.create_model("beitv2_base_patch16_224", depth=4, embed_dim=16, num_heads=2, num_classes=3)
    by_name = {id(p): name for name, p in model.named_parameters()}
    expected = {by_name[id(p)]: group["lr_scale"] for group in param_groups_layer_decay(model, layer_decay=0.65)
                for p in group["params"]}
    # The mask token is not in timm's list of what stands before the blocks; in BEiT's own rule it is.
    expected.pop("mask_token", None)
    found = factors(model, layer_decay=0.65)
    assert expected.keys() <= {name.removeprefix("encoders.body.") for name in found} and len(set(expected.values())) == 6
    assert {name: found[f"encoders.body.{name}"] for name in expected} == pytest.approx(expected, rel=1e-12)


def test_layers_are_found_in_a_sequence_below_wrappers_and_in_two_lists():
    def block():
        return nn.Sequential(nn.Linear(2, 2), nn.ReLU())

    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.token = nn.Parameter(torch.zeros(2))
            self.stem = nn.Sequential(nn.Linear(2, 2), nn.GELU(), nn.Linear(2, 2))
            self.norms = nn.ModuleList([nn.LayerNorm(2)])
            self.inner = nn.Module()
            self.inner.first = nn.Sequential(block(), block())
            self.between = nn.Linear(2, 2)
            self.second = nn.ModuleList([block()])
            self.head = nn.Linear(2, 2)

    assert {name: depth for name, depth in depths(Two()).items() if not name.endswith("bias")} == {
        "token": 0, "stem.0.weight": 0, "stem.2.weight": 0, "norms.0.weight": 0, "inner.first.0.0.weight": 1,
        "inner.first.1.0.weight": 2, "between.weight": 2, "second.0.0.weight": 3, "head.weight": 4}
    assert depths(ToyEncoder(0)) == {}
    with pytest.raises(ConfigError, match=r"optim.layer_decay.side: encoder `side` \(ToyEncoder\) has no repeated layers"):
        factors(Two(), layer_decay={"side": 0.5})
    assert set(factors(ToyEncoder(0), layer_decay=0.5).values()) == {1.0}


def test_mistakes_are_named():
    bad = Optim(lr=1e-3, lr_mult={"vison": 2}, warmup=30, min_lr=1, layer_decay={"mlm": 0.5})
    found = str(optim_problems(bad, {"vision": "vision"}, ["mlm"], steps=20))
    for words in ("('lr_mult', 'vison'), '`lr_mult` names neither", "`vison`; did you mean `vision`?",
                  "30 steps are more than the run's 20", "above the peak", "('layer_decay', 'mlm')",
                  "`layer_decay` names no encoder: `mlm`; choose from: vision"):
        assert words in found
    good = Optim(lr=1e-3, lr_mult={"vision": 2, "mlm": 2}, layer_decay={"vision": 0.7})
    assert optim_problems(good, {"vision": "vision"}, ["mlm"], 20) == []
