"""FLAVA's three transformers and the norm behind two of them.

Shape letters: B rows, L text tokens, N patches, T tokens, D width, h heads.
"""

from typing import Annotated

import torch
from torch import Tensor, nn

from xtoolkit.batch import ImageField, TextField
from xtoolkit.encoders.attention import attention
from xtoolkit.encoders.base import Encoder
from xtoolkit.encoders.beit import MLP
from xtoolkit.encoders.patches import ConvStem, PatchEmbed
from xtoolkit.features import Encoded
from xtoolkit.hints import Count, NotNegative, Positive, Range
from xtoolkit.registry import ENCODER_REGISTRY

EPS = 1e-12


class Block(nn.Module):
    """Pre-norm transformer block: x + attention(norm(x)), then x + MLP(norm(x)); exact GELU, no layer scale, no dropout."""

    def __init__(self, width: int, heads: int, hidden: int):
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width, eps=EPS), nn.LayerNorm(width, eps=EPS)
        self.qkv, self.proj, self.mlp = nn.Linear(width, 3 * width), nn.Linear(width, width), MLP(width, hidden)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """(B, T, D) of tokens (B, T, D); ``mask`` broadcasts to (B, h, T, T), True = attend."""
        rows, tokens, width = x.shape
        qkv = self.qkv(self.norm1(x)).view(rows, tokens, 3, self.heads, -1)
        found = attention(*qkv.permute(2, 0, 3, 1, 4).unbind(0), mask)
        x = x + self.proj(found.transpose(1, 2).reshape(rows, tokens, width))
        return x + self.mlp(self.norm2(x))


class Transformer(Encoder):
    """What the three have in common: blocks, how weights are drawn, and a pooler that no loss reads.

    Args:
        width: channels.
        layers: blocks.
        heads: attention heads; must divide ``width``.
        mlp_ratio: hidden width of the MLP over ``width``.
        pooler: build the linear layer on the first token that the release has and no loss of pretraining reads, so that a
            checkpoint of the release goes in and out whole.
        init_std: of linear layers and embeddings.
    """

    def __init__(self, width: int, layers: int, heads: int, mlp_ratio: float, pooler: bool, init_std: float):
        super().__init__()
        if width % heads:
            raise ValueError(f"{type(self).__name__}: width {width} is not a multiple of heads {heads}")
        self.width, self.init_std = width, init_std
        self.blocks = nn.ModuleList(Block(width, heads, int(width * mlp_ratio)) for _ in range(layers))
        self.pooler = nn.Linear(width, width) if pooler else None
        if pooler:
            self.pooler.requires_grad_(False)

    @torch.no_grad()
    def init_weights(self) -> None:
        """Draws all weights anew: N(0, ``init_std``), biases, tokens and the places of patches 0."""
        for module in self.modules():
            if isinstance(module, (nn.Linear, nn.Conv2d, nn.Embedding)):
                nn.init.normal_(module.weight, std=self.init_std)
            if isinstance(module, (nn.Linear, nn.Conv2d)) and module.bias is not None:
                nn.init.zeros_(module.bias)
        for name, parameter in self.named_parameters(recurse=False):
            nn.init.zeros_(parameter)

    def through(self, x: Tensor, mask: Tensor) -> Tensor:
        """(B, T, D) after the last block of tokens (B, T, D); nobody attends where ``mask`` (B, T) is False."""
        for block in self.blocks:
            x = block(x, mask[:, None, None])
        return x


@ENCODER_REGISTRY.register
class FLAVAImage(Transformer):
    """FLAVA's image encoder: a vision transformer with learned places and a mask token. Its last norm is ``FLAVANorm``.

    YAML: {type: FLAVAImage, inputs: {image: $image}, width: 768, layers: 12, heads: 12, patch_size: 16, image_size: 224}

    Args:
        width: layers: heads: mlp_ratio: pooler: init_std: as ``Transformer``.
        patch_size: pixels a side of a patch.
        image_size: pixels a side; a multiple of ``patch_size``.
        stem: channels of convolutions instead of the one linear map of a patch, as BEiTv2's ``stem`` here; null: none.

    Source: FLAVA (2112.04482) 3.1; transformers' ``FlavaImageModel``.
    """

    def __init__(self, width: Count = 768, layers: Count = 12, heads: Count = 12, patch_size: Count = 16, image_size: Count = 224,
                 mlp_ratio: Positive = 4, stem: list[Count] | None = None, pooler: bool = False, init_std: NotNegative = 0.02):
        super().__init__(width, layers, heads, mlp_ratio, pooler, init_std)
        if image_size % patch_size:
            raise ValueError(f"FLAVAImage: image_size {image_size} is not a multiple of patch_size {patch_size}; nearest: "
                             f"{round(image_size / patch_size) * patch_size}")
        self.patch_size, self.image_size = patch_size, image_size
        self.patch_embed = ConvStem(width, patch_size, stem) if stem else PatchEmbed(width, patch_size)
        self.cls_token, self.mask_token = nn.Parameter(torch.empty(1, 1, width)), nn.Parameter(torch.empty(1, 1, width))
        self.positions = nn.Parameter(torch.empty(1, 1 + (image_size // patch_size) ** 2, width))
        self.init_weights()
        if stem:
            self.patch_embed.reset_parameters()

    def forward(self, *, view: str | None, image: ImageField) -> Encoded:
        """(B, 1 + N, D): CLS and patches after the last block, before the norm.

        Raises:
            ValueError: another size of pictures.
        """
        size = tuple(image.pixels.shape[-2:])
        if size != (self.image_size, self.image_size):
            raise ValueError(f"FLAVAImage is built for {self.image_size} x {self.image_size} pixels, this batch has {size[0]} x "
                             f"{size[1]}: set `image_size: {size[0]}` on the encoder")
        x, mask = self.patch_embed(image.pixels, image.patch_mask), image.patch_mask
        if mask is not None:
            x = torch.where(mask[..., None], self.mask_token.to(x.dtype), x)
        x = torch.cat([self.cls_token.expand(len(x), -1, -1), x], 1) + self.positions
        real = torch.ones(x.shape[:2], dtype=torch.bool, device=x.device)
        return Encoded.of(self.through(x, real), real)


@ENCODER_REGISTRY.register
class FLAVAText(Transformer):
    """FLAVA's text encoder: BERT's embeddings, then the blocks of the image encoder. Its last norm is ``FLAVANorm``.

    YAML: {type: FLAVAText, inputs: {text: $text}, width: 768, layers: 12, heads: 12}

    Args:
        width: layers: heads: mlp_ratio: pooler: init_std: as ``Transformer``.
        vocab_size: rows of the word embeddings; a tokenizer may have fewer words, not more.
        max_tokens: longest text.
        pad_id: the tokenizer's padding id.
        types: rows of BERT's type embeddings, of which a text reads the first.

    Source: FLAVA (2112.04482) 3.1; transformers' ``FlavaTextModel``, a pre-norm transformer and no ``BertModel``.
    """

    def __init__(self, width: Count = 768, layers: Count = 12, heads: Count = 12, vocab_size: Count = 30522,
                 max_tokens: Count = 512, pad_id: Annotated[int, Range(0)] = 0, types: Count = 2, mlp_ratio: Positive = 4,
                 pooler: bool = False, init_std: NotNegative = 0.02):
        super().__init__(width, layers, heads, mlp_ratio, pooler, init_std)
        self.vocab_size, self.max_tokens, self.pad_id = vocab_size, max_tokens, pad_id
        self.words, self.places, self.types = (nn.Embedding(rows, width) for rows in (vocab_size, max_tokens, types))
        self.norm = nn.LayerNorm(width, eps=EPS)
        self.init_weights()

    def forward(self, *, view: str | None, text: TextField) -> Encoded:
        """(B, L, D) after the last block, before the norm; padding is attended to by nobody.

        Raises:
            ValueError: a text that is too long, or reads from left to right.
        """
        length = text.ids.shape[1]
        if length > self.max_tokens:
            raise ValueError(f"a text of {length} tokens does not fit FLAVAText's {self.max_tokens} positions: lower the "
                             "stream's `max_tokens`, or raise the encoder's")
        if text.attention is not None:
            raise ValueError("FLAVAText attends to all tokens of a text: it has no `@left_to_right`")
        x = self.norm(self.words(text.ids) + self.types.weight[0] + self.places.weight[:length])
        return Encoded.of(self.through(x, text.mask), text.mask)


@ENCODER_REGISTRY.register
class FLAVANorm(Encoder):
    """The last norm of an image or text encoder, whose other reader, the multimodal encoder, takes the states before it.

    YAML: {type: FLAVANorm, inputs: {x: image_layers}}

    Source: transformers' ``FlavaModel``: projections and heads read normed states, the multimodal encoder ``hidden_states[-1]``.
    """

    def __init__(self, widths: dict):
        super().__init__()
        self.width = widths["x"]
        self.norm = nn.LayerNorm(self.width, eps=EPS)

    def forward(self, *, view: str | None, x: Encoded) -> Encoded:
        """The same tokens, each normed."""
        return Encoded.of(self.norm(x.tokens), x.mask, x.segments)


@ENCODER_REGISTRY.register
class FLAVAFusion(Transformer):
    """FLAVA's multimodal encoder: both encoders' states through a linear layer each, as [CLS_M; picture; text].

    Its summary is CLS_M. Padding is attended to by nobody: so transformers has it, torchmultimodal attends to it.

    YAML: {type: FLAVAFusion, inputs: {image: image_layers, text: text_layers}, layers: 6, heads: 12}

    Args:
        layers: heads: mlp_ratio: pooler: init_std: as ``Transformer``; the width is that of its inputs.

    Source: FLAVA (2112.04482) 3.1; transformers' ``FlavaMultimodalModel``.
    """

    def __init__(self, widths: dict, layers: Count = 6, heads: Count = 12, mlp_ratio: Positive = 4, pooler: bool = False,
                 init_std: NotNegative = 0.02):
        if widths["image"] != widths["text"]:
            raise ValueError(f"FLAVAFusion reads encoders of one width, got image {widths['image']} and text {widths['text']}")
        super().__init__(widths["text"], layers, heads, mlp_ratio, pooler, init_std)
        self.image_projection, self.text_projection = nn.Linear(self.width, self.width), nn.Linear(self.width, self.width)
        self.cls_token = nn.Parameter(torch.empty(1, 1, self.width))
        self.norm = nn.LayerNorm(self.width, eps=EPS)
        self.init_weights()

    def forward(self, *, view: str | None, image: Encoded, text: Encoded) -> Encoded:
        """(B, 1 + 1 + N + L, D) after the norm; the tokens of ``$image`` are its patches, without its CLS token."""
        pictures, words = self.image_projection(image.tokens), self.text_projection(text.tokens)
        x = torch.cat([self.cls_token.expand(len(words), -1, -1), pictures, words], 1)
        mask = torch.cat([torch.ones_like(text.mask[:, :1]), image.mask, text.mask], 1)
        first = 1 + pictures.shape[1]
        segments = {"image": slice(2, first), "text": slice(first, first + words.shape[1])}
        return Encoded.of(self.norm(self.through(x, mask)), mask, segments)
