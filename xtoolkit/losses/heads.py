"""The two-layer head that ITM and BBP both put on a summary token."""

from torch import nn


def summary_head(width: int, outputs: int) -> nn.Sequential:
    """Linear(D, 2D), LayerNorm, GELU, Linear(2D, outputs).

    Its parameters are ``0``, ``1`` and ``3``, the names of the released ``itm_head`` and ``bbox_head``. Initialised
    as torch does.
    """
    return nn.Sequential(nn.Linear(width, 2 * width), nn.LayerNorm(2 * width), nn.GELU(), nn.Linear(2 * width, outputs))
