"""In what order an epoch goes through a source: all of it mixed, or shard after shard with neighbours mixed."""

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


class Mixed:
    """Any sample anywhere in an epoch: for files that can be read at any place.

    Its positions are counted in blocks of ``BLOCK``, so that what is summed over them (``Order``) needs little memory.
    """

    BLOCK = 4096

    def __init__(self, size: int):
        self.size = size

    def samples(self, begin: int, end: int, key: int) -> np.ndarray:
        """The samples (end - begin,) at the positions from ``begin`` to ``end`` of the epoch that ``key`` chooses."""
        return permute(np.arange(begin, end), self.size, key)

    def ends(self, key: int) -> np.ndarray:
        """The positions (blocks,) at which the blocks of an epoch end."""
        return np.append(np.arange(self.BLOCK, self.size, self.BLOCK), self.size)

    def shards(self, block: int, key: int) -> list[int]:
        """The shards that a block reads, where it reads few: none."""
        return []

    def replacement(self, sample: int, key: int, draw: int, attempt: int) -> int:
        """A sample for the place of ``sample``: the ``draw``-th modulo their number."""
        return draw % self.size


class Windowed:
    """Shards in a drawn order, and the samples of ``window`` shards that follow each other mixed.

    So a shard is read within one stretch of an epoch, from front to back as far as a cache is concerned, and can be
    forgotten after it; no more than one block of ``window`` shards is needed at a time.

    Args:
        sizes: samples of each shard.
        window: shards that are mixed.
    """

    def __init__(self, sizes: list[int], window: int):
        self._sizes, self._window = np.asarray(sizes, np.int64), window
        self._firsts = np.cumsum(self._sizes) - self._sizes
        self.size, self._epochs = int(self._sizes.sum()), {}

    def _shards(self, key: int) -> tuple[np.ndarray, np.ndarray]:
        """The shards in the order of an epoch, and the positions at which its blocks end; the last two are kept."""
        if key not in self._epochs:
            n = len(self._sizes)
            order = permute(np.arange(n), n, stable_key(key, "shards"))
            passed = np.cumsum(self._sizes[order])
            ends = passed[np.minimum(np.arange(self._window - 1, n + self._window - 1, self._window), n - 1)]
            self._epochs = dict([*self._epochs.items()][-1:]) | {key: (order, ends)}
        return self._epochs[key]

    def ends(self, key: int) -> np.ndarray:
        return self._shards(key)[1]

    def shards(self, block: int, key: int) -> list[int]:
        return self._shards(key)[0][block * self._window:(block + 1) * self._window].tolist()

    def samples(self, begin: int, end: int, key: int) -> np.ndarray:
        ends = self._shards(key)[1]
        found = [np.empty(0, np.int64)]
        while begin < end:
            block = int(np.searchsorted(ends, begin, side="right"))
            start = int(ends[block - 1]) if block else 0
            stop = min(end, int(ends[block]))
            places = permute(np.arange(begin - start, stop - start), int(ends[block]) - start, stable_key(key, block))
            found.append(self._at(block, places, key))
            begin = stop
        return np.concatenate(found)

    def _at(self, block: int, places: np.ndarray, key: int) -> np.ndarray:
        """The samples at some places of the shards of a block laid end to end."""
        shards = np.array(self.shards(block, key))
        passed = np.cumsum(self._sizes[shards])
        which = np.searchsorted(passed, places, side="right")
        return self._firsts[shards[which]] + places - (passed - self._sizes[shards])[which]

    def replacement(self, sample: int, key: int, draw: int, attempt: int) -> int:
        """A sample of the same block, which is at hand; of the following ones where ten attempts have failed.

        So the samples of a shard that cannot be had are replaced out of its neighbours, without a shard being fetched
        for one of them.
        """
        order, ends = self._shards(key)
        shard = int(np.searchsorted(self._firsts, sample, side="right")) - 1
        block = (int(np.flatnonzero(order == shard)[0]) // self._window + attempt // 10) % len(ends)
        sizes = np.diff(ends, prepend=0)
        while not sizes[block]:
            block = (block + 1) % len(ends)
        return int(self._at(block, np.array([draw % int(sizes[block])]), key)[0])
