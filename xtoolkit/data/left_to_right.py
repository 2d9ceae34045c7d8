"""Left-to-right masked generation: which tokens of a caption are predicted, each from a mask that sees what stands before it.

Shape letters: B texts, L tokens of the longest, K masks of a text at most, M masks of all.
"""

import random
from dataclasses import dataclass, replace
from typing import Annotated, ClassVar

import numpy as np
import torch

from xtoolkit.batch import TextField
from xtoolkit.data.text import Tokenizer, text_field
from xtoolkit.registry import ConfigError, Count, Range


@dataclass(frozen=True)
class LeftToRight:
    """The `left_to_right` block of a stream.

    Attributes:
        prob: share of a caption's tokens to predict, its end counted.
        max: most tokens to predict in one caption.
        prompt: words that every caption begins with, which are never predicted; the evaluation's must be the same.
    """

    EXAMPLE: ClassVar[str] = "{prob: 0.6, max: 18, prompt: a picture of}"

    prob: Annotated[float, Range(0, 1, open_low=True)] = 0.6
    max: Count = 18
    prompt: str = "a picture of"

    def most(self, length: int) -> int:
        """Tokens to predict of a caption with ``length`` that may be."""
        return max(1, min(self.max, round(length * self.prob)))

    def example(self, rows: int, length: int) -> TextField:
        """A batch of that shape, for the plan; it takes a word of the prompt for a token."""
        masks, long = self.most(length - 1), lambda *shape: torch.zeros(*shape, dtype=torch.long)
        width = length + len(self.prompt.split()) + masks
        real = torch.ones(rows, width, width, dtype=torch.bool)
        return TextField(long(rows, width), real[:, 0], masked_pos=long(rows * masks), labels=long(rows * masks),
                         positions=long(rows, width), attention=real)


def prompt_ids(tokenizer: Tokenizer, prompt: str) -> list[int]:
    """``<s>`` and the prompt's tokens.

    Raises:
        ConfigError: in a caption they would be others.
    """
    ids = tokenizer.encode(prompt.strip())[:-1]
    if tokenizer.encode(f"{prompt.strip()} a".strip())[:len(ids)] != ids or tokenizer.special & set(ids[1:]):
        raise ConfigError(f"prompt `{prompt}`: with a caption behind it tokenizer `{tokenizer.name}` reads it differently, or it "
                          "holds a special token; give whole words")
    return ids


class Predicted:
    """Draws what is predicted of a caption.

    Args:
        how: the block.
        max_tokens: longest caption, its two specials counted, the prompt not.
    """

    def __init__(self, tokenizer: Tokenizer, how: LeftToRight, max_tokens: int):
        self._tokenizer, self._how, self._prompt = tokenizer, how, prompt_ids(tokenizer, how.prompt)
        self._most = max_tokens + len(self._prompt) - 1

    def __call__(self, text: str, rng: random.Random) -> tuple:
        """(ids (n,) int64 of prompt and caption, places (m,) int64 to predict, ascending, id of the mask)."""
        ids = self._tokenizer.encode_words(f"{self._how.prompt.strip()} {text}".strip(), self._most)[0]
        may = range(len(self._prompt), len(ids))
        return ids, np.array(sorted(rng.sample(may, self._how.most(len(may)))), np.int64), self._tokenizer.mask


def field(texts: list[tuple], pad: int) -> TextField:
    """The texts, then their masks: what an encoder reads under ``@left_to_right``.

    A mask has the position of the token that it asks for; it attends to itself and to the tokens before that one, and nothing
    attends to it. Tokens attend to themselves and those before. So one pass predicts each chosen token from exactly what
    generation will know: the true tokens before it, and a mask in its place.

    Args:
        texts: B results of ``Predicted``.

    Returns:
        B rows of L + K tokens, with ``masked_pos`` and ``labels`` (M,) of the masks.

    Source: X2-VLM 4.3 and its released captioning, which puts each mask before its token: the same but for the order. The idea
        is Zeng and Nie's (Findings of ACL 2021, 393).
    """
    ids, places, (mask, *_) = zip(*texts)
    plain, counts = text_field(list(ids), pad), torch.tensor([len(p) for p in places])
    length, width = plain.ids.shape[1], int(counts.max())
    asked = torch.from_numpy(np.stack([np.pad(p, (0, width - len(p))) for p in places]))
    real = torch.arange(width) < counts[:, None]
    positions = torch.cat([torch.arange(length).expand(len(ids), length), asked], 1)
    is_mask = torch.arange(length + width) >= length
    before = positions[:, None] <= positions[:, :, None] - is_mask[:, None].long()
    # What pads the masks reads as a text's first token does: no row of a softmax is empty.
    before[:, length:] |= ~real[:, :, None] & (positions[:, None] == 0)
    attention = before & ~is_mask | torch.eye(length + width, dtype=torch.bool)
    row, column = real.nonzero(as_tuple=True)
    return replace(plain, key=None, ids=torch.cat([plain.ids, torch.where(real, mask, pad)], 1),
                   mask=torch.cat([plain.mask, real], 1), positions=positions, attention=attention,
                   masked_pos=row * (length + width) + length + column, labels=plain.ids[row, asked[row, column]])
