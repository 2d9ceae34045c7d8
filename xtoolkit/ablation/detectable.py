"""The smallest differences that the asked seeds of a table would find, row by row, before it runs."""

import re
import statistics
from itertools import combinations

from xtoolkit.ablation.jobs import Jobs
from xtoolkit.ablation.contrasts import decimals

POWER = 0.8  # how often a difference must be found that is named
RIGHT = re.compile(r"accuracy|top\d+|(\w+_)?r\d+")  # what figures are called that are per cents of samples told right


def smallest(jobs: Jobs, seeds: int, samples: dict[str, int]) -> str:
    """A table of rows, and what a t-interval over so many seeds would tell from 0 in 80 of 100 times.

    The deviation of a difference, from seed to seed, is that of the columns of which two seeds or more are there. Before there
    are any it is a guess for per cents of n samples told right: two columns that answer each rightly half of the time, and
    independently, differ by 100 sqrt(2 * 0.25 / n). No bound: columns that agree on most samples differ by less, and two
    trainings by more than their samples. Of other figures, as correlations and a mean IoU, nothing is guessed.

    Args:
        seeds: of each column.
        samples: {row: that its first metric is of}, where they are known.
    """
    from xtoolkit.metrics.paired import detectable  # only here: a mistake in the table is answered without NumPy

    lines = []
    for name, row in jobs.table.rows.items():
        (title, metric), *_ = row.metrics.items()
        deviation, pairs = seen(jobs, name, metric)
        if deviation is not None:
            told = f"{pairs} pair{'s' * (pairs > 1)} of columns"
        elif name in samples and RIGHT.fullmatch(metric.rpartition(".")[2]):
            deviation, told = 100 * (0.5 / samples[name]) ** 0.5, f"a guess, from {samples[name]:,} samples alone"
        else:
            lines.append([name, title, "–", "no two seeds yet", "–"])
            continue
        found = detectable(deviation, seeds, primaries=None, power=POWER) if deviation > 1e-9 else None
        places = decimals([deviation])
        lines.append([name, title, f"{deviation:.{places}f}", told, "none" if found is None else f"{found:.{places}f}"])
    named = f"smallest found with {seeds} seed{'s' * (seeds != 1)}"
    rows = [["row", "metric", "deviation of a difference", "from", named], ["---"] * 5, *lines]
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def seen(jobs: Jobs, row: str, metric: str) -> tuple[float | None, int]:
    """The deviation over seeds of the difference of two columns of a row, pooled over all pairs that have two seeds or more, and
    how many these are; None and 0 where there are none."""
    table = jobs.table
    columns = [name for name, column in table.columns.items() if table.applies(table.rows[row], column)]
    values = {name: {seed: jobs.cell(name, row, "", seed).value(metric) for seed in table.seeds} for name in columns}
    found = []
    for one, other in combinations(columns, 2):
        differences = [values[one][seed] - values[other][seed] for seed in table.seeds
                       if values[one][seed] is not None and values[other][seed] is not None]
        if len(differences) > 1:
            found.append((len(differences) - 1, statistics.variance(differences)))
    if not found:
        return None, 0
    return (sum(n * variance for n, variance in found) / sum(n for n, _ in found)) ** 0.5, len(found)
