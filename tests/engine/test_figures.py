"""Figures as they reach the report: pictures found by image id, in any form, and nothing that fails without them."""

import base64
import io
import json

import pytest
import torch
from PIL import Image

from engine_toy import ToyModel, loaders, recipe
from xtoolkit.engine import figures
from xtoolkit.engine.hooks import Checkpoint, Log, default_hooks
from xtoolkit.engine.trainer import Trainer


class Data:
    """Batches of named colours."""

    def __init__(self):
        self.read = 0

    def pictures(self, batch):
        return {name: torch.full((3, 300, 200), level, dtype=torch.uint8) for name, level in batch.items()}

    def __iter__(self):
        for batch in ({"a": 0, "b": 60}, {"c": 120}, {"d": 240}):
            self.read += 1
            yield batch


def level(coded):
    picture = Image.open(io.BytesIO(base64.b64decode(coded)))
    return picture.size, round(sum(picture.getpixel((5, 5))) / 3)


def test_pictures_are_found_by_name_or_taken_as_they_are():
    data = Data()
    made = [{"title": "x", "items": [{"image": "c", "caption": "grey"}, {"image": "gone", "right": True},
                                     {"image": Image.new("RGBA", (10, 20), (9, 9, 9, 255))}, {"caption": "no picture"},
                                     {"image": torch.full((3, 8, 8), 200, dtype=torch.uint8)}]}]
    shown, = figures.with_pictures(made, data, data)
    first, missing, pil, text, tensor = shown["items"]
    assert level(first["image"]) == ((128, 192), 120) and first["caption"] == "grey"
    assert missing == {"right": True} and text == {"caption": "no picture"}
    assert level(pil["image"]) == ((10, 20), 9) and level(tensor["image"]) == ((8, 8), 200)
    assert shown["title"] == "x" and "image" in made[0]["items"][1], "the task's own figures were changed"
    json.dumps(shown)


def test_no_further_than_needed_and_not_at_all_without_pictures():
    data = Data()
    figures.with_pictures([{"items": [{"image": "b"}]}], data, data)
    assert data.read == 1
    assert figures.with_pictures([{"text": "only text", "items": [{"words": [("a", False, "a")]}]}], None, None)
    assert figures.with_pictures([{"title": "bare"}], data, data) == [{"title": "bare"}]
    assert figures.with_pictures([], data, data) == [] and data.read == 1


def test_a_picture_that_is_none_is_named():
    with pytest.raises(ValueError, match=r"must be \(3, H, W\) uint8, not \(3, 8, 8\) torch.float32"):
        figures.jpeg(torch.zeros(3, 8, 8))


class Shown:
    """A dataset whose figures say which batch they are of."""
    digests = {}

    def __len__(self):
        return 64

    def figures(self, batch, tokenizer, shown):
        return [{"title": tokenizer, "items": [{"caption": f"{float(batch['x'][0, 0]):.4f}"}] * shown}]


def test_samples_are_those_of_the_first_step_and_nothing_is_read_for_them(tmp_path):
    read = loaders()
    for loader in read.values():
        loader.dataset = Shown()
    hooks = lambda: [figures.Samples("words", shown=2), Log(), Checkpoint()]
    Trainer(ToyModel(), recipe(tmp_path, steps=3), read, hooks=hooks()).fit()
    found = json.loads((tmp_path / "samples.json").read_text())
    assert found == {name: [{"title": "words", "items": [{"caption": f"{float(loaders()[name].at(0)['x'][0, 0]):.4f}"}] * 2}]
                     for name in ("a", "b")}
    assert read["a"].visits == [0, 1, 2] and read["b"].visits == [0, 1]
    # A run that goes on keeps them; one that is finished reads nothing.
    again = loaders()
    Trainer(ToyModel(), recipe(tmp_path, steps=3), again, hooks=[figures.Samples("other")], resume=True).fit()
    Trainer(ToyModel(), recipe(tmp_path, steps=4), again, hooks=[figures.Samples("other")], resume=True).fit()
    assert json.loads((tmp_path / "samples.json").read_text()) == found and again["a"].visits == [3]


def test_a_full_run_has_samples_only_with_a_tokenizer():
    assert not any(isinstance(hook, figures.Samples) for hook in default_hooks())
    assert any(isinstance(hook, figures.Samples) for hook in default_hooks("words"))


@pytest.mark.parametrize("figure, said", [
    ({"titel": "x"}, "unknown key `titel` of Figure; did you mean `title`?"),
    ({"title": 3}, "`title` of Figure must be a word, not 3"),
    ("words", "a figure must be a mapping, not str"),
    ({"items": ["a"]}, "`items` of Figure must be a list of"),
    ({"items": [{}, {"picture": "a"}]}, "items[1]: unknown key `picture` of Item"),
    ({"items": [{"caption": torch.zeros(9, 9)}]}, "items[0]: `caption` of Item must be a word"),
    ({"items": [{"boxes": [{"box": [1, 2, 3], "kind": "true"}]}]}, "items[0]: `boxes` of Item must be a list of {box:"),
    ({"items": [{"image": torch.zeros(3, 8, 8)}]}, "items[0]: `image` of Item must be (3, H, W) uint8, not (3, 8, 8) torch.float32"),
    ({"items": [{"image": 7}]}, "items[0]: `image` of Item must be"),
    ({"items": [{"boxes": [{"box": [0, 0, float("nan"), 1], "kind": "true"}]}]}, "must be a finite number"),
])
def test_a_wrong_figure_is_said_in_a_line_and_its_place_says_so(capsys, figure, said):
    kept = figures.with_pictures(figures.good([{"title": "fine"}, figure], "evaluation `x`: Mine.figures"))
    line = capsys.readouterr().err
    assert line.count("\n") == 1 and line.startswith("evaluation `x`: Mine.figures: ") and said in line
    assert kept[0] == {"title": "fine"} and said in kept[1]["text"]
    json.dumps(kept)


def test_a_null_in_a_figure_is_the_default():
    assert figures.mistake({"title": None, "items": [{"image": None, "words": None}]}) is None
    assert figures.with_pictures([{"title": "x", "items": None}]) == [{"title": "x", "items": None}]
