"""A run put together: what starts and what does not, records that merge by name, and evaluation on two ranks."""

import dataclasses
import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from engine_toy import ToyModel, loaders, recipe
from xtoolkit.batch import Batch
from xtoolkit.engine import records, run
from xtoolkit.engine.start import check_start
from xtoolkit.engine.distributed import Ranks
from xtoolkit.engine.guessing import sentences
from xtoolkit.engine.hooks import Evaluate, JsonLines, default_hooks
from xtoolkit.engine.trainer import Trainer
from xtoolkit.recipe.folder import evaluated, is_complete, latest
from xtoolkit.registry import ConfigError
from xtoolkit.tasks import base

HERE = Path(__file__).resolve().parent


class Task:
    """Sums what its data holds, each process a part of it."""

    HEADLINES = {"sum": "The sum"}

    def check(self, model, data):
        pass

    def evaluate(self, model, loader, ranks):
        mine = [(number, loader[number]) for number in ranks.part(len(loader))]
        outputs = ranks.gather(mine)
        return {"metrics": {"sum": sum(v for _, v in outputs), "order": [n for n, _ in outputs] == list(range(len(loader)))},
                "floor": {}, "examples": [{"text": "only words"}]}

    def table(self, metrics, floor):
        return ["metric", "value"], [[n, str(v)] for n, v in metrics.items()]

    def figures(self, examples):
        return [{"title": "words", "items": [{"caption": e["text"]} for e in examples]}]


class Numbers(list):
    """A loader of an evaluation: numbers are its batches; ``judged`` counts how often its bad samples were."""

    judged = 0

    def batches(self, numbers):
        return (Batch(number=torch.tensor(self[n])) for n in numbers)

    def judge(self, ranks):
        self.judged += 1
        return {"read": len(self), "bad": {}}


class Coloured:
    """Data in which each batch is one picture, named by its number; ``read`` lists those that were looked at."""

    def __init__(self):
        self.read = []

    def pictures(self, batch):
        self.read.append(int(batch["number"]))
        return {str(self.read[-1]): torch.full((3, 4, 4), self.read[-1], dtype=torch.uint8)}


class ARun(run.Run):
    """A run of a recipe that has one evaluation, without a model and data of its own."""

    def __init__(self, output, steps=2, task=None, data=(1, 2, 3, 4, 5)):
        self.recipe = recipe(output, steps=steps, evaluate={"sums": {"type": "X", "data": {}}})
        self.tasks, self.model, self.data, self.pictures = {"sums": task or Task()}, ToyModel(), Numbers(data), Coloured()
        self.model.recipe = self.recipe

    def _dataset(self, kind, name):
        return self.pictures

    def eval_loader(self, name):
        return self.data


def test_a_record_has_what_the_report_reads(tmp_path):
    evaluate = ARun(tmp_path).evaluator("sums", last=4)
    records.write_evaluation(tmp_path, "sums", 4, evaluate(4))
    found = evaluated(tmp_path)["sums"]
    assert found.pop("time").endswith("+00:00")
    assert found == {"step": 4, "metrics": {"sum": 15, "order": True}, "floor": {}, "headlines": {"sum": "The sum"},
                     "table": [["metric", "value"], [["sum", "15"], ["order", "True"]]],
                     "figures": [{"title": "words", "items": [{"caption": "only words"}]}], "files": []}
    assert evaluate(2)["figures"] == [], "figures are drawn for the last step only"


class Scored(Task):
    """Gives what it is told to."""

    def __init__(self, value, figures=()):
        self.value, self.shown = value, list(figures)

    def evaluate(self, model, loader, ranks):
        return {"metrics": {"acc": self.value}, "floor": {"acc": torch.tensor(0.5)}, "examples": []}

    def figures(self, examples):
        return self.shown


@pytest.mark.parametrize("value", [torch.tensor(0.25), np.float32(0.25), np.array(0.25), torch.tensor(0.25, dtype=torch.bfloat16)])
def test_a_0_d_metric_is_a_number(tmp_path, value):
    found = ARun(tmp_path, task=Scored(value)).evaluate(step=2, say=len)
    assert found == {"sums": {"acc": 0.25}} and type(found["sums"]["acc"]) is float
    assert evaluated(tmp_path)["sums"]["floor"] == {"acc": 0.5}


@pytest.mark.parametrize("value, said", [("good", "the str 'good'"), (torch.zeros(2), "the Tensor of shape (2,)")])
def test_a_metric_that_is_no_number_is_named_and_all_else_stays(tmp_path, value, said):
    line = f"evaluation `wrong`: Scored: its metrics: `acc` must be a number, not {said}"
    made = recipe(tmp_path, steps=2, evaluate={name: {"type": "X", "data": {}} for name in ("wrong", "sums")})
    several = ARun(tmp_path)
    several.tasks = {"wrong": Scored(value), "sums": Task()}
    several.recipe = made
    evaluators = {name: several.evaluator(name, 2) for name in several.tasks}
    trainer = Trainer(ToyModel(), made, loaders(), evaluators, default_hooks())
    with pytest.raises(ConfigError) as caught:
        trainer.fit()
    assert caught.value.problems == [line] and trainer.model.training
    assert latest(tmp_path).name == "step_00000002" and evaluated(tmp_path).keys() == {"sums"}
    (tmp_path / "evaluations/sums.json").unlink()
    with pytest.raises(ConfigError) as caught:
        several.evaluate(step=2, say=len)
    assert caught.value.problems == [line] and evaluated(tmp_path).keys() == {"sums"}
    several.tasks["wrong"] = Scored(1.0)
    evaluators["wrong"] = several.evaluator("wrong", 2)
    Trainer(ToyModel(), made, loaders(), evaluators, default_hooks(), resume=True).fit()
    assert is_complete(tmp_path, 2, ["wrong", "sums"])


def test_a_wrong_figure_leaves_the_metrics_and_is_said(tmp_path, capsys):
    figures = [{"titel": "x"}, {"title": "y"}]
    assert ARun(tmp_path, task=Scored(1.0, figures)).evaluate(step=2, say=len) == {"sums": {"acc": 1.0}}
    line = "evaluation `sums`: Scored.figures: unknown key `titel` of Figure; did you mean `title`?"
    assert capsys.readouterr().err == f"{line.replace('figures: u', 'figures: a figure: u')}; not shown\n"
    kept = evaluated(tmp_path)["sums"]
    assert kept["metrics"] == {"acc": 1.0} and kept["figures"][1] == {"title": "y"} and "`titel`" in kept["figures"][0]["text"]


@pytest.mark.parametrize("table", [None, (["metric"], [["acc", "1"]]), (["metric"], [[1.0]]), ([], []), "words"])
def test_a_wrong_table_is_said_and_the_metrics_are_listed(tmp_path, capsys, table):
    task = Scored(1.0)
    task.table = lambda metrics, floor: table
    ARun(tmp_path, task=task).evaluate(step=2, say=len)
    assert capsys.readouterr().err.startswith("evaluation `sums`: Scored.table: must return (heading, rows)")
    assert evaluated(tmp_path)["sums"]["table"] == [["metric", "value", "floor"], [["acc", "1.000", "0.500"]]]


def test_samples_and_files_lie_beside_the_figures(tmp_path):
    class Kept(base.Task):
        def evaluate(self, model, loader, ranks):
            return self.result({"x": [1, 2]})

        def score(self, outputs):
            return {"sum": sum(outputs["x"])}

        def examples(self, outputs):
            return []

        def samples(self, outputs):
            return [{"id": str(x), "score": x} for x in outputs["x"]]

        def files(self, outputs):
            return {"server.tsv": "id\tä\n"}

    run = ARun(tmp_path, task=Kept())
    run.evaluate(step=None, say=len)
    assert not (tmp_path / "evaluations").exists(), "nothing is written where nothing is kept"
    run.evaluate(step=4, say=len)
    folder = tmp_path / "evaluations/sums"
    assert evaluated(tmp_path)["sums"]["files"] == ["samples.jsonl", "server.tsv"]
    assert [json.loads(line) for line in (folder / "samples.jsonl").read_text().splitlines()] == [
        {"id": "1", "score": 1}, {"id": "2", "score": 2}]
    assert (folder / "server.tsv").read_text(encoding="utf-8") == "id\tä\n"


def test_results_merge_by_name(tmp_path):
    records.write_evaluation(tmp_path, "old", 2, {"metrics": {"x": 1.0}, "floor": {}})
    records.write_results(tmp_path, {"step": 4, "losses": {"loss": 1.0}})
    old = (tmp_path / "evaluations/old.json").read_bytes()
    records.write_evaluation(tmp_path, "new", 4, {"metrics": {"y": float("nan")}, "floor": {}})
    records.write_results(tmp_path, {})
    assert json.loads((tmp_path / "results.json").read_text()) == {
        "step": 4, "losses": {"loss": 1.0}, "evaluations": {"new": {"y": None}, "old": {"x": 1.0}}}
    assert (tmp_path / "evaluations/old.json").read_bytes() == old


def test_a_run_is_complete_once_it_has_its_steps_its_evaluations_and_its_results(tmp_path):
    made = lambda steps=2: recipe(tmp_path, steps=steps, evaluate={"sums": {"type": "X", "data": {}}})
    sums = {"sums": ARun(tmp_path).evaluator("sums", last=2)}
    assert not is_complete(tmp_path, 2, ["sums"])
    Trainer(ToyModel(), made(), loaders(), {}, default_hooks()).fit()
    assert is_complete(tmp_path, 2, []) and not is_complete(tmp_path, 2, ["sums"]) and not is_complete(tmp_path, 3, [])
    Trainer(ToyModel(), made(), loaders(), sums, default_hooks(), resume=True).fit()
    assert is_complete(tmp_path, 2, ["sums"])
    said = []
    assert ARun(tmp_path).train(resume=True, say=said.append, report=lambda *given: said.append(given)) == {
        "sums": {"sum": 15, "order": True}}
    assert "is finished: all 2 steps are taken and evaluated" in said[0] and said[-1] == (str(tmp_path), ["sums"])
    judged = json.loads((tmp_path / "results.json").read_text())["guessing"]
    assert said[1:-1] == sentences(judged) and "too short to tell" in said[1]


def test_evaluating_alone_writes_what_it_found_and_leaves_the_rest(tmp_path):
    records.write_evaluation(tmp_path, "other", 1, {"metrics": {"x": 1.0}, "floor": {}})
    said = []
    assert ARun(tmp_path).evaluate(say=said.append) == {"sums": {"sum": 15, "order": True}}
    assert evaluated(tmp_path).keys() == {"other"}, "weights of no step leave no record"
    ARun(tmp_path).evaluate(step=2, say=said.append, report=lambda *given: said.append(given))
    assert said[-1] == (str(tmp_path), ["sums"]) and evaluated(tmp_path)["sums"]["figures"]
    results = json.loads((tmp_path / "results.json").read_text())
    assert results.keys() == {"evaluations"} and results["evaluations"].keys() == {"other", "sums"}
    assert evaluated(tmp_path)["sums"]["step"] == 2 and not is_complete(tmp_path, 2, ["sums"])


def test_evaluating_alone_does_not_complete_a_run_that_was_killed(tmp_path):
    """It went on to a fourth step, which was kept, and was killed before its results were written."""
    Trainer(ToyModel(), recipe(tmp_path, steps=2), loaders(), hooks=default_hooks()).fit()
    Trainer(ToyModel(), recipe(tmp_path, steps=4), loaders(), hooks=default_hooks()[:-1], resume=True).fit()
    ARun(tmp_path, steps=4).evaluate(step=4, say=lambda text: None)
    results = json.loads((tmp_path / "results.json").read_text())
    assert results["step"] == results["losses"]["step"] == 2 and "sums" in results["evaluations"]
    assert not is_complete(tmp_path, 4, ["sums"])


@pytest.mark.parametrize("how", ["training", "alone"])
def test_a_task_s_own_evaluate_runs_alike_in_training_and_alone(tmp_path, how):
    seen = []

    class Looking(Task):
        def evaluate(self, model, loader, ranks):
            x = torch.ones(2, 2)
            seen.append((model.training, torch.is_grad_enabled(), (x @ x).dtype))
            return super().evaluate(model, loader, ranks)

    made = ARun(tmp_path, steps=1, task=Looking())
    made.recipe.train = dataclasses.replace(made.recipe.train, precision="bf16")
    made.model.encoders["side"].eval()  # a module that is to stay so
    if how == "alone":
        made.evaluate(say=lambda text: None)
    else:
        trainer = Trainer(made.model, made.recipe, loaders(), {"sums": made.evaluator("sums", 1)}, [Evaluate()])
        made.model.encoders["side"].eval()
        trainer.fit()
    assert seen == [(False, False, torch.bfloat16)] and made.model.training and not made.model.encoders["side"].training
    assert made.data.judged == 1


def test_a_start_that_cannot_be_is_answered_with_every_reason(tmp_path, monkeypatch):
    monkeypatch.setenv("XTK_KERNELS", "tritn")
    made = recipe(tmp_path)
    (tmp_path / "something").write_text("")
    with pytest.raises(ConfigError) as caught:
        check_start(made, "train")
    assert len(caught.value.problems) == 2
    assert "it holds no run: empty it, or name another folder" in caught.value.problems[0]
    assert "XTK_KERNELS=tritn: no such choice; did you mean `triton`?" in caught.value.problems[1]
    monkeypatch.setenv("XTK_KERNELS", "torch")
    with pytest.raises(ConfigError, match="holds no checkpoint; train first") as caught:
        check_start(made, "evaluate")
    assert len(caught.value.problems) == 2 and "no `evaluate` block" in caught.value.problems[0]
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(ConfigError, match="train.device: cuda was asked for and this machine has none"):
        check_start(recipe(tmp_path / "new", device="cuda"), "train")
    with pytest.raises(ConfigError, match="something is a file; name a folder"):
        check_start(recipe(tmp_path / "something" / "run"), "train")


def test_a_batch_that_does_not_divide_is_answered_with_its_place_and_a_size_that_does(tmp_path, monkeypatch):
    said = r"^streams.a.batch_size: `batch_size` of stream `a`: 8 does not divide by {} \({} ranks? x `train.accumulate` 3\); take {}"
    with pytest.raises(ConfigError, match=said.format(3, 1, 6)) as caught:
        check_start(recipe(tmp_path, accumulate=3), "train")
    assert len(caught.value.problems) == 2
    monkeypatch.setenv("WORLD_SIZE", "4")
    with pytest.raises(ConfigError, match=said.format(12, 4, 12)):
        check_start(recipe(tmp_path, accumulate=3), "resume")


def test_what_cannot_be_resumed_is_said_before_anything_is_built(tmp_path):
    Trainer(ToyModel(), recipe(tmp_path, steps=5), loaders(), hooks=default_hooks()).fit()
    check_start(recipe(tmp_path, steps=9), "resume")
    with pytest.raises(ConfigError, match="train.steps: 3, but .*step_00000005 has taken 5; ask for more steps"):
        check_start(recipe(tmp_path, steps=3), "resume")
    with pytest.raises(ConfigError, match="train.seed: was 42, is 7"):
        check_start(recipe(tmp_path, seed=7), "resume")
    with pytest.raises(ConfigError, match="go on from its last checkpoint with --resume"):
        check_start(recipe(tmp_path), "train")


def test_a_folder_without_a_checkpoint_is_not_said_to_have_one(tmp_path):
    Trainer(ToyModel(), recipe(tmp_path, steps=1), loaders(), hooks=default_hooks()[:2]).fit()
    with pytest.raises(ConfigError, match="holds no checkpoint: it starts again at step 0 with --resume"):
        check_start(recipe(tmp_path), "train")


@pytest.mark.parametrize("count", [0, 1, 2, 5, 8])
def test_parts_of_all_ranks_are_everything_in_order(count):
    parts = []
    for rank in range(3):
        ranks = Ranks()
        ranks.rank, ranks.world = rank, 3
        parts.append(list(ranks.part(count)))
    assert sum(parts, []) == list(range(count)) and max(map(len, parts)) - min(map(len, parts)) <= 1
    assert Ranks().part(count) == range(count) and Ranks().gather([1, 2]) == [1, 2]


def test_two_ranks_evaluate_a_part_each_and_one_writes(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    environment = {**os.environ, "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port,
                   "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join([str(HERE), str(HERE.parents[1])])}
    processes = [subprocess.Popen([sys.executable, __file__, str(tmp_path)], stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                                  text=True, env={**environment, "RANK": str(rank), "LOCAL_RANK": str(rank)}) for rank in range(2)]
    read = []
    for process in processes:
        out, trouble = process.communicate(timeout=120)
        assert process.returncode == 0, trouble
        assert "Warning" not in trouble, trouble
        read.append(json.loads(out.splitlines()[-1]))
    assert read == [{"mine": [0, 1], "sum": 15.0, "tensors": [0.0, 1.0]}, {"mine": [2, 3, 4], "sum": 15.0, "tensors": [0.0, 1.0]}]
    found = evaluated(tmp_path)["sums"]
    assert found["metrics"] == {"sum": 15, "order": True}
    assert [item.keys() for item in found["figures"][0]["items"]] == [{"image"}, {"image"}, set()], "found by either"
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["sums.sum"] for line in lines] == [15]


def two_ranks(output):
    from xtoolkit.engine import distributed

    rank = distributed.rank()
    seen = []

    class Counting(Task):
        def evaluate(self, model, loader, ranks):
            seen.extend(ranks.part(len(loader)))
            return super().evaluate(model, loader, ranks)

        def figures(self, examples):
            return [{"items": [{"image": "1"}, {"image": "4"}, {"image": "9"}]}]

    made = recipe(output, steps=1, evaluate={"sums": {"type": "X", "data": {}}})
    trainer = Trainer(ToyModel(), made, loaders(rank=rank, world=2), {"sums": (one := ARun(output, task=Counting())).evaluator("sums", 1)},
                      [JsonLines(), Evaluate()])
    trainer.fit()
    assert one.pictures.read == ([1, 2], [3, 4, 5])[rank], "each looks through its own part"
    tensors = [float(t["x"][0]) for t in Ranks().gather([{"x": torch.full((2,), float(rank))}])]
    # A gradient that one process alone has counts as 0 on the other.
    averaged = Ranks().mean({"a.one": {"both": torch.full((2,), 1.0 + rank), **({"first": torch.ones(1)} if rank == 0 else {})}})
    assert {name: g.tolist() for name, g in averaged["a.one"].items()} == {"both": [1.5, 1.5], "first": [0.5]}
    print(json.dumps({"mine": seen, "sum": float(trainer.evaluations["sums"]["sum"]), "tensors": tensors}))
    distributed.leave()


if __name__ == "__main__":
    two_ranks(sys.argv[1])


def test_a_run_that_fails_before_its_first_step_leaves_nothing_in_the_way(tmp_path):
    class Broken(ToyModel):
        def forward(self, *given, **more):
            raise RuntimeError("out of memory")

    for again in range(2):
        with pytest.raises(RuntimeError, match="out of memory"):
            Trainer(Broken(), recipe(tmp_path, steps=2), loaders(), hooks=default_hooks()).fit()
        assert not list(tmp_path.iterdir())
    Trainer(ToyModel(), recipe(tmp_path, steps=2), loaders(), hooks=default_hooks()).fit()
    assert latest(tmp_path).name == "step_00000002"
