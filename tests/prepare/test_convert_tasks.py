"""The converters of tasks: rows as the release says them, its quirks counted, every wrong file or record one clear error."""

import csv
import io
import json
import random

import numpy as np
import pytest
from miniature import put, read, shards
from miniature_tasks import COUNT, cifar10, dtd, glue, hateful_memes, nlvr2, pets, snli_ve, table, vqa
from PIL import Image

from xtoolkit.cli import prepare
from xtoolkit.data.errors import BadSample
from xtoolkit.data.text import load_tokenizer
from xtoolkit.prepare import classification, nlvr2 as nlvr2_converter, snli_ve as ve_converter, vqa as vqa_converter
from xtoolkit.prepare import glue as glue_converter, sample  # noqa: F401 (`sample` answers for sample://)
from xtoolkit.prepare.official import BadFile, BadRecord, MissingFile
from xtoolkit.prepare.writer import Options
from xtoolkit.registry import DATASET_REGISTRY


def rows(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def opened(kind, path, **block):
    return DATASET_REGISTRY.build({"type": kind, "path": str(path), **block}, "data", image_size=32, patch_size=8, train=False,
                                  tokenizer=load_tokenizer("sample://picturebook/tokenizer"))


def labels(dataset):
    return [dataset.load(0, n, 1, random.Random(0)).fields["label"] for n in range(len(dataset))]


# ---- GLUE -----------------------------------------------------------------------------------------------------------------
def test_glue_gives_every_cell_as_csv_without_quoting_reads_it(tmp_path):
    root = glue(tmp_path)
    report = glue_converter.convert(root, Options(tmp_path / "out"))
    assert {name: counts["samples"] for name, counts in report.written.items()} == {
        f"{name}/{split}": COUNT for name, task in glue_converter.TASKS.items() for split in task.splits}
    kinds = {what: count for what, (count, _) in report.left_out.items()}
    assert kinds == {"empty lines": 2, "rows that a line break cut": 4, "rows with an empty text": 2}
    for name, task in glue_converter.TASKS.items():
        for split in task.splits:
            text = (root / task.folder / f"{split}.tsv").read_text(encoding="utf-8-sig")
            names = task.heading if task.heading and "test" not in split else None
            theirs = [one for one in csv.DictReader(io.StringIO(text), names, delimiter="\t", quoting=csv.QUOTE_NONE, restval=None)
                      if None not in one.values() and None not in one and all(one[column] for column in task.texts)]
            found = rows(tmp_path / "out" / name / f"{split}.jsonl")
            keys = ("sentence",) if len(task.texts) == 1 else ("sentence1", "sentence2")
            assert [[row[key] for key in keys] for row in found] == [[one[column] for column in task.texts] for one in theirs]
            said = [one.get(task.label) for one in theirs]
            if task.classes is None:
                said = [None if label is None else float(label) for label in said]
            elif "0" in task.classes:
                said = [None if label is None else int(label) for label in said]
            assert [row["label"] for row in found] == said and len({row["id"] for row in found}) == COUNT


def test_glue_is_read_by_its_dataset_and_tests_without_labels_too(tmp_path):
    glue_converter.convert(glue(tmp_path), Options(tmp_path / "out"), ["mnli", "stsb", "mrpc"])
    classes = ["entailment", "neutral", "contradiction"]
    block = {"sentences": 2, "classes": classes}
    assert labels(opened("LabelledText", tmp_path / "out/mnli/dev_mismatched.jsonl", **block)) == [n % 3 for n in range(COUNT)]
    assert labels(opened("LabelledText", tmp_path / "out/mnli/test_matched.jsonl", **block)) == [-1] * COUNT
    assert labels(opened("LabelledText", tmp_path / "out/mrpc/dev.jsonl", sentences=2, classes=2)) == [n % 2 for n in range(COUNT)]
    data = opened("LabelledText", tmp_path / "out/stsb/dev.jsonl", sentences=2)
    assert labels(data) == [n / 2 for n in range(COUNT)]
    assert data.load(0, 3, 1, random.Random(0)).fields["record"]["id"] == 3


@pytest.mark.parametrize("path, data, said", [
    ("RTE/dev.tsv", table(("index", "sentence1", "sentence2", "label"), (0, "a", "b", "neutral")),
     "dev.tsv: line 2: the label is 'neutral', none of not_entailment, entailment"),
    ("CoLA/train.tsv", table(("gj04", 2, "", "a")), "train.tsv: line 1: the label is '2', none of 0, 1"),
    ("STS-B/dev.tsv", table(("index", "sentence1", "sentence2", "score"), (0, "a", "b", 5.5)), "'5.5', not a number from 0 to 5"),
    ("SST-2/train.tsv", table(("sentence", "label"), ("a", "b", 1)), "line 2: 3 cells, and there are 2 columns: sentence, label"),
    ("MNLI/train.tsv", table(("index", "sentence1", "sentence2"), (0, "a", "b")),
     "train.tsv: line 1: no column gold_label; it has index, sentence1, sentence2. It should be GLUE's MNLI/train.tsv"),
])
def test_a_wrong_row_or_file_of_glue_is_named(tmp_path, path, data, said):
    root = glue(tmp_path, lambda files: files.update({path: data}))
    with pytest.raises(BadRecord) as error:
        glue_converter.convert(root, Options(tmp_path / "out"))
    assert said in str(error.value)


def test_a_missing_split_or_task_of_glue_is_named(tmp_path):
    root = glue(tmp_path)
    (root / "QNLI/dev.tsv").unlink()
    with pytest.raises(MissingFile, match="QNLI/dev.tsv: no such file; GLUE's QNLI has train, dev, test"):
        glue_converter.convert(root, Options(tmp_path / "out"))
    with pytest.raises(MissingFile, match="GLUE has no task `mmli`; did you mean `mnli`"):
        glue_converter.convert(root, Options(tmp_path / "out"), ["mmli"])
    with pytest.raises(MissingFile, match="none of GLUE's folders is in it: CoLA, SST-2"):
        glue_converter.convert(tmp_path / "nowhere", Options(tmp_path / "out"))


# ---- VQA v2 ---------------------------------------------------------------------------------------------------------------
def test_questions_have_their_answers_pictures_and_types(tmp_path):
    questions, annotations, pictures = vqa(tmp_path)
    vqa_converter.convert(questions, annotations, Options(tmp_path / "out"))
    found = rows(tmp_path / "out/train.jsonl")
    assert len(found) == COUNT and found[3] == {
        "question_id": 2001, "image": "train2014/COCO_train2014_000000000002.jpg", "image_id": "coco-2",
        "question": "What is number 3?", "question_type": "what is", "answer_type": "other",
        "annotations": ["net"] * 6 + ["a net"] * 3 + ["3"],
        "answers": [{"text": "net", "weight": 0.6}, {"text": "a net", "weight": 0.3}, {"text": "3", "weight": 0.1}]}
    data = opened("Questions", tmp_path / "out/train.jsonl", images=str(pictures))
    assert [len(data.load(0, n, 1, random.Random(0)).fields["answers"].texts) for n in range(COUNT)] == [3] * COUNT


def test_test_dev_has_no_answers_and_the_pictures_of_test(tmp_path):
    questions, _, _ = vqa(tmp_path, "test-dev2015")
    vqa_converter.convert(questions, None, Options(tmp_path / "out"), "test")
    first = rows(tmp_path / "out/test.jsonl")[0]
    assert first["image"] == "test2015/COCO_test2015_000000000001.jpg" and "answers" not in first


def test_candidates_are_counted_by_the_first_answer_of_train_and_val(tmp_path):
    def change(asked, answered):
        for one, said in zip(answered["annotations"], ["cat"] * 5 + ["dog"] * 4 + ["rare"]):
            one["multiple_choice_answer"] = said
    files = [vqa(tmp_path / split, split, change)[1] for split in ("train2014", "val2014")]
    vqa_converter.convert_answers(files, Options(tmp_path / "out"))
    assert (tmp_path / "out/answers.txt").read_text() == "cat\n"
    vqa_converter.convert_answers(files, Options(tmp_path / "out"), "some", least=8)
    assert (tmp_path / "out/some.txt").read_text() == "cat\ndog\n"


@pytest.mark.parametrize("change, said", [
    (lambda q, a: q.update(info={**q["info"], "version": "1.0"}),
     "`info.version` is 1.0 in the first and 2.0 in the second; give the questions and annotations of one split and version"),
    (lambda q, a: q.update(info={**q["info"], "year": 2015}), "`info.year` is 2015 in the first and 2017 in the second"),
    (lambda q, a: a.update(data_subtype="val2014"), "`data_subtype` is train2014 in the first and val2014 in the second"),
    (lambda q, a: (q.pop("data_subtype"), a.pop("data_subtype")), "no `data_subtype`, which says whose pictures are asked about"),
    (lambda q, a: a["annotations"].pop(), "questions.json: question 5001 is not in v2_mscoco_train2014_annotations.json"),
    (lambda q, a: q["questions"].pop(), "annotations.json: question 5001 is not in v2_OpenEnded_mscoco_train2014_questions.json"),
    (lambda q, a: a["annotations"][2].pop("answers"), "annotations.json: annotation 2000: no key `answers`"),
    (lambda q, a: a["annotations"][2].update(answers=[]), "annotations.json: annotation 2000: no answers"),
    (lambda q, a: q["questions"][1].update(question_id=1000), "question 1000: question 1000 comes a second time"),
])
def test_what_does_not_fit_together_in_vqa_is_one_error(tmp_path, change, said):
    questions, annotations, _ = vqa(tmp_path, change=change)
    with pytest.raises(BadRecord) as error:
        vqa_converter.convert(questions, annotations, Options(tmp_path / "out"))
    assert said in str(error.value) and not list((tmp_path / "out").glob("*.jsonl"))


@pytest.mark.parametrize("split", ["train2014", "test2015"])
def test_the_first_version_of_vqa_is_told_though_its_files_agree(tmp_path, split):
    """Both files of train, and test's, whose questions stand alone; the list of answers too."""
    first = lambda asked, answered: [said.update(info={**said["info"], "version": "1.0", "year": 2015}) for said in (asked, answered)]
    questions, annotations, _ = vqa(tmp_path, split, first)
    told = "`info.version` is 1.0: this is VQA v1, and what is read here VQA v2, .*; give the files whose names begin with v2_"
    with pytest.raises(BadFile, match=f"^v2_OpenEnded_mscoco_{split}_questions.json: {told}"):
        vqa_converter.convert(questions, annotations if split == "train2014" else None, Options(tmp_path / "out"))
    with pytest.raises(BadFile, match=f"^v2_mscoco_{split}_annotations.json: {told}"):
        vqa_converter.convert_answers([annotations], Options(tmp_path / "out"))
    assert not (tmp_path / "out").exists()


# ---- NLVR2, SNLI-VE, Hateful Memes ----------------------------------------------------------------------------------------
@pytest.mark.parametrize("layout", ["images/train", "train", "."])
def test_nlvr2_finds_both_pictures_in_either_layout(tmp_path, layout):
    files, root = nlvr2(tmp_path, layout=layout)
    nlvr2_converter.convert(files, root, Options(tmp_path / "out"))
    found = {split: rows(tmp_path / f"out/{split}.jsonl") for split in ("train", "dev", "test1")}
    folder = "" if layout == "." else f"{layout}/"
    assert found["train"][3] == {"images": [f"{folder}1/train-1-1-img0.png", f"{folder}1/train-1-1-img1.png"],
                                 "sentence": "There are 3 dogs.", "label": "False", "identifier": "train-1-1-0"}
    assert found["dev"][0]["images"] == ["dev/dev-0-0-img0.png", "dev/dev-0-0-img1.png"]
    data = opened("LabelledTwoImages", tmp_path / "out/test1.jsonl", images=str(root), classes=["False", "True"])
    assert labels(data) == [1 - n % 2 for n in range(COUNT)]
    assert data.load(0, 4, 1, random.Random(0)).fields["record"]["identifier"] == "test1-2-0-0"


@pytest.mark.parametrize("change, said", [
    (lambda r: r[4].update(label="Maybe"), "train.json: line 5: the label is 'Maybe', neither True nor False"),
    (lambda r: r[4].update(identifier="train4"), "train.json: line 5: `identifier` is 'train4', not like dev-850-0-1"),
    (lambda r: r[4].update(identifier="train-77-0-0"), "train.json: line 5: no picture .*train-77-0-img0.png"),
    (lambda r: r[1].update(identifier=r[0]["identifier"]), "identifier train-0-0-0 comes a second time"),
    (lambda r: r[4].pop("sentence"), "train.json: line 5: no key `sentence`"),
])
def test_a_wrong_line_of_nlvr2_is_named(tmp_path, change, said):
    files, root = nlvr2(tmp_path, change)
    with pytest.raises(BadRecord, match=said):
        nlvr2_converter.convert(files, root, Options(tmp_path / "out"))


def test_snli_ve_leaves_out_what_nobody_agreed_on(tmp_path):
    files, pictures = snli_ve(tmp_path)
    report = ve_converter.convert(files, pictures, Options(tmp_path / "out"))
    assert report.left_out["pairs without an agreed label"][0] == 3
    found = rows(tmp_path / "out/dev.jsonl")
    assert len(found) == COUNT - 1 and found[4] == {
        "image": "1002.jpg", "image_id": "flickr30k-1002", "sentence": "There are 4 dogs.", "label": "neutral",
        "id": "1002.jpg#0r1", "premise": "Two dogs."}
    data = opened("LabelledPairs", tmp_path / "out/dev.jsonl", images=str(pictures), classes=list(ve_converter.CLASSES))
    assert labels(data) == [(2, 1, 0)[n % 3] for n in range(COUNT - 1)]


def test_a_wrong_pair_of_snli_ve_is_named(tmp_path):
    files, pictures = snli_ve(tmp_path, lambda r: r[1].update(gold_label="hidden"))
    with pytest.raises(BadRecord, match="line 2: `gold_label` is 'hidden', none of contradiction, neutral, entailment"):
        ve_converter.convert(files, pictures, Options(tmp_path / "out"))
    with pytest.raises(MissingFile, match="nowhere: no such folder; name the one that holds the pictures"):
        ve_converter.convert(files, tmp_path / "nowhere", Options(tmp_path / "out"))


def test_hateful_memes_are_read_as_they_come(tmp_path):
    root = hateful_memes(tmp_path)
    assert labels(opened("LabelledPairs", root / "dev.jsonl", classes=2)) == [n % 2 for n in range(COUNT)]
    assert labels(opened("LabelledPairs", root / "test.jsonl", classes=2, secret=True)) == [-1] * COUNT
    with pytest.raises(BadSample, match="no label"):
        labels(opened("LabelledPairs", root / "test.jsonl", classes=2))


# ---- torchvision ----------------------------------------------------------------------------------------------------------
def test_arrays_become_pictures_without_a_loss(tmp_path, monkeypatch):
    from torchvision.datasets import CIFAR10
    root = cifar10(tmp_path / "raw", monkeypatch)
    report = classification.convert("cifar10", root, Options(tmp_path / "out", shard_size=20))
    assert shards(tmp_path / "out") == ["test-00000.tar", "train-00000.tar", "train-00001.tar", "train-00002.tar"]
    assert report.written["train"]["samples"] == 50
    theirs, found = CIFAR10(root, train=False), list(read(tmp_path / "out/test-00000.tar").values())
    for (picture, label), sample in zip(theirs, found, strict=True):
        assert np.array_equal(np.asarray(picture), np.asarray(Image.open(io.BytesIO(sample["png"]))))
        assert sample["json"]["label"] == theirs.classes[label]
    names = str(tmp_path / "out/classes.txt")
    assert labels(opened("LabelledImages", tmp_path / "out/test-00000.tar", classes=names)) == list(range(COUNT))


def test_pictures_in_files_are_kept_byte_for_byte(tmp_path):
    classification.convert("dtd", dtd(tmp_path / "raw"), Options(tmp_path / "out"))
    assert shards(tmp_path / "out") == ["test-00000.tar", "train-00000.tar", "val-00000.tar"]
    theirs = {path.read_bytes() for path in (tmp_path / "raw").rglob("*.jpg")}
    samples = [one for split in ("train", "val", "test") for one in read(tmp_path / f"out/{split}-00000.tar").values()]
    assert {one["jpg"] for one in samples} == theirs and len(samples) == 3 * COUNT
    assert (tmp_path / "out/classes.txt").read_text() == "banded\ndotted\n"
    assert samples[1]["json"] == {"image_id": "dtd-train-1", "label": "dotted"}


def test_pets_train_on_trainval(tmp_path):
    classification.convert("pets", pets(tmp_path / "raw"), Options(tmp_path / "out"), ["train"])
    found = read(tmp_path / "out/train-00000.tar")
    assert [one["json"]["label"] for one in found.values()] == ["Abyssinian", "Beagle"] * 5


def test_a_set_without_splits_is_drawn_by_class_and_always_alike(tmp_path):
    for n in range(1700):
        put(tmp_path / f"raw/eurosat/2750/{('Forest', 'River')[n % 2]}/{n}.jpg", b"")
    drawn = []
    for _ in range(2):
        classification._load.cache_clear()
        found = [classification._load("eurosat", str(tmp_path / "raw"), split) for split in ("train", "test")]
        drawn.append([list(numbers) for *_, numbers in found])
    assert drawn[0] == drawn[1] and [len(numbers) for numbers in drawn[0]] == [1700, 0]
    counts = {"train": 500, "test": None}
    split = classification._drawn(found[0][0], counts)
    assert [len(split[name]) for name in counts] == [1000, 700] and not set(split["train"]) & set(split["test"])


@pytest.mark.parametrize("called, splits, said", [
    ("cifar11", None, "no set `cifar11`; did you mean `cifar10`"),
    ("pets", ["val"], "pets has no split `val`.*; it has train, test"),
    ("pets", None, "torchvision finds no OxfordIIITPet there: Dataset not found.*Nothing is downloaded here"),
])
def test_a_missing_set_split_or_folder_is_named(tmp_path, called, splits, said):
    with pytest.raises(MissingFile, match=said):
        classification.convert(called, tmp_path, Options(tmp_path / "out"), splits)
    assert not (tmp_path / "out").exists()


# ---- the commands ---------------------------------------------------------------------------------------------------------
def test_the_commands_write_what_recipes_name(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    glue(tmp_path), vqa(tmp_path), nlvr2(tmp_path), snli_ve(tmp_path), dtd(tmp_path / "raw")
    commands = ["glue --root glue_data --out data/glue",
                "vqa --questions vqa/v2_OpenEnded_mscoco_train2014_questions.json --annotations "
                "vqa/v2_mscoco_train2014_annotations.json --name train --out data/vqa",
                "vqa-answers --annotations vqa/v2_mscoco_train2014_annotations.json --out data/vqa",
                "nlvr2 --input nlvr2/data/train.json nlvr2/data/dev.json --images nlvr2 --out data/nlvr2",
                "snli-ve --input snli_ve/snli_ve_train.jsonl --images flickr30k-images --out data/snli_ve",
                "torchvision --set dtd --root raw --out data/dtd"]
    for command in commands:
        assert prepare.main([*command.split(), "--workers", "1"]) == 0, capsys.readouterr().err
    said = capsys.readouterr().out
    assert said.count("see data/glue/") == 8 and "see data/vqa/summary.html" in said and "answers: 1 samples" in said
    for path in ("glue/mnli/dev_matched.jsonl", "vqa/train.jsonl", "vqa/answers.txt", "nlvr2/dev.jsonl", "snli_ve/train.jsonl",
                 "dtd/val-00000.tar", "dtd/classes.txt"):
        assert (tmp_path / "data" / path).is_file(), path
    assert "sentence1: He said" in (tmp_path / "data/glue/rte/summary.html").read_text().replace("&#34;", '"')
    assert prepare.main([*commands[1].split(), "--workers", "1"]) == 1
    assert "data/vqa/train.jsonl is there already: remove data/vqa/train.jsonl or give another --out" in capsys.readouterr().err


def test_an_interrupted_command_goes_on_and_a_changed_file_is_read_again(tmp_path, monkeypatch):
    root = glue(tmp_path, lambda files: files.update({"RTE/test.tsv": b"wrong"}))
    with pytest.raises(BadFile):
        glue_converter.convert(root, Options(tmp_path / "out"), ["rte"])
    assert sorted(p.name for p in (tmp_path / "out/rte/.unfinished-glue-rte").glob("*.jsonl"))[:2] == ["dev.jsonl", "train.jsonl"]
    put(root / "RTE/test.tsv", table(("index", "sentence1", "sentence2"), (0, "a", "b")))
    made, work = [], glue_converter._rows
    monkeypatch.setattr(glue_converter, "_rows", lambda span, *more: made.append(span.path) or work(span, *more))
    put(root / "RTE/train.tsv", (root / "RTE/train.tsv").read_bytes() + table((COUNT, "more", "words", "entailment")))
    glue_converter.convert(root, Options(tmp_path / "out"), ["rte"])
    assert len(rows(tmp_path / "out/rte/train.jsonl")) == COUNT + 1
    assert [path.rpartition("/")[2] for path in made] == ["train.tsv", "test.tsv"]
