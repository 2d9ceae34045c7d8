"""Toy encoders over texts and pictures, as plugins of the recipes beside this file: the contracts hold for joint encoders.

Shape letters: B rows, L text tokens, N patches, D width.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from xtoolkit.batch import ImageField, TextField
from xtoolkit.encoders.attention import attention
from xtoolkit.encoders.base import Encoder
from xtoolkit.features import Encoded
from xtoolkit.registry import ENCODER_REGISTRY


class Layer(nn.Module):
    """Self-attention that is shared, and a feed-forward network for each kind of input."""

    def __init__(self, width: int, heads: int, experts=("text", "image", "both")):
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.experts = nn.ModuleDict({name: nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))
                                      for name in experts})

    def forward(self, x: Tensor, mask: Tensor, expert: str) -> Tensor:
        q, k, v = self.qkv(self.norm1(x)).view(*x.shape[:2], 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        x = x + self.out(attention(q, k, v, mask[:, None, None], 0.0).transpose(1, 2).reshape(x.shape))
        return x + self.experts[expert](self.norm2(x))


class Joint(Encoder):
    """What both toys share: patches and tokens side by side, each segment told by name."""

    def joined(self, parts: dict[str, tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor, dict]:
        """Tokens (B, 1 + n, D) after a summary, their mask, and where each part's stand."""
        rows = next(iter(parts.values()))[0].shape[0]
        tokens, masks, segments, start = [self.cls.expand(rows, 1, -1)], [], {}, 1
        for name, (part, mask) in parts.items():
            segments[name] = slice(start, start + part.shape[1])
            start += part.shape[1]
            tokens.append(part)
            masks.append(mask)
        everywhere = torch.ones_like(masks[0][:, :1])
        return torch.cat(tokens, 1), torch.cat([everywhere, *masks], 1), segments


@ENCODER_REGISTRY.register
class ToyExperts(Joint):
    """VL-BEiT's shape: one backbone for texts, pictures and pairs, with an expert for each.

    YAML: {type: ToyExperts, inputs: {text: $text, image: $image}, width: 16}
    """

    HEADS = ("lm_logits",)

    def __init__(self, width: int = 16, layers: int = 2, heads: int = 2, vocab_size: int = 4000, pad_id: int = 1,
                 image_size: int = 32, patch_size: int = 8):
        super().__init__()
        self.width, self.vocab_size, self.pad_id = width, vocab_size, pad_id
        self.image_size, self.patch_size = image_size, patch_size
        self.words, self.places = nn.Embedding(vocab_size, width), nn.Embedding(64, width)
        self.patches = nn.Linear(3 * patch_size**2, width)
        self.mask_token, self.cls = nn.Parameter(torch.zeros(width)), nn.Parameter(torch.randn(1, 1, width))
        self.layers = nn.ModuleList(Layer(width, heads) for _ in range(layers))
        self.lm_logits = None

    def build_head(self, name: str) -> None:
        self.lm_logits = nn.Linear(self.width, self.vocab_size)

    def forward(self, *, view: str | None, text: TextField | None = None, image: ImageField | None = None) -> Encoded:
        parts = {}
        if text is not None:
            places = torch.arange(text.ids.shape[1], device=text.ids.device)
            parts["text"] = self.words(text.ids) + self.places(places), text.mask
        if image is not None:
            x = self.patches(F.unfold(image.pixels, self.patch_size, stride=self.patch_size).transpose(1, 2))
            if image.patch_mask is not None:
                x = torch.where(image.patch_mask[..., None], self.mask_token.to(x.dtype), x)
            parts["image"] = x, torch.ones(x.shape[:2], dtype=torch.bool, device=x.device)
        x, mask, segments = self.joined(parts)
        for layer in self.layers:
            x = layer(x, mask, "both" if len(parts) == 2 else next(iter(parts)))
        return Encoded.of(x, mask, segments)


@ENCODER_REGISTRY.register
class ToyMultimodal(Joint):
    """FLAVA's shape: a third encoder over what a text and an image encoder gave, a token for each of theirs.

    YAML: {type: ToyMultimodal, inputs: {text: text, image: vision}}
    """

    def __init__(self, widths: dict, width: int = 16, heads: int = 2):
        super().__init__()
        self.width = width
        self.text_in, self.image_in = nn.Linear(widths["text"], width), nn.Linear(widths["image"], width)
        self.cls, self.layer = nn.Parameter(torch.randn(1, 1, width)), Layer(width, heads, ("both",))

    def forward(self, *, view: str | None, text: Encoded, image: Encoded) -> Encoded:
        patches = image.segment("image", slice(1, None))
        x, mask, segments = self.joined({"text": (self.text_in(text.tokens), text.mask),
                                         "image": (self.image_in(patches), image.mask[:, 1:])})
        return Encoded.of(self.layer(x, mask, "both"), mask, segments)
