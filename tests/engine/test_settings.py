"""The settings blocks of a recipe: every number has a range, and every mistake of a file is one answer."""

import dataclasses
import typing
from pathlib import Path

import pytest

from xtoolkit import recipe as recipes
from xtoolkit.hints import Range
from xtoolkit.recipe.settings import Init, Optim, ScheduleBlock, Train
from xtoolkit.registry import ConfigError

TINY = str(Path(__file__).resolve().parents[2] / "projects/xfm/tiny.yaml")


def problems(*overrides):
    with pytest.raises(ConfigError) as caught:
        recipes.load(TINY, overrides, missing_files=False)
    return caught.value.problems


def numbers(hint, ranged=False):
    """For each number in an annotation, whether it has a range."""
    if typing.get_origin(hint) is typing.Annotated:
        inner, *more = typing.get_args(hint)
        return numbers(inner, ranged or any(isinstance(m, Range) for m in more))
    if typing.get_args(hint) and typing.get_origin(hint) is not typing.Literal:
        return [found for a in typing.get_args(hint) for found in numbers(a, ranged)]
    return [ranged] if hint in (int, float) else []


@pytest.mark.parametrize("block", [Optim, Train, Init, ScheduleBlock])
def test_every_number_has_a_range(block):
    hints = typing.get_type_hints(block, include_extras=True)
    assert [f.name for f in dataclasses.fields(block) if not all(numbers(hints[f.name]))] == []


@pytest.mark.parametrize("key, said", [
    ("optim.lr=.nan", "`optim.lr` must be a finite number, not nan"),
    ("optim.lr=.inf", "`optim.lr` must be a finite number, not inf"),
    ("optim.warmup=.inf", "`optim.warmup` must be a finite number, not inf"),
    ("optim.weight_decay=.nan", "`optim.weight_decay` must be a finite number, not nan"),
    ("optim.clip=.nan", "`optim.clip` must be a finite number, not nan"),
    ("optim.layer_decay={vision: .nan}", "`optim.layer_decay.vision` must be a finite number, not nan"),
    ("optim.betas=[0.9, .nan]", "`optim.betas.1` must be a finite number, not nan"),
    ("streams.pairs.losses.itc=.inf", "`streams.pairs.losses.itc` must be a finite number, not inf"),
    ("optim.lr=0", "`lr` of Optim must be a number above 0, not 0"),
    ("optim.clip=0", "`clip` of Optim must be a number above 0 or null, not 0"),
    ("optim.betas=[0.9, 1.0]", "`betas` of Optim must be a list of 2 numbers of at least 0 and below 1, not [0.9, 1.0]"),
    ("optim.layer_decay=1.5", "`layer_decay` of Optim must be a number above 0 and at most 1 or a mapping"),
    ("optim.layer_decay={vision: 0}", "`layer_decay.vision` of Optim must be a number above 0 and at most 1, not 0"),
    ("optim.layer_decay={vison: 0.7}", "`layer_decay` names no encoder: `vison`; did you mean `vision`?"),
    ("optim.layer_decay={itm: 0.7}", "`layer_decay` names no encoder: `itm`; choose from: fusion, "),
    ("optim.lr_mult.itm=-1", "`lr_mult.itm` of Optim must be a number of at least 0, not -1"),
    ("schedule.every.text=0", "`every.text` of ScheduleBlock must be an integer of at least 1 or a list of [an integer of at least 0, an integer of at least 1 or null], not 0"),
    ("train.max_bad=2", "`max_bad` of Train must be a number of at least 0 and at most 1, not 2"),
    ("train.workers=-1", "`workers` of Train must be an integer of at least 0, not -1")])
def test_a_number_out_of_its_range_is_one_line_by_key(key, said):
    found = problems(key)
    assert said in found[0] and (len(found) == 1 or "betas" in key), found


TEN = {"train.steps=-3": "`steps` of Train", "train.lg_every=3": "`lg_every`", "train.keep=many": "`keep`", "optim.lr=-1": "`lr`",
       "optim.eps=.nan": "`optim.eps`", "optim.wamup=1": "`wamup`", "losses.mlm.feture=x": "`feture`",
       "encoders.vision.widht=3": "`widht`", "streams.text.batch_size=0": "`batch_size`", "schedule.evry={a: 1}": "`evry`",
       "hooks.audit={type: GradentAudit}": "`GradentAudit`; did you mean `GradientAudit`?"}


def test_ten_mistakes_in_all_blocks_are_all_said_at_once():
    found = problems(*TEN)
    assert [key for key, words in TEN.items() if not any(words in line for line in found)] == []


def test_a_block_that_is_none_hides_no_other_blocks_numbers():
    found = problems("losses=3", "train.steps=-3", "optim.lr=.inf")
    assert len(found) == 3 and any("`losses` must be a mapping" in f for f in found)
    assert any("`steps` of Train" in f for f in found) and any("`optim.lr`" in f for f in found)


def test_a_hook_is_checked_like_every_block():
    assert problems("hooks.audit={type: GradientAudit, evry: 3}")[0].endswith(
        "unknown key `evry` of GradientAudit; did you mean `every`?")
    assert "`hooks` must be a mapping" in problems("hooks=[a]")[0]
    assert "`audit` must be a mapping with a `type`" in problems("hooks.audit=3")[0]
    assert "`itc` is already in `losses`" in problems("hooks.itc={type: GradientAudit}")[0]
