"""Batches of a stream, by visit, made ahead of time in worker processes; and one pass in order for evaluation."""

import atexit
import functools
import itertools
import os
import signal
import time
from bisect import bisect_right
from dataclasses import dataclass, field, replace

import torch
from torch.utils.data import DataLoader, Dataset

from xtoolkit.batch import Batch
from xtoolkit.data.base import StreamDataset
from xtoolkit.data.errors import BadSample
from xtoolkit.data.items import Item
from xtoolkit.data.order import Slot, sample_rng
from xtoolkit.registry import ConfigError
from xtoolkit.data.counts import SampleCounts

BAR_AFTER = 3  # seconds of a pass, before it says how far it is
RESERVES = 50  # samples tried in the place of a bad one before the stream is given up


@dataclass
class _Result:
    """What a worker hands over: a batch, what it cost, and why there is none if there is none.

    Attributes:
        read: samples read, the bad ones included.
        bad: (kind, shard, detail) of each bad one.
    """

    batch: Batch | None = None
    read: int = 0
    bad: list[tuple[str, str, str]] = field(default_factory=list)
    error: str | None = None

    def load(self, dataset: StreamDataset, source: int, sample: int, rows: int, rng) -> list[Item]:
        """One item, or none where the sample is bad; counted either way."""
        try:
            loaded = [dataset.load(source, sample, rows, rng)]
            bad = loaded[0].dropped
        except BadSample as trouble:
            loaded, bad = [], [trouble]
        self.read += len(loaded) + len(bad)
        self.bad += [(one.kind, one.path, one.detail) for one in bad]
        return loaded

    def pin_memory(self) -> "_Result":
        return replace(self, batch=self.batch and self.batch.pin_memory())


class _Visits(Dataset):
    """Number of a part, those of all visits counted on -> _Result; this is what runs in a worker."""

    def __init__(self, stream, dataset, batch_size, seed, rank, world, parts, contrasts):
        self._stream, self._dataset, self._seed, self._contrasts = stream, dataset, seed, contrasts
        self._order = dataset.order(seed, stream, batch_size)
        self._parts, self._rows, self._first = parts, batch_size // (world * parts), rank * parts
        what = "a batch" if world * parts == 1 else f"{self._rows} rows of a batch"
        self._alone = (f"{what} without two distinct pictures, so that contrastive losses have no negatives: batch_size "
                       f"{batch_size} over {world} ranks x accumulate {parts}; raise batch_size, lower accumulate or give the "
                       "stream more pictures")

    def __getitem__(self, number: int) -> _Result:
        visit, part = divmod(number, self._parts)
        first, loaded, made = (self._first + part) * self._rows, [], _Result()
        last = first + self._rows
        self._dataset.expect(self._order, visit)
        for slot in self._order.slots(visit):
            if slot.row < last and slot.row + slot.rows > first:
                loaded += [item.take(max(0, first - row), min(item.rows, last - row))
                           for row, item in self._fill(visit, slot, made) if row < last and row + item.rows > first]
            if made.error:
                return made
        made.batch = self._dataset.collate(loaded)
        if self._contrasts and len({getattr(item.image, "key", n) for n, item in enumerate(loaded)}) < 2:
            made.error = f"stream `{self._stream}`: visit {visit}: {self._alone}"
        return made

    def _fill(self, visit: int, slot: Slot, made: _Result):
        """(row, item) of the items that fill a slot; samples of the reserve take the place of a bad one, as many as needed."""
        rng, sample = sample_rng(self._seed, self._stream, visit, slot.row), slot.sample
        row, end = slot.row, slot.row + slot.rows
        for attempt in range(RESERVES):
            for item in made.load(self._dataset, slot.source, sample, end - row, rng):
                yield row, item
                row += item.rows
            if row == end:
                return
            sample = self._order.reserve(visit, slot, attempt)
        made.error = f"{RESERVES} samples in a row are bad"


class _From:
    """A sampler of all numbers from ``start`` on."""

    start = 0

    def __iter__(self):
        return itertools.count(self.start)


def _start_worker(number: int) -> None:
    """Leaves Ctrl-C and SIGTERM to the trainer, which finishes its step with the workers alive; they die with it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


def _data_loader(made: Dataset, sampler, workers: int, pin: bool) -> DataLoader:
    # A generator of its own: DataLoader would else draw from torch's global one. Forked workers share the index and
    # start in milliseconds; they never touch the device, so that forking after CUDA has started is safe.
    return DataLoader(made, batch_size=None, sampler=sampler, num_workers=workers, pin_memory=pin, persistent_workers=True,
                      prefetch_factor=2, worker_init_fn=_start_worker, multiprocessing_context="fork",
                      generator=torch.Generator())


def _end(running) -> None:
    """Ends the workers of an iterator, even where the traceback of their error still holds it."""
    if hasattr(running, "_shutdown_workers"):  # not that of a run without workers
        running._shutdown_workers()


class Loader:
    """The batches of one stream for one rank, a pure function of (seed, stream, visit) whatever the workers.

    Asking for the visit after the last one is quick: it was made meanwhile. Any other visit starts the prefetch anew.

    Args:
        stream: its name; part of every seed.
        dataset: what it reads.
        batch_size: rows of the global batch: texts, pictures, pairs or regions.
        seed: of the run.
        workers: processes; 0 makes batches in this one.
        rank: of ``world``; takes the rank-th slice of the global batch.
        parts: micro-batches that a rank's slice is cut into, fetched one by one with ``at(visit, part)``.
        max_bad: share of bad samples above which ``at`` raises.
        pin: pin the memory of batches, for copies to a CUDA device that do not wait.
        contrasts: a loss of the stream learns from rows that differ: each rank's part must show two pictures at least.
        ranks: has ``agree(number)`` and ``gather(list)``; all ranks then call ``at`` together and refuse together. None: alone.

    Attributes:
        dataset: what it reads.
        wait_s: seconds that ``at`` has waited so far.

    Raises:
        ConfigError: ``batch_size`` does not divide by ``world * parts``.
        BadDataError: there is nothing to read, or too many remote shards cannot be had.
    """

    def __init__(self, stream: str, dataset: StreamDataset, batch_size: int, seed: int, workers: int, rank: int = 0,
                 world: int = 1, max_bad: float = 0.01, parts: int = 1, pin: bool = False, contrasts: bool = False, ranks=None):
        if batch_size % (world * parts):
            raise ConfigError(f"streams.{stream}.batch_size: {batch_size} does not divide by {world} ranks x "
                             f"{parts} micro-batches")
        self.dataset = dataset
        self._made = _Visits(stream, dataset, batch_size, seed, rank, world, parts, contrasts)
        self._tally = SampleCounts(f"stream `{stream}`", dataset, max_bad, speaks=rank == 0)
        dataset.give_up_dead()
        self._parts, self._workers, self._pin, self._ranks = parts, workers, pin, ranks
        self._ahead, self._loader, self._running, self._next = _From(), None, None, None
        self.wait_s = 0.0

    def at(self, visit: int, part: int = 0) -> Batch:
        """The rank's slice of the global batch of a visit, or a part of it.

        Raises:
            BadDataError: too many samples are bad; or the stream ``contrasts`` and a part of the batch shows one picture.
        """
        begin, number = time.perf_counter(), visit * self._parts + part
        if number != self._next:
            self._start(number)
        self._next = None  # were it to fail, the next call would start anew
        made, self._next = next(self._running), number + 1
        self.wait_s += time.perf_counter() - begin
        due = self._tally.add(made.read, made.bad) or made.error is not None
        if due if self._ranks is None else self._ranks.agree(int(due)):
            self._tally.judge(self._ranks, made.error if made.batch is not None else f"{made.error}. {self._tally.complaint()}")
        return made.batch

    def _start(self, number: int) -> None:
        """Makes what comes from ``number`` on, with the workers that there are already."""
        self._ahead.start = number
        if self._workers and self._loader is None:
            self._loader = _data_loader(self._made, self._ahead, self._workers, self._pin)
            atexit.register(self.close)  # workers ignore SIGTERM: Python must not wait for them at its end
        self._running = iter(self._loader) if self._workers else map(self._made.__getitem__, self._ahead)

    def report(self) -> dict:
        """Samples read and bad ones so far: ``{"read": n, "bad": {kind: n}, "worst_shard": path or None}``."""
        return self._tally.report()

    def counted(self) -> dict:
        """What ``report`` is made of, as JSON has it: kept in a checkpoint, for ``count_on``."""
        return self._tally.counted()

    def count_on(self, counted: dict) -> None:
        """Goes on counting from what the loader of an earlier process had counted."""
        self._tally.count_on(counted)

    def close(self) -> None:
        """Ends the workers. The next ``at`` would start new ones."""
        _end(self._running)
        self._running = self._loader = self._next = None
        atexit.unregister(self.close)


class _Pass(Dataset):
    """Batch number -> _Result, in the order of the files: all samples, or the first ``limit`` of each source."""

    def __init__(self, dataset: StreamDataset, batch_size: int, limit: int | None = None):
        self._dataset, self._batch_size, sizes = dataset, batch_size, list(dataset.sizes)
        self._starts = [0, *itertools.accumulate(sizes)]
        self._ends = list(itertools.accumulate(size if limit is None else min(limit, size) for size in sizes))

    def __len__(self) -> int:
        return -(-self._ends[-1] // self._batch_size)

    def __getitem__(self, number: int) -> _Result:
        made, loaded, first = _Result(), [], number * self._batch_size
        for sample in range(first, min(first + self._batch_size, self._ends[-1])):
            source = bisect_right(self._ends, sample)
            place = sample - (self._ends[source - 1] if source else 0)
            # What is drawn for a sample does not depend on the limit.
            drawn = sample_rng(0, "evaluation", 0, self._starts[source] + place)
            loaded += made.load(self._dataset, source, place, 1, drawn)
        made.batch = self._dataset.collate(loaded) if loaded else None
        return made


class EvalLoader:
    """All samples of a dataset once, in order; bad ones are left out and counted. Iterate as often as needed.

    A sample's masks, where its dataset draws any, are the same in every pass.

    Args:
        dataset: built with ``train=False``.
        batch_size: pictures (texts on text streams) a batch; a picture brings all its texts.
        workers: processes; 0 makes batches in this one.
        name: for messages.
        max_bad: share of bad samples above which it raises.
        pin: pin the memory of batches.
        shared: several processes read a part each: nobody is stopped in the middle, and all call ``judge`` after the pass.
        limit: only the first so many samples of each source; None: all.
    """

    def __init__(self, dataset: StreamDataset, batch_size: int, workers: int = 0, name: str = "evaluation",
                 max_bad: float = 0.01, pin: bool = False, shared: bool = False, limit: int | None = None):
        self._made, self._workers, self._pin, self._shared = _Pass(dataset, batch_size, limit), workers, pin, shared
        self._name = name
        self._fresh = functools.partial(SampleCounts, f"evaluation `{name}`", dataset, max_bad)
        self._tally = self._fresh()

    def __len__(self) -> int:
        return len(self._made)

    def __iter__(self):
        return self.batches(range(len(self)))

    def batches(self, numbers: range):
        """Yields those batches of the pass, in order, those without a usable sample left out. Where that takes longer than a few
        seconds, the first process shows on a terminal how far it is."""
        from tqdm import tqdm  # only here: a recipe with mistakes is answered without it

        self._tally = self._fresh()
        if self._workers:
            made = iter(_data_loader(self._made, numbers, self._workers, self._pin))
        else:
            made = map(self._made.__getitem__, numbers)
        try:
            for one in tqdm(made, self._name, len(numbers), leave=False, delay=BAR_AFTER, unit=" batches",
                            disable=None if os.environ.get("RANK", "0") == "0" else True):
                if self._tally.add(one.read, one.bad) and not self._shared:
                    self._tally.judge()
                if one.batch is not None:
                    yield one.batch
            if not self._shared:
                self._tally.judge(whole=True)
        finally:
            _end(made)

    def judge(self, ranks) -> dict:
        """``report`` of all processes. Raises BadDataError, on every process, where the last pass over all parts met more than
        ``max_bad`` bad samples."""
        return self._tally.judge(ranks, whole=True)

    def report(self) -> dict:
        """Samples read and bad ones of the last pass, or part of one, as ``Loader.report``."""
        return self._tally.report()
