"""Every system: what its recipes plan, and each small one, shrunk: a few steps on the sample pack, gone on with after an interruption, and
asked what it can. The pack has no videos: those of x2vlm_video.yaml are made here."""

import json
import os
import shutil
from fnmatch import fnmatchcase
from pathlib import Path

import pytest
import torch
from PIL import Image

import xtoolkit
from xtoolkit import recipe as recipes
from xtoolkit.batch import Batch
from xtoolkit.engine import checkpoint
from xtoolkit.engine.run import Run
from xtoolkit.plan import make_plan
from xtoolkit.recipe.folder import latest
from xtoolkit.tasks.base import evaluating

BASELINES = Path(__file__).resolve().parents[2] / "projects/xfm/baselines"
# All but `NAME_model.yaml`, which trains nothing alone, and of fine-tuning VL-BEiT's, which wires one encoder in ways of its own.
PLANNED = sorted(path.relative_to(BASELINES).with_suffix("").as_posix() for pattern in ("*.yaml", "tiny/*.yaml", "**/vlbeit_*.yaml")
                 for path in BASELINES.glob(pattern) if not path.stem.endswith("_model"))
MEASURED = ("*_s", "*seconds*", "data_share", "cpu_share", "memory_*")  # numbers of a log line that are no function of the step
STEPS, CUT = 5, 2
ALL = ["streams.*.batch_size=8", "evaluate=null", f"train.steps={STEPS}", "train.log_every=1", "train.checkpoint_every=1",
       f"train.keep={STEPS}", "train.device=cpu", "train.workers=0"]
BLOCKS = ("width=32", "layers=1", "heads=2")
STEM, INIT = "stem=[8, 8, 8]", "init=null"


def small(**encoders) -> list[str]:
    return [f"encoders.{name}.{key}" for name, keys in encoders.items() for key in keys]


VISION, TEXT, TOKENS = {"vision": (*BLOCKS, STEM)}, {"text": BLOCKS}, {"tokens": (*BLOCKS, STEM)}
PROJECTIONS = {"vision_proj": ("dim=32",), "text_proj": ("dim=32",)}
FROZEN = {"tokens": (*BLOCKS, STEM, INIT)}
CONTRAST = ["encode_image", "encode_text", "similarity", "temperature"]
COMPARES = "Retrieval gives it, where a recipe has a Similarity encoder and `losses.itc: {type: ITC, sim: sim}`"
MATCHES = "Retrieval gives it, where a recipe has a loss that matches"
X2VLM = (small(**VISION, **TEXT, **PROJECTIONS, fusion=BLOCKS) + ["schedule.every=null"], ["attend", *CONTRAST, "ground", "match"],
         ("caption", "CaptionScores gives it, where a recipe has a loss that generates"))
# {recipe: (how it is shrunk, what a model of it can, what it lacks and what is said to give it)}
SYSTEMS = {
    "x2vlm": X2VLM,
    "x2vlm_video": (X2VLM[0] + ["init=null"], *X2VLM[1:]),
    "flava": (small(image_layers=(*BLOCKS, STEM), text_layers=BLOCKS, fusion=("layers=1", "heads=2"), **PROJECTIONS, **FROZEN)
              + ["train.seed=21"],  # which draws every stream after the interruption
              [*CONTRAST, "match", "picture_codes"],
              ("ground", "BoxAccuracy gives it, where a recipe has a loss that predicts boxes")),
    "flava_text": (small(text_layers=BLOCKS), [], ("encode_text", COMPARES)),
    "vlbeit": (small(backbone=(*BLOCKS, STEM), **FROZEN), ["picture_codes"], ("similarity", COMPARES)),
    "roberta": (small(**TEXT), [], ("encode_text", COMPARES)),
    "beitv2": (small(**VISION, **FROZEN), ["picture_codes"], ("match", MATCHES)),
    "vqkd": (small(**VISION, **TOKENS) + ["init.path=null", "encoders.tokens.wait=1"], ["picture_codes"],
             ("classify", "Accuracy gives it, where a recipe has a classification head")),
    "contrast": (small(**VISION, **TEXT, **PROJECTIONS), CONTRAST, ("match", MATCHES)),
}

NAMES = [pytest.param(name, marks=pytest.mark.slow) if name == "x2vlm_video" else name for name in SYSTEMS]


@pytest.fixture(scope="module", autouse=True)
def working_folder(tmp_path_factory):
    """Where paths of recipes begin."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("data"))
        yield


@pytest.mark.parametrize("name", PLANNED)
def test_the_plan_is_the_one_on_record(name):
    """After a change that is meant: PLANS=write python -m pytest tests/plugins, and read the difference."""
    found = str(make_plan(recipes.load(str(BASELINES / f"{name}.yaml"), missing_files=False))) + "\n"
    file = Path(__file__).parent / "plans" / f"{name.replace('/', '_')}.plan.txt"
    if os.environ.get("PLANS") == "write":
        file.write_text(found)
    assert found == file.read_text()


def recipe(name, output, *overrides):
    return recipes.load(str(BASELINES / f"tiny/{name}.yaml"), [*ALL, *SYSTEMS[name][0], *overrides, f"train.output={output}"])


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """``trained(name)``: the folder of a run of a system, trained on first use."""
    folder, done = tmp_path_factory.mktemp("systems"), set()

    def run(name):
        if name not in done:
            if name == "x2vlm_video":
                from made_videos import write_videos

                write_videos(Path("data/videos"))
            Run(recipe(name, folder / name)).train(say=lambda line: None)
            done.add(name)
        return folder / name

    return run


def logged(output) -> list[dict]:
    lines = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if not any(fnmatchcase(k, p) for p in MEASURED)} for line in lines]


@pytest.mark.parametrize("name", NAMES)
def test_an_interrupted_run_ends_with_the_same_bits(trained, tmp_path, name):
    """Interrupted after step 5, whose numbers are in the log, with step 2's as the newest whole checkpoint."""
    whole, cut = trained(name), tmp_path / "run"
    shutil.copytree(whole, cut)
    for step in range(CUT + 1, STEPS + 1):
        shutil.rmtree(cut / f"checkpoints/step_{step:08}")
    before = checkpoint.read_model(latest(cut))
    Run(recipe(name, cut), init=False).train(resume=True, say=lambda line: None)
    one, other = (checkpoint.read_model(latest(output)) for output in (whole, cut))
    assert one.keys() == other.keys() and [n for n in one if not torch.equal(one[n], other[n])] == []
    lines, again = logged(whole), logged(cut)
    assert lines == again and len([line for line in lines if "loss" in line]) == STEPS
    losses = {f"{stream.name}.{loss}" for stream in recipe(name, cut).streams.values() for loss in stream.losses}
    assert losses <= set().union(*lines), "every loss of every stream has been trained"
    moved = {n.split(".")[1] for n in one if not torch.equal(one[n], before[n])}
    assert moved and ("vision" if name == "vqkd" else "tokens") not in moved, "what is frozen stays"
    assert name != "vqkd" or before["encoders.tokens.quantize.started"], "its codes have begun, and an average is under way"


def alone(model, picture, text) -> Batch:
    """One pair as a batch."""
    image, = model.pictures([picture]).batches(1)
    words, = model.texts([text]).batches(1)
    return Batch(image=image, text=words)


@pytest.mark.parametrize("name", NAMES)
def test_a_loaded_model_answers_what_it_can_and_says_what_it_lacks(trained, name):
    _, abilities, (lacks, said) = SYSTEMS[name]
    model = xtoolkit.load(trained(name), precision="fp32")
    assert model.abilities == sorted(abilities)
    with pytest.raises(AttributeError) as error:
        getattr(model, lacks)
    assert f"this model has no `{lacks}`: {said}" in str(error.value)
    assert f"; it has: {', '.join(sorted(abilities)) or 'none'}" in str(error.value)
    pictures = [Image.linear_gradient("L").rotate(50 * n).convert("RGB") for n in range(3)]
    texts = ["a dog", "two red cats", "a tree"]
    if "similarity" in abilities:
        image, text = model.encode_image(pictures), model.encode_text(texts)
        torch.testing.assert_close(torch.stack([image, text]).norm(dim=-1), torch.ones(2, 3))
        torch.testing.assert_close(model.similarity(pictures, texts), image @ text.T)
        torch.testing.assert_close(model.similarity(pictures[1], texts), image[1] @ text.T, atol=1e-5, rtol=1e-5)
        with evaluating(model.model):
            f = model.model.features(alone(model, pictures[1], texts[1]))
            torch.testing.assert_close(f["sim"].image_to_text[0, 0] * model.temperature, image[1] @ text[1], atol=1e-5, rtol=1e-5)
    if "match" in abilities:
        told = model.match(pictures, texts)
        with evaluating(model.model):
            loss = model.model.losses["itm"]
            torch.testing.assert_close(loss.match(f[loss.fusion]).softmax(1)[0, 1], told[1], atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(model.match(pictures[0], texts)[0], told[0], atol=1e-5, rtol=1e-5)
    if "ground" in abilities:
        boxes = model.ground(pictures, texts)
        assert boxes.shape == (3, 4) and model.attend(pictures[0], "a dog") is not None
    if "picture_codes" in abilities:
        codes = model.picture_codes(pictures)
        assert codes.shape == (3, 36) and codes.dtype == torch.int64 and torch.equal(model.picture_codes(pictures[1]), codes[1])
    if name == "roberta":
        with pytest.raises(ValueError, match="this model reads no pictures"):
            model.pictures(pictures)
