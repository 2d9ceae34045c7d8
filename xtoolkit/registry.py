"""The registries, and the one place where a YAML block becomes an object.

A component's ``__init__`` signature is its configuration schema: names, types, ranges and defaults live there and
nowhere else. A key whose type is a dataclass is a nested block, and that dataclass its schema; what one key alone cannot
show, its ``problems()`` returns as (key, what is wrong). What the toolkit supplies itself (``GIVEN`` below) are no keys.
"""

import dataclasses
import inspect
import math
import typing
from dataclasses import dataclass

from fvcore.common.registry import Registry as _Registry

from xtoolkit.hints import (  # noqa: F401  what a signature of a component is written with
    Count, Dropout, NotNegative, Positive, Range, Share, by_name, describe, fits, nested,
)

# What the toolkit gives to a constructor that asks for it by name; never read from YAML.
GIVEN = frozenset({
    "widths",         # dict: slot (encoders) or feature reference (losses) -> width
    "vocab_size_of",  # int: vocabulary of the text encoder below the features that a loss reads
    "patch_size_of",  # int: patch size of the image encoder below them
    "modules",        # dict: name -> built encoder, for one that copies another
})
# A class may name further ones in an attribute GIVEN, as datasets do: the tokenizer, the size of pictures, ...


class ConfigError(ValueError):
    """One or more mistakes in a configuration: each a line that says what, where and what was meant.

    ``hint`` is a last line that is no mistake: what else to do.
    """

    def __init__(self, problems, hint: str = ""):
        self.problems = [problems] if isinstance(problems, str) else list(dict.fromkeys(problems))
        self.hint = hint
        super().__init__("\n".join([*self.problems, *([hint] if hint else [])]))


def nearest(word: str, words) -> str:
    """``; did you mean `x`?`` for the closest of ``words``, else the list of them."""
    words = sorted(map(str, words))
    distance = {w: _edits(str(word).lower(), w.lower()) for w in words}
    best = min(words, key=distance.get, default=None)
    if word and best is not None and distance[best] <= max(1, len(best) // 3):
        return f"; did you mean `{best}`?"
    return f"; choose from: {', '.join(words)}" if words else ""


def _edits(a: str, b: str) -> int:
    """Insertions, deletions, changes and swaps of neighbours that turn one word into another."""
    rows = [list(range(len(b) + 1))]
    for i, x in enumerate(a, 1):
        row = [i]
        for j, y in enumerate(b, 1):
            best = min(rows[-1][j] + 1, row[-1] + 1, rows[-1][j - 1] + (x != y))
            if i > 1 and j > 1 and x == b[j - 2] and a[i - 2] == y:
                best = min(best, rows[-2][j - 2] + 1)
            row.append(best)
        rows.append(row)
    return rows[-1][-1]


class Registry(_Registry):
    """fvcore's registry whose ``register`` works bare, called, and with a name, and always returns the class.

    fvcore's own ``register`` used as a bare decorator returns None, and so erases the class that it decorates.

    Args:
        name: the kind of component, for messages.
        beside: keys of a block that the toolkit reads itself, beside ``type``; the class does not see them.
    """

    def __init__(self, name: str, beside: tuple = ()):
        super().__init__(name)
        self.beside = frozenset({"type", *beside})

    def register(self, obj=None, *, name: str | None = None):
        if obj is None:
            return lambda decorated: self.register(decorated, name=name)
        self._do_register(name or obj.__name__, obj)
        return obj

    @property
    def kind(self) -> str:
        """``encoder``, ``loss``, ``task`` or ``dataset``: for messages."""
        return self._name.lower()

    def names(self) -> list[str]:
        return sorted(self._obj_map)

    def find(self, name: str, where: str):
        """The class registered as ``name``. Raises ConfigError with the nearest name."""
        if not isinstance(name, str) or name not in self._obj_map:
            raise ConfigError(f"{where}: unknown {self.kind} `{name}`{nearest(name, self.names())}")
        return self._obj_map[name]

    def build(self, block: dict, where: str, **given):
        """Holds ``block`` against the signature of the class that its ``type`` names, and builds it.

        Args:
            block: the YAML mapping; ``type`` chooses the class, the other keys are its arguments.
            where: the place of the block, for messages: ``file:line`` or a dotted path.
            **given: arguments from the toolkit (``GIVEN``); those that the class does not ask for are left out.

        Raises:
            ConfigError: every unknown key, missing key and wrong type of the block at once.
        """
        if "type" not in block:
            raise ConfigError(f"{where}: missing key `type`{nearest('', self.names())}")
        cls = self.find(block["type"], where)
        if problems := not_numbers(block, lambda *keys: where) + check(cls, block, where, beside=self.beside):
            raise ConfigError(problems)
        keys = arguments(cls, block, self.beside)
        asked = inspect.signature(cls).parameters
        try:
            return cls(**keys, **{k: v for k, v in given.items() if k in asked})
        except ConfigError:
            raise
        except ValueError as e:  # values that only the constructor can judge: heads that do not divide the width, ...
            raise ConfigError(f"{where}: {e}") from e
        except Exception as e:
            e.add_note(f"while {cls.__name__} of {where} was built")
            raise


@dataclass(frozen=True)
class Key:
    """One configuration key of a component: ``default`` is ``inspect.Parameter.empty`` where it must be given."""

    name: str
    type: object
    default: object

    @property
    def required(self) -> bool:
        return self.default is inspect.Parameter.empty

    @property
    def type_name(self) -> str:
        return describe(self.type)


def schema(cls) -> dict[str, Key]:
    """The configuration keys of a component, read from its ``__init__`` signature. Raises ConfigError where one is open."""
    parameters = list(inspect.signature(cls).parameters.values())
    hints = typing.get_type_hints(cls.__init__, include_extras=True)
    given = GIVEN.union(getattr(cls, "GIVEN", ()))
    made = {f.name: f.default_factory() for f in dataclasses.fields(cls) if f.default_factory is not dataclasses.MISSING} \
        if dataclasses.is_dataclass(cls) else {}
    keys = {}
    for p in parameters:
        if p.kind in (p.VAR_KEYWORD, p.VAR_POSITIONAL):
            stars, code = "**" if p.kind is p.VAR_KEYWORD else "*", getattr(cls.__init__, "__code__", None)
            at = f" ({code.co_filename}:{code.co_firstlineno})" if code else ""
            raise ConfigError(f"{cls.__name__}.__init__ takes {stars}{p.name}: every key must be named, so that a typo is "
                              f"found{at}")
        if p.name not in given:
            keys[p.name] = Key(p.name, hints.get(p.name, typing.Any), made.get(p.name, p.default))
    return keys


def arguments(cls, block: dict, beside=frozenset()) -> dict:
    """The arguments of a checked block: without the toolkit's own keys, and without nulls that mean "the default"."""
    keys = schema(cls)
    return {k: _argument(v, keys[k].type) for k, v in block.items()
            if k not in beside and (v is not None or fits(None, keys[k].type))}


def filled(cls, block: dict) -> dict:
    """A block's keys with the defaults of its class, values as in YAML; without the toolkit's own keys, and without those that
    must be given and are not.

    A null means the default, but where the type has a null it is one: what the class itself is built with.
    """
    keys = schema(cls)
    given = {k: v for k, v in block.items() if k in keys and (v is not None or fits(None, keys[k].type))}
    return {k.name: k.default for k in keys.values() if not k.required} | given


def _argument(value, hint):
    kind = nested(hint)
    if kind is None or not isinstance(value, dict):
        return value
    if by_name(hint):
        return {name: _argument(one, kind) for name, one in value.items() if one is not None}
    return kind(**arguments(kind, value))


def check(cls, block: dict, where: str, place=None, beside=frozenset()) -> list[str]:
    """Every mistake of a block against a class's signature, those of its nested blocks included, each one line.

    A null where the type has no null means the default. Numbers that are none (``not_numbers``) are left to the caller.

    Args:
        beside: keys that are not the class's.
        place: ``place(key, nested key, ...) -> str`` gives the ``file:line`` of a key; by default ``where`` serves for all.
    """
    place = place or (lambda *keys: where)
    own = {k: v for k, v in block.items() if k not in beside}
    return _mistakes(cls, own, (), where, place, cls.__name__, beside - {"type"})


def _mistakes(cls, block: dict, path: tuple, where: str, place, owner: str, beside=frozenset()) -> list[str]:
    """``check`` of a block at ``path`` below that of the component ``owner``; ``beside``: names that it may have meant too."""
    keys, found = schema(cls), []
    of = f"`{'.'.join(path)}` of {owner}" if path else owner
    for name, value in block.items():
        if name not in keys:
            found.append(f"{place(*path, name)}: unknown key `{name}` of {of}{nearest(name, {*keys, *beside})}")
        elif value is not None:
            found += _misfits(value, keys[name].type, (*path, name), place, owner)
    found += [f"{place(*path, k.name) if k.name in block else where}: missing key `{k.name}` of {of} ({k.type_name})"
              for k in keys.values()
              if k.required and block.get(k.name) is None and not (k.name in block and fits(None, k.type))]
    if not found and hasattr(cls, "problems") and dataclasses.is_dataclass(cls) and not not_numbers(block, place):
        found = [f"{place(*path, key)}: `{'.'.join((*path, key))}` of {owner} {message}"
                 for key, message in cls(**arguments(cls, block)).problems()]
    return found


def _misfits(value, hint, path: tuple, place, owner: str) -> list[str]:
    """What is wrong with one value: where it is a mapping, with each value in it."""
    if isinstance(value, float) and not math.isfinite(value):
        return []
    kind, values = nested(hint), by_name(hint)
    if isinstance(value, dict) and values and all(isinstance(name, str) for name in value):
        return [line for name, one in value.items() if one is not None or not (kind or fits(None, values))
                for line in _misfits(one, values, (*path, name), place, owner)]
    if isinstance(value, dict) and kind and not values:
        return _mistakes(kind, value, path, place(*path), place, owner)
    if fits(value, hint):
        return []
    said = f"{value!r}" if fits(value, hint, ranges=False) else f"{value!r} ({type(value).__name__})"
    return [f"{place(*path)}: `{'.'.join(path)}` of {owner} must be {describe(hint)}, not {said}"]


def not_numbers(value, where, path: tuple = ()) -> list[str]:
    """A line for each number of a configuration that is infinite or none. ``where(*keys)`` gives the place of a key."""
    if isinstance(value, float) and not math.isfinite(value):
        return [f"{where(*path)}: `{'.'.join(map(str, path))}` must be a finite number, not {value}"]
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [line for key, one in items for line in not_numbers(one, where, (*path, key))]


ENCODER_REGISTRY = Registry("ENCODER", beside=("inputs",))
LOSS_REGISTRY = Registry("LOSS")
TASK_REGISTRY = Registry("TASK", beside=("data", "every", "batch_size", "limit"))
DATASET_REGISTRY = Registry("DATASET")
HOOK_REGISTRY = Registry("HOOK")
