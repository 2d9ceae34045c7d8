"""Checkpoints: a torch Distributed Checkpoint directory and a JSON file, written whole or not at all, read strictly."""

import json
import os
import pickle
import shutil
import warnings
from pathlib import Path

import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.filesystem import FileSystemReader, FileSystemWriter
from torch.distributed.checkpoint.metadata import TensorStorageMetadata

from xtoolkit.engine.storage import checkpoint_bytes, not_saved
from xtoolkit.recipe.folder import FOLDER, RECORD, CheckpointError, best, checkpoints, finished, of_step, read_record
from xtoolkit.registry import nearest

UNFINISHED = ".unfinished-"

# What an index names beside classes of torch.distributed.checkpoint, paths and types of numbers.
PLAIN = {("torch", "Size"), ("torch.serialization", "_get_layout")}


def save(output, step: int, model, optimizer, record: dict, keep: int, counts: dict | None = None) -> Path:
    """Writes ``output/checkpoints/step_<step>`` and removes all but the newest ``keep``, and the best.

    Everything is written and synced under another name and then renamed, so that whenever the process is killed each
    checkpoint that has its final name is whole. A checkpoint of this step that is there already is kept as it is.

    Args:
        record: what the tensors do not say (configuration, versions, data manifest), as JSON; ``step`` is added.
        keep: at least 1.
        counts: {name: tensor} of what the run has counted.

    Raises:
        StorageError: it could not be written; what was begun is removed.
    """
    folder = Path(output) / FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    final = of_step(output, step)
    if not finished(final):
        for left_over in folder.glob(UNFINISHED + "*"):
            shutil.rmtree(left_over)
        unfinished = folder / f"{UNFINISHED}{final.name}"
        try:
            counted = {f"counts.{name}": tensor for name, tensor in (counts or {}).items()}
            _write(unfinished, _tensors(model, optimizer) | counted, {"step": step, **record})
            unfinished.rename(final)
            _sync(folder)
        except (OSError, RuntimeError, CheckpointException) as error:
            shutil.rmtree(unfinished, ignore_errors=True)
            raise not_saved(output, step, checkpoint_bytes(model, optimizer), error) from error
    prune(output, keep)
    return final


def prune(output, keep: int) -> None:
    """Removes all checkpoints but the newest ``keep``, at least one, and the best."""
    kept = best(output)
    for old in checkpoints(output)[:-max(1, keep)]:
        if kept is None or old != of_step(output, kept["step"]):
            # Renamed first: a removal that is cut short must not leave half a checkpoint under a good name.
            doomed = old.rename(old.with_name(f"{UNFINISHED}{old.name}"))
            shutil.rmtree(doomed)


def load(path, model, optimizer=None, counts: dict | None = None) -> dict:
    """Loads tensors in place, and returns the record.

    Args:
        optimizer: None loads the weights only.
        counts: filled with what ``save`` was given as such, on the CPU; None: it is left alone.

    Raises:
        CheckpointError: names or shapes do not match; nothing has been changed then.
    """
    record, reader = read_record(path), _Reader(path)
    stored = reader.read_metadata().state_dict_metadata
    of_model = {name: meta for name, meta in stored.items() if name.startswith("model.")}
    of_optimizer = {name: meta for name, meta in stored.items() if name.startswith("optimizer.")}
    wanted = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
    found, state = _mismatches(wanted, of_model, "the model"), {}
    if optimizer is not None:
        state = _empty_state(optimizer, of_optimizer)
        found += _mismatches(state, of_optimizer, "the optimizer")
    if found:
        raise CheckpointError("\n".join([f"{path} does not fit:", *(f"  {line}" for line in found),
                                         "  resume with the recipe that wrote it (its `config` is in "
                                         f"{Path(path) / RECORD}), or start in another `train.output`"]))
    counted = {n: torch.empty(meta.size, dtype=meta.properties.dtype) for n, meta in stored.items()
               if counts is not None and n.startswith("counts.")}
    _read_tensors(path, {**wanted, **state, **counted}, reader)
    for name, tensor in counted.items():
        counts[name.removeprefix("counts.")] = tensor
    if optimizer is not None:
        _give_state(optimizer, state)
    return record


def read_model(path) -> dict:
    """The model's tensors of a checkpoint by their names, on the CPU, whatever recipe wrote it.

    Raises:
        CheckpointError: no checkpoint, or a damaged one.
    """
    read_record(path)
    reader = _Reader(path)
    stored = {n: meta for n, meta in reader.read_metadata().state_dict_metadata.items() if n.startswith("model.")}
    odd = [n for n, meta in stored.items() if not isinstance(meta, TensorStorageMetadata)]
    if odd or not stored:
        raise CheckpointError(f"{path}: its index lists {'other things than tensors: ' + odd[0] if odd else 'no model'}")
    tensors = {n: torch.empty(meta.size, dtype=meta.properties.dtype) for n, meta in stored.items()}
    _read_tensors(path, tensors, reader)
    return {n.removeprefix("model."): tensor for n, tensor in tensors.items()}


# ---- what is in it --------------------------------------------------------------------------------------------------
def _tensors(model, optimizer):
    tensors = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
    for name, parameter in _named(optimizer):
        for key, value in optimizer.state[parameter].items() if parameter in optimizer.state else ():
            tensors[f"optimizer.{key}.{name}"] = value
    return tensors


def _named(optimizer):
    for group in optimizer.param_groups:
        yield from zip(group["names"], group["params"])


def _empty_state(optimizer, names):
    """Zeros for each state tensor that the checkpoint has of a parameter of ours; one never updated has none."""
    parameters, state = dict(_named(optimizer)), {}
    for full in names:
        _, key, name = full.split(".", 2)
        if name in parameters:
            like = parameters[name]
            state[full] = torch.zeros((), device=like.device) if key == "step" else torch.zeros_like(like)
    return state


def _give_state(optimizer, state):
    parameters = dict(_named(optimizer))
    optimizer.state.clear()
    for full, tensor in state.items():
        _, key, name = full.split(".", 2)
        optimizer.state[parameters[name]][key] = tensor.detach()


def _mismatches(wanted, stored, of):
    plain = lambda name: name.partition(".")[2]
    found = [f"missing in the checkpoint: `{plain(n)}`{nearest(n, set(stored) - set(wanted)) if stored else ''} of {of}"
             for n in wanted if n not in stored]
    found += [f"unexpected in the checkpoint: `{plain(n)}`, which {of} does not have"
              for n in stored if n not in wanted]
    for name in wanted:
        if name in stored:
            has, wants = stored[name], wanted[name]
            if has.size != wants.shape or has.properties.dtype != wants.dtype:
                found.append(f"mis-shaped: `{plain(name)}` is {list(has.size)} {has.properties.dtype} in the "
                             f"checkpoint, {list(wants.shape)} {wants.dtype} in {of}")
    return found


# ---- how it lies on disk --------------------------------------------------------------------------------------------
def _write(folder, tensors, record):
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")
        dcp.save(tensors, storage_writer=FileSystemWriter(folder), no_dist=True)
    _write_synced(folder / RECORD, json.dumps(record, indent=1))
    _sync(folder)


def _write_synced(path, text):
    with open(path, "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def _sync(folder):
    """A rename or a new name survives a power cut only once its directory is synced."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _read_tensors(path, tensors, reader):
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")
        try:
            dcp.load(tensors, storage_reader=reader, no_dist=True)
        except CheckpointException as error:  # a BaseException, which nobody would catch
            why = "; ".join(str(e[0]).partition("\n")[0] or type(e[0]).__name__ for e in error.failures.values())
            raise CheckpointError(f"{path}: its files are damaged or not all there ({why}); use an older checkpoint, or copy "
                                  "it again") from error


class _Reader(FileSystemReader):
    """torch's reader, except that the index, a pickle, may only name what an index is made of: loading runs no code."""

    def read_metadata(self, *args, rank=None):
        with open(Path(self.path) / ".metadata", "rb") as file:
            try:
                metadata = _IndexUnpickler(file).load()
            except (pickle.UnpicklingError, EOFError, ValueError, LookupError, TypeError, AttributeError, ImportError) as error:
                raise CheckpointError(f"{self.path}: its index `.metadata` is not one ({error}); use an older checkpoint, or "
                                      "copy it again") from error
        metadata.storage_meta.load_id = self.load_id
        return metadata


class _IndexUnpickler(pickle.Unpickler):
    def find_class(self, module, name):
        inside = module.startswith("torch.distributed.checkpoint.") or module.partition(".")[0] in ("torch", "pathlib")
        if inside and "." not in name:
            found = super().find_class(module, name)
            is_class = isinstance(found, type) and module.startswith(("torch.distributed.checkpoint.", "pathlib"))
            if is_class or isinstance(found, torch.dtype) or (module, name) in PLAIN:
                return found
        raise pickle.UnpicklingError(f"a checkpoint's index names {module}.{name}, which no index needs: not loaded")
