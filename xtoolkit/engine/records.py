"""The JSON files that a run leaves: written whole or not at all; what is not finite is null."""

import json
import math
from datetime import datetime, timezone
from pathlib import Path

from xtoolkit.recipe.folder import EVALUATIONS, RESULTS, evaluated
from xtoolkit.registry import ConfigError


class NoFigures(ConfigError):
    """Evaluations that gave none, a line each why; what the others found is kept."""


def write_json(path: Path, value) -> None:
    """``write_text`` of a value as JSON has it."""
    write_text(path, json.dumps(plain(value), indent=1, default=str) + "\n")


def write_text(path: Path, text: str) -> None:
    """Writes a file under another name, then renames it: a reader finds the old one or the new one, never a half."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f"{path.name}.unfinished")
    unfinished.write_text(text, encoding="utf-8")
    unfinished.replace(path)


def write_evaluation(output, name: str, step: int, record: dict) -> None:
    """``evaluations/<name>.json``: what an evaluation found, and when: another evaluation's file stays as it is. Its ``files``
    are written into ``evaluations/<name>/`` first, and named.

    Args:
        record: see ``figures.record``; with ``selected``, ``folder.best`` of the checkpoint that it is of, it also says how many
            ``times`` this evaluation has been run in this folder.
    """
    if record.get("selected"):
        before = evaluated(output).get(name)
        times = 0 if before is None else before["selected"]["times"] if before.get("selected") else 1
        record = record | {"selected": record["selected"] | {"times": times + 1}}
    folder, files = Path(output) / EVALUATIONS, record.get("files", {})
    for file, text in files.items():
        write_text(folder / name / file, text)
    write_json(folder / f"{name}.json", {"step": step, "time": now(), **record} | {"files": list(files)})


def write_results(output, results: dict) -> None:
    """``results.json``: ``results`` over what it held, under ``evaluations`` the metrics of every evaluation so far, and under
    ``selected`` of which step those are that ran on the best checkpoint, by what it was chosen, and how often they ran."""
    path, found = Path(output) / RESULTS, evaluated(output)
    known = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    chosen = {name: record["selected"] for name, record in found.items() if record.get("selected")}
    metrics = {name: record["metrics"] for name, record in found.items()}
    write_json(path, known | results | {"evaluations": metrics} | ({"selected": chosen} if chosen else {}))


def told(record: dict) -> str:
    """Of what an evaluation is, where that is not plain: a part of the data; which checkpoint, and how often; else empty."""
    kept, limit, often = record.get("selected"), record.get("limit"), {1: "once", 2: "twice"}
    said = [f"the first {limit:,} samples of each source only"] if limit else []
    said += [record["left_out"]] if record.get("left_out") else []
    if kept:
        said += [f"of step {kept['step']:,}, the best by {kept['by']} ({kept['value']:.4g})",
                 f"run {often.get(kept['times']) or str(kept['times']) + ' times'}"]
    return "; ".join(said)


def read_lines(path) -> list[dict]:
    """The objects of a JSON Lines file, none where there is no file; a last line that was cut short is left out."""
    found, path = [], Path(path)
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else ():
        try:
            found.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return found


def now() -> str:
    """The time in ISO's form, UTC."""
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


def numbers(values: dict, of: str) -> dict:
    """{name: number or None} as Python has them: those of torch and NumPy, 0-d, are converted.

    Args:
        of: whose they are, for errors.

    Raises:
        ConfigError: a name that is no text, or a value that is no number.
    """
    if not isinstance(values, dict):
        raise ConfigError(f"{of}: must be {{name: number}}, not {type(values).__name__}")
    found = {name: value.item() if getattr(value, "ndim", None) == 0 else value for name, value in values.items()}
    for name, value in found.items():
        if not isinstance(name, str):
            raise ConfigError(f"{of}: a name must be text, not {name!r}")
        if value is not None and not isinstance(value, (int, float)):
            shape = f" of shape {tuple(value.shape)}" if hasattr(value, "shape") else f" {value!r}"[:60]
            raise ConfigError(f"{of}: `{name}` must be a number, not the {type(value).__name__}{shape}")
    return found


def plain(value):
    """A value as JSON has it: NaN and infinity are null."""
    if isinstance(value, dict):
        return {str(name): plain(inner) for name, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(inner) for inner in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
