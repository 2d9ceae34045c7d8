"""A recipe without streams: its evaluations are run on the weights that `init` names, and nothing is trained."""

import json
from pathlib import Path

import pytest
import safetensors.torch

from xtoolkit import recipe
from xtoolkit.cli import evaluate, train
from xtoolkit.engine.run import Run
from xtoolkit.model import Model
from xtoolkit.plan import make_plan
from xtoolkit.recipe import config
from xtoolkit.registry import ConfigError

TINY = Path(__file__).resolve().parents[2] / "projects/xfm/model_tiny.yaml"
TEXT = """\
_BASE_: {base}
init: {{path: {init}, parts: shared}}
losses: {{itm: {{type: ITM, fusion: fusion, negatives: sim}}, bbp: {{type: BBP, feature: fusion@whole}}}}
evaluate:
  dual:    {{type: Retrieval, sim: sim, data: {{type: Pairs, path: 'sample://picturebook/pairs-test', max_tokens: 40}}}}
  matched: {{type: Retrieval, sim: sim, match: itm, k: 1, data: {{type: Pairs, path: 'sample://picturebook/pairs-test'}}}}
train: {{output: {output}, workers: 0, precision: fp32}}
"""


def write(folder, init="weights.safetensors"):
    path = folder / "mine.yaml"
    path.write_text(TEXT.format(base=TINY, init=folder / init, output=folder / "found"))
    return path


def problems(path, *overrides, only=()):
    with pytest.raises(ConfigError) as caught:
        recipe.load(str(path), overrides, missing_files=False, only=only)
    return [line.replace(f"{path.parent}/", "") for line in caught.value.problems]


def test_it_is_read_planned_and_written_down(tmp_path):
    found = recipe.load(str(write(tmp_path)), missing_files=False)
    assert found.streams == {} and found.optim is None and list(found.needs) == ["itm"], "bbp is read by nobody"
    assert "no streams: nothing is trained" in str(make_plan(found))
    (tmp_path / "again.yaml").write_text(config.Config(found.config).dump())
    again = recipe.load(str(tmp_path / "again.yaml"), missing_files=False)
    assert again.evaluate == found.evaluate and again.streams == {}
    one = recipe.load(str(write(tmp_path)), missing_files=False, only=["dual"])
    assert list(one.evaluate) == ["dual"] and one.needs == {} and "fusion" in one.left_out


def test_mistakes_are_named(tmp_path):
    path = write(tmp_path)
    assert problems(path, only=["duel"]) == ["mine.yaml:4: no evaluation `duel`; did you mean `dual`?"]
    assert problems(path, "evaluate.matched.match=itn")[0].startswith("override `evaluate.matched.match=itn`: unknown loss `itn`")
    assert problems(path, "evaluate=null")[0].startswith("mine.yaml:1: no whole recipe: it lacks `streams`, `optim`; a recipe has ")
    with pytest.raises(ConfigError, match="weights.safetensors"):
        recipe.load(str(path), purpose="evaluate")
    found = recipe.load(str(path), missing_files=False)
    with pytest.raises(ConfigError, match="it trains nothing; run.evaluate"):
        Run(found, init=False).train()


def test_it_runs_on_the_weights_named_and_keeps_to_its_folder(tmp_path, capsys):
    path = write(tmp_path)
    state = Model(recipe.load(str(path), missing_files=False)).state_dict()
    safetensors.torch.save_file(state, tmp_path / "weights.safetensors")
    assert evaluate.main(["--config", str(path), "--only", "dual"]) == 0
    record = json.loads((tmp_path / "found/evaluations/dual.json").read_text())
    assert record["step"] == 0 and record["metrics"]["dual.t2i_r10"] > 0
    assert (tmp_path / "found/report.html").is_file() and not (tmp_path / "found/checkpoints").exists()
    # Again, by the command that trains: the evaluation that is left joins the first.
    assert train.main(["--config", str(path), "evaluate.dual=null"]) == 0
    assert {file.stem for file in (tmp_path / "found/evaluations").glob("*.json")} == {"dual", "matched"}
    safetensors.torch.save_file(state, tmp_path / "other.safetensors")
    capsys.readouterr()
    assert train.main(["--config", str(path), f"init.path={tmp_path}/other.safetensors"]) == 2
    assert "holds evaluations of another recipe: init.path: was" in capsys.readouterr().err
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes/a.txt").write_text("mine")
    assert evaluate.main(["--config", str(path), f"train.output={tmp_path}/notes"]) == 2
    assert "exists and is not empty" in capsys.readouterr().err


def test_a_head_that_the_weights_lack_is_not_evaluated_as_drawn(tmp_path, capsys):
    path = write(tmp_path)
    state = Model(recipe.load(str(path), missing_files=False)).state_dict()
    safetensors.torch.save_file({n: t for n, t in state.items() if not n.startswith("losses.")}, tmp_path / "weights.safetensors")
    assert evaluate.main(["--config", str(path)]) == 2
    assert "weights.safetensors has no losses.itm: a recipe without streams does not train it" in capsys.readouterr().err
    assert evaluate.main(["--config", str(path), "--only", "dual"]) == 0


def test_the_folder_of_a_run_is_refused(tmp_path, capsys):
    path, step = write(tmp_path), tmp_path / "found/checkpoints/step_00000001"
    step.mkdir(parents=True)
    (step / ".metadata").write_text("")
    (step / "checkpoint.json").write_text(json.dumps({"step": 1, "config": {}}))
    (tmp_path / "weights.safetensors").write_text("")
    assert evaluate.main(["--config", str(path)]) == 2
    assert "holds the checkpoints of a run; name another folder" in capsys.readouterr().err
