"""Wrong records of tasks: each is a bad sample of one kind, in one line that names the file and the record."""

import json
import os
import random

import pytest

from xtoolkit.data.errors import BadDataError, BadSample
from xtoolkit.data.loader import EvalLoader, Loader
from xtoolkit.registry import DATASET_REGISTRY, ConfigError

SIZES = {"image_size": 32, "patch_size": 8}
CLASSES = ["no", "yes"]


@pytest.fixture
def build(tmp_path, shards, tokenizer):
    """``build(kind, records, key=value)``: the dataset over a file of them, beside two pictures."""
    for n in range(2):
        (tmp_path / f"{n}.jpg").write_bytes(shards.jpeg(n))
    (tmp_path / "cut.jpg").write_bytes(shards.jpeg(3)[:300])
    (tmp_path / "folder.jpg").mkdir()
    given = {kind: {"classes": CLASSES} for kind in ("LabelledText", "LabelledPairs", "LabelledTwoImages")}

    def make(kind, records, train=True, **block):
        text = "".join((one if isinstance(one, str) else json.dumps(one)) + "\n" for one in records)
        (tmp_path / "x.jsonl").write_text(text)
        block = {"type": kind, "path": str(tmp_path / "x.jsonl")} | given.get(kind, {}) | block
        return DATASET_REGISTRY.build(block, "here", tokenizer=tokenizer, **SIZES, train=train)

    return make


TEXT, PAIR = {"text": "a dog", "label": "yes"}, {"image": "0.jpg", "text": "a dog", "label": "yes"}
TWO = {"images": ["0.jpg", "1.jpg"], "sentence": "a dog", "label": "yes"}
ASKED = {"image": "0.jpg", "question": "dog?", "answer": "cat"}
FILM = {"frames": ["0.jpg"], "caption": "a dog"}


@pytest.mark.parametrize("kind, record, trouble, detail", [
    # labels
    ("LabelledText", TEXT | {"label": 2}, "label out of range", "2 is none of the 2 classes: no, yes"),
    ("LabelledText", TEXT | {"label": -1}, "label out of range", "-1 is none of the 2 classes"),
    ("LabelledText", TEXT | {"label": "2"}, "label out of range", "'2' is none of"),
    ("LabelledText", TEXT | {"label": "Yes"}, "unknown class", "'Yes' is none of the 2 classes: no, yes"),
    ("LabelledText", TEXT | {"label": True}, "unknown class", "True is none of"),
    ("LabelledText", TEXT | {"label": 1.0}, "unknown class", "1.0 is none of"),
    ("LabelledText", TEXT | {"label": ["yes"]}, "unknown class", "['yes'] is none of"),
    ("LabelledText", TEXT | {"label": None}, "no label", "it has no `label`"),
    ("LabelledText", {"text": "a dog"}, "no label", "it has no `label`"),
    ("LabelledText", TEXT | {"label": "x" * 10**6}, "unknown class", "'xxx"),
    # texts
    ("LabelledText", TEXT | {"text": 7}, "bad text", "`text` must be a text, not 7"),
    ("LabelledText", TEXT | {"text": None}, "bad text", "`text` must be a text, not None"),
    ("LabelledText", {"label": "yes"}, "missing text", "it has no `sentence` and no `sentence1` and no `text`"),
    ("LabelledText", TEXT | {"text": " "}, "empty caption", "no token is left"),
    ("LabelledText", "[1, 2]", "broken json", "an object is expected, not list"),
    ("LabelledText", '{"text": "a d', "broken json", "Invalid control character"),
    ("LabelledText", '{"text": "half \\ud83d", "label": 1}', "broken json", "lone surrogate"),
    # pictures
    ("LabelledPairs", PAIR | {"image": "2.jpg"}, "missing picture", "No such file"),
    ("LabelledPairs", PAIR | {"image": "folder.jpg"}, "refused picture", "folder.jpg is no file"),
    ("LabelledPairs", PAIR | {"image": "a\0b"}, "missing picture", "null byte"),
    ("LabelledPairs", PAIR | {"image": 5}, "missing picture", "the row names none: 5"),
    ("LabelledPairs", PAIR | {"image": "../0.jpg"}, "refused picture", "leads out of"),
    ("LabelledPairs", PAIR | {"image": "/etc/passwd"}, "refused picture", "leads out of"),
    ("LabelledPairs", PAIR | {"image": "cut.jpg"}, "corrupt image", "/cut.jpg: Truncated File Read"),
    ("LabelledPairs", {"text": "a dog", "label": "yes"}, "missing picture", "the row names none"),
    ("LabelledTwoImages", TWO | {"images": ["0.jpg"]}, "missing picture", "it names no second one: `images: [first, "),
    ("LabelledTwoImages", {"image": "0.jpg", "text": "dog", "label": "no"}, "missing picture", "it names no second one"),
    ("LabelledTwoImages", TWO | {"images": ["0.jpg", None]}, "missing picture", "it names no second one"),
    ("LabelledTwoImages", TWO | {"images": ["0.jpg", "1.jpg", "0.jpg"]}, "too many pictures", "`images` name 3, and 2 are read"),
    ("LabelledPairs", PAIR | {"images": ["0.jpg", "1.jpg"]}, "too many pictures", "`images` name 2, and 1 is read"),
    ("LabelledPairs", {"img": "2.jpg", "text": "a dog", "label": "yes"}, "missing picture", "No such file"),
    ("LabelledPairs", {"photo": "0.jpg", "text": "a dog", "label": "yes"}, "missing picture",
     "the row names none: it has no `image`, no `file_name`, no `filepath`, no `path`, no `filename`, no `img`"),
    # answers
    ("Questions", ASKED | {"answer": ""}, "empty answer", "an answer without a letter"),
    ("Questions", ASKED | {"answer": ["cat", " "]}, "empty answer", "an answer without a letter"),
    ("Questions", ASKED | {"answer": [1, 2]}, "bad text", "an answer must be a text, not 1"),
    ("Questions", ASKED | {"answers": [], "answer": None}, "no answer", "it has no `answers` and no `answer`"),
    ("Questions", ASKED | {"answers": [{"weight": 1}]}, "bad text", "an answer must be a text, not None"),
    ("Questions", ASKED | {"answers": [{"text": "cat"}]}, "bad weight", "a weight must be a number above 0, not None"),
    ("Questions", ASKED | {"answers": [{"text": "cat", "weight": 0}]}, "bad weight", "above 0, not 0"),
    ("Questions", ASKED | {"weight": "much"}, "bad weight", "above 0, not 'much'"),
    ("Questions", ASKED | {"weight": [1, 1]}, "bad weight", "2 weights of 1 answers"),
    ("Questions", '{"image": "0.jpg", "question": "dog?", "answer": "cat", "weight": NaN}', "bad weight", "above 0, not nan"),
    ("Questions", {"image": "0.jpg", "question": "dog?"}, "no answer", "it has no `answers` and no `answer`"),
    ("Questions", {"image": "0.jpg", "answer": "cat"}, "missing text", "it has no `question` and no `text`"),
    # videos
    ("Videos", FILM | {"frames": []}, "missing frames", "it has no `frames`"),
    ("Videos", FILM | {"frames": "0.jpg"}, "missing frames", "it has no `frames`"),
    ("Videos", FILM | {"frames": [0, 1]}, "missing picture", "the row names none: "),
    ("Videos", FILM | {"frames": ["0.jpg", "2.jpg"] * 2}, "missing picture", "No such file"),
    ("Videos", FILM | {"caption": [5]}, "empty caption", "captions must be strings, not 5"),
    ("Videos", {"frames": ["0.jpg"]}, "empty caption", "no caption"),
])
def test_a_wrong_record_is_one_bad_sample(kind, record, trouble, detail, build):
    right = [PAIR] if kind == "LabelledPairs" else []  # a table none of whose pictures is there is refused at the start
    with pytest.raises(BadSample) as found:
        build(kind, [record, *right]).load(0, 0, 1, random.Random(0))
    said = str(found.value)
    assert found.value.kind == trouble and detail in said and "x.jsonl: " in said and "row 1: " in said
    assert "\n" not in said and len(said) < 400


@pytest.mark.parametrize("label", ["high", "", None, True, [1], float("nan"), float("inf"), 1e39, "1e400"])
def test_a_target_must_be_a_number(label, build):
    with pytest.raises(BadSample) as found:
        build("LabelledText", [{"text": "a dog", "label": label}], classes=None).load(0, 0, 1, random.Random(0))
    assert found.value.kind in ("bad label", "no label") and str(found.value).endswith(
        "it has no `label`" if label is None else f"`label` must be a number where `classes` are not given, not {label!r}")


@pytest.mark.parametrize("second, trouble", [
    ({}, "missing text"), ({"text": "a dog runs"}, "missing text"), ({"sentence2": 7}, "bad text"), ({"sentence2": ""}, "empty caption")])
def test_a_pair_without_a_second_sentence(second, trouble, build):
    data = build("LabelledText", [{"sentence1": "a dog", "label": "no"} | second], sentences=2)
    with pytest.raises(BadSample) as found:
        data.load(0, 0, 1, random.Random(0))
    assert found.value.kind == trouble


def test_wrong_records_are_counted_and_replaced_and_end_a_run_above_the_share(build):
    records = [TEXT, TEXT | {"label": 9}, TEXT, {"label": 1}, TEXT, TEXT]
    loader = Loader("it", build("LabelledText", records), 6, 0, 0, max_bad=1.0)
    assert loader.at(0)["label"].value.tolist() == [1] * 6
    assert set(loader.report()["bad"]) <= {"label out of range", "missing text"} and loader.report()["bad"]
    passed = EvalLoader(build("LabelledText", records, train=False), 9, max_bad=1.0)
    whole, = passed
    assert whole.size == 4 and passed.report()["bad"] == {"label out of range": 1, "missing text": 1}
    with pytest.raises(BadDataError, match="unknown class"):
        list(EvalLoader(build("LabelledText", [TEXT | {"label": "maybe"}] * 200, train=False), 50))


@pytest.mark.parametrize("classes, message", [
    (["yes"], "1 classes, two at least"), (["yes", "no", "yes"], "`yes` stands there twice"), ([], "0 classes"),
    ("nowhere.txt", "No such file or directory"), ("latin.txt", "latin.txt: not UTF-8: byte 0xe9 at 3"),
    ("one.txt", "1 classes, two at least"), ("empty", "0 classes")])
def test_wrong_lists_of_classes(classes, message, build, tmp_path):
    (tmp_path / "latin.txt").write_bytes("caf\xe9\nno".encode("latin1"))
    (tmp_path / "one.txt").write_text("yes\n\n")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError) as found:
        build("LabelledText", [TEXT], classes=str(tmp_path / classes) if isinstance(classes, str) else classes)
    assert "data.classes: " in str(found.value) and message in str(found.value) and "\n" not in str(found.value).strip()


@pytest.mark.parametrize("classes, message", [(1, "of at least 2"), (2.5, "must be"), (["a", 1], "must be")])
def test_wrong_keys(classes, message, build):
    with pytest.raises(ConfigError, match=message):
        build("LabelledText", [TEXT], classes=classes)


@pytest.mark.parametrize("files, message", [
    ([], "no folder in it"), (["a/1.jpg"], "one folder in it, `a`"),
    (["a/1.jpg", "b/notes.txt"], "no picture of the class: b"),
    (["1.jpg", "2.jpg"], "no folder in it"), (["a/1.jpg", ".git/2.jpg"], "one folder in it, `a`")])
def test_a_folder_that_is_none_of_classes(files, message, tmp_path, shards):
    folder = tmp_path / "pets"
    folder.mkdir()
    for name in files:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(shards.jpeg(1))
    with pytest.raises(ConfigError, match=message):
        DATASET_REGISTRY.build({"type": "ImageFolder", "path": str(folder)}, "here", **SIZES)


def test_a_picture_of_a_folder_that_does_not_decode_or_went_away(tmp_path, shards):
    for name in ("a/1.jpg", "b/2.jpg"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_bytes(b"\xff\xd8 no")
    data = DATASET_REGISTRY.build({"type": "ImageFolder", "path": str(tmp_path)}, "here", **SIZES)
    with pytest.raises(BadSample, match="corrupt image: b/2.jpg"):
        data.load(0, 1, 1, random.Random(0))
    (tmp_path / "b/2.jpg").unlink()
    with pytest.raises(BadSample, match="missing picture: b/2.jpg: .*No such file"):
        data.load(0, 1, 1, random.Random(0))


def test_a_folder_with_links_and_with_names_that_are_no_text(tmp_path, shards):
    for name in ("pets/a", "pets/b", "elsewhere"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "elsewhere/1.jpg").write_bytes(shards.jpeg(1))
    (tmp_path / "pets/a/1.jpg").symlink_to(tmp_path / "elsewhere/1.jpg")
    (tmp_path / "pets/a/deep").symlink_to(tmp_path / "elsewhere")
    with open(os.fsencode(tmp_path / "pets/b") + b"/caf\xe9.jpg", "wb") as file:
        file.write(shards.jpeg(2))
    os.mkfifo(tmp_path / "pets/b/pipe.jpg")
    data = DATASET_REGISTRY.build({"type": "ImageFolder", "path": str(tmp_path / "pets")}, "here", **SIZES)
    names = [data.load(0, n, 1, random.Random(0)).image.name for n in range(3)]
    assert names == ["a/1.jpg", "a/deep/1.jpg", "b/caf\ufffd.jpg"] and len(data) == 4
    with pytest.raises(BadSample, match="refused picture: b/pipe.jpg: .*no file"):
        data.load(0, 3, 1, random.Random(0))
    before = data.digests
    (tmp_path / "pets/b/2.jpg").write_bytes(shards.jpeg(2))
    assert DATASET_REGISTRY.build({"type": "ImageFolder", "path": str(tmp_path / "pets")}, "here", **SIZES).digests != before


def test_a_folder_of_classes_with_links_to_itself_is_walked_once(tmp_path, shards):
    for n, name in enumerate("ab"):
        (tmp_path / "classes" / name).mkdir(parents=True)
        (tmp_path / "classes" / name / "0.jpg").write_bytes(shards.jpeg(n))
        (tmp_path / "classes" / name / "self").symlink_to(".")
    found = DATASET_REGISTRY.build({"type": "ImageFolder", "path": str(tmp_path / "classes")}, "here", **SIZES, train=False)
    assert len(found) == 2


def test_what_a_folder_of_classes_leaves_out_is_counted(tmp_path, shards, caplog):
    pets = tmp_path / "pets"
    for name in ("a/1.jpg", "b/2.jpg", "b/.ipynb_checkpoints/2-checkpoint.jpg", "__MACOSX/a/._1.jpg", ".ipynb_checkpoints/x.jpg", "0.jpg",
                 "a/notes.txt", "b/Thumbs.db", "a/.DS_Store", "readme.md"):
        (pets / name).parent.mkdir(parents=True, exist_ok=True)
        (pets / name).write_bytes(shards.jpeg(1))
    data = DATASET_REGISTRY.build({"type": "ImageFolder", "path": str(pets)}, "here", **SIZES)
    left = {"hidden files": 4, "files of unknown endings": 3, "pictures in no folder of a class": 1}
    assert data.names == ["a", "b"] and len(data) == 2 and data.left_out == {str(pets): left}
    assert Loader("pets", data, 2, 0, 0).report()["left_out"] == left
    assert "pets: left out: " in caplog.text and "4 hidden files" in caplog.text


def test_empty_answers_say_nothing_and_answer_is_read(build):
    said = build("Questions", [ASKED | {"answers": []}, ASKED | {"answers": None}, ASKED | {"answers": [{"text": "dog", "weight": 2}]}])
    assert [said.load(0, n, 1, random.Random(0)).fields["answers"].weights for n in range(3)] == [[1.0], [1.0], [2.0]]


def test_hateful_memes_own_file_is_read(build, tmp_path):
    data = build("LabelledPairs", [{"id": 42953, "img": "1.jpg", "label": 1, "text": "a dog"}], train=False, classes=2)
    whole, = EvalLoader(data, 9)
    assert whole["label"].value.tolist() == [1] and whole["record"] == [
        {"id": 42953, "image": "1.jpg", "label": 1, "captions": "a dog", "image_id": f"{tmp_path}/1.jpg"}]


@pytest.mark.parametrize("classes, secret", [(CLASSES, -1), (None, float("nan"))])
def test_an_empty_cell_of_a_csv_is_no_label(classes, secret, tmp_path, tokenizer):
    (tmp_path / "x.csv").write_text("text,label\na dog,1\na cat,\n")
    block = {"type": "LabelledText", "path": str(tmp_path / "x.csv"), "classes": classes}
    whole, = EvalLoader(DATASET_REGISTRY.build(block, "here", tokenizer=tokenizer, train=False), 9)
    assert [repr(value) for value in whole["label"].value.tolist()] == [repr(1.0 if classes is None else 1), repr(secret)]
    assert whole["record"][1] == {"captions": "a cat", "label": None}
    with pytest.raises(BadSample, match="no label: row 2: it has no `label`"):
        DATASET_REGISTRY.build(block, "here", tokenizer=tokenizer).load(0, 1, 1, random.Random(0))


@pytest.mark.parametrize("given, said", [
    (["big", "red"], "big red dog"), ("red", "red dog"), ([], "dog"), (None, "dog"),
    (5, None), ([1], None), (["red", 2], None), ({"red": 1}, None), (True, None)])
def test_attributes_of_regions_are_texts(given, said, tmp_path, shards, tokenizer):
    (tmp_path / "0.jpg").write_bytes(shards.jpeg(0))
    region = {"box": [0, 0, 9, 9], "caption": "dog"}
    row = {"image": "0.jpg", "regions": [region | {"attributes": given}, region | {"caption": "cat"}]}
    (tmp_path / "x.jsonl").write_text(json.dumps(row) + "\n")
    block = {"type": "Regions", "path": str(tmp_path / "x.jsonl")}
    item = DATASET_REGISTRY.build(block, "here", tokenizer=tokenizer, **SIZES, train=False).load(0, 0, 9, random.Random(0))
    assert [tokenizer.decode(text.ids).strip() for text in item.texts] == [said, "cat"][said is None:]
    assert [str(one).partition(": ")[2] for one in item.dropped] == ([] if said else [
        f"bad attributes: row 1: region 0: `attributes` must be texts, not {given}"])
