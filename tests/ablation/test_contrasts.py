"""Contrasts of a table: what its YAML may ask, what it answers with any of its cells there, and how often it answers wrongly."""

import json
import random

import pytest
import toy_table
from commands import tool
from latex import columns_of
from xtoolkit.ablation import contrasts, results
from xtoolkit.ablation.contrasts import SEEDS
from xtoolkit.ablation.jobs import Jobs
from xtoolkit.ablation.runner import Runner
from xtoolkit.ablation.table import read
from xtoolkit.metrics.paired import MOST
from xtoolkit.registry import ConfigError

TABLE = """
output: FOLDER/out
seeds: [1, 2, 3]
recipe: long.yaml
columns:
  Plain:   {groups: [words]}
  Begun:   {set: [train.steps=2]}
  Further: {set: [train.steps=3]}
  Again:   {set: [train.steps=3], apart: 50}
rows:
  Short:  {recipe: long.yaml, metrics: {told: test.accuracy, other: test.other}, group: words}
  Longer: {recipe: long.yaml, metrics: {told: test.accuracy}, group: words, set: [evaluate.test.tokens=9]}
  Long:   {recipe: long.yaml, metrics: {told: test.accuracy}, group: sentences, set: [evaluate.test.tokens=13]}
reference: Further
contrasts:
  words: {groups: [words], better: Further, than: Plain}
  both:  {groups: [words, sentences], better: Further, than: Begun}
  more:  {groups: [sentences], better: Further, than: Begun, beyond: [Again, Begun], role: secondary}
  same:  {groups: [words], better: Further, than: Again, role: negative control}
  sure:  {groups: [words], better: Further, than: Begun, role: positive control}
"""


@pytest.fixture
def folder(tmp_path):
    toy_table.write(tmp_path)
    (tmp_path / "table.yaml").write_text(TABLE.replace("FOLDER", str(tmp_path)))
    return tmp_path


@pytest.mark.parametrize("change, line, said", [
    (("better: Further, than: Plain", "better: Futher, than: Plain"), 16, "no column `Futher`; did you mean `Further`?"),
    (("better: Further, than: Plain", "better: Further, than: Pain"), 16, "no column `Pain`; did you mean `Plain`?"),
    (("groups: [words], better: Further, than: Plain", "groups: [wrods], better: Further, than: Plain"), 16,
     "no row is of group `wrods`; did you mean `words`?"),
    (("words: {groups: [words]", "words: {groups: [words, sentences]"), 16,
     "no row of group `sentences` applies to column `Plain`, whose groups are words"),
    (("words: {groups: [words]", "words: {groups: []"), 16, "`groups` are empty: name those whose means are held, of sentences, words"),
    (("better: Further, than: Plain", "better: Further, than: Further"), 16, "`Further` is held against itself: name another column"),
    (("beyond: [Again, Begun]", "beyond: [Again]"), 18, "`beyond` must be two columns, [A, B] for A - B, not 1"),
    (("beyond: [Again, Begun]", "beyond: [Agin, Begun]"), 18, "no column `Agin`; did you mean `Again`?"),
    (("role: negative", "role: negativ"), 19, "`contrasts.same.role` of Table must be one of primary, secondary, negative control, positive control"),
    (("reference: Further", "reference: Furter"), 14, "no column `Furter`; did you mean `Further`?"),
    (("apart: 50", "apart: 1"), 9, "`Again` would draw as other columns with seed 2: choose an `apart` above 2"),
    (("apart: 50}", "apart: 50}\n  Third: {set: [train.steps=3], apart: 52}"), 10,
     "`Third` would draw as `Again`, which has the same recipe, with seed 53: choose an `apart` that is more than 2 from 50"),
    (("{set: [train.steps=3], apart", "{run: out, apart"), 9, "a run is taken as it is: leave out its recipe, set and apart"),
])
def test_mistakes(folder, change, line, said):
    path = folder / "table.yaml"
    assert path.read_text().count(change[0]) == 1
    path.write_text(path.read_text().replace(*change))
    with pytest.raises(ConfigError) as caught:
        read(str(path))
    assert said in str(caught.value) and f"{path}:{line}:" in str(caught.value)


# ---- what they answer ------------------------------------------------------------------------------------------------------
def made(folder, figures, seeds=(1, 2, 3)):
    """Leaves figures, {(column, row): one a seed}, and returns what the table then says."""
    (folder / "table.yaml").write_text(TABLE.replace("FOLDER", str(folder)).replace("[1, 2, 3]", str(list(seeds))))
    of = Jobs(read(str(folder / "table.yaml")), str(folder))
    results.write(of)  # before anything runs
    for (column, row), values in figures.items():
        for seed, value in zip(seeds, values):
            toy_table.fill(of.cell(column, row, "", seed), value)
    results.write(of)
    told = json.loads((folder / "out/table.json").read_text())
    return {one["name"]: one for one in told["contrasts"]}, told, (folder / "out/table.md").read_text()


CELLS = {("Plain", "Short"): [50, 51, 52], ("Plain", "Longer"): [60, 60, 60],
         ("Begun", "Short"): [51, 53, 53], ("Begun", "Longer"): [61, 60, 64], ("Begun", "Long"): [40, 41, 42],
         ("Further", "Short"): [53, 54, 55], ("Further", "Longer"): [63, 64, 65], ("Further", "Long"): [45, 43, 41],
         ("Again", "Short"): [52, 55, 54], ("Again", "Longer"): [63, 65, 64], ("Again", "Long"): [41, 44, 44]}


def test_contrasts_are_of_groups_seed_by_seed(folder):
    said, told, text = made(folder, CELLS)
    # words: means of both rows, (53 + 63 - 50 - 60) / 2 and so on; both: of words and sentences the mean.
    assert said["words"]["seeds"] == {"1": 3.0, "2": 3.5, "3": 4.0}
    assert said["both"]["seeds"] == {"1": (2 + 5) / 2, "2": (2.5 + 2) / 2, "3": (1.5 - 1) / 2}
    assert said["more"]["seeds"] == {"1": 5 - 1, "2": 2 - 3, "3": -1 - 2} and said["more"]["verdict"] is None is said["more"]["p"]
    # Of three seeds that agree p is 2 / 2^3, by Holm of the two primaries twice that; t of two degrees of freedom is 4.303.
    assert (said["words"]["p"], said["words"]["adjusted"], said["words"]["verdict"], said["words"]["needed"]) == (0.25, 0.5, "undecided", 7)
    assert said["more"]["needed"] is None
    assert said["words"]["low"] == pytest.approx(3.5 - 4.302653 * 0.5 / 3 ** 0.5, abs=1e-5)
    # Three seeds find nothing by sign flips, however large; by a t-interval 3.26 deviations, of 0.5 (scipy: nct.sf(t.ppf(0.975, 2), 2,
    # 3.26 * 3**0.5) is 0.80).
    assert (said["words"]["smallest"], said["words"]["found_by"]) == (pytest.approx(3.26 * 0.5, abs=0.005), "t-interval")
    assert "| 3 of 3 | 7 | 0.25 | 0.5 | undecided; too few seeds to decide | 1.63 by t-interval |" in text
    # A control has its own verdict, without the primaries' correction: six seeds could decide.
    assert (said["same"]["adjusted"], said["same"]["needed"], said["sure"]["p"]) == (1.0, 6, 0.25)
    assert "| same | negative control | +0.17" in text and "undecided, as it must be; too few seeds to decide |" in text
    assert "| sure | positive control | +2.00" in text and "| 6 | 0.25 | 0.25 | undecided; too few seeds to decide |" in text
    # Differences from the reference, and of a group the means of its rows.
    short = told["rows"][0]
    begun = short["differences"]["Begun"]["Further"]
    assert short["reference"] == "Further" and (begun["seeds"], begun["mean"]) == (3, pytest.approx(-5 / 3)) and "Further" not in short["differences"]
    # Every two columns have one, each pair once: Begun - Again is 51 - 52, 53 - 55, 53 - 54; t of two degrees of freedom is 4.303.
    assert {one: sorted(of) for one, of in short["differences"].items()} == {"Plain": ["Again", "Begun", "Further"], "Begun": ["Again", "Further"], "Again": ["Further"]}
    again = short["differences"]["Begun"]["Again"]
    assert (again["mean"], again["high"]) == (pytest.approx(-4 / 3), pytest.approx(-4 / 3 + 4.302653 / 3)) and again["samples"] is None
    words, = told["groups"]
    assert words["columns"]["Plain"]["values"] == {"1": 55.0, "2": 55.5, "3": 56.0} and words["differences"]["Plain"]["Further"]["mean"] == -3.5
    assert words["differences"]["Begun"]["Again"]["seeds"] == 3 and words["differences"]["Plain"]["Begun"]["mean"] == pytest.approx(55.5 - 57)
    assert "## words: differences from Further" in text and "| **words, mean** |  | -3.5 (-4.7 to -2.3) |" in text


def test_eight_seeds_that_agree_have_verdicts_and_contrasts_without_seeds_count_in_the_correction(folder):
    eight = range(1, 9)
    drawn = random.Random(1)
    figures = {key: [60 + drawn.random() for _ in eight] for key in CELLS if key[1] != "Long"}
    figures |= {key: [value - (8 if key[0] == "Plain" else 4 if key[0] == "Begun" else 0) for value in values] for key, values in figures.items()}
    said, _, text = made(folder, figures, eight)
    assert (said["words"]["verdict"], said["words"]["p"], said["words"]["adjusted"]) == ("better", 2 / 256, 4 / 256)
    assert said["both"]["seeds"] == {} and said["both"]["mean"] is said["both"]["p"] is said["both"]["verdict"] is None
    assert said["words"]["found_by"] == "sign flips" and f"{said['words']['smallest']:.2f} by sign flips |" in text
    assert said["sure"]["verdict"] == "better" and "better, as it must be |" in text and 0 < said["words"]["smallest"] < 2


def test_controls_that_fail_are_called_so(folder):
    eight = range(1, 9)
    figures = {(column, row): [value] * 8 for (column, value) in (("Plain", 50), ("Begun", 60), ("Further", 55), ("Again", 50))
               for row in ("Short", "Longer")}
    _, _, text = made(folder, figures, eight)
    assert "better: it must be undecided |" in text and "worse: it must be better |" in text


def test_a_positive_control_that_eight_seeds_do_not_show_is_called_so(folder):
    figures = {(column, row): values for row in ("Short", "Longer") for column, values in {
        "Plain": [50] * 8, "Begun": [50 + n % 2 for n in range(8)], "Further": [50 + (n + 1) % 2 for n in range(8)], "Again": [50] * 8}.items()}
    _, _, text = made(folder, figures, range(1, 9))
    assert "| sure | positive control | +0.00" in text and "undecided: it must be better |" in text


def test_a_verdict_waits_for_all_seeds_and_a_figure_that_is_none_is_missed(folder):
    figures = {key: list(values) for key, values in CELLS.items()}
    figures["Plain", "Short"][1] = None  # what a record says of NaN
    said, told, text = made(folder, figures)
    assert set(said["words"]["seeds"]) == {"1", "3"} and said["words"]["verdict"] is said["words"]["p"] is None
    assert "| 2 of 3 | 7 |  |  | when all seeds are there |" in text and "51.0 ± 1.4 (2 of 3: no finite figure)" in text


@pytest.mark.parametrize("counts, found", [("first", 50.0), ("mean", 35.0), ("each", 100 / 3)])
def test_what_a_row_of_several_metrics_counts_for(folder, counts, found):
    (folder / "table.yaml").write_text(TABLE.replace("FOLDER", str(folder)).replace("group: words}\n  Longer", f"group: words, counts: {counts}}}\n  Longer"))
    table = read(str(folder / "table.yaml"))
    cell = lambda value: {"Plain": {"values": {1: value}, "states": {}}}
    lines = [{"task": "Short", "metric": "told", "columns": cell(60.0)}, {"task": "Short", "metric": "other", "columns": cell(0.0)},
             {"task": "Longer", "metric": "told", "columns": cell(40.0)}, {"task": "Long", "metric": "told", "columns": cell(7.0)}]
    assert contrasts.means(table, lines, "words", "Plain") == {1: pytest.approx(found)}


def test_equal_seeds_have_no_interval(folder):
    """Two seeds with the same difference would have one of width 0, as though it were certain."""
    said, told, text = made(folder, {key: values[:1] * 2 for key, values in CELLS.items()}, (1, 2))
    assert (said["words"]["mean"], said["words"]["low"], said["words"]["equal"], said["words"]["smallest"]) == (3.0, None, True, None)
    assert "| words | primary | +3.00 (no interval: equal in all seeds) | 2 of 2 | 7 |" in text and "too few seeds to decide | – |" in text
    one = told["rows"][0]["differences"]["Begun"]["Further"]
    assert (one["mean"], one["low"], one["high"]) == (-2, None, None) and "| Short | told | -3.0 (no interval: equal in all seeds) | -2.0 (no" in text
    assert contrasts.over_seeds([3.0]) == {"mean": 3.0, "low": None, "high": None, "equal": False}


def test_contrasts_are_drawn_by_samples_and_seeds_too(folder):
    """In Short Further is right where Plain is wrong, in Longer they answer alike."""
    of = Jobs(read(str(folder / "table.yaml")), str(folder))
    answers = {"Plain": ([1, 0, 0, 0], [1, 1, 0, 0]), "Further": ([1, 1, 1, 0], [1, 1, 0, 0]), "Begun": ([1, 0, 0, 0], [1, 0, 1, 0]), "Again": ([1, 1, 0, 0], [1, 1, 0, 0])}
    for column, rows in answers.items():
        for row, scores in zip(("Short", "Longer"), rows):
            for seed in (1, 2, 3):
                toy_table.fill(of.cell(column, row, "", seed), 25.0 * sum(scores) + seed * (column == "Further"), scores)
    lines = [line for name in of.table.rows for line in results._lines(of, name)]
    group, = contrasts.compare(of, lines, samples=True)
    words = next(one for one in contrasts.asked(of, lines, samples=True) if one["name"] == "words")
    # Half of what Short says: its four samples differ by 0, 1, 1, 0, so their mean of four draws has the error 50 / 4^0.5.
    assert words["samples"]["value"] == 25.0 and words["samples"]["error"] == pytest.approx(25 / 2, rel=0.06)
    mean = group["differences"]["Plain"]["Further"]["samples"]
    assert [mean[key] for key in ("value", "error", "low", "high")] == pytest.approx(
        [-words["samples"]["value"], words["samples"]["error"], -words["samples"]["high"], -words["samples"]["low"]])
    assert lines[0]["differences"]["Plain"]["Further"]["samples"]["value"] == -50 and lines[0]["differences"]["Plain"]["Begun"]["samples"] is None
    told = {"contrasts": [words], "rows": [], "groups": [], "seeds": 3}
    (_, heading, (row,)), = contrasts.tables(told)
    assert heading[2:4] == ["difference", "by samples and seeds"] and row[3].startswith("+25.00 (+")


def test_any_cells_may_be_there(folder):
    drawn, keys = random.Random(4), [(column, row, seed) for column, row in CELLS for seed in (1, 2, 3)]
    drawn.shuffle(keys)
    (folder / "table.yaml").write_text(TABLE.replace("FOLDER", str(folder)))
    for number, (column, row, seed) in enumerate(keys):
        of = Jobs(read(str(folder / "table.yaml")), str(folder))
        if not number:
            assert "| words | primary | – | 0 of 3 | 7 |  |  | when all seeds are there | – |" in results.write(of)
        toy_table.fill(of.cell(column, row, "", seed), CELLS[column, row][seed - 1])
        if number % 5 == 0 or number == len(keys) - 1:
            results.write(Jobs(of.table, str(folder)))
            told = json.loads((folder / "out/table.json").read_text())
            for one in told["contrasts"]:
                assert one["verdict"] is None or len(one["seeds"]) == 3
                assert len(one["seeds"]) == 0 or one["mean"] == pytest.approx(sum(one["seeds"].values()) / len(one["seeds"]))
            assert columns_of((folder / "out/table.tex").read_text())
    assert [len(one["seeds"]) for one in told["contrasts"]] == [3] * 5


def test_more_seeds_than_can_be_flipped_are_refused_before_anything_runs(folder, capsys):
    seeds = [str(seed) for seed in range(1, SEEDS + 2)]
    assert tool("ablate").main(["--config", str(folder / "table.yaml"), "--seeds", *seeds]) == 2
    assert "21 seeds: a table with contrasts has 20 at most" in capsys.readouterr().err
    assert SEEDS == MOST


def test_what_is_asked_when_figures_are_there_is_called_so(folder):
    made(folder, CELLS)
    changed = TABLE.replace("FOLDER", str(folder)).replace("both:  {groups: [words, sentences]", "both:  {groups: [sentences]")
    (folder / "table.yaml").write_text(changed + "  new:   {groups: [words], better: Further, than: Begun}\n")
    text = results.write(Jobs(read(str(folder / "table.yaml")), str(folder)))
    assert [line.split(" | ")[0] for line in text.splitlines() if "; asked, or its rows or seeds, when figures were there" in line] == ["| both", "| new"]


@pytest.mark.parametrize("change", [("[1, 2, 3]", "[1, 2, 3, 4]"), ("group: words}", "group: words, counts: mean}")])
def test_rows_and_seeds_that_come_later_than_figures_are_called_so_even_when_the_figures_are_stale(folder, change):
    made(folder, CELLS)
    table = (folder / "table.yaml").read_text()
    assert change[0] in table
    (folder / "long.yaml").write_text((folder / "long.yaml").read_text().replace("lr: 1e-3", "lr: 2e-3"))
    for text in (table.replace(*change), table.replace(*change)):  # the first look, without any figure, must not be kept as what was asked
        (folder / "table.yaml").write_text(text)
        results.write(Jobs(read(str(folder / "table.yaml")), str(folder)))
    assert all(one["late"] for one in json.loads((folder / "out/table.json").read_text())["contrasts"] if "words" in one["groups"])
    (folder / "table.yaml").write_text(table)
    results.write(Jobs(read(str(folder / "table.yaml")), str(folder)))
    assert not any(one["late"] for one in json.loads((folder / "out/table.json").read_text())["contrasts"])


def test_a_seed_that_another_column_draws_as_is_refused_when_the_command_line_adds_it(folder, capsys):
    words = ["--config", str(folder / "table.yaml"), "--dry-run", "--seeds"]
    assert tool("ablate").main([*words, "51"]) == 2
    assert "--seeds: `Again` would draw as other columns with seed 51: choose an `apart` above 50" in capsys.readouterr().err
    assert tool("ablate").main([*words, "4"]) == 0


def test_what_is_asked_is_kept_before_the_first_job(folder, monkeypatch):
    """Of a column that is a run the first job is a row already, and its figure there when the table is first written after it."""
    kept = []
    monkeypatch.setattr(Runner, "run", lambda self: kept.append((folder / "out/asked.json").is_file()) or [])
    assert tool("ablate").main(["--config", str(folder / "table.yaml"), "--yes"]) == 0 and kept == [True]
