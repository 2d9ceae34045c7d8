"""Plain text: dictionary definitions and examples from WordNet, sentences of Moby-Dick."""

import re

from .seeded import rng
from .sources import Sources
from .wordnet import WordNet

DICTIONARY, NOVEL, VAL = 14_000, 6_000, 1_000
_ADULT = re.compile(
    r"\b(sex\w*|penis\w*|vagina\w*|vulva\w*|genital\w*|rape\w?|raping|rapist\w*|whor\w*|prostitut\w*|copulat\w*|"
    r"semen|incest\w*|"
    r"nazi\w*|nigg\w*|negro\w*|slut\w*|fagg\w*|coitus|intercourse|erotic\w*|orgasm\w*|masturbat\w*|"
    r"pornograph\w*|molest\w*|"
    r"p(a)?edophil\w*|pederast\w*|sodom\w*|fornicat\w*|brothel\w*|harlot\w*|bestiality|clitor\w*|testic\w*|"
    r"scrotum|kike\w*|"
    r"spic|chink|wop|dago|squaw|redskin\w*|cunt\w*|fuck\w*|shit\w*|bodies by|hitler\w*|suicid\w*|bosoms?|breasts?|"
    r"nude|buttocks|"
    r"homosexual\w*|lesbian\w*|jew|jews|darky|darkies|half-breed|lewd\w*|seduc\w*)\b",
    re.I,
)


def decent(text: str) -> bool:
    """Whether a line is fit for a sample that everyone downloads."""
    return not _ADULT.search(text)


def text_lines(sources: Sources, wordnet: WordNet) -> dict[str, list[str]]:
    """Lines for masked language modelling by split; no word's dictionary lines are in both."""
    entries = [synset for synset in wordnet.synsets if decent(synset.definition)]
    rng("text", "dictionary").shuffle(entries)
    train: list[str] = []
    val: list[str] = []
    val_words: set[str] = set()
    train_words: set[str] = set()
    share = DICTIONARY * VAL // (DICTIONARY + NOVEL)
    for synset in entries:
        lines = [f"{synset.words[0]}: {synset.definition}."] if len(synset.definition.split()) > 3 else []
        lines += [sentence(example) for example in synset.examples if len(example.split()) > 3 and decent(example)]
        words = {word.lower() for word in synset.words}
        if len(val) < share and not words & train_words:
            val += lines
            val_words |= words
        elif len(train) + len(val) < DICTIONARY and not words & val_words:
            train += lines
            train_words |= words
    novel = novel_sentences(sources)
    rng("text", "novel").shuffle(novel)
    novel = novel[:NOVEL]
    train += novel[VAL - share :]
    val += novel[: VAL - share]
    rng("text", "order").shuffle(train)
    return {"train": train, "val": val}


def sentence(text: str) -> str:
    """A capital first and a stop last."""
    text = text[0].upper() + text[1:]
    return text if text[-1] in ".!?" else text + "."


def novel_sentences(sources: Sources) -> list[str]:
    """Moby-Dick's sentences of 6 to 40 words, each once, in order."""
    chapters = [name for name in sources.members("stdlib") if re.fullmatch(r"moby-dick/data/chapter_\d+\.txt", name)]
    chapters.sort(key=lambda name: int(re.search(r"\d+", name.rpartition("/")[2]).group()))
    found: dict[str, None] = {}
    for name in chapters:
        text = sources.read("stdlib", name).decode("utf-8")
        text = re.sub(r"[ \t]*\n[ \t]*(?!\n)", " ", re.sub(r"\n\s*\n", "\u2029", text))
        for paragraph in text.split("\u2029")[1:]:
            for part in re.split(r"(?<=[.!?])[\"']?\s+(?=[\"'A-Z])", paragraph.strip()):
                part = re.sub(r"\s+", " ", part).strip().strip('"').strip()
                if 6 <= len(part.split()) <= 40 and decent(part):
                    found.setdefault(part)
    return list(found)
