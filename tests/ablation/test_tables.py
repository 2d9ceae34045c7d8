"""Every table that ships: its recipes can be read, its rows have their metrics, and no two columns train the same."""

import json
import random
from functools import cache
from pathlib import Path

import pytest

from xtoolkit.ablation import contrasts
from xtoolkit.ablation.jobs import Job, Jobs
from xtoolkit.ablation.table import START, read
from xtoolkit.cli import recipes as ours
from xtoolkit.cli.main import main
from xtoolkit.metrics import glue
from xtoolkit.recipe.folder import evaluated

FOLDER = ours.folder() / "xfm/ablations"
TABLES = [path.name for path in sorted(FOLDER.glob("*.yaml")) if "\nrows:" in path.read_text() and "\noutput:" in path.read_text()]
SIZES = {"mim_targets_tiny.yaml": 6, "vlbeit_tiny.yaml": 4, "flava_tiny.yaml": 6, "mim_targets.yaml": 7, "vlbeit.yaml": 4, "flava.yaml": 7,
         "table5.yaml": 12, "table5_tiny.yaml": 12}  # with two controls


@cache
def jobs(name):
    return Jobs(read(str(FOLDER / name), str(ours.folder())), str(FOLDER), library=str(ours.folder()))


@pytest.mark.parametrize("name", TABLES)
def test_every_recipe_of_a_table_can_be_read_and_evaluates_what_its_rows_ask(name):
    of = jobs(name)
    for job in of.all(seeds=of.table.seeds[:1]):
        asked = {metric.partition(".")[0] for metric in of.table.rows[job.row].metrics.values()} if job.row else set()
        assert asked <= set(job.recipe.checked.evaluate), str(job)


def test_these_tables_ship():
    assert {name: len(jobs(name).table.columns) for name in TABLES} == SIZES
    for name in TABLES:
        big = name.replace("_tiny", "")
        assert set(jobs(name).table.columns) <= set(jobs(big).table.columns), "a small table has the columns of its own at full size"


@pytest.mark.parametrize("name", [name for name in TABLES if not name.startswith("table5")])
def test_no_two_columns_train_the_same(name):
    """By what they resolve to: teachers of three kinds plan alike, their passes are the same."""
    of, found = jobs(name), {}
    for column in of.table.columns:
        config = of.pretrained("columns", column, 1).recipe.checked.config
        asked = json.dumps({kind: block for kind, block in config.items() if kind != "train"}, sort_keys=True)
        assert found.setdefault(asked, column) == column


# {column: {stream: losses}}, from the papers' text: VL-BEiT 3.4, FLAVA 4 ("Effective global contrastive loss" and what follows).
PAIRS = {"contrast", "itm", "mmm_image", "mmm_text"}
ALONE = {"text": {"mlm"}, "image": {"mim"}}
TRAINS = {
    "vlbeit": {"[1] MIM and MLM": ALONE, "[2] MVLM": {"pairs": {"mvlm", "mvim"}}, "[3] all": {**ALONE, "pairs": {"mvlm", "mvim"}},
               "standard Transformer": {**ALONE, "pairs": {"mvlm", "mvim"}}},
    "flava": {"MIM": {"pairs": {"mim"}}, "MLM": {"text": {"mlm"}}, "FLAVA_C": {"pairs": {"contrast"}}, "FLAVA_C, local": {"pairs": {"contrast"}},
              "FLAVA_MM": {"pairs": PAIRS}, "w/o unimodal init": {**ALONE, "pairs": PAIRS}, "FLAVA": {**ALONE, "pairs": PAIRS}},
}


@pytest.mark.parametrize("name", ["vlbeit.yaml", "vlbeit_tiny.yaml", "flava.yaml", "flava_tiny.yaml"])
def test_each_column_trains_the_losses_of_the_paper_on_its_streams(name):
    of = jobs(name)
    for column in of.table.columns:
        streams = of.pretrained("columns", column, 1).recipe.checked.streams
        found = {stream: set(block.losses) for stream, block in streams.items() if block.losses}
        assert found == TRAINS[name.partition("_")[0].partition(".")[0]][column], column


# ---- means over rows --------------------------------------------------------------------------------------------------------
def mean(table, column, group, figures) -> float:
    """What a column has as a group's mean where its metrics are ``figures``, in the order of the table."""
    figures = iter(figures)
    lines = [{"task": name, "group": group, "metric": title, "columns": {column: {"values": {1: next(figures)}}}}
             for name, row in table.rows.items() if row.group == group for title in row.metrics]
    assert next(figures, None) is None
    return contrasts.means(table, lines, group, column)[1]


def name_of(row, metric) -> str:
    """What ``glue`` calls a metric of a row: that of ../finetune/mnli.yaml's `val` is `mnli_matched.accuracy`."""
    task, (evaluation, kind) = Path(row.recipe).stem.split("_")[-1], metric.split(".")
    return f"{task}{'' if task != 'mnli' else '_mismatched' if evaluation == 'val_mismatched' else '_matched'}.{kind}"


@pytest.mark.parametrize("name, column, tasks", [("table5.yaml", "ALL", glue.XFM), ("flava.yaml", "FLAVA", glue.FLAVA)])
def test_the_mean_of_language_is_the_papers_average_of_glue(name, column, tasks):
    table, drawn = jobs(name).table, random.Random(3)
    names = [name_of(row, metric) for row in table.rows.values() if row.group == "language" for metric in row.metrics.values()]
    assert set(names) == {metric for metrics in tasks.values() for metric in metrics} and len(set(names)) == len(names)
    figures = {metric: 100 * drawn.random() for metric in names}
    assert mean(table, column, "language", figures.values()) == pytest.approx(glue.average(glue.task_scores(figures, tasks)), abs=1e-9)


# FLAVA, Table 4, column 6: figures in the order of our rows, MNLI, MRPC and QQP (means of two there) twice; the printed averages.
FLAVA = {"language": (78.19, (80.33, 80.33, 50.65, 84.16, 84.16, 88.74, 88.74, 90.94, 87.31, 57.76, 85.67)),
         "vision": (79.44, (75.54, 88.51, 92.87, 77.68, 70.87, 47.31, 77.29, 84.82, 95.74, 96.37, 98.42, 98.89, 97.26, 79.46, 89.04, 85.31,
                            83.32, 79.66, 61.12, 82.17, 57.11, 28.92)),
         "vision-language": (69.92, (72.49, 78.89, 76.09, 67.70, 94.00, 65.22, 89.38, 42.74, 76.76, 38.38, 67.47))}


@pytest.mark.parametrize("group", FLAVA)
def test_the_means_of_flavas_groups_are_the_printed_ones(group):
    printed, figures = FLAVA[group]
    assert mean(jobs("flava.yaml").table, "FLAVA", group, figures) == pytest.approx(printed, abs=0.0101)


# ---- a step of each -------------------------------------------------------------------------------------------------------------
BLOCKS, STEM = ("width=32", "layers=1", "heads=2"), "stem=[8, 8, 8]"
SMALL = {"backbone": (*BLOCKS, STEM), "tokens": (*BLOCKS, STEM, "init=null"), "image_layers": (*BLOCKS, STEM), "text_layers": BLOCKS,
         "vision": (*BLOCKS, STEM), "text": BLOCKS, "fusion": ("layers=1", "heads=2"), "vision_proj": ("dim=32",), "text_proj": ("dim=32",)}


def small(job: Job, folder, *more) -> int:
    """Trains a job, shrunk to one step, into a folder; its starts are left out."""
    encoders = job.recipe.checked.config["encoders"]
    lines = [START.sub("null", line) for line in job.recipe.lines if not (line.startswith("init") and "<" in line)]
    lines += [f"encoders.{name}.{line}" for name, keys in SMALL.items() if name in encoders and "shares" not in encoders[name]
              and encoders[name]["type"] != "FLAVANorm" for line in keys]
    lines += ["streams.*.batch_size=8", "train.steps=1", "train.checkpoint_every=1", "train.log_every=1"] if job.recipe.checked.streams else []
    lines += ["schedule.every=null"] if "every" in (job.recipe.checked.config.get("schedule") or {}) else []
    return main(["train", "--config", job.recipe.path, *lines, *more, "train.device=cpu", "train.workers=0", f"train.output={folder}"])


def toy(name, column, row, folder):
    """A column's pretraining and a row from it, a step each: the row's metrics."""
    of = jobs(name)
    cell = of.cell(column, row, "", 1)
    assert small(of.pretrained("columns", column, 1), folder / "column", "evaluate=null") == 0
    val = ["evaluate.val=null", "train.keep_best=null"] if "val" in cell.recipe.checked.evaluate else []
    assert small(cell, folder / "row", f"init={folder / 'column'}", *val) == 0
    metrics = of.table.rows[row].metrics.values()
    return [evaluated(folder / "row")[metric.partition(".")[0]]["metrics"][metric.partition(".")[2]] for metric in metrics]


def test_where_a_column_has_another_encoder_its_rows_build_that_one(tmp_path, capsys):
    assert all(0 <= value <= 100 for value in toy("vlbeit_tiny.yaml", "standard Transformer", "NLVR2-like", tmp_path))
    of = jobs("vlbeit_tiny.yaml")
    assert "encoders.backbone.experts=false" not in of.cell("[3] all", "NLVR2-like", "", 1).recipe.lines


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in TABLES if name.endswith("_tiny.yaml") and not name.startswith("table5")])
def test_each_column_takes_a_step_and_one_of_its_rows_is_judged(name, tmp_path, capsys):
    of = jobs(name)
    for number, column in enumerate(of.table.columns):
        rows = [row for row, block in of.table.rows.items() if of.table.applies(block, of.table.columns[column])]
        row = rows[number % len(rows)]
        assert all(value is not None for value in toy(name, column, row, tmp_path / str(number))), (column, row)
