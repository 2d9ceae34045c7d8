"""What projects know of the checkpoints that their authors released: `projects/<name>/release.py`.

Such a file makes its format known (``weights.formats.add``) and has ``from_release(state, recipe, allow)`` and ``to_release``
with the same arguments; each returns (tensors by name, ``weights.report.Report``).
"""

import functools
import importlib.util
from pathlib import Path
from types import ModuleType

from xtoolkit.cli import recipes


def release_files() -> dict[str, Path]:
    """{project: its release.py}."""
    return {path.parent.name: path for path in sorted(recipes.folder().glob("*/release.py"))}


@functools.cache
def releases() -> dict[str, ModuleType]:
    """{project: its release.py as a module}; imports torch."""
    found = {}
    for name, path in release_files().items():
        spec = importlib.util.spec_from_file_location(f"{name}_release", path)
        found[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(found[name])
    return found
