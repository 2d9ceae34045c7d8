"""Mean squared error over the masked tokens, without gathering them: no question to the host, no copy of the inputs."""

from __future__ import annotations  # `tl.constexpr` below is then a word, also where there is no Triton

import torch
from torch import Tensor

from xtoolkit.kernels.choice import jit, tl, use_triton
from xtoolkit.kernels.rounding import rounded

ROWS = 8          # tokens that a program holds at a time
COLUMNS = 256     # channels of each
PROGRAMS = 2048   # at most, in the first stage: their partial sums are what the second reads

# Loops end at numbers that the compiler knows, a width and a share of the tiles: a model and a batch have one each. (The
# interpreter of Triton 3.6 cannot loop to a number that it is given, under today's numpy.)


def masked_mse(pred: Tensor, target: Tensor, mask: Tensor) -> Tensor:
    """Mean over masked elements of (pred - target)^2.

        loss = 1 / (D |mask|)  sum_{(b, n) in mask}  sum_d  (pred[b, n, d] - target[b, n, d])^2

    Unmasked tokens may hold anything, NaN included: they change neither the loss nor a gradient. NaN or inf in a
    masked token reaches the loss. Nothing masked (or an empty batch): exactly 0, attached to the graph, with gradient
    0.

    Args:
        pred: (B, N, D), any float type, any strides (``tokens[:, 1:]`` is not copied).
        target: (B, N, D), the same; gradients reach it too unless it is detached.
        mask: (B, N) bool, True where the token counts.

    Returns:
        A scalar: float32 whatever the inputs, float64 if one of them is; autocast changes nothing.

    Raises:
        ValueError: shapes or devices that do not fit.
        ConfigError: ``XTK_KERNELS`` asks for what cannot be had.

    The Triton kernels and the reference give the same numbers up to float32 rounding; ``XTK_KERNELS`` chooses. float64
    goes to the reference. The kernels read masked tokens only, write the dense gradient in one pass, and sum in a
    fixed order, so that equal inputs give equal bits. They have no second derivative.

    Source: X-FM, equation 6, the masked positions. The paper writes a squared norm, the release takes the mean over
    elements, as here; the release gathers by a boolean index, which asks the device how many there are.
    """
    if pred.dtype != torch.float64 and target.dtype != torch.float64 and use_triton(pred.device.type):
        return fused(pred, target, mask)
    return reference(pred, target, mask)


def _check(pred, target, mask):
    if pred.shape != target.shape or pred.dim() != 3:
        raise ValueError(f"masked_mse compares (B, N, D) with (B, N, D), not {tuple(pred.shape)} with "
                         f"{tuple(target.shape)}")
    if mask.shape != pred.shape[:2] or mask.dtype != torch.bool:
        raise ValueError(f"`mask` of masked_mse must be bool {tuple(pred.shape[:2])}, not {mask.dtype} "
                         f"{tuple(mask.shape)}")
    if not pred.device == target.device == mask.device:
        raise ValueError(f"masked_mse needs everything on one device: pred is on {pred.device}, target on "
                         f"{target.device}, mask on {mask.device}")


# ---- the reference ------------------------------------------------------------------------------------------------------
def reference(pred: Tensor, target: Tensor, mask: Tensor) -> Tensor:
    """``masked_mse`` in torch, on any device and in any precision."""
    _check(pred, target, mask)
    dtype = torch.promote_types(torch.promote_types(pred.dtype, target.dtype), torch.float32)
    difference = pred.to(dtype) - target.to(dtype)
    difference = torch.where(mask[..., None], difference, torch.zeros_like(difference))
    return (difference * difference).sum() / (mask.sum() * pred.shape[2]).clamp(min=1)


# ---- the kernels --------------------------------------------------------------------------------------------------------
@jit
def _difference(pred, target, batch, token, column, here, pb, pn, pd, qb, qn, qd):
    """pred - target in float32 of a tile (tokens, channels); 0 where it does not count, and nothing is read there."""
    p = tl.load(pred + (batch * pb + token * pn)[:, None] + (column * pd)[None, :], mask=here, other=0.0)
    q = tl.load(target + (batch * qb + token * qn)[:, None] + (column * qd)[None, :], mask=here, other=0.0)
    return p.to(tl.float32) - q.to(tl.float32)


@jit
def _forward_kernel(pred, target, mask, sums, counts, rows, tokens, pb, pn, pd, qb, qn, qd, mb, mn,
                    WIDTH: tl.constexpr, STEPS: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """A program sums the squares, and counts the masked tokens, of every ``num_programs``-th tile of rows."""
    program, programs = tl.program_id(0).to(tl.int64), tl.num_programs(0).to(tl.int64)
    total = tl.zeros((ROWS, COLUMNS), tl.float32)
    count = tl.zeros((ROWS,), tl.int32)
    for step in range(STEPS):
        row = (program + step * programs) * ROWS + tl.arange(0, ROWS)
        batch, token = row // tokens, row % tokens
        masked = tl.load(mask + batch * mb + token * mn, mask=row < rows, other=0) != 0
        count += tl.where(masked, 1, 0)
        for start in range(0, WIDTH, COLUMNS):
            column = start + tl.arange(0, COLUMNS).to(tl.int64)
            here = masked[:, None] & (column < WIDTH)[None, :]
            difference = _difference(pred, target, batch, token, column, here, pb, pn, pd, qb, qn, qd)
            total += difference * difference
    tl.store(sums + program, tl.sum(tl.sum(total, 1), 0))
    tl.store(counts + program, tl.sum(count, 0))


@jit
def _finish_kernel(sums, counts, loss, elements, programs, width, PROGRAMS: tl.constexpr):
    """Second stage: the programs' sums, always in the same order."""
    at = tl.arange(0, PROGRAMS)
    there = at < programs
    total = tl.sum(tl.load(counts + at, mask=there, other=0).to(tl.int64), 0) * width
    divisor = tl.where(total > 0, total, 1).to(tl.float32)
    tl.store(loss, tl.sum(tl.load(sums + at, mask=there, other=0.0), 0) / divisor)
    tl.store(elements, divisor)


@jit
def _backward_kernel(pred, target, mask, elements, g_loss, gradient, rows, tokens, pb, pn, pd, qb, qn, qd, mb, mn,
                     WIDTH: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """Writes every row of the gradient once: 2 (pred - target) g / elements where masked, else 0."""
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    inside = row < rows
    batch, token = row // tokens, row % tokens
    masked = tl.load(mask + batch * mb + token * mn, mask=inside, other=0) != 0
    scale = 2 * tl.load(g_loss) / tl.load(elements)
    for start in range(0, WIDTH, COLUMNS):
        column = start + tl.arange(0, COLUMNS).to(tl.int64)
        in_row = (column < WIDTH)[None, :]
        here = masked[:, None] & in_row
        difference = _difference(pred, target, batch, token, column, here, pb, pn, pd, qb, qn, qd)
        # where(), not a product alone: an upstream gradient that is not finite must not reach unmasked tokens.
        value = rounded(tl.where(here, difference * scale, 0.0), gradient.dtype.element_ty)
        tl.store(gradient + (row * WIDTH)[:, None] + column[None, :], value, mask=inside[:, None] & in_row)


# ---- the operators ------------------------------------------------------------------------------------------------------
def fused(pred: Tensor, target: Tensor, mask: Tensor) -> Tensor:
    """``masked_mse`` through the Triton kernels: two operators that torch.compile, autocast and CUDA graphs take as they are."""
    _check(pred, target, mask)
    return _masked_mse(pred, target, mask)[0]


# custom_op, not triton_op: the latter cannot be traced through the interpreter, so nothing of it could be tested without
# a GPU.
@torch.library.custom_op("xtoolkit::masked_mse", mutates_args=())
def _masked_mse(pred: Tensor, target: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    (batch, tokens, width), rows = pred.shape, pred.shape[0] * pred.shape[1]
    loss, elements = pred.new_empty((), dtype=torch.float32), pred.new_empty((), dtype=torch.float32)
    tiles = max((rows + ROWS - 1) // ROWS, 1)
    programs = min(tiles, PROGRAMS)
    sums, counts = pred.new_empty(programs, dtype=torch.float32), pred.new_empty(programs, dtype=torch.int32)
    with torch.cuda.device_of(pred):
        # At least 1 token a row of tokens, for the division by it: of an empty batch nothing is read.
        _forward_kernel[(programs,)](pred, target, mask.view(torch.uint8), sums, counts, rows, max(tokens, 1),
                                     *_layout(pred, target, mask), WIDTH=width, STEPS=(tiles + programs - 1) // programs,
                                     ROWS=ROWS, COLUMNS=_columns(width))
        _finish_kernel[(1,)](sums, counts, loss, elements, programs, width, PROGRAMS=PROGRAMS)
    return loss, elements


@_masked_mse.register_fake
def _(pred, target, mask):
    return pred.new_empty((), dtype=torch.float32), pred.new_empty((), dtype=torch.float32)


@torch.library.custom_op("xtoolkit::masked_mse_backward", mutates_args=())
def _masked_mse_backward(pred: Tensor, target: Tensor, mask: Tensor, elements: Tensor, g_loss: Tensor) -> Tensor:
    (batch, tokens, width), rows = pred.shape, pred.shape[0] * pred.shape[1]
    gradient = pred.new_empty(pred.shape)
    if gradient.numel():
        with torch.cuda.device_of(pred):
            _backward_kernel[((rows + ROWS - 1) // ROWS,)](
                pred, target, mask.view(torch.uint8), elements, g_loss, gradient, rows, tokens,
                *_layout(pred, target, mask), WIDTH=width, ROWS=ROWS, COLUMNS=_columns(width))
    return gradient


@_masked_mse_backward.register_fake
def _(pred, target, mask, elements, g_loss):
    return pred.new_empty(pred.shape)


def _setup_context(ctx, inputs, output):
    ctx.save_for_backward(*inputs, output[1])
    ctx.mark_non_differentiable(output[1])


def _backward(ctx, g_loss, _):
    pred, target, mask, elements = ctx.saved_tensors
    # The loss is symmetric, so the target's gradient is the prediction's with the roles exchanged.
    pairs = ((pred, target), (target, pred))
    gradients = [_masked_mse_backward(a, b, mask, elements, g_loss) if needed else None
                 for (a, b), needed in zip(pairs, ctx.needs_input_grad)]
    return *gradients, None


def _no_second_derivative(ctx, gradient):
    raise RuntimeError("the fused masked_mse has no second derivative; XTK_KERNELS=torch takes the reference, which has")


_masked_mse.register_autograd(_backward, setup_context=_setup_context)
_masked_mse_backward.register_autograd(_no_second_derivative)


def _layout(pred, target, mask):
    return *pred.stride(), *target.stride(), *mask.stride()


def _columns(width):
    """Channels a tile holds: a power of two, no wider than the token."""
    return min(COLUMNS, 1 << max(width - 1, 0).bit_length())
