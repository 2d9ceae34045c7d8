"""A run's folder: whether a run may start in it or go on from it. Looks only; nothing is created. No torch."""

import json
import os
import shutil
from pathlib import Path

from xtoolkit.recipe.config import load
from xtoolkit.registry import ConfigError

# Keys of `train` on which the numbers of a run depend; the others may change when it goes on.
BINDING = frozenset({"seed", "precision", "accumulate"})
FREE_BLOCKS = frozenset({"evaluate", "hooks", "plugins"})
SHARDS = ("data", "shards")  # of a stream: how shards are fetched is the machine's affair; only `window` binds

CONFIG = "config.yaml"  # the resolved recipe in a run's folder, or beside a file of weights
FOLDER, RECORD = "checkpoints", "checkpoint.json"  # of the run's folder, and in each checkpoint
BEST = "best.json"  # beside the checkpoints: which of them `train.keep_best` keeps
PLUGINS = "plugins"  # the folder in a run's folder that holds copies of its recipe's plugins
TOKENIZER = "tokenizer"  # the folder in a run's folder that holds its tokenizer, so that it can be moved and loaded anywhere
EVALUATIONS = "evaluations"  # the folder in a run's folder with a file an evaluation
METRICS, RESULTS = "metrics.jsonl", "results.json"


# How a command is told to go on, or to evaluate once more; and `xtoolkit.build`'s Run.
RESUME, AGAIN = "--resume (Python: run.train(resume=True))", "--eval-only (Python: run.evaluate(run.load_newest()))"


class CheckpointError(ValueError):
    """A checkpoint that does not fit what it is loaded into: every name that is missing, unexpected or mis-shaped."""


def check_writable(folder, key: str) -> None:
    """Raises ConfigError, by what names it, where a folder is none or cannot be made or written to."""
    existing = nearest_existing(Path(folder))
    if not existing.is_dir():
        raise ConfigError(f"{key}: {existing} is a file; name a folder")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise ConfigError(f"{key}: {existing} cannot be written to; name another folder")


def check_folder(output, resume: bool) -> None:
    """Raises ConfigError where a run cannot write, or a new one would write over an old one."""
    folder = Path(output)
    check_writable(folder, "train.output")
    if not resume and folder.is_dir() and any(folder.iterdir()):
        way = (f"go on from its last checkpoint with {RESUME}" if latest(folder) else
               f"it holds no checkpoint: it starts again at step 0 with {RESUME}" if (folder / CONFIG).is_file()
               else "it holds no run: empty it")
        raise ConfigError(f"train.output: {output} exists and is not empty; {way}, or name another folder (train.output=...)")


def check_evaluated(output, config: dict) -> None:
    """Raises ConfigError where evaluations alone would write into the folder of a run, or beside those of other weights."""
    folder = Path(output)
    if latest(folder):
        raise ConfigError(f"train.output: {output} holds the checkpoints of a run; name another folder (train.output=...), and "
                          f"this one as `init={output}` if it is what you evaluate")
    if not (folder / CONFIG).is_file():
        return check_folder(output, resume=False)
    if found := differences(load(str(folder / CONFIG)).data, config):
        raise ConfigError([f"train.output: {output} holds evaluations of another recipe: {line}; name another folder "
                           "(train.output=...)" for line in found])


def check_resumed(output, config: dict, steps: int) -> dict | None:
    """The record of the checkpoint from which a recipe goes on; None where there is none.

    Args:
        config: the resolved configuration of this start.
        steps: that it asks for.

    Raises:
        ConfigError: the checkpoint was written by another recipe, or has taken more steps.
        CheckpointError: it is damaged.
    """
    path = latest(output)
    if path is None:
        return None
    record = read_record(path)
    if found := differences(record["config"], config):
        raise ConfigError(refusal(path, found))
    if record["step"] > steps:
        raise ConfigError(f"train.steps: {steps}, but {path} has taken {record['step']}; ask for more steps")
    return record


def refusal(path, found: list[str]) -> list[str]:
    """The problems of a ConfigError: each key that keeps a run from going on from a checkpoint."""
    return [f"--resume: {line}: {path} was written by another recipe; put this back, or start in another `train.output`"
            for line in found]


def read_record(path) -> dict:
    """The JSON beside the tensors of a checkpoint: step, config, versions, git, data.

    Raises:
        CheckpointError: no checkpoint, or a damaged one.
    """
    path = Path(path)
    if not finished(path):
        raise CheckpointError(f"{path}: no checkpoint: a directory with `.metadata` and `{RECORD}` is one, "
                              f"as found under <output>/{FOLDER}/")
    try:
        record = json.loads((path / RECORD).read_text(encoding="utf-8"))
    except ValueError as error:
        raise CheckpointError(f"{path / RECORD}: damaged ({error}); use an older checkpoint, or copy it again") from error
    if not isinstance(record, dict) or not {"step", "config"} <= record.keys():
        raise CheckpointError(f"{path / RECORD}: not the record of a run: it has no step and config")
    return record


def nearest_existing(path) -> Path:
    """The path itself, or the nearest folder above it that exists."""
    path = Path(path).absolute()
    return next(p for p in (path, *path.parents) if p.exists())


def free_bytes(path) -> int:
    """What the disk under a path has left for this user."""
    return shutil.disk_usage(nearest_existing(path)).free


def evaluated(output) -> dict[str, dict]:
    """{evaluation: its record}, of a run's folder: ``step``, ``time``, ``metrics``, ``floor``, ``figures``."""
    files = sorted((Path(output) / EVALUATIONS).glob("*.json"))
    return {file.stem: json.loads(file.read_text(encoding="utf-8")) for file in files}


def is_complete(output, steps: int, evaluations) -> bool:
    """Whether a run has taken all its steps, evaluated each of ``evaluations`` after the last one or on its best checkpoint, and
    written its results."""
    path, results = latest(output), Path(output) / RESULTS
    if path is None or not results.is_file() or read_record(path)["step"] != steps:
        return False
    known, written = evaluated(output), json.loads(results.read_text(encoding="utf-8"))
    # Evaluations alone write results too, but no losses.
    return ("losses" in written and written["step"] == steps
            and all(name in known and (known[name]["step"] == steps or selected(known[name], best(output)))
                    for name in evaluations))


def best(output) -> dict | None:
    """``by``, ``value`` and ``step`` of the checkpoint that ``train.keep_best`` keeps; None: there is none."""
    path = Path(output) / FOLDER / BEST
    found = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None
    return found if found is not None and finished(of_step(output, found["step"])) else None


def selected(record: dict, kept: dict | None) -> bool:
    """Whether the record of an evaluation is of that best checkpoint."""
    return kept is not None and kept.items() <= (record.get("selected") or {}).items()


def chosen(output) -> Path | None:
    """The checkpoint that stands for a run: its best, where it keeps one, else its newest; None: there is none."""
    kept = best(output)
    return latest(output) if kept is None else of_step(output, kept["step"])


def told(output, path: Path | None) -> str:
    """A checkpoint's path, and, of the best, by what it was chosen."""
    kept = best(output)
    if kept is None or path != of_step(output, kept["step"]):
        return str(path)
    return f"{path}, the best by {kept['by']} ({kept['value']:.4g})"


def of_step(output, step: int) -> Path:
    """Where the checkpoint of a step lies, if there is one."""
    return Path(output) / FOLDER / f"step_{step:08d}"


def latest(output) -> Path | None:
    """The newest whole checkpoint of a run's folder, or None."""
    return (checkpoints(output) or [None])[-1]


def finished(path: Path) -> bool:
    """Whether a folder is a whole checkpoint."""
    return (path / ".metadata").is_file() and (path / RECORD).is_file()


def checkpoints(output) -> list[Path]:
    """The whole checkpoints of a run's folder, the oldest first."""
    whole = (path for path in (Path(output) / FOLDER).glob("step_[0-9]*") if finished(path))
    return sorted(whole, key=lambda path: int(path.name.removeprefix("step_")))


def differences(then: dict, now: dict) -> list[str]:
    """Keys that a resumed run may not change and that differ, each one line: it would not be the same run.

    Free to differ: `evaluate`, `hooks`, `plugins`, all of `train` but seed, precision and accumulate, all of a stream's
    `data.shards` but `window`.

    Args:
        then: the resolved configuration in the checkpoint (it went through JSON).
        now: the resolved configuration of this start.
    """
    then, now = _leaves(then), _leaves(json.loads(json.dumps(now)))
    show = lambda side, key: json.dumps(side[key]) if key in side else "absent"
    return [f"{'.'.join(key)}: was {show(then, key)}, is {show(now, key)}" for key in sorted(then.keys() | now.keys())
            if (key not in then or key not in now or then[key] != now[key]) and _binds(key)]


def _binds(key):
    if key[0] == "train":
        return len(key) > 1 and key[1] in BINDING
    if key[0] == "streams" and key[2:4] == SHARDS:
        return key[4:] == ("window",)
    return key[0] not in FREE_BLOCKS


def _leaves(value, path=()):
    if isinstance(value, dict) and value:
        return {k: v for name, inner in value.items() for k, v in _leaves(inner, (*path, str(name))).items()}
    return {path: value}

