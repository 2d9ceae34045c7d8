"""A table's CSV, LaTeX and page, with any of its cells there."""

import csv
import json
import random
import re

import pytest
import toy_table
from html_page import Page
from latex import columns_of
from toy_table import fill
from xtoolkit import plan
from xtoolkit.ablation import pages, pages_html, results, work
from xtoolkit.ablation.jobs import Jobs, write_done
from xtoolkit.ablation.table import read

TABLE = '''
output: FOLDER/out
seeds: [1, 2]
recipe: long.yaml
columns:
  RoBERTa†: {groups: ["50 % & more_#1"]}
  "[1] *both*": {set: [train.steps=2]}
rows:
  "[a] Short": {recipe: long.yaml, metrics: {told: test.accuracy, "R@1, ~a^b": test.other}, group: "50 % & more_#1"}
  "{Long}":    {recipe: long.yaml, metrics: {told: test.accuracy}, group: "50 % & more_#1", controls: [off]}
  Alone:       {recipe: long.yaml, metrics: {told: test.accuracy}}
controls: {off: {set: [init=null]}}
'''


@pytest.fixture
def jobs(tmp_path):
    toy_table.write(tmp_path)
    (tmp_path / "table.yaml").write_text(TABLE.replace("FOLDER", str(tmp_path)))
    return lambda: Jobs(read(str(tmp_path / "table.yaml")), str(tmp_path), threads=1)


def test_any_cells_may_be_there(jobs):
    drawn, todo = random.Random(3), [job for job in jobs().all() if job.row]
    drawn.shuffle(todo)
    for number, job in enumerate([None, *todo]):
        if job is not None:
            fill(job, 60.0 + number, [1, 0, number % 2])
        of = jobs()
        text = results.write(of)
        folder = todo[0].folder.parents[4]
        tex = (folder / "table.tex").read_text()
        assert len(columns_of(tex)) == sum(line.startswith("|") and not line.startswith("| ---") for line in text.splitlines())
        with open(folder / "table.csv", newline="") as file:
            rows = list(csv.DictReader(file))
        there = [row for row in rows if row["value"]]
        # Two metrics of the first row, one of the others; the second line has the control.
        assert len(rows) == 2 * (2 * 2 + 2 * 2) + 2 and len(there) == number + sum(one.row == "[a] Short" for one in todo[:number])
        assert {row["state"] for row in there} <= {"finished"} and all(row["state"] == "missing" for row in rows if not row["value"])
    assert {row["column"] for row in rows} == {"RoBERTa†", "[1] *both*"} and {row["control"] for row in rows} == {"", "off"}
    own = [row for row in rows if row["metric"] == "R@1, ~a^b" and row["seed"] == "2"]
    assert [float(row["value"]) for row in own] == [of.cell(row["column"], "[a] Short", "", 2).value("test.other") for row in own]
    assert r"{[}a] Short & R@1, \textasciitilde{}a\textasciicircum{}b & -- &" in tex and r"RoBERTa\dag{}" in tex
    assert r"\textbf{50 \% \& more\_\#1, mean}" in tex and tex.count("\\midrule") == 5


def test_rows_that_do_not_apply_to_a_single_column_are_left_out(jobs, tmp_path):
    text = (tmp_path / "table.yaml").read_text()
    (tmp_path / "table.yaml").write_text(text.replace('  "[1] *both*": {set: [train.steps=2]}\n', ""))
    shown = results.write(jobs(), page=True)
    assert "| {Long} |" in shown and "| Alone |" not in shown


def test_notes_stand_with_the_table_and_change_no_key(jobs, tmp_path):
    keys = [job.key for job in jobs().all()]
    text = (tmp_path / "table.yaml").read_text()
    noted = text.replace('{set: [train.steps=2]}', '{set: [train.steps=2], note: "nothing is stopped: 100 %"}')
    (tmp_path / "table.yaml").write_text(f"note: |\n  †: on the\n  same data\n{noted}")
    of = jobs()
    said = results.write(of, page=True)
    assert [job.key for job in of.all()] == keys
    lines = ["†: on the same data", "[1] *both*: nothing is stopped: 100 %"]
    assert said.endswith("|\n\n" + "\n".join(f"- {line}" for line in lines)) and said in (tmp_path / "out/table.md").read_text()
    assert json.loads((tmp_path / "out/table.json").read_text())["notes"] == lines
    tex = (tmp_path / "out/table.tex").read_text()
    assert tex.endswith(r"\par\noindent{\footnotesize {[}1] {*}both{*}: nothing is stopped: 100 \%\par}" + "\n") and columns_of(tex)
    html = (tmp_path / "out/table.html").read_text()
    assert all(f'<li class="lead">{line}</li>' in html for line in lines)


def test_what_is_missing_of_a_cell_is_small():
    assert r"61.2 $\pm$ 0.8 {\scriptsize (2 of 3: missing)} \\" in pages.as_tex([("a", ["task", "x"], [["y", "61.2 ± 0.8 (2 of 3: missing)"]])])


def test_columns_of_figures_run_right_and_all_others_left():
    rows = [["[a] x", "R@1", "primary", "+1.2 (-0.5 to +2.9)", "3 of 3", "9.77e-04", "undecided", "–"], ["20 news", "5-way", "", "–", "2 of 3", "", "–", "0.31"]]
    tex = pages.as_tex([("a", [*"abcdefgh"], rows), ("none yet", ["task", "x"], [])])
    assert "{lr}" in pages.as_tex([("a", ["task", "x"], [["y", "67.0* (1 of 3)"], ["z", "–* (0 of 3)"]])])
    assert "\\begin{tabular}{lllrrrlr}\n" in tex and "\\begin{tabular}{lr}\n" in tex and columns_of(tex) == [8, 8, 8, 2]


# ---- the page -------------------------------------------------------------------------------------------------------------
def pretrain(job, steps, rows=4):
    """Leaves what pretraining would: so many logged steps of a falling loss."""
    job.folder.mkdir(parents=True)
    (job.folder / "config.yaml").write_text(json.dumps(job.recipe.checked.config))
    (job.folder / "metrics.jsonl").write_text("".join(json.dumps(
        {"step": step, "loss": 9 / step, "train.mlm": 9 / step, "samples.train": rows * step}) + "\n" for step in range(1, steps + 1)))
    write_done(job, 1.0)


def section(text, title):
    return text.split(f"<h2>{title}</h2>")[1].split("<h2>")[0]


def rows_of(html):
    """Rows of all tables in a part of a page, cells as text."""
    return [[re.sub(r"<[^>]+>", "", cell) for cell in re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row, re.S)]
            for row in re.findall(r"<tr.*?>(.*?)</tr>", html, re.S)]


def test_the_page(jobs, monkeypatch):
    of = jobs()
    results.write(of, page=True)
    page = of.table.output + "/table.html"
    empty = open(page).read()
    assert not Page(empty).open and "0 of 14 of their values there" in empty and "<h2>Curves" not in empty and "<h2>Seeds" not in empty
    first, second = of.table.columns
    # The second column tells the last sample, the first the other two: of both seeds.
    for seed, (a, b) in {1: (60.0, 63.0), 2: (60.0, 62.0)}.items():
        fill(of.cell(first, "[a] Short", "", seed), a, [1, 1, 0])
        fill(of.cell(second, "[a] Short", "", seed), b, [0, 1, 1])
    pretrain(of.pretrained("columns", first, 1), 3)
    pretrain(of.pretrained("columns", second, 1), 2000)
    pretrain(of.pretrained("columns", second, 2), 7)  # of the first column there is no such seed: curves are of the other
    of = jobs()
    results.write(of, page=True)
    text = open(page).read()
    read_back = Page(text)
    assert not read_back.open and not read_back.fetched and "<script" not in text and "http" not in text
    assert len(text) < 150_000, "curves of 2,000 points are thinned out"
    differences = rows_of(section(text, "Differences"))
    assert differences[0] == ["task", "metric", "RoBERTa†"]
    # Of -3 and -2: Student's t of one degree of freedom is 12.706, times 0.5. The scores differ by -1, 0 and 1: their mean by 0.
    assert differences[1:4] == [["[a] Short", "told", "-2.5 (-8.9 to +3.9)"], ["[a] Short", "by samples and seeds", "+0.0 (-100.0 to +100.0)"],
                                ["[a] Short", "R@1, ~a^b", "-1.2 (-4.4 to +1.9)"]]
    assert text.index("<h2>Differences") < text.index("<h2>Values") < text.index("<h2>Seeds") < text.index("<h2>Curves at equal steps")
    assert "<b>50 % &amp; more_#1, mean</b>" in text
    seeds = section(text, "Seeds")
    assert seeds.count("<svg") == 2 and seeds.count("<circle") == 8 and "<title>seed 2: 62.0</title>" in seeds
    for part in ("Curves at equal steps", "Curves at equal work"):
        assert section(text, part).count('<polyline class="line') == 2
        assert "with seed 1, from" in section(text, part) or "of seed 1, over" in section(text, part)
    samples = rows_of(section(text, "Samples that differ most"))
    assert samples == [["sample", "score of RoBERTa†", "of [1] *both*", "both", "RoBERTa†", "[1] *both*"],
                       ["s0", "1", "0", "told word 0", "", ""], ["s2", "0", "1", "told word 2", "", ""]]
    # Work is the plan's GFLOPs a row times the rows seen; a plan that is known is not made again.
    gflops = plan.make_plan(of.pretrained("columns", first, 1).recipe.checked).streams[0].gflops
    monkeypatch.setattr(plan, "make_plan", None)
    seed, runs = pages_html._runs(of)
    _, steps, unit = pages_html._work(of, runs)
    assert unit == "GFLOPs" and steps[first] == {step: pytest.approx(4 * step * gflops) for step in (1, 2, 3)}
    assert len(steps[second]) == 2000 and seed == 1
    told = json.loads(open(of.table.output + "/table.json").read())
    assert told["work"] == {first: {"its own": pytest.approx(4 * 3 * gflops / 1000)}, second: {"its own": pytest.approx(4 * 2000 * gflops / 1000)}}
    # What makes the page too large is left off, samples first, and it says so.
    monkeypatch.setattr(pages_html, "MOST", len(text.encode()) - 1)
    results.write(of, page=True)
    smaller = open(page).read()
    assert len(smaller.encode()) < len(text.encode()) and "<h2>Samples" not in smaller and "<h2>Curves at equal work" in smaller
    assert "MB: 1 of 1 pairs of columns with their samples.</p>" in smaller
    monkeypatch.setattr(pages_html, "MOST", 0)
    results.write(of, page=True)
    least = open(page).read()
    assert "1 of 1 kinds of curves at equal steps; 2 of 2 figures seed by seed.</p>" in least and "<svg" not in least and "<h2>Values" in least


def test_what_training_took_counts_what_a_column_starts_from_by_name(tmp_path, monkeypatch):
    """A column from a start that has one itself, and from weights that were there."""
    toy_table.write(tmp_path)
    (tmp_path / "table.yaml").write_text(f'''
output: {tmp_path}/out
seeds: [1, 2]
recipe: long.yaml
starts: {{first: {{}}, then: {{set: ["init=<first>"]}}}}
columns: {{alone: {{}}, begun: {{set: ["init=<then>"]}}, there: {{run: {tmp_path}/long.yaml}}}}
rows: {{Short: {{recipe: long.yaml, metrics: {{told: test.accuracy}}}}}}
''')
    monkeypatch.setattr(work, "_planned", lambda job: {"train": 500.0})
    make = lambda: Jobs(read(str(tmp_path / "table.yaml")), str(tmp_path), threads=1)
    of = make()
    for steps, job in enumerate([of.pretrained("starts", "first", 2), of.pretrained("starts", "then", 2), of.pretrained("columns", "begun", 2)], 1):
        pretrain(job, steps)
    pretrain(of.pretrained("columns", "alone", 1), 5)
    assert work.of_columns(make(), plan=False) == {"alone": {"its own": None}, "begun": {"its own": None, "start: then": None, "start: first": None}}
    found = work.of_columns(make(), plan=True)  # so many steps of four rows
    assert found == {"alone": {"its own": 10.0}, "begun": {"its own": 6.0, "start: then": 4.0, "start: first": 2.0}} == work.of_columns(make(), plan=False)
    (_, heading, rows), = work.tables({"work": found})
    assert heading == ["training", "alone", "begun"]
    assert rows == [["with all starts", "10.0", "12.0"], ["its own", "10.0", "6.00"], ["start: then", "", "4.00"], ["start: first", "", "2.00"]]
    assert work.tables({"work": {"begun": {"its own": 6.0, "start: then": None}}})[0][2][0] == ["with all starts", "–"] and not work.tables({"work": {}})


def test_a_single_column_beside_its_controls(tmp_path):
    toy_table.write(tmp_path)
    (tmp_path / "table.yaml").write_text(f'''
output: {tmp_path}/out
seeds: [1]
columns: {{mine: {{run: {tmp_path}/long.yaml}}}}
rows: {{Short: {{recipe: long.yaml, metrics: {{told: test.accuracy}}, controls: [off]}}}}
controls: {{off: {{set: [init=null]}}}}
''')
    of = Jobs(read(str(tmp_path / "table.yaml")), str(tmp_path), threads=1)
    fill(of.cell("mine", "Short", "", 1), 60.0, [1, 0])
    fill(of.cell("mine", "Short", "off", 1), 50.0, [0, 0])
    results.write(of, page=True)
    text = (tmp_path / "out/table.html").read_text()
    assert not Page(text).open and "<h2>Differences" not in text and section(text, "Seeds").count("<circle") == 2
    assert rows_of(section(text, "Samples that differ most")) == [["sample", "score of mine", "of off", "both", "mine", "off"],
                                                                  ["s0", "1", "0", "told word 0", "", ""]]
