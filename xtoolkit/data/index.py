"""The byte index of one shard: where each sample lies in the file, built once and kept beside it.

An index file is one line of JSON (what it was built from, which parts its records have, what was damaged or left out),
then the records. They stay on disk and are read one at a time, so that memory and open files grow neither with their
number nor with that of the shards.
"""

import json
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from xtoolkit.batch import stable_key
from xtoolkit.data import paths, scan

VERSION = 4
MAX_HEADER = 1 << 16  # bytes; what is no index has no end of line
TABLES = ("jsonl", "csv", "tsv")  # a row is a sample whose picture lies in a file of its own


@dataclass(frozen=True)
class Index:
    """Where the samples of one shard are.

    Attributes:
        header: ``kind`` (see ``kind_of``), ``parts`` (what its samples consist of), ``count`` (of samples), ``size`` (bytes of
            the shard), ``damage`` (what is wrong with it, or None), ``left_out`` ({reason: number}), ``digest`` (of what the
            shard holds), ``columns`` (of a CSV or TSV).
        dtype: of the records.
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
        records = np.empty(0, self.dtype) if self.records is None else self.records
        if self.records is None and len(self):
            records = np.memmap(self.file, self.dtype, mode="r", offset=self.start, shape=(len(self),))
        for name in names:
            records = records[name]
        return np.array(records)


def kind_of(path: str, tables: bool = False) -> str:
    """How a shard is indexed: ``tar``, ``lines``, ``csv``, ``tsv``; ``jsonl`` where its lines are samples with pictures."""
    kind = paths.ending(path).removesuffix(".gz")[1:]
    return kind if kind in ("tar", "csv", "tsv") or kind == "jsonl" and tables else "lines"


def build(file: str | Path, kind: str) -> tuple[np.ndarray, dict]:
    """The records of an unpacked shard, and the header: what is known of it but ``version`` and ``mtime``.

    Raises:
        ValueError: it is none that can be read at any place.
    """
    records, about = scan.tar(file) if kind == "tar" else scan.rows(file, kind)
    about = {"kind": kind, "size": os.path.getsize(file), "left_out": {}, "columns": None, "unpacked": None} | about
    parts = [name for name in records.dtype.names if name not in ("key", "elements")]
    return records, about | {"count": len(records), "parts": parts}


def load(path: str, kind: str) -> Index:
    """The index of a shard on disk; built where none is valid. A ``.gz`` is unpacked first, and stays so.

    It lies beside the shard as ``NAME.idx`` (``NAME.rows.idx`` where JSON Lines are samples with pictures), or in the cache
    folder where the shard's own cannot be written.
    """
    stamp = os.stat(path)
    made_from = {"version": VERSION, "kind": kind, "size": stamp.st_size, "mtime": stamp.st_mtime_ns}
    ending = ".rows.idx" if kind == "jsonl" else ".idx"
    for file in beside(path, ending):
        found = read(file, made_from)
        # An index may have come with its shard: it names no other file of this machine as its text.
        if found is not None and found.header["unpacked"] in (None, *map(str, beside(path, ".unpacked"))):
            if found.header["unpacked"] and not os.path.exists(found.header["unpacked"]):
                _unpack(path)
            return found
    unpacked, damage = _unpack(path) if path.lower().endswith(".gz") else (None, None)
    records, header = build(unpacked or path, kind)
    header |= made_from | {"unpacked": unpacked, "damage": damage or header["damage"]}
    file = write_beside(path, ending, lambda f: write(f, records, header))
    return (file and read(file, made_from)) or Index(header, records.dtype, None, records=records)


def _unpack(path: str) -> tuple[str, str | None]:
    damage = []
    unpacked = write_beside(path, ".unpacked", lambda f: damage.append(scan.gunzip(path, f)))
    if unpacked is None:
        raise OSError(f"{path}: cannot be unpacked: neither its folder nor XTOOLKIT_HOME can be written")
    return str(unpacked), damage[-1]


def read(file: Path, made_from: dict) -> Index | None:
    """The index in a file; None where there is none that is whole and was made from just that."""
    try:
        with open(file, "rb") as f:
            header = json.loads(f.readline(MAX_HEADER))
            start, end = f.tell(), os.fstat(f.fileno()).st_size
    except (OSError, ValueError, RecursionError):
        return None
    if not isinstance(header, dict) or any(header.get(k) != v for k, v in made_from.items()) or \
            any(not isinstance(header.setdefault(name, None), known) for name, known in _KNOWN.items()) or \
            not all(type(number) is int for number in header["left_out"].values()) or \
            not all(isinstance(name, str) for name in header["columns"] or ()):
        return None
    dtype = scan.record(header["kind"], header["parts"])
    if dtype is None or not dtype.itemsize or end != start + header["count"] * dtype.itemsize:
        return None
    return Index(header, dtype, str(file), start)


_KNOWN = {"kind": str, "parts": list, "count": int, "size": int, "damage": str | None, "left_out": dict,
          "digest": str | None, "columns": list | None, "unpacked": str | None}


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
