"""How long a call takes, on a CPU and on a GPU, and what the device's own copy reaches in the same run."""

import gc
import itertools
import math
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Stats:
    """Microseconds of one call: the median, the 20th and the 80th percentile of ``reps`` samples."""

    median: float
    p20: float
    p80: float
    reps: int

    @classmethod
    def of(cls, samples: list[float]) -> "Stats":
        """Percentiles with linear interpolation between the two nearest of at least two samples."""
        tenths = statistics.quantiles(samples, n=10, method="inclusive")
        return cls(statistics.median(samples), tenths[1], tenths[7], len(samples))


@dataclass(frozen=True)
class Call:
    """Something to time.

    Attributes:
        run: what is timed; it is given what ``prepare`` returned.
        prepare: runs before each sample, untimed. None: nothing does, and ``run`` is given None; only such a call can
            be repeated without a pause, so only it has a ``wall`` and a ``replay`` time on a GPU.
        rotated: the same call once per set of inputs, for the replay of a CUDA graph; empty where the call asks the
            host something, so that no graph can hold it.
    """

    run: Callable
    prepare: Callable | None = None
    rotated: tuple[Callable, ...] = ()

    def ready(self):
        """What ``run`` is to be given."""
        return self.prepare() if self.prepare else None


class HostClock:
    """Times by the host's clock; every call is sampled once a round, so that a slow moment hits all of them."""

    device = "cpu"
    cache_bytes = 0  # nothing is flushed or rotated
    kinds = {"wall": "the host's clock, one call at a time; inputs that fit stay in the CPU's caches"}

    def __init__(self, budget: float = 0.3, least: int = 5, most: int = 200):
        """
        Args:
            budget: seconds to spend on a call; fast calls stop at ``most`` samples, slow ones get ``least``.
        """
        self.budget, self.least, self.most = budget, least, most
        self.notes: list[str] = []

    def times(self, calls: dict[str, Call]) -> dict[str, dict[str, Stats]]:
        """{call: {"wall": Stats}}. The calls must have run before: nothing is warmed up here but a first sample."""
        reps = {name: _affordable(self.budget, self._sample(call), self.least, self.most)
                for name, call in calls.items()}
        return {name: {"wall": stats} for name, stats in _in_rounds(calls, reps, self._sample).items()}

    def copy_rate(self) -> float:
        """Bytes a second, read plus written, of a copy of 64 MiB."""
        return _copy_rate(self, 1 << 26, "wall")

    @staticmethod
    def _sample(call: Call) -> float:
        state = call.ready()
        start = time.perf_counter_ns()
        call.run(state)
        return (time.perf_counter_ns() - start) / 1e3


class CudaClock:
    """Times on a GPU, each call in three ways, of at least 200 repetitions each, in rounds over all calls.

    A call's time between two events holds the host's dispatch too where the device waits for it; the wall time is what
    a training step pays; the replay is what the device alone needs.
    """

    device = "cuda"
    REPS = 200
    LEAST = 20         # samples of several calls each, where 200 of them would take too long
    BUDGET = 0.5       # seconds for those of one kind of one call
    BURST = 10
    IN_A_GRAPH = 16
    kinds = {
        "event": "between two events on the device, after a flush of its L2 cache",
        "wall": f"the host's clock over {BURST} calls in a row, synchronised before and after; share of one call",
        "replay": f"a CUDA graph of {IN_A_GRAPH} calls over rotated inputs, replayed; share of one call",
    }

    def __init__(self):
        properties = torch.cuda.get_device_properties(torch.cuda.current_device())
        self.cache_bytes = properties.L2_cache_size
        self.notes: list[str] = []
        # Four times the cache, so that nothing of it is left, and long enough for the host to get ahead of the device.
        self._flush = torch.empty(max(4 * self.cache_bytes, 1 << 28), dtype=torch.int8, device=self.device)

    def times(self, calls: dict[str, Call]) -> dict[str, dict[str, Stats]]:
        """{call: {kind: Stats}}. The calls must have run before, so that everything is compiled."""
        found = {name: {"event": stats} for name, stats in self._events(calls).items()}
        repeatable = {name: call for name, call in calls.items() if call.prepare is None}
        reps = {name: _affordable(self.BUDGET, self.BURST * found[name]["event"].median, self.LEAST, self.REPS)
                for name in repeatable}
        for name, stats in _in_rounds(repeatable, reps, self._burst).items():
            found[name]["wall"] = stats
        for name, call in repeatable.items():
            if not call.rotated:
                continue
            try:
                found[name]["replay"] = self._replay(call.rotated)
            except RuntimeError as e:  # a way that no graph can hold has no such time; the others go on
                self.notes.append(f"{name}: no CUDA graph: {str(e).splitlines()[0]}")
        return found

    def copy_rate(self) -> float:
        """Bytes a second, read plus written, of a copy of 1 GiB."""
        return _copy_rate(self, 1 << 30, "event")

    def _events(self, calls: dict[str, Call]) -> dict[str, Stats]:
        marks = {name: [] for name in calls}
        for _ in range(self.REPS):
            for name, call in calls.items():
                state = call.ready()
                self._flush.zero_()
                start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
                start.record()
                call.run(state)
                end.record()
                marks[name].append((start, end))
        torch.cuda.synchronize()
        return {name: Stats.of([start.elapsed_time(end) * 1e3 for start, end in pairs])
                for name, pairs in marks.items()}

    def _burst(self, call: Call) -> float:
        torch.cuda.synchronize()
        start = time.perf_counter_ns()
        for _ in range(self.BURST):
            call.run(None)
        torch.cuda.synchronize()
        return (time.perf_counter_ns() - start) / 1e3 / self.BURST

    def _replay(self, rotated: tuple[Callable, ...]) -> Stats:
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for call in rotated:
                call()
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        # A compiled kernel that the garbage collector frees during the capture would break it.
        gc.collect()
        gc.disable()
        try:
            with torch.cuda.graph(graph, stream=stream):
                for call in itertools.islice(itertools.cycle(rotated), self.IN_A_GRAPH):
                    call()
        finally:
            gc.enable()
        samples = []
        while len(samples) < _affordable(self.BUDGET, samples[0] if samples else 0, self.LEAST, self.REPS) + 1:
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            graph.replay()
            end.record()
            end.synchronize()
            samples.append(start.elapsed_time(end) * 1e3)
        # The first replay also uploads the graph.
        return Stats.of([sample / self.IN_A_GRAPH for sample in samples[1:]])


def _affordable(budget: float, sample_us: float, least: int, most: int) -> int:
    """How many samples of ``sample_us`` microseconds fit ``budget`` seconds, within bounds."""
    return min(max(math.ceil(budget * 1e6 / max(sample_us, 1e-3)), least), most)


def _in_rounds(calls: dict[str, Call], reps: dict[str, int], sample: Callable[[Call], float]) -> dict[str, Stats]:
    """Samples the calls in turn, each until it has its number."""
    samples = {name: [] for name in calls}
    for rep in range(max(reps.values(), default=0)):
        for name, call in calls.items():
            if rep < reps[name]:
                samples[name].append(sample(call))
    return {name: Stats.of(s) for name, s in samples.items()}


def _copy_rate(clock: HostClock | CudaClock, size: int, kind: str) -> float:
    # Values like those of real inputs: a device can be faster on zeros.
    source = torch.rand(size // 4, device=clock.device)
    target = torch.empty_like(source)
    target.copy_(source)
    stats = clock.times({"copy": Call(lambda _: target.copy_(source))})["copy"][kind]
    return 2 * size / (stats.median / 1e6)


def peak_bytes(run: Callable) -> int:
    """Most bytes that a call needs on the current GPU beyond those in use before it, its results included."""
    run()
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    held = run()
    torch.cuda.synchronize()
    peak = torch.cuda.max_memory_allocated() - before
    del held
    return peak
