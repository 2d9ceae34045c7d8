"""What training took: the plan's operations of a row of each stream, forward and backward, times the rows that were seen."""

import json
from pathlib import Path

from xtoolkit.ablation.jobs import Job, Jobs
from xtoolkit.engine.records import read_lines, write_json
from xtoolkit.recipe.folder import METRICS
from xtoolkit.registry import ConfigError

COUNTS = "gflops.json"  # in a table's folder: {key of what was pretrained: {stream: GFLOPs a row}}
OWN = "its own"


def gflops(jobs: Jobs, several: list[Job], plan: bool) -> dict[str, dict[str, float] | None]:
    """{key of a job: {stream: GFLOPs that training on a row of it takes}}; None where they are unknown.

    Args:
        plan: plan what is not known yet, which takes seconds, and keep it.
    """
    path = Path(jobs.table.output) / COUNTS
    known = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    if plan:
        known |= {job.key: _planned(job) for job in several if job.key not in known}
        write_json(path, known)
    return {job.key: known[job.key] if job.key in known else None for job in several}


def _planned(job) -> dict[str, float] | None:
    from xtoolkit.plan import make_plan

    try:
        streams = make_plan(job.recipe.checked).streams
    except ConfigError:
        return None
    return None if any(stream.gflops is None for stream in streams) else {stream.name: stream.gflops for stream in streams}


def spent(line: dict, rows: dict[str, float]) -> float:
    """GFLOPs up to a line of ``metrics.jsonl``."""
    return sum(each * line.get(f"samples.{stream}", 0) for stream, each in rows.items())


def of_columns(jobs: Jobs, plan: bool) -> dict[str, dict[str, float | None]]:
    """{column: {``OWN``, or a start that it comes from: TFLOPs of its training}}, of the first of its seeds that is finished;
    None where they are unknown, as of weights that were there. A start of several columns counts in each.

    Args:
        plan: see ``gflops``.
    """
    found = {}
    for column in jobs.table.columns:
        trained = (jobs.pretrained("columns", column, seed) for seed in jobs.table.seeds)
        if (job := next((job for job in trained if isinstance(job, Job) and job.complete), None)) is not None:
            found[column] = {OWN: job} | _starts(job)
    known = gflops(jobs, [job for of in found.values() for job in of.values() if isinstance(job, Job)], plan)
    return {column: {name: _trained(job, known) for name, job in of.items()} for column, of in found.items()}


def _starts(job) -> dict:
    """{name: what it starts from}, and what these start from."""
    found = {}
    for start in job.after:
        found |= {f"start: {start.column}": start} | _starts(start) if isinstance(start, Job) else {str(start.folder): start}
    return found


def _trained(job, known) -> float | None:
    """TFLOPs."""
    rows = known[job.key] if isinstance(job, Job) else None
    last = (read_lines(job.folder / METRICS) or [{}])[-1] if rows is not None else {}
    seen = rows is not None and all(f"samples.{stream}" in last for stream in rows)
    return spent(last, rows) / 1000 if seen else None


def tables(told: dict) -> list[tuple[str, list[str], list[list[str]]]]:
    """[(title, heading, rows)]: a line of what each column took with all that it starts from, and a line for each part. Empty
    where nothing is known.

    Args:
        told: what ``table.json`` holds.
    """
    work = {column: of for column, of in told["work"].items() if any(value is not None for value in of.values())}
    if not work:
        return []
    from xtoolkit.report.charts import number  # only here: a mistake in the table is answered without templates

    shown = lambda value: "–" if value is None else number(value)
    sums = {column: None if None in of.values() else sum(of.values()) for column, of in work.items()}
    parts = dict.fromkeys(name for of in work.values() for name in of)
    return [("Training, TFLOPs: the plan's of a row, forward and backward, times the rows that were seen", ["training", *work], [
        ["with all starts", *map(shown, sums.values())],
        *([name, *(shown(of[name]) if name in of else "" for of in work.values())] for name in parts)])]
