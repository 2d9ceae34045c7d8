"""VQA accuracy over a small model and a file of questions: metrics by hand, floors, files, abilities, and what is refused."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn

import xtoolkit.prepare.sample  # noqa: F401  answers for sample://
from batches import Batches
from xtoolkit.batch import Batch, ImageField, TextField
from xtoolkit.data.text import load_tokenizer
from xtoolkit.fields import AnswerField
from xtoolkit.registry import ConfigError
from xtoolkit.tasks.vqa import VQAAccuracy, annotations

NAMED = ("yes", "no", "2", "red car", "blue")
RECORDS = [
    {"question_id": 1, "question_type": "is", "answer_type": "yes/no", "annotations": ["yes"] * 7 + ["no"] * 3},
    {"question_id": 2, "question_type": "is", "answer_type": "yes/no", "annotations": ["no"] * 10},
    {"question_id": 3, "question_type": "how many", "answer_type": "number", "annotations": ["two"] * 4 + ["2"] * 2 + ["3"] * 4},
    {"question_id": 4, "question_type": "what", "answer_type": "other", "annotations": ["the red car"] * 9 + ["car"]},
    {"question_id": 5, "question_type": "what", "answer_type": "other", "annotations": ["green"] * 10},
]
LIKED = [0, 0, 2, 3, 4]  # what the model says to each


class Ranks(nn.Module):
    """A loss that likes a given candidate of each question; ``seen`` how often it was asked."""

    def __init__(self):
        super().__init__()
        self.scale, self.asked = nn.Parameter(torch.ones(())), []

    def rank(self, f, candidates, k, chunk, score):
        self.asked.append((k, chunk, score, candidates.ids.shape[0]))
        found = torch.full((len(f["numbers"]), len(candidates.ids)), 0.1)
        for row, number in enumerate(f["numbers"]):
            found[row, min(LIKED[number], len(candidates.ids) - 1)] = 0.5
        return found.log()


class FakeModel(nn.Module):
    recipe = SimpleNamespace(train=SimpleNamespace(precision="fp32"))

    def __init__(self):
        super().__init__()
        self.encoders, self.losses = nn.ModuleDict(), nn.ModuleDict({"answer": Ranks()})

    def features(self, batch):
        return {"numbers": batch.text.ids[:, 1].tolist()}


@pytest.fixture(scope="module")
def tokenizer():
    return load_tokenizer("sample://picturebook/tokenizer")


def batch(rows, records=RECORDS, named=NAMED, told=True) -> Batch:
    ids = torch.tensor([[0, row, 2] for row in rows])
    text = TextField(ids, torch.ones_like(ids, dtype=torch.bool))
    empty = torch.zeros(len(rows), dtype=torch.long)
    records = [records[row] if told else {"question_id": row} for row in rows]
    return Batch(text=text, image=ImageField(torch.zeros(len(rows), 3, 4, 4), image_id=[f"p{row // 2}" for row in rows]),
                 answers=AnswerField(empty, text.select(empty[:0]), empty[:0], torch.zeros(0)), record=records,
                 **({} if named is None else {"candidates": [named] * len(rows)}))


def evaluated(tokenizer, *batches, **keys) -> dict:
    return VQAAccuracy(tokenizer=tokenizer, **keys).evaluate(FakeModel(), Batches(batches))


def test_accuracy_by_type_coverage_and_floor(tokenizer):
    found = evaluated(tokenizer, batch([0, 1]), batch([2, 3, 4]))
    wanted = {"accuracy": 60.0, "yes_no.accuracy": 50.0, "number.accuracy": 100.0, "other.accuracy": 50.0, "coverage": 80.0}
    assert found["metrics"] == pytest.approx(wanted)  # 1, 0, 1 (six of ten say two), 1 (of nine), 0; green is no candidate
    # `is`: no in hindsight, 0.9 + 1; `how many`: 1; `what`: either, once
    assert found["floor"] == pytest.approx({"accuracy": 78.0, "yes_no.accuracy": 95.0, "number.accuracy": 100.0, "other.accuracy": 50.0})
    heading, rows = VQAAccuracy(tokenizer=tokenizer).table(found["metrics"], found["floor"])
    assert rows[1] == ["yes/no", "50.0", "95.0"] and len({len(heading), *map(len, rows)}) == 1


def test_files_and_samples(tokenizer):
    files = evaluated(tokenizer, batch([0, 1]), batch([2, 3, 4]))["files"]
    assert json.loads(files["vqa.json"]) == [{"question_id": n + 1, "answer": NAMED[LIKED[n]]} for n in range(5)]
    assert files["answers.txt"].splitlines() == list(NAMED)
    rows = [json.loads(line) for line in files["samples.jsonl"].splitlines()]
    assert rows[3] == {"id": 4, "image_id": "p1", "score": 1.0, "answer": "red car", "type": "other", "covered": 1.0}
    assert [row["score"] for row in rows] == pytest.approx([1, 0, 1, 1, 0])


def test_a_split_without_annotations_is_answered_and_not_scored(tokenizer):
    found = evaluated(tokenizer, batch([0, 3], told=False))
    assert found["metrics"] == {"answered": 2} and found["floor"] == {}
    assert json.loads(found["files"]["vqa.json"]) == [{"question_id": 0, "answer": "yes"}, {"question_id": 3, "answer": "red car"}]
    task = VQAAccuracy(tokenizer=tokenizer)
    assert task.figures(found["examples"])[0]["items"][0]["note"] == "yes (50 %); annotators: not annotated"
    assert task.table(found["metrics"], {})[1] == [["answered", "2.000", "–"]]


def test_agreed_answers_are_normalised_where_it_is_asked(tokenizer):
    records = [{"question_id": 1, "answer_type": "yes/no", "annotations": ["Yes."] * 10}, *RECORDS[1:]]
    found = [evaluated(tokenizer, batch([0, 1], records), normalise=how)["metrics"] for how in ("differing", "always")]
    assert [one["accuracy"] for one in found] == [0, 50] and [one["coverage"] for one in found] == [50, 100]


def test_how_it_ranks_is_handed_on(tokenizer):
    model, task = FakeModel(), VQAAccuracy(k=3, chunk=7, score="release", tokenizer=tokenizer)
    task.evaluate(model, Batches([batch([0]), batch([1])]))
    assert model.losses["answer"].asked == [(3, 7, "release", 5)] * 2


@pytest.mark.parametrize("named, keys, said", [
    (None, {}, "give them `candidates: FILE`"),
    (("yes",), {}, "1 candidate to rank: two at least"),
    (("yes", "no", "a very long answer with many words in it"), {"answer_tokens": 6}, "has .* tokens, and answers are cut to 6"),
    (("purple", "orange"), {}, "of 5 questions none has its best answer among the 2 candidates"),
])
def test_wrong_candidates(tokenizer, named, keys, said):
    with pytest.raises(ConfigError, match=said):
        evaluated(tokenizer, batch(range(5), named=named), **keys)


@pytest.mark.parametrize("named, head, said", [
    (None, SimpleNamespace(), "give them `candidates: FILE`"),
    (("yes", "no"), SimpleNamespace(classes=3), "the head tells 3 answers apart, and its data have 2 `candidates`"),
])
def test_candidates_are_asked_before_anything_is_trained(tokenizer, named, head, said):
    task = VQAAccuracy(tokenizer=tokenizer)
    with pytest.raises(ConfigError, match=said):
        task.check(SimpleNamespace(losses={"answer": head}), SimpleNamespace(candidates=named))
    task.check(SimpleNamespace(losses={"answer": SimpleNamespace()}), SimpleNamespace(candidates=("yes", "no")))


def test_candidates_of_the_same_tokens_are_refused():
    told = SimpleNamespace(encode=lambda text: [0, 5, 2], pad=1)
    with pytest.raises(ConfigError, match="the candidates `a` and `b` are the same tokens"):
        evaluated(told, batch([0], named=("a", "b")))


@pytest.mark.parametrize("record, wanted", [
    ({"annotations": ["a", "b"]}, ["a", "b"]), ({"answers": [{"answer": "a", "answer_id": 1}, {"answer": "a"}]}, ["a", "a"]),
    ({"answers": ["a", "b"]}, ["a", "b"]), ({"answer": ["a", "b"], "weight": [0.7, 0.3]}, ["a"] * 7 + ["b"] * 3),
    ({"answers": [{"text": "a", "weight": 0.8}, {"text": "b", "weight": 0.2}]}, ["a"] * 8 + ["b"] * 2), ({}, None), ({"answers": []}, None),
])
def test_where_annotations_come_from(record, wanted):
    assert annotations(record) == wanted


RECIPE = """
tokenizer: sample://picturebook/tokenizer
encoders:
  vision: {{type: BEiTv2, inputs: {{image: $image}}, width: 16, layers: 1, heads: 2, patch_size: 16, image_size: 32}}
  text:   {{type: RoBERTa, inputs: {{text: $text}}, width: 16, layers: 1, heads: 2, vocab_size: 4000, max_positions: 40}}
  fusion: {{type: CrossAttention, inputs: {{text: text, image: vision}}, layers: 1, heads: 2, image_positions: 0.5}}
losses:
  answer: {loss}
streams:
  train: {{batch_size: 4, losses: {{answer: 1}}, data: {{type: Questions, path: questions.jsonl, candidates: answers.txt}}}}
evaluate:
  val: {{type: VQAAccuracy, every: null, batch_size: {size}, data: {{type: Questions, path: questions.jsonl, candidates: answers.txt}}}}
optim: {{lr: 1e-3}}
train: {{steps: 2, output: run, precision: fp32, workers: 0, device: cpu, log_every: 1}}
"""
GENERATES, CHOOSES = "{type: AnswerGeneration, fusion: fusion}", "{type: AnswerClassification, feature: fusion, classes: 4}"


def records(folder: Path) -> None:
    from PIL import Image

    rows = []
    for n in range(7):
        Image.new("RGB", (40, 32), (30 * n, 99, 200 - 20 * n)).save(folder / f"{n}.png")
        said = ["yes", "no", "two", "a red car"][n % 4]
        rows.append({"image": f"{n}.png", "question": f"what is {'there ' * (n % 3)}here", "question_id": 70 + n,
                     "answers": [{"text": said, "weight": 0.9}, {"text": "cake", "weight": 0.1}],
                     "annotations": [said] * 9 + ["cake"], "answer_type": "other", "question_type": "what"})
    (folder / "questions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "answers.txt").write_text("yes\nno\n2\nred car\n")


@pytest.mark.parametrize("loss", [GENERATES, CHOOSES], ids=["generates", "chooses"])
def test_a_run_trains_evaluates_and_answers(loss, tmp_path, monkeypatch):
    import xtoolkit

    records(tmp_path)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "vqa.yaml").write_text(RECIPE.format(loss=loss, size=3))
    xtoolkit.build("vqa.yaml").train(say=lambda line: None)
    told = json.loads((tmp_path / "run/evaluations/val/vqa.json").read_text())
    assert [one["question_id"] for one in told] == list(range(70, 77))
    lines = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert len([line for line in lines if "answer" in line]) == 2
    model = xtoolkit.load("run", device="cpu")
    assert "answer" in model.abilities
    said = model.answer(["0.png", "1.png"], ["what is here", "what is there here"])
    assert said == [told[0]["answer"], told[1]["answer"]]
    best = model.answer("0.png", "what is here", candidates=["red car", "no"], top=2)
    assert {answer for answer, _ in best} == {"red car", "no"} and 1 > best[0][1] >= best[1][1] > 0
    whole = model.answer("0.png", "what is here", top=4)
    assert dict(whole)["no"] == pytest.approx(dict(best)["no"], rel=1e-4) and len(whole) == 4
    with pytest.raises(TypeError, match="candidates: 'no' is a text; give a list of answers"):
        model.answer("0.png", "what is here", candidates="no")
    with pytest.raises(ValueError, match="candidates: none are given"):
        model.answer("0.png", "what is here", candidates=[])
    if loss == CHOOSES:
        with pytest.raises(ValueError, match="`cake` is none of them"):
            model.answer("0.png", "what is here", candidates=["cake", "no"])
    (tmp_path / "run/evaluations/val/answers.txt").unlink()
    with pytest.raises(ValueError, match="has left no .*answers.txt: evaluate it first, or give `candidates`"):
        xtoolkit.load("run", device="cpu").answer("0.png", "what is here")


def test_results_do_not_depend_on_the_batch(tmp_path, monkeypatch):
    import xtoolkit

    records(tmp_path)
    monkeypatch.chdir(tmp_path)
    told = []
    for size in (1, 3, 7):
        (tmp_path / "vqa.yaml").write_text(RECIPE.format(loss=GENERATES, size=size))
        run = xtoolkit.build("vqa.yaml")
        outputs = {}
        score = run.tasks["val"].score
        run.tasks["val"].score = lambda found: outputs.update(found) or score(found)
        run.evaluate(say=lambda line: None)
        told.append([[answer for answer, _ in best] + [p for _, p in best] for best in outputs["told"]])
    for other in told[1:]:
        for a, b in zip(told[0], other, strict=True):
            assert a[:4] == b[:4] and a[4:] == pytest.approx(b[4:], rel=1e-5)


def test_candidates_of_the_data(tmp_path, monkeypatch, tokenizer):
    from xtoolkit.data.loader import EvalLoader
    from xtoolkit.registry import DATASET_REGISTRY

    records(tmp_path)
    monkeypatch.chdir(tmp_path)
    block = {"type": "Questions", "path": "questions.jsonl", "candidates": "answers.txt"}
    made = DATASET_REGISTRY.build(block, "here", tokenizer=tokenizer, image_size=32, patch_size=16, train=False)
    whole, = EvalLoader(made, 9)
    # `two` and `a red car` are candidates as the evaluation normalises them; `cake` is none
    assert whole["answers"].label.tolist() == [0, -1, 1, -1, 2, -1, 3, -1, 0, -1, 1, -1, 2, -1]
    assert whole["answers"].candidates == 4 and whole["candidates"] == [("yes", "no", "2", "red car")] * 7
    cls = DATASET_REGISTRY.get("Questions")
    (key, line), = cls.missing(block | {"candidates": "elsewhere.txt"})
    assert key == "candidates" and "elsewhere.txt: no such file" in line and "a file of an answer a line" in line
    for text, said in (("", "data.candidates: answers.txt: 0 answers, two at least"), ("yes\nno\nyes\n", "`yes` stands there twice")):
        (tmp_path / "answers.txt").write_text(text)
        with pytest.raises(ConfigError, match=said):
            DATASET_REGISTRY.build(block, "here", tokenizer=tokenizer, image_size=32, patch_size=16, train=False)
