"""Which streams take part in a step, in which groups, and how often each was drawn before, from (seed, step)."""

import hashlib
import itertools
import math
from bisect import bisect_right
from functools import lru_cache

from xtoolkit.recipe.settings import ScheduleBlock, groups_of, intervals, schedule_problems
from xtoolkit.registry import ConfigError

# Steps whose draws are counted together: a run keeps one row of counts for each block that it has passed.
BLOCK = 1024


class Schedule:
    """The order of updates.

    ``every_step`` gives groups in order, one optimizer update each; with ``every: {a: n}`` stream a takes part in steps
    0, n, 2n, ... only, and with ``every: {a: [[step, n], ...]}`` n changes at these steps; a group that is left empty is
    skipped. ``sample`` gives one group of one stream a step,
    drawn with probability proportional to its weight; draws do not depend on the order in which the streams are
    written. With neither, all streams are one group.

    Args:
        block: the `schedule` block.
        seed: of the draws.
        streams: names of the streams.
        steps: of the run; None: it never ends.

    Raises:
        ConfigError: the block has ``problems``.
    """

    def __init__(self, block: ScheduleBlock, seed: int, streams, steps: int | None = None):
        if found := schedule_problems(block, streams, steps):
            raise ConfigError([f"{'.'.join(('schedule', *path))}: {message}" for path, message in found])
        self.seed, self._groups = seed, groups_of(block, streams)
        self._intervals = {name: _pieces(intervals(block, name)) for name in streams}
        self._names = sorted(block.sample or {})
        self._bounds = list(itertools.accumulate(block.sample[name] for name in self._names)) if block.sample else []
        self._counts = [dict.fromkeys(self._names, 0)]
        # Bounded, as a run only ever looks at the block it is in and at the one before.
        self._drawn = lru_cache(maxsize=4)(self._draw_block)

    def groups(self, step: int) -> list[list[str]]:
        """The groups of a step, counted from 0, in order; each is one optimizer update."""
        if self._names:
            return [[self._drawn(step // BLOCK)[step % BLOCK]]]
        taking_part = [[name for name in group if self.visit(name, step + 1) > self.visit(name, step)] for group in self._groups]
        return [group for group in taking_part if group]

    def visit(self, stream: str, step: int) -> int:
        """How often ``stream`` took part in the steps before ``step``.

        Constant time for ``every_step``. For ``sample`` the counts of whole blocks are made once a run, and one block
        is looked through.
        """
        if not self._names:
            return sum(-(-(min(end, step) - start) // n) for start, end, n in self._intervals[stream] if start < step)
        block, offset = divmod(step, BLOCK)
        while len(self._counts) <= block:
            drawn = self._draw_block(len(self._counts) - 1)
            self._counts.append({name: n + drawn.count(name) for name, n in self._counts[-1].items()})
        return self._counts[block][stream] + self._drawn(block)[:offset].count(stream)

    def _draw_block(self, block: int) -> list[str]:
        return [self._draw(step) for step in range(block * BLOCK, (block + 1) * BLOCK)]

    def _draw(self, step: int) -> str:
        digest = hashlib.blake2b(f"schedule/{self.seed}/{step}".encode(), digest_size=8).digest()
        share = (int.from_bytes(digest, "big") >> 11) / 2**53
        return self._names[min(bisect_right(self._bounds, share * self._bounds[-1]), len(self._names) - 1)]


def _pieces(found: list[tuple[int, int | None]]) -> list[tuple[int, float, int]]:
    """(step, the step at which it ends, n) of each stretch of ``intervals`` in which the stream takes part."""
    ends = [start for start, _ in found[1:]] + [math.inf]
    return [(start, end, n) for (start, n), end in zip(found, ends) if n is not None]
