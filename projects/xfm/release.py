"""The released X-FM checkpoint: its names to ours, and ours to its. Read by the tool that converts weights.

A recipe may call its parts as it likes: which plays which role of X-FM is found from types and wiring.

Source: the names and shapes of the released model's ``state_dict()``: 771 tensors at base size.
"""

from collections.abc import Mapping
from fnmatch import fnmatchcase

import torch
from torch import Tensor

from xtoolkit.weights import formats
from xtoolkit.weights.beit import TABLE, relative_position_index, resize_position_table
from xtoolkit.weights.files import matches
from xtoolkit.weights.parts import block_of, output_layer_read, types
from xtoolkit.weights.report import ConversionError, Report

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
# (prefix in the release, role, prefix inside that part). The first that fits counts.
PARTS = (
    ("temp", "sim", "temperature"),
    ("vision_encoder.", "vision", ""),
    ("text_encoder.roberta.", "text", "roberta."),
    ("text_encoder.lm_head.", "lm_head", "lm_head."),
    ("vision_proj.", "vision_proj", "linear."),
    ("text_proj.", "text_proj", "linear."),
    ("itm_head.", "itm", "head."),
    ("bbox_head.", "bbp", "head."),
    ("fusion_encoder.roberta.encoder.layer.", "fusion", "layer."),
    ("fusion_encoder.lm_head.", "imlm", ""),
)
INDEX = "relative_position_index"
STEM = ("vision_encoder.patch_embed.convs.*", "vision_encoder.patch_embed.norms.*")  # the release has no convolutional stem
# What the release stores and nobody reads, or what is computed here.
DEAD = {
    "text_encoder.lm_cap_head.*": "dead: a captioning head that no pretraining loss reads",
    "fusion_encoder.lm_cap_head.*": "dead: a captioning head that no pretraining loss reads",
    "fusion_encoder.roberta.embeddings.position_embeddings.*": "dead: the fusion encoder reads states, not tokens",
    "fusion_encoder.roberta.embeddings.token_type_embeddings.*": "dead: the fusion encoder reads states, not tokens",
    "fusion_encoder.roberta.embeddings.LayerNorm.*": "dead: the fusion encoder reads states, not tokens",
    "*.embeddings.position_ids": "a count from 0, computed here",
    f"vision_encoder.blocks.*.attn.{INDEX}": "an index table, computed here",
}
# {a tensor that the release stores twice: the name under which it is taken over}.
TIED = {
    "text_encoder.lm_head.decoder.weight": "text_encoder.roberta.embeddings.word_embeddings.weight",
    "text_encoder.lm_head.decoder.bias": "text_encoder.lm_head.bias",
    "fusion_encoder.roberta.embeddings.word_embeddings.weight": "fusion_encoder.lm_head.decoder.weight",
    "fusion_encoder.lm_head.bias": "fusion_encoder.lm_head.decoder.bias",
}


def from_release(state: Mapping[str, Tensor], recipe, allow=()) -> tuple[dict[str, Tensor], Report]:
    """The release's tensors under the names of the model that ``recipe`` builds (``Model(recipe).state_dict()``).

    Tensors are taken over bit for bit, without a copy; the scalar temperature becomes (1,), and position bias tables of
    another picture size are resized by the rule of the BEiTv2 encoder. Whether the model has further names that the release
    cannot fill is not asked here: ``weights.writing.verify`` does.

    Args:
        state: {name in the release: tensor}.
        recipe: checked. Names that belong to a part it does not build are dropped, with that reason.
        allow: patterns of names in ``state`` that are dropped where they would be an error: unknown ones, and second copies
            of a tied tensor that differ from the first.

    Returns:
        (state, report).

    Raises:
        ConversionError: names that the release does not have; tied tensors that differ; an index table of another layout.
            All of them, one a line.
    """
    parts, report, result, problems = roles(recipe), Report(), {}, []
    if "vision" in parts:
        block = block_of(recipe, parts["vision"].split(".")[1])
        grid, rule = block["image_size"] // block["patch_size"], block["resize"]
    for name, tensor in state.items():
        first = TIED.get(name)
        if first in state:
            if torch.equal(tensor, state[first]):
                report.dropped[name] = f"the same tensor as {first}, to which the release ties it"
            elif matches(name, allow):
                report.dropped[name] = f"differs from {first}, to which the release ties it; allowed"
            else:
                problems.append(f"not tied: {name} differs from {first}; the release stores one tensor under both names")
            continue
        reason = next((why for pattern, why in DEAD.items() if fnmatchcase(name, pattern)), None)
        if reason is not None:
            problems += _wrong_index(name, tensor)
            report.dropped[name] = reason
            continue
        place = next(((role, inner + (first or name)[len(prefix):]) for prefix, role, inner in PARTS
                      if (first or name).startswith(prefix)), None)
        if place is None:
            if matches(name, allow):
                report.dropped[name] = "unknown to the release; allowed"
            else:
                problems.append(f"unexpected: {name} {tuple(tensor.shape)}")
            continue
        role, inner = place
        if role not in parts:
            report.dropped[name] = f"this recipe builds no {ROLES[role]}"
            continue
        target = parts[role] + inner
        report.renamed[name] = target
        if name == "temp" and tensor.dim() == 0:
            tensor = tensor.reshape(1)
            report.changed[target] = "() reshaped to (1,)"
        elif role == "vision" and name.endswith(TABLE):
            resized = resize_position_table(tensor, grid, rule)
            if resized.shape != tensor.shape:
                report.changed[target] = f"{tuple(tensor.shape)} resized to {tuple(resized.shape)}: {grid} x {grid} patches"
            tensor = resized
        result[target] = tensor
    if problems:
        raise ConversionError("\n".join(["not a released X-FM checkpoint:", *(f"  {p}" for p in problems)]))
    return result, report


def to_release(state: Mapping[str, Tensor], recipe, allow=()) -> tuple[dict[str, Tensor], Report]:
    """The inverse of ``from_release``: our names to the release's, with its tied copies, index tables and position ids.

    What is dead in the release is not in our model and not written: two captioning heads, and the position, type and norm
    embeddings of its fusion encoder. Its own loader, which is not strict, then leaves them as drawn.

    Args:
        state: {name in the model: tensor}.
        recipe: the one whose model the names are of.
        allow: patterns of names in ``state`` that the release has no place for, and that are dropped where they would be an
            error (a teacher, say).

    Raises:
        ConversionError: names that the release has no place for, one a line.
    """
    parts, report, result, problems = roles(recipe), Report(), {}, []
    for name, tensor in state.items():
        target = next((prefix + name[len(parts[role] + inner):] for prefix, role, inner in PARTS
                       if role in parts and name.startswith(parts[role] + inner)), None)
        if target is None or matches(target, STEM):
            if matches(name, allow):
                report.dropped[name] = "the release has no place for it; allowed"
            else:
                problems.append(f"unexpected: {name} {tuple(tensor.shape)}")
            continue
        report.renamed[name] = target
        if target == "temp":
            tensor = tensor.reshape(())
            report.changed[target] = "(1,) reshaped to ()"
        result[target] = tensor
    if problems:
        raise ConversionError("\n".join(["the X-FM release has no place for:", *(f"  {p}" for p in problems)]))
    report.absent = {pattern: why for pattern, why in DEAD.items() if why.startswith("dead")} | {
        f"{prefix}*": f"this recipe builds no {ROLES[role]}" for prefix, role, _ in PARTS if role not in parts}
    for copy, first in TIED.items():
        if first in result:
            result[copy] = result[first]
            report.made[copy] = f"the same tensor as {first}"
    for name in [n for n in result if n.endswith(TABLE)]:
        index = name.removesuffix(TABLE) + INDEX
        result[index] = relative_position_index(_side(result[name].shape[0]))
        report.made[index] = "computed from the size of the bias table"
    positions = "text_encoder.roberta.embeddings.position_embeddings.weight"
    if positions in result:
        for encoder in ("text_encoder", "fusion_encoder"):
            ids = f"{encoder}.roberta.embeddings.position_ids"
            result[ids] = torch.arange(result[positions].shape[0])[None]
            report.made[ids] = "a count from 0"
    return result, report


def roles(recipe) -> dict[str, str]:
    """{role: prefix of its names in the model}, ``encoders.vision.`` or ``losses.itm.``; roles that nobody plays are absent.

    Raises:
        ConversionError: two parts play one role.
    """
    found: dict[str, list[str]] = {}
    losses = recipe.config["losses"]

    def play(role, kind, name):
        found.setdefault(role, []).append(f"{kind}.{name}.")

    plain = {"CrossAttention": "fusion", "Similarity": "sim", "ITM": "itm", "IMLM": "imlm", "BBP": "bbp"}
    readers = {"BEiTv2": ("$image", "vision"), "RoBERTa": ("$text", "text")}
    names = {}
    kinds = types(recipe)
    for name, kind in kinds.items():
        sources = recipe.graph.encoders[name].inputs.values()
        if kind in readers and readers[kind][0] in sources:
            play(readers[kind][1], "encoders", name)
            names[name] = readers[kind][1]
        elif kind in plain:
            play(plain[kind], "encoders", name)
    for name, kind in kinds.items():
        if kind == "Projection":
            for source in recipe.graph.encoders[name].inputs.values():
                if source in names:
                    play(f"{names[source]}_proj", "encoders", name)
    for name in recipe.needs:
        if losses[name]["type"] in plain:
            play(plain[losses[name]["type"]], "losses", name)
    if any(kind == "text" and output_layer_read(recipe, name) for name, kind in names.items()):
        found["lm_head"] = found["text"]
    double = [f"{' and '.join(p.rstrip('.') for p in parts)} both are the {ROLES[role]}" for role, parts in found.items()
              if len(parts) > 1]
    if double:
        raise ConversionError(f"{recipe.source.where()}: " + "; ".join(double) + ": a converted file has one of each; use a "
                              "recipe with one")
    return {role: parts[0] for role, parts in found.items()}


def _wrong_index(name, tensor) -> list[str]:
    """A line if an index table is not the one that is computed here: the bias tables would mean something else."""
    if not name.endswith(INDEX) or tensor.dim() == 2 and tensor.shape[0] == tensor.shape[1] and torch.equal(
            tensor, relative_position_index(round((tensor.shape[0] - 1) ** 0.5))):
        return []
    return [f"another layout: {name} is not the index of a square grid of patches with a CLS token"]


def _side(rows: int) -> int:
    """Patches a side of a bias table with so many rows."""
    return (round((rows - 3) ** 0.5) + 1) // 2
