"""`xtoolkit ablate`: what it shares, what it runs once, and what it calls stale. What a kill leaves: test_killed.py."""

import json
import os

import pytest
import toy_table
from commands import children, tool
from xtoolkit.ablation import keys
from xtoolkit.ablation.jobs import DONE, Jobs, write_done
from xtoolkit.ablation.results import write
from xtoolkit.ablation.runner import Runner, _engines, lock
from xtoolkit.ablation.table import read
from xtoolkit.cli.ablate import _cell
from xtoolkit.registry import ConfigError

TABLE = '''
output: FOLDER/out
seeds: [1, 2]
apart: 10
recipe: long.yaml
starts:
  text: {recipe: long.yaml, set: [train.steps=2]}
sets:
  begun: [init=<text>]
columns:
  Plain:   {groups: [words]}
  Begun:   {set: [begun], groups: [words]}
  Further: {set: [begun, train.steps=3]}
rows:
  Short: {recipe: long.yaml, metrics: {told: test.accuracy}, group: words}
  Long:  {recipe: long.yaml, metrics: {told: test.accuracy}, group: sentences, set: [evaluate.test.tokens=13]}
'''
JOBS = 2 * (1 + 3 + 3 + 1)  # a seed: one start, three columns, three cells of Short, one of Long


@pytest.fixture
def folder(tmp_path):
    toy_table.write(tmp_path)
    (tmp_path / "table.yaml").write_text(TABLE.replace("FOLDER", str(tmp_path)))
    return tmp_path


def jobs(folder):
    return Jobs(read(str(folder / "table.yaml")), str(folder), threads=1)


def test_it_trains_shared_starts_once_and_writes_the_table(folder, capsys):
    of = jobs(folder)
    assert of.pretrained("columns", "Begun", 1).after == of.pretrained("columns", "Further", 1).after == [of.pretrained("starts", "text", 1)]
    assert len(of.all()) == JOBS == len({job.folder for job in of.all()})
    assert [str(job) for job in of.all([("Further", "Long")], seeds=[1])] == ["text, seed 1", "Further, seed 1", "Further, Long, seed 1"]
    assert [str(job) for job in of.all([("", "Long"), ("Plain", "")], seeds=[2])] == [
        "Plain, seed 2", "Plain, Short, seed 2", "text, seed 2", "Further, seed 2", "Further, Long, seed 2"]
    assert "train.seed=11" in of.cell("Plain", "Short", "", 1).overrides, "fine-tuning draws otherwise than pretraining"
    main = tool("ablate").main
    assert main(["--config", str(folder / "table.yaml"), "--jobs", "2", "--seeds", "1", "--only", "Plain", "--yes"]) == 0
    text = (folder / "out/table.md").read_text().split("## Values: means over seeds, their standard deviation\n\n")[1].splitlines()
    assert text[0] == "| task | metric | floor | Plain | Begun | Further |"
    assert text[2] == "| Short | told | 50.0 | 75.0 (1 of 2) | – (0 of 2) | – (0 of 2) |"
    assert text[3].endswith("|  |  | – (0 of 2) |")
    assert json.loads((folder / "out/table.json").read_text())["rows"][0]["columns"]["Plain"]["values"] == {"1": 75.0}
    job = jobs(folder).cell("Plain", "Short", "", 1)
    assert not (job.folder / "checkpoints").exists() and list(job.after[0].folder.glob("checkpoints/step_*")), "rows keep no weights"
    assert job.samples("test.accuracy")["1"]["score"] == 1

    # A copy has the same figures and pages without weights, and the table goes on in it.
    capsys.readouterr()
    words = ["--config", str(folder / "table.yaml"), "--jobs", "2", "--seeds", "1"]
    assert main([*words, "--copy", str(folder / "kept")]) == 0 and capsys.readouterr().out.endswith(f"copied: {folder}/kept\n")
    assert (folder / "kept/table.md").read_bytes() == (folder / "out/table.md").read_bytes() and (folder / "kept/table.html").is_file()
    files = {path.name for path in (folder / "kept").rglob("*") if path.is_file()}
    assert files - {".lock"} == {"table.md", "table.json", "table.csv", "table.tex", "table.html", "gflops.json", DONE, "config.yaml", "metrics.jsonl", "test.json",
                     "samples.jsonl.gz"}
    kept = jobs(folder).elsewhere(str(folder / "kept")).cell("Plain", "Short", "", 1)
    assert kept.samples("test.accuracy") == job.samples("test.accuracy")
    assert str(folder / "out") not in (kept.folder / "config.yaml").read_text() and str(job.after[0].key) in (kept.folder / "config.yaml").read_text()
    assert main([*words, "--only", "Plain", "--output", str(folder / "kept"), "--dry-run"]) == 0
    assert [line.split(": ")[1] for line in capsys.readouterr().out.splitlines()] == ["finished", "finished"]
    assert main([*words, "--output", str(folder / "outt"), "--copy", str(folder / "kept")]) == 2 and "nothing is finished in" in capsys.readouterr().err
    assert main([*words, "--copy", str(folder / "out")]) == 2 and "the table's own folder: name another one" in capsys.readouterr().err


def test_a_change_makes_stale_what_it_reaches_and_nothing_else(folder, monkeypatch):
    for job in jobs(folder).all():
        job.folder.mkdir(parents=True)
        write_done(job, 1.0)
    assert {job.state for job in jobs(folder).all()} == {"finished"}
    monkeypatch.setattr(keys, "engine", lambda: "another")
    assert {job.state for job in jobs(folder).all()} == {"finished by an older engine"}
    write(jobs(folder))
    text = (folder / "out/table.md").read_text()
    assert "| –* (0 of 2: no finite figure) |" in text and "- *: finished by an older engine: code that all jobs" in text
    monkeypatch.undo()
    (folder / "table.yaml").write_text((folder / "table.yaml").read_text().replace("train.steps=3", "train.steps=4"))
    of = jobs(folder)
    assert {job.column for job in of.all() if job.state == "stale"} == {"Further"}
    assert {job.column for job in of.all() if job.state == "finished"} == {"text", "Plain", "Begun"}


def test_a_seed_that_is_whole_stays_on_another_machine_and_half_a_seed_does_not(folder, monkeypatch):
    of, here = jobs(folder), keys.machine(1)
    seconds = of.all(seeds=[2])
    for job in [*of.all(seeds=[1]), *seconds[:-1]]:
        job.folder.mkdir(parents=True)
        write_done(job, 1.0)
    elsewhere = ["Another Processor", 4, None, "torch 9"]
    monkeypatch.setattr(keys, "machine", lambda threads: elsewhere)
    there = jobs(folder)
    assert {job.state for job in there.all(seeds=[1])} == {"finished"} and there.all(seeds=[1])[0].recipe.on == here
    assert [job.state for job in there.all(seeds=[2])] == ["stale"] * (len(seconds) - 1) + ["missing"]
    for job in there.all(seeds=[2]):
        job.folder.mkdir(parents=True)
        write_done(job, 1.0)
    write(there)
    assert f"Seed 1: {here[0]}, 1 thread, {', '.join(here[3:])}.\nSeed 2: Another Processor, 4 threads, torch 9.\n" in (folder / "out/table.md").read_text()
    monkeypatch.undo()
    assert {job.state for job in jobs(folder).all()} == {"finished"}
    # What has changed since is run where it is asked for.
    (folder / "table.yaml").write_text((folder / "table.yaml").read_text().replace("train.steps=3", "train.steps=4"))
    assert {job.recipe.on[0] for job in jobs(folder).all()} == {here[0]}


def test_a_copy_brings_its_seeds_to_a_folder_that_has_others(folder, monkeypatch, capsys):
    """Seed 1 was run elsewhere and copied; seed 2 here, into a folder of its own, is copied to it."""
    words, machine = ["--config", str(folder / "table.yaml")], keys.machine
    for seed, output in ((1, "first"), (2, "second")):
        monkeypatch.setattr(keys, "machine", lambda threads: ["Another", 1, None, "torch 9"] if seed == 1 else machine(1))
        for job in jobs(folder).elsewhere(str(folder / output)).all(seeds=[seed]):
            toy_table.saved(job)
            (job.folder / "config.yaml").write_text("train: {}\n")
            write_done(job, 1.0)
        assert tool("ablate").main([*words, "--jobs", "2", "--output", str(folder / output), "--copy", str(folder / "kept")]) == 0
    assert "Seed 1: Another, 1 thread, torch 9.\n" in (folder / "kept/table.md").read_text()
    there = jobs(folder).elsewhere(str(folder / "kept"))
    assert {job.state for job in there.all()} == {"finished"}
    assert [there.all(seeds=[seed])[0].recipe.on for seed in (1, 2)] == [["Another", 1, None, "torch 9"], machine(1)]
    # A seed that only the folder knows stays in the table, and a row that needs weights which a copy has not is refused.
    (folder / "table.yaml").write_text((folder / "table.yaml").read_text().replace("seeds: [1, 2]", "seeds: [2]"))
    assert tool("ablate").main([*words, "--output", str(folder / "kept"), "--dry-run"]) == 0
    assert "[8/8] Further, Long, seed 2: finished" in capsys.readouterr().out
    (folder / "table.yaml").write_text((folder / "table.yaml").read_text().replace("tokens=13", "tokens=12"))
    assert tool("ablate").main([*words, "--jobs", "2", "--output", str(folder / "kept"), "--yes"]) == 2
    assert "Further, seed 2: finished, and its weights are not here, as in a copy: " in capsys.readouterr().err
    assert json.loads((folder / "kept/table.json").read_text())["seeds"] == 2


def test_a_job_that_went_on_with_another_engine_is_of_an_older_one(folder, monkeypatch):
    job = jobs(folder).pretrained("columns", "Plain", 1)
    held = lock(job)
    for engine in ("one", "two", "two"):
        monkeypatch.setattr(keys, "engine", lambda: engine)
        found = _engines(held)
    os.close(held)
    assert found == "one+two"
    job.folder.mkdir(parents=True)
    write_done(job, 1.0, None, found)
    assert job.state == "finished by an older engine"


def test_only_names_columns_with_a_comma_too():
    columns = ["A", "A, B", "C"]
    assert [_cell(one, columns) for one in ("A", "A,R", "A, B", "A, B,R", "C,R, S", ",R", "D,R")] == [
        ("A", ""), ("A", "R"), ("A, B", ""), ("A, B", "R"), ("C", "R, S"), ("", "R"), ("D", "R")]


def test_comments_docstrings_and_layout_are_no_change_of_code(tmp_path):
    (tmp_path / "a.py").write_text('"""One."""\n\n\ndef f(x):\n    """Two."""\n    return x + 1  # three\n')
    (tmp_path / "b.py").write_text("def f(x):\n    return (x\n            + 1)\n")
    (tmp_path / "c.py").write_text("def f(x):\n    return x + 2\n")
    a, b, c = (keys.syntax(tmp_path / name) for name in ("a.py", "b.py", "c.py"))
    assert a == b != c


@pytest.mark.parametrize("change, said", [
    (("<text>", "<txt>"), "no start `txt`; did you mean `text`?"),
    (("[begun, train", "[begin, train"), "`begin` is no `key=value` and no name of `sets`; did you mean `begun`?"),
    (("groups: [words]}\n  Begun", "groups: [word]}\n  Begun"), "no row is of group `word`; did you mean `words`?"),
    (("set: [train.steps=2]", "set: [begun]"), "starts from itself: text <- text"),
    (("Plain:   {groups: [words]}", "Plain:"), "`columns.Plain` is null, which removes what is inherited, and nothing of that name is; {} is an empty one"),
    (("seeds: [1, 2]", "sedes: null"), "unknown key `sedes` of Table; did you mean `seeds`?"),
    (("recipe: long.yaml\nstarts", "starts"), "`Plain` has neither recipe nor run, and the table has no recipe"),
    (("seeds: [1, 2]", "seeds: []"), "`seeds` are empty: name at least one"),
    (("seeds: [1, 2]", "seeds: [1, 1]"), "seed 1 comes twice: the same jobs would count twice"),
    (("set: [evaluate.test.tokens=13]", "set: ['evaluate.test.data.path=<text>']"), "`<text>` is a start, and a row starts from its column"),
    (("{groups: [words]}", "{rows: ['encoders.text.init=<text>']}"), "`<text>` is a start, and a row starts from its column"),
    (("starts:", "controls: {other: {set: ['tokenizer=<text>']}}\nstarts:"), "`<text>` is a start, and a row starts from its column"),
    (("{groups: [words]}", "{run: out, set: [begun]}"), "a run is taken as it is: leave out its recipe, set and apart"),
])
def test_mistakes_of_a_table(folder, change, said):
    path = folder / "table.yaml"
    assert change[0] in path.read_text()
    path.write_text(path.read_text().replace(*change))
    with pytest.raises(ConfigError) as caught:
        read(str(path))
    assert said in str(caught.value) and f"{path}:" in str(caught.value)


def test_an_output_that_cannot_be_is_said_before_anything_runs(folder, capsys):
    table = str(folder / "table.yaml")
    assert tool("ablate").main(["--config", table, "--output", table, "--yes"]) == 2
    assert f"--output: {table} is a file; name a folder" in capsys.readouterr().err
    assert tool("ablate").main(["--config", table, "--output", "/proc/none", "--yes"]) == 2
    told = capsys.readouterr().err
    assert "/proc/none: the table's folder cannot be made" in told or "/proc cannot be written to" in told


def test_text_in_angle_brackets_that_is_no_start_stays_as_it_is(folder):
    path = folder / "table.yaml"
    path.write_text(path.read_text().replace("evaluate.test.tokens=13]", "'evaluate.test.data.path=<mask> <7>.jsonl']"))
    job = jobs(folder).cell("Further", "Long", "", 1)
    assert job.overrides[:2] == [f"init={job.after[0].folder}", "evaluate.test.data.path=<mask> <7>.jsonl"]


@pytest.mark.parametrize("change, said", [(("{groups: [words]}", "{set: [train.stepss=2]}"), "did you mean `steps`?"),
                                          (("{groups: [words]}", "{run: nowhere}"), "nowhere: no such run or file of weights")])
def test_a_mistake_of_a_column_that_is_not_asked_is_said_before_anything_runs(folder, capsys, change, said):
    path = folder / "table.yaml"
    path.write_text(path.read_text().replace(*change))
    assert tool("ablate").main(["--config", str(path), "--only", "Further,Long", "--seeds", "1", "--yes"]) == 2
    assert capsys.readouterr().err.count(said) == 1 and not (folder / "out").exists()


def test_an_exception_leaves_no_process_behind(folder):
    path = folder / "table.yaml"
    path.write_text(path.read_text().replace("train.steps=3]", "train.steps=100000]").replace("begun, ", ""))
    of = jobs(folder)
    long, short = of.pretrained("columns", "Further", 1), of.pretrained("columns", "Plain", 1)

    class Refused(Runner):
        def begin(self, job):
            if job is short:
                assert long.state == "running"
                raise OSError("no room for another process")
            return super().begin(job)

    before = children()
    with pytest.raises(OSError, match="no room for another process"):
        Refused([long, short], 2).run()
    assert long.state == "missing", "its lock is free: nobody runs it"
    assert children() == before
