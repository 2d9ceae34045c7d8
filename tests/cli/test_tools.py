"""The commands, as typed."""

import importlib
import os
import re
import shlex
import subprocess
import sys

import pytest

from commands import ROOT, TOOLS, tool
from xtoolkit.cli import recipes
from xtoolkit.cli.main import COMMANDS
from xtoolkit.recipe.plugins import IMPORTED
from xtoolkit.registry import DATASET_REGISTRY, ENCODER_REGISTRY, HOOK_REGISTRY, LOSS_REGISTRY, TASK_REGISTRY, ConfigError

def shell(line, folder=ROOT):
    """A line of bash in which `xtoolkit` is the command of this checkout."""
    here = os.environ | {"PYTHONPATH": str(ROOT)}
    define = f"set -o pipefail; xtoolkit() {{ {sys.executable} -m xtoolkit \"$@\"; }}; "
    return subprocess.run(["bash", "-c", define + line], capture_output=True, text=True, cwd=folder, env=here)


def test_every_tool_is_nine_lines_that_hand_over_to_a_command():
    said = {name: re.search(r"`xtoolkit (\w+)`", path.read_text())[1] for name, path in TOOLS.items()}
    assert set(said.values()) == COMMANDS.keys() - {"evaluate"}  # which is `train --eval-only`
    assert all(len(path.read_text().splitlines()) == 9 for path in TOOLS.values())
    assert all(tool(name).main is importlib.import_module(f"xtoolkit.cli.{command}").main for name, command in said.items())


def test_help_names_every_command_and_imports_nothing_heavy():
    code = ("import sys; from xtoolkit.cli.main import main\ntry:\n    main(['--help'])\nexcept SystemExit as e:\n"
            "    print(e.code, {'torch', 'numpy', 'yaml', 'transformers', 'timm'} & set(sys.modules))")
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT).stdout
    assert out.splitlines()[-1] == "0 set()"
    for name, what in COMMANDS.items():
        assert re.search(rf"^  {name} +{re.escape(what)}$", out, re.M)


def test_a_misspelt_command_is_answered_with_the_nearest():
    done = shell("xtoolkit trian --config xfm/tiny.yaml")
    assert done.returncode == 2 and "no command `trian`; did you mean `train`?" in done.stderr


@pytest.mark.parametrize("line", ["xtoolkit list", f"{sys.executable} tools/list_components.py", "xtoolkit list recipes",
                                  "xtoolkit plan --help", "xtoolkit --help"])
def test_a_reader_that_has_gone_is_no_traceback(line):
    done = shell(f"{{ sleep 0.2; {line}; }} | true")
    assert done.stderr == "" and done.returncode in (0, 1)


def test_list_prints_every_component_with_its_keys(capsys):
    assert tool("list_components").main([]) == 0
    out = capsys.readouterr().out
    for registry in (ENCODER_REGISTRY, LOSS_REGISTRY, TASK_REGISTRY, DATASET_REGISTRY, HOOK_REGISTRY):
        for name in registry.names():
            assert re.search(rf"^{name}: \S", out, re.M), f"{name} has no first docstring line"
    itm = out[out.index("\nITM: "):].split("\n\n")[0]
    assert "runs it on 3x the batch" in itm and "no gradient" in itm
    assert re.search(r"width +an integer of at least 1; default 768", out)
    assert "its head lm_logits" in out and "xfm/tiny.yaml" in out


def test_list_has_straight_columns_and_the_values_of_yaml(capsys):
    assert tool("list_components").main(["datasets"]) == 0
    blocks = capsys.readouterr().out.split("\n\n")[1:]
    assert not re.search("default (None|False|True)", "".join(blocks)) and "default null" in "".join(blocks)
    keys = re.compile(r" {4,8}(?! )(?=\S+ +.*; (?:required|default))\S+ +")
    for block in blocks:
        assert len({found.end() for line in block.splitlines()[2:] if (found := keys.match(line))}) <= 1, block


@pytest.mark.parametrize("kind, said", [("recipe", "did you mean `recipes`?"), ("ITC", "one of the losses: xtoolkit list losses")])
def test_a_kind_that_is_none_is_answered_with_the_nearest(kind, said, capsys):
    with pytest.raises(SystemExit, match="2"):
        tool("list_components").main([kind])
    assert said in capsys.readouterr().err


def test_list_says_which_moments_a_hook_defines(capsys):
    tool("list_components").main(["hooks"])
    assert re.search(r"^    defines: .*after_backward", capsys.readouterr().out, re.M)


def test_list_shows_a_plugin_that_says_nothing_or_fails_to(tmp_path, capsys):
    (tmp_path / "wordless.py").write_text(
        "from xtoolkit.losses.base import Loss\nfrom xtoolkit.registry import LOSS_REGISTRY\n\n\n@LOSS_REGISTRY.register\n"
        "class Wordless(Loss):\n    def __init__(self):\n        super().__init__()\n\n    @classmethod\n"
        "    def needs(cls, block):\n        return [block['featur']]\n")
    try:
        assert tool("list_components").main(["losses", "--plugins", str(tmp_path / "wordless.py")]) == 0
    finally:
        LOSS_REGISTRY._obj_map.pop("Wordless")
        IMPORTED.pop("wordless")
    out = capsys.readouterr().out
    assert "Wordless: (no docstring)\n    needs: cannot be told: KeyError: featur (wordless.py:12)" in out


def test_ranks_of_one_machine_answer_once(capsys, monkeypatch):
    for rank, said in (("0", True), ("1", False)):
        monkeypatch.setenv("LOCAL_RANK", rank)
        assert tool("plan").main(["--config", "nowhere.yaml"]) == 2
        assert ("no such recipe" in capsys.readouterr().err) is said


@pytest.mark.parametrize("name", ["train_net", "plan", "convert_checkpoint"])
def test_two_recipes_are_refused(name, capsys):
    with pytest.raises(SystemExit) as left:
        tool(name).main(["--config", "a.yaml", "--config", "b.yaml"])
    assert left.value.code == 2 and "--config: given twice, a.yaml and b.yaml: name one" in capsys.readouterr().err


def test_list_of_one_kind(capsys):
    tool("list_components").main(["losses"])
    out = capsys.readouterr().out
    assert "SigLIP" in out and "BEiTv2" not in out and "tiny.yaml" not in out


@pytest.mark.parametrize("name", ["plan", "train_net"])
def test_a_misspelt_recipe_is_one_line_with_the_nearest(name, capsys, monkeypatch):
    monkeypatch.chdir(ROOT)
    assert tool(name).main(["--config", "projects/xfm/tinny.yaml"]) == 2
    assert "projects/xfm/tinny.yaml: no such recipe; did you mean `projects/xfm/tiny.yaml`?" in capsys.readouterr().err


def test_recipes_are_found_by_name_from_anywhere_a_file_comes_first(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert {"xfm/base.yaml", "xfm/tiny.yaml"} <= set(recipes.runnable())
    assert {"xfm/model_base.yaml", "xfm/model_tiny.yaml"} <= set(recipes.names()) - set(recipes.runnable())
    ours = str(ROOT / "projects/xfm/tiny.yaml")
    assert recipes.find("xfm/tiny.yaml") == recipes.find("projects/xfm/tiny.yaml") == ours
    (tmp_path / "xfm").mkdir()
    (tmp_path / "xfm" / "tiny.yaml").touch()
    assert recipes.find("xfm/tiny.yaml") == "xfm/tiny.yaml"


def test_the_commands_of_the_readme_are_commands_on_recipes_that_are_there(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    page = (ROOT / "README.md").read_text()
    lines = [line for block in re.findall(r"```bash\n(.*?)```", page, re.S) for line in block.splitlines() if "xtoolkit " in line]
    assert len(lines) >= 8
    for line in lines:
        command, *words = shlex.split(line[line.index("xtoolkit ") + len("xtoolkit "):], comments=True)
        assert command in COMMANDS
        if "--config" in words:
            recipes.find(words[words.index("--config") + 1])


def test_a_recipe_inherits_from_those_of_the_toolkit(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.yaml").write_text("_BASE_: xfm/tiny.yaml\ntrain: {steps: 7}\n")
    found = recipes.read("mine.yaml", missing_files=False)
    assert found.train.steps == 7 and found.tokenizer == "sample://picturebook/tokenizer"
    (tmp_path / "mine.yaml").write_text("_BASE_: xfm/tyni.yaml\n")
    with pytest.raises(ConfigError, match="mine.yaml:1: `_BASE_` xfm/tyni.yaml: no such file .*did you mean `xfm/tiny.yaml`"):
        recipes.read("mine.yaml", missing_files=False)


def test_what_is_missing_is_answered_with_a_recipe_that_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    assert tool("train_net").main(["--config", "xfm/base.yaml"]) == 2
    assert capsys.readouterr().err.endswith("xtoolkit train --config xfm/tiny.yaml\n")
