"""BBP against torchvision on boxes computed in float64 from the fused whole picture."""

from dataclasses import replace

import pytest
import torch

from .test_itm import plain_head
from .tiny import Tiny, make_batch


@pytest.fixture(scope="module")
def model():
    return Tiny()


def fused_by_hand(model, batch):
    """The text of each region beside its whole picture, tokens copied row by row, every image token attended to."""
    from xtoolkit.features import Encoded
    e = model.encoders
    vision = e["vision"](view=None, image=batch.image.clean()).tokens[batch.region.image_index]
    return e["fusion"](view=None, text=e["text"](view=None, text=batch.text), image=Encoded.of(vision))


@torch.no_grad()
def test_against_torchvision(model):
    from torchvision.ops import box_convert, generalized_box_iou_loss
    batch, loss = make_batch("region"), model.losses["bbp"]
    fused = fused_by_hand(model, batch)
    boxes = torch.sigmoid(plain_head(fused.tokens[:, 0], loss.head))
    torch.testing.assert_close(loss.boxes({loss.feature: fused}).double(), boxes, rtol=1e-5, atol=1e-6)
    real, target = batch.region.is_box, batch.region.box.double()
    corners = [box_convert(b, "cxcywh", "xyxy")[real] for b in (boxes, target)]
    giou = generalized_box_iou_loss(*corners, reduction="mean")
    got = loss(model.features(batch).bound("bbp"), batch)
    assert set(got) == {"l1", "giou"} and real.sum() == 6
    assert got["giou"].item() == pytest.approx(giou.item(), rel=1e-5)
    assert got["l1"].item() == pytest.approx((boxes - target)[real].abs().sum(1).mean().item(), rel=1e-5)


def test_only_whole_pictures_is_exactly_zero_and_attached(model):
    batch = make_batch("region")
    batch = batch.with_fields(region=replace(batch.region, is_box=torch.zeros(7, dtype=torch.bool)))
    value = model.run(batch, "bbp")[0]["bbp"]
    assert value.item() == 0 and value.requires_grad
    grads = torch.autograd.grad(value, list(model.parameters().values()), allow_unused=True)
    assert any(g is not None for g in grads) and all(g is None or (g == 0).all() for g in grads)


def test_a_stream_without_boxes_is_refused(model):
    with pytest.raises(KeyError, match=r"this batch has no \$region"):
        model.run(make_batch("pairs"), "bbp")
