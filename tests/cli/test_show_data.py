"""show_data.py shows what the loader would hand to the model, row for row, and needs no weights."""

import importlib
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
import torch

from xtoolkit import recipe as recipes
from xtoolkit.data.loader import Loader
from xtoolkit.registry import ENCODER_REGISTRY, ConfigError
from xtoolkit.report.samples import samples_page

ROOT = Path(__file__).resolve().parents[2]
RECIPE = """
tokenizer: {tokenizer}
encoders:
  vision: {{type: BEiTv2, inputs: {{image: $image}}, image_size: 32, patch_size: 8, init: weights/not_there.pth}}
  text: {{type: RoBERTa, inputs: {{text: $text}}}}
  fusion: {{type: CrossAttention, inputs: {{text: text, image: vision}}}}
losses:
  mlm: {{type: MLM, feature: text@mask_text}}
  mim: {{type: MIM, feature: vision@mask_image, target: vision}}
  imlm: {{type: IMLM, feature: fusion@mask_text}}
  bbp: {{type: BBP, feature: fusion@whole}}
streams:
  text: {{batch_size: 6, losses: {{mlm: 1}}, data: {{type: Text, path: "{text}", max_tokens: 16, window: 1,
         mask: {{prob: 0.5, max: 6}}}}}}
  image: {{batch_size: 6, losses: {{mim: 1}}, data: {{type: Images, path: "{pairs}",
          image_mask: {{patches: 6, min_block: 4}}}}}}
  pairs: {{batch_size: 6, losses: {{imlm: 1, mim: 1}}, data: {{type: Pairs, path: "{pairs}", max_tokens: 12,
          clean: false, mask: {{prob: 0.5, max: 6}}, image_mask: {{patches: 6, min_block: 4}}}}}}
  region: {{batch_size: 8, losses: {{imlm: 1, bbp: 1}}, data: {{type: Regions, path: "{regions}", max_tokens: 12,
           max_per_image: 3, mask: {{prob: 0.5, max: 6}}}}}}
  idle: {{batch_size: 8, losses: {{bbp: 0}}, data: {{type: Regions, path: "{regions}"}}}}
optim: {{lr: 1e-4}}
train: {{steps: 10, output: unused}}
"""


@pytest.fixture(scope="module")
def tool():
    return importlib.import_module("xtoolkit.cli.show")


@pytest.fixture
def file(tmp_path, tokenizer_folder, text_file, pair_shards, region_shard, monkeypatch):
    build = ENCODER_REGISTRY.build

    def built(*block, **given):
        module = build(*block, **given)
        assert all(p.is_meta for p in module.parameters()), "an encoder was built with weights"
        return module

    monkeypatch.setattr(ENCODER_REGISTRY, "build", built)
    path = tmp_path / "recipe.yaml"
    path.write_text(RECIPE.format(tokenizer=tokenizer_folder, text=text_file, pairs=pair_shards, regions=region_shard))
    return path


class Page(HTMLParser):
    """Every start tag with its attributes; fails on a tag that is closed and not open."""

    def __init__(self, html):
        super().__init__()
        self.open, self.tags = [], []
        self.feed(html)
        assert not self.open

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag not in ("img", "meta", "link", "br"):
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def having(self, kind):
        return [t for t, a in self.tags if kind in (a.get("class") or "").split()]


@pytest.mark.parametrize("stream", ["text", "image", "pairs", "region"])
def test_it_shows_the_batch_that_training_would_get(tool, file, stream):
    recipe = recipes.load(str(file), missing_files=False)
    spec, visit = recipe.streams[stream], 3
    dataset, tokenizer = tool.open_dataset(recipe, stream)
    batch = Loader(stream, dataset, spec.batch_size, recipe.train.seed, 0).at(visit)
    samples, bad = tool.collect(recipe, stream, visit, count=99 if stream == "region" else spec.batch_size)
    assert not bad
    if batch.image is not None:
        samples = samples[:len(batch.image.pixels)]
    texts = [item["words"] for _, items in samples for item in items if "words" in item]
    if batch.text is not None:
        decode = lambda ids: [tokenizer.decode([i]) for i in ids.tolist() if i not in tokenizer.special]
        assert [[was for _, _, was in t] for t in texts] == [decode(ids) for ids in batch.text.ids]
        assert [was for t in texts for _, chosen, was in t if chosen] \
            == [tokenizer.decode([i]) for i in batch.text.labels.tolist()]
        assert any(chosen and not read for t in texts for read, chosen, _ in t)
    if stream in ("image", "pairs"):
        hidden = [item["mask"] for _, items in samples for item in items if "mask" in item]
        assert hidden == batch.image.patch_mask.tolist() and sum(hidden[0]) == 6
    if stream == "region":
        rows = [item for _, items in samples for item in items if "words" in item]
        real = batch.region.is_box.tolist()
        assert [[not hidden for hidden in row["mask"]] for row in rows] == batch.region.box_patches.tolist()
        assert [len(row["boxes"]) for row in rows] == real and not all(real) and len(texts) == len(rows)
        boxes = [box["box"] for _, items in samples for box in items[0]["boxes"]]
        assert torch.equal(torch.tensor(boxes), batch.region.box[batch.region.is_box])
        assert boxes == [box["box"] for row in rows for box in row["boxes"]]


def test_the_page_holds_boxes_masks_phrases_and_places(tool, file, tmp_path, capsys):
    recipe = recipes.load(str(file), missing_files=False)
    for stream in ("region", "pairs", "image", "text"):
        out = tmp_path / "new" / f"{stream}.html"
        assert tool.main(["--config", str(file), "--stream", stream, "--count", "4", "--out", str(out)]) == 0
        assert f"{stream}: 4 samples" in capsys.readouterr().out
        html, (samples, _) = out.read_text(), tool.collect(recipe, stream, 0, 4)
        page = Page(html)
        sources = [a["src"] for t, a in page.tags if t == "img"]
        assert all(s.startswith("data:image/jpeg;base64,") for s in sources)
        assert not re.search(r"<(script|link|iframe)|url\(|@import", html)
        assert len(page.having("card")) == 4
        assert all(place in html for place, _ in samples) and re.search(r"data: \S+, (\d{6}|text \d+)", samples[0][0])
        items = [item for _, several in samples for item in several]
        chosen = [(read, was) for item in items for read, chosen, was in item.get("words", ()) if chosen]
        assert len(page.having("mask")) == sum(not read for read, _ in chosen)
        assert len(page.having("other")) == sum(bool(read) and read != was for read, was in chosen)
        assert len(page.having("halo")) == sum(len(item.get("boxes", ())) for item in items)
        assert len(page.having("patch")) == sum(sum(item.get("mask", ())) for item in items)
        rows = [item for item in items if "words" in item and "image" in item]
        assert len(page.having("row")) == len(rows) and bool(rows) == (stream == "region")
        if rows:
            assert "the whole picture: no box to predict" in html and len(sources) == 4 + len(rows)
            found = [set(a["class"].split()) & {f"c{n}" for n in range(8)} for t, a in page.tags if t == "rect" and "box" in a["class"]]
            assert found[0] == {"c0"} and len(set(map(frozenset, found))) > 1


def test_texts_are_escaped_and_bad_samples_listed(tool, file, tmp_path, shards, capsys):
    members = [m for n in range(4) for m in shards.sample(n, captions=['<script>"dog"&'])]
    shards.tar(tmp_path / "pairs-00002.tar", members + [("000009.jpg", b"no picture"), ("000009.json", json.dumps(
        {"captions": ["a cat"]}).encode())])
    out = tmp_path / "page.html"
    assert tool.main(["--config", str(file), "--stream", "pairs", "--count", "60", "--out", str(out),
                      f"streams.pairs.data.path={tmp_path}/pairs-00002.tar"]) == 0
    html = out.read_text()
    Page(html)
    assert "<script" not in html
    evil = [("<q>", [{"words": [("<i>", False, "<i>"), ("", True, "<u>"), ("<a>", True, "<s>")], "caption": "<s>"}])]
    drawn = samples_page("<q>", ["<q>"], evil, ["<q>"])
    assert not re.search("<[iuasq]>", drawn) and "&lt;u&gt;" in drawn
    assert html.count("000009: ") == 1  # once, however often it was drawn
    assert "Could not be used" in html and ", 1 bad -> " in capsys.readouterr().out


def test_mistakes_are_answered(tool, file, tmp_path, capsys):
    ask = lambda *more: (tool.main(["--config", str(file), *more]), capsys.readouterr().err)
    code, said = ask("--stream", "regon")
    assert code == 2 and "no stream `regon` to show; did you mean `region`?" in said
    assert "text, image, pairs, region" in said
    code, said = ask("--stream", "idle")
    assert code == 2 and "it has no active loss" in said
    code, said = ask("--stream", "pairs", "streams.pairs.data.path=nowhere/*.tar")
    assert code == 2 and "streams.pairs.data.path" in said and "nowhere" in said
    code, said = ask("--stream", "text", "tokenizer=nowhere/tokenizer.json")
    assert code == 2 and "nowhere/tokenizer.json: no such file" in said
    (tmp_path / "taken").touch()
    code, said = ask("--stream", "text", "--out", str(tmp_path / "taken" / "x.html"))
    assert code == 2 and said == f"{file}: {tmp_path}/taken: File exists\n"
    # A picture stream asks for no tokenizer.
    assert ask("--stream", "image", "--out", str(tmp_path / "x.html"), "tokenizer=nowhere/tokenizer.json")[0] == 0


def test_sizes_come_from_the_encoder_that_reads_pictures(tool, file):
    recipe = recipes.load(str(file), ["encoders.vision.image_size=64"], missing_files=False)
    assert tool.sizes(recipe, "pairs") == {"image_size": 64, "patch_size": 8}
    with pytest.raises(ConfigError, match="masked"):
        tool.open_dataset(recipes.load(str(file), ["encoders.vision.image_size=16"], missing_files=False), "pairs")
