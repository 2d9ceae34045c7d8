"""The parts of the sample pack that tasks read: what a dataset makes of them is what the official files say."""

import collections
import io
import json
import random
import re
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits

from xtoolkit.data import paths
from xtoolkit.data.text import load_tokenizer
from xtoolkit.prepare import sample, sample_pack  # noqa: F401 (`sample` answers for sample://)
from xtoolkit.registry import DATASET_REGISTRY

SIZES = {"image_size": 96, "patch_size": 16}
BLOCKS = {
    "vqa-{}": ("Questions", {"train": 6080, "val": 764, "test": 950}, {}),
    "nlvr2-{}": ("LabelledTwoImages", {"train": 1600, "dev": 240, "test1": 240}, {"classes": ["False", "True"]}),
    "glue-sst2-{}": ("LabelledText", {"train": 2400, "dev": 400, "test": 400}, {"classes": 2}),
    "glue-cola-{}": ("LabelledText", {"train": 2200, "dev": 300, "test": 300}, {"classes": 2}),
    "glue-rte-{}": ("LabelledText", {"train": 1800, "dev": 300, "test": 296},
                    {"classes": ["not_entailment", "entailment"], "sentences": 2}),
    "glue-stsb-{}": ("LabelledText", {"train": 233, "dev": 60, "test": 60}, {"sentences": 2}),
    "ve-{}": ("LabelledPairs", {"train": 6948, "val": 846, "test": 1098}, {"classes": ["contradiction", "neutral", "entailment"]}),
    "digits-{}": ("LabelledImages", {"train": 1442, "test": 355}, {"classes": 10}),
    "imagenet-select-{}": ("ImageFolder", {"train": 310, "val": 77}, {}),
    "refcoco+-{}": ("Regions", {"train": 1298}, {}),
}


@pytest.fixture(scope="module", autouse=True)
def pack(tmp_path_factory):
    """The pack, unpacked into a home of its own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XTOOLKIT_HOME", str(tmp_path_factory.mktemp("home")))
        yield sample_pack.ensure_sample_pack()


def build(part, kind, **block):
    tokenizer = load_tokenizer("sample://picturebook/tokenizer")
    return DATASET_REGISTRY.build({"type": kind, "path": f"sample://picturebook/{part}", **block}, "data",
                                  tokenizer=tokenizer, train=False, **SIZES)


def rows(part):
    file, = paths.resolve(f"sample://picturebook/{part}")
    return [json.loads(line) for line in Path(file).read_text().splitlines()]


@pytest.mark.parametrize("part", BLOCKS)
def test_every_sample_of_a_part_is_read(part):
    kind, counts, block = BLOCKS[part]
    for split, count in counts.items():
        dataset = build(part.format(split), kind, **block)
        assert len(dataset) == count, (split, len(dataset))
        labels = {str(dataset.load(0, n, 8, random.Random(n)).fields.get("label")) for n in range(0, count, max(1, count // 20))}
        assert not {"-1", "nan"} & labels


def test_questions_carry_what_a_score_needs(pack):
    official = json.loads((pack / "vqa/v2_mscoco_test2015_annotations.json").read_bytes())["annotations"]
    found = {row["question_id"]: row for row in rows("vqa-test")}
    assert found.keys() == {one["question_id"] for one in official}
    for one in official:
        row = found[one["question_id"]]
        said = [answer["answer"] for answer in one["answers"]]
        assert row["annotations"] == said and row["image_id"] == f"coco-{one['image_id']}"
        assert {a["text"]: a["weight"] for a in row["answers"]} == {s: pytest.approx(said.count(s) / 10) for s in said}
        assert (row["question_type"], row["answer_type"]) == (one["question_type"], one["answer_type"])
    item = build("vqa-test", "Questions").load(0, 5, 1, random.Random(0))
    assert item.fields["record"]["annotations"] == rows("vqa-test")[5]["annotations"]


def test_candidates_are_the_answers_of_train_and_nearly_all_that_test_asks_for(pack):
    path = paths.folder("sample://picturebook/vqa-answers")
    listed = Path(path).read_text().splitlines()
    train = json.loads((pack / "vqa/v2_mscoco_train2014_annotations.json").read_bytes())["annotations"]
    counts = collections.Counter(one["multiple_choice_answer"] for one in train)
    assert set(listed) == set(counts) and len(listed) == len(counts) == 320
    assert [counts[answer] for answer in listed] == sorted(counts.values(), reverse=True)
    reached = [max(min(1, row["annotations"].count(a) / 3) if a in counts else 0 for a in row["annotations"])
               for row in rows("vqa-test")]
    assert sum(reached) / len(reached) == pytest.approx(0.999, abs=5e-4)


def test_tests_of_glue_have_the_labels_that_lie_beside(pack):
    for task, folder in (("sst2", "SST-2"), ("cola", "CoLA"), ("rte", "RTE"), ("stsb", "STS-B")):
        lines = (pack / "glue" / folder / "test_labels.tsv").read_text().splitlines()[1:]
        assert [f"{row['id']}\t{row['label']:.3f}" if task == "stsb" else f"{row['id']}\t{row['label']}"
                for row in rows(f"glue-{task}-test")] == lines


@pytest.mark.parametrize("split", ["train", "val", "test"])
def test_words_alone_and_pictures_alone_say_nothing_of_entailment(split):
    found = collections.defaultdict(collections.Counter), collections.defaultdict(collections.Counter)
    for row in rows(f"ve-{split}"):
        found[0][row["sentid"]][row["label"]] += 1
        found[1][row["image"]][row["label"]] += 1
    assert {tuple(sorted(counts.items())) for counts in found[0].values()} == {
        (("contradiction", 1), ("entailment", 1), ("neutral", 1))}
    names = [row["id"] for row in rows(f"ve-{split}")]
    assert len(set(names)) == len(names), "rows of one picture are told apart"
    best = sum(max(counts.values()) for counts in found[1].values()) / sum(map(sum, map(dict.values, found[1].values())))
    assert best < 0.38  # who knew each test picture's most frequent label


def test_entailment_follows_from_the_words_of_the_caption(pack):
    """An independent reading: the names that Visual Genome's file has for things, looked for in the caption."""
    things, names = {}, {}
    for image in json.loads((pack / "vg/objects.json").read_bytes()):
        things[image["image_id"]] = {thing["names"][0] for thing in image["objects"]}
        names |= {thing["names"][0]: thing["names"] for thing in image["objects"]}
    said = lambda label, caption: any(re.search(rf"\b{re.escape(name)}(s|es)?\b", caption) for name in names[label])
    checked = 0
    for row in rows("ve-train"):
        shown, caption = things[int(row["image_id"][5:])], row["sentence"].lower()
        here, named = [said(label, caption) for label in shown], [label for label in names if said(label, caption)]
        if row["label"] == "entailment":
            assert sum(here) >= len(here) - 1, row  # "pair of jeans", "loaf of bread": other words than the name
            checked += all(here)
        elif row["label"] == "contradiction":
            assert not any(here) or len(named) > 1, row
            checked += not any(here)
        else:
            checked += any(here) and not set(named) <= shown
    assert checked > 0.85 * len(rows("ve-train"))


def test_the_choosing_split_is_a_fifth_of_each_class_of_train(pack):
    parts = [Path(paths.folder(f"sample://picturebook/imagenet-select-{split}")) for split in ("train", "val")]
    whole = {path.relative_to(pack / "imagenet/train"): path for path in (pack / "imagenet/train").glob("*/*")}
    rest, chosen = ({path.relative_to(part): path for path in part.glob("*/*")} for part in parts)
    assert not rest.keys() & chosen.keys() and rest.keys() | chosen.keys() == whole.keys()
    assert all(path.read_bytes() == whole[name].read_bytes() for name, path in {**rest, **chosen}.items())
    for folder in (pack / "imagenet/train").iterdir():
        count = len(list(folder.iterdir()))
        assert len(list((parts[1] / folder.name).iterdir())) == max(1, round(count / 5))


def test_digits_are_scikit_learns():
    found, seen = load_digits(), set()
    for split in ("train", "test"):
        dataset = build(f"digits-{split}", "LabelledImages", classes=10)
        for n in range(len(dataset)):
            item = dataset.load(0, n, 1, random.Random(0))
            number = int(item.image.name.removeprefix("digits-"))
            assert item.fields["label"] == found.target[number]
            seen.add(number)
    assert seen == set(range(len(found.target)))
    tar, = paths.resolve("sample://picturebook/digits-test")
    with tarfile.open(tar) as opened:
        member = next(m for m in opened if m.name.endswith(".png"))
        pixels = np.asarray(Image.open(io.BytesIO(opened.extractfile(member).read())))
    assert np.array_equal(pixels, (found.images[int(member.name[:4])] * 255 / 16).round())
