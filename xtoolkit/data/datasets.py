"""The datasets of the four streams: texts, pictures, pairs and regions, read from shards."""

import os
import random
from typing import Annotated

import torch
from torch import Tensor

from xtoolkit.batch import ImageField, RegionField, TextField, stable_key
from xtoolkit.data import items, regions, tables
from xtoolkit.data.blocks import Path, ShardBlock, Sources
from xtoolkit.data.errors import BadSample
from xtoolkit.data.images import CLIP_MEAN, CLIP_STD, Augment, Mean, LazyImage, RegionAugment, Std, mirror, rand_augment
from xtoolkit.data.masking import ImageMask, TextMask
from xtoolkit.data.order import Order
from xtoolkit.data.process import ImageProcessor, TextProcessor
from xtoolkit.data.sharded import Sharded
from xtoolkit.data.shards import Shards
from xtoolkit.data.text import says_side
from xtoolkit.registry import DATASET_REGISTRY, Count, Range

Length = Annotated[int, Range(3)]  # tokens of a text: one at least between two specials


@DATASET_REGISTRY.register
class Text(Sharded):
    """Texts of their own, raw: cased and with their punctuation (X-FM's release).

    YAML: {type: Text, path: sample://picturebook/text, max_tokens: 128, mask: {prob: 0.15, max: 20}}

    Args:
        path: .jsonl[.gz] ({"text": ...} a line), .txt[.gz] (one text a line), or .csv or .tsv with a column of texts.
        sources: several, {name: {path, weight}}, instead of `path`.
        shards: {window, cache, cache_gb, timeout, retries, backoff}, see ShardBlock.
        max_tokens: longest text, its two specials counted; what is longer is cut.
        mask: {prob, max, ngram, ngram_prob, whole_word}, see TextMask.
        clean: clean as captions are.
        window: batches that are sorted by length together, so that a batch pads little; 1: no sorting.
    """

    FIELDS = {"text": TextField}
    MARKS = {"mask_text": "mask"}
    COLUMNS = (tables.CAPTIONS,)

    def __init__(self, tokenizer, views: frozenset = frozenset(), train: bool = True,
                 path: Path | None = None, sources: Sources | None = None, shards: ShardBlock | None = None,
                 max_tokens: Length = 128, mask: TextMask | None = None, clean: bool = False, window: Count = 32):
        super().__init__(path, sources, shards, train)
        self._text = TextProcessor(tokenizer, max_tokens, clean, mask, views)
        self._window = window

    def order(self, seed: int, stream: str, batch_size: int) -> Order:
        return Order(seed, stream, batch_size, self.sizes, self._weights, lengths=[s.lengths for s in self._shards],
                     window=self._window, shuffles=self._shuffles(batch_size * self._window))

    def load(self, source: int, sample: int, rows: int, rng: random.Random) -> items.Item:
        shards = self._shards[source]
        bad = lambda kind, detail: shards.bad(kind, sample, detail)
        return items.Item(texts=[self._text(shards.text(sample), rng, bad)])


def _data(shards: Shards, sample: int) -> bytes:
    return shards.read(sample, "image") or b""


def _name(shards: Shards, sample: int, meta: dict) -> str:
    """The picture's ``image_id``, else its shard and key."""
    given = meta.get("image_id")
    return str(given) if given is not None else f"{os.path.basename(shards.file(sample))}:{shards.name(sample)}"


@DATASET_REGISTRY.register
class Images(Sharded):
    """Pictures alone.

    YAML: {type: Images, path: sample://picturebook/images, image_mask: {patches: 75, min_block: 16}}

    Args:
        path: tars with pictures, or tables that name them; what else is in them is not read.
        images: the folder of the pictures that a table names; by default that of the table.
        sources: several, {name: {path, images, weight}}, instead of `path`.
        shards: {window, cache, cache_gb, timeout, retries, backoff}, see ShardBlock.
        image_mask: {patches, min_block}, see ImageMask.
        augment: {crop_scale, flip, randaugment}, see Augment.
        mean: of the channels, in [0, 1]; CLIP's by default.
        std: of the channels.
    """

    FIELDS = {"image": ImageField}
    MARKS = {"mask_image": "image_mask"}

    def __init__(self, image_size, patch_size, views: frozenset = frozenset(), train: bool = True,
                 path: Path | None = None, images: str | None = None, sources: Sources | None = None,
                 shards: ShardBlock | None = None, image_mask: ImageMask | None = None, augment: Augment | None = None,
                 mean: Mean = CLIP_MEAN, std: Std = CLIP_STD):
        super().__init__(path, sources, shards, train, images)
        augment = (augment or Augment()) if train else None
        self.images = ImageProcessor(image_size, patch_size, mean, std, augment, image_mask, views)

    def load(self, source: int, sample: int, rows: int, rng: random.Random) -> items.Item:
        shards = self._shards[source]
        bad = lambda kind, detail: shards.bad(kind, sample, detail)
        return items.Item(self.images(_data(shards, sample), _name(shards, sample, {}), rng, bad))


@DATASET_REGISTRY.register
class Pairs(Sharded):
    """Pictures with captions: one of a picture's captions a visit. Not training: all of them, ``image_index``.

    YAML: {type: Pairs, path: sample://picturebook/pairs, max_tokens: 30, mask: {prob: 0.5, max: 15}}

    Args:
        path: tars in the layout of img2dataset (captions from `captions` or `caption` of the json, else from the .txt), or
            tables, .jsonl, .csv or .tsv, with a picture and a caption a row.
        images: the folder of the pictures that a table names; by default that of the table.
        sources: several, {name: {path, images, weight}}, instead of `path`.
        shards: {window, cache, cache_gb, timeout, retries, backoff}, see ShardBlock.
        max_tokens: longest caption, its two specials counted; what is longer is cut.
        clean: lower case, no punctuation (X-FM's release); false: as it is.
        mask: {prob, max, ngram, ngram_prob, whole_word}, see TextMask.
        image_mask: {patches, min_block}, see ImageMask.
        augment: {crop_scale, flip, randaugment}, see Augment.
        mean: of the channels, in [0, 1]; CLIP's by default.
        std: of the channels.
    """

    FIELDS = {"image": ImageField, "text": TextField}
    MARKS = {"mask_text": "mask", "mask_image": "image_mask"}
    COLUMNS = (tables.PICTURE, tables.CAPTIONS)

    def __init__(self, tokenizer, image_size, patch_size, views: frozenset = frozenset(), train: bool = True,
                 path: Path | None = None, images: str | None = None, sources: Sources | None = None,
                 shards: ShardBlock | None = None, max_tokens: Length = 30, clean: bool = True,
                 mask: TextMask | None = None, image_mask: ImageMask | None = None, augment: Augment | None = None,
                 mean: Mean = CLIP_MEAN, std: Std = CLIP_STD):
        super().__init__(path, sources, shards, train, images)
        augment = (augment or Augment()) if train else None
        self.images = ImageProcessor(image_size, patch_size, mean, std, augment, image_mask, views)
        self._text = TextProcessor(tokenizer, max_tokens, clean, mask, views)

    def load(self, source: int, sample: int, rows: int, rng: random.Random) -> items.Item:
        shards, dropped = self._shards[source], []
        bad = lambda kind, detail: shards.bad(kind, sample, detail)
        meta = shards.meta(sample)
        captions = tables.captions(meta)
        if not captions:
            raise bad("empty caption", tables.no_caption(meta))
        if self.train:
            texts = [self._text(rng.choice(captions), rng, bad)]
        else:
            texts = _each(captions, lambda caption: self._text(caption, rng, bad), dropped)
        image = self.images(_data(shards, sample), _name(shards, sample, meta), rng, bad, captions)
        return items.Item(image, texts, dropped=dropped)


def _each(values, make, dropped: list, most: int | None = None) -> list:
    """``make`` of the first ``most`` values that it accepts; those it refuses are added to ``dropped``.

    Raises:
        BadSample: the last refusal, if it accepts none.
    """
    made = []
    for value in values:
        if len(made) == most:
            break
        try:
            made.append(make(value))
        except BadSample as bad:
            dropped.append(bad)
    if not made:
        raise dropped.pop()
    return made


@DATASET_REGISTRY.register
class Regions(Sharded):
    """Boxes in pictures, each with a text; a caption of the whole picture counts as one more. Rows are boxes.

    Not training: every caption of every box, on the whole picture; ``source`` names the source of each, and
    ``biggest`` (R, 4) float32 is the biggest annotated box of its picture (of ``boxes`` in the json, else of
    its regions).

    YAML: {type: Regions, path: sample://picturebook/regions, max_per_image: 5, mask: {prob: 0.5, max: 15}}

    Args:
        path: tars whose json has `regions: [{box: [x, y, w, h], caption, attributes}]`, or .jsonl with such rows.
        images: the folder of the pictures that a table names; by default that of the table.
        sources: several, {name: {path, images, weight}}, instead of `path`.
        shards: {window, cache, cache_gb, timeout, retries, backoff}, see ShardBlock.
        max_tokens: longest caption, its two specials counted; what is longer is cut.
        max_per_image: most rows of one picture in a batch.
        clean: lower case, no punctuation (X-FM's release); false: as it is.
        mask: {prob, max, ngram, ngram_prob, whole_word}, see TextMask.
        augment: {crop, flip, randaugment}, see RegionAugment.
        mean: of the channels, in [0, 1]; CLIP's by default.
        std: of the channels.
    """

    FIELDS = {"image": ImageField, "text": TextField, "region": RegionField}
    MARKS = {"mask_text": "mask"}

    def __init__(self, tokenizer, image_size, patch_size, views: frozenset = frozenset(), train: bool = True,
                 path: Path | None = None, images: str | None = None, sources: Sources | None = None,
                 shards: ShardBlock | None = None, max_tokens: Length = 30, max_per_image: Count = 5,
                 clean: bool = True, mask: TextMask | None = None, augment: RegionAugment | None = None,
                 mean: Mean = CLIP_MEAN, std: Std = CLIP_STD):
        super().__init__(path, sources, shards, train, images)
        self.images = ImageProcessor(image_size, patch_size, mean, std)
        self._augment = (augment or RegionAugment()) if train else None
        self._text = TextProcessor(tokenizer, max_tokens, clean, mask, views)
        self._max = max_per_image

    @classmethod
    def rows_each(cls, block: dict) -> int:
        return block["max_per_image"]

    def order(self, seed: int, stream: str, batch_size: int) -> Order:
        elements = [s.column("elements").clip(max=self._max) for s in self._shards]
        return Order(seed, stream, batch_size, self.sizes, self._weights, elements=elements,
                     shuffles=self._shuffles(batch_size))

    def load(self, source: int, sample: int, rows: int, rng: random.Random) -> items.Item:
        shards = self._shards[source]
        bad = lambda kind, detail: shards.bad(kind, sample, detail)
        meta, picture = shards.meta(sample), LazyImage(_data(shards, sample), bad)
        name, whole = _name(shards, sample, meta), tables.captions(meta)
        elements = _elements(meta)
        said = [caption for _, captions in elements for caption in captions] + whole
        if self.train:
            elements += [(None, whole)] if whole else []
            rng.shuffle(elements)
        else:
            elements = [(box, [caption]) for box, captions in elements for caption in captions]
            rows = len(elements)
        if not elements:
            raise bad("no region", "its json has no `regions` with a box and a caption")
        dropped = []
        drawn = _each(elements, lambda e: self._element(e, picture, name, bad, rng), dropped, rows)
        flip, crop = False, (0, 0, picture.width, picture.height)
        if self._augment is not None:
            drawn.sort(key=lambda d: d[2] is None)  # the crop is made around a box, if there is one
            if self._augment.crop:
                crop = regions.crop_around([d[1] for d in drawn], picture.width, picture.height, rng, self._augment.least)
            flip = rng.random() < self._augment.flip and not says_side(said)
        image = picture.resized(crop, self.images.size)
        image = mirror(image) if flip else image
        if self._augment is not None and self._augment.randaugment is not None:
            image = rand_augment(image, self._augment.randaugment, False, rng)
        boxes = [self._box(pixels, given, crop, flip, name) for _, pixels, given in drawn]
        told = {} if self.train else {"source": self._names[source], "biggest": _biggest(meta, drawn, picture)}
        shown = self.images.item(self.images.normalize(image), name, rng)
        return items.Item(shown, [text for text, _, _ in drawn], boxes, dropped, told)

    def _element(self, element, picture: LazyImage, name: str, bad, rng: random.Random):
        """Text; box in pixels (left, top, right, bottom); the box as it was given, None for the whole picture."""
        given, captions = element
        pixels = (0.0, 0.0, float(picture.width), float(picture.height))
        if given is not None:
            pixels = regions.clip_box(given, picture.width, picture.height)
            if pixels is None:
                raise bad("bad box", f"nothing of {given} is inside {picture.width} x {picture.height} pixels")
        return self._text(rng.choice(captions), rng, bad), pixels, given

    def _box(self, pixels, given, crop, flip: bool, name: str) -> items.Box:
        side = self.images.side
        if given is None:
            return items.Box(regions.WHOLE, regions.box_patches(regions.WHOLE, side), False, stable_key(name, "whole"))
        box = regions.in_crop(pixels, crop, flip)
        return items.Box(box, regions.box_patches(box, side), True, stable_key(name, *map(float, given)))


def _elements(meta: dict) -> list[tuple[list, list[str]]]:
    """The regions of a sample that have a box of four numbers and a text: (box, captions after their attributes)."""
    found, listed = [], meta.get("regions")
    for region in listed if isinstance(listed, list) else []:
        if not isinstance(region, dict):
            continue
        box, captions = region.get("box"), tables.strings(region.get("caption"))
        if _is_box(box) and captions:
            attributes = " ".join(tables.strings(region.get("attributes")))
            found.append((box, [f"{attributes} {caption}".strip() for caption in captions]))
    return found


def _is_box(box) -> bool:
    return isinstance(box, list) and len(box) == 4 and all(type(v) in (int, float) and abs(v) < 1e9 for v in box)


def _biggest(meta: dict, drawn: list, picture: LazyImage) -> Tensor:
    """(4,) cx, cy, w, h of the biggest of all annotated boxes of a picture."""
    width, height, listed = picture.width, picture.height, meta.get("boxes")
    known = [regions.clip_box(b, width, height) for b in (listed if isinstance(listed, list) else []) if _is_box(b)]
    known = [box for box in known if box is not None] or [pixels for _, pixels, _ in drawn]
    biggest = max(known, key=lambda b: (b[2] - b[0]) * (b[3] - b[1]))
    return torch.tensor(regions.in_crop(biggest, (0, 0, width, height), False))
