"""The weights that a run starts from: a whole model's, or those that its encoders name."""

from pathlib import Path

from torch import Tensor

from xtoolkit.weights.files import load_strictly, read_weights, unwrap
from xtoolkit.recipe.folder import latest
from xtoolkit.engine import checkpoint
from xtoolkit.model import Model
from xtoolkit.recipe import Recipe


def load_initial(model: Model, recipe: Recipe) -> None:
    """Loads what the recipe's top-level ``init`` names, or without one what the encoders' own do.

    Raises:
        WeightsError: every name that does not fit, or why nothing can be read.
        CheckpointError: a checkpoint that is damaged.
    """
    if recipe.init is None:
        model.load_init()
    else:
        load_model_weights(model, recipe.init.path, recipe.init.allow_missing, recipe.init.allow_unexpected)


def load_model_weights(model: Model, path, allow_missing=(), allow_unexpected=()) -> None:
    """Fills a model, heads of its losses included, strictly.

    A part of which the weights have nothing, an encoder that copies another (a teacher) or a loss whose head starts as a copy of
    one, copies it anew.

    Args:
        path: as in ``read_model_weights``.
        allow_missing: patterns of the model's names that may keep their values.
        allow_unexpected: patterns of names in the weights that are left out where the model lacks them or has another shape.

    Raises:
        WeightsError: every missing, unexpected and mis-shaped name; nothing has been changed then.
    """
    state, origin = read_model_weights(path)
    lacks = lambda prefix: not any(name.startswith(prefix) for name in state)
    copies = {p: e for name, e in model.encoders.items() if type(e).REFERS and lacks(p := f"encoders.{name}.")}
    heads = [loss for name, loss in model.losses.items() if lacks(f"losses.{name}.")]
    load_strictly(model, state, origin, ignore=allow_unexpected, may_miss=[*allow_missing, *(f"{p}*" for p in copies)],
                  mend="use the recipe that these weights were made with, or allow what may differ: `init: {path: "
                  f"{path}, allow_missing: [losses.X.*], allow_unexpected: [losses.Y.*]}}`")
    for part in (*copies.values(), *heads):
        part.load_init()


def read_model_weights(path) -> tuple[dict[str, Tensor], str]:
    """A whole model's tensors under the names of ``Model.state_dict()``, on the CPU, and where they were found.

    Args:
        path: a file (safetensors or torch); a run's output folder, whose newest checkpoint counts; a checkpoint folder; or a
            folder that holds one such file, or shards of one.

    Raises:
        WeightsError: nothing there, or not readable.
        CheckpointError: a checkpoint that is damaged.
    """
    path = Path(path).expanduser()
    found = path if (path / ".metadata").is_file() else latest(path)
    if found is None:
        return unwrap(read_weights(path), str(path)), str(path)
    return checkpoint.read_model(found), str(found)
