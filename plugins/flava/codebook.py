"""DVAE: the discrete autoencoder of DALL-E as an image tokenizer, whose codes FLAVA's masked pictures are told as.

Shape letters: B pictures, H and W pixels, C codes.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from xtoolkit.batch import ImageField
from xtoolkit.data.images import CLIP_MEAN, CLIP_STD, Mean, Std
from xtoolkit.encoders.base import Encoder
from xtoolkit.features import full_precision
from xtoolkit.registry import ENCODER_REGISTRY, Count
from xtoolkit.weights.files import load_strictly, read_weights, unwrap
from xtoolkit.weights.names import Row

FACTORS = (1, 2, 4, 8)
# transformers' names, which count from 1, and ours.
ROWS = (
    Row("blocks.input.", "DVAE", "input."),
    Row("blocks.output.conv.", "DVAE", "output."),
    Row("blocks.group_#.group.block_#.id_path.", "DVAE", "groups.#.#.identity.", first=1),
    Row("blocks.group_#.group.block_#.res_path.path.conv_#.", "DVAE", "groups.#.#.convs.#.", first=1),
)


class Residual(nn.Module):
    """Four convolutions, each after a ReLU, inside a residual branch with a small fixed gain."""

    def __init__(self, inputs: int, outputs: int, gain: float):
        super().__init__()
        hidden, self.gain = outputs // 4, gain
        self.identity = nn.Conv2d(inputs, outputs, 1) if inputs != outputs else nn.Identity()
        widths = [(inputs, hidden, 3), (hidden, hidden, 3), (hidden, hidden, 3), (hidden, outputs, 1)]
        self.convs = nn.ModuleList(nn.Conv2d(i, o, size, padding=size // 2) for i, o, size in widths)

    def forward(self, x: Tensor) -> Tensor:
        """(B, outputs, h, w) of channels (B, inputs, h, w)."""
        branch = x
        for conv in self.convs:
            branch = conv(F.relu(branch))
        return self.identity(x) + self.gain * branch


@ENCODER_REGISTRY.register
class DVAE(Encoder):
    """The encoder of DALL-E's discrete autoencoder, frozen: a code for each patch of FLAVA.

    It halves pictures three times, so it reads them at 8 pixels a code: they are resized here (area) from what the batch has, and
    brought from its normalisation to [0.1, 0.9].

    YAML: {type: DVAE, inputs: {image: $image}, image_size: 224, patch_size: 16, init: null}

    Args:
        image_size: pixels a side of the batch's pictures.
        patch_size: pixels a side of a patch that gets a code.
        codes: how many there are.
        hidden: channels of the first group; later ones have 2, 4 and 8 times as many.
        blocks: residual blocks in each of the four groups.
        mean: what the data are normalised by; CLIP's, the data's default.
        std: likewise.
        init: weights: a file or folder in transformers' names, of the codebook alone or within a whole FLAVA, where they begin
            with ``image_codebook.``; null: random, codes that mean nothing.

    Source: Ramesh et al. (2102.12092) for the model; transformers' ``FlavaImageCodebook``. The release resizes the same crop by
    Lanczos, from the file's pixels; here the batch's are averaged, and a few codes differ.
    """

    TRAINABLE = False

    def __init__(self, image_size: Count = 224, patch_size: Count = 16, codes: Count = 8192, hidden: Count = 256,
                 blocks: Count = 2, mean: Mean = CLIP_MEAN, std: Std = CLIP_STD, init: str | None = None):
        super().__init__()
        if image_size % patch_size:
            raise ValueError(f"DVAE: image_size {image_size} is not a multiple of patch_size {patch_size}")
        self.width, self.codes, self.init = codes, codes, init
        self.image_size, self.patch_size, self.size = image_size, patch_size, 8 * image_size // patch_size
        self.input, gain, before = nn.Conv2d(3, hidden, 7, padding=3), (len(FACTORS) * blocks) ** -2, hidden
        self.groups = nn.ModuleList()
        for factor in FACTORS:
            group = [Residual(before if i == 0 else factor * hidden, factor * hidden, gain) for i in range(blocks)]
            before = factor * hidden
            self.groups.append(nn.ModuleList(group))
        self.output = nn.Conv2d(before, codes, 1)
        self.register_buffer("mean", torch.tensor(mean).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(3, 1, 1), persistent=False)
        self.requires_grad_(False)

    def train(self, mode: bool = True) -> "DVAE":
        """Stays in evaluation mode: it is frozen."""
        return super().train(False)

    @torch.no_grad()
    def forward(self, *, view: str | None, image: ImageField) -> Tensor:
        """(B, N) int64, the likeliest code of each patch, row by row."""
        with full_precision(image.pixels):
            x = (image.pixels.to(self.input.weight.dtype) * self.std + self.mean).clamp(0, 1)
            x = F.interpolate(x, (self.size, self.size), mode="area")
            return self.scores(0.8 * x + 0.1).argmax(1).flatten(1)

    def scores(self, x: Tensor) -> Tensor:
        """(B, C, H / 8, W / 8) of pixels (B, 3, H, W) in [0.1, 0.9]."""
        x = self.input(x)
        for place, group in enumerate(self.groups):
            for block in group:
                x = block(x)
            if place < len(self.groups) - 1:
                x = F.max_pool2d(x, 2)
        return self.output(F.relu(x))

    def load_init(self) -> None:
        """Loads the weights that ``init`` names.

        Raises:
            WeightsError: every name that does not fit.
        """
        if self.init is not None:
            state = unwrap(read_weights(self.init), f"init {self.init}")
            load_strictly(self, codebook_names(state), f"init {self.init}")


def codebook_names(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """{our name: tensor} of a codebook in transformers' names; names that are none of these stay as they are."""
    inside = {n.removeprefix("image_codebook."): t for n, t in state.items() if n.startswith("image_codebook.")} or state
    ours = lambda name: next((found for row in ROWS if (found := row.inward(name)) is not None), name)
    return {ours(name): tensor for name, tensor in inside.items()}
