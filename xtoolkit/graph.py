"""The wiring of a model as data: references, views, cuts, and which passes a stream needs. Pure Python, no torch.

A feature reference is ``encoder`` or ``encoder@view``. For a loss on a stream it resolves to a Node: the encoder, which
variant of each batch field it reads, which of its inputs are cut. Equal nodes are one pass through the encoder, whoever reads
them, so ``vision@mask_text`` *is* ``vision`` (a masked text changes nothing for an encoder that never sees text).
"""

from dataclasses import dataclass, field
from functools import cached_property, lru_cache

VIEWS = ("mask_text", "mask_image", "whole")
MASKED_FIELD = {"text": "mask_text", "image": "mask_image"}


@dataclass(frozen=True)
class Need:
    """One thing that a loss or a task reads.

    Attributes:
        ref: ``encoder``, ``encoder@view`` or ``$field``.
        grad: False: read detached.
        runs: 0: read the feature. Above 0: the loss calls ``Features.run`` on this encoder with ``runs`` times the batch's rows.
        head: name of an output layer that the encoder owns and builds on demand (``lm_logits``).
    """

    ref: str
    grad: bool = True
    runs: float = 0
    head: str | None = None


@dataclass(frozen=True)
class Ref:
    """A parsed reference."""

    name: str
    view: str | None = None

    @classmethod
    def parse(cls, text: str) -> "Ref":
        """``name`` or ``name@view``."""
        name, _, view = text.partition("@")
        return cls(name, view or None)


@dataclass(frozen=True)
class Leaf:
    """A batch field as an encoder reads it: ``$text`` or ``$image``, masked or clean."""

    name: str
    masked: bool = False


@dataclass(frozen=True)
class Node:
    """One pass: an encoder and exactly what it reads. ``pool`` is what a region stream makes of a full-image pass.

    Attributes:
        inputs: (slot, Leaf or Edge) in the order of the block.
        pool: None, ``region`` (box patches, their mean as summary) or ``whole`` (the full picture, a row a region).
    """

    encoder: str
    inputs: tuple
    pool: str | None = None

    @cached_property
    def base(self) -> "Node":
        """The encoder's own pass, before regions are pooled from it."""
        return Node(self.encoder, self.inputs) if self.pool else self

    @cached_property
    def view(self) -> str | None:
        """What sets this pass apart from the plain one, for the encoder's ``view`` argument and for the plan."""
        found = {"whole"} if self.pool == "whole" else set()
        for _, source in self.inputs:
            if isinstance(source, Edge):
                found |= set((source.node.view or "").split("+")) - {""}
            elif source.masked:
                found.add(MASKED_FIELD[source.name])
        return "+".join(v for v in VIEWS if v in found) or None

    @property
    def label(self) -> str:
        """``encoder`` or ``encoder@view``, as the plan prints it."""
        return self.encoder + (f"@{self.view}" if self.view else "")

    def __hash__(self):
        return self._hash

    @cached_property
    def _hash(self):
        return hash((self.encoder, self.inputs, self.pool))


@dataclass(frozen=True)
class Edge:
    """An input that is another pass; ``cut`` where the reader's gradient stops here."""

    node: Node
    cut: bool = False


@dataclass(frozen=True)
class EncoderSpec:
    """What the graph knows of an encoder: its wiring, and whether any gradient can reach through it."""

    name: str
    inputs: dict
    trainable: bool = True


@dataclass
class Pass:
    """One pass of a stream's plan.

    Attributes:
        node: what runs.
        readers: losses that it serves, in order.
        graph: whether it builds an autograd graph.
        runs: 1 for a feature; for a data-dependent pass (``Features.run``) the rows in multiples of the batch.
        by_run: the loss that runs it through ``Features.run``, or None for a feature.
    """

    node: Node
    readers: list = field(default_factory=list)
    graph: bool = False
    runs: float = 1
    by_run: str | None = None

    @property
    def cuts(self) -> list[str]:
        """``source -> encoder`` of the inputs that are cut in this pass."""
        return [f"{s.node.encoder} -> {self.node.encoder}" for _, s in self.node.inputs
                if isinstance(s, Edge) and s.cut]


class Graph:
    """The encoders of a recipe, wired, with its stop-gradient edges.

    Args:
        encoders: by name.
        cuts: {(source, reader): losses}: the edge is cut for those losses.
    """

    def __init__(self, encoders: dict[str, EncoderSpec], cuts: dict[tuple[str, str], frozenset] | None = None):
        self.encoders = encoders
        self.cuts = cuts or {}
        self.node = lru_cache(maxsize=None)(self._node)

    def _node(self, ref: str, reader: str | None, regions: bool) -> Node:
        """The pass that ``ref`` means to ``reader`` (a loss, or None: nothing is cut) on a stream with or without regions."""
        parsed = Ref.parse(ref)
        spec, inputs, reads_image = self.encoders[parsed.name], [], False
        for slot, source in spec.inputs.items():
            if source.startswith("$"):
                name = source[1:]
                reads_image |= name == "image"
                inputs.append((slot, Leaf(name, MASKED_FIELD.get(name) == parsed.view)))
            else:
                child = self.node(source + (f"@{parsed.view}" if parsed.view else ""), reader, regions)
                cut = reader in self.cuts.get((source, parsed.name), ()) and self.carries(child)
                inputs.append((slot, Edge(child, cut)))
        pool = ("whole" if parsed.view == "whole" else "region") if regions and reads_image else None
        return Node(parsed.name, tuple(inputs), pool)

    def carries(self, node: Node) -> bool:
        """Whether a gradient that enters ``node`` reaches any parameter."""
        return self.encoders[node.encoder].trainable

    def below(self, names) -> list[str]:
        """The encoders that ``names`` are computed from, themselves included, inputs first."""
        order = []

        def visit(name):
            if name in order or name not in self.encoders:
                return
            for source in self.encoders[name].inputs.values():
                visit(source)
            order.append(name)

        for name in names:
            visit(name)
        return order

    def fields(self, ref: str) -> set[str]:
        """The batch fields that a reference reads, through all its encoders."""
        if ref.startswith("$"):
            return {ref[1:]}
        return {s[1:] for n in self.below([Ref.parse(ref).name]) for s in self.encoders[n].inputs.values()
                if s.startswith("$")}

    def passes(self, losses: dict[str, list[Need]], regions: bool) -> list[Pass]:
        """The passes of one stream, inputs first, each with the losses it serves and whether it needs a graph."""
        found: dict = {}
        seen: set = set()

        def visit(node, loss, grad, run=None):
            if (node, loss, grad, run) in seen:
                return
            seen.add((node, loss, grad, run))
            key = (node.base, loss, run.ref) if run else node.base
            entry = found.setdefault(key, Pass(node.base, runs=run.runs if run else 1, by_run=loss if run else None))
            if loss not in entry.readers:
                entry.readers.append(loss)
            entry.graph |= grad and self.carries(node)
            for _, source in node.inputs:
                if isinstance(source, Edge):
                    visit(source.node, loss, grad and not source.cut)

        for loss, needs in losses.items():
            for need in needs:
                if not need.ref.startswith("$"):
                    visit(self.node(need.ref, loss, regions), loss, need.grad, need if need.runs else None)
        order = self.below(self.encoders)
        return sorted(found.values(), key=lambda p: (order.index(p.node.encoder), p.by_run is not None))
