"""Writing shards: deterministic tars and JSON Lines, staged in a hidden folder and moved into place at the end."""

import glob
import io
import json
import os
import shutil
import tarfile
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from xtoolkit.data.convert.official import BadRecord, Report, picture


@dataclass(frozen=True)
class Options:
    """Where and how every converter writes.

    Attributes:
        out: the folder of the shards; made where there is none.
        shard_size: samples (text: lines) a shard.
        workers: threads that read pictures; what is written does not depend on them.
        skip_bad: count wrong records and go on, rather than stop at the first.
    """

    out: Path
    shard_size: int = 1000
    workers: int = 4
    skip_bad: bool = False


@dataclass(frozen=True)
class Draft:
    """A sample whose picture is still to be read.

    Attributes:
        prefix: the shards that it belongs to: ``prefix-00000.tar``.
        key: its name in the shard; None numbers it.
        picture: the file, or its bytes.
        info: its ``.json``.
        where: file and record, for messages.
        size: width and height that the annotations say; None where they say none.
    """

    prefix: str
    key: str | None
    picture: Path | bytes
    info: dict
    where: str
    size: tuple | None = None


class Shards:
    """Files ``PREFIX-00000.SUFFIX`` of at most ``shard_size`` samples; a with block moves them into place at its end.

    They are written in a hidden folder inside ``out``, so that no reader ever sees half a data set, and left nothing of
    after an error. Equal samples give equal bytes.

    Raises:
        FileExistsError: ``out`` has shards of that prefix already.
    """

    def __init__(self, options: Options, suffix: str):
        self.out, self.size, self.suffix = Path(options.out), options.shard_size, suffix
        self.staged = self.out / f".unfinished-{os.getpid()}"
        self.open, self.counts, self.names = {}, {}, []

    def __enter__(self):
        self.out.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(self.staged, ignore_errors=True)
        self.staged.mkdir()
        return self

    def __exit__(self, kind, value, trace):
        for file in self.open.values():
            file.close()
        if kind is None:
            for name in self.names:
                os.replace(self.staged / name, self.out / name)
        shutil.rmtree(self.staged, ignore_errors=True)

    def number(self, prefix: str) -> tuple[int, int]:
        """Shard and place of the prefix's next sample; opens the shard that it begins."""
        count = self.counts.get(prefix, 0)
        shard, place = divmod(count, self.size)
        if place == 0:
            self._begin(prefix, shard)
        self.counts[prefix] = count + 1
        return shard, place

    def _begin(self, prefix, shard):
        if shard == 0:
            there = glob.glob(os.path.join(glob.escape(str(self.out)), glob.escape(prefix) + "-[0-9]*." + self.suffix))
            if there:
                raise FileExistsError(f"{min(there)} is there already: remove {self.out / prefix}-*.{self.suffix} "
                                      "or give another --out")
        else:
            self.open[prefix].close()
        name = f"{prefix}-{shard:05d}.{self.suffix}"
        self.names.append(name)
        self.open[prefix] = self._file(self.staged / name)


class TarShards(Shards):
    """Tar shards in the webdataset layout: the files of a sample are neighbours and share a key."""

    def __init__(self, options: Options):
        super().__init__(options, "tar")

    def _file(self, path):
        return tarfile.open(path, "w", format=tarfile.USTAR_FORMAT)

    def write(self, prefix: str, key: str | None, files: dict[str, bytes]):
        """Adds one sample: ``files`` maps a file ending to its bytes."""
        shard, place = self.number(prefix)
        key = key or f"{shard:05d}{place:04d}"
        for ending, data in files.items():
            entry = tarfile.TarInfo(f"{key}.{ending}")
            entry.size, entry.mtime, entry.mode = len(data), 0, 0o644
            self.open[prefix].addfile(entry, io.BytesIO(data))


class LineShards(Shards):
    """JSON Lines shards, uncompressed: a line is found by its byte offset."""

    def __init__(self, options: Options):
        super().__init__(options, "jsonl")

    def _file(self, path):
        return path.open("wb")

    def write(self, prefix: str, record: dict):
        self.number(prefix)
        self.open[prefix].write(dumps(record) + b"\n")


def dumps(record: dict) -> bytes:
    return json.dumps(record, ensure_ascii=False, separators=(",", ":")).encode()


def write_pictures(drafts, options: Options, report: Report) -> Report:
    """Reads the picture of each draft, in threads and in order, and writes the samples into tar shards.

    A picture that is not there, is none or has another size than its annotations say is a wrong record.
    """
    with TarShards(options) as shards:
        for draft, loaded in _in_order(_load, drafts, options.workers):
            try:
                ending, data = loaded.result()
            except BadRecord as error:
                report.bad(str(error))
                continue
            files = {ending: data, "json": dumps(draft.info)}
            shards.write(draft.prefix, draft.key, files)
            regions = draft.info.get("regions", ())
            captions = len(draft.info.get("captions", ())) + sum(
                len(r["caption"]) if isinstance(r["caption"], list) else 1 for r in regions)
            report.wrote(draft.prefix, captions, len(regions))
    return report


def _load(draft: Draft) -> tuple[str, bytes]:
    ending, data, size = picture(draft.picture, draft.where)
    if draft.size is not None and tuple(draft.size) != size:
        raise BadRecord(f"{draft.where}: the picture {draft.picture} is {size[0]}x{size[1]}, its annotations are for "
                        f"{draft.size[0]}x{draft.size[1]}: the boxes would not fit")
    return ending, data


def _in_order(function, items, workers: int):
    """(item, future) in the order of ``items``, a few of them ahead in threads."""
    with ThreadPoolExecutor(max(workers, 1)) as pool:
        window = deque()
        for item in items:
            window.append((item, pool.submit(function, item)))
            if len(window) > 4 * workers:
                yield window.popleft()
        yield from window
