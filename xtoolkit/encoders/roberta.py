"""RoBERTa: the text encoder, Hugging Face's model behind the toolkit's contract; and what its kin share.

Shape letters: B rows, L tokens, M masked tokens, D width, V vocabulary.
"""

from dataclasses import dataclass
from typing import Annotated

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from xtoolkit.batch import TextField
from xtoolkit.encoded import attended
from xtoolkit.encoders.base import Encoder
from xtoolkit.weights.files import hub_weights, load_strictly
from xtoolkit.features import Encoded
from xtoolkit.registry import ENCODER_REGISTRY, Count, Dropout, NotNegative, Positive, Range

NO_OUTPUT = ("these weights have no output layer, which MLM reads: take those of a RobertaForMaskedLM, or leave MLM out of the "
             "recipe (`losses.mlm=null`)")


class TextTransformer(Encoder):
    """What RoBERTa and its kin have in common: the pass through Hugging Face's model, and an output layer tied to the embeddings.

    A subclass builds the model as ``MODEL``; it sets ``pad_id``, ``vocab_size``, ``max_tokens`` and ``lm_head``, None at first.
    """

    HEADS = ("lm_logits",)
    MODEL: str

    @property
    def model(self) -> nn.Module:
        """Hugging Face's."""
        return getattr(self, self.MODEL)

    @property
    def embeddings(self) -> nn.Module:
        """Words, their places in the text, their segment if it has any, LayerNorm."""
        return self.model.embeddings

    def build_head(self, name: str) -> None:
        """Builds ``lm_logits``. Raises ValueError for any other name."""
        if name not in self.HEADS:
            super().build_head(name)
        self.lm_head = LMHead(self.width, self.vocab_size, self.model.config.layer_norm_eps)

    @property
    def lm_logits(self) -> "TiedHead":
        """The output layer, called with states (M, D); it can also tell their cross-entropy without all the scores.

        Raises:
            ValueError: no loss has declared it.
        """
        if self.lm_head is None:
            raise ValueError(f"this {type(self).__name__} has no output layer: the loss must declare Need(head='lm_logits')")
        return TiedHead(self.lm_head, self.embeddings.word_embeddings.weight)

    def places(self, text: TextField) -> Tensor:
        """(B, L) int64, rows of the position embeddings, of a text that has ``positions``."""
        raise NotImplementedError

    def forward(self, *, view: str | None, text: TextField) -> Encoded:
        """Returns the last hidden states (B, L, D), the text's mask and its attention; row 0, the first token, is the summary.

        Raises:
            ValueError: a text that is too long.
        """
        if text.ids.shape[1] > self.max_tokens:
            raise ValueError(f"a text of {text.ids.shape[1]} tokens does not fit {type(self).__name__}'s {self.max_tokens} "
                             "positions: lower the stream's `max_tokens`, or raise the encoder's `max_positions`")
        # Four dimensions: a two-dimensional mask makes Hugging Face ask the device whether it is all ones.
        mask = attended(text.mask, text.attention)
        plain = mask.device.type == "cpu"  # the fused CPU kernel's bfloat16 backward is slow: see encoders/attention.py
        self.model.config._attn_implementation = "eager" if plain else "sdpa"
        if plain:  # which adds the mask, whatever its type
            mask = torch.zeros(mask.shape, device=mask.device).masked_fill_(~mask, float("-inf"))
        places = None if text.positions is None else self.places(text)
        hidden = self.model(input_ids=text.ids, attention_mask=mask, position_ids=places).last_hidden_state
        return Encoded.of(hidden, text.mask, attention=text.attention)


@ENCODER_REGISTRY.register
class RoBERTa(TextTransformer):
    """RoBERTa over Hugging Face's ``RobertaModel``; parameter names are those of its ``RobertaForMaskedLM``.

    YAML: {type: RoBERTa, inputs: {text: $text}, width: 768, layers: 12, heads: 12, init: roberta-base}

    The output layer is tied to the word embeddings, and built only if a loss declares ``lm_logits``.

    Args:
        width: channels.
        layers: transformer layers.
        heads: attention heads; must divide ``width``.
        vocab_size: rows of the word embeddings; a tokenizer may have fewer words, not more.
        max_positions: rows of the position embeddings; a text may have ``max_positions - pad_id - 1`` tokens.
        ffn_ratio: hidden width of the feed-forward layers over ``width``.
        dropout: after embeddings, attention and feed-forward layers, and on attention weights.
        layer_norm_eps: of every LayerNorm.
        pad_id: the tokenizer's padding id; positions are counted from the ids that differ from it.
        init_std: of embeddings and layers (the output layer keeps 0.02). 0.02 is made for 768 channels; narrow encoders
            start better with more.
        init: weights: a file or folder (safetensors, or torch), or a name on the Hugging Face hub. None: random.

    Source: RoBERTa (1907.11692); X-FM's released ``xroberta.py`` computes the same.
    """

    MODEL = "roberta"

    def __init__(self, width: Count = 768, layers: Count = 12, heads: Count = 12, vocab_size: Count = 50265,
                 max_positions: Count = 514, ffn_ratio: Positive = 4, dropout: Dropout = 0.1, layer_norm_eps: Positive = 1e-5,
                 pad_id: Annotated[int, Range(0)] = 1, init_std: NotNegative = 0.02, init: str | None = None):
        super().__init__()
        from transformers import RobertaConfig, RobertaModel

        if width % heads:
            raise ValueError(f"RoBERTa: width {width} is not a multiple of heads {heads}")
        config = RobertaConfig(
            vocab_size=vocab_size, hidden_size=width, num_hidden_layers=layers, num_attention_heads=heads,
            intermediate_size=int(width * ffn_ratio), max_position_embeddings=max_positions, type_vocab_size=1,
            hidden_dropout_prob=dropout, attention_probs_dropout_prob=dropout, layer_norm_eps=layer_norm_eps,
            pad_token_id=pad_id, initializer_range=init_std, attn_implementation="sdpa")
        self.width, self.vocab_size, self.pad_id, self.init = width, vocab_size, pad_id, init
        self.max_tokens = max_positions - pad_id - 1
        self.roberta = RobertaModel(config, add_pooling_layer=False)
        self.lm_head = None

    def places(self, text: TextField) -> Tensor:
        """Rows are counted from the padding's, as Hugging Face counts them where it is not told."""
        return torch.where(text.mask, text.positions + self.pad_id + 1, self.pad_id)

    def load_init(self) -> None:
        """Loads the weights that ``init`` names, if it does; the model calls this once, after construction.

        Raises:
            WeightsError: every name that does not fit; or where to put weights that cannot be downloaded.
        """
        if self.init is None:
            return
        state = hub_weights(self.init)
        state = {k if k.startswith(("roberta.", "lm_head.")) else f"roberta.{k}": v for k, v in state.items()}
        # The decoder is stored beside what it is tied to; poolers and fixed position ids have no place here.
        tied = "lm_head.decoder.*" if self.lm_head is not None else "lm_head.*"
        ignore = ("roberta.pooler.*", "*.position_ids", tied)
        mend = {} if self.lm_head is None or any(k.startswith("lm_head.") for k in state) else {"mend": NO_OUTPUT}
        load_strictly(self, state, f"init {self.init}", ignore=ignore, **mend)


class LMHead(nn.Module):
    """Linear, GELU, LayerNorm, then the word embeddings as output matrix: (M, D) -> (M, V).

    The embeddings come as an argument, so that the tied matrix is one parameter under one name. With ``labels`` (M,) it
    returns the mean cross-entropy instead.
    """

    def __init__(self, width, vocab_size, eps):
        super().__init__()
        self.dense = nn.Linear(width, width)
        self.layer_norm = nn.LayerNorm(width, eps=eps)
        self.bias = nn.Parameter(self.dense.weight.new_zeros(vocab_size))
        nn.init.normal_(self.dense.weight, std=0.02)
        nn.init.zeros_(self.dense.bias)

    def forward(self, hidden, embeddings, labels=None):
        hidden = self.layer_norm(F.gelu(self.dense(hidden)))
        if labels is None:
            return F.linear(hidden, embeddings, self.bias)
        from xtoolkit.kernels.linear_cross_entropy import linear_cross_entropy

        return linear_cross_entropy(hidden, embeddings, self.bias, labels)


@dataclass(frozen=True)
class TiedHead:
    """``lm_logits``: an output layer together with the embeddings that it is tied to."""

    head: LMHead
    embeddings: Tensor

    def __call__(self, hidden: Tensor) -> Tensor:
        """Scores of every word: (M, D) -> (M, V)."""
        return self.head(hidden, self.embeddings)

    def cross_entropy(self, hidden: Tensor, labels: Tensor) -> Tensor:
        """Mean over M states (M, D) of -log softmax(scores)[label]: ``kernels.linear_cross_entropy``."""
        return self.head(hidden, self.embeddings, labels)
