"""Differences between cells from what was kept of samples: against scipy's bootstrap and slow loops by hand."""

import gzip
import json
import math
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from scipy import stats

import xtoolkit.tasks  # noqa: F401  registers them, as reading a recipe does
from xtoolkit.ablation.jobs import DONE, Job
from xtoolkit.ablation.outputs import _counts, _seeds, bootstrap, combined, figures


@pytest.fixture
def cell(tmp_path):
    """A function that makes the jobs of a cell: a seed each, of which the samples are there; None: it is not finished."""
    def made(name, seeds, compress=False, **block):
        block = {"type": "Accuracy"} | block
        recipe = SimpleNamespace(checked=SimpleNamespace(evaluate={"test": block}, source=SimpleNamespace(where=lambda *at: "here")))
        jobs = [Job(name, "Row", "", seed, recipe, seed, tmp_path / name, []) for seed in range(len(seeds))]
        for job, rows in zip(jobs, seeds):
            job.folder = tmp_path / name / str(job.seed)
            folder = job.folder / "evaluations/test"
            folder.mkdir(parents=True)
            text = "".join(json.dumps(row) + "\n" for row in rows or ())
            (folder / "samples.jsonl.gz").write_bytes(gzip.compress(text.encode())) if compress else (folder / "samples.jsonl").write_text(text)
            if rows is not None:
                (job.folder / DONE).write_text("{}")
        return jobs
    return made


def told(rng, label, sure, groups=None):
    """Rows of two classes."""
    odds = sure * (2 * label - 1) + rng.normal(size=len(label)) + 0.5
    return [{"id": n, "image_id": f"p{n if groups is None else groups[n]}", "score": float((odds[n] > 0) == label[n]), "label": "ny"[label[n]],
             "told": "ny"[int(odds[n] > 0)], "odds": odds[n]} for n in range(len(label))]


def matthews(rows):
    """The textbook's formula, in per cent."""
    count = {(a, b): sum(row["label"] == a and row["told"] == b for row in rows) for a in "ny" for b in "ny"}
    tp, tn, fp, fn = count["y", "y"], count["n", "n"], count["n", "y"], count["y", "n"]
    below = math.sqrt((tp + fp) * (tp + fn) * (tn + fp) * (tn + fn))
    return 100 * (tp * tn - fp * fn) / below if below else 0.0


def pearson(rows):
    a, b = ([row[key] for row in rows] for key in ("told", "label"))
    mean = lambda values: sum(values) / len(values)
    product = lambda x, y: sum((p - mean(x)) * (q - mean(y)) for p, q in zip(x, y))
    return 100 * product(a, b) / math.sqrt(product(a, a) * product(b, b))


def by_hand(own, other, figure, draws, seed):
    """Standard error and interval of the mean difference: groups are drawn, each with all its rows, and seeds."""
    rng, pictures = np.random.default_rng(seed), {}
    for n, row in enumerate(own[0]):
        pictures.setdefault(row["image_id"], []).append(n)
    pictures, found = list(pictures.values()), []
    for _ in range(draws):
        rows = [n for picture in rng.integers(len(pictures), size=len(pictures)) for n in pictures[picture]]
        value = lambda side: figure([side[n] for n in rows])
        found.append(np.mean([value(own[k]) - value(other[k]) for k in rng.integers(len(own), size=len(own))]))
    return np.std(found, ddof=1), *np.quantile(found, [0.025, 0.975])


@pytest.mark.parametrize("metric", ["matthews", "pearson"])
def test_it_is_a_slow_loop_over_pictures_and_seeds(cell, metric):
    rng = np.random.default_rng(1)
    groups = np.repeat(np.arange(30), rng.integers(1, 5, 30))
    if metric == "matthews":
        label = rng.integers(0, 2, len(groups))
        own, other = ([told(rng, label, sure + 0.3 * k, groups) for k in range(3)] for sure in (1.2, 0.7))
        block, figure = {}, matthews
    else:
        label = rng.normal(size=30)[groups]
        rows = lambda noise: [{"id": n, "image_id": f"p{groups[n]}", "score": 0.0, "label": y, "told": y + noise * rng.normal()}
                              for n, y in enumerate(label.tolist())]
        own, other = ([rows(noise + k / 2) for k in range(3)] for noise in (0.5, 1.5))
        block, figure = {"type": "Correlation"}, pearson
    found = bootstrap(cell("own", own, **block), cell("other", other, **block), f"test.{metric}", draws=4000)
    assert found.value == pytest.approx(np.mean([figure(one) - figure(two) for one, two in zip(own, other)]), abs=1e-9)
    error, low, high = by_hand(own, other, figure, 600, 5)
    assert found.error == pytest.approx(error, rel=0.1)
    assert (found.low, found.high) == pytest.approx((low, high), abs=0.35 * error)


def test_of_one_seed_and_single_rows_it_is_scipys(cell):
    rng = np.random.default_rng(2)
    label = rng.normal(size=150)
    values = [label + noise * rng.normal(size=150) for noise in (0.5, 0.9)]
    sides = [cell(name, [[{"id": n, "score": 0.0, "label": y, "told": x} for n, (x, y) in enumerate(zip(value.tolist(), label.tolist()))]],
                  type="Correlation") for name, value in zip(("own", "other"), values)]
    found = bootstrap(*sides, "test.pearson", draws=5000)
    difference = lambda a, b, y: 100 * (np.corrcoef(a, y)[0, 1] - np.corrcoef(b, y)[0, 1])
    theirs = stats.bootstrap((*values, label), difference, paired=True, vectorized=False, n_resamples=5000, method="percentile", rng=3)
    assert found.value == pytest.approx(difference(*values, label), abs=1e-9)
    assert found.error == pytest.approx(theirs.standard_error, rel=0.05)
    assert (found.low, found.high) == pytest.approx(theirs.confidence_interval, abs=0.15 * found.error)


def test_where_it_is_a_mean_all_draws_at_once_are_those_one_by_one(cell):
    """Questions of one type, retrieval's two directions: rows that a figure does not count."""
    from xtoolkit.metrics.mean import means

    rng = np.random.default_rng(3)
    kinds = [("yes/no", "other")[n % 2] for n in range(80)]
    sides = [[[{"id": n, "image_id": f"p{n // 3}", "score": None if n % 7 == 0 else rng.random(), "type": kinds[n], "covered": 1.0}
               for n in range(80)] for _ in range(2)] for _ in range(2)]
    jobs = [cell(name, side, type="VQAAccuracy") for name, side in zip(("own", "other"), sides)]
    found = bootstrap(*jobs, "test.other.accuracy", draws=300)
    values = [[[np.nan if row["score"] is None or row["type"] != "other" else 100 * row["score"] for row in rows] for rows in side]
              for side in sides]
    of = np.unique([f"p{n // 3}" for n in range(80)], return_inverse=True)[1]
    slow = []
    for often, times in zip(_counts("Row, test", 27, 300)[1:].astype(int), _seeds(2, 300)):
        rows = [row for row in range(80) for _ in range(often[of[row]])]
        value = lambda run: np.nanmean([run[row] for row in rows])
        slow.append(sum(times[k] * (value(values[0][k]) - value(values[1][k])) for k in (0, 1)) / 2)
    assert found.value == pytest.approx(np.mean([np.nanmean(a) - np.nanmean(b) for a, b in zip(*values)]))
    assert [found.error, found.low, found.high] == pytest.approx([np.std(slow, ddof=1), *np.quantile(slow, [0.025, 0.975])], abs=1e-9)
    both = rng.random((80, 2))
    both[::3, 1] = np.nan
    counts = _counts("Row, test", 27, 50)
    assert figures(both, means, of, counts) == pytest.approx(figures(both, lambda drawn: means(drawn), of, counts))


def test_a_contrast_draws_samples_of_each_row_apart_and_seeds_of_all_together(cell):
    """Means over two rows, one of them of two metrics: against a slow loop, and an interaction against its two differences."""
    rng = np.random.default_rng(8)
    labels, groups = [rng.integers(0, 2, n) for n in (60, 90)], [np.arange(60) // 2, np.arange(90) // 3]
    sides = {name: [[told(rng, label, sure + k, of) for k in range(3)] for label, of in zip(labels, groups)]
             for name, sure in (("better", 1.0), ("than", 0.6), ("a", 0.8), ("b", 0.5))}
    jobs = {}
    for name, rows in sides.items():
        for number, seeds in enumerate(rows):
            jobs[name, number] = cell(f"{name} {number}", seeds)
            for job in jobs[name, number]:
                job.row = f"Row {number}"
    of = lambda name, sign: [(sign / 2, jobs[name, 0], "test.matthews"), (sign / 4, jobs[name, 1], "test.accuracy"), (sign / 4, jobs[name, 1], "test.matthews")]
    found = combined([*of("better", 1), *of("than", -1)], draws=600)
    accuracy = lambda rows: 100 * np.mean([row["score"] for row in rows])
    figure = lambda first, second: matthews(first) / 2 + accuracy(second) / 4 + matthews(second) / 4
    difference = lambda k, rows: (lambda side: figure([sides[side][0][k][n] for n in rows[0]], [sides[side][1][k][n] for n in rows[1]]))("better") - \
        figure([sides["than"][0][k][n] for n in rows[0]], [sides["than"][1][k][n] for n in rows[1]])
    assert found.value == pytest.approx(np.mean([difference(k, (range(60), range(90))) for k in range(3)]))
    slow = []
    for _ in range(400):
        rows = [[n for group in rng.integers(of.max() + 1, size=of.max() + 1) for n in np.flatnonzero(of == group)] for of in groups]
        slow.append(np.mean([difference(k, rows) for k in rng.integers(3, size=3)]))
    assert found.error == pytest.approx(np.std(slow, ddof=1), rel=0.15)
    assert (found.low, found.high) == pytest.approx(tuple(np.quantile(slow, [0.025, 0.975])), abs=0.4 * found.error)
    beyond = combined([*of("better", 1), *of("than", -1), *of("a", -1), *of("b", 1)], draws=600)
    second = combined([*of("a", 1), *of("b", -1)], draws=600)
    assert beyond.value == pytest.approx(found.value - second.value) and beyond.error < found.error + second.error
    assert bootstrap(jobs["a", 0], jobs["a", 0], "test.accuracy", 50).error is None, "equal answers have no interval of width 0"
    pictures = [[row | {"image_id": "one"} for row in rows] for rows in sides["a"][0]]
    assert combined([(1, cell("one", pictures), "test.accuracy"), (-1, jobs["b", 1], "test.accuracy")], 50).low is None


def test_sentences_are_drawn_with_all_their_pictures(cell):
    """Each sentence's four rows are alike, so that its own number of rows says nothing; as single rows they would say twice as much."""
    rng = np.random.default_rng(4)
    right = rng.integers(0, 2, (2, 50))
    rows = lambda of: [{"id": n, "image_id": f"left{n}", "group": f"s{n // 4}", "score": float(of[n // 4]), "label": "n", "told": "n"} for n in range(200)]
    jobs = [cell(name, [rows(of)], consistency="identifier") for name, of in zip(("own", "other"), right)]
    found, whole = (bootstrap(*jobs, f"test.{metric}") for metric in ("accuracy", "consistency"))
    expected = 100 * np.std(right[0] - right[1]) / math.sqrt(50)
    assert found.error == pytest.approx(expected, rel=0.06) and whole.error == pytest.approx(found.error)
    alone = [cell(f"{name} alone", [[row | {"group": None} for row in rows(of)]]) for name, of in zip(("own", "other"), right)]
    assert bootstrap(*alone, "test.accuracy").error == pytest.approx(expected / 2, rel=0.06)


def test_compressed_rows_missing_seeds_and_samples_of_one_side(cell):
    rng = np.random.default_rng(5)
    label = rng.integers(0, 2, 40)
    a, b = [told(rng, label, 1) for _ in range(3)], [told(rng, label, 0.2) for _ in range(3)]
    own, other = cell("own", [a[0], a[1], None], compress=True), cell("other", [b[0], None, b[2]])
    found = bootstrap(own, other, "test.matthews", draws=50)
    assert found == bootstrap(cell("own 2", a[:1]), cell("other 2", b[:1]), "test.matthews", draws=50), "seeds that both have"
    fewer = bootstrap(cell("own 3", a[:1]), cell("other 3", [b[0][::-1][:30]]), "test.matthews", draws=50)
    assert fewer == bootstrap(cell("own 4", [a[0][10:]]), cell("other 4", [b[0][10:]]), "test.matthews", draws=50), "samples that both have"
    assert bootstrap(own[1:], other[1:], "test.matthews") is None
    assert bootstrap(own, other, "test.top5") is None, "no such figure of two classes"
    assert bootstrap(cell("empty", [[]]), cell("full", [a[0]]), "test.accuracy") is None


def test_samples_are_called_by_their_ids_or_their_places(cell):
    rows = lambda *ids: [{"id": one, "image_id": None, "score": 1} for one in ids]
    unlike, alike = cell("texts", [rows("a", 7), rows("p", "p", "q")])
    assert list(unlike.samples("test.accuracy")) == ["a", "7"] and list(alike.samples("test.accuracy")) == ["0", "1", "2"]
    assert unlike.samples("val.accuracy") == {} and Path(unlike.folder).is_dir()
