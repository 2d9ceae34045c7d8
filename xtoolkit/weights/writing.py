"""Whether converted tensors fill a model, and how they are written: whole or not at all, never over something else."""

import json
import os
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from xtoolkit.weights.report import ConversionError, Report
from xtoolkit.weights.files import matches, mismatches


def verify(own: Mapping[str, Tensor], state: dict, origin: str, allow_missing=(), allow_unexpected=(),
           report: Report | None = None) -> dict[str, Tensor]:
    """``state`` without what may be left out, once it is certain that it fills ``own``.

    Args:
        own: the names and shapes to fill; tensors on the meta device serve.
        origin: the file, for the message.
        allow_missing: patterns of names in ``own`` that may be missing.
        allow_unexpected: patterns of names in ``state`` that are left out if ``own`` lacks them, or has another shape.
        report: what is left out is added to it.

    Raises:
        ConversionError: every missing, unexpected and mis-shaped name, one a line.
    """
    fits = lambda name: name in own and own[name].shape == state[name].shape
    left_out = [name for name in state if not fits(name) and matches(name, allow_unexpected)]
    kept = {name: tensor for name, tensor in state.items() if name not in left_out}
    if found := mismatches(own, kept, allow_missing):
        raise ConversionError("\n".join([
            f"{origin} does not fit this recipe:", *(f"  {line}" for line in found),
            "  names are the toolkit's; check the sizes in --config against these weights, or allow what may differ: "
            "--allow-missing PATTERN, --allow-unexpected PATTERN"]))
    if report is not None:
        report.dropped.update({name: "no place in this recipe's model, or another shape; allowed" for name in left_out})
    return kept


def write_tensors(state: Mapping[str, Tensor], path) -> None:
    """Writes ``.safetensors``, or a torch file ``{"model": ...}`` where the suffix is .th, .pt, .pth or .bin.

    Raises:
        ConversionError: another suffix.
    """
    path = Path(path)
    unfinished = path.with_name(f".unfinished-{path.name}")
    if path.suffix == ".safetensors":
        from safetensors.torch import save_file

        save_file(_unshared(state), unfinished, metadata={"format": "pt"})
    elif path.suffix in (".th", ".pt", ".pth", ".bin"):
        torch.save({"model": dict(state)}, unfinished)
    else:
        raise ConversionError(f"{path}: end the output's name with .safetensors, or with .th, .pt or .pth for a torch file")
    os.replace(unfinished, path)


def write_folder(folder, state: Mapping[str, Tensor], config: dict) -> None:
    """Writes ``model.safetensors`` and ``config.json``, as hubs lay a model out."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    write_tensors(state, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def refuse_existing(path) -> None:
    """Raises ConversionError where an output would be written over something, or cannot be made."""
    path = Path(path)
    if path.exists():
        raise ConversionError(f"{path}: exists already; name another output, or remove it")
    for parent in path.parents:
        if parent.exists():
            if not parent.is_dir():
                raise ConversionError(f"{path}: {parent} is a file")
            break


def _unshared(state):
    """Tensors that own their memory: safetensors writes none that two names share."""
    seen, result = set(), {}
    for name, tensor in state.items():
        tensor = tensor.detach().contiguous()
        key = tensor.untyped_storage().data_ptr()
        result[name] = tensor.clone() if key in seen else tensor
        seen.add(key)
    return result
