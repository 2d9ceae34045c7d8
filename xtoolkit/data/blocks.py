"""The nested blocks of a `data` block that say what is read, and how: `sources` and `shards`."""

from dataclasses import dataclass
from typing import Annotated

from xtoolkit.registry import Count, NotNegative, Positive, Range

REMOTE_WINDOW = 8  # shards; `shards.window` where it is not given and a shard is remote
Path = str | list[str]


@dataclass(frozen=True)
class SourceBlock:
    """One of several `sources`.

    Attributes:
        path: a path or pattern, or a list of them.
        images: the folder of the pictures that a table names; by default that of the table.
        weight: its share of the draws, among the weights of all sources.
    """

    path: Path
    images: str | None = None
    weight: Positive = 1.0


Sources = dict[str, SourceBlock]


@dataclass(frozen=True)
class ShardBlock:
    """How the shards of a stream are gone through, and how those that are not on this machine's disks are fetched.

    Attributes:
        window: shards whose samples are mixed with each other; an epoch goes from one such group to the next. Null: all
            samples of a source are mixed, or groups of REMOTE_WINDOW where a shard of it is remote.
        cache: folder of fetched shards; by default `remote` in $XTOOLKIT_HOME (~/.cache/xtoolkit). A folder in /dev/shm
            keeps them in memory.
        cache_gb: most GB of shards in it; those not read for longest go first. It must hold two windows.
        timeout: seconds without a byte after which a connection or a command counts as failed.
        retries: failures in a row, none with a new byte, after which a shard counts as dead.
        backoff: seconds before the first new try, doubled for each that follows, at most 60.
    """

    window: Count | None = None
    cache: str | None = None
    cache_gb: Positive = 64.0
    timeout: Positive = 30.0
    retries: Annotated[int, Range(0)] = 6
    backoff: NotNegative = 1.0
