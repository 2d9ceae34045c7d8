"""What a table's differences say: verdicts on the contrasts that were written down before it ran, intervals for all others."""

import dataclasses
import json
from pathlib import Path
from statistics import fmean

from xtoolkit.ablation.jobs import DONE, OLDER, Jobs
from xtoolkit.ablation.machines import seeds
from xtoolkit.ablation.outputs import bootstrap
from xtoolkit.ablation.table import Contrast, Table
from xtoolkit.engine.records import write_json

SEEDS = 20  # at most, of a table with contrasts: ``sign_flip`` enumerates all flips
ASKED = "asked.json"  # in a table's folder: its contrasts when it had no figures yet
EXPECTED = {"negative control": "undecided", "positive control": "better"}


# ---- what is computed ------------------------------------------------------------------------------------------------------
def means(table: Table, lines: list[dict], group: str | None, column: str) -> dict[int, float]:
    """{seed: a column's mean over the rows of a group, as they count}, of the seeds in which all of these are there.

    Args:
        lines: the ``rows`` of ``table.json``.
    """
    found = []  # for each figure that counts the values it is the mean of
    for name, row in table.rows.items():
        values = [line["columns"][column]["values"] for line in lines
                  if line["task"] == name and line["group"] == group and column in line["columns"]]
        found += {"first": [values[:1]], "mean": [values], "each": [[one] for one in values]}[row.counts] if values else []
    seeds = sorted(set.intersection(*(set(of) for several in found for of in several))) if found else []
    return {seed: fmean(fmean(of[seed] for of in several) for several in found) for seed in seeds}


def late(table: Table) -> set[str]:
    """The contrasts that were added or changed when figures were there already, or whose rows or seeds were; what was asked
    before them is kept."""
    path = Path(table.output) / ASKED
    now = {name: {"contrast": dataclasses.asdict(one), "seeds": table.seeds,
                  "rows": {row: [of.group, of.metrics, of.counts] for row, of in table.rows.items() if of.group in one.groups}}
           for name, one in table.contrasts.items()}
    if not seeds(table.output, DONE):
        write_json(path, now)
        return set()
    before = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    return {name for name, one in now.items() if before.get(name) != one}


def asked(table: Table, lines: list[dict]) -> list[dict]:
    """What each contrast says, in the order of the table's YAML: ``name`` and its keys; ``seeds`` {seed: difference}, their
    ``mean`` and 95 % t-interval ``low``, ``high``; ``p`` of the exact sign-flip test, ``adjusted`` by Holm's correction over all
    primaries, ``verdict``, ``needed``: how many seeds could decide where these cannot; ``smallest``, the true difference that all
    seeds of the table find in 80 of 100 times; ``older``, whether an older engine has finished a part of it, and ``late``,
    whether it was written down when figures were there. None where there is no such thing: a verdict is given when all seeds are
    there, and only then, or it would be given at every look and taken back.
    """
    if not table.contrasts:
        return []
    from xtoolkit.metrics.paired import detectable, t_interval, verdicts  # only here: a mistake is answered without NumPy

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
        several, verdict = [*apart[name].values()], given[name] if whole[name] and name in given else None
        interval = t_interval(several) if several else None
        family = len(primary) if contrast.role == "primary" else 1 if contrast.role in EXPECTED else None
        found.append({
            "name": name, "late": name in after, **dataclasses.asdict(contrast), "seeds": apart[name],
            "mean": interval and interval.value,
            "low": interval and interval.low, "high": interval and interval.high, "p": verdict and verdict.p,
            "adjusted": verdict and verdict.adjusted, "verdict": verdict and verdict.verdict,
            "needed": verdict and verdict.needed,
            "smallest": detectable(several, len(table.seeds), primaries=family) if len(several) > 1 else None,
            "older": any(state == OLDER for line in lines if line["group"] in contrast.groups for name in contrast.columns
                         for state in line["columns"].get(name, {"states": {}})["states"].values())})
    return found


def compare(jobs: Jobs, lines: list[dict], samples: bool) -> list[dict]:
    """Adds ``difference`` to the cells of lines, against the reference, and returns likewise the means of groups of several rows.

    A difference is ``to`` that column: ``seeds``, how many, ``mean`` and 95 % t-interval ``low``, ``high`` over them, and
    ``samples``: the same by drawing samples and seeds.

    Args:
        samples: draw them, for the first metric of each row; else None.

    Returns:
        [{``group``, ``columns``: {column: {``values``, ``difference``}}}].
    """
    table = jobs.table
    for line in lines:
        metric = table.rows[line["task"]].metrics[line["metric"]]
        first = samples and metric == next(iter(table.rows[line["task"]].metrics.values()))
        cells = lambda column: [jobs.cell(column, line["task"], "", seed) for seed in table.seeds]
        _against(table, line["columns"], (lambda one, other: bootstrap(cells(one), cells(other), metric)) if first else None)
    found = []
    for group in dict.fromkeys(line["group"] for line in lines if line["group"] is not None):
        own = [line for line in lines if line["group"] == group]
        if len({line["task"] for line in own}) > 1:
            columns = {name: {"values": means(table, lines, group, name)} for name in table.columns
                       if any(name in line["columns"] for line in own)}
            _against(table, columns, None)
            found.append({"group": group, "columns": columns})
    return found


def _against(table, columns, drawn):
    """Adds what each column differs by from the reference."""
    other = table.reference or next(reversed(columns), None)
    for name, cell in columns.items():
        if name == other or other not in columns:
            continue
        held = columns[other]["values"]
        apart = [value - held[seed] for seed, value in cell["values"].items() if seed in held]
        difference = {"to": other, "seeds": len(apart), "mean": None, "low": None, "high": None, "samples": None}
        if apart:
            from xtoolkit.metrics.paired import t_interval

            found, also = t_interval(apart), drawn(name, other) if drawn else None
            difference |= {"mean": found.value, "low": found.low, "high": found.high}
            difference["samples"] = also and dataclasses.asdict(also)
        cell["difference"] = difference


def _apart(table, contrast: Contrast, lines) -> dict[int, float]:
    """{seed: difference} of the seeds that all of its columns have in all of its groups."""
    figures = [[means(table, lines, group, column) for group in contrast.groups] for column in contrast.columns]
    seeds = sorted(set.intersection(*(set(of) for several in figures for of in several)))
    signs = (1, -1, -1, 1)
    return {seed: sum(sign * fmean(of[seed] for of in several) for sign, several in zip(signs, figures)) for seed in seeds}


# ---- as text ---------------------------------------------------------------------------------------------------------------
def tables(told: dict) -> list[tuple[str, list[str], list[list[str]]]]:
    """[(title, heading, rows)]: the contrasts, then for each group of rows the differences from the reference.

    Args:
        told: what ``table.json`` holds.
    """
    found = []
    if told["contrasts"]:
        found.append(("Contrasts", [
            "contrast", "role", "difference", "seeds", "p", "p, Holm", "verdict", "smallest found"],
            [[one["name"], one["role"], _interval(one, 2), f"{len(one['seeds'])} of {told['seeds']}", _p(one["p"]),
              _p(one["adjusted"]), _verdict(one), "–" if one["smallest"] is None else f"{one['smallest']:.2f}"]
             for one in told["contrasts"]]))
    for group in dict.fromkeys(line["group"] for line in told["rows"]):
        own = [line for line in told["rows"] if line["group"] == group]
        several = [(line["task"], line["metric"], line["columns"]) for line in own]
        several += [(f"**{one['group']}, mean**", "", one["columns"]) for one in told["groups"] if one["group"] == group]
        columns = list(dict.fromkeys(name for *_, cells in several for name, cell in cells.items() if "difference" in cell))
        if columns:
            to = next(cell["difference"]["to"] for *_, cells in several for cell in cells.values() if "difference" in cell)
            rows = [row for line in several for row in _rows(*line, columns)]
            found.append((f"{group or 'Rows'}: differences from {to}", ["task", "metric", *columns], rows))
    return found


def _rows(task, metric, cells, columns):
    """A row of intervals over seeds, and one of samples and seeds where these were drawn."""
    places = decimals(value for cell in cells.values() for value in cell["values"].values())
    every = [cells.get(name, {}).get("difference") for name in columns]
    shown = [[task, metric, *("" if one is None else _interval(one, places) for one in every)]]
    if any(one and one["samples"] for one in every):
        shown.append([task, "by samples and seeds", *(_interval(one["samples"] | {"mean": one["samples"]["value"]}, places)
                                                      if one and one["samples"] else "" for one in every)])
    return shown


def _interval(one, places) -> str:
    """`+1.2 (-0.5 to +2.9)`; without an interval the mean alone; a dash of nothing."""
    if one["mean"] is None:
        return "–"
    signed = lambda value: f"{round(value, places) + 0.:+.{places}f}"
    return signed(one["mean"]) + ("" if one["low"] is None else f" ({signed(one['low'])} to {signed(one['high'])})")


def _p(value) -> str:
    return "" if value is None else f"{value:.3g}"


def _verdict(one) -> str:
    """Of a control also whether it is what it must be."""
    if one["verdict"] is None:
        return "none is given" if one["role"] == "secondary" else "when all seeds are there"
    needs = f"; {one['needed']} seeds could decide" if one["needed"] is not None else ""
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
