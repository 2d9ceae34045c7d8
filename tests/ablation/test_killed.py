"""A table that is killed at twenty random moments: it ends with the files of one that never was, and computes nothing twice."""

import itertools
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import toy_table
from latex import columns_of
from xtoolkit.ablation.jobs import DONE, Jobs
from xtoolkit.ablation.table import read
from xtoolkit.engine.checkpoint import read_model

KILLS, STEPS, EVERY = 20, 50, 5
# A figure that all weights move, and a word of each step that is taken and of each evaluation that is begun, where no key sees it.
PLUGIN = r'''
import os
import time
from pathlib import Path

from xtoolkit.graph import Need
from xtoolkit.hooks.base import Hook
from xtoolkit.registry import HOOK_REGISTRY, TASK_REGISTRY
from xtoolkit.tasks.base import Task

TOLD = Path(os.environ["TOLD"])


@HOOK_REGISTRY.register
class ToldSteps(Hook):
    """Tells each step, and rests after it. YAML: {type: ToldSteps, rest: 0.3}"""

    def __init__(self, rest: float):
        self.rest = rest

    def after_step(self, trainer):
        with open(TOLD / f"{Path(trainer.output).name}.steps", "a") as file:
            file.write(f"{os.getpid()} {trainer.done} {time.time()}\n")
        time.sleep(self.rest)


@TASK_REGISTRY.register
class ToldSummary(Task):
    """A number of each text's summary. YAML: {type: ToldSummary}"""

    def __init__(self, output: Path):
        self.output = output

    @classmethod
    def needs(cls, block):
        return [Need("text", grad=False)]

    def evaluate(self, model, loader, *ranks):
        job, again = self.output.parents[1].name, self.output.with_suffix(".json").exists()
        (TOLD / f"{job}.{time.time_ns()}.{'again' if again else 'evaluation'}").touch()
        return super().evaluate(model, loader, *ranks)

    def predict(self, f, batch):
        return {"told": f["text"].pooled[:, 0].double().sigmoid()}

    def score(self, outputs):
        return {"accuracy": 100 * outputs["told"].mean().item()}

    def floor(self, outputs):
        return {"accuracy": 50.0}

    def samples(self, outputs):
        return [{"id": n, "image_id": None, "score": value} for n, value in enumerate(outputs["told"].tolist())]
'''
TRAINED = f'''
_BASE_: long.yaml
plugins: [told.py]
hooks: {{told: {{type: ToldSteps, rest: 0.3}}}}
evaluate: {{test: {{type: ToldSummary, data: {{type: Text, path: FOLDER/text.jsonl, max_tokens: 16}}}}}}
train: {{steps: {STEPS}, log_every: {EVERY}, checkpoint_every: {EVERY}}}
'''
JUDGED = '''
plugins: [told.py]
tokenizer: sample://picturebook/tokenizer
init: {path: outputs/x, parts: shared}
encoders: {text: {type: RoBERTa, inputs: {text: $text}, width: 16, layers: 1, heads: 1, vocab_size: 4000}}
evaluate: {test: {type: ToldSummary, data: {type: Text, path: FOLDER/text.jsonl, max_tokens: 16}}}
train: {output: outputs/y, workers: 0, precision: fp32}
'''
TABLE = '''
output: FOLDER/out
seeds: [1]
apart: 10
recipe: trained.yaml
starts:
  text: {recipe: trained.yaml, set: [optim.lr=2e-3]}
columns:
  Plain: {groups: [words]}
  Begun: {set: [init=<text>]}
rows:
  Tuned:  {recipe: trained.yaml, metrics: {told: test.accuracy}, group: words}
  Judged: {recipe: judged.yaml, metrics: {told: test.accuracy}, group: sentences}
contrasts:
  begun: {groups: [words], better: Begun, than: Plain}
'''
TRAININGS, JOBS = 5, 6
TIMES = {"seconds", "seconds_all", "processor_seconds", "samples_per_s", "data_share", "eta_s", "memory_gb", "memory_now_gb", "cpu_share", "time"}
OF_STARTS = {"environment.json", "report.html", "checkpoint.json"}  # they tell of each start, when and on what


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("TOLD", str(tmp_path / "told"))
    toy_table.write(tmp_path)
    for name, text in (("told.py", PLUGIN), ("trained.yaml", TRAINED), ("judged.yaml", JUDGED), ("table.yaml", TABLE)):
        (tmp_path / name).write_text(text.replace("FOLDER", str(tmp_path)))
    (tmp_path / "told").mkdir()
    return tmp_path


def timeless(value):
    """JSON without what the clock says."""
    if isinstance(value, dict):
        return {name: timeless(inner) for name, inner in value.items() if name not in TIMES and not name.endswith(".seconds")}
    return [timeless(inner) for inner in value] if isinstance(value, list) else value


def finals(out: Path) -> dict:
    """{file, or checkpoint: what is in it} of all that a table leaves but for times and what tells of starts."""
    found = {}
    for path in (path for path in out.rglob("*") if path.is_file()):
        place = path.relative_to(out)
        if path.parent == out and path.stem == "table":
            found[str(place)] = path.read_bytes()
        elif path.name == ".metadata":
            found[str(place.parent)] = {name: value.numpy().tobytes() for name, value in read_model(path.parent).items()}
        elif path.suffix in (".json", ".jsonl") and path.name not in OF_STARTS:
            lines = path.read_text().splitlines() if path.suffix == ".jsonl" else [path.read_text()]
            found[str(place)] = [timeless(json.loads(line)) for line in lines]
        elif path.suffix in (".yaml", ".py"):
            found[str(place)] = path.read_text()
    return found


def finished(out: Path) -> dict[str, int]:
    """{key of a job that is finished: when its done.json was written}."""
    return {path.parent.name: path.stat().st_mtime_ns for path in out.rglob(DONE)}


def trainings(told: Path) -> list[list[list[int]]]:
    """Of each job the steps that each of its processes took, in their order. No two processes are at one job."""
    found = []
    for path in told.glob("*.steps"):
        lines = [line.split() for line in path.read_text().splitlines()]
        several = [(process, [int(step) for _, step, _ in own]) for process, own in itertools.groupby(lines, key=lambda line: line[0])]
        assert len({process for process, _ in several}) == len(several), f"{path.name}: two processes at one job"
        found.append([steps for _, steps in several])
    return found


@pytest.mark.slow
def test_killed_at_any_moment_it_ends_with_the_same_files_and_computes_nothing_twice(folder):
    out, told = folder / "out", folder / "told"
    command = [sys.executable, "-m", "xtoolkit", "ablate", "--config", str(folder / "table.yaml"), "--jobs", "2", "--yes"]
    began = time.time()
    subprocess.run(command, check=True, capture_output=True)
    until_a_step = min(float(path.read_text().split()[2]) for path in told.glob("*.steps")) - began
    assert trainings(told) == [[list(range(1, STEPS + 1))]] * TRAININGS and len(finished(out)) == JOBS
    whole = finals(out)
    assert {f"table.{kind}" for kind in ("md", "json", "csv", "tex", "html")} <= whole.keys()
    values = {value for line in json.loads(whole["table.json"])["rows"] for cell in line["columns"].values() for value in cell["values"].values()}
    assert len(values) == 3 and all(len(repr(value)) > 12 for value in values), "figures tell trainings apart"
    for name in ("out", "told"):
        os.rename(folder / name, folder / f"{name}_whole")
    told.mkdir()

    drawn, ended, alive = random.Random(5), {}, []
    for number in range(KILLS):
        alive.append(subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True))
        if number % 2:  # all that runs dies, jobs of calls that were killed before too
            time.sleep(drawn.uniform(0.8, 1.8) * until_a_step)
            for process in alive:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
            alive.clear()
        else:  # the jobs go on without it
            time.sleep(drawn.uniform(0.1, 1.0) * until_a_step)
            alive[-1].kill()
            os.waitid(os.P_PID, alive[-1].pid, os.WEXITED | os.WNOWAIT)  # its number stays taken until its session is killed
        if (out / "table.json").is_file():
            json.loads((out / "table.json").read_text())
        if (out / "table.tex").is_file():
            assert columns_of((out / "table.tex").read_text())
        now = finished(out)
        assert ended.items() <= now.items(), "what was finished was run again"
        ended = now
    subprocess.run(command, check=True, capture_output=True)

    found = finals(out)
    assert found.keys() == whole.keys()
    assert [name for name in whole if found[name] != whole[name]] == []
    ended = finished(out)
    assert len(ended) == JOBS and ended.keys() == finished(folder / "out_whole").keys()
    for key, when in ended.items():
        assert all(path.stat().st_mtime_ns < when for path in told.glob(f"{key}.*")), "what was finished was computed again"
    restarts = 0
    for several in trainings(told):
        assert several[0][0] == 1 and several[-1][-1] == STEPS
        assert all(steps == list(range(steps[0], steps[-1] + 1)) for steps in several)
        for before, after in itertools.pairwise(several):  # from the last checkpoint, or that before it where one was being written
            assert (after[0] - 1) % EVERY == 0 and 0 <= before[-1] - (after[0] - 1) <= EVERY, (before, after)
            restarts += after[0] > 1
    assert restarts >= 3, "kills that met a running job: it went on from a checkpoint"
    of = Jobs(read(str(folder / "table.yaml")), str(folder))
    judged = of.cell("Begun", "Judged", "", 1).place
    alone = {path.parent.name for path in judged.rglob(DONE)}  # trains nothing: without its done.json it is evaluated anew
    assert {path.name.partition(".")[0] for path in told.glob("*.again")} <= alone
