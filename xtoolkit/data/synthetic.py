"""Datasets that are made up, for benchmarks and dry runs: the same fields and shapes, nothing to read."""

import random

import numpy as np
import torch

from xtoolkit.batch import ImageField, RegionField, TextField, stable_key
from xtoolkit.data import items, regions
from xtoolkit.data.base import StreamDataset
from xtoolkit.data.datasets import Length
from xtoolkit.data.masking import ImageMask, TextMask
from xtoolkit.data.order import Order
from xtoolkit.data.process import ImageProcessor, TextProcessor
from xtoolkit.registry import DATASET_REGISTRY, ConfigError, Count


class Synthetic(StreamDataset):
    """Noise for pictures, random words for texts: ``_makes_texts`` and ``_makes_pictures`` say which."""

    def __init__(self, size: int, train: bool):
        self._size, self.train = size, train

    @classmethod
    def max_length(cls, block: dict) -> int | None:
        return block.get("tokens")

    @property
    def sizes(self) -> list[int]:
        return [self._size]

    def _makes_texts(self, tokenizer, views, tokens: int, min_tokens: Length | None, mask: TextMask | None) -> None:
        """Texts of ``min_tokens`` to ``tokens`` tokens, evenly drawn; of ``tokens`` where ``min_tokens`` is None."""
        if min_tokens is not None and min_tokens > tokens:
            raise ConfigError(f"data.min_tokens: must be at most `tokens` {tokens}, not {min_tokens}")
        self._tokens, self._least = tokens, min_tokens
        self._process = TextProcessor(tokenizer, tokens, mask=mask, views=views)

    def _makes_pictures(self, image_size, patch_size, views, mask: ImageMask | None = None) -> None:
        self.images = ImageProcessor(image_size, patch_size, mask=mask, views=views)
        # A picture is a window of one strip of noise: drawing each anew would cost more than a real one.
        self._noise = torch.randn(3, image_size, image_size + 997, generator=torch.Generator().manual_seed(0))

    def _text(self, sample: int, rng: random.Random) -> items.Text:
        tokenizer, words = self._process.tokenizer, random.Random(sample)
        length = self._tokens if self._least is None else words.randint(self._least, self._tokens)
        drawn = [tokenizer.plain[words.randrange(len(tokenizer.plain))] for _ in range(length - 2)]
        ids = np.array([tokenizer.bos, *drawn, tokenizer.eos], np.int64)
        return self._process.masked(ids, np.array([-1, *[1] * (length - 2), -1], np.int8), rng)

    def _image(self, sample: int, rng: random.Random) -> items.Image:
        left = sample % 997
        return self.images.item(self._noise[:, :, left:left + self.images.size], f"synthetic:{sample}", rng)


@DATASET_REGISTRY.register
class SyntheticText(Synthetic):
    """Random texts.

    YAML: {type: SyntheticText, size: 1024, tokens: 32, mask: {prob: 0.15, max: 20}}
    """

    FIELDS = {"text": TextField}
    MARKS = {"mask_text": "mask"}

    def __init__(self, tokenizer, views: frozenset = frozenset(), train: bool = True, size: Count = 1024,
                 tokens: Length = 32, min_tokens: Length | None = None, mask: TextMask | None = None):
        super().__init__(size, train)
        self._makes_texts(tokenizer, views, tokens, min_tokens, mask)

    def load(self, source: int, sample: int, rows: int, rng: random.Random) -> items.Item:
        return items.Item(texts=[self._text(sample, rng)])


@DATASET_REGISTRY.register
class SyntheticImages(Synthetic):
    """Random pictures.

    YAML: {type: SyntheticImages, size: 1024, image_mask: {patches: 75}}
    """

    FIELDS = {"image": ImageField}
    MARKS = {"mask_image": "image_mask"}

    def __init__(self, image_size, patch_size, views: frozenset = frozenset(), train: bool = True, size: Count = 1024,
                 image_mask: ImageMask | None = None):
        super().__init__(size, train)
        self._makes_pictures(image_size, patch_size, views, image_mask)

    def load(self, source: int, sample: int, rows: int, rng: random.Random) -> items.Item:
        return items.Item(self._image(sample, rng))


@DATASET_REGISTRY.register
class SyntheticPairs(Synthetic):
    """Random pictures with random captions.

    YAML: {type: SyntheticPairs, size: 1024, tokens: 12, mask: {prob: 0.5, max: 15}, image_mask: {patches: 75}}
    """

    FIELDS = {"image": ImageField, "text": TextField}
    MARKS = {"mask_text": "mask", "mask_image": "image_mask"}

    def __init__(self, tokenizer, image_size, patch_size, views: frozenset = frozenset(), train: bool = True,
                 size: Count = 1024, tokens: Length = 12, min_tokens: Length | None = None,
                 mask: TextMask | None = None, image_mask: ImageMask | None = None):
        super().__init__(size, train)
        self._makes_texts(tokenizer, views, tokens, min_tokens, mask)
        self._makes_pictures(image_size, patch_size, views, image_mask)

    def load(self, source: int, sample: int, rows: int, rng: random.Random) -> items.Item:
        return items.Item(self._image(sample, rng), [self._text(sample, rng)])


@DATASET_REGISTRY.register
class SyntheticRegions(Synthetic):
    """Random boxes with random texts in random pictures, as many in each.

    YAML: {type: SyntheticRegions, size: 1024, tokens: 12, max_per_image: 5, mask: {prob: 0.5, max: 15}}
    """

    FIELDS = {"image": ImageField, "text": TextField, "region": RegionField}
    MARKS = {"mask_text": "mask"}

    def __init__(self, tokenizer, image_size, patch_size, views: frozenset = frozenset(), train: bool = True,
                 size: Count = 1024, tokens: Length = 12, min_tokens: Length | None = None, max_per_image: Count = 5,
                 mask: TextMask | None = None):
        super().__init__(size, train)
        self._makes_texts(tokenizer, views, tokens, min_tokens, mask)
        self._makes_pictures(image_size, patch_size, views)
        self._max = max_per_image

    @classmethod
    def rows_each(cls, block: dict) -> int:
        return block["max_per_image"]

    def order(self, seed: int, stream: str, batch_size: int) -> Order:
        return Order(seed, stream, batch_size, self.sizes, [1.0], elements=[np.full(self._size, self._max)])

    def load(self, source: int, sample: int, rows: int, rng: random.Random) -> items.Item:
        rows = rows if self.train else self._max
        texts = [self._text(sample * self._max + i, rng) for i in range(rows)]
        boxes = []
        for _ in texts:
            w, h = rng.uniform(0.2, 0.6), rng.uniform(0.2, 0.6)
            box = (rng.uniform(w / 2, 1 - w / 2), rng.uniform(h / 2, 1 - h / 2), w, h)
            boxes.append(items.Box(box, regions.box_patches(box, self.images.side), True, stable_key(sample, *box)))
        return items.Item(self._image(sample, rng), texts, boxes)
