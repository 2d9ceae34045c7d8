"""A table of fine-tuning: what its YAML says, the jobs that it needs, and the table from what they left in their folders."""

import dataclasses
import json
import os
import statistics
from dataclasses import dataclass, field
from pathlib import Path

from xtoolkit.cli import recipes
from xtoolkit.engine.records import read_lines, write_json, write_text
from xtoolkit.recipe import config
from xtoolkit.recipe.folder import EVALUATIONS, differences, evaluated
from xtoolkit.recipe.settings import Whole
from xtoolkit.registry import ConfigError, arguments, check, nearest


@dataclass(frozen=True)
class Control:
    """What a row is held against.

    Attributes:
        set: overrides of the recipe, `key=value`.
        recipe: another recipe, beside the table; null: the row's own.
    """

    set: list[str] = field(default_factory=list)
    recipe: str | None = None


@dataclass(frozen=True)
class Row:
    """A task.

    Attributes:
        recipe: its file, beside the table.
        metrics: {title: `EVALUATION.METRIC`}; controls are compared by the samples of the first one's evaluation.
        controls: names of the table's controls that apply.
        set: overrides of its recipe, of its controls' too.
    """

    recipe: str
    metrics: dict[str, str]
    controls: list[str] = field(default_factory=list)
    set: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Table:
    """A table of fine-tuning.

    Attributes:
        rows: {name: Row}.
        init: the pretrained run; `--init` names another.
        output: the folder of all jobs and of the table.
        seeds: of each row and control.
        controls: {name: Control}.
    """

    rows: dict[str, Row]
    init: str
    output: str
    seeds: list[Whole] = field(default_factory=lambda: [1, 2, 3])
    controls: dict[str, Control] = field(default_factory=dict)


@dataclass(frozen=True)
class Job:
    """One recipe with one seed; ``control`` is empty for the row itself."""

    row: str
    control: str
    seed: int
    recipe: str
    overrides: list[str]
    folder: Path

    def __str__(self) -> str:
        return ", ".join([self.row, *([self.control] if self.control else []), f"seed {self.seed}"])

    @property
    def other_start(self) -> str | None:
        """The weights that its folder started from, where they are not those that it would start from now."""
        path, paths = self.folder / "config.yaml", ("init=", "init.path=")
        init = config.load(str(path)).data.get("init") if path.is_file() else None
        begun = init.get("path") if isinstance(init, dict) else init
        now = [one.partition("=")[2] for one in self.overrides if one.startswith(paths)][-1]
        whole = lambda path: Path(path).expanduser().resolve()
        return None if begun is None or whole(begun) == whole(now) else begun

    @property
    def complete(self) -> bool:
        """Whether it has written its results, the last thing that a run does, and all of its evaluations."""
        if not (self.folder / "results.json").is_file():
            return False
        return set(config.load(str(self.folder / "config.yaml")).data["evaluate"]) <= set(evaluated(self.folder))

    def changes(self) -> list[str]:
        """Where a finished job's recipe is another than now: a line each, of all that its figures depend on."""
        then = config.load(str(self.folder / "config.yaml")).data
        now = recipes.read(self.recipe, self.overrides, missing_files=False).config
        found = [line for line in differences(then, now) if not line.startswith("init.path:")]  # other_start tells that
        known = lambda side: {"steps": side["train"].get("steps"), "keep_best": side["train"].get("keep_best")} | side["evaluate"]
        return found + [f"{key} is another" for key in sorted(known(then).keys() | known(now).keys())
                        if known(then).get(key) != known(json.loads(json.dumps(now))).get(key)]

    def value(self, metric: str, what: str = "metrics") -> float | None:
        """Its figure, or its floor; None where it has none (yet)."""
        evaluation, _, name = metric.partition(".")
        record = evaluated(self.folder).get(evaluation) if self.complete else None
        return None if record is None else record[what].get(name)

    def lacks(self, metric: str) -> str | None:
        """What its results do not have of a metric; None: nothing."""
        evaluation, _, name = metric.partition(".")
        known = evaluated(self.folder)[evaluation]["metrics"] if evaluation in evaluated(self.folder) else None
        if known is None:
            return f"`{metric}`: it ran no evaluation `{evaluation}`{nearest(evaluation, evaluated(self.folder))}"
        return None if name in known else f"`{metric}`: evaluation `{evaluation}` gives no `{name}`{nearest(name, known)}"

    def scores(self, metric: str) -> dict[str, tuple[float, str]]:
        """{sample: (score, the picture or sentence that it belongs to)} of a metric's evaluation. Samples are told by their ids,
        or by their places where several have one id: texts about a picture that are called by it."""
        path = self.folder / EVALUATIONS / metric.partition(".")[0] / "samples.jsonl"
        rows = read_lines(path) if self.complete else []
        ids = [str(row["id"]) for row in rows]
        ids = ids if len(set(ids)) == len(ids) else [str(place) for place in range(len(ids))]
        return {one: (row["score"], str(row["id"] if row.get("image_id") is None else row["image_id"]))
                for one, row in zip(ids, rows) if row.get("score") is not None}


def read(path: str) -> Table:
    """A table, checked. Raises ConfigError with every mistake and its place."""
    source = config.load(path, library=str(recipes.folder()))
    if "train" in source.data:
        raise ConfigError(f"{path}: this is a recipe, not a table of recipes: `xtoolkit train --config {path}`")
    if problems := check(Table, source.data, source.where(), source.where):
        raise ConfigError(problems)
    table = Table(**arguments(Table, source.data))
    for name, row in table.rows.items():
        problems += [f"{source.where('rows', name, 'controls')}: unknown control `{one}`{nearest(one, table.controls)}"
                     for one in row.controls if one not in table.controls]
        problems += [f"{source.where('rows', name, 'metrics', title)}: `{metric}` must be EVALUATION.METRIC"
                     for title, metric in row.metrics.items() if not all(metric.partition(".")[::2])]
    for name, row in table.rows.items():
        if (file := Path(path).parent / row.recipe).is_file():
            problems += [f"{source.where('rows', name, 'metrics', title)}: `{metric}`: {row.recipe} has no evaluation "
                         f"`{evaluation}`{nearest(evaluation, known)}" for known in [_evaluations(file, row.set, problems)]
                         for title, metric in row.metrics.items() if (evaluation := metric.partition(".")[0]) not in known
                         and "." in metric]
    if not table.rows:
        problems.append(f"{source.where('rows')}: `rows` are empty; a row is NAME: {{recipe: FILE, metrics: {{TITLE: "
                        "EVALUATION.METRIC}}")
    folders: dict = {}
    problems += [f"{source.where('rows', name)}: rows `{other}` and `{name}` would share a folder, `{slug(name)}`: rename one"
                 for name in table.rows if (other := folders.setdefault(slug(name), name)) != name]
    for kind in ("rows", "controls"):
        problems += [f"{source.where(kind, name, 'recipe')}: {one.recipe}: no such file beside the table"
                     for name, one in getattr(table, kind).items()
                     if one.recipe is not None and not (Path(path).parent / one.recipe).is_file()]
    if problems:
        raise ConfigError(problems)
    return table


def _evaluations(recipe: Path, overrides: list[str], problems: list[str]) -> dict:
    """The `evaluate` block of a recipe with a row's changes; what keeps it from being read joins ``problems``."""
    try:
        return config.load(str(recipe), overrides, library=str(recipes.folder())).data.get("evaluate") or {}
    except ConfigError as error:
        problems += error.problems
        return {}


def check_recipes(jobs: list[Job]) -> None:
    """Raises ConfigError with the mistakes of all recipes, each once: a job of hours may stand before the one that has it."""
    found = []
    for job in {(job.row, job.control): job for job in jobs if not job.complete}.values():
        try:
            recipes.read(job.recipe, job.overrides, purpose="resume")
        except ConfigError as error:
            found += error.problems
    if found:
        raise ConfigError(found)


def jobs_of(table: Table, folder: str, only: list[str] | None = None, controls: bool = True) -> list[Job]:
    """All jobs, the first seed of every row before the second of any: whenever time runs out, the table is as wide as it can be.

    Args:
        folder: of the table's file, in which its recipes lie.
        only: names of rows; None: all.

    Raises:
        ConfigError: no such row; a folder of a job that started from other weights, whose figures would pass for these.
    """
    if unknown := [name for name in only or () if name not in table.rows]:
        raise ConfigError([f"--only: no row `{name}`{nearest(name, table.rows)}" for name in unknown])
    found = []
    for seed in table.seeds:
        for name, row in table.rows.items():
            for control in ["", *(row.controls if controls else [])] if only is None or name in only else ():
                how = table.controls[control] if control else Control()
                place = Path(table.output) / slug(name) / slug(control or "run") / f"seed_{seed}"
                overrides = [f"init={table.init}", f"train.seed={seed}", f"train.output={place}", *row.set, *how.set]
                found.append(Job(name, control, seed, os.path.join(folder, how.recipe or row.recipe), overrides, place))
    if other := [(job, begun) for job in found if (begun := job.other_start)]:
        raise ConfigError([f"{job.folder} started from {begun}, not from {table.init}: name another folder (--output), or remove "
                           "it" for job, begun in other])
    return found


def slug(name: str) -> str:
    """A name as a folder's."""
    return "".join(c if c.isalnum() or c in "-+" else "_" for c in name.lower())


def write(jobs: list[Job], table: Table) -> str:
    """Writes ``table.md`` and ``table.json`` of what is finished into the table's folder; returns the former."""
    lines = [line for name in dict.fromkeys(job.row for job in jobs) for line in _lines(jobs, name, table.rows[name])]
    heading = ["task", "metric", "seeds", "value", "floor", "control", "its value", "gain"]
    cells = [[line["task"], line["metric"], str(len(line["values"])), _mean(line["values"]), _mean(line["floors"][:1]),
              line["control"] or "", _mean(line["control_values"]), _gain(line["gain"])] for line in lines]
    text = "\n".join(["| " + " | ".join(row) + " |" for row in [heading, ["---"] * len(heading), *cells]])
    folder = Path(table.output)
    write_json(folder / "table.json", {"init": table.init, "rows": lines})
    write_text(folder / "table.md", text + "\n\n" + NOTE)
    return text


NOTE = """Values are means over seeds with their standard deviation. A gain is over the control, sample by sample, averaged over
seeds, with its bootstrap error (pictures drawn with replacement, or samples where there are none): in points of the mean score
of a sample, which is the metric itself only where that is such a mean.
"""


def _lines(jobs: list[Job], name: str, row: Row) -> list[dict]:
    """A row of the table for each metric, and for the first one also each control."""
    own, found = [job for job in jobs if job.row == name and not job.control], []
    known = lambda several, metric, what="metrics": [v for job in several if (v := job.value(metric, what)) is not None]
    for title, metric in row.metrics.items():
        controls = row.controls if metric == next(iter(row.metrics.values())) else []
        for control in controls or [""]:
            against = [job for job in jobs if job.row == name and control and job.control == control]
            found.append({"task": name, "metric": title, "values": known(own, metric), "floors": known(own, metric, "floor"),
                          "control": control, "control_values": known(against, metric), "gain": _compared(own, against, metric)})
    return found


def _compared(own: list[Job], against: list[Job], metric: str) -> dict | None:
    """The gain over a control on the same samples; None where either is not there yet, or keeps no scores."""
    from xtoolkit.metrics.bootstrap import paired_difference  # only here: a mistake in the table is answered without NumPy

    after, before = ([scores for job in several if (scores := job.scores(metric))] for several in (own, against))
    shared = [sample for sample in (after[0] if after and before else ()) if all(sample in scores for scores in after + before)]
    if not shared:
        return None
    rows = lambda several: [[scores[sample][0] for sample in shared] for scores in several]
    return dataclasses.asdict(paired_difference(rows(after), rows(before), [after[0][sample][1] for sample in shared]))


def _mean(numbers: list[float]) -> str:
    """`61.2 ± 0.8`; of one number itself; a dash of none."""
    places = decimals(numbers)
    spread = f" ± {statistics.stdev(numbers):.{places}f}" if len(numbers) > 1 else ""
    return f"{statistics.fmean(numbers):.{places}f}{spread}" if numbers else "–"


def decimals(numbers: list[float]) -> int:
    """How many a figure is given with: one of per cent, three of a share such as a mean IoU."""
    return 1 if any(abs(number) > 1 for number in numbers) else 3


def _gain(gain: dict | None) -> str:
    """`+2.0 ± 1.0`, in points; a dash where there is none (yet)."""
    if gain is None:
        return "–"
    told = "no error: all of one picture" if gain["error"] is None else f"± {100 * gain['error']:.1f}"
    return f"{100 * gain['value']:+.1f} {told}"
