"""The names of transformers' ``FlavaForPreTraining`` to ours, and ours to its."""

from collections.abc import Mapping

from torch import Tensor

from xtoolkit.weights import formats
from xtoolkit.weights.names import SCALAR, Names, Row
from xtoolkit.weights.parts import block_of, only
from xtoolkit.weights.report import ConversionError, Report

from .codebook import ROWS as CODEBOOK

formats.add(formats.Format("transformers' FLAVA", ("flava.logit_scale",), "flava", "FLAVAImage"))

IMAGE, TEXT, BOTH = "flava.image_model.", "flava.text_model.", "flava.multimodal_model."
MODELS = {IMAGE: "FLAVAImage", TEXT: "FLAVAText", BOTH: "FLAVAFusion"}
BLOCK = {
    "layernorm_before.": "norm1.", "layernorm_after.": "norm2.", "attention.attention.{query,key,value}.": "qkv.",
    "attention.output.dense.": "proj.", "intermediate.dense.": "mlp.fc1.", "output.dense.": "mlp.fc2.",
}
HEADS = {"mim_head.": "mim", "mlm_head.": "mlm", "mmm_image_head.": "mmm_image", "mmm_text_head.": "mmm_text"}
TIED = tuple(f"{head}bias" for head in HEADS)  # copies of each decoder's bias
ROWS = (
    Row(f"{IMAGE}embeddings.cls_token", "FLAVAImage", "cls_token"),
    Row(f"{IMAGE}embeddings.mask_token", "FLAVAImage", "mask_token"),
    Row(f"{IMAGE}embeddings.position_embeddings", "FLAVAImage", "positions"),
    Row(f"{IMAGE}embeddings.patch_embeddings.projection.", "FLAVAImage", "patch_embed.proj."),
    Row(f"{IMAGE}layernorm.", "image norm", "norm."),
    Row(f"{TEXT}embeddings.word_embeddings.", "FLAVAText", "words."),
    Row(f"{TEXT}embeddings.position_embeddings.", "FLAVAText", "places."),
    Row(f"{TEXT}embeddings.token_type_embeddings.", "FLAVAText", "types."),
    Row(f"{TEXT}embeddings.LayerNorm.", "FLAVAText", "norm."),
    Row(f"{TEXT}layernorm.", "text norm", "norm."),
    Row(f"{BOTH}cls_token", "FLAVAFusion", "cls_token"),
    Row(f"{BOTH}layernorm.", "FLAVAFusion", "norm."),
    Row("flava.image_to_mm_projection.", "FLAVAFusion", "image_projection."),
    Row("flava.text_to_mm_projection.", "FLAVAFusion", "text_projection."),
    Row("flava.image_projection.", "image projection", "linear."),
    Row("flava.text_projection.", "text projection", "linear."),
    Row("flava.logit_scale", "LogSimilarity", "logit_scale"),
    Row("itm_head.pooler.dense.", "itm", "pooler."),
    Row("itm_head.seq_relationship.", "itm", "head."),
    *(Row(f"{model}encoder.layer.#.{theirs}", part, f"blocks.#.{ours}") for model, part in MODELS.items()
      for theirs, ours in BLOCK.items()),
    *(Row(f"{model}pooler.dense.", f"{part}'s pooler", "") for model, part in MODELS.items()),
    *(Row(f"{head}{theirs}", part, ours) for head, part in HEADS.items() for theirs, ours in (
        ("transform.dense.", "dense."), ("transform.LayerNorm.", "layer_norm."), ("decoder.", "decoder."))),
    *(row._replace(theirs=f"image_codebook.{row.theirs}") for row in CODEBOOK),
)
NAMES = Names(
    file="a FLAVA of transformers", owner="transformers' FLAVA", short="transformers' FLAVA", rows=ROWS,
    without={row.part: f"this recipe builds no {row.part}" for row in ROWS} | {
        f"{part}'s pooler": "no loss reads it, and this recipe has `pooler: false`" for part in MODELS.values()},
    dropped={name: "the bias of its decoder" for name in TIED}, changes={"flava.logit_scale": SCALAR})


def from_release(state: Mapping[str, Tensor], recipe, allow=()) -> tuple[dict[str, Tensor], Report]:
    """transformers' tensors under the names of the model that ``recipe`` builds: ``Names.inward``."""
    return NAMES.inward(state, roles(recipe), allow, () if "flava.logit_scale" in state else ["missing: flava.logit_scale"])


def to_release(state: Mapping[str, Tensor], recipe, allow=()) -> tuple[dict[str, Tensor], Report]:
    """The inverse; poolers that the recipe does not build are absent, and transformers draws them anew."""
    parts = roles(recipe)
    result, report = NAMES.outward(state, parts, allow)
    report.absent = {f"{model}pooler.dense.*": f"this recipe has no `pooler: true` on its {part}" for model, part in MODELS.items()
                     if f"{part}'s pooler" not in parts}
    return result, report


def roles(recipe) -> dict[str, str]:
    """{part of FLAVA: prefix of its names in the model}, of the encoders and losses that the recipe builds.

    Raises:
        ConversionError: an encoder is missing, or there are two of a kind.
    """
    encoders = {kind: only(recipe, kind) for kind in ("FLAVAImage", "FLAVAText", "FLAVAFusion", "LogSimilarity")}
    poolers = {f"{kind}'s pooler": f"encoders.{encoders[kind]}.pooler." for kind in MODELS.values()
               if block_of(recipe, encoders[kind])["pooler"]}
    parts = poolers | {kind: f"encoders.{name}." for kind, name in encoders.items()}
    blocks = recipe.config["encoders"]
    for side, kind in (("image", "FLAVAImage"), ("text", "FLAVAText")):
        projection = blocks[encoders["LogSimilarity"]]["inputs"][side]
        norm = blocks[projection]["inputs"]["x"]
        if blocks[norm]["type"] != "FLAVANorm" or blocks[norm]["inputs"]["x"] != encoders[kind]:
            raise ConversionError(f"{recipe.source.where()}: `{projection}` must read a FLAVANorm of `{encoders[kind]}`, as in "
                                  "projects/xfm/baselines/flava.yaml")
        parts |= {f"{side} projection": f"encoders.{projection}.", f"{side} norm": f"encoders.{norm}."}
    if any(blocks[name]["type"] == "DVAE" for name in blocks):
        parts["DVAE"] = f"encoders.{only(recipe, 'DVAE')}."
    reads = {("MIMCodes", False): "mim", ("IMLM", False): "mlm", ("MIMCodes", True): "mmm_image", ("IMLM", True): "mmm_text"}
    for name in recipe.needs:
        block = recipe.config["losses"][name]
        joint = str(block.get("feature", "")).partition("@")[0] == encoders["FLAVAFusion"]
        part = "itm" if block["type"] == "MaskedMatch" else reads.get((block["type"], joint))
        if part in parts:
            raise ConversionError(f"{recipe.source.where()}: `{name}` and another loss both are FLAVA's {part}; the file has one")
        if part is not None:
            parts[part] = f"losses.{name}."
    return parts
