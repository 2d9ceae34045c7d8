"""The four datasets: what their rows show, what their blocks allow, and the made-up ones."""

import io
import json

import numpy as np
import pytest
import torch
from PIL import Image

from xtoolkit.batch import stable_key
from xtoolkit.data.images import CLIP_MEAN, CLIP_STD
from xtoolkit.data.loader import EvalLoader, Loader
from xtoolkit.registry import DATASET_REGISTRY, ConfigError, check

VIEWS = frozenset({"mask_text", "mask_image"})
SIZES = {"image_size": 32, "patch_size": 8}
PLAIN = {"crop_scale": None, "flip": 0.0, "randaugment": None}


def build(block, **given):
    return DATASET_REGISTRY.build(block, "test", **given)


def colours(pixels):
    """(3, ...) normalised pixels back to 0..255."""
    mean, std = (torch.tensor(v)[:, None, None] for v in (CLIP_MEAN, CLIP_STD))
    return (pixels * std + mean) * 255


def test_rows_of_a_pair_belong_together(tokenizer, pair_shards):
    data = build({"type": "Pairs", "path": pair_shards, "augment": PLAIN}, tokenizer=tokenizer, **SIZES)
    seen = set()
    for visit in range(6):
        batch = Loader("pairs", data, 7, 0, 0).at(visit)
        assert batch.text.masked_ids is None and batch.image.patch_mask is None
        for row in range(7):
            n = int(batch.image.image_id[row])
            text = tokenizer.decode(batch.text.ids[row])
            assert text in (f"a red dog {n}", f"two small cat with ball {n}")
            seen.add(text)
            assert colours(batch.image.pixels[row])[:, 20, 20].tolist() == pytest.approx([7 * n, 5 * n, 3 * n], abs=4)
            assert batch.image.key[row] == stable_key(str(n))
    assert len(seen) > 25, "both captions are drawn"


def test_masks_follow_the_views(datasets, tokenizer, pair_shards):
    batch = Loader("pairs", datasets["pairs"], 8, 0, 0).at(0)
    assert batch.text.masked_ids is not None and (batch.image.patch_mask.sum(1) == 6).all()
    only = build({"type": "Pairs", "path": pair_shards, "mask": {"prob": 0.5, "max": 3}, "image_mask": {"patches": 3}},
                 tokenizer=tokenizer, **SIZES, views=frozenset({"mask_text"}))
    batch = Loader("pairs", only, 8, 0, 0).at(0)
    assert batch.text.masked_ids is not None and batch.image.patch_mask is None


def test_the_text_stream_is_raw_and_captions_are_clean(tokenizer, tmp_path, shards):
    (tmp_path / "x.txt").write_text("A Dog, on the left!\n")
    data = build({"type": "Text", "path": str(tmp_path / "x.txt")}, tokenizer=tokenizer)
    assert tokenizer.decode(Loader("text", data, 2, 0, 0).at(0).text.ids[0]) == "A Dog, on the left!"
    shards.tar(tmp_path / "x.tar", [m for n in range(3) for m in shards.sample(n, caption="A Dog, on the left!")])
    for clean, expected in ((True, "a dog on the left"), (False, "A Dog, on the left!")):
        data = build({"type": "Pairs", "path": str(tmp_path / "x.tar"), "clean": clean}, tokenizer=tokenizer, **SIZES)
        assert tokenizer.decode(Loader("pairs", data, 3, 0, 0).at(0).text.ids[0]) == expected


def test_texts_are_cut_and_keep_their_end(tokenizer, text_file):
    data = build({"type": "Text", "path": text_file, "max_tokens": 8}, tokenizer=tokenizer)
    batch = Loader("text", data, 32, 0, 0).at(0)
    assert batch.text.ids.shape[1] <= 8 and (batch.text.mask.sum(1) == 8).any()
    last = batch.text.ids.gather(1, batch.text.mask.sum(1, keepdim=True) - 1)
    assert (last == tokenizer.eos).all()


def test_img2dataset_tars_are_read_as_they_are(tokenizer, tmp_path, shards):
    members = [("000.jpg", shards.jpeg(1)), ("000.txt", b"a red dog"),
               ("000.json", json.dumps({"caption": "a red dog", "key": "000", "status": "success"}).encode()),
               ("001.jpg", shards.jpeg(2)), ("001.txt", b"a blue cat")]
    shards.tar(tmp_path / "x.tar", members)
    data = build({"type": "Pairs", "path": str(tmp_path / "x.tar")}, tokenizer=tokenizer, **SIZES, train=False)
    batch, = EvalLoader(data, 4)
    assert [tokenizer.decode(t) for t in batch.text.ids] == ["a red dog", "a blue cat"]
    assert batch.image.image_id == [f"{tmp_path}/x.tar:{key}" for key in ("000", "001")]


@pytest.mark.parametrize("caption, flips", [("a dog on the left", False), ("a dog", True)])
def test_pictures_are_mirrored_unless_a_text_says_a_side(tokenizer, tmp_path, shards, caption, flips):
    """The white dot of the test pictures is at the left top."""
    shards.tar(tmp_path / "x.tar", [m for n in range(3) for m in shards.sample(n, captions=["a cat", caption])])
    block = {"type": "Pairs", "path": str(tmp_path / "x.tar"), "augment": PLAIN | {"flip": 1.0}}
    data = build(block, tokenizer=tokenizer, **SIZES)
    pixels = colours(Loader("pairs", data, 3, 0, 0).at(0).image.pixels[0])
    assert (pixels[0, 2, 29] > 150) == flips and (pixels[0, 2, 2] > 150) != flips


def coloured_boxes(n, colours_of):
    """A black picture with filled boxes, and their regions."""
    image = Image.new("RGB", (60, 50))
    regions = []
    for i, colour in enumerate(colours_of):
        x, y, w, h = 5 + 14 * i, 6 + 8 * i, 12, 10 + i
        image.paste(colour, (x, y, x + w, y + h))
        regions.append({"box": [x, y, w, h], "caption": ["red", "green", "blue"][i], "attributes": "big"})
    out = io.BytesIO()
    image.save(out, "PNG")
    return [(f"{n}.png", out.getvalue()), (f"{n}.json", json.dumps({"image_id": n, "regions": regions}).encode())]


def test_boxes_frame_what_their_texts_name_after_crop_and_flip(tokenizer, tmp_path, shards):
    three = [(255, 0, 0), (0, 255, 0), (0, 0, 255)]
    shards.tar(tmp_path / "x.tar", [m for n in range(4) for m in coloured_boxes(n, three)])
    block = {"type": "Regions", "path": str(tmp_path / "x.tar"), "augment": {"randaugment": None}, "max_per_image": 3}
    data = build(block, tokenizer=tokenizer, image_size=64, patch_size=8)
    centres = []
    for visit in range(20):
        batch = Loader("region", data, 8, 3, 0).at(visit)
        assert batch.size == 8 and batch.region.is_box.all()
        for row in range(8):
            cx, cy, w, h = batch.region.box[row].tolist()
            pixels = colours(batch.image.pixels[batch.region.image_index[row]])
            word = tokenizer.decode(batch.text.ids[row])
            channel = ["big red", "big green", "big blue"].index(word)
            left, right, top, bottom = (int(v * 64) for v in (cx - w / 2, cx + w / 2, cy - h / 2, cy + h / 2))
            inside = pixels[:, top + 2:bottom - 1, left + 2:right - 1]
            assert inside[channel].mean() > 200 and inside.sum(0).mean() < 300, word
            shown = (pixels[channel] > 128).reshape(8, 8, 8, 8).any(3).any(1).flatten()
            assert not (shown & ~batch.region.box_patches[row]).any(), "every patch that shows the thing is in its box"
            centres.append((channel, round(cx, 3)))
    assert len(set(centres)) > 60, "crops and flips vary"


def test_region_rows_and_whole_pictures(datasets):
    loader = Loader("region", datasets["region"], 8, 0, 0)
    wholes = 0
    for visit in range(8):
        batch = loader.at(visit)
        r = batch.region
        assert r.box.shape == (8, 4) and batch.text.ids.shape[0] == 8 and r.box_patches.shape == (8, 16)
        assert set(r.image_index.tolist()) == set(range(batch.image.pixels.shape[0]))
        assert r.image_index.bincount().max() <= 3 and r.box_patches.any(1).all()
        whole = ~r.is_box
        assert (r.box[whole] == torch.tensor([0.5, 0.5, 1, 1])).all() and r.box_patches[whole].all()
        assert len(set(r.key.tolist())) >= 7
        wholes += int(whole.sum())
    assert wholes > 5


def test_evaluation_takes_everything_once_in_order(tokenizer, pair_shards, region_shard, text_file):
    pairs = build({"type": "Pairs", "path": pair_shards, "mask": {"prob": 0.5, "max": 3}}, tokenizer=tokenizer, **SIZES,
                  train=False)
    batches = list(EvalLoader(pairs, 8, workers=2))
    assert [b.image.pixels.shape[0] for b in batches] == [8, 8, 5] and len(EvalLoader(pairs, 8)) == 3
    names = [b.image.image_id[i] for b in batches for i in b["image_index"].tolist()]
    texts = [tokenizer.decode(t) for b in batches for t in b.text.ids]
    assert names == [str(n) for n in range(21) for _ in range(2)]
    assert texts == [t for n in range(21) for t in (f"a red dog {n}", f"two small cat with ball {n}")]
    assert batches[0].text.masked_ids is None and batches[0].image.patch_mask is None
    regions = build({"type": "Regions", "path": region_shard}, tokenizer=tokenizer, **SIZES, train=False)
    batches = list(EvalLoader(regions, 4))
    assert sum(b.size for b in batches) == sum(1 + n % 4 for n in range(10)), "boxes only"
    assert batches[0].region.box[0].tolist() == pytest.approx([8 / 48, 6 / 40, 16 / 48, 12 / 40])
    texts = build({"type": "Text", "path": text_file}, tokenizer=tokenizer, train=False)
    assert sum(b.size for b in EvalLoader(texts, 8)) == len(texts) == 50


def test_a_limit_takes_the_first_of_each_source_as_they_are_without_it(tokenizer, pair_shards):
    block = {"type": "Pairs", "sources": {name: {"path": pair_shards} for name in ("a", "b")}, "mask": {"prob": 0.5, "max": 3}}
    data = build(block, tokenizer=tokenizer, **SIZES, views=VIEWS & {"mask_text"}, train=False)

    def read(limit):
        loader = EvalLoader(data, 4, limit=limit)
        rows = []
        for batch in loader:
            at = batch.text.masked_pos // batch.text.ids.shape[1]
            rows += [(batch.image.image_id[i], batch.text.ids[row][batch.text.mask[row]].tolist(), batch.text.labels[at == row].tolist())
                     for row, i in enumerate(batch["image_index"].tolist())]
        return rows, len(loader)

    (whole, _), (first, batches), (more, _) = read(None), read(3), read(99)
    assert batches == 2 and first == whole[:6] + whole[42:48] and len(whole) == 84 and more == whole


def test_evaluation_draws_the_masks_that_its_task_reads_the_same_for_each_sample_every_time(tokenizer, pair_shards):
    block = {"type": "Pairs", "path": pair_shards, "mask": {"prob": 0.5, "max": 3}, "image_mask": {"patches": 5}}
    data = build(block, tokenizer=tokenizer, **SIZES, views=VIEWS, train=False)
    clean = build(block, tokenizer=tokenizer, **SIZES, train=False)

    def read(data, batch_size, workers):
        rows = []
        for batch in EvalLoader(data, batch_size, workers):
            length = batch.text.ids.shape[1]
            where = [batch.text.masked_pos[batch.text.masked_pos // length == row] % length for row in range(len(batch.text.ids))]
            masks = [batch.image.patch_mask[i].tolist() for i in batch["image_index"]]
            rows += list(zip([w.tolist() for w in where], masks))
        return rows

    first = read(data, 8, 0)
    assert first == read(data, 5, 1) and len({tuple(m) for _, m in first}) > 15 and all(sum(m) == 5 for _, m in first)
    masked, plain = next(iter(EvalLoader(data, 21))), next(iter(EvalLoader(clean, 21)))
    assert torch.equal(masked.image.pixels, plain.image.pixels), "nothing is augmented"
    assert torch.equal(masked.text.ids, plain.text.ids)


def test_evaluation_of_boxes_knows_their_source_and_the_biggest_box(tokenizer, tmp_path, shards):
    regions = [{"box": [0, 0, 12, 10], "caption": ["dog", "cat"]}, {"box": [0, 0, 24, 20], "caption": "tree"}]
    shards.tar(tmp_path / "a.tar", shards.sample(0, regions=regions))
    shards.tar(tmp_path / "b.tar", shards.sample(1, regions=regions[:1], boxes=[[0, 0, 12, 10], [24, 20, 24, 20]]))
    sources = {"testA": {"path": str(tmp_path / "a.tar")}, "testB": {"path": str(tmp_path / "b.tar")}}
    block = {"type": "Regions", "sources": sources}
    batch, = EvalLoader(build(block, tokenizer=tokenizer, **SIZES, train=False), 4)
    assert [tokenizer.decode(t) for t in batch.text.ids] == ["dog", "cat", "tree", "dog", "cat"]
    assert batch["source"] == ["testA"] * 3 + ["testB"] * 2
    assert batch["biggest"].tolist() == [[0.25, 0.25, 0.5, 0.5]] * 3 + [[0.75, 0.75, 0.5, 0.5]] * 2
    assert batch["size"].tolist() == [[48.0, 40.0]] * 5
    assert batch.region.image_index.tolist() == [0, 0, 0, 1, 1]


@pytest.mark.parametrize("kind, block, views, key, message", [
    ("Pairs", {}, (), "path", "give either `path` or `sources"),
    ("Pairs", {"path": "x", "sources": {"a": {"path": "y"}}}, (), "path", "give either"),
    ("Pairs", {"sources": {"a": None}}, (), "sources", "must be a mapping: {name: {path, weight}}"),
    ("Pairs", {"sources": {"a": {"path": "x", "wieght": 2}}}, (), "sources.a.wieght", "did you mean `weight`"),
    ("Pairs", {"sources": {"a": {"weight": 2}}}, (), "sources.a", "missing key `path`"),
    ("Pairs", {"sources": {"a": {"path": "x", "weight": 0}}}, (), "sources.a.weight", "above 0"),
    ("Pairs", {"path": "x", "mask": {"prob": 0.5, "max": 5, "n_gram": 2}}, (), "mask.n_gram", "did you mean `ngram`"),
    ("Pairs", {"path": "x", "mask": {"prob": "half", "max": 5}}, (), "mask.prob", "must be a number above 0 and at most 1, not 'half'"),
    ("Text", {"path": "x", "mask": {"prob": 0.5}}, (), "mask", "missing key `max`"),
    ("Text", {"path": "x", "mask": 0.5}, (), "mask", "must be a mapping"),
    ("Images", {"path": "x", "augment": {"crop_scale": [2, 1]}}, (), "augment.crop_scale", "must be"),
    ("Regions", {"path": "x", "augment": {"crop_scale": [0.2, 1]}}, (), "augment.crop_scale", "unknown key"),
    ("Pairs", {"path": "x"}, ("mask_text",), "mask", "`@mask_text` of this stream, which needs `mask: {"),
    ("Images", {"path": "x"}, ("mask_image",), "image_mask", "`@mask_image` of this stream"),
    ("SyntheticPairs", {}, ("mask_image",), "image_mask", "`@mask_image` of this stream"),
])
def test_mistakes_of_a_block_are_named_by_key(kind, block, views, key, message):
    cls, place = DATASET_REGISTRY.get(kind), lambda *keys: ".".join(keys)
    found, = check(cls, block, "the block", place) or [f"{k}: {said}" for k, said in cls.check(block, frozenset(views))]
    assert found.startswith(key + ": ") and message in found


def test_a_missing_path_and_an_impossible_mask_stop_the_build(tokenizer, pair_shards):
    with pytest.raises(ConfigError, match="data.path: .*nowhere"):
        build({"type": "Images", "path": "nowhere-*.tar"}, **SIZES)
    with pytest.raises(ConfigError, match="17 of 16 patches"):
        build({"type": "Images", "path": pair_shards, "image_mask": {"patches": 17}}, **SIZES, views=VIEWS)


def test_several_sources_and_paths(tokenizer, tmp_path, shards):
    for name in "abc":
        members = [m for n in range(5) for m in shards.sample(n, image_id=f"{name}{n}", caption="x dog")]
        shards.tar(tmp_path / f"{name}.tar", members)
    block = {"type": "Pairs", "sources": {
        "one": {"path": str(tmp_path / "a.tar"), "weight": 3},
        "two": {"path": [str(tmp_path / "b.tar"), str(tmp_path / "c.tar")]}, "gone": None}}
    data = build(block, tokenizer=tokenizer, **SIZES)
    assert len(data) == 15
    names = [n for v in range(10) for n in Loader("pairs", data, 8, 0, 0).at(v).image.image_id]
    assert sum(n.startswith("a") for n in names) == 60 and {n[0] for n in names} == set("abc")
    assert [k for k, _ in type(data).paths(block)] == ["sources.one.path", "sources.two.path", "sources.two.path"]


@pytest.mark.parametrize("kind", ["Text", "Images", "Pairs", "Regions"])
def test_made_up_datasets_have_the_fields_of_the_real_ones(kind, tokenizer, datasets):
    real, cls = DATASET_REGISTRY.get(kind), DATASET_REGISTRY.get("Synthetic" + kind)
    assert real.FIELDS == cls.FIELDS
    blocks = {"mask": {"prob": 0.5, "max": 3}, "image_mask": {"patches": 3}}
    block = {"type": "Synthetic" + kind} | {k: blocks[k] for k in cls.MARKS.values()}
    data = build(block, tokenizer=tokenizer, **SIZES, views=VIEWS)
    batch = Loader("s", data, 8, 0, 0).at(0)
    stream = {"Text": "text", "Images": "image", "Pairs": "pairs", "Regions": "region"}[kind]
    expected = Loader("s", datasets[stream], 8, 0, 0).at(0)
    for field in ("text", "image", "region"):
        assert (getattr(batch, field) is None) == (getattr(expected, field) is None)
        if getattr(batch, field) is not None:
            for name, value in vars(getattr(expected, field)).items():
                made = getattr(getattr(batch, field), name)
                assert type(made) is type(value), name
                if isinstance(value, torch.Tensor):
                    assert made.dtype == value.dtype and made.dim() == value.dim(), name
    assert np.isfinite(batch.size) and batch.size == 8
