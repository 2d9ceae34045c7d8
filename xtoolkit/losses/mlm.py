"""MLM: masked language modelling through an output layer that an encoder owns."""

from torch import Tensor

from xtoolkit.batch import TextField
from xtoolkit.features import Encoded, Features
from xtoolkit.graph import Need, Ref
from xtoolkit.losses.base import Loss
from xtoolkit.losses.masked_tokens import masked_count, masked_hidden, token_losses, unigram_cost
from xtoolkit.registry import LOSS_REGISTRY


@LOSS_REGISTRY.register
class MLM(Loss):
    """Masked language modelling.

        loss = 1 / M  sum_m  -log p(w_m | text with the M tokens masked)

    The output layer that the text encoder owns (``lm_logits``: dense, GELU, LayerNorm, and a matrix tied to its word
    embeddings) is applied to the M masked tokens only. If it offers ``cross_entropy``, as RoBERTa does, a large step's
    logits (M, vocabulary) never exist as a whole. No masked token: exactly 0.

    With ``words`` it reads another encoder than the one that owns the layer: a fusion encoder, say, whose words are told by the
    text encoder's embeddings, as in X2-VLM, ALBEF and BLIP. Both must be as wide.

    YAML: {type: MLM, feature: text@mask_text}

    Args:
        feature: the encoder under ``@mask_text``: a token a text token.
        words: the encoder that owns ``lm_logits``, below ``feature``; null: ``feature`` itself.

    Source: X-FM, equation 1; X2-VLM (2211.12402), equation 3. The release averages over the same tokens, but also computes the
    logits of padded slots.
    """

    VIEWS = {"feature": "mask_text"}

    def __init__(self, feature: str, words: str | None = None, *, widths: dict, vocab_size_of: int | None):
        super().__init__()
        from xtoolkit.kernels.linear_cross_entropy import cross_entropy

        self.feature, self.vocab_size, self.cross_entropy = feature, vocab_size_of, cross_entropy
        self.words = Ref.parse(feature).name if words is None else words
        own, wanted = widths[feature], widths[feature if words is None else _words_of(feature, words)]
        if own != wanted:
            raise ValueError(f"MLM: `{feature}` is {own} channels wide, and the output layer of `{words}` reads {wanted}: give "
                             "both one width, or use IMLM, which has a layer of its own")

    @classmethod
    def needs(cls, block: dict) -> list[Need]:
        if block.get("words") is None:
            return [Need(block["feature"], head="lm_logits")]
        return [Need(block["feature"]), Need(_words_of(block["feature"], block["words"]), head="lm_logits")]

    def forward(self, f, batch):
        head = self._head(f)
        hidden = masked_hidden(f[self.feature], batch.text)
        if hasattr(head, "cross_entropy"):
            loss = head.cross_entropy(hidden, batch.text.labels)
        else:
            loss = self.cross_entropy(head(hidden), batch.text.labels)
        return f.mean(loss, masked_count)

    def guess(self, f, batch):
        """The words as frequent as they were so far; None where no encoder says how many words there are."""
        return None if self.vocab_size is None else unigram_cost(f, batch.text, self.vocab_size)

    def word_losses(self, f: Features, encoded: Encoded, text: TextField) -> tuple[Tensor, Tensor]:
        """As ``IMLM.word_losses``: an encoder that reads pictures, too, may be asked with whatever picture."""
        return token_losses(masked_hidden(encoded, text), text.labels, self._head(f))

    def _head(self, f: Features):
        return f.head(self.words, "lm_logits")


def _words_of(feature: str, words: str) -> str:
    """The reference to ``words`` under the marks of ``feature``: a pass that is run for it anyway."""
    marks = feature.partition("@")[2]
    return f"{words}@{marks}" if marks else words
