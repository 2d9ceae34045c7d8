"""Makes cases/recall.json: recall at 1, 5 and 10 both ways, by counting orders, with ties and other traps.

    python tests/metrics/make_recall.py

Tied candidates may come in any order; a query's recall is the share of orders that put a right one among its first k. Up to seven
candidates every order is tried; beyond, orders are counted by binomials in exact fractions. Nothing of the toolkit is used.
"""

import itertools
import json
import math
import platform
import random
from fractions import Fraction
from pathlib import Path

DEPTHS, LEAST = (1, 5, 10), -1e30  # a score for what was never scored


def tried(scores, right, k):
    orders = list(itertools.permutations(range(len(scores))))
    return Fraction(sum(any(right[c] for c in sorted(order, key=lambda c: -scores[c])[:k]) for order in orders), len(orders))


def counted(scores, right, k):
    """Tied candidates that get a place among the first k are a draw without replacement."""
    taken = 0
    for score in sorted(set(scores), reverse=True):
        tied = [c for c in range(len(scores)) if scores[c] == score]
        places, wrong = min(len(tied), max(0, k - taken)), sum(not right[c] for c in tied)
        if wrong < len(tied):
            return 1 - Fraction(math.comb(wrong, places), math.comb(len(tied), places))
        taken += len(tied)
    raise ValueError("no right candidate")


def recall(queries, k):
    """Per cent, over the queries that have a right candidate."""
    asked = [(scores, right) for scores, right in queries if any(right)]
    shares = [counted(scores, right, k) for scores, right in asked]
    for (scores, right), share in zip(asked, shares):
        if len(scores) <= 7:
            assert tried(scores, right, k) == share
    return float(100 * sum(shares) / len(shares))


def case(note, t2i, i2t, owner):
    images, texts = range(len(t2i)), range(len(owner))
    by_text = [([t2i[i][t] for i in images], [owner[t] == i for i in images]) for t in texts]
    by_image = [(i2t[i], [owner[t] == i for t in texts]) for i in images]
    expected = {f"{way}_r{k}": recall(queries, k) for way, queries in (("t2i", by_text), ("i2t", by_image)) for k in DEPTHS}
    return {"note": note, "t2i": t2i, "i2t": i2t, "owner": owner,
            "expected": expected | {"r_mean": sum(expected.values()) / len(expected)}}


def cases():
    draw = random.Random(0)
    matrix = lambda images, texts, score: [[score(i, t) for t in range(texts)] for i in range(images)]
    owners = lambda images, texts: list(range(images)) + sorted(draw.randrange(images) for _ in range(texts - images))
    for images, texts in ((1, 1), (2, 2), (12, 12), (12, 36), (3, 30)):
        owner = owners(images, texts)
        right = lambda i, t: owner[t] == i
        for note, score in (
                ("random", lambda i, t: round(draw.gauss(0, 1) + 1.5 * right(i, t), 3)),
                ("few values, many ties", lambda i, t: float(draw.randrange(3))),
                ("ties at the top, the right one among them", lambda i, t: float(draw.randrange(2) or right(i, t))),
                ("all alike", lambda i, t: 0.0),
                ("all right", lambda i, t: float(right(i, t))),
                ("all wrong", lambda i, t: -float(right(i, t))),
                ("never scored but a few", lambda i, t: draw.choice([LEAST, LEAST, LEAST, 1.0])),
                ("zeros of both signs are one score", lambda i, t: draw.choice([0.0, -0.0])),
                ("huge and tiny", lambda i, t: draw.choice([1e30, 1e-30, -1e-30, -1e30]))):
            one = matrix(images, texts, score)
            yield case(note, one, one, owner)
            yield case(f"{note}, each way its own", one, matrix(images, texts, score), owner)
    for note, owner in (("pictures without a caption", [0, 0, 3, 3, 3, 7]), ("one picture has all", [4] * 14)):
        one = matrix(12, len(owner), lambda i, t: float(draw.randrange(4)))
        yield case(note, one, one, owner)


if __name__ == "__main__":
    found = {"provenance": f"tests/metrics/make_recall.py, seed 0, Python {platform.python_version()}: orders tried or counted",
             "cases": list(cases())}
    (Path(__file__).parent / "cases/recall.json").write_text(json.dumps(found) + "\n")
    print(len(found["cases"]), "cases")
