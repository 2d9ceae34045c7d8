"""The top-level ``init:``: a whole model from a file or a run's folder, strictly; the encoders' own keys then do not count."""

import pytest
import torch
from convert_recipes import TINY, tiny, write
from release_names import release_state
from safetensors.torch import save_file
from commands import tool

from xtoolkit import recipe as recipes
from xtoolkit.cli.releases import releases
from xtoolkit.weights.files import WeightsError
from xtoolkit.engine import checkpoint
from xtoolkit.engine.checkpoint import CheckpointError
from xtoolkit.engine.initial import load_initial
from xtoolkit.engine.optim import build_optimizer
from xtoolkit.model import Model
from xtoolkit.plan import origins
from xtoolkit.registry import ConfigError


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """A model that was trained elsewhere: other weights than its recipe would draw."""
    folder = tmp_path_factory.mktemp("source")
    recipe = tiny(folder)
    model = Model(recipe)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_()
    model.recipe_used = recipe
    return model


def save(state, path):
    save_file({n: t.clone() for n, t in state.items()}, path)
    return path


def started(recipe) -> dict:
    model = Model(recipe)
    load_initial(model, recipe)
    return model.state_dict()


def equal(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[n], b[n]) for n in a)


def test_a_file_fills_the_whole_model_heads_included(tmp_path, source):
    save(source.state_dict(), tmp_path / "whole.safetensors")
    torch.save(source.state_dict(), tmp_path / "whole.pt")
    for value in (tmp_path / "whole.safetensors", tmp_path / "whole.pt", f"{{path: {tmp_path / 'whole.pt'}}}"):
        assert equal(started(tiny(tmp_path, f"init={value}")), source.state_dict())


def test_a_run_s_folder_a_checkpoint_and_a_model_folder_serve(tmp_path, source):
    optimizer = build_optimizer(source, source.recipe_used.optim)
    older = checkpoint.save(tmp_path / "run", 1, source, optimizer, {"config": {}}, keep=2)
    before = {n: t.clone() for n, t in source.state_dict().items()}
    with torch.no_grad():
        source.losses["bbp"].head[3].bias.add_(1)
    checkpoint.save(tmp_path / "run", 2, source, optimizer, {"config": {}}, keep=2)
    (tmp_path / "model").mkdir()
    save(before, tmp_path / "model/model.safetensors")
    assert equal(started(tiny(tmp_path, f"init={tmp_path / 'run'}")), source.state_dict())  # the newest
    assert equal(started(tiny(tmp_path, f"init={older}")), before)
    assert equal(started(tiny(tmp_path, f"init={tmp_path / 'model'}")), before)


def test_every_name_that_does_not_fit_is_listed_and_nothing_is_loaded(tmp_path, source):
    state = dict(source.state_dict())
    state["losses.old.head.bias"] = state.pop("losses.itm.head.3.bias")
    state["encoders.sim.temperature"] = torch.zeros(2)
    path = save(state, tmp_path / "other.safetensors")
    recipe = tiny(tmp_path, f"init={path}")
    model = Model(recipe)
    drawn = {n: t.clone() for n, t in model.state_dict().items()}
    with pytest.raises(WeightsError) as error:
        load_initial(model, recipe)
    assert str(error.value).splitlines()[:4] == [
        f"{path} does not fit Model:", "  missing: losses.itm.head.3.bias", "  unexpected: losses.old.head.bias",
        "  other shape: encoders.sim.temperature (2,) there, (1,) here"]
    assert "allow_missing" in str(error.value)
    assert equal(model.state_dict(), drawn)


def test_patterns_allow_each_kind_of_misfit(tmp_path, source):
    state = dict(source.state_dict())
    state["losses.old.head.bias"] = state.pop("losses.itm.head.3.bias")
    state["losses.bbp.head.0.weight"] = torch.zeros(7, 7)
    path = save(state, tmp_path / "other.safetensors")
    allowed = "allow_missing: [losses.itm.*, losses.bbp.head.0.weight], allow_unexpected: [losses.old.*, losses.bbp.*]"
    recipe = tiny(tmp_path, f"init={{path: {path}, {allowed}}}")
    drawn, filled = Model(recipe).state_dict(), started(recipe)
    for name in filled:
        kept = name in ("losses.itm.head.3.bias", "losses.bbp.head.0.weight")
        assert torch.equal(filled[name], drawn[name] if kept else source.state_dict()[name]), name


def test_a_teacher_that_the_file_lacks_copies_its_student(tmp_path, source):
    path = save(source.state_dict(), tmp_path / "whole.safetensors")
    teacher = "encoders.teacher={type: Teacher, of: vision, inputs: {image: $image}, mode: frozen}"
    filled = started(tiny(tmp_path, teacher, "losses.mim.target=teacher", f"init={path}"))
    assert torch.equal(filled["encoders.teacher.encoder.cls_token"], source.state_dict()["encoders.vision.cls_token"])


def test_other_formats_are_told_how_to_come_in(tmp_path):
    releases()
    path = save(release_state(), tmp_path / "xfm.safetensors")
    with pytest.raises(WeightsError, match="those of the X-FM release; convert it: xtoolkit convert"):
        started(tiny(tmp_path, f"init={path}"))


def test_with_it_the_encoders_own_keys_are_not_asked_for(tmp_path, source):
    path = save(source.state_dict(), tmp_path / "whole.safetensors")
    config = write(tmp_path, "encoders.vision.init=weights/nowhere.pth", f"tokenizer={tmp_path}")
    with pytest.raises(ConfigError, match="nowhere.pth: no such file"):
        recipes.load(config)
    recipe = recipes.load(config, [f"init={path}"])
    assert equal(started(recipe), source.state_dict())
    assert origins(recipe) == [f"the whole model from {path}"]


def test_names_on_a_hub_that_cannot_be_reached_say_what_to_fetch_and_where_to_put_it(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HOME", str(tmp_path / "empty"))
    monkeypatch.delenv("HF_HUB_CACHE", raising=False)
    config = write(tmp_path, "encoders.vision.init=beitv2_base_patch16_224.in1k_ft_in22k", "encoders.text.init=org/roberta",
                   f"tokenizer={tmp_path}")
    with pytest.raises(ConfigError) as error:
        recipes.load(config)
    vision, text = error.value.problems
    folder = "weights/beitv2_base_patch16_224.in1k_ft_in22k"
    assert f"`hf download timm/beitv2_base_patch16_224.in1k_ft_in22k --local-dir {folder}`" in vision
    assert f"set encoders.vision.init={folder}" in vision
    assert "`hf download org/roberta --local-dir weights/roberta`" in text and "set encoders.text.init=weights/roberta" in text


def test_the_plan_says_where_weights_come_from(tmp_path):
    assert origins(tiny(tmp_path)) == ["all drawn from seed 42"]
    recipe = tiny(tmp_path, "encoders.text.init=roberta-base")
    assert origins(recipe) == ["text from roberta-base", "the rest drawn from seed 42"]
    recipe = tiny(tmp_path, "init={path: a.pt, allow_missing: [losses.*]}")
    assert origins(recipe) == ["the whole model from a.pt; may be missing there: losses.*"]


@pytest.mark.parametrize("value, message", [
    ("nowhere/model.safetensors", "nowhere/model.safetensors: no such file or folder; `init` names a file that"),
    ("EMPTY", "EMPTY: holds neither a finished checkpoint nor weights"),
    ("{path: EMPTY, allow: [x]}", "unknown key `allow` of Init; choose from: allow_missing, allow_unexpected, path"),
    ("{allow_missing: [x]}", "missing key `path` of Init (a word)"),
    ("{path: EMPTY, allow_missing: x}", "`allow_missing` of Init must be a list of words"),
    ("[EMPTY]", "`init` must be a path, or a mapping of: path, allow_missing, allow_unexpected"),
])
def test_mistakes_are_answered_with_their_line_before_anything_loads(tmp_path, value, message):
    (tmp_path / "empty").mkdir()
    value, message = (text.replace("EMPTY", str(tmp_path / "empty")) for text in (value, message))
    (tmp_path / "recipe.yaml").write_text(f"{TINY}init: {value}\n".replace("roberta-base", str(tmp_path)))
    line = len(TINY.splitlines()) + 1
    with pytest.raises(ConfigError) as error:
        recipes.load(str(tmp_path / "recipe.yaml"))
    assert any(p.startswith(f"{tmp_path / 'recipe.yaml'}:{line}: ") and message in p for p in error.value.problems), error.value


def test_the_tool_answers_weights_that_do_not_fit_without_a_traceback(tmp_path, source, capsys):
    state = dict(source.state_dict())
    del state["losses.itm.head.3.bias"]
    path = save(state, tmp_path / "short.safetensors")
    config = write(tmp_path, "tokenizer=sample://picturebook/tokenizer", "encoders.text.vocab_size=4000", f"init={path}",
                   "encoders.vision.image_size=32", f"train.output={tmp_path / 'run'}")
    assert tool("train_net").main(["--config", config]) == 2
    captured = capsys.readouterr()
    assert f"weights: the whole model from {path}" in captured.out
    assert "missing: losses.itm.head.3.bias" in captured.err and "other shape: losses.imlm.decoder.weight" in captured.err


def test_a_damaged_checkpoint_is_one_clear_error(tmp_path, source):
    optimizer = build_optimizer(source, source.recipe_used.optim)
    path = checkpoint.save(tmp_path / "run", 1, source, optimizer, {"config": {}}, keep=1)
    data = next(path.glob("*.distcp"))
    content = data.read_bytes()
    data.write_bytes(content[:len(content) // 3])
    with pytest.raises(CheckpointError, match="damaged or not all there"):
        checkpoint.read_model(path)
    data.unlink()
    with pytest.raises(CheckpointError, match="damaged or not all there"):
        checkpoint.read_model(path)
    (path / ".metadata").write_bytes(b"nothing")
    with pytest.raises(CheckpointError, match="its index `.metadata` is not one"):
        checkpoint.read_model(path)
