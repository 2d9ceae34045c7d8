"""The heads that several losses have, on summary tokens and on words.

Shape letters: B rows, M masked tokens, D width (of all summaries that a head reads together).
"""

import torch
from torch import Tensor, nn

from xtoolkit.batch import TextField
from xtoolkit.features import Encoded, Features, full_precision
from xtoolkit.graph import Need
from xtoolkit.losses.base import Loss
from xtoolkit.losses.masked_tokens import masked_hidden
from xtoolkit.registry import ConfigError

References = str | list[str]


def summary_head(width: int, outputs: int) -> nn.Sequential:
    """Linear(D, 2D), LayerNorm, GELU, Linear(2D, outputs).

    Its parameters are ``0``, ``1`` and ``3``, the names of the released ``itm_head`` and ``bbox_head``. Initialised
    as torch does.
    """
    return nn.Sequential(nn.Linear(width, 2 * width), nn.LayerNorm(2 * width), nn.GELU(), nn.Linear(2 * width, outputs))


def deep_head(width: int, outputs: int) -> nn.Sequential:
    """Five linear layers, D, 2D, 4D, 2D, D, outputs, with LayerNorm and GELU between: the release's "linear" probe.

    48.8M parameters at D = 1536 and 1,000 outputs. Its parameters are ``0``, ``1``, ``3``, ``4``, ..., ``12``.
    """
    widths, layers = (width, 2 * width, 4 * width, 2 * width, width), []
    for before, after in zip(widths, widths[1:]):
        layers += [nn.Linear(before, after), nn.LayerNorm(after), nn.GELU()]
    return nn.Sequential(*layers, nn.Linear(width, outputs))


HEADS = {"linear": nn.Linear, "mlp": summary_head, "release5": deep_head}


class SummaryLoss(Loss):
    """A head on the summary tokens of one or several features, concatenated.

    Args:
        features: one reference or several.
        outputs: of the head.
        head: a name of ``HEADS``.
        dropout: before the head, in training.
        widths: {reference: width}.
    """

    def __init__(self, features: References, outputs: int, head: str, dropout: float, widths: dict):
        super().__init__()
        self.features, self.deep = references(features), head == "release5"
        if self.deep and len(self.features) > 1:
            raise ConfigError(f"head: release5 reads one feature, its summary and the mean of its tokens; `features` name "
                              f"{len(self.features)}")
        width = sum(widths[ref] for ref in self.features)
        self.dropout, self.head = nn.Dropout(dropout), HEADS[head](2 * width if self.deep else width, outputs)

    @classmethod
    def needs(cls, block: dict) -> list[Need]:
        return [Need(ref) for ref in references(block["features"])]

    def told(self, encoded: list) -> Tensor:
        """(B, outputs) float32 or better, of what the features' encoders gave."""
        parts = [one.pooled if isinstance(one, Encoded) else one for one in encoded]
        if self.deep:
            parts.append(encoded[0].tokens[:, 1:].mean(1))
        read = torch.cat(parts, 1)
        with full_precision(read):  # in bf16 many rows would get equal scores
            return self.head(self.dropout(read.to(torch.promote_types(read.dtype, torch.float32))))

    def outputs(self, f: Features) -> Tensor:
        """(B, outputs) of a batch as it is."""
        return self.told([f[ref] for ref in self.features])


def references(features: References) -> list[str]:
    """A list of the references; one that is named twice is read once and concatenated twice."""
    return [features] if isinstance(features, str) else list(features)


def row_count(batch) -> int:
    """B, the rows of a batch."""
    return batch.size


class WordLoss(Loss):
    """A loss over words with an output layer of its own: dense, GELU, LayerNorm, and a matrix that nothing is tied to.

    Drawn as N(0, 0.02), biases 0. Losses with one name and this head in two recipes have the same parameters.
    """

    def __init__(self, width: int, vocab_size: int, eps: float = 1e-5):
        super().__init__()
        self.dense = nn.Linear(width, width)
        self.layer_norm = nn.LayerNorm(width, eps=eps)
        self.decoder = nn.Linear(width, vocab_size)
        for layer in (self.dense, self.decoder):
            nn.init.normal_(layer.weight, std=0.02)
            nn.init.zeros_(layer.bias)

    def hidden(self, encoded: Encoded, text: TextField) -> Tensor:
        """(M, D), what the output matrix reads at the ``masked_pos`` of a text."""
        return self.layer_norm(nn.functional.gelu(self.dense(masked_hidden(encoded, text))))
