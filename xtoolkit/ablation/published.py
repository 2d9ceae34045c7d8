"""Figures that others have published of a table's columns: a table of their own, never averaged with ours."""

from dataclasses import dataclass, field
from statistics import fmean

from xtoolkit.recipe import config
from xtoolkit.registry import ConfigError, arguments, check, nearest


@dataclass(frozen=True)
class Mean:
    """A mean over rows.

    Attributes:
        printed: as its source prints it, column by column.
        of: the rows that it is computed over here; instead of ``printed``.
    """

    printed: list[float] = field(default_factory=list)
    of: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Group:
    """Rows of the same columns.

    Attributes:
        columns: their names.
        rows: {name: a figure a column}.
        means: {name: Mean}.
    """

    columns: list[str]
    rows: dict[str, list[float]]
    means: dict[str, Mean] = field(default_factory=dict)

    def figures(self) -> dict[str, dict[str, float]]:
        """{row or mean: {column: figure}}."""
        means = {name: mean.printed or [fmean(self.rows[row][i] for row in mean.of) for i in range(len(self.columns))]
                 for name, mean in self.means.items()}
        return {name: dict(zip(self.columns, values)) for name, values in {**self.rows, **means}.items()}


@dataclass(frozen=True)
class Published:
    """A table that others have published.

    Attributes:
        title, source: what it is, and where it stands.
        columns: of all groups, in the source's order.
        groups: {name: Group}.
        contrasts: pairs of columns; the second is subtracted from the first.
        notes: what a reader of the figures must know.
    """

    title: str
    source: str
    columns: list[str]
    groups: dict[str, Group]
    contrasts: list[tuple[str, str]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def tables(self) -> list[tuple[str, list[str], list[list[str]]]]:
        """(title, heading, rows as text): the differences first, then the figures themselves. Means are in bold."""
        rows = [(f"**{name}**" if name in group.means else name, values) for group in self.groups.values()
                for name, values in group.figures().items()]
        apart = [[name, *(f"{values[a] - values[b]:+.1f}" if a in values and b in values else "" for a, b in self.contrasts)]
                 for name, values in rows]
        known = [[name, *(f"{values[c]:.1f}" if c in values else "" for c in self.columns)] for name, values in rows]
        between = ["task", *(f"{a} − {b}" for a, b in self.contrasts)]
        found = (self.title, ["task", *self.columns], known)
        return [(f"{self.title}: differences", between, apart), found] if self.contrasts else [found]


def read(path: str) -> Published:
    """Figures from a file. Raises ConfigError: every mistake, with its place."""
    source = config.load(path)
    if problems := check(Published, source.data, source.where(), source.where):
        raise ConfigError(problems)
    found = Published(**arguments(Published, source.data))
    unknown = lambda names, *place: [f"{source.where(*place)}: no column `{one}`{nearest(one, found.columns)}" for one in names
                                     if one not in found.columns]
    problems = unknown([one for pair in found.contrasts for one in pair], "contrasts")
    for name, group in found.groups.items():
        problems += unknown(group.columns, "groups", name, "columns")
        for row, values in group.rows.items():
            problems += _unequal(source.where("groups", name, "rows", row), values, group)
        for mean, held in group.means.items():
            place = source.where("groups", name, "means", mean)
            if bool(held.printed) == bool(held.of):
                problems.append(f"{place}: a mean is `printed` in its source, or computed `of` rows: name one of the two")
            problems += _unequal(place, held.printed, group) if held.printed else []
            problems += [f"{place}: no row `{row}` in this group{nearest(row, group.rows)}" for row in held.of
                         if row not in group.rows]
    if problems:
        raise ConfigError(problems)
    return found


def _unequal(place, values, group):
    count = len(group.columns)
    return [f"{place}: {len(values)} figures for {count} columns, {', '.join(group.columns)}"] if len(values) != count else []
