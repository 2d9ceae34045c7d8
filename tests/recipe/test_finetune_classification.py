"""The recipes of classification and regression: they plan, their figures are the papers', and mistakes in them are one clear line."""

import math
from pathlib import Path

import pytest

from xtoolkit import recipe as recipes
from xtoolkit.plan import make_plan
from xtoolkit.registry import ConfigError

FOLDER = Path(__file__).resolve().parents[2] / "projects/xfm/finetune"
# Rows of the official train files, rows a step, rate, epochs: X-FM's tables 11, 13, 14 and the release's yaml files.
REAL = {"cola": (8551, 32, 3e-5, 20), "mnli": (392702, 32, 2e-5, 5), "mrpc": (3668, 32, 5e-5, 20), "qnli": (104743, 32, 2e-5, 3),
        "qqp": (363846, 32, 2e-5, 5), "rte": (2490, 16, 1e-5, 20), "sst2": (67349, 32, 2e-5, 3), "stsb": (5749, 32, 5e-5, 20),
        "imagenet": (1281167, 1024, 4e-5, 100), "nlvr2": (86373, 64, 1e-5, 15), "snli_ve": (529527, 512, 2e-5, 10),
        "hateful_memes": (8500, 64, 1e-5, 20)}
SMALL = ("cola", "rte", "sst2", "stsb", "imagenet", "nlvr2", "ve")


def load(name, *changes):
    return recipes.load(str(FOLDER / f"{name}.yaml"), list(changes), missing_files=False)


@pytest.mark.parametrize("name", REAL)
def test_a_recipe_has_the_papers_figures(name):
    rows, batch, rate, epochs = REAL[name]
    found = load(name)
    stream = found.streams["train"]
    assert stream.batch_size == batch and found.optim.lr == rate and found.train.steps == epochs * math.ceil(rows / batch)
    assert found.optim.betas == (0.9, 0.999) and found.optim.decay == "linear" and found.init.parts == "shared"
    best = {"cola": "val.matthews", "stsb": "val.pearson", "hateful_memes": "val.roc_auc", "imagenet": None}
    assert found.train.keep_best == best.get(name, "val.accuracy")  # ImageNet's test is its validation set
    language = stream.data["type"] == "LabelledText"
    assert (found.optim.weight_decay, found.optim.warmup) == ((0.0, 0) if language else (0.01, 0.1))
    assert not language or stream.data["max_tokens"] == 128
    every = {n: block["every"] for n, block in found.evaluate.items()}
    assert every.pop("val", found.train.steps // epochs) == found.train.steps // epochs and set(every.values()) == {None}
    assert found.config["encoders"]["vision"]["image_size"] == (224 if language or name == "imagenet" else 384)


@pytest.mark.parametrize("name", [*REAL, *(f"tiny/{name}" for name in SMALL)])
def test_a_recipe_plans(name):
    found = load(name)
    plan = make_plan(found)
    stream, = plan.streams
    assert stream.unknown is None and stream.gflops > 0 and stream.dropped == [] and plan.cuts == {}
    passes = {p.name: p for p in stream.passes}
    if name.endswith("nlvr2"):  # two pictures and one text: the text is read once, the others twice
        assert set(passes) == {"vision", "second", "text", "fusion", "fusion_second"}
        assert {part for part in plan.parameters["parts"]} == {"vision", "text", "fusion", "classify"}
    if name == "imagenet":
        assert list(plan.parameters["parts"]) == ["vision", "classify"] and plan.parameters["parts"]["classify"] == 769 * 1000


@pytest.mark.parametrize("name", SMALL)
def test_a_small_recipe_has_its_data(name):
    recipes.load(str(FOLDER / f"tiny/{name}.yaml"), ["init.path=null"])


def test_the_servers_files_are_asked_for():
    found = {name: {block.get("server") for block in load(name).evaluate.values()} - {None} for name in REAL}
    assert found["mnli"] == {"MNLI-m", "MNLI-mm"} and found["stsb"] == {"STS-B"} and found["hateful_memes"] == {"Hateful-Memes"}
    assert set().union(*(found[name] for name in ("cola", "mrpc", "qnli", "qqp", "rte", "sst2"))) == {"CoLA", "MRPC", "QNLI", "QQP", "RTE", "SST-2"}


@pytest.mark.parametrize("name, changes, message", [
    ("tiny/sst2", ["losses.classify.classes=3"], "stream `train` cannot run: .*`classes: 3`, and the data have 2 .*: set `classes: 2`"),
    ("tiny/sst2", ["streams.train.data.classes=null"], "stream `train` cannot run: .*targets of regression: give the data `classes`"),
    ("tiny/stsb", ["streams.train.data.classes=2"], "stream `train` cannot run: .*the labels are classes: give the data `classes: null`"),
    ("tiny/nlvr2", ["losses.classify.mixup=0.8"], "mix the pictures of one feature; `features` name 2"),
    ("tiny/ve", ["losses.classify.mixup=0.8"], "`fusion` reads text, image, of which 0 are pictures")])
def test_a_head_that_does_not_fit_the_data_is_told_before_any_weight_is_loaded(name, changes, message):
    with pytest.raises(ConfigError, match=message):
        make_plan(load(name, *changes))


@pytest.mark.parametrize("changes, message", [
    (["evaluate.val.loss=classifi"], r"unknown loss `classifi`; did you mean `classify`\?"),
    (["losses.classify={type: Regression, features: text}"], "loss `classify` cannot serve as `loss` of Accuracy: it has no `logits`"),
    (["evaluate.val.server=SST2"], "`server` of Accuracy must be "),
    (["losses.classify.features=vision"], r"loss `classify` reads vision, .* has only \$label, \$text"),
    (["train.keep_best=test.accuracy"], "`keep_best` chooses by evaluation `test`, which never runs in between")])
def test_mistakes_of_a_recipe(changes, message):
    with pytest.raises(ConfigError, match=message):
        load("tiny/sst2", *changes)


def test_a_misspelt_task_is_one_mistake_though_it_replaces_a_whole_block():
    with pytest.raises(ConfigError) as error:
        load("tiny/sst2", "evaluate.val.type=Acuracy")
    assert error.value.problems == ["override `evaluate.val.type=Acuracy`: unknown task `Acuracy`; did you mean `Accuracy`?"]


def test_a_file_that_holds_no_weights_is_told_without_loading_it(tmp_path):
    (tmp_path / "README.md").write_text("# Not weights at all\n")
    with pytest.raises(ConfigError, match=r"README.md: no file of weights: neither safetensors nor torch's; `init` names"):
        load("tiny/sst2", f"init={tmp_path / 'README.md'}")


def test_missing_weights_are_not_answered_with_another_recipe(tmp_path, capsys):
    from xtoolkit.cli.train import main

    assert main(["--config", str(FOLDER / "tiny/sst2.yaml"), f"init={tmp_path / 'nowhere'}"]) == 2
    said = capsys.readouterr().err
    assert "nowhere: no such file or folder" in said and "runs as it is" not in said


def test_classes_that_are_numbered_otherwise_than_in_training_are_refused():
    """Every figure would be that of the other class."""
    with pytest.raises(ConfigError) as e:
        load("tiny/rte", "evaluate.val.data.classes=[not_entailment, entailment]")
    assert e.value.problems == ["override `evaluate.val.data.classes=[not_entailment, entailment]`: `classes` of evaluation `val` are "
                                "numbered otherwise than those of stream `train`, which trains `classify`: ['entailment', "
                                "'not_entailment']"]
