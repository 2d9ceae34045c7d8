"""Datasets whose sources are shards, on this machine's disks or not."""

import os

from xtoolkit.data import kinds, paths, tables
from xtoolkit.data.base import StreamDataset
from xtoolkit.data.blocks import REMOTE_WINDOW, Path, ShardBlock, SourceBlock, Sources
from xtoolkit.data.remote import GB, Cache
from xtoolkit.data.errors import DeadShard
from xtoolkit.data.order import Order
from xtoolkit.data.shards import Shards
from xtoolkit.data.shuffle import Mixed, Windowed
from xtoolkit.registry import ConfigError


class Sharded(StreamDataset):
    """What the datasets that read shards share.

    Args:
        path: see ``paths.resolve``.
        sources: several, {name: {path, images, weight}}, instead of ``path``.
        shards: how they are gone through and fetched, see ShardBlock.
        train: whether its samples are trained on, or evaluated as they are.
        images: the folder of the pictures that tables name; None: each table's own.

    Attributes:
        COLUMNS: what a row of a table must have, see ``tables``; without pictures the lines of a .jsonl are texts.
    """

    COLUMNS = (tables.PICTURE,)

    def __init__(self, path: Path | None, sources: Sources | None, shards: ShardBlock | None, train: bool,
                 images: str | None = None):
        block = {"path": path, "images": images, "sources": sources and {n: vars(one) for n, one in sources.items()}}
        if found := self.check_source(block) or self.missing(block):
            raise ConfigError([f"data.{key}: {message}" for key, message in found])
        self.train, self._how, self._shards, self._cache = train, shards or ShardBlock(), [], None
        listed = sources or {"data": SourceBlock(path)}
        self._names, self._weights = list(listed), [source.weight for source in listed.values()]
        for name, source in listed.items():
            files = [file for one in _listed(source.path) for file in paths.resolve(one, self._reads())]
            if self._cache is None and any(map(paths.is_remote, files)):
                self._cache = Cache(self._how)
            key = "data.path" if sources is None else f"data.sources.{name}.path"
            try:
                self._shards.append(Shards(files, self._cache, ".tar" in self._reads(), source.images or images))
            except (OSError, ValueError) as error:
                raise ConfigError(f"{key}: {error}") from None
            if why := self._shards[-1].why_empty():
                raise ConfigError(f"{key}: {why}")

    @classmethod
    def _reads(cls) -> tuple[str, ...]:
        return kinds.PICTURES if tables.PICTURE in cls.COLUMNS else kinds.TEXTS

    @classmethod
    def check_source(cls, block: dict) -> list[tuple[str, str]]:
        several = block.get("sources")
        if (block.get("path") is None) == (several is None):
            return [("path", "give either `path` or `sources: {name: {path, weight}}`")]
        wrong = several is not None and not any(several.values())
        return [("sources", "must be a mapping: {name: {path, weight}}")] if wrong else []

    @classmethod
    def missing(cls, block: dict) -> list[tuple[str, str]]:
        """What of its files is missing, or of a kind that is not read; names and first bytes are looked at."""
        found = []
        for key, path in cls.paths(block):
            if not key.endswith("images"):
                source = (block.get("sources") or {}).get(key.removeprefix("sources.").removesuffix(".path"), block)
                images = source.get("images") or block.get("images")
                found.append((key, kinds.problem(path, cls._reads(), cls.COLUMNS, cls.__name__, images)))
            elif not os.path.isdir(os.path.expanduser(path)):
                found.append((key, f"{path}: no such folder; `images` names the one that has the pictures"))
        return [(key, line) for key, line in found if line]

    @classmethod
    def paths(cls, block: dict) -> list[tuple[str, str]]:
        named = {"images": block.get("images"), "path": block.get("path")}
        for name, one in (block.get("sources") or {}).items():
            named |= {f"sources.{name}.{key}": one.get(key) for key in ("images", "path") if one is not None}
        return [(key, path) for key, several in named.items() if several is not None for path in _listed(several)]

    @property
    def sizes(self) -> list[int]:
        return [len(s) for s in self._shards]

    @property
    def damaged(self) -> dict[str, str]:
        return {file: what for s in self._shards for file, what in s.damaged.items()}

    @property
    def left_out(self) -> dict[str, dict[str, int]]:
        return {file: what for s in self._shards for file, what in s.left_out.items()}

    @property
    def digests(self) -> dict[str, str | None]:
        listed = list(zip(self._names, self._shards))  # by content and by version: like is compared with like
        return {n: s.digest for n, s in listed} | {f"{n} (its version at the server)": s.version for n, s in listed if s.remote}

    @property
    def shard_count(self) -> int:
        return sum(len(s.files) for s in self._shards)

    @property
    def dead(self) -> list[DeadShard]:
        return [dead for s in self._shards for dead in s.dead]

    def samples_of(self, file: str) -> int:
        return sum(s.samples_of(file) for s in self._shards)

    def give_up_dead(self) -> None:
        for dead in self.dead:
            self._cache.give_up(dead)

    def expect(self, order: Order, visit: int) -> None:
        if self._cache is not None:
            listed = zip(self._shards, order.shards(visit))
            self._cache.ahead([wanted for shards, numbers in listed for wanted in shards.ahead(numbers)])

    def order(self, seed: int, stream: str, batch_size: int) -> Order:
        return Order(seed, stream, batch_size, self.sizes, self._weights, shuffles=self._shuffles(batch_size))

    def _shuffles(self, span: int) -> list[Mixed | Windowed]:
        """How an epoch goes through each source. ``span``: samples that are needed at a time.

        Raises:
            ConfigError: the cache cannot hold what is needed at a time and what comes next.
        """
        found, needed = [], 0
        for shards in self._shards:
            window = self._how.window or (REMOTE_WINDOW if shards.remote else None)
            found.append(Mixed(len(shards)) if window is None else Windowed(shards.counts, window))
            if shards.remote and len(shards):
                blocks_at_once = 2 + span * len(shards.files) // (len(shards) * window)
                needed += shards.bytes_of_largest(blocks_at_once * window)
        if self._cache is not None and needed > self._cache.limit:
            raise ConfigError(f"data.shards.cache_gb: {self._how.cache_gb:g}, but the shards that are read at a time "
                              f"have {needed / GB:.2g} GB; raise it, or lower `shards.window`")
        return found

    def place(self, source: int, sample: int) -> str:
        shards = self._shards[source]
        return f"{self._names[source]}: {shards.file(sample)}, {shards.name(sample)}"

    def close(self) -> None:
        for shards in self._shards:
            shards.close()


def _listed(path: Path) -> list[str]:
    return [path] if isinstance(path, str) else path
