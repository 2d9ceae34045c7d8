"""BLEU, ROUGE-L and CIDEr-D of captions, and the words that they count.

Shape letters: N pictures, each with one caption and several references.
"""

import math
import re
from collections import Counter

SMALL, TINY = 1e-9, 1e-15  # of coco-caption's BLEU: nothing over nothing is nothing
BETA, SIGMA = 1.2, 6.0
REMOVED = frozenset("'' ' `` ` . ? ! , : - -- ... ;".split())
_BRACKETS = {"(": "-lrb-", ")": "-rrb-", "[": "-lsb-", "]": "-rsb-", "{": "-lcb-", "}": "-rcb-"}
_SPELT = str.maketrans({"\u2018": "`", "\u2019": "'", "\u201c": '"', "\u201d": '"', "\u2013": "--", "\u2014": "--",
                        "\u2026": "..."})
_TOKEN = re.compile(r"""
    https?://\S+ | [\w.+-]+@[\w-]+(?:\.\w+)+                       # addresses
  | (?<![^\W_]) (?:[a-z]\.){2,}                                    # u.s., e.g.
  | \b(?:mr|mrs|ms|dr|st|ave|vs|etc|co|corp|inc|ltd|jr|sr|prof|gen|capt|sgt|lt|mt|ft)\. (?!\w) | \bno\.(?=\ \d)
  | [#@][^\W\d_]\w*                                                # #word
  | '\d0s\b | '(?:s|re|ve|ll|d|m)\b | n't\b
  | \.\d+ | \d+(?:[.,:/]\d+)+
  | [^\W_]+ (?: (?:[-&_/.]|(?<=[^\W\d])'(?=[^\W\d])) [^\W_]+ )*    # words, and what joins their parts
  | \.{2,} | -{2,} | [!?]+ | \S""", re.X)
_CLITIC = re.compile(r"(.+?)(n't|'s|'re|'ve|'ll|'d|'m)")
_TWO = {"cannot": "can not", "gonna": "gon na", "wanna": "wan na", "gotta": "got ta", "gimme": "gim me", "lemme": "lem me",
        "y'all": "y' all"}


def words(caption: str) -> list[str]:
    """The words of a caption, as coco-caption counts them: the Penn Treebank's, lower case, without punctuation.

    `A man's dog (black) isn't here.` is `a man 's dog -lrb- black -rrb- is n't here`. What is removed are the tokens ``REMOVED``;
    as there, a bracket becomes a word, and `!!` stays.

    coco-caption runs Stanford's tokenizer 3.4.1, a Java program. These are its rules as far as captions need them: of the sample
    pack's 10,250 captions none comes out different. What captions hardly hold may: emoticons, currencies other than the
    dollar, `C++`, 'tis, rare abbreviations.
    """
    found = []
    for token in _TOKEN.findall(caption.translate(_SPELT).lower()):
        clitic = _CLITIC.fullmatch(token)
        found += clitic.groups() if clitic else _TWO.get(token, _BRACKETS.get(token, token)).split()
    return [token for token in found if token not in REMOVED and token != '"' and not re.fullmatch(r"\.{2,}|-{2,}", token)]


def bleu(captions: list[list[str]], references: list[list[list[str]]], most: int = 4) -> list[float]:
    """BLEU-1 to BLEU-``most`` of the whole set, in [0, 1].

        BLEU-n = exp(min(0, 1 - r / c))  (prod_k matched_k / made_k)^(1/n),   k = 1 .. n

    Matched k-grams count at most as often as in the reference that has them most often; c is the captions' length, r that of
    the references whose lengths are closest, the shorter of two.

    Args:
        captions: N, the words of each.
        references: N times one or more.

    Source: Papineni and others 2002; coco-caption's implementation, from which the two small constants come.
    """
    return bleu_of([sum(one) for one in zip(*bleu_counts(captions, references, most))])


def bleu_counts(captions, references, most: int = 4) -> list[list[int]]:
    """Of each picture what BLEU sums up: matched and made k-grams, k = 1 .. ``most``, the caption's and the closest length."""
    _check(captions, references)
    found = []
    for caption, several in zip(captions, references):
        matched, made = [0] * most, [0] * most
        for k in range(most):
            allowed = Counter()
            for one in several:
                allowed |= Counter(_grams(one, k + 1))
            mine = Counter(_grams(caption, k + 1))
            matched[k], made[k] = (mine & allowed).total(), mine.total()
        found.append([*matched, *made, len(caption), min((abs(len(one) - len(caption)), len(one)) for one in several)[1]])
    return found


def bleu_of(sums) -> list[float]:
    """``bleu`` from the sums of ``bleu_counts`` over all pictures."""
    *counts, length, wanted = sums
    most = len(counts) // 2
    matched, made = counts[:most], counts[most:]
    ratio = (length + TINY) / (wanted + SMALL)
    brevity, product, found = math.exp(min(0, 1 - 1 / ratio)), 1.0, []
    for k in range(most):
        product *= (matched[k] + TINY) / (made[k] + SMALL)
        found.append(brevity * product ** (1 / (k + 1)))
    return found


def rouge_l(captions: list[list[str]], references: list[list[list[str]]]) -> list[float]:
    """ROUGE-L of each picture, in [0, 1]: the F measure, recall weighing 1.2 times, of the longest common subsequence.

    Precision and recall are each the best over the references.

    Source: Lin 2004; coco-caption's implementation, which takes the two bests apart, and a text without words for one empty word.
    """
    _check(captions, references)
    found = []
    for caption, several in zip(captions, references):
        caption, several = caption or [""], [one or [""] for one in several]
        common = [_common(caption, one) for one in several]
        precision, recall = max(common) / len(caption), max(n / len(one) for n, one in zip(common, several))
        found.append((1 + BETA**2) * precision * recall / (recall + BETA**2 * precision) if precision and recall else 0.0)
    return found


def cider_d(captions: list[list[str]], references: list[list[list[str]]], most: int = 4) -> list[float]:
    """CIDEr-D of each picture, in [0, 10]; papers print the mean over pictures, times 100.

        CIDEr-D = 10 mean_n mean_r  exp(-(l_c - l_r)^2 / 2 sigma^2)  (min(g_n(c), g_n(r)) . g_n(r)) / (|g_n(c)| |g_n(r)|)

    g_n holds the counts of n-grams, each times log(N / pictures whose references have it), at least one; n = 1 .. ``most``,
    sigma 6. Document frequencies are those of these references, so a score says something beside others of the same set alone;
    of one picture it is 0.

    Source: Vedantam and others 2015 (1411.5726), section 7; coco-caption's implementation (``df: corpus``).
    """
    _check(captions, references)
    pictures = [[[Counter(_grams(one, n + 1)) for n in range(most)] for one in several] for several in references]
    seen = Counter(gram for several in pictures for gram in {g for one in several for grams in one for g in grams})
    total = math.log(max(1, len(captions)))
    weigh = lambda grams: {gram: count * (total - math.log(max(1, seen[gram]))) for gram, count in grams.items()}
    norm = lambda vector: math.sqrt(sum(v * v for v in vector.values()))
    found = []
    for caption, several, texts in zip(captions, pictures, references):
        mine, score = [weigh(Counter(_grams(caption, n + 1))) for n in range(most)], 0.0
        for one, text in zip(several, texts):
            length = math.exp(-((len(caption) - len(text)) ** 2) / (2 * SIGMA**2))
            for a, grams in zip(mine, one):
                b = weigh(grams)
                if size := norm(a) * norm(b):
                    score += length * sum(min(value, b[gram]) * b[gram] for gram, value in a.items() if gram in b) / size
        found.append(10 * score / most / len(several))
    return found


def _check(captions, references) -> None:
    """Raises ValueError where there is no caption, a picture has no reference, or a text is not cut into words."""
    if len(captions) != len(references) or not captions:
        raise ValueError(f"{len(captions)} captions and references of {len(references)} pictures: must be as many, at least one")
    if lacking := [n for n, several in enumerate(references) if not several]:
        raise ValueError(f"picture {lacking[0]} has no reference: leave pictures without one out")
    if isinstance(captions[0], str):
        raise ValueError("captions must be lists of words: split them by words(caption)")


def _grams(text: list[str], n: int):
    return zip(*(text[start:] for start in range(n)))


def _common(a: list[str], b: list[str]) -> int:
    """The length of the longest common subsequence."""
    row = [0] * (len(b) + 1)
    for word in a:
        above = row[:]
        for j, other in enumerate(b):
            row[j + 1] = above[j] + 1 if word == other else max(above[j + 1], row[j])
    return row[-1]
