"""The forecast of a table: what it counts, what it says, when it asks, and how near it comes to what a run takes."""

import json
from collections import Counter

import pytest
import toy_table
from commands import tool
from xtoolkit import recipe as recipes
from xtoolkit.ablation.forecast import FOLDER, Forecast, span
from xtoolkit.ablation.jobs import DONE, Jobs, write_done
from xtoolkit.ablation.measure import Costs, chosen_steps, counted
from xtoolkit.ablation.table import read
from xtoolkit.cli import recipes as ours
from xtoolkit.engine.schedule import Schedule

TABLE = '''
output: FOLDER/out
seeds: [1, 2, 3]
recipe: long.yaml
columns:
  Short: {}
  Long:  {set: [train.steps=2]}
rows:
  Told: {recipe: long.yaml, metrics: {told: test.accuracy}}
'''


@pytest.fixture
def folder(tmp_path):
    toy_table.write(tmp_path)
    (tmp_path / "table.yaml").write_text(TABLE.replace("FOLDER", str(tmp_path)))
    return tmp_path


def jobs(folder):
    return Jobs(read(str(folder / "table.yaml")), str(folder))


def measured(folder, seconds) -> None:
    """Writes what would be measured: {job's name: seconds}."""
    for job in jobs(folder).all():
        found = {"parts": {"start": [1, 10, 12], "pass": [100, seconds[job.row or job.column], 0.1]}, "memory": 10**9, "checkpoint": 3 * 10**6,
                 "checkpoints": 2, "outputs": 10**6, "samples": {"test": 200}, "notes": []}
        path = folder / "out" / FOLDER / f"{job.recipe.key[:16]}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(found))


def test_steps_are_counted_as_the_schedule_has_them_and_each_pass_is_measured_several_times():
    train = recipes.load(ours.find("xfm/ablations/tiny.yaml"), ["init=null"], missing_files=False, library=str(ours.folder()))
    schedule = Schedule(train.schedule, 1, train.streams, 300)
    counts = counted(schedule, train.train)
    # Written out: text every 4th of 300 steps; pairs in the first 150; match every 8th of these, then in all; region in all, then in
    # every 2nd; an update a step. Guesses are asked of the first batch of a stream in each 20 steps.
    of = lambda stream: counts[f"pass of {stream}"] + counts[f"pass of {stream}, with guesses"]
    assert {name: of(name) for name in train.streams} == {"text": 75, "image": 38, "pairs": 150, "match": 19 + 150, "region": 150 + 75}
    assert counts["pass of text, with guesses"] == 15 and counts["pass of pairs, with guesses"] == 8
    assert counts["update"] == 300 and counts["log"] == 15 and counts["step"] == 285
    steps = chosen_steps(schedule, train.train, counts)
    met = Counter(stream for step in steps for group in schedule.groups(step) for stream in group)
    assert steps == sorted(set(steps)) and len(steps) < 20 and all(met[stream] >= 4 for stream in train.streams), steps


def test_the_first_of_several_measurements_counts_once():
    costs = Costs()
    costs.counts |= {"pass": 100}
    for spent in ((5.0, 6.0), (1.0, 1.0), (3.0, 3.0)):
        costs.add("pass", spent)
    assert costs.found() == {"pass": [100, 2.0, 2.0], "pass, the first time": [1, 3.0, 4.0]}


def test_it_sums_over_jobs_and_finished_seeds_say_what_they_took(folder, capsys):
    measured(folder, {"Short": 0.1, "Long": 0.4, "Told": 0.2})
    one = Forecast(jobs(folder), jobs(folder).all(), 1, say=None)
    assert one.processor == pytest.approx(3 * (20 + 50 + 2 * 30)) and one.clock == pytest.approx(12 * 22)
    # Two columns of a seed side by side, then their rows.
    assert Forecast(jobs(folder), jobs(folder).all(), 2, say=None).clock == pytest.approx(6 * 22)
    # What is pretrained keeps two checkpoints; one more is there while one is written, and a row's until it ends.
    assert one.disk == (12 * 10**6 + 6 * 6 * 10**6, 9 * 10**6)
    first = jobs(folder).pretrained("columns", "Short", 1)
    first.folder.mkdir(parents=True)
    write_done(first, 7.0, 5.0)
    after = Forecast(jobs(folder), jobs(folder).all(), 1, say=None)
    assert after.processor == pytest.approx(2 * 5 + 3 * (50 + 2 * 30)) and after.clock == pytest.approx(2 * 7 + 9 * 22)
    write_done(first, 7.0)  # begun by a call that was killed: it took more
    assert Forecast(jobs(folder), jobs(folder).all(), 1, say=None).processor == pytest.approx(2 * 20 + 3 * (50 + 2 * 30))
    assert tool("ablate").main(["--config", str(folder / "table.yaml"), "--forecast"]) == 0
    said = capsys.readouterr().out
    assert "| Long | 3 | 50 s | 22 s | 1 GB | 7 MB |" in said and "11 jobs to run: 6.17 min of processors" in said
    assert not list(folder.glob(f"out/*/told/*/*/*/{DONE}")), "nothing is run"


def test_it_asks_before_anything_longer_than_an_hour(folder, capsys, monkeypatch):
    measured(folder, {"Short": 0.1, "Long": 0.1, "Told": 0.1})
    for path in (folder / "out" / FOLDER).glob("*.json"):
        path.write_text(path.read_text().replace("[1, 10, 12]", "[1, 10, 1200]"))
    main, words = tool("ablate").main, ["--config", str(folder / "table.yaml"), "--jobs", "2"]
    monkeypatch.setattr("sys.stdin.isatty", lambda: False, raising=False)
    assert main([*words[:2]]) == 2
    assert "the jobs would take 4.03 h: --yes runs what takes longer than an hour" in capsys.readouterr().err
    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    monkeypatch.setattr("builtins.input", lambda asked: "n")
    assert main(words[:2]) == 2 and "not run" in capsys.readouterr().err
    assert not list((folder / "out").rglob(DONE))


@pytest.mark.parametrize("seconds, said", [(0.25, "0.25 s"), (40, "40 s"), (725, "12.1 min"), (7200, "2 h")])
def test_spans(seconds, said):
    assert span(seconds) == said
