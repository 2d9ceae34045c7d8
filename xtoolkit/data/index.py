"""The byte index of one shard: where each sample lies in the file, built once and kept beside it.

An index file is one line of JSON (what it was built from, and what was damaged), then the records, which are mapped
into memory: neither their number nor the number of workers makes Python objects.
"""

import json
import os
import tarfile
import tempfile
import zlib
from pathlib import Path

import numpy as np

from xtoolkit.batch import stable_key

VERSION = 1
IMAGES = frozenset({"jpg", "jpeg", "png", "webp"})
KEY_BYTES = 64
CHUNK = 1 << 24  # bytes of lines looked at in one go
SPAN = [("at", "<u8"), ("size", "<u4")]
# One record a sample. A size of 0 means that the sample has no such member.
TAR = np.dtype([("key", f"S{KEY_BYTES}"), ("image", SPAN), ("json", SPAN), ("txt", SPAN), ("elements", "<u2")])
LINE = np.dtype([("text", SPAN)])


def load(path: str, build) -> tuple[np.ndarray, dict]:
    """The records of a shard's index and its header; built by ``build(path) -> (records, header)`` where none is valid.

    The index lies beside the shard as ``NAME.idx``, or in the cache folder where the shard's own cannot be written.
    """
    stamp = os.stat(path)
    made_from = {"version": VERSION, "size": stamp.st_size, "mtime": stamp.st_mtime_ns}
    for file in beside(path, ".idx"):
        found = _read(file, made_from)
        if found is not None:
            return found
    records, header = build(path)
    header = made_from | header | {"dtype": "line" if records.dtype == LINE else "tar", "count": len(records)}
    write_beside(path, ".idx", lambda f: (f.write(json.dumps(header).encode() + b"\n"), f.write(records.tobytes())))
    return records, header


def _read(file: Path, made_from: dict):
    try:
        with open(file, "rb") as f:
            header = json.loads(f.readline())
            start = f.tell()
    except (OSError, ValueError):
        return None
    if not isinstance(header, dict) or any(header.get(k) != v for k, v in made_from.items()):
        return None
    dtype = LINE if header["dtype"] == "line" else TAR
    if file.stat().st_size != start + header["count"] * dtype.itemsize:
        return None
    if header["count"] == 0:
        return np.empty(0, dtype), header
    return np.memmap(file, dtype, mode="r", offset=start, shape=(header["count"],)), header


def beside(path: str, ending: str) -> tuple[Path, Path]:
    """The two places of a file that belongs to a shard: beside it, and in the cache folder."""
    home = Path(os.environ.get("XTOOLKIT_HOME") or Path.home() / ".cache" / "xtoolkit").expanduser()
    real = os.path.realpath(path)
    return Path(path + ending), home / "index" / f"{stable_key(real):016x}-{os.path.basename(path)}{ending}"


def write_beside(path: str, ending: str, write) -> Path | None:
    """Writes a file that belongs to a shard, whole or not at all; returns where. None: neither place can be written."""
    for file in beside(path, ending):
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            handle, temporary = tempfile.mkstemp(dir=file.parent, prefix=file.name)
        except OSError:
            continue
        try:
            with os.fdopen(handle, "wb") as f:
                write(f)
            os.chmod(temporary, 0o644)
            os.replace(temporary, file)
            return file
        except OSError:
            os.unlink(temporary)
    return None


def build_tar(path: str) -> tuple[np.ndarray, dict]:
    """The index of a tar in the webdataset layout. Members that share a name up to the first dot are one sample.

    Only regular files count: a link, a device, or a name that leads out of the archive is passed over, and so is a
    sample without a picture. A tar that is cut off or damaged serves the samples before the damage.
    """
    end = os.path.getsize(path)
    samples, damage = {}, None
    with open(path, "rb") as raw:
        if raw.read(2) == b"\x1f\x8b":
            raise ValueError(f"{path}: a compressed tar cannot be read at any place: gunzip it")
        raw.seek(0)
        try:
            with tarfile.open(fileobj=raw, mode="r:") as tar:
                for member in tar:
                    if member.offset_data + member.size > end:
                        damage = f"cut off inside {member.name}"
                        break
                    _add(samples, member)
                # tarfile takes a header that it cannot read for the end; the real end is a block of zeros.
                raw.seek(tar.offset)
                if damage is None and raw.read(tarfile.BLOCKSIZE).strip(b"\0"):
                    damage = f"no header at byte {tar.offset}"
        except (tarfile.TarError, EOFError, ValueError, OverflowError) as e:
            damage = str(e)
        records = np.zeros(len(samples), TAR)
        n = 0
        for key, parts in samples.items():
            if "image" not in parts:
                continue
            records[n]["key"] = key.encode()[-KEY_BYTES:]
            for part, span in parts.items():
                records[n][part] = span
            if "json" in parts:
                raw.seek(parts["json"][0])
                records[n]["elements"] = _elements(raw.read(parts["json"][1]))
            n += 1
    return records[:n], {"damage": damage}


def _add(samples: dict, member: tarfile.TarInfo) -> None:
    name = member.name
    if not member.isreg() or member.sparse is not None or name.startswith("/") or ".." in name.split("/"):
        return
    folder, _, base = name.rpartition("/")
    stem, dot, ending = base.partition(".")
    ending = ending.lower()
    part = "image" if ending in IMAGES else ending
    if not stem or part not in ("image", "json", "txt") or member.size >= 2**32:
        return
    samples.setdefault(f"{folder}/{stem}" if folder else stem, {}).setdefault(part, (member.offset_data, member.size))


def _elements(raw: bytes) -> int:
    """What a region stream can draw of a sample: its regions, and one more where the whole picture has a caption.

    A broken json counts as one, so that it is drawn, found and reported.
    """
    try:
        meta = json.loads(raw)
    except ValueError:
        return 1
    if not isinstance(meta, dict):
        return 1
    regions = meta.get("regions")
    whole = bool(meta.get("captions") or meta.get("caption"))
    return min(whole + (len(regions) if isinstance(regions, list) else 0), 65535)


def build_lines(path: str) -> tuple[np.ndarray, dict]:
    """The index of a text file: the bytes of each line that is not blank. A ``.gz`` is unpacked once, beside it."""
    damage, unpacked = None, None
    if path.endswith(".gz"):
        data, damage = _gunzip(path)
        unpacked = write_beside(path, ".unpacked", lambda f: f.write(data))
        if unpacked is None:
            raise OSError(f"{path}: cannot be unpacked: neither its folder nor XTOOLKIT_HOME can be written")
    spans = []
    with open(unpacked or path, "rb") as f:
        at = 0
        while lines := f.readlines(CHUNK):
            sizes = np.fromiter((len(line) if line.strip() else 0 for line in lines), np.int64, len(lines))
            starts = at + np.concatenate([[0], np.cumsum([len(line) for line in lines])])
            spans.append((starts[:-1][sizes > 0], sizes[sizes > 0]))
            at = int(starts[-1])
    records = np.zeros(sum(len(s) for s, _ in spans), LINE)
    if spans:
        records["text"]["at"], records["text"]["size"] = map(np.concatenate, zip(*spans))
    return records, {"damage": damage, "unpacked": str(unpacked) if unpacked else None}


def _gunzip(path: str) -> tuple[bytes, str | None]:
    """What can be unpacked, cut after the last whole line if the file is damaged; and the damage."""
    whole, damage, member = bytearray(), None, None
    with open(path, "rb") as f:
        while damage is None and (block := f.read(1 << 16)):
            while block:
                member = member or zlib.decompressobj(wbits=31)  # 31: a gzip header and its checksum
                try:
                    whole += member.decompress(block)
                except zlib.error as e:
                    damage = str(e)
                    break
                block, member = member.unused_data, None if member.eof else member
    if damage is None and member is not None:
        damage = "cut off"
    return bytes(whole[:whole.rfind(b"\n") + 1] if damage else whole), damage
