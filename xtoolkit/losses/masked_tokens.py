"""What MLM and IMLM share: the hidden states of the masked tokens."""

from torch import Tensor

from xtoolkit.batch import TextField
from xtoolkit.features import Encoded


def masked_hidden(encoded: Encoded, text: TextField) -> Tensor:
    """(M, D): the states at ``text.masked_pos``, so that nothing is computed for the other tokens.

    Args:
        encoded: B rows with one token a text token, (B, L, D).
        text: with ``masked_pos``, flat positions in (B, L).

    Raises:
        ValueError: the feature does not have the text's tokens.
    """
    tokens = encoded.tokens
    if tokens.shape[:2] != text.ids.shape:
        raise ValueError(f"`feature` must name a text or fusion encoder, with one token for each of the text's "
                         f"{tuple(text.ids.shape)}; this one has {tuple(tokens.shape[:2])}")
    return tokens.flatten(0, 1).index_select(0, text.masked_pos)
