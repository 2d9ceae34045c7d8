"""Figures, the plain data that tasks and datasets give of samples (``Task.figures``), as templates draw them."""

import math
from dataclasses import dataclass

from xtoolkit.engine import figures
from xtoolkit.engine.figures import SIDE, Item, jpeg
from xtoolkit.registry import arguments

COLOURS = 8
# Kinds of boxes that have a look of their own; each other kind takes the next colour of the palette.
LOOKS = ("true", "predicted")


@dataclass(frozen=True)
class Figure(figures.Figure):
    """One figure, its items as ``Item``."""

    @classmethod
    def read(cls, plain) -> "Figure":
        """A figure from plain data; from data that are none, one that says what is wrong with them."""
        wrong = figures.mistake(plain)
        known = arguments(figures.Figure, figures.excuse(wrong) if wrong else plain)
        return cls(**known | {"items": [Item(**arguments(Item, item)) for item in known.get("items", ())]})

    @property
    def is_lead(self) -> bool:
        """Whether it only tells of the others."""
        return bool(self.text) and not self.title and not self.items

    @property
    def looks(self) -> dict[str, str]:
        """{kind of box: class of its line}, in the order in which the kinds come."""
        kinds = dict.fromkeys(box["kind"] for item in self.items for box in item.boxes)
        others = [kind for kind in kinds if kind not in LOOKS]
        return {kind: kind if kind in LOOKS else f"c{others.index(kind) % COLOURS}" for kind in kinds}

    def __bool__(self) -> bool:
        return bool(self.items or self.text)


def source(picture, side: int = SIDE) -> str:
    """A picture in the page itself: base64 as it is, any other as a JPEG of at most ``side`` pixels a side."""
    return "data:image/jpeg;base64," + (picture if isinstance(picture, str) else jpeg(picture, side))


def rectangle(box) -> dict:
    """A box cx, cy, w, h in [0, 1] from its upper left corner."""
    cx, cy, w, h = box
    return {"x": cx - w / 2, "y": cy - h / 2, "width": max(w, 0), "height": max(h, 0)}


def patches(mask: list) -> list[dict]:
    """The hidden patches of a picture, row by row, as squares."""
    side = math.isqrt(len(mask))
    size = 1.01 / (side or 1)  # a hair larger than a patch, or the seams between patches would show the picture
    return [{"x": i % side / side, "y": i // side / side, "width": size, "height": size}
            for i, hidden in enumerate(mask) if hidden]


def heat(values: list) -> list[dict]:
    """The patches of a picture, row by row, as squares with the ``share`` of colour that each gets."""
    size = 1 / (math.isqrt(len(values)) or 1)
    return [place | {"width": size, "height": size, "share": value}
            for place, value in zip(patches([True] * len(values)), values)]


def reading(tokens: list) -> list[dict]:
    """A text as the model reads it: each part ``shown`` with the ``gap`` before it; of what is to be predicted the ``kind``,
    `hid` where a mask hides it and `swap` where it can be read, and a ``note`` of what it was."""
    spaced = any(read.startswith(" ") or was.startswith(" ") for read, _, was in tokens)
    parts = []
    for read, chosen, was in tokens:
        gap = "" if spaced and not was.startswith(" ") or was.startswith("##") or not parts else " "
        was, read = was.strip().removeprefix("##"), read.strip().removeprefix("##")
        if not chosen:
            parts.append({"gap": gap, "shown": read, "kind": None})
        elif read:
            note = "left as it is, to be predicted all the same" if read == was else f"in the place of: {was}"
            parts.append({"gap": gap, "shown": read, "kind": "swap", "note": note})
        else:
            parts.append({"gap": gap, "shown": "x" * max(2, len(was)), "kind": "hid", "note": was})
    return parts
