"""Runs side by side: what differs in their recipes and environments, their results, their curves over each other."""

import os
from pathlib import Path

from xtoolkit.recipe.folder import METRICS
from xtoolkit.report.charts import Chart, Curve, laid_out, number
from xtoolkit.report.figures import COLOURS
from xtoolkit.report.page import duration, elsewhen, figure
from xtoolkit.report.record import Run
from xtoolkit.report.rendering import render
from xtoolkit.report.tables import aligned

ABSENT = "–"
# Of the environment what no figure depends on.
FREE = ("command", "started")
# What an evaluation gives of the uncertainty of another figure is no figure to compare.
BOUNDS = ("_low", "_high")


def labels(folders: list[Path]) -> list[str]:
    """What tells each of several folders from the others: its path, without what all of them begin and end with."""
    paths = [folder.resolve() for folder in folders]
    shared = Path(os.path.commonpath([path.parent for path in paths]))
    parts = [list(path.relative_to(shared).parts) for path in paths]
    while all(len(own) > 1 for own in parts) and len({own[-1] for own in parts}) == 1:
        parts = [own[:-1] for own in parts]
    return ["/".join(own) for own in parts]


def without_results(run: Run) -> bool:
    """Whether a run has neither logged a step nor evaluated anything: there is nothing to compare."""
    return not run.lines and not run.evaluations


def differing(blocks: list, path: tuple = ()) -> list[tuple[str, list]]:
    """[(key with dots, its value in each)] of all that is not the same in nested mappings; None where it is not there at all,
    and ``[value]`` where it is, so that null and nothing are told apart. A block that one of them lacks is one key."""
    found = []
    for key in dict.fromkeys(key for block in blocks for key in block):
        values = [[block[key]] if key in block else None for block in blocks]
        if all(value is not None and isinstance(value[0], dict) for value in values):
            found += differing([value[0] for value in values], (*path, str(key)))
        elif any(value != values[0] for value in values):
            found.append((".".join((*path, str(key))), values))
    return found


def recipes(runs: list[Run]) -> list[list[str]]:
    """Rows (key, its value in each run) of the resolved recipes; where a run writes is no difference."""
    blocks = [run.config | {"train": {key: value for key, value in (run.config.get("train") or {}).items() if key != "output"}}
              for run in runs]
    return [[key, *map(_told, values)] for key, values in differing(blocks)]


def environments(runs: list[Run]) -> list[list[str]]:
    """Rows (what, in each run) of the machines, versions and commits that they ran with."""
    blocks = [{key: value for key, value in run.environment.items() if key not in FREE} for run in runs]
    return [[key, *map(_told, values)] for key, values in differing(blocks)]


def _told(value) -> str:
    return ABSENT if value is None else inline(value[0])


def inline(value) -> str:
    """A value as YAML has it on one line."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key}: {inline(inner)}" for key, inner in value.items()) + "}"
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(map(inline, value)) + "]"
    return {None: "null", True: "true", False: "false"}[value] if value is None or isinstance(value, bool) else str(value)


# ---- results --------------------------------------------------------------------------------------------------------------
def results(runs: list[Run], every: bool = False) -> list[list[str]]:
    """Rows (metric, floor, the figure of each run with its difference to the first): the headlines of evaluations, all of their
    metrics where they have none or with ``every``; then the newest value of each loss."""
    rows = []
    for name in dict.fromkeys(name for run in runs for name in run.evaluations):
        own = [run.evaluations.get(name) for run in runs]
        known = [one for one in own if one is not None]
        wanted = [metric for one in known for headline in one.headlines for metric in one.of_headline(headline)]
        more = [metric for one in known for metric in one.metrics if not metric.endswith(BOUNDS)]
        for metric in dict.fromkeys(wanted + more if every or not wanted else wanted):
            floors = {one.floor.get(metric) for one in known}
            floor = floors.pop() if len(floors) == 1 else None
            values = [None if one is None else one.metrics.get(metric) for one in own]
            rows.append([f"{name}.{metric}", ABSENT if floor is None else figure(floor), *_beside(values, figure)])
    losses = [f"{stream}.{loss}" for run in runs for stream, block in run.streams.items() for loss in block.get("losses") or {}]
    for key in ["loss", *dict.fromkeys(losses)]:
        if any(points := [run.points(key) for run in runs]):
            rows.append([key, ABSENT, *_beside([one[-1][1] if one else None for one in points], number)])
    return rows


def _beside(values: list, told) -> list[str]:
    """Figures as text; behind each after the first its difference to that."""
    said = [ABSENT if value is None else told(value) for value in values]
    first = values[0]
    places = 1 if any(value is not None and abs(value) >= 1 and told is figure for value in values) else 3
    return [said[0], *(one if value is None or first is None else f"{one} ({value - first:+.{places}f})"
                       for one, value in zip(said[1:], values[1:]))]


def remarks(names: list[str], runs: list[Run]) -> list[str]:
    """Of which checkpoint or part of the data a run's evaluation is, where that is not plain; which runs have not ended."""
    found = [f"{name}: {evaluation}: {said}" for name, run in zip(names, runs)
             for evaluation, one in run.evaluations.items() if (said := elsewhen(run, one))]
    return found + [f"{name}: {run.step:,} of {run.config['train']['steps']:,} steps" for name, run in zip(names, runs)
                    if run.streams and run.step < run.config["train"]["steps"]]


# ---- curves ---------------------------------------------------------------------------------------------------------------
def curves(names: list[str], runs: list[Run]) -> list[tuple[str, list]]:
    """[(title, panels)]: losses, what evaluations gave over the steps, and their parts, gradients and rates; a curve a run."""
    def panel(key, smooth=True):
        own = [Curve(name, run.points(key), i % COLOURS) for i, (name, run) in enumerate(zip(names, runs))]
        return Chart(key, own, smooth=smooth and key != "lr", linear=key == "lr")

    logged = list(dict.fromkeys(key for run in runs for key in run.logged))
    losses = [key for key in logged if key.count(".") == 1]
    evaluated = [f"{name}.{metric}" for run in runs for name, one in run.evaluations.items()
                 for metric in ([m for headline in one.headlines for m in one.of_headline(headline)] or one.metrics)]
    several = [key for key in dict.fromkeys(evaluated) if any(len(run.points(key)) > 1 for run in runs)]
    norms = [key for key in dict.fromkeys(key for run in runs for key in run.keys) if key.startswith("norm.")]
    rates = ["norm", "lr", "samples_per_s", "memory_gb", "data_share"]
    return laid_out([("Losses", [panel(key) for key in ("loss", *losses)]),
                     ("Evaluations", [panel(key, False) for key in several]),
                     ("Behind them", [panel(key) for key in [*(key for key in logged if key not in losses), *norms, *rates]])])


# ---- as text and as a page ------------------------------------------------------------------------------------------------
def as_text(names: list[str], runs: list[Run]) -> str:
    """All but the curves, for a terminal; long values are cut short."""
    short = lambda rows: [[cell if len(cell) <= 48 else cell[:47] + "…" for cell in row] for row in rows]
    tables = [("recipe", short(recipes(runs)), ["key", *names], "no key differs"),
              ("environment", short(environments(runs)), ["what", *names], ""),
              ("results, and differences to the first", results(runs), ["metric", "floor", *names], "")]
    said = [f"{title}\n{aligned([heading, *rows])}" if rows else f"{title}: {none}" for title, rows, heading, none in tables
            if rows or none]
    return "\n\n".join([*said, *(["\n".join(found)] if (found := remarks(names, runs)) else [])])


def as_page(names: list[str], runs: list[Run]) -> str:
    """The whole page: nothing fetched."""
    facts = [[name, f"{run.step:,}", duration(seconds[-1][1]) if (seconds := run.points("seconds")) else ABSENT]
             for name, run in zip(names, runs)]
    return render("compare.html", names=names, facts=facts, recipes=recipes(runs), environments=environments(runs),
                  results=results(runs, every=True), remarks=remarks(names, runs), curves=curves(names, runs), source=METRICS,
                  columns=range(1, len(names) + 1))
