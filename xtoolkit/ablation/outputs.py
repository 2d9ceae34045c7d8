"""How sure the difference between two cells of a table is: their metric, computed anew from what was kept of drawn samples."""

import math
from functools import cache

from xtoolkit.ablation.jobs import Job
from xtoolkit.registry import TASK_REGISTRY

DRAWS = 2000


def bootstrap(own: list[Job], other: list[Job], metric: str, draws: int = DRAWS):
    """own - other, in the metric's unit, with a standard error and a 95 % interval of samples and seeds.

    Of the seeds that both have finished, and the samples that all of these have kept, a draw takes groups of samples and seeds,
    both with replacement and the same for both sides, and computes the metric of what it has taken (``crossed_difference``). A
    group is what a row calls its ``group``, as the sentence of NLVR2; or its picture, with all its questions, texts or boxes; or
    the row itself. The task says what the metric is computed from (``Task.measured``): where that is a mean of what samples
    score, all draws are one matrix product; Matthews' correlation, F1, the mean over classes, correlations, the area under the
    ROC curve and BLEU are computed draw by draw. CIDEr-D is such a mean once document frequencies are given, and they are: those
    of all references, which no draw changes. Nor does a draw change the candidates that a query of retrieval ranks.

    What has been drawn is kept as long as the jobs are: a table is written anew whenever one of them is finished.

    Args:
        own, other: jobs of two cells, seed by seed in one order.
        metric: ``EVALUATION.METRIC``.

    Returns:
        A ``Difference``; None where no seed is finished on both sides, nothing was kept, no sample is shared, or the task says of
        no samples that the metric is computed from them.
    """
    pairs = [pair for pair in zip(own, other, strict=True) if all(job.complete for job in pair)]
    return _drawn(tuple(pairs), metric, draws) if pairs else None


@cache
def _drawn(pairs: tuple[tuple[Job, Job], ...], metric: str, draws: int):
    from xtoolkit.metrics.bootstrap import crossed_difference  # only here: a mistake in the table is answered without NumPy

    kept = {job: job.samples(metric) for pair in pairs for job in pair}
    first = kept[pairs[0][0]]
    shared = [sample for sample in first if all(sample in rows for rows in kept.values())]
    found = {job: _measured(job, metric, [rows[sample] for sample in shared]) for job, rows in kept.items()} if shared else {}
    if not found or None in found.values() or len({one.values.shape[1:] for one in found.values()}) > 1:
        return None
    sides = [[found[job].values for job in side] for side in zip(*pairs)]
    return crossed_difference(*sides, [_group(first[sample]) for sample in shared], found[pairs[0][0]].metric, draws)


def _measured(job: Job, metric: str, rows: list[dict]):
    """What a job's metric is computed from; None: its task does not say, or there is no such figure of these rows."""
    evaluation, _, name = metric.partition(".")
    recipe = job.recipe.checked
    task = TASK_REGISTRY.build(recipe.evaluate[evaluation], recipe.source.where("evaluate", evaluation))
    found = task.measured(rows).get(name)
    return found if found is not None and math.isfinite(found.metric(found.values)) else None


def _group(row: dict) -> str:
    """What is drawn together with a sample."""
    return str(next((row[key] for key in ("group", "image_id") if row.get(key) is not None), row["id"]))
