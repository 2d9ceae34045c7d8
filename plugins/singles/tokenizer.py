"""VQKD: the image tokenizer of BEiTv2, a vision transformer and a codebook.

Shape letters: B pictures, N patches, D width, C codes, d channels of a code.
"""

from dataclasses import dataclass
from typing import Annotated

import torch
import torch.nn.functional as F
from torch import Tensor

from xtoolkit.batch import ImageField
from xtoolkit.encoders.base import Encoder
from xtoolkit.encoders.patches import ConvStem, PatchEmbed
from xtoolkit.features import full_precision
from xtoolkit.hints import Count, NotNegative, Positive, Range, Share
from xtoolkit.registry import ENCODER_REGISTRY
from xtoolkit.weights.files import load_strictly

from .codebook import Codebook
from .release import tokenizer_of
from .vit import PlainViT, task_layer

CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
Colour = tuple[float, float, float]


@dataclass(frozen=True)
class Quantized:
    """What a tokenizer in training says of pictures.

    Attributes:
        codes: (B, N) int64.
        latents: (B, N, d) float32 of length 1, what the encoder gave; with a graph.
        chosen: (B, N, d) float32, the codes' vectors, or before they begin the latents; without.
    """

    codes: Tensor
    latents: Tensor
    chosen: Tensor

    @property
    def straight_through(self) -> Tensor:
        """The codes' vectors, whose gradient is the latents'."""
        return self.latents + (self.chosen - self.latents).detach()

    def detach(self) -> "Quantized":
        """The same without a graph."""
        return Quantized(self.codes, self.latents.detach(), self.chosen)


@ENCODER_REGISTRY.register
class VQKD(Encoder):
    """An image tokenizer: a vision transformer, a projection to d channels of length 1, and the nearest of C codes.

    Frozen, as here, it returns the codes of the patches, (B, N) int64. With ``trained: true`` it returns ``Quantized``, which the
    loss ``VQKDLoss`` reads: the codes begin as the k-means clusters of the first batch, by cosine, and after each update move
    towards the mean direction of the latents that chose them; a code that none chose stays. Codebook and counts are in the
    checkpoint. Of several ranks the latents of all count, as if one had seen the whole batch. A step in parts (``accumulate``)
    begins with the clusters of its first part.

    YAML: {type: VQKD, inputs: {image: $image}, codes: 8192, dim: 32, init: outputs/vqkd}

    Args:
        codes: how many.
        dim: channels of a code.
        width: channels of the transformer.
        layers: its blocks.
        heads: its attention heads; must divide ``width``.
        patch_size: pixels a side of a patch.
        image_size: pixels a side; a multiple of ``patch_size``.
        mlp_ratio: hidden width of the MLP over ``width``.
        stem: channels of convolutions instead of the one linear map of a patch, as BEiTv2's ``stem`` here; null: none.
        init_std: of the linear layers; narrow ones start better with more than 0.02.
        decay: what a code keeps of itself at each update.
        wait: updates before the codes begin; until then the decoder reads the latents themselves. The release begins at once,
            with small steps; a small tokenizer that moves fast would leave most of its first codes behind.
        mean: of the channels, by which the data have normalised the pixels that come in; they are brought to [-1, 1].
        std: likewise.
        trained: whether this recipe trains it.
        init: where its weights are: a run's output folder, one of its checkpoints, a file of a whole model with one VQKD, or the
            released checkpoint. Null: drawn; frozen codes are then those of random weights, a control.

    Source: BEiTv2 (2208.06366) 3.1 and appendix; where the released code is more exact it is followed: learned positions, no
    layer scale, LayerNorm of the patches with the CLS token dropped, Linear-tanh-Linear in float32, k-means of 10 iterations,
    decay 0.99 with both the mean and the code brought to length 1. The release lets each rank start from its own clusters.
    """

    def __init__(self, codes: Count = 8192, dim: Count = 32, width: Count = 768, layers: Count = 12, heads: Count = 12,
                 patch_size: Count = 16, image_size: Count = 224, mlp_ratio: Positive = 4, stem: list[Count] | None = None,
                 init_std: NotNegative = 0.02, decay: Share = 0.99, wait: Annotated[int, Range(0)] = 0,
                 mean: Colour = CLIP_MEAN, std: Colour = CLIP_STD, trained: bool = False, init: str | None = None):
        super().__init__()
        if image_size % patch_size:
            raise ValueError(f"VQKD: image_size {image_size} is not a multiple of patch_size {patch_size}")
        self.codes, self.width, self.patch_size, self.image_size = codes, dim, patch_size, image_size
        self.trained, self.init = trained, init
        self.channels, self.heads, self.mlp_ratio, self.init_std = width, heads, mlp_ratio, init_std  # its decoder's, too
        embed = ConvStem(width, patch_size, stem) if stem else PatchEmbed(width, patch_size)
        self.encoder = PlainViT(embed, (image_size // patch_size) ** 2, width, layers, heads, int(width * mlp_ratio), init_std)
        self.encode_task_layer = task_layer(width, dim, init_std)
        self.quantize = Codebook(codes, dim, decay, wait)
        for name, value in (("mean", mean), ("std", std)):
            self.register_buffer(name, torch.tensor(value).view(3, 1, 1), persistent=False)
        self.requires_grad_(trained)

    def forward(self, *, view: str | None, image: ImageField) -> Tensor | Quantized:
        """The codes of the whole picture: what a view masks is no question here."""
        if image.pixels.shape[-2:] != (self.image_size, self.image_size):
            raise ValueError(f"VQKD is built for {self.image_size} x {self.image_size} pixels, this batch has "
                             f"{image.pixels.shape[-2]} x {image.pixels.shape[-1]}: set its `image_size`")
        with torch.set_grad_enabled(self.trained and torch.is_grad_enabled()):
            latents = self.latents(image.pixels)
            if not self.trained:
                return self.quantize.nearest(latents)
            rows, learns = latents.detach().flatten(0, 1), self.training and torch.is_grad_enabled()
            ready = self.quantize.begin(rows) if learns else True
            codes = self.quantize.nearest(latents.detach())
            if not ready:
                return Quantized(codes, latents, latents.detach())
            if learns:
                self.quantize.collect(rows, codes.flatten())
            return Quantized(codes, latents, F.embedding(codes, self.quantize.weight))

    def latents(self, pixels: Tensor) -> Tensor:
        """(B, N, d) float32 of length 1."""
        x = self.encoder.patch_embed((pixels * self.std + self.mean) * 2 - 1, None)
        x = self.encoder(x)
        with full_precision(x):
            return F.normalize(self.encode_task_layer(x.float()), dim=-1)

    def after_update(self) -> None:
        """Moves the codes."""
        self.quantize.update()

    def load_init(self) -> None:
        """Loads what ``init`` names.

        Raises:
            WeightsError: it holds no tokenizer, several, or one of other sizes.
        """
        if self.init is not None:
            state, origin = tokenizer_of(self.init)
            load_strictly(self, state, origin, mend="check codes, dim, width, layers, patch_size, image_size and stem of the "
                          "tokenizer against these weights")
