"""Finds recipes: files, and those of the projects that come with the toolkit. Nothing below this room knows a project."""

import os
import re
from collections.abc import Mapping
from functools import cache
from pathlib import Path

from xtoolkit.recipe.folder import CONFIG
from xtoolkit.registry import ConfigError, nearest

CHECKOUT = "projects"
MISSING = re.compile(r": (\S+): no such file")  # of a place's problem: the path that is not there


def folder() -> Path:
    """The projects that come with the toolkit: ``projects/`` in a checkout, ``xtoolkit/recipes/`` where it is installed."""
    installed = Path(__file__).resolve().parents[1] / "recipes"
    return installed if installed.is_dir() else installed.parents[1] / CHECKOUT


def names() -> list[str]:
    """The YAML files of these projects, as ``find`` takes them: ``PROJECT/FILE.yaml``."""
    return sorted(path.relative_to(folder()).as_posix() for path in folder().glob("*/**/*.yaml"))


def runnable() -> list[str]:
    """Those of ``names`` that are whole recipes: the others are inherited, or are tables of recipes."""
    from xtoolkit.recipe import config

    return [name for name in names() if "train" in config.load(find(name), library=str(folder())).data]


def find(name: str) -> str:
    """The path of a recipe: a file, or, where there is none, that of the toolkit's (``PROJECT/FILE.yaml``).

    Raises:
        ConfigError: neither is there, with the nearest name; or a folder, with the recipe in it.
    """
    ours = folder() / name.removeprefix(f"{CHECKOUT}/")
    if os.path.isdir(name):
        inside = Path(name) / CONFIG
        raise ConfigError(f"{name}: a folder; " + (f"the recipe of this run is {inside}" if inside.is_file() else
                                                   f"name a recipe{nearest('', map(str, Path(name).glob('*.yaml')))}"))
    if os.path.exists(name):
        return name
    if ours.is_file():
        return str(ours)
    beside = [str(path) for path in Path(name).parent.glob("*.yaml")]
    raise ConfigError(f"{name}: no such recipe{nearest(name, {*beside, *names()})}")


def giving(ability: str) -> list[str]:
    """The recipes of these projects that evaluate a task with this ability: what they train has it."""
    return [name for name, tasks in _evaluations().items() if any(ability in task.ABILITIES for task in tasks)]


@cache
def _evaluations() -> dict[str, list]:
    """{recipe: the classes of the tasks that it evaluates}; what cannot be read is left out."""
    from xtoolkit.recipe import config
    from xtoolkit.registry import TASK_REGISTRY

    known, found = TASK_REGISTRY.names(), {}
    for name in names():
        try:
            blocks = config.load(str(folder() / name), library=str(folder())).data.get("evaluate") or {}
        except ConfigError:
            continue
        types = [block.get("type") for block in blocks.values() if isinstance(block, dict)]
        found[name] = [TASK_REGISTRY.get(kind) for kind in types if kind in known]
    return found


def read(name: str, overrides=(), missing_files: bool = True, purpose: str = "train", only=()):
    """``xtoolkit.recipe.load`` of the recipe that is found; `_BASE_` too may name one of the toolkit's."""
    from xtoolkit import recipe as recipes

    try:
        return recipes.load(find(name), overrides, missing_files, purpose, str(folder()), only)
    except ConfigError as error:
        error.hint = error.hint or _makes(error.problems)
        raise


def _makes(problems) -> str:
    """Which of these recipes make the runs that are said to be missing; empty: none does."""
    from xtoolkit.recipe import config

    missing = {found[1] for line in problems if (found := MISSING.search(line))}
    made: dict = {}
    for name in names() if missing else ():
        path = str(folder() / name)
        try:
            source = config.load(path, library=str(folder()))
        except ConfigError:
            continue
        train, own = source.data.get("train"), source.where("train", "output").startswith(f"{path}:")  # not inherited
        if own and isinstance(train, dict) and train.get("output") in missing:
            made.setdefault(train["output"], name)
    return "; ".join(f"{output} is made by: xtoolkit train --config {name}" for output, name in made.items())


def build(recipe, base="."):
    """See ``xtoolkit.build``."""
    from xtoolkit import recipe as recipes
    from xtoolkit.engine.run import Run
    from xtoolkit.recipe import config

    if not isinstance(recipe, (Mapping, str, os.PathLike)):
        raise TypeError(f"recipe: a {type(recipe).__name__} is none; give a mapping, the path of a YAML file, or its text")
    if not os.path.isdir(base):
        raise ConfigError(f"folder: {os.fspath(base)}: no such folder")
    if isinstance(recipe, Mapping) or isinstance(recipe, str) and ("\n" in recipe or recipe.lstrip().startswith("{")):
        source, beside = config.read(recipe, os.fspath(base), str(folder())), os.fspath(base)
    else:
        path = find(os.fspath(recipe))
        source, beside = config.load(path, library=str(folder())), os.path.dirname(os.path.abspath(path))
    return Run(recipes.read(source, os.fspath(base), beside))
