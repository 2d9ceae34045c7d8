"""The datasets of the four streams: texts, pictures, pairs and regions, read from shards."""

import random
from typing import Annotated

import torch
from PIL import ImageOps
from torch import Tensor

from xtoolkit.batch import ImageField, RegionField, TextField, stable_key
from xtoolkit.data import items, regions, tables
from xtoolkit.data.blocks import Path, ShardBlock, Sources
from xtoolkit.data.control import OtherPictures
from xtoolkit.data.errors import BadSample
from xtoolkit.data.images import CLIP_MEAN, CLIP_STD, Augment, Mean, LazyImage, RegionAugment, Std, rand_augment
from xtoolkit.data.left_to_right import LeftToRight
from xtoolkit.data.masking import ImageMask, TextMask
from xtoolkit.data.order import Order
from xtoolkit.data.process import ImageProcessor, TextProcessor
from xtoolkit.data.record import Record
from xtoolkit.data.sharded import Sharded
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
        return items.Item(texts=[self._text(shards.text(sample), rng, Record(shards, sample).bad)])


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
        record = Record(self._shards[source], sample)
        return items.Item(self.images(record.data, record.place, rng, record.bad))


@DATASET_REGISTRY.register
class Pairs(Sharded):
    """Pictures with captions: one of a picture's captions a visit. Not training: all of them, ``image_index``; and on the host
    ``captions``, a list for each text: those of its picture as they are written.

    YAML: {type: Pairs, path: sample://picturebook/pairs, max_tokens: 30, mask: {prob: 0.5, max: 15}}

    Args:
        path: tars in the layout of img2dataset (captions from `captions` or `caption` of the json, else from the .txt), or
            tables, .jsonl, .csv or .tsv, with a picture and a caption a row.
        max_tokens: longest caption, its two specials counted; what is longer is cut.
        clean: lower case, no punctuation (X-FM's release); false: as it is.
        mask: {prob, max, ngram, ngram_prob, whole_word}, see TextMask.
        left_to_right: {prob, max, prompt}, what a generator of captions learns from, see LeftToRight.
        shuffle_pictures: a control, see OtherPictures: each record's captions are put beside another one's picture.
        others: sources: images: shards: image_mask: augment: mean: std: as Images has them.
    """

    FIELDS = {"image": ImageField, "text": TextField}
    MARKS = {"mask_text": "mask", "mask_image": "image_mask", "left_to_right": "left_to_right"}
    COLUMNS = (tables.PICTURE, tables.CAPTIONS)

    def __init__(self, tokenizer, image_size, patch_size, views: frozenset = frozenset(), train: bool = True,
                 path: Path | None = None, images: str | None = None, sources: Sources | None = None,
                 shards: ShardBlock | None = None, max_tokens: Length = 30, clean: bool = True,
                 mask: TextMask | None = None, image_mask: ImageMask | None = None, augment: Augment | None = None,
                 left_to_right: LeftToRight | None = None, mean: Mean = CLIP_MEAN, std: Std = CLIP_STD,
                 shuffle_pictures: bool = False):
        super().__init__(path, sources, shards, train, images)
        self._others = OtherPictures(self._shards) if shuffle_pictures else None
        augment = (augment or Augment()) if train else None
        self.images = ImageProcessor(image_size, patch_size, mean, std, augment, image_mask, views)
        self._text = TextProcessor(tokenizer, max_tokens, clean, mask, views, left_to_right)

    def load(self, source: int, sample: int, rows: int, rng: random.Random) -> items.Item:
        record = Record(self._shards[source], sample)
        captions = record.captions()
        dropped = [record.bad("empty caption", why) for why in tables.no_texts(record.meta.get("captions", []))]
        make = lambda caption: self._text(caption, rng, record.bad)
        texts = [make(rng.choice(captions))] if self.train else _each(captions, make, dropped)
        told = {} if self.train else {"captions": captions}
        shown = self._others(source, sample) if self._others else record
        return items.Item(self.images(shown.data, shown.name, rng, shown.bad, captions), texts, dropped=dropped, fields=told)


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

    Not training: every caption of every box, on the whole picture; ``source`` names the source of each, ``name`` its own picture,
    whichever it is shown, and ``biggest`` (R, 4) float32 is the biggest annotated box of its picture (of ``boxes`` in the json,
    else of its regions), ``size`` (R, 2) float32 how many pixels that is wide and high.

    YAML: {type: Regions, path: sample://picturebook/regions, max_per_image: 5, mask: {prob: 0.5, max: 15}}

    Args:
        path: tars whose json has `regions: [{box: [x, y, w, h], caption, attributes}]`, or .jsonl with such rows.
        max_per_image: most rows of one picture in a batch.
        augment: {crop, least, flip, randaugment}, see RegionAugment.
        shuffle_pictures: a control, see OtherPictures: boxes and texts of each record are put on another one's picture, in
            the same places as shares of it; what is reached then is told by the texts and by where boxes usually are.
        others: sources: images: shards: max_tokens: clean: mask: mean: std: as Pairs has them.
    """

    FIELDS = {"image": ImageField, "text": TextField, "region": RegionField}
    MARKS = {"mask_text": "mask"}

    def __init__(self, tokenizer, image_size, patch_size, views: frozenset = frozenset(), train: bool = True,
                 path: Path | None = None, images: str | None = None, sources: Sources | None = None,
                 shards: ShardBlock | None = None, max_tokens: Length = 30, max_per_image: Count = 5,
                 clean: bool = True, mask: TextMask | None = None, augment: RegionAugment | None = None,
                 mean: Mean = CLIP_MEAN, std: Std = CLIP_STD, shuffle_pictures: bool = False):
        super().__init__(path, sources, shards, train, images)
        self._others = OtherPictures(self._shards) if shuffle_pictures else None
        self.images = ImageProcessor(image_size, patch_size, mean, std)
        self._augment = (augment or RegionAugment()) if train else RegionAugment(crop=False, flip=0.0, randaugment=None)
        self._text = TextProcessor(tokenizer, max_tokens, clean, mask, views)
        self._max = max_per_image

    @classmethod
    def rows_each(cls, block: dict) -> int:
        return block["max_per_image"]

    def order(self, seed: int, stream: str, batch_size: int) -> Order:
        elements = [s.column("elements").clip(max=self._max) for s in self._shards]
        return Order(seed, stream, batch_size, self.sizes, self._weights, elements=elements,
                     shuffles=self._shuffles(batch_size), names=self._names)

    def load(self, source: int, sample: int, rows: int, rng: random.Random) -> items.Item:
        record, how = Record(self._shards[source], sample), self._augment
        whole, (elements, dropped) = tables.captions(record.meta), _elements(record)
        picture = LazyImage(record.data, record.bad)
        said = [caption for _, captions in elements for caption in captions] + whole
        if self.train:
            elements += [(None, whole)] if whole else []
            rng.shuffle(elements)
        else:
            elements = [(box, [caption]) for box, captions in elements for caption in captions]
            rows = len(elements)
        if not elements:
            raise record.bad("no region", "its json has no `regions` with a box and a caption")
        crop = (0, 0, picture.width, picture.height)
        drawn = _each(elements, lambda element: self._element(element, picture, record.bad, rng), dropped, rows)
        drawn.sort(key=lambda d: d[2] is None)  # the crop is made around a box, if there is one
        if how.crop:
            crop = regions.crop_around([d[1] for d in drawn], picture.width, picture.height, rng, how.least)
        flip = rng.random() < how.flip and not says_side(said)
        shown = self._others(source, sample) if self._others else record
        seen = picture if shown is record else LazyImage(shown.data, shown.bad)
        x, y = seen.width / picture.width, seen.height / picture.height
        image = seen.resized(self.images.size, (crop[0] * x, crop[1] * y, crop[2] * x, crop[3] * y))
        image = ImageOps.mirror(image) if flip else image
        if how.randaugment is not None:
            image = rand_augment(image, how.randaugment, False, rng)
        boxes = [self._box(pixels, given, crop, flip, record.name) for _, pixels, given in drawn]
        told = {} if self.train else {"source": self._names[source], "name": record.name,
                                      "biggest": _biggest(record.meta, drawn, picture),
                                      "size": torch.tensor([float(picture.width), float(picture.height)])}
        made = self.images.item(self.images.normalize(image), shown.name, rng)
        return items.Item(made, [text for text, _, _ in drawn], boxes, dropped, told)

    def _element(self, element, picture: LazyImage, bad, rng: random.Random):
        """Text; box in pixels (left, top, right, bottom); the box as it was given, None for the whole picture."""
        given, captions = element
        pixels = (0.0, 0.0, float(picture.width), float(picture.height))
        if given is not None:
            pixels = regions.clip_box(given, picture.width, picture.height)
            if pixels is None:
                raise bad("bad box", f"nothing of {given} is inside {picture.width} x {picture.height} pixels")
        return self._text(rng.choice(captions), rng, bad), pixels, given

    def _box(self, pixels, given, crop, flip: bool, name: str) -> items.Box:
        box = regions.WHOLE if given is None else regions.in_crop(pixels, crop, flip)
        key = stable_key(name, "whole") if given is None else stable_key(name, *map(float, given))
        return items.Box(box, regions.box_patches(box, self.images.side), given is not None, key)


def _elements(record: Record) -> tuple[list[tuple[list, list[str]]], list[BadSample]]:
    """(box, captions after their attributes) of each region with a box of four numbers and a text; what is wrong with others."""
    found, wrong, listed = [], [], record.meta.get("regions")
    for n, region in enumerate(listed if isinstance(listed, list) else []):
        region = region if isinstance(region, dict) else {}
        box, captions = region.get("box"), tables.strings(region.get("caption"))
        wrong += [record.bad("empty caption", f"region {n}: {why}") for why in tables.no_texts(region.get("caption"))]
        if not _is_box(box):
            wrong.append(record.bad("bad box", f"region {n}: `box` must be four numbers x, y, w, h, not {tables.shown(box)}"))
        elif (words := tables.strings(given := region.get("attributes") or [])) not in (given, [given]):
            wrong.append(record.bad("bad attributes", f"region {n}: `attributes` must be texts, not {tables.shown(given)}"))
        elif captions:
            found.append((box, [" ".join((*words, caption)).strip() for caption in captions]))
    return found, wrong


def _is_box(box) -> bool:
    return isinstance(box, list) and len(box) == 4 and all(type(v) in (int, float) and abs(v) < 1e9 for v in box)


def _biggest(meta: dict, drawn: list, picture: LazyImage) -> Tensor:
    """(4,) cx, cy, w, h of the biggest of all annotated boxes of a picture."""
    width, height, listed = picture.width, picture.height, meta.get("boxes")
    known = [regions.clip_box(b, width, height) for b in (listed if isinstance(listed, list) else []) if _is_box(b)]
    known = [box for box in known if box is not None] or [pixels for _, pixels, _ in drawn]
    biggest = max(known, key=lambda b: (b[2] - b[0]) * (b[3] - b[1]))
    return torch.tensor(regions.in_crop(biggest, (0, 0, width, height), False))
