"""What a run on the sample pack's tasks must beat: shallow and blind baselines, each on the split that is reported.

    python -m projects.picturebook.floors

Logistic regressions of scikit-learn on tf-idf of words, marks and pairs of them, or on 16 x 16 pixels. Of C = 0.1, 1 and 10 the one
that is best on the reported split itself: a floor may be too high, never too low.
"""

import io
import json
import tarfile
from collections import Counter
from pathlib import Path

import numpy as np
from PIL import Image
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import matthews_corrcoef

from xtoolkit.data import paths
from xtoolkit.prepare import sample  # noqa: F401 (answers for sample://)

SIDE = 16  # pixels
PACK = "sample://picturebook/"


def rows(part: str) -> list[dict]:
    """The objects of a JSON Lines file of the pack."""
    file, = paths.resolve(PACK + part)
    return [json.loads(line) for line in Path(file).read_text(encoding="utf-8").splitlines()]


def by_words(train: list[tuple], test: list[tuple], score=None) -> np.ndarray:
    """What a regression on the words of (text, label) says of others' texts."""
    words = TfidfVectorizer(ngram_range=(1, 2), token_pattern=r"\w+|[^\w\s]").fit([text for text, _ in train])
    return best(*([words.transform([text for text, _ in found]) for found in (train, test)]), train, test, score)


def by_pixels(train: list[tuple], test: list[tuple]) -> np.ndarray:
    """What a regression on (pixels, label) says of others' pixels."""
    return best(*([np.stack([picture for picture, _ in found]) for found in (train, test)]), train, test)


def best(seen, asked, train, test, score=None) -> np.ndarray:
    """The predictions of the regression, of one a C, that are best by ``score(predictions)``, by default how many are right."""
    told = [LogisticRegression(C=c, max_iter=2000).fit(seen, [label for _, label in train]).predict(asked) for c in (0.1, 1, 10)]
    return max(told, key=score or (lambda one: right(one, test)))


def pixels(picture) -> np.ndarray:
    """(3 * SIDE^2,) float64 in [0, 1], a picture made small."""
    with Image.open(picture) as opened:
        return np.asarray(opened.convert("RGB").resize((SIDE, SIDE), Image.Resampling.BOX), np.float64).ravel() / 255


def right(told, test) -> float:
    """How many predictions are the labels of (input, label), in per cent."""
    return 100 * float(np.mean([a == b for a, (_, b) in zip(told, test, strict=True)]))


def glue() -> dict:
    """{what is guessed how: per cent} of sentences and pairs of them, from the commonest label and from words."""
    found = {}
    for task, keys in (("sst2", ["sentence"]), ("cola", ["sentence"]), ("rte", ["sentence1", "sentence2"])):
        sets = {split: rows(f"glue-{task}-{split}") for split in ("train", "dev", "test")}
        most = Counter(row["label"] for row in sets["train"]).most_common(1)[0][0]
        for split in ("dev", "test"):
            for name, of in (("tf-idf", keys), *((("second sentence only", keys[1:]),) if len(keys) > 1 else ())):
                train, test = ([(" ".join(row[k] for k in of), row["label"]) for row in sets[s]] for s in ("train", split))
                told = by_words(train, test)
                found[f"{task} {split}: {name}"] = right(told, test)
                if task == "cola":
                    found[f"{task} {split}: {name}, Matthews"] = 100 * matthews_corrcoef([label for _, label in test], told)
            found[f"{task} {split}: most frequent class of train"] = right([most] * len(sets[split]), [(0, row["label"])
                                                                                                      for row in sets[split]])
    return found


def accuracy(answer: str, ten: list[str]) -> float:
    """VQA's: the mean over the annotators of min(1, agreeing others / 3); the pack's answers need no normalisation."""
    return float(np.mean([min(1, (ten.count(answer) - (own == answer)) / 3) for own in ten]))


def vqa() -> dict:
    """{what is guessed how: VQA's accuracy in per cent} of questions about pictures."""
    train = [(row["question"], max(row["answers"], key=lambda answer: answer["weight"])["text"]) for row in rows("vqa-train")]
    found = {}
    for split in ("val", "test"):
        asked = rows(f"vqa-{split}")
        score = lambda told: [accuracy(answer, row["annotations"]) for answer, row in zip(told, asked)]
        scores = score(by_words(train, [(row["question"], None) for row in asked], lambda told: sum(score(told))))
        found[f"vqa {split}: question only"] = 100 * float(np.mean(scores))
        for kind in ("yes/no", "number", "other"):
            of = [score for score, row in zip(scores, asked) if row["answer_type"] == kind]
            found[f"vqa {split}: question only, {kind}"] = 100 * float(np.mean(of))
    return found


def labelled_pairs() -> dict:
    """Text only and picture only, of NLVR2 and of entailment."""
    found = {}
    for part, train, tests in (("nlvr2", "train", ("dev", "test1")), ("ve", "train", ("val", "test"))):
        for split in tests:
            sets = [[(row["sentence"], row["label"]) for row in rows(f"{part}-{one}")] for one in (train, split)]
            found[f"{part} {split}: text only"] = right(by_words(*sets), sets[1])
    folder = Path(paths.resolve(f"{PACK}ve-train")[0]).parents[1]
    seen = {split: [(pixels(folder / f"ve-{split}" / row["image"]), row["label"]) for row in rows(f"ve-{split}")]
            for split in ("train", "val", "test")}
    for split in ("val", "test"):
        found[f"ve {split}: picture only, pixels"] = right(by_pixels(seen["train"], seen[split]), seen[split])
    return found


def classes() -> dict:
    """{what is guessed how: per cent} of pictures and the folders they lie in."""
    def folder(part):
        return [(pixels(path), path.parent.name) for path in sorted(Path(paths.folder(PACK + part)).glob("*/*"))]

    def tar(part):
        found = {}
        for file in paths.resolve(PACK + part):
            with tarfile.open(file) as opened:
                for member in opened:
                    key, _, ending = member.name.partition(".")
                    found.setdefault(key, {})[ending] = opened.extractfile(member).read()
        return [(pixels(io.BytesIO(one["png"])), json.loads(one["json"])["label"]) for one in found.values()]

    found = {}
    for name, train, test, read in (("imagenet val", "imagenet-train", "imagenet-val", folder),
                                    ("imagenet-select val", "imagenet-select-train", "imagenet-select-val", folder),
                                    ("digits test", "digits-train", "digits-test", tar)):
        sets = read(train), read(test)
        most = Counter(label for _, label in sets[0]).most_common(1)[0][0]
        found[f"{name}: pixels"] = right(by_pixels(*sets), sets[1])
        found[f"{name}: most frequent class of train"] = right([most] * len(sets[1]), sets[1])
    return found


def boxes() -> dict:
    """The biggest annotated box of the picture, by the expressions whose box it covers with an IoU of at least 0.5."""
    found = {}
    for split in ("val", "testA", "testB"):
        hit = []
        for file in paths.resolve(f"{PACK}refcoco+-{split}"):
            with tarfile.open(file) as opened:
                for info in (json.loads(opened.extractfile(member).read()) for member in opened if member.name.endswith(".json")):
                    biggest = max(info["boxes"], key=lambda box: box[2] * box[3])
                    for region in info["regions"]:
                        hit += [iou(region["box"], biggest) >= 0.5] * len(region["caption"])
        found[f"refcoco+ {split}: the biggest box"] = 100 * float(np.mean(hit))
    return found


def iou(a, b) -> float:
    """Intersection over union of two boxes (x, y, w, h)."""
    w = min(a[0] + a[2], b[0] + b[2]) - max(a[0], b[0])
    h = min(a[1] + a[3], b[1] + b[3]) - max(a[1], b[1])
    both = max(0, w) * max(0, h)
    return both / (a[2] * a[3] + b[2] * b[3] - both)


FAST = (boxes, classes, labelled_pairs, glue)


def main() -> None:
    """Prints every floor, those that take long last."""
    for floors in (*FAST, vqa):
        for name, value in floors().items():
            print(f"{name:45} {value:5.1f}", flush=True)


if __name__ == "__main__":
    main()
