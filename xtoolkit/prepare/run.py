"""The jobs of a conversion: in several processes, their results in order, going on where a run was interrupted.

The pool is the standard library's. What stands around it no library of the field brings: webdataset's writers and
img2dataset know neither results in the order of the official files, so that shards are equal byte for byte however
many processes made them, nor a run that goes on after a kill without reading again what is done.
"""

import fcntl
import glob
import hashlib
import json
import multiprocessing
import os
import re
import shutil
import signal
import sys
import threading
from collections import Counter, deque
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from xtoolkit.prepare.official import BadRecord, Report
from xtoolkit.prepare.writer import Draft, Options, Part, TarPart, write_drafts

VERSION = 1  # raise it where what the converters write changes: parts of an interrupted run are then made anew
NUMBERED = re.compile(r"(.+)-\d{5}-\d{4}")  # the stem of a file of a job, where its prefix has several
MANIFEST = 2  # the shape of prepared-LABEL.json; raise it where that changes: the page of a folder leaves out all others


class WorkerDied(RuntimeError):
    """A process ended without an answer."""


@dataclass(frozen=True)
class Job:
    """One part of a conversion: ``work(payload, part)``, a function of a module, writes shards of a prefix by a ``part``.

    ``payload`` is all that it depends on but for ``Options``; its ``repr`` tells whether the job was done before.
    """

    prefix: str
    part: type[Part]
    work: Callable
    payload: object


def run(label: str, jobs: Iterable[Job], options: Options, report: Report, total: int | None = None) -> Report:
    """Does the jobs and moves their shards to ``options.out`` as ``PREFIX-00000.SUFFIX``, numbered in their order (of a
    ``whole`` part: ``PREFIX.SUFFIX``).

    Until all are done they lie in ``out/.unfinished-LABEL``: no reader sees half a data set. A run that was interrupted
    or stopped at a wrong record leaves that folder, and the same command goes on: a job is not done again if it was made
    from equal records and options and its files are whole. The pictures themselves are not looked at: where they were
    replaced, remove the folder. At the end ``prepared-LABEL.json`` says what was written, left out, changed and seen.

    ``report`` is what the making of the jobs counts; ``total`` their number, where it is known before they are made.

    Raises:
        BadRecord: of the first job, in order, that has one.
        FileExistsError: ``out`` has shards of a prefix already, or another process writes them.
        WorkerDied: a process was killed.
    """
    whole, files, found = Report(options.skip_bad), {}, 0
    with _staging(label, options.out) as folder:
        with _pool(options.workers) as submit, _progress(label, total, options.progress) as progress:
            for note in _in_order(_begun(jobs, options, folder, submit), 2 * options.workers):
                whole.add(note["report"])
                files |= note["files"]
                found += "found" in note
                samples = sum(counts["samples"] for counts in whole.written.values())
                again = f", {found:,} parts are from an earlier run" if found else ""
                progress.set_postfix_str(f"{samples:,} samples{again}", refresh=False)
                progress.update()
        whole.add(report.as_dict())
        if folder is not None:
            _finish(folder, label, files, whole)
    return whole


def write_pictures(label: str, drafts: Iterable[Draft], options: Options, report: Report,
                   total: int | None = None) -> Report:
    """``run`` over drafts, a job a shard."""
    def shards():
        waiting = {}
        for draft in drafts:
            batch = waiting.setdefault(draft.prefix, [])
            batch.append(draft)
            if len(batch) == options.shard_size:
                yield Job(draft.prefix, TarPart, write_drafts, waiting.pop(draft.prefix))
        yield from (Job(prefix, TarPart, write_drafts, batch) for prefix, batch in waiting.items())

    return run(label, shards(), options, report, total)


def _progress(label: str, total: int | None, shown: bool) -> tqdm:
    """A bar; in a log, where a bar would be one endless line, a line now and then."""
    if sys.stderr.isatty():
        return tqdm(desc=label, total=total, unit=" parts", mininterval=0.2, disable=not shown)
    return tqdm(desc=label, total=total, unit=" parts", mininterval=10, disable=not shown, file=_Lines(), ncols=0)


class _Lines:
    """The standard error as tqdm writes to it, a line each time: what it begins with is a carriage return."""

    def write(self, text: str):
        if said := text.strip():
            sys.stderr.write(f"{said}\n")

    def flush(self):
        sys.stderr.flush()


def _begun(jobs, options, folder, submit):
    """The answer to each job, to come. A wrong record met in making them is the last: one of a job before it is told."""
    numbers = Counter()
    try:
        for job in jobs:
            if folder is not None and job.prefix not in numbers:
                _check_free(folder.parent, job.prefix + "-[0-9]*" * (not job.part.whole), f".{job.part.suffix}")
            yield submit(_do, job, numbers[job.prefix], options, folder)
            numbers[job.prefix] += 1
    except BadRecord as error:
        last = Future()
        last.set_exception(error)
        yield last


def _check_free(out: Path, pattern: str, suffix: str):
    if there := glob.glob(f"{glob.escape(str(out))}/{pattern}{suffix}"):
        theirs = out / pattern.replace("[0-9]", "")
        raise FileExistsError(f"{min(there)} is there already: remove {theirs}{suffix} or give another --out")


def _in_order(answers, ahead: int):
    waiting = deque()
    for answer in answers:
        waiting.append(answer)
        if len(waiting) > ahead:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()


def _do(job: Job, number: int, options: Options, folder: Path | None) -> dict:
    """What a job wrote and counts: its note. It is kept beside the files when they are on the disk, and found again."""
    what = (VERSION, options.shard_size, options.verify, job.work.__qualname__, job.payload)
    made_from = hashlib.blake2b(repr(what).encode(errors="surrogateescape"), digest_size=16).hexdigest()
    place = None if folder is None else folder / f"{job.prefix}-{number:05d}.json"
    if place and (note := _found(place, made_from, options.skip_bad)):
        return note | {"found": True}
    with job.part(options, folder, job.prefix, number) as part:
        job.work(job.payload, part)
    note = {"made_from": made_from, "files": part.files, "report": part.report.as_dict()}
    if place:
        place.write_text(json.dumps(note))
    return note


def _found(place: Path, made_from: str, skip_bad: bool) -> dict | None:
    """The note of an earlier run, where it still holds."""
    try:
        note = json.loads(place.read_bytes())
        whole = all((place.parent / name).stat().st_size == file["bytes"] for name, file in note["files"].items())
    except (OSError, ValueError):  # no note, or one that was cut off; a file is gone
        return None
    skipped = "wrong records" in note["report"]["left_out"]
    return note if whole and note["made_from"] == made_from and (skip_bad or not skipped) else None


@contextmanager
def _pool(workers: int):
    """How a call is given to a process: ``submit(call, *arguments)`` -> Future. One worker is the process itself."""
    if workers == 1:
        yield _at_once
        return
    context = multiprocessing.get_context("forkserver")  # imports once, and copies no threads of the caller
    context.set_forkserver_preload(["xtoolkit.prepare.run"])
    pool = ProcessPoolExecutor(workers, mp_context=context, initializer=_begin_worker)
    try:
        yield pool.submit
    except BrokenProcessPool:
        raise WorkerDied("a worker process was ended from outside (is there enough memory?); what is finished is kept: "
                         "give the same command again, perhaps with fewer --workers") from None
    finally:
        pool.shutdown(cancel_futures=True)  # what is under way is finished, and its note written


def _at_once(call, *arguments) -> Future:
    answer = Future()
    answer.set_result(call(*arguments))
    return answer


def _begin_worker():
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches every process; only the parent answers it

    def follow():
        multiprocessing.parent_process().join()
        os._exit(1)
    threading.Thread(target=follow, daemon=True).start()  # else a killed parent would leave its workers behind


@contextmanager
def _staging(label: str, out: Path | None):
    """The hidden folder, ours alone; None where nothing is written. One in which no job was finished is removed."""
    if out is None:
        yield None
        return
    folder = Path(out) / f".unfinished-{label}"
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # the kernel lets go of it however we end
        except BlockingIOError:
            raise FileExistsError(f"{out}: another process is writing the same there; wait for it") from None
        _put_back(folder)
        try:
            yield folder
        finally:
            if not any(folder.glob("*.json")):
                shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _alone(out: Path):
    """Of all processes that move shards into a folder one at a time does; what it locks is gone afterwards."""
    place = out / ".moving"
    while True:
        with place.open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not os.fstat(lock.fileno()).st_nlink:  # who had it before has removed it: another may hold its successor
                continue
            try:
                yield
            finally:
                place.unlink()
            return


def _finish(folder: Path, label: str, files: dict, report: Report):
    """Numbers the files in the order of their jobs, moves them and writes the manifest.

    Raises:
        FileExistsError: another process has moved shards of a prefix there since this one began.
    """
    names, counts = {}, Counter()
    for name in files:
        prefix, suffix = Path(name).stem, Path(name).suffix
        if numbered := NUMBERED.fullmatch(prefix):
            prefix = f"{numbered[1]}-[0-9]*"
            names[name] = f"{numbered[1]}-{counts[prefix, suffix]:05d}{suffix}"
        else:
            names[name] = name
        counts[prefix, suffix] += 1
    manifest = {"version": MANIFEST, "label": label, **report.as_dict(),
                "files": {names[name]: file for name, file in files.items()}}
    (folder / "manifest").write_text(json.dumps(manifest, indent=1) + "\n")
    with _alone(folder.parent):
        for pattern, suffix in counts:
            _check_free(folder.parent, pattern, suffix)
        (folder / "moved.json").write_text(json.dumps(names))
        for name, target in names.items():
            os.replace(folder / name, folder.parent / target)
        os.replace(folder / "manifest", folder.parent / f"prepared-{label}.json")
    shutil.rmtree(folder)


def _put_back(folder: Path):
    """Takes back the shards of a run that was killed while it moved them."""
    try:
        names = json.loads((folder / "moved.json").read_bytes())
    except (OSError, ValueError):  # none was moved
        names = {}
    for name, target in names.items():
        if not (folder / name).exists() and (folder.parent / target).exists():
            os.replace(folder.parent / target, folder / name)
    (folder / "moved.json").unlink(missing_ok=True)

