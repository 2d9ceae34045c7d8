"""A folder of pictures, unpacked or in tars (ImageNet, ImageNet-21k) -> image-only samples."""

import hashlib
import os
import tarfile
from array import array
from pathlib import Path

import numpy as np

from xtoolkit.prepare.official import BadFile, BadRecord, Report, outside
from xtoolkit.prepare.run import write_pictures
from xtoolkit.prepare.writer import Draft, Inside, Options

ENDINGS = (".jpg", ".jpeg", ".png", ".webp")
PACKED = (".tar.gz", ".tgz", ".tar.xz", ".tar.bz2", ".zip")


def convert(images: Path, options: Options, prefix: str = "train") -> Report:
    """Writes every picture below a folder, in an order drawn once: neighbours are not of one class.

    Tars are read where they lie: ``n01440764.tar``, and tars inside a tar, count as folders of that name, so the
    release gives the same shards whether it was unpacked or not. Names are held as bytes, 40 or so a picture.

    Args:
        images: the folder, or one tar, searched to the bottom for ``.jpg``, ``.jpeg``, ``.png``, ``.webp`` in any case.
        prefix: of the shards.

    Raises:
        BadRecord: names the picture; also where there is none, and where a tar is compressed or damaged.
    """
    report, images = Report(options.skip_bad), Path(images)
    found = _Found()
    _search(str(images), "", found, report)
    if not len(found):
        raise BadFile(f"{images}: no {', '.join(ENDINGS)} in it, and no tar of them")
    order = np.random.RandomState(0).permutation(len(found))  # this generator's draws never change
    drafts = (_draft(images, *found[int(n)], prefix) for n in order)
    return write_pictures(f"images-{prefix}", drafts, options, report, -(-len(found) // options.shard_size))


class _Found:
    """Names of pictures in bytes, and the tar and place of each that is in one."""

    def __init__(self):
        self.names, self.ends, self.tars, self.tar, self.at = bytearray(), array("q"), [], array("l"), array("q")

    def add(self, name: str, tar: int = -1, at: int = 0):
        self.names += name.encode(errors="surrogateescape")
        self.ends.append(len(self.names))
        self.tar.append(tar)
        self.at.append(at)

    def __len__(self):
        return len(self.ends)

    def __getitem__(self, n: int) -> tuple[str, Path | None, int]:
        name = self.names[self.ends[n - 1] if n else 0:self.ends[n]].decode(errors="surrogateescape")
        return name, self.tars[self.tar[n]] if self.tar[n] >= 0 else None, self.at[n]


def _draft(root, name, tar, at, prefix):
    where, source = (name, root / name) if tar is None else (f"{tar.name}: {name}", Inside(tar, at))
    return Draft(prefix, None, source, {"image_id": _identity(name), "file": name}, where)


def _identity(name: str) -> str:
    """The name of a picture, short: equal for equal paths in the folder."""
    return hashlib.blake2b(name.encode(errors="surrogateescape"), digest_size=8).hexdigest()


def _search(place: str, name: str, found: _Found, report: Report, above: tuple = ()):
    """Adds what is below a folder or in a tar, in the order of the names."""
    if os.path.isdir(place):
        real = os.path.realpath(place)
        if real in above:
            report.bad(f"{place}: a link to a folder that it lies in")
            return
        with os.scandir(place) as entries:
            entries = sorted(((e.name, e.is_dir()) for e in entries), key=lambda e: e[0].removesuffix(".tar"))
        for entry, is_folder in entries:
            path, inside = os.path.join(place, entry), f"{name}/{entry}" if name else entry
            if is_folder or entry.endswith(".tar"):
                _search(path, inside, found, report, (*above, real))
            elif entry.lower().endswith(ENDINGS):
                found.add(inside)
            elif entry.lower().endswith(PACKED):
                report.bad(f"{path}: a compressed archive cannot be read at any place: unpack it")
        return
    tar = Path(place)
    found.tars.append(tar)
    try:
        with tar.open("rb") as raw:
            for member, at in sorted(_in_tar(raw, name.removesuffix(".tar"), tar.stat().st_size, tar.name, report)):
                found.add(member, len(found.tars) - 1, at)
    except OSError as error:
        raise BadFile(f"{place}: {error.strerror}") from None


def _in_tar(raw, name: str, end: int, place: str, report: Report) -> list:
    """(name, place of its header) of the pictures in the tar that begins where ``raw`` stands, those in tars too."""
    found, member = [], None
    try:
        with tarfile.open(fileobj=raw, mode="r:") as tar:
            for member in tar:
                if member.offset_data + member.size > end:
                    raise tarfile.ReadError("cut off inside it")
                if outside(member):
                    report.bad(f"{place}: {member.name}: refused: a link, a device, or a name that leads out of the tar")
                    continue
                if not member.isreg():
                    continue
                path = "/".join(p for p in (name, *member.name.split("/")) if p not in ("", ".", ".."))
                if path.endswith(".tar"):
                    raw.seek(member.offset_data)
                    found += _in_tar(raw, path.removesuffix(".tar"), member.offset_data + member.size,
                                     f"{place}: {member.name}", report)
                elif path.lower().endswith(ENDINGS):
                    found.append((path, member.offset))
            raw.seek(tar.offset)  # tarfile takes a header that it cannot read for the end, which is a block of zeros
            if tar.offset < end and raw.read(tarfile.BLOCKSIZE).strip(b"\0"):
                raise tarfile.ReadError(f"no header at byte {tar.offset}")
    except BadRecord:
        raise
    except (tarfile.TarError, EOFError, ValueError, OverflowError, RecursionError) as error:
        report.bad(f"{place}: broken{f' after {member.name}' if member else ''}: {error}")  # else what was before is kept
    return found
