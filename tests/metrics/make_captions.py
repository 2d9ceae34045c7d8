"""Makes cases/captions.json: what coco-caption's own code, and aac-metrics', say of captions and references.

    pip install pycocoevalcap==1.2 aac-metrics==0.5.5       # and Java, for the words
    python tests/metrics/make_captions.py CAPTIONS.json     # COCO's dataset_coco.json, or the sample pack's

Its output is in the repository; the tests need none of these.
"""

import json
import os
import random
import subprocess
import sys
import tempfile
from contextlib import redirect_stdout
from importlib.metadata import version
from pathlib import Path

import pycocoevalcap
from aac_metrics.functional import bleu as aac_bleu
from aac_metrics.functional import cider_d as aac_cider
from aac_metrics.functional import rouge_l as aac_rouge
from pycocoevalcap.bleu.bleu import Bleu
from pycocoevalcap.cider.cider import Cider
from pycocoevalcap.rouge.rouge import Rouge
from pycocoevalcap.tokenizer.ptbtokenizer import PUNCTUATIONS, STANFORD_CORENLP_3_4_1_JAR

RAW = ["A man's dog (black) isn't here.", "The dogs' owners can't, won't; cannot.", '"Quoted," she said: \'yes\'!',
       "It's 3:00 p.m. on the U.S. coast.", "Mr. Smith, Dr. Jones and St. Mary.", "$5.50 for 10,000 people - 50% off #1",
       "black-and-white photo of a t-shirt", "w/o a hat and/or shoes w/ a stick", "gonna wanna gimme lemme gotta",
       "an e.g. example, i.e. this etc.", "no punctuation here", "ends with ellipsis... and more ...",
       "dash -- and --- and \u2013 and \u2014 here", "a & b @ home * star", "http://www.example.com is a site",
       "me@example.com", "[brackets] {braces}", "y'all we're they've I'll I'd I'm", "the '90s and 1990s", "2nd 3rd 21st 100th",
       "1/2 of a pizza and 3 1/2", "5'10\" tall", "A.M. P.M. a.m. U.K.", "word.another word,another word;another",
       "hello!! what?? really?!", "   spaces   between    words  ", "tab\tseparated", "caf? na\u00efve caf\u00e9 \u00fcber",
       "ice-cream, well-known state-of-the-art", "_underscore_ under_score", "50-year-old man", "No. 5 and no. 7, but no.",
       "vs. the world", "#hashtag @user", "1,2,3 go", "12-inch 12\"", "it`s a backtick ``double'' quote", "Wal-Mart 7-Eleven",
       "9/11/2001 10.5 .5 0.5% ", "Acme Inc. and Co. Ltd. of Jones Jr.", "man,woman", "x-ray's", "''", "...", "!", ".", "a . b",
       "a / b \\ c | d", "~tilde ^caret +plus =equals", "can not can't cant", "d'oeuvre l'eau", "children's boys'",
       "\"a cat\" 'a cat'", "and... then....", "etc. A dog", "a b.c d.e. f", "one (1) two (2)",
       "it\u2019s \u201csmart\u201d \u2018single\u2019", "A PLANE'S WINGS", "two men, one woman & a dog - all happy"]


def stanford(captions: list[str]) -> list[list[str]]:
    """Their words by Stanford's tokenizer, punctuation removed: what coco-caption's PTBTokenizer does."""
    jar = Path(pycocoevalcap.__file__ or pycocoevalcap.__path__[0]).resolve()
    jar = (jar if jar.is_dir() else jar.parent) / "tokenizer" / STANFORD_CORENLP_3_4_1_JAR
    with tempfile.NamedTemporaryFile("w", suffix=".txt", delete=False, encoding="utf-8") as f:
        f.write("\n".join(captions))
    found = subprocess.run(["java", "-cp", str(jar), "edu.stanford.nlp.process.PTBTokenizer", "-preserveLines", "-lowerCase",
                            f.name], capture_output=True, encoding="utf-8", check=True).stdout.split("\n")
    os.unlink(f.name)
    return [[w for w in line.split() if w not in PUNCTUATIONS] for line in found[:len(captions)]]


def judged(captions: list[list[str]], references: list[list[list[str]]]) -> dict:
    """The figures of coco-caption's classes on words; beside them aac-metrics', which must agree."""
    join = " ".join
    made = {n: [join(words)] for n, words in enumerate(captions)}
    true = {n: [join(words) for words in several] for n, several in enumerate(references)}
    with redirect_stdout(sys.stderr):
        bleu, rouge, cider = (metric.compute_score(true, made) for metric in (Bleu(4), Rouge(), Cider()))
    return {"captions": captions, "references": references, "bleu": list(map(float, bleu[0])),
            "rouge_l": list(map(float, rouge[1])), "cider": list(map(float, cider[1])), "aac": second(captions, references)}


def second(captions, references) -> dict | None:
    """aac-metrics' figures of the whole set; None where it refuses: a set of one picture, or a text without words."""
    if len(captions) < 2 or not all(captions) or not all(map(all, references)):
        return None
    join, split = [" ".join(words) for words in captions], {"tokenizer": str.split}
    several = [[" ".join(words) for words in one] for one in references]
    return {**{f"bleu{n}": float(aac_bleu(join, several, n=n, **split)[0][f"bleu_{n}"]) for n in range(1, 5)},
            "rouge_l": float(aac_rouge(join, several, **split)[0]["rouge_l"]),
            "cider": float(aac_cider(join, several, **split)[0]["cider_d"])}


def sets(real: list[list[list[str]]], rng: random.Random):
    """(captions, references) of small sets, ordinary and not."""
    few = "a dog cat on the red mat runs".split()
    text = lambda most=9, least=1: [rng.choice(few) for _ in range(rng.randint(least, most))]
    for n in (2, 3, 5, 8, 13, 21):                                    # as it comes: captions of the same and of other pictures
        several = rng.sample(real, n)
        yield [one[0] for one in several], [one[1:] for one in several]
        yield [other[0] for other in several[1:] + several[:1]], several
    for _ in range(30):                                               # few words, so that much matches
        n = rng.randint(2, 9)
        yield [text() for _ in range(n)], [[text() for _ in range(rng.randint(1, 5))] for _ in range(n)]
    for _ in range(4):                                                # many references
        yield [text() for _ in range(3)], [[text() for _ in range(40)] for _ in range(3)]
    for _ in range(4):                                                # one or no word, on either side
        yield [text(2, 0) for _ in range(6)], [[text(2, 1) for _ in range(2)] for _ in range(6)]
    for _ in range(4):                                                # repeated n-grams
        yield [text(3) * rng.randint(2, 6) for _ in range(4)], [[text(3) * rng.randint(1, 4), text()] for _ in range(4)]
    for several in ([["a", "dog"]], [["a"]], [["dog"] * 7]):     # all alike, on both sides
        yield several * 3, [several * 2] * 3
        yield several, [[["a", "dog", "runs"]]]                        # one picture
    yield [[], [], []], [[text()], [text()], [text()]]                 # nothing said at all
    yield [text(), [], text()], [[text()], [text(), text()], [text()]]
    yield [["x"] * 30, ["y"]], [[text()], [text()]]                    # nothing right
    yield [text(60, 50), text(3)], [[text(4)], [text(60, 50), text(5)]]  # lengths far apart


def main() -> None:
    pictures = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))["images"]
    rng = random.Random(0)
    some = [[s["raw"] for s in p["sentences"]] for p in rng.sample(pictures, 60)]
    flat = [caption.replace("\n", " ") for several in some for caption in several]
    found = iter(stanford(RAW + flat))
    raw = [{"caption": caption, "words": next(found)} for caption in RAW + flat]
    given = iter(raw[len(RAW):])
    real = [[next(given)["words"] for _ in several] for several in some]
    versions = ", ".join(f"{name} {version(name)}" for name in ("pycocoevalcap", "aac-metrics", "numpy"))
    java = subprocess.run(["java", "-version"], capture_output=True, text=True).stderr.split("\n")[0]
    out = {"provenance": f"tests/metrics/make_captions.py on {Path(sys.argv[1]).name}, {len(pictures)} pictures, seed 0, with "
                         f"{versions}; words by {STANFORD_CORENLP_3_4_1_JAR}, {java}",
           "cases": [judged(*one) for one in sets(real, rng)], "words": raw[:len(RAW) + 60]}
    Path(__file__).with_name("cases").joinpath("captions.json").write_text(json.dumps(out, ensure_ascii=False) + "\n",
                                                                           encoding="utf-8")
    print(len(out["cases"]), "sets of captions,", len(out["words"]), "captions split")


if __name__ == "__main__":
    main()
