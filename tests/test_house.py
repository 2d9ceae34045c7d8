"""The house of the package: which room may import which, what the core may name, and how long its files are."""

import ast
import re
from functools import cache
from pathlib import Path

import pytest

from xtoolkit.batch import Field
from xtoolkit.recipe.plugins import import_components
from xtoolkit.registry import DATASET_REGISTRY, TASK_REGISTRY

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "xtoolkit"
FILES = sorted(PACKAGE.rglob("*.py"))
# From the top down: a room imports itself and those below; what shares a line imports none of its neighbours.
ROOMS = [["__init__", "__main__"], ["cli"], ["ablation"], ["inference"], ["report"], ["engine"], ["plan"], ["model"], ["recipe"],
         ["encoders", "losses", "tasks", "hooks"], ["prepare"], ["data"], ["weights"], ["kernels", "metrics"], ["features"],
         ["encoded"], ["graph"], ["fields"], ["batch"], ["field"],
         ["registry"], ["hints"], ["version"]]
LEVEL = {room: level for level, rooms in enumerate(ROOMS) for room in rooms}
PARTS = ("encoders", "losses", "tasks", "hooks", "data")  # what a recipe names; plugins are written like them
FOR_PARTS = {"registry", "batch", "fields", "graph", "encoded", "features", "kernels", "metrics", "weights"}
# Rooms that know no field, mark, task or ability by name.
NAMELESS = {"graph", "features", "model", "plan", "recipe", "engine", "report", "inference"}
# Open keywords that are names of somebody's own: of fields, an encoder's slots, a block's keys, a template's values.
OPEN = {"fields", "others", "slots", "block", "nested", "given", "values"}
WIDTH, LENGTH = 130, 300
LONG = {"kernels/box_loss.py"}  # one kernel, forward and backward


def room(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


@cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def place(path: Path, node) -> str:
    return f"{path.relative_to(ROOT)}:{node.lineno}"


def file_of(module: str) -> Path | None:
    """The file of a module of the package; None: it is none."""
    path = ROOT / module.replace(".", "/")
    return next((p for p in (path.with_suffix(".py"), path / "__init__.py") if p.is_file()), None)


@cache
def imports(path: Path) -> list[tuple[str, ast.AST]]:
    """Every module that a file imports, in functions too: (dotted name, node)."""
    found = []
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            found += [(alias.name, node) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            package = path.relative_to(ROOT).parent.parts
            package = package[:len(package) - node.level + 1] if node.level else ()
            base = ".".join((*package, *([node.module] if node.module else [])))
            for alias in node.names:
                inner = f"{base}.{alias.name}"
                found.append((inner if base.startswith("xtoolkit") and file_of(inner) else base, node))
    return found


def arrows() -> dict[Path, dict[Path, ast.AST]]:
    """{file: {file of the package that it imports: where}}."""
    return {path: {target: node for name, node in imports(path)
                   if name.split(".")[0] == "xtoolkit" and (target := file_of(name)) is not None} for path in FILES}


def constants(path: Path):
    """Every string constant that is no docstring: (text, node); the constant parts of f-strings too."""
    docstrings = {id(node.value) for node in ast.walk(tree(path)) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docstrings:
            yield node.value, node


# ---- imports --------------------------------------------------------------------------------------------------------------
def test_no_file_imports_itself_by_a_detour():
    graph, circles, done = {path: list(targets) for path, targets in arrows().items()}, [], set()

    def visit(path, trail):
        if path in trail:
            circles.append(" -> ".join(str(p.relative_to(PACKAGE)) for p in [*trail[trail.index(path):], path]))
        elif path not in done:
            for target in graph[path]:
                visit(target, [*trail, path])
            done.add(path)

    for path in graph:
        visit(path, [])
    assert not circles, "\n".join(circles)


def test_no_import_runs_up_or_across():
    found = [f"{place(path, node)}: {room(path)} imports {target.relative_to(ROOT)}"
             for path, targets in arrows().items() for target, node in targets.items()
             if room(path) != room(target) and {room(path), room(target)} <= LEVEL.keys()
             and LEVEL[room(path)] >= LEVEL[room(target)]]
    assert not found, "\n".join(found)


def test_every_room_has_its_place():
    found = sorted({room(path) for path in FILES} - LEVEL.keys())
    assert not found, f"no place in ROOMS: {found}"


def test_parts_import_what_plugins_may():
    found = [f"{place(path, node)}: {target.relative_to(ROOT)}" for path, targets in arrows().items() if room(path) in PARTS
             for target, node in targets.items() if room(target) not in FOR_PARTS | {room(path)}]
    assert not found, "\n".join(found)


# ---- names ----------------------------------------------------------------------------------------------------------------
def outside() -> set[str]:
    """Names of the projects and of the plugins beside the package."""
    folders = [path for path in (ROOT / "projects").iterdir() if path.is_dir()]
    plugins = [path for path in (ROOT / "plugins").iterdir() if path.is_dir() or path.suffix == ".py"]
    return {path.stem for path in folders + plugins if not path.name.startswith(("_", "."))}


def test_the_core_names_no_plugin_and_no_project():
    names, found = outside(), []
    for path in (path for path in FILES if room(path) != "cli"):
        found += [f"{place(path, node)}: imports {name}" for name, node in imports(path)
                  if name.split(".")[0] in {"plugins", "projects"}]
        for text, node in constants(path):
            # The sample pack is the core's own; what it is called is not the project that builds it.
            words = re.split(r"[^\w-]+", re.sub(r"sample://[\w-]+", "", text))
            found += [f"{place(path, node)}: {word!r} in {text[:60]!r}" for word in words if word in names]
    assert not found, "\n".join(found)


def test_a_plugin_imports_another_only_where_its_readme_says_so():
    """As "imports [`../siglip.py`](../siglip.py)": each can be taken elsewhere with what it names there."""
    found, said = {}, set()
    for path in (ROOT / "plugins").rglob("*.py"):
        own = path.relative_to(ROOT / "plugins").parts[0].removesuffix(".py")
        for name, node in imports(path):
            for other in re.findall(r"^(?:xtoolkit\.)?plugins\.(\w+)", "\n".join(f"{name}.{alias.name}" for alias in node.names), re.M):
                found |= {(own, other): place(path, node)} if other != own else {}
    for path in (ROOT / "plugins").glob("*/README.md"):
        said |= {(path.parent.name, other) for other in re.findall(r"imports \[`\.\./(\w+)", path.read_text(encoding="utf-8"))}
    assert found.keys() == said, found


@cache
def registered() -> dict[str, str]:
    """{name: what it is} of every field, mark, task and ability of the package and of the plugins beside it."""
    import_components()
    ours = lambda cls: cls.__module__.split(".")[0] in ("xtoolkit", "plugins")
    known = {}
    for cls in filter(ours, map(DATASET_REGISTRY.get, DATASET_REGISTRY.names())):
        known |= {name: "field" for name in cls.FIELDS}
    for cls in filter(ours, kinds(Field)):
        known |= {name: "mark" for name in [*cls.MARKS, *([cls.WHOLE] if cls.WHOLE else [])]}
    for name in TASK_REGISTRY.names():
        if ours(TASK_REGISTRY.get(name)):
            known[name] = "task"
    for path in [*(PACKAGE / "tasks").glob("*.py"), *(ROOT / "plugins").rglob("*.py")]:
        for node in ast.walk(tree(path)):
            if isinstance(node, ast.FunctionDef) and node.name == "abilities":
                known |= {key.value: "ability" for inner in ast.walk(node) if isinstance(inner, ast.Dict)
                          for key in inner.keys if isinstance(key, ast.Constant)}
    return known


def kinds(cls) -> list[type]:
    return [cls, *(kind for sub in cls.__subclasses__() for kind in kinds(sub))]


def test_what_is_looked_for_is_found():
    assert registered() | {"text": "field", "image": "field", "region": "field", "mask_text": "mark", "mask_image": "mark",
                           "whole": "mark", "Retrieval": "task", "BoxAccuracy": "task"} == registered()


@pytest.mark.parametrize("name", sorted(NAMELESS))
def test_no_field_mark_task_or_ability_is_known_by_name(name):
    found = []
    for path in (path for path in FILES if room(path) == name):
        # Also in a reference: `$text`, `fusion@mask_text`.
        found += [f"{place(path, node)}: the {registered()[word]} {word!r}" for text, node in constants(path)
                  for word in re.split(r"[@+$]", text) if word in registered()]
        found += [f"{place(path, node)}: batch.{node.attr}" for node in ast.walk(tree(path))
                  if isinstance(node, ast.Attribute) and node.attr in registered()
                  and (node.value.id if isinstance(node.value, ast.Name) else
                       node.value.attr if isinstance(node.value, ast.Attribute) else "").endswith("batch")]
    assert not found, "\n".join(found)


# ---- sizes ----------------------------------------------------------------------------------------------------------------
def test_files_and_lines_stay_short():
    found = []
    for path in FILES:
        lines = path.read_text(encoding="utf-8").splitlines()
        if len(lines) >= LENGTH and str(path.relative_to(PACKAGE)) not in LONG:
            found.append(f"{path.relative_to(ROOT)}: {len(lines)} lines, at most {LENGTH - 1}")
        found += [f"{path.relative_to(ROOT)}:{number}: {len(line)} characters, at most {WIDTH}"
                  for number, line in enumerate(lines, 1) if len(line) > WIDTH]
    assert not found, "\n".join(found)


def test_no_signature_swallows_keywords():
    found = [f"{place(path, node)}: **{node.args.kwarg.arg}" for path in FILES for node in ast.walk(tree(path))
             if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)) and node.args.kwarg
             and node.args.kwarg.arg not in OPEN]
    assert not found, "\n".join(found)
