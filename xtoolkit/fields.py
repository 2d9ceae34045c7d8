"""The fields of tasks and of video: a label a row, several weighted answers a row, frames.

Shape letters: B rows, A answers of all rows, L text tokens, T frames of a video, H and W pixels.
"""

import dataclasses
from dataclasses import dataclass, field

import torch
from torch import Tensor

from xtoolkit.batch import Field, TextField


@dataclass(frozen=True)
class LabelField(Field):
    """What a row is to be told as; the dataset knows the classes by ``names``.

    Attributes:
        value: (B,) int64, the number of its class; or (B,) float32, a target of regression. A sample that is evaluated
            without a label has -1, or NaN.
        classes: the names of the classes, where the dataset knows them: it then gives no label that is none of them.
    """

    value: Tensor
    classes: tuple[str, ...] | None = None

    @classmethod
    def example(cls, rows: int, block: dict) -> "LabelField":
        """Of regression where the data block has ``classes: null``."""
        given = block.get("classes", "")
        names = map(str, range(given)) if isinstance(given, int) else given if isinstance(given, list) else ()
        return cls(torch.zeros(rows, dtype=torch.float32 if given is None else torch.int64), tuple(names) or None)


@dataclass(frozen=True)
class AnswerField(Field):
    """Several answers a row, each with a weight, one after the other: no row is padded with answers that it does not have.

    Attributes:
        count: (B,) int64, how many answers each row has.
        text: the A answers.
        row: (A,) int64, whose answer it is, ascending.
        weight: (A,) float32.
        label: (A,) int64, the number of each among the candidates that the data name, -1: it is none. None: they name none.
        candidates: how many those are.
    """

    count: Tensor
    text: TextField
    row: Tensor
    weight: Tensor
    label: Tensor | None = None
    candidates: int | None = None

    @classmethod
    def example(cls, rows: int, block: dict) -> "AnswerField":
        """An answer a row, as long as the data block's ``answer_tokens`` lets it be."""
        ids = torch.zeros(rows, block["answer_tokens"], dtype=torch.long)
        index = torch.zeros(rows, dtype=torch.long)
        label = index if block.get("candidates") is not None else None
        return cls(index, TextField(ids, torch.ones_like(ids, dtype=torch.bool), index), index, torch.zeros(rows), label)

    def select(self, rows: Tensor) -> "AnswerField":
        """The answers of the rows (K,) int64, repeats allowed; how many those are, the device is asked."""
        row, chosen = (self.row == rows[:, None]).nonzero(as_tuple=True)
        label = None if self.label is None else self.label[chosen]
        return type(self)(self.count[rows], self.text.select(chosen), row, self.weight[chosen], label, self.candidates)

    @classmethod
    def cat(cls, several: "list[AnswerField]") -> "AnswerField":
        first, moved = 0, []
        for one in several:
            moved.append(dataclasses.replace(one, row=one.row + first))
            first += one.rows
        return super().cat(moved)


@dataclass(frozen=True)
class VideoField(Field):
    """A batch of videos of one size and one number of frames.

    Attributes:
        pixels: (B, T, 3, H, W) float32, normalised, frames in their order.
        key: (B,) int64, equal where two rows show the same video.
        video_id: B names, on the host.
    """

    pixels: Tensor
    key: Tensor | None = None
    video_id: list = field(default_factory=list)

    @classmethod
    def collate(cls, values: list) -> "VideoField":
        """Of (pixels (T, 3, H, W), key, name) a row."""
        pixels, keys, names = zip(*values)
        return cls(torch.stack(pixels), torch.tensor(keys), list(names))

    @classmethod
    def example(cls, rows: int, block: dict, sizes: dict) -> "VideoField | None":
        """With the data block's ``frames``; None where no encoder reads pictures."""
        if not sizes:
            return None
        pixels = torch.zeros(rows, block["frames"], 3, sizes["image_size"], sizes["image_size"])
        return cls(pixels, torch.zeros(rows, dtype=torch.long), [str(row) for row in range(rows)])
