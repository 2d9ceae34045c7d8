"""Gradients loss by loss: how much of each loss reaches each encoder, and whether two losses that reach one agree."""

import itertools
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from xtoolkit.hooks.base import Hook
from xtoolkit.registry import HOOK_REGISTRY, Count

Rows = dict[str, dict[str, Tensor]]
_TORCHS = vars(nn.Module()).keys() - {"training"}  # torch's own: parameters, modules, buffers, hooks


def gradients_by_loss(model, stream: str, batch, weights: dict[str, float], share=None, rows: Rows | None = None) -> Rows:
    """The gradient of every weighted loss of a stream on a batch, each alone: one forward, one backward a loss.

    Neither ``.grad``, buffers and what parts of the model keep of their batches, nor torch's generators are touched. Autocast is
    the caller's. As many copies of the gradients are held as losses reach a parameter.

    Args:
        model: as ``Trainer``'s.
        weights: {loss: its weight} of the stream.
        share: see ``Features``.
        rows: earlier ones, to which these are added.

    Returns:
        {``<stream>.<loss>``: {parameter: gradient}}; a parameter that a loss does not reach is not there. What several parts
        share is one parameter, of the part that owns it.
    """
    rows = {} if rows is None else rows
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    with _undisturbed(model), torch.enable_grad():
        # Not through the module's call: whoever watches that sees the training alone.
        losses = model.forward(stream, batch, share=share)
        kind = next(iter(losses.values())).device.type
        with torch.autocast(kind, enabled=False):
            for number, (loss, value) in enumerate(losses.items(), 1):
                row = rows.setdefault(f"{stream}.{loss}", {})
                if not value.requires_grad:
                    continue
                found = torch.autograd.grad(weights[loss] * value.float(), [p for _, p in named], allow_unused=True,
                                            retain_graph=number < len(losses))
                for (name, _), gradient in zip(named, found):
                    if gradient is not None:
                        row[name] = row[name] + gradient if name in row else gradient
    return rows


def norms(rows: Rows, encoders) -> dict[str, dict[str, float]]:
    """{row: {encoder: L2 norm}}, exactly 0 where nothing reaches it."""
    return {row: {encoder: _dot(of, of) ** 0.5 for encoder in encoders for of in (_part(found, encoder),)}
            for row, found in rows.items()}


def cosines(rows: Rows, encoders) -> dict[str, list[tuple[str, str, float]]]:
    """{encoder: [(row, row, cosine)]} of every two that reach it, over the parameters that both reach."""
    made: dict[str, list] = {}
    for encoder in encoders:
        for (one, of_one), (other, of_other) in itertools.combinations(rows.items(), 2):
            both = [name for name in _part(of_one, encoder) if name in of_other]
            a, b = ({name: found[name] for name in both} for found in (of_one, of_other))
            if (size := (_dot(a, a) * _dot(b, b)) ** 0.5) > 0:
                made.setdefault(encoder, []).append((one, other, _dot(a, b) / size))
    return made


def _part(found, encoder):
    return {name: gradient for name, gradient in found.items() if name.startswith(f"encoders.{encoder}.")}


def _dot(one, other):
    """In float64; one transfer."""
    products = [(gradient.double() * other[name].double()).sum() for name, gradient in one.items()]
    return float(torch.stack(products).sum()) if products else 0.0


@contextmanager
def _undisturbed(model):
    """A forward pass that training does not notice: generators, buffers and what modules remember are as before."""
    device = next(model.parameters()).device
    kept = [(module, dict(module._buffers), {key: value for key, value in vars(module).items() if key not in _TORCHS})
            for module in model.modules()]
    values = {id(value): value for _, *places in kept for place in places for value in place.values()}
    copies = [(value, value.clone() if isinstance(value, Tensor) else value.copy())
              for value in values.values() if isinstance(value, (Tensor, dict, list, set))]
    cached = torch.is_autocast_cache_enabled()
    torch.set_autocast_cache_enabled(False)  # a low-precision weight of this graph must not serve the next
    try:
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            yield
    finally:
        torch.set_autocast_cache_enabled(cached)
        for module, buffers, others in kept:
            module._buffers.update(buffers)
            for key in vars(module).keys() - others.keys() - _TORCHS:
                del vars(module)[key]
            vars(module).update(others)
        with torch.no_grad():
            for value, before in copies:
                _restore(value, before)


def _restore(value, before):
    if isinstance(value, Tensor):
        value.copy_(before)
    elif isinstance(value, list):
        value[:] = before
    else:
        value.clear()
        value.update(before)


@HOOK_REGISTRY.register
class LossGradients(Hook):
    """Writes every ``every`` steps how much of each loss reaches each encoder, and whether losses that reach one agree.

    YAML: {type: LossGradients, every: 100}

    Written as ``<hook>.norm.<stream>.<loss>.<encoder>``, the L2 norm of the weighted loss's gradient before clipping, exactly 0
    where none reaches it; and ``<hook>.cosine.<encoder>.<stream>.<loss>.<stream>.<loss>`` of every two that do, over the
    parameters that both reach: below 0 they conflict. The report draws the newest of each as heat maps, and how they went.

    It looks at the batches that training reads, before training does, and at each stream's first from the step that is due on:
    where a schedule lets a stream sit out, the others' gradients wait for it, until the next audit is due at most. A run that
    goes on inside an audit lacks what came before. It costs one more forward pass of each of these batches, one more backward
    pass a loss, and memory for the gradients of all losses; the numbers of the training stay the same to the bit.

    Args:
        every: steps between two audits; the first is at the first step.
    """

    def __init__(self, every: Count = 100):
        self.every, self._rows, self._left, self._seen, self._watch = every, {}, set(), set(), None

    def before_train(self, trainer):
        def look(model, arguments, keywords):
            stream, batch = arguments
            if stream in self._left:
                self._seen.add(stream)
                losses, parts = trainer.recipe.streams[stream].losses, trainer.train.accumulate
                weights = {loss: weight / parts for loss, weight in losses.items()}
                gradients_by_loss(model, stream, batch, weights, keywords["share"], self._rows)

        self._watch = trainer.model.register_forward_pre_hook(look, with_kwargs=True)

    def before_step(self, trainer):
        if trainer.done % self.every == 0:
            self._left = set(trainer.recipe.streams)

    def after_step(self, trainer):
        self._left, self._seen = self._left - self._seen, set()
        if not self._rows or self._left and trainer.done % self.every and trainer.done < trainer.train.steps:
            return
        encoders, rows, self._rows = list(trainer.model.encoders), trainer.ranks.mean(self._rows), {}
        values = {f"{self.name}.norm.{row}.{encoder}": norm for row, of in norms(rows, encoders).items()
                  for encoder, norm in of.items()}
        trainer.write(values | {f"{self.name}.cosine.{encoder}.{one}.{other}": value
                                for encoder, found in cosines(rows, encoders).items() for one, other, value in found})

    def close(self, trainer):
        if self._watch is not None:
            self._watch.remove()
            self._watch = None
