"""Masks: what is chosen, how often, and what never is."""

import random
from collections import Counter

import numpy as np
import pytest

from xtoolkit.data.masking import ImageMask, TextMask, mask_patches, mask_text
from xtoolkit.registry import check

PLAIN, MASK, SPECIAL = np.arange(5, 1000), 4, {0, 1, 2, 3, 4}


def text(words):
    """Ids 100, 101, ... between two specials; ``words`` gives the tokens of each word."""
    n = sum(words)
    starts = [-1] + [int(i == 0) for w in words for i in range(w)] + [-1]
    return np.array([0, *range(100, 100 + n), 2]), np.array(starts, np.int8)


def test_block_masks_have_the_statistics_of_the_release():
    """facts of the released generator over 3000 masks: centre 4x4 70 %, corners 4.4 %, top row 13.6 %."""
    rng = random.Random(0)
    masks = np.stack([mask_patches(14, ImageMask(75, 16), rng) for _ in range(3000)])
    assert masks.shape == (3000, 196) and masks.dtype == bool
    assert (masks.sum(1) == 75).all()
    share = masks.reshape(-1, 14, 14).mean(0)
    assert share[5:9, 5:9].mean() == pytest.approx(0.70, abs=0.02)
    assert share[[0, 0, -1, -1], [0, -1, 0, -1]].mean() == pytest.approx(0.044, abs=0.01)
    assert share[0].mean() == pytest.approx(0.136, abs=0.012)


@pytest.mark.parametrize("side, patches, min_block", [(8, 24, 4), (8, 64, 4), (8, 1, 16), (2, 3, 1), (14, 195, 16)])
def test_block_masks_are_exact_whatever_fits(side, patches, min_block):
    rng = random.Random(1)
    for _ in range(50):
        mask = mask_patches(side, ImageMask(patches, min_block), rng)
        assert mask.shape == (side * side,) and mask.sum() == patches


def test_masks_depend_on_the_seed_alone():
    how = ImageMask(75, 16)
    one, again, other = (mask_patches(14, how, random.Random(s)) for s in (3, 3, 4))
    assert (one == again).all() and (one != other).any()


@pytest.mark.parametrize("n, prob, most, wanted", [
    (10, 0.5, 15, 5), (28, 0.5, 15, 14), (40, 0.5, 15, 15), (1, 0.15, 20, 1), (126, 0.15, 20, 19), (3, 0.01, 5, 1)])
def test_number_of_predictions_counts_no_specials(n, prob, most, wanted):
    ids, starts = text([1] * n)
    for seed in range(30):
        masked, positions, labels = mask_text(ids, starts, PLAIN, MASK, TextMask(prob, most), random.Random(seed))
        assert len(positions) == len(labels) == wanted
        assert (np.diff(positions) > 0).all() and positions[0] >= 1 and positions[-1] <= n
        assert (labels == ids[positions]).all()
        untouched = np.delete(np.arange(n + 2), positions)
        assert (masked[untouched] == ids[untouched]).all()


def test_eighty_ten_ten_and_no_special_replacement():
    ids, starts = text([1] * 100)
    kinds, drawn = Counter(), set()
    for seed in range(200):
        masked, positions, labels = mask_text(ids, starts, PLAIN, MASK, TextMask(0.5, 50), random.Random(seed))
        for new, old in zip(masked[positions].tolist(), labels.tolist()):
            kinds["mask" if new == MASK else "keep" if new == old else "random"] += 1
            if new not in (MASK, old):
                drawn.add(new)
    total = sum(kinds.values())
    assert kinds["mask"] / total == pytest.approx(0.8, abs=0.015)
    assert kinds["random"] / total == pytest.approx(0.1, abs=0.01)
    assert kinds["keep"] / total == pytest.approx(0.1, abs=0.01)
    assert not drawn & SPECIAL and len(drawn) > 500


def test_special_tokens_inside_a_text_are_never_chosen():
    ids, starts = text([1] * 6)
    starts[3] = -1
    for seed in range(100):
        positions = mask_text(ids, starts, PLAIN, MASK, TextMask(1.0, 99), random.Random(seed))[1]
        assert positions.tolist() == [1, 2, 4, 5, 6]


def test_whole_words_are_masked_whole():
    words = [1, 3, 2, 1, 4, 1, 2, 2]
    ids, starts = text(words)
    edges = np.cumsum([1, *words])
    for seed in range(200):
        positions = mask_text(ids, starts, PLAIN, MASK, TextMask(0.4, 6, whole_word=True), random.Random(seed))[1]
        chosen = set(positions.tolist())
        assert 1 <= len(chosen) <= 6
        for a, b in zip(edges, edges[1:]):
            assert len(chosen & set(range(a, b))) in (0, b - a)


def test_runs_are_as_frequent_as_asked():
    """Few predictions among many tokens: those that are neighbours are of one run."""
    ids, starts = text([1] * 200)

    def neighbours(prob):
        how = TextMask(0.05, 99, 3, prob)
        found = [mask_text(ids, starts, PLAIN, MASK, how, random.Random(s))[1] for s in range(200)]
        return np.mean([np.mean(np.diff(p) == 1) for p in found])

    assert neighbours(0.0) < 0.08 < 0.45 < neighbours(1.0)
    assert neighbours(0.0) < neighbours(0.2) < neighbours(1.0)


@pytest.mark.parametrize("kind, block, said", [
    (TextMask, {"prob": 0, "max": 5}, "`prob` of TextMask must be a number above 0 and at most 1, not 0"),
    (TextMask, {"prob": 0.5, "max": 0}, "`max` of TextMask must be an integer of at least 1, not 0"),
    (TextMask, {"prob": 0.5, "max": 5, "ngram": 1}, "`ngram` of TextMask must be at least 2, or ngram_prob 0"),
    (TextMask, {"prob": 0.5, "max": 5, "ngram_prob": 2.0}, "`ngram_prob` of TextMask must be a number of at least 0 and at most 1"),
    (ImageMask, {"patches": 0}, "`patches` of ImageMask must be"), (ImageMask, {"patches": 5, "min_block": 0}, "`min_block`")])
def test_senseless_blocks_are_named(kind, block, said):
    found, = check(kind, block, "here")
    assert found.startswith("here: " + said)
