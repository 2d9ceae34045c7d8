"""Which loss moves which module: a batch of each stream, passes shared as in training, four lists of stops."""

import pytest
import torch

from .tiny import STREAMS, Tiny, make_batch

STOPS = {"paper": ("itm", "imlm", "bbp"), "none": (), "S-MLM": ("imlm",), "S-ITM": ("itm", "bbp")}

MODULES = {
    "vision": "encoders.vision.",
    "mask token": "encoders.vision.mask_token",
    "text layers": "encoders.text.roberta.encoder.",
    "text embeddings": "encoders.text.roberta.embeddings.",
    "text output": "encoders.text.lm_head.",
    "fusion": "encoders.fusion.",
    "vision_proj": "encoders.vision_proj.",
    "text_proj": "encoders.text_proj.",
    "temperature": "encoders.sim.temperature",
    "itm head": "losses.itm.",
    "imlm head": "losses.imlm.",
    "bbp head": "losses.bbp.",
}
TEXT = {"text layers", "text embeddings"}
# Beyond TEXT, which a stop decides for the three losses that read the fusion encoder.
MOVES = {
    "mlm": TEXT | {"text output"},
    "itc": TEXT | {"vision", "vision_proj", "text_proj", "temperature"},
    "itm": {"vision", "fusion", "itm head"},
    "imlm": {"vision", "fusion", "imlm head"},
    "bbp": {"vision", "fusion", "bbp head"},
    "mim": {"vision", "mask token"},
}


def expected(loss, stops):
    crosses = loss in ("itm", "imlm", "bbp") and loss not in stops
    return MOVES[loss] | (TEXT if crosses else set())


def module_of(name):
    return max((m for m, prefix in MODULES.items() if name.startswith(prefix)), key=lambda m: len(MODULES[m]))


def without_true_gradient(name):
    """A bias on attention keys shifts all scores of a query alike, which softmax does not see."""
    return name.endswith("key.bias")


@pytest.mark.parametrize("stream", STREAMS)
@pytest.mark.parametrize("stops", STOPS)
def test_each_loss_moves_its_modules_and_no_other(stops, stream):
    model, losses = Tiny(stops=STOPS[stops]), STREAMS[stream]
    values, _ = model.run(make_batch(stream), *losses)
    parameters = model.parameters()
    assert {module_of(n) for n in parameters} == set(MODULES)
    for loss in losses:
        grads = torch.autograd.grad(values[loss], list(parameters.values()), allow_unused=True, retain_graph=True)
        moved, still = set(), set()
        for name, grad in zip(parameters, grads):
            if not without_true_gradient(name):
                (moved if grad is not None and (grad != 0).any() else still).add(name)
        # Every single parameter of a module that moves does, and none of any other.
        assert {module_of(n) for n in moved} == expected(loss, STOPS[stops])
        assert {n for n in still if module_of(n) in expected(loss, STOPS[stops])} == set()


@pytest.mark.parametrize("stream", ["pairs", "region"])
def test_one_backward_of_the_sum_is_the_sum_of_the_losses_gradients(stream):
    """Shared passes and keys and values do not mix what the losses want."""
    model, losses = Tiny(), STREAMS[stream]
    parameters = list(model.parameters().values())

    def gradient(*names):
        torch.manual_seed(7)
        values, _ = model.run(make_batch(stream), *names)
        return torch.autograd.grad(sum(values.values()), parameters, allow_unused=True, materialize_grads=True)

    alone = [gradient(n) for n in losses]
    for together, *parts in zip(gradient(*losses), *alone):
        torch.testing.assert_close(together, sum(parts), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("stream", ["pairs", "region"])
def test_stops_change_gradients_only(stream):
    torch.manual_seed(7)
    cut = Tiny().run(make_batch(stream), *STREAMS[stream])[0]
    torch.manual_seed(7)
    free = Tiny(stops=()).run(make_batch(stream), *STREAMS[stream])[0]
    assert {n: v.item() for n, v in cut.items()} == {n: v.item() for n, v in free.items()}
