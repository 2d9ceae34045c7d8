"""What the kernels are to reach on an H200, and whether a run on a GPU reached it."""

from dataclasses import dataclass

from xtoolkit.cli.benchmarks.measure import Row
from xtoolkit.cli.benchmarks.operations import COMPILED, EAGER, KERNEL, REDUCED, RELEASED, BoxLoss, Case, DTYPES, MaskedMSE

SET_FOR = "H200"
MEGABYTE = 1 << 20


@dataclass(frozen=True)
class Target:
    """One bound on one case, forward and backward together.

    Attributes:
        kind: event, wall or replay (see the clocks), share (of the copy floor), or peak (bytes).
        over: the way whose time by the kernel's must be at least ``bound``; None: the kernel's own figure.
    """

    operation: str
    case: Case
    kind: str
    over: str | None
    bound: float

    def __str__(self) -> str:
        what = {"share": f"at least {self.bound:.0%} of the copy rate",
                "peak": f"at most {self.bound / MEGABYTE:,.2f} MB beyond its inputs"}.get(
            self.kind, f"at most {self.bound:g} us" if self.over is None else f"at least {self.bound:g}x {self.over}")
        return what + ("" if self.kind in ("share", "peak") else f" ({self.kind})")


@dataclass(frozen=True)
class Answer:
    """A target with its figure; ``value`` None: not measured in this run."""

    target: Target
    value: float | None

    @property
    def met(self) -> bool | None:
        """None where nothing was measured."""
        if self.value is None:
            return None
        at_most = self.target.over is None and self.target.kind != "share"
        return self.value <= self.target.bound if at_most else self.value >= self.target.bound

    @property
    def figure(self) -> str:
        """The figure with its unit."""
        if self.value is None:
            return ""
        t = self.target
        if t.kind == "peak":
            return f"{self.value / MEGABYTE:,.2f} MB"
        return f"{self.value:.0%}" if t.kind == "share" else f"{self.value:.2f}" + ("x" if t.over else " us")


def targets() -> list[Target]:
    """Every bound, in the order of the page."""
    found = []

    def add(operation, case, *bounds):
        found.extend(Target(operation.name, case, *bound) for bound in bounds)

    for n in (50, 500, 10_000):
        add(BoxLoss, Case((n,)), ("wall", EAGER, 5), ("wall", COMPILED, 1.2), ("wall", REDUCED, 0.9),
            ("wall", None, 90), ("replay", None, 8))
    add(BoxLoss, Case((4096,)), ("event", RELEASED, 30))
    add(BoxLoss, Case((1_000_000,)), ("replay", EAGER, 10), ("replay", COMPILED, 1.0), ("share", None, 0.55))
    add(BoxLoss, Case((10_000_000,)), ("replay", EAGER, 12), ("replay", COMPILED, 1.0), ("share", None, 0.80))
    for n in (1_000_000, 10_000_000):
        add(BoxLoss, Case((n,)), ("peak", None, 16 * n + MEGABYTE))
    for b, released, compiled, share in ((96, 3, 1.4, 0.45), (512, 2.5, 1.6, 0.75), (2048, 2.5, 1.6, 0.85)):
        case = Case((b, 196, 768), "bfloat16")
        gradient = b * 196 * 768 * DTYPES[case.dtype].itemsize
        add(MaskedMSE, case, ("event", RELEASED, released), *[("replay", EAGER, 3)] * (b > 96),
            ("replay", COMPILED, compiled), ("share", None, share), ("peak", None, gradient + MEGABYTE))
    return found


def answers(rows: list[Row]) -> list[Answer]:
    """Every target with its figure, from the rows of one run on a GPU."""
    by = {(r.operation, r.size, r.dtype, r.way): r for r in rows if r.pass_ == "both"}
    return [Answer(t, _figure(t, by)) for t in targets()]


def _figure(t: Target, by: dict[tuple, Row]) -> float | None:
    kernel = by.get((t.operation, str(t.case), t.case.dtype, KERNEL))
    if kernel is None:
        return None
    if t.kind == "share":
        return kernel.share if "replay" in kernel.times else None
    if t.kind == "peak":
        return kernel.peak
    if t.over is None:
        return kernel.times[t.kind].median if t.kind in kernel.times else None
    other = by.get((t.operation, str(t.case), t.case.dtype, t.over))
    return other.ratios.get(t.kind) if other else None
