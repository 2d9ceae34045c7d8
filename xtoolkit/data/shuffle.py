"""In what order an epoch goes through a source: all of it mixed, or shard after shard with neighbours mixed."""

from bisect import bisect_left, bisect_right
from functools import lru_cache

import numpy as np

from xtoolkit.batch import stable_key


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


class Windowed:
    """Shards in a drawn order, and the samples of ``window`` shards that follow each other, a block, mixed.

    So a shard is read within one stretch of an epoch, from front to back as far as a cache is concerned, and can be
    forgotten after it; no more than one block is needed at a time.

    Args:
        sizes: samples of each shard.
        window: shards that are mixed.

    Attributes:
        size: samples of an epoch.
        blocks: blocks of an epoch, those without a sample counted.
    """

    def __init__(self, sizes: list[int], window: int):
        self._sizes, self._window = np.asarray(sizes, np.int64), window
        self._firsts = np.cumsum(self._sizes) - self._sizes
        self.size, self.blocks = int(self._sizes.sum()), -(-len(sizes) // window)
        self._epoch = lru_cache(maxsize=2)(self._draw)  # an epoch and the next one are read together

    def _draw(self, key: int) -> tuple[np.ndarray, np.ndarray]:
        """The shards in the order of an epoch, and the positions at which its blocks end."""
        order = permute(np.arange(len(self._sizes)), len(self._sizes), stable_key(key, "shards"))
        return order, np.cumsum(np.add.reduceat(self._sizes[order], np.arange(0, len(order), self._window)))

    def ends(self, key: int) -> np.ndarray:
        """The positions (blocks,) at which the blocks of the epoch that ``key`` chooses end."""
        return self._epoch(key)[1]

    def shards(self, block: int, key: int) -> list[int]:
        """The shards that a block reads, to be fetched ahead."""
        return self._epoch(key)[0][block * self._window:(block + 1) * self._window].tolist()

    def block(self, sample: int, key: int) -> int:
        """The block of an epoch that a sample is in."""
        shard = int(np.searchsorted(self._firsts, sample, side="right")) - 1
        return int(np.flatnonzero(self._epoch(key)[0] == shard)[0]) // self._window

    def samples(self, begin: int, end: int, key: int) -> np.ndarray:
        """The samples (end - begin,) at the positions from ``begin`` to ``end`` of an epoch."""
        found, ends = [np.empty(0, np.int64)], [0, *self.ends(key).tolist()]
        for block in range(bisect_right(ends, begin) - 1, bisect_left(ends, end)):
            start, stop = ends[block:block + 2]
            places = np.arange(max(begin, start), min(end, stop)) - start
            drawn = permute(places, stop - start, self._key(key, block))
            found.append(self._at(block, drawn, key))
        return np.concatenate(found)

    def replacement(self, sample: int, key: int, draw: int, attempt: int) -> int:
        """For the place of ``sample`` the ``draw``-th of its block, which is at hand; where ten failed, of the next one.

        So the samples of a shard that cannot be had are replaced out of its neighbours, without a shard being fetched
        for one of them.
        """
        block, sizes = self.block(sample, key) + attempt // 10, np.diff(self.ends(key), prepend=0)
        while not sizes[block % self.blocks]:
            block += 1
        block %= self.blocks
        return int(self._at(block, np.array([draw % int(sizes[block])]), key)[0])

    def _key(self, key: int, block: int) -> int:
        return stable_key(key, block)

    def _at(self, block: int, places: np.ndarray, key: int) -> np.ndarray:
        """The samples at some places of the shards of a block laid end to end."""
        shards = self._epoch(key)[0][block * self._window:(block + 1) * self._window]
        passed = np.cumsum(self._sizes[shards])
        which = np.searchsorted(passed, places, side="right")
        return self._firsts[shards[which]] + places - (passed - self._sizes[shards])[which]


class Mixed(Windowed):
    """Any sample anywhere in an epoch, which is one block: for files that can be read at any place."""

    def __init__(self, size: int):
        super().__init__([size], window=1)

    def shards(self, block: int, key: int) -> list[int]:
        return []

    def _key(self, key: int, block: int) -> int:
        return key
