"""The paired bootstrap: how sure a difference between two models on the same samples is.

Shape letters: K runs (seeds), N samples, G groups (pictures, or sentences).
"""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Difference:
    """A mean difference, in the unit of the scores.

    Attributes:
        value: mean over the samples of all runs.
        error: standard deviation of it over the draws; None where all samples are of one group, which says nothing of others.
        low, high: its 95 % interval, percentiles of the draws; likewise None.
    """

    value: float
    error: float | None
    low: float | None
    high: float | None


def paired_difference(after, before, groups, draws: int = 2000, seed: int = 0) -> Difference:
    """after - before, of the same samples.

    Groups are drawn with replacement, each with all its samples: what shares a picture rises and falls together. Runs are
    not drawn: of several the difference is that of their mean, so that the error is one of samples and not of seeds.

    Args:
        after: (K, N) scores; (N,) of one run.
        before: likewise, its own number of runs.
        groups: (N,) anything hashable, which group each sample is of.

    Raises:
        ValueError: not as many samples, or none.

    Source: Efron and Tibshirani 1993, chapters 6 and 13; the ratio of the drawn sums, since groups differ in size.
    """
    after, before = (np.atleast_2d(np.asarray(scores, dtype=np.float64)).mean(0) for scores in (after, before))
    if not len(after) == len(before) == len(groups) or len(after) == 0:
        raise ValueError(f"{len(after)} and {len(before)} samples in {len(groups)} groups: must be the same, at least one")
    of = np.unique(np.array([str(group) for group in groups]), return_inverse=True)[1]
    sums, counts = np.bincount(of, weights=after - before), np.bincount(of).astype(np.float64)
    value = float(sums.sum() / counts.sum())
    if len(sums) == 1:
        return Difference(value, None, None, None)
    drawn = np.random.default_rng(seed).multinomial(len(sums), np.full(len(sums), 1 / len(sums)), size=draws)
    means = drawn @ sums / (drawn @ counts)
    low, high = np.quantile(means, [0.025, 0.975])
    return Difference(value, float(means.std(ddof=1)), float(low), float(high))
