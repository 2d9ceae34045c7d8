"""The worked example of a plugin, as docs/plugins.md walks through it, and how plugins are found."""

import dataclasses
import math
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from xtoolkit.batch import Batch, ImageField, TextField
from xtoolkit.encoders.similarity import Scores
from xtoolkit.recipe.plugins import check_copies, copy_plugins, find, import_components, import_plugins, record
from xtoolkit.registry import LOSS_REGISTRY, ConfigError

ROOT = Path(__file__).resolve().parents[2]
import_components()


def batch(rows, same=()):
    key = torch.arange(rows)
    for a, b in same:
        key[b] = key[a]
    ids = torch.zeros(rows, 2, dtype=torch.long)
    return Batch(text=TextField(ids, ids == 0, torch.arange(rows)), image=ImageField(torch.zeros(rows, 3, 1, 1), key, None, list(range(rows))))


def build(**keys):
    return LOSS_REGISTRY.build({"type": "SigLIP", "sim": "sim", **keys}, "here")


@pytest.mark.parametrize("same", [(), ((0, 2),)])
def test_siglip_against_a_double_loop(same):
    logits = torch.randn(4, 4) * 3
    loss = build(bias=-2.0)
    found = loss(bound(logits), batch(4, same))
    expected = 0.0
    for i in range(4):
        for j in range(4):
            if i != j and ((i, j) in same or (j, i) in same):
                continue
            z = 1 if i == j else -1
            expected += math.log1p(math.exp(-z * (float(logits[i, j]) - 2.0)))
    assert found.item() == pytest.approx(expected / 4, rel=1e-5)


def bound(logits):
    return {"sim": Scores(logits, logits.t(), 0, torch.tensor([1.0]))}


def test_its_bias_learns_and_its_keys_are_checked():
    loss = build()
    assert loss.bias.item() == -10
    loss(bound(torch.randn(3, 3)), batch(3)).backward()
    assert loss.bias.grad.abs() > 0
    with pytest.raises(ConfigError, match="unknown key `bais` of SigLIP; did you mean `bias`"):
        build(bais=1.0)


PLUGIN = """
from xtoolkit.registry import LOSS_REGISTRY
from xtoolkit.losses.base import Loss

@LOSS_REGISTRY.register
class {name}(Loss):
    def __init__(self):
        super().__init__()

    @classmethod
    def needs(cls, block):
        return []
"""


def imported(entries, folder, copies=None):
    """What is wrong with them; nothing if all are imported."""
    return import_plugins(entries, "f.yaml:3", folder, copies)[1]


def test_a_plugin_by_path_by_module_and_twice(tmp_path, monkeypatch):
    (tmp_path / "by_path.py").write_text(PLUGIN.format(name="MineByPath"))
    assert imported(["by_path.py"], tmp_path) == []
    assert imported(["by_path.py"], tmp_path) == []  # one class, registered once
    assert "MineByPath" in LOSS_REGISTRY.names()
    (tmp_path / "installed_plugin.py").write_text(PLUGIN.format(name="MineByModule"))
    monkeypatch.syspath_prepend(str(tmp_path))
    assert imported(["installed_plugin"], ".") == []
    assert "MineByModule" in LOSS_REGISTRY.names() and "installed_plugin" in sys.modules
    assert imported(["no_module"], ".") == ["f.yaml:3: plugin no_module: no such file, and no module of this name is installed"]


def test_the_same_content_is_the_same_plugin_the_same_name_with_another_is_refused(tmp_path):
    for place, name in (("here", "MineHere"), ("there", "MineHere"), ("elsewhere", "MineElsewhere")):
        (tmp_path / place).mkdir()
        (tmp_path / place / "of_one_name.py").write_text(PLUGIN.format(name=name))
    assert imported(["of_one_name.py"], tmp_path / "here") == []
    assert imported(["of_one_name.py"], tmp_path / "there") == []  # else registering it again would fail
    problem, = imported(["of_one_name.py"], tmp_path / "elsewhere")
    assert str(tmp_path / "elsewhere/of_one_name.py") in problem and str(tmp_path / "here/of_one_name.py") in problem
    assert "rename one of them" in problem
    (tmp_path / "here/of_one_name.py").write_text(PLUGIN.format(name="Edited"))  # in a notebook, say
    assert "is not the `of_one_name` that is imported already" in imported(["of_one_name.py"], tmp_path / "here")[0]


def test_copies_hold_packages_whole_and_are_imported_from_an_empty_place(tmp_path, monkeypatch):
    """A package by its path with a module beside its __init__, and a module deep in an installed one."""
    whole, deep = tmp_path / "there" / "whole_package", tmp_path / "there" / "outer" / "deep_package"
    for folder, name in ((whole, "MineWhole"), (deep, "MineDeep")):
        folder.mkdir(parents=True)
        (folder / "__init__.py").write_text("")
        (folder / "inner.py").write_text(PLUGIN.format(name=name))
        (folder / "words.txt").write_text("read by inner\n")
        (folder / "__pycache__").mkdir()
        (folder / "__pycache__" / "inner.pyc").write_text("")
    (whole / "__init__.py").write_text("from . import inner\n")
    code = f"""
import sys
from pathlib import Path
from xtoolkit.recipe.plugins import copy_plugins, import_components, import_plugins
from xtoolkit.registry import LOSS_REGISTRY
import_components()
folder, copies = sys.argv[1], Path({str(tmp_path / "copies")!r})
plugins, problems = import_plugins(["whole_package", "outer.deep_package.inner"], "here", folder, copies)
assert not problems, problems
copy_plugins(plugins, copies)
assert {{"MineWhole", "MineDeep"}} <= set(LOSS_REGISTRY.names()) and "outer.deep_package.inner" in sys.modules
print(sorted(p.relative_to(copies).as_posix() for p in copies.rglob("*") if p.is_file() and p.suffix != ".pyc"))
"""
    (tmp_path / "empty").mkdir()
    run = lambda folder, path: subprocess.run(
        [sys.executable, "-c", code, str(folder)], capture_output=True, text=True, cwd=tmp_path / "empty",
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *path])})
    first = run(tmp_path / "there", [str(tmp_path / "there")])
    assert first.stdout.strip() == str(sorted(f"{package}/{file}" for package in ("whole_package", "outer/deep_package")
                                              for file in ("__init__.py", "inner.py", "words.txt"))), first.stderr
    shutil.rmtree(tmp_path / "there")
    second = run(tmp_path / "empty", [])
    assert second.stdout == first.stdout, second.stderr


@pytest.mark.parametrize("entry, beside", [("..", "inner"), ("../", "inner"), (".", "."), ("./", "."), ("inner/..", ".")])
def test_a_package_named_by_dots_is_copied_under_its_own_name_and_nothing_else_is_touched(tmp_path, entry, beside):
    package, run = tmp_path / "dotted_package", tmp_path / "run"
    (package / "inner").mkdir(parents=True)
    (package / "__init__.py").write_text("")
    (run / "checkpoints").mkdir(parents=True)
    (run / "checkpoints" / "kept").write_text("")
    plugin = find(entry, package / beside)
    assert (plugin.name, plugin.path) == ("dotted_package", package)
    for text in ("", "edited = True\n", ""):
        (package / "__init__.py").write_text(text)
        plugin = find(entry, package / beside)
        copy_plugins([plugin], run / "plugins")
        assert (run / "plugins/dotted_package/__init__.py").read_text() == text
        assert find(entry, tmp_path / "nowhere", run / "plugins", record([plugin])).path == run / "plugins/dotted_package"
    assert sorted(p.name for p in run.iterdir()) == ["checkpoints", "plugins"] and (run / "checkpoints/kept").is_file()
    with pytest.raises(ConfigError, match="lies in the plugin .*dotted_package.*: name a folder outside it"):
        check_copies([plugin], package / "outputs" / "run")
    with pytest.raises(ConfigError, match="outside .*plugins: name the plugin itself"):
        copy_plugins([dataclasses.replace(plugin, copy=Path(".."))], run / "plugins")
    assert (run / "checkpoints/kept").is_file()


def test_names_that_begin_alike_or_hold_dots_are_names_of_their_own(tmp_path):
    for file, name in (("prefix_extra.py", "PrefixExtra"), ("prefix.py", "Prefix"), ("prefix.more.py", "PrefixMore")):
        (tmp_path / file).write_text(PLUGIN.format(name=name))
        assert imported([file], tmp_path) == [] and imported([file], tmp_path) == []
        assert find(file, tmp_path).imported() and name in LOSS_REGISTRY.names()
    (tmp_path / "prefix.more.py").write_text(PLUGIN.format(name="Another"))
    assert "is not the `prefix.more` that is imported already" in imported(["prefix.more.py"], tmp_path)[0]


def test_each_checkpoint_finds_the_copy_that_it_was_trained_with(tmp_path):
    (tmp_path / "edited.py").write_text("version = 1\n")
    copies, records = tmp_path / "run" / "plugins", []
    for version in (1, 2, 3, 2):
        (tmp_path / "edited.py").write_text(f"version = {version}\n")
        plugin = find("edited.py", tmp_path)
        copy_plugins([plugin], copies)
        records.append(record([plugin]))
    for version, known in zip((1, 2, 3, 2), records):
        assert find("edited.py", tmp_path / "nowhere", copies, known).path.read_text() == f"version = {version}\n"
    assert find("edited.py", tmp_path / "nowhere", copies).path == copies / "edited.py", "without a record the newest"
