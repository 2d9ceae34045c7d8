"""Encoded, what an encoder says of a batch; and Features, which computes it on first use and keeps it for the step.

Shape letters: B rows, S source rows, I images, R regions, N patches, n tokens of a source, D width.
"""

import contextlib
import copy
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from xtoolkit.graph import Edge, Ref


class Source:
    """A tensor of tokens (S, n, D) that rows of one or more Encoded point into, with what layers have made of it.

    Cross-attention keeps its keys and values here, one entry a layer, so an image is projected once however many texts
    attend to it. The memo dies with the Source, that is, with the step.
    """

    def __init__(self, tokens: Tensor):
        self.tokens, self._memo = tokens, {}

    def memo(self, layer: nn.Module, make):
        """``make(tokens)``, computed once for this layer. A result without a graph never serves a pass with one."""
        key = (id(layer), torch.is_grad_enabled())
        if key not in self._memo:
            self._memo[key] = make(self.tokens)
        return self._memo[key]

    def detach(self) -> "Source":
        """This source behind a cut, always the same object, so that its keys and values are shared too."""
        return self.memo(_CUT, lambda tokens: Source(tokens.detach())) if self.tokens.requires_grad else self


_SPLIT, _CUT = nn.Identity(), nn.Identity()  # under which a source keeps its two halves, and itself behind a cut


@dataclass(frozen=True)
class Encoded:
    """Token features of B rows: the summary token first, then the others.

    ``parts`` are concatenated along the tokens. A part is (source, index): row b of the part is ``source.tokens[index[b]]``;
    index None is the identity. One part is the plain case; a region has two, its own summary and the patches of its picture.

    Attributes:
        parts: tuple of (Source, (B,) int64 or None).
        mask: (B, 1 + N) bool, True = attend.
        segments: {field: slice of the tokens} of an encoder that reads several, as ``{"text": slice(1, 1 + L), "image":
            slice(1 + L, None)}``: a token a text token, a token a patch, no summary. None: the encoder reads one field.
    """

    parts: tuple
    mask: Tensor
    segments: dict | None = None

    @classmethod
    def of(cls, tokens: Tensor, mask: Tensor | None = None, segments: dict | None = None) -> "Encoded":
        """From plain tokens (B, 1 + N, D) and a mask (all ones if None)."""
        if mask is None:
            mask = torch.ones(tokens.shape[:2], dtype=torch.bool, device=tokens.device)
        return cls(((Source(tokens), None),), mask, segments)

    @property
    def tokens(self) -> Tensor:
        """(B, 1 + N, D)."""
        rows = [s.tokens if i is None else s.tokens[i] for s, i in self.parts]
        return rows[0] if len(rows) == 1 else torch.cat(rows, 1)

    @property
    def pooled(self) -> Tensor:
        """(B, D), the summary: token 0."""
        source, index = self.parts[0]
        return source.tokens[:, 0] if index is None else source.tokens[:, 0][index]

    def segment(self, field: str, alone: slice = slice(None)) -> Tensor:
        """(B, n, D), the tokens of one field: those of ``segments``; without them the slice ``alone``.

        Raises:
            ValueError: an encoder of several fields, none of them this one.
        """
        own = alone if self.segments is None else self.segments.get(field)
        if own is None:
            raise ValueError(f"this feature has no tokens of ${field}: it has those of ${', $'.join(self.segments)}")
        return self.tokens[:, own]

    @property
    def width(self) -> int:
        return self.parts[0][0].tokens.shape[-1]

    def __len__(self) -> int:
        return self.mask.shape[0]

    def select(self, rows: Tensor) -> "Encoded":
        """The rows (K,) int64, repeats allowed, as an index: no token is copied and keys and values stay shared."""
        parts = tuple((s, rows if i is None else i[rows]) for s, i in self.parts)
        return Encoded(parts, self.mask[rows], self.segments)

    def to(self, device) -> "Encoded":
        """The same values on a device, without what layers have made of them."""
        return Encoded.of(self.tokens.to(device), self.mask.to(device), self.segments)

    def trim(self, length: int) -> "Encoded":
        """Without what stands behind the first ``length`` tokens. Sources are not shared on, nor are segments known."""
        return Encoded.of(self.tokens[:, :length].contiguous(), self.mask[:, :length].contiguous())

    def detach(self) -> "Encoded":
        """The same values with no gradient to what made them."""
        return replace(self, parts=tuple((s.detach(), i) for s, i in self.parts))

    def split(self) -> tuple[Source, Source]:
        """Summary (S, 1, D) and the other tokens (S, N, D) as sources of their own, made once a pass. Of plain tokens only."""
        (source, _), = self.parts
        return source.memo(_SPLIT, lambda t: (Source(t[:, :1]), Source(t[:, 1:])))

    def repeat(self, rows: Tensor) -> "Encoded":
        """The rows (R,) int64 with their own summaries; their tokens are one source with those of ``subset``."""
        summary, others = self.split()
        return Encoded(((summary, rows), (others, rows)), self.mask[rows])

    def subset(self, rows: Tensor, chosen: Tensor) -> "Encoded":
        """Of each of the rows (R,) int64 the tokens that are ``chosen`` (R, N) bool, at least one; their mean as summary."""
        others = self.split()[1]
        weight = chosen.to(others.tokens.dtype)
        weight = weight / weight.sum(1, keepdim=True)
        mean = torch.einsum("rn,rnd->rd", weight, others.tokens[rows])
        mask = torch.cat([torch.ones_like(chosen[:, :1]), chosen], 1)
        return Encoded(((Source(mean[:, None]), None), (others, rows)), mask)

    @classmethod
    def cat(cls, several: "list[Encoded]") -> "Encoded":
        """Rows of several, one after the other, their tokens trimmed or padded to the longest. Sources are not shared on."""
        longest = max(e.mask.shape[1] for e in several)
        pad = lambda t: nn.functional.pad(t, (0, 0) * (t.dim() - 2) + (0, longest - t.shape[1]))
        return cls.of(torch.cat([pad(e.tokens) for e in several]), torch.cat([pad(e.mask) for e in several]))


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
