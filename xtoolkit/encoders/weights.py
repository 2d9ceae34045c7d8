"""Reading pretrained weights from a file or folder, and loading them so that no name is lost in silence."""

import argparse
import pickle
from fnmatch import fnmatchcase
from pathlib import Path

import torch
from torch import Tensor, nn

WRAPPERS = ("model", "module", "state_dict")


class WeightsError(ValueError):
    """Weights that cannot be found, read, or matched to a module name by name."""


def read_weights(path: str | Path) -> dict[str, Tensor]:
    """The tensors of a checkpoint, on the CPU.

    Args:
        path: a ``.safetensors`` file, a file of ``torch.save`` (read with ``weights_only=True``), or a folder that
            holds ``.safetensors`` shards or one torch file. ``{"model": ...}``, ``{"module": ...}`` and
            ``{"state_dict": ...}`` around the tensors are taken off.

    Raises:
        WeightsError: nothing there, several candidates, not readable, or other things than tensors inside.
    """
    path = Path(path).expanduser()
    if path.is_dir():
        files = sorted(path.glob("*.safetensors"))
        if not files:
            files = [f for f in sorted(path.iterdir()) if f.suffix in (".bin", ".pt", ".pth", ".th")]
            if len(files) != 1:
                raise WeightsError(f"{path}: expected *.safetensors or exactly one torch file (.bin, .pt, .pth, .th), "
                                   f"found {[f.name for f in files] or 'neither'}; name the file itself in `init`")
    elif path.is_file():
        files = [path]
    else:
        raise WeightsError(f"{path}: no such file or folder; correct `init`, or put the weights there")
    state = {}
    for file in files:
        state.update(_read(file))
    return state


def _read(file):
    if file.suffix == ".safetensors":
        from safetensors.torch import load_file

        return load_file(file)
    try:
        # Published checkpoints often carry the Namespace of their training script; it holds data, not code.
        with torch.serialization.safe_globals([argparse.Namespace]):
            state = torch.load(file, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, EOFError, RuntimeError) as error:
        raise WeightsError(f"{file}: not a torch file of tensors alone ({str(error).splitlines()[0]}); where it was "
                           "made, save the model's state_dict() again with torch.save or safetensors") from error
    while isinstance(state, dict) and (inner := next((k for k in WRAPPERS if isinstance(state.get(k), dict)), None)):
        state = state[inner]
    if not isinstance(state, dict):
        raise WeightsError(f"{file}: holds a {type(state).__name__}, not a mapping of names to tensors")
    odd = [name for name, value in state.items() if not isinstance(value, Tensor)]
    if odd or not state:
        raise WeightsError(f"{file}: expected tensors by name, found other things under {odd[:5] or 'no name at all'}; "
                           "save the model's state_dict() alone, or under the key `model`")
    return state


def load_strictly(module: nn.Module, state: dict[str, Tensor], origin: str, ignore=(), may_miss=()) -> None:
    """Copies ``state`` into ``module``; every name that does not match is listed, and then nothing is loaded.

    Args:
        module: its parameters and persistent buffers are what must be filled.
        state: tensors by name.
        origin: where they come from, for messages.
        ignore: patterns (``head.*``) of names in ``state`` that have no place in the module by design.
        may_miss: patterns of names in the module that keep their initial value if ``state`` lacks them.

    Raises:
        WeightsError: with all missing, unexpected and mis-shaped names.
    """
    own = module.state_dict()
    state = {k: v for k, v in state.items() if k in own or not _matches(k, ignore)}
    missing = [k for k in own if k not in state and not _matches(k, may_miss)]
    unexpected = [k for k in state if k not in own]
    shapes = [f"{k} {tuple(v.shape)} there, {tuple(own[k].shape)} here" for k, v in state.items()
              if k in own and own[k].shape != v.shape]
    if missing or unexpected or shapes:
        lines = [f"{origin} does not fit {type(module).__name__}:"]
        lines += [f"  missing: {k}" for k in missing] + [f"  unexpected: {k}" for k in unexpected]
        lines += [f"  other shape: {s}" for s in shapes]
        lines.append("  check width, layers, heads, patch_size and vocab_size of the encoder against these weights")
        raise WeightsError("\n".join(lines))
    module.load_state_dict(state, strict=False)


def _matches(name, patterns):
    return any(fnmatchcase(name, p) for p in patterns)
