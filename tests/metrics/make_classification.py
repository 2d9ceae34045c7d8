"""Makes cases/classification.json: what scikit-learn and scipy say of labels, predictions and scores.

    pip install scikit-learn==1.9.1 scipy==1.17.1
    python tests/metrics/make_classification.py

Its output is in the repository; the tests need neither. A case is of `kind` classes (labels, predictions, and scores of class 1
where there are two classes) or numbers (a, b). What the two libraries leave undefined (NaN, with a warning) is null.
"""

import json
import math
import warnings
from importlib.metadata import version
from pathlib import Path

import numpy as np
from scipy import stats
from sklearn import metrics

rng = np.random.default_rng(0)
warnings.simplefilter("ignore")


def plain(value):
    return None if math.isnan(value) else float(value)


def classes(labels, predictions, scores=None, note="random"):
    found = {"accuracy": metrics.accuracy_score(labels, predictions),
             "mean_per_class": metrics.balanced_accuracy_score(labels, predictions),
             "f1": metrics.f1_score(labels, predictions, labels=[1], average="macro", zero_division=0),
             "matthews": metrics.matthews_corrcoef(labels, predictions)}
    if scores is not None:
        one = len(set(labels)) < 2
        found["roc_auc"] = math.nan if one else metrics.roc_auc_score(np.asarray(labels) == 1, scores)
    return {"kind": "classes", "note": note, "labels": [int(x) for x in labels], "predictions": [int(x) for x in predictions],
            **({} if scores is None else {"scores": [float(x) for x in scores]}),
            "expected": {name: plain(value) for name, value in found.items()}}


def top(labels, scores, note="random"):
    count = scores.shape[1]
    found = {f"top{k}": metrics.top_k_accuracy_score(labels, scores, k=k, labels=range(count)) for k in (1, 2, 5) if k < count}
    return {"kind": "top", "note": note, "labels": [int(x) for x in labels], "scores": scores.round(6).tolist(), "expected": found}


def numbers(a, b, note="random"):
    return {"kind": "numbers", "note": note, "a": [float(x) for x in a], "b": [float(x) for x in b],
            "expected": {"pearson": plain(stats.pearsonr(a, b).statistic), "spearman": plain(stats.spearmanr(a, b).statistic)}}


def cases():
    for n in (2, 3, 10, 57, 400):
        for share in (0.5, 0.9):
            labels = (rng.random(n) < share).astype(int)
            scores = np.where(rng.random(n) < 0.5, labels + rng.normal(0, 1, n), rng.normal(0, 1, n))
            yield classes(labels, (scores > 0.5).astype(int), scores)
            coarse = scores.round()  # many ties
            yield classes(labels, (coarse > 0.5).astype(int), coarse, "ties")
    for n, c in ((9, 3), (100, 3), (300, 20), (40, 37)):
        labels = rng.integers(0, c, n)
        yield classes(labels, np.where(rng.random(n) < 0.6, labels, rng.integers(0, c, n)))
        yield classes(labels, np.full(n, int(labels[0])), note="one class predicted")
        yield top(labels, rng.normal(0, 1, (n, c)) + 1.5 * np.eye(c)[labels])
    zeros, ones, mixed = np.zeros(6, int), np.ones(6, int), np.array([0, 1, 1, 0, 1, 0])
    for labels, told, note in ((zeros, zeros, "all negative, all right"), (ones, ones, "all positive, all right"),
                               (zeros, ones, "all wrong"), (mixed, zeros, "never positive"), (mixed, ones, "always positive"),
                               (mixed, mixed, "all right"), (mixed, 1 - mixed, "all the other way round"),
                               (np.array([1]), np.array([1]), "one sample"), (np.array([2, 3, 2]), np.array([3, 3, 2]), "no class 1"),
                               (np.array([0, 1]), np.array([2, 1]), "a prediction that is no label")):
        yield classes(labels, told, told if set(labels) <= {0, 1} else None, note)
    labels = np.r_[np.ones(3, int), np.zeros(97, int)]
    yield classes(labels, np.r_[1, np.zeros(99, int)], np.linspace(1, 0, 100), "rare positive")
    yield classes(mixed, mixed, np.full(6, 0.5), "all scores equal")
    yield classes(mixed, mixed, np.array([-np.inf, 1e300, 1e-300, -1e300, 0.0, -0.0]).clip(-1e308, 1e308), "extreme scores")
    for n in (3, 8, 60, 500):
        for noise in (0.1, 1, 10):
            a = rng.uniform(0, 5, n)
            yield numbers(a, a + rng.normal(0, noise, n))
        a = rng.integers(0, 6, n)
        yield numbers(a, rng.integers(0, 6, n), "ties")
        yield numbers(a, np.exp(a), "monotone, not linear")
    line = np.arange(7.0)
    for a, b, note in ((line, np.full(7, 2.5), "constant"), (line, -3 * line + 1, "a falling line"), (line, line, "itself"),
                       (line + 1e9, line * 1e-9, "far from 0"), (line * 1e200, line[::-1] * 1e-200, "huge and tiny"),
                       (np.array([0.0, 1.0]), np.array([4.0, 3.0]), "two samples"),
                       (np.r_[line, 1000], np.r_[line[::-1], 1000], "one outlier"), (line, (line - 3)**2, "a parabola")):
        yield numbers(a, b, note)


if __name__ == "__main__":
    made = list(cases())
    of = ", ".join(f"{name} {version(name)}" for name in ("scikit-learn", "scipy", "numpy"))
    path = Path(__file__).with_name("cases") / "classification.json"
    path.write_text(json.dumps({"provenance": f"tests/metrics/make_classification.py, seed 0, with {of}", "cases": made}) + "\n")
    print(f"{path}: {len(made)} cases, {path.stat().st_size} bytes")
