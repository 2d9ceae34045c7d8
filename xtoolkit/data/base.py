"""What every dataset of a stream offers to the loader, and what the sharded ones share."""

import abc
import random

from xtoolkit.batch import Batch
from xtoolkit.data import blocks, items, limits, paths
from xtoolkit.data.masking import ImageMask, TextMask, mask_patches, mask_text
from xtoolkit.data.cache import GB, Cache
from xtoolkit.data.errors import DeadShard
from xtoolkit.data.order import Order
from xtoolkit.data.shards import Shards
from xtoolkit.data.shuffle import Mixed, Windowed
from xtoolkit.data.text import clean_caption
from xtoolkit.registry import ConfigError

# The nested blocks that a view reads, if the dataset has them.
VIEWS = {"mask_text": ("mask",), "mask_image": ("image_mask",), "mask_both": ("mask", "image_mask")}


class StreamDataset(abc.ABC):
    """Samples of one or several sources, numbered, and how each becomes rows of a batch.

    Attributes:
        FIELDS: the fields of its batches.
        BLOCKS: its nested blocks and the dataclasses that define them.
        train: augment and mask, or take pictures and texts as they are.
        pad: the pad id of its texts; None without texts.
        GIVEN: what the toolkit hands to the constructor of a dataset that asks: no keys of the block.
    """

    GIVEN = ("tokenizer", "image_size", "patch_size", "views", "train")

    FIELDS: frozenset
    BLOCKS: dict
    train = True
    pad = None

    @classmethod
    def check(cls, block: dict, views: frozenset = frozenset()) -> list[tuple[str, str]]:
        """Mistakes of a `data` block that its signature cannot find: (dotted key within the block, what is wrong).

        Args:
            views: the views that losses read of this stream; one without its block is a mistake.
        """
        found = cls.check_source(block)
        for name, kind in cls.BLOCKS.items():
            if block.get(name) is not None:
                found += blocks.problems(kind, block[name], name)
        for view in sorted(views):
            for name in VIEWS.get(view, ()):
                if name in cls.BLOCKS and block.get(name) is None:
                    example = "{prob: 0.15, max: 20}" if name == "mask" else "{patches: 75, min_block: 16}"
                    found.append((name, f"losses read `@{view}` of this stream, which needs `{name}: {example}`"))
        return found

    @classmethod
    def check_source(cls, block: dict) -> list[tuple[str, str]]:
        return blocks.source_problems(block)

    @classmethod
    def paths(cls, block: dict) -> list[tuple[str, str]]:
        """Every path of a block with its dotted key, for ``paths.problem``."""
        found = []
        for name, source in blocks.sources(block.get("path"), block.get("sources")).items():
            key = "path" if block.get("sources") is None else f"sources.{name}.path"
            found += [(key, p) for p in ([source.path] if isinstance(source.path, str) else source.path)]
        return found

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

    @abc.abstractmethod
    def order(self, seed: int, stream: str, batch_size: int) -> Order:
        """Which samples the batches of this stream hold."""

    @abc.abstractmethod
    def load(self, source: int, sample: int, rows: int, rng: random.Random) -> items.Item:
        """One sample as at most ``rows`` rows (when not training: as all it has), all its randomness from ``rng``.

        Raises:
            BadSample: it cannot be used.
        """

    def collate(self, loaded: list) -> Batch:
        return items.collate(loaded, self.pad)


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
        found = super().check_source(block)
        if block.get("shards") is not None:
            found += blocks.problems(blocks.ShardBlock, block["shards"], "shards")
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
        self.mask = blocks.make(TextMask, mask, "mask") if views & {"mask_text", "mask_both"} else None

    def __call__(self, text: str, bad, rng: random.Random) -> items.Text:
        text = text[:limits.CHARACTERS * self.max_tokens]
        if self.clean:
            text = clean_caption(text)
        ids, starts = self.tokenizer.encode_words(text, self.max_tokens)
        if not text.strip() or not (starts >= 0).any():
            raise bad("empty caption", "no token is left of the text")
        if self.mask is None:
            return items.Text(ids)
        return items.Text(ids, mask_text(ids, starts, self.tokenizer.plain, self.tokenizer.mask, self.mask, rng))


class Patches:
    """The patch masks of one stream."""

    def __init__(self, mask: dict | None, views: frozenset, image_size: int, patch_size: int):
        self.side = image_size // patch_size
        self.mask = None
        if mask is not None and views & {"mask_image", "mask_both"}:
            self.mask = blocks.make(ImageMask, mask, "image_mask")
        if self.mask is not None and self.mask.patches > self.side**2:
            raise ConfigError(f"data.image_mask.patches: {self.mask.patches} of {self.side**2} patches cannot be "
                              "masked")

    def __call__(self, rng: random.Random):
        return None if self.mask is None else mask_patches(self.side, self.mask, rng)
