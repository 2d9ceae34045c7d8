"""Datasets that a person writes: a field of one's own, and pictures with captions from a CSV."""

import csv
import random
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from xtoolkit.batch import Field, ImageField, RegionField, TextField
from xtoolkit.data.base import StreamDataset
from xtoolkit.data.errors import BadSample
from xtoolkit.data.images import Augment
from xtoolkit.data.items import Item
from xtoolkit.data.loader import EvalLoader, Loader
from xtoolkit.data.masking import TextMask
from xtoolkit.data.process import ImageProcessor, TextProcessor
from xtoolkit.data.synthetic import SyntheticPairs, SyntheticRegions
from xtoolkit.registry import Count, Registry, check, filled

SIZES = {"image_size": 32, "patch_size": 8}
OWN = Registry("DATASET")


@dataclass(frozen=True)
class NumberField(Field):
    """(B,) float32."""

    value: torch.Tensor

    @classmethod
    def example(cls, rows):
        return cls(torch.zeros(rows))


@OWN.register
class Numbers(StreamDataset):
    FIELDS = {"number": NumberField}

    def __init__(self, size: Count):
        self.size = size

    @property
    def sizes(self):
        return [self.size]

    def load(self, source, sample, rows, rng):
        return Item(fields={"number": sample + rng.random(), "told": "odd" if sample % 2 else "even"})


@OWN.register
class Captioned(StreamDataset):
    """Pictures and captions of a CSV, with a second text of each."""

    FIELDS = {"image": ImageField, "text": TextField, "title": TextField}
    MARKS = {"mask_text": "mask"}

    def __init__(self, tokenizer, image_size, patch_size, file: str, views: frozenset = frozenset(), train: bool = True,
                 max_tokens: Count = 16, mask: TextMask | None = None):
        with open(file) as lines:
            self.lines, self.folder, self.train = list(csv.DictReader(lines)), Path(file).parent, train
        self.images = ImageProcessor(image_size, patch_size, augment=Augment() if train else None, views=views)
        self.text = TextProcessor(tokenizer, max_tokens, clean=True, mask=mask, views=views)

    @property
    def sizes(self):
        return [len(self.lines)]

    def load(self, source: int, sample: int, rows: int, rng: random.Random) -> Item:
        line = self.lines[sample]
        bad = lambda kind, detail: BadSample(kind, line["path"], detail)
        image = self.images((self.folder / line["path"]).read_bytes(), line["path"], rng, bad, [line["caption"]])
        return Item(image, [self.text(line["caption"], rng, bad)], fields={"title": self.text(line["title"], rng, bad)})


@pytest.fixture
def table(tmp_path, shards):
    lines = ["path,caption,title"]
    for n in range(9):
        (tmp_path / f"{n}.jpg").write_bytes(shards.jpeg(n))
        lines.append(f"{n}.jpg,a red dog {n},two cat")
    (tmp_path / "pairs.csv").write_text("\n".join(lines))
    return str(tmp_path / "pairs.csv")


def test_a_field_of_ones_own_from_numbers_made_up():
    data = OWN.build({"type": "Numbers", "size": 10}, "here")
    batches = [Loader("numbers", data, 4, 1, workers).at(1) for workers in (0, 1)]
    assert torch.equal(batches[0]["number"].value, batches[1]["number"].value)
    assert batches[0].size == 4 and set(batches[0]["told"]) <= {"odd", "even"}
    halves = [Loader("numbers", data, 4, 1, 0, rank, 2).at(1)["number"].value for rank in (0, 1)]
    assert torch.equal(torch.cat(halves), batches[0]["number"].value)
    whole, = EvalLoader(data, 16)
    assert whole["number"].value.int().tolist() == list(range(10)) and whole["told"][:2] == ["even", "odd"]
    made = Numbers.example({"size": 10}, 4, {}, frozenset())
    assert made["number"].value.is_meta and made.size == 4 and Numbers.max_length({"size": 10}) is None
    assert Numbers.check({"size": 10}) == [] and Numbers.paths({"size": 10}) == []
    assert data.figures(whole, None) == [] and data.pictures(whole) == {}


def test_a_field_without_shapes_says_what_is_missing():
    class Other(Numbers):
        FIELDS = {"number": Field}

    with pytest.raises(TypeError, match=r"what \$number looks like is not known .*: Other needs a classmethod `example`, or Field"):
        Other.example({}, 4, {}, frozenset())


def test_pictures_and_captions_of_a_csv(table, tokenizer):
    block = {"type": "Captioned", "file": table, "mask": {"prob": 0.5, "max": 3}}
    marks = frozenset({"mask_text"})
    data = OWN.build(block, "here", tokenizer=tokenizer, **SIZES, views=marks)
    batch = Loader("pairs", data, 4, 1, 0, contrasts=True).at(0)
    assert batch.image.pixels.shape == (4, 3, 32, 32) and batch.text.masked_ids is not None
    for row in range(4):
        assert tokenizer.decode(batch.text.ids[row]) == f"a red dog {batch.image.image_id[row][0]}"
        assert tokenizer.decode(batch["title"].ids[row]) == "two cat"
    made = Captioned.example(filled(Captioned, {"mask": {"prob": 0.5, "max": 3}}), 4, SIZES, marks)
    assert set(made) == {"image", "text", "title"} and made["title"].ids.shape == (4, 16)
    assert Captioned.check({"file": table}, marks) == [
        ("mask", "losses or a task read `@mask_text` of this stream, which needs `mask: {prob: 0.15, max: 20}`")]
    assert "did you mean `ngram`" in check(Captioned, {"file": table, "mask": {"prob": 0.5, "max": 3, "ngrm": 2}}, "here")[0]
    test, = EvalLoader(OWN.build(block, "here", tokenizer=tokenizer, **SIZES, train=False), 9)
    assert test["image_index"].tolist() == list(range(9)), "as Retrieval reads them"


def test_what_a_dataset_shows_of_its_batches(table, tokenizer, datasets):
    data = OWN.build({"type": "Captioned", "file": table}, "here", tokenizer=tokenizer, **SIZES, train=False)
    whole, = EvalLoader(data, 9)
    pictures = data.pictures(whole)
    assert list(pictures) == [f"{n}.jpg" for n in range(9)] and pictures["3.jpg"].dtype == torch.uint8
    assert (pictures["3.jpg"][:, 20, 20].int() - torch.tensor([21, 15, 9])).abs().max() <= 4
    assert data.figures(whole, tokenizer) == [], "nothing is masked"
    for name, shown in (("text", {"words"}), ("image", {"image", "mask"}), ("pairs", {"words", "image", "mask"}),
                        ("region", {"words"})):
        batch = Loader(name, datasets[name], 8, 0, 0).at(0)
        figure, = datasets[name].figures(batch, tokenizer, shown=3)
        assert len(figure["items"]) == 3 and all(set(item) == shown for item in figure["items"]), name
    words = figure["items"][0]["words"]
    assert "".join(was for _, _, was in words).strip() == tokenizer.decode(batch.text.ids[0])
    assert {read for read, chosen, was in words if read != was} and all(chosen for read, chosen, was in words if read != was)


def test_regions_are_of_the_class_that_a_dataset_names(tokenizer):
    class Parts(RegionField):
        pass

    class Own(SyntheticRegions):
        FIELDS = SyntheticRegions.FIELDS | {"region": Parts}

    data = Own(tokenizer, 32, 8, size=8)
    assert type(Loader("own", data, 4, 1, 0).at(0).region) is Parts


def test_texts_that_no_field_names_are_refused_by_name(tokenizer):
    class Forgetful(SyntheticPairs):
        FIELDS = {"image": ImageField}

    data = Forgetful(tokenizer, 32, 8, size=8)
    with pytest.raises(TypeError, match=r"items of Forgetful hold \$text, which its FIELDS do not name; they name \$image"):
        Loader("own", data, 4, 1, 0).at(0)
