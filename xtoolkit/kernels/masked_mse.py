"""Mean squared error over the masked tokens, without gathering them: no question to the host, no copy of the inputs."""

import torch
from torch import Tensor


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
        ValueError: shapes that do not fit.

    Source: X-FM, equation 6, the masked positions. The paper writes a squared norm, the release takes the mean over
    elements, as here; the release gathers by a boolean index, which asks the device how many there are.
    """
    if pred.shape != target.shape or pred.dim() != 3:
        raise ValueError(f"masked_mse compares (B, N, D) with (B, N, D), not {tuple(pred.shape)} with "
                         f"{tuple(target.shape)}")
    if mask.shape != pred.shape[:2] or mask.dtype != torch.bool:
        raise ValueError(f"`mask` of masked_mse must be bool {tuple(pred.shape[:2])}, not {mask.dtype} "
                         f"{tuple(mask.shape)}")
    dtype = torch.promote_types(torch.promote_types(pred.dtype, target.dtype), torch.float32)
    difference = pred.to(dtype) - target.to(dtype)
    difference = torch.where(mask[..., None], difference, torch.zeros_like(difference))
    return (difference * difference).sum() / (mask.sum() * pred.shape[2]).clamp(min=1)
