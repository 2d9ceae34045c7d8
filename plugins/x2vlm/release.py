"""The released X2-VLM checkpoint: its names to ours, and ours to its. Read by the tool that converts weights.

The release has one stack of BERT layers: those below are our text encoder, those above, with cross-attention, our fusion encoder. A
recipe may call its parts as it likes: which plays which role is found from types and wiring.

Source: the names and shapes of the released model's ``state_dict()``: 587 tensors at base size.
"""

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from xtoolkit.weights import formats, parts
from xtoolkit.weights.beit import INDEX, add_indexes, resize_position_tables, wrong_indexes
from xtoolkit.weights.names import SCALAR, Names, Row
from xtoolkit.weights.report import ConversionError, Report

formats.add(formats.Format("the X2-VLM release", ("text_encoder.bert.",), "x2vlm"))

# What each role is, for messages.
ROLES = {
    "vision": "BEiTv2 encoder of $image",
    "text": "BERT encoder of $text",
    "lm_head": "loss that reads the text encoder's output layer (MLM)",
    "fusion": "CrossAttention encoder",
    "vision_proj": "Projection of the image encoder",
    "text_proj": "Projection of the text encoder",
    "sim": "Similarity encoder",
    "itm": "ITM loss",
    "bbp": "BBP loss",
}
READERS = {"BEiTv2": ("$image", "vision"), "BERT": ("$text", "text")}
OTHERS = {"CrossAttention": "fusion", "Similarity": "sim", "ITM": "itm", "BBP": "bbp"}
CLS, HEAD = "vision_encoder.cls_token", "text_encoder.cls.predictions"
NAMES = Names(
    file="a released X2-VLM checkpoint", owner="the X2-VLM release",
    rows=(
        Row("temp", "sim", "temperature"),
        Row("vision_encoder.", "vision", ""),
        Row("text_encoder.bert.", "text", "bert."),
        Row(f"{HEAD}.transform.dense.", "lm_head", "lm_head.dense."),
        Row(f"{HEAD}.transform.LayerNorm.", "lm_head", "lm_head.layer_norm."),
        Row(f"{HEAD}.bias", "lm_head", "lm_head.bias"),
        Row("vision_proj.", "vision_proj", "linear."),
        Row("text_proj.", "text_proj", "linear."),
        Row("itm_head.", "itm", "head."),
        Row("bbox_head.", "bbp", "head."),
    ),
    without={role: f"this recipe builds no {what}" for role, what in ROLES.items()},
    dropped={"*.embeddings.position_ids": "a count from 0, computed here",
             f"vision_encoder.blocks.*.attn.{INDEX}": "an index table, computed here"},
    unwritten={"vision_encoder.mask_token": "the release masks no pictures",
               "vision_encoder.patch_embed.convs.*": "", "vision_encoder.patch_embed.norms.*": ""},  # no stem
    tied={f"{HEAD}.decoder.weight": "text_encoder.bert.embeddings.word_embeddings.weight",
          f"{HEAD}.decoder.bias": f"{HEAD}.bias"},
    changes={"temp": SCALAR})


def from_release(state: Mapping[str, Tensor], recipe, allow=()) -> tuple[dict[str, Tensor], Report]:
    """The release's tensors under the names of the model that ``recipe`` builds (``Model(recipe).state_dict()``).

    Position bias tables of another picture size are resized by the rule of the BEiTv2 encoder; its mask token, which the release
    lacks, is 0; for all else see ``Names.inward``.

    Raises:
        ConversionError: also an index table of another layout, and a recipe without BERT or with two parts in one role.
    """
    found = roles(recipe)
    result, report = names(recipe, found).inward(state, found, allow, wrong_indexes(state))
    if "vision" in found:
        resize_position_tables(result, parts.block_of(recipe, found["vision"].split(".")[1]), report, found["vision"])
        if CLS in state:
            token = f"{found['vision']}mask_token"
            result[token], report.made[token] = torch.zeros_like(state[CLS]), "zeros: the release masks no pictures"
    return result, report


def to_release(state: Mapping[str, Tensor], recipe, allow=()) -> tuple[dict[str, Tensor], Report]:
    """The inverse, ``Names.outward``, with the release's index tables and position ids."""
    found = roles(recipe)
    table = names(recipe, found)
    result, report = table.outward(state, found, allow)
    report.absent = table.absent(found)
    add_indexes(result, report)
    embeddings = "text_encoder.bert.embeddings."
    if (positions := f"{embeddings}position_embeddings.weight") in result:
        ids = f"{embeddings}position_ids"
        result[ids], report.made[ids] = torch.arange(len(result[positions]))[None], "a count from 0"
    return result, report


def names(recipe, found: dict[str, str]) -> Names:
    """The table, in which layers of the release's stack above those of the text encoder are the fusion encoder's."""
    below = parts.block_of(recipe, found["text"].split(".")[1])["layers"]
    return replace(NAMES, rows=(Row("text_encoder.bert.encoder.layer.#.", "fusion", "layer.#.", first=below), *NAMES.rows))


def roles(recipe) -> dict[str, str]:
    """{role: prefix of its names in the model}: ``weights.parts.roles``.

    Raises:
        ConversionError: the recipe has no BERT encoder of $text, or two parts play one role.
    """
    found = parts.roles(recipe, READERS, OTHERS, ROLES)
    if "text" not in found:
        raise ConversionError(f"{recipe.source.where()}: this recipe builds no {ROLES['text']}: the X2-VLM release has "
                              "BERT's words; use one that does")
    return found
