"""What the n-th batch of a stream holds: pure functions of (seed, stream, visit), the same on every rank and worker."""

import random
from dataclasses import dataclass

import numpy as np

from xtoolkit.batch import stable_key
from xtoolkit.data.errors import BadDataError
from xtoolkit.data.shuffle import Mixed


@dataclass(frozen=True)
class Slot:
    """One sample's place in a global batch.

    Attributes:
        row: its first row in the global batch.
        source: number of the source.
        sample: number of the sample in the source.
        rows: rows it fills; 1 but on region streams.
        epoch: of its source.
    """

    row: int
    source: int
    sample: int
    rows: int = 1
    epoch: int = 0


def sample_rng(seed: int, stream: str, visit: int, row: int) -> random.Random:
    """The randomness of one sample: crop, flip, masks, choice of caption."""
    return random.Random(stable_key(seed, stream, visit, row))


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
        lengths: for text streams: per source a function of samples (m,) that gives (m,) int, anything that grows with
            the length of each.
        window: batches that are sorted by length together; 1: no sorting.
        shuffles: per source in what order an epoch goes through it; Mixed by default.

    Raises:
        BadDataError: a source with nothing to draw.
    """

    def __init__(self, seed: int, stream: str, batch_size: int, sizes: list[int], weights: list[float], *,
                 elements: list[np.ndarray] | None = None, lengths: list | None = None, window: int = 1,
                 shuffles: list | None = None):
        self.seed, self.stream, self.batch_size = seed, stream, batch_size
        self.sizes, self.weights = sizes, [max(1, round(w * 2**20)) for w in weights]
        self.shuffles = shuffles or [Mixed(n) for n in sizes]
        self.lengths, self.window = lengths, window if lengths is not None else 1
        self.elements, self._totals = elements, sizes
        if elements is not None:
            # At least three pictures a batch, of which two can be the same: an epoch's last, the next one's first.
            limit = max(1, (batch_size - 1) // 2)
            self.elements = [np.minimum(e, limit) for e in elements]
            self._totals = [int(e.sum(dtype=np.int64)) for e in self.elements]
        for i, total in enumerate(self._totals):
            if total == 0:
                raise BadDataError(f"stream `{stream}`: source {i} has no sample to draw; look at its `path`")
        self._sorted, self._epochs, self._blocks = (None, None), {}, {}

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
        for source, sample, rows, epoch in picks:
            slots.append(Slot(row, source, sample, rows, epoch))
            row += rows
        return slots

    def reserve(self, visit: int, slot: Slot, attempt: int) -> int:
        """The sample of the same source that takes the place of a bad one."""
        draw = lambda again: self.shuffles[slot.source].replacement(
            slot.sample, self._key(slot.source, slot.epoch),
            stable_key(self.seed, self.stream, "reserve", visit, slot.row, attempt, *again), attempt)
        sample = draw(())
        if self.elements is None:
            return sample
        tries = (draw((again,)) for again in range(1, 100))
        return next((s for s in (sample, *tries) if self.elements[slot.source][s]), sample)

    def shards(self, visit: int) -> list[list[int]]:
        """Per source the shards that a visit reads and those that are read next, where an epoch goes by shards."""
        visits = (visit // self.window * self.window, visit // self.window * self.window + self.window)
        found = []
        for source, (begin, end) in self._ranges(*(v * self.batch_size for v in visits)):
            (epoch, block), last = self._block(source, begin), self._block(source, max(begin, end - 1))
            listed = []
            while (epoch, block) <= last:
                listed += self._shards(source, epoch, block)
                epoch, block = self._after(source, epoch, block)
            found.append(listed + self._shards(source, epoch, block))
        return found

    def _key(self, source: int, epoch: int) -> int:
        return stable_key(self.seed, self.stream, source, epoch)

    def _ranges(self, first: int, last: int):
        """Per source the range of its own draws among the draws ``first`` to ``last`` of the stream."""
        return enumerate(zip(shares(first, self.weights), shares(last, self.weights)))

    def _flat(self, first: int, last: int) -> list[tuple[int, int, int, int]]:
        picks = []
        for source, (begin, end) in self._ranges(first, last):
            n = self.sizes[source]
            for epoch in range(begin // n, (end - 1) // n + 1 if end > begin else 0):
                a, b = max(begin, epoch * n) - epoch * n, min(end, (epoch + 1) * n) - epoch * n
                samples = self.shuffles[source].samples(a, b, self._key(source, epoch))
                picks += [(source, sample, 1, epoch) for sample in samples.tolist()]
        return picks

    def _by_length(self, visit: int) -> list[tuple[int, int, int, int]]:
        """The window of batches is drawn, sorted by length, cut into batches, and these are shuffled."""
        block, place = divmod(visit, self.window)
        if self._sorted[0] != block:
            span = self.window * self.batch_size
            picks = self._flat(block * span, (block + 1) * span)
            random.Random(stable_key(self.seed, self.stream, "window", block)).shuffle(picks)
            lengths = np.empty(span, np.int64)
            sources, samples = (np.array([p[i] for p in picks]) for i in (0, 1))
            for source in range(len(self.sizes)):
                lengths[sources == source] = self.lengths[source](samples[sources == source])
            picks = [picks[i] for i in np.argsort(lengths, kind="stable").tolist()]
            starts = list(range(0, span, self.batch_size))
            random.Random(stable_key(self.seed, self.stream, "batches", block)).shuffle(starts)
            self._sorted = block, [picks[s:s + self.batch_size] for s in starts]
        return list(self._sorted[1][place])

    def _regions(self, visit: int) -> list[tuple[int, int, int, int]]:
        """Rows are counted along the permuted pictures, each as many times as it has elements (at most the limit)."""
        picks = []
        for source, (begin, end) in self._ranges(visit * self.batch_size, (visit + 1) * self.batch_size):
            while begin < end:
                epoch, block = self._block(source, begin)
                samples, ends = self._block_rows(source, epoch, block)
                row = begin - epoch * self._totals[source]
                place = int(np.searchsorted(ends, row, side="right"))
                rows = min(int(ends[place]) - row, end - begin)
                picks.append((source, int(samples[place]), rows, epoch))
                begin += rows
        return picks

    def _block(self, source: int, draw: int) -> tuple[int, int]:
        """The epoch and its block in which a draw of a source falls: a row on region streams, else a sample."""
        epoch, row = divmod(draw, self._totals[source])
        return epoch, int(np.searchsorted(self._epoch_rows(source, epoch), row, side="right"))

    def _after(self, source: int, epoch: int, block: int) -> tuple[int, int]:
        return (epoch, block + 1) if block + 1 < len(self._epoch_rows(source, epoch)) else (epoch + 1, 0)

    def _shards(self, source: int, epoch: int, block: int) -> list[int]:
        return self.shuffles[source].shards(block, self._key(source, epoch))

    def _epoch_rows(self, source: int, epoch: int) -> np.ndarray:
        """The draws (blocks,) at which the blocks of an epoch end; each source's last two are kept."""
        kept = self._epochs.setdefault(source, {})
        if epoch not in kept:
            key = self._key(source, epoch)
            ends = self.shuffles[source].ends(key)
            if self.elements is not None:
                rows = [self.elements[source][self.shuffles[source].samples(begin, end, key)].sum(dtype=np.int64)
                        for begin, end in zip([0, *ends[:-1].tolist()], ends.tolist())]
                ends = np.cumsum(rows)
            self._epochs[source] = kept = dict([*kept.items()][-1:]) | {epoch: ends}
        return kept[epoch]

    def _block_rows(self, source: int, epoch: int, block: int) -> tuple[np.ndarray, np.ndarray]:
        """The samples of a block in order, and the epoch's rows at which each ends; each source's last is kept."""
        if self._blocks.get(source, (None,))[0] != (epoch, block):
            key, rows = self._key(source, epoch), self._epoch_rows(source, epoch)
            begin, end = [0, *self.shuffles[source].ends(key).tolist()][block:block + 2]
            samples = self.shuffles[source].samples(begin, end, key)
            ends = (int(rows[block - 1]) if block else 0) + np.cumsum(self.elements[source][samples], dtype=np.int64)
            self._blocks[source] = (epoch, block), (samples, ends)
        return self._blocks[source][1]
