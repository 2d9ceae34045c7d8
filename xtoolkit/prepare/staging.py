"""What is kept between the runs of a conversion: finished parts in a hidden folder, and what each was made from."""

import fcntl
import glob
import hashlib
import json
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from xtoolkit.prepare.official import Report
from xtoolkit.prepare.stats import Stats
from xtoolkit.prepare.writer import Options, Part

VERSION = 1  # raise it where what the converters write changes: parts of an interrupted run are then made anew


@dataclass(frozen=True)
class Job:
    """One part of a conversion.

    Attributes:
        prefix: of its shards.
        part: the class that writes them.
        work: ``work(payload, part)``, a function of a module.
        payload: all that it depends on but for ``Options``; its ``repr`` tells whether the job was done before.
    """

    prefix: str
    part: type[Part]
    work: Callable
    payload: object


@dataclass(frozen=True)
class Task:
    """What is left of a job when its payload may go: its name, and a fingerprint of all that it was made from."""

    prefix: str
    suffix: str
    number: int
    made_from: str

    @classmethod
    def of(cls, job: Job, number: int, options: Options) -> "Task":
        what = (VERSION, options.shard_size, options.verify, job.work.__qualname__, job.payload)
        made_from = hashlib.blake2b(repr(what).encode(errors="surrogateescape"), digest_size=16).hexdigest()
        return cls(job.prefix, job.part.suffix, number, made_from)

    @property
    def name(self) -> str:
        return f"{self.prefix} {self.number}"


class Staging:
    """The hidden folder ``.unfinished-LABEL`` of an unfinished conversion, with ``notes.txt``: a line a finished job.

    A job of the same name is not done again if its fingerprint is the one noted and its files have the sizes noted;
    whatever changed, annotations, records or options, is so found job by job. The pictures themselves are not looked
    at: where they were replaced, remove the folder. Everything is on the disk before it is noted.

    ``finish`` gives the shards their names, moves them and writes ``prepared-LABEL.json``: what was written, left out,
    changed and seen.

    Raises:
        FileExistsError: another process has the folder; or ``out`` has shards of a prefix already.
    """

    def __init__(self, label: str, options: Options):
        self.out, self.label, self.skip_bad = Path(options.out), label, options.skip_bad
        self.folder = self.out / f".unfinished-{label}"
        self.reused, self._notes, self._done, self._free = 0, {}, [], set()

    def __enter__(self):
        self.folder.mkdir(parents=True, exist_ok=True)
        self._lock = (self.folder / "lock").open("w")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # the kernel lets go of it however we end
        except BlockingIOError:
            self._lock.close()
            raise FileExistsError(f"{self.out}: another process is writing the same there; wait for it") from None
        if (self.folder / "final.json").exists():  # killed while it moved the shards
            self._move()
            self.folder.mkdir()
        path = self.folder / "notes.txt"
        for line in path.read_text().splitlines() if path.exists() else ():
            try:
                note = json.loads(line)
            except ValueError:
                continue  # cut off when the run was killed
            self._notes[note["job"]] = note
        self._file = path.open("a")
        self._file.write("\n")
        return self

    def __exit__(self, kind, value, trace):
        self._file.close()
        if kind is not None and not self._notes:
            shutil.rmtree(self.folder)
        self._lock.close()

    def found(self, task: Task) -> dict | None:
        """What the job gave in an earlier run, where that still holds."""
        self._check_free(task)
        note = self._notes.get(task.name)
        if note is None or note["made_from"] != task.made_from:
            return None
        result = note["result"]
        if "wrong records" in result["report"]["left_out"] and not self.skip_bad:
            return None
        for name, _, size in result["files"]:
            path = self.folder / name
            if not path.is_file() or path.stat().st_size != size:
                return None
        self.reused += 1
        return result

    def _check_free(self, task):
        if task.prefix not in self._free:
            shards = f"{self.out / task.prefix}-*.{task.suffix}"
            there = glob.glob(f"{glob.escape(str(self.out / task.prefix))}-[0-9]*.{task.suffix}")
            if there:
                raise FileExistsError(f"{min(there)} is there already: remove {shards} or give another --out")
            self._free.add(task.prefix)

    def note(self, task: Task, result: dict):
        """Keeps the result of a job."""
        self._done.append((task, result["files"]))
        note = {"job": task.name, "made_from": task.made_from, "result": result}
        if self._notes.get(task.name) != note:
            self._notes[task.name] = note
            self._file.write(json.dumps(note) + "\n")
            self._file.flush()

    def finish(self, report: Report, stats: Stats):
        """Numbers the files in the order of their jobs and moves them; after a kill in between the next run goes on."""
        names, counts, files = {}, {}, {}
        for task, written in self._done:
            for name, samples, size in written:
                counts[task.prefix] = counts.get(task.prefix, -1) + 1
                names[name] = f"{task.prefix}-{counts[task.prefix]:05d}.{task.suffix}"
                files[names[name]] = [samples, size]
        found = stats.as_dict()
        for _, shown in found["shown"]:
            if "file" in shown:
                shown["file"] = names[shown["file"]]
        prepared = {"label": self.label, **report.as_dict(), "files": files, **found}
        draft = self.folder / "final.tmp"
        draft.write_text(json.dumps({"names": names, "prepared": prepared}))
        draft.replace(self.folder / "final.json")
        self._move()

    def _move(self):
        final = json.loads((self.folder / "final.json").read_text())
        for name, target in final["names"].items():
            if (self.folder / name).exists():
                os.replace(self.folder / name, self.out / target)
        (self.out / f"prepared-{self.label}.json").write_text(json.dumps(final["prepared"], indent=1) + "\n")
        shutil.rmtree(self.folder)
