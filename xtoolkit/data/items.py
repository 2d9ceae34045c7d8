"""What a dataset makes of one sample, and how several of them become a Batch."""

from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor

from xtoolkit.batch import Batch, ImageField, RegionField
from xtoolkit.data.text import text_field


@dataclass(frozen=True)
class Text:
    """Token ids (L,) int64 with their specials, and the result of ``mask_text`` if the stream masks."""

    ids: np.ndarray
    masked: tuple | None = None


@dataclass(frozen=True)
class Shown:
    """A picture as the model sees it: pixels (3, H, W), the key and name of the picture, patch mask (N,) or None."""

    pixels: Tensor
    key: int
    name: str
    patch_mask: np.ndarray | None = None


@dataclass(frozen=True)
class Box:
    """A box cx, cy, w, h in [0, 1], the patches (N,) it touches, and the key of picture and box."""

    box: tuple
    patches: np.ndarray
    is_box: bool
    key: int


@dataclass(frozen=True)
class Item:
    """One sample: a picture, texts, and a box for each text on region streams.

    Attributes:
        dropped: a BadSample for each caption or region of it that could not be used.
        extra: what evaluation reads of each of its texts: name -> tensor, repeated a text, or word.
    """

    image: Shown | None = None
    texts: list = field(default_factory=list)
    boxes: list = field(default_factory=list)
    dropped: list = field(default_factory=list)
    extra: dict = field(default_factory=dict)

    @property
    def rows(self) -> int:
        return len(self.boxes) or 1

    def take(self, first: int, last: int) -> "Item":
        """The rows ``first`` to ``last`` of a region item; an item of one row is itself."""
        return replace(self, texts=self.texts[first:last], boxes=self.boxes[first:last]) if self.boxes else self


def collate(items: list, pad: int | None, all_texts: bool = False) -> Batch:
    """One Batch of items of one stream.

    Args:
        pad: the pad id, where there are texts.
        all_texts: an item of a pair stream holds every caption of its picture: ``image_index`` says whose.

    Returns:
        A Batch; its ``extra`` holds the items' own, a row for each text: tensors stacked, words as a list.
    """
    texts = [text for item in items for text in item.texts]
    owner = torch.tensor([i for i, item in enumerate(items) for _ in item.texts], dtype=torch.int64)
    text = image = region = None
    if texts:
        masks = None if texts[0].masked is None else [t.masked for t in texts]
        text = text_field([t.ids for t in texts], pad, masks)
    if items[0].image is not None:
        shown = [item.image for item in items]
        masks = None if shown[0].patch_mask is None else torch.from_numpy(np.stack([s.patch_mask for s in shown]))
        image = ImageField(torch.stack([s.pixels for s in shown]), torch.tensor([s.key for s in shown]), masks,
                           [s.name for s in shown])
    boxes = [box for item in items for box in item.boxes]
    if boxes:
        region = RegionField(owner, torch.tensor([b.box for b in boxes], dtype=torch.float32),
                             torch.from_numpy(np.stack([b.patches for b in boxes])),
                             torch.tensor([b.is_box for b in boxes]), torch.tensor([b.key for b in boxes]))
    extra = {"image_index": owner} if all_texts else {}
    for name, first in items[0].extra.items():
        values = [item.extra[name] for item in items for _ in item.texts]
        extra[name] = torch.stack(values) if isinstance(first, Tensor) else values
    return Batch(text, image, region, **extra)
