"""BEiTv2 as unilm publishes it, or timm or transformers store it, to the names of the BEiTv2 encoder; and to timm's."""

import re
from collections.abc import Mapping
from fnmatch import fnmatchcase

import torch
from torch import Tensor

from xtoolkit.weights.beit import TABLE, from_hugging_face, resize_position_tables
from xtoolkit.weights.parts import block_of, only
from xtoolkit.weights.report import ConversionError, Report

SHARED = f"rel_pos_bias.{TABLE}"
FUSED = re.compile(r"blocks\.\d+\.attn\.qkv\.bias")
# What such files hold beyond the encoder.
DROPPED = {
    "lm_head.*": "output layer of its pretraining, over a tokenizer's codes",
    "cls_pt_*": "its pretraining's second head",
    "head.*": "a classifier",
    "norm.*": "a last norm; this encoder's is fc_norm",
    "*relative_position_index": "an index table, computed here",
    "blocks.*.attn.k_bias": "moves all scores of a query alike, so it changes nothing (unilm keeps it at 0)",
}


def from_beitv2(state: Mapping[str, Tensor], recipe) -> tuple[dict[str, Tensor], Report]:
    """BEiT's tensors under the names of the recipe's BEiTv2 encoder, without a prefix: what the encoder's own ``init`` takes.

    One bias table for all blocks (unilm's pretraining) is copied to each; tables of another picture size are resized by the
    encoder's rule; a fused bias of query, key and value is split, its key part dropped. A file without ``fc_norm``, but with
    a last ``norm``, is of pretraining: ``fc_norm`` then starts at 1 and 0, as in X-FM's release.

    The names may be those of unilm, timm, or transformers' ``BeitModel`` and its kin.

    Args:
        state: {name: tensor}.
        recipe: checked; says how many blocks and patches there are.

    Returns:
        (state, report). Unknown names are taken over: whether all fit the encoder is for ``writing.verify`` to ask.

    Raises:
        ConversionError: the recipe builds no BEiTv2, or there are two kinds of bias tables.
    """
    block = block_of(recipe, only(recipe, "BEiTv2"))
    state, sources = from_hugging_face(state)
    report, result = Report(), {}
    if SHARED in state and any(n != SHARED and n.endswith(TABLE) for n in state):
        raise ConversionError(f"both a shared bias table ({SHARED}) and tables of single blocks: BEiT adds them, and the "
                              "encoder has one table a block")
    for name, tensor in state.items():
        why = next((why for pattern, why in DROPPED.items() if fnmatchcase(name, pattern)), None)
        if why is not None:
            report.dropped[sources[name]] = why
        elif name == SHARED:
            for i in range(block["layers"]):
                result[f"blocks.{i}.attn.{TABLE}"] = tensor
                report.made[f"blocks.{i}.attn.{TABLE}"] = f"a copy of {SHARED}"
            report.renamed[sources[name]] = f"blocks.*.attn.{TABLE}"
        elif FUSED.fullmatch(name):
            q, k, v = tensor.chunk(3)
            for short, bias in (("q_bias", q), ("v_bias", v)):
                result[name.replace("qkv.bias", short)] = bias
                report.made[name.replace("qkv.bias", short)] = f"its part of {name}"
            report.dropped[f"{sources[name]} (key part)"] = DROPPED["blocks.*.attn.k_bias"]
        else:
            result[name] = tensor
            report.renamed[sources[name]] = name
    resize_position_tables(result, block, report)
    if "norm.weight" in state and "fc_norm.weight" not in state:
        for name, value in (("weight", torch.ones), ("bias", torch.zeros)):
            result[f"fc_norm.{name}"] = value(block["width"])
            filled = "ones" if name == "weight" else "zeros"
            report.made[f"fc_norm.{name}"] = f"{filled}: the file is of pretraining, and has none"
    return result, report


def to_timm(state: Mapping[str, Tensor], recipe) -> tuple[dict[str, Tensor], dict, Report]:
    """The BEiTv2 encoder's tensors for timm's ``Beit``, and the ``config.json`` beside them.

    A folder with both opens as ``timm.create_model("local-dir:FOLDER", pretrained=True)``. Note what timm's own pooling does:
    it takes the mean of the patches and then ``fc_norm``, X-FM ``fc_norm`` and then the mean; ``model.fc_norm(
    model.forward_features(x)[:, 1:])`` gives X-FM's patches.

    Args:
        state: the encoder's own names.
        recipe: says its sizes.

    Raises:
        ConversionError: the encoder has what timm's does not.
    """
    from timm.data.constants import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD  # those of `xtoolkit.data.images`

    block = block_of(recipe, only(recipe, "BEiTv2"))
    if block["stem"]:
        raise ConversionError("timm's BEiTv2 has no convolutional stem: only an encoder with `stem: null` fits")
    if block["absolute_positions"]:
        raise ConversionError("timm's BEiTv2 has no fixed absolute positions: only an encoder with "
                              "`absolute_positions: 0` fits")
    report, result = Report(), {}
    for name, tensor in state.items():
        if name == "mask_token":
            report.dropped[name] = "timm's Beit has no mask token"
        else:
            result[name] = tensor
            report.renamed[name] = name
    size = block["image_size"]
    config = {
        "architecture": "beitv2_base_patch16_224", "num_classes": 0, "num_features": block["width"], "global_pool": "avg",
        "model_args": {"img_size": size, "patch_size": block["patch_size"], "embed_dim": block["width"],
                       "depth": block["layers"], "num_heads": block["heads"], "mlp_ratio": block["mlp_ratio"],
                       "init_values": block["layer_scale"]},
        "pretrained_cfg": {"num_classes": 0, "input_size": [3, size, size], "fixed_input_size": True, "pool_size": None,
                           "crop_pct": 1.0, "interpolation": "bicubic", "mean": list(OPENAI_CLIP_MEAN),
                           "std": list(OPENAI_CLIP_STD), "first_conv": "patch_embed.proj", "classifier": "head"},
    }
    return result, config, report
