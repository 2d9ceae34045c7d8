"""What the columns of a table share with one seed: the batches of each stream, and the first weights of each part, starts included."""

import dataclasses

import pytest
import torch
from safetensors.torch import save_file

from xtoolkit import recipe as recipes
from xtoolkit.ablation.jobs import Jobs
from xtoolkit.ablation.table import read
from xtoolkit.cli import recipes as ours
from xtoolkit.engine.run import Run

pytestmark = pytest.mark.slow
FOLDER = ours.folder() / "xfm/ablations"
BLOCKS, STEM = ("width=32", "layers=1", "heads=2"), "stem=[8, 8, 32]"
SMALL = {"vision": (*BLOCKS, STEM), "tokens": (*BLOCKS, STEM), "text": BLOCKS, "fusion": ("layers=1", "heads=2"), "vision_proj": ("dim=32",),
         "text_proj": ("dim=32",)}
COLUMNS = ["RoBERTa†", "S-MLM", "S-ITM", "wostop", "BEiTv2†", "woMIM", "wBEiTv2 tokenizer", "X2-VLM†", "Multi-task", "ALL", "ALL again",
           "Shuffled captions"]
but = lambda *names: {name for name in COLUMNS if name not in names}
# {stream: (the columns that have it, some of what its batches hold)}
STREAMS = {
    "text": (but("BEiTv2†"), {"text.ids", "text.mask", "text.masked_ids", "text.masked_pos", "text.labels"}),
    "image": (but("RoBERTa†", "woMIM", "X2-VLM†"), {"image.pixels", "image.image_id", "image.patch_mask"}),
    "pairs": (but("RoBERTa†", "BEiTv2†"), {"text.ids", "text.mask", "image.pixels", "image.image_id"}),
    "match": (but("RoBERTa†", "BEiTv2†"), {"text.ids", "text.mask", "text.masked_ids", "text.masked_pos", "text.labels", "image.pixels",
                                          "image.image_id", "image.patch_mask"}),
    "region": (but("RoBERTa†", "BEiTv2†"), {"text.ids", "text.mask", "image.pixels", "region.box", "region.image_index", "region.box_patches"}),
}
WITHOUT_MIM = {"woMIM", "X2-VLM†"}
PARTS = {"text": but("BEiTv2†"), "vision": but("RoBERTa†"), "fusion": but("RoBERTa†", "BEiTv2†"), "vision_proj": but("RoBERTa†", "BEiTv2†"),
         "text_proj": but("RoBERTa†", "BEiTv2†"), "sim": but("RoBERTa†", "BEiTv2†"), "tokens": {"BEiTv2†", "wBEiTv2 tokenizer", "Multi-task"}}


def built(job, *changes) -> Run:
    """A job's run as it starts, its encoders and batches small."""
    encoders = job.recipe.checked.config["encoders"]
    small = [f"encoders.{name}.{line}" for name, lines in SMALL.items() if name in encoders for line in lines]
    return Run(recipes.load(job.recipe.path, [*job.begun, *small, "streams.*.batch_size=8", "train.precision=fp32", "train.workers=0",
                                              f"train.seed={job.trained}", *changes], missing_files=False, library=str(ours.folder())))


@pytest.fixture(scope="module")
def jobs(tmp_path_factory):
    table = read(str(FOLDER / "table5_tiny.yaml"), str(ours.folder()))
    return Jobs(dataclasses.replace(table, output=str(tmp_path_factory.mktemp("shared"))), str(FOLDER), library=str(ours.folder()))


@pytest.fixture(scope="module")
def starts(jobs):
    """{start: its weights}, which lie where its job leaves them: as another seed draws them, the tokenizer's encoder from contrast's."""
    found = {}
    for name in ("text", "contrast", "codes"):
        job = jobs.pretrained("starts", name, 1)
        found[name] = {key: value.clone() for key, value in built(job, "train.seed=7").model.state_dict().items()}
        job.folder.mkdir(parents=True)
        save_file(found[name], str(job.folder / "model.safetensors"))
    return found


@pytest.fixture(scope="module")
def runs(jobs, starts):
    """{column: its run with seed 1, as it starts}."""
    return {name: built(jobs.pretrained("columns", name, 1)) for name in COLUMNS}


def held(batch) -> dict:
    """{field.part: what a batch holds of it}."""
    return {f"{name}.{part.name}": value for name, field in batch.fields.items() for part in dataclasses.fields(field)
            if (value := getattr(field, part.name)) is not None}


def same(one, other) -> bool:
    return torch.equal(one, other) if isinstance(one, torch.Tensor) else one == other


@pytest.mark.parametrize("stream", STREAMS)
def test_a_streams_batches_are_the_same_in_all_columns_that_have_it(stream, runs):
    columns, some = STREAMS[stream]
    assert {name for name, run in runs.items() if stream in run.recipe.streams} == columns
    for visit in (0, 1, 5):
        full = held(runs["ALL"].batch(stream, visit))
        assert some <= full.keys()
        for name in columns - {"ALL"}:
            found = held(runs[name].batch(stream, visit))
            if name == "ALL again":
                assert not any(same(found[part], full[part]) for part in some & {"text.ids", "image.pixels", "text.masked_ids", "image.patch_mask"})
                continue
            assert full.keys() - found.keys() == ({"image.patch_mask", "image.masked_count"} if stream == "match" and name in WITHOUT_MIM else set())
            other = {part for part in found if not same(found[part], full[part])}
            if name == "Shuffled captions" and stream not in ("text", "image"):
                assert "image.pixels" in other and all(part.startswith("image.") for part in other)
            else:
                assert not other, name


def test_batches_are_of_the_same_size_but_for_one(jobs):
    """docs/ablation.md says of BEiTv2†: other batches of pictures, of which it sees the same in the same order."""
    sizes = {name: {stream: block.batch_size for stream, block in jobs.pretrained("columns", name, 1).recipe.checked.streams.items()}
             for name in COLUMNS}
    assert sizes["ALL"] == {"text": 64, "image": 24, "pairs": 64, "match": 48, "region": 192} and sizes["BEiTv2†"] == {"image": 64}
    assert all(sizes[name].items() <= sizes["ALL"].items() for name in but("BEiTv2†"))


def test_the_column_of_other_batches_sees_the_same_pictures_in_the_same_order(jobs, starts):
    full, other = (built(jobs.pretrained("columns", name, 1), f"streams.image.batch_size={size}") for name, size in (("ALL", 24), ("BEiTv2†", 64)))
    first = [one for visit in (0, 1, 2) for one in full.batch("image", visit).image.image_id]
    drawn = other.batch("image").image.image_id
    assert sorted(set(first[:48]) - set(drawn)) == [] and len(set(drawn) - set(first)) == 0


def test_shared_parts_start_alike_and_from_the_same_starts(jobs, runs, starts):
    text = jobs.pretrained("starts", "text", 1)
    assert {name for name in COLUMNS if text in jobs.pretrained("columns", name, 1).after} == PARTS["text"]
    assert jobs.pretrained("starts", "text", 2) is not text
    states, first = {name: run.model.state_dict() for name, run in runs.items()}, {}
    for part, columns in PARTS.items():
        assert {name for name, state in states.items() if any(key.startswith(f"encoders.{part}.") for key in state)} == columns
    for name, state in states.items():
        for key, value in state.items():
            begun = next((starts[start] for start, part in (("text", "encoders.text."), ("codes", "encoders.tokens.")) if key.startswith(part)), None)
            if begun is not None:
                assert torch.equal(value, begun[key]), (name, key)
            elif name != "ALL again":
                other = first.setdefault((key, value.shape), value)
                assert torch.equal(value, other), (name, key)
    full, again = states["ALL"], states["ALL again"]
    drawn = {key for key in full if not torch.equal(full[key], again[key])}
    assert {key.split(".")[1] for key in drawn} >= {"vision", "fusion"} and not any(key.startswith("encoders.text.") for key in drawn)
