"""Boxes follow crops and flips, and cover the patches that they touch."""

import random

import numpy as np
import pytest

from xtoolkit.data.regions import box_patches, clip_box, crop_around, in_crop


def random_box(rng, width, height):
    left, top = rng.uniform(0, width - 6), rng.uniform(0, height - 6)
    return left, top, rng.uniform(left + 5, width), rng.uniform(top + 5, height)


def share(box, crop):
    w, h = min(box[2], crop[2]) - max(box[0], crop[0]), min(box[3], crop[3]) - max(box[1], crop[1])
    return max(0, w) * max(0, h) / ((box[2] - box[0]) * (box[3] - box[1]))


def test_a_crop_holds_the_first_box_and_half_of_the_others():
    rng, cropped = random.Random(0), 0
    for _ in range(500):
        boxes = [random_box(rng, 60, 50) for _ in range(rng.randint(1, 5))]
        crop = crop_around(boxes, 60, 50, rng)
        assert 0 <= crop[0] < crop[2] <= 60 and 0 <= crop[1] < crop[3] <= 50 and all(isinstance(v, int) for v in crop)
        assert share(boxes[0], crop) == pytest.approx(1)
        assert min(share(b, crop) for b in boxes) >= 0.5
        cropped += crop != (0, 0, 60, 50)
    assert cropped > 400


def test_boxes_are_clipped_to_the_picture():
    assert clip_box([-5, 10, 20, 100], 40, 50) == (0, 10, 15, 50)
    assert clip_box([1, 2, 3, 4], 40, 50) == (1, 2, 4, 6)
    assert clip_box([40, 2, 3, 4], 40, 50) is None
    assert clip_box([4, 2, 0, 4], 40, 50) is None
    assert clip_box([9, 2, -3, 4], 40, 50) is None


def test_box_in_crop_by_hand():
    assert in_crop((10, 20, 30, 40), (0, 0, 40, 80), False) == pytest.approx((0.5, 0.375, 0.5, 0.25))
    assert in_crop((10, 20, 30, 40), (20, 10, 60, 50), False) == pytest.approx((0.125, 0.5, 0.25, 0.5))
    assert in_crop((10, 20, 30, 40), (20, 10, 60, 50), True) == pytest.approx((0.875, 0.5, 0.25, 0.5))


@pytest.mark.parametrize("side", [1, 8, 14])
def test_box_patches_are_the_patches_that_the_box_touches(side):
    rng = random.Random(side)
    for _ in range(300):
        left, top = rng.uniform(0, 0.95), rng.uniform(0, 0.95)
        right, bottom = rng.uniform(left + 0.01, 1), rng.uniform(top + 0.01, 1)
        box = ((left + right) / 2, (top + bottom) / 2, right - left, bottom - top)
        found = box_patches(box, side).reshape(side, side)
        edges = np.arange(side) / side
        columns = (edges < right - 1e-6) & (edges + 1 / side > left + 1e-6)
        rows = (edges < bottom - 1e-6) & (edges + 1 / side > top + 1e-6)
        assert (found == rows[:, None] & columns).all() and found.any()


def test_a_crop_keeps_the_least_share_and_the_box():
    rng, sides = random.Random(0), []
    for _ in range(500):
        left, top, right, bottom = crop_around([(40, 3, 55, 12)], 60, 50, rng, least=0.8)
        assert 0 <= left <= 40 and 55 <= right <= 60 and 0 <= top <= 3 and 12 <= bottom <= 50
        assert right - left >= 48 and bottom - top >= 40
        sides.append(right - left)
    assert min(sides) == 48 and max(sides) > 55


def test_box_patches_at_borders():
    assert np.flatnonzero(box_patches((0.5, 0.5, 0.5, 0.5), 4)).tolist() == [5, 6, 9, 10], "no patch beyond the border"
    assert box_patches((0.5, 0.5, 1, 1), 4).all()
    assert np.flatnonzero(box_patches((1.0, 1.0, 0.0, 0.0), 4)).tolist() == [15], "never empty"
    assert np.flatnonzero(box_patches((0.25, 0.25, 0.0, 0.0), 4)).tolist() == [5]
