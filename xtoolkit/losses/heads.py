"""The heads that several losses have: ITM and BBP the two layers on a summary token, IMLM and Captioning those on words."""

from torch import Tensor, nn

from xtoolkit.batch import TextField
from xtoolkit.features import Encoded
from xtoolkit.losses.base import Loss
from xtoolkit.losses.masked_tokens import masked_hidden


def summary_head(width: int, outputs: int) -> nn.Sequential:
    """Linear(D, 2D), LayerNorm, GELU, Linear(2D, outputs).

    Its parameters are ``0``, ``1`` and ``3``, the names of the released ``itm_head`` and ``bbox_head``. Initialised
    as torch does.
    """
    return nn.Sequential(nn.Linear(width, 2 * width), nn.LayerNorm(2 * width), nn.GELU(), nn.Linear(2 * width, outputs))


class WordLoss(Loss):
    """A loss over words with an output layer of its own: dense, GELU, LayerNorm (1e-5), and a matrix that nothing is tied to.

    Drawn as N(0, 0.02), biases 0. Losses with one name and this head in two recipes have the same parameters.
    """

    def __init__(self, width: int, vocab_size: int):
        super().__init__()
        self.dense = nn.Linear(width, width)
        self.layer_norm = nn.LayerNorm(width, eps=1e-5)
        self.decoder = nn.Linear(width, vocab_size)
        for layer in (self.dense, self.decoder):
            nn.init.normal_(layer.weight, std=0.02)
            nn.init.zeros_(layer.bias)

    def hidden(self, encoded: Encoded, text: TextField) -> Tensor:
        """(M, D), what the output matrix reads at the ``masked_pos`` of a text."""
        return self.layer_norm(nn.functional.gelu(self.dense(masked_hidden(encoded, text))))
