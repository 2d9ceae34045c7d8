"""Reads a recipe: YAML or a mapping, plugins, checks."""

import functools
import os
from pathlib import Path

from xtoolkit.recipe import config
from xtoolkit.recipe.checks import Checker
from xtoolkit.recipe.config import Config
from xtoolkit.recipe.plugins import import_components, import_plugins
from xtoolkit.recipe.recipe import Purpose, Recipe
from xtoolkit.registry import DATASET_REGISTRY, TASK_REGISTRY, ConfigError, fits, schema, nearest


def load(path: str, overrides=(), missing_files: bool = True, purpose: Purpose = "train",
         library: str | None = None, only=()) -> Recipe:
    """Reads and checks a recipe.

    Args:
        path: the YAML file.
        overrides: ``key.path=value`` texts.
        missing_files: also report data, weights and tokenizers that are not there (off for the plan, which needs none).
        purpose: which files must be there: see ``checked``.
        library: see ``config.load``.
        only: names of evaluations: the others are left out; empty: none is.

    Raises:
        ConfigError: every mistake of the file, one line each with file:line.
    """
    source = config.load(path, overrides, library)
    known = _mapping(source.data.get("evaluate"))
    if strange := [name for name in only if name not in known]:
        raise ConfigError([f"{source.where('evaluate')}: no evaluation `{name}`{nearest(name, known)}" for name in strange])
    if only:
        source.data["evaluate"] = {name: known[name] for name in only}
    return checked(source, os.path.dirname(os.path.abspath(path)), missing_files, purpose)


def checked(source: Config, folder: str, missing_files: bool = True, purpose: Purpose = "train",
            copies: Path | None = None, kept: dict | None = None) -> Recipe:
    """The recipe of a resolved configuration.

    Args:
        folder: what relative paths of ``plugins`` are relative to, before the working folder.
        missing_files: also report files that are not there and that ``purpose`` needs.
        purpose: ``evaluate`` reads a checkpoint, so it needs neither the streams' data nor weights to start from;
            ``resume`` needs weights to start from only where its folder has no checkpoint; ``build`` needs no data yet.
        copies, kept: a run's folder of plugins, where they are looked for first: see ``plugins.find``.

    Raises:
        ConfigError: every mistake, one line each with its place.
    """
    import_components()
    entries = named_plugins(source)
    plugins, lacking = import_plugins(entries, source.where("plugins"), folder, copies, kept)
    leave_out(source)
    recipe = Checker(source, missing_files, purpose, lacking).recipe()
    recipe.plugins = plugins
    return recipe


def leave_out(source: Config) -> None:
    """Takes evaluations of a loss that was removed out of a configuration that inherited them; or, where the task can do without,
    the key that names it. What a file that removes a loss, or a later one, writes itself stays, and is a mistake."""
    evaluations = _mapping(source.data.get("evaluate"))
    for loss, name, places in source.removed:
        block = _mapping(evaluations.get(name))
        kind = block.get("type")
        if loss in _mapping(source.data.get("losses")) or not isinstance(kind, str) or kind not in TASK_REGISTRY:
            continue
        cls = TASK_REGISTRY.get(kind)
        for key, one in schema(cls).items():
            inherited = places[key] == source.where("evaluate", name, key) if key in block and key in places else key not in block
            if key in cls.HEADS and inherited and block.get(key, one.default) == loss and name in evaluations:
                without = fits(None, one.type)
                if without:
                    block[key] = None
                else:
                    del evaluations[name]
                source.notes.append(f"evaluate.{name}" + (f".{key}" if without else "") + f" (loss {loss})")


def named_plugins(source: Config) -> list[str]:
    """The ``plugins:`` list of a configuration. Raises ConfigError for what is none."""
    entries = source.data.get("plugins") or []
    if not fits(entries, list[str]):
        raise ConfigError(f"{source.where('plugins')}: `plugins` must be a list of paths and modules")
    return entries


def read(source: Config, folder: str, beside: str) -> Recipe:
    """A recipe for ``build``: the paths in it are relative to ``folder``, its data need not be there yet.

    Args:
        beside: what its plugins are relative to: the folder of its file, if it is one.

    Raises:
        ConfigError: every mistake, one line each with its place.
    """
    from xtoolkit.data.paths import REMOTE  # only here: a file with mistakes is answered without it

    data, here = source.data, lambda path: os.path.normpath(os.path.join(folder, os.path.expanduser(path)))
    there = lambda name: here(name) if isinstance(name, str) and os.path.exists(here(name)) else name
    for block, key in [(data, "tokenizer"), (data, "init"), (data.get("init"), "path"),  # these may be names of a hub
                       *((encoder, "init") for encoder in _values(data.get("encoders")))]:
        if isinstance(block, dict) and key in block:
            block[key] = there(block[key])
    if isinstance(data.get("train"), dict) and isinstance(data["train"].get("output"), str):
        data["train"]["output"] = here(data["train"]["output"])
    recipe = checked(source, beside, purpose="build")
    for block in [*_values(data["streams"]), *recipe.evaluate.values()]:
        for key in dict(DATASET_REGISTRY.get(block["data"]["type"]).paths(block["data"])):
            *above, last = key.split(".")
            inner = functools.reduce(dict.__getitem__, above, block["data"])
            local = lambda path: path if REMOTE.match(path) else here(path)
            inner[last] = local(inner[last]) if isinstance(inner[last], str) else [local(path) for path in inner[last]]
    return recipe


def _mapping(block) -> dict:
    return block if isinstance(block, dict) else {}


def _values(block) -> list:
    return list(_mapping(block).values())
