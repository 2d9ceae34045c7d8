"""The wiring of a model as data: references, views, cuts, and which passes a stream needs. Pure Python, no torch.

A feature reference is ``encoder`` or ``encoder@mark+mark``: a view is a set of marks, and which there are is declared by the
fields of batches. For a loss on a stream a reference resolves to a Node: the encoder, what it reads of each field of the
stream, which of its inputs are cut. Equal nodes are one pass through the encoder, whoever reads them, so ``vision@mask_text``
*is* ``vision``: a mark that no field under an encoder knows changes nothing for it.
"""

from dataclasses import dataclass, field
from functools import cached_property, lru_cache

from xtoolkit.registry import nearest


@dataclass(frozen=True)
class Need:
    """One thing that a loss or a task reads.

    Attributes:
        ref: ``encoder``, ``encoder@mark+mark`` or ``$field``.
        grad: False: read detached.
        runs: 0: read the feature. Above 0: the loss calls ``Features.run`` on it with ``runs`` times the batch's rows.
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
    marks: frozenset = frozenset()

    @classmethod
    def parse(cls, text: "str | Ref") -> "Ref":
        """``name`` or ``name@mark+mark``."""
        if isinstance(text, Ref):
            return text
        name, at, marks = text.partition("@")
        return cls(name, frozenset(marks.split("+")) if at else frozenset())


@dataclass(frozen=True)
class Leaf:
    """A field of the batch as an encoder reads it, under those of its marks that are asked for."""

    name: str
    marks: tuple = ()


@dataclass(frozen=True)
class Node:
    """One pass: a module and exactly what it reads.

    Attributes:
        encoder: the encoder that owns the module.
        inputs: (slot, Leaf or Edge) in the order of the block; optional slots that the stream cannot fill are absent.
        pool: None, or (the field that pools, whole): rows of that field, made of what the encoder gave for all.
        wiring: the name under which it was read, where the owner is wired more than once; no part of what it is.
        marks: those that change it, in the graph's order; told by the inputs, and so no part of what it is.
    """

    encoder: str
    inputs: tuple
    pool: tuple | None = None
    wiring: str = field(default="", compare=False)
    marks: tuple = field(default=(), compare=False)

    @cached_property
    def base(self) -> "Node":
        """The encoder's own pass, before rows are pooled from it."""
        own = self.marks[:-1] if self.pool and self.pool[1] else self.marks  # without the mark of a pass that is whole
        return Node(self.encoder, self.inputs, None, self.wiring, own) if self.pool else self

    @property
    def view(self) -> str | None:
        """What sets this pass apart from the plain one, for the encoder's ``view`` argument and for the plan."""
        return "+".join(self.marks) or None

    @property
    def label(self) -> str:
        """``encoder`` or ``encoder@view``, as the plan prints it."""
        return (self.wiring or self.encoder) + (f"@{self.view}" if self.view else "")

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
    """What the graph knows of an encoder.

    Attributes:
        name: of this wiring.
        inputs: {slot: source}, an encoder's name or ``$field``.
        owner: the encoder whose module it is: itself, or the one that it ``shares``.
        trainable: whether any gradient can reach through.
        optional: slots that may stay empty.
        pools: the field whose parts may be pooled from what it gives; None: none.
    """

    name: str
    inputs: dict
    owner: str = ""
    trainable: bool = True
    optional: frozenset = frozenset()
    pools: str | None = None

    def __post_init__(self):
        object.__setattr__(self, "owner", self.owner or self.name)


@dataclass
class Pass:
    """One pass of a stream's plan.

    Attributes:
        node: what runs.
        readers: losses that it serves, in order.
        graph: whether it builds an autograd graph.
        runs: 1 for a feature; for a data-dependent pass (``Features.run``) the rows in multiples of the batch.
        run: (loss, reference) of a pass through ``Features.run``; None for a feature.
    """

    node: Node
    readers: list = field(default_factory=list)
    graph: bool = False
    runs: float = 1
    run: tuple | None = None

    @property
    def cuts(self) -> list[str]:
        """``source -> encoder`` of the inputs that are cut in this pass."""
        return [f"{s.node.wiring} -> {self.node.wiring}" for _, s in self.node.inputs if isinstance(s, Edge) and s.cut]


class Graph:
    """The encoders of a recipe, wired, with its stop-gradient edges.

    Args:
        encoders: by name.
        fields: {name: class with MARKS, POOLS and WHOLE}: every field that a batch may have.
        cuts: {(source, reader): losses}: the edge is cut for those losses.
    """

    def __init__(self, encoders: dict[str, EncoderSpec], fields: dict, cuts: dict[tuple[str, str], frozenset] | None = None):
        self.encoders, self.fields, self.cuts = encoders, fields, cuts or {}
        self.node, self.run = lru_cache(maxsize=None)(self._node), lru_cache(maxsize=None)(self._run)

    # ---- names ------------------------------------------------------------------------------------------------------
    @property
    def marks(self) -> dict[str, set[str]]:
        """{mark: fields that declare it}; those of pooling, which belong to the field that pools, come last."""
        found: dict[str, set] = {}
        for name, cls in self.fields.items():
            for mark in cls.MARKS:
                found.setdefault(mark, set()).add(name)
        for name, cls in self.fields.items():
            if cls.WHOLE is not None:
                found.setdefault(cls.WHOLE, set()).add(name)
        return found

    def told(self, ref: Ref, fields) -> tuple:
        """The marks of a reference that change something where these fields are there, in the graph's order."""
        read, pools = self.sources(ref.name), {self.encoders[name].pools for name in self.below([ref.name])}
        knows = lambda mark, f: f in fields and (f in read and mark in self.fields[f].MARKS
                                                 or mark == self.fields[f].WHOLE and self.fields[f].POOLS in pools & set(fields))
        return tuple(mark for mark, owners in self.marks.items() if mark in ref.marks and any(knows(mark, f) for f in owners))

    def below(self, names) -> list[str]:
        """The encoders that ``names`` are computed from, themselves included, inputs first."""
        order: list[str] = []

        def visit(name):
            if name in order or name not in self.encoders:
                return
            for source in self.encoders[name].inputs.values():
                visit(source)
            order.append(name)

        for name in names:
            visit(name)
        return order

    def sources(self, ref: str) -> set[str]:
        """The fields that a reference may read, through all its encoders."""
        if ref.startswith("$"):
            return {ref[1:]}
        return {s[1:] for n in self.below([Ref.parse(ref).name]) for s in self.encoders[n].inputs.values() if s.startswith("$")}

    # ---- what a stream can fill -------------------------------------------------------------------------------------
    def lacking(self, source: str, fields: frozenset) -> set[str]:
        """The fields that a stream with ``fields`` lacks for a source (``$field`` or an encoder); empty: it can be computed."""
        if source.startswith("$"):
            return {source[1:]} - fields
        if source not in self.encoders:  # one with a mistake of its own, which is reported
            return set()
        spec = self.encoders[source]
        missing = {slot: self.lacking(s, fields) for slot, s in spec.inputs.items()}
        required = set().union(*(m for slot, m in missing.items() if slot not in spec.optional))
        return required if required or not all(missing.values()) else set().union(*missing.values())

    def pooled(self, fields: frozenset) -> dict[str, str]:
        """{field: the field that describes parts of it} on a stream.

        Raises:
            ValueError: two fields describe parts of one.
        """
        found: dict[str, str] = {}
        for f in sorted(f for f in fields if f in self.fields and self.fields[f].POOLS in fields):
            if (other := found.setdefault(self.fields[f].POOLS, f)) != f:
                raise ValueError(f"${other} and ${f} both describe parts of ${self.fields[f].POOLS}; a stream has one of them")
        return found

    # ---- passes -----------------------------------------------------------------------------------------------------
    def _node(self, ref: str | Ref, reader: str | None, fields: frozenset) -> Node:
        """The pass that ``ref`` means to ``reader`` (a loss, or None: nothing is cut) on a stream with ``fields``.

        Raises:
            KeyError: no such encoder or mark, or the stream lacks a field that it cannot do without.
        """
        ref = Ref.parse(ref)
        if ref.name not in self.encoders:
            raise KeyError(f"unknown encoder `{ref.name}`{nearest(ref.name, self.encoders)}")
        if unknown := sorted(ref.marks - self.marks.keys()):
            raise KeyError(f"unknown view `@{unknown[0]}`{nearest(unknown[0], self.marks)}")
        spec, inputs, pool, pooled = self.encoders[ref.name], [], None, self.pooled(fields)
        for slot, source in spec.inputs.items():
            if missing := self.lacking(source, fields):
                if slot in spec.optional:
                    continue
                raise KeyError(f"encoder `{ref.name}` reads " + ", ".join(f"${f}" for f in sorted(missing))
                               + ", which this batch does not have")
            if source.startswith("$"):
                name = source[1:]
                inputs.append((slot, Leaf(name, tuple(m for m in self.fields[name].MARKS if m in ref.marks))))
                if name in pooled and spec.pools == name:
                    pool = (pooled[name], self.fields[pooled[name]].WHOLE in ref.marks)
            else:
                child = self.node(Ref(source, ref.marks), reader, fields)
                inputs.append((slot, Edge(child, self.is_cut(source, ref.name, reader) and self.carries(child))))
        return Node(spec.owner, tuple(inputs), pool, ref.name, self.told(ref, fields))

    def is_cut(self, source: str, encoder: str, reader: str | None) -> bool:
        """Whether the edge from a source is cut for a loss."""
        return reader in self.cuts.get((source, encoder), ())

    def _run(self, ref: str, reader: str | None) -> tuple[str, frozenset, str | None]:
        """For a pass on rows that ``reader`` chose: the module's owner, the slots that are cut, the view. Reads no field."""
        parsed = Ref.parse(ref)
        spec = self.encoders[parsed.name]
        cut = frozenset(slot for slot, source in spec.inputs.items() if self.is_cut(source, parsed.name, reader))
        return spec.owner, cut, "+".join(self.told(parsed, self.fields)) or None

    def carries(self, node: Node) -> bool:
        """Whether a gradient that enters ``node`` reaches any parameter."""
        return self.encoders[node.encoder].trainable

    def passes(self, losses: dict[str, list[Need]], fields: frozenset) -> list[Pass]:
        """The passes of one stream, inputs first, each with the losses it serves and whether it needs a graph."""
        found: dict = {}
        seen: set = set()

        def visit(node, loss, grad, need=None):
            if (node, loss, grad, need) in seen:
                return
            seen.add((node, loss, grad, need))
            run = (loss, need.ref) if need else None
            entry = found.setdefault((node.base, run), Pass(node.base, runs=need.runs if need else 1, run=run))
            if loss not in entry.readers:
                entry.readers.append(loss)
            entry.graph |= grad and self.carries(node)
            for _, source in node.inputs:
                if isinstance(source, Edge):
                    visit(source.node, loss, grad and not source.cut and self.carries(node))

        for loss, needs in losses.items():
            for need in needs:
                if not need.ref.startswith("$"):
                    visit(self.node(need.ref, loss, fields), loss, need.grad, need if need.runs else None)
        order = self.below(self.encoders)
        return sorted(found.values(), key=lambda p: (order.index(p.node.wiring), p.run is not None))
