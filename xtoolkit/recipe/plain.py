"""Plain values, from YAML text or from Python, with the place of each key; and back to text. No torch.

Scalars follow YAML 1.2 (PyYAML reads `1e-4` as a string, `on` as true, `010` as 8). Tags other than the core ones are refused:
a configuration never builds objects.
"""

import os
import re
from collections.abc import Mapping

import yaml

from xtoolkit.registry import ConfigError

MAX_NODES = 100_000  # aliases of aliases can make a small file expand without bound
MAX_DIGITS = 400  # no number has more; Python refuses to print one of some thousands
TEXT = "recipe"  # the place of what is no file

_SCALARS = [
    ("null", re.compile(r"^(~|null|Null|NULL|)$"), "~nN", lambda s: None),
    ("bool", re.compile(r"^(true|True|TRUE|false|False|FALSE)$"), "tTfF", lambda s: s.lower() == "true"),
    ("int", re.compile(r"^([-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+)$"), "-+0123456789",
     lambda s: int(s, 0) if s[:2] in ("0o", "0x") else int(s)),
    ("float", re.compile(r"^([-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN))$"),
     "-+.0123456789", lambda s: float(s.lower().replace(".inf", "inf").replace(".nan", "nan"))),
]
_CONSTRUCT = {f"tag:yaml.org,2002:{name}": make for name, _, _, make in _SCALARS}
_CONSTRUCT["tag:yaml.org,2002:str"] = str
_TAGS = {*_CONSTRUCT, "tag:yaml.org,2002:map", "tag:yaml.org,2002:seq"}


class _Loader(yaml.SafeLoader):
    yaml_implicit_resolvers: dict = {}


class _Dumper(yaml.SafeDumper):
    yaml_implicit_resolvers: dict = {}

    def ignore_aliases(self, data):
        return True


for _name, _pattern, _first, _ in _SCALARS:
    for _cls in (_Loader, _Dumper):
        _cls.add_implicit_resolver(f"tag:yaml.org,2002:{_name}", _pattern, list(_first) + ([""] if _name == "null" else []))


def dump(data: dict) -> str:
    """YAML that ``parse`` reads back to the same values."""
    return yaml.dump(data, Dumper=_Dumper, sort_keys=False, width=120, default_flow_style=None, allow_unicode=True)


def plain(value, path: tuple, places: dict, problems: list):
    """A copy of a value from Python as YAML would give it; notes the place of each key."""
    places[path] = place = ".".join(path) or TEXT
    if isinstance(value, Mapping):
        return {str(key): plain(inner, (*path, str(key)), places, problems) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(inner, path, places, problems) for inner in value]
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if value is not None and type(value) not in (str, int, float, bool):
        problems.append(f"{place}: a {type(value).__name__} is refused: a configuration holds plain values only")
    return value


def parse(text: str, name: str, problems: list) -> tuple[dict, dict]:
    """The mapping that a text holds, and {path of keys: ``name:line``}; every mistake goes to ``problems``."""
    try:
        root = yaml.compose(text, Loader=_Loader)
    except yaml.MarkedYAMLError as e:
        line = found = (e.problem_mark or e.context_mark).line + 1
        if " flow " in (e.context or ""):  # a bracket that is not closed is told where it opens, not where the next key stands
            line = e.context_mark.line + 1
        problems.append(f"{name}:{line}: not YAML: {e.problem or e.context}" + f" (in line {found})" * (found != line))
        return {}, {}
    except yaml.YAMLError as e:  # characters that YAML does not allow carry no mark
        problems.append(f"{name}: not YAML: {str(e).splitlines()[0]}")
        return {}, {}
    except RecursionError:
        problems.append(f"{name}: nested too deeply to be a configuration")
        return {}, {}
    if root is None:
        return {}, {(): f"{name}:1"}
    places, count = {(): f"{name}:1"}, 0

    def build(node, path):
        nonlocal count
        count += 1
        if count > MAX_NODES:
            raise ConfigError(f"{name}: expands to more than {MAX_NODES:,} values")
        if node.tag not in _TAGS:
            problems.append(f"{name}:{node.start_mark.line + 1}: tag {node.tag.replace('tag:yaml.org,2002:', '!!')} is refused: "
                            "a configuration holds plain values only")
            return None
        if isinstance(node, yaml.MappingNode):
            result = {}
            for key_node, value_node in node.value:
                key = build(key_node, path)
                place = f"{name}:{key_node.start_mark.line + 1}"
                if not isinstance(key, str):
                    key = str(key)
                if key in result:
                    problems.append(f"{place}: duplicate key `{key}` (first at {places[path + (key,)]})")
                    continue
                places[path + (key,)] = place
                result[key] = build(value_node, path + (key,))
            return result
        if isinstance(node, yaml.SequenceNode):
            return [build(v, path) for v in node.value]
        kind = node.tag.rsplit(":", 1)[1]
        try:
            if kind != "str" and len(node.value) > MAX_DIGITS:
                raise ValueError
            return _CONSTRUCT[node.tag](node.value)
        except ValueError:
            problems.append(f"{name}:{node.start_mark.line + 1}: `{node.value[:40]}` is no {kind}")
            return None

    try:
        data = build(root, ())
    except RecursionError:
        raise ConfigError(f"{name}: an alias holds itself") from None
    if not isinstance(data, dict):
        problems.append(f"{name}:1: a configuration is a mapping of keys")
        return {}, places
    return data, places
