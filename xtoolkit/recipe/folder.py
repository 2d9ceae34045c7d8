"""A run's folder: whether a run may start in it or go on from it. Looks only; nothing is created. No torch."""

import json
from pathlib import Path

from xtoolkit.registry import ConfigError

# Keys of `train` on which the numbers of a run depend; the others may change when it goes on.
BINDING = frozenset({"seed", "precision", "accumulate"})
FREE_BLOCKS = frozenset({"evaluate", "plugins"})
SHARDS = ("data", "shards")  # of a stream: how shards are fetched is the machine's affair; only `window` binds

FOLDER, RECORD = "checkpoints", "checkpoint.json"  # of the run's folder, and in each checkpoint
PLUGINS = "plugins"  # the folder in a run's folder that holds copies of its recipe's plugins
TOKENIZER = "tokenizer"  # the folder in a run's folder that holds its tokenizer, so that it can be moved and loaded anywhere


def check_folder(output, resume: bool) -> None:
    """Raises ConfigError where a new run would write over an old one."""
    folder = Path(output)
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"train.output: {output} is a file; name a folder")
    if not resume and folder.is_dir() and any(folder.iterdir()):
        raise ConfigError(f"train.output: {output} exists and is not empty; go on from its last checkpoint with "
                          "--resume, or name another folder (train.output=...)")


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

    Free to differ: `evaluate`, `plugins`, all of `train` but seed, precision and accumulate, all of a stream's
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

