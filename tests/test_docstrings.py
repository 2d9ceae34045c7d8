"""Every registered component shows the YAML that builds it, and that YAML is right."""

import inspect
import re

import pytest

from xtoolkit.recipe.config import load
from xtoolkit.data import paths
from xtoolkit.recipe.plugins import import_components
from xtoolkit.registry import (
    DATASET_REGISTRY, ENCODER_REGISTRY, HOOK_REGISTRY, LOSS_REGISTRY, TASK_REGISTRY, check, schema,
)

import_components()
REGISTRIES = (ENCODER_REGISTRY, LOSS_REGISTRY, TASK_REGISTRY, DATASET_REGISTRY, HOOK_REGISTRY)
COMPONENTS = [(registry, name) for registry in REGISTRIES for name in registry.names()
              if registry.get(name).__module__.startswith(("xtoolkit.", "plugins."))]


def example(cls, tmp_path):
    text = re.sub(r"\s*\n\s*", " ", inspect.getdoc(cls))
    found = re.search(r"YAML: (\{.*?\})(?= [A-Z]|$)", text)
    assert found, f"{cls.__name__}: the docstring has no line `YAML: {{type: {cls.__name__}, ...}}`"
    path = tmp_path / "example.yaml"
    path.write_text("block: " + found[1] + "\n")
    return load(str(path)).data["block"]


@pytest.mark.parametrize("registry, name", COMPONENTS, ids=[n for _, n in COMPONENTS])
def test_the_yaml_of_a_docstring_is_right(registry, name, tmp_path):
    cls = registry.get(name)
    block = example(cls, tmp_path)
    assert block["type"] == name
    assert check(cls, block, "docstring", beside=registry.beside) == []
    if registry is DATASET_REGISTRY:
        assert cls.check(block) == []
        assert [paths.problem(path) for _, path in cls.paths(block) if path.startswith("sample://") and paths.problem(path)] == []


@pytest.mark.parametrize("registry, name", COMPONENTS, ids=[n for _, n in COMPONENTS])
def test_every_key_is_documented(registry, name):
    cls = registry.get(name)
    text = inspect.getdoc(cls)
    undocumented = [key for key in schema(cls) if f"{key}:" not in text]
    assert not undocumented or name.startswith("Synthetic"), undocumented
