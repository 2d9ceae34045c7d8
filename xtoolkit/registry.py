"""The five registries, and the one place where a YAML block becomes an object.

A component's ``__init__`` signature is its configuration schema: names, types and defaults live there and nowhere else.
Arguments that the toolkit supplies itself (``widths`` and the like, ``GIVEN`` below) are not keys of the block.
"""

import dataclasses
import inspect
import types
import typing
from dataclasses import dataclass

from fvcore.common.registry import Registry as _Registry

# What the toolkit gives to a constructor that asks for it by name; never read from YAML.
GIVEN = frozenset({
    "widths",         # dict: slot (encoders) or feature reference (losses) -> width
    "vocab_size_of",  # int: vocabulary of the text encoder below the features that a loss reads
    "patch_size_of",  # int: patch size of the image encoder below them
    "modules",        # dict: name -> built encoder or loss, for keys listed in a class's REFERS
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
        if problems := check(cls, block, where, beside=self.beside):
            raise ConfigError(problems)
        keys = settled(cls, block, self.beside)
        asked = inspect.signature(cls).parameters
        try:
            return cls(**keys, **{k: v for k, v in given.items() if k in asked})
        except ConfigError:
            raise
        except ValueError as e:  # values that only the constructor can judge: heads that do not divide the width, ...
            raise ConfigError(f"{where}: {e}") from e


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
    """The configuration keys of a component, read from its ``__init__`` signature."""
    parameters = list(inspect.signature(cls).parameters.values())
    hints = typing.get_type_hints(cls.__init__)
    given = GIVEN.union(getattr(cls, "GIVEN", ()))
    made = {f.name: f.default_factory() for f in dataclasses.fields(cls) if f.default_factory is not dataclasses.MISSING} \
        if dataclasses.is_dataclass(cls) else {}
    keys = {}
    for p in parameters:
        if p.kind in (p.VAR_KEYWORD, p.VAR_POSITIONAL):
            raise TypeError(f"{cls.__name__}.__init__ takes *{p.name}: every key must be named, so that a typo is found")
        if p.name not in given:
            keys[p.name] = Key(p.name, hints.get(p.name, typing.Any), made.get(p.name, p.default))
    return keys


def settled(cls, block: dict, beside=frozenset()) -> dict:
    """The arguments of a checked block: without the toolkit's own keys, and without nulls that mean "the default"."""
    keys = schema(cls)
    return {k: v for k, v in block.items() if k not in beside and (v is not None or fits(None, keys[k].type))}


def check(cls, block: dict, where: str, place=None, beside=frozenset()) -> list[str]:
    """Every mistake of a block against a class's signature, each one line.

    A null where the type has no null means the default.

    Args:
        beside: keys that are not the class's.
        place: ``place(key) -> str`` gives the ``file:line`` of a key; by default ``where`` serves for all.
    """
    place = place or (lambda key: where)
    keys, problems = schema(cls), []
    for name, value in block.items():
        if name in beside:
            continue
        if name not in keys:
            problems.append(f"{place(name)}: unknown key `{name}` of {cls.__name__}{nearest(name, keys)}")
        elif value is not None and not fits(value, keys[name].type):
            problems.append(f"{place(name)}: `{name}` of {cls.__name__} must be {keys[name].type_name}, "
                            f"not {value!r} ({type(value).__name__})")
    missing = [k.name for k in keys.values()
               if k.required and (k.name not in block or block[k.name] is None and not fits(None, k.type))]
    problems += [f"{where}: missing key `{name}` of {cls.__name__} ({keys[name].type_name})" for name in missing]
    return problems


def fits(value, hint) -> bool:
    """Whether a YAML value has the type that an annotation names. An int serves as a float, a bool never as an int."""
    if hint is typing.Any or hint is inspect.Parameter.empty:
        return True
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return any(fits(value, a) for a in args)
    if origin is typing.Literal:
        return any(value == a and type(value) is type(a) for a in args)
    if origin is list:
        return isinstance(value, list) and (not args or all(fits(v, args[0]) for v in value))
    if origin is tuple:
        if not isinstance(value, list):
            return False
        if len(args) == 2 and args[1] is ...:
            return all(fits(v, args[0]) for v in value)
        return len(value) == len(args) and all(fits(v, a) for v, a in zip(value, args))
    if origin is dict:
        return isinstance(value, dict) and (not args or all(fits(k, args[0]) and fits(v, args[1])
                                                            for k, v in value.items()))
    if hint is None or hint is type(None):
        return value is None
    if hint is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool)
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return isinstance(value, hint)


def describe(hint) -> str:
    """An annotation in words a YAML author knows."""
    words = {int: "an integer", float: "a number", bool: "true or false", str: "a word", dict: "a mapping", list: "a list",
             None: "null", type(None): "null", typing.Any: "anything"}
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(describe(a) for a in args)
    if origin is typing.Literal:
        return "one of " + ", ".join(str(a) for a in args)
    if origin is list:
        return "a list" + (f" of {_PLURAL.get(args[0], describe(args[0]))}" if args else "")
    if origin is tuple:
        return f"a list of {len(args)}" if args and args[-1] is not ... else "a list"
    if origin is dict:
        return "a mapping"
    return words.get(hint, getattr(hint, "__name__", str(hint)))


_PLURAL = {int: "integers", float: "numbers", str: "words", list[str]: "lists of words"}

ENCODER_REGISTRY = Registry("ENCODER", beside=("inputs",))
LOSS_REGISTRY = Registry("LOSS")
TASK_REGISTRY = Registry("TASK", beside=("data", "every", "batch_size"))
DATASET_REGISTRY = Registry("DATASET")
HOOK_REGISTRY = Registry("HOOK")
