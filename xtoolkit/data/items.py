"""What a dataset makes of one sample, and how several of them become a Batch."""

from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor

from xtoolkit.batch import Batch, ImageField, RegionField, TextField
from xtoolkit.fields import AnswerField
from xtoolkit.data import left_to_right
from xtoolkit.data.text import text_field


@dataclass(frozen=True)
class Text:
    """Token ids (L,) int64 with their specials, the id that pads them, and where they are read the results of ``mask_text``
    and of ``left_to_right.Predicted``."""

    ids: np.ndarray
    pad: int
    masked: tuple | None = None
    left_to_right: tuple | None = None


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
    """The answers of one question, any number of them, the weight of each, and its number among so many candidates (None: there
    are none; -1: it is none of them)."""

    texts: list[Text]
    weights: list[float]
    labels: list[int] | None = None
    candidates: int | None = None


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
    kinds, texts = dataset.FIELDS, [text for item in items for text in item.texts]
    owner = torch.tensor([i for i, item in enumerate(items) for _ in item.texts], dtype=torch.int64)
    held = {"text": texts, "image": [item.image for item in items if item.image is not None],
            "region": [box for item in items for box in item.boxes]}
    if unnamed := [f"${name}" for name, values in held.items() if values and name not in kinds]:
        raise TypeError(f"items of {dataset.__name__} hold {', '.join(unnamed)}, which its FIELDS do not name; they name "
                        f"{', '.join(f'${name}' for name in kinds)}")
    made: dict = {"image_index": owner} if texts and held["image"] and not held["region"] and not train else {}
    for name, first in items[0].fields.items():
        if name in kinds:
            held[name] = [item.fields[name] for item in items]
        else:
            values = [item.fields[name] for item in items for _ in item.texts or (None,)]
            made[name] = torch.stack(values) if isinstance(first, Tensor) else values
    joins = {Text: _texts, Image: _pictures, Answers: _answers, Box: lambda boxes: _regions(boxes, owner)}
    for name, values in held.items():
        if values:
            joined = joins.get(type(values[0]), kinds[name].collate)(values)
            # A dataset may name a class of its own, with further marks.
            made[name] = joined if type(joined) is kinds[name] else kinds[name](**vars(joined))
    return Batch(**made)


def _texts(texts: list[Text]) -> TextField:
    """One field of several texts, padded to the longest; what is masked or predicted from left to right goes with it."""
    masks = None if texts[0].masked is None else [t.masked for t in texts]
    made = text_field([t.ids for t in texts], texts[0].pad, masks)
    if texts[0].left_to_right is None:
        return made
    return replace(made, left_to_right=left_to_right.field([t.left_to_right for t in texts], texts[0].pad))


def _answers(several: list[Answers]) -> AnswerField:
    """One field of the answers of several questions, one after the other; ``labels`` where the data name candidates."""
    texts, counts = [text for one in several for text in one.texts], torch.tensor([len(one.texts) for one in several])
    none = TextField(torch.zeros(0, 1, dtype=torch.long), torch.zeros(0, 1, dtype=torch.bool), torch.zeros(0, dtype=torch.long))
    weights = torch.tensor([weight for one in several for weight in one.weights], dtype=torch.float32)
    named = several[0].labels is not None
    labels = torch.tensor([label for one in several for label in one.labels], dtype=torch.int64) if named else None
    return AnswerField(counts, _texts(texts) if texts else none, torch.arange(len(several)).repeat_interleave(counts), weights,
                       labels, several[0].candidates)


def _pictures(shown: list[Image]) -> ImageField:
    """One field of several pictures of one size."""
    masks = None if shown[0].patch_mask is None else torch.from_numpy(np.stack([s.patch_mask for s in shown]))
    return ImageField(torch.stack([s.pixels for s in shown]), torch.tensor([s.key for s in shown]), masks,
                      [s.name for s in shown], None if masks is None else int(masks.sum()))


def _regions(boxes: list[Box], owner: Tensor) -> RegionField:
    """One field of several boxes; ``owner`` (R,) int64: the row of each one's picture."""
    return RegionField(owner, torch.tensor([b.box for b in boxes], dtype=torch.float32),
                       torch.from_numpy(np.stack([b.patches for b in boxes])),
                       torch.tensor([b.is_box for b in boxes]), torch.tensor([b.key for b in boxes]))
