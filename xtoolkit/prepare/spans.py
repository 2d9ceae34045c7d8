"""Dividing files among jobs by their sizes only: small ones go together, large ones are cut where that is possible."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from xtoolkit.prepare.official import BadFile, unread

SPAN = 1 << 27  # bytes that one job reads


@dataclass(frozen=True)
class Span:
    """A piece of a file: what begins in it. ``size`` and ``time`` are the whole file's, so that a change is noticed."""

    path: str
    size: int
    time: int
    start: int = 0
    end: int | None = None

    @classmethod
    def whole(cls, path) -> "Span":
        """All of a file, or of the files of a folder. Raises BadFile where it is not there."""
        try:
            stat, folder = Path(path).stat(), Path(path).is_dir()
            size = sum(file.stat().st_size for file in Path(path).iterdir()) if folder else stat.st_size
        except OSError as error:
            raise unread(path, error) from None
        return cls(str(path), size, stat.st_mtime_ns)

    @property
    def bytes(self) -> int:
        return (self.size if self.end is None else self.end) - self.start

    def cut(self) -> list["Span"]:
        last = max(self.size - 1, 0) // SPAN * SPAN
        pieces = [replace(self, start=start, end=start + SPAN) for start in range(0, last, SPAN)]
        return [*pieces, replace(self, start=last)]


def together(items, size: Callable = lambda span: span.bytes) -> list[tuple]:
    """Neighbours until ``SPAN`` bytes are together: it depends on the sizes of the files only."""
    jobs, waiting, filled = [], [], 0
    for item in items:
        waiting.append(item)
        filled += size(item)
        if filled >= SPAN:
            jobs.append(tuple(waiting))
            waiting, filled = [], 0
    return [*jobs, tuple(waiting)] if waiting else jobs
