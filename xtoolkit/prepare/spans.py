"""Dividing files among jobs by their sizes only: small ones go together, large ones are cut where that is possible."""

from dataclasses import dataclass
from pathlib import Path

from xtoolkit.prepare.official import BadFile

SPAN = 1 << 27  # bytes that one job reads


@dataclass(frozen=True)
class Span:
    """A piece of a file: what begins in it. ``size`` and ``time`` are the whole file's, so that a change is noticed."""

    path: str
    size: int
    time: int
    start: int = 0
    end: int | None = None


def grouped(inputs: list, cuttable) -> list[tuple]:
    """The spans of each job: neighbours until ``SPAN`` bytes are together. It depends on the sizes of the files only.

    Args:
        cuttable: tells whether a path can be read from any place.

    Raises:
        BadFile: a file is not there.
    """
    jobs, spans, filled = [], [], 0
    for path in map(Path, inputs):
        try:
            stat = path.stat()
        except OSError as error:
            raise BadFile(f"{path}: {error.strerror}") from None
        starts = range(0, max(stat.st_size, 1), SPAN) if cuttable(path) else (0,)
        for start in starts:
            last = start == starts[-1]
            spans.append(Span(str(path), stat.st_size, stat.st_mtime_ns, start, None if last else start + SPAN))
            filled += stat.st_size - start if last else SPAN
            if filled >= SPAN:
                jobs.append(tuple(spans))
                spans, filled = [], 0
    return [*jobs, tuple(spans)] if spans else jobs
