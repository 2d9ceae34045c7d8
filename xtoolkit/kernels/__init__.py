"""Fused operations, one file each: the torch reference, the Triton kernels, the autograd registration.

Importing this package imports Triton: a loss does so where it is built.
"""

from xtoolkit.kernels.box_loss import box_loss
from xtoolkit.kernels.linear_cross_entropy import linear_cross_entropy
from xtoolkit.kernels.masked_mse import masked_mse

__all__ = ["box_loss", "linear_cross_entropy", "masked_mse"]
