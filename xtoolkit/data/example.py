"""Batches of shapes, on the meta device: what a dataset gives, for the plan, without a file being opened."""

import torch

from xtoolkit.batch import Batch, ImageField, RegionField, TextField


def shapes(cls, block: dict, rows: int, sizes: dict, views: frozenset, length: int | None) -> Batch:
    """The batch of ``StreamDataset.example`` for a dataset of texts, pictures, regions, and fields that make their own.

    A class of fields makes its own with a classmethod ``example(rows)``. A stream of which no encoder reads pictures
    has neither them nor regions.

    Raises:
        TypeError: a field of the dataset is none of these.
    """
    kinds, fields = cls.FIELDS, {}
    pictures, patches = rows, (sizes["image_size"] // sizes["patch_size"])**2 if sizes else 0
    if RegionField in kinds.values():
        rows *= block["max_per_image"]
    block_of = lambda mark: block[cls.MARKS[mark]] if mark in views and mark in cls.MARKS else None
    with torch.device("meta"):
        for name, kind in kinds.items():
            if issubclass(kind, TextField):
                fields[name] = _text(rows, length or cls.max_length(block), block_of("mask_text"))
            elif issubclass(kind, ImageField):
                fields[name] = _image(pictures, sizes, patches, block_of("mask_image")) if sizes else None
            elif issubclass(kind, RegionField):
                fields[name] = RegionField(_long(rows), torch.zeros(rows, 4), _true(rows, patches), _true(rows),
                                           _long(rows)) if sizes else None
            elif hasattr(kind, "example"):
                fields[name] = kind.example(rows)
            else:
                raise TypeError(f"what ${name} looks like is not known before it is loaded: {cls.__name__} needs a "
                                f"classmethod `example`, or {kind.__name__} a classmethod `example(rows)` that returns "
                                f"a {kind.__name__} of that many rows on the meta device")
    return Batch(**fields)


def _long(*shape) -> torch.Tensor:
    return torch.zeros(*shape, dtype=torch.long)


def _true(*shape) -> torch.Tensor:
    return torch.ones(*shape, dtype=torch.bool)


def _text(rows: int, length: int, mask: dict | None) -> TextField:
    """Texts of one length, with as many masked tokens as ``mask`` lets a text of that length have at most."""
    ids = _long(rows, length)
    if mask is None:
        return TextField(ids, _true(rows, length), _long(rows))
    masked = _long(rows * max(1, min(mask["max"], round(length * mask["prob"]))))
    return TextField(ids, _true(rows, length), _long(rows), ids, masked, masked)


def _image(rows: int, sizes: dict, patches: int, mask: dict | None) -> ImageField:
    size = sizes["image_size"]
    return ImageField(torch.zeros(rows, 3, size, size), _long(rows), None if mask is None else _true(rows, patches),
                      [str(row) for row in range(rows)])
