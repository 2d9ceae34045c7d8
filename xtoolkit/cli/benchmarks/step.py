"""One training step taken apart: where its seconds go, what it computes, how much memory it needs."""

import dataclasses
import time

import torch

from xtoolkit.engine import memory
from xtoolkit.engine.optim import build_optimizer, set_lr
from xtoolkit.engine.device import autocast
from xtoolkit.graph import Node, Ref
from xtoolkit.model import Model
from xtoolkit.plan import count, trained


class HostMarks:
    """Moments of the host's clock."""

    def mark(self) -> float:
        return time.perf_counter()

    def seconds(self, first: float, last: float) -> float:
        return last - first

    def settle(self) -> None:
        """Nothing is under way on a CPU when a call returns."""


class CudaMarks:
    """Moments in a CUDA device's own queue, so that marking them holds nothing up; read them after ``settle``."""

    def mark(self):
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def seconds(self, first, last) -> float:
        return first.elapsed_time(last) / 1e3

    def settle(self) -> None:
        torch.cuda.synchronize()


class Passes:
    """The observer of ``Model.forward``: seconds in the forward of each encoder, inputs not counted."""

    def __init__(self, marks):
        self._marks, self._open, self._closed = marks, [], []

    def __call__(self, key):
        self._open.append([key.encoder if isinstance(key, Node) else Ref.parse(key[1]).name])
        return self

    def __enter__(self):
        self._open[-1].append(self._marks.mark())

    def __exit__(self, *exc):
        encoder, began = self._open.pop()
        self._closed.append((encoder, began, self._marks.mark()))

    def seconds(self) -> dict[str, float]:
        found: dict[str, float] = {}
        for encoder, began, ended in self._closed:
            found[encoder] = found.get(encoder, 0.0) + self._marks.seconds(began, ended)
        return found


@dataclasses.dataclass(frozen=True)
class Step:
    """Seconds of one step of one stream.

    Attributes:
        data: making the batch and moving it to the device.
        forward: all of it; ``passes`` are parts of it, by encoder.
        optimizer: clipping, the update, what moves after it, and giving the gradients' memory back.
        cpu: processor seconds of this process, all threads together.
        peak: bytes; see ``engine.memory.peak``.
    """

    data: float
    forward: float
    passes: dict
    backward: float
    optimizer: float
    cpu: float
    peak: int

    @property
    def both(self) -> float:
        """Forward and backward."""
        return self.forward + self.backward

    @property
    def all(self) -> float:
        return self.data + self.both + self.optimizer


class Stepper:
    """Takes steps as the trainer does, one stream at a time; the rate is that of the first step of the warm-up.

    Args:
        model: on the CPU.
        device: where to.
    """

    def __init__(self, model: Model, device: torch.device):
        self.recipe, self.device = model.recipe, device
        self.model = model.to(device).train()
        self.marks = CudaMarks() if device.type == "cuda" else HostMarks()
        self._optimizer = build_optimizer(model, self.recipe.optim)
        set_lr(self._optimizer, 0, self.recipe.optim, self.recipe.train.steps)
        self._trained = [p for p in model.parameters() if p.requires_grad]

    def take(self, stream: str, fetch, precision: str) -> Step:
        """One step on the batch that ``fetch()`` returns, always from the same seed."""
        mark, passes, clip = self.marks.mark, Passes(self.marks), self.recipe.optim.clip
        self.marks.settle()
        memory.forget_peak(self.device)
        cpu, began = time.process_time(), mark()
        batch = fetch().to(self.device, non_blocking=True)
        made = mark()
        torch.manual_seed(0)
        with autocast(self.device, precision):
            losses = self.model(stream, batch, observer=passes)
        weights = self.recipe.streams[stream].losses
        total = sum(weights[name] * value.float() for name, value in losses.items())
        forward = mark()
        total.backward()
        backward = mark()
        used = [p for p in self._trained if p.grad is not None]
        if clip is not None:
            torch.nn.utils.clip_grad_norm_(used, clip, foreach=self.device.type == "cuda")
        self._optimizer.step()
        self.model.after_update()
        self._optimizer.zero_grad(set_to_none=True)
        ended = mark()
        self.marks.settle()
        seconds = self.marks.seconds
        return Step(seconds(began, made), seconds(made, forward), passes.seconds(), seconds(forward, backward),
                    seconds(backward, ended), time.process_time() - cpu, memory.peak(self.device))

    def operators(self, stream: str, fetch, precision: str, most: int) -> list[tuple[str, int, float]]:
        """(name, calls, seconds of its own) of the operators that cost most in one step."""
        from torch.profiler import ProfilerActivity, profile

        kinds = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * (self.device.type == "cuda")
        with profile(activities=kinds) as found:
            self.take(stream, fetch, precision)
        own = "self_device_time_total" if self.device.type == "cuda" else "self_cpu_time_total"
        rows = sorted(found.key_averages(), key=lambda row: -getattr(row, own))
        return [(row.key, row.count, getattr(row, own) / 1e6) for row in rows[:most]]


def matmul_rate(device: torch.device, precision: str, marks, side: int, times: int = 4) -> float:
    """GFLOP/s of a square matrix product, the mean of a few after one that does not count."""
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    a, b = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
    out = a @ b
    spans = []
    for _ in range(times):
        marks.settle()
        spans.append((marks.mark(), torch.mm(a, b, out=out), marks.mark()))
    marks.settle()
    return 2 * side**3 / 1e9 * times / sum(marks.seconds(first, last) for first, _, last in spans)


def useful_gflops(model: Model, stream: str, batch) -> tuple[dict[str, float], float, float]:
    """GFLOPs of a batch as ``xtoolkit/plan.py`` counts them: two a multiply-add, forward once, backward twice.

    Padding is not counted: texts are taken as long as the mean of the batch, between the counts at the whole numbers
    below and above it.

    Args:
        model: on the meta device.
        batch: on the host.

    Returns:
        Forward GFLOPs by encoder (heads of the losses: ``""``), all with forward and backward, and the mean length (0
        without texts).
    """
    mean = 0.0 if batch.text is None else float(batch.text.mask.sum(1).double().mean())
    low = int(mean)
    counts = [_count(model, stream, batch, length) for length in ((low,) if mean == low else (low, low + 1))]
    share = mean - low
    blend = lambda pair: pair[0] if len(pair) == 1 else pair[0] * (1 - share) + pair[1] * share
    forward = {name: blend([c[0][name] for c in counts]) for name in counts[0][0]}
    return forward, blend([c[1] for c in counts]), mean


def _count(model, stream, batch, length):
    batch = batch.to("meta")
    if batch.text is not None:
        cut = {k: getattr(batch.text, k) for k in ("ids", "mask", "masked_ids") if getattr(batch.text, k) is not None}
        text = dataclasses.replace(batch.text, **{k: v[:, :1].expand(-1, length) for k, v in cut.items()})
        batch = batch.with_fields(text=text)
    passes, heads, _ = count(model, model.recipe, stream, batch, 1)
    forward: dict[str, float] = {"": heads}
    for p in passes:
        name = p.name.partition("@")[0]
        forward[name] = forward.get(name, 0.0) + p.gflops
    return forward, trained(passes, heads)
