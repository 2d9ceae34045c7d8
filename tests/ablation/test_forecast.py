"""The forecast of a table: what it counts, what it says, when it asks, and how near it comes to what a run takes."""

import json
from collections import Counter
from types import SimpleNamespace

import numpy as np
import pytest
import toy_table
from commands import children, tool
from xtoolkit import recipe as recipes
from xtoolkit.ablation import keys
from xtoolkit.ablation.detectable import seen, smallest
from xtoolkit.ablation.forecast import FOLDER, Forecast, span
from xtoolkit.ablation.jobs import DONE, Jobs, write_done
from xtoolkit.ablation.measure import Costs, chosen_steps, counted, scored
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
def folder(tmp_path, monkeypatch):
    """On one core, as ``jobs`` has one thread: the command shares out what cores there are, and threads are in a key."""
    monkeypatch.setattr("os.sched_getaffinity", lambda process: {0})
    toy_table.write(tmp_path)
    (tmp_path / "table.yaml").write_text(TABLE.replace("FOLDER", str(tmp_path)))
    return tmp_path


def jobs(folder):
    return Jobs(read(str(folder / "table.yaml")), str(folder))


def measured(folder, seconds) -> None:
    """Writes what would be measured: {job's name: seconds}."""
    for job in jobs(folder).all():
        found = {"parts": {"start": [1, 10, 12], "pass": [100, seconds[job.row or job.column], 0.1]}, "memory": 10**9, "checkpoint": 3 * 10**6,
                 "checkpoints": 2, "outputs": 10**6, "samples": {"test": {"accuracy": 200}}, "notes": []}
        told = job.recipe.checked.train
        told = [job.recipe.key, told.checkpoint_every, told.log_every, told.workers, told.device, keys.engine()]
        path = folder / "out" / FOLDER / f"{keys.digest(json.dumps(told, default=str))[:16]}.json"
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
    toy_table.saved(first)
    write_done(first, 7.0, 5.0)
    after = Forecast(jobs(folder), jobs(folder).all(), 1, say=None)
    assert after.processor == pytest.approx(2 * 5 + 3 * (50 + 2 * 30)) and after.clock == pytest.approx(2 * 7 + 9 * 22)
    write_done(first, 7.0)  # begun by a call that was killed: it took more
    assert Forecast(jobs(folder), jobs(folder).all(), 1, say=None).processor == pytest.approx(2 * 20 + 3 * (50 + 2 * 30))
    assert tool("ablate").main(["--config", str(folder / "table.yaml"), "--forecast"]) == 0
    said = capsys.readouterr().out
    assert "| Long | 3 | 50 s | 22 s | 1 GB | 7 MB |" in said and "11 jobs to run: 6.17 min of processors" in said
    # 200 samples of which each column answers half, by chance; three seeds tell 3.26 deviations from 0 in 80 of 100 times (scipy:
    # nct.sf(t.ppf(0.975, 2), 2, 3.26 * 3**0.5) is 0.80).
    assert "| Told | told | 5.0 | a guess, from 200 samples alone | 16.3 |" in said
    assert not list(folder.glob(f"out/*/told/*/*/*/{DONE}")), "nothing is run"


def test_seeds_that_are_there_tell_how_much_a_difference_varies(folder):
    """Short and Long in two seeds: 60, 64 and 50, 51, so differences of 10 and 13."""
    for name, values in (("Short", (60, 64)), ("Long", (50, 51))):
        for seed, value in zip((1, 2), values):
            job = jobs(folder).cell(name, "Told", "", seed)
            (job.folder / "evaluations").mkdir(parents=True)
            (job.folder / "evaluations/test.json").write_text(json.dumps({"step": 1, "metrics": {"accuracy": value}}))
            write_done(job, 1.0)
    assert seen(jobs(folder), "Told", "test.accuracy") == (pytest.approx(4.5**0.5), 1)
    told = smallest(jobs(folder), 2, {"Told": 200}).splitlines()
    assert told[0].endswith("smallest found with 2 seeds |") and told[2].startswith("| Told | told | 2.1 | 1 pair of columns | ")
    assert smallest(jobs(folder), 1, {}).splitlines()[2] == "| Told | told | 2.1 | 1 pair of columns | none |"


@pytest.mark.parametrize("metric, guessed", [("accuracy", True), ("combined.t2i_r1", True), ("top5", True), ("matthews", False), ("pearson", False),
                                             ("mean_iou", False), ("mean_per_class", False), ("f1", False), ("r_mean", False), ("cider", False)])
def test_nothing_is_guessed_of_figures_that_are_no_shares_of_samples(folder, metric, guessed):
    path = folder / "table.yaml"
    path.write_text(path.read_text().replace("test.accuracy", f"test.{metric}"))
    said = smallest(jobs(folder), 3, {"Told": 200}).splitlines()[2]
    assert said == ("| Told | told | 5.0 | a guess, from 200 samples alone | 16.3 |" if guessed else "| Told | told | – | no two seeds yet | – |")


def test_a_probes_samples_are_those_that_it_is_asked_about(tmp_path):
    """Of 40 and 30 pictures the first ten each were read, and those of the test split kept; of another task's all, half of them scored."""
    rows = [{"id": str(n), "score": 1.0 if n % 2 else None} for n in range(10)]
    for name, kept in (("probe", rows), ("plain", rows + rows), ("none", [])):
        (tmp_path / "evaluations" / name).mkdir(parents=True)
        (tmp_path / "evaluations" / name / "samples.jsonl").write_text("".join(json.dumps(row) + "\n" for row in kept))
    task = lambda **own: SimpleNamespace(measured=lambda rows: {"told": (np.ones(len(rows)), None), "half": (np.array([row["score"] for row in rows], float), None)}, **own)
    run = SimpleNamespace(
        recipe=SimpleNamespace(train=SimpleNamespace(output=str(tmp_path)), evaluate=dict.fromkeys(("probe", "plain", "none"), {"data": {"sources": {"train": {}, "test": {}}}})),
        tasks={"probe": task(bank="train"), "plain": task(), "none": task()}, _dataset=lambda kind, name: SimpleNamespace(sizes=[40, 30]))
    assert scored(run, "probe", 10) == {"told": 30, "half": 15} and scored(run, "plain", 10) == {"told": 70, "half": 35}
    assert scored(run, "probe", None) == {"told": 10, "half": 5} and scored(run, "none", 10) == {}


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


GROWING = '''
_BASE_: long.yaml
encoders: {text: {width: 192, layers: 3, heads: 3}}
streams:
  more: {batch_size: 32, losses: {mlm: 1}, data: {type: Text, path: FOLDER/text.jsonl, max_tokens: 16, mask: {prob: 0.5, max: 4}}}
schedule: {every_step: [[train, more]], every: {train: [[0, 1], [50, null]], more: [[0, 8], [50, 1]]}}
evaluate: {test: {every: 50}}
train: {steps: 250, log_every: 10, checkpoint_every: 100}
'''


@pytest.mark.slow
def test_it_is_near_what_a_table_takes(folder, capsys):
    """A table whose steps change as it trains: processor time, disk and memory. It is forecast before and after it runs, since how
    much a processor does in a second depends on what else the machine does: the mean of the two is within 15 %, each within 30 %.
    Nothing of what the run took is used."""
    (folder / "growing.yaml").write_text(GROWING.replace("FOLDER", str(folder)))
    table = TABLE.replace("FOLDER", str(folder)).replace("long.yaml", "growing.yaml").replace("[1, 2, 3]", "[1]")
    (folder / "table.yaml").write_text(table.replace("  Long:  {set: [train.steps=2]}\n", "").replace("test.accuracy}", "test.accuracy}, set: [train.steps=60]"))
    words, forecasts, of = ["--config", str(folder / "table.yaml")], [], jobs(folder).all()
    forecasts.append(Forecast(jobs(folder), of, say=lambda line: None))
    assert tool("ablate").main([*words, "--yes"]) == 0
    took = sum(json.loads((job.folder / DONE).read_text())["processor_seconds"] for job in of)
    stays = sum(path.stat().st_size for job in of for path in job.folder.rglob("*") if path.is_file())
    memory = {job: 1e9 * json.loads((job.folder / "metrics.jsonl").read_text().splitlines()[-1])["memory_gb"] for job in of}
    for path in [*folder.rglob(DONE), *(folder / "out" / FOLDER).glob("*.json")]:
        path.unlink()
    forecasts.append(Forecast(jobs(folder), of, say=lambda line: None))
    ratios = [forecast.processor / took for forecast in forecasts]
    with capsys.disabled():
        before, after = forecasts
        print(f"\nprocessors: {before.processor:.1f} s forecast before, {after.processor:.1f} s after, took {took:.1f} s: ratios "
              f"{ratios[0]:.3f}, {ratios[1]:.3f}, of their mean {sum(ratios) / 2:.3f}")
        print(f"disk: {before.disk[0] / 1e6:.2f} MB forecast, {stays / 1e6:.2f} MB there; memory: " + ", ".join(
            f"{before.costs[job].memory / 1e6:.0f} MB forecast, {memory[job] / 1e6:.0f} MB used" for job in of))
    assert sum(ratios) / 2 == pytest.approx(1, abs=0.15) and ratios == pytest.approx([1, 1], abs=0.3)
    assert before.disk[0] == pytest.approx(stays, rel=0.1)
    assert all(before.costs[job].memory == pytest.approx(used, rel=0.15) for job, used in memory.items())


def test_measurements_end_when_the_call_does(folder, monkeypatch):
    def interrupted(seconds):
        raise KeyboardInterrupt

    monkeypatch.setattr("xtoolkit.ablation.forecast.time.sleep", interrupted)
    before = children()
    with pytest.raises(KeyboardInterrupt):
        Forecast(jobs(folder), jobs(folder).all(), 2, say=lambda line: None)
    assert children() == before
    assert not [path for path in (folder / "out" / FOLDER).iterdir() if path.is_dir()]


def test_a_measurement_is_of_the_same_settings_and_engine(folder, monkeypatch):
    measured(folder, {"Short": 0.1, "Long": 0.4, "Told": 0.2})
    one = Forecast(jobs(folder), jobs(folder).all(), say=None)
    plain = one._file(jobs(folder).pretrained("columns", "Short", 1))
    path = folder / "table.yaml"
    path.write_text(path.read_text().replace("Short: {}", "Short: {set: [train.checkpoint_every=1]}"))
    often = jobs(folder).pretrained("columns", "Short", 1)
    assert plain.is_file() and not one._file(often).is_file()
    monkeypatch.setattr(keys, "engine", lambda: "another")
    assert not one._file(jobs(folder).pretrained("columns", "Long", 1)).is_file()
