"""Imports components: the toolkit's own, the `plugins/` folder beside it, and what a recipe's `plugins:` list names."""

import importlib
import importlib.util
import sys
import zlib
from pathlib import Path

from xtoolkit.registry import ConfigError

BUILTIN = ("xtoolkit.encoders", "xtoolkit.losses", "xtoolkit.tasks", "xtoolkit.hooks", "xtoolkit.data", "xtoolkit.prepare.sample")
FOLDER = Path(__file__).resolve().parents[2] / "plugins"


def import_components(plugins=(), where: str = "plugins", relative_to: str = ".") -> None:
    """Imports everything that a recipe may name.

    Args:
        plugins: paths of Python files or packages (relative to ``relative_to``, else to the working folder), or installed
            modules.
        where: the place of the list, for messages.
        relative_to: folder of the configuration file.

    Raises:
        ConfigError: a plugin that is missing or that fails to import, named, with the reason.
    """
    for module in BUILTIN:
        importlib.import_module(module)
    for path in sorted(FOLDER.iterdir()) if FOLDER.is_dir() else ():
        if path.suffix == ".py" and path.stem != "__init__" or (path / "__init__.py").is_file():
            _import(str(path), where, relative_to)
    for plugin in plugins:
        _import(plugin, where, relative_to)


def _import(plugin: str, where: str, relative_to: str) -> None:
    path = next((p for p in (Path(relative_to, plugin), Path(plugin)) if p.exists()), None)
    try:
        if path is not None:
            _import_path(path.resolve())
        elif plugin.endswith(".py") or "/" in plugin:
            raise ConfigError(f"{where}: plugin {plugin}: no such file")
        else:
            importlib.import_module(plugin)
    except ConfigError:
        raise
    except BaseException as e:  # a plugin is anybody's code: whatever stops it must name it
        if isinstance(e, KeyboardInterrupt):
            raise
        raise ConfigError(f"{where}: plugin {plugin} fails to import: {type(e).__name__}: {e}") from e


def _import_path(path: Path) -> None:
    """Imports a file or package under a name of its own; a second import of the same path is the first."""
    own = f"xtoolkit_plugin_{path.stem}_{zlib.crc32(str(path).encode()):08x}"
    name = f"plugins.{path.stem}" if path.parent == FOLDER else own
    if name in sys.modules:
        return
    target = path / "__init__.py" if path.is_dir() else path
    spec = importlib.util.spec_from_file_location(
        name, target, submodule_search_locations=[str(path)] if path.is_dir() else None)
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
