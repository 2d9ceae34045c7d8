"""BEiT's parameters: Hugging Face's names put under those of unilm and timm, and its tables of relative positions.

Hugging Face has two sets: ``encoder.layer.N.`` in files of ``save_pretrained`` and in transformers before 5, ``layers.N.`` in
``state_dict()`` since.
"""

import re
import warnings
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

TABLE = "relative_position_bias_table"
LAYER = r"(?:encoder\.layer|layers)\.(\d+)\."
# Patterns over names without the prefix `beit.`, in the order in which they are tried.
RENAMES = [(re.compile(old), new) for old, new in (
    (r"embeddings\.patch_embeddings\.projection\.", "patch_embed.proj."),
    (r"embeddings\.position_embeddings$", "pos_embed"),
    (r"embeddings\.(cls_token|mask_token)$", r"\1"),
    (LAYER + r"attention\.(?:attention\.query|q_proj)\.bias$", r"blocks.\1.attn.q_bias"),
    (LAYER + r"attention\.(?:attention\.value|v_proj)\.bias$", r"blocks.\1.attn.v_bias"),
    (LAYER + r"(?:attention\.attention\.)?relative_position_bias\.", r"blocks.\1.attn."),
    (LAYER + r"attention\.(?:output\.dense|o_proj)\.", r"blocks.\1.attn.proj."),
    (LAYER + r"(?:intermediate\.dense|mlp\.fc1)\.", r"blocks.\1.mlp.fc1."),
    (LAYER + r"(?:output\.dense|mlp\.fc2)\.", r"blocks.\1.mlp.fc2."),
    (LAYER + r"layernorm_before\.", r"blocks.\1.norm1."),
    (LAYER + r"layernorm_after\.", r"blocks.\1.norm2."),
    (LAYER + r"lambda_([12])$", r"blocks.\1.gamma_\2"),
    (r"(?:encoder\.relative|shared)_position_bias\.", "rel_pos_bias."),
    (r"pooler\.layernorm\.", "fc_norm."),
    (r"layernorm\.", "norm."),
    (r"classifier\.", "head."),
)]
MATRIX = re.compile(LAYER + r"attention\.(?:attention\.)?(query|key|value|q_proj|k_proj|v_proj)\.weight")


def from_hugging_face(state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """``state`` under unilm's names; as it is where it has those already.

    Query, key and value matrices, (D, D) each, become one (3 D, D). Names that nobody knows stay, for the strict load to judge.

    Returns:
        (state, {new name: where it is from, one name or three}).
    """
    short = {name.removeprefix("beit."): name for name in state}
    if not any(MATRIX.fullmatch(name) for name in short):
        return dict(state), {name: name for name in state}
    result, sources = {}, {}
    for name, given in short.items():
        new, tensor = _renamed(name), state[given]
        if found := MATRIX.fullmatch(name):
            own = ("q_proj", "k_proj", "v_proj") if found[2].endswith("_proj") else ("query", "key", "value")
            parts = [name.replace(found[2], part) for part in own]
            if all(part in short for part in parts):
                if found[2] != own[0]:
                    continue
                new, tensor = f"blocks.{found[1]}.attn.qkv.weight", torch.cat([state[short[part]] for part in parts])
                given = ", ".join(short[part] for part in parts)
        result[new], sources[new] = tensor, given
    return result, sources


def _renamed(name):
    for old, new in RENAMES:
        if old.match(name):
            return old.sub(new, name, count=1)
    return name


def relative_position_index(grid: int) -> Tensor:
    """(T, T) int64: for query i and key j the row of the bias table that belongs to their offset.

    The last three rows of the table are CLS to patch, patch to CLS and CLS to CLS.
    """
    row, column = torch.arange(grid * grid) // grid, torch.arange(grid * grid) % grid
    side, n = 2 * grid - 1, (2 * grid - 1) ** 2 + 3
    offset = (row[:, None] - row + grid - 1) * side + column[:, None] - column + grid - 1
    index = F.pad(offset, (1, 0, 1, 0), value=n - 2)
    index[0] = n - 3
    index[0, 0] = n - 1
    return index


def resize_position_table(table: Tensor, grid: int) -> Tensor:
    """A position bias table ((2g - 1)^2 + 3, h) of another grid, interpolated to ``grid`` by timm's rule.

    Source: timm's ``resize_rel_pos_bias_table``: linear between points on a geometric progression, so that near
    offsets keep their resolution. The released X-FM code interpolates bicubically on the same points, with a function
    that scipy removed.
    """
    n = (2 * grid - 1) ** 2 + 3
    if table.shape[0] == n:
        return table
    from timm.layers import resize_rel_pos_bias_table

    with warnings.catch_warnings():  # about how timm indexes, which is timm's affair
        warnings.filterwarnings("ignore", category=UserWarning, module="timm.layers.interpolate")
        return resize_rel_pos_bias_table(table, new_window_size=(grid, grid), new_bias_shape=(n, table.shape[1]))
