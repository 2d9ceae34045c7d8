"""The released X-FM checkpoint: its names to ours, and ours to its. Read by the tool that converts weights.

A recipe may call its parts as it likes: which plays which role of X-FM is found from types and wiring.

Source: the names and shapes of the released model's ``state_dict()``: 771 tensors at base size.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from xtoolkit.weights import formats, parts
from xtoolkit.weights.beit import INDEX, add_indexes, resize_position_tables, wrong_indexes
from xtoolkit.weights.names import SCALAR, Names, Row
from xtoolkit.weights.report import Report

formats.add(formats.Format("the X-FM release", ("vision_encoder.", "text_encoder.", "fusion_encoder."), "xfm"))

# What each role is, for messages.
ROLES = {
    "vision": "BEiTv2 encoder of $image",
    "text": "RoBERTa encoder of $text",
    "lm_head": "loss that reads the text encoder's output layer (MLM)",
    "fusion": "CrossAttention encoder",
    "vision_proj": "Projection of the image encoder",
    "text_proj": "Projection of the text encoder",
    "sim": "Similarity encoder",
    "itm": "ITM loss",
    "imlm": "IMLM loss",
    "bbp": "BBP loss",
}
READERS = {"BEiTv2": ("$image", "vision"), "RoBERTa": ("$text", "text")}
OTHERS = {"CrossAttention": "fusion", "Similarity": "sim", "ITM": "itm", "IMLM": "imlm", "BBP": "bbp"}
# What the release stores and nobody reads.
DEAD = {
    "text_encoder.lm_cap_head.*": "dead: a captioning head that no pretraining loss reads",
    "fusion_encoder.lm_cap_head.*": "dead: a captioning head that no pretraining loss reads",
    "fusion_encoder.roberta.embeddings.position_embeddings.*": "dead: the fusion encoder reads states, not tokens",
    "fusion_encoder.roberta.embeddings.token_type_embeddings.*": "dead: the fusion encoder reads states, not tokens",
    "fusion_encoder.roberta.embeddings.LayerNorm.*": "dead: the fusion encoder reads states, not tokens",
}
NAMES = Names(
    file="a released X-FM checkpoint", owner="the X-FM release",
    rows=(
        Row("temp", "sim", "temperature"),
        Row("vision_encoder.", "vision", ""),
        Row("text_encoder.roberta.", "text", "roberta."),
        Row("text_encoder.lm_head.", "lm_head", "lm_head."),
        Row("vision_proj.", "vision_proj", "linear."),
        Row("text_proj.", "text_proj", "linear."),
        Row("itm_head.", "itm", "head."),
        Row("bbox_head.", "bbp", "head."),
        Row("fusion_encoder.roberta.encoder.layer.", "fusion", "layer."),
        Row("fusion_encoder.lm_head.", "imlm", ""),
    ),
    without={role: f"this recipe builds no {what}" for role, what in ROLES.items()},
    dropped=DEAD | {"*.embeddings.position_ids": "a count from 0, computed here",
                    f"vision_encoder.blocks.*.attn.{INDEX}": "an index table, computed here"},
    unwritten={"vision_encoder.patch_embed.convs.*": "", "vision_encoder.patch_embed.norms.*": ""},  # no stem
    tied={"text_encoder.lm_head.decoder.weight": "text_encoder.roberta.embeddings.word_embeddings.weight",
          "text_encoder.lm_head.decoder.bias": "text_encoder.lm_head.bias",
          "fusion_encoder.roberta.embeddings.word_embeddings.weight": "fusion_encoder.lm_head.decoder.weight",
          "fusion_encoder.lm_head.bias": "fusion_encoder.lm_head.decoder.bias"},
    changes={"temp": SCALAR})


def from_release(state: Mapping[str, Tensor], recipe, allow=()) -> tuple[dict[str, Tensor], Report]:
    """The release's tensors under the names of the model that ``recipe`` builds (``Model(recipe).state_dict()``).

    Position bias tables of another picture size are resized by the rule of the BEiTv2 encoder; for all else see ``Names.inward``.

    Raises:
        ConversionError: also an index table of another layout, and two parts of the recipe in one role.
    """
    found = roles(recipe)
    result, report = NAMES.inward(state, found, allow, wrong_indexes(state))
    if "vision" in found:
        resize_position_tables(result, parts.block_of(recipe, found["vision"].split(".")[1]), report, found["vision"])
    return result, report


def to_release(state: Mapping[str, Tensor], recipe, allow=()) -> tuple[dict[str, Tensor], Report]:
    """The inverse, ``Names.outward``, with the release's index tables and position ids.

    What is dead in the release is not in our model and not written: two captioning heads, and the position, type and norm
    embeddings of its fusion encoder. Its own loader, which is not strict, then leaves them as drawn.
    """
    found = roles(recipe)
    result, report = NAMES.outward(state, found, allow)
    report.absent = DEAD | NAMES.absent(found)
    add_indexes(result, report)
    positions = "text_encoder.roberta.embeddings.position_embeddings.weight"
    if positions in result:
        for encoder in ("text_encoder", "fusion_encoder"):
            ids = f"{encoder}.roberta.embeddings.position_ids"
            result[ids], report.made[ids] = torch.arange(len(result[positions]))[None], "a count from 0"
    return result, report


def roles(recipe) -> dict[str, str]:
    """{role: prefix of its names in the model}: ``weights.parts.roles``."""
    return parts.roles(recipe, READERS, OTHERS, ROLES)
