"""CrossAttention: the fusion encoder, a text transformer that also attends to image tokens.

Shape letters: B rows, S source rows, L text tokens, n image tokens, D width, h heads.
"""

import copy
import re
from typing import Annotated

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from xtoolkit.encoded import attended
from xtoolkit.encoders.attention import attention
from xtoolkit.encoders.base import Encoder
from xtoolkit.encoders.positions import positions_on
from xtoolkit.features import Encoded
from xtoolkit.registry import ENCODER_REGISTRY, Count, Dropout, NotNegative, Positive, Range
from xtoolkit.weights.files import WeightsError, hub_weights, load_strictly

LAYER = re.compile(r"(.*?)encoder\.layer\.(\d+)\.(.*)")  # of BERT and RoBERTa as Hugging Face stores them


@ENCODER_REGISTRY.register
class CrossAttention(Encoder):
    """Post-norm layers of self-attention over the text, cross-attention to the image, and a feed-forward network.

    YAML: {type: CrossAttention, inputs: {text: text, image: vision}, layers: 12, heads: 12}

    The text encoder's states go in as they are: no embeddings, positions or norm of its own. An image's keys and
    values are computed once for each layer, however many rows attend to it (``Encoded.parts``): exact, since nothing
    random lies between. Parameter names are those of the release's ``fusion_encoder.roberta.encoder``.

    Args:
        layers: each has all three parts.
        heads: attention heads; must divide ``width``.
        width: channels; None: the text's. If it differs from the text's, a linear layer maps the text to it.
        ffn_ratio: hidden width of the feed-forward network over ``width``.
        dropout: after each part, and on attention weights.
        layer_norm_eps: of every LayerNorm.
        init_std: of the linear layers. 0.02 is made for 768 channels; narrow encoders start better with more.
        image_positions: amplitude of a fixed sine-cosine embedding of each patch's place, added to the patches before keys and
            values are made; 0: none, as in the paper.
        aligned: the query and key maps of cross-attention start as one matrix, so that a text looks first at the patches whose
            features resemble its own; false: drawn apart, as in the paper. Needs text and image of one width.
        init: weights of a text transformer, BERT's or RoBERTa's: a file or folder, or a name on the Hugging Face hub. Its layers
            from ``init_first`` on become self-attention and feed-forward parts; cross-attention stays drawn. None: all drawn.
        init_first: the layer of those weights that the first layer here starts from.

    Source: X-FM 3.1 and its released ``fusion_encoder`` (RoBERTa's layer with cross-attention, initialised N(0, 0.02)). X2-VLM
    (2211.12402), ALBEF (2107.07651) and BLIP start from the upper half of BERT.
    """

    def __init__(self, widths: dict, layers: Count = 12, heads: Count = 12, width: Count | None = None, ffn_ratio: Positive = 4,
                 dropout: Dropout = 0.1, layer_norm_eps: Positive = 1e-5, init_std: NotNegative = 0.02,
                 image_positions: NotNegative = 0, aligned: bool = False, init: str | None = None,
                 init_first: Annotated[int, Range(0)] = 0):
        super().__init__()
        self.init, self.init_first = init, init_first
        self.width = width or widths["text"]
        if self.width % heads:
            raise ValueError(f"CrossAttention: width {self.width} is not a multiple of heads {heads}")
        same = self.width == widths["text"]
        self.text_in = nn.Identity() if same else nn.Linear(widths["text"], self.width)
        self.layer = nn.ModuleList(Layer(self.width, widths["image"], heads, int(self.width * ffn_ratio), dropout,
                                         layer_norm_eps, image_positions) for _ in range(layers))
        self.init_std, self.aligned = init_std, aligned
        if aligned and self.width != widths["image"]:
            raise ValueError(f"CrossAttention: `aligned` needs one width, got {self.width} and image {widths['image']}")
        self.init_weights()

    def init_weights(self) -> None:
        """Draws all weights anew: N(0, init_std), biases zero."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=self.init_std)
                nn.init.zeros_(module.bias)
            elif isinstance(module, nn.LayerNorm):
                module.reset_parameters()
        for layer in self.layer if self.aligned else ():
            heads = layer.crossattention.self
            heads.key.weight.data.copy_(heads.query.weight.data)

    def load_init(self) -> None:
        """Loads the layers that ``init`` names, if it does; the model calls this once, after construction.

        Raises:
            WeightsError: they are no text transformer's, too few, or of another width; or where to put what cannot be downloaded.
        """
        if self.init is None:
            return
        state, origin = hub_weights(self.init), f"init {self.init}"
        found = {int(match[2]): match[1] for match in map(LAYER.match, state) if match}
        wanted = range(self.init_first, self.init_first + len(self.layer))
        if missing := [number for number in wanted if number not in found]:
            raise WeightsError(f"{origin}: no layer {missing[0]}: it has {len(found)} layers of a text transformer, and "
                               f"{len(self.layer)} from `init_first: {self.init_first}` on are asked for")
        layers = {f"layer.{int(match[2]) - self.init_first}.{match[3]}": tensor for name, tensor in state.items()
                  if (match := LAYER.match(name)) and int(match[2]) in wanted}
        load_strictly(self, layers, origin, may_miss=("*.crossattention.*", "text_in.*"))

    def decoder(self, layers: int | None = None, spread: bool = False) -> "CrossAttention":
        """A copy that attends to this encoder's own output in the place of a picture: patches have a place there, tokens none.

        Args:
            layers: how many of its layers; None: all.
            spread: evenly spaced ones, from the first on; False: the first ones.

        Raises:
            ValueError: not as many layers, or its output is not as wide as the pictures that its keys are made of.
        """
        own = len(self.layer)
        layers = layers or own
        if layers > own or spread and own % layers:
            raise ValueError(f"a decoder of {layers} layers cannot be copied from CrossAttention's {own}"
                             + (f": evenly spaced ones of {own} are {own} divided by a whole number" if layers < own else ""))
        if (read := self.layer[0].crossattention.self.key.in_features) != self.width:
            raise ValueError(f"a decoder cannot be copied from CrossAttention of width {self.width}: its keys are made of "
                             f"pictures of width {read}, and would have to be made of its own output")
        twin, step = copy.deepcopy(self), own // layers if spread else 1
        twin.layer = nn.ModuleList(twin.layer[number * step] for number in range(layers))
        for layer in twin.layer:
            layer.crossattention.self.positions = 0.0
        return twin

    def forward(self, *, view: str | None, text: Encoded, image: Encoded) -> Encoded:
        """Returns (B, L, D) with the text's mask and attention.

        Args:
            text: (B, L, text width), the queries; its attention says which tokens each of them may attend to.
            image: (B, n, image width), the keys and values; its mask says which tokens each row may attend to.
        """
        return self._fused(text, image, None)

    def attending(self, *, text: Encoded, image: Encoded) -> tuple[Encoded, list[Tensor]]:
        """The same pass, and where it looked: of each layer the weights (B, heads, L, n) of its cross-attention, as the states
        are computed from them, so that a gradient of the result reaches them. Slower, and never what training does."""
        weights: list[Tensor] = []
        return self._fused(text, image, weights), weights

    def _fused(self, text, image, kept):
        if len(text) != len(image):
            raise ValueError(f"CrossAttention got {len(text)} texts and {len(image)} images; select() as many of both")
        # Always four-dimensional and boolean: nobody asks the device whether it is all ones.
        text_mask, image_mask = attended(text.mask, text.attention), image.mask[:, None, None]
        x = self.text_in(text.tokens)
        for layer in self.layer:
            x = layer(x, text_mask, image.parts, image_mask, kept)
        return Encoded.of(x, text.mask, attention=text.attention)


class Layer(nn.Module):
    """Self-attention, cross-attention, feed-forward, each followed by dropout, the residual sum and LayerNorm."""

    def __init__(self, width, image_width, heads, hidden, dropout, eps, image_positions):
        super().__init__()
        self.attention = Attention(width, width, heads, dropout, eps)
        self.crossattention = Attention(width, image_width, heads, dropout, eps, image_positions)
        self.intermediate = Dense(width, hidden)
        self.output = Output(hidden, width, dropout, eps)

    def forward(self, x, text_mask, parts, image_mask, kept=None):
        x = self.attention(x, *self.attention.self.project(x), text_mask)
        x = self.crossattention(x, *self.crossattention.self.gather(parts), image_mask, kept)
        return self.output(F.gelu(self.intermediate.dense(x)), x)


class Attention(nn.Module):
    """Multi-head attention with its output layer; named as in the release: ``self`` and ``output``."""

    def __init__(self, width, source_width, heads, dropout, eps, positions=0.0):
        super().__init__()
        self.self = Heads(width, source_width, heads, dropout, positions)
        self.output = Output(width, width, dropout, eps)

    def forward(self, x, keys, values, mask, kept=None):
        return self.output(self.self(x, keys, values, mask, kept), x)


class Heads(nn.Module):
    """Query, key and value projections, and the attention itself."""

    def __init__(self, width, source_width, heads, dropout, positions):
        super().__init__()
        self.heads, self.dropout, self.positions = heads, dropout, positions
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(source_width, width)
        self.value = nn.Linear(source_width, width)

    def project(self, tokens):
        """Keys and values (S, n, D) of tokens (S, n, source width)."""
        if self.positions:
            places = positions_on(tokens.device, *tokens.shape[1:])
            tokens = tokens if places is None else tokens + (self.positions * places).to(tokens)
        return self.key(tokens), self.value(tokens)

    def gather(self, parts):
        """Keys and values (B, n, D) of the rows that ``parts`` point to; each source is projected once a step."""
        found = []
        for source, index in parts:
            pair = source.memo(self, self.project)
            found.append(pair if index is None else [t.index_select(0, index) for t in pair])
        return found[0] if len(found) == 1 else [torch.cat(same, 1) for same in zip(*found)]

    def forward(self, x, keys, values, mask, kept=None):
        rows, tokens, width = x.shape
        q, k, v = (t.view(rows, t.shape[1], self.heads, -1).transpose(1, 2) for t in (self.query(x), keys, values))
        x = attention(q, k, v, mask, self.dropout if self.training else 0.0, kept)
        return x.transpose(1, 2).reshape(rows, tokens, width)


class Dense(nn.Module):
    """A linear layer under the name that the release gives it."""

    def __init__(self, width, hidden):
        super().__init__()
        self.dense = nn.Linear(width, hidden)


class Output(nn.Module):
    """Linear, dropout, residual sum, LayerNorm."""

    def __init__(self, source, width, dropout, eps):
        super().__init__()
        self.dense = nn.Linear(source, width)
        self.LayerNorm = nn.LayerNorm(width, eps=eps)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x, residual):
        return self.LayerNorm(self.dropout(self.dense(x)) + residual)
