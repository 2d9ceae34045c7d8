"""What MLM and IMLM share: the hidden states of the masked tokens, and how many there are."""

from torch import Tensor

from xtoolkit.batch import Batch, TextField
from xtoolkit.features import Encoded


def masked_hidden(encoded: Encoded, text: TextField) -> Tensor:
    """(M, D): the states at ``text.masked_pos``, so that nothing is computed for the other tokens.

    Args:
        encoded: B rows with one token a text token, (B, L, D), or with such a segment.
        text: with ``masked_pos``, flat positions in (B, L).

    Raises:
        ValueError: the feature does not have the text's tokens.
    """
    tokens = encoded.segment("text")
    if tokens.shape[:2] != text.ids.shape:
        raise ValueError(f"`feature` must name a text or fusion encoder, with one token for each of the text's "
                         f"{tuple(text.ids.shape)}; this one has {tuple(tokens.shape[:2])}")
    return tokens.flatten(0, 1).index_select(0, text.masked_pos)


def masked_count(batch: Batch) -> int:
    """M, the tokens that a batch asks for."""
    return batch.text.labels.numel()
