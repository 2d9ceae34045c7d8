"""What MLM and IMLM share: the states of the masked tokens, how many there are, what each costs, and what guessing costs."""

import torch
from torch import Tensor, nn
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


def token_losses(hidden: Tensor, labels: Tensor, logits, chunk: int = 1024) -> tuple[Tensor, Tensor]:
    """-log p of each masked word, (M,) float32, and whether it is the likeliest word, (M,) bool.

    Args:
        hidden: (M, D), what the output layer reads.
        labels: (M,) int64.
        logits: the output layer, (m, D) -> (m, vocabulary).
        chunk: tokens whose logits exist at a time.
    """
    losses, right = [], []
    for states, words in zip(hidden.split(chunk), labels.split(chunk)):
        scores = logits(states).float()
        losses.append(nn.functional.cross_entropy(scores, words, reduction="none"))
        right.append(scores.argmax(1) == words)
    return torch.cat(losses), torch.cat(right)
