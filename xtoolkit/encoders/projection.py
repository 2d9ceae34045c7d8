"""Projection: a summary token as a unit vector in the space where images and texts are compared."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from xtoolkit.encoders.base import Encoder
from xtoolkit.features import Encoded
from xtoolkit.registry import ENCODER_REGISTRY, Count


@ENCODER_REGISTRY.register
class Projection(Encoder):
    """A linear layer on the summary token, scaled to length one.

    YAML: {type: Projection, inputs: {x: vision}, dim: 256}

    Args:
        dim: channels of the output.
        identity: the layer starts as the identity, so that contrast shapes the encoders' own features from the first step; needs
            ``dim`` equal to the encoder's width. False: drawn, as in the release.

    Source: X-FM 3.2 (ITC); the released ``vision_proj`` and ``text_proj``: linear with bias, PyTorch's initial values.
    """

    def __init__(self, widths: dict, dim: Count = 256, identity: bool = False):
        super().__init__()
        self.width = dim
        self.linear = nn.Linear(widths["x"], dim)
        if identity:
            if dim != widths["x"]:
                raise ValueError(f"Projection: `identity` needs dim equal to the encoder's width {widths['x']}, not {dim}")
            nn.init.eye_(self.linear.weight)
            nn.init.zeros_(self.linear.bias)

    def forward(self, *, view: str | None, x: Encoded) -> Tensor:
        """Returns (B, dim) of unit length, float32 or better; normalised in float32 under autocast too."""
        x = self.linear(x.pooled)
        return F.normalize(x.to(torch.promote_types(x.dtype, torch.float32)), dim=-1)
