"""Every mistake of a file at once, each once, none that is not one; a plugin's own mistakes among them."""

from pathlib import Path

import pytest

from xtoolkit import recipe
from xtoolkit.recipe.plugins import IMPORTED, import_components
from xtoolkit.registry import (
    DATASET_REGISTRY, ENCODER_REGISTRY, HOOK_REGISTRY, LOSS_REGISTRY, TASK_REGISTRY, ConfigError,
)

REGISTRIES = (DATASET_REGISTRY, ENCODER_REGISTRY, HOOK_REGISTRY, LOSS_REGISTRY, TASK_REGISTRY)

CONTRACTS = Path(__file__).resolve().parents[1] / "contracts"
BROKEN = """
from xtoolkit.graph import Need
from xtoolkit.losses.base import Loss
from xtoolkit.registry import LOSS_REGISTRY

@LOSS_REGISTRY.register
class WrongKey(Loss):
    def __init__(self, feature: str):
        super().__init__()

    @classmethod
    def needs(cls, block):
        return [Need(block["featur"])]

@LOSS_REGISTRY.register
class OpenKeys(Loss):
    def __init__(self, feature: str, **kw):
        super().__init__()

    @classmethod
    def needs(cls, block):
        return [Need(block["feature"])]

@LOSS_REGISTRY.register
class NoList(Loss):
    def __init__(self):
        super().__init__()

    @classmethod
    def needs(cls, block):
        return "listener"
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    made = tmp_path_factory.mktemp("mistakes")
    (made / "sounds.py").write_text((CONTRACTS / "outside.txt").read_text())
    (made / "broken_losses.py").write_text(BROKEN)
    text = (CONTRACTS / "outside.yaml").read_text().replace("[sounds.py]", "[sounds.py, broken_losses.py]")
    (made / "sounds.yaml").write_text(text)
    import_components()
    kept = [(names, dict(names)) for names in (IMPORTED, *(registry._obj_map for registry in REGISTRIES))]
    yield made
    for names, before in kept:  # what other tests load must be strange to them
        names.clear()
        names.update(before)


def problems(folder, *overrides):
    with pytest.raises(ConfigError) as e:
        recipe.load(str(folder / "sounds.yaml"), overrides, missing_files=False)
    return e.value.problems


def test_mistakes_of_a_plugins_class_are_lines_of_the_answer_and_hide_no_other(folder):
    losses = "losses={a: {type: WrongKey, feature: listener}, b: {type: OpenKeys, feature: listener}, c: {type: NoList}}"
    said = problems(folder, losses, "optim.lrr=1", "streams.sounds.losses={a: 1, b: 1, c: 1, pitch: 1}")
    assert len(said) == 4, said
    place = f"override `{losses}`: "
    assert "override `optim.lrr=1`: unknown key `lrr` of Optim; did you mean `lr`?" in said
    assert place + "WrongKey.needs fails: KeyError: featur (broken_losses.py:13)" in said
    assert any(line.startswith(place + "OpenKeys.__init__ takes **kw: every key must be named")
               and line.endswith("broken_losses.py:17)") for line in said)
    assert place + "NoList.needs returns 'listener', not a list of Need" in said


def words(lines):
    return [line.partition("`: ")[2] or line.partition(": ")[2] for line in lines]


@pytest.mark.parametrize("overrides, expected", [
    (["evaluate.pitches.hed=pitch", "evaluate.pitches.data.siz=3", "evaluate.pitches.every=0"],
     ["unknown key `hed` of Pitches; did you mean `head`?", "`every` must be a whole number of steps above 0, not 0",
      "unknown key `siz` of Tones; did you mean `size`?"]),
    (["evaluate.pitches={type: Pitchs, data: {type: Tones, siz: 3}}"],
     ["unknown task `Pitchs`; did you mean `Pitches`?", "unknown key `siz` of Tones; did you mean `size`?"]),
    (["streams.sounds.losses=[pitch]", "streams.sounds.data.siz=3"],
     ["write `losses: {name: weight}`", "unknown key `siz` of Tones; did you mean `size`?"]),
    (["optim.lr=-1", "optim.lr_mult.ptch=1", "optim.warmup=100"],
     ["`lr` of Optim must be a number above 0, not -1", "`lr_mult` names neither an encoder nor a loss: `ptch`; did you mean `pitch`?",
      "`optim.warmup`: 100 steps are more than the run's 40; below 1 it is a share of all steps, e.g. 0.1"]),
    (["optim.lr=-1", "optim.warmup=.inf"],
     ["`optim.warmup` must be a finite number, not inf", "`lr` of Optim must be a number above 0, not -1"]),
    (["evaluate.ptiches=null"], ["`evaluate.ptiches` is null, which removes what is inherited, and nothing of that name is; did you mean `pitches`?"]),
    (["hoks=null"], ["unknown key `hoks` of the recipe; did you mean `hooks`?"]),
    (["evaluate.pitches.evry=4"], ["unknown key `evry` of Pitches; did you mean `every`?"]),
    (["losses.fill.feature=listener@mask_sund+mask_sound"], ["unknown view `@mask_sund`; did you mean `mask_sound`?"]),
    (["losses.fill.feature=listener@mask_sund"], ["unknown view `@mask_sund`; did you mean `mask_sound`?"]),
    (["losses.fill.feature=listener"], ["`feature` of Fill must read a masked view: write `listener@mask_sound`"]),
    (["streams.sounds.batch_size=2.5"], ["`batch_size` of stream `sounds` must be a whole number above 0, not 2.5"]),
    (["streams.sounds.batch_size=true"], ["`batch_size` of stream `sounds` must be a whole number above 0, not True"]),
    (["streams.sounds.data.type=Tons"], ["unknown dataset `Tons`; did you mean `Tones`?"]),
    (["streams.sounds.losses.pitch=-1"], ["the weight of `pitch` must be a number of at least 0, not -1"]),
    (["stop_gradient={listener -> lstener: [fill]}"],
     ["no edge `listener -> lstener`: unknown encoder `lstener`; did you mean `listener`?"]),
])
def test_all_that_can_be_known_and_nothing_else(folder, overrides, expected):
    assert words(problems(folder, *overrides)) == expected


def test_a_loss_that_no_stream_trains_is_still_told(folder):
    assert "which no stream trains" in problems(folder, "streams.sounds.losses.pitch=0")[0]


def test_an_override_to_nothing_is_the_place_of_what_is_missing(folder):
    assert problems(folder, "train.steps=")[0].startswith("override `train.steps=`: missing key `steps` of Train")


def test_a_misspelt_loss_is_not_also_one_that_an_evaluation_cannot_read(folder):
    said = problems(folder, "losses.pitch.type=Ptich")
    assert len(said) == 1 and "unknown loss `Ptich`; did you mean `Pitch`?" in said[0], said


@pytest.mark.parametrize("text, said", [
    ("", "it lacks `losses`, `streams`, `encoders`, `train`, `optim`; a recipe has "),
    ("rows: {a: 1}\ninit: x\n", "it lacks `losses`, `streams`, `encoders`, `train`, `optim`; a recipe has "),
])
def test_what_is_no_recipe_gets_one_line(tmp_path, text, said):
    (tmp_path / "other.yaml").write_text(text)
    with pytest.raises(ConfigError) as e:
        recipe.load(str(tmp_path / "other.yaml"))
    assert len(e.value.problems) == 1 and "other.yaml:1: no whole recipe: " + said in e.value.problems[0], e.value.problems


@pytest.mark.parametrize("overrides, said", [
    (["optim.betas=[0.9, 0.99"], "override `optim.betas=[0.9, 0.99`: not YAML: expected ',' or ']', but got '<stream end>'"),
    (["train.steps", "=", "4"], "overrides: an `=` stands alone: write key.path=value without spaces around it"),
])
def test_an_override_that_the_shell_or_a_bracket_has_cut(folder, overrides, said):
    assert problems(folder, *overrides) == [said]
