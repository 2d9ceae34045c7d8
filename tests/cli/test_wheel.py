"""The wheel: installed into an empty folder it brings the command, the recipes and the plugins; no checkout is on the path."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SMALL = ["encoders.vision.width=32", "encoders.vision.layers=1", "encoders.vision.heads=2", "encoders.text.width=32",
         "encoders.text.layers=1", "encoders.text.heads=2", "encoders.fusion.layers=1", "encoders.fusion.heads=2",
         "encoders.vision_proj.dim=32", "encoders.text_proj.dim=32", "streams.*.batch_size=8", "evaluate.retrieval.k=2",
         "schedule.every.*=1", "train.workers=0", "train.log_every=1", "train.steps=3"]


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """The folder that the wheel was installed into, built from a copy of what a checkout has."""
    source, target = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("installed")
    for name in ("xtoolkit", "plugins", "projects"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("setup.py", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation", "--no-index",
                    "--disable-pip-version-check", "--target", str(target), str(source)], check=True)
    shutil.rmtree(source)
    return target


def xtoolkit(installed, folder, *arguments):
    """Runs the command as a person would who has nothing but the wheel."""
    return subprocess.run([sys.executable, str(installed / "bin" / "xtoolkit"), *arguments], cwd=folder, capture_output=True,
                          text=True, env=os.environ | {"PYTHONPATH": str(installed), "XTOOLKIT_HOME": str(installed / "home")})


def test_it_holds_every_module_the_recipes_and_the_plugins_under_one_name(installed):
    packed = {p.relative_to(installed).as_posix() for p in installed.rglob("*.*") if p.suffix in (".py", ".yaml", ".html")}
    ours = {p.relative_to(ROOT).as_posix() for p in (ROOT / "xtoolkit").rglob("*.*") if p.suffix in (".py", ".html")}
    assert ours <= packed
    for name, inside in (("plugins", "xtoolkit/plugins"), ("projects/xfm", "xtoolkit/recipes/xfm")):
        for path in (ROOT / name).rglob("*"):
            if path.suffix in (".py", ".yaml"):
                assert f"{inside}/{path.relative_to(ROOT / name).as_posix()}" in packed
    top = {p.name for p in installed.iterdir() if not p.name.endswith(".dist-info")}
    assert top <= {"xtoolkit", "bin", "home"}, "nothing of ours may collide with what others install"
    assert not any("picturebook" in name for name in packed)  # whoever uses the pack does not rebuild it


def test_its_commands_know_its_recipes_and_its_plugins(installed, tmp_path):
    listed = xtoolkit(installed, tmp_path, "list", "recipes").stdout
    assert ["xfm/tiny.yaml", f"{installed}/xtoolkit/recipes/xfm/tiny.yaml"] in [line.split() for line in listed.splitlines()]
    done = xtoolkit(installed, tmp_path, "plan", "--config", "xfm/tiny.yaml", "losses.itc={type: SigLIP, sim: sim}")
    assert done.returncode == 0 and "stop gradient: text -> fusion for bbp, imlm, itm" in done.stdout, done.stderr
    done = xtoolkit(installed, tmp_path, "plan", "--config", "xfm/tyni.yaml")
    assert done.returncode == 2 and "xfm/tyni.yaml: no such recipe; did you mean `xfm/tiny.yaml`?" in done.stderr
    told = "".join(xtoolkit(installed, tmp_path, "convert", "--help").stdout.split())  # of projects first, then of plugins
    assert "--from{xfm," in told and ",singles," in told and ",beitv2,roberta}" in told
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_it_trains_three_steps_in_an_empty_folder(installed, tmp_path):
    done = xtoolkit(installed, tmp_path, "train", "--config", "xfm/tiny.yaml", *SMALL)
    assert done.returncode == 0, done.stderr
    results = json.loads((tmp_path / "outputs/xfm_tiny/results.json").read_text())
    assert results["step"] == 3 and {"retrieval", "boxes"} <= results["evaluations"].keys()
    assert (tmp_path / "outputs/xfm_tiny/report.html").is_file()
    done = xtoolkit(installed, tmp_path, "evaluate", "--config", "projects/xfm/tiny.yaml", *SMALL)
    assert done.returncode == 0 and "report: outputs/xfm_tiny/report.html" in done.stdout, done.stderr
