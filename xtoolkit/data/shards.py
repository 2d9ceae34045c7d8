"""Reads samples out of shards at any place: tars of pictures, and files of one text a line, here or remote."""

import os
from collections import OrderedDict

import numpy as np

from xtoolkit.data import index, limits, paths
from xtoolkit.data.remote import Cache
from xtoolkit.data.errors import BadSample, DeadShard

OPEN_FILES = 128


class Shards:
    """The samples of several files, numbered through. Safe to fork: reads do not share a file position.

    Args:
        files: ``.tar`` (``key.jpg|png|webp`` with ``key.json`` and ``key.txt``), ``.jsonl``, ``.jsonl.gz`` or ``.txt``;
            a path, a URL or a pipe each.
        cache: where remote ones are kept.

    Attributes:
        damaged: {file: what is wrong}; the samples before the damage are served.
        dead: the remote shards of which not even the index can be had; they have no samples.
    """

    def __init__(self, files: list[str], cache: Cache | None = None):
        self.files, self.damaged, self.dead = list(files), {}, []
        remote = cache.indexes([f for f in self.files if paths.is_remote(f)]) if cache else {}
        self._cache, self._indexes = cache, []
        for path in self.files:
            found = remote[path] if path in remote else _load(path)
            if isinstance(found, DeadShard):
                self.dead.append(found)
                found = _NOTHING
            self._indexes.append(found)
            if found.header["damage"]:
                self.damaged[path] = f"{found.header['damage']}; {len(found)} samples before it are served"
        self._ends = np.cumsum([len(i) for i in self._indexes], dtype=np.int64)
        self._open = OrderedDict()

    @property
    def counts(self) -> list[int]:
        """Samples of each file."""
        return [len(i) for i in self._indexes]

    @property
    def remote(self) -> bool:
        """Whether some file is remote."""
        return any(map(paths.is_remote, self.files))

    def samples_of(self, file: str) -> int:
        return sum(len(i) for f, i in zip(self.files, self._indexes) if f == file)

    def bytes_of_largest(self, n: int) -> int:
        """Bytes of the ``n`` largest remote shards."""
        sizes = [max(i.header["size"], i.header["bytes"] or 0) for f, i in zip(self.files, self._indexes)
                 if paths.is_remote(f) and len(i)]
        return sum(sorted(sizes)[-n:])

    def ahead(self, shards: list[int]) -> list[tuple[str, dict]]:
        """The remote ones of some files, by number, as ``Cache.ahead`` takes them."""
        return [(self.files[s], self._indexes[s].header) for s in shards
                if len(self._indexes[s]) and paths.is_remote(self.files[s])]

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    def __getstate__(self):
        return self.__dict__ | {"_open": OrderedDict()}

    def column(self, *names: str) -> np.ndarray:
        """One column of the index over all shards, such as ``elements``: as many numbers as there are samples."""
        return np.concatenate([i.column(*names) for i in self._indexes if len(i)] or [np.empty(0, np.int64)])

    def lengths(self, samples: np.ndarray) -> np.ndarray:
        """Bytes (n,) int64 of the texts of some samples (n,) int64, read from the indexes of their shards alone."""
        found, which = np.zeros(len(samples), np.int64), np.searchsorted(self._ends, samples, side="right")
        for shard in np.unique(which).tolist():
            rows = samples[which == shard] - (self._ends[shard] - len(self._indexes[shard]))
            found[which == shard] = self._indexes[shard].column("text", "size")[rows]
        return found

    def close(self) -> None:
        while self._open:
            os.close(self._open.popitem()[1])

    def file(self, sample: int) -> str:
        return self.files[self._find(sample)[0]]

    def name(self, sample: int) -> str:
        """The sample's key in its tar, or its line in its file."""
        shard, row = self._find(sample)
        record = self._record(shard, row)
        return record["key"].decode("utf-8", "replace") if "key" in record.dtype.names else f"text {row + 1}"

    def bad(self, kind: str, sample: int, detail: str) -> BadSample:
        return BadSample(kind, self.file(sample), f"{self.name(sample)}: {detail}")

    def read(self, sample: int, part: str) -> bytes | None:
        """The bytes of one member (``image``, ``json``, ``txt`` or ``text``); None where the sample has none.

        Raises:
            BadSample: the file ended before them, or cannot be had; they are refused, or too many.
        """
        shard, row = self._find(sample)
        at, size = self._record(shard, row)[part].tolist()
        if not size:
            return None
        if at == index.REFUSED:
            raise self.bad("refused member", sample, f"its {part} is a link, a device, or named so that it leads out of the tar")
        if size > limits.largest(part):
            raise self.bad("too large", sample, f"its {part} has {size:,} bytes, more than {limits.largest(part):,}")
        try:
            data = self._bytes(shard, at, size)
        except (OSError, OverflowError) as e:
            raise self.bad("unreadable shard", sample, str(e))
        if len(data) != size:
            raise self.bad("unreadable shard", sample, f"{size} bytes expected at {at}, {len(data)} found")
        return data

    def meta(self, sample: int) -> dict:
        """The json of a sample, and its ``.txt`` as ``caption`` where the json has none.

        Raises:
            BadSample: the json is broken.
        """
        raw, meta = self.read(sample, "json"), {}
        if raw is not None:
            meta = self._parse(raw, sample)
        if not meta.get("captions") and not meta.get("caption"):
            text = self.read(sample, "txt")
            if text is not None:
                meta["caption"] = text.decode("utf-8", "replace")
        return meta

    def text(self, sample: int) -> str:
        """The text of a line.

        Raises:
            BadSample: the line is not JSON, or has no ``text``.
        """
        raw = self.read(sample, "text")
        if paths.ending(self.file(sample)) == ".txt":
            return raw.decode("utf-8", "replace").strip()
        text = self._parse(raw, sample).get("text")
        if not isinstance(text, str):
            raise self.bad("broken json", sample, 'the line has no "text": "..."')
        return text

    def _parse(self, raw: bytes, sample: int) -> dict:
        try:
            value = limits.parse(raw)
        except ValueError as e:
            raise self.bad("broken json", sample, str(e))
        if not isinstance(value, dict):
            raise self.bad("broken json", sample, f"an object is expected, not {type(value).__name__}")
        return value

    def _find(self, sample: int) -> tuple[int, int]:
        shard = int(np.searchsorted(self._ends, sample, side="right"))
        return shard, int(sample - (self._ends[shard - 1] if shard else 0))

    def _record(self, shard: int, row: int) -> np.void:
        """The record of one sample, read from the index file: what is mapped into memory would stay there."""
        found = self._indexes[shard]
        if found.records is not None:
            return found.records[row]
        try:
            descriptor = self._descriptor(found.file)
        except FileNotFoundError:  # deleted meanwhile: it is made anew
            path = self.files[shard]
            found = self._indexes[shard] = self._cache.index(path) if paths.is_remote(path) else _load(path)
            return self._record(shard, row)
        raw = os.pread(descriptor, found.dtype.itemsize, found.start + row * found.dtype.itemsize)
        return np.frombuffer(raw, found.dtype)[0]

    def _bytes(self, shard: int, at: int, size: int) -> bytes:
        path, header = self.files[shard], self._indexes[shard].header
        if not paths.is_remote(path):
            return os.pread(self._descriptor(header.get("unpacked") or path), size, at)
        # Not kept open: what the cache deletes would go on taking room.
        descriptor = self._cache.open(path, header)
        try:
            size = min(size, max(0, os.fstat(descriptor).st_size - at))  # a size comes from the server's index
            return os.pread(descriptor, size, at)
        finally:
            os.close(descriptor)

    def _descriptor(self, file: str) -> int:
        if file in self._open:
            self._open.move_to_end(file)
            return self._open[file]
        if len(self._open) >= OPEN_FILES:
            os.close(self._open.popitem(last=False)[1])
        self._open[file] = os.open(file, os.O_RDONLY | os.O_CLOEXEC)
        return self._open[file]


def _load(path: str) -> index.Index:
    """The index of a shard on disk; its unpacked copy, if it has one, is there too."""
    if path.endswith(".tar"):
        return index.load(path, index.build_tar)
    found = index.load(path, index.build_lines)
    unpacked = found.header.get("unpacked")
    if unpacked and not os.path.exists(unpacked):
        index.build_lines(path)
    return found


_NOTHING = index.Index({"size": 0, "bytes": 0, "count": 0, "damage": None}, index.TAR, None,
                       records=np.empty(0, index.TAR))
