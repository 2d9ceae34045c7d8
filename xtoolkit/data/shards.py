"""Reads samples out of shards at any place: tars and tables of pictures, and files of one text a line, here or remote."""

import bisect
import hashlib
import itertools
import os
from collections.abc import Iterable
from functools import lru_cache

import numpy as np

from xtoolkit.data import index, limits, paths, scan, tables
from xtoolkit.data.errors import BadSample, DeadShard
from xtoolkit.data.remote import Cache

OPEN_FILES = 128


class Shards:
    """The samples of several files, numbered through. Safe to fork: reads do not share a file position.

    Args:
        files: ``.tar``, ``.jsonl[.gz]``, ``.txt[.gz]``, ``.csv`` or ``.tsv``; a path, a URL or a pipe each.
        cache: where remote ones are kept.
        pictures: lines of JSON are samples with pictures, not texts.
        images: the folder of the pictures that tables name; None: each table's own.

    Attributes:
        damaged: {file: what is wrong}; the samples before the damage are served.
        left_out: {file: {reason: number}} of what is in a file and not in its samples.
        dead: the remote shards of which not even the index can be had; they have no samples.
    """

    def __init__(self, files: list[str], cache: Cache | None = None, pictures: bool = False, images: str | None = None):
        self.files, self.damaged, self.left_out, self.dead = list(files), {}, {}, []
        self._cache, self._pictures, self._images = cache, pictures, images and os.path.expanduser(images)
        self._remote, self._indexes = [paths.is_remote(f) for f in files], []
        self._open = lru_cache(OPEN_FILES)(lambda file: _Descriptor(os.open(file, os.O_RDONLY | os.O_CLOEXEC)))
        ahead = cache.indexes([f for f, remote in zip(files, self._remote) if remote]) if cache else {}
        for shard, path in enumerate(self.files):
            found = ahead[path] if path in ahead else self._load(shard)
            if isinstance(found, DeadShard):
                self.dead.append(found)
                found = _NOTHING
            self._indexes.append(found)
            if found.header["damage"]:
                self.damaged[path] = f"{found.header['damage']}; {len(found)} samples before it are served"
            empty = {} if len(found) or found is _NOTHING or found.header["damage"] else {"files without a sample": 1}
            if left_out := found.header["left_out"] or empty:
                self.left_out[path] = left_out
        self._tables = [i.header["kind"] in index.TABLES for i in self._indexes]
        self._ends = list(itertools.accumulate(map(len, self._indexes)))

    def _load(self, shard: int) -> index.Index:
        path = self.files[shard]
        return self._cache.index(path) if self._remote[shard] else index.load(path, index.kind_of(path, self._pictures))

    @property
    def digest(self) -> str | None:
        """Of what all files hold, in their order; None where it is not known of one of them."""
        return _hash([i.header["digest"] for i in self._indexes])

    @property
    def version(self) -> str | None:
        """Of the ETags or dates that servers gave the remote files; None where one is not known: a server may not tell, once."""
        return _hash([i.header.get("tag") for i, remote in zip(self._indexes, self._remote) if remote])

    def why_empty(self) -> str | None:
        """Which file has nothing that can be read, and why, where none has; None: there are samples."""
        if len(self):
            return None
        if self.dead:
            return f"{self.dead[0].path}: {self.dead[0].detail}; no sample can be read of the {len(self.files)} shards"
        for file, found in zip(self.files, self._indexes):
            if why := found.header["damage"] or ", ".join(f"{n} {what}" for what, n in found.header["left_out"].items()):
                return f"{file}: no sample is left of it: {why}"
        return f"{self.files[0]}: it has no sample" if self.files else "it names no file"

    @property
    def counts(self) -> list[int]:
        """Samples of each file."""
        return [len(i) for i in self._indexes]

    @property
    def remote(self) -> bool:
        return any(self._remote)

    def samples_of(self, file: str) -> int:
        return sum(len(i) for f, i in zip(self.files, self._indexes) if f == file)

    def bytes_of_largest(self, n: int) -> int:
        """Bytes of the ``n`` largest remote shards."""
        sizes = [max(header["size"], header["bytes"] or 0) for _, header in self.ahead(range(len(self.files)))]
        return sum(sorted(sizes)[-n:])

    def ahead(self, shards: Iterable[int]) -> list[tuple[str, dict]]:
        """The remote ones of some files, by number, as ``Cache.ahead`` takes them."""
        return [(self.files[s], self._indexes[s].header) for s in shards if self._remote[s] and len(self._indexes[s])]

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

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
        self._open.cache_clear()

    def file(self, sample: int) -> str:
        return self.files[self._find(sample)[0]]

    def name(self, sample: int) -> str:
        """The sample's key in its tar, or its number in its file."""
        shard, row = self._find(sample)
        if self._indexes[shard].header["kind"] == "tar":
            return self._record(shard, row)["key"].decode("utf-8", "replace")
        return f"{'row' if self._tables[shard] else 'text'} {row + 1}"

    def bad(self, kind: str, sample: int, detail: str) -> BadSample:
        return BadSample(kind, self.file(sample), f"{self.name(sample)}: {detail}")

    def read(self, sample: int, part: str) -> bytes | None:
        """The bytes of one part: of a tar's sample ``image`` or a member's ending, such as ``json``; of a line ``text``.

        Raises:
            BadSample: the file ended before them, or cannot be had; they are refused, or too many.

        Returns:
            None where the sample has no such part.
        """
        shard, row = self._find(sample)
        if part == "image" and self._tables[shard]:
            return self.image(sample, self.meta(sample).get("image"))
        record = self._record(shard, row)
        at, size = record[part].tolist() if part in record.dtype.names else (0, 0)
        if not size:
            return None
        if at == scan.REFUSED:
            raise self.bad("refused member", sample, f"its {part} is a link, a device, or named so that it leads out of the tar")
        if size > (most := limits.MAX_IMAGE if part == "image" else limits.MAX_TEXT):
            raise self.bad("too large", sample, f"its {part} has {size:,} bytes, more than {most:,}")
        path, header = self.files[shard], self._indexes[shard].header
        try:
            data = self._cache.read(path, header, at, size) if self._remote[shard] else \
                os.pread(self._open(header["unpacked"] or path), size, at)
            if len(data) != size:
                raise EOFError(f"{size} bytes expected at {at}, {len(data)} found")
        except (OSError, OverflowError, EOFError) as e:
            raise self.bad("unreadable shard", sample, str(e))
        return data

    def image(self, sample: int, name) -> bytes:
        """The bytes of a picture that a sample names, in the folder of its pictures.

        Raises:
            BadSample: there is none, or its name leads out of the folder.
        """
        return tables.picture(self._root(self._find(sample)[0]), name, lambda kind, detail: self.bad(kind, sample, detail))

    def meta(self, sample: int) -> dict:
        """The json of a sample, with its ``.txt`` as ``caption`` where the json has none; or the row of a table.

        Raises:
            BadSample: it is broken.
        """
        shard = self._find(sample)[0]
        if self._tables[shard]:
            return self._row(shard, sample)
        meta, wrong = {}, "broken json"
        try:
            meta = limits.parse(self.read(sample, "json") or b"{}", dict)
            wrong = "not utf-8"
            if not tables.captions(meta) and (text := self.read(sample, "txt")) is not None:
                meta["caption"] = limits.decode(text)
        except ValueError as e:
            raise self.bad(wrong, sample, str(e))
        return meta

    def _row(self, shard: int, sample: int) -> dict:
        """The row of a table; its picture is what its whole path says, where the row has no ``image_id``."""
        header, bad = self._indexes[shard].header, lambda kind, detail: self.bad(kind, sample, detail)
        row = tables.sample(self.read(sample, "text"), header["kind"], header["columns"], bad)
        if row.get("image") and row.get("image_id") in (None, ""):
            row["image_id"] = f"{self._root(shard)}/{row['image']}"
        return row

    def text(self, sample: int) -> str:
        """The text of a line, or of a row.

        Raises:
            BadSample: it is not UTF-8 or not JSON, or has no text.
        """
        shard = self._find(sample)[0]
        if self._tables[shard]:
            return next(iter(tables.captions(self.meta(sample))), "")
        wrong = "not utf-8"
        try:
            line = limits.decode(self.read(sample, "text"))
            wrong = "broken json"
            text = line.strip() if paths.ending(self.files[shard]).startswith(".txt") else limits.parse(line, dict).get("text")
        except ValueError as e:
            raise self.bad(wrong, sample, str(e))
        if not isinstance(text, str):
            raise self.bad("broken json", sample, 'the line has no "text": "..."')
        return text

    def _root(self, shard: int) -> str:
        return os.path.abspath(self._images or os.path.dirname(self.files[shard]))

    def _find(self, sample: int) -> tuple[int, int]:
        shard = bisect.bisect_right(self._ends, sample)
        return shard, int(sample) - (self._ends[shard - 1] if shard else 0)

    def _record(self, shard: int, row: int) -> np.void:
        """The record of one sample, read from the index file: what is mapped into memory would stay there."""
        found = self._indexes[shard]
        if found.records is not None:
            return found.records[row]
        try:
            raw = os.pread(self._open(found.file), found.dtype.itemsize, found.start + row * found.dtype.itemsize)
        except FileNotFoundError:  # deleted meanwhile: it is made anew
            self._indexes[shard] = self._load(shard)
            return self._record(shard, row)
        return np.frombuffer(raw, found.dtype)[0]


class _Descriptor(int):
    """Of an open file, which is closed with the last that holds it."""

    def __del__(self):
        os.close(self)


def _hash(texts: list[str | None]) -> str | None:
    return None if None in texts else hashlib.blake2b("".join(texts).encode(), digest_size=16).hexdigest()


_NOTHING = index.Index({"kind": "lines", "size": 0, "bytes": 0, "count": 0, "damage": None, "left_out": {}, "digest": None},
                       scan.record("lines", []), None, records=np.empty(0, scan.record("lines", [])))
