"""Doing the jobs of a conversion in several processes, their results in order, going on where a run was interrupted.

The pool is the standard library's. What stands around it no library of the field brings: webdataset's writers and
img2dataset know neither results in the order of the official files, so that shards are equal byte for byte however many
processes made them, nor a run that goes on after a kill without reading again what is done.
"""

import multiprocessing
import os
import signal
import sys
import threading
import time
from collections import deque
from collections.abc import Iterable
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from pathlib import Path

from xtoolkit.prepare.official import BadRecord, Report
from xtoolkit.prepare.staging import Job, Staging, Task
from xtoolkit.prepare.stats import Stats
from xtoolkit.prepare.writer import Draft, Options, TarPart, write_drafts

SECONDS = 10  # between lines of progress where the output is no terminal


class WorkerDied(RuntimeError):
    """A process ended without an answer."""


def run(label: str, jobs: Iterable[Job], options: Options, report: Report, total: int | None = None) -> Report:
    """Does the jobs and moves their shards to ``options.out`` as ``PREFIX-00000.SUFFIX``, numbered in their order.

    Until all are done they lie in a hidden folder of ``out``: no reader sees half a data set. A run that is
    interrupted, or stops at a wrong record, leaves it there, and the same command goes on: see ``Staging``.

    Args:
        label: names the conversion among those of one folder.
        report: what the making of the jobs counts; those of the jobs are added, in order.
        total: how many jobs there are, for the progress, if that is known before they are made.

    Raises:
        BadRecord: of the first job, in order, that has one.
        FileExistsError: ``out`` has shards of a prefix already.
        WorkerDied: a process was killed.
    """
    progress, whole, stats = Progress(label, total, options.progress), Report(options.skip_bad), Stats()

    def keep(task, result):
        if staging:
            staging.note(task, result)
        whole.add(result["report"])
        stats.add(result["stats"])
        progress.add(result)

    if options.out is None:
        staging = None
        _each(jobs, options, None, keep)
        progress.end(0)
        whole.add(report.as_dict())
        return whole
    with Staging(label, options) as staging:
        _each(jobs, options, staging, keep)
        progress.end(staging.reused)
        whole.add(report.as_dict())
        staging.finish(whole, stats)
    return whole


def write_pictures(label: str, drafts: Iterable[Draft], options: Options, report: Report,
                   total: int | None = None) -> Report:
    """``run`` over drafts, a job a shard."""
    return run(label, _shards(drafts, options), options, report, total)


def _shards(drafts, options):
    """The drafts of a prefix in their order, ``shard_size`` at a time."""
    waiting = {}
    for draft in drafts:
        batch = waiting.setdefault(draft.prefix, [])
        batch.append(draft)
        if len(batch) == options.shard_size:
            yield Job(draft.prefix, TarPart, write_drafts, waiting.pop(draft.prefix))
    yield from (Job(prefix, TarPart, write_drafts, batch) for prefix, batch in waiting.items())


def _each(jobs, options, staging, keep):
    """``keep(task, result)`` for each job, in order, a few of them ahead in other processes."""
    window, trouble = deque(), None
    folder = staging.folder if staging else None
    pool = _pool(options.workers) if options.workers > 1 else None
    try:
        for numbered in _until_trouble(jobs):
            if isinstance(numbered, BadRecord):
                trouble = numbered
                break
            job, number = numbered
            task = Task.of(job, number, options)
            call = partial(_do, job, number, options, folder)
            found = staging.found(task) if staging else None
            window.append((task, found or (pool.submit(call) if pool else call)))
            while len(window) > (2 * options.workers if pool else 0):
                _take(window, keep)
        while window:
            _take(window, keep)
        if trouble:
            raise trouble
    except BrokenProcessPool:
        raise WorkerDied("a worker process was ended from outside (is there enough memory?); what is finished is kept: "
                         "give the same command again, perhaps with fewer --workers") from None
    finally:
        if pool:
            pool.shutdown(cancel_futures=True)
        for task, answer in window:  # after an error or Ctrl-C: what others had finished is not lost
            if isinstance(answer, Future) and answer.done() and not answer.cancelled() and not answer.exception():
                keep(task, answer.result())


def _until_trouble(jobs):
    """(job, its number among those of its prefix); a wrong record met in making them comes last, as the value itself.

    So the jobs before it are finished and kept, and a wrong record in one of them is the one that is told.
    """
    numbers = {}
    try:
        for job in jobs:
            numbers[job.prefix] = numbers.get(job.prefix, -1) + 1
            yield job, numbers[job.prefix]
    except BadRecord as error:
        yield error


def _take(window, keep):
    task, answer = window[0]
    result = answer.result() if isinstance(answer, Future) else answer() if callable(answer) else answer
    window.popleft()
    keep(task, result)


def _do(job: Job, number: int, options: Options, folder: Path | None) -> dict:
    with job.part(options, folder, job.prefix, number) as part:
        job.work(job.payload, part)
    return part.result()


def _pool(workers: int) -> ProcessPoolExecutor:
    context = multiprocessing.get_context("forkserver")  # imports once, and copies no threads of the caller
    context.set_forkserver_preload(["xtoolkit.prepare.run"])
    return ProcessPoolExecutor(workers, mp_context=context, initializer=_begin_worker)


def _begin_worker():
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches every process; only the parent answers it

    def follow():
        multiprocessing.parent_process().join()
        os._exit(1)
    threading.Thread(target=follow, daemon=True).start()  # else a killed parent would leave its workers behind


class Progress:
    """Says on the standard error how far a conversion is: one line that is written anew, or a line now and then."""

    def __init__(self, label: str, total: int | None, on: bool):
        self.label, self.on, self.of = label, on, f" of {total:,}" if total else ""
        self.samples = self.jobs = 0
        self.begun = self.said = time.monotonic()
        self.alone = sys.stderr.isatty()

    def add(self, result: dict):
        self.jobs += 1
        self.samples += sum(counts["samples"] for counts in result["report"]["written"].values())
        if self.on and time.monotonic() - self.said > (0.2 if self.alone else SECONDS):
            self.said = time.monotonic()
            self._say("" if self.alone else "\n")

    def end(self, reused: int):
        if self.on:
            self._say("\n")
            if reused:
                print(f"{self.label}: {reused:,} of the parts were there from an earlier run", file=sys.stderr)

    def _say(self, end):
        pace = self.samples / max(time.monotonic() - self.begun, 1e-9)
        start = "\r" if self.alone else ""
        print(f"{start}{self.label}: {self.jobs:,}{self.of} parts, {self.samples:,} samples, "
              f"{pace:,.0f} a second", end=end, file=sys.stderr, flush=True)
