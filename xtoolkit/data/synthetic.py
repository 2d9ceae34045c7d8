"""Datasets that are made up, for benchmarks and dry runs: the same fields and shapes, nothing to read."""

import random
from dataclasses import replace

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
    """Noise for pictures, random words for texts: those that it is given a processor of.

    Texts have ``min_tokens`` to the processor's ``max_tokens`` tokens, evenly drawn; that many where it is None.
    """

    def __init__(self, train: bool, size: int, text: TextProcessor | None = None, min_tokens: Length | None = None,
                 images: ImageProcessor | None = None, each: int = 1):
        self.train, self._size, self._each = train, size, each
        self._processor, self._least, self.images = text, min_tokens, images
        if min_tokens is not None and min_tokens > text.max_tokens:
            raise ConfigError(f"data.min_tokens: must be at most `tokens` {text.max_tokens}, not {min_tokens}")
        if images is not None:
            # A picture is a window of one strip of noise: drawing each anew would cost more than a real one.
            self._noise = torch.randn(3, images.size, images.size + 997, generator=torch.Generator().manual_seed(0))

    @classmethod
    def max_length(cls, block: dict) -> int | None:
        return block.get("tokens")

    @property
    def sizes(self) -> list[int]:
        return [self._size]

    def load(self, source: int, sample: int, rows: int, rng: random.Random) -> items.Item:
        numbers = range(sample * self._each, sample * self._each + (rows if self.train else self._each))
        image = None if self.images is None else self._image(sample, rng)
        return items.Item(image, [] if self._processor is None else [self._text(number, rng) for number in numbers])

    def _text(self, number: int, rng: random.Random) -> items.Text:
        tokenizer, words, most = self._processor.tokenizer, random.Random(number), self._processor.max_tokens
        length = most if self._least is None else words.randint(self._least, most)
        drawn = [tokenizer.plain[words.randrange(len(tokenizer.plain))] for _ in range(length - 2)]
        ids = np.array([tokenizer.bos, *drawn, tokenizer.eos], np.int64)
        return self._processor.masked(ids, np.array([-1, *[1] * (length - 2), -1], np.int8), rng)

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
        super().__init__(train, size, TextProcessor(tokenizer, tokens, mask=mask, views=views), min_tokens)


@DATASET_REGISTRY.register
class SyntheticImages(Synthetic):
    """Random pictures.

    YAML: {type: SyntheticImages, size: 1024, image_mask: {patches: 75}}
    """

    FIELDS = {"image": ImageField}
    MARKS = {"mask_image": "image_mask"}

    def __init__(self, image_size, patch_size, views: frozenset = frozenset(), train: bool = True, size: Count = 1024,
                 image_mask: ImageMask | None = None):
        super().__init__(train, size, images=ImageProcessor(image_size, patch_size, mask=image_mask, views=views))


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
        super().__init__(train, size, TextProcessor(tokenizer, tokens, mask=mask, views=views), min_tokens,
                         ImageProcessor(image_size, patch_size, mask=image_mask, views=views))


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
        super().__init__(train, size, TextProcessor(tokenizer, tokens, mask=mask, views=views), min_tokens,
                         ImageProcessor(image_size, patch_size), max_per_image)

    @classmethod
    def rows_each(cls, block: dict) -> int:
        return block["max_per_image"]

    def order(self, seed: int, stream: str, batch_size: int) -> Order:
        return Order(seed, stream, batch_size, self.sizes, [1.0], elements=[np.full(self._size, self._each)])

    def load(self, source: int, sample: int, rows: int, rng: random.Random) -> items.Item:
        item = super().load(source, sample, rows, rng)
        return replace(item, boxes=[self._box(sample, rng) for _ in item.texts])

    def _box(self, sample: int, rng: random.Random) -> items.Box:
        w, h = rng.uniform(0.2, 0.6), rng.uniform(0.2, 0.6)
        box = (rng.uniform(w / 2, 1 - w / 2), rng.uniform(h / 2, 1 - h / 2), w, h)
        return items.Box(box, regions.box_patches(box, self.images.side), True, stable_key(sample, *box))
