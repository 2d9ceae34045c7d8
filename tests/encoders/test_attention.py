"""The written-out attention of the CPU against PyTorch's own; positions; the options that let small models start well."""

import math

import pytest
import torch
import torch.nn.functional as F

from xtoolkit.batch import ImageField, TextField
from xtoolkit.encoders.attention import attention
from xtoolkit.encoders.beit import BEiTv2
from xtoolkit.encoders.cross_attention import CrossAttention
from xtoolkit.encoders.positions import grid_positions, token_positions
from xtoolkit.encoders.projection import Projection
from xtoolkit.encoders.roberta import RoBERTa
from xtoolkit.features import Encoded
from xtoolkit.losses.bbp import BBP


@pytest.mark.parametrize("kind", ["bool", "added"])
def test_equals_pytorchs_attention_with_gradients(kind):
    q, k, v = (torch.randn(3, 2, n, 8, dtype=torch.float64, requires_grad=True) for n in (5, 7, 7))
    mask = torch.rand(3, 1, 1, 7) < 0.6
    mask[..., 0] = True
    if kind == "added":
        mask = torch.randn(1, 2, 5, 7, dtype=torch.float64, requires_grad=True)
    ours, theirs = attention(q, k, v, mask), F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)
    inputs = [t for t in (q, k, v, mask) if t.requires_grad]
    upstream = torch.randn_like(ours)
    for a, b in zip(torch.autograd.grad(ours, inputs, upstream), torch.autograd.grad(theirs, inputs, upstream)):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)


def test_bf16_under_autocast_stays_bf16_and_near():
    q, k, v = (torch.randn(2, 2, 6, 16) for _ in range(3))
    mask = torch.ones(2, 1, 1, 6, dtype=torch.bool)
    with torch.autocast("cpu", torch.bfloat16):
        found = attention(q.bfloat16(), k.bfloat16(), v, mask)
    assert found.dtype == torch.bfloat16
    exact = F.scaled_dot_product_attention(q, k, v)
    assert (found.float() - exact).norm() / exact.norm() < 0.01


def test_dropout_keeps_the_mean():
    q, k = torch.zeros(1, 1, 1, 4), torch.zeros(1, 1, 1000, 4)
    found = attention(q, k, torch.ones(1, 1, 1000, 4), torch.ones(1, 1, 1, 1000, dtype=torch.bool), dropout=0.3)
    assert found.mean().item() == pytest.approx(1, abs=0.1) and found.mean().item() != 1


def test_positions_tell_every_patch_apart_and_two_grids_agree():
    places = grid_positions(6, 32)
    assert torch.cdist(places, places).add(10 * torch.eye(36)).min() > 0.1
    # The centre of patch (0, 0) of a 2-grid is the corner between four patches of a 4-grid: lowest frequency, in between.
    coarse, fine = grid_positions(2, 32)[0, 0], grid_positions(4, 32)
    assert fine[0, 0] < coarse < fine[1, 0]
    assert coarse.item() == pytest.approx(math.sin(math.pi / 2 * 0.25))
    with pytest.raises(ValueError, match="multiple of 4"):
        grid_positions(2, 6)


def test_positions_of_sources():
    assert token_positions(1, 8) is None                                           # a summary
    assert torch.equal(token_positions(9, 8), grid_positions(3, 8))                # patches
    assert torch.equal(token_positions(10, 8)[1:], grid_positions(3, 8)) and token_positions(10, 8)[0].abs().sum() == 0
    with pytest.raises(ValueError, match="neither a square grid"):
        token_positions(12, 8)


def test_absolute_positions_break_the_symmetry_between_patches():
    """One colour everywhere: with relative positions only and their table at zero, all patches come out alike."""
    image = ImageField(torch.ones(1, 3, 8, 8), patch_mask=torch.tensor([[True, True, False, False]]))
    plain = BEiTv2(16, 1, 2, 4, 8, drop_path=0)(view=None, image=image).tokens[0, 1:]
    torch.testing.assert_close(plain[0], plain[1])
    placed = BEiTv2(16, 1, 2, 4, 8, drop_path=0, absolute_positions=0.5)(view=None, image=image).tokens[0, 1:]
    assert (placed[0] - placed[1]).abs().max() > 0.01
    assert "positions" not in BEiTv2(16, 1, 2, 4, 8, absolute_positions=0.5).state_dict()


def test_image_positions_reach_regions_and_full_pictures_alike():
    model = CrossAttention({"text": 16, "image": 16}, layers=1, heads=2, image_positions=0.5, init_std=0.5).eval()
    full = Encoded.of(torch.randn(2, 5, 16))
    everywhere = full.subset(torch.arange(2), torch.ones(2, 4, dtype=torch.bool))
    same = Encoded.of(everywhere.tokens)
    text = Encoded.of(torch.randn(2, 3, 16))
    torch.testing.assert_close(model(view=None, text=text, image=everywhere).tokens, model(view=None, text=text, image=same).tokens)
    swapped = Encoded.of(same.tokens[:, [0, 2, 1, 3, 4]])
    moved = model(view=None, text=text, image=swapped).tokens - model(view=None, text=text, image=same).tokens
    assert moved.abs().max() > 1e-3                                                # without places, order would not matter


def test_aligned_cross_attention_looks_at_what_resembles_the_text():
    model = CrossAttention({"text": 32, "image": 32}, layers=1, heads=2, aligned=True, init_std=0.2)
    heads = model.layer[0].crossattention.self
    assert torch.equal(heads.query.weight, heads.key.weight) and heads.query.weight is not heads.key.weight
    x = F.normalize(torch.randn(6, 32), dim=-1) * 6
    scores = heads.query(x) @ heads.key(x).t()
    assert (scores.argmax(1) == torch.arange(6)).all()
    with pytest.raises(ValueError, match="`aligned` needs one width"):
        CrossAttention({"text": 32, "image": 16}, heads=2, aligned=True)


def test_identity_projection_and_centred_boxes():
    x = Encoded.of(torch.randn(3, 2, 8))
    torch.testing.assert_close(Projection({"x": 8}, dim=8, identity=True)(view=None, x=x), F.normalize(x.pooled, dim=-1))
    with pytest.raises(ValueError, match="dim equal to the encoder's width 8"):
        Projection({"x": 8}, dim=4, identity=True)
    assert torch.equal(BBP("f", centred=True, widths={"f": 8}).boxes({"f": x}), torch.full((3, 4), 0.5))


def test_init_std_is_that_of_the_layers():
    assert BEiTv2(64, 1, 2, 4, 8, init_std=0.1).blocks[0].mlp.fc1.weight.std().item() == pytest.approx(0.1, rel=0.1)
    assert CrossAttention({"text": 64, "image": 64}, layers=1, heads=2, init_std=0.1).layer[0].intermediate.dense.weight.std() \
        .item() == pytest.approx(0.1, rel=0.1)
    text = RoBERTa(width=64, layers=1, heads=2, vocab_size=100, init_std=0.1)
    assert text.roberta.encoder.layer[0].intermediate.dense.weight.std().item() == pytest.approx(0.1, rel=0.1)
    assert text(view=None, text=TextField(torch.tensor([[0, 5, 2]]), torch.ones(1, 3, dtype=torch.bool))).tokens.isfinite().all()


def test_positions_are_made_where_the_rest_is(monkeypatch):
    """Also where `with torch.device` does not reach linspace, as after a transformers model was loaded first."""
    real = torch.linspace
    monkeypatch.setattr(torch, "linspace", lambda *args, **named: real(*args, **{"device": "cpu", **named}))
    with torch.device("meta"):
        assert grid_positions(6, 32).device.type == "meta"
