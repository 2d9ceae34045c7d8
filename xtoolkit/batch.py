"""What a data stream hands to the model: one Batch of typed fields, made whole in the loader's workers.

Shape letters: B rows (pairs, sentences or regions), I images, R regions (= B on a region stream), L text tokens, M masked
tokens, N image patches, H and W pixels.
"""

import dataclasses
import hashlib
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor


def stable_key(*parts) -> int:
    """A 63-bit integer that is equal for equal parts on every machine and in every process.

    Used to find rows that show the same picture, box or text without comparing them on the device.
    """
    digest = hashlib.blake2b("\x1f".join(map(str, parts)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def _map(fn, value):
    if isinstance(value, list):
        return [_map(fn, one) for one in value]
    return fn(value) if isinstance(value, Tensor) else value.map(fn) if isinstance(value, Field) else value


def _cat(values: list):
    first = values[0]
    if isinstance(first, (Tensor, Field)):
        return torch.cat(values) if isinstance(first, Tensor) else type(first).cat(values)
    return sum(values, []) if isinstance(first, list) else first


class Field:
    """One named part of a batch, which encoders and losses read as ``$name``: a frozen dataclass of tensors, lists and fields.

    Attributes:
        MARKS: {mark: method}: ``encoder@mark`` makes an encoder read what that method returns, without arguments.
        POOLS: name of another field of which this one describes parts: an encoder that pools it (``Encoder.POOLS``) sees it
            whole, and what others read of that encoder is ``pool`` of it, a row for each row of this field.
        WHOLE: the mark under which such a row is the whole and not its part.
    """

    MARKS: dict = {}
    POOLS: str | None = None
    WHOLE: str | None = None

    @classmethod
    def collate(cls, values: list) -> "Field":
        """The field of a batch from what the dataset's items hold of it, a row each: here numbers or arrays of one shape.

        Floats become float32.
        """
        found = torch.as_tensor(np.stack([np.asarray(value) for value in values]))
        return cls(found.float() if found.is_floating_point() else found)

    def map(self, fn) -> "Field":
        """The same field with ``fn`` applied to every tensor in it, nested fields included."""
        return dataclasses.replace(self, **{f.name: _map(fn, getattr(self, f.name)) for f in dataclasses.fields(self)})

    def to(self, device, non_blocking: bool = False) -> "Field":
        return self.map(lambda v: v.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> "Field":
        return self.map(lambda v: v.pin_memory())

    @property
    def rows(self) -> int:
        """How many rows of a batch it has: here the length of its first tensor."""
        return next(len(v) for f in dataclasses.fields(self) if isinstance(v := getattr(self, f.name), Tensor))

    def clean(self) -> "Field":
        """What an encoder reads of it without a mark."""
        return self

    def read(self, marks=()) -> "Field":
        """What an encoder reads of it under some of its marks."""
        value = self if marks else self.clean()
        for mark in marks:
            value = getattr(value, self.MARKS[mark])()
        return value

    def select(self, rows: Tensor) -> "Field":
        """The rows (K,) int64, repeats allowed; lists, which live on the host, are left out."""
        def pick(value):
            if isinstance(value, Tensor):
                return value[rows]
            return value.select(rows) if isinstance(value, Field) else [] if isinstance(value, list) else value

        return dataclasses.replace(self, **{f.name: pick(getattr(self, f.name)) for f in dataclasses.fields(self)})

    @classmethod
    def cat(cls, several: "list[Field]") -> "Field":
        """Rows of several, one after the other: tensors of one shape but for their rows; lists are joined."""
        if cls.POOLS:
            raise TypeError(f"a {cls.__name__} names rows of ${cls.POOLS}: it cannot be joined to another alone")
        return cls(**{f.name: _cat([getattr(one, f.name) for one in several]) for f in dataclasses.fields(cls)})

    def row_key(self) -> Tensor | None:
        """(rows,) int64, equal where two rows are the same thing (``stable_key``); None: it does not say."""
        return getattr(self, "key", None)

    def same_rows(self) -> Tensor | None:
        """(rows, rows) bool, True where two rows are the same thing; None: it does not say."""
        key = self.row_key()
        return None if key is None else key[:, None] == key

    def pool(self, full, whole: bool):
        """A row for each row of this field, of what an encoder gave for all of ``POOLS``; see RegionField."""
        raise TypeError(f"{type(self).__name__} pools nothing")


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
    """

    MARKS = {"mask_text": "masked"}

    ids: Tensor
    mask: Tensor
    key: Tensor | None = None
    masked_ids: Tensor | None = None
    masked_pos: Tensor | None = None
    labels: Tensor | None = None

    def masked(self) -> "TextField":
        """What an encoder reads under ``@mask_text``: the masked ids in the place of ``ids``."""
        if self.masked_ids is None:
            raise ValueError("this batch has no masked text: the stream's data block needs `mask: {prob, max, ngram}`")
        return dataclasses.replace(self, ids=self.masked_ids)

    def select(self, rows: Tensor) -> "TextField":
        """The rows (K,) int64 of what an encoder reads; what is to be predicted, flat positions in a batch, is left out."""
        return super(TextField, self._read()).select(rows)

    @classmethod
    def cat(cls, several: "list[TextField]") -> "TextField":
        """Rows of several, what is to be predicted left out, padded to the longest as one of them is (none: by a last id)."""
        longest = max(one.ids.shape[1] for one in several)
        pad = next((one.ids[~one.mask][0] for one in several if not one.mask.all()), several[0].ids[0, -1])
        wide = lambda part, value: torch.cat([part, value.expand(part.shape[0], longest - part.shape[1])], 1)
        return super().cat([dataclasses.replace(one._read(), ids=wide(one.ids, pad), mask=wide(one.mask, one.mask.new_zeros(())))
                            for one in several])

    def trim(self, length: int) -> "TextField":
        """Without what stands behind the first ``length`` tokens; what is to be predicted is left out."""
        return dataclasses.replace(self._read(), ids=self.ids[:, :length].contiguous(), mask=self.mask[:, :length].contiguous())

    def _read(self) -> "TextField":
        """This text without what is to be predicted of it."""
        return dataclasses.replace(self, masked_ids=None, masked_pos=None, labels=None)


@dataclass(frozen=True)
class ImageField(Field):
    """A batch of pictures of one size.

    Attributes:
        pixels: (I, 3, H, W) float32, normalised.
        key: (I,) int64, equal where two rows show the same picture (``stable_key`` of the image id).
        patch_mask: (I, N) bool, True = masked, row-major patches; None where no loss reads ``@mask_image``.
        image_id: I names, on the host.
    """

    MARKS = {"mask_image": "masked"}

    pixels: Tensor
    key: Tensor | None = None
    patch_mask: Tensor | None = None
    image_id: list = field(default_factory=list)

    def masked(self) -> "ImageField":
        """What an encoder reads under ``@mask_image``: itself; without masks an error."""
        if self.patch_mask is None:
            raise ValueError("this batch has no patch masks: the stream's data block needs `image_mask: {patches, min_block}`")
        return self

    def clean(self) -> "ImageField":
        """What an encoder reads under every other view: the picture with no patch masked."""
        return dataclasses.replace(self, patch_mask=None)


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
        return Batch(**{name: _map(fn, value) for name, value in self.items()})

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
