"""What every dataset of a stream offers to the loader, and what the sharded ones share."""

import abc
import random

from xtoolkit.batch import Batch, Field
from xtoolkit.data import blocks, items, limits, paths
from xtoolkit.data.masking import ImageMask, TextMask, mask_patches, mask_text
from xtoolkit.data.cache import GB, Cache
from xtoolkit.data.errors import DeadShard
from xtoolkit.data.example import shapes
from xtoolkit.data.order import Order
from xtoolkit.data.shards import Shards
from xtoolkit.data.shuffle import Mixed, Windowed
from xtoolkit.data.text import clean_caption
from xtoolkit.registry import ConfigError

class StreamDataset(abc.ABC):
    """Samples of one or several sources, numbered, and how each becomes rows of a batch.

    A subclass declares FIELDS, takes its YAML keys in ``__init__``, and defines ``sizes`` and ``load``; all else has a default.

    Attributes:
        FIELDS: the fields of its batches, by the names that ``$name`` reads.
        MARKS: {mark: key of the block that says how it is drawn}: ``views`` with that mark and a block without that key
            are a mistake.
        GIVEN: what the toolkit hands to the constructor of a dataset that asks, no keys of the block: the tokenizer, the
            size of pictures and of patches (None where no encoder reads pictures), ``views`` (frozenset of the marks that
            are read of it), ``train``.
        train: augment, and one text a picture; else pictures as they are, with all their texts.
    """

    FIELDS: dict[str, type[Field]]
    MARKS: dict[str, str] = {}
    GIVEN = ("tokenizer", "image_size", "patch_size", "views", "train")
    BLOCKS: dict = {}
    train = True

    @classmethod
    def check(cls, block: dict, views: frozenset = frozenset()) -> list[tuple[str, str]]:
        """Mistakes of a `data` block that its signature cannot find: (dotted key within the block, what is wrong).

        Args:
            views: the marks that are read of this stream.
        """
        found = cls.check_source(block)
        for name, kind in cls.BLOCKS.items():
            if block.get(name) is not None:
                found += blocks.problems(kind, block[name], name)
        for mark in sorted(views & cls.MARKS.keys()):
            name = cls.MARKS[mark]
            if block.get(name) is None:
                example = {"mask": ": {prob: 0.15, max: 20}", "image_mask": ": {patches: 75, min_block: 16}"}.get(name, "")
                found.append((name, f"losses read `@{mark}` of this stream, which needs `{name}{example}`"))
        return found

    @classmethod
    def check_source(cls, block: dict) -> list[tuple[str, str]]:
        """Mistakes of the keys that say what is read, as ``check``."""
        return []

    @classmethod
    def paths(cls, block: dict) -> list[tuple[str, str]]:
        """Every path of a block with its dotted key, for ``paths.problem``."""
        return []

    @classmethod
    def max_length(cls, block: dict) -> int | None:
        """Tokens of its longest text; None without texts.

        Args:
            block: the YAML block with the defaults of the signature filled in.
        """
        return block.get("max_tokens")

    @classmethod
    def example(cls, block: dict, rows: int, sizes: dict, views: frozenset, length: int | None = None) -> Batch:
        """A batch of the shapes that training has, on the meta device, for the plan; it opens no file.

        Args:
            block: the YAML block with the defaults of the signature filled in.
            rows: rows asked for; on a region stream pictures, each with ``max_per_image`` rows.
            sizes: ``image_size`` and ``patch_size`` of the encoder that reads pictures; empty if none does.
            views: the marks that are read of it.
            length: tokens of each text; None: ``max_length``.
        """
        return shapes(cls, block, rows, sizes, views, length)

    def __len__(self) -> int:
        return sum(self.sizes)

    @property
    @abc.abstractmethod
    def sizes(self) -> list[int]:
        """Samples of each source."""

    @property
    def damaged(self) -> dict[str, str]:
        """{file: what is wrong with it}, found when it was indexed."""
        return {}

    def place(self, source: int, sample: int) -> str:
        """Where a sample lies, for a person who looks for it."""
        return f"sample {sample}"

    @property
    def shard_count(self) -> int:
        """Files that it reads, dead ones included."""
        return 0

    @property
    def dead(self) -> list[DeadShard]:
        """The remote shards of which nothing is known, not even how many samples they have."""
        return []

    def samples_of(self, file: str) -> int:
        """Samples of one file."""
        return 0

    def give_up_dead(self) -> None:
        """The run goes on without its ``dead`` shards: from now on they stay out, that a visit keep its meaning."""

    def expect(self, order: Order, visit: int) -> None:
        """Says that a visit is about to be loaded, so that what the next ones read can be fetched meanwhile."""

    def order(self, seed: int, stream: str, batch_size: int) -> Order:
        """Which samples the batches of this stream hold: here every sample once an epoch, mixed."""
        return Order(seed, stream, batch_size, self.sizes, [1.0] * len(self.sizes))

    @abc.abstractmethod
    def load(self, source: int, sample: int, rows: int, rng: random.Random) -> items.Item:
        """One sample as at most ``rows`` rows (when not training: as all it has), all its randomness from ``rng``.

        Raises:
            BadSample: it cannot be used.
        """

    def collate(self, loaded: list[items.Item]) -> Batch:
        return items.collate(loaded, self.FIELDS, self.train)


class Sharded(StreamDataset):
    """A dataset whose sources are shards.

    Args:
        path: see ``paths.resolve``.
        sources: several, {name: {path, weight}}, instead of ``path``.
        shards: how they are gone through and fetched, see ShardBlock.
        views: that losses read.
        train: whether its samples are trained on, or evaluated as they are.
        nested: the other blocks of the dataset, by name.
    """

    def __init__(self, path, sources, shards, views, train, **nested):
        given = {"path": path, "sources": sources, "shards": shards} | nested
        if found := self.check(given, views if train else frozenset()):
            raise ConfigError([f"data.{key}: {message}" for key, message in found])
        if found := [f"data.{key}: {p}" for key, name in self.paths(given) if (p := paths.problem(name))]:
            raise ConfigError(found)
        self.train, self.views = train, frozenset(views) if train else frozenset()
        self._how = blocks.make(blocks.ShardBlock, shards or {}, "shards")
        self._weights, self._shards, self._names, self._cache = [], [], [], None
        for name, source in blocks.sources(path, sources).items():
            self._names.append(name)
            listed = [source.path] if isinstance(source.path, str) else source.path
            files = [file for one in listed for file in paths.resolve(one)]
            if self._cache is None and any(map(paths.is_remote, files)):
                self._cache = Cache(self._how)
            self._shards.append(Shards(files, self._cache))
            self._weights.append(source.weight)

    @classmethod
    def check_source(cls, block: dict) -> list[tuple[str, str]]:
        found = blocks.source_problems(block)
        if block.get("shards") is not None:
            found += blocks.problems(blocks.ShardBlock, block["shards"], "shards")
        return found

    @classmethod
    def paths(cls, block: dict) -> list[tuple[str, str]]:
        found = []
        for name, source in blocks.sources(block.get("path"), block.get("sources")).items():
            key = "path" if block.get("sources") is None else f"sources.{name}.path"
            found += [(key, p) for p in ([source.path] if isinstance(source.path, str) else source.path)]
        return found

    @property
    def sizes(self) -> list[int]:
        return [len(s) for s in self._shards]

    @property
    def damaged(self) -> dict[str, str]:
        return {file: what for s in self._shards for file, what in s.damaged.items()}

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
            window = self._how.window or (blocks.REMOTE_WINDOW if shards.remote else None)
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


class Texts:
    """Tokens of one text and their masking.

    Args:
        clean: clean as captions are.
        mask: the `mask` block.
        views: nothing is masked where no loss reads masked text.
    """

    def __init__(self, tokenizer, max_tokens: int, clean: bool, mask: dict | None, views: frozenset):
        if max_tokens < 3:
            raise ConfigError(f"data.max_tokens: must be at least 3 (a token between two specials), not {max_tokens}")
        self.tokenizer, self.max_tokens, self.clean = tokenizer, max_tokens, clean
        self.mask = blocks.make(TextMask, mask, "mask") if "mask_text" in views else None

    def __call__(self, text: str, bad, rng: random.Random) -> items.Text:
        text = text[:limits.CHARACTERS * self.max_tokens]
        if self.clean:
            text = clean_caption(text)
        ids, starts = self.tokenizer.encode_words(text, self.max_tokens)
        if not text.strip() or not (starts >= 0).any():
            raise bad("empty caption", "no token is left of the text")
        if self.mask is None:
            return items.Text(ids, self.tokenizer.pad)
        masked = mask_text(ids, starts, self.tokenizer.plain, self.tokenizer.mask, self.mask, rng)
        return items.Text(ids, self.tokenizer.pad, masked)


class Patches:
    """The patch masks of one stream."""

    def __init__(self, mask: dict | None, views: frozenset, image_size: int, patch_size: int):
        self.side = image_size // patch_size
        self.mask = None
        if mask is not None and "mask_image" in views:
            self.mask = blocks.make(ImageMask, mask, "image_mask")
        if self.mask is not None and self.mask.patches > self.side**2:
            raise ConfigError(f"data.image_mask.patches: {self.mask.patches} of {self.side**2} patches cannot be "
                              "masked")

    def __call__(self, rng: random.Random):
        return None if self.mask is None else mask_patches(self.side, self.mask, rng)
