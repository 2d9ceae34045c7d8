"""What the sample pack's labels say is true of its pictures."""

import collections
import json
import pickle
import re

import pytest

from xtoolkit.prepare import sample_pack


@pytest.fixture(scope="session")
def pack(tmp_path_factory):
    """The pack, unpacked into a home of its own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XTOOLKIT_HOME", str(tmp_path_factory.mktemp("home")))
        return sample_pack.ensure_sample_pack()


def load(pack, name):
    return json.loads((pack / name).read_bytes())


@pytest.fixture(scope="session")
def scenes(pack):
    """Train picture id -> [(names, (x, y, w, h))]."""
    return {record["image_id"]: [(o["names"], (o["x"], o["y"], o["w"], o["h"])) for o in record["objects"]]
            for record in load(pack, "vg/objects.json")}


def test_boxes_lie_in_their_pictures(pack, scenes):
    boxes = [box for things in scenes.values() for _, box in things]
    for image in load(pack, "vg/region_descriptions.json"):
        boxes += [(r["x"], r["y"], r["width"], r["height"]) for r in image["regions"]]
    boxes += [a["bbox"] for a in load(pack, "refcoco+/instances.json")["annotations"]]
    assert all(x >= 0 and y >= 0 and w > 0 and h > 0 and x + w <= 96 and y + h <= 96 for x, y, w, h in boxes)


def test_left_right_above_below_in_captions_are_true(pack, scenes):
    pattern = re.compile(r"^(?:the|an?) (.+?)(?: is)? (to the left of|to the right of|above|below) (?:the|an?) ([^,]+?)"
                         r"(?:,| (?:on|in front of|above a misty) .*)?\.?$")
    checked = 0
    for image in load(pack, "coco/dataset_coco.json")["images"]:
        for said in image["sentences"] if image["split"] == "train" else ():
            match = pattern.match(said["raw"].rstrip(".").lower().split(", and")[0])
            if not match:
                continue
            first, how, second = match.groups()
            a, b = named(first, scenes[image["cocoid"]]), named(second, scenes[image["cocoid"]])
            if len(a) != 1 or len(b) != 1:       # "pair of jeans" and the like are spoken in another word than the name
                continue
            (ax, ay), (bx, by) = centre(a[0]), centre(b[0])
            holds = {"to the left of": ax < bx - 9, "to the right of": ax > bx + 9, "above": ay < by - 9,
                     "below": ay > by + 9}
            assert holds[how], (image["filename"], said["raw"])
            checked += 1
    assert checked > 600


def test_counts_in_captions_are_true(pack, scenes):
    numbers, checked = {"two": 2, "three": 3, "four": 4}, 0
    for image in load(pack, "coco/dataset_coco.json")["images"]:
        for said in image["sentences"] if image["split"] == "train" else ():
            for word, phrase in re.findall(r"\b(two|three|four) ((?:[a-z-]+ ?)+)", said["raw"].lower()):
                things = scenes[image["cocoid"]]
                names = {name for names, _ in things for name in names}
                spoken = [n for n in names if phrase.strip().startswith((n + "s", n + "es"))]
                if len(spoken) == 1:
                    assert len(named(spoken[0], things)) == numbers[word], (image["filename"], said["raw"])
                    checked += 1
    assert checked > 600


def named(name, things):
    return [box for names, box in things if name.strip() in names]


def centre(box):
    return box[0] + box[2] / 2, box[1] + box[3] / 2


def test_expressions_have_no_words_of_place_and_test_splits_are_by_life(pack):
    refs, instances = load(pack, "refcoco+/refs(unc).json"), load(pack, "refcoco+/instances.json")
    living = {c["id"] for c in instances["categories"] if c["supercategory"].startswith("animal-")}
    images = {i["cocoid"]: i for i in load(pack, "coco/dataset_coco.json")["images"]}
    for ref in refs:
        assert images[ref["image_id"]]["filename"] == ref["file_name"]
        assert images[ref["image_id"]]["split"] == (ref["split"] if ref["split"] in ("train", "val") else "test")
        if ref["split"].startswith("test"):
            assert (ref["split"] == "testA") == (ref["category_id"] in living)
        for sentence in ref["sentences"]:
            said = sentence["sent"].replace("top hat", "hat")
            assert not re.search(r"\b(left|right|top|bottom|middle|above|below)\b", said), sentence
    with (pack / "refcoco+" / "refs(unc).p").open("rb") as file:
        assert pickle.load(file) == refs


def test_the_biggest_box_is_the_floor_that_the_documents_give(pack):
    boxes, right, total = collections.defaultdict(dict), 0, 0
    for a in load(pack, "refcoco+/instances.json")["annotations"]:
        boxes[a["image_id"]][a["id"]] = a["bbox"]
    for ref in load(pack, "refcoco+/refs(unc).json"):
        if ref["split"].startswith("test"):
            x, y, w, h = max(boxes[ref["image_id"]].values(), key=lambda box: box[2] * box[3])
            a, b, c, d = boxes[ref["image_id"]][ref["ann_id"]]
            both = max(0, min(x + w, a + c) - max(x, a)) * max(0, min(y + h, b + d) - max(y, b))
            right += len(ref["sentences"]) * (both / (w * h + c * d - both) >= 0.5)
            total += len(ref["sentences"])
    assert right / total == pytest.approx(0.37, abs=0.01)


def test_vqa_is_balanced_and_names_vary(pack):
    answers = load(pack, "vqa/v2_mscoco_train2014_annotations.json")["annotations"]
    yes = [a["multiple_choice_answer"] == "yes" for a in answers if a["answer_type"] == "yes/no"]
    assert 0.47 < sum(yes) / len(yes) < 0.53
    several = [len({x["answer"] for x in a["answers"]}) > 1 for a in answers if a["answer_type"] == "other"]
    assert sum(several) / len(several) > 0.15
    assert "0" in {a["multiple_choice_answer"] for a in answers if a["answer_type"] == "number"}


def test_every_nlvr2_sentence_is_once_true_and_once_false_and_its_pictures_are_there(pack):
    for split, root in (("train", "train"), ("dev", "val2014"), ("test1", "val2014")):
        labels = collections.defaultdict(set)
        for line in (pack / "nlvr2" / f"{split}.json").read_text().splitlines():
            record = json.loads(line)
            labels[record["sentence"]].add(record["label"])
            folder = pack / "nlvr2" / "images" / split / (record["directory"] if split == "train" else "")
            pair = record["identifier"].rpartition("-")[0]
            for number, side in enumerate(("left", "right")):
                assert record[side].startswith(root)
                found = (folder / f"{pair}-img{number}.png").read_bytes()
                assert found == (pack / "coco/images" / record[side]).read_bytes()
        assert set(map(frozenset, labels.values())) == {frozenset(("True", "False"))}
