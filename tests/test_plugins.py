"""The worked example of a plugin, as docs/plugins.md walks through it, and how plugins are found."""

import math

import pytest
import torch

from xtoolkit.batch import Batch, ImageField, TextField
from xtoolkit.encoders.similarity import Scores
from xtoolkit.recipe.plugins import import_components
from xtoolkit.registry import LOSS_REGISTRY, ConfigError

import_components()


def batch(rows, same=()):
    key = torch.arange(rows)
    for a, b in same:
        key[b] = key[a]
    ids = torch.zeros(rows, 2, dtype=torch.long)
    return Batch(TextField(ids, ids == 0, torch.arange(rows)), ImageField(torch.zeros(rows, 3, 1, 1), key, None, list(range(rows))))


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


def test_a_plugin_by_path_by_module_and_twice(tmp_path, monkeypatch):
    (tmp_path / "mine.py").write_text(
        "from xtoolkit.registry import LOSS_REGISTRY\nfrom xtoolkit.losses.base import Loss\n"
        "@LOSS_REGISTRY.register\nclass MineByPath(Loss):\n    '''Mine.'''\n    def __init__(self):\n        super().__init__()\n"
        "    @classmethod\n    def needs(cls, **block):\n        return []\n")
    import_components(["mine.py"], "here", str(tmp_path))
    import_components(["mine.py"], "here", str(tmp_path))  # one class, registered once
    assert "MineByPath" in LOSS_REGISTRY.names()
    module = tmp_path / "installed_plugin.py"
    module.write_text("marker = 1\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    import_components(["installed_plugin"], "here")
    with pytest.raises(ConfigError, match="f.yaml:3: plugin no_module fails to import: ModuleNotFoundError"):
        import_components(["no_module"], "f.yaml:3")
