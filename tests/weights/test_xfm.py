"""The released X-FM checkpoint in and out: every name placed or dropped with its reason, no bit changed."""

import hashlib
from fnmatch import fnmatchcase
from pathlib import Path

import pytest
import torch
from convert_recipes import TINY, tiny
from release_names import BASE, LISTING_SHA256, listing, release_shapes, release_state

from xtoolkit import recipe as recipes
from xtoolkit.weights.writing import verify
from xtoolkit.weights.report import ConversionError
from xtoolkit.encoders.beit import resize_position_table
from xtoolkit.cli.releases import releases
from xtoolkit.model import Model

from_release, to_release = releases()["xfm"].from_release, releases()["xfm"].to_release
HEAD = ("bias", "dense.weight", "dense.bias", "layer_norm.weight", "layer_norm.bias", "decoder.weight", "decoder.bias")
DEAD = {f"{e}.lm_cap_head.{n}" for e in ("text_encoder", "fusion_encoder") for n in HEAD} | \
    {f"fusion_encoder.roberta.embeddings.{n}" for n in
     ("position_embeddings.weight", "token_type_embeddings.weight", "LayerNorm.weight", "LayerNorm.bias")}
TABLES = [f"blocks.{i}.attn.relative_position_bias_table" for i in (0, 1)]


def meta(recipe):
    with torch.device("meta"):
        return Model(recipe).state_dict()


def test_the_generated_names_are_the_released_listing():
    shapes = release_shapes(**BASE)
    assert len(shapes) == 771
    assert hashlib.sha256(listing(shapes).encode()).hexdigest() == LISTING_SHA256


def test_every_name_is_placed_or_dropped_with_a_reason_and_the_model_is_full(tmp_path):
    recipe, release = tiny(tmp_path), release_state()
    state, report = from_release(release, recipe)
    assert report.renamed.keys() | report.dropped.keys() == release.keys()
    assert not report.renamed.keys() & report.dropped.keys()
    assert {n: t.shape for n, t in state.items()} == {n: t.shape for n, t in meta(recipe).items()}
    for name, target in report.renamed.items():
        assert torch.equal(state[target].flatten(), release[name].flatten()), name
    assert {n for n, why in report.dropped.items() if why.startswith("dead")} == DEAD
    assert report.changed == {"encoders.sim.temperature": "() reshaped to (1,)"}
    assert state["encoders.sim.temperature"].shape == (1,)
    text = report.as_text()
    assert all(f"dropped: {name}: dead" in text for name in DEAD)


def test_a_round_trip_changes_no_bit(tmp_path):
    recipe, release = tiny(tmp_path), release_state()
    back, report = to_release(from_release(release, recipe)[0], recipe)
    assert back.keys() == release.keys() - DEAD
    for name, tensor in back.items():
        assert tensor.shape == release[name].shape and tensor.dtype == release[name].dtype
        assert torch.equal(tensor, release[name]), name
    assert report.changed == {"temp": "(1,) reshaped to ()"}
    missing = [name for name in release if name not in back]
    assert all(any(fnmatchcase(name, pattern) for pattern in report.absent) for name in missing)
    assert "not written: text_encoder.lm_cap_head.*: dead" in report.as_text()


def test_parts_are_found_by_type_and_wiring_not_by_name(tmp_path):
    text = TINY
    for old, new in (("vision", "eyes"), ("  text: {type", "  words: {type"), ("x: text}", "x: words}"), ("text@", "words@"),
                     ("text: text,", "text: words,"), ("text ->", "words ->"), ("bbp", "where")):
        text = text.replace(old, new)
    (tmp_path / "renamed.yaml").write_text(text)
    recipe = recipes.load(str(tmp_path / "renamed.yaml"), missing_files=False)
    state, report = from_release(release_state(), recipe)
    assert report.renamed["vision_encoder.cls_token"] == "encoders.eyes.cls_token"
    assert report.renamed["vision_proj.weight"] == "encoders.eyes_proj.linear.weight"
    assert report.renamed["bbox_head.3.bias"] == "losses.where.head.3.bias"
    assert verify(meta(recipe), state, "x").keys() == state.keys()


def test_a_second_wiring_of_a_module_changes_nothing(tmp_path):
    wiring = ("encoders.words={shares: text, inputs: {text: $text}}", "losses.mlm.feature=words@mask_text")
    state, _ = from_release(release_state(), tiny(tmp_path))
    again, _ = from_release(release_state(), tiny(tmp_path, *wiring))
    assert again.keys() == state.keys() == meta(tiny(tmp_path, *wiring)).keys()


def test_what_the_recipe_does_not_build_is_dropped_with_that_reason(tmp_path):
    recipe = tiny(tmp_path, "losses.bbp=null", "losses.mlm=null", "streams.text=null")
    state, report = from_release(release_state(), recipe)
    assert report.dropped["bbox_head.0.weight"] == "this recipe builds no BBP loss"
    assert report.dropped["text_encoder.lm_head.dense.weight"].startswith("this recipe builds no loss that reads the text")
    assert state.keys() == meta(recipe).keys()
    back, report = to_release(state, recipe)
    assert report.absent["bbox_head.*"] == "this recipe builds no BBP loss"
    assert "bbox_head.0.weight" not in back and "itm_head.0.weight" in back


def test_tables_of_another_picture_size_are_resized_as_the_encoder_does(tmp_path):
    recipe, release = tiny(tmp_path, "encoders.vision.image_size=48"), release_state()
    state, report = from_release(release, recipe)
    for name in TABLES:
        assert report.changed[f"encoders.vision.{name}"] == "(52, 2) resized to (124, 2): 6 x 6 patches"
        assert torch.equal(state[f"encoders.vision.{name}"], resize_position_table(release[f"vision_encoder.{name}"], 6))
    verify(meta(recipe), state, "x")


def test_files_without_copies_or_dead_heads_read_alike(tmp_path):
    recipe, release = tiny(tmp_path), release_state()
    whole, _ = from_release(release, recipe)
    gone = DEAD | {"text_encoder.lm_head.decoder.weight", "text_encoder.lm_head.bias", "fusion_encoder.lm_head.decoder.weight",
                   "fusion_encoder.lm_head.decoder.bias", "text_encoder.roberta.embeddings.position_ids"}
    state, _ = from_release({n: t for n, t in release.items() if n not in gone}, recipe)
    assert state.keys() == whole.keys() and all(torch.equal(state[n], whole[n]) for n in whole)


def test_what_is_not_the_release_is_listed_whole(tmp_path):
    recipe, release = tiny(tmp_path), release_state()
    release["vision_encoder.pos_embed"] = release.pop("vision_encoder.cls_token")  # a known prefix, which verify judges
    release["cls_head.weight"] = torch.zeros(3, 2)
    release["text_encoder.lm_head.decoder.weight"] = torch.zeros(60, 16)
    index = "vision_encoder.blocks.1.attn.relative_position_index"
    release[index] = release[index].flip(0)
    with pytest.raises(ConversionError) as error:
        from_release(release, recipe)
    lines = str(error.value).splitlines()
    assert lines[0] == "not a released X-FM checkpoint:" and len(lines) == 4
    assert "  unexpected: cls_head.weight (3, 2)" in lines
    assert any("not tied: text_encoder.lm_head.decoder.weight differs from text_encoder.roberta.emb" in line for line in lines)
    assert f"  another layout: {index} is not the index of a square grid of patches with a CLS token" in lines
    release[index] = release[index].flip(0)
    state, report = from_release(release, recipe, allow=["cls_head.*", "*.decoder.weight"])
    assert report.dropped["cls_head.weight"] == "unknown to the release; allowed"
    assert report.dropped["text_encoder.lm_head.decoder.weight"].endswith("allowed")
    state["losses.imlm.dense.bias"] = torch.zeros(4)
    del state["losses.itm.head.1.bias"]
    with pytest.raises(ConversionError) as error:
        verify(meta(recipe), state, "FILE")
    for line in ("FILE does not fit this recipe:", "  missing: encoders.vision.cls_token", "  missing: losses.itm.head.1.bias",
                 "  unexpected: encoders.vision.pos_embed", "  other shape: losses.imlm.dense.bias (4,) there, (16,) here"):
        assert line in str(error.value).splitlines()


def test_what_the_release_has_no_place_for_is_listed(tmp_path):
    teacher = "encoders.teacher={type: Teacher, of: vision, inputs: {image: $image}}"
    recipe = tiny(tmp_path, teacher, "losses.mim.target=teacher")
    state = Model(recipe).state_dict()
    with pytest.raises(ConversionError, match="(?s)release has no place for:.*unexpected: encoders.teacher.encoder.cls_token"):
        to_release(state, recipe)
    back, report = to_release(state, recipe, allow=["encoders.teacher.*"])
    assert "vision_encoder.cls_token" in back
    assert report.dropped["encoders.teacher.encoder.cls_token"] == "the release has no place for it; allowed"


@pytest.mark.slow
def test_the_released_shapes_fill_the_model_of_base_yaml_and_come_back():
    base = Path(__file__).resolve().parents[2] / "projects/xfm/base.yaml"
    recipe, release = recipes.load(str(base), missing_files=False), release_state(**BASE)
    state, report = from_release(release, recipe)
    own = meta(recipe)
    assert {n: t.shape for n, t in state.items()} == {n: t.shape for n, t in own.items()}
    back, _ = to_release(state, recipe)
    assert back.keys() == release.keys() - DEAD
    assert all(t.shape == release[n].shape and torch.equal(t, release[n]) for n, t in back.items())
