"""The box loss kernels against the float64 reference, and each trap that such kernels have fallen into."""

import inspect
import math

import pytest
import torch
from kernels.fused import BOX, DEVICE, agree, both, boxes, layouts, some

from xtoolkit import kernels

SIZES = [0, 1, 2, 31, 511, 512, 513, 4097]
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
fused, reference = BOX.fused, BOX.reference
on_a_gpu = pytest.mark.skipif(DEVICE != "cuda", reason="needs a GPU")


@pytest.mark.parametrize("n", SIZES)
def test_sizes(n):
    agree(BOX, boxes(n), boxes(n, 1), (), (3.0, -0.7))


@pytest.mark.parametrize("n", [31, 4097])
@pytest.mark.parametrize("dtype", DTYPES)
def test_types_with_some_boxes_valid(dtype, n):
    agree(BOX, boxes(n, 0, dtype), boxes(n, 1, dtype), (some(n),), (0.25, 2.0))


def test_two_types():
    agree(BOX, boxes(31, 0, torch.bfloat16), boxes(31, 1), (), (1.0, 2.0))


@on_a_gpu
def test_a_million():
    agree(BOX, boxes(1_000_000), boxes(1_000_000, 1), (some(1_000_000),), (3.0, -0.7))


@pytest.mark.parametrize("layout", range(4))
def test_strides_change_no_bit(layout):
    p, t, v = boxes(33), boxes(33, 1), some(66).view(33, 2)[:, 0]
    assert not v.is_contiguous()
    name, strided = layouts(p)[layout]
    assert torch.equal(strided, p) and strided.stride() != p.stride(), name
    results = []
    for pred, target in ((p, t), (strided, layouts(t)[layout][1])):
        pred = pred.detach().requires_grad_()
        losses = fused(pred, target, v)
        sum(losses).backward()
        results.append((*losses, pred.grad))
    assert all(torch.equal(a, b) for a, b in zip(*results))


def test_an_expanded_target_and_an_expanded_valid():
    one, valid = boxes(1, 3).expand(9, 4), torch.ones(1, dtype=torch.bool, device=DEVICE).expand(9)
    assert one.stride(0) == 0 and valid.stride(0) == 0
    agree(BOX, boxes(9), one, (valid,), (1.0, 1.0))


def test_offsets_beyond_2_to_the_31():
    """Two boxes 2^31 elements apart: the second is found only with 64-bit offsets."""
    far = torch.empty(2 ** 31 + 8, dtype=torch.bfloat16, device=DEVICE).as_strided((2, 4), (2 ** 31, 1))  # memory untouched
    far.copy_(boxes(2, 0, torch.bfloat16))
    assert [x.item() for x in fused(far, boxes(2, 1))] == [x.item() for x in fused(far.contiguous(), boxes(2, 1))]


# ---- the rules ----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("which", ["pred", "target"])
@pytest.mark.parametrize("coordinate", range(4))
def test_nan_and_inf_reach_both_losses(which, coordinate, bad):
    values = {"pred": boxes(3), "target": boxes(3, 1)}
    values[which][1, coordinate] = bad
    (losses, gradient, _), (exact, want, _) = both(BOX, values["pred"], values["target"], (), (1.0, 1.0))
    assert not any(loss.isfinite() for loss in losses)
    assert torch.equal(gradient.isfinite(), want.isfinite()), "the bad box shows it, and its neighbours do not"
    assert not gradient[1].isfinite().all() and gradient[[0, 2]].isfinite().all()


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_box_that_is_not_valid_may_hold_anything(bad):
    pred, target, valid = boxes(4), boxes(4, 1), torch.tensor([True, False, True, False], device=DEVICE)
    want = reference(pred[valid].double(), target[valid].double())
    pred[1], target[3] = bad, bad
    pred.requires_grad_()
    got = fused(pred, target, valid)
    assert [g.item() for g in got] == pytest.approx([w.item() for w in want], rel=1e-6)
    sum(got).backward()
    assert pred.grad.isfinite().all() and (pred.grad[~valid] == 0).all() and (pred.grad[valid] != 0).all()


@pytest.mark.parametrize("n", [0, 3, 4097])
def test_no_valid_box_is_exactly_zero_and_attached(n):
    pred = boxes(n).requires_grad_()
    losses = fused(pred, boxes(n, 1), torch.zeros(n, dtype=torch.bool, device=DEVICE))
    assert [loss.item() for loss in losses] == [0, 0]
    sum(losses).backward()
    assert pred.grad.shape == (n, 4) and (pred.grad == 0).all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("side", [0.0, -0.2, 1e-5])
def test_a_pair_without_a_shape_costs_one_with_no_gradient(side, dtype):
    pred, target = boxes(3, 0, dtype), boxes(3, 1, dtype)
    pred[1] = target[1] = torch.tensor([0.3, 0.4, side, side])
    agree(BOX, pred, target, (), (0.0, 1.0))
    pred.requires_grad_()
    fused(pred, target)[1].backward()
    assert (pred.grad[1] == 0).all() and (pred.grad[[0, 2]] != 0).any(1).all()


@pytest.mark.parametrize("sides", [(-0.1, 0.2), (0.2, -0.1), (-0.1, -0.1), (0.0, 0.2), (0.2, 0.0)])
def test_negative_and_zero_sides(sides):
    pred, target = boxes(3), boxes(3, 1)
    pred[1, 2:] = torch.tensor(sides)
    agree(BOX, pred, target, (), (1.0, 2.0))
    target[2, 2:] = torch.tensor(sides)
    agree(BOX, pred, target, (), (1.0, 2.0))


def test_ties_share_the_gradient():
    """Equal boxes, equal edges, touching edges: the reference halves at a tie, and so do the kernels."""
    exact = [[0.5, 0.5, 0.5, 0.5], [0.25, 0.5, 0.5, 1.0], [0.5, 0.5, 1.0, 0.5], [0.5, 0.25, 0.25, 0.5]]
    other = [[0.5, 0.5, 0.5, 0.5], [0.75, 0.5, 0.5, 1.0], [0.5, 0.5, 0.5, 0.5], [0.5, 0.5, 0.25, 1.0]]
    agree(BOX, torch.tensor(exact, device=DEVICE), torch.tensor(other, device=DEVICE), (), (1.0, 1.0))


def test_a_loss_that_is_not_differentiated_takes_no_part():
    """At eps = 0 the GIoU gradient of tiny boxes overflows; L1's alone must not meet it as 0 * inf."""
    pred, target = torch.tensor([[0.5, 0.5, 1e-30, 1e-8]], device=DEVICE), torch.tensor([[0.5, 0.5, 2e-30, 1e-8]], device=DEVICE)
    pred.requires_grad_()
    fused(pred, target, eps=0.0)[0].backward()
    assert pred.grad.tolist() == [[0, 0, -1, 0]]


@pytest.mark.parametrize("eps", [0.0, 1e-12, 1e-3])
def test_eps_is_the_callers(eps):
    agree(BOX, boxes(31), boxes(31, 1), (None, eps), (1.0, 1.0))


# ---- as an operator of torch ----------------------------------------------------------------------------------------------
@pytest.mark.parametrize("valid", [None, True])
def test_opcheck(valid):
    valid = valid and some(5)
    pred, target = boxes(5).requires_grad_(), boxes(5, 1).requires_grad_()
    torch.library.opcheck(BOX._box_loss, (pred, target, valid, 1e-7))
    count = torch.tensor(5.0, device=DEVICE)
    torch.library.opcheck(BOX._box_loss_backward, (boxes(5), target.detach(), valid, count, count, count, 1e-7))


@pytest.mark.parametrize("n", [512, 4097])
def test_equal_inputs_give_equal_bits(n):
    def once():
        pred = boxes(n).requires_grad_()
        losses = fused(pred, boxes(n, 1), some(n))
        sum(losses).backward()
        return torch.cat([torch.stack(losses), pred.grad.flatten()])
    assert torch.equal(once(), once())


def test_no_float_atomics():
    assert "atomic" not in inspect.getsource(BOX)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_autocast_does_not_cast_down(dtype):
    pred, target = boxes(64, 0, dtype), boxes(64, 1, dtype)
    with torch.autocast(DEVICE, torch.bfloat16):
        cast = fused(pred, target)
    assert all(torch.equal(a, b) and b.dtype == torch.float32 for a, b in zip(fused(pred, target), cast))


def test_a_second_derivative_is_refused():
    pred = boxes(3).requires_grad_()
    gradient, = torch.autograd.grad(sum(fused(pred, boxes(3, 1))), pred, create_graph=True)
    with pytest.raises(RuntimeError, match="box_loss has no second derivative.*XTK_KERNELS=torch"):
        gradient.sum().backward()


def test_without_gradients():
    with torch.no_grad():
        losses = fused(boxes(3).requires_grad_(), boxes(3, 1))
    assert not any(loss.requires_grad for loss in losses)


def test_float64_goes_to_the_reference(monkeypatch):
    monkeypatch.setenv("XTK_KERNELS", "triton")
    pred, target = boxes(7, dtype=torch.float64).requires_grad_(), boxes(7, 1, torch.float64)
    assert all(loss.dtype == torch.float64 for loss in kernels.box_loss(pred, target))
    assert torch.autograd.gradcheck(lambda p: kernels.box_loss(p, target), (pred,))
    assert all(loss.dtype == torch.float64 for loss in kernels.box_loss(pred.float(), target))


def test_two_devices_are_refused():
    with pytest.raises(ValueError, match="one device: pred is on meta"):
        fused(torch.empty(3, 4, device="meta"), boxes(3))


@on_a_gpu
def test_no_question_to_the_host():
    pred, target, valid = boxes(513).requires_grad_(), boxes(513, 1), some(513)
    sum(fused(pred, target, valid)).backward()  # compiled
    torch.cuda.set_sync_debug_mode("error")
    try:
        sum(fused(pred, target, valid)).backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")


@on_a_gpu
@pytest.mark.parametrize("n", [512, 4097])
def test_a_cuda_graph_replays_it(n):
    pred, target, valid = boxes(n).requires_grad_(), boxes(n, 1), some(n)
    run = torch.cuda.make_graphed_callables(lambda p: torch.stack(fused(p, target, valid)), (pred,))
    with torch.no_grad():
        pred.copy_(boxes(n, 5))
    graphed = run(pred)
    assert torch.equal(graphed, torch.stack(fused(pred, target, valid)))
    graphed.sum().backward()
    replayed = pred.grad.clone()
    pred.grad = None
    torch.stack(fused(pred, target, valid)).sum().backward()
    assert torch.equal(replayed, pred.grad)
