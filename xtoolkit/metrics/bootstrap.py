"""The paired bootstrap: how sure a difference between two models on the same samples is.

Shape letters: K runs (seeds), N samples, G groups (pictures, or sentences), M samples of one draw.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from xtoolkit.metrics.mean import as_columns, means


@dataclass(frozen=True)
class Difference:
    """A mean difference, in the unit of the scores.

    Attributes:
        value: mean over the samples of all runs.
        error: its standard error; None where all that could vary is one (one group, one seed), which says nothing of others.
        low, high: its 95 % interval; likewise None.
    """

    value: float
    error: float | None
    low: float | None
    high: float | None


def crossed_difference(after, before, groups, metric: Callable | None = None, draws: int = 2000, seed: int = 0) -> Difference:
    """metric(after) - metric(before) of the same samples and seeds, averaged over seeds; groups and seeds are both drawn.

    A draw takes G groups, each with all its samples, and K seeds, both with replacement and the same for both sides, and
    computes the metric anew: Matthews, F1, correlations and CIDEr are no means of what samples score. The error is one of
    samples and of seeds; of one run it is one of samples alone. Few seeds understate their part, by (K - 1) / K in variance.

    Args:
        after: K runs of N outputs each: arrays (N, ...), or lists of anything.
        before: likewise, run k with the seed of run k of ``after``.
        groups: (N,) anything hashable, which group each sample is of.
        metric: what it is of M outputs, some of them several times, given as an array where a run is one, else as a list. It is
            called 2 K times a draw at most. ``means``: of all draws at once. None: the mean of (N,) scores, all finite.

    Returns:
        The difference; its error and interval are None where there is one group, and where the metric is not finite in some draw
        (as ROC AUC of one class): what is left of the draws would say less than it seems to.

    Raises:
        ValueError: runs or samples that do not pair, none of them, or a difference that is not finite.

    Source: Efron and Tibshirani 1993, chapters 6, 8 and 13 (percentiles); A. Owen 2007, The pigeonhole bootstrap, for two crossed
    factors.
    """
    if len(after) != len(before) or len(after) == 0:
        raise ValueError(f"{len(after)} and {len(before)} runs: must be the same seeds, at least one")
    for one, other in zip(after, before):
        if not (hasattr(one, "__len__") and hasattr(other, "__len__")):
            raise ValueError(f"{one!r} and {other!r} for a run: must be its N outputs; a single run is [outputs]")
        if not len(one) == len(other) == len(groups) or len(one) == 0:
            raise ValueError(f"{len(one)} and {len(other)} samples in {len(groups)} groups: must be the same, at least one")
    of = np.unique(np.array([str(group) for group in groups]), return_inverse=True)[1]
    several, runs, rng = int(of.max()) + 1, len(after), np.random.default_rng(seed)
    measured = lambda counts, seeds: (_means(after, before, of, counts, seeds, metric) if metric in (None, means)
                                      else _values(after, before, of, counts, seeds, metric))
    value = float(measured(np.ones((1, several), dtype=int), np.ones((1, runs), dtype=int))[0])
    if not np.isfinite(value):
        raise ValueError(f"the difference is {value}: the metric must be finite on all samples of every run")
    if several == 1:
        return Difference(value, None, None, None)
    # How often each group and each seed is drawn.
    drawn = measured(*(rng.multinomial(most, np.full(most, 1 / most), size=draws) for most in (several, runs)))
    if not np.isfinite(drawn).all():
        return Difference(value, None, None, None)
    low, high = np.quantile(drawn, [0.025, 0.975])
    return Difference(value, float(drawn.std(ddof=1)), float(low), float(high))


def _means(after, before, of, counts, seeds, metric):
    """The difference of the means in each draw, by sums over groups."""
    counts = counts.astype(np.float64)
    by_group = lambda columns: np.stack([np.bincount(of, weights=column) for column in columns.T], 1)  # (G, M)

    def drawn(run):
        columns = as_columns(run, (1, 2) if metric is means else (1,))
        known = ~np.isnan(columns) if metric is means else np.ones(columns.shape, dtype=bool)
        often = counts @ by_group(known)
        return (counts @ by_group(np.where(known, columns, 0)) / np.where(often > 0, often, np.nan)).mean(1)

    differences = np.stack([drawn(one) - drawn(other) for one, other in zip(after, before)], 1)
    return (differences * seeds).sum(1) / len(after)


def _values(after, before, of, counts, seeds, metric):
    """The mean difference of the metric in each draw."""
    found = np.zeros(len(counts))
    for draw, (often, chosen) in enumerate(zip(counts, seeds)):
        rows = np.repeat(np.arange(len(of)), often[of])
        found[draw] = sum(times * (metric(_take(one, rows)) - metric(_take(other, rows)))
                          for one, other, times in zip(after, before, chosen) if times) / len(after)
    return found


def _take(outputs, rows):
    return outputs[rows] if isinstance(outputs, np.ndarray) else [outputs[row] for row in rows]
