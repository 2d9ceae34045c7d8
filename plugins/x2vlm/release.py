"""The released X2-VLM checkpoint: its names to ours, and ours to its. Read by the tool that converts weights.

The release has one stack of BERT layers: those below are our text encoder, those above, with cross-attention, our fusion encoder. A
recipe may call its parts as it likes: which plays which role is found from types and wiring.

Source: the names and shapes of the released model's ``state_dict()``: 587 tensors at base size.
"""

import re
from collections.abc import Mapping
from fnmatch import fnmatchcase

import torch
from torch import Tensor

from xtoolkit.weights import formats
from xtoolkit.weights.beit import TABLE, relative_position_index, resize_position_table
from xtoolkit.weights.files import matches
from xtoolkit.weights.parts import block_of, output_layer_read, types
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
# (prefix in the release, role, prefix inside that part). The first that fits counts; layers are told apart by their number.
PARTS = (
    ("temp", "sim", "temperature"),
    ("vision_encoder.", "vision", ""),
    ("text_encoder.bert.", "text", "bert."),
    ("text_encoder.cls.predictions.transform.dense.", "lm_head", "lm_head.dense."),
    ("text_encoder.cls.predictions.transform.LayerNorm.", "lm_head", "lm_head.layer_norm."),
    ("text_encoder.cls.predictions.bias", "lm_head", "lm_head.bias"),
    ("vision_proj.", "vision_proj", "linear."),
    ("text_proj.", "text_proj", "linear."),
    ("itm_head.", "itm", "head."),
    ("bbox_head.", "bbp", "head."),
)
STACK = "text_encoder.bert.encoder.layer."
LAYER = re.compile(re.escape(STACK) + r"(\d+)\.(.*)")
OURS = re.compile(r"layer\.(\d+)\.(.*)")
INDEX = "relative_position_index"
CLS = "vision_encoder.cls_token"
STEM = ("vision_encoder.patch_embed.convs.*", "vision_encoder.patch_embed.norms.*", "vision_encoder.mask_token")
COMPUTED = {
    "*.embeddings.position_ids": "a count from 0, computed here",
    f"vision_encoder.blocks.*.attn.{INDEX}": "an index table, computed here",
}
# {a tensor that the release stores twice: the name under which it is taken over}.
TIED = {
    "text_encoder.cls.predictions.decoder.weight": "text_encoder.bert.embeddings.word_embeddings.weight",
    "text_encoder.cls.predictions.decoder.bias": "text_encoder.cls.predictions.bias",
}


def from_release(state: Mapping[str, Tensor], recipe, allow=()) -> tuple[dict[str, Tensor], Report]:
    """The release's tensors under the names of the model that ``recipe`` builds (``Model(recipe).state_dict()``).

    Tensors are taken over bit for bit, without a copy; the scalar temperature becomes (1,), and position bias tables of
    another picture size are resized by the rule of the BEiTv2 encoder; its mask token, which the release lacks, is 0. Whether
    the model has further names that the release cannot fill is not asked here: ``weights.writing.verify`` does.

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
    below = _text_layers(recipe, parts)
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
        if (reason := next((why for pattern, why in COMPUTED.items() if fnmatchcase(name, pattern)), None)) is not None:
            problems += _wrong_index(name, tensor)
            report.dropped[name] = reason
            continue
        role, inner = _placed(first or name, below)
        if role is None:
            if matches(name, allow):
                report.dropped[name] = "unknown to the release; allowed"
            else:
                problems.append(f"unexpected: {name} {tuple(tensor.shape)}")
            continue
        if role not in parts:
            report.dropped[name] = f"this recipe builds no {ROLES[role]}"
            continue
        target = parts[role] + inner
        report.renamed[name] = target
        if name == "temp" and tensor.dim() == 0:
            tensor = tensor.reshape(1)
            report.changed[target] = "() reshaped to (1,)"
        elif role == "vision" and name.endswith(TABLE):
            block = block_of(recipe, parts["vision"].split(".")[1])
            grid = block["image_size"] // block["patch_size"]
            resized = resize_position_table(tensor, grid, block["resize"])
            if resized.shape != tensor.shape:
                report.changed[target] = f"{tuple(tensor.shape)} resized to {tuple(resized.shape)}: {grid} x {grid} patches"
            tensor = resized
        result[target] = tensor
    if problems:
        raise ConversionError("\n".join(["not a released X2-VLM checkpoint:", *(f"  {p}" for p in problems)]))
    if "vision" in parts and CLS in state:
        result[token := f"{parts['vision']}mask_token"] = torch.zeros_like(state[CLS])
        report.made[token] = "zeros: the release masks no pictures"
    return result, report


def to_release(state: Mapping[str, Tensor], recipe, allow=()) -> tuple[dict[str, Tensor], Report]:
    """The inverse of ``from_release``: our names to the release's, with its tied copies, index tables and position ids.

    Args:
        state: {name in the model: tensor}.
        recipe: the one whose model the names are of.
        allow: patterns of names in ``state`` that the release has no place for, and that are dropped where they would be an
            error (a teacher, say).

    Raises:
        ConversionError: names that the release has no place for, one a line.
    """
    parts, report, result, problems = roles(recipe), Report(), {}, []
    below = _text_layers(recipe, parts)
    for name, tensor in state.items():
        target = _released(name, parts, below)
        if target is not None and target.endswith(".mask_token"):
            report.dropped[name] = "the release masks no pictures"
            continue
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
        raise ConversionError("\n".join(["the X2-VLM release has no place for:", *(f"  {p}" for p in problems)]))
    absent = {role: prefix for prefix, role, _ in PARTS} | {"fusion": f"{STACK}{below} and above."}
    report.absent = {f"{prefix}*": f"this recipe builds no {ROLES[role]}" for role, prefix in absent.items() if role not in parts}
    for copy, first in TIED.items():
        if first in result:
            result[copy] = result[first]
            report.made[copy] = f"the same tensor as {first}"
    for name in [n for n in result if n.endswith(TABLE)]:
        index = name.removesuffix(TABLE) + INDEX
        result[index] = relative_position_index(_side(result[name].shape[0]))
        report.made[index] = "computed from the size of the bias table"
    positions = "text_encoder.bert.embeddings.position_embeddings.weight"
    if positions in result:
        ids = "text_encoder.bert.embeddings.position_ids"
        result[ids] = torch.arange(result[positions].shape[0])[None]
        report.made[ids] = "a count from 0"
    return result, report


def roles(recipe) -> dict[str, str]:
    """{role: prefix of its names in the model}, ``encoders.vision.`` or ``losses.itm.``; roles that nobody plays are absent.

    Raises:
        ConversionError: the recipe has no BERT encoder of $text, or two parts play one role.
    """
    found: dict[str, list[str]] = {}
    play = lambda role, kind, name: found.setdefault(role, []).append(f"{kind}.{name}.")
    plain = {"CrossAttention": "fusion", "Similarity": "sim", "ITM": "itm", "BBP": "bbp"}
    readers = {"BEiTv2": ("$image", "vision"), "BERT": ("$text", "text")}
    names, kinds = {}, types(recipe)
    inputs = lambda name: recipe.graph.encoders[name].inputs.values()
    for name, kind in kinds.items():
        if kind in readers and readers[kind][0] in inputs(name):
            names[name] = readers[kind][1]
            play(names[name], "encoders", name)
        elif kind in plain:
            play(plain[kind], "encoders", name)
    for name in (name for name, kind in kinds.items() if kind == "Projection"):
        for source in (source for source in inputs(name) if source in names):
            play(f"{names[source]}_proj", "encoders", name)
    for name in recipe.needs:
        if (kind := recipe.config["losses"][name]["type"]) in plain:
            play(plain[kind], "losses", name)
    where = recipe.source.where()
    if "text" not in found:
        raise ConversionError(f"{where}: this recipe builds no {ROLES['text']}: the X2-VLM release has BERT's words; use one that does")
    if any(role == "text" and output_layer_read(recipe, name) for name, role in names.items()):
        found["lm_head"] = found["text"]
    double = [f"{' and '.join(p.rstrip('.') for p in parts)} both are the {ROLES[role]}" for role, parts in found.items()
              if len(parts) > 1]
    if double:
        raise ConversionError(f"{where}: " + "; ".join(double) + ": a converted file has one of each; use a recipe with one")
    return {role: parts[0] for role, parts in found.items()}


def _text_layers(recipe, parts) -> int:
    """How many layers of the stack are the text encoder's; those above are the fusion encoder's."""
    return block_of(recipe, parts["text"].split(".")[1])["layers"]


def _placed(name: str, below: int) -> tuple[str | None, str]:
    """The role of a released name, and the name inside that part; (None, "") where it is none of the release's."""
    if (layer := LAYER.match(name)) and int(layer[1]) >= below:
        return "fusion", f"layer.{int(layer[1]) - below}.{layer[2]}"
    return next(((role, inner + name[len(prefix):]) for prefix, role, inner in PARTS if name.startswith(prefix)), (None, ""))


def _released(name: str, parts, below: int) -> str | None:
    """The released name of one of ours; None: it has none."""
    fusion = parts.get("fusion")
    if fusion is not None and name.startswith(fusion):
        layer = OURS.fullmatch(name[len(fusion):])
        return layer and f"{STACK}{int(layer[1]) + below}.{layer[2]}"
    return next((prefix + name[len(parts[role] + inner):] for prefix, role, inner in PARTS
                 if role in parts and name.startswith(parts[role] + inner)), None)


def _wrong_index(name, tensor) -> list[str]:
    """A line if an index table is not the one that is computed here: the bias tables would mean something else."""
    if not name.endswith(INDEX) or tensor.dim() == 2 and tensor.shape[0] == tensor.shape[1] and torch.equal(
            tensor, relative_position_index(round((tensor.shape[0] - 1) ** 0.5))):
        return []
    return [f"another layout: {name} is not the index of a square grid of patches with a CLS token"]


def _side(rows: int) -> int:
    """Patches a side of a bias table with so many rows."""
    return (round((rows - 3) ** 0.5) + 1) // 2
