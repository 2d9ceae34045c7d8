"""Scaled dot-product attention in the form that is fastest where the tensors are.

Shape letters: B rows, T tokens, D width, h heads, L queries, n keys, d width of a head.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from xtoolkit.features import full_precision


def attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor, dropout: float = 0.0, kept: list | None = None) -> Tensor:
    """softmax(q k^T / sqrt(d) + mask) v.

    On a GPU this is PyTorch's own. On a CPU it is written out: the bfloat16 backward of PyTorch's fused CPU kernel makes a
    whole training step 1.6 to 2.4 times slower (2 cores with AMX, 40 tokens, torch 2.15).

    Args:
        q: (B, h, L, d).
        k: (B, h, n, d).
        v: (B, h, n, d).
        mask: broadcasts to (B, h, L, n): bool (True = attend; each query has at least one) or added to the scores.
        dropout: rate on the attention weights.
        kept: takes the weights (B, h, L, n), before dropout, as the result is computed from them: a gradient reaches them.

    Returns:
        (B, h, L, d) in q's type.
    """
    if q.device.type != "cpu" and kept is None:
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=dropout)
    with full_precision(q):  # under autocast the softmax would go through float32 tensors and back
        k, v = k.to(q.dtype), v.to(q.dtype)
        scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)
        if mask.dtype == torch.bool:
            mask = torch.zeros(mask.shape, dtype=scores.dtype, device=q.device).masked_fill_(~mask, float("-inf"))
        weights = (scores + mask.to(scores.dtype)).softmax(-1)
        if kept is not None:
            kept.append(weights.requires_grad_(weights.requires_grad or torch.is_grad_enabled()))
        return (F.dropout(weights, dropout) if dropout else weights) @ v


class SelfAttention(nn.Module):
    """Self-attention of all tokens; keys have no bias. Names are those of BEiT, whose own has a bias for each offset, too."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.qkv, self.proj = nn.Linear(width, 3 * width, bias=False), nn.Linear(width, width)
        self.q_bias, self.v_bias = nn.Parameter(torch.zeros(width)), nn.Parameter(torch.zeros(width))

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """(B, T, D) of tokens (B, T, D); ``mask`` as ``attention`` takes it."""
        rows, tokens, width = x.shape
        bias = torch.cat([self.q_bias, torch.zeros_like(self.q_bias), self.v_bias])
        qkv = F.linear(x, self.qkv.weight, bias).view(rows, tokens, 3, self.heads, -1)
        x = attention(*qkv.permute(2, 0, 3, 1, 4).unbind(0), mask)
        return self.proj(x.transpose(1, 2).reshape(rows, tokens, width))
