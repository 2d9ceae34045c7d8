"""How sure differences of a table's figures are: their metrics, computed anew from what was kept of drawn samples."""

import math
from functools import cache, lru_cache

from xtoolkit.ablation.jobs import Job
from xtoolkit.recipe.folder import EVALUATIONS
from xtoolkit.registry import TASK_REGISTRY

DRAWS = 2000


def bootstrap(own: list[Job], other: list[Job], metric: str, draws: int = DRAWS):
    """``combined``: own - other."""
    return combined([(1, own, metric), (-1, other, metric)], draws)


def combined(terms: list[tuple[float, list[Job], str]], draws: int = DRAWS):
    """A weighted sum of figures, averaged over seeds, in their unit, with a standard error and a 95 % interval of samples and
    seeds: a difference of two cells, or a contrast of means over rows.

    Of the seeds that all cells have finished, and of each row the samples that all of its jobs have kept, a draw takes groups of
    samples and seeds, both with replacement, and computes each metric of what it has taken. The samples are the same for all
    columns of a row, those of two rows are drawn apart, and the seeds are the same for all rows. A group is what a row calls its
    ``group``, as the sentence of NLVR2; or its picture, with all its questions, texts or boxes; or the row itself. The task says
    what the metric is computed from (``Task.measured``): where that is a mean of what samples score, all draws are one matrix
    product; Matthews' correlation, F1, the mean over classes, correlations, the area under the ROC curve and BLEU are computed
    draw by draw. CIDEr-D is such a mean once document frequencies are given, and they are: those of all references, which no draw
    changes. Nor does a draw change the candidates that a query of retrieval ranks.

    A job's figures in all draws are kept as long as the job is: it stands in many differences.

    Args:
        terms: (weight, jobs of a cell, ``EVALUATION.METRIC``), the jobs of all cells seed by seed in one order.

    Returns:
        A ``Difference``, without an interval where nothing varies, as one group or equal answers, and where a metric is not
        finite in some draw; None where no seed is finished in all cells, nothing was kept, no sample is shared, or a task says of
        no samples that the metric is computed from them.

    Source: Efron and Tibshirani 1993, chapters 6, 8 and 13 (percentiles); A. Owen 2007, The pigeonhole bootstrap, for two crossed
    factors.
    """
    whole = [place for place, jobs in enumerate(zip(*(cell for _, cell, _ in terms), strict=True))
             if all(job.complete for job in jobs)]
    if not whole:
        return None
    import numpy as np  # only here: a mistake in the table is answered without it

    from xtoolkit.metrics.bootstrap import Difference

    terms = [(weight, [cell[place] for place in whole], metric) for weight, cell, metric in terms]
    several: dict[tuple[str, str], list[Job]] = {}  # that are asked the same samples
    for _, cell, metric in terms:
        several.setdefault(_asked(cell[0], metric), []).extend(cell)
    shared = {asked: tuple((sample, group) for sample, group in _groups(jobs[0], asked[1]).items()
                           if all(sample in _groups(job, asked[1]) for job in jobs)) for asked, jobs in several.items()}
    found = [[_drawn(job, metric, shared[_asked(job, metric)], draws) for job in cell] for _, cell, metric in terms]
    if any(one is None for cell in found for one in cell):
        return None
    sums = sum(weight * np.stack(cell, 1) for (weight, *_), cell in zip(terms, found))  # (1 + draws, seeds)
    value, drawn = float(sums[0].mean()), (sums[1:] * _seeds(len(whole), draws)).sum(1) / len(whole)
    alone = any(len({group for _, group in pairs}) == 1 for pairs in shared.values())
    if alone or not np.isfinite(drawn).all() or drawn.std() < 1e-9:
        return Difference(value, None, None, None)
    low, high = np.quantile(drawn, [0.025, 0.975])
    return Difference(value, float(drawn.std(ddof=1)), float(low), float(high))


def _asked(job, metric) -> tuple[str, str]:
    """Which samples a figure is of."""
    return job.row, metric.partition(".")[0]


@cache
def _groups(job: Job, evaluation: str) -> dict[str, str]:
    """{sample: what is drawn together with it}."""
    return {sample: str(next((row[key] for key in ("group", "image_id") if row.get(key) is not None), row["id"]))
            for sample, row in job.samples(f"{evaluation}.").items()}


@cache
def _drawn(job: Job, metric: str, shared: tuple[tuple[str, str], ...], draws: int):
    """(1 + draws,) a job's figure of all shared samples, each with its group, then of each draw of them. None: its task does not
    say what it is computed from, or there is no such figure of these samples."""
    import numpy as np

    evaluation, _, name = metric.partition(".")
    rows, recipe = job.samples(metric), job.recipe.checked
    task = TASK_REGISTRY.build(recipe.evaluate[evaluation], recipe.source.where("evaluate", evaluation), tokenizer=None,
                               output=job.folder / EVALUATIONS / evaluation)
    found = task.measured([rows[sample] for sample, _ in shared]).get(name) if shared else None
    if found is None or not math.isfinite(found.metric(found.values)):
        return None
    of = np.unique([group for _, group in shared], return_inverse=True)[1]
    return figures(*found, of, _counts(f"{job.row}, {evaluation}", int(of.max()) + 1, draws))


def figures(values, metric, of, counts):
    """(D,) the figure of D draws.

    Args:
        values, metric: see ``Measured``; N samples.
        of: (N,) which group each is of.
        counts: (D, G) how often a draw takes each group.
    """
    import numpy as np

    from xtoolkit.metrics.mean import as_columns, means

    if metric is not means:
        return np.array([metric(values[np.repeat(np.arange(len(of)), often[of].astype(int))]) for often in counts])
    columns = as_columns(values, (1, 2))
    known = ~np.isnan(columns)
    by_group = lambda several: np.stack([np.bincount(of, weights=column) for column in several.T], 1)  # (G, M)
    often = counts @ by_group(known)
    return (counts @ by_group(np.where(known, columns, 0)) / np.where(often > 0, often, np.nan)).mean(1)


@lru_cache(2)
def _counts(name: str, groups: int, draws: int):
    """(1 + draws, groups) float64: each group once, then how often each draw takes it; other draws for another name."""
    import numpy as np

    drawn = np.random.default_rng(list(name.encode())).multinomial(groups, np.full(groups, 1 / groups), size=draws)
    return np.concatenate([np.ones((1, groups)), drawn])


@cache
def _seeds(seeds: int, draws: int):
    """(draws, seeds) how often each draw takes each seed."""
    import numpy as np

    return np.random.default_rng(0).multinomial(seeds, np.full(seeds, 1 / seeds), size=draws)
