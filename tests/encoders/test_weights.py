"""Reading weight files, and loading them strictly."""

import argparse

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from xtoolkit.encoders.weights import WeightsError, load_strictly, read_weights


@pytest.fixture
def state():
    return {"weight": torch.randn(2, 3), "bias": torch.randn(2)}


def test_files_folders_and_wrappers_read_alike(tmp_path, state):
    torch.save(state, tmp_path / "plain.pt")
    torch.save({"model": {"module": state}, "epoch": 3, "args": argparse.Namespace(lr=1.0)}, tmp_path / "wrapped.pth")
    save_file(state, tmp_path / "safe.safetensors")
    (tmp_path / "shards").mkdir()
    for name, value in state.items():
        save_file({name: value}, tmp_path / "shards" / f"{name}.safetensors")
    (tmp_path / "hub").mkdir()
    torch.save(state, tmp_path / "hub" / "pytorch_model.bin")
    for place in ("plain.pt", "wrapped.pth", "safe.safetensors", "shards", "hub"):
        read = read_weights(str(tmp_path / place))
        assert read.keys() == state.keys() and all(torch.equal(read[k], state[k]) for k in state), place


def test_nothing_but_tensors_is_unpickled(tmp_path):
    torch.save({"weight": torch.zeros(2), "code": torch.nn.Linear(2, 2)}, tmp_path / "code.pt")
    with pytest.raises(WeightsError, match="code.pt: not a torch file of tensors alone"):
        read_weights(tmp_path / "code.pt")
    (tmp_path / "cut.pt").write_bytes((tmp_path / "code.pt").read_bytes()[:100])
    with pytest.raises(WeightsError, match="cut.pt: not a torch file"):
        read_weights(tmp_path / "cut.pt")
    torch.save({"weight": torch.zeros(2), "epoch": 3}, tmp_path / "mixed.pt")
    with pytest.raises(WeightsError, match="epoch"):
        read_weights(tmp_path / "mixed.pt")


def test_absent_and_ambiguous_places_are_told(tmp_path):
    with pytest.raises(WeightsError, match="no such file or folder"):
        read_weights(tmp_path / "nothing.pt")
    for name in ("a.pt", "b.pt"):
        torch.save({}, tmp_path / name)
    with pytest.raises(WeightsError, match=r"\['a.pt', 'b.pt'\]; name the file itself"):
        read_weights(tmp_path)


def test_patterns_allow_names_to_be_absent_or_left_over(state):
    module = nn.Linear(3, 2)
    load_strictly(module, {"weight": state["weight"], "head.weight": torch.zeros(1)}, "x",
                  ignore=["head.*"], may_miss=["bias"])
    assert torch.equal(module.weight, state["weight"])
    with pytest.raises(WeightsError, match="(?s)missing: bias.*unexpected: head.weight"):
        load_strictly(module, {"weight": state["weight"], "head.weight": torch.zeros(1)}, "x")
