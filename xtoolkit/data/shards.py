"""Reads samples out of shards at any place: tars of pictures, and files of one text a line."""

import json
import os
from collections import OrderedDict

import numpy as np

from xtoolkit.data import index
from xtoolkit.data.errors import BadSample

OPEN_FILES = 64


class Shards:
    """The samples of several files, numbered through. Safe to fork: reads do not share a file position.

    Args:
        files: ``.tar`` (``key.jpg|png|webp`` with ``key.json`` and ``key.txt``), ``.jsonl``, ``.jsonl.gz`` or ``.txt``.

    Attributes:
        damaged: {file: what is wrong}; the samples before the damage are served.
    """

    def __init__(self, files: list[str]):
        self.files, self.damaged = list(files), {}
        self._records, self._data = [], []
        for path in self.files:
            tar = path.endswith(".tar")
            records, header = index.load(path, index.build_tar if tar else index.build_lines)
            if not tar and header["unpacked"] and not os.path.exists(header["unpacked"]):
                records, header = index.build_lines(path)
            self._records.append(records)
            self._data.append(path if tar else header["unpacked"] or path)
            if header["damage"]:
                self.damaged[path] = f"{header['damage']}; {len(records)} samples before it are served"
        self._ends = np.cumsum([len(r) for r in self._records])
        self._open = OrderedDict()

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    def __getstate__(self):
        return self.__dict__ | {"_open": OrderedDict()}

    def column(self, *names: str) -> np.ndarray:
        """One column of the index over all shards, such as ``regions`` or (``text``, ``size``)."""
        parts = []
        for records in self._records:
            for name in names:
                records = records[name]
            parts.append(np.asarray(records))
        return np.concatenate(parts)

    def close(self) -> None:
        while self._open:
            os.close(self._open.popitem()[1])

    def file(self, sample: int) -> str:
        return self.files[self._find(sample)[0]]

    def name(self, sample: int) -> str:
        """The sample's key in its tar, or its line in its file."""
        shard, row = self._find(sample)
        records = self._records[shard]
        return records["key"][row].decode() if "key" in records.dtype.names else f"text {row + 1}"

    def bad(self, kind: str, sample: int, detail: str) -> BadSample:
        return BadSample(kind, self.file(sample), f"{self.name(sample)}: {detail}")

    def read(self, sample: int, part: str) -> bytes | None:
        """The bytes of one member (``image``, ``json``, ``txt`` or ``text``); None where the sample has none.

        Raises:
            BadSample: the file ended before them.
        """
        shard, row = self._find(sample)
        at, size = self._records[shard][row][part].tolist()
        if not size:
            return None
        try:
            data = os.pread(self._descriptor(shard), size, at)
        except OSError as e:
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
        if self.file(sample).endswith(".txt"):
            return raw.decode("utf-8", "replace").strip()
        text = self._parse(raw, sample).get("text")
        if not isinstance(text, str):
            raise self.bad("broken json", sample, 'the line has no "text": "..."')
        return text

    def _parse(self, raw: bytes, sample: int) -> dict:
        try:
            value = json.loads(raw)
        except ValueError as e:
            raise self.bad("broken json", sample, str(e))
        if not isinstance(value, dict):
            raise self.bad("broken json", sample, f"an object is expected, not {type(value).__name__}")
        return value

    def _find(self, sample: int) -> tuple[int, int]:
        shard = int(np.searchsorted(self._ends, sample, side="right"))
        return shard, int(sample - (self._ends[shard - 1] if shard else 0))

    def _descriptor(self, shard: int) -> int:
        if shard in self._open:
            self._open.move_to_end(shard)
            return self._open[shard]
        if len(self._open) >= OPEN_FILES:
            os.close(self._open.popitem(last=False)[1])
        self._open[shard] = os.open(self._data[shard], os.O_RDONLY | os.O_CLOEXEC)
        return self._open[shard]
