"""`xtoolkit compare`: two runs made up here, every figure of which is known; and what is no run."""

import json

import pytest

from commands import tool
from html_page import Page

RECIPE = '''\
encoders:
  text: {type: RoBERTa, width: 16}
losses:
  mlm: {type: MLM, feature: text@mask_text}%s
streams:
  words: {batch_size: 4, losses: {mlm: 1}}
optim: {lr: %s}
train: {steps: 40, output: %s, seed: 1}
'''


def a_run(folder, lr="1e-3", more="", last=1.0, accuracy=60.0, end=40):
    (folder / "evaluations").mkdir(parents=True)
    (folder / "config.yaml").write_text(RECIPE % (more, lr, folder))
    lines = [{"step": step, "loss": last + 40 - step, "words.mlm": last + 40 - step, "words.mlm.guess": 7.0, "seconds": 2.0 * step,
              "test.accuracy": accuracy - 40 + step} for step in range(4, end + 1, 4)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (folder / "evaluations/test.json").write_text(json.dumps({
        "step": end, "time": "2026-11-22T01:08:00+00:00", "metrics": {"accuracy": accuracy, "f1": 50.0, "accuracy_low": 1.0},
        "floor": {"accuracy": 50.0}, "table": [["", "accuracy"], [["all", "1"]]], "headlines": {"accuracy": "Right, %"}, "figures": []}))
    (folder / "environment.json").write_text(json.dumps({"command": str(folder), "git": "abc", "versions": {"torch": f"2.{end}"}}))
    return folder


def rows(text, title):
    """The table under a title, as lists of cells."""
    lines = text.split(f"{title}\n")[1].split("\n\n")[0].splitlines()
    return [[cell.strip() for cell in line.split("  ") if cell.strip()] for line in lines[2:]]


def test_what_differs_and_by_how_much(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    one, two = a_run(tmp_path / "a/run"), a_run(tmp_path / "b/run", "2e-3", "\n  itc: {type: ITC, sim: null}", .25, 57.5, end=36)
    assert tool("compare").main([str(one), str(two)]) == 0
    said = capsys.readouterr().out
    assert rows(said, "recipe") == [["losses.itc", "–", "{type: ITC, sim: null}"], ["optim.lr", "0.001", "0.002"]]
    assert rows(said, "environment") == [["versions.torch", "2.40", "2.36"]]
    # The losses at their last steps: 1 + 0, and 0.25 + 4.
    assert rows(said, "results, and differences to the first") == [
        ["test.accuracy", "50.0", "60.0", "57.5 (-2.5)"], ["loss", "–", "1.00", "4.25 (+3.250)"],
        ["words.mlm", "–", "1.00", "4.25 (+3.250)"]]
    assert "b: 36 of 40 steps" in said and said.rstrip().endswith("curves: compare.html")
    page = Page((tmp_path / "compare.html").read_text())
    assert not page.open and not page.fetched
    assert {"test.f1", "57.5 (-2.5)", "words.mlm", "50.0 (+0.0)", "0.002"} <= set(page.texts)
    assert "accuracy_low" not in "".join(page.texts)
    panel = (tmp_path / "compare.html").read_text().split("<figcaption>words.mlm")[1].split("</figure>")[0]
    assert panel.count("<polyline class=\"line") == 2


def test_runs_of_one_recipe(tmp_path, capsys):
    a_run(tmp_path / "a"), a_run(tmp_path / "b")
    assert tool("compare").main([str(tmp_path / "a"), str(tmp_path / "b"), "--out", str(tmp_path / "x.html")]) == 0
    assert "recipe: no key differs" in capsys.readouterr().out
    assert "Nothing but where they write." in (tmp_path / "x.html").read_text()


@pytest.mark.parametrize("arguments, said", [
    ("a", "a: one run alone; name another to compare it with"),
    ("a gone", "gone: no such run"),
    ("a a", "a: the same run as a: name each once"),
    ("a file", "file: a file; name the folder of a run"),
    ("a empty", "empty holds no run: it has no config.yaml; name the `train.output` of a run"),
    ("a fresh", "fresh: no results yet: it has neither logged a step nor evaluated anything"),
    ("a cut", "cut: a record in it is damaged: Expecting value"),
    ("a b --out gone/x.html", "--out: gone/x.html: no folder gone"),
    ("a b --out empty", "--out: empty: a folder; name a file"),
])
def test_what_cannot_be_compared(tmp_path, capsys, monkeypatch, arguments, said):
    monkeypatch.chdir(tmp_path)
    a_run(tmp_path / "a"), a_run(tmp_path / "b"), a_run(tmp_path / "fresh"), a_run(tmp_path / "cut")
    (tmp_path / "empty").mkdir(), (tmp_path / "file").touch()
    (tmp_path / "fresh/metrics.jsonl").unlink(), (tmp_path / "fresh/evaluations/test.json").unlink()
    (tmp_path / "cut/evaluations/test.json").write_text('{"step": ')
    assert tool("compare").main(arguments.split()) == 2
    told = capsys.readouterr()
    assert said in told.err and told.err.startswith("1 problem,") and not told.out and not (tmp_path / "compare.html").exists()
