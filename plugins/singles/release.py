"""The released VQ-KD checkpoint: its names to ours, and ours to its; and which tensors of a file or run are a tokenizer's.

Source: the names of unilm's ``beit2/modeling_vqkd.py`` and ``norm_ema_quantizer.py``.
"""

from collections.abc import Mapping
from fnmatch import fnmatchcase

import torch
from torch import Tensor

from xtoolkit.weights import formats
from xtoolkit.weights.files import WeightsError, matches
from xtoolkit.weights.report import ConversionError, Report

formats.add(formats.Format("the released VQ-KD tokenizer", ("quantize.embedding. encode_task_layer.",), "singles", "VQKD"))

# {theirs: ours} where the names differ.
RENAMED = {"quantize.embedding.weight": "quantize.weight", "quantize.embedding.initted": "quantize.started"}
TOKENIZER = ("encoder.*", "encode_task_layer.*", "quantize.*")
DECODER = ("decoder.*", "decode_task_layer.*")
DECODER_EMBEDDING = "decoder.patch_embed.proj.weight"  # a convolution of 1 x 1 there, a linear layer here
DEAD = {
    "quantize.embedding.cluster_size": "dead: what k-means counted; the release's own counts are in quantize.cluster_size",
    "quantize.embedding.embed_avg": "dead: nothing moves it",
    "teacher_model.*": "the teacher is an encoder of its own here",
    "scaling_layer.*": "the teacher's normalisation",
}
PARTS = {"tokenizer": "VQKD encoder", "decoder": "VQKDLoss"}


def tokenizer_of(path) -> tuple[dict[str, Tensor], str]:
    """The tensors of the one tokenizer in a run, a file of a whole model, or a released checkpoint; and where they were found.

    Raises:
        WeightsError: nothing readable there, no tokenizer, or several.
    """
    from xtoolkit.engine.initial import read_model_weights  # only here: where a run keeps its weights is the engine's

    state, origin = read_model_weights(path)
    if "quantize.embedding.weight" in state:
        return {n: t for n, t in _ours(state, Report())[0].items() if matches(n, TOKENIZER)}, f"init {origin}"
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
    """The release's tensors under the names of the model that ``recipe`` builds.

    Args:
        state: {name in the release: tensor}.
        recipe: checked; with one VQKD encoder, and the decoder's names if one VQKDLoss is there.
        allow: patterns of names in ``state`` that are dropped where they would be an error.

    Raises:
        ConversionError: names that the release does not have, one a line.
    """
    parts, report = roles(recipe), Report()
    ours, unknown = _ours(state, report, allow)
    if unknown:
        raise ConversionError("\n".join(["not a released VQ-KD checkpoint:", *(f"  {line}" for line in unknown)]))
    full = {name: parts[part] + name if part in parts else None for name in ours
            for part in ("tokenizer" if matches(name, TOKENIZER) else "decoder",)}
    no_place = f"this recipe builds no {PARTS['decoder']}"
    report.dropped |= {theirs: no_place for theirs, name in report.renamed.items() if not full[name]}
    report.renamed = {theirs: full[name] for theirs, name in report.renamed.items() if full[name]}
    for of in ("made", "changed"):
        setattr(report, of, {full[name]: how for name, how in getattr(report, of).items() if full[name]})
    return {full[name]: tensor for name, tensor in ours.items() if full[name]}, report


def to_release(state: Mapping[str, Tensor], recipe, allow=()) -> tuple[dict[str, Tensor], Report]:
    """The inverse: what the release stores and nothing reads is made as it draws it.

    Raises:
        ConversionError: names that the release has no place for and that ``allow`` does not name; a stem of convolutions.
    """
    parts, report, result, problems = roles(recipe), Report(), {}, []
    back = {ours: theirs for theirs, ours in RENAMED.items()}
    for name, tensor in state.items():
        inner = next((name.removeprefix(prefix) for prefix in parts.values() if name.startswith(prefix)), None)
        if inner is None or inner.startswith("encoder.patch_embed.convs."):
            if inner is None and matches(name, allow):
                report.dropped[name] = "the release has no place for it; allowed"
            else:
                problems.append(f"unexpected: {name} {tuple(tensor.shape)}")
            continue
        if inner == "quantize.updates":
            report.dropped[name] = "the release counts none"
            continue
        target = back[inner] if inner in back else inner
        if target == DECODER_EMBEDDING:
            tensor, report.changed[target] = tensor[..., None, None], "a convolution of 1 x 1 there"
        if inner == "quantize.started":
            tensor, report.changed[target] = tensor.float().reshape(1), "a number there"
        report.renamed[name], result[target] = target, tensor
    if problems:
        raise ConversionError("\n".join(["the released VQ-KD has no place for:", *(f"  {p}" for p in problems)]))
    weight = result["quantize.embedding.weight"]
    for name, made in (("cluster_size", torch.zeros(len(weight))), ("embed_avg", torch.zeros_like(weight))):
        result[f"quantize.embedding.{name}"] = made
        report.made[f"quantize.embedding.{name}"] = "zeros: the release stores it and does not read it"
    report.absent = {"teacher_model.*": "the teacher is an encoder of its own here"} | (
        {} if "decoder" in parts else {n: "this recipe builds no VQKDLoss" for n in DECODER})
    return result, report


def roles(recipe) -> dict[str, str]:
    """{part: prefix of its names in the model}; the decoder only where the recipe trains one.

    Raises:
        ConversionError: no tokenizer, or two of a kind.
    """
    from xtoolkit.weights.parts import only

    losses = [name for name in recipe.needs if recipe.config["losses"][name]["type"] == "VQKDLoss"]
    if len(losses) > 1:
        raise ConversionError(f"{recipe.source.where()}: {' and '.join(losses)} both are a VQKDLoss; the file has one decoder")
    return {"tokenizer": f"encoders.{only(recipe, 'VQKD')}.", **{"decoder": f"losses.{name}." for name in losses}}


def _ours(state, report: Report, allow=()) -> tuple[dict[str, Tensor], list[str]]:
    """The release's tensors by the tokenizer's and the loss's own names; and a line for each that is neither's."""
    result, unknown = {}, []
    for name, tensor in state.items():
        reason = next((why for pattern, why in DEAD.items() if fnmatchcase(name, pattern)), None)
        if reason is not None or not matches(name, (*TOKENIZER, *DECODER)):
            if reason is not None or matches(name, allow):
                report.dropped[name] = reason or "unknown to the release; allowed"
            else:
                unknown.append(f"unexpected: {name} {tuple(tensor.shape)}")
            continue
        target = RENAMED[name] if name in RENAMED else name
        if name == DECODER_EMBEDDING:
            tensor, report.changed[target] = tensor.flatten(1), "a linear layer here"
        if target == "quantize.started":
            tensor, report.changed[target] = tensor.reshape(()).bool(), "yes or no here"
        report.renamed[name], result[target] = target, tensor
    if "quantize.started" in result:
        result["quantize.updates"], report.made["quantize.updates"] = torch.zeros((), dtype=torch.long), "the release counts none"
    return result, unknown
