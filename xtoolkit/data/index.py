"""The byte index of one shard: where each sample lies in the file, built once and kept beside it.

An index file is one line of JSON (what it was built from, and what was damaged), then the records. They stay on disk
and are read one at a time, so that memory and open files grow neither with their number nor with that of the shards.
"""

import json
import os
import tarfile
import tempfile
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from xtoolkit.batch import stable_key
from xtoolkit.data import limits

VERSION = 1
IMAGES = frozenset({"jpg", "jpeg", "png", "webp"})
KEY_BYTES = 64
CHUNK = 1 << 24  # bytes of lines looked at in one go
UNPACK = 1 << 20  # bytes unpacked in one go, however few they are unpacked from
MAX_HEADER = 1 << 16  # bytes; what is no index has no end of line
REFUSED = 2**64 - 1  # the place of a member that is not read: a link, a device, or a name that leads out of the archive
SPAN = [("at", "<u8"), ("size", "<u4")]
# One record a sample. A size of 0 means that the sample has no such member.
TAR = np.dtype([("key", f"S{KEY_BYTES}"), ("image", SPAN), ("json", SPAN), ("txt", SPAN), ("elements", "<u2")])
LINE = np.dtype([("text", SPAN)])


@dataclass(frozen=True)
class Index:
    """Where the samples of one shard are.

    Attributes:
        header: ``size`` (bytes of the shard), ``count`` (of samples), ``damage`` (what is wrong with it, or None).
        dtype: TAR or LINE.
        file: holds the records from byte ``start`` on; None where no place could be written.
        records: the records themselves where there is no file.
    """

    header: dict
    dtype: np.dtype
    file: str | None
    start: int = 0
    records: np.ndarray | None = None

    def __len__(self) -> int:
        return self.header["count"]

    def column(self, *names: str) -> np.ndarray:
        """A copy of one column, such as ``elements`` or (``text``, ``size``)."""
        records = self.records
        if records is None:
            records = np.memmap(self.file, self.dtype, mode="r", offset=self.start, shape=(len(self),)) if len(self) \
                else np.empty(0, self.dtype)
        for name in names:
            records = records[name]
        return np.array(records)


def load(path: str, build) -> Index:
    """The index of a shard on disk; built by ``build(path) -> (records, header)`` where none is valid.

    It lies beside the shard as ``NAME.idx``, or in the cache folder where the shard's own cannot be written.
    """
    stamp = os.stat(path)
    made_from = {"version": VERSION, "size": stamp.st_size, "mtime": stamp.st_mtime_ns}
    for file in beside(path, ".idx"):
        found = read(file, made_from)
        if found is not None and _serves(found, path):
            return found
    records, header = build(path)
    header = describe(records, made_from | header)
    file = write_beside(path, ".idx", lambda f: write(f, records, header))
    return (file and read(file, made_from)) or Index(header, records.dtype, None, records=records)


def read(file: Path, made_from: dict) -> Index | None:
    """The index in a file; None where there is none that is whole and was made from just that."""
    try:
        with open(file, "rb") as f:
            header = json.loads(f.readline(MAX_HEADER))
            start, end = f.tell(), os.fstat(f.fileno()).st_size
    except (OSError, ValueError):
        return None
    if not isinstance(header, dict) or any(header.get(k) != v for k, v in made_from.items()):
        return None
    if not isinstance(header.setdefault("damage", None), str | None):
        return None
    count, dtype = header.get("count"), LINE if header.get("dtype") == "line" else TAR
    if type(count) is not int or type(header.get("size")) is not int or end != start + count * dtype.itemsize:
        return None
    return Index(header, dtype, str(file), start)


def _serves(found: Index, path: str) -> bool:
    """Whether an index is of the shard's kind, and names no other file as its text: it may have come with the shard."""
    return (found.dtype == TAR) == path.endswith(".tar") and \
        found.header.get("unpacked") in (None, *map(str, beside(path, ".unpacked")))


def describe(records: np.ndarray, header: dict) -> dict:
    """The header of an index with what its reader must know of the records."""
    return header | {"dtype": "line" if records.dtype == LINE else "tar", "count": len(records)}


def write(f, records: np.ndarray, header: dict) -> None:
    f.write(json.dumps(header).encode() + b"\n")
    f.write(records.tobytes())


def home() -> Path:
    """The folder of what the toolkit keeps on this machine."""
    return Path(os.environ.get("XTOOLKIT_HOME") or Path.home() / ".cache" / "xtoolkit").expanduser()


def beside(path: str, ending: str) -> tuple[Path, Path]:
    """The two places of a file that belongs to a shard: beside it, and in the cache folder."""
    real = os.path.realpath(path)
    return Path(path + ending), home() / "index" / f"{stable_key(real):016x}-{os.path.basename(path)}{ending}"


def write_beside(path: str, ending: str, write) -> Path | None:
    """Writes a file that belongs to a shard, whole or not at all; returns where. None: neither place can be written."""
    for file in beside(path, ending):
        try:
            replace(file, write)
            return file
        except OSError:
            continue
    return None


def replace(file: Path, write) -> None:
    """Writes a file by ``write(f)`` under another name and renames it, so that no reader ever meets half of it."""
    file.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=file.parent, prefix=file.name)
    try:
        with os.fdopen(handle, "wb") as f:
            write(f)
        os.chmod(temporary, 0o644)
        os.replace(temporary, file)
    except BaseException:
        os.unlink(temporary)
        raise


def build_tar(path: str) -> tuple[np.ndarray, dict]:
    """The index of a tar in the webdataset layout. Members that share a name up to the first dot are one sample.

    A link, a device, or a name that leads out of the archive has no place to be read from (``REFUSED``): its sample is
    drawn, found bad and counted. A sample without a picture is passed over. A tar that is cut off or damaged serves the
    samples before the damage.
    """
    end = os.path.getsize(path)
    rows, records, damage = {}, np.zeros(1024, TAR), None
    with open(path, "rb") as raw:
        if raw.read(2) == b"\x1f\x8b":
            raise ValueError(f"{path}: a compressed tar cannot be read at any place: gunzip it")
        raw.seek(0)
        try:
            with tarfile.open(fileobj=raw, mode="r:") as tar:
                while (member := tar.next()) is not None:
                    tar.members.clear()  # else tarfile keeps an object of each
                    if member.isreg() and member.offset_data + member.size > end:
                        damage = f"cut off inside {member.name}"
                        break
                    key, part = _member(member)
                    if part is not None:
                        row = rows.setdefault(key, len(rows))
                        if row == len(records):
                            records = np.concatenate([records, np.zeros(len(records), TAR)])
                        if not records[row]["key"]:
                            records[row]["key"] = key[-KEY_BYTES:]
                        if not records[row][part]["at"]:
                            records[row][part] = _span(member)
                # tarfile takes a header that it cannot read for the end; the real end is a block of zeros.
                raw.seek(tar.offset)
                after = raw.read(tarfile.BLOCKSIZE)
                if damage is None and (not after or after.strip(b"\0")):
                    damage = f"no header at byte {tar.offset}" if after else f"cut off at byte {tar.offset}: no end"
        except (tarfile.TarError, EOFError, ValueError, OverflowError, RecursionError) as e:
            damage = str(e)
        records = records[:len(rows)]
        records = records[records["image"]["at"] > 0].copy()
        for record in records:
            at, size = record["json"].tolist()
            if at == REFUSED:
                record["elements"] = 1
            elif at:
                raw.seek(at)
                record["elements"] = _elements(raw.read(min(size, limits.MAX_TEXT)))
    return records, {"damage": damage}


def _member(member: tarfile.TarInfo) -> tuple[bytes, str | None]:
    """The key of the sample that a member belongs to, and which part of it; None: it is none that is read."""
    folder, slash, base = member.name.rpartition("/")
    stem, _, ending = base.partition(".")
    ending = ending.lower()
    part = "image" if ending in IMAGES else ending
    if not stem or part not in ("image", "json", "txt") or member.isdir():
        return b"", None
    return f"{folder}{slash}{stem}".encode("utf-8", "surrogateescape"), part


def _span(member: tarfile.TarInfo) -> tuple[int, int]:
    """Where the bytes of a member are, and how many."""
    outside = member.name.startswith("/") or ".." in member.name.split("/")
    if outside or not member.isreg() or member.sparse is not None:
        return REFUSED, 1
    return member.offset_data, min(member.size, 2**32 - 1)


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


def build_lines(path: str) -> tuple[np.ndarray, dict]:
    """The index of a text file: the bytes of each line that is not blank. A ``.gz`` is unpacked once, beside it."""
    if not path.endswith(".gz"):
        return lines(path), {"damage": None, "unpacked": None}
    damage = []
    unpacked = write_beside(path, ".unpacked", lambda f: damage.append(gunzip(path, f)))
    if unpacked is None:
        raise OSError(f"{path}: cannot be unpacked: neither its folder nor XTOOLKIT_HOME can be written")
    return lines(unpacked), {"damage": damage[-1], "unpacked": str(unpacked)}


def lines(path: str | Path) -> np.ndarray:
    """The records of the lines of a text file; no more than ``CHUNK`` bytes of it are in memory, however long a line is."""
    spans, at = [], 0
    begun, said = 0, False  # the line that is under way: where it began, and whether it says anything
    with open(path, "rb") as f:
        while block := f.read(CHUNK):
            pieces = block.split(b"\n")
            filled = np.fromiter((bool(piece.strip()) for piece in pieces), bool, len(pieces))
            filled[0] |= said
            ends = at + np.cumsum([len(piece) + 1 for piece in pieces])
            starts = np.concatenate([[begun], ends[:-1]])
            spans.append(np.stack([starts, ends - starts], 1)[:-1][filled[:-1]])
            at, begun, said = at + len(block), int(starts[-1]), bool(filled[-1])
    if said:
        spans.append(np.array([[begun, at - begun]]))
    records = np.zeros(sum(map(len, spans)), LINE)
    if spans:
        records["text"]["at"], size = np.concatenate(spans).T
        records["text"]["size"] = size.clip(max=2**32 - 1)
    return records


def gunzip(path: str | Path, out) -> str | None:
    """Unpacks a file into an open one, cut after the last whole line if it is damaged or a bomb; returns the damage."""
    damage = member = None
    whole = 0  # bytes up to the end of the last whole line
    with open(path, "rb") as f:
        while damage is None and (block := f.read(1 << 16)):
            more = True
            while more:
                member = member or zlib.decompressobj(wbits=31)  # 31: a gzip header and its checksum
                try:
                    data = member.decompress(block, UNPACK)
                except zlib.error as e:
                    damage = str(e)
                    break
                if b"\n" in data:
                    whole = out.tell() + data.rindex(b"\n") + 1
                out.write(data)
                if out.tell() > max(limits.UNPACKED, limits.RATIO * f.tell()):
                    damage = f"unpacks to more than {limits.RATIO} times its size: taken for a decompression bomb"
                    break
                if member.eof:
                    block, member = member.unused_data, None
                    more = bool(block)
                else:  # a full answer may have more behind it, even where the input is used up
                    block = member.unconsumed_tail
                    more = bool(block) or len(data) == UNPACK
    if damage is None and member is not None:
        damage = "cut off"
    if damage:
        out.seek(whole)
        out.truncate()
    return damage
