"""A table from what its jobs have left in their folders: at every moment, of what is there."""

import dataclasses
import fcntl
import statistics
from pathlib import Path

from xtoolkit.ablation import contrasts, machines, pages, published, work
from xtoolkit.ablation.contrasts import decimals
from xtoolkit.ablation.jobs import FINISHED, LOCK, MISSING, OLDER, Job, Jobs
from xtoolkit.ablation.outputs import bootstrap
from xtoolkit.ablation.table import Table
from xtoolkit.engine.records import write_json, write_text

NOTE = """Values are means over seeds with their standard deviation, and how many seeds where not all are there. A gain is over
the control, averaged over the seeds that both have, with its bootstrap error: the metric of the same samples, drawn with
replacement by their pictures or sentences, and of the same seeds, drawn likewise.
"""
DIFFERENCES = """
Differences are of columns with the same seed, and their intervals hold 95 %: Student's t over seeds, and beside it a bootstrap of
samples and seeds, which few seeds make too narrow. No difference has a verdict but those that were written down.
"""
OLDER_NOTE = "*: finished by an older engine: code that all jobs run through has changed since."
CONTRASTS = """
A contrast is of means over all rows of its groups, and has a verdict when all seeds of the table are there. p is that of the
exact sign-flip test over paired seeds, with Holm's correction over all primaries: below 0.05 it decides, and with fewer seeds
than needed it cannot. Smallest found is the true difference that all these seeds find in 80 of 100 times, by that test, or, where
it cannot decide, by a t-interval of 95 % that leaves out 0, which gives no verdict.
"""


def write(jobs: Jobs, page: bool = False) -> str:
    """Writes ``table.md``, ``.json``, ``.csv`` and ``.tex`` of what is finished into the table's folder; returns the first.

    Args:
        page: write ``table.html`` too, which plans every column, and draw samples for all differences between columns.
    """
    folder = Path(jobs.table.output)
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / LOCK, "w", encoding="utf-8") as held:  # another call may be at the same table
        fcntl.flock(held, fcntl.LOCK_EX)
        return _write(jobs, folder, page)


def _write(jobs, folder, page):
    table = jobs.table
    lines = [line for name in table.rows for line in _lines(jobs, name)]
    alone = len(table.columns) == 1
    groups = [] if alone else contrasts.compare(jobs, lines, samples=page)
    told = {"columns": {name: column.run for name, column in table.columns.items()},
            "seeds": len(table.seeds), "machines": (on := jobs.machines()),
            "contrasts": contrasts.asked(jobs, lines, samples=page), "rows": lines, "groups": groups,
            "work": work.of_columns(jobs, plan=page), "notes": pages.notes(table) + [OLDER_NOTE] * _older(lines)}
    heading, rows = _of_one_column(lines) if alone else _of_columns(lines, table)
    shown = [*contrasts.tables(told), ("Values: means over seeds, their standard deviation", heading, rows),
             *work.tables(told)]
    text = "\n\n".join(f"## {title}\n\n{_markdown(head, several)}" for title, head, several in shown)
    text = "\n".join([text, *([""] if told["notes"] else []), *(f"- {note}" for note in told["notes"])])
    write_json(folder / "table.json", told)
    others = published.read(table.published) if table.published else None
    note = NOTE + machines.lines(on) + ("" if alone else DIFFERENCES) + (CONTRASTS if table.contrasts else "")
    write_text(folder / "table.md", f"{text}\n\n{note}{_others(others) if others else ''}")
    write_text(folder / "table.csv", pages.as_csv(lines))
    write_text(folder / "table.tex", pages.as_tex([*shown, *(others.tables() if others else ())], told["notes"]))
    if page:
        from xtoolkit.ablation import pages_html  # only here: a job's end waits for no template

        pages_html.write(jobs, told, heading, rows, others)
    return text


def _lines(jobs: Jobs, name: str) -> list[dict]:
    """A row of the table for each metric; for the first one also what its controls say, column by column."""
    table, found = jobs.table, []
    row = table.rows[name]
    columns = [column for column in table.columns if table.applies(row, table.columns[column])]
    for title, metric in row.metrics.items():
        cells = {}
        for column in columns:
            own = [jobs.cell(column, name, "", seed) for seed in table.seeds]
            cells[column] = {"values": _known(own, metric), "states": _states(own), "controls": {}}
            for control in row.controls if metric == next(iter(row.metrics.values())) else ():
                against = [jobs.cell(column, name, control, seed) for seed in table.seeds]
                gain = bootstrap(own, against, metric)
                held = {"values": _known(against, metric), "states": _states(against), "gain": gain and dataclasses.asdict(gain)}
                cells[column]["controls"][control] = held
        own = [jobs.cell(column, name, "", seed) for column in columns for seed in table.seeds]
        floor = next(iter(_known(own, metric, "floor").values()), None)
        found.append({"task": name, "group": row.group, "metric": title, "floor": floor, "columns": cells, "reference": None,
                      "differences": {}})
    return found


def _states(jobs: list[Job]) -> dict[int, str]:
    return {job.seed: job.state for job in jobs}


def _older(lines) -> bool:
    return any(OLDER in cell["states"].values() for line in lines for cell in line["columns"].values())


def _known(jobs: list[Job], metric: str, what: str = "metrics") -> dict[int, float]:
    """{seed: figure} of those that are there."""
    return {job.seed: value for job in jobs if (value := job.value(metric, what)) is not None}


# ---- as text ---------------------------------------------------------------------------------------------------------------
def _of_one_column(lines):
    """Heading and rows of a table with one column: each row beside its controls."""
    rows = []
    for line in lines:
        if not line["columns"]:  # of a group that does not apply
            continue
        cell, = line["columns"].values()
        for control, held in (cell["controls"] or {"": {"values": {}, "gain": None}}).items():
            fewer = f" ({len(held['values'])})" if 0 < len(held["values"]) < len(cell["values"]) else ""
            rows.append([line["task"], line["metric"], str(len(cell["values"])) + _seeds(cell), mean(cell["values"].values()),
                         _floor(line), control, mean(held["values"].values()) + fewer,
                         _gain(held["gain"], decimals(cell["values"].values()))])
    return ["task", "metric", "seeds", "value", "floor", "control", "its value", "gain"], rows


def _of_columns(lines, table: Table):
    """Heading and rows of a table with several columns, and under each group the mean of its rows' first metrics."""
    rows, shown = [], lambda cell: f"{mean(cell['values'].values())}{_seeds(cell)}"
    for group in dict.fromkeys(line["group"] for line in lines):
        own = [line for line in lines if line["group"] == group]
        rows += [[line["task"], line["metric"], _floor(line),
                  *(shown(line["columns"][name]) if name in line["columns"] else "" for name in table.columns)] for line in own]
        if group is not None and len({line["task"] for line in own}) > 1:
            rows.append([f"**{group}, mean**", "", "", *(_average(own, name, table) for name in table.columns)])
    return ["task", "metric", "floor", *table.columns], rows


def _average(lines, column, table):
    """The mean over rows of a column; a dash until all seeds of them are there, nothing where they do not apply."""
    if not any(column in line["columns"] for line in lines):
        return ""
    found = contrasts.means(table, lines, lines[0]["group"], column)
    return f"{statistics.fmean(found.values()):.1f}" if len(found) == len(table.seeds) else "–"


def _seeds(cell):
    """An asterisk where an older engine has finished a part; how many seeds a cell has, unless all; what is wrong with others."""
    states = [*cell["states"].values()]
    wrong = [state for state in states if state not in (FINISHED, OLDER, MISSING)]
    wrong += ["no finite figure"] * (sum(state in (FINISHED, OLDER) for state in states) > len(cell["values"]))
    few = f"{len(cell['values'])} of {len(states)}" if len(cell["values"]) < len(states) else ""
    said = ": ".join(filter(None, [few, ", ".join(dict.fromkeys(wrong))]))
    return "*" * (OLDER in states) + (f" ({said})" if said else "")


def _markdown(heading, rows):
    return "\n".join(["| " + " | ".join(row) + " |" for row in [heading, ["---"] * len(heading), *rows]])


def _others(found: published.Published) -> str:
    """What others have published, with its notes: below our table and never in it."""
    tables = [f"{title}\n\n{_markdown(heading, rows)}" for title, heading, rows in found.tables()]
    return "\n".join(["", f"## {found.title}", "", f"Source: {found.source}. No figure of ours is in it.", "",
                      "\n\n".join(tables), "", *(f"- {' '.join(note.split())}" for note in found.notes), ""])


def _floor(line):
    return mean([] if line["floor"] is None else [line["floor"]])


def mean(numbers) -> str:
    """`61.2 ± 0.8`; of one number itself; a dash of none."""
    numbers = list(numbers)
    places = decimals(numbers)
    spread = f" ± {statistics.stdev(numbers):.{places}f}" if len(numbers) > 1 else ""
    return f"{statistics.fmean(numbers):.{places}f}{spread}" if numbers else "–"


def _gain(gain: dict | None, places: int) -> str:
    """`+2.0 ± 1.0`; a dash where there is none (yet)."""
    if gain is None:
        return "–"
    told = "no error: its draws do not vary" if gain["error"] is None else f"± {gain['error']:.{places}f}"
    return f"{gain['value']:+.{places}f} {told}"
