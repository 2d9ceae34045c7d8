"""Gradients loss by loss, as tables, heat maps and curves: what the hook LossGradients wrote, or the command found."""

import itertools

from xtoolkit.report.charts import Chart, Curve, number
from xtoolkit.report.figures import COLOURS

MOMENTS = 12  # audits of a heat map over training, at most


def norm_table(sizes: dict) -> list[list[str]]:
    """Rows of text, the heading first, of {row: {encoder: norm}}."""
    encoders = list(next(iter(sizes.values()), {}))
    return [["loss", *encoders], *([row, *(number(of[e]) for e in encoders)] for row, of in sizes.items())]


def cosine_table(found: list) -> list[list[str]]:
    """Rows of text, the heading first, of [(row, row, cosine)]; a cell below the diagonal is not said twice."""
    names = list(dict.fromkeys([one for one, _, _ in found] + [other for _, other, _ in found]))
    known = {(one, other): value for one, other, value in found}
    return [["", *names[1:]], *([one, *(f"{known[one, other]:+.3f}" if (one, other) in known else "" for other in names[1:])]
                                for one in names[:-1])]


def heat_maps(run) -> list[dict]:
    """The newest numbers of each hook, and its cosines over training: ``title``, ``heading`` and ``rows``, whose cells are (text,
    per cent of colour, whether it is below 0)."""
    maps = []
    for name, sizes, agree in _audits(run):
        largest = {e: max((of[e] for of in sizes.values()), default=0) for e in next(iter(sizes.values()))}
        shades = {(row, e): 70 * of[e] / largest[e] if largest[e] else 0 for row, of in sizes.items() for e in of}
        heading, *rows = norm_table(sizes)
        maps.append({"title": f"{name}: gradient norm, coloured within each encoder", "heading": heading, "rows": [
            [(row[0], 0, False), *((text, shades[row[0], e], False) for text, e in zip(row[1:], heading[1:]))] for row in rows]})
        for encoder, found in agree.items():
            maps.append(_shaded(f"{name}: cosine in {encoder}", cosine_table([(*two, of[-1][1]) for two, of in found.items()])))
            if len((table := _over_training(found))[0]) > 2:
                maps.append(_shaded(f"{name}: cosine in {encoder} over training, step by step", table))
    return maps


def _shaded(title, table) -> dict:
    """A heat map of cosines."""
    heading, *rows = table
    return {"title": title, "heading": heading, "rows": [
        [(row[0], 0, False), *((text, 70 * abs(float(text or 0)), text.startswith("-")) for text in row[1:])] for row in rows]}


def _over_training(found) -> list[list[str]]:
    """Rows of text, the heading first, of {(row, row): [(step, cosine)]}: a column an audit, spread evenly over them."""
    steps = sorted({step for points in found.values() for step, _ in points})
    shown = min(MOMENTS, len(steps))
    steps = [steps[round(n * (len(steps) - 1) / max(1, shown - 1))] for n in range(shown)]
    known = {", ".join(two): dict(points) for two, points in found.items()}
    return [["losses", *map(str, steps)],
            *([name, *(f"{of[step]:+.3f}" if step in of else "" for step in steps)] for name, of in known.items())]


def norm_charts(run) -> list[Chart]:
    """Of each encoder the norm of every loss that ever reached it, over the steps."""
    charts = []
    for name, sizes, _ in _audits(run):
        for encoder in next(iter(sizes.values())):
            curves = {row: run.points(f"{name}.norm.{row}.{encoder}") for row in sizes}
            curves = {row: points for row, points in curves.items() if any(value for _, value in points)}
            charts.append(Chart(f"{name}: gradient norm of {encoder}", [
                Curve(row, points, i % COLOURS) for i, (row, points) in enumerate(curves.items())], smooth=False))
    return charts


def _audits(run):
    """(hook, {row: {encoder: newest norm}}, {encoder: {(row, row): [(step, cosine)]}}) of each hook that wrote such."""
    losses = [f"{stream}.{loss}" for stream, block in run.streams.items() for loss in block.get("losses") or {}]
    encoders, newest = run.config.get("encoders") or {}, {}
    for line in run.lines:
        newest |= {key: value for key, value in line.items() if value is not None}
    for name in run.config.get("hooks") or {}:
        sizes = {row: of for row in losses
                 if (of := {e: newest[key] for e in encoders if (key := f"{name}.norm.{row}.{e}") in newest})}
        agree = {e: found for e in encoders if (found := {
            (one, other): run.points(key) for one, other in itertools.combinations(losses, 2)
            for pair in ((one, other), (other, one)) if (key := f"{name}.cosine.{e}.{'.'.join(pair)}") in newest})}
        if sizes:
            yield name, sizes, agree
