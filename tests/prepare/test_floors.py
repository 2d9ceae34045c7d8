"""The floors that docs/sample_pack.md gives are those that the committed script computes."""

import re
from pathlib import Path

import pytest

from projects.picturebook import floors

PAGE = (Path(__file__).resolve().parents[2] / "docs/sample_pack.md").read_text()
TABLE = PAGE[PAGE.index("## What a run must beat"):PAGE.index("`python -m projects.picturebook.floors`")]


def row(begins):
    line, = [line for line in TABLE.splitlines() if line.startswith(f"| {begins}")]
    return [float(number) for number in re.findall(r"\d+\.\d", line)]


def close(found, *numbers):
    assert all(value == pytest.approx(number, abs=0.051) for value, number in zip(found, numbers, strict=True)), (found, numbers)


def test_the_biggest_box():
    found = floors.boxes()
    close([found[f"refcoco+ {split}: the biggest box"] for split in ("testA", "testB", "val")], *row("boxes")[3:])


def test_pictures_of_classes():
    found = floors.classes()
    for begins, name in (("classification", "imagenet val"), ("the fifth", "imagenet-select val"), ("digits", "digits test")):
        most, pixels = row(begins)[:2]
        close([found[f"{name}: most frequent class of train"], found[f"{name}: pixels"]], most, pixels)


@pytest.mark.slow
def test_texts_and_pairs():
    found = floors.labelled_pairs()
    assert [found[f"nlvr2 {split}: text only"] for split in ("dev", "test1")] == [50, 50]
    text, *seen = row("entailment")[1:]
    close([found["ve val: text only"], found["ve test: text only"]], text, text)
    close([found[f"ve {split}: picture only, pixels"] for split in ("val", "test")], *seen)
    found = floors.glue()
    for begins, task in (("SST-2", "sst2"), ("CoLA", "cola")):
        close([found[f"{task} {split}: {name}"] for name in ("most frequent class of train", "tf-idf") for split in ("dev", "test")],
              *row(begins)[:4])
    close([found[f"cola {split}: tf-idf, Matthews"] for split in ("dev", "test")], *row("CoLA")[4:])
    close([found[f"rte {split}: {name}"] for name in ("second sentence only", "tf-idf") for split in ("dev", "test")],
          *row("RTE")[2:])


@pytest.mark.slow
def test_questions_without_pictures():
    found = floors.vqa()
    close([found["vqa test: question only"], *(found[f"vqa test: question only, {kind}"] for kind in ("yes/no", "number", "other"))],
          *row("VQA"))
