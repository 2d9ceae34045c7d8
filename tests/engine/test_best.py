"""train.keep_best: the best checkpoint is kept, survives kill -9 and resuming, and is what the run's last evaluations see."""

import json
import math
import multiprocessing
import random
import time

import pytest
import torch

from engine_toy import ToyModel, loaders, recipe
from xtoolkit import recipe as recipes
from xtoolkit.engine import checkpoint
from xtoolkit.engine.hooks import default_hooks
from xtoolkit.engine.initial import read_model_weights
from xtoolkit.engine.records import told
from xtoolkit.engine.trainer import Trainer
from xtoolkit.inference.loading import _find
from xtoolkit.recipe.folder import best, checkpoints, chosen, evaluated, is_complete, latest
from xtoolkit.registry import ConfigError
from xtoolkit.report import write_report

EVALUATE = {"val": {"type": "X", "every": 2, "data": {}}, "test": {"type": "X", "data": {}}}


def started(output, values, seen=None, steps=10, by="val.r", resume=False, **train):
    """A trainer whose `val` gives ``values[step]``, and whose `test` what its weights sum to; ``seen`` lists what was evaluated."""
    made = recipe(output, steps=steps, evaluate=EVALUATE, keep=1, keep_best=by, **{"checkpoint_every": 3} | train)
    trainer = Trainer(ToyModel(), made, loaders(), {}, default_hooks(), resume=resume)

    def of(name):
        def evaluate(step):
            total = sum(float(p.detach().double().sum()) for p in trainer.model.parameters())
            if seen is not None:
                seen.append((name, step, total))
            metrics = {"r": values(step, total)} if name == "val" else {"sum": total}
            return {"metrics": metrics, "floor": {}, "table": [["metric", "value"], [["x", "1"]]], "headlines": {}, "figures": [],
                    "files": {}}
        return evaluate

    trainer.evaluators = {name: of(name) for name in EVALUATE}
    return trainer


AT = {2: 0.3, 4: 0.9, 6: math.nan, 8: 0.9, 10: 0.5}


def test_the_best_is_kept_loaded_at_the_end_and_evaluated_once(tmp_path, capsys):
    seen = []
    trainer = started(tmp_path, lambda step, _: AT[step], seen)
    trainer.fit()
    kept = {"by": "val.r", "value": 0.9, "step": 4}  # of two that are equal the earlier
    assert best(tmp_path) == kept and [p.name for p in checkpoints(tmp_path)] == ["step_00000004", "step_00000010"]
    assert [(name, step) for name, step, _ in seen] == [("val", 2), ("val", 4), ("val", 6), ("val", 8), ("val", 10), ("test", 10)]
    assert seen[-1][2] == seen[1][2] != seen[-2][2], "the last evaluation saw the weights of step 4"
    stored, origin = read_model_weights(tmp_path)
    assert origin.endswith("step_00000004") and all(torch.equal(t, stored[n]) for n, t in trainer.model.state_dict().items())
    record, results = evaluated(tmp_path)["test"], json.loads((tmp_path / "results.json").read_text())
    assert record["step"] == 4 and record["selected"] == kept | {"times": 1} and evaluated(tmp_path)["val"]["step"] == 10
    assert results["selected"] == {"test": kept | {"times": 1}} and results["step"] == 10
    assert json.loads((tmp_path / "metrics.jsonl").read_text().splitlines()[-1])["test.of_step"] == 4
    assert "test.sum" in (said := capsys.readouterr().out) and "test.of_step 4" in said
    assert "of step 4, the best by val.r (0.9); run once" in write_report(tmp_path).read_text()
    assert is_complete(tmp_path, 10, EVALUATE) and latest(tmp_path).name == "step_00000010"
    assert chosen(tmp_path).name == _find(tmp_path)[0].name == "step_00000004"
    assert f"weights of {tmp_path}/checkpoints/step_00000004, the best by val.r (0.9)" in capsys.readouterr().err
    again = []
    started(tmp_path, lambda step, _: AT[step], again, resume=True).fit()
    assert again == [], "what was evaluated is evaluated again"


def test_a_longer_run_goes_on_from_the_last_step_and_knows_the_best(tmp_path):
    started(tmp_path, lambda step, _: AT[step]).fit()
    seen = []
    started(tmp_path, lambda step, _: {12: 0.8, 14: 0.1}[step], seen, steps=14, resume=True).fit()
    assert best(tmp_path)["step"] == 4 and [name for name, *_ in seen] == ["val", "val"]
    started(tmp_path, lambda step, _: 0.95, seen := [], steps=16, resume=True).fit()
    assert best(tmp_path)["step"] == 16 and [(n, s) for n, s, _ in seen] == [("val", 16), ("test", 16)]
    assert evaluated(tmp_path)["test"]["selected"] == {"by": "val.r", "value": 0.95, "step": 16, "times": 2}
    started(tmp_path, lambda step, _: 0.0, steps=18, by="-val.r", resume=True).fit()  # by another figure: all anew
    assert best(tmp_path) == {"by": "-val.r", "value": 0.0, "step": 18}


def test_where_no_value_is_a_number_the_last_weights_count(tmp_path):
    seen = []
    started(tmp_path, lambda step, _: None, seen, steps=4).fit()
    assert best(tmp_path) is None and seen[-1][:2] == ("test", 4) and seen[-1][2] == seen[-2][2]
    assert "selected" not in evaluated(tmp_path)["test"] and is_complete(tmp_path, 4, EVALUATE)


def test_a_metric_that_is_not_given_is_named_once_and_the_run_can_go_on(tmp_path):
    with pytest.raises(ConfigError) as caught:
        started(tmp_path, lambda step, _: AT[step], by="val.rr").fit()
    assert caught.value.problems == ["train.keep_best: evaluation `val` gives no `rr`; did you mean `r`? Go on with "
                                     "--resume train.keep_best=val.METRIC"]
    assert latest(tmp_path).name == "step_00000002"
    started(tmp_path, lambda step, _: AT[step], resume=True).fit()
    assert best(tmp_path)["step"] == 4


def go_on(output):
    started(output, lambda step, total: math.sin(40 * total), steps=60, resume=True, checkpoint_every=7, log_every=20).fit()


def test_killed_at_any_instant_it_comes_to_the_same_best(tmp_path):
    go_on(tmp_path / "whole")
    expected, luck, kills = best(tmp_path / "whole"), random.Random(1), 0
    assert 2 < expected["step"] < 60
    for attempt in range(60):
        process = multiprocessing.get_context("fork").Process(target=go_on, args=(tmp_path / "cut",))
        process.start()
        process.join(0.05 + 0.1 * luck.random() + attempt / 12)  # twice at the least on a quick machine, and through on a busy one
        if done := process.exitcode is not None:
            break
        process.kill()
        process.join()
        kills += 1
        kept, newest = best(tmp_path / "cut"), latest(tmp_path / "cut")
        assert kept is None or checkpoint.read_model(chosen(tmp_path / "cut")) and kept["step"] <= int(newest.name[5:])
    assert done and kills > 1 and best(tmp_path / "cut") == expected
    ours, theirs = (evaluated(tmp_path / name)["test"] for name in ("cut", "whole"))
    assert ours["metrics"] == theirs["metrics"] and ours["selected"] | {"times": 1} == theirs["selected"]


PLAN = """
tokenizer: sample://picturebook/tokenizer
encoders: {text: {type: RoBERTa, inputs: {text: $text}, width: 16, layers: 1, heads: 2, vocab_size: 4000}}
losses: {mlm: {type: MLM, feature: text@mask_text}}
streams: {train: {batch_size: 4, losses: {mlm: 1}, data: {type: SyntheticText, size: 20, tokens: 8, mask: {prob: 0.3, max: 4}}}}
evaluate:
  val: {type: MaskedWords, loss: mlm, every: 5, data: {type: SyntheticText, size: 20, tokens: 8, mask: {prob: 0.3, max: 4}}}
  test: {type: MaskedWords, loss: mlm, data: {type: SyntheticText, size: 20, tokens: 8, mask: {prob: 0.3, max: 4}}}
optim: {lr: 1e-2}
train: {steps: 2, output: outputs/none, workers: 0, device: cpu, keep_best: BY}
"""


def test_a_limit_is_said_with_the_figures():
    assert told({"limit": 1000}) == "the first 1,000 samples of each source only" and told({}) == ""
    assert told({"limit": 9, "selected": {"by": "val.r", "value": 0.123456, "step": 1200, "times": 3}}) == \
        "the first 9 samples of each source only; of step 1,200, the best by val.r (0.1235); run 3 times"


@pytest.mark.parametrize("by, said", [
    ("vall.accuracy", "`keep_best` names no evaluation: `vall`; did you mean `val`?"),
    ("val", "`keep_best` is EVALUATION.METRIC, e.g. val.accuracy (-val.error: smaller is better)"),
    ("test.accuracy", "`keep_best` chooses by evaluation `test`, which never runs in between: give it `evaluate.test.every`"),
    ("[val]", "`keep_best` of Train must be a word or null, not ['val'] (list)"),
])
def test_mistakes_are_told_before_anything_is_built(tmp_path, by, said):
    (tmp_path / "a.yaml").write_text(PLAN.replace("BY", by))
    with pytest.raises(ConfigError) as caught:
        recipes.load(str(tmp_path / "a.yaml"), missing_files=False)
    assert f"{tmp_path / 'a.yaml'}:{len(PLAN.splitlines())}: {said}" in caught.value.problems
