"""A figure that is a mean of what samples score.

Shape letters: N samples, M columns.
"""

import numpy as np


def means(values) -> float:
    """The mean of (N,) values without those that are NaN; of (N, M) that of the M columns' means. NaN where a column has none."""
    values = as_columns(values, (1, 2))
    known = ~np.isnan(values)
    return float((np.where(known, values, 0).sum(0) / np.where(known.any(0), known.sum(0), np.nan)).mean())


def as_columns(values, dims: tuple[int, ...]) -> np.ndarray:
    """(N, M) float64 of (N,) or (N, M). ValueError where they have another number of dimensions than ``dims``."""
    values = np.asarray(values, dtype=np.float64)
    if values.ndim not in dims:
        raise ValueError(f"scores of shape {values.shape} a run: the mean is of (N,); give a metric of others")
    return values.reshape(len(values), -1)
