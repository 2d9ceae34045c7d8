"""What a table would take before it runs: hours, disk, memory, and the smallest difference that its seeds would find."""

import heapq
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from xtoolkit.ablation import keys
from xtoolkit.ablation.detectable import smallest
from xtoolkit.ablation.jobs import DONE, Job, Jobs
from xtoolkit.ablation.runner import WAIT, end_of_log
from xtoolkit.engine.storage import amount
from xtoolkit.registry import ConfigError

HOUR = 3600  # seconds: what would take longer is asked about first
FOLDER = "forecast"  # in a table's: what was measured, a file a recipe


@dataclass(frozen=True)
class Cost:
    """Of one job.

    Attributes:
        processor, clock: seconds; of finished jobs of its recipe where there are any, else as measured.
        memory: bytes at the peak.
        stays, passing: bytes on disk when it has ended, and more while it runs.
    """

    processor: float
    clock: float
    memory: int
    stays: float
    passing: float


class Forecast:
    """What is still to run of a table."""

    def __init__(self, jobs: Jobs, todo: list[Job], side_by_side: int = 1, weights: bool = False,
                 say: Callable[[str], None] = print):
        """Measures each recipe that a job to be run has and that was not measured before, as many side by side as jobs will run.

        Args:
            todo: each after those that it starts from.
            side_by_side: at most so many run at once.
            weights: the checkpoints of rows stay too.

        Raises:
            ConfigError: a recipe whose first steps fail, with the end of what it said.
        """
        self.jobs, self.todo, self.side_by_side = jobs, [job for job in todo if not job.complete], side_by_side
        self.finished = [job for job in todo if job.complete]
        self._folder = Path(jobs.table.output) / FOLDER
        self.measured = self._measure(say)
        self.costs = {job: self._cost(job, weights) for job in self.todo}

    # ---- what it takes ----------------------------------------------------------------------------------------------
    @property
    def processor(self) -> float:
        """Processor seconds of all that is to run."""
        return sum(cost.processor for cost in self.costs.values())

    @property
    def clock(self) -> float:
        """Seconds until all has run: each job begins as soon as what it starts from has ended and there is room beside others."""
        now, running, waiting, ended = 0.0, [], list(self.todo), set()
        while waiting or running:
            ready = (job for job in list(waiting) if not any(one in self.costs and one not in ended for one in job.after))
            while len(running) < self.side_by_side and (job := next(ready, None)) is not None:
                waiting.remove(job)
                heapq.heappush(running, (now + self.costs[job].clock, len(waiting), job))
            now, _, job = heapq.heappop(running)
            ended.add(job)
        return now

    @property
    def samples(self) -> dict[str, int]:
        """{row: samples that its first metric is of}, where they were counted."""
        found = {}
        for job in [*self.todo, *self.finished]:
            if job.row and not job.control and self._file(job).is_file():
                counted = self._read(job)["samples"]
                metric = next(iter(self.jobs.table.rows[job.row].metrics.values()))
                evaluation, _, figure = metric.partition(".")
                found |= {job.row: counted[evaluation][figure]} if figure in counted[evaluation] else {}
        return found

    @property
    def disk(self) -> tuple[float, float]:
        """Bytes that stay, and at most so many more while it runs."""
        passing = sorted((cost.passing for cost in self.costs.values()), reverse=True)
        return sum(cost.stays for cost in self.costs.values()), sum(passing[:self.side_by_side])

    def text(self) -> str:
        """What is to run, a line a recipe, what the seeds would find, and the sums."""
        stays, passing = self.disk
        memory = sum(sorted((cost.memory for cost in self.costs.values()), reverse=True)[:self.side_by_side])
        by_recipe: dict[Path, list[Job]] = {}
        for job in self.todo:
            by_recipe.setdefault(self._file(job), []).append(job)
        lines = ["| job | to run | processor, each | wall, each | memory | disk, each |", "| --- | --- | --- | --- | --- | --- |"]
        for jobs in by_recipe.values():
            cost = self.costs[jobs[0]]
            name = " / ".join(dict.fromkeys(", ".join(filter(None, [job.row, job.control])) or job.column for job in jobs))
            lines.append(f"| {name} | {len(jobs)} | {span(cost.processor)} | {span(cost.clock)} | {amount(cost.memory)} | "
                         f"{amount(cost.stays)} |")
        took = _took(self.finished, sum)
        seeds = len({job.seed for job in (*self.todo, *self.finished)})
        said = [f"forecast: {len(self.todo)} jobs to run: {span(self.processor)} of processors, {span(self.clock)} with --jobs "
                f"{self.side_by_side}; {amount(stays)} of disk stay, {amount(passing)} more while it runs; "
                f"{amount(memory)} of memory"]
        if took:
            said.append(f"finished: {len(self.finished)} jobs; {took[2]} of them in one go, {span(took[0])} of processors")
        return "\n".join([*(lines if self.todo else ()), "", smallest(self.jobs, seeds, self.samples), "", *said])

    def _cost(self, job, weights) -> Cost:
        found = self.measured[self._file(job)]
        processor, clock = (sum(count * each[place] for count, *each in found["parts"].values()) for place in (0, 1))
        if took := _took(self._same(job)):
            processor, clock, _ = took
        saved = found["checkpoint"] * found["checkpoints"]
        stays = saved if weights or not job.row else 0
        return Cost(processor, clock, found["memory"], found["outputs"] + stays, saved - stays + found["checkpoint"])

    def _same(self, job):
        """Other seeds of a job, and rows of other columns that fine-tune by the same recipe."""
        return [one for one in self.finished if one.recipe.key == job.recipe.key]

    # ---- measurements -----------------------------------------------------------------------------------------------
    def _measure(self, say) -> dict[Path, dict]:
        """{a measurement's file: what ``measure`` found}."""
        first = {}
        for job in self.todo:
            first.setdefault(self._file(job), job)
        lacking = [job for job in first.values() if not self._file(job).is_file()]
        if lacking:
            say(f"forecast: a few steps of {len(lacking)} recipes are measured, and kept in {self._folder}")
        self._folder.mkdir(parents=True, exist_ok=True)
        running: dict[subprocess.Popen, tuple] = {}
        try:
            self._measure_all(lacking, running, say)
        except BaseException:
            self._stop(running)
            raise
        return {file: self._read(job) for file, job in first.items()}

    def _measure_all(self, waiting, running, say):
        while waiting or running:
            while waiting and len(running) < self.side_by_side:
                job, scratch = waiting.pop(0), tempfile.TemporaryDirectory(dir=self._folder)
                running[self._start(job, scratch.name)] = job, scratch
            time.sleep(WAIT)
            for process in [process for process in running if process.poll() is not None]:
                job, scratch = running.pop(process)
                scratch.cleanup()
                if process.returncode:
                    raise ConfigError(f"{job}: a few steps of it could not be measured: exit code {process.returncode}, see "
                                      f"{self._log(job)}, which ends with:\n{end_of_log(self._file(job).with_suffix(''))}")
                for note in self._read(job)["notes"]:
                    say(f"forecast: {job}: {note}")

    def _start(self, job, scratch):
        there = all(start.complete for start in job.after)
        lines = [*job.overrides, f"train.output={scratch}/run"]
        told = {"config": job.recipe.path, "init": there, "workers": job.recipe.checked.train.workers,
                "overrides": [*lines, "train.workers=0"], "into": str(self._file(job)), "began": time.time()}
        with open(self._log(job), "w", encoding="utf-8") as log:
            return subprocess.Popen([sys.executable, "-m", "xtoolkit.cli.measure", json.dumps(told)], stdout=log, stderr=log,
                                    env=os.environ | {"OMP_NUM_THREADS": str(job.recipe.threads)})

    @staticmethod
    def _stop(running):
        for process, (_, scratch) in running.items():
            process.kill()
            process.wait()
            scratch.cleanup()

    def _file(self, job):
        """Called by all that a measurement depends on: also settings that no figure does, and the engine."""
        train = job.recipe.checked.train
        told = [job.recipe.key, train.checkpoint_every, train.log_every, train.workers, train.device, keys.engine()]
        return self._folder / f"{keys.digest(json.dumps(told, default=str))[:16]}.json"

    def _log(self, job):
        return self._file(job).with_suffix(".log")

    def _read(self, job):
        return json.loads(self._file(job).read_text(encoding="utf-8"))


def _took(jobs, of=statistics.fmean) -> tuple[float, float, int] | None:
    """Processor seconds and seconds of finished jobs, their mean or ``of`` them, and of how many jobs: those that no kill has cut
    in two; None: of none."""
    told = [json.loads((job.folder / DONE).read_text(encoding="utf-8")) for job in jobs]
    told = [(one["processor_seconds"], one["seconds"]) for one in told if one.get("processor_seconds") is not None]
    return (*map(of, zip(*told)), len(told)) if told else None


def span(seconds: float) -> str:
    """3.2 h, 12 min, 40 s."""
    for unit, name in ((3600, "h"), (60, "min")):
        if seconds >= unit:
            return f"{seconds / unit:.3g} {name}"
    return f"{seconds:.3g} s"
