"""One case of one operation: its errors against float64, and its times by a clock, way by way."""

import sys
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import torch

from xtoolkit.cli.benchmarks.clocks import Call, CudaClock, HostClock, Stats, peak_bytes
from xtoolkit.cli.benchmarks.operations import EAGER, KERNEL, PASSES, REDUCED, Case, Inputs, Operation, Way

# ||result - exact|| / ||exact||, of the losses and of the gradient.
LOSS_TOLERANCE = 1e-6
GRADIENT_TOLERANCE = {"float32": 1e-6, "bfloat16": 4e-3, "float16": 5e-4}


@dataclass(frozen=True)
class Error:
    """How far one way is from float64. ``held``: it must be within tolerance; what others wrote is only shown."""

    operation: str
    size: str
    dtype: str
    way: str
    loss: float
    gradient: float
    held: bool

    @property
    def ok(self) -> bool:
        """Within tolerance; NaN is not."""
        return self.loss <= LOSS_TOLERANCE and self.gradient <= GRADIENT_TOLERANCE[self.dtype]


@dataclass
class Row:
    """One way, one pass. ``ratios``: its time by the kernel's, or by the reference's where the kernel was not timed."""

    operation: str
    size: str
    dtype: str
    pass_: str
    way: str
    times: dict[str, Stats]
    ratios: dict[str, float]
    floor_us: float
    error: float
    peak: int | None = None

    @property
    def device_us(self) -> float:
        """The median nearest to what the device alone needs."""
        return next(self.times[kind].median for kind in ("replay", "event", "wall") if kind in self.times)

    @property
    def share(self) -> float:
        """Share of the device's own copy rate at which the least possible bytes moved."""
        return self.floor_us / self.device_us


@dataclass
class Result:
    """All that was measured, and what was left out with the reason."""

    errors: list[Error] = field(default_factory=list)
    rows: list[Row] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def forward(run: Callable, x: Inputs):
    """The losses, with a graph as in training."""
    return run(*x.args)


def suited(way: Way, sets: list[Inputs]) -> list[Inputs]:
    """The inputs with upstream gradients in the types of this way's losses, so that no cast of them is timed."""
    dtypes = [loss.dtype for loss in forward(way.run, sets[0])]
    return [replace(x, upstream=tuple(u.to(d) for u, d in zip(x.upstream, dtypes, strict=True))) for x in sets]


def backward(x: Inputs, losses):
    """The gradient of the first argument."""
    return torch.autograd.grad(losses, x.args[0], x.upstream)[0]


def both(run: Callable, x: Inputs):
    """Losses, then the gradient, which is returned."""
    return backward(x, forward(run, x))


def exact(op: Operation, x: Inputs):
    """Losses and gradient of the same (rounded) inputs in float64, by code that is not the toolkit's."""
    double = Inputs(tuple(a.detach().double() if a is not None and a.is_floating_point() else a for a in x.args),
                    tuple(u.double() for u in x.upstream))
    double.args[0].requires_grad_()
    losses = op.truth(*double.args)
    return [v.detach() for v in losses], backward(double, losses)


def relative(got: torch.Tensor, want: torch.Tensor) -> float:
    """||got - want|| / ||want||, or ||got|| where ``want`` is zero."""
    norm = want.norm()
    return ((got.detach().double() - want).norm() / torch.where(norm > 0, norm, 1)).item()


def check(op: Operation, case: Case, ways: dict[str, Way], x: Inputs, result: Result) -> dict[str, Error]:
    """Errors of every way, by way. A way of others that cannot run is left out, with a note; ours must run."""
    losses, gradient = exact(op, x)
    found = {}
    for name, way in ways.items():
        try:
            own = suited(way, [x])[0]
            got = forward(way.run, own)
            # Copied before the backward pass, since a captured graph may write there again.
            loss = max(relative(g.clone(), w) for g, w in zip(got, losses, strict=True))
            error = relative(backward(own, got), gradient)
        except RuntimeError as e:
            if name in (KERNEL, EAGER):
                raise
            result.notes.append(f"{op.name} {case} {case.dtype}, {name}: cannot run: {str(e).splitlines()[0]}")
            continue
        found[name] = Error(op.name, str(case), case.dtype, name, loss, error, name in (KERNEL, EAGER))
    result.errors += found.values()
    return found


def time(op: Operation, case: Case, ways: dict[str, Way], sets: list[Inputs], errors: dict[str, Error],
         clock: HostClock | CudaClock, copy_rate: float, result: Result) -> None:
    """Times every way that could run, in rounds over all of them, so that their ratios are of one moment.

    Args:
        sets: inputs of the case; the first is used by all kinds of time but the replay, which goes round all.
        copy_rate: bytes a second of the device's own copy.
    """
    floors = op.floor_bytes(case)
    for pass_ in PASSES:
        calls = {name: call(ways[name], pass_, sets) for name in errors}
        for timed in calls.values():
            # Compiled code may compile, record and only then replay.
            for _ in range(3):
                timed.run(timed.ready())
        times = clock.times(calls)
        base = times.get(KERNEL, times[EAGER])
        for name, stats in times.items():
            e = errors[name]
            row = Row(op.name, str(case), case.dtype, pass_, name, stats,
                      {kind: s.median / base[kind].median for kind, s in stats.items() if kind in base},
                      floors[pass_] / copy_rate * 1e6,
                      {"forward": e.loss, "backward": e.gradient, "both": max(e.loss, e.gradient)}[pass_])
            # A captured graph keeps its memory between calls, in a pool of its own, where this would not see it.
            if clock.device == "cuda" and pass_ == "both" and name != REDUCED:
                row.peak = peak_bytes(lambda: both(ways[name].run, sets[0]))
            result.rows.append(row)
    print(f"{op.name} {case} {case.dtype}: {', '.join(errors)}", file=sys.stderr, flush=True)


def call(way: Way, pass_: str, sets: list[Inputs]) -> Call:
    """One pass of one way as something to time."""
    sets = suited(way, sets)
    x = sets[0]
    if pass_ == "backward":
        return Call(lambda losses: backward(x, losses), prepare=lambda: forward(way.run, x))
    step = {"forward": forward, "both": both}[pass_]
    return Call(lambda _: step(way.run, x),
                rotated=() if way.syncs else tuple(lambda s=s: step(way.run, s) for s in sets))


def input_sets(op: Operation, case: Case, device: str, cache_bytes: int) -> list[Inputs]:
    """As many sets of inputs as overflow the device's cache twice, from one to eight."""
    first = op.inputs(case, device)
    size = sum(a.numel() * a.element_size() for a in first.args if a is not None)
    count = min(max(-(-2 * cache_bytes // size), 1), 8)
    return [first] + [op.inputs(case, device, seed) for seed in range(1, count)]
