"""xtoolkit predict: what a model says of a picture, what is drawn of it, and each mistake in one line."""

import re
from pathlib import Path

import pytest
import torch
from PIL import Image

import xtoolkit
from commands import tool
from xtoolkit.cli import recipes
from xtoolkit.inference import drawing, loading
from xtoolkit.recipe.plugins import import_components
from xtoolkit.registry import TASK_REGISTRY

CONFIG = """
tokenizer: sample://picturebook/tokenizer
encoders:
  vision: {type: BEiTv2, inputs: {image: $image}, width: 16, layers: 1, heads: 2, patch_size: 16, image_size: 48, init_std: 0.3}
  text: {type: RoBERTa, inputs: {text: $text}, width: 16, layers: 1, heads: 2, vocab_size: 4000, init_std: 0.3}
  fusion: {type: CrossAttention, inputs: {text: text, image: vision}, layers: 2, heads: 2, init_std: 0.3}
  vision_proj: {type: Projection, inputs: {x: vision}, dim: 8}
  text_proj: {type: Projection, inputs: {x: text}, dim: 8}
  sim: {type: Similarity, inputs: {image: vision_proj, text: text_proj}}
losses:
  itc: {type: ITC, sim: sim}
  itm: {type: ITM, fusion: fusion, negatives: sim}
  bbp: {type: BBP, feature: fusion@whole}
streams:
  pairs: {batch_size: 4, losses: {itc: 1, itm: 1}, data: {type: SyntheticPairs, size: 20}}
  region: {batch_size: 4, losses: {bbp: 1}, data: {type: SyntheticRegions, size: 20, max_per_image: 2}}
optim: {lr: 1e-3}
train: {steps: 1, output: FOLDER/NAME, workers: 0, device: cpu, precision: fp32}
"""
TEXTS = ["a red umbrella", "two small cats"]


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    """A folder with two runs, `whole` and `texts` (contrast alone), and a picture."""
    patch, folder = pytest.MonkeyPatch(), tmp_path_factory.mktemp("lab")
    patch.setenv("XTOOLKIT_HOME", str(tmp_path_factory.mktemp("home")))
    text = CONFIG.replace("FOLDER", str(folder))
    xtoolkit.build(text.replace("NAME", "whole")).train(say=lambda said: None)
    contrast = re.sub(r"  (itm|bbp|region): .*\n", "", text.replace(", itm: 1", "")).replace("NAME", "texts")
    xtoolkit.build(contrast).train(say=lambda said: None)
    pixels = torch.randint(0, 256, (90, 120, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    Image.fromarray(pixels.numpy()).save(folder / "dog.jpg")
    (folder / "notes.txt").write_text("no picture")
    yield folder
    patch.undo()


def predict(capsys, *words):
    code = tool("predict").main([str(word) for word in words])
    return code, *capsys.readouterr()


# ---- what is said and drawn -----------------------------------------------------------------------------------------
def test_texts_are_told_as_the_loaded_model_tells_them_and_boxes_and_heat_are_drawn(lab, capsys):
    code, out, err = predict(capsys, lab / "whole", lab / "dog.jpg", *TEXTS, "--attend")
    assert (code, err) == (0, "")
    model = xtoolkit.load(lab / "whole")
    similarity, match = model.similarity(lab / "dog.jpg", TEXTS), model.match(lab / "dog.jpg", TEXTS)
    boxes = model.ground(lab / "dog.jpg", TEXTS)
    head, *rows, layer, drawn = out.splitlines()
    assert head.split("  ")[0] == "text" and len(rows) == 2
    for row, text, alike, odds, box in zip(rows, TEXTS, similarity.tolist(), match.tolist(), boxes.tolist()):
        cells = re.split("  +", row)
        assert cells[:3] == [text, f"{alike:.3f}", f"{100 * odds:.1f} %"]
        assert [float(n) for n in cells[3].split(", ")] == pytest.approx(box, abs=0.51)
    assert layer == "attend: layer 0 of the fusion encoder" and drawn == f"drawn: {lab / 'dog.predicted.png'}"
    page = Image.open(lab / "dog.predicted.png")
    assert page.format == "PNG" and page.width == 3 * 200 + 4 * drawing.GAP
    colours = {colour for _, colour in page.convert("RGB").getcolors(page.width * page.height)}
    assert {tuple(bytes.fromhex(drawing.COLOURS[n][1:])) for n in range(2)} <= colours
    assert sorted(p.name for p in lab.iterdir()) == ["dog.jpg", "dog.predicted.png", "notes.txt", "texts", "whole"]


def test_what_a_model_cannot_tell_is_left_out_of_the_table(lab, capsys, tmp_path):
    code, out, _ = predict(capsys, lab / "texts", lab / "dog.jpg", TEXTS[0], "--output", tmp_path / "seen.png")
    assert code == 0 and out.splitlines()[0].split() == ["text", "similarity"] and "drawn" not in out
    assert not (tmp_path / "seen.png").exists(), "nothing is to be seen"


class Model:
    """Stands for a loaded model that was trained for other tasks."""

    abilities, transform, given = ["answer", "caption", "classify"], None, ()
    answer = staticmethod(lambda image, question, candidates=None: (candidates or ["free"])[-1] + " of " + question)
    caption = staticmethod(lambda image: "a dog")

    def classify(self, *given):
        Model.given = given
        return {" and ".join(map(str, given)): 0.75, "cat": 0.25} | dict.fromkeys("abcd", 0.0)


def test_other_abilities_are_asked_by_their_options(lab, capsys, monkeypatch):
    monkeypatch.setattr(loading, "load", lambda *given: Model())
    ask = lambda *words: predict(capsys, "run", *words)
    picture = lab / "dog.jpg"
    assert ask(picture, "--caption") == (0, "caption: a dog\n", "")
    assert ask(picture, "which?", "what?", "--answer", "--candidates", "red", "blue") == (
        0, "which? blue of which?\nwhat? blue of what?\n", "")
    assert ask(picture, "which?", "--answer")[1] == "which? free of which?\n"
    assert ask(picture, "--classify")[1].splitlines() == [f"{picture}  0.750", "cat  0.250", "a  0.000", "b  0.000", "c  0.000"]
    assert isinstance(Model.given[0], Path), "a head that reads texts must not take the name of a picture for one"
    assert ask(picture, "is it?", "--classify")[1].splitlines()[0] == f"{picture} and is it?  0.750"
    assert ask("-", "one", "two", "--classify")[1].splitlines()[0] == "one and two  0.750"
    code, _, err = ask(picture, "a dog")
    assert code == 2 and "this model tells none of similarity, match, ground; it has: answer, caption, classify" in err


# ---- mistakes -------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("words, said", [
    (["RUN/nowhere", "dog.jpg", "a dog"], "RUN/nowhere: no such file or folder; xtoolkit.load takes a run's output folder"),
    (["RUN", "dog.jpg", "a dog"], "RUN: not a run itself, but it holds some: texts, whole"),
    (["RUN/whole", "cat.jpg", "a cat"], "IMAGE: cat.jpg: no such file"),
    (["RUN/whole", "whole", "a cat"], "IMAGE: whole: a run's folder: "),
    (["RUN/whole", "notes.txt", "a cat"], "notes.txt: corrupt image: of no format that Pillow reads"),
    (["RUN/whole", "dog.jpg", " "], "' ': empty caption"),
    (["RUN/whole", "dog.jpg", "a dog", "--attend", "--layer", "2"], "layer: 2 is none; the fusion encoder has layers 0 to 1"),
    (["RUN/whole", "dog.jpg", "a dog", "--output", "seen.jpg"], "--output: seen.jpg must end in .png"),
    (["RUN/whole", "dog.jpg", "a dog", "--output", "gone/seen.png"], "--output: gone: no such folder"),
    (["RUN/whole", "dog.jpg", "a dog", "--device", "tpu"], "device: 'tpu' is none"),
    (["RUN/texts", "dog.jpg", "a dog", "--attend"],
     "--attend: this model has no `attend`: PointingGame gives it, where a recipe has a loss that matches by cross-attention"),
])
def test_each_mistake_is_one_line(lab, capsys, monkeypatch, words, said):
    monkeypatch.chdir(lab)
    code, out, err = predict(capsys, *(word.replace("RUN", str(lab)) for word in words))
    assert (code, out) == (2, "") and said.replace("RUN", str(lab)) in err and "Traceback" not in err
    assert len(err.splitlines()) <= 2


@pytest.mark.parametrize("words, said", [
    (["dog.jpg"], "give a TEXT, or --caption or --classify"),
    (["dog.jpg", "--caption", "--answer"], "--answer: give a question as TEXT"),
    (["dog.jpg", "a dog", "--candidates", "x"], "--candidates goes with --answer"),
    (["dog.jpg", "a dog", "--layer", "0"], "--layer goes with --attend"),
    (["-", "a dog"], "IMAGE: `-` is no picture"),
])
def test_options_that_say_nothing_are_refused_before_anything_is_loaded(lab, capsys, monkeypatch, words, said):
    monkeypatch.chdir(lab)
    monkeypatch.setattr(loading, "load", lambda *given: pytest.fail("loaded"))
    with pytest.raises(SystemExit, match="2"):
        tool("predict").main(["whole", *words])
    assert said in capsys.readouterr().err


def test_what_is_lacking_names_the_recipes_that_train_it(lab):
    model = xtoolkit.load(lab / "texts")
    with pytest.raises(AttributeError, match=r"no `ground`: BoxAccuracy gives it, .*; recipes that have: xfm/base.yaml, "
                                             r".*; it has: encode_image, encode_text, similarity, temperature$"):
        model.ground
    with pytest.raises(AttributeError, match="recipes that have: .*xfm/tiny.yaml"):
        model.attend
    assert not hasattr(model, "match")


def test_every_ability_has_a_recipe_that_trains_it():
    import_components()
    tasks = [TASK_REGISTRY.get(name) for name in TASK_REGISTRY.names()]
    abilities = {name for task in tasks if task.__module__.startswith("xtoolkit.") for name in task.ABILITIES}
    assert {"answer", "attend", "caption", "classify", "ground", "match"} <= abilities
    assert [name for name in sorted(abilities) if not recipes.giving(name)] == []
