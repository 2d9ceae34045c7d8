"""What a run needs of a disk: room for its checkpoints, looked for at the start, and plain words when a write fails."""

import errno
import os
import resource
from contextlib import suppress
from pathlib import Path

from xtoolkit.recipe.folder import RESUME, checkpoints, free_bytes, latest, nearest_existing
from xtoolkit.registry import ConfigError

FULL = (errno.ENOSPC, errno.EDQUOT)
REFUSED = (errno.EACCES, errno.EPERM, errno.EROFS)
# What a checkpoint's file has around each tensor.
AROUND = 2048


class StorageError(RuntimeError):
    """A file could not be written: which folder, why, what is free and what is needed."""


def checkpoint_bytes(model, optimizer) -> int:
    """Bytes of a checkpoint: weights, and two moments of every parameter that is trained."""
    trained = [p for group in optimizer.param_groups for p in group["params"]]
    weights = list(model.state_dict().values())
    bytes_of = lambda tensors: sum(t.numel() * t.element_size() + AROUND for t in tensors)
    return bytes_of(weights) + 2 * bytes_of(trained) + AROUND * len(trained)


def check_room(output, size: int, train, done: int = 0) -> None:
    """Whether the checkpoints of a run will have room.

    Args:
        output: the run's folder.
        size: bytes of one.
        train: the `train` block: how many are written and kept.
        done: steps behind.

    Raises:
        ConfigError: what is free and what is needed.
    """
    have, due = len(checkpoints(output)), -(-(train.steps - done) // train.checkpoint_every)
    # One more than are kept: a new one is whole before the oldest goes. And the best.
    extra = train.keep_best is not None
    more = min(have + due + extra, train.keep + 1 + extra) - have
    if due and (limit := file_limit()) < size:
        raise ConfigError(f"train.output: a checkpoint is a file of {amount(size)}, and this process may write files of "
                          f"{amount(limit)} at most (ulimit -f): raise that")
    if more > 0 and free_bytes(output) < more * size:
        raise ConfigError(f"train.output: {nearest_existing(output)} has {amount(free_bytes(output))} free; the run's "
                          f"checkpoints need {amount(more * size)} ({more} of {amount(size)}): make room, lower `train.keep`, "
                          "or name another folder (train.output=...)")


def inside(output) -> frozenset[Path]:
    """All files and folders in a folder, at any depth; none where there is no such folder."""
    return frozenset(Path(output).rglob("*"))


def sweep(output, found=frozenset()) -> None:
    """Takes out of the folder of a run that failed before its first step what was made since: the next start finds it as this
    one did.

    Args:
        found: what was ``inside`` when its hooks were first called, and stays.
    """
    made = inside(output) - found if os.environ.get("RANK", "0") == "0" and latest(output) is None else ()
    for path in sorted(made, reverse=True):  # what is in a folder before the folder
        if path.is_dir() and not path.is_symlink():
            with suppress(OSError):  # somebody else has put something into it since: it stays
                path.rmdir()
        else:
            path.unlink(missing_ok=True)


def file_limit() -> float:
    """The largest file, in bytes, that this process may write."""
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)[0]
    return float("inf") if limit == resource.RLIM_INFINITY else limit


def not_saved(output, step: int, size: int, error: BaseException) -> StorageError:
    """The error of a checkpoint that could not be written; torch's own words hide the reason."""
    free, last = free_bytes(output), latest(output)
    why = (f"files of more than {amount(file_limit())} may not be written (ulimit -f)" if file_limit() < size else
           "the disk is full" if free < size or getattr(error, "errno", None) in FULL else reason(error))
    return StorageError(f"{output}: the checkpoint of step {step} could not be written: {why}; it needs {amount(size)}, "
                        f"{amount(free)} are free. " + (f"The last one, {last}, is whole: go on with {RESUME}"
                                                        if last else "No checkpoint was written yet"))


def stopped(error: OSError, output) -> Exception:
    """A StorageError, if it is the disk that a run was stopped by, with what is left of the run; else the error itself."""
    last = latest(output)
    return error if error.errno not in (*FULL, *REFUSED, errno.EFBIG) else StorageError(
        f"{explain(error, output)}. " + (f"The last checkpoint, {last}, is whole: go on with {RESUME}" if last
                                         else "No checkpoint was written yet"))


def explain(error: OSError, folder) -> str:
    """One line for an operating system's error: what could not be read or written, why, and what is free.

    Args:
        folder: what was written to, if the error does not say.
    """
    path = error.filename if isinstance(error.filename, (str, os.PathLike)) else folder
    known = nearest_existing(path)
    if error.errno in FULL:
        return f"{path}: {reason(error)}: {amount(free_bytes(known))} are free; make room there"
    if error.errno == errno.EFBIG:
        return f"{path}: {reason(error)}: this process may write files of {amount(file_limit())} at most (ulimit -f)"
    if error.errno in REFUSED and known.exists() and not os.access(known, os.W_OK):
        return f"{path}: {reason(error)}: {known} cannot be written to"
    return f"{path}: {reason(error)}"


def reason(error: BaseException) -> str:
    """What an error says, its first line."""
    return getattr(error, "strerror", None) or str(error).partition("\n")[0] or type(error).__name__


def amount(size: float) -> str:
    """1.2 GB, 43 MB, 12 kB."""
    for unit, name in ((1e9, "GB"), (1e6, "MB")):
        if size >= unit:
            return f"{size / unit:.3g} {name}"
    return f"{size / 1e3:.3g} kB"
