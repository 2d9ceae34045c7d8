"""An image tokenizer of one line, and pictures with unequal numbers of masked patches."""

import dataclasses

import torch.nn.functional as F
from torch import Tensor

from xtoolkit.batch import ImageField
from xtoolkit.data.items import Item
from xtoolkit.data.synthetic import SyntheticImages
from xtoolkit.encoders.base import Encoder
from xtoolkit.registry import DATASET_REGISTRY, ENCODER_REGISTRY


@ENCODER_REGISTRY.register
class ToyTokens(Encoder):
    """The brightness of a patch, in ``codes`` steps.

    YAML: {type: ToyTokens, inputs: {image: $image}, codes: 5}
    """

    def __init__(self, codes: int = 5, image_size: int = 32, patch_size: int = 8):
        super().__init__()
        self.width, self.codes, self.image_size, self.patch_size = 1, codes, image_size, patch_size

    def forward(self, *, view: str | None, image: ImageField) -> Tensor:
        light = F.avg_pool2d(image.pixels.mean(1), self.patch_size).flatten(1)
        return (light * 10 + self.codes / 2).long().clamp(0, self.codes - 1)


@DATASET_REGISTRY.register
class ToyUnequalMasks(SyntheticImages):
    """Of every picture whose number divides by three the first four patches alone are masked.

    YAML: {type: ToyUnequalMasks, size: 40, image_mask: {patches: 7, min_block: 2}}
    """

    def load(self, source, sample, rows, rng) -> Item:
        item, few = super().load(source, sample, rows, rng), sample % 3 == 0
        mask = item.image.patch_mask.copy()
        mask[:] = [place < 4 for place in range(len(mask))] if few else mask
        return dataclasses.replace(item, image=dataclasses.replace(item.image, patch_mask=mask))
