"""What a person types wrongly at a command: one line that says how it is written, before anything loads, and exit code 2."""

import pytest

from xtoolkit.cli import ablate, evaluate, plan, predict, train

RECIPE = "xfm/finetune/tiny/sst2.yaml"


def typed(capsys, main, *arguments) -> str:
    try:
        code = main([*arguments])
    except SystemExit as e:  # argparse's own
        code = e.code
    said = capsys.readouterr()
    assert code == 2 and said.out == ""
    return said.err


@pytest.mark.parametrize("arguments, said", [
    ([RECIPE], f"{RECIPE}: name the recipe with --config {RECIPE}"),
    ([], "--config: name a recipe, a file or one of `xtoolkit list recipes`"),
    (["--config", RECIPE, "--train.steps=3"], "--train.steps=3; a key of the recipe is changed without dashes: train.steps=3"),
    (["--config", RECIPE, "--confg", "x"], "unrecognized arguments: --confg; did you mean `--config`?; a key of the recipe is changed without dashes"),
    (["--config", "xfm/ablations/table5_tiny.yaml"], "table5_tiny.yaml:1: a table of recipes: `xtoolkit ablate --config` runs it"),
    (["--config", RECIPE, "--steps", "3"], "a key of the recipe is changed without dashes: train.steps=100"),
])
@pytest.mark.parametrize("command", [plan, train, evaluate])
def test_a_recipe_and_its_keys_are_said_how_to_write(capsys, command, arguments, said):
    assert said in typed(capsys, command.main, *arguments)


def test_a_runs_folder_in_the_place_of_a_recipe_names_the_recipe_in_it(capsys, tmp_path):
    assert "a folder; name a recipe" in typed(capsys, plan.main, "--config", str(tmp_path))
    (tmp_path / "config.yaml").write_text("train: {}\n")
    assert f"name the recipe with --config {tmp_path}/config.yaml" in typed(capsys, evaluate.main, str(tmp_path))
    assert f"the recipe of this run is {tmp_path}/config.yaml" in typed(capsys, evaluate.main, "--config", str(tmp_path))


@pytest.mark.parametrize("recipe, said", [
    ("xfm/baselines/tiny/beitv2.yaml", "outputs/vqkd_tiny is made by: xtoolkit train --config xfm/baselines/tiny/vqkd.yaml"),
    ("xfm/baselines/tiny/vqkd.yaml", "outputs/contrast_tiny is made by: xtoolkit train --config xfm/baselines/tiny/contrast.yaml"),
    (RECIPE, "outputs/xfm_tiny is made by: xtoolkit train --config xfm/tiny.yaml"),
])
def test_a_run_that_must_come_first_is_named_with_its_recipe(capsys, tmp_path, monkeypatch, recipe, said):
    monkeypatch.chdir(tmp_path)
    assert typed(capsys, train.main, "--config", recipe).splitlines()[-1] == said


def test_an_option_that_is_near_another_is_named(capsys):
    assert "--sees 1; did you mean `--seeds`?" in typed(capsys, ablate.main, "--config", "xfm/ablations/table5_tiny.yaml", "--sees", "1")


def test_run_and_image_in_the_wrong_order(capsys, tmp_path):
    (tmp_path / "config.yaml").write_text("train: {}\n")
    said = typed(capsys, predict.main, "dog.jpg", str(tmp_path), "a dog")
    assert f"IMAGE: {tmp_path}: a run's folder: RUN comes first, then IMAGE" in said
