"""For each row of a table the samples on which two of its columns differ most, from what evaluations kept of each."""

import json
from statistics import fmean

from xtoolkit.ablation.jobs import Job

EACH = 4  # samples in favour of either column
LETTERS = 160  # of a value, at most
APART = {"id", "image_id", "score"}


def differing(ones: list[Job], others: list[Job], metric: str) -> list[list[str]]:
    """Rows (sample, score of one, of the other, what both records have, what only each has) of the samples whose scores, means
    over the seeds that both have, differ most: first those in favour of ``ones``. Empty: none do, or have no scores.

    Args:
        ones, others: cells of a row, a job a seed in the same order.
        metric: of the evaluation whose samples are compared.
    """
    pairs = [pair for jobs in zip(ones, others) if all((pair := [_scored(job, metric) for job in jobs]))]
    if not pairs:
        return []
    shared = [sample for sample in pairs[0][0] if all(sample in side for pair in pairs for side in pair)]
    scores = {sample: [fmean(pair[side][sample]["score"] for pair in pairs) for side in (0, 1)] for sample in shared}
    apart = sorted(shared, key=lambda sample: scores[sample][1] - scores[sample][0])
    better = [sample for sample in apart[:EACH] if scores[sample][0] > scores[sample][1]]
    worse = [sample for sample in apart[::-1][:EACH] if scores[sample][0] < scores[sample][1]]
    return [[_name(pairs[0][0][sample]), *(f"{score:.3g}" for score in scores[sample]),
             *_said(pairs[0][0][sample], pairs[0][1][sample])] for sample in better + worse]


def _scored(job: Job, metric: str) -> dict[str, dict]:
    return {sample: kept for sample, kept in job.samples(metric).items() if kept.get("score") is not None}


def _name(kept: dict) -> str:
    """What a sample is called: its id, and its picture where that says more."""
    name, picture = str(kept["id"]), str(kept.get("image_id") or "")
    return f"{name} ({picture})" if picture and picture not in name else name


def _said(one: dict, other: dict) -> tuple[str, str, str]:
    """What is the same in two records, and what only the first and only the second says, of the first seed."""
    same = {key: value for key, value in one.items() if key not in APART and other.get(key) == value}
    return _short(same), *(_short({key: value for key, value in side.items() if key not in APART and key not in same})
                           for side in (one, other))


def _short(values: dict) -> str:
    shown = [f"{key} {value if isinstance(value, str) else _number(value)}" for key, value in values.items() if value is not None]
    return "; ".join(line if len(line) <= LETTERS else f"{line[:LETTERS - 1]}…" for line in shown)


def _number(value) -> str:
    if isinstance(value, float):
        return f"{value:.3g}"
    if isinstance(value, list):
        return f"[{', '.join(map(_number, value[:8]))}{', …' if len(value) > 8 else ''}]"
    return json.dumps(value, ensure_ascii=False)
