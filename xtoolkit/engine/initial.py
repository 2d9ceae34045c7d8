"""The weights that a run starts from: a whole model's, or those that its encoders name."""

import copy
import os
import sys
from contextlib import suppress
from pathlib import Path

import torch
from torch import Tensor

from xtoolkit.weights.files import WeightsError, load_strictly, read_weights, unwrap
from xtoolkit.weights.formats import recognise
from xtoolkit.data.text import Tokenizer, load_tokenizer
from xtoolkit.encoders.base import Encoder
from xtoolkit.losses.base import Loss
from xtoolkit.recipe.folder import FOLDER, RECORD, TOKENIZER, chosen, differences
from xtoolkit.engine import checkpoint
from xtoolkit.model import Model
from xtoolkit.recipe import Recipe
from xtoolkit.registry import ConfigError


def load_initial(model: Model, recipe: Recipe, tokenizer: Tokenizer | None = None) -> None:
    """Loads what the recipe's top-level ``init`` names, or without one what the encoders' own do.

    Args:
        tokenizer: of the recipe: held against that of the run which the weights are of; None: it is not.

    Raises:
        WeightsError: every name that does not fit, or why nothing can be read.
        CheckpointError: a checkpoint that is damaged.
    """
    if (init := recipe.init) is None:
        model.load_init()
    else:
        load_model_weights(model, init.path, init.allow_missing, init.allow_unexpected, init.parts == "shared",
                           trained=bool(recipe.streams), tokenizer=tokenizer, own=init.own)


def load_model_weights(model: Model, path, allow_missing=(), allow_unexpected=(), shared: bool = False,
                       trained: bool = True, tokenizer: Tokenizer | None = None, own=()) -> None:
    """Fills a model, heads of its losses included, strictly; what depends on the size of pictures is resized by its encoder.

    A part of which the weights have nothing starts as without them: an encoder with an ``init`` of its own from that; one that
    copies another (a teacher), or a loss whose head starts as a copy, copies it anew; what else may be missing, as drawn.

    Args:
        path: as in ``read_model_weights``.
        allow_missing: patterns of the model's names that may keep their values.
        allow_unexpected: patterns of names in the weights that are left out where the model lacks them or has another shape.
        shared: parts that only one of the two has are allowed, see ``Init.parts``; which they are is said on stderr.
        tokenizer: see ``load_initial``.
        trained: False: no part may be left as drawn, since nothing will train it.
        own: encoders that start by their own ``init``, as if the weights had nothing of them.

    Raises:
        WeightsError: every missing, unexpected and mis-shaped name, or that no encoder is shared; nothing has been changed then.
    """
    read, origin = read_model_weights(path)
    apart = tuple(f"encoders.{name}." for name in own)
    state = model.fit({name: tensor for name, tensor in read.items() if not name.startswith(apart)})
    if apart and not any(name.startswith("encoders.") for name in state):
        raise WeightsError(f"{origin} has no encoder beside those of `init.own`: nothing would come from it; start without it "
                           "(`init.path: null`)")
    _check_words(model, state, origin, tokenizer, own)
    resized = {".".join(n.split(".")[:2]): None for n in state if n in read and state[n].shape != read[n].shape}
    lacks = lambda prefix: not any(name.startswith(prefix) for name in state)
    alone = {p: e for name, e in model.encoders.items() if lacks(p := f"encoders.{name}.")}
    copies = [p for p, e in alone.items() if type(e).REFERS]
    inits = {p: init for p in alone if (init := _init(model, p)) is not None}
    heads = [loss for name, loss in model.losses.items() if lacks(f"losses.{name}.")]
    swapped = [f"{p}*" for p in alone if p in apart]
    left, drawn = _unshared(model, state, origin, [*allow_missing, *swapped]) if shared else ([], [])
    copied = {*copies, *(f"losses.{name}." for name, loss in model.losses.items() if _copies(loss))}
    if lacking := [p.removesuffix(".*") for p in drawn if p.removesuffix("*") not in {*copied, *inits} and not trained]:
        raise WeightsError(f"{origin} has no {', '.join(lacking)}: a recipe without streams does not train it; name weights that "
                           "have it, or leave out the evaluations that read it")
    load_strictly(model, state, origin, ignore=[*allow_unexpected, *left],
                  may_miss=[*allow_missing, *drawn, *swapped, *(f"{p}*" for p in copies)],
                  mend=_other_encoders(model, origin, own) + "use the recipe that these weights were made with, or allow what "
                  f"may differ: `init: {{path: {path}, allow_missing: [losses.X.*], allow_unexpected: [losses.Y.*]}}`; with "
                  "`own: [X]` there encoder `X` starts by its own `init`")
    if os.environ.get("RANK", "0") == "0":
        for what, patterns in (("resized to this model's `image_size`", resized),
                               ("left there, as this model has no place for it", left),
                               ("drawn, as it has none", [p for p in drawn if p.removesuffix("*") not in {*copied, *inits}]),
                               ("by its own `init`, as it has none",
                                [f"{p[:-1]} from {init}" for p, init in inits.items() if p not in apart]),
                               ("by its own `init`, as `init.own` says",
                                [f"{p[:-1]} from {init}" for p, init in inits.items() if p in apart]),
                               ("copied from the encoders, as it has none", [p for p in drawn if p.removesuffix("*") in copied])):
            if patterns:
                print(f"init {origin}: {what}: {', '.join(p.removesuffix('.*') for p in patterns)}", file=sys.stderr)
    for part in (*alone.values(), *heads):
        part.load_init()


def _check_words(model: Model, state: dict[str, Tensor], origin: str, tokenizer: Tokenizer | None, own) -> None:
    """Raises WeightsError where embeddings of tokens are of a run, or by an encoder's own ``init`` of a folder or a hub's model,
    whose tokenizer gave these other ids. Whose files hold no tokenizer cannot be asked."""
    words = {part: encoder.vocab_size for part, encoder in model.encoders.items() if encoder.vocab_size is not None}
    given = model.state_dict()
    fits = lambda name, rows: name in given and given[name].shape == state[name].shape and state[name].shape[:1] == (rows,)
    read = [part for part, rows in words.items() if any(n.startswith(f"encoders.{part}.") and fits(n, rows) for n in state)]
    folder = Path(origin).parent.parent / TOKENIZER
    if tokenizer is not None and read and Path(origin).parent.name == FOLDER and folder.is_dir():
        _same_words(origin, read[0], str(folder), tokenizer)
    inits = {part: _init(model, f"encoders.{part}.") for part in words if part in own and tokenizer is not None}
    for part, init in inits.items():
        if init != tokenizer.name and not Path(init).expanduser().is_file():
            with suppress(ConfigError):
                _same_words(init, part, init, tokenizer)


def _same_words(origin: str, part: str, name: str, tokenizer: Tokenizer) -> None:
    theirs, ours = load_tokenizer(name).vocabulary, tokenizer.vocabulary
    if strange := [token for token, number in theirs.items() if ours.get(token) != number]:
        raise WeightsError(f"{origin}: encoder `{part}` was trained with another tokenizer: of its {len(theirs):,} tokens "
                           f"{len(strange):,} have another id in `{tokenizer.name}`, or none; set tokenizer={name}")


def _other_encoders(model: Model, origin: str, own) -> str:
    """How the encoders of the run that weights are of differ from the model's, but for those of ``own``, as the begin of a last
    line; else empty."""
    if not (Path(origin) / RECORD).is_file():
        return ""
    then, now = checkpoint.read_record(Path(origin))["config"], model.recipe.config["encoders"]
    then = then["encoders"] if "encoders" in then else {}
    found = []
    for name in (n for n in model.encoders if n in then and n not in own):
        lines = differences({"encoders": {name: then[name]}}, {"encoders": {name: now[name]}})
        kind = [line for line in lines if line.startswith(f"encoders.{name}.type:")]
        found += kind or [line for line in lines if line.split(":")[0].rpartition(".")[2] not in ("init", "image_size")]
    return f"that run has other encoders ({'; '.join(found)}): " if found else ""


def _init(model: Model, prefix: str) -> str | None:
    """What an encoder's own ``init`` names, by the prefix of its names."""
    block = model.recipe.config["encoders"][prefix.split(".")[1]]
    return block["init"] if "init" in block else None


def _copies(loss: Loss) -> bool:
    """Whether a loss fills its head from an encoder."""
    return type(loss).load_init is not Loss.load_init


def _unshared(model: Model, state: dict[str, Tensor], origin: str, allowed=()) -> tuple[list[str], list[str]]:
    """Patterns of the parts and output layers that only the weights have, and of those that only the model has.

    Raises:
        WeightsError: no encoder is in both; or one that is the model's alone, and that no pattern of ``allowed`` names, has
            the names and shapes of one that would be left there: most likely it is the same by another name.
    """
    part_of = lambda name: ".".join(name.split(".")[:2])
    own = model.state_dict()
    theirs, ours = ({part_of(n): None for n in names} for names in (state, own))
    if not any(part.startswith("encoders.") for part in theirs if part in ours):
        known = recognise(state)
        raise WeightsError(f"{origin} shares no encoder with this model, whose are {_encoders(ours)}; " + (
            f"it has {_encoders(theirs)}: give encoders the names that they have there" if _encoders(theirs) else
            f"its names are those of {known.what}: {known.advice()}" if known else "its names are of no format known here"))
    shapes = lambda tensors, part: {n.removeprefix(f"{part}."): t.shape for n, t in tensors.items() if n.startswith(f"{part}.")}
    for part in (p for p in ours if p.startswith("encoders.") and p not in theirs and f"{p}.*" not in allowed):
        if twins := [p for p in theirs if p not in ours and shapes(state, p) == shapes(own, part)]:
            raise WeightsError(f"{origin} has no `{part}`, but leaves `{twins[0]}` with exactly its names and shapes: give the "
                               f"encoder that name, or let it be drawn with `init.allow_missing: [{part}.*]`")
    left, drawn = ([f"{part}.*" for part in some if part not in others] for some, others in ((theirs, ours), (ours, theirs)))
    for name, module in model.named_modules():
        for head in module.HEADS if isinstance(module, Encoder) and part_of(name) in theirs else ():
            names = {f"{name}.{inner}" for inner in head_names(module, head)}
            here, there = (any(n in names for n in some) for some in (own, state))
            if here != there:
                (drawn if here else left).extend(_patterns(names))
    return sorted(left), drawn


def _encoders(parts) -> str:
    return ", ".join(part.removeprefix("encoders.") for part in parts if part.startswith("encoders."))


def _patterns(names: set[str]) -> list[str]:
    """``module.*`` for names that lie in one module of their own, else the names."""
    common = os.path.commonprefix([name.split(".")[:-1] for name in sorted(names)])
    return [f"{'.'.join(common)}.*"] if len(common) > 2 else sorted(names)


def head_names(encoder: Encoder, head: str) -> set[str]:
    """The names of an output layer's tensors in its encoder, whether it is built or not."""
    tensors = {id(t): t for t in (*encoder.parameters(), *encoder.buffers())}
    twin = copy.deepcopy(encoder, tensors)  # of the structure alone: the tensors are the encoder's
    with torch.device("meta"):
        twin.build_head(head)
    own = encoder.state_dict()
    return {name for name, tensor in twin.state_dict().items() if tensor.is_meta or name not in own}


def read_model_weights(path) -> tuple[dict[str, Tensor], str]:
    """A whole model's tensors under the names of ``Model.state_dict()``, on the CPU, and where they were found.

    Args:
        path: a file (safetensors or torch); a run's output folder, whose best checkpoint counts (``train.keep_best``), or
            else its newest; a checkpoint folder; or a folder that holds one such file, or shards of one.

    Raises:
        WeightsError: nothing there, or not readable.
        CheckpointError: a checkpoint that is damaged.
    """
    path = Path(path).expanduser()
    found = path if (path / ".metadata").is_file() else chosen(path)
    if found is None:
        return unwrap(read_weights(path), str(path)), str(path)
    return checkpoint.read_model(found), str(found)
