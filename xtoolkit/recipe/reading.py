"""Reads a recipe: YAML, plugins, checks."""

import os

from xtoolkit.recipe import config
from xtoolkit.recipe.checks import Checker
from xtoolkit.recipe.config import Config
from xtoolkit.recipe.plugins import import_components
from xtoolkit.recipe.recipe import Purpose, Recipe
from xtoolkit.registry import ConfigError, fits


def load(path: str, overrides=(), missing_files: bool = True, purpose: Purpose = "train") -> Recipe:
    """Reads and checks a recipe.

    Args:
        path: the YAML file.
        overrides: ``key.path=value`` texts.
        missing_files: also report data, weights and tokenizers that are not there (off for the plan, which needs none).
        purpose: which files must be there: see ``checked``.

    Raises:
        ConfigError: every mistake of the file, one line each with file:line.
    """
    return checked(config.load(path, overrides), os.path.dirname(os.path.abspath(path)), missing_files, purpose)


def checked(source: Config, folder: str, missing_files: bool = True, purpose: Purpose = "train") -> Recipe:
    """The recipe of a resolved configuration.

    Args:
        folder: what relative paths of ``plugins`` are relative to, before the working folder.
        missing_files: also report files that are not there and that ``purpose`` needs.
        purpose: ``evaluate`` reads a checkpoint, so it needs neither the streams' data nor weights to start from;
            ``resume`` needs weights to start from only where its folder has no checkpoint.

    Raises:
        ConfigError: every mistake, one line each with its place.
    """
    plugins = source.data.get("plugins") or []
    if not fits(plugins, list[str]):
        raise ConfigError(f"{source.where('plugins')}: `plugins` must be a list of paths and modules")
    import_components(plugins, source.where("plugins"), folder)
    return Checker(source, missing_files, purpose).recipe()
