"""`xtoolkit finetune_all`: its jobs, what it does not run again, and its table."""

import json
import textwrap
from pathlib import Path

import pytest

from commands import tool
from xtoolkit.cli.finetune_table import Job, _gain, decimals, jobs_of, read
from xtoolkit.registry import ConfigError

PLUGIN = '''
from xtoolkit.graph import Need
from xtoolkit.registry import TASK_REGISTRY
from xtoolkit.tasks.base import Task


@TASK_REGISTRY.register
class Long(Task):
    """Whether a text has at least as many tokens as it is asked for.

    YAML: {type: Long, tokens: 5}
    """

    def __init__(self, tokens: int):
        self.tokens = tokens

    @classmethod
    def needs(cls, block):
        return [Need("text", grad=False)]

    def predict(self, f, batch):
        return {"length": batch.text.mask.sum(1).cpu()}

    def score(self, outputs):
        return {"accuracy": 100 * (outputs["length"] >= self.tokens).double().mean().item()}

    def floor(self, outputs):
        return {"accuracy": 50.0}

    def samples(self, outputs):
        return [{"id": n, "image_id": None, "score": int(length >= self.tokens)} for n, length in enumerate(outputs["length"].tolist())]
'''
RECIPE = '''
plugins: [long.py]
tokenizer: sample://picturebook/tokenizer
encoders: {text: {type: RoBERTa, inputs: {text: $text}, width: 16, layers: 1, heads: 1, vocab_size: 4000}}
losses: {mlm: {type: MLM, feature: text@mask_text}}
streams: {train: {batch_size: 4, losses: {mlm: 1}, data: {type: Text, path: FOLDER/text.jsonl, max_tokens: 16, mask: {prob: 0.5, max: 4}}}}
evaluate: {test: {type: Long, tokens: 5, data: {type: Text, path: FOLDER/text.jsonl, max_tokens: 16}}}
optim: {lr: 1e-3}
train: {steps: 1, output: outputs/x, workers: 0, precision: fp32}
'''
TABLE = '''
init: FOLDER/start.safetensors
output: FOLDER/out
seeds: [1, 2]
controls: {longer: {set: [evaluate.test.tokens=13]}}
rows:
  Lengths: {recipe: long.yaml, metrics: {told: test.accuracy}, controls: [longer]}
'''


@pytest.fixture
def folder(tmp_path):
    for name, text in (("long.py", PLUGIN), ("long.yaml", RECIPE), ("all.yaml", TABLE)):
        (tmp_path / name).write_text(textwrap.dedent(text).replace("FOLDER", str(tmp_path)))
    texts = ["a dog", "a dog and a cat on a table", "one two three four five six", "the red house stands near the sea and the boats at night"]
    (tmp_path / "text.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return tmp_path


def start_weights(folder):
    """Weights of the recipe's model, as a pretrained run would leave them."""
    from safetensors.torch import save_file

    import xtoolkit

    run = xtoolkit.build(str(folder / "long.yaml"))
    save_file({name: value.clone() for name, value in run.model.state_dict().items()}, str(folder / "start.safetensors"))


def test_it_runs_what_is_missing_and_tells_the_gain_over_a_control(folder, capsys):
    start_weights(folder)
    main = tool("finetune_all").main
    assert main(["--config", str(folder / "all.yaml"), "--dry-run"]) == 0
    planned = capsys.readouterr().out
    assert planned.count("xtoolkit train") == 4 and "finished" not in planned and not (folder / "out").exists()
    assert main(["--config", str(folder / "all.yaml")]) == 0
    said = capsys.readouterr().out
    assert "[1/4] Lengths, seed 1:" in said and "[4/4] Lengths, longer, seed 2:" in said and "told 75.0" in said
    # Of four texts three have five tokens, one thirteen: seeds change nothing of what is asked here.
    line = "| Lengths | told | 2 | 75.0 ± 0.0 | 50.0 | longer | 25.0 ± 0.0 | +50.0 ± "
    assert line in (folder / "out/table.md").read_text()
    found = json.loads((folder / "out/table.json").read_text())["rows"][0]
    assert found["values"] == [75.0, 75.0] and found["gain"]["value"] == pytest.approx(0.5) and found["gain"]["error"] > 0

    before = {path: path.stat().st_mtime_ns for path in folder.glob("out/*/*/*/results.json")}
    lost = folder / "out/lengths/longer/seed_2/results.json"
    lost.unlink()
    assert main(["--config", str(folder / "all.yaml")]) == 0
    after = {path: path.stat().st_mtime_ns for path in folder.glob("out/*/*/*/results.json")}
    assert {path for path in after if after[path] != before[path]} == {lost}, "what is finished is not run again"

    capsys.readouterr()
    (folder / "long.yaml").write_text((folder / "long.yaml").read_text().replace("lr: 1e-3", "lr: 2e-3").replace("tokens: 5", "tokens: 6"))
    assert main(["--config", str(folder / "all.yaml")]) == 2
    told = capsys.readouterr().err
    assert "run/seed_1: finished with another recipe: optim.lr: was 0.001, is 0.002; name another folder" in told
    assert "run/seed_2: finished with another recipe: test is another; name another folder" in told
    assert "longer/seed_1: finished with another recipe: test" not in told, "the control says how many tokens itself"


def test_a_folder_that_started_from_other_weights_is_refused(folder):
    """Its figures would pass for those of these weights."""
    table = read(str(folder / "all.yaml"))
    begun = jobs_of(table, str(folder))[0].folder / "config.yaml"
    begun.parent.mkdir(parents=True)
    begun.write_text(f"init: {{path: {folder}/./start.safetensors, parts: shared}}")
    assert len(jobs_of(table, str(folder))) == 4
    begun.write_text("init: other.safetensors")
    with pytest.raises(ConfigError, match="seed_1 started from other.safetensors, not from .*start.safetensors: name another folder"):
        jobs_of(table, str(folder))


@pytest.mark.parametrize("rows, found", [
    ([("a", None, 1), ("b", None, 0)], {"a": (1, "a"), "b": (0, "b")}),  # texts: each stands for itself
    ([("p", "p", 1), ("p", "p", 0), ("q", "q", 1)], {"0": (1, "p"), "1": (0, "p"), "2": (1, "q")}),
    ([(7, "p", None), (8, "p", 0.3)], {"8": (0.3, "p")}),  # not annotated
])
def test_scores_keep_every_sample_and_say_what_it_is_drawn_with(folder, rows, found):
    job = Job("Lengths", "", 1, "", [], folder / "job")
    (folder / "job/evaluations/test").mkdir(parents=True)
    (folder / "job/config.yaml").write_text("evaluate: {test: {}}")
    for file in ("results.json", "evaluations/test.json"):
        (folder / "job" / file).write_text("{}")
    lines = [json.dumps({"id": id, "image_id": image, "score": score}) + "\n" for id, image, score in rows]
    (folder / "job/evaluations/test/samples.jsonl").write_text("".join(lines))
    assert job.scores("test.accuracy") == found


def test_a_job_that_fails_is_told_and_the_others_run(folder, capsys):
    start_weights(folder)
    text = (folder / "all.yaml").read_text()
    wider = text.replace("evaluate.test.tokens=13", "encoders.text.width=32").replace("[1, 2]", "[1]")
    (folder / "all.yaml").write_text(wider.replace("{told: test.accuracy}", "{told: test.accuracy, best: test.acuracy}"))
    assert tool("finetune_all").main(["--config", str(folder / "all.yaml")]) == 1
    told = capsys.readouterr()
    assert "[2/2] Lengths, longer, seed 1: exit code 2, see" in told.err and "use the recipe that these weights were made" in told.err
    assert "[1/2] Lengths, seed 1: `test.acuracy`: evaluation `test` gives no `acuracy`; did you mean `accuracy`?" in told.err
    assert "| Lengths | told | 1 | 75.0 | 50.0 | longer | – | – |" in told.out


def test_every_mistake_of_a_table_has_its_place(folder):
    text = TABLE.replace("FOLDER", str(folder))
    (folder / "all.yaml").write_text(text.replace("[longer]", "[longest]").replace("long.yaml", "lang.yaml")
                                     .replace("test.accuracy", "accuracy"))
    with pytest.raises(ConfigError) as caught:
        read(str(folder / "all.yaml"))
    assert [line.replace(str(folder), "") for line in caught.value.problems] == [
        "/all.yaml:7: unknown control `longest`; did you mean `longer`?", "/all.yaml:7: `accuracy` must be EVALUATION.METRIC",
        "/all.yaml:7: lang.yaml: no such file beside the table"]
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


def test_a_mistake_in_any_recipe_is_told_before_the_first_job(folder, capsys):
    start_weights(folder)
    (folder / "all.yaml").write_text((folder / "all.yaml").read_text().replace("tokens=13", "tokns=13"))
    assert tool("finetune_all").main(["--config", str(folder / "all.yaml")]) == 2
    told = capsys.readouterr()
    assert told.err.startswith("1 problem, ") and "unknown key `tokns` of Long; did you mean `tokens`?" in told.err
    assert told.out == "" and not (folder / "out").exists()


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
    (folder / "all.yaml").write_text(TABLE.replace("FOLDER", str(folder)) + "  More: {recipe: long.yaml, metrics: {told: test.accuracy}}\n")
    table = read(str(folder / "all.yaml"))
    jobs = jobs_of(table, str(folder))
    assert [str(job) for job in jobs] == ["Lengths, seed 1", "Lengths, longer, seed 1", "More, seed 1", "Lengths, seed 2",
                                          "Lengths, longer, seed 2", "More, seed 2"]
    assert [str(job) for job in jobs_of(table, str(folder), ["More"])] == ["More, seed 1", "More, seed 2"]
    assert [str(job) for job in jobs_of(table, str(folder), controls=False)][0::2] == ["Lengths, seed 1", "Lengths, seed 2"]
    assert jobs[1].folder == Path(folder / "out/lengths/longer/seed_1")
    with pytest.raises(ConfigError, match="no row `Lenghts`; did you mean `Lengths`"):
        jobs_of(table, str(folder), ["Lenghts"])


def test_shares_have_three_decimals_and_one_picture_has_no_error():
    assert [f"{value:.{decimals([value])}f}" for value in (0.4321, 61.25, -0.5)] == ["0.432", "61.2", "-0.500"]
    assert _gain({"value": 0.02, "error": 0.01}) == "+2.0 ± 1.0"
    assert _gain({"value": 0.02, "error": None}) == "+2.0 no error: all of one picture"
