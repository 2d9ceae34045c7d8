"""What is known of a run, read from the files in its folder."""

import json
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from xtoolkit.engine.figures import Samples
from xtoolkit.engine.guessing import judge
from xtoolkit.engine.records import read_lines
from xtoolkit.recipe import config
from xtoolkit.recipe.folder import CONFIG, METRICS, RESULTS, evaluated

@dataclass(frozen=True)
class Evaluation:
    """The newest result of an evaluation, as ``evaluations/<name>.json`` has it.

    Attributes:
        step: after which it was made; ``time``: when, in ISO's form.
        metrics: {name: number or None}.
        floor: likewise, what a model that has learnt nothing gets.
        table: (heading, rows) as the task lays them out, cells as text.
        headlines: {metric: title} of the metrics that matter most.
        figures: see ``report.figures``.
        files: names of those beside, in ``evaluations/<name>/``.
        selected: of which checkpoint it is, see ``records.write_evaluation``.
        limit: samples of each source that were read, from the first on; None: all.
        left_out: how many samples could not be read, and why; None: all were.
    """

    step: int
    time: str
    metrics: dict
    floor: dict
    table: tuple
    headlines: dict
    figures: list
    files: list = field(default_factory=list)
    selected: dict | None = None
    limit: int | None = None
    left_out: str | None = None

    def of_headline(self, metric: str) -> list[str]:
        """The metrics that a headline names: ``metric``, then ``<part>.<metric>`` of parts of what was evaluated."""
        return [m for m in (metric,) if m in self.metrics] + [m for m in self.metrics if m.partition(".")[2] == metric]


@dataclass(frozen=True)
class Run:
    """What is known of a run.

    Attributes:
        config: the resolved configuration; ``text`` is its file.
        lines: the objects of ``metrics.jsonl``.
        results: ``results.json``, empty while the run goes on.
        environment: ``environment.json``.
        evaluations: {name: Evaluation}, in the order of the recipe.
        samples: {stream: figures} of what training reads, ``samples.json``.
    """

    config: dict
    text: str
    lines: list
    results: dict
    environment: dict
    evaluations: dict
    samples: dict

    @property
    def step(self) -> int:
        """How many steps are known to be taken."""
        return self.lines[-1]["step"] if self.lines else 0

    def points(self, key: str) -> list[tuple[int, float]]:
        """(step, value) wherever a number was logged and finite."""
        return [(line["step"], line[key]) for line in self.lines if line.get(key) is not None]

    @property
    def keys(self) -> list[str]:
        return list(dict.fromkeys(k for line in self.lines for k in line))

    @property
    def streams(self) -> dict:
        return self.config.get("streams") or {}

    @property
    def logged(self) -> list[str]:
        """``<stream>.<loss>`` and ``<stream>.<loss>.<part>``, whatever is logged of the streams' losses but their guesses."""
        return [k for k in self.keys if k.partition(".")[0] in self.streams and not k.endswith(".guess")]

    @cached_property
    def guessing(self) -> dict[str, dict]:
        """Of all that is ``logged``: ``guessing.judge``."""
        return judge(self.lines, self.logged)


def read_run(folder: Path) -> Run:
    """Reads a run's folder.

    Raises:
        FileNotFoundError: the folder holds no run.
    """
    path = folder / CONFIG
    if not path.exists():
        raise FileNotFoundError(f"{folder} holds no run: it has no {CONFIG}; name the `train.output` of a run")
    known, found = config.load(str(path)).data, evaluated(folder)
    order = [*(name for name in known.get("evaluate") or () if name in found), *found]
    return Run(known, path.read_text(encoding="utf-8"), read_lines(folder / METRICS), _json(folder / RESULTS),
               _json(folder / "environment.json"), {name: Evaluation(**found[name]) for name in order},
               _json(folder / Samples.NAME))


def _json(path: Path) -> dict:
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
