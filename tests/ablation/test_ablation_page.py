"""docs/ablation.md's own loss, column and table, as a reader follows it, its encoders made small: once with jobs that run in this
process, and once as it is printed."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from xtoolkit.ablation import keys, runner
from xtoolkit.cli.main import main

PAGE = (Path(__file__).resolve().parents[2] / "docs/ablation.md").read_text(encoding="utf-8")
WALK = PAGE[PAGE.index("## From nothing"):]
WALK = WALK[:WALK.index("\n## ", 1)]
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```$", WALK, re.M | re.S)
FILES = {name: block for _, block in BLOCKS if (name := re.match(r"# (\S*\.?\S+|added to \S+)\n", block)[1] if block[0] == "#" else None)}
SMALL = """
encoders:
  vision: {width: 32, layers: 1, heads: 2, stem: [8, 8, 8]}
  text: {width: 32, layers: 1, heads: 2}
  fusion: {layers: 1, heads: 2}
  vision_proj: {dim: 32}
  text_proj: {dim: 32}
"""


class InProcess:
    """A job's process, of which only its end is seen."""

    def __init__(self, job, held):
        told = ["train", "--config", job.recipe.path, "--resume", *job.overrides]
        Path(f"{job.folder}.log").touch()
        self.returncode = main(told)


def commands():
    return [line for kind, block in BLOCKS if kind == "bash" for line in block.splitlines()]


def words(line):
    """A printed command's, behind `xtoolkit`."""
    return line.partition("#")[0].split()[1:]


@pytest.fixture
def printed(tmp_path, monkeypatch):
    """A folder with the page's first three files."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "small.yaml").write_text(SMALL)
    (tmp_path / "small_recipe.yaml").write_text("_BASE_: small.yaml\nstreams: {pairs: {batch_size: 4}}\ntrain: {steps: 2}\n")
    for name in ("recipe.yaml", "retrieval.yaml", "table.yaml"):
        text = re.sub(r"^_BASE_: (\S+)", rf"_BASE_: [\1, small{'_recipe' * (name == 'recipe.yaml')}.yaml]", FILES[name], flags=re.M)
        (tmp_path / name).write_text(text)
    return tmp_path


@pytest.fixture
def folder(printed, monkeypatch):
    monkeypatch.setattr(runner, "_start", InProcess)
    monkeypatch.setattr(runner, "ended", lambda process: 0.0)
    (printed / "table.yaml").write_text((printed / "table.yaml").read_text().replace("seeds: [1, 2]", "seeds: [1]"))
    return printed


def add_the_loss(folder):
    """The Python file and the two lines."""
    (folder / "uniformity.py").write_text(FILES["uniformity.py"])
    with open(folder / "recipe.yaml", "a") as file:
        file.write(FILES["added to recipe.yaml"])
    table = (folder / "table.yaml").read_text()
    assert "  contrast: {}\n" in table
    (folder / "table.yaml").write_text(table.replace("  contrast: {}\n", "  contrast: {}\n" + FILES["added to columns"].partition("\n")[2]))


def values(folder):
    """{column: {seed: value}} of the first metric."""
    row = json.loads((folder / "outputs/mine/table.json").read_text())["rows"][0]
    return {name: cell["values"] for name, cell in row["columns"].items()}


def test_a_file_and_two_lines_make_a_loss_a_column_of_a_table(folder, capsys, monkeypatch):
    first, dry, second = map(words, commands())
    assert first == second and first[0] == dry[0] == "ablate"
    assert main([*first, "--yes"]) == 0
    add_the_loss(folder)
    keys.forget()
    capsys.readouterr()
    assert main(dry) == 0
    assert [line.rpartition(": ")[2] for line in capsys.readouterr().out.splitlines()] == ["stale", "stale", "missing", "missing"]
    assert main([*second, "--yes"]) == 0
    assert all(cell["1"] is not None for cell in values(folder).values())
    plain = keys.syntax
    monkeypatch.setattr(keys, "syntax", lambda path: f"edited {plain(path)}" if path.name == "uniformity.py" else plain(path))
    monkeypatch.setattr(keys, "forget", lambda: None)
    capsys.readouterr()
    assert main(dry) == 0
    assert [line.rpartition(": ")[2] for line in capsys.readouterr().out.splitlines()] == ["finished", "finished", "stale", "stale"]


@pytest.mark.slow
def test_its_commands_run_as_they_are_printed(printed):
    """Each in a shell of its own, with its forecast, and with both seeds."""
    (printed / "bin").mkdir()
    (printed / "bin/xtoolkit").write_text(f'#!/bin/sh\nexec {sys.executable} -m xtoolkit "$@"\n')
    (printed / "bin/xtoolkit").chmod(0o755)
    found = os.environ | {"PATH": f"{printed}/bin:{os.environ['PATH']}"}
    run = lambda line: subprocess.run(["bash", "-c", line], env=found, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=True).stdout
    states = lambda said: [line.rpartition(": ")[2] for line in said.splitlines()]
    first, dry, second = commands()
    said = run(first)
    assert "forecast: 4 jobs to run: " in said and "[4/4] contrast, Retrieval, seed 2: " in said
    add_the_loss(printed)
    assert states(run(dry)) == ["stale", "stale", "missing", "missing"] * 2
    said = run(second)
    assert "forecast: 8 jobs to run: " in said and "[8/8] uniform, Retrieval, seed 2: " in said
    assert {name: list(cell) for name, cell in values(printed).items()} == {"contrast": ["1", "2"], "uniform": ["1", "2"]}
    assert states(run(dry)) == ["finished"] * 8
    with open(printed / "uniformity.py", "a") as file:
        file.write("# A comment.\n")
    assert states(run(dry)) == ["finished"] * 8
    with open(printed / "uniformity.py", "a") as file:
        file.write("EDITED = True\n")
    assert states(run(dry)) == ["finished", "finished", "stale", "stale"] * 2
