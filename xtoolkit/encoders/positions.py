"""Fixed position embeddings of a square grid of patches."""

import math
from functools import lru_cache

import torch
from torch import Tensor


@lru_cache(maxsize=16)
def positions_on(device: torch.device, tokens: int, width: int) -> Tensor | None:
    """``token_positions`` on a device, copied there once."""
    places = token_positions(tokens, width)
    return None if places is None else places.to(device)


def grid_positions(grid: int, width: int) -> Tensor:
    """(grid * grid, width) float32: sines and cosines of x and of y at width / 4 frequencies each, patches row by row.

    Coordinates are patch centres in [0, 1], so that two grids of one picture agree; frequencies rise geometrically from a
    quarter period over the picture to half a period over half a patch.

    Source: Vaswani et al. 2017, section 3.5, in two dimensions as in MAE (He et al. 2022) and MoCo v3.

    Raises:
        ValueError: width is not a multiple of 4.
    """
    if width % 4:
        raise ValueError(f"position embeddings need a width that is a multiple of 4, not {width}")
    centre = (torch.arange(grid) + 0.5) / grid
    y, x = torch.meshgrid(centre, centre, indexing="ij")
    # With its device named: loading a transformers model first can leave `with torch.device(...)` unaware of linspace.
    frequency = math.pi / 2 * 2 ** torch.linspace(0, math.log2(2 * grid), width // 4, device=centre.device)
    return torch.cat([wave(place.reshape(-1, 1) * frequency) for place in (x, y) for wave in (torch.sin, torch.cos)], 1)


def token_positions(tokens: int, width: int) -> Tensor | None:
    """(tokens, width) for a source of image tokens: patches, or a summary and then patches; None for a summary alone.

    Raises:
        ValueError: the patches form no square grid.
    """
    for first in (0, 1):
        grid = math.isqrt(tokens - first)
        if grid * grid == tokens - first and tokens > 1:
            return torch.cat([torch.zeros(first, width), grid_positions(grid, width)])
    if tokens == 1:
        return None
    raise ValueError(f"{tokens} image tokens are neither a square grid of patches nor a summary and a square grid")
