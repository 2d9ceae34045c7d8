"""The top-level ``init:``: a whole model from a file or a run's folder, strictly; an encoder's own counts where those lack it."""

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


# A model that shares the encoders but `sim` with `source`, with a loss and an encoder of its own.
FINETUNED = ("losses.*=null", "streams.*=null", "losses.new={type: BBP, feature: own@whole}",
             "losses.mim={type: MIM, feature: vision@mask_image, target: vision}",
             "encoders.own={type: CrossAttention, inputs: {text: text, image: vision}, layers: 1, heads: 2}", "stop_gradient=null",
             "streams={pairs: {batch_size: 4, losses: {mim: 1}, data: {type: SyntheticPairs, size: 20, tokens: 6, image_mask: "
             "{patches: 3, min_block: 1}}}, region: {batch_size: 4, losses: {new: 1}, data: {type: SyntheticRegions, size: 20, "
             "tokens: 6, max_per_image: 2}}}")


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


def test_of_a_part_that_both_have_every_name_must_fit(tmp_path, source):
    state = dict(source.state_dict())
    state["encoders.vision.extra"] = state.pop("encoders.vision.cls_token")
    path = save(state, tmp_path / "other.safetensors")
    with pytest.raises(WeightsError) as error:
        started(tiny(tmp_path, *FINETUNED, f"init={{path: {path}, parts: shared}}"))
    assert str(error.value).splitlines()[:3] == [
        f"{path} does not fit Model:", "  missing: encoders.vision.cls_token", "  unexpected: encoders.vision.extra"]


def test_of_shared_parts_alone_the_rest_stays_or_is_drawn_and_is_listed(tmp_path, source, capsys):
    """The text encoder's output layer too: here no loss declares it."""
    path = save(source.state_dict(), tmp_path / "whole.safetensors")
    recipe = tiny(tmp_path, *FINETUNED, f"init={{path: {path}, parts: shared}}")
    drawn, filled = Model(recipe).state_dict(), started(recipe)
    for name, tensor in filled.items():
        new = name.startswith(("encoders.own.", "losses.new."))
        assert torch.equal(tensor, (drawn if new else source.state_dict())[name]), name
    assert not any("lm_head" in name for name in filled)
    assert capsys.readouterr().err.splitlines() == [
        f"init {path}: left there, as this model has no place for it: encoders.fusion, encoders.sim, encoders.text.lm_head, "
        "encoders.text_proj, encoders.vision_proj, losses.bbp, losses.imlm, losses.itm",
        f"init {path}: drawn, as it has none: encoders.own, losses.new"]
    assert origins(recipe) == [f"all encoders and losses that are in {path}; the others drawn from seed 42"]


OWN = "encoders.guide={type: BEiTv2, inputs: {image: $image}, width: 16, layers: 2, heads: 2, patch_size: 8, image_size: 32, init: INIT}"


def test_an_encoder_that_the_weights_lack_starts_by_its_own_init(tmp_path, source, capsys):
    path = save(source.state_dict(), tmp_path / "whole.safetensors")
    guide = {n.removeprefix("encoders.vision."): 2 * t for n, t in source.state_dict().items() if n.startswith("encoders.vision.")}
    own = save(guide, tmp_path / "guide.safetensors")
    keys = (OWN.replace("INIT", str(own)), "losses.mim.target=guide", "encoders.vision.init=weights/nowhere.pth")
    for init in (f"{{path: {path}, parts: shared}}", f"{{path: {path}, allow_missing: [encoders.guide.*]}}"):
        recipe = tiny(tmp_path, *keys, f"init={init}")
        filled = started(recipe)
        for name, tensor in filled.items():
            inner = name.removeprefix("encoders.guide.")
            assert torch.equal(tensor, source.state_dict()[name] if inner == name else guide[inner]), name
        assert f"init {path}: by its own `init`, as it has none: encoders.guide from {own}" in capsys.readouterr().err.splitlines()
    recipe = tiny(tmp_path, *keys, f"init={{path: {path}, parts: shared}}")
    assert origins(recipe) == [f"all encoders and losses that are in {path}; if not there, vision from weights/nowhere.pth, guide "
                               f"from {own}; the others drawn from seed 42"]
    with pytest.raises(WeightsError, match="nowhere.pth: no such file"):
        started(tiny(tmp_path, OWN.replace("INIT", "nowhere.pth"), *keys[1:], f"init={{path: {path}, parts: shared}}"))
    with pytest.raises(WeightsError, match="missing: encoders.guide.cls_token"):
        started(tiny(tmp_path, *keys, f"init={path}"))


def test_an_encoder_by_another_name_is_not_drawn_in_silence(tmp_path, source):
    renamed = {name.replace("encoders.text.", "encoders.words."): tensor for name, tensor in source.state_dict().items()}
    path = save(renamed, tmp_path / "whole.safetensors")
    with pytest.raises(WeightsError, match="has no `encoders.text`, but leaves `encoders.words` with exactly its names and shapes: "
                                           r"give the encoder that name, or let it be drawn with `init.allow_missing: .encoders.text"):
        started(tiny(tmp_path, f"init={{path: {path}, parts: shared}}"))
    recipe = tiny(tmp_path, f"init={{path: {path}, parts: shared, allow_missing: [encoders.text.*]}}")
    drawn, filled = Model(recipe).state_dict(), started(recipe)
    assert all(torch.equal(filled[name], (drawn if name.startswith("encoders.text.") else renamed)[name]) for name in filled)


def test_an_output_layer_that_the_weights_lack_is_drawn_a_teacher_copied(tmp_path, source, capsys):
    path = save({n: t for n, t in source.state_dict().items() if "lm_head" not in n}, tmp_path / "headless.safetensors")
    teacher = ("encoders.teacher={type: Teacher, of: vision, inputs: {image: $image}, mode: frozen}", "losses.mim.target=teacher")
    recipe = tiny(tmp_path, *teacher, f"init={{path: {path}, parts: shared}}")
    drawn, filled = Model(recipe).state_dict(), started(recipe)
    for name, tensor in filled.items():
        if not name.startswith("encoders.teacher."):
            assert torch.equal(tensor, (drawn if "lm_head" in name else source.state_dict())[name]), name
    assert torch.equal(filled["encoders.teacher.encoder.cls_token"], source.state_dict()["encoders.vision.cls_token"])
    assert capsys.readouterr().err.splitlines() == [
        f"init {path}: drawn, as it has none: encoders.text.lm_head",
        f"init {path}: copied from the encoders, as it has none: encoders.teacher"]
    with pytest.raises(WeightsError, match="missing: encoders.text.lm_head.bias"):
        started(tiny(tmp_path, f"init={path}"))


@pytest.mark.parametrize("parts, rule", [("all", "timm"), ("shared", "spline")])
def test_tables_of_another_picture_size_are_resized_teachers_too(tmp_path, source, capsys, parts, rule):
    """As an encoder's own `init` does; a teacher's lie one level further down."""
    vision = {n.removeprefix("encoders.vision."): t for n, t in source.state_dict().items() if n.startswith("encoders.vision.")}
    teacher = {f"encoders.teacher.encoder.{n}": 2 * t for n, t in vision.items()}
    path = save(source.state_dict() | teacher, tmp_path / "whole.safetensors")
    save(vision, tmp_path / "vision.safetensors")
    model = ("encoders.teacher={type: Teacher, of: vision, inputs: {image: $image}, mode: frozen}", "losses.mim.target=teacher",
             "encoders.vision.image_size=48", f"encoders.vision.resize={rule}")
    filled = started(tiny(tmp_path, *model, f"init={{path: {path}, parts: {parts}}}"))
    alone = started(tiny(tmp_path, *model, f"encoders.vision.init={tmp_path / 'vision.safetensors'}"))
    for name in vision:
        torch.testing.assert_close(filled[f"encoders.vision.{name}"], alone[f"encoders.vision.{name}"], atol=0, rtol=0)
        torch.testing.assert_close(filled[f"encoders.teacher.encoder.{name}"], 2 * alone[f"encoders.vision.{name}"])
    table = "encoders.vision.blocks.0.attn.relative_position_bias_table"
    assert source.state_dict()[table].shape == (52, 2) and filled[table].shape == (124, 2)
    assert capsys.readouterr().err.splitlines()[0] == \
        f"init {path}: resized to this model's `image_size`: encoders.vision, encoders.teacher"


def test_weights_that_share_no_encoder_are_refused(tmp_path, source):
    path = save({n.replace("encoders.", "encoders.my_"): t for n, t in source.state_dict().items()}, tmp_path / "mine.safetensors")
    with pytest.raises(WeightsError, match="shares no encoder with this model, whose are .*vision.*; it has .*my_vision.*: give"):
        started(tiny(tmp_path, f"init={{path: {path}, parts: shared}}"))
    releases()
    path = save(release_state(), tmp_path / "xfm.safetensors")
    with pytest.raises(WeightsError, match="its names are those of the X-FM release: convert it: xtoolkit convert"):
        started(tiny(tmp_path, f"init={{path: {path}, parts: shared}}"))


def test_a_path_replaces_the_path_alone(tmp_path, source):
    path = save(source.state_dict(), tmp_path / "whole.safetensors")
    base = write(tmp_path, f"tokenizer={tmp_path}", "init={path: outputs/nowhere, parts: shared, allow_missing: [losses.x.*]}")
    heir = tmp_path / "heir.yaml"
    heir.write_text(f"_BASE_: {base}\ninit: {path}\n")
    for recipe in (recipes.load(base, [f"init={path}"]), recipes.load(str(heir)), recipes.load(base, [f"init.path={path}"])):
        assert (recipe.init.path, recipe.init.parts, recipe.init.allow_missing) == (str(path), "shared", ["losses.x.*"])
    heir.write_text(f"_BASE_: {base}\ninit: nowhere\n")
    with pytest.raises(ConfigError, match=r"heir.yaml:2: nowhere: no such file or folder; .*train it first \(`make demo`"):
        recipes.load(str(heir))
    plain = recipes.load(base, ["init.path=null"])
    assert plain.init is None and origins(plain) == ["all drawn from seed 42"]
    assert equal(started(plain), Model(plain).state_dict())


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
    ("{path: EMPTY, allow: [x]}", "unknown key `allow` of Init; choose from: allow_missing, allow_unexpected, own, parts, path"),
    ("{allow_missing: [x]}", "missing key `path` of Init (a word or null)"),
    ("{path: EMPTY, parts: some}", "`parts` of Init must be one of all, shared"),
    ("{path: EMPTY, allow_missing: x}", "`allow_missing` of Init must be a list of words"),
    ("[EMPTY]", "`init` must be a path, or a mapping of: path, parts, allow_missing, allow_unexpected, own"),
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
