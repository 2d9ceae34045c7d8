"""Nested blocks of a `data` block (`mask`, `augment`, `sources`): held against the dataclasses that define them."""

import dataclasses
import typing

from xtoolkit.registry import ConfigError, describe, fits, nearest

REMOTE_WINDOW = 8  # shards; `shards.window` where it is not given and a shard is remote


def problems(cls, block, place: str) -> list[tuple[str, str]]:
    """Every mistake of a nested block: (dotted key, what is wrong). ``cls`` is a dataclass with ``problems``."""
    if not isinstance(block, dict):
        return [(place, f"must be a mapping with {', '.join(f.name for f in dataclasses.fields(cls))}, not {block!r}")]
    hints, found = typing.get_type_hints(cls), []
    for key, value in block.items():
        if key not in hints:
            found.append((f"{place}.{key}", f"unknown key `{key}` of `{place}`{nearest(key, hints)}"))
        elif not fits(value, hints[key]):
            found.append((f"{place}.{key}", f"must be {describe(hints[key])}, not {value!r}"))
    for field in dataclasses.fields(cls):
        required = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        if required and field.name not in block:
            found.append((place, f"missing key `{field.name}` ({describe(hints[field.name])})"))
    if not found:
        found = [(f"{place}.{key}", message) for key, message in cls(**block).problems()]
    return found


def make(cls, block: dict, place: str):
    """The dataclass of a nested block.

    Raises:
        ConfigError: every mistake of the block.
    """
    if found := problems(cls, block, place):
        raise ConfigError([f"data.{key}: {message}" for key, message in found])
    return cls(**block)


@dataclasses.dataclass(frozen=True)
class SourceBlock:
    """One of several `sources`.

    Attributes:
        path: a path or pattern, or a list of them.
        weight: its share of the draws, among the weights of all sources.
    """

    path: str | list[str]
    weight: float = 1.0

    def problems(self) -> list[tuple[str, str]]:
        return [] if self.weight > 0 else [("weight", f"must be above 0, not {self.weight}; `null` removes a source")]


@dataclasses.dataclass(frozen=True)
class ShardBlock:
    """How the shards of a stream are gone through, and how those that are not on this machine's disks are fetched.

    Attributes:
        window: shards whose samples are mixed with each other; an epoch goes from one such group to the next. Null: all
            samples of a source are mixed, or groups of REMOTE_WINDOW where a shard of it is remote.
        cache: folder of fetched shards; by default `remote` in $XTOOLKIT_HOME (~/.cache/xtoolkit). A folder in /dev/shm
            keeps them in memory.
        cache_gb: most GB of shards in it; those not read for longest go first. It must hold two windows.
        timeout: seconds without a byte after which a connection or a command counts as failed.
        retries: failures in a row, none with a new byte, after which a shard counts as dead.
        backoff: seconds before the first new try, doubled for each that follows, at most 60.
    """

    window: int | None = None
    cache: str | None = None
    cache_gb: float = 64.0
    timeout: float = 30.0
    retries: int = 6
    backoff: float = 1.0

    def problems(self) -> list[tuple[str, str]]:
        found = [(key, f"must be above 0, not {value}") for key in ("cache_gb", "timeout")
                 if (value := getattr(self, key)) <= 0]
        found += [(key, f"must not be below 0, not {value}") for key in ("retries", "backoff")
                  if (value := getattr(self, key)) < 0]
        if self.window is not None and self.window < 1:
            found.append(("window", f"must be at least 1 (shard), not {self.window}; null mixes all"))
        return found


def sources(path, several) -> dict[str, SourceBlock]:
    """The sources of a data block: those named, or the one of `path`."""
    if several is None:
        return {"data": SourceBlock(path)}
    return {name: make(SourceBlock, block, f"sources.{name}") for name, block in several.items() if block is not None}


def source_problems(block: dict) -> list[tuple[str, str]]:
    """What is wrong with `path` and `sources` of a data block."""
    path, several = block.get("path"), block.get("sources")
    if (path is None) == (several is None):
        return [("path", "give either `path` or `sources: {name: {path, weight}}`")]
    if several is None:
        return []
    if not isinstance(several, dict) or not several:
        return [("sources", "must be a mapping: {name: {path, weight}}")]
    return [p for name, b in several.items() if b is not None for p in problems(SourceBlock, b, f"sources.{name}")]
