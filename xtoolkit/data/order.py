"""What the n-th batch of a stream holds: pure functions of (seed, stream, visit), the same on every rank and worker."""

import random
from dataclasses import dataclass

import numpy as np

from xtoolkit.batch import stable_key
from xtoolkit.data.errors import BadDataError


@dataclass(frozen=True)
class Slot:
    """One sample's place in a global batch.

    Attributes:
        row: its first row in the global batch.
        source: number of the source.
        sample: number of the sample in the source.
        rows: rows it fills; 1 but on region streams.
    """

    row: int
    source: int
    sample: int
    rows: int = 1


def sample_rng(seed: int, stream: str, visit: int, row: int) -> random.Random:
    """The randomness of one sample: crop, flip, masks, choice of caption."""
    return random.Random(stable_key(seed, stream, visit, row))


def permute(positions: np.ndarray, n: int, key: int) -> np.ndarray:
    """A pseudo-random permutation of ``range(n)`` at some positions, without making the rest of it.

    A Feistel network over the next power of four, walked until it lands inside (cycle walking: Black, Rogaway, 2002).

    Args:
        positions: int64 in [0, n).
        key: chooses the permutation.
    """
    half = max(1, ((n - 1).bit_length() + 1) // 2)
    low = np.uint64((1 << half) - 1)
    keys = np.random.SeedSequence(key).generate_state(6, np.uint64)
    value = np.asarray(positions).astype(np.uint64)
    outside = np.ones(value.shape, bool)
    while outside.any():
        left, right = value[outside] >> np.uint64(half), value[outside] & low
        for k in keys:
            left, right = right, left ^ (_mix(right ^ k) & low)
        value[outside] = (left << np.uint64(half)) | right
        outside = value >= n
    return value.astype(np.int64)


def _mix(x: np.ndarray) -> np.ndarray:
    """The finaliser of SplitMix64 (Steele et al., 2014)."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def shares(position: int, weights: list[int]) -> list[int]:
    """How many of the first ``position`` draws fell to each source: exact shares, evenly spread.

    Each count grows by at most one a draw, so that the draws of a source between two positions are a range.
    """
    left, rest, counts = position, sum(weights), []
    for weight in weights[:-1]:
        taken = left * weight // rest
        counts.append(taken)
        left, rest = left - taken, rest - weight
    return counts + [left]


class Order:
    """The batches of one stream.

    Args:
        seed: of the run.
        stream: its name.
        batch_size: rows of a global batch.
        sizes: samples of each source.
        weights: share of the draws of each source.
        elements: for region streams: per source (n,) int, rows that each sample can fill in one visit.
        lengths: for text streams: per source (n,) int, anything that grows with the length of a sample.
        window: batches that are sorted by length together; 1: no sorting.

    Raises:
        BadDataError: a source with nothing to draw.
    """

    def __init__(self, seed: int, stream: str, batch_size: int, sizes: list[int], weights: list[float], *,
                 elements: list[np.ndarray] | None = None, lengths: list[np.ndarray] | None = None, window: int = 1):
        self.seed, self.stream, self.batch_size = seed, stream, batch_size
        self.sizes, self.weights = sizes, [max(1, round(w * 2**20)) for w in weights]
        self.lengths, self.window = lengths, window if lengths is not None else 1
        self.elements = elements
        if elements is not None:
            # At least three pictures a batch, of which two can be the same: an epoch's last, the next one's first.
            limit = max(1, (batch_size - 1) // 2)
            self.elements = [np.minimum(e, limit) for e in elements]
            self._totals = [int(e.sum(dtype=np.int64)) for e in self.elements]
        for i, size in enumerate(sizes):
            if size == 0 or (elements is not None and self._totals[i] == 0):
                raise BadDataError(f"stream `{stream}`: source {i} has no sample to draw; look at its `path`")
        self._sorted, self._epochs, self._unordered = (None, None), {}, {}

    def slots(self, visit: int) -> list[Slot]:
        """The samples of one global batch, in row order; their rows add up to ``batch_size``."""
        if self.elements is not None:
            picks = self._regions(visit)
        elif self.window > 1:
            picks = self._by_length(visit)
        else:
            picks = self._flat(visit * self.batch_size, (visit + 1) * self.batch_size)
        random.Random(stable_key(self.seed, self.stream, "rows", visit)).shuffle(picks)
        slots, row = [], 0
        for source, sample, rows in picks:
            slots.append(Slot(row, source, sample, rows))
            row += rows
        return slots

    def reserve(self, visit: int, slot: Slot, attempt: int) -> int:
        """The sample of the same source that takes the place of a bad one."""
        n = self.sizes[slot.source]
        draw = stable_key(self.seed, self.stream, "reserve", visit, slot.row, attempt)
        if self.elements is None:
            return draw % n
        if slot.source not in self._unordered:
            self._unordered[slot.source] = np.cumsum(self.elements[slot.source], dtype=np.int64)
        ends = self._unordered[slot.source]
        return int(np.searchsorted(ends, draw % int(ends[-1]), side="right"))

    def _key(self, source: int, epoch: int) -> int:
        return stable_key(self.seed, self.stream, source, epoch)

    def _ranges(self, first: int, last: int):
        """Per source the range of its own draws among the draws ``first`` to ``last`` of the stream."""
        return enumerate(zip(shares(first, self.weights), shares(last, self.weights)))

    def _flat(self, first: int, last: int) -> list[tuple[int, int, int]]:
        picks = []
        for source, (begin, end) in self._ranges(first, last):
            n = self.sizes[source]
            for epoch in range(begin // n, (end - 1) // n + 1 if end > begin else 0):
                a, b = max(begin, epoch * n), min(end, (epoch + 1) * n)
                samples = permute(np.arange(a, b) - epoch * n, n, self._key(source, epoch))
                picks += [(source, sample, 1) for sample in samples.tolist()]
        return picks

    def _by_length(self, visit: int) -> list[tuple[int, int, int]]:
        """The window of batches is drawn, sorted by length, cut into batches, and these are shuffled."""
        block, place = divmod(visit, self.window)
        if self._sorted[0] != block:
            span = self.window * self.batch_size
            picks = self._flat(block * span, (block + 1) * span)
            random.Random(stable_key(self.seed, self.stream, "window", block)).shuffle(picks)
            picks.sort(key=lambda p: self.lengths[p[0]][p[1]])
            starts = list(range(0, span, self.batch_size))
            random.Random(stable_key(self.seed, self.stream, "batches", block)).shuffle(starts)
            self._sorted = block, [picks[s:s + self.batch_size] for s in starts]
        return list(self._sorted[1][place])

    def _regions(self, visit: int) -> list[tuple[int, int, int]]:
        """Rows are counted along the permuted pictures, each as many times as it has elements (at most the limit)."""
        picks = []
        for source, (begin, end) in self._ranges(visit * self.batch_size, (visit + 1) * self.batch_size):
            while begin < end:
                epoch, row = divmod(begin, self._totals[source])
                order, ends = self._epoch_elements(source, epoch)
                place = int(np.searchsorted(ends, row, side="right"))
                rows = min(int(ends[place]) - row, end - begin)
                picks.append((source, int(order[place]), rows))
                begin += rows
        return picks

    def _epoch_elements(self, source: int, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """The samples in the order of an epoch, and the running sum of their elements; each source's last is kept."""
        if source not in self._epochs or self._epochs[source][0] != epoch:
            n = self.sizes[source]
            order = permute(np.arange(n), n, self._key(source, epoch))
            self._epochs[source] = epoch, (order, np.cumsum(self.elements[source][order], dtype=np.int64))
        return self._epochs[source][1]
