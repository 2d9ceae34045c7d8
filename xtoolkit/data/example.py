"""Batches of shapes, on the meta device: what a dataset gives, for the plan, without a file being opened."""

import inspect
from dataclasses import replace

import torch

from xtoolkit.batch import Batch, ImageField, RegionField, TextField
from xtoolkit.registry import arguments


def shapes(cls, block: dict, rows: int, sizes: dict, views: frozenset, length: int | None) -> Batch:
    """The batch of ``StreamDataset.example`` for a dataset of texts, pictures, regions, and fields that make their own.

    A class of fields makes its own with a classmethod ``example(rows)``, which may ask by name for ``block`` and
    ``sizes`` too; None: the stream does not have it. A stream of which no encoder reads pictures has neither them nor
    regions. Of a text that is masked, the block of that mark says how many tokens at most, with a method
    ``most(length)``; without one every token counts.

    Raises:
        TypeError: a field of the dataset is none of these.
    """
    kinds, fields = cls.FIELDS, {}
    pictures, patches = rows, (sizes["image_size"] // sizes["patch_size"])**2 if sizes else 0
    if any(issubclass(kind, RegionField) for kind in kinds.values()):
        rows *= cls.rows_each(block)
    given = {mark: arguments(cls, block).get(key) for mark, key in cls.MARKS.items() if mark in views}
    hidden = lambda kind: [given[mark] for mark in kind.MARKS if given.get(mark) is not None]  # the blocks of its marks
    aside = given.pop("left_to_right", None)  # a text of its own, beside that which others read
    with torch.device("meta"):
        for name, kind in kinds.items():
            if hasattr(kind, "example"):
                asked = inspect.signature(kind.example).parameters
                more = {"block": block, "sizes": sizes}
                fields[name] = kind.example(rows, **{key: value for key, value in more.items() if key in asked})
            elif issubclass(kind, TextField):
                if not (length or cls.max_length(block)):
                    raise TypeError(f"how long ${name} is at most is not known: {cls.__name__} needs a classmethod `max_length`")
                fields[name] = _text(kind, rows, longest := length or cls.max_length(block), hidden(kind))
                if aside is not None:
                    fields[name] = replace(fields[name], left_to_right=aside.example(rows, longest))
            elif issubclass(kind, ImageField):
                fields[name] = _image(kind, pictures, sizes, patches, hidden(kind)) if sizes else None
            elif issubclass(kind, RegionField):
                fields[name] = kind(_long(rows), torch.zeros(rows, 4), _true(rows, patches), _true(rows),
                                    _long(rows)) if sizes else None
            else:
                raise TypeError(f"what ${name} looks like is not known before it is loaded: {cls.__name__} needs a "
                                f"classmethod `example`, or {kind.__name__} a classmethod `example(rows)` that returns "
                                f"a {kind.__name__} of that many rows on the meta device")
    return Batch(**fields)


def _long(*shape) -> torch.Tensor:
    return torch.zeros(*shape, dtype=torch.long)


def _true(*shape) -> torch.Tensor:
    return torch.ones(*shape, dtype=torch.bool)


def _text(kind: type[TextField], rows: int, length: int, masks: list) -> TextField:
    """Texts of one length, with as many masked tokens as ``masks`` let a text of that length have at most."""
    ids = _long(rows, length)
    if not masks:
        return kind(ids, _true(rows, length), _long(rows))
    masked = _long(rows * max(mask.most(length) if hasattr(mask, "most") else length for mask in masks))
    return kind(ids, _true(rows, length), _long(rows), ids, masked, masked)


def _image(kind: type[ImageField], rows: int, sizes: dict, patches: int, masks: list) -> ImageField:
    """Pictures with as many masked patches as ``masks`` let one have at most."""
    size, names = sizes["image_size"], [str(row) for row in range(rows)]
    if not masks:
        return kind(torch.zeros(rows, 3, size, size), _long(rows), None, names)
    masked = rows * max(mask.most(patches) if hasattr(mask, "most") else patches for mask in masks)
    return kind(torch.zeros(rows, 3, size, size), _long(rows), _true(rows, patches), names, masked)
