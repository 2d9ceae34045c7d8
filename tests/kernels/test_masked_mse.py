"""masked_mse against gathering the masked tokens, by hand arrays and float64, and its rules one by one."""

import math

import pytest
import torch

from xtoolkit.kernels import masked_mse


def tokens(shape=(3, 7, 5), seed=0, dtype=torch.float64):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def some(shape=(3, 7), seed=2):
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed)) < 0.4


def test_by_hand():
    pred = torch.tensor([[[1.0, 2.0], [3.0, 4.0], [0.0, 0.0]]])
    target = torch.tensor([[[0.0, 0.0], [3.0, 2.0], [9.0, 9.0]]])
    mask = torch.tensor([[True, True, False]])
    assert masked_mse(pred, target, mask).item() == (1 + 4 + 0 + 4) / 4


@pytest.mark.parametrize("width", [1, 17, 768, 1030])
def test_value_and_gradient_against_gathering(width):
    shape = (2, 31, width)
    pred, target, mask = tokens(shape).requires_grad_(), tokens(shape, 1), some(shape[:2])
    other = pred.detach().clone().requires_grad_()
    got = masked_mse(pred, target, mask)
    want = torch.nn.functional.mse_loss(other[mask], target[mask])
    torch.testing.assert_close(got, want, rtol=1e-13, atol=0)
    (3 * got).backward()
    (3 * want).backward()
    torch.testing.assert_close(pred.grad, other.grad, rtol=1e-13, atol=0)


@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 1e-6), (torch.bfloat16, 4e-3), (torch.float16, 5e-4)])
def test_low_precision_inputs_are_computed_in_float32(dtype, tolerance):
    shape = (4, 49, 64)
    pred, target, mask = tokens(shape, dtype=dtype).requires_grad_(), tokens(shape, 1, dtype), some(shape[:2])
    exact = pred.detach().double().requires_grad_()
    got, want = masked_mse(pred, target, mask), masked_mse(exact, target.double(), mask)
    assert got.dtype == torch.float32 and abs(got.item() - want.item()) <= 1e-6 * want.item()
    got.backward()
    want.backward()
    assert (pred.grad.double() - exact.grad).norm() <= tolerance * exact.grad.norm()


def test_float64_stays_float64_and_passes_gradcheck():
    pred, target, mask = tokens().requires_grad_(), tokens(seed=1).requires_grad_(), some()
    assert masked_mse(pred, target, mask).dtype == torch.float64
    assert torch.autograd.gradcheck(lambda p, t: masked_mse(p, t, mask), (pred, target))


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_unmasked_tokens_may_hold_anything(bad):
    pred, target, mask = tokens(), tokens(seed=1), some()
    want = masked_mse(pred, target, mask)
    pred[~mask], target[~mask] = bad, bad
    pred.requires_grad_()
    got = masked_mse(pred, target, mask)
    assert torch.equal(got, want)
    got.backward()
    assert (pred.grad[~mask] == 0).all() and pred.grad.isfinite().all()


@pytest.mark.parametrize("which", ["pred", "target"])
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_nan_and_inf_in_a_masked_token_reach_the_loss(which, bad):
    values, mask = {"pred": tokens(), "target": tokens(seed=1)}, some()
    row, column = mask.nonzero()[0].tolist()
    values[which][row, column, 2] = bad
    assert not masked_mse(values["pred"], values["target"], mask).isfinite()


@pytest.mark.parametrize("shape", [(3, 7, 5), (0, 7, 5), (3, 0, 5)])
def test_nothing_masked_is_exactly_zero_and_attached(shape):
    pred = tokens(shape).requires_grad_()
    loss = masked_mse(pred, tokens(shape, 1), torch.zeros(shape[:2], dtype=torch.bool))
    assert loss.item() == 0
    loss.backward()
    assert pred.grad.shape == shape and (pred.grad == 0).all()


def test_strides_change_nothing():
    whole, other, mask = tokens((3, 8, 5)).requires_grad_(), tokens((3, 8, 5), 1), some()
    sliced = masked_mse(whole[:, 1:], other[:, 1:], mask)
    assert torch.equal(sliced, masked_mse(whole[:, 1:].contiguous(), other[:, 1:].contiguous(), mask))
    sliced.backward()
    assert (whole.grad[:, 0] == 0).all() and (whole.grad[:, 1:][mask] != 0).all()
    wide = some((3, 8))
    assert torch.equal(masked_mse(whole[:, 1:], other[:, 1:], wide[:, 1:]),
                       masked_mse(whole[:, 1:], other[:, 1:], wide[:, 1:].contiguous()))
    expanded = other[:1, 1:].expand(3, 7, 5)
    assert torch.equal(masked_mse(whole[:, 1:], expanded, mask), masked_mse(whole[:, 1:], expanded.contiguous(), mask))


@pytest.mark.parametrize("inputs", [torch.float32, torch.bfloat16])
def test_autocast_does_not_cast_down(inputs):
    pred, target, mask = tokens(dtype=inputs), tokens(seed=1, dtype=inputs), some()
    plain = masked_mse(pred, target, mask)
    with torch.autocast("cpu", torch.bfloat16):
        cast = masked_mse(pred, target, mask)
    assert torch.equal(plain, cast) and cast.dtype == torch.float32


@pytest.mark.parametrize("pred, target, mask, words", [
    ((2, 3, 4), (2, 3, 5), torch.ones(2, 3, dtype=torch.bool), r"\(2, 3, 4\) with \(2, 3, 5\)"),
    ((2, 3, 4), (2, 3, 4), torch.ones(2, 4, dtype=torch.bool), r"must be bool \(2, 3\), not torch.bool \(2, 4\)"),
    ((2, 3, 4), (2, 3, 4), torch.ones(2, 3), r"must be bool \(2, 3\), not torch.float32"),
])
def test_shapes_that_do_not_fit(pred, target, mask, words):
    with pytest.raises(ValueError, match=words):
        masked_mse(torch.rand(pred), torch.rand(target), mask)


def test_it_never_asks_the_device():
    """On the meta device there are no values: any question about one raises."""
    pred = torch.empty(2, 3, 4, device="meta", requires_grad=True)
    masked_mse(pred, torch.empty(2, 3, 4, device="meta"), torch.empty(2, 3, dtype=torch.bool, device="meta")).backward()
    assert pred.grad.shape == (2, 3, 4)
