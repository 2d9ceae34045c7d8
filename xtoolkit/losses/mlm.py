"""MLM: masked language modelling on text alone."""

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

    YAML: {type: MLM, feature: text@mask_text}

    Args:
        feature: the text encoder under ``@mask_text``; the encoder must own ``lm_logits``.

    Source: X-FM, equation 1. The release averages over the same tokens, but also computes the logits of padded slots.
    """

    VIEWS = {"feature": "mask_text"}

    def __init__(self, feature: str, *, vocab_size_of: int | None):
        super().__init__()
        from xtoolkit.kernels.linear_cross_entropy import cross_entropy

        self.feature, self.vocab_size, self.cross_entropy = feature, vocab_size_of, cross_entropy

    @classmethod
    def needs(cls, block: dict) -> list[Need]:
        return [Need(block["feature"], head="lm_logits")]

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
        return f.head(Ref.parse(self.feature).name, "lm_logits")
