"""What a zoo's YAML says, and the recorded results that it names: read, and held against the recipes that they are of."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from xtoolkit.recipe import config
from xtoolkit.registry import ConfigError, Count, arguments, check, nearest, not_numbers


@dataclass(frozen=True)
class System:
    """One system in all its sizes.

    Attributes:
        recipes: as `xtoolkit list recipes` names them.
        page: what says more of it.
    """

    recipes: list[str]
    page: str | None = None


@dataclass(frozen=True)
class Paper:
    """Figures as a paper prints them.

    Attributes:
        source: which paper.
        columns: what the figures are of.
        tables: {where in the paper: {what: a figure a column, null where there is none}}.
    """

    source: str
    columns: list[str]
    tables: dict[str, dict[str, list]]


@dataclass(frozen=True)
class Table:
    """Measures by runs.

    Attributes:
        runs: names of recorded runs; of one alone that has `at`, its steps are the columns.
        measures: {title: EVALUATION.METRIC or STREAM.LOSS}.
        heading: above the titles.
        floors: whether the measures' floors stand beside them.
    """

    runs: list[str]
    measures: dict[str, str]
    heading: str = ""
    floors: bool = True


@dataclass(frozen=True)
class Figure:
    """A recorded figure.

    Attributes:
        value: the mean over seeds; a list: one for each of the run's `at`.
        deviation: its standard deviation over seeds.
        floor: what is reached without learning, where that is not the measure's.
    """

    value: float | list[float | None]
    deviation: float | None = None
    floor: float | None = None


@dataclass(frozen=True)
class Run:
    """A recorded run.

    Attributes:
        title: of its column.
        recipe: as `xtoolkit list recipes` names it.
        command: what makes it.
        seeds: of the run, each once.
        steps: of training.
        machine: processor, threads, versions, precision.
        date: when it ran.
        time: how long it took.
        figures: {EVALUATION.METRIC or STREAM.LOSS: Figure}.
        at: the steps of which figures are listed.
        processor: seconds of the processor that training took, evaluations apart; null where it was not kept.
    """

    title: str
    recipe: str
    command: str
    seeds: list[int]
    steps: int
    machine: str
    date: str
    time: str
    figures: dict[str, Figure]
    at: list[int] | None = None
    processor: Count | None = None


@dataclass(frozen=True)
class Control:
    """What a task was held against: its name, its figure, and the gain over it with the gain's error."""

    name: str
    value: float
    gain: float
    deviation: float | None = None
    error: float | None = None


@dataclass(frozen=True)
class Task:
    """A recorded task.

    Attributes:
        recipe: as `xtoolkit list recipes` names it.
        metric: EVALUATION.METRIC.
        unit: what the figure is.
        seeds: over how many.
        value: the mean over seeds.
        floor: what is reached without learning.
        deviation: the standard deviation over seeds.
        baseline: what something shallow reaches.
        control: what it was held against.
    """

    recipe: str
    metric: str
    unit: str
    seeds: int
    value: float
    floor: float
    deviation: float | None = None
    baseline: str = ""
    control: Control | None = None


@dataclass(frozen=True)
class Floor:
    """What a measure gives without learning: the figure, and what gives it."""

    value: float
    what: str


@dataclass(frozen=True)
class Recorded:
    """What was recorded: runs by name, floors by measure, tasks by title."""

    runs: dict[str, Run]
    floors: dict[str, Floor] = field(default_factory=dict)
    tasks: dict[str, Task] = field(default_factory=dict)


@dataclass(frozen=True)
class Zoo:
    """The whole.

    Attributes:
        pages: files that take tables, below the folder of the checkout; so are all others here.
        results: the file with recorded runs and tasks.
        counts: the file that keeps what was counted of each recipe.
        systems: {name: System}.
        papers: {name: Paper}.
        published: {name: a file with a whole table of a paper, as a table of ablations names one}.
        tables: {name: Table}.
    """

    pages: list[str]
    results: str
    counts: str
    systems: dict[str, System]
    papers: dict[str, Paper] = field(default_factory=dict)
    published: dict[str, str] = field(default_factory=dict)
    tables: dict[str, Table] = field(default_factory=dict)


def read(path: str, root: Path, load: Callable) -> tuple[Zoo, Recorded, dict[str, config.Config]]:
    """A zoo and what was recorded, checked.

    Args:
        path: its YAML.
        root: the folder that its paths are below.
        load: the resolved configuration of a recipe by its name; raises ConfigError where there is none.

    Returns:
        The zoo, the records, and {recipe: its configuration} of the systems' recipes.

    Raises:
        ConfigError: every mistake, with its place.
    """
    zoo, where = _read(Zoo, path)
    recorded, there = _read(Recorded, str(root / zoo.results))
    named = [(name, where("systems", system, "recipes")) for system, one in zoo.systems.items() for name in one.recipes]
    named += [(one.recipe, there(kind, name, "recipe")) for kind in ("runs", "tasks")
              for name, one in getattr(recorded, kind).items()]
    recipes, problems = {}, []
    for name, place in named:
        try:
            recipes.setdefault(name, None)
            recipes[name] = recipes[name] or load(name)
        except ConfigError as error:
            problems += [f"{place}: {line}" for line in error.problems]
    problems += [*_of_papers(zoo, where), *_of_tables(zoo, recorded, where), *_of_records(recorded, recipes, there)]
    if problems:
        raise ConfigError(problems)
    return zoo, recorded, {name: recipes[name] for one in zoo.systems.values() for name in one.recipes}


def _read(cls, path):
    """A block of ``cls`` that is a file, and the places of its keys."""
    source = config.load(path)
    if problems := not_numbers(source.data, source.where) + check(cls, source.data, source.where(), source.where):
        raise ConfigError(problems)
    return cls(**arguments(cls, source.data)), source.where


def _of_papers(zoo, where):
    """Rows that have not a figure for each column."""
    return [f"{where('papers', name, 'tables', table, what)}: {len(row)} figures, and {len(one.columns)} columns; null where "
            f"there is none" for name, one in zoo.papers.items() for table, rows in one.tables.items()
            for what, row in rows.items() if len(row) != len(one.columns)]


def _of_tables(zoo, recorded, where):
    """Runs that are not recorded, and measures that no run of a table has."""
    found = []
    for name, table in zoo.tables.items():
        unknown = [run for run in table.runs if run not in recorded.runs]
        found += [f"{where('tables', name, 'runs')}: no run `{run}` in {zoo.results}{nearest(run, recorded.runs)}"
                  for run in unknown]
        known = {metric for run in table.runs if run not in unknown for metric in recorded.runs[run].figures}
        found += [f"{where('tables', name, 'measures', title)}: no run of this table has `{metric}`{nearest(metric, known)}"
                  for title, metric in table.measures.items() if not unknown and metric not in known]
    return found


def _of_records(recorded, recipes, where):
    """Figures of what the recipe does not evaluate or train, lists that are not as long as `at`, floors of nothing."""
    found = []
    for name, run in recorded.runs.items():
        found += [line for metric in run.figures for line in _unknown(metric, recipes[run.recipe], run.recipe,
                                                                      where("runs", name, "figures", metric))]
        wanted = len(run.at) if run.at else None
        found += [f"{where('runs', name, 'figures', metric)}: `value` must be one figure" +
                  (f" for each step of `at`: a list of {wanted}" if wanted else "; for a list of them the run needs its `at`")
                  for metric, one in run.figures.items() if (len(one.value) if isinstance(one.value, list) else None) != wanted]
    known = {metric for run in recorded.runs.values() for metric in run.figures}
    found += [f"{where('floors', metric)}: no run has `{metric}`{nearest(metric, known)}" for metric in recorded.floors
              if metric not in known]
    for title, task in recorded.tasks.items():
        found += _unknown(task.metric, recipes[task.recipe], task.recipe, where("tasks", title, "metric"))
    return found


def _unknown(metric, source, recipe, place):
    """A line where neither an evaluation nor a stream's loss is called so."""
    if source is None:
        return []  # the recipe is missing, which has been said
    first, _, rest = metric.partition(".")
    evaluations, streams = source.data.get("evaluate") or {}, source.data.get("streams") or {}
    if first in evaluations and rest or rest in ((streams.get(first) or {}).get("losses") or {}):
        return []
    losses = [f"{stream}.{loss}" for stream, block in streams.items() for loss in block.get("losses") or {}]
    return [f"{place}: {recipe} has no evaluation and no stream for `{metric}`{nearest(metric, [*evaluations, *losses])}"]
