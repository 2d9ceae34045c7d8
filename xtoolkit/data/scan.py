"""Walks through a shard once: what it holds, where, and what of it is damaged or left out.

A tar is read in the webdataset layout with two differences: the key of a sample ends at the last dot of a name, and of
members with one name the last counts, as in tar itself.
"""

import gzip
import hashlib
import io
import os
import re
import tarfile
import zlib
from array import array
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from xtoolkit.data import limits, tables
from xtoolkit.data.images import ENDINGS

KEY_BYTES = 64
CHUNK = 1 << 24  # bytes of lines looked at in one go
UNPACK = 1 << 20  # bytes unpacked in one go, however few they are unpacked from
REFUSED = 2**64 - 1  # the place of a member that is not read: a link, a device, or a name that leads out of the archive
MOST_PARTS = 64
PART = re.compile(r"(?!key$|elements$|image$)[a-z0-9_-]{1,16}")
SPAN = [("at", "<u8"), ("size", "<u4")]  # a size of 0: the sample has no such part


def record(kind: str, parts: list) -> np.dtype | None:
    """The record of a sample with such parts; None where they are none that an index has."""
    if len(parts) > MOST_PARTS + 1 or len(set(map(str, parts))) < len(parts) or \
            not all(isinstance(p, str) and (p == "image" or PART.fullmatch(p)) for p in parts):
        return None
    spans = [(part, SPAN) for part in parts]
    key, elements = [("key", f"S{KEY_BYTES}")], [("elements", "<u2")]
    return np.dtype(key + spans + elements if kind == "tar" else spans if kind == "lines" else spans + elements)


# ---- tars ------------------------------------------------------------------------------------------------------------
class _Hashed(io.RawIOBase):
    """A file whose bytes are hashed as they are read: of a tar the headers, and nothing between them."""

    def __init__(self, file):
        self.seek, self.tell, self._file, self.digest = file.seek, file.tell, file, hashlib.blake2b(digest_size=16)

    def readable(self) -> bool:
        return True

    def read(self, size: int) -> bytes:
        data = self._file.read(min(size, limits.MAX_TEXT))  # a header may say that it has more bytes than there is memory
        self.digest.update(data)
        return data

    def readinto(self, buffer) -> int:
        size = self._file.readinto(buffer)
        self.digest.update(memoryview(buffer)[:size])
        return size


def members(raw, size: int, headers=None) -> Iterator[tarfile.TarInfo]:
    """What is in a tar but its folders, and in the tars put behind it with ``cat``, from where ``raw`` stands to byte ``size``.

    Args:
        headers: what the headers are read through, instead of ``raw`` itself.

    Raises:
        tarfile.TarError: it is damaged or cut off; what is before that was given.
    """
    start = raw.tell()
    try:
        while start is not None:
            raw.seek(start)
            with tarfile.open(fileobj=headers or raw, mode="r:") as archive:
                while (member := archive.next()) is not None:
                    archive.members.clear()  # else tarfile keeps an object of each
                    if member.size < 0:
                        raise tarfile.ReadError(f"the size of {member.name} is below 0")
                    if member.isreg() and member.sparse is None and member.offset_data + member.size > size:
                        raise tarfile.ReadError(f"cut off inside {member.name}")
                    if not member.isdir():
                        yield member
            end, start = archive.offset, _filled(raw, archive.offset, size)
            if end >= size:
                raise tarfile.ReadError(f"cut off at byte {end}: no end")
            if start == end:  # tarfile takes a header that it cannot read for the end; the real end is zeros
                raise tarfile.ReadError(f"no header at byte {end}")
    except (EOFError, ValueError, OverflowError, RecursionError) as e:
        raise tarfile.ReadError(str(e)) from None


def _filled(raw, at: int, size: int) -> int | None:
    """The first block from ``at`` on that is not of zeros."""
    raw.seek(at)
    while data := raw.read(min(UNPACK, max(0, size - at))):
        if rest := data.lstrip(b"\0"):
            return at + (len(data) - len(rest)) // tarfile.BLOCKSIZE * tarfile.BLOCKSIZE
        at += len(data)
    return None


def refused(member: tarfile.TarInfo) -> bool:
    """Whether a member is a link, a device or sparse, or named so that it leads out of the tar."""
    return not member.isreg() or member.sparse is not None or member.name.startswith("/") or ".." in member.name.split("/")


def hidden(name: str) -> bool:
    """Whether a file is none of the data's, by its path: what macOS, Jupyter and others put beside files, and into archives."""
    return any(part == "__MACOSX" or part.startswith(".") and part.strip(".") for part in name.split("/"))


def tar(path: str | Path) -> tuple[np.ndarray, dict]:
    """The samples of a tar that have a picture; of one that is cut off or damaged those before the damage.

    What is ``refused`` has no place to be read from (``REFUSED``): its sample is drawn, found bad and counted.

    Returns:
        Records; ``damage``, ``left_out`` and ``digest``, which is of the size, all headers, the jsons and the texts.
    """
    found, left_out, damage, size = _Members(), Counter(), None, os.path.getsize(path)
    with open(path, "rb") as raw:
        if raw.read(2) == b"\x1f\x8b":
            raise ValueError(f"{path}: a compressed tar cannot be read at any place: gunzip it")
        raw.seek(0)
        hashed, member = _Hashed(raw), None
        try:
            for member in members(raw, size, hashed):
                if why := found.add(member):
                    left_out[why] += 1
        except tarfile.TarError as e:
            damage = str(e) if member else f"no tar: {e}"
        records = found.records(left_out)
        hashed.digest.update(str(size).encode())
        for part in [part for part in ("json", "txt") if part in records.dtype.names]:
            for sample in records:
                at, size = sample[part].tolist()
                raw.seek(at if at != REFUSED else 0)
                said = hashed.read(min(size, limits.MAX_TEXT)) if at and at != REFUSED else b""
                if part == "json" and at:
                    sample["elements"] = _elements(said, ("captions", "caption"))  # one that is refused is broken
    return records, {"damage": damage, "left_out": dict(+left_out), "digest": hashed.digest.hexdigest()}


class _Members:
    """The members of a tar by the sample and the part of it that they are."""

    def __init__(self):
        self._rows, self._endings = {}, {}
        self._found = array("Q")  # row, ending, place and size of each

    def add(self, member: tarfile.TarInfo) -> str | None:
        """Takes a member; or returns why it is left out."""
        folder, slash, base = member.name.rpartition("/")
        stem, _, ending = base.rpartition(".")
        ending = ending.lower()
        if hidden(member.name):
            return "hidden files"
        if not stem:
            return "files without an ending"
        if not PART.fullmatch(ending) or ending not in self._endings and len(self._endings) == MOST_PARTS:
            return "files of unknown endings"
        key = f"{folder}{slash}{stem}".encode("utf-8", "surrogateescape")
        row, number = self._rows.setdefault(key, len(self._rows)), self._endings.setdefault(ending, len(self._endings))
        at, size = (REFUSED, 1) if refused(member) else (member.offset_data, min(member.size, 2**32 - 1))
        self._found.extend((row, number, at, size))
        return None

    def records(self, left_out: Counter) -> np.ndarray:
        """The samples with a picture; what is passed over is counted in ``left_out``."""
        found, columns = np.array(self._found, np.uint64).reshape(-1, 4), {}
        image = np.zeros(len(self._rows), SPAN)
        for ending, number in self._endings.items():
            rows, _, at, size = found[found[:, 1] == number].T
            column = np.zeros(len(self._rows), SPAN)
            column["at"][rows], column["size"][rows] = at, size  # of one row's the last stays
            left_out["members of a name that comes again"] += len(rows) - int(np.count_nonzero(column["at"]))
            if ending in ENDINGS:
                both = (image["at"] > 0) & (column["at"] > 0)
                left_out["pictures behind a sample's first"] += int(np.count_nonzero(both))
                first = (column["at"] > 0) & ~(both & (image["at"] < column["at"]))
                image[first] = column[first]
            else:
                columns[ending] = column
        kept = image["at"] > 0
        if not kept.all():
            seen = sorted(f".{e}" for e, column in columns.items() if np.any(column["at"][~kept]))
            left_out[f"samples without a picture, only {', '.join(seen[:8])}"] += int(np.count_nonzero(~kept))
        columns = {"image": image} | {e: column for e, column in columns.items() if np.any(column["at"][kept])}
        records = np.zeros(int(np.count_nonzero(kept)), record("tar", list(columns)))
        records["key"] = [_short(key) for key, keep in zip(self._rows, kept.tolist()) if keep]
        for part, column in columns.items():
            records[part] = column[kept]
        return records


def _short(key: bytes) -> bytes:
    """A key that has its place in a record: of one that is longer its beginning, and a hash that keeps it apart from others."""
    digest = hashlib.blake2b(key, digest_size=8).hexdigest()
    return key if len(key) <= KEY_BYTES else key[:KEY_BYTES - 17] + b"~" + digest.encode()


def _elements(raw: bytes, captions: tuple[str, ...]) -> int:
    """What a region stream can draw of a sample: its regions, and one more where the whole picture has a caption.

    A broken json counts as one, so that it is drawn, found and reported.
    """
    try:
        meta = limits.parse(raw, dict)
    except ValueError:
        return 1
    regions = meta.get("regions")
    whole = any(meta.get(name) for name in captions)
    return min(whole + (len(regions) if isinstance(regions, list) else 0), 65535)


# ---- lines and rows --------------------------------------------------------------------------------------------------
def rows(path: str | Path, kind: str) -> tuple[np.ndarray, dict]:
    """The rows of a text file or table. No more than ``CHUNK`` bytes of lines are in memory, however long they are.

    Returns:
        Records, none where the first bytes are those of another kind of file, which is then its ``damage``; ``columns`` of a
        CSV or TSV, and the ``digest`` of the content.
    """
    columns = None
    with open(path, "rb") as f:
        start = f.read(512)
        f.seek(0)
        hashed = _Hashed(f)
        lines = io.BufferedReader(hashed, UNPACK)
        if kind in tables.DELIMITERS:
            places = tables.places(lines, tables.DELIMITERS[kind])
            (at, size), places = places[:2] or (0, 0), places[2:]
            f.seek(at)
            try:
                columns = tables.cells_of(limits.decode(f.read(min(size, limits.MAX_TEXT))), tables.DELIMITERS[kind])
            except ValueError as e:
                raise ValueError(f"{path}: the header row: {e}") from None
        else:
            places = _lines(lines)
        spans = np.array(places, np.int64).reshape(-1, 2)
        records = np.zeros(len(spans), record(kind, ["text"]))
        records["text"]["at"], records["text"]["size"] = spans[:, 0], spans[:, 1].clip(max=2**32 - 1)
        for sample in records if kind == "jsonl" else ():
            at, size = sample["text"].tolist()
            f.seek(at)
            raw = f.read(min(size, limits.MAX_TEXT))
            sample["elements"] = _elements(raw, tables.CAPTIONS) if b'"regions"' in raw else 1
        if columns is not None:
            records["elements"] = 1
    other = limits.seen(start)[0] not in (None, "empty")  # a page of a server, say, that came instead of the file
    return records[:0] if other else records, {"damage": limits.looks(start) if other else None, "columns": columns,
                                               "digest": hashed.digest.hexdigest()}


def _lines(f) -> array:
    """Where each line that says anything begins, and its bytes, one after the other."""
    places, at, begun, said, newline = array("q"), 0, 0, False, ord("\n")
    while piece := f.readline(CHUNK):
        at += len(piece)
        said = said or not piece.isspace()
        if piece[-1] == newline:
            if said:
                places.append(begun)
                places.append(at - begun)
            begun, said = at, False
    return places + array("q", (begun, at - begun) if said else ())


def gunzip(path: str | Path, out) -> str | None:
    """Unpacks a file into an open one, cut after the last whole line if it is damaged or a bomb; returns the damage."""
    whole = 0  # bytes up to the end of the last whole line
    with open(path, "rb") as f, gzip.GzipFile(fileobj=f) as packed:
        try:
            while data := packed.read1(UNPACK):  # not `read`: it loses what comes right before the damage
                if b"\n" in data:
                    whole = out.tell() + data.rindex(b"\n") + 1
                out.write(data)
                if out.tell() > max(limits.UNPACKED, limits.RATIO * f.tell()):
                    damage = f"unpacks to more than {limits.RATIO} times its size: taken for a decompression bomb"
                    break
            else:
                return None
        except EOFError:
            damage = "cut off"
        except (gzip.BadGzipFile, zlib.error) as e:
            damage = str(e)
    out.seek(whole)
    out.truncate()
    return damage
