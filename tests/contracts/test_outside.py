"""One file outside the repository registers a field, a mark, a dataset, an encoder, losses, a task, abilities and a hook, and goes
through everything: plan, training, a kill and a resume, evaluation alone, the report, loading, two ranks."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

import xtoolkit
from xtoolkit.engine import checkpoint
from xtoolkit.recipe.folder import latest
from xtoolkit.registry import ConfigError

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
TRAIN = [sys.executable, str(ROOT / "tools/train_net.py"), "--config", "sounds.yaml"]
RANKS = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", *TRAIN[1:]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Somebody's folder: a plugin and a recipe, no checkout."""
    made = tmp_path_factory.mktemp("outside")
    (made / "sounds.py").write_text((HERE / "outside.txt").read_text())
    (made / "sounds.yaml").write_text((HERE / "outside.yaml").read_text())
    return made


def run(folder, *command) -> str:
    done = subprocess.run([*map(str, command)], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-1500:] + done.stderr[-3000:]
    return done.stdout


@pytest.fixture(scope="module")
def trained(folder):
    return run(folder, *TRAIN)


def lines(folder, output) -> list[dict]:
    return [json.loads(line) for line in (folder / output / "metrics.jsonl").read_text().splitlines()]


def test_plan(folder):
    said = run(folder, sys.executable, ROOT / "tools/plan.py", "--config", "sounds.yaml")
    assert "stream sounds: pitch + fill; 16 a batch" in said and "listener@mask_sound" in said and "unknown" not in said


def test_it_learns_and_the_hook_writes(folder, trained):
    found = lines(folder, "out")
    assert found[-1]["pitch"] < 0.7 * found[0]["pitch"]
    assert found[-1]["counted.steps"] == 40 and found[-1]["counted.gradients"] > 40
    assert "Pitches told" in trained or "accuracy" in trained
    record = json.loads((folder / "out/evaluations/pitches.json").read_text())
    assert record["metrics"]["accuracy"] > record["floor"]["accuracy"] == 12.5
    assert record["metrics"]["sounds"] == 48 and record["metrics"]["silent"] == 2  # the mark that the task reads is drawn


def test_killed_and_resumed_it_is_the_same_run(folder, trained):
    other = [*TRAIN, "train.output=killed"]
    begun = subprocess.Popen(other, cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
    while latest(folder / "killed") is None:
        assert begun.poll() is None
        time.sleep(0.01)
    os.killpg(begun.pid, signal.SIGKILL)
    begun.wait()
    run(folder, *other, "--resume")
    one, two = (checkpoint.read_model(latest(folder / name)) for name in ("out", "killed"))
    assert one.keys() == two.keys() and all(torch.equal(one[k], two[k]) for k in one)
    assert lines(folder, "killed")[-1]["counted.steps"] == 40  # the hook's count went on


def test_evaluation_alone_keeps_what_others_found(folder, trained):
    before = json.loads((folder / "out/evaluations/pitches.json").read_text())
    said = run(folder, *TRAIN, "--eval-only", "evaluate={again: {type: Pitches, data: {type: Tones, size: 16}}}", "evaluate.pitches=null")
    assert "again" in said
    assert json.loads((folder / "out/evaluations/pitches.json").read_text()) == before
    results = json.loads((folder / "out/results.json").read_text())["evaluations"]
    assert results.keys() == {"pitches", "again"} and results["again"]["sounds"] == 16


def test_the_report_shows_it(folder, trained):
    page = (folder / "out/report.html").read_text()
    assert "sounds like pitch" in page and "Pitches told" in page and page.count("data:image/jpeg;base64") >= 3


def test_loading_it(folder, trained):
    with pytest.raises(ConfigError, match="trust_plugins=True"):
        xtoolkit.load(folder / "out")
    loaded = xtoolkit.load(folder / "out", trust_plugins=True, device="cpu")
    frames = torch.zeros(2, 12, 8)
    frames[0, :, 3], frames[1, :, 5] = 1, 1
    assert loaded.hear(frames) == [3, 5]
    assert "hear" in repr(loaded)


def test_two_ranks_take_the_same_steps(folder, trained):
    run(folder, *RANKS, "train.output=ranks")
    one, two = (checkpoint.read_model(latest(folder / name)) for name in ("out", "ranks"))
    for name, parameter in one.items():
        assert torch.allclose(parameter, two[name], rtol=1e-3, atol=1e-4), name


def test_two_ranks_find_what_one_finds_of_every_sample(folder, trained):
    """Of one checkpoint, in five batches, three of one rank and two of the other: each output once, in the order of the data."""
    told = {}
    for name, command in (("alone", TRAIN), ("shared", RANKS)):
        shutil.copytree(folder / "out", folder / name, ignore=shutil.ignore_patterns("evaluations"))
        run(folder, *command, "--eval-only", f"train.output={name}")
        record = json.loads((folder / name / "evaluations/pitches.json").read_text())["metrics"]
        told[name] = [json.loads(file.read_text()) for file in sorted((folder / name / "evaluations/pitches").glob("told-by-*.json"))]
        told[name].append(record)
    (alone, metrics), (first, second, shared) = told["alone"], told["shared"]
    assert first == second and shared == metrics
    assert alone.keys() == first.keys() and alone["name"] == first["name"] == [f"tone-{n}" for n in range(48)]
    for part in ("logits", "pitch", "spread", "silent"):
        torch.testing.assert_close(torch.tensor(first[part]), torch.tensor(alone[part]), atol=1e-6, rtol=1e-6)


def test_a_mistake_in_it_is_answered_like_any_other(folder):
    done = subprocess.run([*TRAIN, "streams.sounds.data.silence={frams: 3}", "losses.fill.feature=listener", "hooks.count.evry=2",
                           "encoders.listener.inputs={sond: $sound}", "evaluate.pitches.head=ptch", "train.output=no"],
                          cwd=folder, capture_output=True, text=True)
    assert done.returncode == 2 and "Traceback" not in done.stderr
    for word in ("`frames`", "write `listener@mask_sound`", "did you mean `every`?", "did you mean `sound`?", "did you mean `pitch`?"):
        assert word in done.stderr, done.stderr
