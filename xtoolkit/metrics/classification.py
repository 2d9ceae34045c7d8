"""Accuracy, F1, Matthews, area under the ROC curve, and the two correlations: what GLUE and classification sets are scored by.

All are shares or coefficients in [0, 1] or [-1, 1], computed in float64. What a formula leaves open is written at each function.

Shape letters: N samples, C classes.
"""

import numpy as np


def accuracy(labels, predictions) -> float:
    """The share of labels (N,) that are predicted, (N,)."""
    labels, predictions = _paired(labels, predictions)
    return float((labels == predictions).mean())


def top_k(labels, scores, k: int) -> float:
    """The share of labels (N,) whose class is among the k highest of the scores (N, C), see ``places``."""
    return float((places(labels, scores) <= k).mean())


def places(labels, scores) -> np.ndarray:
    """(N,) the place of each label's class among the scores (N, C), 1 the highest.

    Of equal scores the class with the lower number is the higher one, as argmax has it: ``top_k(..., 1)`` is the accuracy of
    argmax. (scikit-learn takes the class with the higher number.)
    """
    labels, scores = np.asarray(labels), _numbers(scores)
    if scores.ndim != 2 or len(scores) != len(labels) or len(labels) == 0:
        raise ValueError(f"{labels.shape} labels and {scores.shape} scores: must be (N,) and (N, C), N at least 1")
    if labels.min() < 0 or labels.max() >= scores.shape[1]:
        raise ValueError(f"labels from {labels.min()} to {labels.max()} of {scores.shape[1]} classes")
    own = np.take_along_axis(scores, labels[:, None], 1)
    before = (scores > own) | (scores == own) & (np.arange(scores.shape[1]) < labels[:, None])
    return before.sum(1) + 1


def mean_per_class(labels, predictions) -> float:
    """The share told right of each class that has labels, averaged over these classes (balanced accuracy)."""
    labels, predictions = _paired(labels, predictions)
    of = np.unique(labels, return_inverse=True)[1]
    return float((np.bincount(of, weights=labels == predictions) / np.bincount(of)).mean())


def f1(labels, predictions, positive=1) -> float:
    """2 TP / (2 TP + FP + FN) of the class ``positive``; 0 where it is neither a label nor predicted."""
    true, told = (side == positive for side in _paired(labels, predictions))
    found = true.sum() + told.sum()
    return float(2 * (true & told).sum() / found) if found else 0.0


def matthews(labels, predictions) -> float:
    """Matthews' correlation of labels and predictions (N,), of two classes or more; 0 where all labels or all predictions are one
    class.

    Source: Gorodkin 2004, R_K, which for two classes is Matthews 1975.
    """
    labels, predictions = _paired(labels, predictions)
    classes, of = np.unique(np.concatenate([labels, predictions]), return_inverse=True)
    true, told = np.eye(len(classes))[of].reshape(2, len(labels), len(classes))
    covariance = lambda a, b: float((a * b).sum() / len(a) - a.mean(0) @ b.mean(0))
    spread = covariance(true, true) * covariance(told, told)
    return covariance(true, told) / spread**0.5 if spread > 1e-30 else 0.0


def roc_auc(positive, scores) -> float:
    """How often a positive sample has a higher score than another, ties half (Mann and Whitney); NaN where all are of one class.

    Args:
        positive: (N,) true where a sample is positive.
        scores: (N,).
    """
    positive, scores = _paired(np.asarray(positive, dtype=bool), _numbers(scores))
    count = int(positive.sum())
    if count in (0, len(positive)):
        return float("nan")
    return float((ranks(scores)[positive].sum() - count * (count + 1) / 2) / (count * (len(positive) - count)))


def pearson(a, b) -> float:
    """The linear correlation of a and b (N,); 0 where one of them is constant, as at N = 1: it then says nothing of the other."""
    a, b = _paired(_numbers(a), _numbers(b))
    if np.ptp(a) == 0 or np.ptp(b) == 0:
        return 0.0
    units = []
    for side in (a, b):
        side = side / np.abs(side).max()  # squares of large and small numbers would not fit
        side = side - side.mean()
        units.append(side / np.linalg.norm(side))
    return float(np.clip(units[0] @ units[1], -1, 1))


def spearman(a, b) -> float:
    """The linear correlation of the ranks of a and b (N,), ties sharing the mean of theirs; 0 where one is constant."""
    a, b = _paired(_numbers(a), _numbers(b))
    return pearson(ranks(a), ranks(b))


def ranks(values) -> np.ndarray:
    """(N,) the rank of each value, the lowest 1; equal ones have the mean of theirs."""
    _, place, counts = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts - 1) / 2)[place]


def _numbers(values) -> np.ndarray:
    """Scores as float64; ValueError where one is NaN."""
    values = np.asarray(values, dtype=np.float64)
    if np.isnan(values).any():
        raise ValueError(f"{int(np.isnan(values).sum())} of {values.size} scores are not a number: nothing can be ranked by them")
    return values


def _paired(a, b) -> tuple[np.ndarray, np.ndarray]:
    """Two arrays (N,) of one length; ValueError of any others."""
    a, b = np.asarray(a), np.asarray(b)
    if a.shape != b.shape or a.ndim != 1 or len(a) == 0:
        raise ValueError(f"{a.shape} and {b.shape}: both must be (N,), N at least 1")
    return a, b
