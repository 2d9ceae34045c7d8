"""Counts what was read of a stream and what was bad, and stops a run whose data is worse than it allows."""

import copy
import logging
from collections import Counter
from itertools import islice

from xtoolkit.data.errors import DEAD, BadDataError

FEWEST_READ = 100  # samples read before the share of bad ones can stop a run
MOST_NAMED = 20  # files whose left out members are named
TRUNCATED = "truncated shard"
LOG = logging.getLogger(__name__)


class SampleCounts:
    """Samples read and bad ones, by kind and by shard.

    A shard that is cut off counts as one bad sample of all there are. A dead one counts, whatever was drawn of it, with
    all its samples of all there are: where shards are read one after the other, its share of the last ones says little.

    Args:
        name: what is read, for messages: "stream `pairs`", "evaluation `val`".
        dataset: the StreamDataset that is read.
        max_bad: largest share of bad samples.
        speaks: warn of each dead shard, once.

    Raises:
        BadDataError: more shards than ``max_bad`` allows are dead from the start.
    """

    def __init__(self, name: str, dataset, max_bad: float, speaks: bool = True):
        self._name, self._dataset, self._max_bad, self._speaks = name, dataset, max_bad, speaks
        self._size, self._read, self._lost = len(dataset), 0, {}
        self._kinds, self._shards, self._last, self._settled = Counter(), Counter(), {}, False
        self._begin({})
        for file, reasons in islice(dataset.left_out.items(), MOST_NAMED if speaks and not dataset.told else 0):
            LOG.warning("%s: %s: left out: %s", name, file, ", ".join(f"{n} {why}" for why, n in reasons.items()))
        dataset.told = dataset.told or speaks
        if dataset.dead and self._share() > max_bad:
            raise BadDataError(self.complaint())

    def _begin(self, before: dict) -> None:
        """Counts what was wrong with shards before a sample was read of them, but for those counted ``before``."""
        for file, what in self._dataset.damaged.items():
            if file not in before:
                self._count(TRUNCATED, file, what)
        for dead in self._dataset.dead:
            if dead.path not in before:
                self._count(DEAD, dead.path, dead.detail)
            self._lose(dead.path, dead.detail)

    def _count(self, kind: str, path: str, detail: str) -> None:
        self._kinds[kind] += 1
        self._shards[path] += 1
        self._last[path] = f"{kind}: {detail}"

    def _lose(self, path: str, reason: str) -> None:
        if path not in self._lost:
            samples = self._lost[path] = self._dataset.samples_of(path)  # 0: not even its index can be had
            if self._speaks:
                LOG.warning("%s: dead shard %s: %s. Other samples take the place of its %s", self._name, path,
                            reason, f"{samples} samples" if samples else "samples")

    def _share(self) -> float:
        """Bad samples of those read; and of all there are, those that are behind a cut or in dead shards."""
        bad = self._kinds.total() - self._kinds[TRUNCATED] - self._kinds[DEAD]
        lost = sum(self._lost.values())
        unknown = sum(not samples for samples in self._lost.values())  # as large as the others, on average
        return (bad / max(1, self._read) + self._kinds[TRUNCATED] / max(1, self._read, self._size)
                + lost / max(1, self._size) + unknown / max(1, self._dataset.shard_count))

    def add(self, read: int, bad: list[tuple[str, str, str]]) -> bool:
        """Adds what one batch cost: samples read, and (kind, shard, detail) of each bad one. Returns whether to judge."""
        due, self._read = bool(bad) or bool(self._kinds) and not self._settled, self._read + read
        self._settled = self._read >= FEWEST_READ  # from here on only what is bad raises the share, as where nothing ever was
        for kind, path, detail in bad:
            self._count(kind, path, detail)
            if kind == DEAD:
                self._lose(path, detail)
        return due

    def judge(self, ranks=None, error: str | None = None, whole: bool = False) -> dict:
        """Stops all processes together, which call it at the same time.

        Args:
            ranks: has ``gather(list)``: what all processes have counted is judged as if one had read it; None: there is but one.
            error: why this process cannot go on, whatever the share.
            whole: all has been read: the share is what it is, however few samples there are.

        Returns:
            ``report`` of what all processes have counted.

        Raises:
            BadDataError: the first error; or the share of bad samples is above ``max_bad``.
        """
        found = [(error, self.counted())] if ranks is None else ranks.gather([(error, self.counted())])
        if errors := [why for why, _ in found if why is not None]:
            raise BadDataError(errors[0])
        joined = self._joined([counted for _, counted in found])
        if (whole or joined._read >= FEWEST_READ) and joined._kinds and joined._share() > self._max_bad:
            raise BadDataError(joined.complaint())
        return joined.report()

    def _joined(self, several: list[dict]) -> "SampleCounts":
        """The counts of several processes as one's. What is wrong with whole shards, which each finds, counts once."""
        whole = copy.copy(self)
        whole._read = sum(one["read"] for one in several)
        whole._kinds, whole._shards, whole._last, whole._lost = Counter(), Counter(), {}, {}
        for one in several:
            whole._kinds.update(one["kinds"])
            whole._shards.update(one["shards"])
            whole._last |= one["last"]
            whole._lost |= one["lost"]
        if whole._kinds[TRUNCATED]:
            whole._kinds[TRUNCATED] = max(one["kinds"].get(TRUNCATED, 0) for one in several)
        return whole

    def counted(self) -> dict:
        """All counts, as JSON has them."""
        return {"read": self._read, "kinds": dict(self._kinds), "shards": dict(self._shards), "last": dict(self._last),
                "lost": dict(self._lost)}

    def count_on(self, counted: dict) -> None:
        """Goes on from the counts of an earlier process; this one has read nothing yet."""
        self._read, self._last = counted["read"], counted["last"]
        self._kinds, self._shards = Counter(counted["kinds"]), Counter(counted["shards"])
        self._lost = counted["lost"] | self._lost
        self._begin(counted["shards"])

    def complaint(self) -> str:
        """What is wrong with the stream's data, in one line."""
        worst, count = self._shards.most_common(1)[0]
        kinds = ", ".join(f"{n} {kind}" for kind, n in self._kinds.most_common())
        return (f"{self._name}: {kinds} in {self._read} samples read, more than "
                f"train.max_bad={self._max_bad} allows. Worst shard: {worst} ({count}; the last: {self._last[worst]}). "
                "Mend or remove it, or raise train.max_bad")

    def report(self) -> dict:
        """``{"read": n, "bad": {kind: n}, "worst_shard": path or None}``; ``"dead_shards": [...]`` and ``"left_out": {reason:
        n}``, of what lies in shards and is no part of a sample, if there are any."""
        worst = max(self._shards, key=self._shards.get, default=None)
        found: dict = {"read": self._read, "bad": dict(self._kinds), "worst_shard": worst}
        if self._lost:
            found["dead_shards"] = sorted(self._lost)
        if left_out := sum(map(Counter, self._dataset.left_out.values()), Counter()):
            found["left_out"] = dict(left_out)
        return found
