"""What goes wrong with the data of tasks gets one clear error: which split, record, label, answer or picture, and what is right."""

import json
import random

import pytest

import xtoolkit.prepare.sample  # noqa: F401  answers for sample://
from xtoolkit.data.errors import BadSample
from xtoolkit.registry import DATASET_REGISTRY, ConfigError

SIZES = {"image_size": 32, "patch_size": 8}


@pytest.fixture
def read(tmp_path, shards, tokenizer):
    """Builds a dataset over one record beside a picture, and one that does not decode, and reads the record."""
    (tmp_path / "good.jpg").write_bytes(shards.jpeg(1))
    (tmp_path / "cut.jpg").write_bytes(shards.jpeg(1)[:300])

    def read(kind, record, train=False, **block):
        path = tmp_path / "rows.jsonl"
        path.write_text(json.dumps(record) + "\n")
        data = DATASET_REGISTRY.build({"type": kind, "path": str(path), **block}, "data", tokenizer=tokenizer, train=train, **SIZES)
        return data.load(0, 0, 1, random.Random(0))
    return read


PAIR = {"image": "good.jpg", "sentence": "a dog", "label": 1}
TWO = {"images": ["good.jpg", "good.jpg"], "sentence": "a dog", "label": "True"}
ASKED = {"image": "good.jpg", "question": "a dog", "question_id": 1, "answers": [{"text": "dog", "weight": 1}]}


@pytest.mark.parametrize("kind, record, block, said", [
    ("LabelledText", {"sentence": "a dog", "label": 3}, {"classes": 3}, "label out of range: row 1: 3 is none of the 3 classes"),
    ("LabelledText", {"sentence": "a dog", "label": "maybe"}, {"classes": ["no", "yes"]},
     "unknown class: row 1: 'maybe' is none of the 2 classes: no, yes"),
    ("LabelledText", {"sentence": "a dog", "label": "yes"}, {}, "bad label: row 1: `label` must be a number where `classes` are not"),
    ("LabelledPairs", PAIR | {"label": -1}, {"classes": 2}, "label out of range: row 1: -1 is none of the 2 classes: 0, 1"),
    ("LabelledTwoImages", TWO | {"label": 2}, {"classes": ["False", "True"]}, "label out of range: row 1: 2 is none of the 2"),
    ("LabelledPairs", PAIR | {"image": "cut.jpg"}, {"classes": 2}, "cut.jpg: Truncated File Read"),
    ("LabelledTwoImages", TWO | {"images": ["good.jpg", "cut.jpg"]}, {"classes": ["False", "True"]},
     "cut.jpg: Truncated File Read"),
    ("Questions", ASKED | {"image": "cut.jpg"}, {}, "cut.jpg: Truncated File Read"),
    ("Questions", ASKED | {"answers": [{"text": "dog"}]}, {}, "bad weight: row 1: a weight must be a number above 0, not None"),
    ("Questions", ASKED | {"answers": [{"weight": 1.0}]}, {}, "bad text: row 1: an answer must be a text, not None"),
])
def test_a_wrong_record_is_named_with_what_would_be_right(read, kind, record, block, said):
    with pytest.raises(BadSample) as error:
        read(kind, record, **block)
    assert said in str(error.value) and "rows.jsonl" in str(error.value)


@pytest.mark.parametrize("without", [{"answers": []}, {"answers": None}])
def test_questions_without_answers_are_asked_and_never_trained_on(read, without):
    with pytest.raises(BadSample, match="no answer: row 1: it has no `answers` and no `answer`"):
        read("Questions", ASKED | without, train=True)
    assert read("Questions", ASKED | without).fields["answers"].texts == []


@pytest.mark.parametrize("path, said", [
    ("sample://picturebook/vqa-tset", "the sample pack has no part `vqa-tset`; did you mean `vqa-test`?"),
    ("sample://picturebook/glue-rte-val", "the sample pack has no part `glue-rte-val`"),
    ("data/vqa/train.jsonl", "no such file; prepare it with: xtoolkit prepare vqa --questions QUESTIONS.json --annotations"),
    ("data/glue/rte/dev.jsonl", "no such file; prepare it with: xtoolkit prepare glue --root glue_data --out data/glue"),
    ("data/nlvr2/dev.jsonl", "prepare it with: xtoolkit prepare nlvr2 --input train.json dev.json test1.json --images DIR"),
    ("data/snli_ve/dev.jsonl", "prepare it with: xtoolkit prepare snli-ve --input snli_ve_train.jsonl"),
    ("data/cifar10/test-*.tar", "prepare it with: xtoolkit prepare torchvision --set SET --root DIR --out data/cifar10"),
])
def test_a_split_that_is_missing_is_said_before_anything_loads(path, said, tokenizer, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    kind = "LabelledImages" if path.endswith(".tar") else "Questions" if "vqa" in path else "LabelledText"
    with pytest.raises(ConfigError) as error:
        DATASET_REGISTRY.build({"type": kind, "path": path}, "data", tokenizer=tokenizer, **SIZES)
    assert said in str(error.value)


@pytest.mark.parametrize("inside, said", [([], "no folder in it"), (["cat"], "one folder in it, `cat`")])
def test_a_folder_that_is_none_of_classes_is_said_before_anything_loads(tmp_path, inside, said):
    for name in inside:
        (tmp_path / name).mkdir()
    cls = DATASET_REGISTRY.get("ImageFolder")
    (key, line), = cls.missing({"path": str(tmp_path)})
    assert key == "path" and line == f"{tmp_path}: {said}; a folder for each class is expected, its pictures inside"
    assert cls.missing({"path": str(tmp_path), "classes": ["cat", "dog"]}) == []
