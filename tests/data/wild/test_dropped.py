"""What is wrong beside what is right in one record: the right part is read, and each wrong one is a bad sample that is counted."""

import json
import random

from xtoolkit.data.datasets import Pairs, Regions

SIZES = {"image_size": 32, "patch_size": 8}


def said(dropped):
    return [(bad.kind, str(bad).partition(": ")[2].partition(": ")[2].partition(": ")[2]) for bad in dropped]


def test_regions_of_a_wrong_shape_are_counted_beside_good_ones(tmp_path, shards, tokenizer):
    regions = [{"box": [1, 2, 9, 9], "caption": "a dog"}, {"bbox": [1, 2, 3, 4], "caption": "a"}, "none",
               {"box": [1, 2, "3", 4], "caption": "b"}, {"box": [1, 2, 9, 9], "caption": 7}, {"box": [1, 2, 9, 9], "caption": ["a cat", 5]}]
    path = shards.tar(tmp_path / "x.tar", [("0.jpg", shards.jpeg(1)), ("0.json", json.dumps({"regions": regions}).encode())])
    item = Regions(tokenizer, **SIZES, path=path, train=False).load(0, 0, 1, random.Random(0))
    assert [tokenizer.decode(text.ids).strip() for text in item.texts] == ["a dog", "a cat"]
    box = "`box` must be four numbers x, y, w, h, not "
    assert said(item.dropped) == [
        ("bad box", f"region 1: {box}None"), ("empty caption", "region 2: captions must be strings, not None"),
        ("bad box", f"region 2: {box}None"), ("bad box", f"region 3: {box}[1, 2, '3', 4]"),
        ("empty caption", "region 4: captions must be strings, not 7"), ("empty caption", "region 5: captions must be strings, not 5")]


def test_captions_that_are_no_texts_are_counted_beside_those_that_are(tmp_path, shards, tokenizer):
    path = shards.tar(tmp_path / "x.tar", [("0.jpg", shards.jpeg(1)), ("0.json", b'{"captions": ["a dog", 5, null, "", "a cat"]}')])
    for train, texts in ((True, 1), (False, 2)):
        item = Pairs(tokenizer, **SIZES, path=path, train=train).load(0, 0, 1, random.Random(4))
        assert len(item.texts) == texts
        assert said(item.dropped)[:2] == [("empty caption", f"captions must be strings, not {value}") for value in (5, None)]
