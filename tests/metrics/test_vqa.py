"""VQA's accuracy against a second implementation of the published rules, and against values worked out by hand."""

import json
from pathlib import Path

import pytest

from xtoolkit.metrics.vqa import accuracies, accuracy, normalise

CASES = json.loads((Path(__file__).parent / "cases/vqa.json").read_text(encoding="utf-8"))["cases"]


@pytest.mark.parametrize("case", [c for c in CASES if "text" in c], ids=lambda c: repr(c["text"]))
def test_answers_are_normalised_by_the_published_rules(case):
    assert normalise(case["text"]) == case["normalised"]


@pytest.mark.parametrize("case", [c for c in CASES if "answer" in c], ids=lambda c: c["answer"])
def test_accuracy(case):
    assert accuracy(case["answer"], case["annotations"], case["always"]) == pytest.approx(case["accuracy"], abs=1e-12)


def test_there_are_cases_enough():
    assert len(CASES) > 180 and sum("answer" in case for case in CASES) > 100


def test_nothing_is_normalised_twice():
    """Of forty periods the first time takes 32, a second one would take the others."""
    text = "." * 40 + "x"
    assert normalise(text) == "........x" and normalise(normalise(text)) == "x"
    assert accuracy(text, [text] * 4 + ["red"] * 6) == 1 and accuracy(text, ["x"] * 4 + ["red"] * 6) == 0


def test_what_each_answer_is_worth():
    worth, normalised = accuracies(["a dog", "dog", "cat", "Dog."] + ["bird"] * 6)
    assert normalised and worth == pytest.approx({"dog": 0.9, "cat": 0.3, "bird": 1.0})
    assert accuracies(["a dog"] * 10) == ({"a dog": 1.0}, False)


def test_without_annotations_there_is_no_accuracy():
    with pytest.raises(ValueError, match="without annotations"):
        accuracy("yes", [])
