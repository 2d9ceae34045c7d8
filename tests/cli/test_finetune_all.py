"""`xtoolkit finetune_all`: its jobs, what it does not run again, and its table."""

import json

import pytest

import toy_table
from commands import tool
from toy_table import start_weights
from xtoolkit.ablation.jobs import DONE, Jobs
from xtoolkit.ablation.keys import forget
from xtoolkit.ablation.results import _gain, decimals
from xtoolkit.ablation.table import read
from xtoolkit.registry import ConfigError

TABLE = '''
columns: {begun: {run: FOLDER/start.safetensors}}
output: FOLDER/out
seeds: [1, 2]
controls: {longer: {set: [evaluate.test.tokens=13]}}
rows:
  Lengths: {recipe: long.yaml, metrics: {told: test.accuracy}, controls: [longer]}
'''


@pytest.fixture
def folder(tmp_path):
    toy_table.write(tmp_path)
    (tmp_path / "all.yaml").write_text(TABLE.replace("FOLDER", str(tmp_path)))
    return tmp_path


def test_it_runs_what_is_missing_and_tells_the_gain_over_a_control(folder, capsys):
    start_weights(folder)
    main = tool("finetune_all").main
    assert main(["--config", str(folder / "all.yaml"), "--dry-run"]) == 0
    planned = capsys.readouterr().out
    assert planned.count(": missing") == 4 and "finished" not in planned and not (folder / "out").exists()
    assert main(["--config", str(folder / "all.yaml"), "--yes"]) == 0
    said = capsys.readouterr().out
    assert "[1/4] begun, Lengths, seed 1:" in said and "[4/4] begun, Lengths, longer, seed 2:" in said and "told 75.0" in said
    # Of four texts three have five tokens, one thirteen: seeds change nothing of what is asked here.
    line = "| Lengths | told | 2 | 75.0 ± 0.0 | 50.0 | longer | 25.0 ± 0.0 | +50.0 ± "
    assert line in (folder / "out/table.md").read_text()
    found = json.loads((folder / "out/table.json").read_text())["rows"][0]["columns"]["begun"]
    assert found["values"] == {"1": 75.0, "2": 75.0} and found["controls"]["longer"]["gain"]["value"] == pytest.approx(50)
    assert found["controls"]["longer"]["gain"]["error"] > 0

    of = lambda: {path: path.stat().st_mtime_ns for path in folder.glob(f"out/begun/*/*/*/*/{DONE}")}
    before = of()
    lost = next(path for path in before if "longer/seed_2" in str(path))
    lost.unlink()
    assert main(["--config", str(folder / "all.yaml"), "--yes"]) == 0
    after = of()
    assert len(before) == 4 and {path for path in after if after[path] != before[path]} == {lost}, "what is finished is not run again"


def test_what_a_figure_depends_on_is_in_the_key_and_the_rest_is_not(folder, capsys):
    start_weights(folder)
    keys = lambda: {str(job): job.key for job in Jobs(read(str(folder / "all.yaml")), str(folder)).all()}
    begun, recipe = keys(), folder / "long.yaml"
    assert len(set(begun.values())) == 4
    text = recipe.read_text()
    recipe.write_text(text.replace("workers: 0", "workers: 1").replace("outputs/x", "outputs/y") + "\n# a comment\n")
    assert keys() == begun
    recipe.write_text(text.replace("lr: 1e-3", "lr: 2e-3"))
    assert all(key != begun[job] for job, key in keys().items())
    recipe.write_text(text.replace("tokens: 5", "tokens: 6"))
    assert {job for job, key in keys().items() if key != begun[job]} == {"begun, Lengths, seed 1", "begun, Lengths, seed 2"}, \
        "the control says how many tokens itself"
    recipe.write_text(text)
    assert keys() == begun
    recipe.write_text(text.replace("steps: 1", "steps: 1, seed: 7"))
    start_weights(folder)  # others, of the same shapes
    recipe.write_text(text)
    forget()
    assert all(key != begun[job] for job, key in keys().items()), "what a job starts from is in its key"


def test_a_table_whose_recipe_is_wrong_runs_nothing(folder, capsys):
    start_weights(folder)
    (folder / "all.yaml").write_text((folder / "all.yaml").read_text().replace("tokens=13", "tokns=13"))
    assert tool("finetune_all").main(["--config", str(folder / "all.yaml"), "--yes"]) == 2
    assert "did you mean `tokens`?" in capsys.readouterr().err and not (folder / "out").exists()


def test_a_job_that_fails_is_told_and_the_others_run(folder, capsys):
    start_weights(folder)
    text = (folder / "all.yaml").read_text()
    wider = text.replace("evaluate.test.tokens=13", "encoders.text.width=32").replace("[1, 2]", "[1]")
    (folder / "all.yaml").write_text(wider.replace("{told: test.accuracy}", "{told: test.accuracy, best: test.acuracy}"))
    assert tool("finetune_all").main(["--config", str(folder / "all.yaml"), "--yes"]) == 1
    told = capsys.readouterr()
    assert "[2/2] begun, Lengths, longer, seed 1: exit code 2, see" in told.err and "use the recipe that these weights were made" in told.err
    assert "[1/2] begun, Lengths, seed 1: `test.acuracy`: evaluation `test` gives no `acuracy`; did you mean `accuracy`?" in told.err
    assert "| Lengths | told | 1 | 75.0 | 50.0 | longer | – | – |" in told.out


def test_every_mistake_of_a_table_has_its_place(folder):
    text = TABLE.replace("FOLDER", str(folder))
    (folder / "all.yaml").write_text(text.replace("[longer]", "[longest]").replace("long.yaml", "lang.yaml")
                                     .replace("test.accuracy", "accuracy"))
    with pytest.raises(ConfigError) as caught:
        read(str(folder / "all.yaml"))
    assert [line.replace(str(folder), "") for line in caught.value.problems] == [
        "/all.yaml:7: lang.yaml: no such file beside the table", "/all.yaml:7: unknown control `longest`; did you mean `longer`?",
        "/all.yaml:7: `accuracy` must be EVALUATION.METRIC"]
    (folder / "all.yaml").write_text(text.replace("seeds", "seed"))
    with pytest.raises(ConfigError, match="unknown key `seed` of Table; did you mean `seeds`"):
        read(str(folder / "all.yaml"))


@pytest.mark.parametrize("was, now, said", [
    ("test.accuracy", "tset.accuracy", ["/all.yaml:7: `tset.accuracy`: long.yaml has no evaluation `tset`; did you mean `test`?"]),
    ("  Lengths:", "  lengths: {recipe: long.yaml, metrics: {told: test.accuracy}}\n  Lengths:",
     ["/all.yaml:8: rows `lengths` and `Lengths` would share a folder, `lengths`: rename one"]),
    ("rows:\n", "rows: {}\nthem:\n", None),
])
def test_what_a_row_names_is_held_against_its_recipe_and_the_other_rows(folder, was, now, said):
    (folder / "all.yaml").write_text(TABLE.replace("FOLDER", str(folder)).replace(was, now))
    with pytest.raises(ConfigError) as caught:
        read(str(folder / "all.yaml"))
    assert said is None or [line.replace(str(folder), "") for line in caught.value.problems] == said


def test_a_recipe_is_no_table_and_what_is_asked_for_must_be_there(folder, capsys):
    main = tool("finetune_all").main
    (folder / "start.safetensors").touch()
    for words, said in ((["--config", "long.yaml"], "long.yaml: this is a recipe, not a table of recipes: `xtoolkit train"),
                        (["--config", "all.yaml", "--init", "nowhere"], "--init: nowhere: no such run or file of weights"),
                        (["--config", "all.yaml", "--seeds", "1", "1"], "--seeds: one of [1, 1] comes twice")):
        assert main([words[0], str(folder / words[1]), *words[2:], "--dry-run"]) == 2
        assert said in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["--config", str(folder / "all.yaml"), "--seeds", "-1", "--dry-run"])


def test_the_first_seed_of_every_row_comes_first_and_rows_can_be_chosen(folder):
    start_weights(folder)
    (folder / "all.yaml").write_text(TABLE.replace("FOLDER", str(folder)) + "  More: {recipe: long.yaml, metrics: {told: test.accuracy}}\n")
    jobs = Jobs(read(str(folder / "all.yaml")), str(folder))
    told = lambda several: [str(job).removeprefix("begun, ") for job in several]
    assert told(jobs.all()) == ["Lengths, seed 1", "Lengths, longer, seed 1", "More, seed 1", "Lengths, seed 2",
                                "Lengths, longer, seed 2", "More, seed 2"]
    assert told(jobs.all([("", "More")])) == ["More, seed 1", "More, seed 2"]
    assert told(jobs.all(controls=False))[0::2] == ["Lengths, seed 1", "Lengths, seed 2"]
    assert jobs.all()[1].folder.parent == folder / "out/begun/lengths/longer/seed_1"
    with pytest.raises(ConfigError, match="no row `Lenghts`; did you mean `Lengths`"):
        jobs.all([("", "Lenghts")])


def test_shares_have_three_decimals_and_draws_that_do_not_vary_have_no_error():
    assert [f"{value:.{decimals([value])}f}" for value in (0.4321, 61.25, -0.5)] == ["0.432", "61.2", "-0.500"]
    assert _gain({"value": 0.2, "error": 0.1}, decimals([61.2])) == "+0.2 ± 0.1"
    assert _gain({"value": 0.02, "error": None}, decimals([0.432])) == "+0.020 no error: its draws do not vary"
