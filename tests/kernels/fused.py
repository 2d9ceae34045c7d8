"""What the kernels' tests share: their device, inputs, and the references in float64."""

import importlib
import itertools

import torch

# The public functions shadow the modules of the same names.
BOX = importlib.import_module("xtoolkit.kernels.box_loss")
MSE = importlib.import_module("xtoolkit.kernels.masked_mse")

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"  # a CPU runs the kernels through Triton's interpreter
GRADIENT = {torch.float32: 1e-6, torch.bfloat16: 4e-3, torch.float16: 5e-4}  # relative, by the type of the inputs
LOSS = 1e-6  # relative, whatever the type: the arithmetic is float32


def boxes(n, seed=0, dtype=torch.float32):
    """Random cx, cy, w, h that may overlap, contain each other or lie apart."""
    g = torch.Generator().manual_seed(seed)
    return torch.cat([torch.rand(n, 2, generator=g), 0.05 + 0.6 * torch.rand(n, 2, generator=g)], 1).to(DEVICE, dtype)


def tokens(shape, seed=0, dtype=torch.float32):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(DEVICE, dtype)


def some(shape, seed=2, share=0.4):
    return (torch.rand(shape, generator=torch.Generator().manual_seed(seed)) < share).to(DEVICE)


def both(module, pred, target, rest, weights):
    """Losses and gradients, by pred and by target, of ``fused`` and of the float64 reference on the same values.

    Args:
        weights: the upstream gradient of each loss.

    Returns:
        [(losses, gradient by pred, gradient by target)] of the kernels, then of the reference.
    """
    results = []
    for function, dtype in ((module.fused, None), (module.reference, torch.float64)):
        p, t = (x.detach().to(dtype or x.dtype).requires_grad_() for x in (pred, target))
        if dtype is None:  # the strides are part of what is tested
            p, t = (x.detach().requires_grad_() for x in (pred, target))
        losses = function(p, t, *rest)
        losses = losses if isinstance(losses, tuple) else (losses,)
        sum(w * loss for w, loss in zip(weights, losses)).backward()
        results.append((losses, p.grad, t.grad))
    return results


def agree(module, pred, target, rest, weights):
    """Holds ``fused`` against the float64 reference within ``LOSS`` and ``GRADIENT``."""
    (losses, *gradients), (exact, *exact_gradients) = both(module, pred, target, rest, weights)
    for loss, want in zip(losses, exact):
        assert loss.dtype == torch.float32 and loss.shape == ()
        assert abs(loss.item() - want.item()) <= LOSS * abs(want.item())
    for gradient, want in zip(gradients, exact_gradients):
        error, size = (gradient.double() - want).norm().item(), want.norm().item()
        assert gradient.shape == want.shape and error <= GRADIENT[gradient.dtype] * size


def layouts(make):
    """Pairs (name, tensor) of equal values in other strides: of a tensor (..., n, d), with nothing contiguous."""
    return [
        ("columns of a wider one", torch.cat([make, make], -1)[..., :make.shape[-1]]),
        ("every second of twice as many", make.repeat_interleave(2, -2)[..., ::2, :]),
        ("transposed", make.transpose(-1, -2).contiguous().transpose(-1, -2)),
        ("every second column", make.repeat_interleave(2, -1)[..., ::2]),
    ]


def coordinates():
    return itertools.product(("pred", "target"), range(4))
