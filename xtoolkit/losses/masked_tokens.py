"""What MLM and IMLM share: the hidden states of the masked tokens, how many there are, and what guessing them costs."""

from torch import Tensor
from torch.nn.functional import pad

from xtoolkit.batch import Batch, TextField
from xtoolkit.features import Encoded, Features


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


def unigram_cost(f: Features, text: TextField, vocab_size: int) -> Tensor:
    """() float32: -log of how frequent each masked token was in the texts of earlier guesses, averaged.

    With ever more texts it tends to their unigram entropy, from above. All their tokens count, but for the specials at both
    ends, which are never asked for: a mask takes them as they come, and too few for frequencies of their own.
    """
    inner = pad(text.mask[:, 2:], (1, 1))  # neither the first nor the last of a text
    frequencies = f.frequencies(text.ids.flatten(), vocab_size, inner.flatten())
    return f.mean(-frequencies.log()[text.labels].sum() / max(1, text.labels.numel()), masked_count)
