"""tools/convert_checkpoint.py on files: round trips bit for bit, readers of other libraries, one clear error a wrong file."""

import os
import pickle
from pathlib import Path

import pytest
import torch
from convert_recipes import tiny, write
from release_names import BASE, release_state
from safetensors.torch import load_file, save_file
from commands import tool
from test_xfm import DEAD

from xtoolkit.batch import ImageField, TextField
from xtoolkit.data.images import CLIP_MEAN, CLIP_STD
from xtoolkit.encoders.beit import relative_position_index
from xtoolkit.engine.initial import load_model_weights
from xtoolkit.model import Model

ROOT = Path(__file__).resolve().parents[2]


def convert(*arguments) -> int:
    return tool("convert_checkpoint").main([str(a) for a in arguments])


def equal(a: dict, b: dict) -> bool:
    return a.keys() == b.keys() and all(a[n].dtype == b[n].dtype and torch.equal(a[n], b[n]) for n in a)


def unshared(state):
    return {n: t.clone() for n, t in state.items()}


@pytest.fixture
def config(tmp_path):
    return write(tmp_path)


def test_the_release_goes_in_and_out_bit_for_bit(tmp_path, config, capsys):
    release = release_state()
    torch.save({"model": release, "config": {"image_res": 224}, "optimizer": {"state": {}}, "epoch": 3}, tmp_path / "xfm.th")
    assert convert("--config", config, "--from", "xfm", tmp_path / "xfm.th", tmp_path / "new/xfm.safetensors") == 0
    out = capsys.readouterr().out
    assert all(f"dropped: {name}: dead" in out for name in DEAD)
    assert "changed: encoders.sim.temperature: () reshaped to (1,)" in out
    assert f"`init: {tmp_path / 'new/xfm.safetensors'}`" in out
    model = Model(tiny(tmp_path))
    load_model_weights(model, tmp_path / "new/xfm.safetensors")
    assert equal(model.state_dict(), load_file(tmp_path / "new/xfm.safetensors"))
    for name in ("back.safetensors", "back.th"):
        assert convert("--config", config, "--to", "xfm", tmp_path / "new/xfm.safetensors", tmp_path / name) == 0
    kept = {n: t for n, t in release.items() if n not in DEAD}
    assert equal(load_file(tmp_path / "back.safetensors"), kept)
    assert equal(torch.load(tmp_path / "back.th", weights_only=True)["model"], kept)


@pytest.mark.parametrize("head", [True, False])
def test_roberta_goes_in_and_out_bit_for_bit_and_computes_the_same(tmp_path, head):
    from transformers import RobertaConfig, RobertaForMaskedLM, RobertaModel

    config = write(tmp_path, *([] if head else ["losses.mlm=null", "streams.text=null"]))
    torch.manual_seed(3)
    theirs = RobertaForMaskedLM(RobertaConfig(
        vocab_size=60, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64, type_vocab_size=1,
        max_position_embeddings=24, pad_token_id=1, layer_norm_eps=1e-5, initializer_range=0.3)).eval()
    theirs.lm_head.bias.data.normal_()
    (theirs if head else theirs.roberta).save_pretrained(tmp_path / "hf")
    assert convert("--config", config, "--from", "roberta", tmp_path / "hf", tmp_path / "text.safetensors") == 0
    from xtoolkit import recipe as recipes

    recipe = recipes.load(config, [f"encoders.text.init={tmp_path / 'text.safetensors'}"], missing_files=False)
    model = Model(recipe).eval()
    model.load_init()
    save_file(unshared(model.state_dict()), tmp_path / "model.safetensors")
    assert convert("--config", config, "--to", "hf", tmp_path / "model.safetensors", tmp_path / "out") == 0
    first, again = load_file(tmp_path / "hf/model.safetensors"), load_file(tmp_path / "out/text/model.safetensors")
    strip = lambda state: {n.removeprefix("roberta."): t for n, t in state.items() if "decoder" not in n and "pooler" not in n}
    assert equal(strip(again), strip(first))

    ids = torch.tensor([[0, 8, 9, 10, 2], [0, 30, 2, 1, 1]])
    kind = RobertaForMaskedLM if head else RobertaModel
    options = {} if head else {"add_pooling_layer": False}
    reopened, found = kind.from_pretrained(tmp_path / "out/text", output_loading_info=True, **options)
    assert not found["missing_keys"] and not found["unexpected_keys"] and not found["mismatched_keys"]
    reopened.eval()
    with torch.no_grad():
        hidden = model.encoders["text"](view=None, text=TextField(ids, ids != 1)).tokens
        bare = reopened.roberta if head else reopened
        real = ids != 1
        expected = bare(input_ids=ids, attention_mask=real.long()).last_hidden_state
        torch.testing.assert_close(hidden[real], expected[real], atol=1e-5, rtol=1e-5)
        if head:
            logits = model.encoders["text"].lm_logits(hidden[real])
            expected = theirs(input_ids=ids, attention_mask=real.long()).logits[real]
            torch.testing.assert_close(logits, expected, atol=1e-5, rtol=1e-5)


def timm_beit(size=32):
    from timm.models.beit import Beit

    torch.manual_seed(4)
    model = Beit(img_size=size, patch_size=8, num_classes=0, embed_dim=16, depth=2, num_heads=2, init_values=0.1,
                 use_abs_pos_emb=False, use_rel_pos_bias=True).eval()
    for parameter in model.parameters():
        parameter.data.normal_(std=0.3)
    return model


def test_timm_goes_in_and_out_bit_for_bit_and_computes_the_same(tmp_path, config):
    import timm

    theirs = timm_beit()
    torch.save(theirs.state_dict(), tmp_path / "timm.pth")
    assert convert("--config", config, "--from", "beitv2", tmp_path / "timm.pth", tmp_path / "vision.safetensors") == 0
    from xtoolkit import recipe as recipes

    recipe = recipes.load(config, [f"encoders.vision.init={tmp_path / 'vision.safetensors'}"], missing_files=False)
    model = Model(recipe).eval()
    model.load_init()
    save_file(unshared(model.state_dict()), tmp_path / "model.safetensors")
    assert convert("--config", config, "--to", "hf", tmp_path / "model.safetensors", tmp_path / "out") == 0
    assert equal(load_file(tmp_path / "out/vision/model.safetensors"), dict(theirs.state_dict()))
    reopened = timm.create_model(f"local-dir:{tmp_path / 'out/vision'}", pretrained=True).eval()
    assert equal(dict(reopened.state_dict()), dict(theirs.state_dict()))
    assert [list(reopened.pretrained_cfg[k]) for k in ("mean", "std")] == [list(CLIP_MEAN), list(CLIP_STD)]
    pixels = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(reopened(pixels), theirs(pixels))
        tokens = model.encoders["vision"](view=None, image=ImageField(pixels, image_id=[0, 1])).tokens
        patches = theirs.fc_norm(theirs.forward_features(pixels)[:, 1:])
    torch.testing.assert_close(tokens[:, 1:], patches, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(tokens[:, 0], patches.mean(1), atol=1e-5, rtol=1e-5)


def unilm(size=32):
    """BEiTv2's own file of pretraining: one table for all blocks, a last norm, an output layer, a second head."""
    state = {n: t for n, t in timm_beit(size).state_dict().items() if "relative" not in n and not n.startswith("fc_norm")}
    grid = size // 8
    return state | {
        "mask_token": torch.randn(1, 1, 16),
        "rel_pos_bias.relative_position_bias_table": torch.randn((2 * grid - 1) ** 2 + 3, 2),
        "rel_pos_bias.relative_position_index": relative_position_index(grid), "norm.weight": torch.randn(16),
        "norm.bias": torch.randn(16), "lm_head.weight": torch.randn(50, 16), "lm_head.bias": torch.randn(50),
        "cls_pt_layers.0.norm1.weight": torch.randn(16)}


@pytest.mark.parametrize("size", [32, 48])
def test_unilm_s_file_converts_to_what_the_encoder_itself_would_load(tmp_path, config, capsys, size):
    state = unilm(size)
    torch.save({"model": state}, tmp_path / "pt.pth")
    assert convert("--config", config, "--from", "beitv2", tmp_path / "pt.pth", tmp_path / "vision.safetensors") == 0
    out = capsys.readouterr().out
    assert "made: blocks.1.attn.relative_position_bias_table: a copy of rel_pos_bias.relative_position_bias_table" in out
    assert ("(124, 2) resized to (52, 2): 4 x 4 patches" in out) == (size == 48)
    for name in ("lm_head.weight", "cls_pt_layers.0.norm1.weight", "norm.bias", "rel_pos_bias.relative_position_index"):
        assert f"dropped: {name}: " in out
    vision = Model(tiny(tmp_path)).encoders["vision"]
    states = []
    for file in ("pt.pth", "vision.safetensors"):
        vision.init_weights()
        vision.init = str(tmp_path / file)
        vision.load_init()
        states.append(unshared(vision.state_dict()))
    assert equal(*states) and torch.equal(states[0]["mask_token"], state["mask_token"])


def test_a_fused_bias_is_split(tmp_path, config):
    state = dict(timm_beit().state_dict())
    q, v = state.pop("blocks.0.attn.q_bias"), state.pop("blocks.0.attn.v_bias")
    state["blocks.0.attn.qkv.bias"] = torch.cat([q, torch.zeros_like(q), v])
    save_file(state, tmp_path / "fused.safetensors")
    assert convert("--config", config, "--from", "beitv2", tmp_path / "fused.safetensors", tmp_path / "v.safetensors") == 0
    written = load_file(tmp_path / "v.safetensors")
    assert torch.equal(written["blocks.0.attn.q_bias"], q) and torch.equal(written["blocks.0.attn.v_bias"], v)


class Code:
    def __reduce__(self):
        return os.system, ("echo ran",)


def another_vit():
    return {n: torch.zeros(1) for n in ("blocks.0.attn.qkv.weight", "patch_embed.proj.weight", "pos_embed")}


WRONG = {
    "x2vlm": ("xfm", lambda: {"text_encoder.bert.embeddings.LayerNorm.weight": torch.zeros(1), "temp": torch.tensor(1.)},
              "holds the X2-VLM release, not what --from xfm reads; convert it: xtoolkit convert --config F --from x2vlm"),
    "roberta as xfm": ("xfm", lambda: {"roberta.embeddings.word_embeddings.weight": torch.zeros(1)},
                       "holds RoBERTa as Hugging Face stores it, not what --from xfm reads; convert it: xtoolkit "),
    "bert": ("roberta", lambda: {"bert.embeddings.word_embeddings.weight": torch.zeros(1)}, "holds BERT as Hugging Face"),
    "vit": ("beitv2", another_vit, "holds a vision transformer that is no BEiT"),
    "unknown": ("xfm", lambda: {"conv1.weight": torch.zeros(2)}, "unexpected: conv1.weight (2,)"),
    "missing": ("xfm", lambda: {n: t for n, t in release_state().items() if n != "itm_head.3.bias"},
                "missing: losses.itm.head.3.bias"),
    "wider": ("xfm", lambda: release_state(width=32),
              "other shape: encoders.vision.cls_token (1, 1, 32) there, (1, 1, 16) here"),
    "deeper": ("xfm", lambda: release_state(layers=3), "unexpected: encoders.fusion.layer.2.attention.self.query.weight"),
    "vocabulary": ("xfm", lambda: release_state(vocab=61),
                   "other shape: losses.imlm.decoder.weight (61, 16) there, (60, 16) here"),
    "patches": ("xfm", lambda: release_state(patch=16), "patch_embed.proj.weight (16, 3, 16, 16) there, (16, 3, 8, 8) here"),
    "no head": ("roberta", lambda: {n.removeprefix("text_encoder."): t for n, t in release_state().items()
                                    if n.startswith("text_encoder.roberta.")}, "missing: lm_head.dense.weight"),
    "absolute positions": ("beitv2", lambda: unilm() | {"pos_embed": torch.zeros(1, 17, 16)}, "unexpected: pos_embed"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_file_is_one_clear_error(tmp_path, config, capsys, case):
    source, make, message = WRONG[case]
    torch.save(make(), tmp_path / "wrong.pth")
    assert convert("--config", config, "--from", source, tmp_path / "wrong.pth", tmp_path / "out.safetensors") == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("xtoolkit convert: ") and message in captured.err and "Traceback" not in captured.err
    assert str(tmp_path / "wrong.pth") in captured.err or case in ("unknown",)
    assert not captured.out and not (tmp_path / "out.safetensors").exists()


BYTES = {
    "pickle.th": (lambda: pickle.dumps({"model": Code()}), "nothing in it was run"),
    "cut.safetensors": (lambda: b"\x08\x00\x00\x00\x00\x00\x00\x00{}", "not a whole safetensors file"),
    "empty.th": (lambda: b"", "not a torch file of tensors alone"),
    "text.bin": (lambda: b"version https://git-lfs.github.com/spec/v1\n", "not a torch file of tensors alone"),
}


@pytest.mark.parametrize("name", BYTES)
def test_what_is_no_file_of_weights_is_one_line(tmp_path, config, capsys, name):
    make, message = BYTES[name]
    (tmp_path / name).write_bytes(make())
    assert convert("--config", config, "--from", "xfm", tmp_path / name, tmp_path / "out.safetensors") == 2
    captured = capsys.readouterr()
    assert message in captured.err and captured.err.count("\n") == 1 and "ran" not in captured.out


def test_places_that_cannot_be_read_or_written_are_told(tmp_path, config, capsys):
    (tmp_path / "there.safetensors").write_bytes(b"precious")
    save_file(unshared(release_state()), tmp_path / "xfm.safetensors")
    assert convert("--config", config, "--from", "xfm", tmp_path / "xfm.safetensors", tmp_path / "there.safetensors") == 2
    assert "exists already" in capsys.readouterr().err
    assert (tmp_path / "there.safetensors").read_bytes() == b"precious"
    assert convert("--config", config, "--from", "xfm", tmp_path / "none.th", tmp_path / "a.safetensors") == 2
    assert capsys.readouterr().err.endswith("none.th: no such file or folder\n"), "no key of a recipe is to be corrected"
    assert convert("--config", config, "--from", "xfm", tmp_path / "xfm.safetensors", tmp_path / "a.onnx") == 2
    assert "end the output's name with .safetensors" in capsys.readouterr().err
    assert convert("--config", config, "--to", "hf", tmp_path / "xfm.safetensors", tmp_path / "hf") == 2
    assert "holds the X-FM release, not a model of this toolkit" in capsys.readouterr().err
    assert convert("--config", tmp_path / "no.yaml", "--to", "hf", tmp_path / "xfm.safetensors", tmp_path / "hf") == 2
    assert "no.yaml" in capsys.readouterr().err
    assert not (tmp_path / "hf").exists()


def test_patterns_allow_what_may_differ(tmp_path, config):
    state = unshared(release_state())
    state["cls_head.weight"], state["itm_head.3.bias"] = torch.zeros(2), torch.zeros(5)
    save_file(state, tmp_path / "xfm.safetensors")
    arguments = ["--config", config, "--from", "xfm", tmp_path / "xfm.safetensors", tmp_path / "out.safetensors"]
    assert convert(*arguments) == 2
    assert convert(*arguments, "--allow-unexpected", "cls_head.*", "--allow-unexpected", "losses.itm.*", "--allow-missing",
                   "losses.itm.head.3.bias") == 0
    written = load_file(tmp_path / "out.safetensors")
    assert "losses.itm.head.3.bias" not in written and "losses.itm.head.3.weight" in written


@pytest.mark.parametrize("kind", ["BeitModel", "BeitForMaskedImageModeling"])
@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("saved", ["hf", "hf.pt"])
def test_transformers_beit_converts_and_computes_the_same(tmp_path, config, saved, shared, kind):
    """By ``save_pretrained`` and by ``torch.save(model.state_dict())``, whose names differ since transformers 5."""
    import transformers

    torch.manual_seed(5)
    theirs = getattr(transformers, kind)(transformers.BeitConfig(
        vocab_size=11, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64, image_size=32,
        patch_size=8, use_mask_token=True, use_absolute_position_embeddings=False, use_relative_position_bias=not shared,
        use_shared_relative_position_bias=shared, use_mean_pooling=True, layer_norm_eps=1e-6)).eval()
    for parameter in theirs.parameters():
        parameter.data.normal_(std=0.3)
    theirs.save_pretrained(tmp_path / "hf")
    torch.save(theirs.state_dict(), tmp_path / "hf.pt")
    assert convert("--config", config, "--from", "beitv2", tmp_path / saved, tmp_path / "vision.safetensors") == 0
    # A file of pretraining has no norm over patches: ours starts at 1 and 0.
    norm = theirs.pooler.layernorm if kind == "BeitModel" else torch.nn.LayerNorm(16, eps=1e-6)
    layers = theirs if kind == "BeitModel" else theirs.beit
    vision = Model(tiny(tmp_path)).encoders["vision"].eval()
    for place in ("vision.safetensors", saved):
        vision.init_weights()
        vision.init = str(tmp_path / place)
        vision.load_init()
        pixels = torch.randn(2, 3, 32, 32)
        with torch.no_grad():
            tokens = vision(view=None, image=ImageField(pixels, image_id=[0, 1])).tokens
            expected = norm(layers(pixels).last_hidden_state[:, 1:])
        torch.testing.assert_close(tokens[:, 1:], expected, atol=1e-5, rtol=1e-5)


def test_a_wrapper_s_prefix_is_taken_off_and_told(tmp_path, config, capsys):
    torch.save({f"module._orig_mod.{n}": t for n, t in release_state().items()}, tmp_path / "xfm.th")
    save_file({f"model.{n}": t.clone() for n, t in timm_beit().state_dict().items()}, tmp_path / "timm.safetensors")
    assert convert("--config", config, "--from", "xfm", tmp_path / "xfm.th", tmp_path / "xfm.safetensors") == 0
    assert f"{tmp_path / 'xfm.th'}: all names begin with `module._orig_mod.`, a wrapper's prefix; read without it" \
        in capsys.readouterr().err
    assert convert("--config", config, "--from", "beitv2", tmp_path / "timm.safetensors", tmp_path / "v.safetensors") == 0
    assert equal(load_file(tmp_path / "v.safetensors"), dict(timm_beit().state_dict()))
    vision = Model(tiny(tmp_path)).encoders["vision"]
    vision.init = str(tmp_path / "timm.safetensors")
    vision.load_init()
    assert torch.equal(vision.cls_token, timm_beit().cls_token)
    whole = {f"module.{n}": t.clone() for n, t in load_file(tmp_path / "xfm.safetensors").items()}
    save_file(whole, tmp_path / "whole.safetensors")
    model = Model(tiny(tmp_path))
    load_model_weights(model, tmp_path / "whole.safetensors")
    assert equal(model.state_dict(), load_file(tmp_path / "xfm.safetensors"))
    assert convert("--config", config, "--to", "xfm", tmp_path / "whole.safetensors", tmp_path / "back.th") == 0


@pytest.mark.slow
def test_at_base_size_a_file_with_the_released_names_goes_in_and_out(tmp_path):
    base, release = ROOT / "projects/xfm/base.yaml", release_state(**BASE)
    torch.save({"model": release}, tmp_path / "model_state_epoch_0.th")
    assert convert("--config", base, "--from", "xfm", tmp_path / "model_state_epoch_0.th", tmp_path / "xfm.safetensors") == 0
    (tmp_path / "model_state_epoch_0.th").unlink()
    assert convert("--config", base, "--to", "xfm", tmp_path / "xfm.safetensors", tmp_path / "back.th") == 0
    back = torch.load(tmp_path / "back.th", weights_only=True, mmap=True)["model"]
    assert equal(back, {n: t for n, t in release.items() if n not in DEAD})
    del release, back
    (tmp_path / "back.th").unlink()
    assert convert("--config", base, "--to", "hf", tmp_path / "xfm.safetensors", tmp_path / "hf") == 0
    ours = load_file(tmp_path / "xfm.safetensors")
    for part in ("text", "vision"):
        written = load_file(tmp_path / "hf" / part / "model.safetensors")
        assert equal(written, {n: ours[f"encoders.{part}.{n}"] for n in written})
        assert len(written) == sum(n.startswith(f"encoders.{part}.") for n in ours) - (part == "vision")  # the mask token
    for source, folder in (("roberta", "text"), ("beitv2", "vision")):
        out = tmp_path / f"{folder}.safetensors"
        assert convert("--config", base, "--from", source, tmp_path / "hf" / folder, out) == 0
        assert equal(load_file(out), load_file(tmp_path / "hf" / folder / "model.safetensors"))
    import timm
    from transformers import RobertaForMaskedLM

    file = tmp_path / "hf/vision/model.safetensors"
    beit = timm.create_model("beitv2_base_patch16_224", num_classes=0, init_values=0.1, checkpoint_path=str(file))
    assert equal(dict(beit.state_dict()), load_file(file))
    roberta, found = RobertaForMaskedLM.from_pretrained(tmp_path / "hf/text", output_loading_info=True)
    assert not any(found[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert torch.equal(roberta.lm_head.decoder.weight, ours["encoders.text.roberta.embeddings.word_embeddings.weight"])


def test_a_convolutional_stem_has_no_place_in_other_formats(tmp_path, config, capsys):
    stem, weights = "encoders.vision.stem=[8, 16]", tmp_path / "stem.safetensors"
    save_file(unshared(Model(tiny(tmp_path, stem)).state_dict()), weights)
    for target, out, message in (("hf", "hf", "timm's BEiTv2 has no convolutional stem: only an encoder with `stem: null` fits"),
                                 ("xfm", "x.th", "unexpected: encoders.vision.patch_embed.convs.0.weight (8, 3,")):
        assert convert("--config", config, "--to", target, weights, tmp_path / out, stem) == 2
        assert message in capsys.readouterr().err and not (tmp_path / out).exists()


def test_what_a_file_of_another_library_lacks_is_said(tmp_path, config, capsys):
    state = {name.removeprefix("vision_encoder."): tensor for name, tensor in unshared(release_state()).items()
             if name.startswith("vision_encoder.") and "mask_token" not in name}
    save_file(state, tmp_path / "timm.safetensors")
    assert convert("--config", config, "--from", "beitv2", tmp_path / "timm.safetensors", tmp_path / "a.safetensors") == 0
    out = capsys.readouterr().out
    assert f"not written: mask_token: {tmp_path / 'timm.safetensors'} has none; it is drawn when training starts" in out
    Model(tiny(tmp_path, f"encoders.vision.init={tmp_path / 'a.safetensors'}")).encoders["vision"].load_init()
    assert "it has no mask_token: drawn anew" in capsys.readouterr().err
