"""What projects and plugins know of released checkpoints: `projects/<name>/release.py`, `plugins/<name>/release.py`.

Such a file makes its format known (``weights.formats.add``) and has ``from_release(state, recipe, allow)`` and ``to_release``
with the same arguments; each returns (tensors by name, ``weights.report.Report``).
"""

import functools
import importlib
import importlib.util
from pathlib import Path
from types import ModuleType

from xtoolkit.cli import recipes
from xtoolkit.recipe.plugins import PACKAGE, builtin_folder, import_components


def release_files() -> dict[str, Path]:
    """{project or plugin: its release.py}."""
    found = [path for folder in (recipes.folder(), builtin_folder()) for path in sorted(folder.glob("*/release.py"))]
    return {path.parent.name: path for path in found}


@functools.cache
def releases() -> dict[str, ModuleType]:
    """{project or plugin: its release.py as a module}; imports torch. A plugin's is a module of its package."""
    import_components()
    found = {}
    for name, path in release_files().items():
        if path.parents[1] == builtin_folder():
            found[name] = importlib.import_module(f"{PACKAGE}.{name}.release")
        else:
            spec = importlib.util.spec_from_file_location(f"{name}_release", path)
            found[name] = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(found[name])
    return found
