"""What a data stream hands to the model: one Batch of typed fields, made whole in the loader's workers.

Shape letters: B rows (pairs, sentences or regions), I images, R regions (= B on a region stream), L text tokens, M masked
tokens, N image patches, H and W pixels.
"""

import dataclasses
from dataclasses import dataclass, field

import torch
from torch import Tensor

from xtoolkit.field import Field, mapped, stable_key  # noqa: F401  parts import both from here


@dataclass(frozen=True)
class TextField(Field):
    """A padded batch of token sequences, each ``<s> ... </s>``.

    Attributes:
        ids: (B, L) int64, padded with the tokenizer's pad id.
        mask: (B, L) bool, True at real tokens, the two specials included.
        key: (B,) int64, equal where the token ids are equal (``stable_key`` of the unpadded ids).
        masked_ids: (B, L) int64, ``ids`` with the masking of the stream applied; None if no loss reads ``@mask_text``.
        masked_pos: (M,) int64, flat positions ``row * L + column`` of the tokens to predict, ascending.
        labels: (M,) int64, the original ids at ``masked_pos``.
        positions: (B, L) int64, the place of each token in its text, 0 at ``<s>``; None: they stand in order.
        attention: (B, L, L) bool, True where a token (row) may attend to another (column), were all of them real; None: to
            every one. An encoder that heeds it hands it on with its output.
        left_to_right: what an encoder reads under ``@left_to_right``, with ``masked_pos`` and ``labels`` of its own: the texts,
            each token seeing those before it, and masks in the places of some (``data.left_to_right``); None if no loss reads it.
    """

    MARKS = {"mask_text": "masked", "left_to_right": "causal"}

    ids: Tensor
    mask: Tensor
    key: Tensor | None = None
    masked_ids: Tensor | None = None
    masked_pos: Tensor | None = None
    labels: Tensor | None = None
    positions: Tensor | None = None
    attention: Tensor | None = None
    left_to_right: "TextField | None" = None

    def masked(self) -> "TextField":
        """What an encoder reads under ``@mask_text``: the masked ids in the place of ``ids``."""
        if self.masked_ids is None:
            raise ValueError("this batch has no masked text: the stream's data block needs `mask: {prob, max, ngram}`")
        return dataclasses.replace(self, ids=self.masked_ids)

    def causal(self) -> "TextField":
        """What an encoder reads under ``@left_to_right``."""
        if self.left_to_right is None:
            raise ValueError("this batch has no text from left to right: the stream's data block needs `left_to_right: "
                             "{prob, max}`")
        return self.left_to_right

    def select(self, rows: Tensor) -> "TextField":
        """The rows (K,) int64 of what an encoder reads; what is to be predicted, flat positions in a batch, is left out."""
        return super(TextField, self._read()).select(rows)

    @classmethod
    def cat(cls, several: "list[TextField]") -> "TextField":
        """Rows of several, what is to be predicted left out, padded to the longest as one of them is (none: by a last id).

        Raises:
            ValueError: one has positions or an attention of its own.
        """
        if any(one.positions is not None or one.attention is not None for one in several):
            raise ValueError("texts with positions or an attention of their own cannot be joined")
        longest = max(one.ids.shape[1] for one in several)
        pad = next((one.ids[~one.mask][0] for one in several if not one.mask.all()), several[0].ids[0, -1])
        wide = lambda part, value: torch.cat([part, value.expand(part.shape[0], longest - part.shape[1])], 1)
        return super().cat([dataclasses.replace(one._read(), ids=wide(one.ids, pad), mask=wide(one.mask, one.mask.new_zeros(())))
                            for one in several])

    def trim(self, length: int) -> "TextField":
        """Without what stands behind the first ``length`` tokens; what is to be predicted is left out."""
        short = lambda value, dims: None if value is None else value[(slice(None), *[slice(length)] * dims)].contiguous()
        return dataclasses.replace(self._read(), ids=short(self.ids, 1), mask=short(self.mask, 1),
                                   positions=short(self.positions, 1), attention=short(self.attention, 2))

    def _read(self) -> "TextField":
        """This text without what is to be predicted of it."""
        return dataclasses.replace(self, masked_ids=None, masked_pos=None, labels=None, left_to_right=None)


@dataclass(frozen=True)
class ImageField(Field):
    """A batch of pictures of one size.

    Attributes:
        pixels: (I, 3, H, W) float32, normalised.
        key: (I,) int64, equal where two rows show the same picture (``stable_key`` of the image id).
        patch_mask: (I, N) bool, True = masked, row-major patches; None where no loss reads ``@mask_image``.
        image_id: I names, on the host.
        masked_count: M, how many patches of all pictures are asked for, so that no device is asked for their places
            (``masked_patches``). None: it is asked.
        asked: (I, N) bool, the masked patches that a loss of codes is to tell, where a dataset asks for fewer than are masked;
            None: all.
    """

    MARKS = {"mask_image": "masked"}

    pixels: Tensor
    key: Tensor | None = None
    patch_mask: Tensor | None = None
    image_id: list = field(default_factory=list)
    masked_count: int | None = None
    asked: Tensor | None = None

    def masked(self) -> "ImageField":
        """What an encoder reads under ``@mask_image``: itself; without masks an error."""
        if self.patch_mask is None:
            raise ValueError("this batch has no patch masks: the stream's data block needs `image_mask: {patches, min_block}`")
        return self

    def clean(self) -> "ImageField":
        """What an encoder reads under every other view: the picture with no patch masked."""
        return dataclasses.replace(self, patch_mask=None, masked_count=None, asked=None)

    def masked_patches(self) -> Tensor:
        """(M,) int64, flat positions ``row * N + patch`` of the masked patches that are asked for, ascending."""
        mask, count = (self.masked().patch_mask if self.asked is None else self.asked).flatten(), self.masked_count
        return (mask.nonzero() if count is None else mask.nonzero_static(size=count))[:, 0]

    def select(self, rows: Tensor) -> "ImageField":
        """The rows (K,) int64, with their masks; ``masked_count`` is left out."""
        return super(ImageField, dataclasses.replace(self, masked_count=None)).select(rows)

    @classmethod
    def cat(cls, several: "list[ImageField]") -> "ImageField":
        """Rows of several, one after the other, with their masks; ``masked_count`` is left out."""
        return super().cat([dataclasses.replace(one, masked_count=None) for one in several])


@dataclass(frozen=True)
class RegionField(Field):
    """Boxes in the pictures of an ImageField, each with a text of its own.

    Attributes:
        image_index: (R,) int64, the row of the picture in ``ImageField.pixels``.
        box: (R, 4) float32, cx, cy, w, h in [0, 1] of the picture as the model sees it.
        box_patches: (R, N) bool, True at the patches that the box touches; never empty.
        is_box: (R,) bool, False where the text describes the whole picture.
        key: (R,) int64, equal where picture and box are equal.
    """

    POOLS, WHOLE = "image", "whole"

    image_index: Tensor
    box: Tensor
    box_patches: Tensor
    is_box: Tensor
    key: Tensor | None = None

    def pool(self, full, whole: bool):
        """A region as X2-VLM 3.2 represents it: the mean of its box's patches, then those patches, the others masked; or,
        ``whole``, its whole picture with the picture's own summary (BBP reads this).

        Args:
            full: Encoded of I full pictures, (I, 1 + N, D).

        Returns:
            Encoded of R rows; the patches are one source for all regions of a picture, whole or not.
        """
        return full.repeat(self.image_index) if whole else full.subset(self.image_index, self.box_patches)


class Batch(Field, dict):
    """One batch of one stream: fields by name, read in YAML as ``$name``; also plain tensors and lists that only tasks read.

    ``batch["image"]`` is the field, and an error where there is none; ``batch.image``, ``batch.text`` and ``batch.region`` are
    the same or None.
    """

    def __init__(self, **fields):
        super().__init__({name: value for name, value in fields.items() if value is not None})

    def __missing__(self, name: str):
        raise KeyError(f"this batch has no ${name}; it has: {', '.join(f'${n}' for n in self) or 'nothing'}")

    def with_fields(self, **fields) -> "Batch":
        """The same batch with these fields in the place of its own, or beside them."""
        return Batch(**self | fields)

    text = property(lambda self: self.get("text"))
    image = property(lambda self: self.get("image"))
    region = property(lambda self: self.get("region"))

    def map(self, fn) -> "Batch":
        return Batch(**{name: mapped(fn, value) for name, value in self.items()})

    @property
    def fields(self) -> dict[str, Field]:
        """The fields, by name, without plain tensors and lists."""
        return {name: value for name, value in self.items() if isinstance(value, Field)}

    @property
    def size(self) -> int:
        """Rows: those of a field that pools another, else of the field that has most."""
        return max([f.rows for f in self.fields.values() if f.POOLS in self] or [f.rows for f in self.fields.values()])

    rows = size

    def row_keys(self) -> Tensor:
        """(B, K) int64, a column for each field that says which rows are the same thing, but not for one that another pools."""
        fields, size = self.fields, self.size
        pooled = {f.POOLS for f in fields.values()}
        keys = [key for name, f in fields.items() if name not in pooled and f.rows == size and (key := f.row_key()) is not None]
        if not keys:
            raise ValueError(f"no field of this batch ({', '.join(self)}) says which of its rows are the same")
        return torch.stack(keys, 1)

    def same_rows(self) -> Tensor:
        """(B, B) bool: pairs of different rows of which neither is a positive nor a negative of the other.

        True where two rows have the same token ids, or show the same picture (on a region stream: the same box of the same
        picture). Different regions of one picture stay negatives of each other (X2-VLM 3.3: multi-grained alignment). The
        diagonal is False. Needs the ``key`` tensors, which the loader makes.
        """
        keys = self.row_keys()
        return (keys[:, None] == keys).any(2).fill_diagonal_(False)

    def select(self, rows: Tensor) -> "Batch":
        raise TypeError("a batch has no rows of its own to select: select those of its fields")
