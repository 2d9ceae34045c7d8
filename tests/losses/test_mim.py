"""MIM against a float64 computation written plainly, for both kinds of target."""

from dataclasses import replace

import pytest
import torch

from .tiny import PATCH, SIDE, Tiny, make_batch


@pytest.fixture(scope="module")
def model():
    mim = {"type": "MIM", "feature": "vision@mask_image"}
    return Tiny(losses={"patches": mim | {"target": "vision", "summary": False}, "pixels": mim | {"target": "$image"}})


def both(model, batch):
    """(prediction, target) tokens in float64: the encoder on the masked picture and on the whole one."""
    vision = model.encoders["vision"]
    return tuple(vision(view=None, image=i).tokens.double() for i in (batch.image, batch.image.clean()))


@pytest.mark.parametrize("stream", ["image", "pairs"])
@torch.no_grad()
def test_features(model, stream):
    batch = make_batch(stream)
    pred, target = both(model, batch)
    mask = batch.image.patch_mask
    patches = ((pred[:, 1:] - target[:, 1:])[mask] ** 2).sum() / (mask.sum() * pred.shape[2])
    summary = ((pred[:, 0] - target[:, 0]) ** 2).sum() / pred[:, 0].numel()
    values, log = model.run(batch, "mim", "patches")
    assert values["mim"].item() == pytest.approx((patches + summary).item(), rel=1e-5)
    assert values["patches"].item() == pytest.approx(patches.item(), rel=1e-5)
    assert log["mim.summary"].item() == pytest.approx(summary.item(), rel=1e-5) and "patches.summary" not in log
    flat = target[:, 1:].reshape(-1, target.shape[2])
    spread = ((flat - flat.mean(0)) ** 2).mean(0).sqrt().mean().item()
    assert log["mim.target_std"].item() == pytest.approx(spread, rel=1e-5)


@torch.no_grad()
def test_pixels(model):
    batch = make_batch("image")
    tokens, head = both(model, batch)[0], model.losses["pixels"].predictor
    pred = tokens[:, 1:] @ head.weight.double().T + head.bias.double()
    assert pred.shape[2] == 3 * PATCH ** 2
    terms, side = [], SIDE // PATCH
    for image in range(4):
        for n in batch.image.patch_mask[image].nonzero()[:, 0].tolist():
            top, left = n // side * PATCH, n % side * PATCH
            patch = batch.image.pixels[image, :, top:top + PATCH, left:left + PATCH].double()
            values = torch.stack([patch[c, y, x] for y in range(PATCH) for x in range(PATCH) for c in range(3)])
            values = (values - values.mean()) / (values.var() + 1e-6).sqrt()
            terms.append(((pred[image, n] - values) ** 2).mean())
    assert model.run(batch, "pixels")[0]["pixels"].item() == pytest.approx(torch.stack(terms).mean().item(), rel=1e-5)


def test_the_predictor_is_built_for_pixels_only(model):
    assert not list(model.losses["mim"].parameters()) and len(list(model.losses["pixels"].parameters())) == 2


def test_no_masked_patch_leaves_the_summary_term_alone(model):
    batch = make_batch("image")
    batch = batch.with_fields(image=replace(batch.image, patch_mask=torch.zeros_like(batch.image.patch_mask)))
    values = model.run(batch, "mim", "patches", "pixels")[0]
    assert values["patches"].item() == values["pixels"].item() == 0
    assert values["mim"].item() == pytest.approx(0, abs=1e-10), "with nothing masked the picture is its own target"
    assert all(v.requires_grad for v in values.values())
    parameters = list(model.parameters().values())
    for g in torch.autograd.grad(values["patches"] + values["pixels"], parameters, allow_unused=True):
        assert g is None or (g == 0).all()


@pytest.mark.parametrize("stream, others", [("image", []), ("pairs", ["itc", "itm", "imlm"])])
def test_the_gradient_is_that_of_a_constant_target(model, stream, others):
    """Only the masked pass is differentiated, whoever else needs the clean one; the mask token learns."""
    batch, parameters = make_batch(stream), list(model.encoders["vision"].parameters())
    got = torch.autograd.grad(model.run(batch, "mim", *others)[0]["mim"], parameters)
    vision = model.encoders["vision"]
    with torch.no_grad():
        target = vision(view=None, image=batch.image.clean()).tokens
    pred = vision(view=None, image=batch.image).tokens
    want = torch.nn.functional.mse_loss(pred[:, 1:][batch.image.patch_mask], target[:, 1:][batch.image.patch_mask])
    want = torch.autograd.grad(want + torch.nn.functional.mse_loss(pred[:, 0], target[:, 0]), parameters)
    for a, b in zip(got, want):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)
    assert any(p is vision.mask_token and (g != 0).any() for p, g in zip(parameters, got))


def test_a_picture_stream_without_masks_is_refused(model):
    batch = make_batch("image")
    with pytest.raises(ValueError, match="no patch masks.*`image_mask: {patches, min_block}`"):
        model.run(batch.with_fields(image=replace(batch.image, patch_mask=None)), "mim")


def test_a_target_of_another_width_is_refused():
    with pytest.raises(ValueError, match=r"`vision@mask_image` \(width 32\).*`vision_proj` \(width 16\)"):
        Tiny(losses={"mim": {"type": "MIM", "feature": "vision@mask_image", "target": "vision_proj"}})
