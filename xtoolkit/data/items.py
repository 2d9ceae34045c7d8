"""What a dataset makes of one sample, and how several of them become a Batch."""

from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor

from xtoolkit.batch import Batch, Field, ImageField, RegionField, TextField
from xtoolkit.fields import AnswerField
from xtoolkit.data.text import text_field


@dataclass(frozen=True)
class Text:
    """Token ids (L,) int64 with their specials, the id that pads them, and the result of ``mask_text`` if it is read."""

    ids: np.ndarray
    pad: int
    masked: tuple | None = None


@dataclass(frozen=True)
class Image:
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
class Answers:
    """The answers of one question, any number of them, and the weight of each."""

    texts: list[Text]
    weights: list[float]


@dataclass(frozen=True)
class Item:
    """One sample: a picture, texts, a box for each text on region streams, and whatever else its dataset's FIELDS name.

    Attributes:
        dropped: a BadSample for each caption or region of it that could not be used.
        fields: {name: value}, one value a sample. Of a field, what its class collates (for any TextField a Text, for any
            ImageField an Image, for any AnswerField its Answers); of a name that is no field, what only evaluation reads: a
            tensor or a word, a text's.
    """

    image: Image | None = None
    texts: list = field(default_factory=list)
    boxes: list = field(default_factory=list)
    dropped: list = field(default_factory=list)
    fields: dict = field(default_factory=dict)

    @property
    def rows(self) -> int:
        return len(self.boxes) or 1

    def take(self, first: int, last: int) -> "Item":
        """The rows ``first`` to ``last`` of a region item; an item of one row is itself."""
        return replace(self, texts=self.texts[first:last], boxes=self.boxes[first:last]) if self.boxes else self


def collate(items: list[Item], dataset: type, train: bool = True) -> Batch:
    """One Batch of items of one stream.

    Args:
        dataset: its class, whose FIELDS say what a batch holds.
        train: False: an item of a pair stream holds every caption of its picture, and ``image_index`` says whose.

    Returns:
        A Batch: the fields, and the items' other values as plain entries, tensors stacked, anything else as a list.

    Raises:
        TypeError: items hold texts, a picture or boxes that FIELDS does not name.
    """
    kinds = dataset.FIELDS
    texts = [text for item in items for text in item.texts]
    boxes = [box for item in items for box in item.boxes]
    owner = torch.tensor([i for i, item in enumerate(items) for _ in item.texts], dtype=torch.int64)
    made: dict = {"text": _texts(texts)} if texts else {}
    if items[0].image is not None:
        made["image"] = _pictures([item.image for item in items])
        if texts and not boxes and not train:
            made["image_index"] = owner
    if boxes:
        made["region"] = RegionField(owner, torch.tensor([b.box for b in boxes], dtype=torch.float32),
                                     torch.from_numpy(np.stack([b.patches for b in boxes])),
                                     torch.tensor([b.is_box for b in boxes]), torch.tensor([b.key for b in boxes]))
    if unnamed := [f"${name}" for name in made if isinstance(made[name], Field) and name not in kinds]:
        raise TypeError(f"items of {dataset.__name__} hold {', '.join(unnamed)}, which its FIELDS do not name; they name "
                        f"{', '.join(f'${name}' for name in kinds)}")
    made = {name: _of(kinds[name], value) if name in kinds else value for name, value in made.items()}
    for name, first in items[0].fields.items():
        if name in kinds:
            values = [item.fields[name] for item in items]
            join = {Text: _texts, Image: _pictures, Answers: _answers}.get(type(first), kinds[name].collate)
            made[name] = _of(kinds[name], join(values))
        else:
            values = [item.fields[name] for item in items for _ in item.texts or (None,)]
            made[name] = torch.stack(values) if isinstance(first, Tensor) else values
    return Batch(**made)


def _of(kind: type[Field], field: Field) -> Field:
    """A field as the class that the dataset names, which may be one of its own with further marks."""
    return field if type(field) is kind else kind(**vars(field))


def _texts(texts: list[Text]) -> TextField:
    masks = None if texts[0].masked is None else [t.masked for t in texts]
    return text_field([t.ids for t in texts], texts[0].pad, masks)


def _answers(several: list[Answers]) -> AnswerField:
    texts, counts = [text for one in several for text in one.texts], torch.tensor([len(one.texts) for one in several])
    none = TextField(torch.zeros(0, 1, dtype=torch.long), torch.zeros(0, 1, dtype=torch.bool), torch.zeros(0, dtype=torch.long))
    weights = torch.tensor([weight for one in several for weight in one.weights], dtype=torch.float32)
    return AnswerField(counts, _texts(texts) if texts else none, torch.arange(len(several)).repeat_interleave(counts), weights)


def _pictures(shown: list[Image]) -> ImageField:
    masks = None if shown[0].patch_mask is None else torch.from_numpy(np.stack([s.patch_mask for s in shown]))
    return ImageField(torch.stack([s.pixels for s in shown]), torch.tensor([s.key for s in shown]), masks,
                      [s.name for s in shown])
