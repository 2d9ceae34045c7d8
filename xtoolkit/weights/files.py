"""Reading pretrained weights from a file or folder, and loading them so that no name is lost in silence."""

import argparse
import os
import pickle
import re
import sys
import warnings
from collections.abc import Mapping
from fnmatch import fnmatchcase
from pathlib import Path

import torch
from torch import Tensor, nn

from xtoolkit.weights.formats import recognise
from xtoolkit.weights.hub import fetched, is_path

WRAPPERS = ("model", "module", "state_dict")
# What DataParallel, torch.compile and training scripts put before every name.
PREFIXES = ("module.", "_orig_mod.", "model.")
TORCH = (".bin", ".pt", ".pth", ".th")
SHARD = re.compile(r"-\d{5}-of-\d{5}$")
MEND = "check width, layers, heads, patch_size and vocab_size of the encoder against these weights"


class WeightsError(ValueError):
    """Weights that cannot be found, read, or matched to a module name by name."""


def read_weights(path: str | Path) -> dict[str, Tensor]:
    """The tensors of a checkpoint, on the CPU.

    Args:
        path: a ``.safetensors`` file, a file of ``torch.save`` (read with ``weights_only=True``), or a folder that
            holds ``.safetensors`` shards, one torch file, or torch shards (``NAME-00001-of-00002.bin``). Where a folder has
            both kinds, safetensors count. ``{"model": ...}``, ``{"module": ...}`` and ``{"state_dict": ...}`` around the
            tensors are taken off.

    Raises:
        WeightsError: nothing there, several candidates, not readable, or other things than tensors inside.
    """
    path = Path(path).expanduser()
    state = {}
    for file in _files(path):
        shard = _read(file)
        if both := next((name for name in shard if name in state), None):
            raise WeightsError(f"{path}: several files hold `{both}`, so they are no shards of one model; name the file itself")
        state.update(shard)
    return state


def hub_weights(init: str) -> dict[str, Tensor]:
    """The tensors of a file or folder, or of a model on the Hugging Face hub, from its cache where they are there.

    The gamma and beta of a LayerNorm, as TensorFlow and so the first files of BERT call them, become weight and bias.

    Raises:
        WeightsError: they cannot be read, or cannot be downloaded, and where to put them then.
    """
    try:
        state = unwrap(read_weights(init if is_path(init) else fetched(init)), f"init {init}")
    except OSError as error:
        raise WeightsError(f"init `{init}` cannot be loaded from the hub ({error}); on a machine with access run "
                           f"`hf download {init} config.json model.safetensors --local-dir DIR`, copy DIR here, and "
                           "set `init: DIR`") from error
    return {name.replace("LayerNorm.gamma", "LayerNorm.weight").replace("LayerNorm.beta", "LayerNorm.bias"): tensor
            for name, tensor in state.items()}


def _files(path):
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise WeightsError(f"{path}: no such file or folder")
    files = sorted(path.glob("*.safetensors"))
    if not files:
        files = [f for f in sorted(path.iterdir()) if f.suffix in TORCH]
        if len(files) != 1 and not (files and all(SHARD.search(f.stem) for f in files)):
            raise WeightsError(f"{path}: expected *.safetensors or exactly one torch file ({', '.join(TORCH)}), "
                               f"found {[f.name for f in files] or 'neither'}; name the file itself")
    return files


def _read(file):
    if file.suffix == ".safetensors":
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            state = load_file(file)
        except (SafetensorError, ValueError, KeyError) as error:
            raise WeightsError(f"{file}: not a whole safetensors file ({error}); fetch or write it again") from error
        if not state:
            raise WeightsError(f"{file}: holds no tensor")
        return state
    try:
        # Published checkpoints often carry the Namespace of their training script; it holds data, not code.
        with torch.serialization.safe_globals([argparse.Namespace]), warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Detected pickle protocol")  # then it is refused below, or read well
            state = torch.load(file, map_location="cpu", weights_only=True)
    # What a file that is no torch file, or a hostile one, makes of the restricted unpickler.
    except (pickle.UnpicklingError, EOFError, RuntimeError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise WeightsError(f"{file}: not a torch file of tensors alone ({_reason(error)}); nothing in it was run; where it "
                           "was made, save the model's state_dict() again with torch.save or safetensors") from error
    while isinstance(state, dict) and (inner := next((k for k in WRAPPERS if isinstance(state.get(k), dict)), None)):
        state = state[inner]
    if not isinstance(state, dict):
        raise WeightsError(f"{file}: holds a {type(state).__name__}, not a mapping of names to tensors")
    odd = [name for name, value in state.items() if not (isinstance(value, Tensor) and isinstance(name, str))]
    if odd or not state:
        raise WeightsError(f"{file}: expected tensors by name, found other things under {odd[:5] or 'no name at all'}; "
                           "save the model's state_dict() alone, or under the key `model`")
    return state


def _reason(error) -> str:
    """What the unpickler stumbled over, without torch's advice to switch its guard off."""
    if found := re.search(r"(?:GLOBAL|global:?) (?:GLOBAL )?([A-Za-z_]\w*(?:\.\w+)+)", str(error)):
        return f"it holds {found[1]}"
    damaged = isinstance(error, RuntimeError) and not isinstance(error, pickle.UnpicklingError)
    return str(error).splitlines()[0][:120] if damaged and str(error) else "it is none, or a pickle of other things"


def unwrap(state: Mapping[str, Tensor], origin: str, own=()) -> dict[str, Tensor]:
    """``state`` without the prefixes of wrappers (``module.``, ``_orig_mod.``, ``model.``) that all its names carry.

    What is taken off is said on stderr, by the first process.

    Args:
        origin: where the tensors come from, for that line.
        own: names that are wanted; nothing is taken off where one of them is there already.
    """
    state, taken = dict(state), ""
    while state and not any(name in own for name in state):
        prefix = next((p for p in PREFIXES if all(name.startswith(p) for name in state)), None)
        if prefix is None:
            break
        state, taken = {name.removeprefix(prefix): tensor for name, tensor in state.items()}, taken + prefix
    if taken and os.environ.get("RANK", "0") == "0":
        print(f"{origin}: all names begin with `{taken}`, a wrapper's prefix; read without it", file=sys.stderr)
    return state


def load_strictly(module: nn.Module, state: dict[str, Tensor], origin: str, ignore=(), may_miss=(),
                  mend: str = MEND) -> list[str]:
    """Copies ``state`` into ``module``; every name that does not match is listed, and then nothing is loaded.

    Args:
        module: its parameters and persistent buffers are what must be filled.
        state: tensors by name; a wrapper's prefix before all of them is taken off.
        origin: where they come from, for messages.
        ignore: patterns (``head.*``) of names in ``state`` that are left out if they have no place in the module, or not
            with that shape.
        may_miss: patterns of names in the module that keep their initial value if ``state`` lacks them.
        mend: the last line of a refusal, unless the weights are of another format, which is then told.

    Returns:
        The names that kept their initial value.

    Raises:
        WeightsError: with all missing, unexpected and mis-shaped names, or those that hold nan or infinity.
    """
    own = module.state_dict()
    state = unwrap(state, origin, own)
    state = {k: v for k, v in state.items() if not matches(k, ignore) or k in own and own[k].shape == v.shape}
    if found := mismatches(own, state, may_miss):
        raise WeightsError("\n".join([f"{origin} does not fit {type(module).__name__}:", *(f"  {line}" for line in found),
                                      f"  {_advice(own, state, mend)}"]))
    numbers = {k for k, _ in module.named_parameters(remove_duplicate=False)}  # buffers may hold what is none
    if bad := [k for k, v in state.items() if k in numbers and not torch.isfinite(v).all()]:
        raise WeightsError("\n".join([f"{origin} holds numbers that are none (nan or infinite):", *(f"  in {k}" for k in bad),
                                      "  it is damaged, or of a run that diverged: take an older checkpoint, or write it again"]))
    return module.load_state_dict(state, strict=False).missing_keys


def _advice(own, state, mend):
    known = recognise(state)
    if known is None or known is recognise(own):
        return mend
    return f"these names are those of {known.what}; {known.advice()}"


def mismatches(own: Mapping[str, Tensor], state: Mapping[str, Tensor], may_miss=()) -> list[str]:
    """A line for each name that keeps ``state`` from filling ``own``: missing, unexpected, of another shape or number type."""
    missing = [f"missing: {k}" for k in own if k not in state and not matches(k, may_miss)]
    unexpected = [f"unexpected: {k}" for k in state if k not in own]
    shapes = [f"other shape: {k} {tuple(v.shape)} there, {tuple(own[k].shape)} here" for k, v in state.items()
              if k in own and own[k].shape != v.shape]
    types = [f"other type: {k} {str(v.dtype).removeprefix('torch.')} there, {str(own[k].dtype).removeprefix('torch.')} here"
             for k, v in state.items() if k in own and own[k].is_floating_point() != v.is_floating_point()]
    return missing + unexpected + shapes + types


def matches(name: str, patterns) -> bool:
    """Whether a name fits one of the patterns (``head.*``)."""
    return any(fnmatchcase(name, p) for p in patterns)
