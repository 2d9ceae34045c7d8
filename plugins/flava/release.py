"""The names of transformers' ``FlavaForPreTraining`` to ours, and ours to its."""

import re
from collections.abc import Mapping

import torch
from torch import Tensor

from xtoolkit.weights import formats
from xtoolkit.weights.files import matches
from xtoolkit.weights.report import ConversionError, Report

from .codebook import our_name

formats.add(formats.Format("transformers' FLAVA", ("flava.logit_scale",), "flava", "FLAVAImage"))

BLOCK = {
    "layernorm_before": "norm1", "layernorm_after": "norm2", "attention.output.dense": "proj", "intermediate.dense": "mlp.fc1",
    "output.dense": "mlp.fc2",
}
# {theirs: (part, ours)}: what is no block, a parameter or a module of weight and bias.
IMAGE, TEXT, BOTH = "flava.image_model.", "flava.text_model.", "flava.multimodal_model."
WHOLE = {
    f"{IMAGE}embeddings.cls_token": ("FLAVAImage", "cls_token"),
    f"{IMAGE}embeddings.mask_token": ("FLAVAImage", "mask_token"),
    f"{IMAGE}embeddings.position_embeddings": ("FLAVAImage", "positions"),
    f"{IMAGE}embeddings.patch_embeddings.projection": ("FLAVAImage", "patch_embed.proj"),
    f"{IMAGE}pooler.dense": ("FLAVAImage", "pooler"),
    f"{IMAGE}layernorm": ("image norm", "norm"),
    f"{TEXT}embeddings.word_embeddings": ("FLAVAText", "words"),
    f"{TEXT}embeddings.position_embeddings": ("FLAVAText", "places"),
    f"{TEXT}embeddings.token_type_embeddings": ("FLAVAText", "types"),
    f"{TEXT}embeddings.LayerNorm": ("FLAVAText", "norm"),
    f"{TEXT}pooler.dense": ("FLAVAText", "pooler"),
    f"{TEXT}layernorm": ("text norm", "norm"),
    f"{BOTH}cls_token": ("FLAVAFusion", "cls_token"),
    f"{BOTH}layernorm": ("FLAVAFusion", "norm"),
    f"{BOTH}pooler.dense": ("FLAVAFusion", "pooler"),
    "flava.image_to_mm_projection": ("FLAVAFusion", "image_projection"),
    "flava.text_to_mm_projection": ("FLAVAFusion", "text_projection"),
    "flava.image_projection": ("image projection", "linear"),
    "flava.text_projection": ("text projection", "linear"),
    "flava.logit_scale": ("LogSimilarity", "logit_scale"),
    "itm_head.pooler.dense": ("itm", "pooler"),
    "itm_head.seq_relationship": ("itm", "head"),
} | {f"{theirs}.{a}": (part, b) for theirs, part in (("mim_head", "mim"), ("mlm_head", "mlm"), ("mmm_image_head", "mmm_image"),
                                                     ("mmm_text_head", "mmm_text"))
     for a, b in (("transform.dense", "dense"), ("transform.LayerNorm", "layer_norm"), ("decoder", "decoder"))}
BACK = {ours: theirs for theirs, ours in WHOLE.items()}
MODELS = {IMAGE: "FLAVAImage", TEXT: "FLAVAText", BOTH: "FLAVAFusion"}
QKV = ("query", "key", "value")
TIED = ("mim_head.bias", "mlm_head.bias", "mmm_image_head.bias", "mmm_text_head.bias")  # copies of each decoder's bias
LAYER = re.compile(r"(flava\.\w+_model\.)encoder\.layer\.(\d+)\.(.+)\.(weight|bias)")
CODEBOOK = "image_codebook."


def from_release(state: Mapping[str, Tensor], recipe, allow=()) -> tuple[dict[str, Tensor], Report]:
    """transformers' tensors under the names of the model that ``recipe`` builds.

    Args:
        state: {name in the file: tensor}.
        recipe: checked; a recipe of FLAVA's encoders.
        allow: patterns of names in ``state`` that are dropped where they would be an error.

    Raises:
        ConversionError: names that transformers' FLAVA does not have, one a line.
    """
    parts, report, result, problems = roles(recipe), Report(), {}, []
    for name, tensor in state.items():
        if (found := LAYER.fullmatch(name)) and found[1] in MODELS:
            model, block, inner, kind = found.groups()
            prefix = f"{parts[MODELS[model]]}blocks.{block}."
            if inner == "attention.attention.query":
                names = [name.replace(".query.", f".{one}.") for one in QKV]
                if missing := [n for n in names if n not in state]:
                    problems.append(f"missing: {', '.join(missing)}, beside {name}")
                    continue
                target = f"{prefix}qkv.{kind}"
                result[target], report.changed[target] = torch.cat([state[n] for n in names]), "query, key, value"
                report.renamed |= {n: target for n in names}
                continue
            if inner in ("attention.attention.key", "attention.attention.value"):
                if name.replace(inner, "attention.attention.query") not in state:
                    problems.append(f"unexpected without its query: {name}")
                continue
            part, target = ("block", f"{prefix}{BLOCK[inner]}.{kind}") if inner in BLOCK else (None, None)
        elif name.startswith(CODEBOOK):
            part, inner = "DVAE", our_name(name.removeprefix(CODEBOOK))
            target = f"{parts['DVAE']}{inner}" if "DVAE" in parts else None
        else:
            stem, kind = (name, "") if name in WHOLE else name.rpartition(".")[::2]
            part, inner = WHOLE.get(stem, (None, None))
            target = parts[part] + inner + (kind and f".{kind}") if part in parts else None
        if name in TIED:
            report.dropped[name] = "the bias of its decoder"
        elif target is not None and not (inner == "pooler" and part in parts and part != "itm" and not _pooler(recipe, part)):
            report.renamed[name] = target
            if name == "flava.logit_scale":
                tensor, report.changed[target] = tensor.reshape(1), "() reshaped to (1,)"
            result[target] = tensor
        elif part is not None:
            report.dropped[name] = "no loss reads it, and this recipe has `pooler: false`" if inner == "pooler" else \
                f"this recipe builds no {part}"
        elif matches(name, allow):
            report.dropped[name] = "unknown to transformers' FLAVA; allowed"
        else:
            problems.append(f"unexpected: {name} {tuple(tensor.shape)}")
    if "flava.logit_scale" not in state:
        problems.append("missing: flava.logit_scale")
    if problems:
        raise ConversionError("\n".join(["not a FLAVA of transformers:", *(f"  {p}" for p in problems)]))
    return result, report


def to_release(state: Mapping[str, Tensor], recipe, allow=()) -> tuple[dict[str, Tensor], Report]:
    """The inverse; poolers that the recipe does not build are absent, and transformers draws them anew.

    Raises:
        ConversionError: names that transformers' FLAVA has no place for and that ``allow`` does not name.
    """
    parts, report, result, problems = roles(recipe), Report(), {}, []
    prefixes = {prefix: part for part, prefix in parts.items()}
    models = {part: model for model, part in MODELS.items()}
    blocks = {ours: theirs for theirs, ours in BLOCK.items()}
    for name, tensor in state.items():
        prefix = next((p for p in prefixes if name.startswith(p)), None)
        part, inner = prefixes.get(prefix), name.removeprefix(prefix or "")
        stem, _, kind = inner.rpartition(".")
        if (found := re.fullmatch(r"blocks\.(\d+)\.(.+)\.(weight|bias)", inner)) and part in models:
            start = f"{models[part]}encoder.layer.{found[1]}."
            if found[2] == "qkv":
                for one, piece in zip(QKV, tensor.chunk(3)):
                    result[f"{start}attention.attention.{one}.{found[3]}"] = piece.clone()
                report.renamed[name] = f"{start}attention.attention.*.{found[3]}"
                continue
            target = f"{start}{blocks[found[2]]}.{found[3]}" if found[2] in blocks else None
        elif part == "DVAE":
            target = CODEBOOK + _their_codebook(inner)
        elif (part, inner) in BACK:
            target = BACK[part, inner]
            if inner == "logit_scale":
                tensor, report.changed[target] = tensor.reshape(()), "(1,) reshaped to ()"
        else:
            target = f"{BACK[part, stem]}.{kind}" if (part, stem) in BACK else None
        if target is not None:
            report.renamed[name], result[target] = target, tensor
        elif matches(name, allow):
            report.dropped[name] = "transformers' FLAVA has no place for it; allowed"
        else:
            problems.append(f"unexpected: {name} {tuple(tensor.shape)}")
    if problems:
        raise ConversionError("\n".join(["transformers' FLAVA has no place for:", *(f"  {p}" for p in problems)]))
    for model, part in MODELS.items():
        if f"{model}pooler.dense.weight" not in result:
            report.absent[f"{model}pooler.dense.*"] = f"this recipe has no `pooler: true` on its {part}"
    return result, report


def roles(recipe) -> dict[str, str]:
    """{part of FLAVA: prefix of its names in the model}, of the encoders and losses that the recipe builds.

    Raises:
        ConversionError: an encoder is missing, or there are two of a kind.
    """
    from xtoolkit.weights.parts import only

    encoders = {kind: only(recipe, kind) for kind in ("FLAVAImage", "FLAVAText", "FLAVAFusion", "LogSimilarity")}
    parts = {kind: f"encoders.{name}." for kind, name in encoders.items()}
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


def _pooler(recipe, kind):
    from xtoolkit.weights.parts import only

    return bool(recipe.config["encoders"][only(recipe, kind)].get("pooler"))


def _their_codebook(name):
    """The inverse of ``codebook.our_name``."""
    match name.split("."):
        case ["groups", group, block, "identity", kind]:
            return f"blocks.group_{int(group) + 1}.group.block_{int(block) + 1}.id_path.{kind}"
        case ["groups", group, block, "convs", conv, kind]:
            return f"blocks.group_{int(group) + 1}.group.block_{int(block) + 1}.res_path.path.conv_{int(conv) + 1}.{kind}"
        case ["output", kind]:
            return f"blocks.output.conv.{kind}"
    return f"blocks.{name}"
