"""Every number of a recipe has a range, and none is infinite or no number at all."""

import typing
from pathlib import Path

import pytest

from xtoolkit import recipe
from xtoolkit.recipe.plugins import import_components
from xtoolkit.registry import (
    DATASET_REGISTRY, ENCODER_REGISTRY, HOOK_REGISTRY, LOSS_REGISTRY, TASK_REGISTRY, ConfigError, Range, nested, schema,
)

import_components()
REGISTRIES = (DATASET_REGISTRY, ENCODER_REGISTRY, HOOK_REGISTRY, LOSS_REGISTRY, TASK_REGISTRY)
CLASSES = [registry.get(name) for registry in REGISTRIES for name in registry.names()]
COMPONENTS = [c for c in CLASSES if c.__module__.startswith("xtoolkit.") and ".plugins." not in c.__module__]
BASE = str(Path(__file__).resolve().parents[2] / "projects/xfm/tiny.yaml")
KEYS = ("optim.lr", "optim.clip", "optim.warmup", "optim.lr_mult.itm", "train.steps", "train.max_bad", "encoders.vision.dropout",
        "encoders.vision.layers", "encoders.sim.temperature", "streams.pairs.losses.itc", "streams.pairs.batch_size",
        "streams.pairs.data.mask.prob", "streams.pairs.data.augment.flip", "evaluate.retrieval.k", "schedule.every.text")


@pytest.mark.parametrize("value", [".nan", ".inf", "-.inf"])
@pytest.mark.parametrize("key", KEYS)
def test_numbers_that_are_none_are_refused_by_their_key(key, value):
    with pytest.raises(ConfigError) as e:
        recipe.load(BASE, [f"{key}={value}"], missing_files=False)
    said = [p for p in e.value.problems if "must be a finite number" in p]
    assert said == [f"override `{key}={value}`: `{key}` must be a finite number, not {value.replace('.', '')}"]


def test_in_a_file_all_of_them_are_named_with_their_line(tmp_path):
    (tmp_path / "mine.yaml").write_text(f"_BASE_: {BASE}\noptim:\n  lr: .nan\n  betas: [.9, .inf]\nstreams: {{pairs: {{losses: "
                                        "{itc: -.inf}}}\ntrain: {max_bad: .nan}\n")
    with pytest.raises(ConfigError) as e:
        recipe.load(str(tmp_path / "mine.yaml"), missing_files=False)
    found = "\n".join(e.value.problems)
    for said in (":3: `optim.lr` must be a finite number, not nan", ":4: `optim.betas.1` must be a finite number, not inf",
                 ":5: `streams.pairs.losses.itc` must be a finite number, not -inf",
                 ":6: `train.max_bad` must be a finite number, not nan"):
        assert f"mine.yaml{said}" in found


def test_nested_blocks_are_named_with_their_own_line(tmp_path):
    (tmp_path / "mine.yaml").write_text(f"_BASE_: {BASE}\nstreams:\n  pairs:\n    data:\n      mask:\n        prob: 0.5\n        mxa: 3\n"
                                        "        ngram_prob: 2\n      augment: {flip: often}\n")
    with pytest.raises(ConfigError) as e:
        recipe.load(str(tmp_path / "mine.yaml"), missing_files=False)
    found = "\n".join(p.rpartition("/")[2] for p in e.value.problems)
    for said in ("mine.yaml:7: unknown key `mxa` of `mask` of Pairs; did you mean `max`?",
                 "mine.yaml:8: `mask.ngram_prob` of Pairs must be a number of at least 0 and at most 1, not 2",
                 "mine.yaml:9: `augment.flip` of Pairs must be a number of at least 0 and at most 1, not 'often' (str)"):
        assert said in found


def unbounded(hint) -> bool:
    """Whether an annotation lets a number be any."""
    if hint in (int, float):
        return True
    if typing.get_origin(hint) is typing.Annotated:
        return not any(isinstance(r, Range) for r in hint.__metadata__)
    return any(map(unbounded, typing.get_args(hint)))


@pytest.mark.parametrize("cls", COMPONENTS, ids=lambda cls: cls.__name__)
def test_every_number_of_a_component_has_a_range(cls):
    for kind in (cls, *filter(None, (nested(key.type) for key in schema(cls).values()))):
        assert [name for name, key in schema(kind).items() if unbounded(key.type)] == [], kind.__name__


@pytest.mark.parametrize("override, said", [
    ("encoders.vision.layers=-3", "`layers` of BEiTv2 must be an integer of at least 1, not -3"),
    ("encoders.text.dropout=1", "`dropout` of RoBERTa must be a number of at least 0 and below 1, not 1"),
    ("encoders.sim.temperature=0", "`temperature` of Similarity must be a number above 0, not 0"),
    ("encoders.vision_proj.dim=0", "`dim` of Projection must be an integer of at least 1, not 0"),
    ("evaluate.boxes.threshold=1.5", "`threshold` of BoxAccuracy must be a number of at least 0 and at most 1, not 1.5"),
    ("evaluate.retrieval.k=0", "`k` of Retrieval must be an integer of at least 1, not 0"),
    ("streams.pairs.data.max_tokens=2", "`max_tokens` of Pairs must be an integer of at least 3, not 2"),
])
def test_a_number_out_of_its_range(override, said):
    with pytest.raises(ConfigError) as e:
        recipe.load(BASE, [override], missing_files=False)
    assert e.value.problems[0] == f"override `{override}`: {said}"
