"""What a table's YAML says: which recipes stand in its columns and rows, over which seeds, and what is held against what."""

import dataclasses
import re
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from xtoolkit.ablation import published
from xtoolkit.ablation.apart import alike
from xtoolkit.recipe import config
from xtoolkit.recipe.settings import Whole
from xtoolkit.registry import ConfigError, arguments, check, nearest

START = re.compile(r"<([^<>]+)>")


@dataclass(frozen=True)
class Column:
    """What is pretrained, or a run that is there.

    Attributes:
        recipe: its file, beside the table; null: the table's.
        set: overrides, `key=value`, or names of the table's `sets`. `<NAME>` in a value is the folder of that start.
        groups: of rows that apply to it; null: all.
        run: a pretrained run or file of weights, instead of a recipe.
        rows: overrides of its rows' recipes: where it has another encoder, fine-tuning must build that one too.
        apart: added to a seed where it is pretrained, not to its starts': what then differs from the same recipe is chance.
        note: printed with the table: what its name does not say. No figure depends on it.
    """

    recipe: str | None = None
    set: list[str] = field(default_factory=list)
    groups: list[str] | None = None
    run: str | None = None
    rows: list[str] = field(default_factory=list)
    apart: Whole = 0
    note: str | None = None


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
        metrics: {title: `EVALUATION.METRIC`}; controls and columns are compared by the samples of the first one's evaluation.
        group: which columns it applies to, and with which rows it is averaged.
        controls: names of the table's controls that apply.
        set: overrides of its recipe, of its controls' too.
        counts: in its group's mean: its `first` metric, the `mean` of its metrics, or `each` of them as a row of its own.
    """

    recipe: str
    metrics: dict[str, str]
    group: str | None = None
    controls: list[str] = field(default_factory=list)
    set: list[str] = field(default_factory=list)
    counts: Literal["first", "mean", "each"] = "first"


@dataclass(frozen=True)
class Contrast:
    """A difference that is asked before the table runs: `better` minus `than`, seed by seed.

    Attributes:
        groups: whose figures; a column's is its mean over a group's rows, as they count, and of several groups the mean of these
            means.
        better, than: columns.
        beyond: an interaction: two columns, of whose difference it is held whether the first one exceeds it.
        role: `primary` gets a verdict, with Holm's correction over all primaries. A `negative control`, of columns that differ by
            chance alone, must be undecided, and a `positive control` better: each has a verdict of its own. `secondary` gets an
            interval and no verdict.
    """

    groups: list[str]
    better: str
    than: str
    beyond: list[str] = field(default_factory=list)
    role: Literal["primary", "secondary", "negative control", "positive control"] = "primary"

    @property
    def columns(self) -> list[str]:
        """All that it compares."""
        return [self.better, self.than, *self.beyond]


@dataclass(frozen=True)
class Table:
    """Columns by rows, over seeds.

    Attributes:
        columns: {name: Column}.
        rows: {name: Row}.
        output: the folder of all jobs and of the table.
        recipe: of the columns that name none.
        starts: {name: Column}, trained once a seed for all columns that say `<name>`.
        sets: {name: overrides} that columns may name.
        seeds: of every column, row and control.
        controls: {name: Control}.
        apart: added to a seed where a row is trained: fine-tuning draws otherwise than pretraining.
        weights: whose checkpoints are kept: `all`, or of what is `pretrained` only.
        published: a file, beside the table, of figures that others have published of these columns; see ``Published``.
        reference: the column that the others are held against, with intervals; null: the last one.
        contrasts: {name: Contrast}.
        note: printed with the table.
    """

    columns: dict[str, Column]
    rows: dict[str, Row]
    output: str
    recipe: str | None = None
    starts: dict[str, Column] = field(default_factory=dict)
    sets: dict[str, list[str]] = field(default_factory=dict)
    seeds: list[Whole] = field(default_factory=lambda: [1, 2, 3])
    controls: dict[str, Control] = field(default_factory=dict)
    apart: Whole = 0
    weights: Literal["all", "pretrained"] = "pretrained"
    published: str | None = None
    reference: str | None = None
    contrasts: dict[str, Contrast] = field(default_factory=dict)
    note: str | None = None

    def overrides(self, column: Column) -> list[str]:
        """A column's overrides, with those that it takes by name."""
        return [line for one in column.set for line in self.sets.get(one, [one])]

    def begins_with(self, column: Column) -> list[str]:
        """The starts that a column's overrides name."""
        return list(dict.fromkeys(name for line in self.overrides(column) for name in START.findall(line)))

    def applies(self, row: Row, column: Column) -> bool:
        """Whether a row is asked of a column."""
        return column.groups is None or row.group in column.groups


def read(path: str, library: str | None = None) -> Table:
    """A table, checked.

    Args:
        library: a folder of recipes that ``_BASE_`` may name.

    Raises:
        ConfigError: every mistake, with its place.
    """
    source = config.load(path, library=library)
    if "train" in source.data:
        raise ConfigError(f"{path}: this is a recipe, not a table of recipes: `xtoolkit train --config {path}`")
    given = dict.fromkeys(path[0] for path in source.absent if len(path) == 1) | source.data
    if problems := check(Table, given, source.where(), source.where) + source.idle():
        raise ConfigError(problems)
    table = Table(**arguments(Table, source.data))
    if problems := [*_seeds(table, source.where), *_recipes(table, path, source.where), *_names(table, source.where),
                    *_folders(table, source.where), *_metrics(table, path, library, source.where),
                    *_contrasts(table, source.where)]:
        raise ConfigError(problems)
    if table.published is None:
        return table
    beside = Path(path).parent / table.published
    if not beside.is_file():
        raise ConfigError(f"{source.where('published')}: {table.published}: no such file beside the table")
    published.read(str(beside))
    return dataclasses.replace(table, published=str(beside))


def _seeds(table, where):
    """No seed at all, and seeds that would count twice."""
    if not table.seeds:
        return [f"{where('seeds')}: `seeds` are empty: name at least one"]
    twice = [seed for seed, count in Counter(table.seeds).items() if count > 1]
    return [f"{where('seeds')}: seed {seed} comes twice: the same jobs would count twice" for seed in twice]


def slug(name: str) -> str:
    """A name as a folder's."""
    return "".join(c if c.isalnum() or c in "-+" else "_" for c in name.lower())


def _recipes(table, path, where):
    """Recipes that are not there, or that a column lacks or has too many of."""
    beside = lambda name: (Path(path).parent / name).is_file()
    named = [(kind, name, one.recipe) for kind in ("columns", "starts", "rows", "controls")
             for name, one in getattr(table, kind).items() if one.recipe is not None]
    found = [f"{where(kind, name, 'recipe')}: {recipe}: no such file beside the table" for kind, name, recipe in named
             if not beside(recipe)]
    if table.recipe is not None and not beside(table.recipe):
        found.append(f"{where('recipe')}: {table.recipe}: no such file beside the table")
    for kind in ("columns", "starts"):
        for name, one in getattr(table, kind).items():
            if one.run is not None and (one.recipe is not None or one.set or one.apart):
                found.append(f"{where(kind, name, 'run')}: a run is taken as it is: leave out its recipe, set and apart")
            elif one.run is None and one.recipe is None and table.recipe is None:
                found.append(f"{where(kind, name)}: `{name}` has neither recipe nor run, and the table has no recipe")
    return found


def _names(table, where):
    """Names of controls, groups, sets, starts and metrics that mean nothing."""
    found, groups = [], {row.group for row in table.rows.values() if row.group is not None}
    for name, row in table.rows.items():
        found += [f"{where('rows', name, 'controls')}: unknown control `{one}`{nearest(one, table.controls)}"
                  for one in row.controls if one not in table.controls]
        found += [f"{where('rows', name, 'metrics', title)}: `{metric}` must be EVALUATION.METRIC"
                  for title, metric in row.metrics.items() if not all(metric.partition(".")[::2])]
    for kind in ("columns", "starts"):
        for name, column in getattr(table, kind).items():
            found += [f"{where(kind, name, 'groups')}: no row is of group `{one}`{nearest(one, groups)}"
                      for one in column.groups or () if one not in groups]
            unknown = [one for one in column.set if "=" not in one and one not in table.sets]
            found += [f"{where(kind, name, 'set')}: `{one}` is no `key=value` and no name of `sets`{nearest(one, table.sets)}"
                      for one in unknown]
            found += [f"{where(kind, name, 'set')}: no start `{one}`{nearest(one, table.starts)}"
                      for one in ([] if unknown else table.begins_with(column)) if one not in table.starts]
    lines = [*((("rows", name, "set"), row.set) for name, row in table.rows.items()),
             *((("columns", name, "rows"), column.rows) for name, column in table.columns.items()),
             *((("controls", name, "set"), control.set) for name, control in table.controls.items())]
    found += [f"{where(*place)}: `<{one}>` is a start, and a row starts from its column: only columns and starts have one"
              for place, several in lines for line in several for one in START.findall(line) if one in table.starts]
    return found or _circles(table, where)


def _contrasts(table, where):
    """Contrasts of columns and groups that are not there or do not meet, and a column that draws as another seed of its like."""
    found, groups = [], {row.group for row in table.rows.values() if row.group is not None}
    column = lambda name, *place: [] if name in table.columns else [
        f"{where(*place)}: no column `{name}`{nearest(name, table.columns)}"]
    if table.reference is not None:
        found += column(table.reference, "reference")
    for name, one in table.contrasts.items():
        at = lambda key: where("contrasts", name, key)
        found += column(one.better, "contrasts", name, "better") + column(one.than, "contrasts", name, "than")
        found += [line for other in one.beyond for line in column(other, "contrasts", name, "beyond")]
        found += [f"{at('groups')}: no row is of group `{group}`{nearest(group, groups)}" for group in one.groups
                  if group not in groups]
        if not one.groups:
            found.append(f"{at('groups')}: `groups` are empty: name those whose means are held, of {', '.join(sorted(groups))}")
        if len(one.beyond) not in (0, 2):
            found.append(f"{at('beyond')}: `beyond` must be two columns, [A, B] for A - B, not {len(one.beyond)}")
        if one.better == one.than:
            found.append(f"{at('than')}: `{one.better}` is held against itself: name another column")
        found += [f"{at('groups')}: no row of group `{group}` applies to column `{other}`, whose groups are "
                  f"{', '.join(table.columns[other].groups)}" for group in one.groups if group in groups
                  for other in dict.fromkeys(one.columns) if (of := table.columns.get(other)) and of.groups is not None
                  and group not in of.groups]
    return found + alike(table, where)


def _folders(table, where):
    """Names that would share a folder, and tables without any."""
    found = [f"{where(kind)}: `{kind}` are empty; {how}" for kind, how in (
        ("columns", "a column is NAME: {recipe: FILE, set: [key=value]}"),
        ("rows", "a row is NAME: {recipe: FILE, metrics: {TITLE: EVALUATION.METRIC}}")) if not getattr(table, kind)]
    for kind in ("columns", "starts", "rows"):
        folders: dict = {}
        found += [f"{where(kind, name)}: {kind} `{other}` and `{name}` would share a folder, `{slug(name)}`: rename one"
                  for name in getattr(table, kind) if (other := folders.setdefault(slug(name), name)) != name]
    return found


def _metrics(table, path, library, where):
    """Metrics of evaluations that a row's recipe does not have."""
    found = []
    for name, row in table.rows.items():
        if (file := Path(path).parent / row.recipe).is_file():
            try:
                known = config.load(str(file), row.set, library).data.get("evaluate") or {}
            except ConfigError as error:
                found += error.problems
                continue
            found += [f"{where('rows', name, 'metrics', title)}: `{metric}`: {row.recipe} has no evaluation `{evaluation}`"
                      f"{nearest(evaluation, known)}" for title, metric in row.metrics.items()
                      if "." in metric and (evaluation := metric.partition(".")[0]) not in known]
    return found


def _circles(table, where):
    """Starts that start from themselves."""
    def visit(name, trail):
        if name in trail:
            return [f"{where('starts', name)}: starts from itself: {' <- '.join([*trail, name])}"]
        return [line for one in table.begins_with(table.starts[name]) for line in visit(one, [*trail, name])]

    return list(dict.fromkeys(line for name in table.starts for line in visit(name, [])))
