"""What is kept of each sample is enough: figures computed again from rows that have been JSON are those of the outputs."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from xtoolkit.metrics.captions import cider_d, words
from xtoolkit.registry import TASK_REGISTRY
from xtoolkit.tasks.accuracy import Accuracy
from xtoolkit.tasks.base import Task
from xtoolkit.tasks.boxes import BoxAccuracy
from xtoolkit.tasks.captions import CaptionScores
from xtoolkit.tasks.correlation import Correlation
from xtoolkit.tasks.linear_probe import PIXELS, LinearProbe, Probe
from xtoolkit.tasks.pointing import PointingGame
from xtoolkit.tasks.retrieval import Retrieval
from xtoolkit.tasks.vqa import VQAAccuracy

N = 60


def classes(count, draw, names=(), **more):
    label = torch.randint(-1, count, (N,), generator=draw)
    logits = torch.randint(-3, 4, (N, count), generator=draw) / 2 + torch.nn.functional.one_hot(label.clamp(min=0), count)  # with ties
    return {"logits": logits.float(), "label": label, "classes": [names], **called(), **more}


def called():
    return {"id": list(range(N)), "image_id": [f"p{n // 3}" for n in range(N)], "second_id": [None] * N, "ids": [[]] * N}


def regression(draw):
    label = torch.rand(N, generator=draw)
    value = (label + torch.randn(N, generator=draw)).mul(4).round() / 4
    return {"label": torch.where(torch.arange(N) % 7 == 0, torch.nan, label), "value": value, **called()}


def questions(draw):
    worth = torch.rand(N, generator=draw).tolist()
    score = [None if n % 9 == 0 else one for n, one in enumerate(worth)]
    return {**called(), "question_id": list(range(N)), "score": score, "covered": [None if one is None else float(one > 0.2) for one in score],
            "told": [[("yes", 0.5)]] * N, "answer_type": [("yes/no", "other", None, "number")[n % 4] for n in range(N)],
            "annotations": [[]] * N, "question_type": [None] * N, "candidates": [("yes", "no")] * N}


def boxes(draw):
    near = torch.rand(N, 4, generator=draw)
    return {**called(), "name": [f"p{n // 3}" for n in range(N)], "true": near, "predicted": near + 0.3 * torch.rand(N, 4, generator=draw),
            "is_box": torch.arange(N) % 5 > 0, "source": [("testA", "testB")[n % 2] for n in range(N)]}


def said(draw):
    vocabulary = "a red blue dog cat on the mat runs sleeps".split()
    text = lambda: " ".join(vocabulary[n] for n in torch.randint(10, (int(torch.randint(1, 9, (), generator=draw)),), generator=draw))
    return {"caption": [text() for _ in range(N)], "references": [[text() for _ in range(3)] for _ in range(N)],
            "image_id": [f"p{n // 2}" for n in range(N)]}


def probed(draw):
    label, told = torch.randint(0, 4, (N,), generator=draw), torch.randint(0, 4, (2, N - 20), generator=draw)
    told = torch.where(torch.rand(2, N - 20, generator=draw) < 0.5, label[20:], told).numpy()
    return {**called(), "label": label, "bank": np.arange(20), "asked": np.arange(20, N),
            "probes": {"": Probe(1.0, 3, told[0]), PIXELS: Probe(1.0, 3, told[1])}}


def looked(draw):
    shares = lambda *shape: torch.randint(0, 3, shape, generator=draw).double() / 2
    return {**called(), "hits": shares(N, 3), "attention": shares(N, 3), "similarity": shares(N), "chance": shares(N), "is_box": torch.arange(N) % 5 > 0,
            "map": torch.zeros(N, 3, 4), "true": torch.zeros(N, 4), "source": [("val", "testA", "testB")[n % 3] for n in range(N)]}


def ranked(draw):
    """20 pictures, of which one has no text and one comes twice by name; many scores tie."""
    owner = torch.randint(1, 20, (N,), generator=draw)
    scores = lambda: torch.randint(0, 9, (20, N), generator=draw).double() + 4 * (owner == torch.arange(20)[:, None])
    return {"owner": owner, "image_id": [f"p{max(1, n)}" for n in range(20)], "ids": [[]] * N,
            "ways": {way: [scores(), scores()] for way in ("dual", "matched", "combined")}}


PROBE = {"feature": "vision"}
CASES = [
    (Accuracy(), lambda draw: classes(2, draw, ("no", "yes")), {"unlabelled"}),
    (Accuracy(), lambda draw: classes(7, draw), {"unlabelled"}),
    (Accuracy(consistency="set"), lambda draw: classes(2, draw, group=[str(n // 4) for n in range(N)]), {"unlabelled"}),
    (Correlation(), regression, {"unlabelled"}), (VQAAccuracy(), questions, set()), (BoxAccuracy(), boxes, set()),
    (CaptionScores(), said, set()),
    (LinearProbe(**PROBE), probed, {"c", "iterations", "pixels.c", "pixels.iterations"}),
    (LinearProbe(**PROBE, selection="test"), probed, {f"best_on_test.{name}" for name in ("c", "iterations", "pixels.c", "pixels.iterations")}),
    (PointingGame(tokenizer=None), looked, {"layer", "attention_layer"}),
    (Retrieval(match="itm"), ranked, {f"{way}.{name}_gain_{end}" for way in ("matched", "combined") for end in ("low", "high")
                                      for name in ("t2i_r10", "i2t_r10", "r_mean")}),
]


@pytest.mark.parametrize("task, made, apart", CASES, ids=lambda one: type(one).__name__ if isinstance(one, Task) else "")
def test_rows_read_back_give_the_figures(task, made, apart):
    """``apart``: what says nothing of samples, as a count of those without a label, or the ends of an interval."""
    outputs = made(torch.Generator().manual_seed(3))
    rows = [json.loads(line) for line in task.result(outputs)["files"]["samples.jsonl"].splitlines()]
    score, again = task.score(outputs), task.rescore(rows)
    assert set(score) - set(again) == apart
    assert set(again) <= set(score)
    assert again == pytest.approx({name: value for name, value in score.items() if name in again}, abs=1e-9, rel=0)
    assert all(len(values) == len(rows) for values, _ in task.measured(rows).values())
    assert all(isinstance(value, float) for value in again.values()) and task.rescore([]) == {}


def test_every_task_that_keeps_samples_is_here():
    keeps = {name for name in TASK_REGISTRY.names() if TASK_REGISTRY.get(name).__module__.startswith("xtoolkit.")
             and TASK_REGISTRY.get(name).samples is not Task.samples}
    assert keeps == {type(task).__name__ for task, _, _ in CASES}


def test_a_task_whose_score_is_a_mean_says_nothing_more():
    class Plain(Task):
        HEADLINES = {"right": "Right, %"}

    assert Plain().rescore([{"id": 1, "score": 1}, {"id": 2, "score": None}, {"id": 3, "score": 0}]) == {"right": 50}
    assert Task().rescore([{"id": 1, "score": 0.25}]) == {"accuracy": 25}


def test_a_drawn_caption_keeps_the_document_frequencies_of_all_references():
    outputs = said(torch.Generator().manual_seed(4))
    task = CaptionScores(tokenizer=SimpleNamespace())
    rows = task.samples(outputs)
    names, first = list(dict.fromkeys(outputs["image_id"])), outputs["caption"][::2]
    scores = cider_d([words(one) for one in first], [[words(text) for several in outputs["references"][n:n + 2] for text in several]
                                                    for n in range(0, N, 2)])
    assert [row["id"] for row in rows] == names
    assert task.rescore(rows[:5])["cider"] == pytest.approx(100 * np.mean(scores[:5]))
