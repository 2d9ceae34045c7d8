"""What the n-th batch of a stream holds: pure functions of (seed, stream, visit), the same on every rank and worker."""

import random
from dataclasses import dataclass
from functools import lru_cache, partial
from itertools import accumulate

import numpy as np

from xtoolkit.batch import stable_key
from xtoolkit.data.errors import BadDataError
from xtoolkit.data.shuffle import Mixed

PIECE = 4096  # positions of an epoch that are drawn at once; one number is kept of each other piece of it


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
    for weight in weights:
        counts.append(left * weight // rest)
        left, rest = left - counts[-1], rest - weight
    return counts


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
        names: of the sources, for messages.

    Raises:
        BadDataError: a source with nothing to draw.
    """

    def __init__(self, seed: int, stream: str, batch_size: int, sizes: list[int], weights: list[float], *,
                 elements: list[np.ndarray] | None = None, lengths: list | None = None, window: int = 1,
                 shuffles: list | None = None, names: list[str] | None = None):
        self._key, self._batch_size = partial(stable_key, seed, stream), batch_size
        self._weights = [max(1, round(weight * 2**20)) for weight in weights]
        self._shuffles = shuffles or [Mixed(size) for size in sizes]
        self._lengths, self._window = lengths, window if lengths is not None else 1
        # At least three pictures a batch, of which two can be the same: an epoch's last, the next one's first.
        limit = max(1, (batch_size - 1) // 2)
        self._elements = None if elements is None else [np.minimum(rows, limit) for rows in elements]
        # Draws of an epoch.
        self._totals = sizes if elements is None else [int(rows.sum(dtype=np.int64)) for rows in self._elements]
        if 0 in self._totals:
            empty = self._totals.index(0)
            raise BadDataError(f"stream `{stream}`: source {f'`{names[empty]}`' if names else empty} has no sample to draw; "
                               "look at its `path`")
        # Of each source an epoch and the next one are read together.
        self._starts, self._pieces = ([lru_cache(maxsize=2)(partial(method, source)) for source in range(len(sizes))]
                                     for method in (self._count, self._piece))
        self._batches = lru_cache(maxsize=1)(self._by_length)

    def slots(self, visit: int) -> list[Slot]:
        """The samples of one global batch, in row order; their rows add up to ``batch_size``."""
        if self._window > 1:
            picks = list(self._batches(visit // self._window)[visit % self._window])
        else:
            picks = self._picks(visit, visit + 1)
        random.Random(self._key("rows", visit)).shuffle(picks)
        first_rows = accumulate((rows for _, _, rows, _ in picks), initial=0)
        return [Slot(row, *pick) for row, pick in zip(first_rows, picks)]

    def reserve(self, visit: int, slot: Slot, attempt: int) -> int:
        """The sample of the same source that takes the place of a bad one: of a hundred draws the first with rows."""
        key, tried = self._key(slot.source, slot.epoch), []
        for again in ((), *zip(range(1, 100))):
            draw = self._key("reserve", visit, slot.row, attempt, *again)
            tried.append(self._shuffles[slot.source].replacement(slot.sample, key, draw, attempt))
            if self._elements is None or self._elements[slot.source][tried[-1]]:
                return tried[-1]
        return tried[0]

    def shards(self, visit: int) -> list[list[int]]:
        """Per source the shards that a visit reads and those that are read next, where an epoch goes by shards."""
        first, found = visit // self._window * self._window, []
        for source, begin, end in self._ranges(first, first + self._window):
            shuffle, key = self._shuffles[source], partial(self._key, source)
            ends = [self._drawn(source, draw, draw + 1)[0] for draw in (begin, max(begin, end - 1))]
            block, last = (epoch * shuffle.blocks + shuffle.block(sample, key(epoch)) for _, sample, _, epoch in ends)
            blocks = (divmod(number, shuffle.blocks) for number in range(block, last + 2))
            found.append([shard for epoch, block in blocks for shard in shuffle.shards(block, key(epoch))])
        return found

    def _ranges(self, first: int, last: int):
        """(source, begin, end): the range of each source's own draws in the visits from ``first`` to ``last``."""
        begins, ends = (shares(visit * self._batch_size, self._weights) for visit in (first, last))
        return zip(range(len(begins)), begins, ends)

    def _picks(self, first: int, last: int) -> list[tuple[int, int, int, int]]:
        """(source, sample, rows, epoch) of the visits from ``first`` to ``last``, source after source."""
        return [pick for drawn in self._ranges(first, last) for pick in self._drawn(*drawn)]

    def _by_length(self, number: int) -> list[list[tuple[int, int, int, int]]]:
        """A window of batches is drawn, sorted by length, cut into batches, and these are shuffled."""
        picks = self._picks(number * self._window, (number + 1) * self._window)
        random.Random(self._key("window", number)).shuffle(picks)
        lengths = np.empty(len(picks), np.int64)
        sources, samples = (np.array([pick[i] for pick in picks]) for i in (0, 1))
        for source, of in enumerate(self._lengths):
            lengths[sources == source] = of(samples[sources == source])
        picks = [picks[i] for i in np.argsort(lengths, kind="stable").tolist()]
        batches = [picks[start:start + self._batch_size] for start in range(0, len(picks), self._batch_size)]
        random.Random(self._key("batches", number)).shuffle(batches)
        return batches

    def _drawn(self, source: int, begin: int, end: int) -> list[tuple[int, int, int, int]]:
        """(source, sample, rows, epoch) of draws of a source; on a region stream a draw is a row of a sample's."""
        picks = []
        while begin < end:
            epoch = begin // self._totals[source]
            starts = self._starts[source](epoch)
            piece = int(np.searchsorted(starts, begin, side="right")) - 1
            samples, rows = self._pieces[source](epoch, piece)
            ends = starts[piece] + np.cumsum(rows, dtype=np.int64)
            first, last = np.searchsorted(ends, begin, side="right"), np.searchsorted(ends, end) + 1
            rows = np.diff(np.minimum(ends[first:last], end), prepend=begin).tolist()
            picks += [(source, sample, n, epoch) for sample, n in zip(samples[first:last].tolist(), rows) if n]
            begin += sum(rows)
        return picks

    def _count(self, source: int, epoch: int) -> np.ndarray:
        """The draws (pieces,) at which the pieces of an epoch start."""
        starts = np.arange(0, self._shuffles[source].size, PIECE)
        if self._elements is not None:
            rows = [self._piece(source, epoch, piece)[1].sum(dtype=np.int64) for piece in range(len(starts))]
            starts = np.cumsum(rows) - rows
        return epoch * self._totals[source] + starts

    def _piece(self, source: int, epoch: int, piece: int) -> tuple[np.ndarray, np.ndarray]:
        """The samples of a piece in order, and how many draws each has."""
        shuffle = self._shuffles[source]
        samples = shuffle.samples(piece * PIECE, min((piece + 1) * PIECE, shuffle.size), self._key(source, epoch))
        return samples, np.ones_like(samples) if self._elements is None else self._elements[source][samples]
