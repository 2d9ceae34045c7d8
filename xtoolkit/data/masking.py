"""Which tokens of a text and which patches of a picture are masked. Plain Python: it runs in the loader's workers."""

import math
import random
from dataclasses import dataclass
from typing import Annotated, ClassVar

import numpy as np

from xtoolkit.registry import Count, Range, Share


@dataclass(frozen=True)
class TextMask:
    """The `mask` block of a stream.

    Attributes:
        prob: share of the tokens to predict, specials not counted.
        max: most tokens to predict in one text.
        ngram: longest run of tokens (or words) that is masked as one.
        ngram_prob: how often a run is masked rather than one token (or word).
        whole_word: the tokens of a word are masked together.
    """

    EXAMPLE: ClassVar[str] = "{prob: 0.15, max: 20}"

    prob: Annotated[float, Range(0, 1, open_low=True)]
    max: Count
    ngram: Count = 3
    ngram_prob: Share = 0.2
    whole_word: bool = False

    def most(self, length: int) -> int:
        """Tokens to predict of a text with ``length`` that may be; the plan counts with them."""
        return max(1, min(self.max, round(length * self.prob)))

    def problems(self) -> list[tuple[str, str]]:
        return [] if self.ngram >= 2 or self.ngram_prob == 0 else [("ngram", "must be at least 2, or ngram_prob 0")]


@dataclass(frozen=True)
class ImageMask:
    """The `image_mask` block of a stream.

    Attributes:
        patches: masked patches of a picture, exactly.
        min_block: patches of the smallest block that is drawn.
    """

    EXAMPLE: ClassVar[str] = "{patches: 75, min_block: 16}"

    patches: Count
    min_block: Count = 16

    def most(self, length: int) -> int:
        """Masked patches of a picture with ``length``; the plan counts with them."""
        return min(self.patches, length)


def mask_text(ids, starts, plain, mask_id: int, how: TextMask, rng: random.Random):
    """Chooses tokens to predict and what the model sees in their place: 80 % mask, 10 % another token, 10 % themselves.

    Source: BERT 3.1 for the shares; X-FM's release for n-grams. Unlike the release the specials are neither counted,
    masked nor drawn as replacements, and whole words are whole under every tokenizer.

    Args:
        ids: (L,) int64, one text with its specials.
        starts: (L,) int8: 1 where a word starts, 0 inside a word, -1 at a special.
        plain: (V',) int64, the ids that are no specials.

    Returns:
        masked ids (L,) int64; positions (m,) int64, ascending; labels (m,) int64.
    """
    places = [place for place, start in enumerate(starts.tolist()) if start >= 0]
    heads = [i for i, place in enumerate(places) if i == 0 or starts[place] or not how.whole_word]
    units = [places[head:following] for head, following in zip(heads, [*heads[1:], None])]
    order, chosen, wanted, masked = list(range(len(units))), set(), how.most(len(places)), ids.copy()
    rng.shuffle(order)
    for first in order:
        if len(chosen) >= wanted:
            break
        run = rng.randint(2, how.ngram) if rng.random() < how.ngram_prob else 1
        for unit in units[first:first + run]:
            if chosen and len(chosen) + len(unit) > wanted:  # of whole words at most ``wanted`` tokens, but one word at least
                break
            chosen.update(unit[:how.max])
    for position in chosen:
        draw = rng.random()
        if draw < 0.8:
            masked[position] = mask_id
        elif draw < 0.9:
            masked[position] = plain[rng.randrange(len(plain))]
    positions = np.array(sorted(chosen), np.int64)
    return masked, positions, ids[positions]


LOG_ASPECT = -math.log(0.3)
TRIES = 10  # draws of a block before what is left is filled patch by patch


def mask_patches(side: int, how: ImageMask, rng: random.Random) -> np.ndarray:
    """Blocks of patches until ``how.patches`` are masked; what no block fits is filled one by one.

    Source: BEiT, algorithm 1, as X-FM's release runs it: a block's area is uniform in [min_block, patches left], its
    aspect exp(uniform(log 0.3, log 1/0.3)); ten tries a block; a block as high or wide as the picture is passed over.

    Args:
        side: patches a side of the picture.

    Returns:
        (side * side,) bool, True = masked, row-major.
    """
    mask, left, tries, uniform = np.zeros((side, side), bool), how.patches, TRIES, rng.random
    while left > 0 and tries > 0:
        tries -= 1
        area = how.min_block + (left - how.min_block) * uniform()
        aspect = math.exp(LOG_ASPECT * (2 * uniform() - 1))
        height, width = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < height < side and 0 < width < side:
            top, start = int(uniform() * (side - height + 1)), int(uniform() * (side - width + 1))
            block = mask[top:top + height, start:start + width]
            added = block.size - int(np.count_nonzero(block))
            if 0 < added <= left:
                block[:], left, tries = True, left - added, TRIES
    if left > 0:
        mask.flat[rng.sample(np.flatnonzero(~mask).tolist(), left)] = True
    return mask.ravel()
