"""Datasets of tasks and their fields: what of a record arrives in a batch, in training and in evaluation, and in the plan."""

import json
import random
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from test_loader import same

from xtoolkit.batch import Batch, TextField
from xtoolkit.cli.show import items_of
from xtoolkit.data.classes import ImageFolder
from xtoolkit.data.labelled import LabelledPairs, LabelledText
from xtoolkit.data.loader import EvalLoader, Loader
from xtoolkit.data.text import load_tokenizer
from xtoolkit.engine import checkpoint
from xtoolkit.fields import AnswerField
from xtoolkit.recipe.config import load as load_config
from xtoolkit.recipe.folder import latest
from xtoolkit.registry import DATASET_REGISTRY, ConfigError, filled

ROOT = Path(__file__).resolve().parents[2]
SIZES = {"image_size": 32, "patch_size": 8}
KINDS = ("LabelledText", "LabelledImages", "ImageFolder", "LabelledPairs", "LabelledTwoImages", "Questions", "Videos")
PLAIN = {"crop_scale": None, "flip": 0.0, "randaugment": None}


def lines(path, records) -> str:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return str(path)


@pytest.fixture
def pictures(tmp_path, shards):
    """A folder of twelve pictures."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    for n in range(12):
        (folder / f"{n}.jpg").write_bytes(shards.jpeg(n))
    return str(folder)


@pytest.fixture
def blocks(tmp_path, pictures, shards):
    """A data block of each kind, over twelve records."""
    names = ["no", "maybe", "yes"]
    for n in range(12):
        folder = tmp_path / "folder" / names[n % 3]
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{n}.JPEG").write_bytes(shards.jpeg(n))
    tar = [m for n in range(12) for m in shards.sample(n, image_id=n, label=names[n % 3])]
    answers = lambda n: [{"text": f"{word} dog", "weight": 1 / (1 + k)} for k, word in enumerate(["a", "two", "red"][:1 + n % 3])]
    records = {
        "LabelledText": lambda n: {"text": "a red dog" + " dog" * n, "second_text": "two small cat", "label": n / 3},
        "LabelledPairs": lambda n: {"image": f"{n}.jpg", "sentence": f"A red dog {n}.", "label": names[n % 3]},
        "LabelledTwoImages": lambda n: {"images": [f"{n}.jpg", f"{(n + 1) % 12}.jpg"], "sentence": f"dog {n}",
                                        "label": n % 2 == 0},
        "Questions": lambda n: {"image": f"{n}.jpg", "question": f"dog {n}", "question_id": 100 + n, "answers": answers(n)},
        "Videos": lambda n: {"frames": [f"{(n + t) % 12}.jpg" for t in range(6)], "captions": [f"a dog {n}", "two cat"],
                             "video_id": f"v{n}"},
    }
    found = {name: {"type": name, "path": lines(tmp_path / f"{name}.jsonl", map(record, range(12))), "images": pictures}
             for name, record in records.items()}
    del found["LabelledText"]["images"]
    found["LabelledText"] |= {"sentences": 2, "max_tokens": 16}
    found["LabelledImages"] = {"type": "LabelledImages", "path": shards.tar(tmp_path / "labelled.tar", tar)}
    found["ImageFolder"] = {"type": "ImageFolder", "path": str(tmp_path / "folder")}
    for name in ("LabelledImages", "LabelledPairs", "ImageFolder"):
        found[name]["classes"] = names
    found["LabelledTwoImages"]["classes"] = ["False", "True"]
    return found


def build(block, tokenizer=None, **given):
    return DATASET_REGISTRY.build(block, "here", tokenizer=tokenizer, **SIZES, **given)


def one(block, tokenizer, train=False) -> Batch:
    """All samples of a block in one batch."""
    whole, = EvalLoader(build(block | ({"augment": PLAIN} if train else {}), tokenizer, train=train), 99)
    return whole


# ---- every dataset --------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("kind", KINDS)
def test_an_example_has_the_fields_and_shapes_of_a_batch(kind, blocks, tokenizer):
    cls, block = DATASET_REGISTRY.get(kind), blocks[kind]
    batch = Loader(kind, build(block, tokenizer), 4, 1, 0).at(0)
    made = cls.example(filled(cls, block), 4, SIZES, frozenset())
    assert set(made) == set(batch) == set(cls.FIELDS) and made.size == batch.size == 4

    def compare(mine, field, trail):
        for name, value in vars(field).items():
            given = getattr(mine, name)
            if isinstance(value, torch.Tensor):
                assert given.is_meta and given.dtype == value.dtype and given.shape[2:] == value.shape[2:], (trail, name)
                assert given.dim() == value.dim()
            elif isinstance(value, TextField):
                compare(given, value, name)
            else:
                assert type(given) is type(value), name

    for name, field in batch.items():
        assert type(made[name]) is cls.FIELDS[name] is type(field)
        compare(made[name], field, name)
    blind = cls.example(filled(cls, block), 4, {}, frozenset())
    assert set(blind) == set(cls.FIELDS) - {"image", "second", "video"}, "no encoder reads pictures"


@pytest.mark.parametrize("kind", KINDS)
def test_batches_are_a_function_of_seed_and_visit_on_any_workers_and_ranks(kind, blocks, tokenizer):
    data = build(blocks[kind], tokenizer)
    here = [Loader(kind, data, 4, 1, 0).at(visit) for visit in range(4)]
    workers = Loader(kind, data, 4, 1, 2)
    assert all(same(workers.at(visit), here[visit]) for visit in range(4))
    assert same(workers.at(2), here[2]), "after a jump, as a resumed run begins"
    workers.close()
    halves = [Loader(kind, data, 4, 1, 0, rank, 2).at(3) for rank in range(2)]
    for name, field in here[3].fields.items():
        joined = type(field).cat([half[name] for half in halves])
        if isinstance(field, AnswerField):
            joined, field = (Batch(row=one.row, weight=one.weight, length=one.text.mask.sum(1), key=one.text.key)
                             for one in (joined, field))
        elif isinstance(field, TextField):
            joined, field = (Batch(length=one.mask.sum(1), key=one.key) for one in (joined, field))
        assert same(Batch(it=joined), Batch(it=field)), name


@pytest.mark.parametrize("kind", KINDS)
def test_every_field_moves_selects_and_joins(kind, blocks, tokenizer):
    batch = Loader(kind, build(blocks[kind], tokenizer), 4, 1, 0).at(0)
    assert same(batch.to("cpu"), batch) and batch.to("meta").size == 4
    for name, field in batch.fields.items():
        assert field.rows == 4
        chosen, alone = field.select(torch.tensor([2, 0, 2])), [field.select(torch.tensor([row])) for row in (2, 0, 2)]
        assert chosen.rows == 3 and same(Batch(it=chosen), Batch(it=type(field).cat(alone))), name
        assert type(field).cat([field, field]).rows == 8


@pytest.mark.parametrize("kind", KINDS[1:])
def test_pictures_come_back_for_the_report(kind, blocks, tokenizer):
    data = build(blocks[kind], tokenizer, train=False)
    shown = data.pictures(next(iter(EvalLoader(data, 12))))
    assert len(shown) == (48 if kind == "Videos" else 12) and all(p.dtype == torch.uint8 for p in shown.values())


@pytest.mark.parametrize("kind, pictures_shown", [("LabelledText", 0), ("LabelledTwoImages", 2), ("Videos", 4), ("Questions", 1)])
def test_what_show_draws_of_a_sample(kind, pictures_shown, blocks, tokenizer):
    data = build(blocks[kind], tokenizer)
    batch = data.collate([data.load(0, 3, 1, random.Random(0))])
    shown = items_of(data, batch, tokenizer)
    assert [set(item) for item in shown] == [{"image", "caption"}] * pictures_shown + [{"words"}]
    assert "".join(word for word, *_ in shown[-1]["words"]) == tokenizer.decode(batch["text"].ids[0])


# ---- labels ---------------------------------------------------------------------------------------------------------------
def test_labels_are_numbers_in_the_order_of_the_classes(blocks, tokenizer):
    for kind in ("LabelledImages", "LabelledPairs"):
        batch = one(blocks[kind], tokenizer)
        assert batch["label"].value.dtype == torch.int64 and batch["label"].value.tolist() == [0, 1, 2] * 4
        assert build(blocks[kind], tokenizer).names == ["no", "maybe", "yes"]
        assert batch["record"][1]["label"] == "maybe"
    two = one(blocks["LabelledTwoImages"], tokenizer)
    assert two["label"].value.tolist() == [1, 0] * 6, "true and \"True\" are one class"
    assert two["image"].image_id == [f"{n}.jpg" for n in range(12)] and two["second"].image_id[-1] == "0.jpg"
    assert torch.equal(two["second"].pixels[0], two["image"].pixels[1])
    assert torch.equal(two["second"].key[:-1], two["image"].key[1:])


def test_without_classes_a_label_is_a_target(blocks, tokenizer):
    value = one(blocks["LabelledText"], tokenizer)["label"].value
    assert value.dtype == torch.float32 and torch.equal(value, torch.arange(12) / 3)
    assert build(blocks["LabelledText"], tokenizer).names is None
    example = LabelledText.example(filled(LabelledText, {"classes": 3}), 2, {}, frozenset())
    assert example["label"].value.dtype == torch.int64


@pytest.mark.parametrize("classes, label, number", [
    (["bad", "good"], "good", 1), (["bad", "good"], 1, 1), (["bad", "good"], "1", 1), (3, 2, 2), (3, "2", 2),
    (["1", "2", "3"], "1", 0), (["1", "2", "3"], 1, 0),  # where names are numbers, a number is a name
    (["False", "True"], True, 1), (None, "2.5", 2.5), (None, 3, 3.0)])
def test_what_a_label_means(classes, label, number, tmp_path, tokenizer):
    block = {"type": "LabelledText", "path": lines(tmp_path / "x.jsonl", [{"text": "a dog", "label": label}]), "classes": classes}
    assert one(block, tokenizer)["label"].value.tolist() == [number]


def test_a_split_whose_labels_are_secret_is_evaluated_and_never_trained_on(tmp_path, tokenizer):
    block = {"type": "LabelledText", "path": lines(tmp_path / "x.jsonl", [{"text": "a dog", "label": None}])}
    assert one(block | {"classes": 2}, tokenizer)["label"].value.tolist() == [-1]
    assert one(block, tokenizer)["label"].value.isnan().all()
    with pytest.raises(Exception, match="no label"):
        build(block, tokenizer).load(0, 0, 1, random.Random(0))


def test_classes_of_a_folder_are_its_folders_and_those_of_val_must_be_those_of_train(blocks, tmp_path, shards):
    block = {"type": "ImageFolder", "path": blocks["ImageFolder"]["path"]}
    data = build(block, train=False)
    assert data.names == ["maybe", "no", "yes"], "sorted"
    whole, = EvalLoader(data, 99)
    assert whole["label"].value.tolist() == [0] * 4 + [1] * 4 + [2] * 4
    assert whole["image"].image_id[0] == "maybe/1.JPEG" and data.place(0, 0).endswith("folder/maybe/1.JPEG")
    val = tmp_path / "val"
    for name in ("yes", "maybe", "perhaps"):
        (val / name / "deep").mkdir(parents=True)
        (val / name / "deep" / "a.png").write_bytes(shards.jpeg(1))
        (val / name / "notes.txt").write_text("no picture")
    with pytest.raises(ConfigError, match=r"val: folders that are no class: perhaps \(1; there are 3 classes of .*folder\)"):
        build({"type": "ImageFolder", "path": str(val), "classes": block["path"]})
    (val / "perhaps" / "deep" / "a.png").unlink(), (val / "perhaps" / "notes.txt").unlink()
    (val / "perhaps" / "deep").rmdir(), (val / "perhaps").rmdir()
    with pytest.raises(ConfigError, match=r"val: no picture of the class: no \(1; there are 3 classes"):
        build({"type": "ImageFolder", "path": str(val), "classes": block["path"]})
    assert build({"type": "ImageFolder", "path": str(val)}).names == ["maybe", "yes"]
    (tmp_path / "classes.txt").write_text("\ufeffyes\r\nmaybe\n\n")
    data = build({"type": "ImageFolder", "path": str(val), "classes": str(tmp_path / "classes.txt")})
    assert data.names == ["yes", "maybe"] and [data.load(0, n, 1, random.Random(0)).fields["label"] for n in (0, 1)] == [0, 1]


def test_folders_of_several_sources_have_the_classes_of_the_first(blocks, tmp_path, shards):
    train, val = blocks["ImageFolder"]["path"], tmp_path / "val"
    for name in ("maybe", "no", "yes"):
        (val / name).mkdir(parents=True)
        (val / name / "1.JPEG").write_bytes(shards.jpeg(20))
    block = {"type": "ImageFolder", "sources": {"train": {"path": train}, "val": {"path": str(val), "weight": 3}}}
    data = build(block, train=False)
    batch, = EvalLoader(data, 99)
    assert data.sizes == [12, 3] and batch["source"] == ["train"] * 12 + ["val"] * 3
    assert batch["label"].value.tolist() == [0] * 4 + [1] * 4 + [2] * 4 + [0, 1, 2]
    names = batch["image"].image_id
    assert names[0] == "train/maybe/1.JPEG" and names[12] == "val/maybe/1.JPEG" and len(set(names)) == 15
    assert len(set(batch["image"].key.tolist())) == 15 and data.place(1, 2).endswith("val/yes/1.JPEG")
    alone = build({"type": "ImageFolder", "path": train})
    assert data.digests.keys() == {"train", "val"} and data.digests["train"] == alone.digests["data"]
    drawn = [slot.source for visit in range(50) for slot in build(block).order(0, "s", 8).slots(visit)]
    assert 0.7 < sum(drawn) / len(drawn) < 0.8 and "source" not in Loader("s", build(block), 4, 1, 0).at(0)
    pack = "sample://picturebook/imagenet"
    assert ImageFolder.missing({"path": f"{pack}-train", "classes": f"{pack}-val"}) == []
    assert ImageFolder.missing({"path": f"{val}/no/1.JPEG"}) == [("path", f"{val}/no/1.JPEG: no such folder")]
    (key, line), = ImageFolder.missing({"path": pack})
    assert key == "path" and "no part `imagenet`" in line
    (val / "perhaps").mkdir()
    for wrong, message in (({}, "data.sources.val.path: .*val: folders that are no class: perhaps"),
                           ({"path": train}, "data.path: give either `path` or `sources"),
                           ({"sources": {"val": {"path": "nowhere"}}}, "data.sources.val.path: nowhere: no such folder")):
        with pytest.raises(ConfigError, match=message):
            build(block | wrong)


def test_a_row_of_evaluated_records_names_its_source(blocks, tokenizer):
    path = blocks["LabelledImages"].pop("path")
    block = blocks["LabelledImages"] | {"sources": {"bank": {"path": path}, "asked": {"path": path}}}
    assert one(block, tokenizer)["source"] == ["bank"] * 12 + ["asked"] * 12


def test_folders_are_looked_for_before_anything_loads(blocks, tmp_path):
    folder = {"path": blocks["ImageFolder"]["path"], "classes": str(tmp_path / "none")}
    assert [key for key, _ in ImageFolder.paths(folder)] == ["path", "classes"]
    (key, said), = ImageFolder.missing(folder)
    assert key == "classes" and "none: no such file or folder; give names, a file of a name a line" in said
    assert ImageFolder.missing({"path": "nowhere"}) == [("path", "nowhere: no such folder")]
    block = filled(LabelledPairs, blocks["LabelledPairs"] | {"classes": blocks["LabelledPairs"]["path"]})
    assert [key for key, _ in LabelledPairs.paths(block)] == ["images", "path", "classes"] and LabelledPairs.missing(block) == []
    wrong = LabelledPairs.missing(block | {"images": "nowhere", "classes": "nowhere"})
    assert [key for key, _ in wrong] == ["images", "classes"] and "no such folder" in wrong[0][1]
    shot = tmp_path / "shot.json"
    shot.write_text("[]")
    assert "one JSON text, not JSON Lines" in LabelledPairs.missing(block | {"path": str(shot)})[0][1]


# ---- texts ----------------------------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory):
    """(ours, Hugging Face's) of the sample pack, which is like RoBERTa's, and of one like BERT's."""
    from transformers import BertTokenizerFast, PreTrainedTokenizerFast

    import xtoolkit.prepare.sample  # noqa: F401  answers for sample://
    from xtoolkit.data import paths

    folder, = paths.resolve("sample://picturebook/tokenizer")
    bert = tmp_path_factory.mktemp("bert")
    words = "[PAD] [UNK] [CLS] [SEP] [MASK] a red dog cat ##s two tree the of grass ! ?".split()
    (bert / "vocab.txt").write_text("\n".join(words))
    like_bert = BertTokenizerFast.from_pretrained(bert)
    assert like_bert.vocab_size == len(words)
    like_bert.backend_tokenizer.save(str(bert / "tokenizer.json"))
    return [(load_tokenizer(folder), PreTrainedTokenizerFast(tokenizer_file=str(Path(folder) / "tokenizer.json"))),
            (load_tokenizer(str(bert)), like_bert)]


@pytest.mark.parametrize("which", [0, 1], ids=["RoBERTa", "BERT"])
def test_pairs_have_the_ids_of_transformers(which, tokenizers):
    ours, theirs = tokenizers[which]
    rng, words = random.Random(0), "a red dog cats two tree the of grass! ?".split()
    for trial in range(300):
        a, b = (" ".join(rng.choices(words, k=rng.randint(1, 14))) for _ in range(2))
        most = rng.randint(6, 24)
        wanted = theirs(a, b, truncation=True, max_length=most)["input_ids"]
        ids, starts = ours.encode_pair(a, b, most)
        assert ids.tolist() == wanted, (a, b, most)
        assert len(starts) == len(ids) and all(start == -1 for start, i in zip(starts, ids) if i in (ours.bos, ours.eos))
        assert ours.encode_pair(a, b)[0].tolist() == theirs(a, b)["input_ids"]
        assert ours.encode(a, most) == theirs(a, truncation=True, max_length=most)["input_ids"]


def test_one_text_or_two(blocks, tokenizer):
    block = blocks["LabelledText"]
    batch = one(block, tokenizer)
    wanted = tokenizer.encode_pair("a red dog", "two small cat", 16)[0].tolist()
    assert batch["text"].ids[0][batch["text"].mask[0]].tolist() == wanted
    assert batch["text"].ids.shape[1] == 16, "the longest is cut"
    alone = one(block | {"sentences": 1}, tokenizer)["text"]
    assert tokenizer.decode(alone.ids[2]) == "a red dog dog dog"
    with pytest.raises(ConfigError, match="data.max_tokens: 5 have no room for two texts"):
        build(block | {"max_tokens": 5}, tokenizer)


# ---- other files ----------------------------------------------------------------------------------------------------------
def test_the_columns_of_a_csv_and_the_names_in_a_tar(tmp_path, pictures, shards, tokenizer):
    (tmp_path / "a.tsv").write_text("sentence1\tsentence2\tlabel\na dog\ttwo cat\tyes\na cat\tred\tno\n")
    batch = one({"type": "LabelledText", "path": str(tmp_path / "a.tsv"), "sentences": 2, "classes": ["no", "yes"]}, tokenizer)
    assert batch["label"].value.tolist() == [1, 0]
    assert batch["text"].ids[0][batch["text"].mask[0]].tolist() == tokenizer.encode_pair("a dog", "two cat")[0].tolist()
    (tmp_path / "b.csv").write_text("file_name,text,label\n1.jpg,a dog,0.5\n")
    batch = one({"type": "LabelledPairs", "path": str(tmp_path / "b.csv"), "images": pictures}, tokenizer)
    assert batch["label"].value.tolist() == [0.5] and batch["image"].image_id == [str(tmp_path / "pictures/1.jpg")]
    (tmp_path / "c.csv").write_text("image,question,answer,weight\n1.jpg,dog,a cat,0.3\n")
    answers = one({"type": "Questions", "path": str(tmp_path / "c.csv"), "images": pictures}, tokenizer)["answers"]
    assert answers.weight.tolist() == pytest.approx([0.3]) and tokenizer.decode(answers.text.ids[0]) == "a cat"
    tar = shards.tar(tmp_path / "d.tar", shards.sample(3, sentence="a dog", second="4.jpg", label=1))
    batch = one({"type": "LabelledTwoImages", "path": tar, "images": pictures, "classes": 2}, tokenizer)
    assert batch["image"].image_id == [f"{tmp_path}/d.tar:000003"] and batch["second"].image_id == ["4.jpg"]
    assert not torch.equal(batch["image"].pixels, batch["second"].pixels)


# ---- answers --------------------------------------------------------------------------------------------------------------
def test_answers_stand_one_after_the_other(blocks, tokenizer):
    answers = one(blocks["Questions"], tokenizer)["answers"]
    assert answers.count.tolist() == [1, 2, 3] * 4 and answers.rows == 12
    assert answers.row[:7].tolist() == [0, 1, 1, 2, 2, 2, 3]
    assert answers.weight[:6].tolist() == pytest.approx([1, 1, 0.5, 1, 0.5, 1 / 3])
    assert [tokenizer.decode(ids) for ids in answers.text.ids[3:6]] == ["a dog", "two dog", "red dog"]
    some = answers.select(torch.tensor([2, 0, 2]))
    assert some.count.tolist() == [3, 1, 3] and some.row.tolist() == [0, 0, 0, 1, 2, 2, 2]
    assert [tokenizer.decode(ids) for ids in some.text.ids[3:5]] == ["a dog", "a dog"] and some.weight.tolist()[:2] == [1, 0.5]
    joined = AnswerField.cat([some, answers])
    assert joined.rows == 15 and joined.row.tolist() == some.row.tolist() + (answers.row + 3).tolist()


@pytest.mark.parametrize("told, wanted", [
    ({"answer": "dog", "weight": 0.5}, [("dog", 0.5)]),  # a single answer
    ({"answer": ["dog", "cat"], "weight": [1.0, 0.3]}, [("dog", 1), ("cat", 0.3)]),
    ({"answer": ["dog", "cat"], "weight": 0.5}, [("dog", 0.5), ("cat", 0.5)]),
    ({"answer": ["dog"] * 7 + ["cat"] * 3}, [("dog", 0.7), ("cat", 0.3)]),  # as X-VLM's lists count
    ({"answers": [{"text": "Dog", "weight": 1}]}, [("Dog", 1)]),
    ({"answers": [{"answer": "dog", "answer_confidence": "yes"}] * 3 + [{"answer": "cat"}]}, [("dog", 0.75), ("cat", 0.25)]),
    ({"answers": [{"answer": "dog", "weight": 0.3}, {"answer": "cat", "weight": 1}]}, [("dog", 0.3), ("cat", 1.0)]),
    ({}, []), ({"answers": []}, [])])
def test_forms_of_answers(told, wanted, tmp_path, pictures, tokenizer):
    path = lines(tmp_path / "q.jsonl", [{"image": "1.jpg", "question": "dog?", "question_id": 7} | told])
    batch = one({"type": "Questions", "path": path, "images": pictures}, tokenizer)
    found = batch["answers"]
    assert [tokenizer.decode(ids) for ids in found.text.ids] == [text for text, _ in wanted]
    assert found.weight.tolist() == pytest.approx([weight for _, weight in wanted]) and found.count.tolist() == [len(wanted)]
    record, = batch["record"]
    assert record.items() >= ({"question": "dog?", "question_id": 7} | told).items(), "all of it, on the host"


# ---- videos ---------------------------------------------------------------------------------------------------------------
def test_frames_are_the_middle_of_equal_parts_and_any_of_them_in_training(blocks, tokenizer):
    block = blocks["Videos"] | {"frames": 3}
    whole = one(block, tokenizer)
    assert whole["video"].pixels.shape == (12, 3, 3, 32, 32) and whole["video"].video_id[3] == "v3"
    single = one(blocks["LabelledPairs"], tokenizer)["image"].pixels
    assert torch.equal(whole["video"].pixels[0], single[[1, 3, 5]]), "of six frames"
    assert whole["image_index"].tolist() == [n // 2 for n in range(24)] and len(whole["record"]) == 24
    few = one(block | {"frames": 12}, tokenizer)["video"].pixels[0]
    assert torch.equal(few, single[[t // 2 for t in range(12)]]), "fewer frames than asked for stand there more than once"
    data, drawn = build(block | {"augment": PLAIN}, tokenizer), set()
    for seed in range(40):
        pixels = data.load(0, 0, 1, random.Random(seed)).fields["video"][0]
        drawn.add(tuple(next(n for n in range(6) if torch.equal(frame, single[n])) for frame in pixels))
    assert len(drawn) == 8 and all(a // 2 == 0 and b // 2 == 1 and c // 2 == 2 for a, b, c in drawn)


def test_frames_of_a_video_are_augmented_alike(tmp_path, pictures, tokenizer):
    path = lines(tmp_path / "v.jsonl", [{"frames": ["5.jpg"] * 4, "caption": "a dog"}])
    data = build({"type": "Videos", "path": path, "images": pictures}, tokenizer)
    made = [data.load(0, 0, 1, random.Random(seed)).fields["video"][0] for seed in range(8)]
    assert all(torch.equal(frame, pixels[0]) for pixels in made for frame in pixels)
    assert not torch.equal(made[0], made[1])


def test_a_picture_is_not_mirrored_where_a_text_says_left_or_right(tmp_path, pictures, tokenizer):
    for said, mirrored in (("the dog on the left", False), ("a dog", True)):
        path = lines(tmp_path / "p.jsonl", [{"images": ["5.jpg", "5.jpg"], "sentence": said, "label": 1}])
        block = {"type": "LabelledTwoImages", "path": path, "images": pictures, "classes": 2, "augment": PLAIN | {"flip": 1.0}}
        item, plain = build(block, tokenizer).load(0, 0, 1, random.Random(0)), one(block, tokenizer)["image"].pixels[0]
        for image in (item.image, item.fields["second"]):
            assert torch.equal(image.pixels, plain.flip(2) if mirrored else plain)


# ---- the page -------------------------------------------------------------------------------------------------------------
PAGE = (ROOT / "docs/data.md").read_text()
PAGE_OF_TASKS = PAGE[PAGE.index("## Data of tasks"):PAGE.index("## Paths")]
EXAMPLES = re.findall(r"```json\n(\{.*\})\n```\n\n```yaml\n(.*)\n```", PAGE_OF_TASKS)


@pytest.mark.parametrize("line, block", EXAMPLES, ids=[re.search(r"type: (\w+)", block)[1] for _, block in EXAMPLES])
def test_the_rows_of_the_page_are_read_by_the_blocks_of_the_page(line, block, tmp_path, shards, tokenizer):
    (tmp_path / "block.yaml").write_text(f"block: {block}\n")
    (tmp_path / "rows.jsonl").write_text(line + "\n")
    record, block = json.loads(line), load_config(str(tmp_path / "block.yaml")).data["block"]
    for n, name in enumerate([*record.get("images", ()), *record.get("frames", ()), record.get("image")]):
        if name:
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_bytes(shards.jpeg(n))
    block |= {"path": str(tmp_path / "rows.jsonl")} | ({"images": str(tmp_path)} if "images" in block else {})
    batch = one(block, tokenizer)
    assert set(DATASET_REGISTRY.get(block["type"]).FIELDS) <= set(batch) and batch["record"][0].items() >= {
        k: v for k, v in record.items() if k not in ("image", "text")}.items()
    assert "label" not in record or batch["label"].value.tolist() == [block["classes"].index(record["label"])]


def test_the_page_has_every_dataset_and_every_kind_of_bad_sample():
    headings = re.findall(r"^### .*$", PAGE_OF_TASKS, re.M)
    assert sorted(re.findall(r"type: (\w+)", " ".join(headings))) == sorted(KINDS)
    code = "".join((ROOT / f"xtoolkit/data/{name}.py").read_text() for name in ("record", "labelled"))
    told = set(re.findall(r"bad\(\"([a-z ]+)\"", code)) | {"unknown class", "label out of range"}
    assert len(told) > 8 and [kind for kind in sorted(told) if f"`{kind}`" not in PAGE] == []


# ---- in a recipe ----------------------------------------------------------------------------------------------------------
PLUGIN = '''
import torch
from torch import nn
from xtoolkit.batch import Batch
from xtoolkit.encoders.base import Encoder
from xtoolkit.features import Encoded
from xtoolkit.fields import VideoField
from xtoolkit.graph import Need
from xtoolkit.losses.base import Loss
from xtoolkit.registry import ENCODER_REGISTRY, LOSS_REGISTRY

@ENCODER_REGISTRY.register
class ToyVideo(Encoder):
    """The mean of each frame's colours. YAML: {type: ToyVideo, inputs: {video: $video}}"""

    def __init__(self, width: int = 16, image_size: int = 32, patch_size: int = 8):
        super().__init__()
        self.width, self.image_size, self.patch_size, self.layer = width, image_size, patch_size, nn.Linear(3, width)

    def forward(self, *, view, video: VideoField) -> Encoded:
        return Encoded.of(self.layer(video.pixels.mean((3, 4))))

@LOSS_REGISTRY.register
class ToyLinear(Loss):
    """A linear layer on summaries. YAML: {type: ToyLinear, features: [vision], field: $label, classes: 3}"""

    def __init__(self, features: list[str], field: str, classes: int = 1, *, widths: dict):
        super().__init__()
        self.features, self.field, self.head = features, field, nn.Linear(sum(widths[f] for f in features), classes)

    @classmethod
    def needs(cls, block):
        return [Need(ref) for ref in [*block["features"], block["field"]]]

    def forward(self, f, batch):
        logits, field = self.head(torch.cat([f[ref].pooled for ref in self.features], 1)).float(), f[self.field]
        if "Answer" in type(field).__name__:
            words = nn.functional.cross_entropy(logits[field.row], field.text.ids[:, 1], reduction="none")
            return f.mean((field.weight * words).mean(), lambda b: len(b["answers"].row))
        if "Label" not in type(field).__name__:
            return logits.square().mean()
        if field.value.is_floating_point():
            return nn.functional.mse_loss(logits[:, 0], field.value)
        return nn.functional.cross_entropy(logits, field.value)
'''
RECIPE = '''
plugins: [toy.py]
tokenizer: {tokenizer}
encoders:
  vision: {{type: BEiTv2, inputs: {{image: $image}}, width: 16, layers: 1, heads: 2, patch_size: 8, image_size: 32}}
  other:  {{shares: vision, inputs: {{image: $second}}}}
  text:   {{type: RoBERTa, inputs: {{text: $text}}, width: 16, layers: 1, heads: 2, vocab_size: 320, max_positions: 40}}
  video:  {{type: ToyVideo, inputs: {{video: $video}}}}
losses:
  sentence: {{type: ToyLinear, features: [text], field: $label}}
  picture:  {{type: ToyLinear, features: [vision], field: $label, classes: 3}}
  both:     {{type: ToyLinear, features: [vision, text], field: $label, classes: 3}}
  two:      {{type: ToyLinear, features: [vision, other, text], field: $label, classes: 2}}
  answer:   {{type: ToyLinear, features: [vision, text], field: $answers, classes: 320}}
  film:     {{type: ToyLinear, features: [video, text], field: $text}}
streams:
{streams}
optim: {{lr: 1e-3}}
train: {{steps: {steps}, output: {output}, precision: fp32, workers: 0, device: cpu, checkpoint_every: 1}}
'''
LOSSES = dict(zip(KINDS, ("sentence", "picture", "picture", "both", "two", "answer", "film")))


def test_a_recipe_plans_and_trains_and_resumes_over_each(blocks, tokenizer_folder, tmp_path):
    (tmp_path / "toy.py").write_text(PLUGIN)

    def run(output, steps, *more):
        streams = "\n".join(f"  s{n}: {{batch_size: 4, losses: {{{LOSSES[kind]}: 1}}, data: {json.dumps(block)}}}"
                            for n, (kind, block) in enumerate(blocks.items()))
        recipe = RECIPE.format(tokenizer=tokenizer_folder, streams=streams, steps=steps, output=tmp_path / output)
        (tmp_path / "x.yaml").write_text(recipe)
        tool = "plan" if output == "plan" else "train_net"
        done = subprocess.run([sys.executable, str(ROOT / f"tools/{tool}.py"), "--config", "x.yaml", *more], cwd=tmp_path,
                              capture_output=True, text=True)
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-3000:]
        return done.stdout

    said = run("plan", 2)
    assert "unknown" not in said and all(f"stream s{n}" in said for n in range(7)), said
    run("whole", 2)
    last = latest(tmp_path / "whole")
    shutil.copytree(tmp_path / "whole", tmp_path / "cut", ignore=shutil.ignore_patterns(last.name))
    assert latest(tmp_path / "cut").name != last.name
    run("cut", 2, "--resume")
    one, two = (checkpoint.read_model(latest(tmp_path / name)) for name in ("whole", "cut"))
    assert one.keys() == two.keys() and all(torch.equal(one[key], two[key]) for key in one)
