"""BLEU, ROUGE-L and CIDEr-D against coco-caption's own code and aac-metrics', whose answers ``make_captions.py`` keeps."""

import json
import math
from pathlib import Path

import pytest

from xtoolkit.metrics.captions import bleu, cider_d, rouge_l, words

KEPT = json.loads(Path(__file__).with_name("cases").joinpath("captions.json").read_text(encoding="utf-8"))
CASES = KEPT["cases"]


def test_there_are_cases_of_every_kind():
    assert "pycocoevalcap 1.2" in KEPT["provenance"] and len(CASES) >= 60 and len(KEPT["words"]) >= 100
    assert sum(case["aac"] is not None for case in CASES) >= 40
    assert any(not all(case["captions"]) for case in CASES) and any(len(case["captions"]) == 1 for case in CASES)
    assert any(len(several) > 30 for case in CASES for several in case["references"])


@pytest.mark.parametrize("case", CASES, ids=range(len(CASES)))
def test_equal_to_coco_caption(case):
    made, true = case["captions"], case["references"]
    assert bleu(made, true) == pytest.approx(case["bleu"], abs=1e-12)
    assert rouge_l(made, true) == pytest.approx(case["rouge_l"], abs=1e-12)
    assert cider_d(made, true) == pytest.approx(case["cider"], abs=1e-9)


@pytest.mark.parametrize("case", [case for case in CASES if case["aac"]])
def test_equal_to_aac_metrics(case):
    made, true, theirs = case["captions"], case["references"], case["aac"]
    mean = lambda values: sum(values) / len(values)
    assert bleu(made, true) == pytest.approx([theirs[f"bleu{n}"] for n in range(1, 5)], abs=1e-6)
    assert mean(rouge_l(made, true)) == pytest.approx(theirs["rouge_l"], abs=1e-6)
    assert mean(cider_d(made, true)) == pytest.approx(theirs["cider"], abs=1e-6)


@pytest.mark.parametrize("case", KEPT["words"], ids=lambda case: case["caption"][:30])
def test_words_are_those_of_the_penn_treebank(case):
    assert words(case["caption"]) == case["words"]


def test_by_hand():
    made, true = ["a dog runs".split()], [["a dog runs fast".split(), "the dog is here now".split()]]
    assert bleu(made, true)[:3] == pytest.approx([math.exp(1 - 4 / 3)] * 3)  # all there, one word short of the closest
    precision, recall = 1, 3 / 4
    assert rouge_l(made, true) == pytest.approx([2.44 * precision * recall / (recall + 1.44 * precision)])
    assert cider_d(made, true) == [0]                                        # of one picture every word is everywhere
    # Two pictures whose captions share nothing: every n-gram weighs log 2, and each caption is its only reference.
    own = [["a b c d".split()], ["e f g h".split()]]
    assert cider_d([one[0] for one in own], own) == pytest.approx([10, 10])
    # One of two words, and none of the 2-grams: cosine of (log 2, log 2) with one of its parts, clipped; three n without anything.
    assert cider_d([["a"], ["e"]], [[["a", "b"]], [["e"]]])[0] == pytest.approx(10 / 4 * math.exp(-1 / 72) / math.sqrt(2))


def test_wrong_inputs_are_told():
    for metric in (bleu, rouge_l, cider_d):
        with pytest.raises(ValueError, match="2 captions and references of 1 pictures: must be as many"):
            metric([["a"], ["b"]], [[["a"]]])
        with pytest.raises(ValueError, match="picture 1 has no reference"):
            metric([["a"], ["b"]], [[["a"]], []])
        with pytest.raises(ValueError, match=r"lists of words: split them by words\(caption\)"):
            metric(["a dog"], [["a dog"]])
