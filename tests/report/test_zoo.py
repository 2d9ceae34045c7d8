"""MODEL_ZOO.md and the other pages with tables of the zoo: as recipes, papers' figures and recorded results say, or stale."""

import json
import re
import shutil
from pathlib import Path

import pytest

from xtoolkit.cli import recipes, zoo
from xtoolkit.plan import make_plan

ROOT = Path(__file__).resolve().parents[2]
COUNTS = json.loads((ROOT / "docs/results/counts.json").read_text())
PAGES = ("MODEL_ZOO.md", "README.md", "docs/tasks.md", "projects/xfm/README.md", "plugins/singles/README.md")
STEPS = 480  # of tiny.yaml


def test_every_table_is_as_recipes_and_records_say(capsys):
    assert zoo.main(["--check"]) == 0, f"{capsys.readouterr().out}run `xtoolkit zoo`, and read what it changes"


def test_every_recipe_that_pretrains_is_in_it():
    others = ("/finetune/", "/ablations/")
    ours = [name for name in recipes.runnable() if not any(folder in name for folder in others)]
    assert sorted(COUNTS) == ours, "name them in projects/xfm/zoo.yaml, run `xtoolkit zoo`"


def test_counts_are_those_of_the_plans_on_record():
    """The other tests hold these records against the recipes; here no plan is made but the two cheap ones that have none."""
    for name, counted in COUNTS.items():
        file = ROOT / f"tests/plugins/plans/{name.removeprefix('xfm/baselines/').replace('/', '_')[:-5]}.plan.txt"
        file = ROOT / "tests/ablation/plans/all.plan.txt" if name == "xfm/base.yaml" else file
        plan = file.read_text() if file.is_file() else str(make_plan(recipes.read(name, missing_files=False)))
        assert file.is_file() or name in ("xfm/tiny.yaml", "xfm/tiny_text.yaml")
        assert f"trainable parameters: {counted['parameters']['trainable']:,};" in plan
        parts = {part: int(n.replace(",", "")) for part, n in re.findall(r"^ {4}(\w+) +([\d,]+)$", plan, re.M)}
        assert parts == counted["parameters"]["parts"]
        rows = re.findall(r"^stream (\w+): .*; (\d+) a batch.*; ([\d,.]+) GFLOPs a row$", plan, re.M)
        assert rows == [(s["name"], str(s["batch_size"]), f"{s['gflops']:,.2f}") for s in counted["streams"]]


def test_a_step_is_what_its_streams_cost_by_how_often_they_take_part():
    """tiny.yaml: text in one step of four, image of eight; pairs until step 240, match in one of eight, then in all; region in
    all, then in every second."""
    counted = COUNTS["xfm/tiny.yaml"]
    visits = {"text": STEPS / 4, "image": STEPS / 8, "pairs": 240, "match": 240 / 8 + 240, "region": 240 + 240 / 2}
    wanted = sum(visits[s["name"]] * s["batch_size"] * s["gflops"] for s in counted["streams"]) / STEPS
    assert f"| `xfm/tiny.yaml` | **a step** |  |  |  | **{wanted:,.0f}** |" in (ROOT / "MODEL_ZOO.md").read_text()


def test_what_a_run_took_is_told_beside_what_its_rows_cost():
    """X2-VLM†'s log counts 7,680 texts, 15,360 and 12,960 pairs and 69,120 regions, in 388 s of the processor."""
    rows, streams = {"text": 7680, "pairs": 15360, "match": 12960, "region": 69120}, COUNTS["xfm/baselines/tiny/x2vlm.yaml"]["streams"]
    work = sum(rows[s["name"]] * s["gflops"] for s in streams) / sum(rows.values())
    page = (ROOT / "MODEL_ZOO.md").read_text()
    assert f"| 480 | 42 | 403 s | 388 | {sum(rows.values()) / 388:.0f} | {work:.2f} |" in page
    assert re.search(r"^\| from nothing, an hour .* \| – \| – \| – \| one of 2 CPU cores", page, re.M), "of which no log is kept"


@pytest.mark.parametrize("page, repeated", [("docs/benchmarks/train.md", ["pairs", "region"]), ("plugins/x2vlm/README.md", ["pairs"])])
def test_figures_that_other_pages_repeat_are_those_that_are_counted(page, repeated):
    text = (ROOT / page).read_text()
    costs = [s["gflops"] for name in ("xfm/baselines/x2vlm.yaml", "xfm/base.yaml") for s in COUNTS[name]["streams"] if s["name"] in repeated]
    assert len(costs) == 2 * len(repeated) and all(f" {cost:.2f}" in text for cost in costs)


# ---- a copy that is changed -----------------------------------------------------------------------------------------------
@pytest.fixture
def copy(tmp_path, monkeypatch):
    """The pages, recipes and records in a folder of their own."""
    shutil.copytree(ROOT / "projects/xfm", tmp_path / "projects/xfm")
    shutil.copytree(ROOT / "docs/results", tmp_path / "docs/results", ignore=shutil.ignore_patterns("table5*"))
    for page in PAGES:
        (tmp_path / page).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / page, tmp_path / page)
    monkeypatch.setattr(recipes, "folder", lambda: tmp_path / "projects")
    monkeypatch.chdir(tmp_path)  # where recipes are not looked for first
    return tmp_path


def change(file: Path, old: str, new: str):
    text = file.read_text()
    assert text.count(old) >= 1, old
    file.write_text(text.replace(old, new, 1))


def test_a_recipe_that_changes_makes_it_stale_until_it_is_counted_anew(copy, capsys):
    assert zoo.main(["--check"]) == 0
    change(copy / "projects/xfm/baselines/tiny/vlbeit_model.yaml", "layers: 6, ", "layers: 5, ")
    assert zoo.main(["--check"]) == 1
    said = capsys.readouterr().out
    assert "counts.json: stale, these recipes have changed: xfm/baselines/tiny/vlbeit.yaml; `xtoolkit zoo` counts them anew" in said
    assert zoo.main([]) == 0
    said = capsys.readouterr().out
    assert said == "counting xfm/baselines/tiny/vlbeit.yaml\nMODEL_ZOO.md: written\ndocs/results/counts.json: written\n"
    assert zoo.main(["--check"]) == 0
    was, now = (json.loads(text)["xfm/baselines/tiny/vlbeit.yaml"]["parameters"]["trainable"]
                for text in ((ROOT / "docs/results/counts.json").read_text(), (copy / "docs/results/counts.json").read_text()))
    page = (copy / "MODEL_ZOO.md").read_text()
    assert now < was and f"{now:,}" in page and f"{was:,}" not in page


@pytest.mark.parametrize("changes, stale", [
    ([("projects/xfm/tiny.yaml", "# The recipe", "# This is the recipe"), ("MODEL_ZOO.md", "# Models", "# Our models, `<!-- zoo: ours -->`")], []),
    ([("MODEL_ZOO.md", "| 365,898,873 |", "| 365,898,874 |"), ("README.md", "52.3 ± 2.0", "53.2 ± 2.0")],
     ["MODEL_ZOO.md", "README.md"]),
    ([("docs/results/runs.yaml", "value: 2.27", "value: 2.26")], ["MODEL_ZOO.md", "plugins/singles/README.md"]),
    ([("docs/results/runs.yaml", "value: 39.8", "value: 39.9")], ["docs/tasks.md"]),
    ([("projects/xfm/zoo.yaml", "QQP: [91.8, 91.7]", "QQP: [91.8, 91.9]")], ["MODEL_ZOO.md"])])
def test_figures_are_stale_where_they_differ_and_prose_never_is(copy, capsys, changes, stale):
    for one in changes:
        change(copy / one[0], *one[1:])
    assert zoo.main(["--check"]) == bool(stale)
    assert re.findall(r"^(\S+): stale; `xtoolkit zoo` writes its tables$", capsys.readouterr().out, re.M) == stale


@pytest.mark.parametrize("changes", [
    [("projects/xfm/zoo.yaml", "xfm/baselines/tiny/flava.yaml", "xfm/baselines/tiny/flaav.yaml",
      "zoo.yaml:17: xfm/baselines/tiny/flaav.yaml: no such recipe; did you mean `xfm/baselines/tiny/flava.yaml`?"),
     ("projects/xfm/zoo.yaml", "QQP: [91.8, 91.7]", "QQP: [91.8]", "1 figures, and 2 columns; null where there is none"),
     ("projects/xfm/zoo.yaml", "runs: [demo]", "runs: [dmeo]", "no run `dmeo` in docs/results/runs.yaml; did you mean `demo`?"),
     ("projects/xfm/zoo.yaml", "BBP: region.bbp", "BBP: region.bpb",
      "no run of this table has `region.bpb`; did you mean `region.bbp`?"),
     ("docs/results/runs.yaml", "boxes.accuracy:     ", "boxse.accuracy:     ",
      "no run has `boxse.accuracy`; did you mean `boxes.accuracy`?"),
     ("docs/results/runs.yaml", "words.loss:                 ", "wrods.loss:                 ",
      "xfm/tiny.yaml has no evaluation and no stream for `wrods.loss`"),
     ("docs/results/runs.yaml", "recipe: xfm/finetune/tiny/ve.yaml", "recipe: xfm/finetune/tiny/vee.yaml",
      "no such recipe; did you mean `xfm/finetune/tiny/ve.yaml`?"),
     ("docs/results/runs.yaml", "[1.09, 1.00,", "[1.00,", "`value` must be one figure for each step of `at`: a list of 5")],
    [("projects/xfm/zoo.yaml", "page: plugins/flava", "pgae: plugins/flava",
      "unknown key `pgae` of `systems.FLAVA` of Zoo; did you mean `page`?")],
    [("projects/xfm/zoo.yaml", "runs.yaml\n", "run.yaml\n", "docs/results/run.yaml: cannot be read: No such file or directory")],
    [("docs/results/runs.yaml", "seeds: [42, 1, 2]", "seeds: three", "`runs.demo.seeds` of Recorded must be a list of integers, not 'three' (str)")],
    [("docs/results/counts.json", '"key"', "key", "delete it: all is counted anew")],
    [("MODEL_ZOO.md", "zoo: counts FLAVA", "zoo: counts FLAVOR", "no table `counts FLAVOR`; did you mean `counts FLAVA`?"),
     ("MODEL_ZOO.md", "zoo: counts X-FM -->", "counts X-FM -->",
      "MODEL_ZOO.md: each `<!-- zoo: NAME -->` on a line of its own needs its"),
     ("README.md", "<!-- /zoo -->", "", "README.md: each `<!-- zoo: NAME -->`"),
     ("projects/xfm/zoo.yaml", "docs/tasks.md, ", "docs/task.md, ", "task.md: no such page; the zoo fills the pages of a checkout")],
    [("MODEL_ZOO.md", "zoo: counts FLAVA -->", "zoo: counts X-FM -->",
      "no page has the table `counts FLAVA`: put `<!-- zoo: counts FLAVA -->`")]], ids=lambda changes: changes[0][3][:30])
def test_mistakes_are_one_clear_error(copy, capsys, changes):
    for file, old, new, _ in changes:
        change(copy / file, old, new)
    assert zoo.main(["--check"]) == 2
    said = capsys.readouterr().err
    assert [one[3] for one in changes if one[3] not in said] == [], said
    assert said.startswith(f"{len(changes)} problem"), said


def test_an_installed_package_has_no_pages(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(recipes, "folder", lambda: tmp_path / "xtoolkit/recipes")
    assert zoo.main([]) == 2
    assert "the zoo writes pages of a checkout: tools/model_zoo.py there" in capsys.readouterr().err
