"""A resolved configuration: `_BASE_`, null, overrides, the file and line of every key. No torch."""

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from xtoolkit.recipe.nulls import absent, removes, strip
from xtoolkit.recipe.plain import TEXT, dump, parse, plain
from xtoolkit.registry import ConfigError, nearest, schema


@dataclass
class Config:
    """A resolved configuration.

    Attributes:
        data: nested plain mappings, lists and scalars.
        places: {path of keys: ``file:line``}.
        removed: [(loss, evaluation, its places)]: what was inherited where a loss was removed, which it may read.
        notes: what was removed with what it reads, one line each, for the plan.
        absent: {path of keys that null was to remove and that were not there: ``nearest`` of what was}. A file without
            ``_BASE_``, which may be laid on many others, is let be where another one names it.
    """

    data: dict
    places: dict = field(default_factory=dict)
    removed: list = field(default_factory=list)
    notes: list = field(default_factory=list)
    absent: dict = field(default_factory=dict)

    def where(self, *path) -> str:
        """``file:line`` of a key, or of the nearest key above it."""
        for end in range(len(path), -1, -1):
            if path[:end] in self.places:
                return self.places[path[:end]]
        return "configuration"

    def idle(self) -> list[str]:
        """A problem line for each null below the first level that removes nothing: a misspelt name, most often. What lies on the
        first level is known or not."""
        return [f"{self.where(*path)}: `{'.'.join(map(str, path))}` is null, which removes what is inherited, and nothing of "
                f"that name is{meant or '; {} is an empty one'}" for path, meant in self.absent.items() if len(path) > 1]

    def dump(self) -> str:
        """The resolved configuration as YAML that ``load`` reads back to the same values."""
        return dump(self.data)


def load(path: str, overrides=(), library: str | None = None) -> Config:
    """Reads a file, what it inherits, and ``key.path=value`` overrides.

    Args:
        library: a folder of recipes that ``_BASE_`` may name, where there is no such file beside the one that inherits.

    Raises:
        ConfigError: unreadable or malformed YAML, duplicate keys, a Python tag, a missing ``_BASE_``, a bad override; all of
            the mistakes at once.
    """
    problems: list[str] = []
    config = _load_file(os.fspath(path), (), problems, library)
    if "=" in overrides:  # the shell has cut `key = value` in three
        problems.append("overrides: an `=` stands alone: write key.path=value without spaces around it")
    for text in overrides if "=" not in overrides else ():
        _override(config, text, problems)
    return _whole(config, problems)


def read(given: Mapping | str, folder: str = ".", library: str | None = None) -> Config:
    """A configuration that is no file: a mapping, whose places are dotted keys, or the text of one.

    Args:
        folder: what ``_BASE_`` is relative to.
        library: see ``load``.

    Raises:
        ConfigError: as ``load``; also a value that is not plain.
    """
    problems, places = [], {}
    own = parse(given, TEXT, problems) if isinstance(given, str) else (plain(given, (), places, problems), places)
    return _whole(_inherited(Config(*own), os.path.join(folder, TEXT), (), problems, library), problems)


def _whole(config: Config, problems: list) -> Config:
    if problems:
        raise ConfigError(problems)
    strip(config)
    return config


# ---- reading ---------------------------------------------------------------------------------------------------------------
def _load_file(path, trail, problems, library) -> Config:
    real = os.path.realpath(path)
    if real in trail:
        problems.append(f"{path}: `_BASE_` leads back to this file")
        return Config({})
    try:
        with open(path, encoding="utf-8") as f:
            own = Config(*parse(f.read(), path, problems))
    except (OSError, UnicodeDecodeError) as e:
        problems.append(f"{path}: cannot be read: {getattr(e, 'strerror', None) or e}")
        return Config({})
    return _inherited(own, path, trail + (real,), problems, library)


def _inherited(own: Config, path: str, trail: tuple, problems: list, library: str | None) -> Config:
    """A configuration with what its ``_BASE_`` names, relative to the folder of ``path``, below it."""
    bases = own.data.pop("_BASE_", None) or []
    if not isinstance(bases, (str, list)):
        problems.append(f"{own.where('_BASE_')}: `_BASE_` must be a path or a list of paths, not {bases!r}")
        bases = []
    merged = Config({})
    for base in [bases] if isinstance(bases, str) else bases:
        if not isinstance(base, str):
            problems.append(f"{own.where('_BASE_')}: `_BASE_` must be a path or a list of paths")
            continue
        beside = os.path.normpath(os.path.join(os.path.dirname(path), base))
        found = [p for p in (beside, *([os.path.join(library, base)] if library else [])) if os.path.exists(p)]
        if not found:
            near = {os.path.join(os.path.dirname(base), p.name) for p in Path(beside).parent.glob("*.yaml")}
            near |= {p.relative_to(library).as_posix() for p in Path(library).glob("*/**/*.yaml")} if library else set()
            near -= {os.path.join(os.path.dirname(base), os.path.basename(path))}  # itself
            problems.append(f"{own.where('_BASE_')}: `_BASE_` {base}: no such file ({beside}){nearest(base, near)}")
            continue
        _merge(merged, _load_file(found[0], trail, problems, library))
    if bases or len(trail) < 2:
        own.absent = absent(merged.data, own.data)
    _merge(merged, own)
    return merged


# ---- merging ---------------------------------------------------------------------------------------------------------------
def _merge(base: Config, over: Config, path=()) -> None:
    """Lays ``over`` on ``base`` in place: mappings merge, lists replace, a changed type replaces its block, null removes."""
    if not path:
        _drop_names(base, over)
        _write_out(base, over)
        base.removed += over.removed
        base.absent |= over.absent
        base.places[()] = over.places.get((), base.places.get((), "configuration"))
    target, source = _at(base.data, path), _at(over.data, path)
    for key, value in source.items():
        here = path + (key,)
        if value is None and removes(here):
            target.pop(key, None)
            _forget(base, here)
            target[key] = None
            base.places[here] = over.where(*here)
        elif isinstance(value, dict) and isinstance(target.get(key), dict) and not _retyped(target[key], value):
            _merge_places(base, over, here)
            _merge(base, over, here)
        else:
            kept = target.get(key)
            _forget(base, here)
            target[key] = _copy(value)
            for p, w in over.places.items():
                if p[:len(here)] == here:
                    base.places[p] = w
            if isinstance(value, dict) and isinstance(kept, dict) and "inputs" in kept and "inputs" not in value:
                target[key]["inputs"] = kept["inputs"]


def _write_out(base: Config, over: Config) -> None:
    """`init: PATH` beside a block of the other file is written as `init: {path: PATH}`, so that it replaces the path alone."""
    if {type(config.data.get("init")) for config in (base, over)} == {str, dict}:
        for config in [c for c in (base, over) if isinstance(c.data["init"], str)]:
            config.data["init"] = {"path": config.data["init"]}
            config.places["init", "path"] = config.where("init")


def _merge_places(base, over, here):
    if here in over.places:
        base.places[here] = over.places[here]


def _retyped(old: dict, new: dict) -> bool:
    """Whether a block becomes another thing: another type, or a wiring of another module (``shares``) in the place of one."""
    kind = lambda block: next(((key, block[key]) for key in ("type", "shares") if key in block), None)
    return None not in (kind(old), kind(new)) and kind(old) != kind(new)


def _drop_names(base: Config, over: Config) -> None:
    """``losses.x: null`` drops x from the streams, stop lists and rates that were inherited, ``streams.x: null`` drops x from
    the schedule that was inherited; never from what this file writes itself."""
    schedule = _mapping(base.data.get("schedule"))
    for stream in [k for k, v in _mapping(over.data.get("streams")).items() if v is None]:
        groups = schedule.get("every_step")
        if isinstance(groups, list) and all(isinstance(group, list) for group in groups):
            kept = [[name for name in group if name != stream] for group in groups]
            schedule["every_step"] = [group for group in kept if group]
        for key in ("every", "sample"):
            _take_out(_mapping(schedule.get(key)), stream)
    for loss in [k for k, v in _mapping(over.data.get("losses")).items() if v is None]:
        for stream in _mapping(base.data.get("streams")).values():
            _take_out(_mapping(_mapping(stream).get("losses")), loss)
        for names in _mapping(base.data.get("stop_gradient")).values():
            if isinstance(names, list) and loss in names:
                names.remove(loss)
        _take_out(_mapping(_mapping(base.data.get("optim")).get("lr_mult")), loss)
        for name, block in _mapping(base.data.get("evaluate")).items():
            base.removed.append((loss, name, {key: base.where("evaluate", name, key) for key in _mapping(block)}))


def _take_out(block: dict, name) -> None:
    """Leaves null, so that a later null of that name is none of a name that is not there."""
    if name in block:
        del block[name]
        block[name] = None


def _mapping(value) -> dict:
    """The value if it is a mapping, else an empty one: what is misshapen is reported by the check, not here."""
    return value if isinstance(value, dict) else {}


def _forget(config, prefix):
    for p in [p for p in config.places if p[:len(prefix)] == prefix]:
        del config.places[p]


def _at(data, path):
    for key in path:
        data = data[key]
    return data


def _copy(value):
    if isinstance(value, dict):
        return {k: _copy(v) for k, v in value.items()}
    return [_copy(v) for v in value] if isinstance(value, list) else value


# ---- overrides -------------------------------------------------------------------------------------------------------------
def _override(config: Config, text: str, problems: list) -> None:
    """Applies one ``a.b.c=value``; ``*`` stands for every key at its level."""
    where = f"override `{text}`"
    key, eq, value = text.partition("=")
    if not eq or not key.strip():
        problems.append(f"{where}: write key.path=value")
        return
    mistakes: list[str] = []
    parsed, _ = parse("value: " + value, where, mistakes)
    if mistakes:
        refused = [m for m in mistakes if " is refused: " in m]
        problems.append(f"{where}: " + (refused or mistakes)[0].rpartition(":1: ")[2])
        return
    value = parsed.get("value")
    steps = [s.strip() for s in key.split(".")]
    targets = [()]
    for step in steps[:-1]:
        reached = []
        for path in targets:
            level = _at(config.data, path)
            names = list(level) if step == "*" else [step]
            for name in names:
                if name not in level:
                    level[name] = {}
                    config.places[path + (name,)] = where
                if isinstance(level[name], dict):
                    reached.append(path + (name,))
                elif step != "*":
                    problems.append(f"{where}: `{'.'.join(path + (name,))}` is a value, not a mapping")
        targets = reached
    if not targets and "*" in steps:
        problems.append(f"{where}: `*` matches nothing")
    idle = []
    for path in targets:
        level = _at(config.data, path)
        kept = [name for name in level if level[name] is not None or not removes(path + (name,))]
        names = kept if steps[-1] == "*" else [steps[-1]]
        for name in names:
            layer: dict = {name: value}
            for step in reversed(path):
                layer = {step: layer}
            idle.append(absent(config.data, layer))
            _merge(config, Config(layer, {path + (name,): where}))
    config.absent |= idle[0] if idle and all(idle) else {}  # `*` removes where there is something


def unknown_keys(data: Iterable[str], known, where, what: str, blocks: Mapping[str, type] = {}) -> list[str]:
    """A problem line for each key of ``data`` that is not in ``known``; ``where(key)`` gives its place.

    Args:
        blocks: {name: class} of the blocks in which a key may have been meant: told where exactly one has it.
    """
    inside = lambda key: [f"{name}.{key}" for name, block in blocks.items() if key in schema(block)]
    meant = lambda key: f"; did you mean `{inside(key)[0]}`?" if len(inside(key)) == 1 else nearest(key, known)
    return [f"{where(k)}: unknown key `{k}` of {what}{meant(k)}" for k in data if k not in known]
