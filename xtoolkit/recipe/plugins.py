"""Imports components: the toolkit's own, the plugins that come with it, and what a recipe's `plugins:` list names.

A plugin that a recipe names is known by the hash of its content, wherever it lies: the same content is imported once, and
one process holds one plugin of a name. A run keeps a copy of each, so that it can be opened elsewhere; where a plugin was edited
before the run went on, also of what it was.
"""

import hashlib
import importlib
import importlib.machinery
import importlib.util
import re
import shutil
import sys
import types
from dataclasses import dataclass
from pathlib import Path

from xtoolkit.recipe.folder import PLUGINS
from xtoolkit.registry import ConfigError

BUILTIN = ("xtoolkit.encoders", "xtoolkit.losses", "xtoolkit.tasks", "xtoolkit.hooks", "xtoolkit.data", "xtoolkit.prepare.sample")
PACKAGE = "xtoolkit.plugins"  # what the plugins that come with the toolkit are imported under
PREFIX = "xtoolkit_plugin_"  # of the module's name of a plugin that a recipe names by its path
IMPORTED: dict[str, tuple[Path, str]] = {}  # {name: where a recipe's plugin lies, and the hash of what was imported}


def builtin_folder() -> Path:
    """The plugins that come with the toolkit: ``plugins/`` in a checkout, ``xtoolkit/plugins/`` where it is installed."""
    installed = Path(__file__).resolve().parents[1] / "plugins"
    return installed if installed.is_dir() else installed.parents[1] / "plugins"


@dataclass(frozen=True)
class Plugin:
    """An entry of a recipe's ``plugins:`` list, found but not imported.

    Attributes:
        entry: as the recipe names it.
        name: of the file or package, without a suffix; dotted where it is an installed module's.
        path: the file or package, whole; None: part of Python itself.
        digest: hash of the content.
        root: the folder that an installed module's name begins in, if Python does not search it; else None.
        copy: where a run's copy lies, in its folder of plugins.
        by_path: named by a path, not as a module.
    """

    entry: str
    name: str
    path: Path | None
    digest: str
    root: Path | None
    copy: Path
    by_path: bool

    def imported(self) -> bool:
        """Whether a module of this content is imported already."""
        known = [*IMPORTED.values(), *self._modules().values()]
        return self.path is None or any(content == self.digest for _, content in known)

    def load(self) -> None:
        """Imports it, once. Raises ConfigError where another content of this name is imported, and whatever it raises."""
        if self.imported():
            if not self.by_path and (self.path is None or self.name in sys.modules):
                importlib.import_module(self.entry)  # perhaps another module of the same package
            return
        others = {n: path for n, (path, _) in self._modules().items() if not (self.by_path and n == self.name)}
        if self.name in IMPORTED:
            others[self.name] = IMPORTED[self.name][0]
        if others:
            raise ConfigError(f"plugin {self.entry}: {self.path} is not the `{self.name}` that is imported already from "
                              f"{next(iter(others.values()))}: rename one of them, or start Python anew")
        if self.by_path:
            _import_path(PREFIX + re.sub(r"\W", "_", f"{self.name}_{self.digest}"), self.path)
        else:
            if self.root is not None:
                sys.path.insert(0, str(self.root))
            try:
                importlib.import_module(self.entry)
            finally:
                if self.root is not None:
                    sys.path.remove(str(self.root))
        IMPORTED[self.name] = (self.path, self.digest)

    def _modules(self) -> dict[str, tuple[Path, str]]:
        """Modules in memory that go by this name and were imported by others: where each lies, and the hash of its content."""
        found = {}
        for name in (self.name, f"{PACKAGE}.{self.name}"):
            file = getattr(sys.modules.get(name), "__file__", None)
            if name not in IMPORTED and file and Path(file).exists():
                found[name] = (_whole(Path(file)), digest(_whole(Path(file))))
        return found


def import_components() -> None:
    """Imports the toolkit's own components and the plugins that come with it."""
    for module in BUILTIN:
        importlib.import_module(module)
    folder = builtin_folder()
    if PACKAGE not in sys.modules:
        sys.modules[PACKAGE] = types.ModuleType(PACKAGE)
        sys.modules[PACKAGE].__path__ = [str(folder)]
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        if path.suffix == ".py" and path.stem != "__init__" or (path / "__init__.py").is_file():
            importlib.import_module(f"{PACKAGE}.{path.stem}")


def find(entry: str, relative_to=".", copies: Path | None = None, kept: dict | None = None) -> Plugin:
    """Finds a plugin; runs none of its code.

    Args:
        entry: the path of a Python file or package, or an installed module.
        relative_to: folder of the recipe; a path is relative to it, else to the working folder; last, copies lie there.
        copies: a run's folder of plugins, where copies are looked for first.
        kept: ``record`` of the plugins that a checkpoint was trained with: a copy of that content comes before others.

    Raises:
        ConfigError: it is not there.
    """
    by_path = entry.endswith(".py") or "/" in entry or entry in (".", "..")
    known = kept[entry] if kept and entry in kept else None

    def copied(folder: Path):
        if by_path:
            path = folder / (known["copy"] if known else Path(entry).name)
            return _at(entry, path) if path.exists() and path.name not in ("", "..") and path != folder else None
        found = _unit(entry, [str(folder)])
        return _installed(entry, *found, folder) if found else None

    if copies is not None:
        folders = [copies, copies / known["digest"]] if known else [copies]
        found = [plugin for plugin in map(copied, folders) if plugin]
        if found:
            return next((plugin for plugin in found if known and plugin.digest == known["digest"]), found[0])
    if path := next((p for p in (Path(relative_to, entry), Path(entry)) if p.exists()), None):
        if path.is_dir() and not (path / "__init__.py").is_file():
            raise ConfigError(f"plugin {entry}: {path} is a folder without __init__.py: name a file or a package")
        return _at(entry, path)
    if not by_path and (found := _unit(entry)):
        return _installed(entry, *found)
    if plugin := copied(Path(relative_to, PLUGINS)):  # the recipe is the `config.yaml` of a run
        return plugin
    raise ConfigError(f"plugin {entry}: no such file" + ("" if by_path else ", and no module of this name is installed"))


def import_plugins(entries, where: str = "plugins", relative_to=".",
                   copies: Path | None = None, kept: dict | None = None) -> tuple[list[Plugin], list[str]]:
    """Imports what a recipe's list names: each that can be.

    Args:
        where: the place of the list, for messages.
        relative_to, copies, kept: see ``find``.

    Returns:
        those that are imported now, and a line for each that is missing or fails, with the reason.
    """
    plugins, problems = [], []
    for entry in entries:
        try:
            plugin = find(entry, relative_to, copies, kept)
            plugin.load()
        except KeyboardInterrupt:
            raise
        except ConfigError as e:
            problems += [f"{where}: {problem}" for problem in e.problems]
        except BaseException as e:  # a plugin is anybody's code: whatever stops it must name it
            problems.append(f"{where}: plugin {entry} fails to import: {type(e).__name__}: {e}")
        else:
            plugins.append(plugin)
    return plugins, problems


def check_copies(plugins: list[Plugin], output) -> None:
    """Raises ConfigError where a run's folder lies in a plugin: its copy would hold the run, and itself."""
    if found := [p for p in plugins if p.path is not None and Path(output).resolve().is_relative_to(p.path)]:
        raise ConfigError(f"train.output: {output} lies in the plugin {found[0].entry} ({found[0].path}), of which the run keeps "
                          "a copy: name a folder outside it")


def record(plugins: list[Plugin]) -> dict:
    """{entry: ``copy`` and ``digest``} of plugins, as JSON has them: what a checkpoint says that it was trained with."""
    return {p.entry: {"copy": p.copy.as_posix(), "digest": p.digest} for p in plugins if p.path is not None}


def copy_plugins(plugins: list[Plugin], folder: Path) -> None:
    """Puts a copy of each plugin, packages whole, into a run's folder of plugins.

    What lies there under its name with another content, which older checkpoints need, moves to ``<folder>/<its hash>``.

    Raises:
        ConfigError: a name that leads out of the folder.
    """
    for plugin in plugins:
        if plugin.path is None:
            continue
        target = folder / plugin.copy
        if target.resolve() == folder.resolve() or not target.resolve().is_relative_to(folder.resolve()):
            raise ConfigError(f"plugin {plugin.entry}: its copy would lie at {target}, outside {folder}: name the plugin itself")
        if target.exists():
            content = digest(target)
            if content == plugin.digest:
                continue
            older = folder / content / plugin.copy
            if older.exists() and target.is_dir():
                shutil.rmtree(target)
            else:
                older.parent.mkdir(parents=True, exist_ok=True)
                target.replace(older)
        for file in _files(plugin.path):
            to = target / file.relative_to(plugin.path) if plugin.path.is_dir() else target
            to.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, to)


def digest(path: Path) -> str:
    """Hash of a file's content, or of all files of a package with their names."""
    found = hashlib.sha256()
    for file in _files(path):
        content = file.read_bytes()
        name = file.relative_to(path).as_posix() if path.is_dir() else ""
        found.update(f"{name}\0{len(content)}\0".encode() + content)
    return found.hexdigest()[:16]


def _files(path: Path) -> list[Path]:
    """What belongs to a plugin: not what Python compiled, nor what is hidden."""
    strange = lambda part: part.startswith(".") or part == "__pycache__" or part.endswith(".pyc")
    found = [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.is_file())
    return [file for file in found if file == path or not any(map(strange, file.relative_to(path).parts))]


def _at(entry: str, path: Path) -> Plugin:
    """A plugin named by its path: it goes by its own name, also where the path ends in dots."""
    whole = path.resolve()
    copy = Path(whole.name if path.name in ("", "..") else path.name)
    return Plugin(entry, copy.name if whole.is_dir() else copy.stem, whole, digest(whole), None, copy, by_path=True)


def _installed(entry: str, name: str, path: Path | None, root: Path | None = None) -> Plugin:
    copy, path = Path(*name.split(".")), None if path is None else path.resolve()
    if path is not None and path.is_file():
        copy = copy.with_suffix(path.suffix)
    return Plugin(entry, name, path, "" if path is None else digest(path), root, copy, by_path=False)


def _whole(file: Path) -> Path:
    return file.parent if file.name == "__init__.py" else file


def _unit(module: str, search: list[str] | None = None) -> tuple[str, Path | None] | None:
    """The first regular package on the way to a module, or the module's own file: its dotted name and path; None: no such
    module. Imports nothing, so an `__init__.py` that runs code does not."""
    parts = module.split(".")
    for end in range(1, len(parts) + 1):
        name = ".".join(parts[:end])
        try:
            spec = importlib.util.find_spec(name) if search is None else importlib.machinery.PathFinder.find_spec(name, search)
        except ValueError:  # a module without a spec, such as __main__
            return None
        if spec is None:
            return None
        if spec.has_location:
            return name, _whole(Path(spec.origin))
        if spec.submodule_search_locations is None:
            return name, None
        search = list(spec.submodule_search_locations)
    return None


def _import_path(name: str, path: Path) -> None:
    spec = importlib.util.spec_from_file_location(
        name, path / "__init__.py" if path.is_dir() else path, submodule_search_locations=[str(path)] if path.is_dir() else None)
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
