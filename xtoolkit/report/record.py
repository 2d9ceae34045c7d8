"""What is known of a run, read from the files in its folder."""

import json
from pathlib import Path

from xtoolkit.recipe import config


class Run:
    """What is known of a run.

    Attributes:
        config: the resolved configuration; ``text`` is its file.
        lines: the objects of ``metrics.jsonl``.
        results: ``results.json``, empty while the run goes on.
        environment: ``environment.json``.
        gallery: see ``report_gallery``.
        evaluations: {name: {metric: number}}, the newest of each.
    """

    def __init__(self, config, text, lines, results, environment, gallery):
        self.config, self.text, self.lines, self.gallery = config, text, lines, gallery
        self.results, self.environment = results, environment
        self.floors = gallery["floors"] if "floors" in gallery else {}
        self.evaluations = results["evaluations"] if "evaluations" in results else self._newest()

    def _newest(self):
        found: dict[str, dict] = {}
        for name in self.config.get("evaluate") or {}:
            for line in self.lines:
                metrics = {k.removeprefix(f"{name}."): v for k, v in line.items() if k.startswith(f"{name}.")}
                metrics.pop("seconds", None)
                if metrics:
                    found[name] = metrics
        return found

    def points(self, key: str) -> list[tuple[int, float]]:
        """(step, value) wherever a number was logged and finite."""
        return [(line["step"], line[key]) for line in self.lines if line.get(key) is not None]

    @property
    def keys(self) -> list[str]:
        return list(dict.fromkeys(k for line in self.lines for k in line))

    @property
    def streams(self) -> dict:
        return self.config.get("streams") or {}


def read_run(folder: Path, gallery: dict) -> Run:
    """Reads a run's folder.

    Raises:
        FileNotFoundError: the folder holds no run.
    """
    path = folder / "config.yaml"
    if not path.exists():
        raise FileNotFoundError(f"{folder} holds no run: it has no config.yaml; name the `train.output` of a run")
    return Run(config.load(str(path)).data, path.read_text(encoding="utf-8"), read_lines(folder / "metrics.jsonl"),
               _json(folder / "results.json"), _json(folder / "environment.json"), gallery)


# ---------------------------------------------------------------------------------------------------------------
def read_lines(path: Path) -> list[dict]:
    """The objects of a JSON Lines file; a last line that was cut short is left out."""
    found = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else ():
        try:
            found.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return found


def _json(path: Path) -> dict:
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
