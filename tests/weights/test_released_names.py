"""A table of released names: numbers, joined tensors, tied copies and parts that are not built, in both directions."""

import pytest
import torch

from xtoolkit.weights.names import SCALAR, Names, Row
from xtoolkit.weights.report import ConversionError

NAMES = Names(
    file="a toy", owner="the toy", rows=(
        Row("layer.#.attention.{query,key,value}.", "top", "blocks.#.qkv.", first=2), Row("layer.#.", "top", "blocks.#.", first=2),
        Row("words", "low", "words"), Row("layer.", "low", ""), Row("scale", "top", "scale")),
    without={"top": "no top", "low": "no low"}, tied={"decoder": "words"}, unwritten={"layer.stem.*": "", "layer.mask": "none there"},
    changes={"scale": SCALAR})
PARTS = {"top": "t.", "low": "l."}


def state():
    torch.manual_seed(0)
    apart = {f"layer.3.attention.{n}.weight": torch.randn(2, 4) for n in ("value", "query", "key")}
    words = torch.randn(3)
    others = {"layer.0.w": torch.randn(1), "layer.2.w": torch.randn(1), "scale": torch.tensor(2.0)}
    return {**apart, **others, "words": words, "decoder": words}


def test_both_directions():
    ours, report = NAMES.inward(state(), PARTS)
    assert ours.keys() == {"t.blocks.1.qkv.weight", "l.0.w", "t.blocks.0.w", "t.scale", "l.words"}
    joined = torch.cat([state()[f"layer.3.attention.{n}.weight"] for n in ("query", "key", "value")])
    assert torch.equal(ours["t.blocks.1.qkv.weight"], joined) and ours["t.scale"].shape == (1,)
    assert report.changed == {"t.blocks.1.qkv.weight": "query, key, value", "t.scale": "() reshaped to (1,)"}
    ours |= {"l.mask": torch.zeros(1)}
    back, report = NAMES.outward(ours, PARTS)
    assert back.keys() == state().keys() and all(torch.equal(back[n], t) and back[n].shape == t.shape for n, t in state().items())
    assert report.dropped == {"l.mask": "none there"} and report.renamed["t.blocks.1.qkv.weight"] == "layer.3.attention.*.weight"


def test_what_is_not_built_and_what_does_not_fit():
    low = {"low": "l."}
    _, report = NAMES.inward(state(), low)
    assert report.dropped["layer.2.w"] == report.dropped["scale"] == "no top"
    assert NAMES.absent(low) == {"layer.2 and above.attention.{query,key,value}.*": "no top", "layer.2 and above.*": "no top",
                                 "scale*": "no top"}
    given = state() | {"decoder": torch.zeros(3), "more": torch.zeros(2)}
    del given["layer.3.attention.key.weight"]
    with pytest.raises(ConversionError) as told:
        NAMES.inward(given, PARTS, problems=["and this"])
    assert str(told.value).splitlines() == [
        "not a toy:", "  missing: layer.3.attention.key.weight, beside layer.3.attention.query.weight",
        "  not tied: decoder differs from words; the release stores one tensor under both names",
        "  unexpected: more (2,)", "  and this"]
    with pytest.raises(ConversionError, match="the toy has no place for:\n  unexpected: l.stem.w"):
        NAMES.outward({"l.stem.w": torch.zeros(1)}, PARTS)
