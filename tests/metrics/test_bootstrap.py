"""The paired bootstrap against scipy's and against what theory says of its error."""

import numpy as np
import pytest
from scipy import stats

from xtoolkit.metrics.bootstrap import crossed_difference


def apart(after, before, groups, **how):
    """Of the mean, of one run on either side."""
    return crossed_difference([after], [before], groups, **how)


def test_of_single_samples_it_is_scipys():
    rng = np.random.default_rng(3)
    before = rng.normal(size=400)
    after = before + 0.2 + rng.normal(size=400)
    ours = apart(after, before, range(400), draws=9999)
    theirs = stats.bootstrap((after - before,), np.mean, n_resamples=9999, method="percentile", rng=5)
    assert ours.value == pytest.approx((after - before).mean(), abs=1e-12)
    assert ours.error == pytest.approx(theirs.standard_error, rel=0.03)
    assert (ours.low, ours.high) == pytest.approx(theirs.confidence_interval, abs=0.01)


def test_what_shares_a_picture_is_drawn_together():
    rng = np.random.default_rng(4)
    sizes = rng.integers(1, 9, 300)
    groups = np.repeat(np.arange(300), sizes)
    score = rng.normal(size=300)[groups] + 0.1 * rng.normal(size=len(groups))
    found = apart(score, np.zeros_like(score), groups)
    # The error of a ratio of sums over pictures (Cochran 1977, 6.4), which the number of samples alone understates.
    sums, mean = np.bincount(groups, weights=score), score.mean()
    expected = np.sqrt(((sums - mean * sizes) ** 2).sum() / (299 * 300)) / sizes.mean()
    assert found.error == pytest.approx(expected, rel=0.06)
    assert found.error > 1.8 * apart(score, np.zeros_like(score), range(len(score))).error


def test_pairing_takes_out_what_both_share():
    rng = np.random.default_rng(5)
    hard = rng.random(500)
    found = apart(hard + 0.02, hard, range(500))
    assert found.value == pytest.approx(0.02) and found.error < 1e-12 and found.low == pytest.approx(found.high)


def test_it_covers_the_truth_as_often_as_it_says():
    rng, covered = np.random.default_rng(6), 0
    for trial in range(400):
        difference = rng.exponential(size=80) - 1
        found = apart(difference, np.zeros(80), range(80), draws=500, seed=trial)
        covered += found.low <= 0 <= found.high
    assert 0.90 < covered / 400 < 0.975


@pytest.mark.parametrize("after, before, groups", [([1, 2], [1], [1, 2]), ([1, 2], [1, 2], [1]), ([], [], [])])
def test_samples_that_do_not_pair_are_refused(after, before, groups):
    with pytest.raises(ValueError, match="samples in"):
        apart(after, before, groups)


def test_of_one_group_there_is_no_error():
    found = apart([1.0, 0.0, 1.0], [0.0, 0.0, 0.0], ["a"] * 3)
    assert found.value == pytest.approx(2 / 3) and (found.error, found.low, found.high) == (None, None, None)
