"""What a job's key covers beside the toolkit's own files: what plugins import, and what a control does without."""

import sys

import pytest
import torch
import toy_table
from safetensors.torch import save_file
from xtoolkit.ablation import keys
from xtoolkit.ablation.jobs import Jobs, write_done
from xtoolkit.ablation.table import read
from xtoolkit.recipe.plugins import builtin_folder, import_components

TABLE = '''
output: FOLDER/out
seeds: [1]
recipe: long.yaml
columns:
  Plain:  {}
  Longer: {set: [train.steps=2]}
controls:
  random weights: {set: [init=null]}
  fewer steps:    {set: [train.steps=1]}
rows:
  Row: {recipe: long.yaml, metrics: {told: test.accuracy}, controls: [random weights, fewer steps]}
'''


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The toy table, its task in a plugin that takes figures from a helper beside it and from a package's inner module."""
    folder = tmp_path_factory.mktemp("helped")
    toy_table.write(folder)
    (folder / "table.yaml").write_text(TABLE.replace("FOLDER", str(folder)))
    (folder / "beside_helped.py").write_text("ENOUGH = 1\n")
    (folder / "lab_of_helped/inner").mkdir(parents=True)
    for name, text in (("__init__", ""), ("inner/__init__", ""), ("inner/count", "from lab_of_helped.unit import ONE\n"), ("unit", "ONE = 1\n")):
        (folder / f"lab_of_helped/{name}.py").write_text(text)
    task = (folder / "long.py").read_text().replace("Long", "Helped").replace("tokens\n\n", "tokens * ENOUGH * count.ONE\n\n", 1)
    (folder / "helped.py").write_text(f"import torch\nfrom beside_helped import ENOUGH\nfrom lab_of_helped.inner import count\n{task}")
    (folder / "long.yaml").write_text((folder / "long.yaml").read_text().replace("long.py", "helped.py").replace("Long", "Helped"))
    sys.path.insert(0, str(folder))
    yield folder
    sys.path.remove(str(folder))


def jobs(folder):
    keys.forget()
    return Jobs(read(str(folder / "table.yaml")), str(folder), threads=1)


def test_a_helper_that_a_plugin_imports_by_name_makes_its_jobs_stale(folder):
    for job in jobs(folder).all():
        job.folder.mkdir(parents=True)
        write_done(job, 1.0)
    for helper in (folder / "beside_helped.py", folder / "lab_of_helped/unit.py"):
        text = helper.read_text()
        helper.write_text(f"# A comment is no change.\n{text}")
        assert {job.state for job in jobs(folder).all()} == {"finished"}
        helper.write_text(text.replace("= 1", "= 2"))
        assert {job.state for job in jobs(folder).all()} == {"stale"}
        helper.write_text(text)


def test_of_installed_packages_nothing_is_read(folder):
    assert {file.relative_to(folder).as_posix() for file in keys.imported(folder / "helped.py") if file.is_relative_to(folder)} == {
        "beside_helped.py", "lab_of_helped/inner/__init__.py", "lab_of_helped/inner/count.py"}
    assert all(file.is_relative_to(folder) or file.is_relative_to(keys.PACKAGE) for file in keys.imported(folder / "helped.py"))


def test_plugins_that_import_one_another_count(folder):
    import_components()
    assert builtin_folder() / "siglip.py" in keys.imported(builtin_folder() / "siglip2/contrast.py")


def test_two_files_of_one_name_both_count(tmp_path, monkeypatch):
    for name, text in (("one/__init__.py", "A = 1\n"), ("two/__init__.py", "B = 1\n")):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_text(text)
    monkeypatch.setattr(keys, "components", lambda recipe: [type(name, (), {"__module__": f"file_{name}"}) for name in ("one", "two")])
    for name in ("one", "two"):
        monkeypatch.setitem(sys.modules, f"file_{name}", type(sys)(f"file_{name}"))
        sys.modules[f"file_{name}"].__file__ = str(tmp_path / name / "__init__.py")
    before = keys.code(None)
    for name in ("one", "two"):
        (tmp_path / name / "__init__.py").write_text("C = 2\n")
        keys.forget()
        assert keys.code(None) != before
        before = keys.code(None)


def test_a_control_of_random_weights_needs_no_pretrained_run(folder):
    of = jobs(folder)
    random = [of.cell(column, "Row", "random weights", 1) for column in ("Plain", "Longer")]
    assert [job.after for job in random] == [[], []] and random[0].key == random[1].key
    assert not any("<0>" in line or str(folder / "out/plain") in line for line in random[0].overrides if not line.startswith("train.output"))
    others = [of.cell(column, "Row", "fewer steps", 1) for column in ("Plain", "Longer")]
    assert all(job.after for job in others) and others[0].key != others[1].key
    assert [str(job) for job in of.all([("Plain", "Row")])] == ["Plain, seed 1", "Plain, Row, seed 1", "Plain, Row, random weights, seed 1",
                                                               "Plain, Row, fewer steps, seed 1"]


def test_weights_that_a_recipe_starts_from_are_in_its_key(folder, tmp_path):
    (tmp_path / "table.yaml").write_text(TABLE.replace("FOLDER/out", str(tmp_path / "out")).replace("recipe: long", f"recipe: {folder}/long").replace(
        "{set: [train.steps=2]}", f"{{set: [init={tmp_path}/start.safetensors]}}"))
    found = set()
    for content in (1, 2):
        save_file({"weight": torch.full((2,), content)}, tmp_path / "start.safetensors")
        keys.forget()
        of = Jobs(read(str(tmp_path / "table.yaml")), str(folder))
        found.add((of.pretrained("columns", "Longer", 1).key, of.pretrained("columns", "Plain", 1).key))
    assert len({one for one, _ in found}) == 2 and len({other for _, other in found}) == 1


def test_the_device_that_a_recipe_names_is_in_its_key(folder, tmp_path):
    (tmp_path / "table.yaml").write_text(TABLE.replace("FOLDER/out", str(tmp_path / "out")).replace("recipe: long", f"recipe: {folder}/long").replace(
        "train.steps=2", "train.device=cpu"))
    of = Jobs(read(str(tmp_path / "table.yaml")), str(folder))
    assert of.pretrained("columns", "Longer", 1).key != of.pretrained("columns", "Plain", 1).key


def test_a_task_reaches_no_other():
    from xtoolkit import recipe as recipes

    files = set(keys.code(recipes.load("projects/xfm/finetune/tiny/cola.yaml", missing_files=False)))
    assert "xtoolkit/tasks/accuracy.py" in files and "xtoolkit/tasks/servers.py" in files
    assert not files & {"xtoolkit/tasks/vqa.py", "xtoolkit/tasks/boxes.py", "xtoolkit/metrics/bootstrap.py", "xtoolkit/tasks/__init__.py"}
