"""The MOME transformer block: attention that all modalities share, feed-forward experts that each has of its own.

Shape letters: B rows, T tokens, D width, h heads.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from xtoolkit.encoders.attention import SelfAttention
from xtoolkit.encoders.beit import MLP

EXPERTS, ALL = ("text", "image"), "all"


class Block(nn.Module):
    """Pre-norm block whose feed-forward network is chosen by the modality of each token.

    Args:
        experts: names of the networks: of ``text`` and ``image``, and ``pair`` in a block where all tokens of a pair share one
            of their own; or ``all`` alone, a standard transformer.
        expert_norms: each expert has a norm of its own before it.
        layer_scale: initial value of the per-channel factors on both branches; None: there are none.
        drop_path: stochastic depth, per row and branch.
    """

    def __init__(self, width: int, heads: int, hidden: int, experts: tuple, expert_norms: bool, layer_scale: float | None,
                 drop_path: float, eps: float):
        super().__init__()
        self.drop_path = drop_path
        self.norm1, self.attn = nn.LayerNorm(width, eps=eps), SelfAttention(width, heads)
        self.norm2 = nn.ModuleDict({name: nn.LayerNorm(width, eps=eps) for name in (experts if expert_norms else (ALL,))})
        self.mlp = nn.ModuleDict({name: MLP(width, hidden) for name in experts})
        scale = lambda: None if layer_scale is None else nn.Parameter(torch.full((width,), layer_scale))
        self.gamma_1, self.gamma_2 = scale(), scale()

    @torch.no_grad()
    def init_weights(self, std: float, depth: int) -> None:
        """Draws the linear layers as BEiT: truncated normal; those that end a branch are divided by sqrt(2 * depth)."""
        ends = [self.attn.proj, *(mlp.fc2 for mlp in self.mlp.values())]
        for linear in (self.attn.qkv, *(mlp.fc1 for mlp in self.mlp.values()), *ends):
            nn.init.trunc_normal_(linear.weight, std=std)
            if linear.bias is not None:
                nn.init.zeros_(linear.bias)
        for linear in ends:
            linear.weight.div_(math.sqrt(2 * depth))

    def forward(self, x: Tensor, mask: Tensor, lengths: dict[str, int]) -> Tensor:
        """(B, T, D) of tokens (B, T, D).

        Args:
            mask: what each token attends to, as ``attention`` takes it.
            lengths: {modality: how many tokens}, in the order in which they stand; their sum is T.
        """
        x = x + self._drop(self.attn(self.norm1(x), mask), self.gamma_1)
        if len(lengths) > 1 and ("pair" in self.mlp or ALL in self.mlp):
            lengths = {"pair": x.shape[1]}
        parts = zip(lengths, x.split(list(lengths.values()), 1))
        told = [_of(self.mlp, name)(_of(self.norm2, name)(part)) for name, part in parts]
        return x + self._drop(told[0] if len(told) == 1 else torch.cat(told, 1), self.gamma_2)

    def _drop(self, branch, gamma):
        branch = branch if gamma is None else gamma * branch
        if not self.training or self.drop_path == 0:
            return branch
        keep = 1 - self.drop_path
        return branch * branch.new_empty(branch.shape[0], 1, 1).bernoulli_(keep).div_(keep)


def _of(modules, name):
    return modules[name if name in modules else ALL]


class Output(nn.Module):
    """From states to scores of words or of visual tokens, of a matrix (classes, D) that comes as an argument.

    Args:
        form: `linear`: that matrix alone; `mlm`: Linear(D, D), GELU, LayerNorm before it.
    """

    def __init__(self, width: int, classes: int, form: str, eps: float, std: float = 0.02):
        super().__init__()
        self.dense = nn.Linear(width, width) if form == "mlm" else None
        self.layer_norm = nn.LayerNorm(width, eps=eps) if form == "mlm" else None
        self.bias = nn.Parameter(torch.zeros(classes))
        if form == "mlm":
            nn.init.trunc_normal_(self.dense.weight, std=std)
            nn.init.zeros_(self.dense.bias)

    def forward(self, hidden: Tensor, matrix: Tensor, labels: Tensor | None = None) -> Tensor:
        """(M, classes) scores of states (M, D); with ``labels`` (M,) their mean cross-entropy instead."""
        if self.dense is not None:
            hidden = self.layer_norm(F.gelu(self.dense(hidden)))
        if labels is None:
            return F.linear(hidden, matrix, self.bias)
        from xtoolkit.kernels.linear_cross_entropy import linear_cross_entropy

        return linear_cross_entropy(hidden, matrix, self.bias, labels)
