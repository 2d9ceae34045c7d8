"""Reading weight files, and loading them strictly."""

import argparse
import os
import pickle

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from xtoolkit.cli.releases import releases
from xtoolkit.weights.files import WeightsError, load_strictly, read_weights, unwrap


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


def test_torch_shards_read_as_one_model_and_other_pairs_of_files_do_not(tmp_path, state):
    for number, (name, value) in enumerate(state.items(), 1):
        torch.save({name: value}, tmp_path / f"pytorch_model-0000{number}-of-00002.bin")
    read = read_weights(tmp_path)
    assert read.keys() == state.keys() and all(torch.equal(read[k], state[k]) for k in state)
    for name in ("model", "model.fp16"):  # the same names twice: which counts cannot be known
        save_file(state, tmp_path / f"{name}.safetensors")
    with pytest.raises(WeightsError, match="several files hold `.*`, so they are no shards of one model; name the file itself"):
        read_weights(tmp_path)


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "model.", "module._orig_mod.", "model.module."])
def test_a_wrapper_s_prefix_before_all_names_is_taken_off_and_told(state, prefix, capsys):
    module = nn.Linear(3, 2)
    load_strictly(module, {f"{prefix}{name}": tensor for name, tensor in state.items()}, "init x")
    assert torch.equal(module.weight, state["weight"]) and torch.equal(module.bias, state["bias"])
    assert capsys.readouterr().err == f"init x: all names begin with `{prefix}`, a wrapper's prefix; read without it\n"


def test_a_prefix_that_is_the_module_s_own_or_that_not_all_names_carry_stays(state, capsys):
    module = nn.ModuleDict({"model": nn.Linear(3, 2)})
    named = {f"model.{name}": tensor for name, tensor in state.items()}
    load_strictly(module, named, "x")
    load_strictly(module, {f"module.{name}": tensor for name, tensor in named.items()}, "x")
    assert torch.equal(module["model"].weight, state["weight"])
    assert capsys.readouterr().err.count("\n") == 1
    mixed = {"module.weight": state["weight"], "bias": state["bias"]}
    assert unwrap(mixed, "x").keys() == mixed.keys() and not capsys.readouterr().err


class Code:
    def __reduce__(self):
        return os.system, ("exit 1",)


@pytest.mark.parametrize("content", [b"", b"hello there\n" * 9, pickle.dumps({"weight": Code()}), pickle.dumps([1] * 99)])
def test_any_file_that_is_no_torch_file_is_one_line(tmp_path, content):
    (tmp_path / "x.bin").write_bytes(content)
    with pytest.raises(WeightsError, match="x.bin: not a torch file of tensors alone .*; nothing in it was run") as error:
        read_weights(tmp_path / "x.bin")
    assert "\n" not in str(error.value) and "weights_only=False" not in str(error.value)


def test_what_a_torch_file_holds_beside_tensors_is_named(tmp_path):
    torch.save({"weight": Code()}, tmp_path / "x.pt")
    with pytest.raises(WeightsError, match="it holds posix.system"):
        read_weights(tmp_path / "x.pt")


def test_a_damaged_safetensors_file_is_one_line(tmp_path, state):
    save_file(state, tmp_path / "x.safetensors")
    whole = (tmp_path / "x.safetensors").read_bytes()
    for content in (b"", whole[:20], whole[:-4], b"\xff" * 99):
        (tmp_path / "x.safetensors").write_bytes(content)
        with pytest.raises(WeightsError, match="x.safetensors: not a whole safetensors file"):
            read_weights(tmp_path / "x.safetensors")


def test_whole_numbers_do_not_fill_weights(state):
    with pytest.raises(WeightsError, match="other type: weight int64 there, float32 here"):
        load_strictly(nn.Linear(3, 2), {**state, "weight": torch.zeros(2, 3, dtype=torch.int64)}, "x")


def test_an_allowed_name_of_another_shape_keeps_its_own_values(state):
    module = nn.Linear(3, 2)
    before = module.weight.clone()
    load_strictly(module, {**state, "weight": torch.zeros(5, 5)}, "x", ignore=["w*"], may_miss=["weight"])
    assert torch.equal(module.weight, before) and torch.equal(module.bias, state["bias"])


@pytest.mark.parametrize("names, what", [
    (["vision_encoder.cls_token", "text_encoder.roberta.x"], "the X-FM release; convert it: xtoolkit convert"),
    (["encoders.vision.cls_token"], "a model of this toolkit; give it to a recipe's top-level `init`"),
    (["text_encoder.bert.x"], "the X2-VLM release; convert it: xtoolkit convert --config F --from x2vlm"),
    (["beit.layers.0.lambda_1", "beit.embeddings.cls_token"], "BEiT as Hugging Face's transformers store it"),
    (["layers.0.attention.q_proj.bias", "layers.0.lambda_1"], "BEiT as Hugging Face's transformers store it"),
    (["encoder.layer.0.attention.attention.query.bias", "embeddings.patch_embeddings.projection.bias"],
     "a vision transformer that is no BEiT"),
    (["blocks.0.gamma_1", "patch_embed.proj.weight"], "BEiT as unilm or timm store it"),
    (["blocks.0.norm1.weight", "patch_embed.proj.weight"], "a vision transformer that is no BEiT"),
    (["embeddings.word_embeddings.weight", "encoder.layer.0.output.dense.bias"], "RoBERTa as Hugging Face stores it"),
])
def test_weights_of_another_format_are_told_what_they_are(names, what):
    releases()
    with pytest.raises(WeightsError) as error:
        load_strictly(nn.Linear(3, 2), {n: torch.zeros(1) for n in names}, "x")
    assert f"these names are those of {what}" in str(error.value).splitlines()[-1]


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_numbers_that_are_none_do_not_fill_weights_buffers_may_hold_them(state, value):
    module, bad = nn.Linear(3, 2), {**state, "bias": state["bias"].clone()}
    before, bad["bias"][1] = module.weight.clone(), value
    with pytest.raises(WeightsError, match="(?s)^x holds numbers that are none .*:\n  in bias\n  it is damaged, or of a run that"):
        load_strictly(module, bad, "x")
    assert torch.equal(module.weight, before)
    module.register_buffer("never", torch.zeros(1))
    load_strictly(module, {**state, "never": torch.tensor([value])}, "x")
