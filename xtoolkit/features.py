"""Features, which computes what encoders say of a batch on first use and keeps it for the step.

Shape letters: D width, K rows of a guess.
"""

import contextlib
import copy

import torch
from torch import Tensor

from xtoolkit.encoded import Encoded, Source  # noqa: F401  what is read and returned here: parts import them from here
from xtoolkit.graph import Edge, Ref


class Features:
    """The features of one batch, computed on first use, kept until the step is over, read through the eyes of one loss.

    ``features.bound(loss)`` gives the view for a loss: its cuts apply, and reading what it did not declare raises.

    Args:
        graph: the wiring.
        encoders: the built modules, by the name of their owner.
        batch: the batch, on the device.
        needs: {reader: [Need]} of this stream.
        with_graph: base nodes that must build an autograd graph; None: all do (evaluation decides with ``torch.no_grad``).
        observer: called with a node, or with the (loss, reference) of a ``run``; returns a context manager around the pass.
        share: what ``mean`` multiplies by, a function of its ``count``; None: this batch is the whole step's.
        context: returns the context manager in which features are computed, whoever reads them; None: the reader's.
        known: what ``Loss.guess`` may know of other ranks and earlier batches (``engine.guessing.Known``); None: nothing.
    """

    def __init__(self, graph, encoders, batch, needs=None, with_graph=None, observer=None, share=None, context=None, known=None):
        self._graph, self._encoders, self.batch = graph, encoders, batch
        self._needs, self._observer, self._share = needs, observer or contextlib.nullcontext, share
        self._with_graph = with_graph if torch.is_grad_enabled() else None
        self._fields, self._context = frozenset(batch.fields), context or contextlib.nullcontext
        self._memo, self.logged = {}, {}
        self._reader, self._known = None, known

    def bound(self, reader: str | None) -> "Features":
        """The same features as ``reader`` sees them. The memo and the log are shared."""
        view = copy.copy(self)
        view._reader = reader
        return view

    # ---- what losses call -------------------------------------------------------------------------------------------------
    def __getitem__(self, ref: str):
        """The feature (Encoded, or whatever the encoder returns), or the batch's field for ``$field``."""
        grad = self._declared(f"`{ref}`", lambda n: n.ref == ref and not n.runs)
        if ref.startswith("$"):
            return self.batch[ref[1:]]
        value = self._evaluate(self._graph.node(ref, self._reader, self._fields))
        return value if grad else value.detach()

    def inputs(self, ref: str) -> dict:
        """{slot: feature} that an encoder would read of the batch, before any cut: rows to select from for ``run``."""
        self._declared(f"runs of `{ref}`", lambda n: n.ref == ref and n.runs)
        node = self._graph.node(ref, self._reader, self._fields)
        return {slot: self._input(source, cut=False) for slot, source in node.inputs}

    def run(self, ref: str, **slots):
        """A pass through an encoder on rows that the loss chose (ITM's negatives); this loss's cuts apply to its slots."""
        grad = self._declared(f"runs of `{ref}`", lambda n: n.ref == ref and n.runs)
        owner, cut, view = self._graph.run(ref, self._reader)
        slots = {slot: value.detach() if slot in cut else value for slot, value in slots.items()}
        with self._context(), self._observer((self._reader, ref)), _grad(None if grad else False):
            return self._encoders[owner](view=view, **slots)

    def head(self, encoder: str, name: str = "lm_logits"):
        """An output layer that ``encoder`` owns, as a callable."""
        self._declared(f"head `{name}` of `{encoder}`", lambda n: Ref.parse(n.ref).name == encoder and n.head == name)
        return getattr(self._encoders[self._graph.encoders[encoder].owner], name)

    def mean(self, value: Tensor, count) -> Tensor:
        """A mean over ``count(batch)`` things as its share of the mean over all ranks and parts of the step.

        Gradients are averaged over ranks and parts, which is the mean over the whole step only where each has as many masked
        tokens, boxes or rows. With this the two are equal always. Where the batch is the whole step's it is ``value`` itself.
        Counts are summed over ranks: a loss calls it always, on every rank and part, in the same order.

        Args:
            value: 0-d, a mean over ``count(batch)`` things of this batch; 0 where there is none.
            count: called with a Batch on the host; how many things of it the mean is over, a number or 0-d tensor.
        """
        return value if self._share is None else value * self._share(count)

    def log(self, name: str, tensor: Tensor) -> None:
        """Logged beside the losses, never summed."""
        self.logged[f"{self._reader}.{name}"] = tensor.detach()

    # ---- what their guesses call, on every rank and part, in the same order ---------------------------------------------
    def global_mean(self, values: Tensor, weight: Tensor) -> Tensor:
        """(D,) float32 or better: the mean of rows (K, D), weighed by (K,), over all ranks; 0 where none has weight."""
        dtype = torch.promote_types(values.dtype, torch.float32)
        weight = weight.to(dtype)
        sums = torch.cat([(values * weight[:, None]).sum(0), weight.sum()[None]])
        sums = sums if self._known is None else self._known.total(sums)
        return sums[:-1] / sums[-1].clamp(min=torch.finfo(dtype).tiny)

    def frequencies(self, seen: Tensor, classes: int, weight: Tensor | None = None) -> Tensor:
        """(classes,) float64, the share of each class in what this loss has shown so far of this stream, smoothed; never 0.

        That is ``seen`` of the guesses before, over all ranks and since the first step of the run; this batch's counts from
        the next step on. At first all classes are as frequent. A class seen c times of n has the share (c - d + d S / C) / n,
        one of the others d S / (C n), with S of all C classes seen and d = 0.75. A guess calls it once.

        Args:
            seen: (K,) int64, classes.
            weight: (K,) integers or bool, how often each counts; None: once.

        Source: absolute discounting, Ney, Essen and Kneser 1994.
        """
        counts = torch.zeros(classes, dtype=torch.int64, device=seen.device)
        if self._known is not None:
            weight = torch.ones_like(seen) if weight is None else weight.long()
            counts = self._known.counts(self._reader, counts, counts.index_add(0, seen, weight))
        counts, discount = counts.double(), 0.75
        spread = torch.where(counts.sum() > 0, discount * (counts > 0).sum(), 1) / classes
        return ((counts - discount).clamp(min=0) + spread) / counts.sum().clamp(min=1)

    # ---- how it is computed -----------------------------------------------------------------------------------------------
    def _declared(self, what, allows):
        """Whether a gradient is wanted of something that this loss has declared, or that nobody has to declare (free reading)."""
        declared = [need.grad for need in (self._needs or {}).get(self._reader, ()) if allows(need)]
        if declared or self._needs is None:
            return any(declared) or not declared
        raise KeyError(f"loss `{self._reader}` reads {what} but does not declare it: add it to what its needs() returns")

    def _input(self, source, cut):
        if isinstance(source, Edge):
            value = self._evaluate(source.node)
            return value.detach() if cut else value
        return self.batch[source.name].read(source.marks)

    def _evaluate(self, node):
        if node not in self._memo:
            with self._context():
                self._memo[node] = self._pool(node) if node.pool else self._pass(node)
        return self._memo[node]

    def _pass(self, node):
        graph = None if self._with_graph is None else node in self._with_graph
        # Without a graph, inputs are cut too: a view made under no_grad still says that it requires a gradient.
        inputs = {slot: self._input(s, getattr(s, "cut", False) or graph is False) for slot, s in node.inputs}
        with self._observer(node), _grad(graph):
            return self._encoders[node.encoder](view=node.view, **inputs)

    def _pool(self, node):
        full, (field, whole) = self._evaluate(node.base), node.pool
        with _grad(None if self._with_graph is None else node.base in self._with_graph):
            return self.batch[field].pool(full, whole)


def full_precision(tensor: Tensor):
    """A context without autocast on the tensor's device: for what must be computed in float32."""
    if tensor.device.type == "meta":  # the plan's shapes; autocast knows no such device
        return contextlib.nullcontext()
    return torch.autocast(tensor.device.type, enabled=False)


@contextlib.contextmanager
def _grad(wanted: bool | None):
    """Builds a graph or none, whatever the caller's mode: what is computed is kept for other losses. None: as the caller has it.

    Autocast keeps the low-precision copy of a weight for the whole step. A copy made without a graph would be served to a
    later pass with one, whose weights would then silently get no gradient: without a graph its cache is left alone.
    """
    cached = torch.is_autocast_cache_enabled()
    with torch.set_grad_enabled(torch.is_grad_enabled() if wanted is None else wanted):
        torch.set_autocast_cache_enabled(cached and wanted is not False)
        try:
            yield
        finally:
            torch.set_autocast_cache_enabled(cached)
