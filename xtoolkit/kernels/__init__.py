"""Fused operations, one file each: the torch reference, the Triton kernels, the autograd registration."""
