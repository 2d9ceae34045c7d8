"""Datasets that are made up, for benchmarks and dry runs: the same fields and shapes, nothing to read."""

import random

import numpy as np
import torch

from xtoolkit.batch import ImageField, RegionField, TextField, stable_key
from xtoolkit.data import blocks, items, regions
from xtoolkit.data.base import Patches, StreamDataset
from xtoolkit.data.masking import ImageMask, TextMask, mask_text
from xtoolkit.data.order import Order
from xtoolkit.registry import DATASET_REGISTRY, ConfigError


class Synthetic(StreamDataset):
    """Noise for pictures, random words for texts.

    Args:
        size: samples.
        tokens: length of every text, its two specials counted.
        min_tokens: lengths are drawn evenly from this to ``tokens``; null: all are ``tokens`` long.

    Raises:
        ConfigError: ``min_tokens`` is below 3 or above ``tokens``.
    """

    def __init__(self, size, views, train, tokenizer=None, tokens=0, mask=None, image_size=None, patch_size=None,
                 image_mask=None, min_tokens=None):
        if min_tokens is not None and not 3 <= min_tokens <= tokens:
            raise ConfigError(f"data.min_tokens: must be from 3 (a token between two specials) to `tokens` {tokens}, "
                              f"not {min_tokens}")
        self.train, self._size = train, size
        views = frozenset(views) if train else frozenset()
        self._tokenizer, self._tokens, self._least = tokenizer, tokens, min_tokens
        self._mask = blocks.make(TextMask, mask, "mask") if mask and "mask_text" in views else None
        if image_size is not None:
            self._patches = Patches(image_mask, views, image_size, patch_size)
            # A picture is a window of one strip of noise: drawing each anew would cost more than a real one.
            self._noise = torch.randn(3, image_size, image_size + 997, generator=torch.Generator().manual_seed(0))
            self._pixels = image_size

    @classmethod
    def max_length(cls, block: dict) -> int | None:
        return block.get("tokens")

    @property
    def sizes(self) -> list[int]:
        return [self._size]

    def _text(self, sample: int, rng: random.Random) -> items.Text:
        plain, words = self._tokenizer.plain, random.Random(sample)
        length = self._tokens if self._least is None else words.randint(self._least, self._tokens)
        drawn = [plain[words.randrange(len(plain))] for _ in range(length - 2)]
        ids = np.array([self._tokenizer.bos, *drawn, self._tokenizer.eos], np.int64)
        if self._mask is None:
            return items.Text(ids, self._tokenizer.pad)
        starts = np.array([-1, *[1] * (length - 2), -1], np.int8)
        masked = mask_text(ids, starts, plain, self._tokenizer.mask, self._mask, rng)
        return items.Text(ids, self._tokenizer.pad, masked)

    def _shown(self, sample: int, rng: random.Random) -> items.Shown:
        left = sample % 997
        name = f"synthetic:{sample}"
        return items.Shown(self._noise[:, :, left:left + self._pixels], stable_key(name), name, self._patches(rng))


@DATASET_REGISTRY.register
class SyntheticText(Synthetic):
    """Random texts.

    YAML: {type: SyntheticText, size: 1024, tokens: 32, mask: {prob: 0.15, max: 20}}
    """

    FIELDS = {"text": TextField}
    MARKS = {"mask_text": "mask"}
    BLOCKS = {"mask": TextMask}

    def __init__(self, tokenizer, views: frozenset = frozenset(), train: bool = True, size: int = 1024,
                 tokens: int = 32, min_tokens: int | None = None, mask: dict | None = None):
        super().__init__(size, views, train, tokenizer, tokens, mask, min_tokens=min_tokens)

    def load(self, source: int, sample: int, rows: int, rng: random.Random) -> items.Item:
        return items.Item(texts=[self._text(sample, rng)])


@DATASET_REGISTRY.register
class SyntheticImages(Synthetic):
    """Random pictures.

    YAML: {type: SyntheticImages, size: 1024, image_mask: {patches: 75}}
    """

    FIELDS = {"image": ImageField}
    MARKS = {"mask_image": "image_mask"}
    BLOCKS = {"image_mask": ImageMask}

    def __init__(self, image_size, patch_size, views: frozenset = frozenset(), train: bool = True, size: int = 1024,
                 image_mask: dict | None = None):
        super().__init__(size, views, train, image_size=image_size, patch_size=patch_size, image_mask=image_mask)

    def load(self, source: int, sample: int, rows: int, rng: random.Random) -> items.Item:
        return items.Item(self._shown(sample, rng))


@DATASET_REGISTRY.register
class SyntheticPairs(Synthetic):
    """Random pictures with random captions.

    YAML: {type: SyntheticPairs, size: 1024, tokens: 12, mask: {prob: 0.5, max: 15}, image_mask: {patches: 75}}
    """

    FIELDS = {"image": ImageField, "text": TextField}
    MARKS = {"mask_text": "mask", "mask_image": "image_mask"}
    BLOCKS = {"mask": TextMask, "image_mask": ImageMask}

    def __init__(self, tokenizer, image_size, patch_size, views: frozenset = frozenset(), train: bool = True,
                 size: int = 1024, tokens: int = 12, min_tokens: int | None = None, mask: dict | None = None,
                 image_mask: dict | None = None):
        super().__init__(size, views, train, tokenizer, tokens, mask, image_size, patch_size, image_mask, min_tokens)

    def load(self, source: int, sample: int, rows: int, rng: random.Random) -> items.Item:
        return items.Item(self._shown(sample, rng), [self._text(sample, rng)])


@DATASET_REGISTRY.register
class SyntheticRegions(Synthetic):
    """Random boxes with random texts in random pictures, as many in each.

    YAML: {type: SyntheticRegions, size: 1024, tokens: 12, max_per_image: 5, mask: {prob: 0.5, max: 15}}
    """

    FIELDS = {"image": ImageField, "text": TextField, "region": RegionField}
    MARKS = {"mask_text": "mask"}
    BLOCKS = {"mask": TextMask}

    def __init__(self, tokenizer, image_size, patch_size, views: frozenset = frozenset(), train: bool = True,
                 size: int = 1024, tokens: int = 12, min_tokens: int | None = None, max_per_image: int = 5,
                 mask: dict | None = None):
        super().__init__(size, views, train, tokenizer, tokens, mask, image_size, patch_size, min_tokens=min_tokens)
        self._max = max_per_image

    def order(self, seed: int, stream: str, batch_size: int) -> Order:
        return Order(seed, stream, batch_size, self.sizes, [1.0], elements=[np.full(self._size, self._max)])

    def load(self, source: int, sample: int, rows: int, rng: random.Random) -> items.Item:
        rows = rows if self.train else self._max
        texts = [self._text(sample * self._max + i, rng) for i in range(rows)]
        boxes = []
        for _ in texts:
            w, h = rng.uniform(0.2, 0.6), rng.uniform(0.2, 0.6)
            box = (rng.uniform(w / 2, 1 - w / 2), rng.uniform(h / 2, 1 - h / 2), w, h)
            boxes.append(items.Box(box, regions.box_patches(box, self._patches.side), True, stable_key(sample, *box)))
        return items.Item(self._shown(sample, rng), texts, boxes)
