"""Fused operations, one file each: the torch reference, the Triton kernels, the autograd registration."""

from xtoolkit.kernels.box_loss import box_loss
from xtoolkit.kernels.masked_mse import masked_mse

__all__ = ["box_loss", "masked_mse"]
