"""Field, one named part of a batch: what all of them have in common."""

import dataclasses
import hashlib

import numpy as np
import torch
from torch import Tensor


def stable_key(*parts) -> int:
    """A 63-bit integer that is equal for equal parts on every machine and in every process.

    Used to find rows that show the same picture, box or text without comparing them on the device.
    """
    digest = hashlib.blake2b("\x1f".join(map(str, parts)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def mapped(fn, value):
    if isinstance(value, list):
        return [mapped(fn, one) for one in value]
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
        return dataclasses.replace(self, **{f.name: mapped(fn, getattr(self, f.name)) for f in dataclasses.fields(self)})

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
