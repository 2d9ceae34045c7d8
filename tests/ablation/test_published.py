"""Figures that others have published: those of the shipped file, checked against its own means; a table of their own; mistakes in a file."""

from statistics import fmean

import pytest

from xtoolkit.ablation import pages, published
from xtoolkit.ablation.results import _others
from xtoolkit.ablation.table import read
from xtoolkit.cli import recipes
from xtoolkit.registry import ConfigError

FOLDER = recipes.folder() / "xfm/ablations"
SMALL = '''
title: Theirs
source: a page
columns: [A, B, C]
groups:
  words: {columns: [A, B], rows: {one: [50.0, 52.5], two: [70.0, 69.0]}, means: {both: {of: [one, two]}, printed: {printed: [60.1, 60.7]}}}
  pictures: {columns: [B, C], rows: {three: [1.0, 2.0]}}
contrasts: [[B, A], [C, B]]
notes: [a note]
'''


def small(tmp_path, change=("", "")):
    assert change[0] in SMALL
    (tmp_path / "published.yaml").write_text(SMALL.replace(*change))
    return published.read(str(tmp_path / "published.yaml"))


def test_printed_means_are_those_of_their_rows():
    found = published.read(str(FOLDER / "table5_published.yaml"))
    off = [(name, column) for group in found.groups.values() for name, mean in group.means.items() if mean.printed
           for i, (column, value) in enumerate(zip(group.columns, mean.printed))
           if abs(fmean(values[i] for values in group.rows.values()) - value) > 0.0501]
    assert off == [("Language Avg.", "S-MLM")], "which a note of the file says"
    vision = found.groups["vision"].figures()
    assert vision["Vision Avg., as printed: all eight rows"]["ALL"] == 88.2 and len(found.groups["vision"].rows) == 8
    assert round(vision["the six rows that Table 2 averages"]["ALL"], 1) == 89.9
    # What the paper's text says of ALL and Multi-task, section 4.4.
    means = [group.figures()[next(iter(group.means))] for group in found.groups.values()]
    assert [round(mean["ALL"] - mean["Multi-task"], 1) for mean in means] == [0.9, 1.7, 1.6]
    assert sum(len(group.rows) * len(group.columns) for group in found.groups.values()) == 8 * 6 + 8 * 5 + 10 * 8


@pytest.mark.parametrize("name", ["table5.yaml", "table5_tiny.yaml"])
def test_its_columns_are_the_tables(name):
    table = read(str(FOLDER / name), str(recipes.folder()))
    found = published.read(table.published)
    controls = ["ALL again", "Shuffled captions"]
    assert [*found.columns, *controls] == list(table.columns)
    # What the paper's differences are asked of is what ours are.
    assert found.contrasts == [[one.better, one.than] for one in table.contrasts.values() if one.role == "primary"]
    for title, group in found.groups.items():
        assert set(group.columns) == {one for one, column in table.columns.items()
                                      if one not in controls and (column.groups is None or title in column.groups)}


def test_it_stands_apart_differences_first(tmp_path):
    apart, known = small(tmp_path).tables()
    assert apart == ("Theirs: differences", ["task", "B − A", "C − B"], [
        ["one", "+2.5", ""], ["two", "-1.0", ""], ["**both**", "+0.8", ""], ["**printed**", "+0.6", ""], ["three", "", "+1.0"]])
    assert known[1:] == (["task", "A", "B", "C"], [
        ["one", "50.0", "52.5", ""], ["two", "70.0", "69.0", ""], ["**both**", "60.0", "60.8", ""], ["**printed**", "60.1", "60.7", ""],
        ["three", "", "1.0", "2.0"]])
    text = _others(small(tmp_path))
    assert "Source: a page." in text and text.endswith("- a note\n") and text.index("| one | +2.5 |") < text.index("| one | 50.0 |")
    assert r"\textbf{both} & +0.8 &  \\" in pages.as_tex([apart])


@pytest.mark.parametrize("change, said", [
    (("[50.0, 52.5]", "[50.0]"), "published.yaml:6: 1 figures for 2 columns, A, B"),
    (("of: [one, two]", "of: [one, tow]"), "no row `tow` in this group; did you mean `two`?"),
    (("both: {of: [one, two]}", "both: {}"), "a mean is `printed` in its source, or computed `of` rows: name one of the two"),
    (("[C, B]", "[C, D]"), "published.yaml:8: no column `D`"),
    (("columns: [B, C]", "columns: [B, D]"), "published.yaml:7: no column `D`"),
    (("title: Theirs", "titel: Theirs"), "unknown key `titel` of Published; did you mean `title`?"),
])
def test_mistakes_of_a_file(tmp_path, change, said):
    with pytest.raises(ConfigError) as caught:
        small(tmp_path, change)
    assert said in str(caught.value)


def test_a_file_that_is_not_there(tmp_path):
    (tmp_path / "table.yaml").write_text("output: o\npublished: gone.yaml\ncolumns: {A: {run: x}}\nrows: {r: {recipe: r.yaml, metrics: {a: t.x}}}\n")
    (tmp_path / "r.yaml").write_text("evaluate: {t: {type: X}}\n")
    with pytest.raises(ConfigError, match="table.yaml:2: gone.yaml: no such file beside the table"):
        read(str(tmp_path / "table.yaml"))
