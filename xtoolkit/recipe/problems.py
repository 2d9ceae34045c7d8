"""Where the mistakes of a configuration are gathered: each with its place, each once."""

import os
import traceback
from contextlib import contextmanager

from xtoolkit.graph import Need
from xtoolkit.recipe.config import Config
from xtoolkit.registry import ConfigError, check, filled, nearest


class Problems:
    """What was found wrong so far.

    Args:
        lacking: what is wrong with its plugins, a line each: names that they might have registered are then no mistakes.

    Attributes:
        bad: places of blocks whose keys are wrong: what they mean is not asked.
    """

    def __init__(self, config: Config, lacking: list[str] | None = None):
        self.data, self.where, self.lacking = config.data, config.where, bool(lacking)
        self.problems: list[str] = [f"{line}; names that it may register are not checked" for line in lacking or []]
        self.bad: set = set()

    def say(self, path, message: str) -> None:
        """One mistake, with the place of a path of keys."""
        self.problems.append(f"{self.where(*path)}: {message}")

    def block_class(self, registry, block, *at):
        """The class that a block names, or None with the reason reported. Wrong keys are reported, and ``at`` joins ``bad``."""
        if not isinstance(block, dict):
            self.say(at, f"`{at[-1]}` must be a mapping with a `type`")
            return None
        if "type" not in block:
            self.say(at, f"`{at[-1]}` lacks `type`{nearest('', registry.names())}")
            return None
        try:
            cls = registry.find(block["type"], self.where(*at, "type"))
        except ConfigError as e:
            self.problems += [] if self.lacking else e.problems
            return None
        with self.asked(cls, "__init__", *at):
            mistakes = check(cls, block, self.where(*at), lambda *keys: self.where(*at, *keys), registry.beside)
            self.problems += mistakes
            if mistakes:
                self.bad.add(at)
            return cls
        return None

    def alike(self, name, dataset, loss):
        """Reports data of an evaluation that number things otherwise than those on which the loss that it reads is trained."""
        read = {stream: block["data"] for stream, block in self.data["streams"].items() if isinstance(block, dict)
                and isinstance(block.get("losses"), dict) and loss in block["losses"] and isinstance(block.get("data"), dict)}
        for stream, data in read.items() if dataset is not None else ():
            for key in dataset.ALIKE:
                here, there = self.data["evaluate"][name]["data"].get(key), data.get(key)
                if isinstance(here, list) and isinstance(there, list) and here != there:
                    self.say(("evaluate", name, "data", key), f"`{key}` of evaluation `{name}` are numbered otherwise than those "
                             f"of stream `{stream}`, which trains `{loss}`: {there}")

    @contextmanager
    def asked(self, cls, what: str, *at):
        """Around asking a class for ``what``: an error of its own is a mistake of the block that names it, and that is bad."""
        try:
            yield
        except ConfigError as e:
            told = e.problems
        except Exception as e:  # a plugin is anybody's code: whatever stops it must name it, and hide nothing else
            told = [f"{cls.__name__}.{what} fails: {type(e).__name__}: {tell(e)}"]
        else:
            return
        self.bad.add(at)
        for line in told:
            self.say(at, line)

    def needs(self, cls, block: dict, *at) -> list[Need]:
        """What a loss or a task reads; none where its class fails to say, which is reported."""
        with self.asked(cls, "needs", *at):
            found = cls.needs(filled(cls, block))
            if not isinstance(found, (list, tuple)) or not all(isinstance(n, Need) and isinstance(n.ref, str) for n in found):
                raise ConfigError(f"{cls.__name__}.needs returns {found!r}, not a list of Need")
            return list(found)
        return []


def tell(error: Exception) -> str:
    """What an error says, and the last line of code outside torch that it passed."""
    frames = [f for f in traceback.extract_tb(error.__traceback__) if "site-packages" not in f.filename]
    said = str(error.args[0] if isinstance(error, KeyError) and error.args else error).splitlines() or [type(error).__name__]
    said = [said[0], *getattr(error, "__notes__", ())]
    return "; ".join(said) + (f" ({os.path.basename(frames[-1].filename)}:{frames[-1].lineno})" if frames else "")
