"""Boxes: which part of a picture shows them, where they then lie, and which patches they touch."""

import math
import random

import numpy as np

WHOLE = (0.5, 0.5, 1.0, 1.0)


def clip_box(box, width: int, height: int) -> tuple[float, float, float, float] | None:
    """``[x, y, w, h]`` in pixels as (left, top, right, bottom) inside the picture; None if nothing of it is inside."""
    x, y, w, h = map(float, box)
    left, top, right, bottom = max(0.0, x), max(0.0, y), min(float(width), x + w), min(float(height), y + h)
    return (left, top, right, bottom) if right > left and bottom > top else None


def crop_around(boxes: list, width: int, height: int, rng: random.Random, least: float = 0) -> tuple[int, int, int, int]:
    """A random crop with the first box whole in it and at least half of each other; after ten tries one with all.

    Source: X2-VLM's release, where the other boxes are dropped instead; here each row of a batch is kept.

    Args:
        boxes: (left, top, right, bottom) in pixels, inside the picture.
        least: share of the picture's width, and of its height, that the crop keeps at least.
    """
    for _ in range(10):
        crop = _crop(boxes[0], width, height, rng, least)
        if all(_inside(box, crop) >= 0.5 for box in boxes[1:]):
            return crop
    union = (min(b[0] for b in boxes), min(b[1] for b in boxes), max(b[2] for b in boxes), max(b[3] for b in boxes))
    return _crop(union, width, height, rng, least)


def _crop(box, width, height, rng, least) -> tuple[int, int, int, int]:
    left, right = _edges(box[0], box[2], width, least, rng)
    top, bottom = _edges(box[1], box[3], height, least, rng)
    return left, top, right, bottom


def _edges(low, high, size, least, rng) -> tuple[int, int]:
    """Two edges outside ``low`` and ``high``, drawn evenly, then moved apart until they hold ``least`` of ``size``."""
    first, last = rng.randint(0, math.floor(low)), rng.randint(math.ceil(high), size)
    short = math.ceil(least * size) - (last - first)
    if short > 0:
        before = rng.randint(max(0, short - (size - last)), min(first, short))
        first, last = first - before, last + short - before
    return first, last


def _inside(box, crop) -> float:
    """The share of a box's area that lies in a crop."""
    w = min(box[2], crop[2]) - max(box[0], crop[0])
    h = min(box[3], crop[3]) - max(box[1], crop[1])
    return max(0.0, w) * max(0.0, h) / ((box[2] - box[0]) * (box[3] - box[1]))


def in_crop(box, crop, flip: bool) -> tuple[float, float, float, float]:
    """A box, clipped to the crop, as cx, cy, w, h in [0, 1] of the crop as the model sees it (mirrored if ``flip``)."""
    width, height = crop[2] - crop[0], crop[3] - crop[1]
    left, right = (max(0.0, (box[0] - crop[0]) / width), min(1.0, (box[2] - crop[0]) / width))
    top, bottom = (max(0.0, (box[1] - crop[1]) / height), min(1.0, (box[3] - crop[1]) / height))
    cx = (left + right) / 2
    return (1 - cx if flip else cx), (top + bottom) / 2, right - left, bottom - top


def box_patches(box, side: int) -> np.ndarray:
    """(side * side,) bool, row-major: the patches that a box (cx, cy, w, h in [0, 1]) touches, at least one.

    Source: X2-VLM's release: columns floor(left) to ceil(right) in patches, the last excluded; rows alike.
    """
    cx, cy, w, h = box
    grid = np.zeros((side, side), bool)
    columns, rows = _span(cx - w / 2, cx + w / 2, side), _span(cy - h / 2, cy + h / 2, side)
    grid[rows[0]:rows[1], columns[0]:columns[1]] = True
    return grid.ravel()


def _span(low: float, high: float, side: int) -> tuple[int, int]:
    """First and last (excluded) of the ``side`` patches in a row that an interval in [0, 1] touches, one at least."""
    slack = 1e-6  # a box that ends on a border of patches does not touch the next one
    first = min(side - 1, max(0, math.floor(low * side + slack)))
    return first, min(side, max(first + 1, math.ceil(high * side - slack)))
