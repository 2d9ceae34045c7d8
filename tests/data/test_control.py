"""The control of shuffled pictures: every record is shown another one's, always the same, and nothing else changes."""

import json
import random
from collections import Counter

import pytest
import torch
from test_loader import same

from xtoolkit.data.errors import BadSample
from xtoolkit.data.loader import EvalLoader, Loader
from xtoolkit.registry import DATASET_REGISTRY, ConfigError
from xtoolkit.tasks.rows import told_rows

SIZES = {"image_size": 32, "patch_size": 8}
COUNT = 24  # records, over eight pictures: neighbours on a circle often show the same one


@pytest.fixture
def blocks(tmp_path, shards):
    folder = tmp_path / "pictures"
    folder.mkdir()
    for n in range(8):
        (folder / f"{n}.jpg").write_bytes(shards.jpeg(n))

    def table(kind, record):
        path = tmp_path / f"{kind}.jsonl"
        path.write_text("".join(json.dumps(record(n)) + "\n" for n in range(COUNT)))
        return {"type": kind, "path": str(path), "images": str(folder)}

    image = lambda n: f"{n % 8}.jpg"
    return {
        "Questions": table("Questions", lambda n: {"image": image(n), "question": f"dog {n}", "question_id": n, "answer": "a"}),
        "LabelledPairs": table("LabelledPairs", lambda n: {"image": image(n), "sentence": f"dog {n}", "label": n % 2}) |
        {"classes": 2},
        "LabelledTwoImages": table("LabelledTwoImages", lambda n: {"images": [image(n), image(n + 1)], "sentence": f"dog {n}",
                                                                   "label": n % 2}) | {"classes": 2},
        "Pairs": table("Pairs", lambda n: {"image": image(n), "caption": f"dog {n}"}),
        "Regions": table("Regions", lambda n: {"image": image(n), "regions": [{"box": [1, 2, 10 + n % 4, 9],
                                                                               "caption": f"dog {n}"}]})}


def build(block, tokenizer, train=False, **given):
    return DATASET_REGISTRY.build(block | given, "data", tokenizer=tokenizer, train=train, **SIZES)


def shown(batch):
    names = [field for name, field in batch.fields.items() if name in ("image", "second")]
    return list(zip(*(field.image_id for field in names)))


@pytest.mark.parametrize("kind", ["Questions", "LabelledPairs", "LabelledTwoImages", "Pairs", "Regions"])
def test_no_record_keeps_its_picture_and_all_else_is_as_it_was(kind, blocks, tokenizer):
    plain, = EvalLoader(build(blocks[kind], tokenizer), 99)
    other, = EvalLoader(build(blocks[kind], tokenizer, shuffle_pictures=True), 99)
    before, after = shown(plain), shown(other)
    assert len(before) == COUNT and all(not set(a) & set(b) for a, b in zip(before, after))
    counts = Counter(name for names in after for name in names)
    assert len(counts) == 8 and max(counts.values()) <= 3 * COUNT * len(after[0]) / 8, "pictures come about equally often"
    for name in ("text", "answers", "label", "region"):
        if name in plain.fields:
            assert same(type(plain)(it=plain[name]), type(plain)(it=other[name])), name
    assert all(plain.fields.get(name) == other.fields.get(name) for name in ("record", "captions"))
    called = (lambda batch: list(batch["name"])) if kind == "Regions" else (lambda batch: told_rows(batch)["id"])
    if "label" in plain.fields or kind == "Regions":  # questions have numbers, pairs are called by what is shown
        assert called(plain) == called(other) and len(set(called(plain))) >= 8, "a sample is called by its own record"
    pictures = dict(zip((names[0] for names in before), plain["image"].pixels))
    for names, pixels in zip(after, other["image"].pixels):
        assert torch.equal(pixels, pictures[names[0]])


def test_it_is_the_same_on_any_workers_ranks_visits_and_seeds(blocks, tokenizer):
    data = build(blocks["Questions"], tokenizer, train=True, shuffle_pictures=True)
    seen = {}
    for seed in (0, 1):
        for visit in range(6):
            batch = Loader("vqa", data, 8, seed, 0).at(visit)
            for said, name in zip(batch["text"].ids.tolist(), batch["image"].image_id):
                seen.setdefault(str(said), set()).add(name)
    assert all(len(names) == 1 for names in seen.values())
    whole, workers = Loader("vqa", data, 8, 0, 0).at(3), Loader("vqa", data, 8, 0, 2)
    assert same(workers.at(3), whole)
    workers.close()
    halves = [Loader("vqa", data, 8, 0, 0, rank, 2).at(3)["image"].image_id for rank in range(2)]
    assert halves[0] + halves[1] == whole["image"].image_id


def test_a_picture_that_is_another_file_with_the_same_content_is_its_own(blocks, tokenizer, tmp_path):
    for n in range(1, 8):
        (tmp_path / "pictures" / f"{n}.jpg").write_bytes((tmp_path / "pictures/0.jpg").read_bytes())
    data = build(blocks["Questions"], tokenizer, shuffle_pictures=True)
    with pytest.raises(BadSample, match="no other record has another picture"):
        data.load(0, 0, 1, random.Random(0))


def test_what_has_no_other_picture_is_an_error(blocks, tokenizer, tmp_path):
    path = tmp_path / "one.jsonl"
    path.write_text(json.dumps({"image": "1.jpg", "question": "dog", "answer": "a"}) + "\n")
    with pytest.raises(ConfigError, match="data.shuffle_pictures: .*one.jsonl has one record, and no other has a picture for it"):
        build(blocks["Questions"], tokenizer, path=str(path), shuffle_pictures=True)
