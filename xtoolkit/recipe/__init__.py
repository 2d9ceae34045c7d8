"""Recipes: YAML with its places, every mistake of it, and what the model and the engine read."""

from xtoolkit.recipe.reading import checked, load, named_plugins, read
from xtoolkit.recipe.recipe import Purpose, Recipe, Stream, reached

__all__ = ["Purpose", "Recipe", "Stream", "checked", "load", "named_plugins", "reached", "read"]
