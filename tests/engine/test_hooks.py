"""What a run leaves behind: lines, files and evaluations; and how it goes when it is told to stop."""

import io
import json
import math
import os
import re
import signal
import subprocess
import sys
import time
from datetime import datetime

import pytest
import torch

from engine_toy import ToyLoader, ToyModel, loaders, recipe
from xtoolkit.recipe.folder import evaluated, latest
from xtoolkit.recipe import config
from xtoolkit.recipe.plugins import find
from xtoolkit.engine import checkpoint
from xtoolkit.engine.guessing import judge, sentences
from xtoolkit.engine.hooks import Checkpoint, Evaluate, JsonLines, Log, Signals, default_hooks
from xtoolkit.recipe.settings import Optim, ScheduleBlock
from xtoolkit.engine.trainer import Stopped, Trainer
from xtoolkit.engine.writers import Console, TensorBoard
from xtoolkit.hooks import Hook

EVALUATE = {"often": {"type": "X", "every": 4, "data": {}}, "atend": {"type": "Y", "data": {}}}


def lines(output):
    return [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]


def scores():
    """Evaluators that count their calls."""
    calls = {"often": 0, "atend": 0}

    def of(name):
        def evaluate(step):
            calls[name] += 1
            return {"metrics": {"r10": 10.0 * calls[name], "none": None}, "floor": {"r10": math.nan}, "figures": []}
        return evaluate

    return calls, {name: of(name) for name in calls}


class Kill(Hook):
    """Sends signals during a step."""

    def __init__(self, step, *numbers):
        self.step, self.numbers = step, numbers

    def before_step(self, trainer):
        if trainer.done == self.step:
            for number in self.numbers:
                os.kill(os.getpid(), number)


@pytest.mark.parametrize("number, code", [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_finishes_the_step_and_the_resumed_run_is_the_same(tmp_path, number, code):
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    hooks = lambda: [JsonLines(), Log(), Checkpoint(), Signals()]
    with pytest.raises(Stopped, match="stopped after step 4; go on with --resume") as caught:
        Trainer(ToyModel(), recipe(tmp_path / "cut"), loaders(), hooks=[Kill(3, number), *hooks()]).fit()
    assert caught.value.code == code
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == before
    assert latest(tmp_path / "cut").name == "step_00000004"
    resumed = Trainer(ToyModel(), recipe(tmp_path / "cut"), loaders(), hooks=hooks(), resume=True)
    resumed.fit()
    whole = Trainer(ToyModel(), recipe(tmp_path / "whole"), loaders(), hooks=hooks())
    whole.fit()
    assert all(torch.equal(p, q) for p, q in zip(whole.model.parameters(), resumed.model.parameters()))
    assert [x["loss"] for x in lines(tmp_path / "cut")] == [x["loss"] for x in lines(tmp_path / "whole")]


def test_a_second_signal_leaves_at_once(tmp_path):
    before = signal.getsignal(signal.SIGINT)
    trainer = Trainer(ToyModel(), recipe(tmp_path), loaders(), hooks=[Kill(3, signal.SIGINT, signal.SIGINT), Signals()])
    with pytest.raises(KeyboardInterrupt):
        trainer.fit()
    assert trainer.done == 3 and latest(tmp_path) is None
    assert signal.getsignal(signal.SIGINT) is before


def test_a_signal_during_the_last_evaluations_leaves_a_run_that_resuming_completes(tmp_path):
    calls, evaluators = scores()
    interrupted = {**evaluators, "often": lambda step: os.kill(os.getpid(), signal.SIGINT) or evaluators["often"](step)}
    made = lambda: recipe(tmp_path, steps=3, evaluate=EVALUATE)
    with pytest.raises(Stopped, match="after step 3"):
        Trainer(ToyModel(), made(), loaders(), interrupted, default_hooks()).fit()
    assert calls == {"often": 1, "atend": 0} and not (tmp_path / "results.json").exists()
    Trainer(ToyModel(), made(), loaders(), evaluators, default_hooks(), resume=True).fit()
    results = json.loads((tmp_path / "results.json").read_text())
    assert results["step"] == 3 and results["evaluations"].keys() == {"often", "atend"}
    assert calls == {"often": 1, "atend": 1}, "what was evaluated at the last step is evaluated again"


def test_what_was_due_when_a_signal_came_is_evaluated_when_the_run_goes_on(tmp_path):
    """At step 4 both are due: the signal comes in the first, which ends; the second is made up for, once."""
    calls, evaluators = scores()
    steps = []
    noted = {name: lambda step, name=name: steps.append((name, step)) or evaluators[name](step) for name in evaluators}
    interrupted = noted | {"often": lambda step: os.kill(os.getpid(), signal.SIGTERM) or noted["often"](step)}
    made = lambda steps=6: recipe(tmp_path, steps=steps, evaluate={n: {"type": "X", "every": 4, "data": {}} for n in noted})
    with pytest.raises(Stopped, match="after step 4"):
        Trainer(ToyModel(), made(), loaders(), interrupted, default_hooks()).fit()
    with pytest.raises(Stopped, match="after step 4"):  # and again before a step is taken
        again = noted | {"atend": lambda step: os.kill(os.getpid(), signal.SIGTERM) or noted["atend"](step), "third": noted["often"]}
        more = made()
        more.evaluate["third"] = {"type": "X", "every": 2, "data": {}}
        Trainer(ToyModel(), more, loaders(), again, default_hooks(), resume=True).fit()
    Trainer(ToyModel(), made(), loaders(), noted, default_hooks(), resume=True).fit()
    assert steps == [("often", 4), ("atend", 4), ("often", 6), ("atend", 6)]
    assert [line["step"] for line in lines(tmp_path) if "atend.r10" in line] == [4, 6]


def test_what_a_killed_run_had_not_evaluated_is_evaluated_when_it_goes_on(tmp_path):
    """A kill in an evaluation of a step whose checkpoint is written already; nothing is due before the first step."""
    calls, evaluators = scores()
    steps = []
    noted = {"often": lambda step: steps.append(step) or evaluators["often"](step)}

    def killed(step):
        raise MemoryError

    made = lambda: recipe(tmp_path, steps=7, checkpoint_every=4, evaluate={"often": EVALUATE["often"]})
    with pytest.raises(MemoryError):
        Trainer(ToyModel(), made(), loaders(), {"often": killed}, default_hooks()).fit()
    Trainer(ToyModel(), made(), loaders(), noted, default_hooks(), resume=True).fit()
    assert steps == [4, 7]


def test_metrics_hold_losses_by_name_rates_and_what_was_seen(tmp_path):
    schedule = ScheduleBlock(every_step=[["a", "b"]], every={"b": 4})
    made = recipe(tmp_path, schedule=schedule, log_every=4, optim=Optim(lr=1e-2, warmup=8))
    trainer = Trainer(ToyModel(), made, loaders(), hooks=[JsonLines(), Log()])
    steps = []
    trainer.hooks.append(type("Keep", (Hook,), {"after_step": lambda self, t: steps.append(
        {name: float(value) for name, value in t.values.items()})})())
    trainer.fit()
    found = lines(tmp_path)
    assert [line["step"] for line in found] == [4, 8, 10] and all(next(iter(line)) == "step" for line in found)
    first = found[0]
    mean = lambda name, of: sum(s[name] for s in of if name in s) / sum(name in s for s in of)
    assert first["loss"] == pytest.approx(mean("loss", steps[:4]), rel=1e-5)
    assert first["a.one"] == pytest.approx(mean("a.one", steps[:4]), rel=1e-5)
    assert first["b.one"] == pytest.approx(steps[0]["b.one"], rel=1e-6)
    assert first["one"] == pytest.approx((first["a.one"] + first["b.one"]) / 2, rel=1e-6)
    assert first["two"] == first["a.two"]
    assert {"a.one.size", "norm", "norm.body", "norm.side", "samples_per_s", "data_share", "seconds", "eta_s",
            "memory_gb"} <= first.keys()
    assert first["lr"] == pytest.approx(5e-3) and found[-1]["eta_s"] == 0
    assert (found[1]["samples.a"], found[1]["samples.b"], found[1]["epochs.a"]) == (64, 16, 1.0)


def test_evaluations_run_when_due_and_join_the_line_of_their_step(tmp_path, capsys):
    calls, evaluators = scores()
    made = recipe(tmp_path, evaluate=EVALUATE, log_every=4)
    trainer = Trainer(ToyModel(), made, loaders(), evaluators, default_hooks())
    trainer.fit()
    assert calls == {"often": 3, "atend": 1}
    assert [(x["step"], x.get("often.r10"), x.get("atend.r10")) for x in lines(tmp_path)] == [
        (4, 10.0, None), (8, 20.0, None), (10, 30.0, 10.0)]
    assert lines(tmp_path)[0]["loss"] > 0 and lines(tmp_path)[0]["often.none"] is None
    out = capsys.readouterr().out.splitlines()
    assert len(out) == 1 + 3 + 4 + 3
    assert re.fullmatch(r"guessing, without a look at the sample, is so far: one \S+", out[0])
    assert re.fullmatch(r"step  4/10  loss \d+\.\d{4}  one \d+\.\d{4}  two \d+\.\d{4}  lr 8\.57e-03  norm \S+  "
                        r"\S+ samples/s  data \d+%  eta 0:00:\d\d  \d+\.\d\d GB(, now \d+\.\d\d)?", out[1])
    assert out[2].startswith("step  4/10  often.r10 10  often.seconds")


def test_what_guessing_costs_is_logged_and_judged(tmp_path, capsys):
    """Loss one of both streams has a line of guessing, two has none; loss b.one is computed every second step."""
    run = lambda output, steps=24, **more: Trainer(ToyModel(), recipe(output, steps=steps, log_every=2), loaders(),
                                                   hooks=default_hooks(), **more).fit()
    run(tmp_path / "one")
    logged = lines(tmp_path / "one")
    x = lambda stream, visit: ToyLoader(stream, 8).at(visit)["x"].sum(1)
    for i, line in enumerate(logged):  # of the first batch of each interval, of `b` the only one
        assert line["a.one.guess"] == pytest.approx(x("a", 2 * i).square().mean().item(), rel=1e-5)
        assert line["one.guess"] == pytest.approx((line["a.one.guess"] + line["b.one.guess"]) / 2, rel=1e-5)
        assert line["a.one.seen"] == sum((x("a", 2 * j) > 0).sum().item() for j in range(i))
        assert "a.two.guess" not in line
    said = [line for line in capsys.readouterr().out.splitlines() if not line.startswith("step")]
    results = json.loads((tmp_path / "one/results.json").read_text())["guessing"]
    assert list(results) == ["a.one", "a.two", "b.one"] and said[1:] == sentences(results)
    assert results["a.one"]["steps"] == 16 and results["a.one"]["learnt"] is not None
    assert results["a.two"]["guess"] is None and said[2].endswith("over the last 16 steps, and no line of guessing is known")
    # A run that stops, also between two log steps, goes on with what was counted.
    run(tmp_path / "two", 9)
    run(tmp_path / "two", resume=True)
    again = lines(tmp_path / "two")
    seen = [(line["step"], line["a.one.seen"]) for line in again if "a.one.seen" in line and line["step"] != 9]
    assert seen == [(line["step"], line["a.one.seen"]) for line in logged if line["step"] != 10]


@pytest.mark.parametrize("apart, learnt, end", [
    (-0.05, True, "learnt beyond guessing"), (0.05, False, "not learnt, it is worse than guessing"),
    (-0.001, None, "undecided, the difference is within its error of 0.0071"), (0.001, None, "undecided, the difference is within "
                                                                                         "its error of 0.0071")])
def test_a_run_says_whether_a_loss_learnt(apart, learnt, end):
    """Twenty-four log steps, the first sixteen far below the line; noise of 0.01 at the last eight, so an error of 0.0071."""
    logged = [{"step": 20 * i, "loss": 1.0, "match.itm": 0.1 if i <= 16 else 0.64 + apart + 0.01 * (-1) ** i * math.sqrt(7 / 8),
               "match.itm.guess": 0.64} for i in range(1, 25)]
    found = judge(logged, ["match.itm", "never.seen"])
    assert list(found) == ["match.itm"] and found["match.itm"]["learnt"] is learnt
    assert found["match.itm"]["error"] == pytest.approx(2 * 0.01 / math.sqrt(8)) and found["match.itm"]["steps"] == 160
    assert sentences(found) == [f"itm (match): {0.64 + apart:.4g} over the last 160 steps, guessing is 0.64: {end}"]


def test_what_cannot_be_judged_says_so():
    logged = [{"step": i, "loss": 1.0, "a.one": 2.0, "a.two": None, "a.one.guess": 2.0 + 1e-7, "a.three": 3.0} for i in range(1, 8)]
    assert sentences(judge(logged, ["a.one", "a.two", "a.three"])) == [
        "one (a): 2 over the last 7 steps, guessing is 2: the run is too short to tell",
        "three (a): 3 over the last 7 steps, and no line of guessing is known"]
    equal = judge([*logged, logged[-1] | {"step": 8}], ["a.one"])["a.one"]
    assert equal["learnt"] is None and equal["error"] == pytest.approx(2e-6)  # what rounding leaves apart is equal
    long = [{"step": i, "loss": 1.0, "a.one": 1.0, "a.one.guess": 2.0} for i in range(1, 1001)]
    assert judge(long, ["a.one"])["a.one"]["steps"] == 100


def test_the_files_of_a_run(tmp_path):
    calls, evaluators = scores()
    made = recipe(tmp_path, evaluate=EVALUATE)
    made.config["train"] |= {"lr": 1e-5, "word": "on"}
    trainer = Trainer(ToyModel(), made, loaders(), evaluators, default_hooks(), kernels="torch references")
    trainer.fit()
    assert config.load(str(tmp_path / "config.yaml")).data == made.config
    environment = json.loads((tmp_path / "environment.json").read_text())
    assert environment["kernels"] == "torch references" and environment["versions"]["torch"].startswith("2.")
    assert environment["machine"]["device"] == "cpu" and environment["from_step"] == 0
    results = json.loads((tmp_path / "results.json").read_text())
    assert results["evaluations"] == {"often": {"r10": 30.0, "none": None}, "atend": {"r10": 10.0, "none": None}}
    assert results["samples"] == {"a": 80, "b": 40} and results["epochs"]["b"] == 40 / 64
    assert results["data"] == {"a": {"bad": {}}, "b": {"bad": {}}} and results["losses"]["step"] == 10
    record = checkpoint.read_record(latest(tmp_path))
    assert record["config"] == made.config and record["step"] == 10
    assert record["data"] == {name: {"samples": 64, "digests": {}} for name in ("a", "b")}
    found = evaluated(tmp_path)
    assert {name: (record["step"], record["metrics"]["r10"]) for name, record in found.items()} == {
        "often": (10, 30.0), "atend": (10, 10.0)}
    assert found["often"]["floor"] == {"r10": None} and datetime.fromisoformat(found["often"]["time"])
    # A run that is complete changes nothing, and reads nothing.
    before, read = lines(tmp_path), loaders()
    Trainer(ToyModel(), made, read, evaluators, default_hooks(), resume=True).fit()
    assert calls == {"often": 3, "atend": 1} and lines(tmp_path) == before
    assert not any(loader.visits for loader in read.values())
    assert len(json.loads((tmp_path / "environment.json").read_text())["earlier"]) == 1
    assert json.loads((tmp_path / "results.json").read_text())["losses"]["loss"] == before[-1]["loss"]


def test_a_line_that_was_cut_short_is_dropped_on_resume(tmp_path):
    hooks = lambda: [JsonLines(), Log(), Checkpoint()]
    Trainer(ToyModel(), recipe(tmp_path, steps=5), loaders(), hooks=hooks()).fit()
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write('{"step": 6, "loss": 1.0}\n{"step": 7, "lo')
    Trainer(ToyModel(), recipe(tmp_path, steps=6), loaders(), hooks=hooks(), resume=True).fit()
    assert [line["step"] for line in lines(tmp_path)] == [1, 2, 3, 4, 5, 6]
    assert lines(tmp_path)[-1]["loss"] != 1.0


def test_tensorboard_has_the_numbers_of_metrics(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    Trainer(ToyModel(), recipe(tmp_path, steps=3), loaders(), hooks=[JsonLines(), TensorBoard(), Log()]).fit()
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert {e.step: e.value for e in events.Scalars("a/one")} == pytest.approx(
        {line["step"]: line["a.one"] for line in lines(tmp_path)})


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_a_progress_bar_is_drawn_on_a_terminal_only(tmp_path):
    shown = {}
    for name, bar in (("terminal", Terminal()), ("file", io.StringIO())):
        hooks = [Console(io.StringIO(), bar), Log()]
        Trainer(ToyModel(), recipe(tmp_path / name, steps=3), loaders(), hooks=hooks).fit()
        shown[name] = bar.getvalue()
    assert "1/3" in shown["terminal"] and shown["terminal"].endswith("\r\033[K") and shown["file"] == ""


def test_steps_that_wait_for_the_processors_are_said_once_in_a_while(tmp_path):
    out = io.StringIO()
    console = Console(out, io.StringIO())
    trainer = Trainer(ToyModel(), recipe(tmp_path), loaders(), hooks=[console])
    console.before_train(trainer)
    for seconds, share in ((4, 0.3), (9, 0.5), (12, 0.2), (30, 0.1), (50, 0.9)):
        console._held(seconds, share)
    (line,) = out.getvalue().splitlines()
    assert line.startswith("steps take 2.8 times what their processor time explains: other processes hold the processors")
    quiet = io.StringIO()
    console = Console(quiet, io.StringIO())
    console.before_train(trainer)
    console._held(60, 0.9)
    assert quiet.getvalue() == ""


def test_the_share_that_the_thread_computed_is_logged(tmp_path):
    class Slow(ToyModel):
        def forward(self, stream, batch, **given):
            time.sleep(0.05)
            return super().forward(stream, batch, **given)

    Trainer(Slow(), recipe(tmp_path, steps=2), loaders(), hooks=[JsonLines(), Log()]).fit()
    assert all(0 <= line["cpu_share"] < 0.6 for line in lines(tmp_path))


@pytest.mark.parametrize("steps, said", [(20, True), (5, False)])
def test_more_steps_than_before_are_said_to_bend_the_schedule(tmp_path, capsys, steps, said):
    run = lambda steps, **more: Trainer(ToyModel(), recipe(tmp_path, steps=steps), loaders(), hooks=default_hooks(), **more).fit()
    run(5)
    run(steps, resume=True)
    line = ("train.steps was 5 and is 20, which bends the schedule: the learning rate was 0.00e+00 at step 5 and becomes "
            "8.24e-03")
    assert (line in capsys.readouterr().out.splitlines()) == said


def test_an_edited_plugin_is_said_and_both_contents_are_kept(tmp_path, capsys):
    def run(steps, text, resume=True):
        (tmp_path / "mine.py").write_text(text)
        made = recipe(tmp_path / "run", steps=steps)
        made.plugins = [find("mine.py", tmp_path)]
        Trainer(ToyModel(), made, loaders(), hooks=default_hooks(), resume=resume).fit()
        return [line for line in capsys.readouterr().out.splitlines() if line.startswith("plugin ")]

    assert run(5, "a = 1\n", resume=False) == [] and run(6, "a = 1\n") == []
    known = checkpoint.read_record(latest(tmp_path / "run"))["plugins"]["mine.py"]
    (line,) = run(7, "a = 2\n")
    assert line.startswith("plugin mine.py is not what step_00000006 was trained with: its content was " + known["digest"])
    assert (tmp_path / "run/plugins/mine.py").read_text() == "a = 2\n"
    assert (tmp_path / "run/plugins" / known["digest"] / "mine.py").read_text() == "a = 1\n"
    assert run(8, "a = 2\n") == []


def test_a_constant_rate_bends_nothing(tmp_path, capsys):
    optim = Optim(lr=1e-2, decay="constant")
    for steps, resume in ((3, False), (6, True)):
        Trainer(ToyModel(), recipe(tmp_path, steps=steps, optim=optim), loaders(), hooks=default_hooks(), resume=resume).fit()
    assert "bends the schedule" not in capsys.readouterr().out


def test_openmp_is_told_to_share_before_torch_is_there_and_the_user_has_the_last_word():
    code = "import os; from xtoolkit.engine.environment import share_processors as f; {}f(); print(os.environ.get('GOMP_SPINCOUNT'))"
    plain = {k: v for k, v in os.environ.items() if k not in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")}
    for before, given, expected in (("", {}, "1000"), ("import torch; ", {}, "None"), ("", {"GOMP_SPINCOUNT": "7"}, "7"),
                                    ("", {"OMP_WAIT_POLICY": "active"}, "None")):
        said = subprocess.run([sys.executable, "-c", code.format(before)], env={**plain, **given}, capture_output=True, text=True)
        assert said.stdout.strip() == expected, said.stderr


def test_a_command_tells_openmp_before_it_imports_torch():
    code = ("import os, sys; from xtoolkit.cli.main import main; early = 'torch' not in sys.modules; main(['list', 'hooks'])\n"
            "print(early, os.environ['GOMP_SPINCOUNT'])")
    plain = {k: v for k, v in os.environ.items() if k not in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")}
    said = subprocess.run([sys.executable, "-c", code], env=plain, capture_output=True, text=True)
    assert said.stdout.splitlines()[-1] == "True 1000", said.stderr


def test_hooks_are_closed_when_a_run_fails(tmp_path):
    closed = []

    class Closing(Hook):
        def before_step(self, trainer):
            raise RuntimeError("the disk is full")

        def close(self, trainer):
            closed.append(True)

    with pytest.raises(RuntimeError, match="the disk is full"):
        Trainer(ToyModel(), recipe(tmp_path), loaders(), hooks=[Closing(), Evaluate()]).fit()
    assert closed == [True]
