"""Outputs are rounded to nearest, also by the interpreter."""

import pytest
import torch
from kernels.fused import DEVICE

from xtoolkit.kernels.choice import jit, tl
from xtoolkit.kernels.rounding import rounded


@jit
def _copy(source, target, BLOCK: tl.constexpr):
    at = tl.arange(0, BLOCK)
    tl.store(target + at, rounded(tl.load(source + at), target.dtype.element_ty))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_as_torch_rounds(dtype):
    g = torch.Generator().manual_seed(0)
    x = torch.randn(1024, generator=g) * torch.logspace(-4, 4, 1024)
    x[:8] = torch.tensor([0.0, -0.0, 1.0, 1.00390625, 1.01171875, float("inf"), -float("inf"), float("nan")])  # ties, too
    x, out = x.to(DEVICE), torch.empty(1024, dtype=dtype, device=DEVICE)
    _copy[(1,)](x, out, BLOCK=1024)
    torch.testing.assert_close(out, x.to(dtype), rtol=0, atol=0, equal_nan=True)
