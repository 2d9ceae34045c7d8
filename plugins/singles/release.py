"""The released VQ-KD checkpoint: its names to ours, and ours to its; and which tensors of a file or run are a tokenizer's.

Source: the names of unilm's ``beit2/modeling_vqkd.py`` and ``norm_ema_quantizer.py``.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from xtoolkit.weights import formats
from xtoolkit.weights.files import WeightsError
from xtoolkit.weights.names import Change, Names, Row
from xtoolkit.weights.parts import only
from xtoolkit.weights.report import ConversionError, Report

formats.add(formats.Format("the released VQ-KD tokenizer", ("quantize.embedding. encode_task_layer.",), "singles", "VQKD"))

EMBEDDING = "quantize.embedding."
NAMES = Names(
    file="a released VQ-KD checkpoint", owner="the released VQ-KD",
    rows=(
        Row(f"{EMBEDDING}weight", "tokenizer", "quantize.weight"),
        Row(f"{EMBEDDING}initted", "tokenizer", "quantize.started"),
        *(Row(name, "tokenizer", name) for name in ("encoder.", "encode_task_layer.", "quantize.")),
        *(Row(name, "decoder", name) for name in ("decoder.", "decode_task_layer.")),
    ),
    without={"decoder": "this recipe builds no VQKDLoss"},
    dropped={
        f"{EMBEDDING}cluster_size": "dead: what k-means counted; the release's own counts are in quantize.cluster_size",
        f"{EMBEDDING}embed_avg": "dead: nothing moves it",
        "teacher_model.*": "the teacher is an encoder of its own here",
        "scaling_layer.*": "the teacher's normalisation",
    },
    unwritten={"quantize.updates": "the release counts none", "encoder.patch_embed.convs.*": ""},
    changes={
        "decoder.patch_embed.proj.weight": Change(lambda t: t.flatten(1), lambda t: t[..., None, None], "a linear layer here",
                                                  "a convolution of 1 x 1 there"),
        f"{EMBEDDING}initted": Change(lambda t: t.reshape(()).bool(), lambda t: t.float().reshape(1), "yes or no here",
                                      "a number there"),
    })


def tokenizer_of(path) -> tuple[dict[str, Tensor], str]:
    """The tensors of the one tokenizer in a run, a file of a whole model, or a released checkpoint; and where they were found.

    Raises:
        WeightsError: nothing readable there, no tokenizer, or several.
    """
    from xtoolkit.engine.initial import read_model_weights  # only here: where a run keeps its weights is the engine's

    state, origin = read_model_weights(path)
    if f"{EMBEDDING}weight" in state:
        return _taken(state, {"tokenizer": ""}, ["*"])[0], f"init {origin}"
    if "quantize.weight" in state:
        return state, f"init {origin}"
    found = sorted(n.removesuffix("quantize.weight") for n in state if n.endswith(".quantize.weight"))
    if len(found) != 1:
        has = f"several tokenizers: {', '.join(p.rstrip('.') for p in found)}" if found else \
            "no VQKD tokenizer: no tensor `encoders.NAME.quantize.weight`"
        raise WeightsError(f"init {origin} has {has}; "
                           "name a run or file with one; projects/xfm/baselines/tiny/vqkd.yaml makes one")
    return {n.removeprefix(found[0]): t for n, t in state.items() if n.startswith(found[0])}, f"init {origin}"


def from_release(state: Mapping[str, Tensor], recipe, allow=()) -> tuple[dict[str, Tensor], Report]:
    """The release's tensors under the names of the model that ``recipe`` builds: ``Names.inward``.

    Args:
        recipe: checked; with one VQKD encoder, and the decoder's names if one VQKDLoss is there.
    """
    return _taken(state, roles(recipe), allow)


def to_release(state: Mapping[str, Tensor], recipe, allow=()) -> tuple[dict[str, Tensor], Report]:
    """The inverse, ``Names.outward``; what the release stores and nothing reads is made as it draws it."""
    parts = roles(recipe)
    result, report = NAMES.outward(state, parts, allow)
    weight = result[f"{EMBEDDING}weight"]
    for name, made in (("cluster_size", torch.zeros(len(weight))), ("embed_avg", torch.zeros_like(weight))):
        result[f"{EMBEDDING}{name}"], report.made[f"{EMBEDDING}{name}"] = made, "zeros: the release stores it and does not read it"
    report.absent = {"teacher_model.*": NAMES.dropped["teacher_model.*"]} | NAMES.absent(parts)
    return result, report


def roles(recipe) -> dict[str, str]:
    """{part: prefix of its names in the model}; the decoder only where the recipe trains one.

    Raises:
        ConversionError: no tokenizer, or two of a kind.
    """
    losses = [name for name in recipe.needs if recipe.config["losses"][name]["type"] == "VQKDLoss"]
    if len(losses) > 1:
        raise ConversionError(f"{recipe.source.where()}: {' and '.join(losses)} both are a VQKDLoss; the file has one decoder")
    return {"tokenizer": f"encoders.{only(recipe, 'VQKD')}.", **{"decoder": f"losses.{name}." for name in losses}}


def _taken(state, parts, allow):
    """``Names.inward``, and a count of updates, which the release has none of."""
    result, report = NAMES.inward(state, parts, allow)
    if (prefix := f"{parts['tokenizer']}quantize.") + "started" in result:
        result[f"{prefix}updates"] = torch.zeros((), dtype=torch.long)
        report.made[f"{prefix}updates"] = "the release counts none"
    return result, report
