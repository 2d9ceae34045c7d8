"""Walks through a shard once: what it holds, where, and what of it is damaged or left out.

A tar is read in the webdataset layout with two differences: the key of a sample ends at the last dot of a name, and of
members with one name the last counts, as in tar itself.
"""

import csv
import gzip
import hashlib
import io
import os
import re
import tarfile
import zlib
from array import array
from collections import Counter
from pathlib import Path

import numpy as np

from xtoolkit.data import limits

# TODO-JOIN: xtoolkit.data.images.ENDINGS
IMAGES = frozenset({"jpg", "jpeg", "jpe", "jfif", "png", "apng", "webp", "gif", "bmp", "dib", "tif", "tiff", "jp2", "j2k",
                    "jpx", "ppm", "pgm", "pbm", "pnm", "pfm", "tga", "ico", "icns", "pcx", "psd", "dds", "sgi", "rgb", "bw",
                    "avif", "heic", "heif", "qoi", "xbm", "xpm", "im", "msp", "spi", "mpo", "cur"})
KEY_BYTES = 64
CHUNK = 1 << 24  # bytes of lines looked at in one go
UNPACK = 1 << 20  # bytes unpacked in one go, however few they are unpacked from
REFUSED = 2**64 - 1  # the place of a member that is not read: a link, a device, or a name that leads out of the archive
MOST_PARTS = 64
PART = re.compile(r"(?!key$|elements$|image$)[a-z0-9_-]{1,16}")
SPAN = [("at", "<u8"), ("size", "<u4")]  # a size of 0: the sample has no such part

csv.field_size_limit(max(csv.field_size_limit(), limits.MAX_TEXT))  # else a text of 128 KiB ends the table


def record(kind: str, parts: list) -> np.dtype | None:
    """The record of a sample with such parts; None where they are none that an index has."""
    if len(parts) > MOST_PARTS + 1 or len(set(map(str, parts))) < len(parts) or \
            not all(isinstance(p, str) and (p == "image" or PART.fullmatch(p)) for p in parts):
        return None
    spans = [(part, SPAN) for part in parts]
    key, elements = [("key", f"S{KEY_BYTES}")], [("elements", "<u2")]
    return np.dtype(key + spans + elements if kind == "tar" else spans if kind == "lines" else spans + elements)


def parts(dtype: np.dtype) -> list[str]:
    return [name for name in dtype.names if name not in ("key", "elements")]


# ---- tars ------------------------------------------------------------------------------------------------------------
class _Hashed:
    """A file whose bytes are hashed as they are read: by tarfile the headers, and nothing between them."""

    def __init__(self, file):
        self.seek, self.tell, self._file, self.digest = file.seek, file.tell, file, hashlib.blake2b(digest_size=16)

    def read(self, size: int) -> bytes:
        data = self._file.read(size)
        self.digest.update(data)
        return data


def tar(path: str | Path) -> tuple[np.ndarray, dict]:
    """The samples of a tar, or of several that were put one behind the other: those that have a picture.

    A link, a device, or a name that leads out of the archive has no place to be read from (``REFUSED``): its sample is
    drawn, found bad and counted. A tar that is cut off or damaged serves the samples before the damage.

    Returns:
        Records; ``damage``, ``left_out`` and ``digest``, which is of the size, of all headers and of the jsons.
    """
    found, left_out = _Members(), Counter()
    with open(path, "rb") as raw:
        if raw.read(2) == b"\x1f\x8b":
            raise ValueError(f"{path}: a compressed tar cannot be read at any place: gunzip it")
        hashed, start, damage, size = _Hashed(raw), 0, None, os.path.getsize(path)
        while start is not None and damage is None:
            raw.seek(start)
            start, damage = _archive(raw, hashed, size, found, left_out)
        records = found.records(left_out)
        hashed.digest.update(str(size).encode())
        for sample in records if "json" in records.dtype.names else ():
            at, size = sample["json"].tolist()
            if at == REFUSED:
                sample["elements"] = 1
            elif at:
                raw.seek(at)
                sample["elements"] = _elements(hashed.read(min(size, limits.MAX_TEXT)))
    return records, {"damage": damage, "left_out": dict(left_out), "digest": hashed.digest.hexdigest()}


def _archive(raw, hashed, end: int, found: "_Members", left_out: Counter) -> tuple[int | None, str | None]:
    """Reads one archive from where the file stands; returns where the next one begins, if any, and the damage, if any."""
    try:
        with tarfile.open(fileobj=hashed, mode="r:") as archive:
            while (member := archive.next()) is not None:
                archive.members.clear()  # else tarfile keeps an object of each
                if member.isreg() and member.offset_data + member.size > end:
                    return None, f"cut off inside {member.name}"
                if not member.isdir() and (why := found.add(member)):
                    left_out[why] += 1
            at = archive.offset
    except (tarfile.TarError, EOFError, ValueError, OverflowError, RecursionError) as e:
        return None, f"no tar: {e}"
    # tarfile takes a header that it cannot read for the end; the real end is a block of zeros.
    raw.seek(at)
    after = raw.read(tarfile.BLOCKSIZE)
    if not after:
        return None, f"cut off at byte {at}: no end"
    if after.strip(b"\0"):
        return None, f"no header at byte {at}"
    while block := raw.read(UNPACK):
        if rest := block.lstrip(b"\0"):
            start = raw.tell() - len(rest)
            return start - start % tarfile.BLOCKSIZE, None
    return None, None


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
        if base.startswith("."):
            return "hidden files"
        if not stem:
            return "files without an ending"
        if not PART.fullmatch(ending) or ending not in self._endings and len(self._endings) == MOST_PARTS:
            return "files of unknown endings"
        key = f"{folder}{slash}{stem}".encode("utf-8", "surrogateescape")
        row, number = self._rows.setdefault(key, len(self._rows)), self._endings.setdefault(ending, len(self._endings))
        outside = member.name.startswith("/") or ".." in member.name.split("/")
        if outside or not member.isreg() or member.sparse is not None:
            self._found.extend((row, number, REFUSED, 1))
        else:
            self._found.extend((row, number, member.offset_data, min(member.size, 2**32 - 1)))
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
            if ending in IMAGES:
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
        columns = {"image": image} | {ending: column for ending, column in columns.items() if np.any(column["at"][kept])}
        records = np.zeros(int(np.count_nonzero(kept)), record("tar", list(columns)))
        records["key"] = [key[-KEY_BYTES:] for key, keep in zip(self._rows, kept.tolist()) if keep]
        for part, column in columns.items():
            records[part] = column[kept]
        for why in [why for why, number in left_out.items() if not number]:
            del left_out[why]
        return records


def _elements(raw: bytes) -> int:
    """What a region stream can draw of a sample: its regions, and one more where the whole picture has a caption.

    A broken json counts as one, so that it is drawn, found and reported.
    """
    try:
        meta = limits.parse(raw)
    except ValueError:
        return 1
    if not isinstance(meta, dict):
        return 1
    regions = meta.get("regions")
    whole = bool(meta.get("captions") or meta.get("caption"))
    return min(whole + (len(regions) if isinstance(regions, list) else 0), 65535)


# ---- lines and rows --------------------------------------------------------------------------------------------------
def rows(path: str | Path, kind: str) -> tuple[np.ndarray, dict]:
    """The rows of a text file or table.

    Returns:
        Records; ``damage``, ``columns`` of a CSV or TSV, and the ``digest`` of the content.
    """
    digest, columns, damage = hashlib.blake2b(digest_size=16), None, None
    if kind in ("csv", "tsv"):
        spans, columns, damage = _csv(path, "," if kind == "csv" else "\t", digest)
    else:
        spans = _lines(path, digest)
    records = np.zeros(len(spans), record(kind, ["text"]))
    records["text"]["at"], records["text"]["size"] = spans[:, 0], spans[:, 1].clip(max=2**32 - 1)
    if kind != "lines":
        records["elements"] = 1
    if kind == "jsonl":
        with open(path, "rb") as f:
            for sample, (at, size) in zip(records, spans.tolist()):
                f.seek(at)
                raw = f.read(min(size, limits.MAX_TEXT))
                if b'"regions"' in raw:
                    sample["elements"] = _elements(raw)
    return records, {"damage": damage, "columns": columns, "digest": digest.hexdigest()}


def _lines(path: str | Path, digest) -> np.ndarray:
    """(N, 2) where the lines that say anything begin, and their bytes; ``CHUNK`` bytes at most are in memory at a time."""
    spans, at = [np.zeros((0, 2), np.int64)], 0
    begun, said = 0, False  # the line that is under way: where it began, and whether it says anything
    with open(path, "rb") as f:
        while block := f.read(CHUNK):
            digest.update(block)
            pieces = block.split(b"\n")
            filled = np.fromiter((bool(piece.strip()) for piece in pieces), bool, len(pieces))
            filled[0] |= said
            ends = at + np.cumsum([len(piece) + 1 for piece in pieces])
            starts = np.concatenate([[begun], ends[:-1]])
            spans.append(np.stack([starts, ends - starts], 1)[:-1][filled[:-1]])
            at, begun, said = at + len(block), int(starts[-1]), bool(filled[-1])
    if said:
        spans.append(np.array([[begun, at - begun]]))
    return np.concatenate(spans)


def _csv(path: str | Path, delimiter: str, digest) -> tuple[np.ndarray, list[str], str | None]:
    """(N, 2) places and bytes of the records below the header row, the header's columns, and the damage.

    The csv module itself goes through the file, so that a record ends where it ends for everybody.
    """
    spans, at, end, damage = array("q"), 0, 0, None

    def lines():
        nonlocal end
        while line := f.readline(limits.MAX_TEXT):
            digest.update(line)
            end += len(line)
            yield line.decode("latin-1")  # quotes and delimiters are the same bytes in UTF-8

    with open(path, "rb") as f:
        try:
            for cells in csv.reader(lines(), delimiter=delimiter):
                if cells:
                    spans.extend((at, end - at))
                at = end
        except csv.Error as e:
            damage = f"row at byte {at}: {e}"
        spans = np.array(spans, np.int64).reshape(-1, 2)
        pieces = []
        for at, size in spans[[0, -1]].tolist() if len(spans) else ():
            f.seek(at)
            pieces.append(f.read(size))
    if damage is None and _is_open(pieces[-1:], delimiter):
        spans, damage = spans[:-1], f"row at byte {spans[-1][0]}: a quote that is never closed"
    return spans[1:], cells_of(pieces[0], delimiter) if len(pieces) else [], damage


def _is_open(last: list[bytes], delimiter: str) -> bool:
    """Whether a table's last record ends inside a quote, which takes all rows behind it into one cell."""
    try:
        list(csv.reader(io.StringIO(b"".join(last).decode("latin-1"), newline=""), delimiter=delimiter, strict=True))
    except csv.Error as e:
        return "unexpected end" in str(e)
    return False


def first_row(f, delimiter: str) -> list[str]:
    """The cells of the first record of an open CSV or TSV; none of it beyond that is read."""
    taken = []
    lines = (taken.append(line) or line.decode("latin-1") for line in iter(lambda: f.readline(limits.MAX_TEXT), b""))
    next(filter(None, csv.reader(lines, delimiter=delimiter)), None)
    return cells_of(b"".join(taken).lstrip(b"\r\n"), delimiter)


def cells_of(raw: bytes, delimiter: str) -> list[str]:
    """The cells of one record of a CSV or TSV.

    Raises:
        ValueError: it is not UTF-8, or no record.
    """
    try:
        return next(csv.reader(io.StringIO(limits.decode(raw), newline=""), delimiter=delimiter), [])
    except csv.Error as e:
        raise ValueError(str(e)) from None


def gunzip(path: str | Path, out) -> str | None:
    """Unpacks a file into an open one, cut after the last whole line if it is damaged or a bomb; returns the damage."""
    damage, whole = None, 0  # whole: bytes up to the end of the last whole line
    with open(path, "rb") as f, gzip.GzipFile(fileobj=f) as packed:
        while damage is None:
            try:
                data = packed.read1(UNPACK)  # not `read`: it loses what comes right before the damage
            except EOFError:
                damage = "cut off"
            except (gzip.BadGzipFile, zlib.error) as e:
                damage = str(e)
            else:
                if not data:
                    return None
                if b"\n" in data:
                    whole = out.tell() + data.rindex(b"\n") + 1
                out.write(data)
                if out.tell() > max(limits.UNPACKED, limits.RATIO * f.tell()):
                    damage = f"unpacks to more than {limits.RATIO} times its size: taken for a decompression bomb"
    out.seek(whole)
    out.truncate()
    return damage
