"""What the figures of a job depend on, as a key: recipe, data, machine, what it starts from, and the code that it reaches."""

import ast
import copy
import hashlib
import json
import os
import sys
import sysconfig
from functools import cache
from pathlib import Path

from xtoolkit.data import paths
from xtoolkit.recipe.folder import CONFIG, RECORD, chosen
from xtoolkit.recipe.plugins import PACKAGE as PLUGINS, builtin_folder
from xtoolkit.registry import DATASET_REGISTRY, ENCODER_REGISTRY, HOOK_REGISTRY, LOSS_REGISTRY, TASK_REGISTRY

PACKAGE = Path(__file__).resolve().parents[1]
# Rooms whose files count for the jobs that reach them; the others are the engine, which all jobs share.
COUNTED = {"encoders", "losses", "tasks", "hooks", "data", "kernels", "metrics"}
SHOWING = {"ablation", "cli", "report", "plugins", "recipes"}  # the last two: where what comes with the package is installed
# Of `train`: what the figures do not depend on, or what the key has by itself.
FREE = {"seed", "output", "log_every", "checkpoint_every", "workers"}
ENDS = 1 << 16  # bytes at either end of a file that stand for it, beside its size


def key(recipe, on: list) -> str:
    """The key of a recipe, whatever its seed.

    Args:
        recipe: checked.
        on: the ``machine`` that it runs on.
    """
    given = copy.deepcopy(recipe.config)
    given["train"] = {name: value for name, value in given["train"].items() if name not in FREE}
    return digest(json.dumps({"recipe": given, "data": data(given), "machine": on, "code": code(recipe)},
                             sort_keys=True))


def digest(text: str | bytes) -> str:
    """SHA-256 in hex."""
    return hashlib.sha256(text.encode() if isinstance(text, str) else text).hexdigest()


# ---- code -----------------------------------------------------------------------------------------------------------------
def code(recipe) -> dict[str, str]:
    """{file of a component that the recipe reaches, or that such a file imports: digest of its syntax}."""
    found: set[Path] = set()
    todo = [Path(sys.modules[cls.__module__].__file__) for cls in components(recipe)]
    while todo:
        path = todo.pop()
        if path not in found:
            found.add(path)
            todo += imported(path)
    named: dict[str, list[str]] = {}
    for path in sorted(found):
        named.setdefault(_name(path), []).append(syntax(path))
    return {name: " ".join(sorted(digests)) for name, digests in named.items()}


def components(recipe) -> list[type]:
    """The classes that a run of this recipe builds."""
    config = recipe.config
    found = [ENCODER_REGISTRY.get(config["encoders"][recipe.graph.encoders[name].owner]["type"]) for name in recipe.reached]
    found += [LOSS_REGISTRY.get(config["losses"][name]["type"]) for name in recipe.needs]
    found += [DATASET_REGISTRY.get(stream.data["type"]) for stream in recipe.streams.values()]
    for block in recipe.evaluate.values():
        found += [TASK_REGISTRY.get(block["type"]), DATASET_REGISTRY.get(block["data"]["type"])]
    return found + [HOOK_REGISTRY.get(block["type"]) for block in recipe.hooks.values()]


@cache
def engine() -> str:
    """The digest of what every job runs through: all files of the package that ``code`` does not count, but for those that only
    ask or show (``SHOWING``), and what they import. A job that ran with another is of an older engine."""
    inner = lambda path: path.relative_to(PACKAGE).parts[0]
    found: set[Path] = set()
    todo = [path for path in PACKAGE.rglob("*.py") if not _counts(path) and inner(path) not in SHOWING]
    while todo:
        path = todo.pop()
        if path not in found:
            found.add(path)
            todo += [file for file in imported(path) if _counts(file)]
    return digest("".join(syntax(path) for path in sorted(found)))[:16]


def forget() -> None:
    """Files are read anew when they are asked about next."""
    for cached in (engine, imported, syntax, _content):
        cached.cache_clear()


@cache
def imported(path: Path) -> tuple[Path, ...]:
    """The files that a file imports, in functions too, and that count: of components' rooms, what lies in its own folder, and for
    a plugin also its helpers wherever they lie, but for what is installed. Told from the text alone: what happens to be imported
    already must not matter."""
    roots, names = _roots(path), _parsed(path.read_text(encoding="utf-8"))[1]
    found = [_module((path.parents[level - 1],) if level else roots, name) for level, name in names]
    return tuple(dict.fromkeys(file for file in found if file is not None and (
        _counts(file) or file.parent == path.parent or _helps(path, file))))


def _roots(path) -> tuple[Path, ...]:
    """Where absolute imports of a file are looked for: in our folder, and for a plugin in its own and those of Python's path."""
    return (PACKAGE.parent, *dict.fromkeys([_own(path).parent, *map(Path, sys.path)])) if _plugin(path) else (PACKAGE.parent,)


def _module(roots, name) -> Path | None:
    """The file of a module below the first of some folders that has it; None: there is none."""
    if name.startswith(f"{PLUGINS}."):
        roots, name = (builtin_folder(),), name.removeprefix(f"{PLUGINS}.")
    places = [root.joinpath(*filter(None, name.split("."))) for root in roots]
    return next((file for place in places for file in (place.with_suffix(".py"), place / "__init__.py") if file.is_file()), None)


def _helps(path, file):
    """Whether a file that a plugin imports is a plugin's too: none of the toolkit's own, nor of another installed package."""
    ours = file.is_relative_to(builtin_folder()) or file.is_relative_to(_own(path)) or not _installed(file.parent)
    return _plugin(path) and _plugin(file) and ours


def _plugin(path):
    """Whether a file is none of the toolkit's own."""
    return path.is_relative_to(builtin_folder()) or not path.is_relative_to(PACKAGE)


def _own(path) -> Path:
    """The outermost package that a file lies in, or the file itself."""
    while (path.parent / "__init__.py").is_file():
        path = path.parent
    return path


@cache
def _installed(folder):
    """Whether a folder is Python's own, or where packages are installed."""
    return any(folder.is_relative_to(sysconfig.get_path(kind)) for kind in ("stdlib", "platstdlib", "purelib", "platlib"))


@cache
def syntax(path: Path) -> str:
    """The digest of a file's syntax tree: comments, docstrings and layout change nothing."""
    return _parsed(path.read_text(encoding="utf-8"))[0]


@cache
def _parsed(text: str) -> tuple[str, tuple[tuple[int, str], ...]]:
    """The digest of a file's syntax tree, and what it may import: (dots, name), since a name may be a module's or one within."""
    tree, names = ast.parse(text), []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names += [(0, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            inner = ("", *(alias.name for alias in node.names))
            names += [(node.level, ".".join(filter(None, [node.module, name]))) for name in inner]
        elif isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)) and ast.get_docstring(node):
            node.body = node.body[1:] or [ast.Pass()]
    return digest(ast.dump(tree))[:16], tuple(names)


def _counts(path):
    return path.is_relative_to(PACKAGE) and path.relative_to(PACKAGE).parts[0] in COUNTED


def _name(path):
    """A file as it is called on any machine."""
    return path.relative_to(PACKAGE.parent).as_posix() if path.is_relative_to(PACKAGE.parent) else path.name


# ---- data and weights -----------------------------------------------------------------------------------------------------
def data(config: dict) -> dict[str, str]:
    """{path that an encoder, a stream, an evaluation, the tokenizer or `init` names: digest of what lies there}. A start of the
    table, which `init` names by a number, has a key of its own."""
    named = [config.get("tokenizer"), *_texts([config.get(kind) or {} for kind in ("encoders", "streams", "evaluate")])]
    begun = config.get("init")
    begun = begun.get("path") if isinstance(begun, dict) else begun
    return ({begun: weights(begun)} if begun and os.path.exists(begun) else {}) | {
        path: found for path in dict.fromkeys(text for text in named if isinstance(text, str))
        if (found := _content(path)) is not None}


def weights(path: str) -> str:
    """The digest of a run or file of weights that a job starts from."""
    checkpoint = chosen(path) if os.path.isdir(path) else None
    if checkpoint is not None:
        return digest((checkpoint / RECORD).read_bytes())[:16]
    beside = Path(path) / CONFIG
    return digest((beside.read_text() if beside.is_file() else "") + str(_content(path)))[:16]


def _texts(value):
    """All texts of a nested value."""
    if isinstance(value, dict):
        return [text for inner in value.values() for text in _texts(inner)]
    if isinstance(value, list):
        return [text for inner in value for text in _texts(inner)]
    return [value] if isinstance(value, str) else []


@cache
def _content(path: str) -> str | None:
    """The digest of the files that a path names; None: it names none that are here."""
    if paths.is_remote(path) and "sample://" not in path:
        return None
    try:
        files = [Path(one) for one in paths.resolve(path, hints=False)]
    except (FileNotFoundError, OSError):
        files = [Path(path)] if os.path.exists(path) else []
    files = [inner for one in files for inner in (sorted(one.rglob("*")) if one.is_dir() else [one])]
    return digest("".join(map(_ends, files))) if files else None


def _ends(path: Path) -> str:
    """A file's name, size, and both ends of what is in it."""
    if not path.is_file():
        return path.name
    with open(path, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        head = file.read(ENDS)
        file.seek(max(0, size - ENDS))
        return f"{path.name} {size} {digest(head + file.read(ENDS))}\n"


@cache
def machine(threads: int) -> list:
    """Of this machine what changes the bits of a figure: processor, threads, GPU; then a text each: instruction set, kernels,
    packages."""
    import torch

    from xtoolkit.engine.environment import processor, versions
    from xtoolkit.kernels.choice import VARIABLE

    cuda = torch.cuda.is_available()
    packages = [f"{name} {version}" for name, version in versions().items() if version and name not in ("python", "xtoolkit")]
    return [processor(), threads, torch.cuda.get_device_name() if cuda else None, torch.backends.cpu.get_cpu_capability(),
            f"kernels {os.environ.get(VARIABLE, 'auto')}", *packages]
