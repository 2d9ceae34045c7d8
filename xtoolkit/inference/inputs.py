"""Pictures and texts as a person gives them, one or several, as the fields of batches.

Shape letters: B pairs.
"""

import torch
from torch import Tensor

from xtoolkit.batch import ImageField, TextField
from xtoolkit.data.process import TextProcessor
from xtoolkit.data.text import text_field
from xtoolkit.data.transform import ImageTransform


class Pictures:
    """One picture or several, opened when they are asked for.

    Attributes:
        single: whether one came alone.
    """

    def __init__(self, given, transform: ImageTransform, device):
        several = isinstance(given, (list, tuple, ImageField)) or isinstance(given, Tensor) and given.dim() == 4
        self.single, self._transform, self._device = not several, transform, device
        self._given = given.pixels if isinstance(given, ImageField) else given if several else [given]
        self._ready = isinstance(given, ImageField)
        if len(self) == 0:
            raise ValueError("no picture was given")

    def __len__(self) -> int:
        return len(self._given)

    def batches(self, batch_size: int):
        """Yields all pictures as ImageFields on the model's device, in their order."""
        return (self.read(rows)[0] for rows in split(torch.arange(len(self)), batch_size))

    def result(self, rows: Tensor) -> Tensor:
        """The rows of a result, in the order of ``batches``: the one row where one picture came alone."""
        return rows[0] if self.single else rows

    def read(self, rows: Tensor) -> tuple[ImageField, Tensor | None]:
        """Some of the pictures.

        Returns:
            their pixels; (len(rows), 2) float32 width and height as given, None where only pixels as the model reads
            them were given. Both on the model's device.
        """
        if self._ready:
            return ImageField(self._given[rows.to(self._given.device)].to(self._device)), None
        opened = [self._transform.open(self._given[row], f"picture {row}") for row in rows.tolist()]
        sizes = torch.tensor([(one.width, one.height) for one in opened], dtype=torch.float32)
        pixels = torch.stack([self._transform.pixels(one) for one in opened])
        return ImageField(pixels.to(self._device)), sizes.to(self._device)


class Sentences:
    """One text or several, as token ids.

    Args:
        second: the second text of each, where they are pairs; as many, or one.

    Attributes:
        single: whether one came alone.
    """

    def __init__(self, given, texts: TextProcessor, device, second=None):
        sides = [given] if second is None else [given, second]
        self.single, self._pad, self._device = all(isinstance(one, str) for one in sides), texts.tokenizer.pad, device
        sides = [_strings(one) for one in sides]
        count = max(map(len, sides))
        if min(map(len, sides)) not in (1, count):
            raise ValueError(f"{len(sides[0])} first and {len(sides[1])} second texts: give as many of both, or one of either")
        bad = lambda text: lambda kind, detail: ValueError(f"{text!r}: {kind}: {detail}")
        make, rows = texts if second is None else texts.pair, zip(*(one if len(one) == count else one * count for one in sides))
        self._ids = [make(*row, None, bad(" / ".join(row))).ids for row in rows]
        self._order = torch.tensor([len(ids) for ids in self._ids]).argsort(stable=True)

    def __len__(self) -> int:
        return len(self._ids)

    def batches(self, batch_size: int):
        """Yields all texts as TextFields on the model's device, short ones first: little of them is padding."""
        return (self.read(rows) for rows in split(self._order, batch_size))

    def result(self, rows: Tensor) -> Tensor:
        """The rows of a result in the order of ``batches``, as the texts came; the one row where one came alone."""
        return rows[0] if self.single else rows[self._order.argsort()]

    def read(self, rows: Tensor) -> TextField:
        """Some of the texts, on the model's device."""
        return text_field([self._ids[row] for row in rows], self._pad).to(self._device)


def _strings(given) -> list[str]:
    """A text or several as a list. Raises TypeError or ValueError for what is none."""
    given = [given] if isinstance(given, str) else list(given) if isinstance(given, (list, tuple)) else given
    if not isinstance(given, list):
        raise TypeError(f"texts are a string or a list of strings, not {type(given).__name__}")
    for place, text in enumerate(given):
        if not isinstance(text, str):
            raise TypeError(f"texts are a string or a list of strings, but text {place} is of type {type(text).__name__}")
        if any("\ud800" <= letter <= "\udfff" for letter in text):
            raise ValueError(f"text {place} holds half a character: a lone surrogate")
    if not given:
        raise ValueError("no text was given")
    return given


class Pairs:
    """Pictures with texts, pair by pair; one of either goes with all of the other.

    Raises:
        ValueError: several of both, and not as many.
    """

    def __init__(self, pictures: Pictures, texts: Sentences):
        self._pictures, self._texts = pictures, texts
        self._count = max(len(pictures), len(texts))
        if min(len(pictures), len(texts)) not in (1, self._count):
            raise ValueError(f"{len(pictures)} pictures and {len(texts)} texts: give as many of both, or one of either")

    def batches(self, batch_size: int):
        """All pairs, on the model's device.

        Yields:
            an ImageField of distinct pictures; a TextField (B); (B,) int64, the row of each text's picture; (B, 2) float32,
            width and height of that picture as given, or None.
        """
        several = len(self._pictures) == self._count
        for rows in split(torch.arange(self._count), batch_size):
            first = rows * 0  # of one that goes with all
            image, sizes = self._pictures.read(rows if several else first[:1])
            text = self._texts.read(rows if len(self._texts) == self._count else first)
            shown = (rows - rows[0] if several else first).to(image.pixels.device)
            yield image, text, shown, None if sizes is None else sizes[shown]

    def result(self, rows: Tensor) -> Tensor:
        """The rows of a result; the one row where a picture and a text came alone."""
        return rows[0] if self._pictures.single and self._texts.single else rows


def split(rows: Tensor, batch_size: int):
    """``rows`` in batches. Raises ValueError for a size that is none."""
    if isinstance(batch_size, bool) or not isinstance(batch_size, int) or batch_size < 1:
        raise ValueError(f"batch_size must be an integer of at least 1, not {batch_size!r}")
    return rows.split(batch_size)
