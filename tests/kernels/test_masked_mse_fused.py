"""The masked MSE kernels against the float64 reference, and each trap that such kernels have fallen into."""

import inspect
import math

import pytest
import torch
from kernels.fused import DEVICE, MSE, agree, both, layouts, some, tokens

from xtoolkit import kernels

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
fused, reference = MSE.fused, MSE.reference
on_a_gpu = pytest.mark.skipif(DEVICE != "cuda", reason="needs a GPU")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("width", [1, 17, 768, 1030])
def test_widths_and_types(width, dtype):
    shape = (2, 7, width)
    agree(MSE, tokens(shape, 0, dtype), tokens(shape, 1, dtype), (some(shape[:2]),), (-0.7,))


@pytest.mark.parametrize("count", [1, 2, 31, 511, 512, 513, 4097])
def test_numbers_of_tokens(count):
    shape = (1, count, 5)
    agree(MSE, tokens(shape), tokens(shape, 1), (some(shape[:2], share=0.9),), (3.0,))


def test_the_size_of_the_paper_for_two_pictures():
    shape = (2, 196, 768)
    mask = torch.zeros(2, 196, dtype=torch.bool, device=DEVICE)
    mask[0, 20:95] = mask[1, 100:175] = True  # 75 of 196
    agree(MSE, tokens(shape, 0, torch.bfloat16), tokens(shape, 1, torch.bfloat16), (mask,), (1.0,))


def test_more_tiles_than_programs(monkeypatch):
    """Each program then sums several tiles."""
    monkeypatch.setattr(MSE, "PROGRAMS", 4)
    shape = (3, 67, 5)
    agree(MSE, tokens(shape), tokens(shape, 1), (some(shape[:2]),), (1.0,))


@on_a_gpu
def test_more_than_2_to_the_31_elements():
    shape = (2 ** 31 // (196 * 768) + 2, 196, 768)
    one, mask = tokens((1, 196, 768), 0, torch.bfloat16), some((1, 196)).expand(shape[:2])
    pred = one.expand(shape).detach().requires_grad_()
    loss = fused(pred, torch.zeros_like(one).expand(shape), mask)
    assert loss.item() == pytest.approx(reference(one.double(), torch.zeros_like(one).double(), mask[:1]).item(), rel=1e-5)
    loss.backward()
    assert torch.equal(pred.grad[0], pred.grad[-1]) and (pred.grad[-1][mask[-1]] != 0).any()


def test_offsets_beyond_2_to_the_31():
    """Two pictures 2^31 elements apart: the second is found only with 64-bit offsets."""
    far = torch.empty(2 ** 31 + 64, dtype=torch.bfloat16, device=DEVICE).as_strided((2, 3, 5), (2 ** 31, 5, 1))
    far.copy_(tokens((2, 3, 5), 0, torch.bfloat16))
    target, mask = tokens((2, 3, 5), 1), some((2, 3), share=0.8)
    assert fused(far, target, mask).item() == fused(far.contiguous(), target, mask).item() > 0


@pytest.mark.parametrize("layout", range(4))
def test_strides_change_no_bit(layout):
    p, t, mask = tokens((3, 7, 5)), tokens((3, 7, 5), 1), some((3, 8))[:, 1:]
    assert not mask.is_contiguous()
    results = []
    for pred, target in ((p, t), (layouts(p)[layout][1], layouts(t)[layout][1])):
        pred = pred.detach().requires_grad_()
        loss = fused(pred, target, mask)
        loss.backward()
        results.append((loss, pred.grad))
    assert all(torch.equal(a, b) for a, b in zip(*results))


def test_the_slice_without_the_summary_token():
    whole = tokens((3, 8, 5)).requires_grad_()
    target, mask = tokens((3, 8, 5), 1), some((3, 7))
    fused(whole[:, 1:], target[:, 1:], mask).backward()
    assert (whole.grad[:, 0] == 0).all() and (whole.grad[:, 1:][mask] != 0).all() and (whole.grad[:, 1:][~mask] == 0).all()


def test_expanded_inputs():
    one, mask = tokens((1, 7, 5)).expand(3, 7, 5), some((1, 7)).expand(3, 7)
    agree(MSE, tokens((3, 7, 5), 1), one, (mask,), (1.0,))


# ---- the rules ----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_unmasked_tokens_may_hold_anything(bad):
    pred, target, mask = tokens((3, 7, 5)), tokens((3, 7, 5), 1), some((3, 7))
    want = fused(pred, target, mask)
    pred[~mask], target[~mask] = bad, bad
    pred.requires_grad_()
    got = fused(pred, target, mask)
    assert torch.equal(got, want)
    got.backward()
    assert (pred.grad[~mask] == 0).all() and pred.grad.isfinite().all()


@pytest.mark.parametrize("which", ["pred", "target"])
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_nan_and_inf_in_a_masked_token_reach_loss_and_gradient(which, bad):
    values, mask = {"pred": tokens((3, 7, 5)), "target": tokens((3, 7, 5), 1)}, some((3, 7))
    row, column = mask.nonzero()[0].tolist()
    values[which][row, column, 2] = bad
    (losses, gradient, _), (_, want, _) = both(MSE, values["pred"], values["target"], (mask,), (1.0,))
    assert not losses[0].isfinite()
    assert torch.equal(gradient.isfinite(), want.isfinite()) and not gradient[row, column, 2].isfinite()


def test_an_upstream_gradient_that_is_not_finite_stays_at_masked_tokens():
    pred, mask = tokens((3, 7, 5)).requires_grad_(), some((3, 7))
    (fused(pred, tokens((3, 7, 5), 1), mask) * math.inf).backward()
    assert (pred.grad[~mask] == 0).all() and not pred.grad[mask].isfinite().any()


@pytest.mark.parametrize("shape", [(3, 7, 5), (0, 7, 5), (3, 0, 5), (3, 7, 0)])
def test_nothing_masked_is_exactly_zero_and_attached(shape):
    pred = tokens(shape).requires_grad_()
    loss = fused(pred, tokens(shape, 1), torch.zeros(shape[:2], dtype=torch.bool, device=DEVICE))
    assert loss.item() == 0
    loss.backward()
    assert pred.grad.shape == shape and (pred.grad == 0).all()


# ---- as an operator of torch ----------------------------------------------------------------------------------------------
def test_opcheck():
    pred, target, mask = tokens((2, 3, 5)).requires_grad_(), tokens((2, 3, 5), 1).requires_grad_(), some((2, 3))
    torch.library.opcheck(MSE._masked_mse, (pred, target, mask))
    one = torch.tensor(5.0, device=DEVICE)
    torch.library.opcheck(MSE._masked_mse_backward, (pred.detach(), target.detach(), mask, one, one))


def test_equal_inputs_give_equal_bits():
    def once():
        pred = tokens((2, 31, 768)).requires_grad_()
        loss = fused(pred, tokens((2, 31, 768), 1), some((2, 31)))
        loss.backward()
        return torch.cat([loss.reshape(1), pred.grad.flatten()])
    assert torch.equal(once(), once())


def test_no_float_atomics():
    assert "atomic" not in inspect.getsource(MSE)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_autocast_does_not_cast_down(dtype):
    pred, target, mask = tokens((2, 3, 5), 0, dtype), tokens((2, 3, 5), 1, dtype), some((2, 3))
    with torch.autocast(DEVICE, torch.bfloat16):
        cast = fused(pred, target, mask)
    assert torch.equal(fused(pred, target, mask), cast) and cast.dtype == torch.float32


def test_a_second_derivative_is_refused():
    pred = tokens((2, 3, 5)).requires_grad_()
    gradient, = torch.autograd.grad(fused(pred, tokens((2, 3, 5), 1), some((2, 3))), pred, create_graph=True)
    with pytest.raises(RuntimeError, match="masked_mse has no second derivative.*XTK_KERNELS=torch"):
        gradient.sum().backward()


def test_float64_goes_to_the_reference(monkeypatch):
    monkeypatch.setenv("XTK_KERNELS", "triton")
    pred, target, mask = tokens((2, 3, 5), 0, torch.float64).requires_grad_(), tokens((2, 3, 5), 1, torch.float64), some((2, 3))
    assert kernels.masked_mse(pred, target, mask).dtype == torch.float64
    assert torch.autograd.gradcheck(lambda p: kernels.masked_mse(p, target, mask), (pred,))


def test_both_in_one_compiled_graph(monkeypatch):
    """No graph break, no recompilation for another number of boxes, the numbers and gradients of the plain calls."""
    monkeypatch.setenv("XTK_KERNELS", "triton")
    from kernels.fused import boxes

    def losses(p, t, valid, x, y, mask):
        l1, giou = kernels.box_loss(p * 1.0, t, valid)
        return l1 + 2 * giou + 3 * kernels.masked_mse(x * 1.0, y, mask)

    compiled = torch.compile(losses, fullgraph=True, dynamic=True)
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()  # which a reset leaves
    for n in (5, 9, 17):
        inputs = [boxes(n).requires_grad_(), boxes(n, 1), some(n), tokens((2, n, 6)).requires_grad_(), tokens((2, n, 6), 1),
                  some((2, n))]
        results = []
        for function in (losses, compiled):
            inputs[0].grad = inputs[3].grad = None
            loss = function(*inputs)
            loss.backward()
            results.append((loss, inputs[0].grad, inputs[3].grad))
        torch.testing.assert_close(*results, rtol=1e-6, atol=0)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1


@on_a_gpu
def test_no_question_to_the_host():
    pred, target, mask = tokens((4, 49, 768)).requires_grad_(), tokens((4, 49, 768), 1), some((4, 49))
    fused(pred, target, mask).backward()  # compiled
    torch.cuda.set_sync_debug_mode("error")
    try:
        fused(pred, target, mask).backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")


@on_a_gpu
def test_a_cuda_graph_replays_it():
    pred, target, mask = tokens((4, 49, 768)).requires_grad_(), tokens((4, 49, 768), 1), some((4, 49))
    run = torch.cuda.make_graphed_callables(lambda p: fused(p, target, mask), (pred,))
    with torch.no_grad():
        pred.copy_(tokens((4, 49, 768), 7))
    loss = run(pred)
    assert torch.equal(loss, fused(pred, target, mask))
    loss.backward()
    replayed = pred.grad.clone()
    pred.grad = None
    fused(pred, target, mask).backward()
    assert torch.equal(replayed, pred.grad)
