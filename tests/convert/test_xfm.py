"""The released X-FM checkpoint in and out: every name placed or dropped with its reason, no bit changed."""

import hashlib

import pytest
import torch
from convert_recipes import tiny
from release_names import BASE, LISTING_SHA256, listing, release_shapes, release_state

from xtoolkit.convert.report import ConversionError
from xtoolkit.convert.xfm import from_release, to_release
from xtoolkit.model import Model

DEAD = {f"fusion_encoder.roberta.embeddings.{n}" for n in
        ("position_embeddings.weight", "token_type_embeddings.weight", "LayerNorm.weight", "LayerNorm.bias")} | \
       {f"{e}.lm_cap_head.{n}" for e in ("text_encoder", "fusion_encoder")
        for n in ("bias", "dense.weight", "dense.bias", "layer_norm.weight", "layer_norm.bias", "decoder.weight", "decoder.bias")}


def test_the_generated_names_are_the_released_listing():
    shapes = release_shapes(**BASE)
    assert len(shapes) == 771
    assert hashlib.sha256(listing(shapes).encode()).hexdigest() == LISTING_SHA256


def test_every_name_is_placed_or_dropped_with_a_reason_and_the_model_is_full(tmp_path):
    recipe, release = tiny(tmp_path), release_state()
    state, report = from_release(release, recipe)
    assert report.renamed.keys() | report.dropped.keys() == release.keys()
    assert not report.renamed.keys() & report.dropped.keys()
    own = Model(recipe).state_dict()
    assert {n: t.shape for n, t in state.items()} == {n: t.shape for n, t in own.items()}
    for name, target in report.renamed.items():
        assert torch.equal(state[target].flatten(), release[name].flatten()), name
    assert {n for n, why in report.dropped.items() if why.startswith("dead")} == DEAD
    assert report.changed == {"encoders.sim.temperature": "() reshaped to (1,)"}
    assert state["encoders.sim.temperature"].shape == (1,)
    text = report.as_text()
    assert all(f"dropped: {name}: dead" in text for name in DEAD)


def test_a_round_trip_changes_no_bit(tmp_path):
    recipe, release = tiny(tmp_path), release_state()
    back, _ = to_release(from_release(release, recipe)[0], recipe)
    assert back.keys() == release.keys() - DEAD
    for name, tensor in back.items():
        assert tensor.shape == release[name].shape and tensor.dtype == release[name].dtype
        assert torch.equal(tensor, release[name]), name


def test_bad(tmp_path):
    with pytest.raises(ConversionError, match="unexpected: blocks.0.x"):
        from_release({"blocks.0.x": torch.zeros(1)}, tiny(tmp_path))
