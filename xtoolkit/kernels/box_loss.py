"""L1 and GIoU loss of N predicted boxes, each against its own target: O(N), no question to the host."""

from __future__ import annotations  # `tl.constexpr` below is then a word, also where there is no Triton

import torch
from torch import Tensor

from xtoolkit.kernels.choice import jit, tl, use_triton
from xtoolkit.kernels.rounding import rounded

BLOCK = 1024      # boxes that a program holds at a time
ONE_LAUNCH = 4096  # up to here one program does everything, and nothing is left to a second launch
PROGRAMS = 1024   # at most, beyond: their partial sums are what the second stage reads


def box_loss(pred: Tensor, target: Tensor, valid: Tensor | None = None, eps: float = 1e-7) -> tuple[Tensor, Tensor]:
    """Mean L1 and mean GIoU loss over the valid boxes.

        l1   = mean_valid  |cx - cx'| + |cy - cy'| + |w - w'| + |h - h'|
        giou = mean_valid  1 - I / (U + eps) + (C - U) / (C + eps)

    with I, U, C the areas of intersection, union and the smallest enclosing box.

    Rules:
        Widths and heights below 0 count as 0 in the GIoU term, with gradient 0; the L1 term sees them as they are.
        Where U <= eps or C <= eps a box has no shape to compare: its GIoU term is 1, with gradient 0. Its neighbours,
        and its own L1 term, are untouched.
        Where two sides coincide each takes half of the gradient of the minimum or maximum; a side of length 0, none.
        NaN or inf in any coordinate of a valid box reaches both losses. Boxes that are not valid may hold anything.
        No valid box (N = 0 included): both losses are exactly 0, attached to the graph, and their gradient is 0.

    Args:
        pred: (N, 4), cx, cy, w, h as shares of the picture; any float type, any strides.
        target: (N, 4), the same.
        valid: (N,) bool, True where the box counts; None: all do.
        eps: guards both divisions, as an area in shares of the picture. It biases areas of its own order: identical
            boxes of area ``a`` cost about ``eps / a``. 1e-7 agrees with torchvision and fvcore.

    Returns:
        (l1, giou), two scalars: float32 whatever the inputs, float64 if one of them is; autocast changes nothing.

    Raises:
        ValueError: shapes or devices that do not fit.
        ConfigError: ``XTK_KERNELS`` asks for what cannot be had.

    The Triton kernels and the reference give the same numbers up to float32 rounding; ``XTK_KERNELS`` chooses. float64
    goes to the reference. The kernels sum in a fixed order, so that equal inputs give equal bits. They have no second
    derivative.

    Source: X-FM, equation 5 (there summed); GIoU: Rezatofighi et al. 2019. The release builds all N x N
    pairs to take their diagonal, sets the GIoU loss of the whole batch to 0 if one box is degenerate, and divides by
    0 if no box is valid.
    """
    if pred.dtype != torch.float64 and target.dtype != torch.float64 and use_triton(pred.device.type):
        return fused(pred, target, valid, eps)
    return reference(pred, target, valid, eps)


def _check(pred, target, valid):
    if pred.shape != target.shape or pred.dim() != 2 or pred.shape[1] != 4:
        raise ValueError(f"box_loss compares boxes (N, 4) with boxes (N, 4), not {tuple(pred.shape)} with "
                         f"{tuple(target.shape)}")
    if valid is not None and (valid.shape != pred.shape[:1] or valid.dtype != torch.bool):
        raise ValueError(f"`valid` of box_loss must be bool ({pred.shape[0]},), not {valid.dtype} {tuple(valid.shape)}")
    if target.device != pred.device or valid is not None and valid.device != pred.device:
        raise ValueError(f"box_loss needs everything on one device: pred is on {pred.device}, target on {target.device}"
                         + (f", valid on {valid.device}" if valid is not None else ""))


# ---- the reference ------------------------------------------------------------------------------------------------------
def reference(pred: Tensor, target: Tensor, valid: Tensor | None = None, eps: float = 1e-7) -> tuple[Tensor, Tensor]:
    """``box_loss`` in torch, on any device and in any precision."""
    _check(pred, target, valid)
    dtype = torch.promote_types(torch.promote_types(pred.dtype, target.dtype), torch.float32)
    pred, target = pred.to(dtype), target.to(dtype)
    if valid is None:
        count = max(pred.shape[0], 1)
    else:
        # A harmless box stands in for one that does not count: a NaN of its own would survive as 0 * NaN in the
        # backward pass.
        pred, target = (torch.where(valid[:, None], box, torch.full_like(box, 0.5)) for box in (pred, target))
        count = valid.sum().clamp(min=1)
    l1, giou = (pred - target).abs().sum(1), _giou_loss(pred, target, eps)
    if valid is not None:
        l1, giou = (torch.where(valid, term, torch.zeros_like(term)) for term in (l1, giou))
    return l1.sum() / count, giou.sum() / count


def _giou_loss(pred: Tensor, target: Tensor, eps: float) -> Tensor:
    """(N,) 1 - GIoU of each pair, under the rules of ``box_loss``."""
    (low, high, area), (target_low, target_high, target_area) = _corners(pred), _corners(target)
    intersection = _area(torch.minimum(high, target_high) - torch.maximum(low, target_low))
    enclosing = _area(torch.maximum(high, target_high) - torch.minimum(low, target_low))
    union = area + target_area - intersection
    shapeless = (union <= eps) | (enclosing <= eps)
    # The quotients that the rule below throws away must stay finite, or their gradient would be 0 * inf.
    safe_union, safe_enclosing = (torch.where(shapeless, torch.ones_like(v), v) for v in (union, enclosing))
    loss = 1 - intersection / (safe_union + eps) + (enclosing - union) / (safe_enclosing + eps)
    return torch.where(shapeless, torch.ones_like(loss), loss)


def _corners(box: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(N, 2) lower and upper corners and (N,) area of cx, cy, w, h; negative sides count as 0."""
    centre, sides = box[:, :2], _positive(box[:, 2:])
    return centre - sides / 2, centre + sides / 2, sides[:, 0] * sides[:, 1]


def _area(sides: Tensor) -> Tensor:
    sides = _positive(sides)
    return sides[:, 0] * sides[:, 1]


def _positive(x: Tensor) -> Tensor:
    """``max(x, 0)`` with gradient 0 at 0 in every torch version; NaN stays and -inf becomes NaN, so neither is lost."""
    return torch.where(x > 0, x, 0 * x)


# ---- the kernels --------------------------------------------------------------------------------------------------------
# Triton's minimum and maximum drop NaN unless told otherwise; products with 0 keep it. `p`, `t`: pred, target.
@jit
def _clip(x):
    return tl.where(x > 0, x, x * 0.0)


@jit
def _low(a, b):
    return tl.minimum(a, b, propagate_nan=tl.PropagateNan.ALL)


@jit
def _high(a, b):
    return tl.maximum(a, b, propagate_nan=tl.PropagateNan.ALL)


@jit
def _load_boxes(boxes, rows, counts, stride_box, stride_coordinate, PACKED: tl.constexpr, BLOCK: tl.constexpr):
    """cx, cy, w, h of ``rows`` in float32; of rows that do not count nothing is read, and 0.5 stands for them."""
    columns = tl.arange(0, 4)
    if PACKED:  # the compiler knows the row's length, and reads a box at once
        at = rows[:, None] * 4 + columns[None, :]
    else:
        at = rows[:, None] * stride_box + columns[None, :] * stride_coordinate
    tile = tl.load(boxes + at, mask=counts[:, None], other=0.5).to(tl.float32)
    first, second = tl.split(tl.reshape(tile, (BLOCK, 2, 2)))  # (cx, w), (cy, h)
    cx, w = tl.split(first)
    cy, h = tl.split(second)
    return cx, cy, w, h


@jit
def _axis(p_centre, p_side, t_centre, t_side):
    """Along one axis: the ends of both boxes, and the signed lengths that they share and span."""
    p_low, p_high = p_centre - p_side * 0.5, p_centre + p_side * 0.5
    t_low, t_high = t_centre - t_side * 0.5, t_centre + t_side * 0.5
    shared = _low(p_high, t_high) - _high(p_low, t_low)
    spanned = _high(p_high, t_high) - _low(p_low, t_low)
    return p_low, p_high, t_low, t_high, shared, spanned


@jit
def _forward_kernel(pred, target, valid, l1_out, giou_out, count_out, n, eps, stride_p, stride_p4, stride_t, stride_t4,
                    stride_valid, HAS_VALID: tl.constexpr, PACKED_P: tl.constexpr, PACKED_T: tl.constexpr,
                    ALONE: tl.constexpr, STEPS: tl.constexpr, BLOCK: tl.constexpr):
    """A program sums the terms of every ``num_programs``-th block; alone, it also divides by the count."""
    program, programs = tl.program_id(0).to(tl.int64), tl.num_programs(0).to(tl.int64)
    l1 = tl.zeros((BLOCK,), tl.float32)
    giou = tl.zeros((BLOCK,), tl.float32)
    count = tl.zeros((BLOCK,), tl.int32)
    for step in range(STEPS):
        rows = (program + step * programs) * BLOCK + tl.arange(0, BLOCK)
        counts = rows < n
        if HAS_VALID:
            counts = tl.load(valid + rows * stride_valid, mask=counts, other=0) != 0
        pcx, pcy, pw_, ph_ = _load_boxes(pred, rows, counts, stride_p, stride_p4, PACKED_P, BLOCK)
        tcx, tcy, tw_, th_ = _load_boxes(target, rows, counts, stride_t, stride_t4, PACKED_T, BLOCK)
        distance = tl.abs(pcx - tcx) + tl.abs(pcy - tcy) + tl.abs(pw_ - tw_) + tl.abs(ph_ - th_)
        pw, ph, tw, th = _clip(pw_), _clip(ph_), _clip(tw_), _clip(th_)
        _a, _b, _c, _d, shared_x, spanned_x = _axis(pcx, pw, tcx, tw)
        _a, _b, _c, _d, shared_y, spanned_y = _axis(pcy, ph, tcy, th)
        intersection = _clip(shared_x) * _clip(shared_y)
        enclosing = _clip(spanned_x) * _clip(spanned_y)
        union = pw * ph + tw * th - intersection
        shapeless = (union <= eps) | (enclosing <= eps)
        safe_union, safe_enclosing = tl.where(shapeless, 1.0, union), tl.where(shapeless, 1.0, enclosing)
        term = 1 - intersection / (safe_union + eps) + (enclosing - union) / (safe_enclosing + eps)
        term = tl.where(shapeless, 1.0, term)
        l1 += tl.where(counts, distance, 0.0)
        giou += tl.where(counts, term, 0.0)
        count += tl.where(counts, 1, 0)
    l1_sum, giou_sum, total = tl.sum(l1), tl.sum(giou), tl.sum(count)
    if ALONE:
        divisor = tl.where(total > 0, total, 1).to(tl.float32)
        tl.store(l1_out, l1_sum / divisor)
        tl.store(giou_out, giou_sum / divisor)
        tl.store(count_out, divisor)
    else:
        tl.store(l1_out + program, l1_sum)
        tl.store(giou_out + program, giou_sum)
        tl.store(count_out + program, total)


@jit
def _finish_kernel(l1_parts, giou_parts, count_parts, l1_out, giou_out, count_out, programs, PROGRAMS: tl.constexpr):
    """Second stage: the programs' sums, always in the same order."""
    at = tl.arange(0, PROGRAMS)
    there = at < programs
    total = tl.sum(tl.load(count_parts + at, mask=there, other=0).to(tl.int64))
    divisor = tl.where(total > 0, total, 1).to(tl.float32)
    tl.store(l1_out, tl.sum(tl.load(l1_parts + at, mask=there, other=0.0)) / divisor)
    tl.store(giou_out, tl.sum(tl.load(giou_parts + at, mask=there, other=0.0)) / divisor)
    tl.store(count_out, divisor)


@jit
def _sign(x):
    return tl.where(x > 0, 1.0, tl.where(x < 0, -1.0, x * 0.0))


@jit
def _to_greater(gradient, a, b):
    """The share of ``a`` in the gradient of max(a, b): all, half at a tie, none."""
    return tl.where(a < b, 0.0, tl.where(a == b, gradient * 0.5, gradient))


@jit
def _axis_gradient(low, high, t_low, t_high, g_shared, g_spanned):
    """From the gradients of the shared and spanned lengths to those of the predicted box's centre and side."""
    g_high = _to_greater(g_shared, t_high, high) + _to_greater(g_spanned, high, t_high)
    g_low = -_to_greater(g_shared, low, t_low) - _to_greater(g_spanned, t_low, low)
    return g_high + g_low, (g_high - g_low) * 0.5


@jit
def _backward_kernel(pred, target, valid, count, g_l1, g_giou, gradient, n, eps, stride_p, stride_p4, stride_t, stride_t4,
                     stride_valid, HAS_VALID: tl.constexpr, PACKED_P: tl.constexpr, PACKED_T: tl.constexpr,
                     BLOCK: tl.constexpr):
    """The gradient of both losses by ``pred``, everything recomputed: cheaper than reading what would have been saved."""
    rows = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = rows < n
    counts = inside
    if HAS_VALID:
        counts = tl.load(valid + rows * stride_valid, mask=inside, other=0) != 0
    pcx, pcy, pw_, ph_ = _load_boxes(pred, rows, counts, stride_p, stride_p4, PACKED_P, BLOCK)
    tcx, tcy, tw_, th_ = _load_boxes(target, rows, counts, stride_t, stride_t4, PACKED_T, BLOCK)
    divisor = tl.load(count)
    scale_l1, scale_giou = tl.load(g_l1) / divisor, tl.load(g_giou) / divisor

    pw, ph, tw, th = _clip(pw_), _clip(ph_), _clip(tw_), _clip(th_)
    low_x, high_x, t_low_x, t_high_x, shared_x, spanned_x = _axis(pcx, pw, tcx, tw)
    low_y, high_y, t_low_y, t_high_y, shared_y, spanned_y = _axis(pcy, ph, tcy, th)
    intersection = _clip(shared_x) * _clip(shared_y)
    enclosing = _clip(spanned_x) * _clip(spanned_y)
    union = pw * ph + tw * th - intersection
    shapeless = (union <= eps) | (enclosing <= eps)
    union_eps = tl.where(shapeless, 1.0, union) + eps
    enclosing_eps = tl.where(shapeless, 1.0, enclosing) + eps
    # term = 1 - I / (U + eps) + (C - U) / (C + eps), with U = area + area' - I
    g_union = intersection / union_eps / union_eps - 1 / enclosing_eps
    g_intersection = -1 / union_eps - g_union
    g_enclosing = (union + eps) / enclosing_eps / enclosing_eps
    g_shared_x = tl.where(shared_x > 0, 1.0, 0.0) * (g_intersection * _clip(shared_y))
    g_shared_y = tl.where(shared_y > 0, 1.0, 0.0) * (g_intersection * _clip(shared_x))
    g_spanned_x = tl.where(spanned_x > 0, 1.0, 0.0) * (g_enclosing * _clip(spanned_y))
    g_spanned_y = tl.where(spanned_y > 0, 1.0, 0.0) * (g_enclosing * _clip(spanned_x))
    g_cx, g_w = _axis_gradient(low_x, high_x, t_low_x, t_high_x, g_shared_x, g_spanned_x)
    g_cy, g_h = _axis_gradient(low_y, high_y, t_low_y, t_high_y, g_shared_y, g_spanned_y)
    g_w = tl.where(pw_ > 0, 1.0, 0.0) * (g_w + g_union * ph)
    g_h = tl.where(ph_ > 0, 1.0, 0.0) * (g_h + g_union * pw)

    # A loss that nobody differentiates takes no part: 0 * inf would.
    l1_counts = tl.where(scale_l1 != 0, counts, False)
    giou_counts = tl.where(scale_giou != 0, tl.where(shapeless, False, counts), False)
    o_cx = tl.where(l1_counts, _sign(pcx - tcx) * scale_l1, 0.0) + tl.where(giou_counts, g_cx * scale_giou, 0.0)
    o_cy = tl.where(l1_counts, _sign(pcy - tcy) * scale_l1, 0.0) + tl.where(giou_counts, g_cy * scale_giou, 0.0)
    o_w = tl.where(l1_counts, _sign(pw_ - tw_) * scale_l1, 0.0) + tl.where(giou_counts, g_w * scale_giou, 0.0)
    o_h = tl.where(l1_counts, _sign(ph_ - th_) * scale_l1, 0.0) + tl.where(giou_counts, g_h * scale_giou, 0.0)
    tile = tl.reshape(tl.join(tl.join(o_cx, o_w), tl.join(o_cy, o_h)), (BLOCK, 4))
    at = rows[:, None] * 4 + tl.arange(0, 4)[None, :]
    tl.store(gradient + at, rounded(tile, gradient.dtype.element_ty), mask=inside[:, None])


# ---- the operators ------------------------------------------------------------------------------------------------------
def fused(pred: Tensor, target: Tensor, valid: Tensor | None = None, eps: float = 1e-7) -> tuple[Tensor, Tensor]:
    """``box_loss`` through the Triton kernels: two operators that torch.compile, autocast and CUDA graphs take as they are."""
    _check(pred, target, valid)
    l1, giou, _ = _box_loss(pred, target, valid, eps)
    return l1, giou


# custom_op, not triton_op: the latter cannot be traced through the interpreter, so nothing of it could be tested without
# a GPU.
@torch.library.custom_op("xtoolkit::box_loss", mutates_args=())
def _box_loss(pred: Tensor, target: Tensor, valid: Tensor | None, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    n = pred.shape[0]
    l1, giou, count = (pred.new_empty((), dtype=torch.float32) for _ in range(3))
    blocks = max((n + BLOCK - 1) // BLOCK, 1)
    programs = 1 if n <= ONE_LAUNCH else min(blocks, PROGRAMS)
    parts = (l1, giou, count)
    if programs > 1:
        parts = (*pred.new_empty((2, programs), dtype=torch.float32), pred.new_empty(programs, dtype=torch.int32))
    block = BLOCK if n > BLOCK // 2 else BLOCK // 2
    # Known to the compiler: 1 to 4 up to ONE_LAUNCH boxes, then 1 up to a million. (The interpreter of Triton 3.6 cannot loop to
    # a number that it is given, under today's numpy.)
    steps = (n + block * programs - 1) // (block * programs)
    with torch.cuda.device_of(pred):
        _forward_kernel[(programs,)](pred, target, _bytes(valid, pred), *parts, n, eps, *_layout(pred, target, valid),
                                     HAS_VALID=valid is not None, PACKED_P=_packed(pred), PACKED_T=_packed(target),
                                     ALONE=programs == 1, STEPS=steps, BLOCK=block)
        if programs > 1:
            _finish_kernel[(1,)](*parts, l1, giou, count, programs, PROGRAMS=PROGRAMS)
    return l1, giou, count


@_box_loss.register_fake
def _(pred, target, valid, eps):
    return tuple(pred.new_empty((), dtype=torch.float32) for _ in range(3))


@torch.library.custom_op("xtoolkit::box_loss_backward", mutates_args=())
def _box_loss_backward(pred: Tensor, target: Tensor, valid: Tensor | None, count: Tensor, g_l1: Tensor, g_giou: Tensor,
                       eps: float) -> Tensor:
    n, block = pred.shape[0], BLOCK // 2
    gradient = pred.new_empty(pred.shape)
    if n:
        with torch.cuda.device_of(pred):
            _backward_kernel[((n + block - 1) // block,)](
                pred, target, _bytes(valid, pred), count, g_l1, g_giou, gradient, n, eps, *_layout(pred, target, valid),
                HAS_VALID=valid is not None, PACKED_P=_packed(pred), PACKED_T=_packed(target), BLOCK=block)
    return gradient


@_box_loss_backward.register_fake
def _(pred, target, valid, count, g_l1, g_giou, eps):
    return pred.new_empty(pred.shape)


def _setup_context(ctx, inputs, output):
    pred, target, valid, ctx.eps = inputs
    ctx.save_for_backward(pred, target, valid, output[2])
    ctx.mark_non_differentiable(output[2])


def _backward(ctx, g_l1, g_giou, _):
    pred, target, valid, count = ctx.saved_tensors
    # Both losses are symmetric, so the target's gradient is the prediction's with the roles exchanged.
    pairs = ((pred, target), (target, pred))
    gradients = [_box_loss_backward(a, b, valid, count, g_l1, g_giou, ctx.eps) if needed else None
                 for (a, b), needed in zip(pairs, ctx.needs_input_grad)]
    return *gradients, None, None


def _no_second_derivative(ctx, gradient):
    raise RuntimeError("the fused box_loss has no second derivative; XTK_KERNELS=torch takes the reference, which has")


_box_loss.register_autograd(_backward, setup_context=_setup_context)
_box_loss_backward.register_autograd(_no_second_derivative)


def _bytes(valid, stand_in):
    """A bool tensor as bytes, without a copy; of None, a pointer that is never read."""
    return stand_in if valid is None else valid.view(torch.uint8)


def _layout(pred, target, valid):
    return (*pred.stride(), *target.stride(), 0 if valid is None else valid.stride(0))


def _packed(boxes):
    return boxes.stride() == (4, 1)
