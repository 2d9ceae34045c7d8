"""Made-up regions of which some are no boxes, so that parts of a batch have unequal numbers of them."""

import dataclasses

from xtoolkit.data.items import Item
from xtoolkit.data.synthetic import SyntheticRegions
from xtoolkit.registry import DATASET_REGISTRY


@DATASET_REGISTRY.register
class ToyUnequal(SyntheticRegions):
    """Every region of a picture whose number divides by three is the whole picture.

    YAML: {type: ToyUnequal, size: 40, tokens: 8, max_per_image: 2}
    """

    def load(self, source, sample, rows, rng) -> Item:
        item = super().load(source, sample, rows, rng)
        return dataclasses.replace(item, boxes=[dataclasses.replace(b, is_box=sample % 3 > 0) for b in item.boxes])
