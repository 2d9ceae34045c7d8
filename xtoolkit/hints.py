"""Type annotations as a YAML author meets them: which values they allow, in which range, and how they are called."""

import dataclasses
import inspect
import math
import types
import typing
from dataclasses import dataclass
from typing import Annotated


@dataclass(frozen=True)
class Range:
    """What a number must lie in, as metadata of its type: ``Annotated[int, Range(1)]``. An ``open`` end is itself out."""

    low: float = -math.inf
    high: float = math.inf
    open_low: bool = False
    open_high: bool = False

    def __contains__(self, value) -> bool:
        return (value > self.low if self.open_low else value >= self.low) and \
            (value < self.high if self.open_high else value <= self.high)

    def __str__(self) -> str:
        low = "" if self.low == -math.inf else f"above {self.low:g}" if self.open_low else f"of at least {self.low:g}"
        high = "" if self.high == math.inf else f"below {self.high:g}" if self.open_high else f"at most {self.high:g}"
        return f"{low} and {high}" if low and high else low or ("" if self.open_high else "of ") + high


Count = Annotated[int, Range(1)]
Positive = Annotated[float, Range(0, open_low=True)]
NotNegative = Annotated[float, Range(0)]
Share = Annotated[float, Range(0, 1)]
Dropout = Annotated[float, Range(0, 1, open_high=True)]


def nested(hint):
    """The dataclass of a key that is a block, or a mapping of blocks by name; else None."""
    if typing.get_origin(hint) is dict:
        return nested(typing.get_args(hint)[1]) if typing.get_args(hint) else None
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return next((found for a in typing.get_args(hint) if (found := nested(a))), None)
    return hint if isinstance(hint, type) and dataclasses.is_dataclass(hint) else None


def by_name(hint):
    """The type of the values of a key that is a mapping of names; else None."""
    options = typing.get_args(hint) if typing.get_origin(hint) in (typing.Union, types.UnionType) else (hint,)
    return next((typing.get_args(a)[1] for a in options if typing.get_origin(a) is dict and typing.get_args(a)), None)


def fits(value, hint, ranges: bool = True) -> bool:
    """Whether a YAML value has the type that an annotation names. An int serves as a float, a bool never as an int.

    Args:
        ranges: hold numbers against their ``Range`` too.
    """
    if hint is typing.Any or hint is inspect.Parameter.empty:
        return True
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is Annotated:
        limits = [r for r in args[1:] if isinstance(r, Range)] if ranges else []
        return fits(value, args[0], ranges) and all(value in limit for limit in limits)
    if origin in (typing.Union, types.UnionType):
        return any(fits(value, a, ranges) for a in args)
    if origin is typing.Literal:
        return any(value == a and type(value) is type(a) for a in args)
    if origin is list:
        return isinstance(value, (list, tuple)) and (not args or all(fits(v, args[0], ranges) for v in value))
    if origin is tuple:
        if not isinstance(value, (list, tuple)):
            return False
        if len(args) == 2 and args[1] is ...:
            return all(fits(v, args[0], ranges) for v in value)
        return len(value) == len(args) and all(fits(v, a, ranges) for v, a in zip(value, args))
    if origin is dict:
        return isinstance(value, dict) and (not args or all(fits(k, args[0], ranges) and fits(v, args[1], ranges)
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
    if origin is Annotated:
        return " ".join([describe(args[0]), *(str(r) for r in args[1:] if isinstance(r, Range))])
    if origin in (typing.Union, types.UnionType):
        return " or ".join(describe(a) for a in args)
    if origin is typing.Literal:
        return "one of " + ", ".join(str(a) for a in args)
    if origin is list:
        return "a list" + (f" of {_several(args[0])}" if args else "")
    if origin is tuple:
        if not args or args[-1] is ...:
            return f"a list of {_several(args[0])}" if args else "a list"
        if len(set(args)) > 1:
            return f"[{', '.join(map(describe, args))}]"
        return f"a list of {len(args)} {_several(args[0])}"
    if origin is dict:
        return f"a mapping of names, each {describe(args[1])}" if args else "a mapping"
    if nested(hint):
        return f"a mapping with {', '.join(f.name for f in dataclasses.fields(hint))}"
    return words.get(hint, getattr(hint, "__name__", str(hint)))


def _several(hint) -> str:
    plain, *ranges = typing.get_args(hint) if typing.get_origin(hint) is Annotated else (hint,)
    plural = {int: "integers", float: "numbers", str: "words", list[str]: "lists of words"}
    return " ".join([plural.get(plain, describe(plain)), *map(str, ranges)])
