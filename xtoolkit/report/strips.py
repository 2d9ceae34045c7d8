"""Where the dots of a strip chart stand: a row for each name, along one axis of values. Templates draw it."""

from statistics import fmean

from xtoolkit.report.charts import WIDTH, Axis, label, number

ROW, TOP, BELOW, RIGHT = 19, 8, 24, 14
LETTER = 5.6  # of a name's letters, about: in units of the SVG


def layout(title: str, values: dict[str, dict], colours: dict[str, int], floor: float | None = None) -> dict | None:
    """What a template draws, in units of the SVG; None where no value is there.

    Args:
        values: {name: {what a dot is: its value}}.
        colours: {name: a number of the palette}.
        floor: a dashed line, where the axis reaches it.

    Returns:
        ``title``, ``width``, ``height``, ``left``, ``top``, ``bottom``; ``ticks`` [(x, label)]; ``floor``, x or None; ``rows``
        [{name, colour, y, dots: [(x, note)], mean: x or None}].
    """
    known = [value for dots in values.values() for value in dots.values()]
    if not known:
        return None
    axis, left = Axis.over(known, linear=True), 12 + LETTER * max(map(len, values))
    place = lambda value: left + (WIDTH - left - RIGHT) * axis.share(value)
    rows = [{"name": name, "colour": colours[name], "y": TOP + ROW * (i + .5),
             "dots": [(place(value), f"{what}: {number(value)}") for what, value in dots.items()],
             "mean": place(fmean(dots.values())) if dots else None} for i, (name, dots) in enumerate(values.items())]
    bottom = TOP + ROW * len(rows)
    within = floor is not None and axis.low <= floor <= axis.high
    return {"title": title, "width": WIDTH, "height": bottom + BELOW, "left": left, "top": TOP, "bottom": bottom,
            "ticks": [(place(tick), label(tick)) for tick in axis.ticks[::1 + len(axis.ticks) // 7]],
            "floor": place(floor) if within else None, "rows": rows}
