"""Figures, the plain data that tasks and datasets give of samples, as templates draw them.

A figure is {"title", "text", "items"}, an item {"image", "caption", "note", "right", "apart", "mask", "boxes", "words"}; every
key is optional (``Task.figures`` says what each means).
"""

import math

from xtoolkit.engine.figures import SIDE, jpeg

COLOURS = 8
# Kinds of boxes that have a look of their own; each other kind takes the next colour of the palette.
LOOKS = ("true", "predicted")


def drawn(figure: dict, side: int = SIDE) -> dict:
    """A figure for the templates.

    Args:
        side: pixels a side of a picture at most, where it is not a JPEG yet.

    Returns:
        ``title``, ``text``; ``items``; ``kinds`` {kind of box: class of its line}.
    """
    items = figure.get("items", ())
    named = dict.fromkeys(box["kind"] for item in items for box in item.get("boxes", ()))
    others = [kind for kind in named if kind not in LOOKS]
    kinds = {kind: kind if kind in LOOKS else f"c{others.index(kind) % COLOURS}" for kind in named}
    return {"title": figure.get("title", ""), "text": figure.get("text", ""), "kinds": kinds,
            "items": [_item(item, kinds, side) for item in items]}


def _item(item, kinds, side):
    picture, tokens = item.get("image"), item.get("words")
    return {"picture": None if picture is None else source(picture, side), "caption": item.get("caption", ""),
            "note": item.get("note", ""), "right": item.get("right", False), "apart": item.get("apart", False),
            "patches": patches(item.get("mask") or []), "words": None if tokens is None else words(tokens),
            "tokens": tokens, "boxes": [box(one["box"], kinds[one["kind"]]) for one in item.get("boxes", ())]}


def source(picture, side: int = SIDE) -> str:
    """A picture, in base64 as files have it or as ``jpeg`` takes it, in the page itself."""
    return "data:image/jpeg;base64," + (picture if isinstance(picture, str) else jpeg(picture, side))


def box(where, look: str) -> dict:
    """A box cx, cy, w, h in [0, 1] as a rectangle from its upper left corner; ``look`` is the class of its line."""
    cx, cy, w, h = where
    return {"x": cx - w / 2, "y": cy - h / 2, "width": max(w, 0), "height": max(h, 0), "look": look}


def patches(mask: list) -> list[dict]:
    """The hidden patches of a picture, row by row, as squares."""
    side = math.isqrt(len(mask))
    size = 1.01 / (side or 1)  # a hair larger than a patch, or the seams between patches would show the picture
    return [{"x": i % side / side, "y": i // side / side, "width": size, "height": size}
            for i, hidden in enumerate(mask) if hidden]


def words(tokens: list) -> list[dict]:
    """A text as the model reads it: ``text`` with the ``gap`` before it; of what is to be predicted the ``kind``, `hid` where a
    mask hides it and `swap` where it can be read, and a ``note`` of what it was."""
    spaced = any(read.startswith(" ") or was.startswith(" ") for read, _, was in tokens)
    parts = []
    for read, chosen, was in tokens:
        gap = "" if spaced and not was.startswith(" ") or was.startswith("##") else " "
        was, read = was.strip().removeprefix("##"), read.strip().removeprefix("##")
        if not chosen:
            parts.append({"gap": gap, "text": read, "kind": None})
        elif read:
            note = "left as it is, to be predicted all the same" if read == was else f"in the place of: {was}"
            parts.append({"gap": gap, "text": read, "kind": "swap", "note": note})
        else:
            parts.append({"gap": gap, "text": "x" * max(2, len(was)), "kind": "hid", "note": was})
    if parts:
        parts[0]["gap"] = ""
    return parts
