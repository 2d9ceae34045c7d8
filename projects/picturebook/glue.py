"""GLUE-format tasks: human ratings (SST-2, STS-B) and dictionary facts (RTE, CoLA) with the official columns."""

import io
import re
import tarfile
from collections.abc import Iterator

from .corpora import decent, sentence
from .language import article
from .seeded import rng
from .sources import Sources
from .wordnet import Synset, WordNet

SIZES = {"SST-2": (2400, 400, 400), "CoLA": (2200, 300, 300), "RTE": (1800, 300, 296), "STS-B": (233, 60, 60)}
CLEAR_RATING = 1.2  # mean of twenty ratings in -4..4, below which a snippet is neither good nor bad
_RUDE = re.compile(r"\b(fuck\w*|shit\w*|bitch\w*|ass|asshole|bastard|crap|damn|cunt|dick)\b", re.I)
# WordNet's lexicographer files of nouns that a beginner could name, and the word for each
KINDS = {
    4: "kind of act",
    5: "kind of animal",
    6: "kind of object made by people",
    7: "kind of property",
    8: "part of a body",
    9: "kind of idea",
    10: "kind of communication",
    11: "kind of event",
    12: "kind of feeling",
    13: "kind of food",
    14: "kind of group",
    15: "kind of place",
    17: "kind of thing in nature",
    18: "kind of person",
    20: "kind of plant",
    21: "kind of possession",
    26: "kind of state",
    27: "kind of substance",
    28: "kind of time",
}

# kinds of which one could argue that a thing of the first is also of the second
_CLOSE = (
    {4, 10, 11, 28},
    {7, 9, 12, 26, 10},
    {13, 20, 27, 17},
    {6, 15, 17, 14},
    {14, 18, 15},
    {5, 13, 8},
    {21, 6, 27, 10},
    {26, 4, 11, 28},
    {6, 27},
    {9, 14, 18},
    {4, 7, 26},
)


def glue_files(sources: Sources, wordnet: WordNet) -> Iterator[tuple[str, bytes]]:
    """(path below glue/, bytes): train, dev and test of four tasks; test labels are in a file of their own."""
    rows = {
        "SST-2": sentiment(sources),
        "CoLA": acceptability(wordnet),
        "RTE": entailment(wordnet),
        "STS-B": similarity(sources),
    }
    for task, made in rows.items():
        start = 0
        for split, size in zip(("train", "dev", "test"), SIZES[task]):
            part = made[start : start + size]
            if len(part) != size:
                raise RuntimeError(f"{task}/{split}: {len(part)} rows of {size}")
            start += size
            yield f"{task}/{split}.tsv", _table(_FORMATS[task](part, split))
            if split == "test":
                labels = [(str(n), row[-1]) for n, row in enumerate(part)]
                yield f"{task}/test_labels.tsv", _table([("index", "label"), *labels])


def _table(rows: list[tuple[str, ...]]) -> bytes:
    return "".join("\t".join(row) + "\n" for row in rows).encode()


def _sst(rows, split):
    if split == "test":
        return [("index", "sentence"), *((str(n), text) for n, (text, _) in enumerate(rows))]
    return [("sentence", "label"), *rows]


def _cola(rows, split):
    if split == "test":
        return [("index", "sentence"), *((str(n), text) for n, (text, _) in enumerate(rows))]
    return [("wn30", label, "" if label == "1" else "*", text) for text, label in rows]


def _rte(rows, split):
    if split == "test":
        return [("index", "sentence1", "sentence2"), *((str(n), a, b) for n, (a, b, _) in enumerate(rows))]
    return [("index", "sentence1", "sentence2", "label"), *((str(n), *row) for n, row in enumerate(rows))]


def _stsb(rows, split):
    head = ("index", "genre", "filename", "year", "old_index", "source1", "source2", "sentence1", "sentence2", "score")
    full = [(str(n), "words", "wordsim353", "2002", str(n), "none", "none", *row) for n, row in enumerate(rows)]
    return [head[:-1], *(row[:-1] for row in full)] if split == "test" else [head, *full]


_FORMATS = {"SST-2": _sst, "CoLA": _cola, "RTE": _rte, "STS-B": _stsb}


def sentiment(sources: Sources) -> list[tuple[str, str]]:
    """Snippets whose mean human rating is clear, half good, half bad; a product's reviews stay in one split."""
    inner = io.BytesIO(sources.read("vader", "vaderSentiment-3.3.2/additional_resources/hutto_ICWSM_2014.tar.gz"))
    groups: dict[str, list[tuple[str, str]]] = {}
    with tarfile.open(fileobj=inner) as tar:
        for name in ("movie", "amazon"):
            raw = (
                tar.extractfile(f"hutto_ICWSM_2014/{name}ReviewSnippets_GroundTruth.txt")
                .read()
                .decode("utf-8", "replace")
            )
            for line in raw.splitlines():
                number, rating, text = line.split("\t", 2)
                text = re.sub(r"\s+", " ", text.replace("''", '"')).strip()
                words = len(text.split())
                if abs(float(rating)) < CLEAR_RATING or not 4 <= words <= 40 or not text.isascii():
                    continue
                if _RUDE.search(text) or not decent(text):
                    continue
                # movie snippets are numbered one by one, Amazon's as review_sentence
                groups.setdefault(f"{name}-{number.split('_')[0]}", []).append((text, str(int(float(rating) > 0))))
    keys = sorted(groups)
    rng("glue", "sst").shuffle(keys)
    rows: list[tuple[str, str]] = []
    seen: set[str] = set()
    keys.reverse()
    for size in SIZES["SST-2"]:
        part: dict[str, list[tuple[str, str]]] = {"0": [], "1": []}
        while keys and min(map(len, part.values())) < size // 2:
            for text, label in groups[keys.pop()]:
                if text.lower() not in seen and len(part[label]) < size // 2:
                    seen.add(text.lower())
                    part[label].append((text, label))
        both = part["0"] + part["1"]
        rng("glue", "sst", size).shuffle(both)
        rows += both
    return rows


def similarity(sources: Sources) -> list[tuple[str, str, str]]:
    """WordSim-353: word pairs with the mean of human similarity ratings, 0..10 scaled to STS-B's 0..5."""
    lines = sources.read("gensim", "gensim/test/test_data/wordsim353.tsv").decode().splitlines()
    rows = [line.split("\t") for line in lines if line and not line.startswith("#")]
    rows = [(a.strip(), b.strip(), f"{float(score) / 2:.3f}") for a, b, score in rows]
    rng("glue", "sts").shuffle(rows)
    return rows


def entailment(wordnet: WordNet) -> list[tuple[str, str, str]]:
    """ "A word is gloss." and "A word is a kind of ...": true kinds and, as often, kinds drawn from the same prior."""
    nouns = [s for s in wordnet.synsets if s.pos == "noun" and s.lexname in KINDS and _plain(s)]
    rng("glue", "rte").shuffle(nouns)
    senses: dict[str, set[int]] = {}
    for synset in wordnet.synsets:
        if synset.pos == "noun":
            for word in synset.words:
                senses.setdefault(word.lower(), set()).add(synset.lexname)
    rows, used = [], set()
    for number, synset in enumerate(nouns):
        word = synset.words[0]
        if word in used or len(senses[word]) > 1:  # "bat" is an animal and an object: one could argue
            continue
        used.add(word)
        random = rng("glue", "rte", word)
        true = random.random() < 0.5
        kind = synset.lexname
        near = set().union({synset.lexname}, *(group for group in _CLOSE if synset.lexname in group))
        while not true and kind in near:
            kind = random.choice(nouns).lexname
        premise = f"{article(word).capitalize()} {word} is {synset.definition}."
        rows.append(
            (
                premise,
                f"{article(word).capitalize()} {word} is a {KINDS[kind]}.",
                "entailment" if true else "not_entailment",
            )
        )
        if len(rows) == sum(SIZES["RTE"]):
            return rows
    return rows


def _plain(synset: Synset) -> bool:
    word, gloss = synset.words[0], synset.definition
    return (
        word.isalpha()
        and word.islower()
        and re.match(r"(a|an|the|any|one)\b", gloss) is not None
        and 5 <= len(gloss.split()) <= 22
        and ";" not in gloss
        and "(" not in gloss
        and gloss.isascii()
        and decent(gloss)
    )


def acceptability(wordnet: WordNet) -> list[tuple[str, str]]:
    """WordNet's example sentences, half of them with one mechanical damage; no sentence occurs twice."""
    found: dict[str, None] = {}
    for synset in wordnet.synsets:
        for example in synset.examples:
            if 5 <= len(example.split()) <= 14 and example.isascii() and decent(example) and _is_sentence(example):
                found.setdefault(sentence(example))
    lines = list(found)
    rng("glue", "cola").shuffle(lines)
    rows = []
    for line in lines:
        damaged = damage(line)
        if damaged is None:
            continue
        intact = rng("glue", "cola", line).random() < 0.5
        rows.append((line, "1") if intact else (damaged, "0"))
        if len(rows) == sum(SIZES["CoLA"]):
            break
    return rows


def _is_sentence(text: str) -> bool:
    """Has a subject and a verb, as far as closed-class words can tell."""
    return (
        re.match(r"(he|she|it|they|we|i|you|the|this|that|there|his|her|my|our|their|these|those)\b", text, re.I)
        is not None
        and re.search(r"\b(is|are|was|were|has|have|had|will|can|could|would|must|did|does|\w+ed)\b", text) is not None
        and ('"' not in text)
    )


def damage(text: str) -> str | None:
    """One edit that always breaks an English sentence, or None if none fits."""
    random = rng("glue", "damage", text)
    words = text.rstrip(".!?").split()
    stop = text[len(text.rstrip(".!?")) :]
    edits = []
    for i in range(1, len(words) - 1):
        word, after = words[i].lower(), words[i + 1].lower()
        if (
            word in ("the", "a", "an", "his", "her", "their", "my", "our")
            and after.isalpha()
            and after not in _FUNCTION
        ):
            edits.append(words[:i] + [words[i + 1], words[i]] + words[i + 2 :])  # "in house the"
        if word in ("of", "to", "for", "with", "from", "at", "into") and after in (
            "the",
            "a",
            "an",
            "his",
            "her",
            "their",
            "my",
        ):
            edits.append(words[:i] + [words[i + 1], words[i]] + words[i + 2 :])  # "the of house"
        if word in ("will", "can", "could", "would", "must", "should") and after.isalpha() and after not in _FUNCTION:
            edits.append(words[: i + 1] + [_ing(after)] + words[i + 2 :])  # "will going"
        if word in ("was", "is") and words[i - 1].lower() in ("he", "she", "it"):
            edits.append(words[:i] + ["were" if word == "was" else "are"] + words[i + 1 :])
    if not edits:
        return None
    return " ".join(random.choice(edits)) + stop


def _ing(verb: str) -> str:
    return verb[:-1] + "ing" if verb.endswith("e") and not verb.endswith("ee") else verb + "ing"


_FUNCTION = frozenset(
    "the a an of to for with from at into in on and or but not never be have has had was were is are very more most "
    "as by his her their my our your its it he she they we you i this that these those all so no".split()
)
