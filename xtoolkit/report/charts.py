"""Where the lines and ticks of charts stand: curves over steps, a faint raw line under a smooth one. Templates draw them."""

import math
from dataclasses import dataclass, field

WIDTH, HEIGHT = 360, 214
LEFT, RIGHT, TOP, BOTTOM = 46, 12, 10, 26
# A range of positive values wider than this is drawn on a logarithmic axis.
LOG_FROM = 30


@dataclass
class Curve:
    """One curve: ``points`` are (step, value), ``colour`` a number of the palette, ``level`` a dashed line. ``broken`` is drawn
    in dashes itself: the palette may be too small."""

    name: str
    points: list
    colour: int
    level: float | None = None
    broken: bool = False


@dataclass
class Chart:
    """One panel.

    Attributes:
        title: above it.
        curves: those without a point are left out.
        smooth: draw the trend through neighbouring points strong and the points themselves faint.
        unit: behind the ticks of the value axis, ``%`` for one.
        linear: never a logarithmic axis.
    """

    title: str
    curves: list = field(default_factory=list)
    smooth: bool = True
    unit: str = ""
    linear: bool = False


def layout(chart: Chart) -> dict | None:
    """What a template draws of a chart, in units of the SVG; None where no curve has a point.

    Returns:
        ``title``, ``unit``, ``log``; ``grid`` [(y, label)], ``steps`` [(x, label)], ``levels`` [(colour, y)]; ``curves``
        [{name, colour, broken, last, raw, line, dots}], points as the text of a polyline, ``dots`` [(x, y)].
    """
    curves = [c for c in chart.curves if c.points]
    if not curves:
        return None
    values = [v for c in curves for v in shown_values(c, chart.smooth)]
    values += [c.level for c in curves if c.level is not None]
    steps = [s for c in curves for s, _ in c.points]
    axis = Axis.over(values, chart.linear)
    first, last = min(steps), max(steps)
    place_x = lambda s: LEFT + (WIDTH - LEFT - RIGHT) * ((s - first) / (last - first) if last > first else 0.5)
    place_y = lambda v: TOP + (HEIGHT - TOP - BOTTOM) * (1 - axis.share(v))
    at = lambda points: [(place_x(s), place_y(axis.clip(v))) for s, v in points]
    return {"title": chart.title, "unit": chart.unit, "log": axis.log,
            "grid": [(place_y(tick), label(tick) + chart.unit) for tick in axis.ticks],
            "steps": [(place_x(tick), label(tick)) for tick in step_ticks(first, last)],
            "levels": [(c.colour, place_y(c.level)) for c in curves if c.level is not None],
            "curves": [_curve(c, chart.smooth, at) for c in curves]}


def laid_out(groups) -> list[tuple[str, list]]:
    """[(title, ``layout`` of its charts)], without charts that have no curve and groups that have no chart."""
    laid = [(title, [one for chart in charts if (one := layout(chart))]) for title, charts in groups]
    return [(title, charts) for title, charts in laid if charts]


def _curve(curve, smooth, at):
    path = lambda points: " ".join(f"{x:.1f},{y:.1f}" for x, y in at(points))
    strong = smoothed(curve.points) if smooth else curve.points
    return {"name": curve.name, "colour": curve.colour, "broken": curve.broken, "last": number(curve.points[-1][1]),
            "raw": path(curve.points) if smooth and len(curve.points) > 2 else None, "line": path(strong),
            "dots": at(strong) if len(curve.points) <= 12 else []}


def thinned(points: list, most: int = 240) -> list:
    """At most so many points, each the mean of neighbours: a page of many long curves must stay small."""
    size = -(-len(points) // most)
    parts = [points[i:i + size] for i in range(0, len(points), size)] if points else []
    return [(sum(x for x, _ in part) / len(part), sum(y for _, y in part) / len(part)) for part in parts]


def smoothed(points: list) -> list:
    """Each value on the straight line through its neighbours, a 24th of the curve on either side.

    Unlike a mean, a line does not bend a falling curve at its ends, where there are neighbours on one side only.
    """
    reach, found = len(points) // 24, []
    for i, (step, _) in enumerate(points):
        near = points[max(0, i - reach):i + reach + 1]
        x, y = sum(s for s, _ in near) / len(near), sum(v for _, v in near) / len(near)
        spread = sum((s - x) ** 2 for s, _ in near)
        slope = sum((s - x) * (v - y) for s, v in near) / spread if spread else 0.0
        found.append((step, y + slope * (step - x)))
    return found


def shown_values(curve: Curve, smooth: bool) -> list[float]:
    """The values that the axis must span: all but the wildest hundredth, or a single spike would flatten a curve."""
    values = sorted(v for _, v in curve.points)
    cut = len(values) // 100 if smooth else 0
    return values[cut:len(values) - cut] + [v for _, v in smoothed(curve.points)]


@dataclass
class Axis:
    """A value axis, linear or logarithmic. ``ticks`` are where lines are drawn; ``low`` and ``high`` are its ends."""

    low: float
    high: float
    log: bool
    ticks: list

    @classmethod
    def over(cls, values: list[float], linear: bool = False) -> "Axis":
        """An axis with round ends around ``values``; logarithmic where they span decades, unless it must be linear."""
        low, high = min(values), max(values)
        if not linear and low > 0 and high / low > LOG_FROM:
            low, high = low / 1.15, high * 1.15
            powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
            ticks = [t for e in powers for t in (10.0 ** e, 2 * 10.0 ** e, 5 * 10.0 ** e) if low <= t <= high]
            if len(ticks) > 6:
                ticks = [t for t in ticks if round(math.log10(t), 6) == round(math.log10(t))] or ticks[::3]
            return cls(low, high, True, ticks)
        if high - low < 1e-12:
            low, high = low - (abs(low) or 1) * 0.1, high + (abs(high) or 1) * 0.1
        if low > 0 and low < 0.35 * high:
            low = 0.0
        step = nice((high - low) / 4)
        low, high = step * math.floor(low / step + 1e-9), step * math.ceil(high / step - 1e-9)
        return cls(low, high, False, [low + step * i for i in range(round((high - low) / step) + 1)])

    def share(self, value: float) -> float:
        """Where a value stands: 0 at the low end, 1 at the high one."""
        if self.log:
            return math.log(value / self.low) / math.log(self.high / self.low)
        return (value - self.low) / (self.high - self.low)

    def clip(self, value: float) -> float:
        """The nearest value on the axis."""
        return min(max(value, self.low), self.high)


def nice(step: float) -> float:
    """The next of 1, 2, 2.5, 5, 10 times a power of ten."""
    power = 10.0 ** math.floor(math.log10(step))
    return next(m * power for m in (1, 2, 2.5, 5, 10) if m * power >= step * 0.999)


def step_ticks(first: float, last: float) -> list[int]:
    """About five round steps from ``first`` to ``last``."""
    if last <= first:
        return [first]
    step = max(1, round(nice((last - first) / 4.5)))
    return list(range(step * math.ceil(first / step), math.floor(last) + 1, step))


def label(value: float) -> str:
    """A tick: 200k, 1.5k, 25, 0.05, 1e-5."""
    if value == 0:
        return "0"
    size = abs(value)
    if size >= 1e6:
        return f"{value / 1e6:g}M"
    if size >= 1e4 or (size >= 1e3 and value % 100 == 0):
        return f"{value / 1e3:g}k"
    if size < 1e-3:
        mantissa, exponent = f"{value:.1e}".split("e")
        return f"{float(mantissa):g}e{int(exponent)}"
    return f"{round(value, 6):g}"


def number(value: float) -> str:
    """A figure with three or four digits."""
    size = abs(value)
    if size >= 1000:
        return f"{value:,.0f}"
    if size >= 100:
        return f"{value:.0f}"
    if size >= 10:
        return f"{value:.1f}"
    if size >= 1:
        return f"{value:.2f}"
    if size >= 1e-3 or size == 0:
        return f"{value:.3f}" if size else "0"
    return label(value)
