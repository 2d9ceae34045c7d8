"""Writing shards: what one job of a conversion writes, in deterministic tars and JSON Lines, and counts beside it."""

import hashlib
import io
import json
import os
import sys
import tarfile
from dataclasses import dataclass
from pathlib import Path

from xtoolkit.data.scan import KEY_BYTES
from xtoolkit.prepare import stats
from xtoolkit.prepare.official import BadRecord, Report, fit, picture
from xtoolkit.prepare.tars import content


@dataclass(frozen=True)
class Options:
    """Where and how every converter writes.

    Attributes:
        out: the folder of the shards; made where there is none. None: nothing is written, records are checked only.
        shard_size: samples (text: lines) a shard at most.
        workers: processes; what is written does not depend on them. 1 works in the process that calls.
        skip_bad: count wrong records and go on, rather than stop at the first.
        verify: decode every picture to its last row, so that one which is cut off is found; otherwise headers are read.
        progress: print how far it is to the standard error.
    """

    out: Path | None
    shard_size: int = 1000
    workers: int = 1
    skip_bad: bool = False
    verify: bool = False
    progress: bool = False


@dataclass(frozen=True)
class Draft:
    """A sample whose picture is still to be read.

    Attributes:
        prefix: the shards that it belongs to: ``prefix-00000.tar``.
        key: its name in the shard; None, and one that is longer than readers keep, numbers it.
        picture: the file, or a tar and the place of its header in it.
        info: its ``.json``; without an ``image_id`` it gets one by what the picture's file holds.
        where: file and record, for messages.
        size: width and height that the annotations say; None where they say none.
        relative: the boxes of ``info`` are left, top, right, bottom as shares of the picture, with a ``where`` each.
    """

    prefix: str
    key: str | None
    picture: Path | tuple[Path, int]
    info: dict
    where: str
    size: tuple | None = None
    relative: bool = False


class Part:
    """What one job writes: files of at most ``shard_size`` samples, and a report.

    Nothing of it depends on other jobs, so any process may write it, and equal input gives equal bytes. Files are
    on the disk, not only in its cache, when the with block ends; ``files`` has the samples, bytes and sha256 of each.

    Attributes:
        whole: all samples of a prefix are one file, PREFIX.SUFFIX, of one job; else numbered files of ``shard_size``.
    """

    suffix, whole = "", False

    def __init__(self, options: Options, folder: Path | None, prefix: str, number: int):
        self.options, self.folder, self.prefix, self.number = options, folder, prefix, number
        self.report, self.files, self.count, self.raw = Report(options.skip_bad), {}, 0, None

    def __enter__(self):
        return self

    def __exit__(self, kind, value, trace):
        self._close()

    def next(self) -> tuple[int, int]:
        """The number of the next sample's file, from that of the job on, and its place there; opens that file."""
        size = sys.maxsize if self.whole else self.options.shard_size
        (file, place), self.count = divmod(self.count, size), self.count + 1
        if place == 0:
            self._close()
            self._open(f"{self.prefix}.{self.suffix}" if self.whole else
                       f"{self.prefix}-{self.number:05d}-{file:04d}.{self.suffix}")
        self.files[self.name]["samples"] += 1
        return self.number + file, place

    def _open(self, name: str):
        self.name, self.files[name] = name, {"samples": 0}
        self.raw = open(os.devnull if self.folder is None else self.folder / name, "w+b")

    def _close(self):
        if self.raw is not None:
            self.raw.flush()
            if self.folder is not None:
                os.fsync(self.raw.fileno())
            self.raw.seek(0)
            digest = hashlib.file_digest(self.raw, "sha256").hexdigest()
            self.files[self.name] |= {"bytes": self.raw.tell(), "sha256": digest}
            self.raw.close()
            self.raw = None


class TarPart(Part):
    """Tar shards in the webdataset layout: the files of a sample are neighbours and share a key."""

    suffix = "tar"

    def _open(self, name):
        super()._open(name)
        self.tar = tarfile.open(fileobj=self.raw, mode="w", format=tarfile.USTAR_FORMAT)

    def _close(self):
        if self.raw is not None:
            self.tar.close()
        super()._close()

    def write(self, key: str | None, ending: str, data: bytes, info: dict, size: tuple):
        file, place = self.next()
        if not key or len(key.encode()) > KEY_BYTES:
            key = f"{file:05d}{place:04d}"
        for name, content in ((f"{key}.{ending}", data), (f"{key}.json", dumps(info))):
            entry = tarfile.TarInfo(name)
            entry.size, entry.mtime, entry.mode = len(content), 0, 0o644
            self.tar.addfile(entry, io.BytesIO(content))
        regions = info.get("regions", ())
        captions = len(info.get("captions", ())) + sum(len(stats.texts(region)) for region in regions)
        self.report.wrote(self.prefix, captions, len(regions), stats.of_picture(size, info))


class LinePart(Part):
    """JSON Lines shards, uncompressed: a line is found by its byte offset."""

    suffix = "jsonl"

    def write(self, text: str):
        self.next()
        self.raw.write(dumps({"text": text}) + b"\n")
        self.report.wrote(self.prefix, bins=stats.of_text(text))


class RowPart(Part):
    """Rows of a table beside pictures, or of texts with labels, in JSON Lines: a split of a task is one file."""

    suffix, whole = "jsonl", True

    def write(self, row: dict, *texts: str):
        self.next()
        self.raw.write(dumps(row) + b"\n")
        self.report.wrote(self.prefix, bins=(bin for text in texts for bin in stats.of_text(text)))


class ListPart(RowPart):
    """A text a line."""

    suffix = "txt"

    def write(self, text: str):
        self.next()
        self.raw.write(text.encode() + b"\n")
        self.report.wrote(self.prefix)


def dumps(record: dict) -> bytes:
    return json.dumps(record, ensure_ascii=False, separators=(",", ":")).encode()


def write_drafts(drafts: list, part: TarPart):
    """Reads the pictures of drafts and writes their samples.

    A picture that is not there, is none or has another size than its annotations say is a wrong record.
    """
    for draft in drafts:
        try:
            source = content(*draft.picture, draft.where) if isinstance(draft.picture, tuple) else draft.picture
            ending, data, size = picture(source, draft.where, part.options.verify)
            if draft.size is not None and tuple(draft.size) != size:
                raise BadRecord(f"{draft.where}: the picture {draft.picture} is {size[0]}x{size[1]}, its annotations "
                                f"are for {draft.size[0]}x{draft.size[1]}: the boxes would not fit")
            info = _in_pixels(draft.info, size, part.report) if draft.relative else draft.info
        except BadRecord as error:
            part.report.bad(str(error))
            continue
        if "regions" in info and not info["regions"]:
            part.report.leave_out("pictures without regions", draft.where)
            continue
        known = {} if "image_id" in info else {"image_id": hashlib.sha256(data).hexdigest()[:16]}
        part.write(draft.key, ending, data, known | info, size)


def _in_pixels(info: dict, size: tuple, report: Report) -> dict:
    """``info`` with its boxes in pixels: shares of the picture can be turned into them once its size is known."""
    regions = []
    for region in info["regions"]:
        (left, top, right, bottom), (width, height) = region["box"], size
        box = [round(v, 2) for v in (left * width, top * height, (right - left) * width, (bottom - top) * height)]
        box = fit(box, size, region["where"], report)
        if box:
            regions.append({"box": box, "caption": region["caption"]})
    return {**info, "width": size[0], "height": size[1], "regions": regions}
