"""BERT: the text encoder, Hugging Face's model behind the toolkit's contract."""

from typing import Annotated

from torch import Tensor

from xtoolkit.batch import TextField
from xtoolkit.encoders.roberta import TextTransformer
from xtoolkit.hints import Count, Dropout, NotNegative, Positive, Range
from xtoolkit.registry import ENCODER_REGISTRY
from xtoolkit.weights.files import hub_weights, load_strictly

# Hugging Face's names of the output layer, and ours.
HEAD = {"cls.predictions.transform.dense.": "lm_head.dense.", "cls.predictions.transform.LayerNorm.": "lm_head.layer_norm.",
        "cls.predictions.bias": "lm_head.bias"}
UNREAD = ("bert.pooler.*", "*.position_ids", "cls.seq_relationship.*", "cls.predictions.decoder.*")


@ENCODER_REGISTRY.register
class BERT(TextTransformer):
    """BERT over Hugging Face's ``BertModel``; parameter names are those of its ``BertForMaskedLM``, but for the output layer's.

    YAML: {type: BERT, inputs: {text: $text}, width: 768, layers: 12, heads: 12, init: bert-base-uncased}

    A text is one segment. The output layer is tied to the word embeddings, and built only if a loss declares ``lm_logits``.

    Args:
        width: channels.
        layers: transformer layers; fewer than ``init`` has take its first ones.
        heads: attention heads; must divide ``width``.
        vocab_size: rows of the word embeddings; a tokenizer may have fewer words, not more.
        max_positions: rows of the position embeddings: tokens of the longest text.
        ffn_ratio: hidden width of the feed-forward layers over ``width``.
        dropout: after embeddings, attention and feed-forward layers, and on attention weights.
        layer_norm_eps: of every LayerNorm.
        pad_id: the tokenizer's padding id.
        init_std: of embeddings and layers (the output layer keeps 0.02).
        init: weights: a file or folder (safetensors, or torch), or a name on the Hugging Face hub. None: random.

    Source: BERT (1810.04805); layers 0 to 11 of X2-VLM's released ``xbert.py`` compute the same.
    """

    MODEL = "bert"

    def __init__(self, width: Count = 768, layers: Count = 12, heads: Count = 12, vocab_size: Count = 30522,
                 max_positions: Count = 512, ffn_ratio: Positive = 4, dropout: Dropout = 0.1, layer_norm_eps: Positive = 1e-12,
                 pad_id: Annotated[int, Range(0)] = 0, init_std: NotNegative = 0.02, init: str | None = None):
        super().__init__()
        from transformers import BertConfig, BertModel

        if width % heads:
            raise ValueError(f"BERT: width {width} is not a multiple of heads {heads}")
        config = BertConfig(
            vocab_size=vocab_size, hidden_size=width, num_hidden_layers=layers, num_attention_heads=heads,
            intermediate_size=int(width * ffn_ratio), max_position_embeddings=max_positions, hidden_dropout_prob=dropout,
            attention_probs_dropout_prob=dropout, layer_norm_eps=layer_norm_eps, pad_token_id=pad_id,
            initializer_range=init_std, attn_implementation="sdpa")
        self.width, self.vocab_size, self.pad_id, self.init = width, vocab_size, pad_id, init
        self.max_tokens = max_positions
        self.bert = BertModel(config, add_pooling_layer=False)
        self.lm_head = None

    def places(self, text: TextField) -> Tensor:
        """Rows are counted from 0."""
        return text.positions.masked_fill(~text.mask, 0)

    def load_init(self) -> None:
        """Loads the weights that ``init`` names, if it does: their first layers, and the output layer where a loss reads it.

        Raises:
            WeightsError: every name that does not fit; or where to put weights that cannot be downloaded.
        """
        if self.init is None:
            return
        state = {}
        for name, tensor in hub_weights(self.init).items():
            name = name if name.startswith(("bert.", "cls.")) else f"bert.{name}"
            state[next((ours + name[len(theirs):] for theirs, ours in HEAD.items() if name.startswith(theirs)), name)] = tensor
        layers = len(self.bert.encoder.layer)
        above = tuple(f"bert.encoder.layer.{number}.*" for number in range(layers, layers + 100))
        unread = UNREAD if self.lm_head is not None else (*UNREAD, "lm_head.*")
        load_strictly(self, state, f"init {self.init}", ignore=(*unread, *above))
