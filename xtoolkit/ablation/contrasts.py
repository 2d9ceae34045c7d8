"""What a table's differences say: verdicts on the contrasts that were written down before it ran, intervals for all others."""

import dataclasses
import json
from itertools import combinations
from pathlib import Path
from statistics import fmean

from xtoolkit.ablation.jobs import OLDER, Jobs
from xtoolkit.ablation.machines import seeds
from xtoolkit.ablation.outputs import bootstrap, combined
from xtoolkit.ablation.table import Contrast, Table
from xtoolkit.engine.records import write_json

SEEDS = 20  # at most, of a table with contrasts: ``sign_flip`` enumerates all flips
ASKED = "asked.json"  # in a table's folder: its contrasts when it had no figures yet
EXPECTED = {"negative control": "undecided", "positive control": "better"}


# ---- what is computed ------------------------------------------------------------------------------------------------------
def counted(table: Table, group: str | None, column: str) -> list[list[tuple[str, str]]]:
    """The figures that a column's mean over the rows of a group is made of, as they count: each is a mean itself, of a (row,
    metric's title) or several."""
    found = []
    for name, row in table.rows.items():
        if row.group == group and table.applies(row, table.columns[column]):
            parts = [(name, title) for title in row.metrics]
            found += {"first": [parts[:1]], "mean": [parts], "each": [[one] for one in parts]}[row.counts]
    return found


def means(table: Table, lines: list[dict], group: str | None, column: str) -> dict[int, float]:
    """{seed: a column's mean over the rows of a group, as they count}, of the seeds in which all of these are there.

    Args:
        lines: the ``rows`` of ``table.json``.
    """
    held = {(line["task"], line["metric"]): line["columns"][column]["values"] for line in lines if column in line["columns"]}
    found = [[held[part] for part in parts] for parts in counted(table, group, column)]
    seeds = sorted(set.intersection(*(set(of) for several in found for of in several))) if found else []
    return {seed: fmean(fmean(of[seed] for of in several) for several in found) for seed in seeds}


def late(table: Table) -> set[str]:
    """The contrasts that were added or changed when figures were there already, or whose rows or seeds were; what was asked
    before them is kept."""
    path = Path(table.output) / ASKED
    now = {name: {"contrast": dataclasses.asdict(one), "seeds": table.seeds,
                  "rows": {row: [of.group, of.metrics, of.counts] for row, of in table.rows.items() if of.group in one.groups}}
           for name, one in table.contrasts.items()}
    if not seeds(table.output):
        write_json(path, now)
        return set()
    before = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    return {name for name, one in now.items() if before.get(name) != one}


def asked(jobs: Jobs, lines: list[dict], samples: bool) -> list[dict]:
    """What each contrast says, in the order of the table's YAML: ``name`` and its keys; ``seeds`` {seed: difference} and what
    ``over_seeds`` and ``combined`` say of it; ``p`` of the exact sign-flip test, ``adjusted`` by Holm's correction over all
    primaries, ``verdict``, ``needed``: with how many seeds each of its kind could have one; ``smallest``, the true difference
    that all seeds of the table find in 80 of 100 times, and ``found_by`` which test; ``older``, whether an older engine has
    finished a part of it, and ``late``, whether it was written down when figures were there. None where there is no such thing: a
    verdict is given when all seeds are there, and only then, or it would be given at every look and taken back.

    Args:
        samples: draw them; else None.
    """
    table = jobs.table
    if not table.contrasts:
        return []
    from xtoolkit.metrics.paired import seeds_needed, verdicts  # only here: a mistake is answered without NumPy

    after = late(table)
    apart = {name: _apart(table, contrast, lines) for name, contrast in table.contrasts.items()}
    whole = {name: [*several.values()] if len(several) == len(table.seeds) else [] for name, several in apart.items()}
    primary = {name: whole[name] for name, contrast in table.contrasts.items() if contrast.role == "primary"}
    given = verdicts(primary)
    for name, contrast in table.contrasts.items():
        if contrast.role in EXPECTED:
            given |= verdicts({name: whole[name]})
    found = []
    for name, contrast in table.contrasts.items():
        verdict = given[name] if whole[name] and name in given else None
        family = len(primary) if contrast.role == "primary" else 1 if contrast.role in EXPECTED else None
        also = combined(_terms(jobs, contrast.groups, contrast.columns)) if samples else None
        found.append({
            "name": name, "late": name in after, **dataclasses.asdict(contrast), "seeds": apart[name],
            **(interval := over_seeds([*apart[name].values()])), "samples": also and dataclasses.asdict(also),
            "p": verdict and verdict.p, "adjusted": verdict and verdict.adjusted, "verdict": verdict and verdict.verdict,
            "needed": family and seeds_needed(family),
            **_smallest([] if interval["equal"] else [*apart[name].values()], len(table.seeds), family),
            "older": any(state == OLDER for line in lines if line["group"] in contrast.groups for name in contrast.columns
                         for state in line["columns"].get(name, {"states": {}})["states"].values())})
    return found


def over_seeds(apart: list[float]) -> dict:
    """``mean`` of differences over seeds, and their 95 % t-interval ``low``, ``high``; None where there is none: of one seed, and
    of several with ``equal`` differences, whose interval would be a point and promise what so few seeds cannot know."""
    from xtoolkit.metrics.paired import t_interval

    found = t_interval(apart) if apart else None
    equal = found is not None and found.error is not None and found.error < 1e-9
    low, high = (None, None) if found is None or equal else (found.low, found.high)
    return {"mean": found and found.value, "low": low, "high": high, "equal": equal}


def _smallest(apart, seeds, family) -> dict:
    """What so many seeds find in 80 of 100 times by sign flips; by a t-interval where no verdict is given, or could be, however
    large the difference."""
    from xtoolkit.metrics.paired import detectable

    ways = {"sign flips": family, "t-interval": None} if family else {"t-interval": None}
    found = {way: detectable(apart, seeds, primaries=count) for way, count in ways.items()} if len(apart) > 1 else {}
    way = next((way for way, value in found.items() if value is not None), None)
    return {"smallest": way and found[way], "found_by": way}


def compare(jobs: Jobs, lines: list[dict], samples: bool) -> list[dict]:
    """Adds to each line ``reference``, the column that the others are held against, and the ``differences`` of every two columns,
    and returns likewise the means of groups of several rows.

    Differences are {one: {other: what one - other is}}, each pair once, the reference second: ``seeds``, how many, what
    ``over_seeds`` says, and ``samples``: the same by drawing samples and seeds.

    Args:
        samples: draw them, for what is held against the reference by the first metric of each row or a group's mean; else None.

    Returns:
        [{``group``, ``columns``: {column: {``values``}}, ``reference``, ``differences``}].
    """
    table, found = jobs.table, []
    for line in lines:
        metric = table.rows[line["task"]].metrics[line["metric"]]
        first = samples and metric == next(iter(table.rows[line["task"]].metrics.values()))
        cells = lambda column: [jobs.cell(column, line["task"], "", seed) for seed in table.seeds]
        _compare(table, line, (lambda one, other: bootstrap(cells(one), cells(other), metric)) if first else None)
    for group in dict.fromkeys(line["group"] for line in lines if line["group"] is not None):
        own = [line for line in lines if line["group"] == group]
        if len({line["task"] for line in own}) > 1:
            columns = {name: {"values": means(table, lines, group, name)} for name in table.columns
                       if any(name in line["columns"] for line in own)}
            found.append({"group": group, "columns": columns})
            _compare(table, found[-1], (lambda *two: combined(_terms(jobs, [group], two))) if samples else None)
    return found


def _compare(table, line, drawn):
    """Adds what every two columns differ by."""
    columns = line["columns"]
    reference = table.reference or next(reversed(columns), None)
    line |= {"reference": reference if reference in columns else None, "differences": {}}
    for one, other in combinations(columns, 2):
        one, other = (other, one) if one == reference else (one, other)
        held = columns[other]["values"]
        apart = [value - held[seed] for seed, value in columns[one]["values"].items() if seed in held]
        also = drawn(one, other) if drawn and apart and other == reference else None
        line["differences"].setdefault(one, {})[other] = {
            "seeds": len(apart), **over_seeds(apart), "samples": also and dataclasses.asdict(also)}


SIGNS = 1, -1, -1, 1  # of a contrast's columns: (better - than) - (A - B)


def _apart(table, contrast: Contrast, lines) -> dict[int, float]:
    """{seed: difference} of the seeds that all of its columns have in all of its groups."""
    figures = [[means(table, lines, group, column) for group in contrast.groups] for column in contrast.columns]
    seeds = sorted(set.intersection(*(set(of) for several in figures for of in several)))
    return {seed: sum(sign * fmean(of[seed] for of in several) for sign, several in zip(SIGNS, figures)) for seed in seeds}


def _terms(jobs, groups, columns) -> list[tuple[float, list, str]]:
    """The same difference, of two columns or four, as ``combined`` takes it."""
    table, found = jobs.table, []
    for sign, column in zip(SIGNS, columns):
        for group in groups:
            several = counted(table, group, column)
            found += [(sign / len(groups) / len(several) / len(parts), [jobs.cell(column, row, "", seed) for seed in table.seeds],
                       table.rows[row].metrics[title]) for parts in several for row, title in parts]
    return found


# ---- as text ---------------------------------------------------------------------------------------------------------------
def tables(told: dict) -> list[tuple[str, list[str], list[list[str]]]]:
    """[(title, heading, rows)]: the contrasts, then for each group of rows the differences from the reference.

    Args:
        told: what ``table.json`` holds.
    """
    found, drawn = [], any(one["samples"] for one in told["contrasts"])
    if told["contrasts"]:
        heading = ["contrast", "role", "difference", *(["by samples and seeds"] if drawn else []), "seeds", "seeds needed", "p",
                   "p, Holm", "verdict", "smallest found"]
        found.append(("Contrasts", heading, [
            [one["name"], one["role"], _interval(one, 2), *([_interval(_drawn(one), 2)] if drawn else []),
             f"{len(one['seeds'])} of {told['seeds']}", str(one["needed"] or ""), _p(one["p"]), _p(one["adjusted"]),
             _verdict(one), "–" if one["smallest"] is None else f"{one['smallest']:.2f} by {one['found_by']}"]
            for one in told["contrasts"]]))
    for group in dict.fromkeys(line["group"] for line in told["rows"]):
        several = [(line["task"], line["metric"], line) for line in told["rows"] if line["group"] == group]
        to = several[0][2]["reference"]
        several += [(f"**{one['group']}, mean**", "", one) for one in told["groups"] if one["group"] == group]
        columns = [name for name in several[0][2]["columns"] if to is not None and name != to]
        if columns:
            rows = [row for line in several for row in _rows(*line, columns)]
            found.append((f"{group or 'Rows'}: differences from {to}", ["task", "metric", *columns], rows))
    return found


def _rows(task, metric, line, columns):
    """A row of intervals over seeds, and one of samples and seeds where these were drawn."""
    places = decimals(value for cell in line["columns"].values() for value in cell["values"].values())
    every = [line["differences"][name][line["reference"]] for name in columns]
    shown = [[task, metric, *(_interval(one, places) for one in every)]]
    if any(one["samples"] for one in every):
        shown.append([task, "by samples and seeds", *(_interval(_drawn(one), places) for one in every)])
    return shown


def _drawn(one) -> dict:
    """What drawing samples and seeds says, as ``over_seeds`` says it."""
    return one["samples"] | {"mean": one["samples"]["value"], "equal": False} if one["samples"] else {"mean": None}


def _interval(one, places) -> str:
    """`+1.2 (-0.5 to +2.9)`; without an interval the mean alone, and why where seeds are equal; a dash of nothing."""
    if one["mean"] is None:
        return "–"
    signed = lambda value: f"{round(value, places) + 0.:+.{places}f}"
    alone = " (no interval: equal in all seeds)" if one["equal"] else ""
    return signed(one["mean"]) + (alone if one["low"] is None else f" ({signed(one['low'])} to {signed(one['high'])})")


def _p(value) -> str:
    return "" if value is None else f"{value:.3g}"


def _verdict(one) -> str:
    """Of a control also whether it is what it must be."""
    if one["verdict"] is None:
        return "none is given" if one["role"] == "secondary" else "when all seeds are there"
    needs = "; too few seeds to decide" if len(one["seeds"]) < one["needed"] else ""
    older = "; partly of an older engine" if one["older"] else ""
    older += "; asked, or its rows or seeds, when figures were there" if one["late"] else ""
    wanted = EXPECTED.get(one["role"], one["verdict"])
    as_wanted = ", as it must be" if one["role"] in EXPECTED else ""
    if one["verdict"] != wanted:
        as_wanted = "" if needs else f": it must be {wanted}"
    return one["verdict"] + as_wanted + needs + older


def decimals(numbers) -> int:
    """How many a figure is given with: one of per cent, three of a share such as a mean IoU."""
    return 1 if any(abs(number) > 1 for number in numbers) else 3
