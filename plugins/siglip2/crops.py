"""MultiCrop: a picture, and small parts of it beside it.

Shape letters: B pictures, K crops of each, S pixels a side of a crop.
"""

import io
import random
from dataclasses import dataclass

import torch
from PIL import Image, ImageOps
from torch import Tensor

from xtoolkit.batch import Batch, Field, ImageField
from xtoolkit.data import items
from xtoolkit.data.blocks import Path, ShardBlock, Sources
from xtoolkit.data.datasets import Images
from xtoolkit.data.images import (
    CLIP_MEAN, CLIP_STD, FORMATS, Augment, LazyImage, Mean, RandAugment, Scale, Std, rand_augment, random_crop,
)
from xtoolkit.data.masking import ImageMask
from xtoolkit.data.record import Record
from xtoolkit.hints import Count, Share
from xtoolkit.registry import DATASET_REGISTRY, ConfigError


@dataclass(frozen=True)
class CropField(Field):
    """``pixels`` (B, K, 3, S, S) float32, normalised: crops of the pictures of ``$image``, of which an encoder reads B K."""

    pixels: Tensor

    def clean(self) -> ImageField:
        """What an encoder reads: the crops as pictures, those of one picture one after the other."""
        return ImageField(self.pixels.flatten(0, 1))

    @classmethod
    def example(cls, rows: int, block: dict, sizes: dict) -> "CropField | None":
        """As the data block says; None where no encoder reads pictures."""
        if not sizes:
            return None
        crops = Crops(**block["crops"] or {})
        size = crops.size or sizes["image_size"]
        return cls(torch.zeros(rows, crops.number, 3, size, size))


@dataclass(frozen=True)
class Crops:
    """The `crops` block.

    Attributes:
        number: of a picture.
        scale: smallest and largest share of the picture's area.
        size: pixels a side; null: as pictures. Smaller ones are cheaper, where the encoder takes them (TimmTower).
        flip: how often one is mirrored.
        randaugment: [operations, magnitude of 10] of RandAugment, colours only; null: none.
    """

    number: Count = 8
    scale: tuple[Scale, Scale] = (0.05, 0.4)
    size: Count | None = None
    flip: Share = 0.5
    randaugment: RandAugment | None = (2, 7)

    def problems(self) -> list[tuple[str, str]]:
        return [] if self.scale[0] <= self.scale[1] else [("scale", f"must be [smallest, largest], not {self.scale}")]


@DATASET_REGISTRY.register
class MultiCrop(Images):
    """Pictures alone, and of each some small random crops, ``$crops``, which a teacher of the picture is to be told from.

    YAML: {type: MultiCrop, path: sample://picturebook/images, crops: {number: 8, scale: [0.05, 0.4], size: 96}}

    Args:
        crops: {number, scale, size, flip, randaugment}, see Crops.
        others: path: sources: images: shards: image_mask: augment: mean: std: as Images has them; ``augment`` is of the picture.

    Source: SILC (2310.13355): eight local views of 5 to 40 % of the area beside global ones of 40 to 100 %, as DINO
    (2104.14294). DINO's colour jitter, blur and solarisation are RandAugment's colours here.
    """

    FIELDS = {"image": ImageField, "crops": CropField}

    def __init__(self, image_size, patch_size, views: frozenset = frozenset(), train: bool = True, path: Path | None = None,
                 images: str | None = None, sources: Sources | None = None, shards: ShardBlock | None = None,
                 image_mask: ImageMask | None = None, augment: Augment | None = None, mean: Mean = CLIP_MEAN, std: Std = CLIP_STD,
                 crops: Crops | None = None):
        super().__init__(image_size, patch_size, views, train, path, images, sources, shards, image_mask, augment, mean, std)
        self._crops, self._size = crops or Crops(), (crops and crops.size) or image_size
        if self._size % patch_size:
            raise ConfigError(f"data.crops.size: {self._size} is not a multiple of the encoder's patch_size {patch_size}; "
                              f"nearest: {max(1, round(self._size / patch_size)) * patch_size}")

    def load(self, source: int, sample: int, rows: int, rng: random.Random) -> items.Item:
        record = Record(self._shards[source], sample)
        LazyImage(record.data, record.bad)  # refuses what is none, or too large
        picture = Image.open(io.BytesIO(record.data), formats=list(FORMATS))  # decoded once for all of them
        shown = self.images(picture, record.place, rng, record.bad)
        crops = torch.stack([self._crop(picture, record.bad, rng) for _ in range(self._crops.number)])
        return items.Item(shown, fields={"crops": crops})

    def figures(self, batch: Batch, tokenizer, shown: int = 6) -> list[dict]:
        """The masked pictures, and of the first three their crops."""
        pictures = zip(batch.image.image_id[:3], batch["crops"].pixels)
        crops = [{"image": self.images.picture(crop), "caption": name} for name, several in pictures for crop in several]
        return super().figures(batch, tokenizer, shown) + [{"title": "Crops", "items": crops}]

    def _crop(self, picture: Image.Image, bad, rng: random.Random) -> Tensor:
        """(3, S, S)."""
        how = self._crops
        image = LazyImage(picture, bad).resized(self._size, random_crop(picture.width, picture.height, how.scale, rng))
        image = ImageOps.mirror(image) if rng.random() < how.flip else image
        return self.images.normalize(image if how.randaugment is None else rand_augment(image, how.randaugment, False, rng))
