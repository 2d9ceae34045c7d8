"""From pixels to a vector a patch.

Shape letters: I images, N patches, D width.
"""

import math
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import nn


class PatchEmbed(nn.Module):
    """One linear map of each patch's pixels: (I, 3, H, W) -> (I, N, D), row by row.

    Weights lie in a convolution, under its names; patches that do not overlap need none, and a matrix product has the faster
    backward on a CPU.
    """

    def __init__(self, width, patch_size):
        super().__init__()
        self.proj = nn.Conv2d(3, width, patch_size, stride=patch_size)

    def reset_parameters(self):
        self.proj.reset_parameters()

    def forward(self, pixels, mask):
        """``mask`` means nothing here: a masked patch's embedding is replaced, and no other has seen its pixels."""
        size = self.proj.kernel_size[0]
        images, channels, height, width = pixels.shape
        patches = pixels.view(images, channels, height // size, size, width // size, size).permute(0, 2, 4, 1, 3, 5)
        patches = patches.reshape(images, (height // size) * (width // size), -1)
        return F.linear(patches, self.proj.weight.flatten(1), self.proj.bias)


class ConvStem(nn.Module):
    """Convolutions down to a vector a patch: (I, 3, H, W), and the patches to hide (I, N) bool or None -> (I, N, D), by rows."""

    def __init__(self, width, patch_size, channels):
        super().__init__()
        squares, left = divmod(patch_size, 2 ** (len(channels) - 1))
        if left:
            raise ValueError(f"BEiTv2: the {len(channels)} convolutions of `stem` halve a picture {len(channels) - 1} times, so "
                             f"`patch_size` must be a multiple of {2 ** (len(channels) - 1)}, not {patch_size}")
        self.patch_size = patch_size
        self.convs = nn.ModuleList([nn.Conv2d(3, channels[0], squares, stride=squares, bias=False)])
        self.convs.extend(nn.Conv2d(i, o, 3, stride=2, padding=1, bias=False) for i, o in pairwise(channels))
        self.norms = nn.ModuleList(nn.GroupNorm(math.gcd(c, max(1, c // 16)), c) for c in channels)
        self.proj = nn.Linear(channels[-1], width)

    def reset_parameters(self):
        for conv, norm in zip(self.convs, self.norms):
            nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
            norm.reset_parameters()
        self.proj.reset_parameters()

    def forward(self, pixels, mask):
        if mask is not None:
            size, (height, width) = self.patch_size, pixels.shape[2:]
            hidden = mask.view(-1, 1, height // size, width // size)
            pixels = pixels.masked_fill(hidden.repeat_interleave(size, 2).repeat_interleave(size, 3), 0)
        x = pixels.contiguous(memory_format=torch.channels_last)
        for conv, norm in zip(self.convs, self.norms):
            x = F.gelu(norm(conv(x)))
        return self.proj(x.flatten(2).transpose(1, 2))
