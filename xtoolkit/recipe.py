"""A checked configuration, as the model and the engine read it; and how one is read."""

import os
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

from xtoolkit import config as config_module
from xtoolkit.config import Config
from xtoolkit.engine.settings import Init, Optim, ScheduleBlock, Train
from xtoolkit.graph import Graph, Need, Ref
from xtoolkit.plugins import import_components
from xtoolkit.registry import ENCODER_REGISTRY, ConfigError, fits

Purpose = Literal["train", "resume", "evaluate"]


@dataclass(frozen=True)
class Stream:
    """One stream of a recipe. ``losses`` holds the active ones, {name: weight}; a weight of 0 means not computed."""

    name: str
    batch_size: int
    losses: dict
    data: dict
    fields: frozenset

    @property
    def regions(self) -> bool:
        return "region" in self.fields


@dataclass
class Recipe:
    """A checked configuration.

    Attributes:
        source: the resolved configuration with its places.
        graph: the wiring.
        needs: {loss: what it reads}, active losses only.
        task_needs: {evaluation: what it reads}.
        streams: {name: Stream}, those with an active loss.
        idle: streams that were left out because no loss of theirs is active.
        init: a whole model's weights to start from; the encoders' own `init:` keys then do not count.
    """

    source: Config
    graph: Graph
    needs: dict[str, list[Need]]
    task_needs: dict[str, list[Need]]
    streams: dict[str, Stream]
    schedule: ScheduleBlock
    optim: Optim
    train: Train
    idle: list[str] = field(default_factory=list)
    init: Init | None = None

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

    @cached_property
    def reached(self) -> list[str]:
        """Encoders that an active loss or an evaluation reaches, inputs first; the others are not built."""
        return reached(self.graph, self.config["encoders"], [*self.needs.values(), *self.task_needs.values()])

    @property
    def left_out(self) -> list[str]:
        return [n for n in self.graph.encoders if n not in self.reached]

    def views(self, stream: str) -> frozenset:
        """The views that the losses of a stream read: they decide which masks its loader draws."""
        return frozenset(Ref.parse(n.ref).view for loss in self.streams[stream].losses for n in self.needs[loss]) - {None}

    def passes(self, stream: str):
        s = self.streams[stream]
        return self.graph.passes({loss: self.needs[loss] for loss in s.losses}, s.regions)


def reached(graph: Graph, blocks: dict, needs) -> list[str]:
    """The encoders that are read, directly or not, inputs first.

    Args:
        blocks: the encoders' blocks by name.
        needs: lists of Need.
    """
    referred = lambda name: [blocks[name][k] for k in ENCODER_REGISTRY.get(blocks[name]["type"]).REFERS if k in blocks[name]]
    found = graph.below([Ref.parse(n.ref).name for several in needs for n in several])
    for name in list(found):  # a teacher's student must exist too
        found += [n for n in graph.below(referred(name)) if n not in found]
    order = []
    for name in graph.below(graph.encoders):  # inputs first, and students before their teachers
        order += [n for n in [*graph.below(referred(name)), name] if n not in order]
    return [n for n in order if n in found]


def load(path: str, overrides=(), missing_files: bool = True, purpose: Purpose = "train") -> Recipe:
    """Reads and checks a recipe.

    Args:
        path: the YAML file.
        overrides: ``key.path=value`` texts.
        missing_files: also report data, weights and tokenizers that are not there (off for the plan, which needs none).
        purpose: which files must be there: see ``checked``.

    Raises:
        ConfigError: every mistake of the file, one line each with file:line.
    """
    config = config_module.load(path, overrides)
    return checked(config, os.path.dirname(os.path.abspath(path)), missing_files, purpose)


def checked(config: Config, folder: str, missing_files: bool = True, purpose: Purpose = "train") -> Recipe:
    """The recipe of a resolved configuration.

    Args:
        folder: what relative paths of ``plugins`` are relative to, before the working folder.
        missing_files: also report files that are not there and that ``purpose`` needs.
        purpose: ``evaluate`` reads a checkpoint, so it needs neither the streams' data nor weights to start from;
            ``resume`` needs weights to start from only where its folder has no checkpoint.

    Raises:
        ConfigError: every mistake, one line each with its place.
    """
    plugins = config.data.get("plugins") or []
    if not fits(plugins, list[str]):
        raise ConfigError(f"{config.where('plugins')}: `plugins` must be a list of paths and modules")
    import_components(plugins, config.where("plugins"), folder)
    from xtoolkit.checks import Checker  # here: it builds a Recipe
    return Checker(config, missing_files, purpose).recipe()
