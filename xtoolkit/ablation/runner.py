"""Runs the jobs of a table, several side by side, each in a process of its own; a relaunch goes on where it was."""

import fcntl
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable

from xtoolkit.ablation import keys
from xtoolkit.ablation.jobs import LOCK, Job, write_done
from xtoolkit.recipe.folder import FOLDER

WAIT = 0.2  # seconds between two looks at the processes
HELD = "somebody else is at it"
CHANGED = "code or data that it reaches have changed since this call began: its folder's key is no longer true; start anew"


class Runner:
    """Jobs in their order, each when those that it starts from are finished."""

    def __init__(self, jobs: list[Job], side_by_side: int = 1, weights: bool = False, say: Callable[[str], None] = print,
                 after: Callable[[Job], list[str]] = lambda job: []):
        """
        Args:
            jobs: each after those that it starts from.
            side_by_side: at most so many at once.
            weights: keep the checkpoints of rows too; those of what is pretrained are always kept.
            after: called after each job that ended well; returns what is wrong with its results.
        """
        self.jobs, self.side_by_side, self.weights, self.say, self.after = jobs, side_by_side, weights, say, after
        self.failed: list[Job] = []

    def begin(self, job: Job) -> "Process | None":
        """What runs a job: it has ``ended()`` and ``seconds``, as ``Process``. None: another process is at it."""
        return None if (held := lock(job)) is None else Process(job, held)

    def run(self) -> list[Job]:
        """Runs what is not finished; returns what failed, or could not start because what it starts from failed. However it is
        left, it leaves no process behind."""
        running: dict[Job, Process] = {}
        try:
            self._run(running)
        except BaseException:
            self.stop(list(running.values()))
            raise
        return self.failed

    def stop(self, running: list) -> None:
        """Ends what runs: training writes a checkpoint first, from which the next call goes on."""
        for begun in running:
            begun.stop()
        for begun in running:
            begun.wait()

    def _run(self, running):
        waiting = [job for job in self.jobs if not job.complete]
        for job in self.jobs:
            if job.complete:
                self._forget_weights(job)  # of a call that was killed before it could
        while waiting or running:
            for job in [job for job in waiting if any(one in self.failed for one in job.after)]:
                waiting.remove(job)
                self._fail(job, "not run: what it starts from failed")
            ready = (job for job in list(waiting) if all(one.complete for one in job.after))
            while len(running) < self.side_by_side and (job := next(ready, None)) is not None:
                if (begun := self.begin(job)) is not None:
                    waiting.remove(job)
                    running[job] = begun
            time.sleep(WAIT)
            for job, begun in list(running.items()):
                if (wrong := begun.ended()) is not None:
                    del running[job]
                    if wrong == HELD:
                        waiting.insert(0, job)
                    else:
                        self._end(job, wrong, begun.seconds)

    def _end(self, job, wrong, seconds):
        if wrong:
            self._fail(job, wrong)
        elif seconds is not None:
            self._forget_weights(job)
            self.say(f"{self._at(job)}: {seconds:.0f} s")
            for line in self.after(job):
                self._fail(job, line)

    def _forget_weights(self, job):
        if job.row and not self.weights:
            shutil.rmtree(job.folder / FOLDER, ignore_errors=True)

    def _fail(self, job, why):
        self.failed.append(job)
        print(f"{self._at(job)}: {why}", file=sys.stderr)

    def _at(self, job):
        return f"[{self.jobs.index(job) + 1}/{len(self.jobs)}] {job}"


class Process:
    """A job that is held, and its process, if it needs one.

    The process inherits the lock: the job is free again when it has ended, however it ended, and never while it lives, even where
    whoever started it was killed.

    Attributes:
        seconds: that it ran; None: it was finished by somebody else, or did not run.
    """

    def __init__(self, job: Job, held: int):
        self._job, self._held, self._process, self._wrong, self.seconds = job, held, None, "", None
        if job.complete:
            return
        if job.recipe.changed():
            self._wrong = CHANGED
            return
        self._begun, self._started = job.folder.exists(), time.perf_counter()
        self._engine = _engines(held)
        self._process = _start(job, held)

    def ended(self) -> str | None:
        """What went wrong, empty if nothing did: then all of the job is there. None: it still runs."""
        if self._process is not None:
            if (spent := ended(self._process)) is None:
                return None
            self._wrong = self._result(spent)
        os.close(self._held)
        return self._wrong

    def stop(self) -> None:
        """Asks it to end."""
        if self._process is not None:
            self._process.terminate()

    def wait(self) -> None:
        """Waits until it has ended, and lets the job go."""
        if self._process is not None:
            self._process.wait()
        os.close(self._held)

    def _result(self, spent):
        job, self.seconds = self._job, time.perf_counter() - self._started
        if code := self._process.returncode:
            return f"exit code {code}, see {job.folder}.log, which ends with:\n{end_of_log(job.folder)}"
        if job.recipe.changed():
            return CHANGED
        write_done(job, self.seconds, None if self._begun else spent, self._engine)
        return ""


def lock(job) -> int | None:
    """The lock of a job, held; None: somebody else holds it."""
    job.place.mkdir(parents=True, exist_ok=True)
    held = os.open(f"{job.folder}{LOCK}", os.O_CREAT | os.O_RDWR)
    try:
        fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(held)
        return None
    return held


def _engines(held) -> str:
    """The engine, and before it those of earlier calls that were killed, as the lock's file keeps them."""
    with open(os.dup(held), "r+", encoding="utf-8") as file:
        file.seek(0)
        found = "+".join(dict.fromkeys([*filter(None, file.read().split("+")), keys.engine()]))
        file.seek(0)
        file.write(found)
    return found


def _start(job, held):
    """The process of a job, or of what is left of it; what it says goes to `FOLDER.log`."""
    told = [sys.executable, "-m", "xtoolkit", "train", "--config", job.recipe.path, "--resume", *job.overrides]
    with open(f"{job.folder}.log", "a", encoding="utf-8") as log:
        return subprocess.Popen(told, stdout=log, stderr=log, pass_fds=[held],
                                env=os.environ | {"OMP_NUM_THREADS": str(job.recipe.threads)})


def ended(process: subprocess.Popen) -> float | None:
    """Processor seconds of a process that has ended, and of those that it had waited for; None: it has not."""
    number, status, usage = os.wait4(process.pid, os.WNOHANG)
    if number == 0:
        return None
    process.returncode = os.waitstatus_to_exitcode(status)
    return usage.ru_utime + usage.ru_stime


def end_of_log(place) -> str:
    """The last lines of what was said into ``PLACE.log``."""
    with open(f"{place}.log", encoding="utf-8") as log:
        return "".join(f"    {line}" for line in log.readlines()[-4:]).rstrip()
