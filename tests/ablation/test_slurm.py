"""`xtoolkit ablate --slurm`: what a node refuses, and a table by submitit's executor of local processes."""

import json
import os
import sys

import pytest
import toy_table
from commands import tool
from xtoolkit.ablation import keys
from xtoolkit.ablation.jobs import DONE, Jobs, write_done
from xtoolkit.ablation.runner import CHANGED, HELD, lock
from xtoolkit.ablation.slurm import bare, work
from xtoolkit.ablation.table import read

TABLE = '''
output: FOLDER/out
seeds: [1]
recipe: long.yaml
columns: {Plain: {}}
rows: {Short: {recipe: long.yaml, metrics: {told: test.accuracy}}}
'''


@pytest.fixture
def folder(tmp_path):
    toy_table.write(tmp_path)
    (tmp_path / "table.yaml").write_text(TABLE.replace("FOLDER", str(tmp_path)))
    return tmp_path


def job(folder, machine=None):
    return Jobs(read(str(folder / "table.yaml")), str(folder), machine=machine or keys.machine(1)).pretrained("columns", "Plain", 1)


def test_a_node_runs_nothing_that_is_not_what_was_submitted(folder):
    plain = job(folder)
    wrong, seconds = work(bare(job(folder, ["another", 1, None, "2.0"])), "0")
    assert "name nodes of one kind" in wrong and seconds is None
    assert work(bare(plain), "another") == (CHANGED, None)
    held = lock(plain)
    assert work(bare(plain), plain.key) == (HELD, None) and plain.state == "running"
    os.close(held)
    plain.folder.mkdir()
    write_done(plain, 1.0)
    assert work(bare(plain), plain.key) == ("", None), "what is finished is not run again"
    recipe = folder / "long.yaml"
    recipe.write_text(recipe.read_text().replace("lr: 1e-3", "lr: 2e-3"))
    assert work(bare(plain), plain.key) == (CHANGED, None), "edited while it was queued"


def test_the_machine_of_the_nodes_is_in_the_keys(folder):
    assert job(folder).key == Jobs(read(str(folder / "table.yaml")), str(folder)).pretrained("columns", "Plain", 1).key
    assert job(folder).key != job(folder, ["another", 1, None, "2.0"]).key


def test_what_is_not_there_is_said(folder, capsys, monkeypatch):
    words = ["--config", str(folder / "table.yaml"), "--slurm"]
    monkeypatch.setitem(sys.modules, "submitit", None)
    assert tool("ablate").main([*words, "gpu"]) == 2
    assert "submitit is not installed: pip install 'xtoolkit[slurm]'" in capsys.readouterr().err


@pytest.mark.slow
def test_a_table_by_local_processes_and_what_is_finished_is_not_submitted_again(folder, capsys):
    pytest.importorskip("submitit")
    (folder / "local.yaml").write_text("cluster: local\ntimeout_min: 5\n")
    main, words = tool("ablate").main, ["--config", str(folder / "table.yaml"), "--slurm"]
    (folder / "wrong.yaml").write_text("cluster: local\ntimeout_mins: 5\n")
    assert main([*words, str(folder / "wrong.yaml")]) == 2 and "timeout_min" in capsys.readouterr().err
    assert main([*words, str(folder / "local.yaml"), "--forecast"]) == 2 and "ask it on one of them" in capsys.readouterr().err
    assert main([*words, str(folder / "local.yaml")]) == 0
    said = capsys.readouterr().out
    assert "[2/2] Plain, Short, seed 1:" in said and "| Short | told | 1 | 75.0 | 50.0 |" in said
    now = {path: path.stat().st_mtime_ns for path in folder.rglob(DONE)}
    assert len(now) == 2 and all(json.loads(path.read_text())["processor_seconds"] > 0 for path in now)
    submitted = set((folder / "out/slurm").iterdir())
    assert main([*words, str(folder / "local.yaml")]) == 0
    assert set((folder / "out/slurm").iterdir()) == submitted
    assert {path: path.stat().st_mtime_ns for path in folder.rglob(DONE)} == now


def test_a_partition_that_slurm_does_not_know_is_one_line(folder, capsys, monkeypatch):
    pytest.importorskip("submitit")
    for name, text in (("srun", "exit 0"), ("sbatch", "echo 'sbatch: error: invalid partition specified: gpuu' >&2; exit 1")):
        (folder / name).write_text(f"#!/bin/sh\n{text}\n")
        (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    assert tool("ablate").main(["--config", str(folder / "table.yaml"), "--slurm", "gpuu"]) == 2
    said = capsys.readouterr().err
    assert "--slurm gpuu: sbatch: error: invalid partition specified: gpuu" in said and "Traceback" not in said
