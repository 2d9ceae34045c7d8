"""What holds for every loss: its docstring's YAML builds it, it reads what it declares, it never asks the device."""

import inspect
import re

import pytest
import torch
import yaml

import xtoolkit.losses  # noqa: F401
from xtoolkit.features import Features
from xtoolkit.graph import Need
from xtoolkit.losses.base import Loss
from xtoolkit.registry import LOSS_REGISTRY, filled

from .tiny import STREAMS, Tiny, make_batch

OURS = [name for name in LOSS_REGISTRY.names() if LOSS_REGISTRY.get(name).__module__.startswith("xtoolkit.losses.")]
SEATS = [(stream, loss) for stream, losses in STREAMS.items() for loss in losses]


def test_the_six_are_registered():
    assert set(OURS) >= {"MLM", "IMLM", "ITC", "ITM", "BBP", "MIM"}


@pytest.fixture(scope="module")
def encoders():
    """Those of a small X-FM, the fusion encoder as deep as docstrings say, and one that has codes: for losses that ask one."""
    found = Tiny().encoders
    found["tokens"] = torch.nn.Identity()
    found["tokens"].codes = 8
    found["fusion"].layer.extend(layer for _ in range(2) for layer in found["fusion"].decoder().layer)
    return found


@pytest.mark.parametrize("name", OURS)
def test_the_docstring_names_its_source_and_its_yaml_builds_it(name, encoders):
    cls = LOSS_REGISTRY.get(name)
    lines = re.findall(r"^YAML: (\{.*\})$", inspect.getdoc(cls), re.M)
    assert lines and "Source:" in cls.__doc__ and issubclass(cls, Loss)
    for line in lines:
        block = yaml.safe_load(line)
        assert block["type"] == name
        needs = cls.needs(filled(cls, block))
        assert needs and all(isinstance(n, Need) for n in needs)
        LOSS_REGISTRY.build(block, "docstring", widths={n.ref: 16 for n in needs}, vocab_size_of=30, patch_size_of=4,
                            modules=encoders)


@pytest.fixture(scope="module")
def model():
    return Tiny()


@pytest.mark.parametrize("stream, loss", SEATS)
def test_a_finite_float32_scalar_with_a_gradient(model, stream, loss):
    value = model.run(make_batch(stream), loss)[0][loss]
    assert value.shape == () and value.dtype == torch.float32 and value.isfinite() and value.requires_grad


@pytest.mark.parametrize("stream, loss", SEATS)
def test_under_bf16_autocast_it_is_still_a_float32_scalar(model, stream, loss):
    torch.manual_seed(3)
    plain = model.run(make_batch(stream), loss)[0][loss]
    torch.manual_seed(3)
    with torch.autocast("cpu", torch.bfloat16):
        value = model.run(make_batch(stream), loss)[0][loss]
    assert value.dtype == torch.float32 and value.item() == pytest.approx(plain.item(), rel=0.3)


@pytest.mark.parametrize("stream, loss", SEATS)
def test_reading_something_undeclared_raises(model, stream, loss):
    batch = make_batch(stream)
    declared = model.needs[loss]
    for left_out in declared:
        f = Features(model.graph, model.encoders, batch, {loss: [n for n in declared if n is not left_out]})
        with pytest.raises(KeyError, match=f"loss `{loss}` reads .* but does not declare it"):
            model.losses[loss](f.bound(loss), batch)


@pytest.mark.parametrize("stream", STREAMS)
def test_no_loss_asks_the_device(stream):
    """On the meta device there are no values: `.item()`, a boolean index or an `if` on a tensor raises."""
    model = Tiny().to("meta")
    batch = make_batch(stream).to("meta")
    values, log = model.run(batch, *STREAMS[stream])
    sum(values.values()).backward()
    assert all(v.shape == () for v in (*values.values(), *log.values()))


def test_thirty_updates_lower_every_loss():
    """All six losses over their streams, one sum, as in training: a wrong sign or a lost gradient shows here."""
    model = Tiny()
    optimizer = torch.optim.AdamW(model.parameters().values(), lr=3e-3)
    batches, history = {s: make_batch(s) for s in STREAMS}, []
    for _ in range(30):
        values = {f"{s}.{n}": v for s, losses in STREAMS.items() for n, v in model.run(batches[s], *losses)[0].items()}
        history.append({n: v.item() for n, v in values.items()})
        optimizer.zero_grad()
        sum(values.values()).backward()
        optimizer.step()
    first, last = history[0], history[-1]
    assert {n: (first[n], last[n]) for n in first if not last[n] < 0.9 * first[n]} == {}
