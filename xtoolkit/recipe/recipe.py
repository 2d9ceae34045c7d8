"""A checked configuration, as the model and the engine read it."""

from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

from xtoolkit.recipe.config import Config
from xtoolkit.recipe.plugins import Plugin
from xtoolkit.recipe.settings import Init, Optim, ScheduleBlock, Train
from xtoolkit.graph import Graph, Need, Ref
from xtoolkit.registry import DATASET_REGISTRY, ENCODER_REGISTRY, LOSS_REGISTRY, ConfigError

Purpose = Literal["train", "resume", "evaluate", "build"]


@dataclass(frozen=True)
class Stream:
    """One stream of a recipe. ``losses`` holds the active ones, {name: weight}; a weight of 0 means not computed."""

    name: str
    batch_size: int
    losses: dict
    data: dict
    fields: frozenset


@dataclass
class Recipe:
    """A checked configuration. Without streams it trains nothing: its evaluations are of the weights that ``init`` names.

    Attributes:
        source: the resolved configuration with its places.
        graph: the wiring.
        needs: {loss: what it reads}, active losses only.
        task_needs: {evaluation: what it reads}.
        streams: {name: Stream}, those with an active loss.
        idle: streams that were left out because no loss of theirs is active.
        init: a whole model's weights to start from; an encoder's own `init:` then counts where those lack
            it, or `own` names it.
        optim: None where nothing is trained.
        plugins: what the recipe's `plugins:` list named.
    """

    source: Config
    graph: Graph
    needs: dict[str, list[Need]]
    task_needs: dict[str, list[Need]]
    streams: dict[str, Stream]
    schedule: ScheduleBlock
    optim: Optim | None
    train: Train
    idle: list[str] = field(default_factory=list)
    init: Init | None = None
    plugins: list[Plugin] = field(default_factory=list)

    @property
    def config(self) -> dict:
        """The resolved configuration, plain."""
        return self.source.data

    @property
    def tokenizer(self) -> str:
        return self.config["tokenizer"]

    @property
    def evaluate(self) -> dict[str, dict]:
        """The blocks of the evaluations by name: ``type``, ``data``, perhaps ``every``, and the task's own keys."""
        return self.config.get("evaluate") or {}

    @property
    def hooks(self) -> dict[str, dict]:
        """The blocks of the hooks by name."""
        return self.config.get("hooks") or {}

    @cached_property
    def reached(self) -> list[str]:
        """Encoders that an active loss or an evaluation reaches, inputs first; the others are not built."""
        return reached(self.graph, self.config["encoders"], [*self.needs.values(), *self.task_needs.values()])

    @property
    def left_out(self) -> list[str]:
        return [n for n in self.graph.encoders if n not in self.reached]

    def marks(self, needs: list[Need], fields: frozenset) -> frozenset:
        """The marks of ``fields`` under which something is read: they decide what a loader draws."""
        asked = frozenset().union(*(Ref.parse(n.ref).marks for n in needs))
        return frozenset(m for m in asked if any(m in self.graph.fields[f].MARKS for f in fields))

    def views(self, stream: str) -> frozenset:
        """The marks that the losses of a stream read."""
        s = self.streams[stream]
        return self.marks([n for loss in s.losses for n in self.needs[loss]], s.fields)

    def task_views(self, name: str) -> frozenset:
        """The marks under which an evaluation may read, as far as its data say how they are drawn."""
        data = self.evaluate[name]["data"]
        cls = DATASET_REGISTRY.get(data["type"])
        read = self.marks(self.task_needs[name], frozenset(cls.FIELDS))
        return frozenset(m for m in read if m in cls.MARKS and data.get(cls.MARKS[m]) is not None)

    def dataset(self, kind: str, name: str, **given):
        """What a stream (kind ``streams``) or an evaluation (``evaluate``) reads, opened.

        Args:
            **given: what the constructor may ask for: the tokenizer, the size of pictures and of patches.

        Raises:
            ConfigError: with the place of the key, where the constructor names it within the block (``data.path: ...``).
        """
        train, where = kind == "streams", self.source.where
        block = self.streams[name].data if train else self.evaluate[name]["data"]
        views = self.views(name) if train else self.task_views(name)
        try:
            return DATASET_REGISTRY.build(block, where(kind, name, "data"), views=views, train=train, **given)
        except ConfigError as e:
            found = []
            for problem in e.problems:
                key = problem.partition(":")[0].split(".")
                place, said = where(kind, name, *key), f"{kind}.{name}.{problem}"
                found.append(problem if key[0] != "data" else said if said.startswith(f"{place}:") else f"{place}: {said}")
            raise ConfigError(found) from e

    def contrasts(self, stream: str) -> bool:
        """Whether a loss of the stream learns from rows that do not belong together."""
        types = [self.config["losses"][loss]["type"] for loss in self.streams[stream].losses]
        return any(LOSS_REGISTRY.get(t).CONTRASTS for t in types)

    def stream_needs(self, stream: str) -> dict[str, list[Need]]:
        """{loss: what it reads} of a stream."""
        return {loss: self.needs[loss] for loss in self.streams[stream].losses}

    def passes(self, stream: str):
        return self.graph.passes(self.stream_needs(stream), self.streams[stream].fields)


def reached(graph: Graph, blocks: dict, needs) -> list[str]:
    """The encoders that are read, directly or not, inputs first.

    Args:
        blocks: the encoders' blocks by name.
        needs: lists of Need.
    """
    def referred(name):
        if graph.encoders[name].owner != name:
            return [graph.encoders[name].owner]
        return [blocks[name][k] for k in ENCODER_REGISTRY.get(blocks[name]["type"]).REFERS if k in blocks[name]]

    found = graph.below([Ref.parse(n.ref).name for several in needs for n in several])
    for name in found:  # a teacher's student must exist too, and who owns what is shared; the list grows as it is read
        found += [n for n in graph.below(referred(name)) if n not in found]
    order = []
    for name in graph.below(graph.encoders):  # inputs first, and students before their teachers
        order += [n for n in [*graph.below(referred(name)), name] if n not in order]
    return [n for n in order if n in found]
