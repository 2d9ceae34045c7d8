"""Data that an evaluation cannot use: said with its place, before anything is trained where that can be known."""

import json

import pytest

import xtoolkit
from xtoolkit.registry import ConfigError

SMALL = {"width": 16, "layers": 1, "heads": 2}
TEXTS = [{"sentence": f"a dog of {n} years", "label": n % 2} for n in range(12)]


@pytest.fixture
def run(tmp_path):
    """Builds a run over a few sentences, whose evaluation `val` reads others."""
    def run(rows, **data):
        for name, lines in (("train", TEXTS), ("val", rows)):
            (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in lines))
        read = {"type": "LabelledText", "path": str(tmp_path / "train.jsonl"), "classes": 2}
        return xtoolkit.build({
            "tokenizer": "sample://picturebook/tokenizer",
            "encoders": {"text": {"type": "RoBERTa", "inputs": {"text": "$text"}, "vocab_size": 4000, **SMALL}},
            "losses": {"classify": {"type": "Classification", "features": "text", "classes": 2}},
            "streams": {"train": {"batch_size": 4, "losses": {"classify": 1}, "data": read}},
            "evaluate": {"val": {"type": "Accuracy", "data": read | {"path": str(tmp_path / "val.jsonl")} | data}},
            "optim": {"lr": 1e-3},
            "train": {"steps": 1, "workers": 0, "precision": "fp32", "output": str(tmp_path / "run")}})
    return run


def test_classes_that_the_head_does_not_tell_are_said_before_anything_is_trained(run, tmp_path):
    with pytest.raises(ConfigError) as e:
        run(TEXTS, classes=["no", "yes", "maybe"]).train(say=lambda line: None)
    assert e.value.problems == ["evaluate.val: evaluation `val`: Accuracy: the head tells 2 classes, and its data have 3: "
                                "no, yes, maybe"]
    assert not (tmp_path / "run").exists()


def test_a_share_of_bad_samples_ends_an_evaluation_of_few_samples_too(run):
    with pytest.raises(ConfigError) as e:
        run([row | {"label": 5} if n == 3 else row for n, row in enumerate(TEXTS)]).evaluate()
    said, = e.value.problems
    assert said.startswith("evaluate.val: evaluation `val`: 1 label out of range in 12 samples read, more than train.max_bad=0.01")
    assert "row 4: 5 is none of the 2 classes" in said


def test_what_is_left_out_stands_in_the_record(run):
    from xtoolkit.engine.records import told

    built = run([row | {"label": 5} if n == 3 else row for n, row in enumerate(TEXTS)] * 20)
    built.recipe.train = built.recipe.train.__class__(**vars(built.recipe.train) | {"max_bad": 0.1})
    record = built.evaluator("val", None)(None)
    assert record["left_out"] == told(record) == "20 of 240 samples left out: 20 label out of range"
    assert "left_out" not in run(TEXTS).evaluator("val", None)(None)


def test_a_test_split_whose_labels_are_null_is_answered_and_one_that_lacks_them_is_refused(run):
    assert run([row | {"label": None} for row in TEXTS]).evaluate() == {"val": {"unlabelled": 12.0}}
    with pytest.raises(ConfigError, match="evaluation `val`: 12 no label in 12 samples read.* it has no `label`"):
        run([{"sentence": row["sentence"]} for row in TEXTS]).evaluate()


def test_what_a_loss_says_of_its_data_has_the_stream_s_place(run):
    built = run([])
    built.recipe.streams["train"].data["classes"] = ["no", "yes", "maybe"]  # as of a folder, whose classes no plan knows
    built.tasks.clear(), built.recipe.evaluate.clear()
    with pytest.raises(ConfigError) as e:
        built.train(say=lambda line: None)
    assert e.value.problems == ["streams.train: stream `train`: Classification: `classes: 2`, and the data have 3 (no, yes, maybe): "
                                "set `classes: 3`"]
