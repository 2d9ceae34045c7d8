"""CaptionDecoder: words, masks and boxes as tokens of one vocabulary, decoded beside the patches of a picture.

Shape letters: B rows, L tokens, D width, V words, S bins of a coordinate.
"""

from dataclasses import replace
from typing import Annotated

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.checkpoint import checkpoint

from xtoolkit.batch import TextField
from xtoolkit.encoders.base import Encoder
from xtoolkit.encoders.cross_attention import CrossAttention
from xtoolkit.features import Encoded
from xtoolkit.hints import Count, Dropout, NotNegative, Range
from xtoolkit.registry import ENCODER_REGISTRY, ConfigError

CHUNK = 4096  # tokens whose scores exist at a time; the backward pass makes them again


@ENCODER_REGISTRY.register
class CaptionDecoder(Encoder):
    """A transformer decoder with cross-attention, for losses that say themselves what stands in it: CapPa and LocCa.

    Embeddings, learned positions and a LayerNorm, then the layers of CrossAttention, then an output layer of its own. Behind the
    V words of the tokenizer its vocabulary has a mask, three words that begin a target (``refer``, ``describe``, ``box``), and S
    coordinates. The picture is read by its patches; the summary token before them is masked.

    YAML: {type: CaptionDecoder, inputs: {text: $text, image: vision}, width: 768, layers: 6, heads: 12}

    Args:
        width: channels.
        layers: self-attention, cross-attention, feed-forward.
        heads: attention heads; must divide ``width``.
        vocab_size: V; a tokenizer may have fewer words, not more.
        bins: S, values of a coordinate of a box.
        max_positions: tokens that it reads at most: of a region its text and five more.
        dropout: as CrossAttention has it.
        init_std: of all matrices and embeddings; narrow decoders start better with more.
        image_positions: as CrossAttention has it.
        init: layers of a text transformer for self-attention and feed-forward parts, as CrossAttention has it.
        init_first: likewise.

    Source: CapPa (2306.07915) 3 and LocCa (2403.19596) 3 for a decoder on un-pooled patches whose vocabulary holds coordinates.
    SigLIP 2 (2502.14786) 2: as wide as the text tower, half as deep. Their layers normalise before each part, these after it, as
    X-FM's fusion encoder, whose code and starts they share. README.md says which figures could not be checked.
    """

    HEADS = ("lm_logits",)

    def __init__(self, widths: dict, width: Count = 768, layers: Count = 6, heads: Count = 12, vocab_size: Count = 50265,
                 bins: Annotated[int, Range(2)] = 500, max_positions: Count = 80, dropout: Dropout = 0.0,
                 init_std: NotNegative = 0.02, image_positions: NotNegative = 0, init: str | None = None,
                 init_first: Annotated[int, Range(0)] = 0):
        super().__init__()
        self.width, self.vocab_size, self.bins, self.init_std = width, vocab_size, bins, init_std
        self.mask_id, self.refer_id, self.describe_id, self.box_id = range(vocab_size, vocab_size + 4)
        self.first_bin, self.tokens = vocab_size + 4, vocab_size + 4 + bins
        self.word_embeddings = nn.Embedding(self.tokens, width)
        self.positions = nn.Parameter(torch.empty(max_positions, width))
        self.norm = nn.LayerNorm(width)
        self.transformer = CrossAttention({"text": width, "image": widths["image"]}, layers, heads, dropout=dropout,
                                          init_std=init_std, image_positions=image_positions, init=init, init_first=init_first)
        self.lm_logits = None
        for table in (self.word_embeddings.weight, self.positions):
            nn.init.normal_(table, std=init_std)

    def build_head(self, name: str) -> None:
        """Builds ``lm_logits``, Linear(D, V + 4 + S). Raises ValueError for any other name."""
        if name not in self.HEADS:
            super().build_head(name)
        self.lm_logits = nn.Linear(self.width, self.tokens)
        nn.init.normal_(self.lm_logits.weight, std=self.init_std)
        nn.init.zeros_(self.lm_logits.bias)

    def load_init(self) -> None:
        self.transformer.load_init()

    def forward(self, *, view: str | None, text: TextField, image: Encoded) -> Encoded:
        """Returns (B, L, D).

        Args:
            text: ids (B, L) below V + 4 + S; its attention says which tokens each may attend to.
            image: (B, 1 + N, image width), or any whose first token is a summary.

        Raises:
            ValueError: more tokens than there are positions.
        """
        length, most = text.ids.shape[1], len(self.positions)
        if length > most:
            raise ValueError(f"{length} tokens do not fit CaptionDecoder's {most} positions: lower the stream's `max_tokens`, or "
                             "raise the encoder's `max_positions`")
        places = self.positions[:length] if text.positions is None else self.positions[text.positions]
        x = Encoded.of(self.norm(self.word_embeddings(text.ids) + places), text.mask, attention=text.attention)
        patches = replace(image, mask=torch.cat([torch.zeros_like(image.mask[:, :1]), image.mask[:, 1:]], 1))
        return self.transformer(view=view, text=x, image=patches)

    # ---- boxes ------------------------------------------------------------------------------------------------------------
    def box_tokens(self, box: Tensor) -> Tensor:
        """(R, 4) int64, ids of left, top, right, bottom of boxes (R, 4) cx, cy, w, h in [0, 1]: the nearest of S values."""
        corners = torch.cat([box[:, :2] - box[:, 2:] / 2, box[:, :2] + box[:, 2:] / 2], 1).clamp(0, 1)
        return self.first_bin + (corners * (self.bins - 1)).round().long()

    def boxes(self, tokens: Tensor) -> Tensor:
        """(R, 4) float32 cx, cy, w, h of such ids; a right edge left of the left one makes a box without width."""
        corners = (tokens - self.first_bin).float() / (self.bins - 1)
        low, high = corners[:, :2], torch.maximum(corners[:, :2], corners[:, 2:])
        return torch.cat([(low + high) / 2, high - low], 1)


def decoder_of(loss: str, name: str, modules: dict) -> CaptionDecoder:
    """The decoder that a loss names. Raises ConfigError where it is none."""
    if not isinstance(found := modules[name], CaptionDecoder):
        raise ConfigError(f"{loss}: `decoder` must name an encoder of type CaptionDecoder; `{name}` is {type(found).__name__}")
    return found


def left_to_right(rows: int, length: int, device) -> Tensor:
    """(B, L, L) bool: each token sees itself and those before it."""
    return torch.ones(length, length, dtype=torch.bool, device=device).tril().expand(rows, -1, -1)


def token_costs(logits: nn.Module, states: Tensor, labels: Tensor) -> Tensor:
    """-log p of each label (...,), float32 or better, of states (..., D)."""
    def cost(states, labels):
        scores = logits(states)
        return cross_entropy(scores.to(torch.promote_types(scores.dtype, torch.float32)), labels, reduction="none")

    parts = list(zip(states.flatten(0, -2).split(CHUNK), labels.flatten().split(CHUNK)))
    again = len(parts) > 1 and torch.is_grad_enabled()
    made = [checkpoint(cost, *part, use_reentrant=False, preserve_rng_state=False) if again else cost(*part) for part in parts]
    return torch.cat(made).view(labels.shape)


def weighted_mean(values: Tensor, weight: Tensor) -> Tensor:
    """The mean of values over those that count (bool, of that shape); none: exactly 0, attached to the graph."""
    return (values * weight).sum() / weight.sum().clamp(min=1)
