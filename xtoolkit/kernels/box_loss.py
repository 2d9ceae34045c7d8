"""L1 and GIoU loss of N predicted boxes, each against its own target: O(N), no question to the host."""

import torch
from torch import Tensor


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
        pred: (N, 4), cx, cy, w, h as shares of the picture; any float type.
        target: (N, 4), the same.
        valid: (N,) bool, True where the box counts; None: all do.
        eps: guards both divisions, as an area in shares of the picture. It biases areas of its own order: identical
            boxes of area ``a`` cost about ``eps / a``. 1e-7 agrees with torchvision and fvcore.

    Returns:
        (l1, giou), two scalars: float32 whatever the inputs, float64 if one of them is; autocast changes nothing.

    Raises:
        ValueError: shapes that do not fit.

    Source: X-FM, equation 5 (there summed); GIoU: Rezatofighi et al. 2019. The release builds all N x N
    pairs to take their diagonal, sets the GIoU loss of the whole batch to 0 if one box is degenerate, and divides by
    0 if no box is valid.
    """
    if pred.shape != target.shape or pred.dim() != 2 or pred.shape[1] != 4:
        raise ValueError(f"box_loss compares boxes (N, 4) with boxes (N, 4), not {tuple(pred.shape)} with "
                         f"{tuple(target.shape)}")
    if valid is not None and (valid.shape != pred.shape[:1] or valid.dtype != torch.bool):
        raise ValueError(f"`valid` of box_loss must be bool ({pred.shape[0]},), not {valid.dtype} {tuple(valid.shape)}")
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
