"""The plain vision transformer of VQ-KD's encoder and decoder: learned positions, no layer scale, a norm over the patches.

Shape letters: B pictures, N patches, T = 1 + N tokens, D width, h heads.
"""

import math

import torch
from torch import Tensor, nn

from xtoolkit.encoders.attention import SelfAttention
from xtoolkit.encoders.beit import EPS, MLP


class PlainViT(nn.Module):
    """(B, N, D) normed states of the patches; the CLS token takes part and is dropped.

    Names are those of the released ``VisionTransformer``, without the patch embedding, which is the caller's.

    Args:
        patch_embed: a module whose ``proj`` or call gives (B, N, D); kept under this name.
        patches: N.
        init_std: of the linear layers; the last one of each branch is divided by sqrt(2 * layer).
    """

    def __init__(self, patch_embed: nn.Module, patches: int, width: int, layers: int, heads: int, hidden: int, init_std: float):
        super().__init__()
        if width % heads:
            raise ValueError(f"width {width} is not a multiple of heads {heads}")
        self.patch_embed = patch_embed
        self.cls_token = nn.Parameter(torch.empty(1, 1, width))
        self.pos_embed = nn.Parameter(torch.empty(1, 1 + patches, width))
        self.blocks = nn.ModuleList(Block(width, heads, hidden) for _ in range(layers))
        self.fc_norm = nn.LayerNorm(width, eps=EPS)
        for token in (self.cls_token, self.pos_embed):
            nn.init.trunc_normal_(token, std=0.02)
        for depth, block in enumerate(self.blocks, start=1):
            block.init_weights(init_std, math.sqrt(2 * depth))

    def forward(self, patches: Tensor) -> Tensor:
        """The states of embedded patches (B, N, D)."""
        x = torch.cat([self.cls_token.expand(patches.shape[0], -1, -1), patches], 1) + self.pos_embed
        for block in self.blocks:
            x = block(x)
        return self.fc_norm(x[:, 1:])


class Block(nn.Module):
    """Pre-norm block."""

    def __init__(self, width: int, heads: int, hidden: int):
        super().__init__()
        self.norm1, self.attn = nn.LayerNorm(width, eps=EPS), SelfAttention(width, heads)
        self.norm2, self.mlp = nn.LayerNorm(width, eps=EPS), MLP(width, hidden)

    @torch.no_grad()
    def init_weights(self, std: float, branch_scale: float) -> None:
        """Draws the linear layers; those that end a branch are divided by ``branch_scale``."""
        for linear in (self.attn.qkv, self.attn.proj, self.mlp.fc1, self.mlp.fc2):
            nn.init.trunc_normal_(linear.weight, std=std)
            if linear.bias is not None:
                nn.init.zeros_(linear.bias)
        self.attn.proj.weight.div_(branch_scale)
        self.mlp.fc2.weight.div_(branch_scale)

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, D) of tokens (B, T, D)."""
        everywhere = torch.ones(1, 1, 1, x.shape[1], dtype=torch.bool, device=x.device)
        x = x + self.attn(self.norm1(x), everywhere)
        return x + self.mlp(self.norm2(x))


def task_layer(width: int, outputs: int, std: float) -> nn.Sequential:
    """Linear, tanh, linear: between a transformer and the codes, and between the decoder and its teacher."""
    layers = nn.Sequential(nn.Linear(width, width), nn.Tanh(), nn.Linear(width, outputs))
    for layer in (layers[0], layers[2]):
        nn.init.trunc_normal_(layer.weight, std=std)
        nn.init.zeros_(layer.bias)
    return layers
