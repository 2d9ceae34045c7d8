"""What every dataset of a stream offers to the loader, the plan and the report."""

import abc
import random

from torch import Tensor

from xtoolkit.batch import Batch, Field, ImageField
from xtoolkit.data import items, paths
from xtoolkit.data.errors import DeadShard
from xtoolkit.data.example import shapes
from xtoolkit.data.figures import masked_samples
from xtoolkit.data.order import Order
from xtoolkit.data.process import ImageProcessor
from xtoolkit.registry import nested, schema


class StreamDataset(abc.ABC):
    """Samples of one or several sources, numbered, and how each becomes rows of a batch.

    A subclass declares FIELDS, takes its YAML keys in ``__init__``, and defines ``sizes`` and ``load``; all else has a
    default. Of its classmethods ``max_length``, ``rows_each`` and ``example`` get the YAML block with the defaults of the
    signature filled in, the others as it is written.

    Attributes:
        FIELDS: the fields of its batches, by the names that ``$name`` reads.
        MARKS: {mark: key of the block that says how it is drawn}: ``views`` with that mark and a block without that key
            are a mistake.
        ALIKE: keys whose lists number what a head tells apart: the same in all data that one head is trained and evaluated on.
        GIVEN: what the toolkit hands to a constructor that asks, no keys of the block: the tokenizer, the size of
            pictures and of patches (None where no encoder reads pictures), ``views`` (frozenset of the marks that are
            read of it), ``train``.
        train: augment, and one text a picture; else pictures as they are, with all their texts.
        told: whether it was said what its files have that is no part of a sample.
        images: what makes its pictures, if they are made so; ``pictures`` and ``figures`` then need no more.
        names: of the classes of its labels, in the order of their numbers; None: it has none, or does not know.
        candidates: the answers that a model ranks or chooses from, likewise.
        damaged: {file: what is wrong with it}, found when it was indexed.
        left_out: {file: {reason: number}} of what lies in a file and is no part of a sample.
        digests: {source: digest of what it holds}; None where that is not known. A run goes on only with the same.
        shard_count: files that it reads, dead ones included.
        dead: the remote shards of which nothing is known, not even how many samples they have.
    """

    FIELDS: dict[str, type[Field]]
    MARKS: dict[str, str] = {}
    ALIKE: tuple[str, ...] = ()
    GIVEN = ("tokenizer", "image_size", "patch_size", "views", "train")
    train, told = True, False
    images: ImageProcessor | None = None
    names: list[str] | None = None
    candidates: tuple[str, ...] | None = None
    damaged: dict[str, str] = {}
    left_out: dict[str, dict[str, int]] = {}
    digests: dict[str, str | None] = {}
    shard_count = 0
    dead: list[DeadShard] = []

    @classmethod
    def check(cls, block: dict, views: frozenset = frozenset()) -> list[tuple[str, str]]:
        """Mistakes of a `data` block that its signature cannot find: (dotted key within the block, what is wrong)."""
        found = cls.check_source(block)
        for mark, name in cls.MARKS.items():
            if mark in views and block.get(name) is None:
                example = getattr(nested(schema(cls)[name].type), "EXAMPLE", "...")
                found.append((name, f"losses or a task read `@{mark}` of this stream, which needs `{name}: {example}`"))
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
    def missing(cls, block: dict) -> list[tuple[str, str]]:
        """What of its files is not there, or cannot be read: (dotted key, one line). Nothing is unpacked or fetched."""
        return [(key, problem) for key, path in cls.paths(block) if (problem := paths.problem(path))]

    @classmethod
    def max_length(cls, block: dict) -> int | None:
        """Tokens of its longest text; None without texts."""
        return block.get("max_tokens")

    @classmethod
    def rows_each(cls, block: dict) -> int:
        """Rows of one picture at most, where its rows are regions."""
        return 1

    @classmethod
    def example(cls, block: dict, rows: int, sizes: dict, views: frozenset, length: int | None = None) -> Batch:
        """A batch of the shapes that training has, on the meta device, for the plan; it opens no file.

        Args:
            rows: rows asked for; on a region stream pictures, each with ``rows_each`` rows.
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

    def place(self, source: int, sample: int) -> str:
        """Where a sample lies, for a person who looks for it."""
        return f"sample {sample}"

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
        return items.collate(loaded, type(self), self.train)

    def pictures(self, batch: Batch) -> dict[str, Tensor]:
        """The pictures of a batch, {image id: (3, H, W) uint8}: its own normalisation undone."""
        shown = [field for field in batch.fields.values() if isinstance(field, ImageField)] if self.images is not None else []
        return {name: self.images.picture(pixels) for field in shown for name, pixels in zip(field.image_id, field.pixels)}

    def figures(self, batch: Batch, tokenizer, shown: int = 6) -> list[dict]:
        """What the report shows of a training batch: here its first rows and what of them is masked, if anything is."""
        return masked_samples(batch, self.images and self.images.picture, tokenizer, shown)
