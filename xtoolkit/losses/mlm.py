"""MLM: masked language modelling on text alone."""

from xtoolkit.graph import Need, Ref
from xtoolkit.losses.base import Loss
from xtoolkit.losses.masked_tokens import masked_cross_entropy, masked_hidden
from xtoolkit.registry import LOSS_REGISTRY


@LOSS_REGISTRY.register
class MLM(Loss):
    """Masked language modelling.

        loss = 1 / M  sum_m  -log p(w_m | text with the M tokens masked)

    Logits are computed for the M masked tokens only, (M, vocabulary), by the output layer that the text encoder owns
    (``lm_logits``: dense, GELU, LayerNorm, and a matrix tied to its word embeddings). No masked token: exactly 0.

    YAML: {type: MLM, feature: text@mask_text}

    Args:
        feature: the text encoder under ``@mask_text``; the encoder must own ``lm_logits``.

    Source: X-FM, equation 1. The release averages over the same tokens, but also computes the logits of padded slots.
    """

    VIEWS = {"feature": "mask_text"}

    def __init__(self, feature: str):
        super().__init__()
        self.feature = feature

    @classmethod
    def needs(cls, feature: str) -> list[Need]:
        return [Need(feature, head="lm_logits")]

    def forward(self, f, batch):
        logits = f.head(Ref.parse(self.feature).name, "lm_logits")(masked_hidden(f[self.feature], batch.text))
        return masked_cross_entropy(logits, batch.text.labels)
