"""Where the mistakes of a configuration are gathered: each with its place, each once."""

from xtoolkit.recipe.config import Config
from xtoolkit.registry import ConfigError, check, nearest


class Problems:
    """What was found wrong so far.

    Args:
        lacking: what is wrong with its plugins, a line each: names that they might have registered are then no mistakes.

    Attributes:
        bad: places of blocks whose keys are wrong: what they mean is not asked.
    """

    def __init__(self, config: Config, lacking: list[str] | None = None):
        self.data, self.where, self.lacking = config.data, config.where, bool(lacking)
        self.problems: list[str] = list(lacking or [])
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
        mistakes = check(cls, block, self.where(*at), lambda *keys: self.where(*at, *keys), registry.beside)
        self.problems += mistakes
        if mistakes:
            self.bad.add(at)
        return cls
