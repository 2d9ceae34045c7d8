"""The command-line tools, as typed."""

import importlib.util
import re
from pathlib import Path

import pytest

from xtoolkit.registry import DATASET_REGISTRY, ENCODER_REGISTRY, LOSS_REGISTRY, TASK_REGISTRY

ROOT = Path(__file__).resolve().parent.parent


def tool(name):
    spec = importlib.util.spec_from_file_location(name, ROOT / "tools" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module  # what it imports, ``main``, is the command


def test_list_components_prints_every_component_with_its_keys(capsys):
    assert tool("list_components").main([]) == 0
    out = capsys.readouterr().out
    for registry in (ENCODER_REGISTRY, LOSS_REGISTRY, TASK_REGISTRY, DATASET_REGISTRY):
        for name in registry.names():
            assert re.search(rf"^{name}: \S", out, re.M), f"{name} has no first docstring line"
    itm = out[out.index("\nITM: "):].split("\n\n")[0]
    assert "runs it on 3x the batch" in itm and "no gradient" in itm
    assert re.search(r"width +an integer; default 768", out)
    assert "its head lm_logits" in out


def test_list_components_of_one_kind(capsys):
    tool("list_components").main(["losses"])
    out = capsys.readouterr().out
    assert "SigLIP" in out and "BEiTv2" not in out


@pytest.mark.parametrize("name", ["plan", "train_net"])
def test_a_misspelt_file_is_one_line(name, capsys):
    assert tool(name).main(["--config", "projects/xfm/tinny.yaml"]) == 2
    assert "projects/xfm/tinny.yaml: cannot be read: No such file or directory" in capsys.readouterr().err
