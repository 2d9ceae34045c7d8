"""Which tokens of a text and which patches of a picture are masked. Plain Python: it runs in the loader's workers."""

import functools
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
    chosen = _units(units, how.most(len(places)), how, rng)
    masked = ids.copy()
    for position in chosen:
        draw = rng.random()
        if draw < 0.8:
            masked[position] = mask_id
        elif draw < 0.9:
            masked[position] = plain[rng.randrange(len(plain))]
    positions = np.array(sorted(chosen), np.int64)
    return masked, positions, ids[positions]


def _units(units: list, wanted: int, how: TextMask, rng: random.Random) -> set:
    """Positions to predict: exactly ``wanted`` of single tokens; of whole words at most that, but one word at least."""
    order, taken = list(range(len(units))), set()
    rng.shuffle(order)
    for first in order:
        if len(taken) >= wanted:
            break
        run = rng.randint(2, how.ngram) if rng.random() < how.ngram_prob else 1
        for unit in units[first:first + run]:
            if taken and len(taken) + len(unit) > wanted:
                break
            taken.update(unit[:how.max])
    return taken


LOG_ASPECT = -math.log(0.3)
TRIES = 10  # draws of a block before what is left is filled patch by patch


@functools.lru_cache(maxsize=8)
def _columns(side: int) -> list[int]:
    """For each height the bits of a column of that many patches."""
    return [sum(1 << (side * row) for row in range(height)) for height in range(side)]


def mask_patches(side: int, how: ImageMask, rng: random.Random) -> np.ndarray:
    """Blocks of patches until ``how.patches`` are masked; what no block fits is filled one by one.

    Source: BEiT, algorithm 1, as X-FM's release runs it: a block's area is uniform in [min_block, patches left], its
    aspect exp(uniform(log 0.3, log 1/0.3)); ten tries a block; a block as high or wide as the picture is passed over.

    Args:
        side: patches a side of the picture.

    Returns:
        (side * side,) bool, True = masked, row-major.
    """
    # The mask is an integer of side * side bits: a block is one shift, its new patches one count of bits.
    everything, columns, uniform = side * side, _columns(side), rng.random
    mask, left, tries = 0, how.patches, TRIES
    while left > 0 and tries > 0:
        tries -= 1
        area = how.min_block + (left - how.min_block) * uniform()
        aspect = math.exp(LOG_ASPECT * (2 * uniform() - 1))
        height, width = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < height < side and 0 < width < side:
            top, start = int(uniform() * (side - height + 1)), int(uniform() * (side - width + 1))
            grown = mask | columns[height] * ((1 << width) - 1) << (top * side + start)
            added = grown.bit_count() - mask.bit_count()
            if 0 < added <= left:
                mask, left, tries = grown, left - added, TRIES
    if left > 0:
        for patch in rng.sample([p for p in range(everything) if not mask >> p & 1], left):
            mask |= 1 << patch
    packed = np.frombuffer(mask.to_bytes((everything + 7) // 8, "little"), np.uint8)
    return np.unpackbits(packed, count=everything, bitorder="little").astype(bool)
