"""Encoded, what an encoder says of a batch; and Features, which computes it on first use and keeps it for the step.

Shape letters: B rows, S source rows, I images, R regions, N patches, n tokens of a source, D width.
"""

import contextlib
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn


class Source:
    """A tensor of tokens (S, n, D) that rows of one or more Encoded point into, with what layers have made of it.

    Cross-attention keeps its keys and values here, one entry a layer, so an image is projected once however many texts
    attend to it. The memo dies with the Source, that is, with the step.
    """

    def __init__(self, tokens: Tensor):
        self.tokens = tokens
        self._memo, self._detached = {}, None

    def memo(self, layer: nn.Module, make):
        """``make(tokens)``, computed once for this layer. A result without a graph never serves a pass with one."""
        key = (id(layer), torch.is_grad_enabled())
        if key not in self._memo:
            self._memo[key] = make(self.tokens)
        return self._memo[key]

    def detach(self) -> "Source":
        """This source behind a cut, always the same object, so that its keys and values are shared too."""
        if not self.tokens.requires_grad:
            return self
        if self._detached is None:
            self._detached = Source(self.tokens.detach())
        return self._detached


_SPLIT = nn.Identity()  # under which a source keeps its two halves


@dataclass(frozen=True)
class Encoded:
    """Token features of B rows: the summary token first, then the others.

    ``parts`` are concatenated along the tokens. A part is (source, index): row b of the part is ``source.tokens[index[b]]``;
    index None is the identity. One part is the plain case; a region has two, its own summary and the patches of its picture.

    Attributes:
        parts: tuple of (Source, (B,) int64 or None).
        mask: (B, 1 + N) bool, True = attend.
    """

    parts: tuple
    mask: Tensor

    @classmethod
    def of(cls, tokens: Tensor, mask: Tensor | None = None) -> "Encoded":
        """From plain tokens (B, 1 + N, D) and a mask (all ones if None)."""
        if mask is None:
            mask = torch.ones(tokens.shape[:2], dtype=torch.bool, device=tokens.device)
        return cls(((Source(tokens), None),), mask)

    @property
    def tokens(self) -> Tensor:
        """(B, 1 + N, D)."""
        rows = [s.tokens if i is None else s.tokens[i] for s, i in self.parts]
        return rows[0] if len(rows) == 1 else torch.cat(rows, 1)

    @property
    def pooled(self) -> Tensor:
        """(B, D), the summary: token 0."""
        source, index = self.parts[0]
        summary = source.tokens[:, 0]
        return summary if index is None else summary[index]

    @property
    def width(self) -> int:
        return self.parts[0][0].tokens.shape[-1]

    def __len__(self) -> int:
        return self.mask.shape[0]

    def select(self, rows: Tensor) -> "Encoded":
        """The rows (K,) int64, repeats allowed, as an index: no token is copied and keys and values stay shared."""
        parts = tuple((s, rows if i is None else i[rows]) for s, i in self.parts)
        return Encoded(parts, self.mask[rows])

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
        """Of each of the rows (R,) int64 the tokens that are ``chosen`` (R, N) bool, at least one a row; the summary is their mean."""
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
        encoders: the built modules, by name.
        batch: the batch, on the device.
        needs: {reader: [Need]} of this stream.
        with_graph: base nodes that must build an autograd graph; None: all do (evaluation decides with ``torch.no_grad``).
        observer: called as ``observer(label, node, run)`` and returns a context manager around each pass; for the plan.
    """

    def __init__(self, graph, encoders, batch, needs=None, with_graph=None, observer=None):
        self._graph, self._encoders, self.batch = graph, encoders, batch
        self._needs, self._with_graph, self._observer = needs, with_graph, observer
        self._memo, self.logged = {}, {}
        self._reader = None

    def bound(self, reader: str | None) -> "Features":
        """The same features as ``reader`` sees them. The memo and the log are shared."""
        view = object.__new__(Features)
        view.__dict__.update(self.__dict__)
        view._reader = reader
        return view

    # ---- what losses call -------------------------------------------------------------------------------------------------
    def __getitem__(self, ref: str):
        """The feature (Encoded, or whatever the encoder returns), or the batch's field for ``$field``."""
        need = self._declared(ref, run=False)
        if ref.startswith("$"):
            return self._field(ref[1:])
        value = self._evaluate(self._node(ref))
        return value if need is None or need.grad else value.detach()

    def inputs(self, encoder: str) -> dict:
        """{slot: feature} that ``encoder`` would read of the plain batch, before any cut: rows to select from for ``run``."""
        self._declared(encoder, run=True)
        return {slot: self._input(source, cut=False) for slot, source in self._node(encoder).inputs}

    def run(self, encoder: str, **slots):
        """A pass through ``encoder`` on rows that the loss chose (ITM's negatives); this loss's cuts apply to its slots."""
        need = self._declared(encoder, run=True)
        node = self._node(encoder)
        cut = {slot: s.cut for slot, s in node.inputs if hasattr(s, "cut")}
        slots = {slot: v.detach() if cut.get(slot) else v for slot, v in slots.items()}
        with self._watch(node, run=need), _grad(need is None or need.grad):
            return self._encoders[encoder](view=node.view, **slots)

    def head(self, encoder: str, name: str = "lm_logits"):
        """An output layer that ``encoder`` owns, as a callable."""
        self._declared(encoder, head=name)
        return getattr(self._encoders[encoder], name)

    def log(self, name: str, tensor: Tensor) -> None:
        """Logged beside the losses, never summed."""
        self.logged[f"{self._reader}.{name}"] = tensor.detach()

    # ---- how it is computed -----------------------------------------------------------------------------------------------
    def _node(self, ref):
        return self._graph.node(ref, self._reader, self.batch.region is not None)

    def _field(self, name):
        if name not in self.batch:
            raise KeyError(f"`{self._reader}` reads ${name}, which this batch does not have")
        return self.batch[name]

    def _declared(self, ref, run=None, head=None):
        """The Need that allows this access; None where nothing is declared for anyone (free reading)."""
        if self._needs is None:
            return None
        for need in self._needs.get(self._reader, ()):
            name = need.ref.partition("@")[0]
            if head is not None and name == ref and need.head == head:
                return need
            if head is None and (need.ref == ref and not need.runs if not run else name == ref and need.runs):
                return need
        what = f"head `{head}` of `{ref}`" if head else f"runs of `{ref}`" if run else f"`{ref}`"
        raise KeyError(f"loss `{self._reader}` reads {what} but does not declare it: add it to what its needs() returns")

    def _input(self, source, cut):
        if hasattr(source, "node"):
            value = self._evaluate(source.node)
            return value.detach() if cut else value
        value = self._field(source.name)
        if source.name == "text":
            return value.masked() if source.masked else value
        if source.name == "image":
            return value.masked() if source.masked else value.clean()
        return value

    def _evaluate(self, node):
        if node not in self._memo:
            self._memo[node] = self._pool(node) if node.pool else self._pass(node)
        return self._memo[node]

    def _pass(self, node):
        graph = self._with_graph is None or node in self._with_graph
        # Without a graph, inputs are cut too: a view made under no_grad still says that it requires a gradient.
        inputs = {slot: self._input(s, getattr(s, "cut", False) or not graph) for slot, s in node.inputs}
        with self._watch(node), _grad(graph):
            return self._encoders[node.encoder](view=node.view, **inputs)

    def _pool(self, node):
        full, region = self._evaluate(node.base), self.batch.region
        with _grad(self._with_graph is None or node.base in self._with_graph):
            return region.pool(full, node.pool == "whole")

    def _watch(self, node, run=None):
        return self._observer(node, run) if self._observer else contextlib.nullcontext()


def full_precision(tensor: Tensor):
    """A context without autocast on the tensor's device: for what must be computed in float32."""
    if tensor.device.type == "meta":  # the plan's shapes; autocast knows no such device
        return contextlib.nullcontext()
    return torch.autocast(tensor.device.type, enabled=False)


@contextlib.contextmanager
def _grad(wanted: bool):
    """With ``wanted`` False: no graph, and autocast's weight cache left alone.

    Autocast keeps the low-precision copy of a weight for the whole step. A copy made without a graph would be served to a
    later pass with one, whose weights would then silently get no gradient.
    """
    if wanted or not torch.is_grad_enabled():
        yield
        return
    with contextlib.ExitStack() as stack:
        stack.enter_context(torch.no_grad())
        for kind in ("cpu", "cuda"):
            if torch.is_autocast_enabled(kind):
                stack.enter_context(torch.autocast(kind, torch.get_autocast_dtype(kind), cache_enabled=False))
        yield
