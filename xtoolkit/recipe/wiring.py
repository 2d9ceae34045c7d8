"""Mistakes of the wiring: encoders with their inputs, what losses read, edges that are cut."""

from xtoolkit.graph import EncoderSpec, Graph, Need, Ref
from xtoolkit.recipe.config import unknown_keys
from xtoolkit.recipe.problems import Problems
from xtoolkit.registry import DATASET_REGISTRY, ENCODER_REGISTRY, LOSS_REGISTRY, nearest


class Wiring:
    """The graph of a configuration, as far as it makes sense; what does not is reported."""

    def __init__(self, found: Problems):
        self.found, self.data, self.where, self.say = found, found.data, found.where, found.say

    def graph(self) -> Graph:
        """The encoders with their inputs; mistakes are left out."""
        from xtoolkit.encoders.base import slots  # only here: it imports torch

        blocks, specs = self.data["encoders"], {}
        self._names()
        fields = self._fields()
        for name, block in blocks.items():
            cls = self._encoder_class(name, block)
            if cls is None:
                continue
            owner = block.get("shares", name)
            student = self._referred(cls, block, name)
            inputs = block.get("inputs")
            if inputs is None and student:
                inputs = blocks[student].get("inputs")
            shape = self._built(student) if student and not slots(cls) else cls  # a copy has the slots of what it copies
            known = slots(shape) if shape is not None else {}
            if not isinstance(inputs, dict):
                self.say(("encoders", name), f"encoder `{name}` needs `inputs: {{slot: source}}`; slots: "
                         f"{', '.join(known)}")
                continue
            good = self._inputs(name, shape, inputs, known, fields)
            pools = cls.POOLS or (shape.POOLS if shape is not None else None)
            optional = frozenset(slot for slot, required in known.items() if not required)
            specs[name] = EncoderSpec(name, good, owner, cls.TRAINABLE, optional, pools)
        self._cycles(specs)
        return Graph(specs, fields)

    def _fields(self) -> dict:
        """{name: class} of every field that a dataset may give; those of the recipe's own data count, and must agree."""
        fields = {f: kind for name in DATASET_REGISTRY.names() for f, kind in DATASET_REGISTRY.get(name).FIELDS.items()}
        used: dict = {}
        for kind, name in [(k, n) for k in ("streams", "evaluate") for n in self.data.get(k) or {}]:
            block = self.data[kind][name]
            data = block.get("data") if isinstance(block, dict) else None
            dataset = data.get("type") if isinstance(data, dict) else None
            if not isinstance(dataset, str) or dataset not in DATASET_REGISTRY:
                continue  # reported where data are checked
            for field, cls in DATASET_REGISTRY.get(dataset).FIELDS.items():
                if used.setdefault(field, cls) is not cls:
                    self.say((kind, name, "data", "type"), f"{dataset} gives ${field} as {cls.__name__}, other data of this "
                             f"recipe as {used[field].__name__}: a name means one class of fields")
        return used | {name: cls for name, cls in fields.items() if name not in used}

    def _encoder_class(self, name, block):
        """The class of an encoder's block, or of the one that it shares; None with the reason reported."""
        at, blocks = ("encoders", name), self.data["encoders"]
        if not isinstance(block, dict) or "shares" not in block:
            return self.found.block_class(ENCODER_REGISTRY, block, *at)
        owner, known = block["shares"], ("shares", "inputs")
        self.found.problems += unknown_keys(block, known, lambda k: self.where(*at, k), f"`{name}`, which shares an encoder")
        others = [n for n, b in blocks.items() if n != name and isinstance(b, dict) and "shares" not in b]
        if owner not in others:
            self.say(at + ("shares",), f"`shares` must name an encoder with a `type` of its own, not `{owner}`"
                     f"{nearest(owner, others)}")
            return None
        return self._built(owner)

    def _built(self, name):
        """The class that an encoder's block names, or None; nothing is reported."""
        block = self.data["encoders"].get(name)
        kind = block.get("type") if isinstance(block, dict) else None
        return ENCODER_REGISTRY.get(kind) if isinstance(kind, str) and kind in ENCODER_REGISTRY else None

    def _referred(self, cls, block, name) -> str | None:
        """The encoder that the first of a class's REFERS names, if it is there."""
        found = None
        for key in cls.REFERS:
            if isinstance(block.get(key), str) and block[key] not in self.data["encoders"]:
                self.say(("encoders", name, key), f"`{key}` names unknown encoder `{block[key]}`"
                         f"{nearest(block[key], self.data['encoders'])}")
            elif isinstance(other := self.data["encoders"].get(block.get(key)), dict) and "shares" in other:
                self.say(("encoders", name, key), f"`{key}` must name an encoder with a `type` of its own: `{block[key]}` shares "
                         f"`{other['shares']}`")
            elif found is None and isinstance(other, dict):
                found = block[key]
        return found

    def _inputs(self, name, cls, inputs, known, fields):
        """The inputs that make sense; wrong slots and sources are reported."""
        blocks, kind, good = self.data["encoders"], cls.__name__ if cls is not None else "an encoder", {}
        for slot, source in inputs.items():
            at = ("encoders", name, "inputs", slot)
            if slot not in known:
                self.say(at, f"unknown slot `{slot}` of {kind}{nearest(slot, known)}")
            if not isinstance(source, str):
                self.say(at, f"a source is an encoder's name or $field, not {source!r}")
            elif source.startswith("$") and source[1:] not in fields and not self.found.lacking:
                self.say(at, f"unknown field `{source}`{nearest(source[1:], fields)}")
            elif not source.startswith("$") and source not in blocks:
                self.say(at, f"unknown encoder `{source}`{nearest(source, blocks)}")
            if isinstance(source, str) and (source in blocks or source.startswith("$") and source[1:] in fields):
                good[slot] = source
        for slot in [s for s, required in known.items() if required and s not in inputs]:
            self.say(("encoders", name), f"encoder `{name}` ({kind}) lacks the input `{slot}`")
        return good

    def _names(self):
        """Names become attributes of the model and columns of the log, one list for both kinds."""
        from torch.nn import ModuleDict  # only here: reading a file needs no torch

        taken = set(dir(ModuleDict)) | {"loss", "norm", "lr", "step"}
        for kind in ("encoders", "losses"):
            for name in self.data[kind]:
                if not name.isidentifier() or name in taken:
                    self.say((kind, name), f"`{name}` cannot name a part of a model; take another word")
        for name in self.data["losses"]:
            if name in self.data["encoders"]:
                self.say(("losses", name), f"`{name}` names an encoder already; rates and logs could not tell them apart")

    def _cycles(self, specs):
        for name in list(specs):
            seen, todo = set(), [name]
            while todo:
                for source in specs[todo.pop()].inputs.values():
                    if source == name:
                        self.say(("encoders", name), f"encoder `{name}` reads itself, through its inputs")
                        specs[name].inputs.clear()
                        todo = []
                        break
                    if source in specs and source not in seen:
                        seen.add(source)
                        todo.append(source)

    # ---- losses ------------------------------------------------------------------------------------------------------------
    def needs(self, graph: Graph) -> dict[str, list[Need]]:
        """{loss: what it reads}."""
        needs = {}
        for name, block in self.data["losses"].items():
            cls = self.found.block_class(LOSS_REGISTRY, block, "losses", name)
            for key, view in cls.VIEWS.items() if cls is not None else ():
                marks = Ref.parse(block[key]).marks if isinstance(block.get(key), str) else {view}
                if view not in marks and marks <= graph.marks.keys():  # an unknown one is reported alone
                    self.say(("losses", name, key), f"`{key}` of {cls.__name__} must read a masked view: write "
                             f"`{block[key]}{'+' if '@' in block[key] else '@'}{view}`")
            if cls is not None and ("losses", name) not in self.found.bad:
                needs[name] = self.good(self.found.needs(cls, block, "losses", name), block, ("losses", name), graph)
        return needs

    def good(self, needs, block, at, graph) -> list[Need]:
        """Those of the needs of a loss or a task, declared at ``at``, that name something there is."""
        kept = []
        for need in needs:
            key = next((k for k, v in block.items() if v == need.ref), None)
            place = at + ((key,) if key else ())
            ref = Ref.parse(need.ref)
            unknown = sorted(ref.marks - graph.marks.keys())
            if need.ref.startswith("$"):
                if need.ref[1:] in graph.fields:
                    kept.append(need)
                elif not self.found.lacking:
                    self.say(place, f"`{at[-1]}` reads unknown field `{need.ref}`{nearest(need.ref[1:], graph.fields)}")
            elif ref.name not in self.data["encoders"]:
                self.say(place, f"`{at[-1]}` reads unknown encoder `{ref.name}`{nearest(ref.name, self.data['encoders'])}")
            elif unknown and self.found.lacking:
                continue
            elif unknown:
                self.say(place, f"unknown view `@{unknown[0]}`{nearest(unknown[0], graph.marks)}")
            elif ref.name in graph.encoders:
                heads = self._built(graph.encoders[ref.name].owner).HEADS
                if need.head and need.head not in heads:
                    self.say(place, f"`{at[-1]}` needs the head `{need.head}`, which encoder `{ref.name}` does not have")
                else:
                    kept.append(need)
        return kept

    def cuts(self, graph: Graph, needs: dict) -> dict:
        """{(source, encoder): losses} of `stop_gradient`."""
        cuts = {}
        for edge, losses in (self.data.get("stop_gradient") or {}).items():
            at = ("stop_gradient", edge)
            source, arrow, reader = (p.strip() for p in edge.partition("->"))
            if not arrow or not isinstance(losses, list):
                self.say(at, "write `source -> encoder: [losses]`")
                continue
            spec = graph.encoders.get(reader)
            edges = [f"{s} -> {e.name}" for e in graph.encoders.values() for s in e.inputs.values() if not s.startswith("$")]
            if strange := [n for n in (source, reader) if n not in self.data["encoders"] and not n.startswith("$")]:
                for n in strange:
                    self.say(at, f"no edge `{source} -> {reader}`: unknown encoder `{n}`{nearest(n, self.data['encoders'])}")
                continue
            if spec is None or source not in spec.inputs.values():
                if reader in self.data["encoders"] and spec is None:
                    continue  # the encoder's own mistake is reported
                self.say(at, f"no edge `{source} -> {reader}`{nearest(f'{source} -> {reader}', edges)}")
                continue
            for loss in losses:
                if loss not in self.data["losses"]:
                    self.say(at, f"unknown loss `{loss}`{nearest(loss, self.data['losses'])}")
                elif loss in needs and needs[loss] and not any(reader in graph.below([Ref.parse(n.ref).name])
                                                               for n in needs[loss]):
                    self.say(at, f"loss `{loss}` never passes `{edge}`: the cut would change nothing")
            cuts[(source, reader)] = frozenset(losses)
        return cuts


def misread(graph: Graph, ref: str, fields: frozenset) -> str | None:
    """Why a reference cannot be read on a stream with ``fields``; None: it can."""
    if missing := graph.lacking(ref if ref.startswith("$") else Ref.parse(ref).name, fields):
        return "which needs " + ", ".join(f"${f}" for f in sorted(missing))
    if ref.startswith("$"):
        return None
    parsed, pooled = Ref.parse(ref), graph.pooled(fields)
    read = graph.sources(ref)
    for mark in sorted(parsed.marks):
        owners = sorted(f for f in graph.marks[mark] & read if mark in graph.fields[f].MARKS)
        if owners and not fields.intersection(owners):
            return f"whose mark `@{mark}` needs " + " or ".join(f"${f}" for f in owners)
        for owner in fields.intersection(owners) & pooled.keys():
            return f"but `@{mark}` is not defined where ${pooled[owner]} are parts of ${owner}"
    for name in graph.below([parsed.name]):
        spec = graph.encoders[name]
        for source in spec.inputs.values():
            if source[1:] in pooled and source.startswith("$") and spec.pools != source[1:]:
                return (f"but encoder `{name}` reads {source} and nothing can be pooled from it (it has no POOLS): "
                        f"it cannot serve where ${pooled[source[1:]]} are parts of {source}")
    return None
