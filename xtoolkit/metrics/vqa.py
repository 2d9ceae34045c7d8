"""The accuracy of answers to questions about pictures, as VQA v2's own evaluation counts it.

Shape letters: A annotators of a question, ten in VQA v2.
"""

import re
from collections import Counter
from functools import lru_cache

_PUNCTUATION = ";/[]\"{}()=+\\_-><@`,?!"
_NUMBERS = {w: str(n) for n, w in enumerate("zero one two three four five six seven eight nine ten".split())} | {"none": "0"}
_ARTICLES = {"a", "an", "the"}
_FORMS = """
ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't haven't he'd he'd've he's how'd
how'll how's isn't it'd it'd've it'll ma'am mightn't mightn't've might've mustn't must've needn't not've o'clock oughtn't
'ow's'at shan't she'd've should've shouldn't shouldn't've somebody'd've somebody'll somebody's someone'd someone'd've
someone'll someone's something'd something'd've something'll that's there'd there'd've there're there's they'd they'd've
they'll they're they've 'twas wasn't we'd've we've weren't what'll what're what's what've when's where'd where's where've
who'd who'd've who'll who's who've why'll why're why's won't would've wouldn't wouldn't've y'all y'all'll y'all'd've you'd
you'd've you'll you're you've"""
# A form that lacks one of its apostrophes; the published table has one entry the other way round.
_CONTRACTIONS = {form[:at] + form[at + 1:]: form for form in _FORMS.split() for at, letter in enumerate(form) if letter == "'"}
_CONTRACTIONS["somebody'd"] = "somebodyd"
_COMMA_IN_NUMBER, _PERIOD = re.compile(r"\d,\d"), re.compile(r"\.(?!\d)")
_PERIODS = 32  # that are taken out of an answer


@lru_cache(maxsize=65536)
def normalise(answer: str) -> str:
    """An answer as it is compared where annotators differ: punctuation, case, number words, articles, contractions.

    A mark of punctuation with a space on either side, or in an answer that has a comma between two digits, is taken out; else a
    space takes its place. A period that no digit follows is taken out. Then word by word in lower case: none and zero to ten
    become digits, articles go, and a contraction without one of its apostrophes gets it.

    Source: Goyal et al. 2017 (VQA v2), https://visualqa.org/evaluation.html, and the released evaluation, whose quirks are
    kept: a period after a digit goes, too (its pattern means to keep it); only 32 periods of an answer go; ``somebody'd`` loses
    its apostrophe; the forms with a capital I are never met.
    """
    spaced = {mark for mark in _PUNCTUATION if f"{mark} " in answer or f" {mark}" in answer}
    gone = set(_PUNCTUATION) if _COMMA_IN_NUMBER.search(answer) else spaced
    answer = "".join(letter if letter not in _PUNCTUATION else "" if letter in gone else " " for letter in answer)
    words = (_NUMBERS.get(word, word) for word in _PERIOD.sub("", answer, count=_PERIODS).lower().split())
    return " ".join(_CONTRACTIONS.get(word, word) for word in words if word not in _ARTICLES)


def accuracies(annotations: list[str], always: bool = False) -> tuple[dict[str, float], bool]:
    """What each answer that an annotator gave is worth, in [0, 1]; any other is worth 0.

        accuracy(a) = 1/A  sum over annotators i of  min(1, |{j other than i: answer of j is a}| / 3)

    Args:
        annotations: the answers of A annotators as they gave them. Of fewer than four, min(1, ...) could not reach 1: then all
            others must agree; a single one is matched.
        always: normalise also where all annotators agree.

    Returns:
        {answer, normalised or not: accuracy}; and whether they, and so what is compared with them, are normalised: only where
        annotators differ.

    Raises:
        ValueError: no annotator.
    """
    if not annotations:
        raise ValueError("a question without annotations has no accuracy")
    said = [_plain(answer) for answer in annotations]
    normalised = always or len(set(said)) > 1
    counts, people = Counter(map(normalise, said) if normalised else said), len(said)
    enough = min(3, people - 1) or 1
    others = lambda count: count * min(1, (count - (people > 1)) / enough) + (people - count) * min(1, count / enough)
    return {answer: others(count) / people for answer, count in counts.items()}, normalised


def accuracy(answer: str, annotations: list[str], always: bool = False) -> float:
    """How right an answer is, in [0, 1]: see ``accuracies``."""
    worth, normalised = accuracies(annotations, always)
    answer = _plain(answer)
    return worth.get(normalise(answer) if normalised else answer, 0.0)


def _plain(answer: str) -> str:
    return answer.replace("\n", " ").replace("\t", " ").strip()
