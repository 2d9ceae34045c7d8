"""IMLM: masked language modelling with the picture in view."""

from torch import Tensor

from xtoolkit.batch import TextField
from xtoolkit.features import Encoded, Features
from xtoolkit.graph import Need
from xtoolkit.losses.heads import WordLoss
from xtoolkit.losses.masked_tokens import masked_count, token_losses, unigram_cost
from xtoolkit.registry import LOSS_REGISTRY, Positive


@LOSS_REGISTRY.register
class IMLM(WordLoss):
    """Image-conditioned masked language modelling.

        loss = 1 / M  sum_m  -log p(w_m | text with the M tokens masked, picture)

    The head is this loss's own: dense, GELU, LayerNorm, and an output matrix that is not tied to the text
    encoder's embeddings, so with ``text -> fusion`` cut nothing of the text encoder moves. It is applied to the masked
    tokens only, and a large step's logits (M, vocabulary) never exist as a whole (``kernels.linear_cross_entropy``); no
    masked token: exactly 0. Drawn as N(0, 0.02), biases 0.

    YAML: {type: IMLM, feature: fusion@mask_text}

    Args:
        feature: the fusion encoder under ``@mask_text``: one token a text token.
            A text encoder alone serves too: masked language modelling with a head of its own.
        eps: of the head's LayerNorm.

    Source: X-FM, equation 4. In the release the matrix is called the word embeddings of the fusion encoder, which
    nothing else reads. The paper's count of 327M parameters leaves it out.
    """

    VIEWS = {"feature": "mask_text"}

    def __init__(self, feature: str, eps: Positive = 1e-5, *, widths: dict, vocab_size_of: int):
        super().__init__(widths[feature], vocab_size_of, eps)
        from xtoolkit.kernels.linear_cross_entropy import linear_cross_entropy

        self.feature, self.cross_entropy = feature, linear_cross_entropy

    @classmethod
    def needs(cls, block: dict) -> list[Need]:
        return [Need(block["feature"])]

    def forward(self, f, batch):
        hidden = self.hidden(f[self.feature], batch.text)
        loss = self.cross_entropy(hidden, self.decoder.weight, self.decoder.bias, batch.text.labels)
        return f.mean(loss, masked_count)

    def guess(self, f, batch):
        """The words as frequent as they were so far."""
        return unigram_cost(f, batch.text, self.decoder.out_features)

    def word_losses(self, f: Features, encoded: Encoded, text: TextField) -> tuple[Tensor, Tensor]:
        """What each masked word of a text costs, and whether it is the likeliest: see ``token_losses``.

        Args:
            encoded: what the fusion encoder says of ``text`` under the mark of ``feature``, with whatever picture.
        """
        return token_losses(self.hidden(encoded, text), text.labels, self.decoder)
