"""What a data stream hands to the model: one Batch of typed fields, made whole in the loader's workers.

Shape letters: B rows (pairs, sentences or regions), I images, R regions (= B on a region stream), L text tokens, M masked
tokens, N image patches, H and W pixels.
"""

import dataclasses
import hashlib
from dataclasses import dataclass, field

import torch
from torch import Tensor


def stable_key(*parts) -> int:
    """A 63-bit integer that is equal for equal parts on every machine and in every process.

    Used to find rows that show the same picture, box or text without comparing them on the device.
    """
    digest = hashlib.blake2b("\x1f".join(map(str, parts)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def _map(fn, value):
    if isinstance(value, Tensor):
        return fn(value)
    if isinstance(value, Field):
        return value.map(fn)
    if isinstance(value, dict):
        return {k: _map(fn, v) for k, v in value.items()}
    return value


class Field:
    """A dataclass of tensors that moves between devices as one."""

    def map(self, fn) -> "Field":
        """The same field with ``fn`` applied to every tensor in it, nested fields included."""
        return dataclasses.replace(self, **{f.name: _map(fn, getattr(self, f.name)) for f in dataclasses.fields(self)})

    def to(self, device, non_blocking: bool = False) -> "Field":
        return self.map(lambda v: v.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> "Field":
        return self.map(lambda v: v.pin_memory())


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


@dataclass(frozen=True)
class ImageField(Field):
    """A batch of pictures of one size.

    Attributes:
        pixels: (I, 3, H, W) float32, normalised.
        key: (I,) int64, equal where two rows show the same picture (``stable_key`` of the image id).
        patch_mask: (I, N) bool, True = masked, row-major patches; None where no loss reads ``@mask_image``.
        image_id: I names, on the host.
    """

    pixels: Tensor
    key: Tensor | None = None
    patch_mask: Tensor | None = None
    image_id: list = field(default_factory=list)

    def masked(self) -> "ImageField":
        """What an encoder reads under ``@mask_image``: itself; without masks an error."""
        if self.patch_mask is None:
            raise ValueError("this batch has no patch masks: the stream's data block needs "
                             "`image_mask: {patches, min_block}`")
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

    image_index: Tensor
    box: Tensor
    box_patches: Tensor
    is_box: Tensor
    key: Tensor | None = None


@dataclass(frozen=True)
class Batch(Field):
    """One batch of one stream. A stream fills the fields it has; ``extra`` holds the fields of plugins, by name.

    A field is read in YAML as ``$text``, ``$image``, ``$region`` or ``$name_in_extra``.
    """

    text: TextField | None = None
    image: ImageField | None = None
    region: RegionField | None = None
    extra: dict = field(default_factory=dict)

    @property
    def size(self) -> int:
        """Rows: regions on a region stream, else texts, else images."""
        if self.region is not None:
            return self.region.box.shape[0]
        return self.text.ids.shape[0] if self.text is not None else self.image.pixels.shape[0]

    def same_rows(self) -> Tensor:
        """(B, B) bool: pairs of different rows of which neither is a positive nor a negative of the other.

        True where two rows have the same token ids, or show the same picture (on a region stream: the same box of the same
        picture). Different regions of one picture stay negatives of each other (X2-VLM 3.3: multi-grained alignment). The
        diagonal is False. Needs the ``key`` tensors, which the loader makes.
        """
        shown = self.region.key if self.region is not None else self.image.key
        same = (shown[:, None] == shown) | (self.text.key[:, None] == self.text.key)
        return same.fill_diagonal_(False)
