"""What lies in tars, read where it is: members and their places, also of tars put one behind the other with ``cat``."""

import tarfile
from array import array
from collections.abc import Iterator
from pathlib import Path

from xtoolkit.data import limits, scan
from xtoolkit.prepare.official import BadRecord, Report

UNPACK = {".tar.gz": "gunzip", ".tgz": "tar xzf", ".tar.xz": "unxz", ".tar.bz2": "bunzip2", ".tar.zst": "unzstd", ".zip": "unzip"}


def packed(path) -> str | None:
    """What to do about an archive that cannot be read at any place; None where it is no such."""
    command = next((command for ending, command in UNPACK.items() if str(path).lower().endswith(ending)), None)
    return command and f"{path}: a compressed archive cannot be read at any place: unpack it, `{command} {path}`"


def members(raw, end: int, place: str, report: Report) -> Iterator[tarfile.TarInfo]:
    """The files of the tar that begins where ``raw`` stands, and of those behind it up to the byte ``end``.

    A link, a device, a name that leads out and whatever is broken are wrong records; what was before them is kept.
    """
    member = None
    try:
        for member in scan.members(raw, end):
            if scan.refused(member):
                report.bad(f"{place}: {member.name}: refused: a link, a device, sparse, or a name that leads out of the tar")
            else:
                yield member
    except tarfile.TarError as error:
        report.bad(f"{place}: broken after {member.name if member else 'its beginning'}: {error}")


def content(tar: Path, at: int, where: str) -> bytes:
    """The file in a tar whose header is at a place."""
    try:
        with tar.open("rb") as raw:
            raw.seek(at)
            with tarfile.open(fileobj=raw, mode="r:") as inside:
                member = inside.next()
                if member is None or not member.isreg():
                    raise tarfile.ReadError("no file there: the tar has changed")
                if member.size > limits.MAX_IMAGE:
                    raise tarfile.ReadError(f"{member.size:,} bytes, more than {limits.MAX_IMAGE:,}")
                return inside.extractfile(member).read()
    except (OSError, tarfile.TarError) as error:
        raise BadRecord(f"{where}: {tar}: cannot be read at byte {at}: {error}") from None


class Names:
    """Names of files in bytes with two numbers each, which say where: 40 or so bytes a file."""

    def __init__(self):
        self.names, self.ends, self.places = bytearray(), array("q"), array("q")

    def add(self, name: str, *place: int):
        self.names += name.encode(errors="surrogateescape")
        self.ends.append(len(self.names))
        self.places.extend(place)

    def __len__(self):
        return len(self.ends)

    def __getitem__(self, n: int) -> tuple[str, int, int]:
        name = self.names[self.ends[n - 1] if n else 0:self.ends[n]].decode(errors="surrogateescape")
        return name, *self.places[2 * n:2 * n + 2]
