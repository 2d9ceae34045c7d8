"""Reads WordNet 3.0's database files: synsets, glosses, examples, irregular plurals."""

import re
from dataclasses import dataclass

from .sources import Sources

_ROOT = "usr/share/wordnet/"
_PARTS = ("noun", "verb", "adj", "adv")


@dataclass(frozen=True)
class Synset:
    """One sense: its part of speech, lexicographer file, words, direct hypernyms (offsets), definition and examples."""

    pos: str
    offset: str
    lexname: int
    words: tuple[str, ...]
    hypernyms: tuple[str, ...]
    definition: str
    examples: tuple[str, ...]


class WordNet:
    """All synsets in file order, the set of all words, and irregular noun plurals (singular -> plural)."""

    def __init__(self, sources: Sources):
        self.synsets: list[Synset] = []
        self.words: set[str] = set()
        self.plurals: dict[str, str] = {}
        for pos in _PARTS:
            for line in sources.read("wordnet", f"{_ROOT}data.{pos}").decode("latin-1").splitlines():
                if not line.startswith("  "):
                    self.synsets.append(_parse(pos, line))
                    self.words.update(word.lower() for word in self.synsets[-1].words)
            for line in sources.read("wordnet", f"{_ROOT}{pos}.exc").decode("latin-1").splitlines():
                inflected, *bases = line.split()
                self.words.add(inflected)
                if pos == "noun":
                    self.plurals[bases[0]] = inflected

    def knows(self, word: str) -> bool:
        """Whether the word, or a regular inflection's base, is an entry."""
        word = word.lower()
        bases = [
            word,
            word.removesuffix("s"),
            word.removesuffix("es"),
            word.removesuffix("ed"),
            word.removesuffix("ing"),
            word.removesuffix("d"),
        ]
        return any(base in self.words for base in bases)


def _parse(pos: str, line: str) -> Synset:
    data, _, gloss = line.partition(" | ")
    fields = data.split()
    count = int(fields[3], 16)
    words = tuple(re.sub(r"\((a|p|ip)\)$", "", fields[4 + 2 * i]).replace("_", " ") for i in range(count))
    pointers = fields[5 + 2 * count :]
    hypernyms = tuple(pointers[4 * i + 1] for i in range(int(fields[4 + 2 * count])) if pointers[4 * i] in ("@", "@i"))
    definition, *examples = re.split(r';\s*(?=")', gloss.strip())
    examples = tuple(
        part.strip().strip('"').strip() for part in examples if part.count('"') == 2 and part.endswith('"')
    )
    return Synset(pos, fields[0], int(fields[1]), words, hypernyms, definition.strip().rstrip(";"), examples)
