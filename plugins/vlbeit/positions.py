"""A learned bias for where two tokens stand to each other: two patches, two words, or one of each.

Shape letters: L text tokens, N patches, T all tokens, h heads.
"""

import torch
from torch import Tensor, nn

from xtoolkit.weights.beit import relative_position_index


class RelativePositions(nn.Module):
    """(layers, h, T, T) biases of attention: by the offset of two patches, by the distance of two words, one each way across.

    Source: VLMo's released ``multiway_transformer.py``: one table, a column a layer and head. VL-BEiT's paper names none.
    """

    def __init__(self, layers: int, heads: int, grid: int, max_tokens: int):
        super().__init__()
        self.layers, self.heads, self.max_tokens = layers, heads, max_tokens
        columns = layers * heads
        self.relative_position_bias_table = nn.Parameter(torch.zeros((2 * grid - 1) ** 2 + 3, columns))
        self.text_table = nn.Parameter(torch.zeros(2 * max_tokens - 1, columns))
        self.cross_table = nn.Parameter(torch.zeros(2, columns))  # text to picture, picture to text
        self.register_buffer("index", relative_position_index(grid), persistent=False)

    def forward(self, lengths: dict[str, int]) -> Tensor:
        """(layers, h, T, T), the bias of each layer, of {modality: how many tokens} whose sum is T."""
        own = {}
        if "text" in lengths:
            place = torch.arange(lengths["text"], device=self.text_table.device)
            own["text"] = self.text_table[place[:, None] - place + self.max_tokens - 1]
        if "image" in lengths:
            own["image"] = self.relative_position_bias_table[self.index]
        if len(own) == 2:
            l, t = lengths["text"], lengths["image"]
            across, back = self.cross_table.unbind(0)
            bias = torch.cat([torch.cat([own["text"], across.expand(l, t, -1)], 1),
                              torch.cat([back.expand(t, l, -1), own["image"]], 1)])
        else:
            bias, = own.values()
        return bias.permute(2, 0, 1).unflatten(0, (self.layers, self.heads))
