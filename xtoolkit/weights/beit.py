"""BEiT's parameters: Hugging Face's names put under those of unilm and timm, and its tables of relative positions.

Hugging Face has two sets: ``encoder.layer.N.`` in files of ``save_pretrained`` and in transformers before 5, ``layers.N.`` in
``state_dict()`` since.
"""

import math
import re
import warnings
from collections.abc import Mapping
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from xtoolkit.weights.files import WeightsError
from xtoolkit.weights.report import Report

Rule = Literal["timm", "spline"]  # how a table is resized
TABLE, INDEX = "relative_position_bias_table", "relative_position_index"
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


def wrong_indexes(state: Mapping[str, Tensor]) -> list[str]:
    """A line for each index table that is not the one that is computed here: its bias table would mean something else."""
    own = lambda tokens: relative_position_index(math.isqrt(max(0, tokens - 1)))
    fits = lambda table: table.dim() == 2 and torch.equal(table, own(len(table)))
    return [f"another layout: {name} is not the index of a square grid of patches with a CLS token"
            for name, tensor in state.items() if name.endswith(INDEX) and not fits(tensor)]


def add_indexes(state: dict[str, Tensor], report: Report) -> None:
    """Adds the index table of each bias table, as published files have it."""
    for name in [name for name in state if name.endswith(TABLE)]:
        index, grid = name.removesuffix(TABLE) + INDEX, (math.isqrt(len(state[name]) - 3) + 1) // 2
        state[index], report.made[index] = relative_position_index(grid), "computed from the size of the bias table"


def resize_position_tables(state: dict[str, Tensor], block: Mapping, report: Report, prefix: str = "") -> None:
    """Resizes the bias tables of an encoder, whose names begin with ``prefix``, to what its block of the recipe says."""
    grid = block["image_size"] // block["patch_size"]
    for name in [name for name in state if name.startswith(prefix) and name.endswith(TABLE)]:
        before, state[name] = state[name], resize_position_table(state[name], grid, block["resize"])
        if state[name].shape != before.shape:
            report.changed[name] = f"{tuple(before.shape)} resized to {tuple(state[name].shape)}: {grid} x {grid} patches"


def resize_position_table(table: Tensor, grid: int, rule: Rule = "timm") -> Tensor:
    """A position bias table ((2g - 1)^2 + 3, h) of another grid, interpolated to ``grid``; as it is where it is no such table.

    Both rules put the table's offsets on a geometric progression, so that near ones keep their resolution, and read the new
    offsets between them; what lies beyond the outermost takes its value. The last three rows stay.

    Args:
        rule: ``timm``: linear between points, as timm's ``resize_rel_pos_bias_table`` and the paper's words have it; ``spline``:
            an interpolating bicubic spline, as BEiT's and X-FM's released code.

    Raises:
        WeightsError: a table of fewer than 3 x 3 patches, through which ``spline`` finds no cubic.
    """
    n, side = (2 * grid - 1) ** 2 + 3, math.isqrt(max(0, len(table) - 3))
    if table.shape[0] == n or side * side + 3 != len(table):
        return table
    if rule == "spline":
        at = torch.arange(2 * grid - 1, dtype=torch.float64) - (grid - 1)
        weights = spline_weights(offsets(side, 2 * grid - 1), at)
        z = table[:-3].double().cpu().view(side, side, -1)
        resized = torch.einsum("ys,xt,sth->yxh", weights, weights, z).flatten(0, 1)
        return torch.cat([resized.to(table), table[-3:]])
    from timm.layers import resize_rel_pos_bias_table

    with warnings.catch_warnings():  # about how timm indexes, which is timm's affair
        warnings.filterwarnings("ignore", category=UserWarning, module="timm.layers.interpolate")
        return resize_rel_pos_bias_table(table, new_window_size=(grid, grid), new_bias_shape=(n, table.shape[1]))


def offsets(source: int, target: int) -> Tensor:
    """(source,) float64: where the offsets of a table with ``source`` a side lie among those of one with ``target``, in patches:
    0, 1, 1 + q, 1 + q + q^2, ..., and the same below 0; q is such that the outermost meet.

    Source: BEiT's released code, timm's too: bisection from 1.01 to 1.5 until 1e-6, the last ratio tried.
    """
    low, high, ratio = 1.01, 1.5, 1.01
    while high - low > 1e-6:
        ratio = (low + high) / 2
        low, high = (low, ratio) if (1 - ratio ** (source // 2)) / (1 - ratio) > target // 2 else (ratio, high)
    above = (ratio ** torch.arange(source // 2, dtype=torch.float64)).cumsum(0)
    return torch.cat([-above.flip(0), above.new_zeros(1), above])


def spline_weights(x: Tensor, at: Tensor) -> Tensor:
    """(m, n) float64: what each of n values counts in the cubic spline through them, read at m places.

    The spline is FITPACK's: no knot at the second and the last but one point. Places outside take the value at the end.

    Args:
        x: (n,) float64, rising; at least 4.
        at: (m,) float64.
    """
    n, h, one = len(x), x.diff(), torch.eye(len(x), dtype=torch.float64)
    if n < 4:
        raise WeightsError(f"a position bias table of {n} offsets a side is too small for a cubic spline: take `resize: timm`")
    slopes = (one[1:] - one[:-1]) / h[:, None]
    # The second derivatives at all points, M @ curvature = right: continuous slopes inside, equal cubics in the outer two pieces.
    m, right = torch.zeros(n, n, dtype=torch.float64), torch.zeros(n, n, dtype=torch.float64)
    for i in range(1, n - 1):
        m[i, i - 1:i + 2] = torch.stack([h[i - 1], 2 * (h[i - 1] + h[i]), h[i]])
        right[i] = 6 * (slopes[i] - slopes[i - 1])
    m[0, :3] = torch.stack([h[1], -(h[0] + h[1]), h[0]])
    m[-1, -3:] = torch.stack([h[-1], -(h[-2] + h[-1]), h[-2]])
    curvature = torch.linalg.solve(m, right)
    at = at.clamp(x[0], x[-1])
    i = (torch.searchsorted(x, at, right=True) - 1).clamp(0, n - 2)
    t, width = (at - x[i])[:, None], h[i][:, None]
    first = slopes[i] - width / 6 * (2 * curvature[i] + curvature[i + 1])
    return one[i] + t * (first + t * (curvature[i] / 2 + t * (curvature[i + 1] - curvature[i]) / (6 * width)))
