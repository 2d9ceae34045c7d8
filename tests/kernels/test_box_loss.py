"""box_loss against arrays worked out by hand, torchvision, fvcore and float64, and its rules one by one."""

import math

import pytest
import torch

from xtoolkit.kernels import box_loss


def boxes(n, seed=0, dtype=torch.float64):
    """Random cx, cy, w, h that may overlap, contain each other or lie apart."""
    g = torch.Generator().manual_seed(seed)
    return torch.cat([torch.rand(n, 2, generator=g), 0.05 + 0.6 * torch.rand(n, 2, generator=g)], 1).to(dtype)


def corners(b):
    return torch.cat([b[:, :2] - b[:, 2:] / 2, b[:, :2] + b[:, 2:] / 2], 1)


def giou_in_python(p, t):
    """1 - GIoU of one pair in Python floats, by the definition, without eps."""
    (a, b, c, d), (e, f, g, h) = ((x - w / 2, y - v / 2, x + w / 2, y + v / 2) for x, y, w, v in (p, t))
    inter = max(min(c, g) - max(a, e), 0.0) * max(min(d, h) - max(b, f), 0.0)
    union = (c - a) * (d - b) + (g - e) * (h - f) - inter
    enclosing = (max(c, g) - min(a, e)) * (max(d, h) - min(b, f))
    return 1 - inter / union + (enclosing - union) / enclosing


def test_by_hand():
    # Unit geometry: A = [0, .4] x [0, .4], B = [.2, .6] x [0, .4]: I = .08, U = .24, C = .24.
    # C = [.6, .8] x [.6, .8] against A: I = 0, U = .2, C = .64.
    pred = torch.tensor([[0.2, 0.2, 0.4, 0.4], [0.7, 0.7, 0.2, 0.2], [0.5, 0.5, 0.2, 0.2]], dtype=torch.float64)
    target = torch.tensor([[0.4, 0.2, 0.4, 0.4], [0.2, 0.2, 0.4, 0.4], [0.5, 0.5, 0.2, 0.2]], dtype=torch.float64)
    l1, giou = box_loss(pred, target, eps=0.0)
    assert l1.item() == pytest.approx((0.2 + (0.5 + 0.5 + 0.2 + 0.2) + 0.0) / 3, abs=1e-12)
    assert giou.item() == pytest.approx(((1 - 1 / 3) + (1 + 0.44 / 0.64) + 0.0) / 3, abs=1e-12)


@pytest.mark.parametrize("n", [1, 2, 31, 511, 513])
def test_float64_by_the_definition(n):
    pred, target = boxes(n), boxes(n, 1)
    l1, giou = box_loss(pred, target, eps=0.0)
    assert giou.item() == pytest.approx(sum(map(giou_in_python, pred.tolist(), target.tolist())) / n, rel=1e-12)
    assert l1.item() == pytest.approx((pred - target).abs().sum().item() / n, rel=1e-12)


@pytest.mark.parametrize("source", ["torchvision", "fvcore"])
def test_value_and_gradient_against(source):
    if source == "torchvision":
        from torchvision.ops import generalized_box_iou_loss as oracle
    else:
        from fvcore.nn import giou_loss as oracle
    ours, theirs = boxes(200).requires_grad_(), boxes(200).requires_grad_()
    target = boxes(200, 1)
    l1, giou = box_loss(ours, target)
    reference = oracle(corners(theirs), corners(target), reduction="mean", eps=1e-7)
    torch.testing.assert_close(giou, reference, rtol=1e-12, atol=0)
    # Upstream gradients that are not one, and differ.
    (3 * l1 - 0.7 * giou).backward()
    (3 * (theirs - target).abs().sum(1).mean() - 0.7 * reference).backward()
    torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-9, atol=1e-13)


@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 1e-6), (torch.bfloat16, 4e-3), (torch.float16, 5e-4)])
def test_low_precision_inputs_are_computed_in_float32(dtype, tolerance):
    pred, target = boxes(512, dtype=dtype).requires_grad_(), boxes(512, 1, dtype)
    exact = pred.detach().double().requires_grad_()
    got, want = box_loss(pred, target), box_loss(exact, target.double())
    for g, w in zip(got, want):
        assert g.dtype == torch.float32
        assert abs(g.item() - w.item()) <= 1e-6 * abs(w.item())
    (got[0] + 2 * got[1]).backward()
    (want[0] + 2 * want[1]).backward()
    assert (pred.grad.double() - exact.grad).norm() <= tolerance * exact.grad.norm()


def test_float64_stays_float64_and_passes_gradcheck():
    pred, target = boxes(7).requires_grad_(), boxes(7, 1).requires_grad_()
    valid = torch.tensor([1, 0, 1, 1, 0, 1, 1], dtype=torch.bool)
    assert all(v.dtype == torch.float64 for v in box_loss(pred, target))
    assert torch.autograd.gradcheck(lambda p, t: box_loss(p, t, valid), (pred, target))


def test_only_valid_boxes_count():
    pred, target, valid = boxes(40), boxes(40, 1), torch.arange(40) % 3 == 0
    a, b = pred.clone().requires_grad_(), pred[valid].clone().requires_grad_()
    got, want = box_loss(a, target, valid), box_loss(b, target[valid])
    torch.testing.assert_close(got, want, rtol=1e-14, atol=0)
    sum(got).backward()
    sum(want).backward()
    torch.testing.assert_close(a.grad[valid], b.grad, rtol=1e-14, atol=0)
    assert (a.grad[~valid] == 0).all()


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_box_that_is_not_valid_may_hold_anything(bad):
    pred, target, valid = boxes(4), boxes(4, 1), torch.tensor([True, False, True, False])
    want = box_loss(pred[valid], target[valid])
    pred[1], target[3] = bad, bad
    pred.requires_grad_()
    got = box_loss(pred, target, valid)
    torch.testing.assert_close(got, want, rtol=1e-14, atol=0)
    sum(got).backward()
    assert pred.grad.isfinite().all() and (pred.grad[~valid] == 0).all()


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("which", ["pred", "target"])
@pytest.mark.parametrize("coordinate", range(4))
def test_nan_and_inf_reach_both_losses(which, coordinate, bad):
    values = {"pred": boxes(3), "target": boxes(3, 1)}
    values[which][1, coordinate] = bad
    pred = values["pred"].requires_grad_()
    l1, giou = box_loss(pred, values["target"])
    assert not l1.isfinite() and not giou.isfinite()
    giou.backward()
    assert not pred.grad[1].isfinite().all(), "the gradient of the bad box must show it"
    assert pred.grad[[0, 2]].isfinite().all(), "its neighbours are untouched"


@pytest.mark.parametrize("rows", [0, 3])
def test_no_valid_box_is_exactly_zero_and_attached(rows):
    pred = boxes(rows).requires_grad_()
    l1, giou = box_loss(pred, boxes(rows, 1), torch.zeros(rows, dtype=torch.bool))
    assert l1.item() == 0 and giou.item() == 0
    (l1 + giou).backward()
    assert pred.grad.shape == (rows, 4) and (pred.grad == 0).all()


def test_no_box_at_all_without_valid():
    pred = boxes(0).requires_grad_()
    l1, giou = box_loss(pred, boxes(0))
    (l1 + giou).backward()
    assert l1.item() == 0 and giou.item() == 0 and pred.grad.shape == (0, 4)


@pytest.mark.parametrize("side", [0.0, -0.2, 1e-5])
def test_a_pair_without_a_shape_costs_one_with_no_gradient_and_leaves_its_neighbours(side):
    pred, target = boxes(3), boxes(3, 1)
    want = box_loss(pred[[0, 2]], target[[0, 2]])[1]
    pred[1] = target[1] = torch.tensor([0.3, 0.4, side, side], dtype=torch.float64)
    pred.requires_grad_()
    giou = box_loss(pred, target)[1]
    assert giou.item() == pytest.approx((2 * want.item() + 1) / 3, rel=1e-12)
    giou.backward()
    assert (pred.grad[1] == 0).all() and (pred.grad[[0, 2]] != 0).any(1).all() and pred.grad.isfinite().all()


def test_a_negative_side_counts_as_zero_and_gets_gradient_from_l1_alone():
    target = torch.tensor([[0.5, 0.5, 0.4, 0.4]])
    negative = torch.tensor([[0.2, 0.3, -0.1, 0.2]], requires_grad=True)
    flat = torch.tensor([[0.2, 0.3, 0.0, 0.2]], requires_grad=True)
    l1, giou = box_loss(negative, target)
    l1_flat, giou_flat = box_loss(flat, target)
    assert giou.item() == giou_flat.item() and l1.item() == pytest.approx(l1_flat.item() + 0.1)
    giou.backward()
    giou_flat.backward()
    assert negative.grad[0, 2] == 0 and torch.equal(negative.grad, flat.grad)
    assert negative.grad[0, 0] != 0, "its place still learns"


def test_coinciding_boxes_are_a_tie_with_a_finite_gradient():
    box = boxes(5).float()
    pred = box.clone().requires_grad_()
    l1, giou = box_loss(pred, box.clone())
    assert l1.item() == 0 and giou.item() == pytest.approx((1e-7 / box[:, 2:].prod(1)).mean().item(), abs=2e-6)
    l1.backward()
    assert (pred.grad == 0).all()
    pred.grad = None
    box_loss(pred, box.clone())[1].backward()
    assert pred.grad.isfinite().all()


def test_touching_edges_take_no_gradient_from_the_intersection():
    # [0, .2] and [.2, .4]: the intersection's width is exactly 0, so only the enclosing box and the union pull.
    pred = torch.tensor([[0.25, 0.5, 0.5, 1.0]], dtype=torch.float64, requires_grad=True)
    target = torch.tensor([[0.75, 0.5, 0.5, 1.0]], dtype=torch.float64)
    giou = box_loss(pred, target, eps=0.0)[1]
    assert giou.item() == 1.0
    giou.backward()
    # All heights are 1, so with I = 0 the loss is 2 - U / C, U = w + 1/2, C = 1 - (cx - w / 2); both are 1 here.
    # dC/dcx = -1, dC/dw = 1/2, dU/dw = 1: dloss/dcx = U dC/dcx / C^2 = -1, dloss/dw = -1 + 1/2.
    assert pred.grad[0, 0].item() == pytest.approx(-1.0)
    assert pred.grad[0, 2].item() == pytest.approx(-0.5)


def test_memory_is_linear_in_the_number_of_boxes():
    n = 200_000  # N x N would be 160 GB
    l1, giou = box_loss(boxes(n, dtype=torch.float32), boxes(n, 1, torch.float32))
    exact = box_loss(boxes(n, dtype=torch.float32).double(), boxes(n, 1, torch.float32).double())
    assert abs(giou.item() - exact[1].item()) <= 1e-6 * exact[1].item()
    assert abs(l1.item() - exact[0].item()) <= 1e-6 * exact[0].item()


@pytest.mark.parametrize("inputs", [torch.float32, torch.bfloat16])
def test_autocast_does_not_cast_down(inputs):
    pred, target = boxes(64, dtype=inputs), boxes(64, 1, inputs)
    plain = box_loss(pred, target)
    with torch.autocast("cpu", torch.bfloat16):
        cast = box_loss(pred, target)
    assert all(torch.equal(a, b) and b.dtype == torch.float32 for a, b in zip(plain, cast))


@pytest.mark.parametrize("make", [lambda b: b.repeat(1, 2)[:, ::2][:, [0, 1, 2, 3]], lambda b: b.T.contiguous().T,
                                  lambda b: torch.cat([b, b], 1)[:, :4]], ids=["gathered", "transposed", "sliced"])
def test_strides_change_nothing(make):
    pred, target = make(boxes(33)), make(boxes(33, 1))
    assert torch.equal(torch.stack(box_loss(pred, target)),
                       torch.stack(box_loss(pred.contiguous(), target.contiguous())))


def test_an_expanded_target_is_read_as_it_is():
    one = boxes(1, 3)
    assert torch.equal(torch.stack(box_loss(boxes(9), one.expand(9, 4))),
                       torch.stack(box_loss(boxes(9), one.repeat(9, 1))))


@pytest.mark.parametrize("pred, target, valid, words", [
    ((3, 4), (2, 4), None, r"\(3, 4\) with \(2, 4\)"),
    ((3, 5), (3, 5), None, r"boxes \(N, 4\)"),
    ((3, 4), (3, 4), torch.ones(2, dtype=torch.bool), r"must be bool \(3,\)"),
    ((3, 4), (3, 4), torch.ones(3), r"must be bool \(3,\), not torch.float32"),
])
def test_shapes_that_do_not_fit(pred, target, valid, words):
    with pytest.raises(ValueError, match=words):
        box_loss(torch.rand(pred), torch.rand(target), valid)


def test_it_never_asks_the_device():
    """On the meta device there are no values: any question about one raises."""
    pred = torch.empty(5, 4, device="meta", requires_grad=True)
    l1, giou = box_loss(pred, torch.empty(5, 4, device="meta"), torch.empty(5, dtype=torch.bool, device="meta"))
    (l1 + giou).backward()
    assert pred.grad.shape == (5, 4)
