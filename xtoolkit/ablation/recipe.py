"""What the jobs of a table are made of: a recipe with its overrides, read once for all seeds, and runs that are there."""

import json
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from xtoolkit.recipe import config
from xtoolkit.registry import ConfigError


@dataclass(eq=False)
class Recipe:
    """A recipe with its overrides, read once for all seeds.

    Attributes:
        path: its file.
        lines: overrides, in which ``<0>``, ``<1>`` stand for the folders of what a job starts from.
        threads: of its jobs.
        library: a folder of recipes that ``_BASE_`` may name.
        machine: that its jobs run on, as ``keys.machine`` says there; None: this one.
    """

    path: str
    lines: list[str]
    threads: int
    library: str | None
    machine: list | None = None

    @cached_property
    def checked(self):
        """It, read. Raises ConfigError."""
        from xtoolkit import recipe as recipes

        return recipes.load(self.path, self.lines, missing_files=False, library=self.library)

    @cached_property
    def begins(self) -> bool:
        """Whether it starts from what its lines say: a later line, as `init.path=null`, may have taken that away."""
        try:
            return "<0>" in json.dumps(config.load(self.path, self.lines, self.library).data, default=str)
        except ConfigError:
            return True  # ``check`` says what is wrong

    @cached_property
    def key(self) -> str:
        """See ``keys.key``."""
        from xtoolkit.ablation import keys

        return keys.key(self.checked, self.on)

    @property
    def on(self) -> list:
        """The machine, as ``keys.machine`` says."""
        from xtoolkit.ablation import keys

        return self.machine or keys.machine(self.threads)

    def changed(self) -> bool:
        """Whether what its key stands for is another by now, its YAML too: its processes would run with that."""
        from xtoolkit.ablation import keys

        keys.forget()
        try:
            return replace(self).key != self.key
        except ConfigError:
            return True


@dataclass(frozen=True)
class There:
    """A run or file of weights that is there, which jobs start from as from a job."""

    folder: Path
    complete = True

    @cached_property
    def key(self) -> str:
        """See ``keys.weights``."""
        from xtoolkit.ablation import keys

        if not self.folder.exists():
            raise ConfigError(f"{self.folder}: no such run or file of weights")
        return keys.weights(str(self.folder))
