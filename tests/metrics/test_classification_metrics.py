"""Accuracy, F1, Matthews, ROC AUC and correlations against scikit-learn and scipy, whose answers make_classification.py keeps."""

import json
import math
from pathlib import Path

import numpy as np
import pytest

from xtoolkit.metrics import classification as ours

KEPT = json.loads(Path(__file__).with_name("cases").joinpath("classification.json").read_text(encoding="utf-8"))
CASES = KEPT["cases"]


def test_there_are_cases_of_every_kind():
    assert "scikit-learn 1." in KEPT["provenance"] and "scipy 1." in KEPT["provenance"] and len(CASES) >= 60
    assert {case["kind"] for case in CASES} == {"classes", "top", "numbers"}
    assert any(value is None for case in CASES for value in case["expected"].values())


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case['kind']}-{case['note']}")
def test_equal_to_scikit_learn_and_scipy(case):
    for name, expected in case["expected"].items():
        if name.startswith("top"):
            found = ours.top_k(case["labels"], case["scores"], int(name[3:]))
        elif case["kind"] == "numbers":
            found = getattr(ours, name)(case["a"], case["b"])
            expected = 0.0 if expected is None else expected  # a constant, of which scipy says nothing
        else:
            found = getattr(ours, name)(case["labels"], case["scores" if name == "roc_auc" else "predictions"])
            expected = math.nan if expected is None else expected
        assert found == pytest.approx(expected, abs=1e-9, nan_ok=True), name


def test_of_equal_scores_the_first_class_is_the_highest():
    scores = [[1.0, 1.0, 1.0], [0.0, 2.0, 2.0]]
    assert [ours.top_k([0, 1], scores, k) for k in (1, 2)] == [1, 1]
    assert [ours.top_k([2, 2], scores, k) for k in (1, 2, 3)] == [0, 0.5, 1]
    drawn = np.random.default_rng(0).integers(0, 3, (500, 6)).astype(float)
    labels = np.random.default_rng(1).integers(0, 6, 500)
    for k in range(1, 7):
        told = [label in sorted(range(6), key=lambda c: (-row[c], c))[:k] for row, label in zip(drawn, labels)]
        assert ours.top_k(labels, drawn, k) == pytest.approx(np.mean(told))


@pytest.mark.parametrize("call, message", [
    (lambda: ours.accuracy([], []), r"\(0,\) and \(0,\): both must be \(N,\)"),
    (lambda: ours.f1([1, 0], [1]), r"\(2,\) and \(1,\)"),
    (lambda: ours.pearson([1, 2], [math.nan, 1]), "1 of 2 scores are not a number"),
    (lambda: ours.top_k([0, 3], [[1, 2, 3], [1, 2, 3]], 1), "labels from 0 to 3 of 3 classes"),
    (lambda: ours.top_k([0], [1.0], 1), r"must be \(N,\) and \(N, C\)")])
def test_what_cannot_be_scored_is_an_error(call, message):
    with pytest.raises(ValueError, match=message):
        call()
