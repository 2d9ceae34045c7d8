"""Verdicts, intervals and power over paired seeds against scipy, statsmodels and made-up tables whose truth is known."""

import itertools
import json
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from xtoolkit.metrics.bootstrap import crossed_difference
from xtoolkit.metrics.captions import cider_d
from xtoolkit.metrics.classification import f1, matthews, pearson, roc_auc
from xtoolkit.metrics.paired import (
    Verdict, detectable, holm, interaction, seeds_needed, sign_flip, smallest_p, t_interval, verdicts,
)

HOLM = json.loads((Path(__file__).parent / "cases/holm.json").read_text(encoding="utf-8"))  # of make_holm.py
NAN = float("nan")
# The primaries, as pairs of seven columns: they share columns, so that their tests depend on each other.
CONTRASTS = {"a": (0, 1), "b": (2, 1), "c": (0, 3), "d": (0, 4), "e": (0, 5), "f": (0, 6)}


def tables(count, seeds, seed):
    """{contrast: (n,) differences} of tables whose seven columns are alike: a seed moves all of them, with heavy tails."""
    rng = np.random.default_rng(seed)
    for _ in range(count):
        columns = 70 + rng.normal(size=seeds) + rng.standard_t(4, (7, seeds))
        yield {name: columns[one] - columns[other] for name, (one, other) in CONTRASTS.items()}


# ---- sign flips ------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("differences", [
    *(np.random.default_rng(n).normal(0.5, 1, n) for n in range(2, 11)),
    [1, 1, 1, 1], [0.1, 0.2, 0.3], [1, -1, 2, -2], [0, 0, 3, 4], [-1, -2, -3, -4, -5, -6],
], ids=lambda d: f"{len(d)} seeds")
def test_sign_flips_are_scipys(differences):
    theirs = stats.permutation_test((np.asarray(differences, dtype=float),), np.mean, permutation_type="samples",
                                    n_resamples=np.inf)
    assert sign_flip(differences) == pytest.approx(theirs.pvalue, abs=1e-12)


@pytest.mark.parametrize("tenths, p", [
    ((9, 8, -1, -7), 0.625), ((9, 9, 9, -9), 0.625), ((9, 8, -4, -5), 0.75), ((1, 2, 3), 0.25),
])
def test_sums_that_are_equal_up_to_rounding_tie(tenths, p):
    assert sign_flip(tenths) == p  # whole numbers: exact
    assert sign_flip([number / 10 for number in tenths]) == p
    assert sign_flip([80 + number / 10 - 80 for number in tenths]) == p


def test_zeros_take_part_and_nothing_says_nothing():
    assert sign_flip([0, 0, 0]) == sign_flip([]) == sign_flip([5]) == 1
    assert sign_flip([0, 1, 2, 3]) == sign_flip([1, 2, 3]) == 0.25


@pytest.mark.parametrize("n, p", [(0, 1), (1, 1), (2, 0.5), (3, 0.25), (6, 0.03125), (8, 0.0078125), (20, 2 / 2**20)])
def test_the_smallest_p_of_so_many_seeds(n, p):
    assert smallest_p(n) == p == sign_flip(np.linspace(1, 2, n))


@pytest.mark.parametrize("given, said", [
    ([1, NAN], r"seed 1 of 2 \(from 0\) is nan"), ([float("inf")], "seed 0 of 1"), ([[1, 2]], r"shape \(1, 2\)"),
    (3.0, r"shape \(\)"), (np.ones(21), "21 differences: all flips of at most 20"),
])
def test_what_is_no_list_of_differences_is_refused(given, said):
    with pytest.raises(ValueError, match=said):
        sign_flip(given)
    with pytest.raises(ValueError, match=f"ALL - wostop: .*{said}"):
        verdicts({"fine": [1, 2], "ALL - wostop": given})


# ---- Holm ------------------------------------------------------------------------------------------------------------------
def test_holm_is_statsmodels():
    assert "statsmodels 0." in HOLM["provenance"] and len(HOLM["cases"]) >= 25
    for case in HOLM["cases"]:
        found = holm({str(place): p for place, p in enumerate(case["p"])})
        assert list(found) == [str(place) for place in range(len(case["p"]))]
        assert list(found.values()) == pytest.approx(case["adjusted"], abs=1e-15)
        assert [p <= 0.05 for p in found.values()] == case["rejected"]


def test_holm_is_its_definition():
    """Step down: from the smallest on, reject while p_(i) <= level / (m - i + 1)."""
    rng = np.random.default_rng(1)
    for _ in range(200):
        p, level = rng.random(6) ** 3, rng.random() * 0.2
        rejected, order = set(), sorted(range(6), key=lambda i: p[i])
        for left, i in zip(range(6, 0, -1), order):
            if p[i] > level / left:
                break
            rejected.add(i)
        assert {i for i, q in holm(dict(enumerate(p))).items() if q <= level} == rejected


def test_holm_of_nothing_and_of_what_is_no_p():
    assert holm({}) == {}
    for wrong in (NAN, -0.1, 1.5):
        with pytest.raises(ValueError, match=r"b: p is .*must be in \[0, 1\]"):
            holm({"a": 0.5, "b": wrong})


# ---- verdicts --------------------------------------------------------------------------------------------------------------
def test_eight_seeds_that_agree_decide_six_primaries():
    agree = np.linspace(0.5, 1, 8)
    found = verdicts({name: sign * agree for name, sign in zip("abcdef", (1, -1, 1, 1, 1, 1))})
    assert [one.verdict for one in found.values()] == ["better", "worse", *["better"] * 4]
    assert all((one.p, one.adjusted, one.seeds, one.needed) == (2 / 256, 12 / 256, 8, None) for one in found.values())
    assert found["b"].mean == pytest.approx(-0.75)


def test_what_cannot_decide_says_how_many_seeds_would():
    found = verdicts({name: [1.0] * 7 for name in "abcdef"})
    assert all((one.verdict, one.needed, one.adjusted) == ("undecided", 8, 12 / 128) for one in found.values())
    assert verdicts({"a": [1.0] * 5})["a"].needed == 6 and verdicts({"a": [1.0] * 6})["a"].verdict == "better"
    assert (seeds_needed(1), seeds_needed(6), seeds_needed(7), seeds_needed(6, 0.01)) == (6, 8, 9, 11)
    # Seven seeds suffice for the last three of six once the others, with eight, have theirs.
    mixed = verdicts({name: [1.0] * (8 if name in "abc" else 7) for name in "abcdef"})
    assert [one.verdict for one in mixed.values()] == ["better"] * 6 and all(one.needed is None for one in mixed.values())


def test_primaries_without_seeds_yet_still_count():
    agree = [1.0] * 7
    assert verdicts({"a": agree})["a"].verdict == "better"
    found = verdicts({"a": agree} | {name: [] for name in "bcdef"})
    assert found["a"].verdict == "undecided" and found["a"].adjusted == 6 * 2 / 128
    assert found["b"] == Verdict(mean=None, p=1, adjusted=1, verdict="undecided", seeds=0, needed=8)
    assert verdicts({}) == {}


def test_no_difference_at_all_is_undecided():
    found = verdicts({"A/A": [0.0] * 8})["A/A"]
    assert (found.mean, found.p, found.verdict, found.needed) == (0, 1, "undecided", None)


def test_two_seeds_decide_nothing():
    for table in tables(50, 2, seed=3):
        table = {name: 1000 + values for name, values in table.items()}
        assert {(one.verdict, one.needed) for one in verdicts(table).values()} == {("undecided", 8)}
    assert verdicts({"alone": [1000, 1001]})["alone"].verdict == "undecided"


def test_tables_without_any_difference_get_few_verdicts():
    """At most 17 of 200 (1 % of right procedures exceed that); single tests without Holm's correction far exceed it."""
    found = [verdicts(table).values() for table in tables(200, 8, seed=4)]
    assert sum(any(one.verdict != "undecided" for one in table) for table in found) <= 17
    assert sum(any(one.p <= 0.05 for one in table) for table in found) > 34


def test_three_paired_deviations_are_found():
    rng, found = np.random.default_rng(5), []
    for table in tables(200, 8, seed=6):
        found.append(verdicts(table | {"a": 3 + rng.normal(size=8)})["a"].verdict)
    assert found.count("better") >= 0.8 * 200 and "worse" not in found


@pytest.mark.parametrize("level", [0, 1, -0.05, 5, NAN])
def test_levels_are_shares(level):
    for call in (lambda: verdicts({"a": [1, 2]}, level), lambda: seeds_needed(6, level), lambda: detectable(1, 8, 6, level),
                 lambda: detectable(1, 8, None, level)):
        with pytest.raises(ValueError, match="must be between 0 and 1"):
            call()


# ---- intervals -------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("n", [2, 3, 8, 30])
def test_t_intervals_are_scipys(n):
    differences = np.random.default_rng(n).normal(0.3, 2, n)
    found, theirs = t_interval(differences), stats.ttest_1samp(differences, 0).confidence_interval(0.95)
    assert (found.low, found.high) == pytest.approx((theirs.low, theirs.high), rel=1e-9)
    assert (found.value, found.error) == pytest.approx((differences.mean(), stats.sem(differences)))


def test_t_intervals_of_one_seed_of_equal_ones_and_of_none():
    one, equal = t_interval([2.0]), t_interval([2.0, 2.0, 2.0])
    assert (one.value, one.error, one.low, one.high) == (2, None, None, None)
    assert (equal.value, equal.error, equal.low, equal.high) == (2, 0, 2, 2)
    for wrong, said in (([], "at least one seed"), ([1, NAN], "seed 1 of 2")):
        with pytest.raises(ValueError, match=said):
            t_interval(wrong)


def test_the_interaction_is_seed_by_seed():
    assert interaction([5, 7], [1, 2], [3, 3], [2, 1]).tolist() == [3, 3]
    with pytest.raises(ValueError, match="2, 2, 2, 1 seeds: must be the same"):
        interaction([5, 7], [1, 2], [3, 3], [2])


# ---- bootstrap of a metric -------------------------------------------------------------------------------------------------
def outputs(runs, samples, seed, classes=2):
    """Labels and predictions (K, N, 2) of a good and of a worse column, and pictures of three samples each."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, samples)
    told = lambda wrong: np.where(rng.random((runs, samples)) < wrong, rng.integers(0, classes, (runs, samples)), labels)
    rows = lambda predictions: np.stack([np.broadcast_to(labels, predictions.shape), predictions], -1)
    return rows(told(0.3)), rows(told(0.5)), np.arange(samples) // 3


def test_a_metric_that_is_a_mean_is_the_mean():
    rng = np.random.default_rng(7)
    after, before, groups = rng.random((3, 60)), rng.random((3, 60)), rng.integers(0, 25, 60)
    by_mean, by_metric = (crossed_difference(after, before, groups, metric, draws=200) for metric in (None, np.mean))
    assert vars(by_mean) == pytest.approx(vars(by_metric), abs=1e-12)
    assert by_mean.value == pytest.approx((after - before).mean())
    assert crossed_difference(after, before, groups, np.mean, draws=200) == by_metric
    assert crossed_difference(after, before, groups, np.mean, draws=200, seed=1).low != by_metric.low


def test_draws_are_those_of_a_loop_by_hand():
    """Pictures and seeds drawn by their numbers and not by how often; same law, other draws."""
    after, before, groups = outputs(4, 90, seed=8)
    metric = lambda rows: matthews(rows[:, 0], rows[:, 1])
    found = crossed_difference(after, before, groups, metric, draws=500)
    assert found.value == pytest.approx(np.mean([metric(a) - metric(b) for a, b in zip(after, before)]))
    rng, drawn = np.random.default_rng(9), []
    for _ in range(500):
        rows = np.concatenate([np.flatnonzero(groups == picture) for picture in rng.integers(0, 30, 30)])
        seeds = rng.integers(0, 4, 4)
        drawn.append(np.mean([metric(after[k][rows]) - metric(before[k][rows]) for k in seeds]))
    assert found.error == pytest.approx(np.std(drawn), rel=0.12)
    assert (found.low, found.high) == pytest.approx(np.quantile(drawn, [0.025, 0.975]), abs=0.5 * found.error)


def test_seeds_and_samples_each_have_their_part_of_the_error():
    rng = np.random.default_rng(10)
    seeds, samples = rng.normal(size=(6, 1)), 3 * rng.normal(size=(1, 200))
    score = seeds + samples
    found = crossed_difference(score, np.zeros_like(score), range(200), draws=4000)
    assert found.error == pytest.approx((seeds.var() / 6 + samples.var() / 200) ** 0.5, rel=0.05)
    alone = crossed_difference([score.mean(0)], [np.zeros(200)], range(200), draws=4000)
    assert alone.error == pytest.approx((samples.var() / 200) ** 0.5, rel=0.05) and alone.value == pytest.approx(found.value)


def test_both_columns_have_the_same_draws():
    after, _, groups = outputs(3, 60, seed=11)
    found = crossed_difference(after, after, groups, lambda rows: f1(rows[:, 0], rows[:, 1]), draws=50)
    assert (found.value, found.error, found.low, found.high) == (0, 0, 0, 0)


def test_against_scipys_bootstrap_of_a_correlation():
    rng = np.random.default_rng(12)
    target = rng.normal(size=80)
    after, before = target + rng.normal(size=80), target + 2 * rng.normal(size=80)
    rows = lambda told: [np.stack([target, told], 1)]
    found = crossed_difference(rows(after), rows(before), range(80), lambda rows: pearson(rows[:, 0], rows[:, 1]), draws=1500)
    correlation = lambda x, y, axis: stats.pearsonr(x, y, axis=axis).statistic
    theirs = stats.bootstrap((target, after, before), lambda t, a, b, axis: correlation(t, a, axis) - correlation(t, b, axis),
                             paired=True, vectorized=True, n_resamples=1500, method="percentile", rng=13)
    assert found.error == pytest.approx(theirs.standard_error, rel=0.1)
    assert (found.low, found.high) == pytest.approx(theirs.confidence_interval, abs=0.3 * found.error)


def test_outputs_may_be_anything_in_a_list():
    """CIDEr, whose rare words are counted over the drawn pictures: no mean over pictures."""
    references = [text.split() for text in ("a red bird sings", "two dogs run", "a man on a boat", "snow on a hill")]
    good = [[(words, [words]) for words in references]] * 2
    bad = [[(references[0], [words]) for words in references]] * 2
    metric = lambda pairs: float(np.mean(cider_d([mine for mine, _ in pairs], [several for _, several in pairs])))
    found = crossed_difference(good, bad, range(4), metric, draws=40)
    assert found.value == pytest.approx(metric(good[0]) - metric(bad[0])) and found.low < found.value and found.error > 0


def test_where_a_draw_has_no_figure_there_is_no_interval():
    rows = [np.array([[1, 0.9], [0, 0.1], [0, 0.2]])]
    found = crossed_difference(rows, rows, range(3), lambda rows: roc_auc(rows[:, 0] == 1, rows[:, 1]), draws=100)
    assert (found.value, found.error, found.low, found.high) == (0, None, None, None)
    found = crossed_difference([[1.0, 2.0]], [[0.0, 0.0]], ["a", "a"])
    assert (found.value, found.error) == (1.5, None)


@pytest.mark.parametrize("after, before, groups, said", [
    ([], [], [], "0 and 0 runs"), ([[1.0]], [[1.0], [2.0]], [0], "1 and 2 runs"), ([[]], [[]], [], "0 and 0 samples"),
    ([[1.0, 2.0]], [[1.0]], [0, 1], "2 and 1 samples in 2 groups"), ([1.0, 2.0], [1.0, 2.0], [0, 1], "a single run is"),
    ([[1.0, NAN]], [[1.0, 2.0]], [0, 1], "the difference is nan"), ([[[1, 2]]], [[[1, 2]]], [0], "give a metric"),
])
def test_runs_that_do_not_pair_are_refused(after, before, groups, said):
    with pytest.raises(ValueError, match=said):
        crossed_difference(after, before, groups)


# ---- power -----------------------------------------------------------------------------------------------------------------
def test_where_all_seeds_must_agree_the_power_is_a_formula():
    """8 seeds and 6 primaries: found where all differences are positive, Phi(shift)^8; so 6 seeds and one primary."""
    for seeds, primaries in ((8, 6), (6, 1), (13, 200)):
        assert seeds_needed(primaries) == seeds
        assert detectable(1, seeds, primaries) == pytest.approx(stats.norm.ppf(0.8 ** (1 / seeds)), rel=0.02)


@pytest.mark.parametrize("seeds, primaries", [(7, 1), (9, 6), (10, 6), (12, 2), (15, 6)])
def test_so_often_it_is_found(seeds, primaries):
    """By sign flips that are enumerated here, all at once, with noise of our own."""
    shift, level = detectable(2.0, seeds, primaries) / 2, 0.05 / primaries
    flips = np.array(list(itertools.product([1, -1], repeat=seeds - 1)))
    flips = np.hstack([np.ones((len(flips), 1)), flips])
    sums = (shift + np.random.default_rng(14).normal(size=(500, seeds))) @ flips.T
    p = (np.abs(sums) >= np.abs(sums[:, :1]) - 1e-9).mean(1)
    assert ((p <= level) & (sums[:, 0] > 0)).mean() == pytest.approx(0.8, abs=0.05)


@pytest.mark.parametrize("seeds", [2, 3, 8, 20])
def test_by_an_interval_the_power_is_that_of_the_t_test(seeds):
    shift, limit = detectable(1, seeds, None), stats.t.ppf(0.975, seeds - 1)
    assert stats.nct.sf(limit, seeds - 1, shift * seeds**0.5) == pytest.approx(0.8, abs=1e-6)


def test_too_few_seeds_detect_nothing():
    assert detectable(1, 7, 6) is detectable(1, 5) is detectable(1, 0) is detectable(1, 1, None) is None


def test_a_pilot_stands_for_its_deviation():
    pilot = [1.0, 3.0, 2.5]
    assert detectable(pilot, 8, 6) == detectable(np.std(pilot, ddof=1), 8, 6) == pytest.approx(
        np.std(pilot, ddof=1) * detectable(1, 8, 6))
    assert detectable(0, 8, 6) == 0 and detectable(1, 8, 6) == detectable(1, 8, 6)
    assert detectable(1, 8, 6) > detectable(1, 9, 6) > detectable(1, 12, 6) > detectable(1, 13, 6) > detectable(1, 20, 6)
    for wrong, said in (([1.0], "a pilot of 1 seeds"), ([], "a pilot of 0"), (-1, "0 or more"), (NAN, "finite"),
                        ([1, NAN], "seed 1")):
        with pytest.raises(ValueError, match=said):
            detectable(wrong, 8, 6)
    with pytest.raises(ValueError, match="0 primaries"):
        detectable(1, 8, 0)
