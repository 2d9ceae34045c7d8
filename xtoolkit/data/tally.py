"""Counts what was read of a stream and what was bad, and stops a run whose data is worse than it allows."""

from collections import Counter

from xtoolkit.data.errors import BadDataError

FEWEST_READ = 100  # samples read before the share of bad ones can stop a run
TRUNCATED = "truncated shard"


class Tally:
    """Samples read and bad ones, by kind and by shard.

    Args:
        name: of the stream, for messages.
        size: samples of the stream.
        damaged: {file: what is wrong with it}: each counts as one bad sample of ``size``.
        max_bad: largest share of bad samples.
    """

    def __init__(self, name: str, size: int, damaged: dict[str, str], max_bad: float):
        self._name, self._size, self._max_bad, self._bad = name, size, max_bad, 0
        self._read, self._kinds, self._shards, self._last = 0, Counter(), Counter(), {}
        for file, what in damaged.items():
            self._count(TRUNCATED, file, what)

    def _count(self, kind: str, path: str, detail: str) -> None:
        self._kinds[kind] += 1
        self._shards[path] += 1
        self._last[path] = f"{kind}: {detail}"

    def add(self, read: int, bad: list[tuple[str, str, str]]) -> None:
        """Adds what one batch cost: samples read, and (kind, shard, detail) of each bad one.

        Raises:
            BadDataError: the share of bad samples is above ``max_bad``.
        """
        self._read += read
        self._bad += len(bad)
        for kind, path, detail in bad:
            self._count(kind, path, detail)
        if self._read >= FEWEST_READ:
            share = self._bad / self._read + self._kinds[TRUNCATED] / max(self._read, self._size)
            if share > self._max_bad:
                raise BadDataError(self.complaint())

    def complaint(self) -> str:
        """What is wrong with the stream's data, in one line."""
        worst, count = self._shards.most_common(1)[0]
        kinds = ", ".join(f"{n} {kind}" for kind, n in self._kinds.most_common())
        return (f"stream `{self._name}`: {kinds} in {self._read} samples read, more than "
                f"train.max_bad={self._max_bad} allows. Worst shard: {worst} ({count}; the last: {self._last[worst]}). "
                "Mend or remove it, or raise train.max_bad")

    def report(self) -> dict:
        """``{"read": n, "bad": {kind: n}, "worst_shard": path or None}``."""
        worst = self._shards.most_common(1)
        return {"read": self._read, "bad": dict(self._kinds), "worst_shard": worst[0][0] if worst else None}
