"""The line of guessing of each loss: what a guess may know of a run, and whether the run came below its line."""

from pathlib import Path
from statistics import fmean, stdev

from torch import Tensor

from xtoolkit.engine import distributed
from xtoolkit.engine.records import read_lines
from xtoolkit.recipe.folder import METRICS

# The last numbers of a run: a tenth of what it logged, but so many at least.
LEAST = 8
ROUNDING = 1e-6  # of float32: less apart are equal numbers


class Known:
    """What the guesses of a stream know in a step, beside their batch: other processes' sums, and counts of earlier steps.

    Args:
        stream: its name.
        counts: {``<stream>.<loss>``: (C,) int64} of all processes, which grows; the same for all streams.
    """

    total = staticmethod(distributed.total)

    def __init__(self, stream: str, counts: dict):
        self._stream, self._counts, self._before = stream, counts, {}

    def counts(self, loss: str, none: Tensor, new: Tensor) -> Tensor:
        """(C,) what ``loss`` had counted before this step, in whichever part of it; ``new`` counts from the next step on.

        Args:
            none: (C,) zeros, what is known at first.
        """
        key = f"{self._stream}.{loss}"
        known = self._counts[key].to(none.device) if key in self._counts else none
        self._counts[key] = known + self.total(new)
        return self._before.setdefault(loss, known)


def judge(lines: list[dict], names) -> dict[str, dict]:
    """Whether each loss of each stream came below its line of guessing, from what a run has logged.

    The differences between the loss and its guess at the last log steps are averaged; less than two standard errors
    from 0 they decide nothing.

    Args:
        lines: the objects of ``metrics.jsonl``.
        names: ``<stream>.<loss>`` of each.

    Returns:
        {name: {``last``, ``guess``: means over the last log steps, ``steps``: over how many steps, ``error``: two
        standard errors of their difference, ``learnt``: whether the loss is lower}}. ``guess`` is None where no line is known,
        ``error`` where too little is logged, ``learnt`` where nothing is decided. What was never logged is left out.
    """
    found = {}
    for name in names:
        logged = [line for line in lines if line.get(name) is not None]
        guessed = [line for line in logged if line.get(f"{name}.guess") is not None]
        last = (guessed or logged)[-max(LEAST, len(guessed or logged) // 10):]
        if not last:
            continue
        before = max((line["step"] for line in lines if "loss" in line and line["step"] < last[0]["step"]), default=0)
        verdict = {"last": fmean([line[name] for line in last]), "guess": None, "steps": last[-1]["step"] - before,
                   "error": None, "learnt": None}
        if guessed:
            verdict["guess"] = fmean([line[f"{name}.guess"] for line in last])
        if len(guessed) >= LEAST:
            apart = [line[name] - line[f"{name}.guess"] for line in last]
            verdict["error"] = max(2 * stdev(apart) / len(apart) ** 0.5, ROUNDING * abs(verdict["guess"]))
            if abs(fmean(apart)) > verdict["error"]:
                verdict["learnt"] = fmean(apart) < 0
        found[name] = verdict
    return found


def judge_run(output, recipe) -> dict[str, dict]:
    """``judge`` of what a run's folder holds."""
    names = [f"{stream}.{loss}" for stream, spec in recipe.streams.items() for loss in spec.losses]
    return judge(read_lines(Path(output) / METRICS), names)


def sentences(judged: dict[str, dict]) -> list[str]:
    """What ``judge`` found, a sentence a loss."""
    found = []
    for name, verdict in judged.items():
        stream, _, loss = name.partition(".")
        told = f"{loss} ({stream}): {verdict['last']:.4g} over the last {verdict['steps']} steps, "
        if verdict["guess"] is None:
            found.append(told + "and no line of guessing is known")
            continue
        ends = {True: "learnt beyond guessing", False: "not learnt, it is worse than guessing",
                None: f"undecided, the difference is within its error of {verdict['error'] or 0:.2g}"}
        end = "the run is too short to tell" if verdict["error"] is None else ends[verdict["learnt"]]
        found.append(f"{told}guessing is {verdict['guess']:.4g}: {end}")
    return found
