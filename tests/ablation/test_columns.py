"""Table 5's columns: which gradient reaches which encoder, by measurement on a real batch, and what each plans at base size."""

import os
from copy import deepcopy
from functools import cache
from pathlib import Path

import pytest
import torch

from xtoolkit import recipe as recipes
from xtoolkit.ablation import keys
from xtoolkit.ablation.jobs import Jobs
from xtoolkit.ablation.table import read, slug
from xtoolkit.cli import recipes as ours
from xtoolkit.engine.run import Run
from xtoolkit.plan import make_plan

FOLDER = ours.folder() / "xfm/ablations"
SMALL = ["encoders.vision.width=32", "encoders.vision.layers=1", "encoders.vision.heads=2", "streams.*.batch_size=8", "train.precision=fp32",
         "train.workers=0"]
TEXT = ["encoders.text.width=32", "encoders.text.layers=1", "encoders.text.heads=2", "encoders.fusion.layers=1", "encoders.fusion.heads=2",
        "encoders.vision_proj.dim=32", "encoders.text_proj.dim=32", "schedule.every.*=1", "init=null"]
V, T, F = "vision", "text", "fusion"
CONTRAST = {"itc": {V, T}}
JOINT = {"mlm": {T}, "mim": {V}, **CONTRAST}
STOPPED, THROUGH = {V, F}, {V, T, F}
# {column: {loss: the encoders that it trains}}, from the paper's text (5, "Ablation study") and X-FM's 3.2.
REACHES = {
    "RoBERTa†": {"mlm": {T}},
    "S-MLM": {**JOINT, "itm": THROUGH, "imlm": STOPPED, "bbp": THROUGH},
    "S-ITM": {**JOINT, "itm": STOPPED, "imlm": THROUGH, "bbp": STOPPED},
    "wostop": {**JOINT, "itm": THROUGH, "imlm": THROUGH, "bbp": THROUGH},
    "BEiTv2†": {"mim": {V}},
    "woMIM": {"mlm": {T}, **CONTRAST, "itm": STOPPED, "imlm": STOPPED, "bbp": STOPPED},
    "wBEiTv2 tokenizer": {**JOINT, "itm": STOPPED, "imlm": STOPPED, "bbp": STOPPED},
    "X2-VLM†": {"mlm": {T}, **CONTRAST, "itm": THROUGH, "imlm": THROUGH, "bbp": THROUGH},
    "Multi-task": {**JOINT, "itm": THROUGH, "imlm": THROUGH, "bbp": THROUGH},
    "ALL": {**JOINT, "itm": STOPPED, "imlm": STOPPED, "bbp": STOPPED},
}
CONTROLS = ["ALL again", "Shuffled captions"]


@cache
def jobs(name):
    return Jobs(read(str(FOLDER / name), str(ours.folder())), str(FOLDER), library=str(ours.folder()))


def column(jobs, name, *changes):
    """The checked recipe of a column, with changes."""
    job = jobs.pretrained("columns", name, 1)
    lines = [line for line in job.recipe.lines if "<0>" not in line or "tokens={" in line]  # weights of starts are not asked for
    lines = [line.replace("<0>", "null").replace("<1>", "null") for line in lines]
    return recipes.load(job.recipe.path, [*lines, *changes], missing_files=False, library=str(ours.folder()))


def reached(run) -> dict[str, set]:
    """{loss: encoders that its gradient reaches} over one batch of each stream; projections and similarity are left out."""
    found, parameters = {}, [(name, p) for name, p in run.model.named_parameters() if p.requires_grad]
    for _, parameter in parameters:
        if not parameter.any():  # a head that starts at 0 lets nothing through before its first step
            torch.nn.init.normal_(parameter, std=0.02, generator=torch.Generator().manual_seed(0))
    for stream in run.recipe.streams:
        for loss, value in run.losses(stream, run.batch(stream)).items():
            if not value.requires_grad:
                continue
            gradients = torch.autograd.grad(value, [p for _, p in parameters], retain_graph=True, allow_unused=True)
            of = {name.split(".")[1] for (name, _), g in zip(parameters, gradients)
                  if name.startswith("encoders.") and g is not None and g.abs().max() > 0}
            found.setdefault(loss, set()).update(of & {V, T, F})
    return found


@pytest.mark.parametrize("name", REACHES)
def test_the_gradient_reaches_what_the_column_says(name):
    coded = ["encoders.tokens.init=null", "encoders.tokens.width=32", "encoders.tokens.layers=1", "encoders.tokens.heads=2"]
    of = jobs("table5_tiny.yaml")
    with_codes = "tokens" in column(of, name).config["encoders"] and name != "RoBERTa†"
    changes = [*SMALL, *([] if name == "BEiTv2†" else TEXT), *(coded if with_codes else [])]
    if name in ("RoBERTa†", "BEiTv2†"):
        changes = [line for line in changes if "every" not in line]
    assert reached(Run(column(of, name, *changes))) == REACHES[name]


@pytest.mark.parametrize("name", REACHES)
def test_the_plan_at_base_size_is_the_one_on_record(name):
    """After a change that is meant: PLANS=write python -m pytest tests/ablation, and read the difference."""
    file = Path(__file__).parent / "plans" / f"{slug(name)}.plan.txt"
    found = str(make_plan(jobs("table5.yaml").pretrained("columns", name, 1).recipe.checked)) + "\n"
    if os.environ.get("PLANS") == "write":
        file.write_text(found)
    assert found == file.read_text()


def test_no_two_columns_plan_the_same_and_both_sizes_have_the_same_columns():
    files = [file.read_text() for file in (Path(__file__).parent / "plans").glob("*.plan.txt")]
    assert len(set(files)) == len(files) == len(REACHES)
    assert list(jobs("table5.yaml").table.columns) == list(jobs("table5_tiny.yaml").table.columns) == [*REACHES, *CONTROLS]


@pytest.mark.parametrize("name", ["table5.yaml", "table5_tiny.yaml"])
def test_every_recipe_of_the_table_can_be_read_and_evaluates_what_the_row_asks(name):
    of = jobs(name)
    for job in of.all():
        asked = {m.partition(".")[0] for m in of.table.rows[job.row].metrics.values()} if job.row else set()
        assert asked <= set(job.recipe.checked.evaluate), str(job)


@pytest.mark.parametrize("name", ["table5.yaml", "table5_tiny.yaml"])
def test_controls_are_all_but_for_what_they_change(name):
    of = jobs(name)
    full, again, shuffled = (of.pretrained("columns", one, 2) for one in ("ALL", *CONTROLS))
    assert again.recipe is full.recipe and again.after == full.after and (full.trained, again.trained) == (2, 502)
    assert again.key != full.key and again.trained != of.cell("ALL", "CoLA" if name == "table5.yaml" else "VQA", "", 2).trained
    assert str(make_plan(shuffled.recipe.checked)) == str(make_plan(full.recipe.checked))
    plain, streams = (deepcopy(one.recipe.checked.config["streams"]) for one in (full, shuffled))
    on = {stream for stream, block in streams.items() if block["data"].pop("shuffle_pictures", False)}
    assert on == {stream for stream, block in streams.items() if block["data"]["type"] in ("Pairs", "Regions")}
    assert not any(block["data"].pop("shuffle_pictures", False) for block in plain.values()) and plain == streams


def test_what_is_imported_is_told_from_the_text_and_not_from_what_runs(tmp_path):
    for name, text in (("one.py", "def f():\n    from .two import g\n    from xtoolkit.metrics import bootstrap\n    import json\n"), ("two.py", "")):
        (tmp_path / name).write_text(text)
    assert set(keys.imported(tmp_path / "one.py")) == {tmp_path / "two.py", keys.PACKAGE / "metrics/__init__.py",
                                                       keys.PACKAGE / "metrics/bootstrap.py"}
