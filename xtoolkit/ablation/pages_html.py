"""A table on one self-contained page: differences first, then values, seeds, curves by column, samples that differ."""

from pathlib import Path

from markupsafe import Markup

from xtoolkit.ablation import contrasts, work
from xtoolkit.ablation.jobs import Job, Jobs
from xtoolkit.ablation.pages import BOLD
from xtoolkit.ablation.pages_samples import differing
from xtoolkit.ablation.published import Published
from xtoolkit.ablation.recipe import There
from xtoolkit.recipe.folder import CONFIG, METRICS
from xtoolkit.report.charts import Chart, Curve, laid_out, thinned
from xtoolkit.report.figures import COLOURS
from xtoolkit.report.record import Run, read_run
from xtoolkit.report.rendering import render, write as write_page
from xtoolkit.report.strips import layout as strip

NAME = "table.html"
MOST = 10**7  # bytes of it
LEFT_OFF = {"samples": "pairs of columns with their samples", "work": "kinds of curves at equal work",
            "curves": "kinds of curves at equal steps", "strips": "figures seed by seed"}  # in this order, where it is larger
UNITS = ["GFLOPs", "TFLOPs", "PFLOPs", "EFLOPs", "ZFLOPs"]


def write(jobs: Jobs, told: dict, heading: list[str], rows: list[list[str]], others: Published | None) -> Path:
    """Writes ``table.html`` into the table's folder: no script, nothing fetched. Returns its path.

    Args:
        told: what ``table.json`` holds.
        heading, rows: the table as ``table.md`` has it.
        others: what others have published.
    """
    table, lines = jobs.table, told["rows"]
    (seed, runs), known = _runs(jobs), others and [(title, head, _bold(several)) for title, head, several in others.tables()]
    states = [state for line in lines for cell in line["columns"].values() for state in cell["states"].values()]
    parts = {"samples": _samples(jobs, _pairs(told)), "work": _curves(table, *_work(jobs, runs)),
             "curves": _curves(table, runs), "strips": _strips(table, lines)}
    page = lambda left: render(
        "ablation.html", name=Path(table.output).resolve().name, seeds=table.seeds, finished=sum(map(_finished, states)),
        cells=len(states), notes=told["notes"], left=left, most=f"{MOST / 10**6:g} MB", seed=seed, source=METRICS,
        columns=[[name, column.run or column.recipe or table.recipe, "\n".join(table.overrides(column))]
                 for name, column in table.columns.items()],
        differences=[(title, head, _bold(several)) for title, head, several in contrasts.tables(told)],
        values=[*_values(lines, heading, rows), *work.tables(told)], lines=len(lines), colours=COLOURS,
        others=others, known=known, **parts)
    return write_page(Path(table.output) / NAME, _small(page, parts))


def _small(page, parts) -> str:
    """The page, with as many of its large parts as it has room for; it says what is left off.

    Args:
        page: renders it with ``parts`` as they then are, and with lines of what they lack.
        parts: {name: several}.
    """
    counts = {name: len(several) for name, several in parts.items()}
    while True:
        left = [f"{counts[name] - len(parts[name])} of {counts[name]} {what}" for name, what in LEFT_OFF.items()
                if len(parts[name]) < counts[name]]
        text = page(left)
        large = next((name for name in LEFT_OFF if parts[name]), None)
        if large is None or len(text.encode()) <= MOST:
            return text
        parts[large] = parts[large][:len(parts[large]) // 2]


def _bold(rows):
    """Rows whose first cell is in asterisks have it in bold."""
    return [[Markup("<b>{}</b>").format(found[1]) if (found := BOLD.fullmatch(row[0])) else row[0], *row[1:]] for row in rows]


def _finished(state: str) -> bool:
    return state.startswith("finished")


# ---- values ---------------------------------------------------------------------------------------------------------------
def _pairs(told: dict) -> dict[str | None, list[tuple[str, str]]]:
    """{group: pairs of columns}: all others against the one that they are held against."""
    return {line["group"]: [(name, line["reference"]) for name in line["columns"] if name != line["reference"]]
            for line in told["rows"] if line["reference"] is not None}


def _values(lines, heading, rows) -> list[tuple[str, list, list]]:
    """[(group, heading, rows)] of the table itself, each group without the columns that do not apply to it."""
    if len({name for line in lines for name in line["columns"]}) < 2:  # beside its controls
        return [("", heading, rows)]
    found, left = [], list(rows)
    for group in dict.fromkeys(line["group"] for line in lines):
        count = sum(line["group"] == group for line in lines)
        count += count < len(left) and BOLD.fullmatch(left[count][0]) is not None
        own, left = left[:count], left[count:]
        kept = [i for i in range(len(heading)) if i < 3 or any(row[i] for row in own)]
        found.append((group or "", [heading[i] for i in kept], _bold([[row[i] for i in kept] for row in own])))
    return found


def _strips(table, lines) -> list[dict]:
    """For each figure the values of all seeds, column by column; of a single column also those of its controls."""
    colours = {name: i % COLOURS for i, name in enumerate([*table.columns, *table.controls])}
    found = []
    for line in lines:
        cells = line["columns"].items()
        held = {name: cell["values"] for name, cell in cells} if len(table.columns) > 1 else \
            {shown: one["values"] for name, cell in cells for shown, one in {name: cell, **cell["controls"]}.items()}
        values = {name: {f"seed {seed}": value for seed, value in of.items()} for name, of in held.items()}
        found.append(strip(f"{line['task']}: {line['metric']}", values, colours, line["floor"]))
    return [one for one in found if one]


# ---- curves ---------------------------------------------------------------------------------------------------------------
def _runs(jobs: Jobs) -> tuple[int, dict[str, tuple[Job | There, Run]]]:
    """The seed of which most columns are finished, or else have begun, the first of several; and {column: what was pretrained for
    it with that seed, and what is known of that}."""
    trained = lambda seed: {name: jobs.pretrained("columns", name, seed) for name in jobs.table.columns}
    begun = lambda job: all((job.folder / name).is_file() for name in (CONFIG, METRICS))
    seed = max(jobs.table.seeds, key=lambda seed: (sum(job.complete and begun(job) for job in trained(seed).values()),
                                                   sum(map(begun, trained(seed).values()))))
    found = {name: (job, read_run(job.folder)) for name, job in trained(seed).items() if begun(job)}
    return seed, {name: (job, run) for name, (job, run) in found.items() if run.lines}


def _curves(table, runs, across=None, unit="") -> list[tuple[str, list]]:
    """[(title, panels)]: the losses of each stream and what was evaluated beside training, a curve a column.

    Args:
        across: {column: {step: where it stands}}; None: at its step.
        unit: of that.
    """
    places = list(table.columns)

    def panel(key, smooth=True):
        own = {column: run.points(key) for column, (_, run) in runs.items() if across is None or column in across}
        if across is not None:
            own = {column: [(across[column][step], value) for step, value in points if step in across[column]]
                   for column, points in own.items()}
        return Chart(f"{key}{unit and ', over '}{unit}", [
            Curve(column, thinned(points), places.index(column) % COLOURS, broken=places.index(column) >= COLOURS)
            for column, points in own.items()], smooth=smooth)

    logged = dict.fromkeys(key for _, run in runs.values() for key in run.logged if key.count(".") == 1)
    evaluated = dict.fromkeys(f"{name}.{metric}" for _, run in runs.values() for name, one in run.evaluations.items()
                              for headline in one.headlines for metric in one.of_headline(headline))
    several = [key for key in evaluated if any(len(run.points(key)) > 1 for _, run in runs.values())]
    return laid_out([("Losses", [panel(key) for key in logged]), ("Evaluations", [panel(key, False) for key in several])])


def _work(jobs, runs):
    """Runs again, {column: {step: operations up to it}}, and their unit."""
    found, known = {}, work.gflops(jobs, [job for job, _ in runs.values() if isinstance(job, Job)], plan=True)
    for column, (job, run) in runs.items():
        rows = known[job.key] if isinstance(job, Job) else None
        if rows and all(f"samples.{stream}" in run.lines[-1] for stream in rows):
            found[column] = {line["step"]: work.spent(line, rows) for line in run.lines}
    most = max((value for steps in found.values() for value in steps.values()), default=0)
    power = next((n for n in range(len(UNITS)) if most < 1e4 * 1000 ** n), len(UNITS) - 1)
    scaled = {column: {step: value / 1000 ** power for step, value in steps.items()} for column, steps in found.items()}
    return runs, scaled, UNITS[power]


# ---- samples --------------------------------------------------------------------------------------------------------------
def _samples(jobs, pairs) -> list[tuple[str, list, list]]:
    """[(title, heading, rows)] for each row and pair of columns, or a single column and each of its controls, that have scores of
    the same samples."""
    found = []
    for name, row in jobs.table.rows.items():
        metric = next(iter(row.metrics.values()))
        cells = lambda column, control="": [jobs.cell(column, name, control, seed) for seed in jobs.table.seeds]
        pairings = [(one, cells(one), other, cells(other)) for one, other in pairs.get(row.group, ())]
        if len(jobs.table.columns) == 1:
            only, = jobs.table.columns
            pairings = [(only, cells(only), control, cells(only, control)) for control in row.controls]
        for one, ones, other, others in pairings:
            if rows := differing(ones, others, metric):
                heading = ["sample", f"score of {one}", f"of {other}", "both", one, other]
                found.append((f"{name}: {one} and {other}", heading, rows))
    return found
