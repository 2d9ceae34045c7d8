"""Prototypes: the head whose answers a student and its teacher compare.

Shape letters: B rows, n tokens, D width, K prototypes.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from xtoolkit.encoders.base import Encoder
from xtoolkit.features import Encoded
from xtoolkit.hints import Count, Positive
from xtoolkit.registry import ENCODER_REGISTRY


@ENCODER_REGISTRY.register
class Prototypes(Encoder):
    """How near each token is to K learned prototypes: a perceptron of three layers, then the cosines.

    Losses choose the tokens: LocalToGlobal summaries, MaskedPatches patches. A Teacher of it is the other side of both.

    YAML: {type: Prototypes, inputs: {x: vision}, prototypes: 8192}

    Args:
        prototypes: K. DINO has 65,536, iBOT 8192; scores of all masked patches are as many.
        hidden: width of the first two layers.
        bottleneck: width of the third, of length one, in which prototypes are compared.
        init_std: of the linear layers.

    Source: DINO (2104.14294), appendix C, and its released head: GELU, weights normalised with their lengths held at 1, no batch
    norm. iBOT (2111.07832) has one head for summaries and patches.
    """

    def __init__(self, widths: dict, prototypes: Count = 8192, hidden: Count = 2048, bottleneck: Count = 256,
                 init_std: Positive = 0.02):
        super().__init__()
        self.width = self.prototypes = prototypes
        sizes = (widths["x"], hidden, hidden, bottleneck)
        self.layers = nn.ModuleList(nn.Linear(before, after) for before, after in zip(sizes, sizes[1:]))
        self.weight = nn.Parameter(torch.empty(prototypes, bottleneck))
        for layer in self.layers:
            nn.init.trunc_normal_(layer.weight, std=init_std)
            nn.init.zeros_(layer.bias)
        nn.init.normal_(self.weight)

    def forward(self, *, view: str | None, x: Encoded) -> Tensor:
        """(B, n, K) cosines of all tokens of ``x`` (B, n, D)."""
        first, second, third = self.layers
        return F.linear(F.normalize(third(F.gelu(second(F.gelu(first(x.tokens))))), dim=-1), F.normalize(self.weight, dim=-1))
