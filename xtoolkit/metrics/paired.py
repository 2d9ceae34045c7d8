"""What paired seeds can say: verdicts on contrasts written down beforehand, intervals for all others, and what would be found.

A difference is one seed's figure minus another's with the same seed, the same data order and the same first weights. Higher is
better throughout. Shape letters: n seeds.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache

import numpy as np

from xtoolkit.metrics.bootstrap import Difference

MOST = 20  # seeds whose flips are enumerated: 2^20
WAYS, TRIALS = 8191, 4000  # of the simulated power: all ways to part 14 seeds in two


@dataclass(frozen=True)
class Verdict:
    """What one primary contrast says.

    Attributes:
        mean: of the differences; None without seeds.
        p, adjusted: of the sign-flip test alone, and by Holm's correction over all primaries.
        verdict: `better`, `worse` or `undecided`.
        seeds: how many there are.
        needed: how many could decide, where these cannot even if they all agree, in any primary; None where they can.
    """

    mean: float | None
    p: float
    adjusted: float
    verdict: str
    seeds: int
    needed: int | None


# ---- verdicts --------------------------------------------------------------------------------------------------------------
def sign_flip(differences) -> float:
    """The exact two-sided p of the hypothesis that a difference is as likely to be -x as x.

        p = #{s in {-1, 1}^n: |sum_i s_i d_i| >= |sum_i d_i|} / 2^n

    It holds for every symmetric distribution; paired seeds of two columns that do not differ have one. Ties count, up to
    rounding; a difference of 0 takes part; of none p is 1.

    Args:
        differences: (n,), n at most 20.

    Raises:
        ValueError: not a list of finite numbers, or too many of them.

    Source: Fisher 1935, The Design of Experiments, section 21.
    """
    differences = _finite(differences)
    if len(differences) > MOST:
        raise ValueError(f"{len(differences)} differences: all flips of at most {MOST} are enumerated")
    sums = np.zeros(1)
    for difference in differences:
        sums = np.concatenate([sums + difference, sums - difference])
    rounding = 1e-9 * np.abs(differences).sum()
    return float((np.abs(sums) >= abs(sums[0]) - rounding).mean())


def smallest_p(seeds: int) -> float:
    """The smallest p that ``sign_flip`` reaches with so many seeds: 2 / 2^n, where all agree."""
    return min(1.0, 2.0 ** (1 - seeds))


def seeds_needed(primaries: int, level: float = 0.05) -> int:
    """The fewest seeds with which each of so many primaries could get a verdict, whatever the others say."""
    _check_level(level)
    if primaries < 1:
        raise ValueError(f"{primaries} primaries: at least one is needed")
    seeds = 1
    while smallest_p(seeds) * primaries > level:
        seeds += 1
    return seeds


def holm(family: Mapping[str, float]) -> dict[str, float]:
    """{name: adjusted p} of {name: p}: below a level where Holm's procedure rejects at that level.

    Of m values in order, the i-th times m - i + 1, at most 1 and no less than the one before. The chance of one false verdict or
    more is at most the level, however the tests depend on each other. An empty family stays empty.

    Raises:
        ValueError: a p that is not in [0, 1], or NaN.

    Source: Holm 1979, A simple sequentially rejective multiple test procedure.
    """
    for name, p in family.items():
        if not 0 <= p <= 1:
            raise ValueError(f"{name}: p is {p}, must be in [0, 1]")
    adjusted, least = {}, 0.0
    for rank, name in enumerate(sorted(family, key=family.get)):
        least = max(least, min(1.0, (len(family) - rank) * family[name]))
        adjusted[name] = least
    return {name: adjusted[name] for name in family}


def verdicts(primaries: Mapping[str, object], level: float = 0.05) -> dict[str, Verdict]:
    """The verdict on each primary contrast: sign-flip tests over seeds, Holm's correction over all of them.

    Args:
        primaries: {name: (n,) differences over its seeds}, all that were written down, in whatever state: one that has no seeds
            yet counts in the correction, or verdicts would be taken back as the table fills.
        level: chance of one false verdict or more, where no contrast differs.

    Raises:
        ValueError: differences that are not finite, or too many, by the contrast's name.
    """
    _check_level(level)
    given, p = {}, {}
    for name, differences in primaries.items():
        try:
            given[name], p[name] = _finite(differences), sign_flip(differences)
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from None
    adjusted, best = holm(p), holm({name: smallest_p(len(values)) for name, values in given.items()})
    found = {}
    for name, values in given.items():
        mean = float(values.mean()) if len(values) else None
        said = "undecided" if adjusted[name] > level else "better" if mean > 0 else "worse"
        needed = seeds_needed(len(given), level) if best[name] > level else None
        found[name] = Verdict(mean, p[name], adjusted[name], said, len(values), needed)
    return found


# ---- intervals -------------------------------------------------------------------------------------------------------------
def t_interval(differences) -> Difference:
    """The mean difference over seeds (n,) with its 95 % t-interval; of one seed there is no interval.

    Raises:
        ValueError: no differences, or some that are not finite.

    Source: Student 1908.
    """
    from scipy.special import stdtrit  # only where it is used: a mistake in a table is answered without SciPy

    differences = _finite(differences)
    if len(differences) == 0:
        raise ValueError("no differences: at least one seed is needed")
    mean, n = float(differences.mean()), len(differences)
    if n == 1:
        return Difference(mean, None, None, None)
    error = float(differences.std(ddof=1) / n**0.5)
    reach = float(stdtrit(n - 1, 0.975)) * error
    return Difference(mean, error, mean - reach, mean + reach)


def interaction(a, b, c, d) -> np.ndarray:
    """(n,) the interaction (a - b) - (c - d) in each seed: what a step changes here beyond what it changes there.

    Args:
        a, b, c, d: (n,) figures of four columns, seed by seed in one order.

    Raises:
        ValueError: not the same number of seeds, or a figure that is not finite.
    """
    a, b, c, d = columns = [_finite(column) for column in (a, b, c, d)]
    if len({len(column) for column in columns}) > 1:
        raise ValueError(f"{', '.join(str(len(column)) for column in columns)} seeds: must be the same seeds of all four columns")
    return (a - b) - (c - d)


# ---- power -----------------------------------------------------------------------------------------------------------------
def detectable(deviation, seeds: int, primaries: int | None = 1, level: float = 0.05, power: float = 0.8) -> float | None:
    """The smallest true difference that so many seeds find, with its right sign, as often as ``power`` says.

    Differences are taken to be normal. For a primary, found means by the sign-flip test at ``level / primaries``, Holm's first
    step: what is found there has its verdict whatever the others say. Of given noise e the test finds a shift as soon as

        shift > the k-th largest of max(-mean(e over S), -mean(e over the others)),   k = floor(2^(n-1) level / primaries),

    over all 2^(n-1) - 1 ways to part the seeds in two; ``power`` is a quantile of that over 4,000 draws of e, of a fixed seed.
    Above 14 seeds some 8,000 random ways stand for all.

    Args:
        deviation: standard deviation of the paired differences, over seeds; or a pilot's differences, at least two, whose own is
            taken. (A pilot of three says little: the true one is 0.5 to 6.3 times as large, with 95 % confidence.)
        seeds: n.
        primaries: how many contrasts share the level; None: there is no verdict, and found means that the t-interval at
            ``1 - level`` excludes 0.

    Returns:
        In the unit of the deviation; None where no difference, however large, would be found.

    Raises:
        ValueError: a negative deviation, one that is not finite, a pilot of one, no primary, or a level outside (0, 1).

    Source: Hartigan 1969, Using subsample values as typical values (subset means invert the test); D. Owen 1968, on the
    noncentral t (without verdicts).
    """
    deviation = _deviation(deviation)
    shift = _by_interval(seeds, level, power) if primaries is None else _by_verdict(seeds, primaries, level, power)
    return None if shift is None else shift * deviation


def _by_interval(seeds, level, power) -> float | None:
    """``detectable`` in deviations, by a t-interval."""
    from scipy.special import nctdtrinc, stdtrit

    _check_level(level)
    return float(nctdtrinc(seeds - 1, 1 - power, stdtrit(seeds - 1, 1 - level / 2)) / seeds**0.5) if seeds > 1 else None


@cache
def _by_verdict(seeds, primaries, level, power) -> float | None:
    """``detectable`` in deviations, by the sign-flip test at ``level / primaries``."""
    if seeds < seeds_needed(primaries, level):
        return None
    rng = np.random.default_rng(0)
    all_ways, sample = 2 ** (seeds - 1) - 1, max(WAYS, int(20 * primaries / level))
    numbers = np.arange(all_ways) if all_ways <= sample else rng.choice(all_ways, sample, replace=False)
    chosen = numbers[:, None] >> np.arange(seeds - 1) & 1
    # Of each pair of a proper subset of the seeds and its complement the one with the first seed.
    subsets = np.hstack([np.ones((len(chosen), 1)), chosen])
    k = int(level / primaries * (len(subsets) + 1) + 1e-9)  # pairs of flips that may reach the sum, itself among them
    limits = []
    for noise in np.array_split(rng.standard_normal((TRIALS, seeds)), 100):
        inside = noise @ subsets.T
        outside = noise.sum(1, keepdims=True) - inside
        means = np.minimum(inside / subsets.sum(1), outside / (seeds - subsets.sum(1)))
        limits.append(-np.partition(means, k - 1, axis=1)[:, k - 1])
    return float(np.quantile(np.concatenate(limits), power))


def _deviation(deviation) -> float:
    if np.ndim(deviation):
        deviation = _finite(deviation)
        if len(deviation) < 2:
            raise ValueError(f"a pilot of {len(deviation)} seeds: a deviation needs at least two")
        deviation = deviation.std(ddof=1)
    if not 0 <= deviation < np.inf:
        raise ValueError(f"a deviation of {deviation}: must be finite, 0 or more")
    return float(deviation)


def _check_level(level):
    if not 0 < level < 1:
        raise ValueError(f"a level of {level}: must be between 0 and 1, as 0.05")


def _finite(values) -> np.ndarray:
    """(n,) float64; ValueError of another shape, NaN and infinity, by its place."""
    values = np.asarray(values, dtype=np.float64)
    if values.ndim != 1:
        raise ValueError(f"an array of shape {values.shape}: must be (n,), one number a seed")
    wrong = np.flatnonzero(~np.isfinite(values))
    if len(wrong):
        raise ValueError(f"seed {wrong[0]} of {len(values)} (from 0) is {values[wrong[0]]}: leave out seeds that have no figure")
    return values
