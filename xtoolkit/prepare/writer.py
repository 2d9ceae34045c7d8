"""Writing shards: what one job of a conversion writes, in deterministic tars and JSON Lines, and counts beside it."""

import io
import json
import os
import tarfile
from dataclasses import dataclass
from pathlib import Path

from xtoolkit.data import limits
from xtoolkit.prepare.official import BadRecord, Report, fit, picture
from xtoolkit.prepare.stats import Stats, texts


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
class Inside:
    """A picture in a tar that is not unpacked: the place of its header."""

    tar: Path
    at: int


@dataclass(frozen=True)
class Draft:
    """A sample whose picture is still to be read.

    Attributes:
        prefix: the shards that it belongs to: ``prefix-00000.tar``.
        key: its name in the shard; None numbers it.
        picture: the file.
        info: its ``.json``.
        where: file and record, for messages.
        size: width and height that the annotations say; None where they say none.
        relative: the boxes of ``info`` are left, top, right, bottom as shares of the picture, with a ``where`` each.
    """

    prefix: str
    key: str | None
    picture: Path | Inside
    info: dict
    where: str
    size: tuple | None = None
    relative: bool = False


class Part:
    """What one job writes: files of at most ``shard_size`` samples, a report and statistics.

    Nothing of it depends on other jobs, so any process may write it, and equal input gives equal bytes. Files are
    on the disk, not only in its cache, when the with block ends.

    Attributes:
        report: counts what is written and left out.
        files: [name, samples, bytes] of each file, in order.
    """

    suffix = ""

    def __init__(self, options: Options, folder: Path | None, prefix: str, number: int):
        self.options, self.folder, self.prefix, self.number = options, folder, prefix, number
        self.report, self.stats, self.files, self.count = Report(options.skip_bad), Stats(), [], 0
        self._raw = None

    def __enter__(self):
        return self

    def __exit__(self, kind, value, trace):
        self._close()

    def next(self) -> tuple[int, int]:
        """The number of the next sample's file, from that of the job on, and its place there; opens that file."""
        (file, place), self.count = divmod(self.count, self.options.shard_size), self.count + 1
        if self.folder is not None and place == 0:
            self._close()
            name = f"{self.prefix}-{self.number:05d}-{len(self.files):04d}.{self.suffix}"
            self.files.append([name, 0, 0])
            self._raw = (self.folder / name).open("wb")
            self._begin()
        return self.number + file, place

    def _begin(self):
        """Called when a file is opened."""

    def _end(self):
        """Called before a file is closed."""

    def _close(self):
        if self._raw is not None:
            self._end()
            self._raw.flush()
            os.fsync(self._raw.fileno())
            self.files[-1][1:] = [(self.count - 1) % self.options.shard_size + 1, self._raw.tell()]
            self._raw.close()
            self._raw = None

    def result(self) -> dict:
        return {"files": self.files, "report": self.report.as_dict(), "stats": self.stats.as_dict()}


class TarPart(Part):
    """Tar shards in the webdataset layout: the files of a sample are neighbours and share a key."""

    suffix = "tar"

    def _begin(self):
        self._tar = tarfile.open(fileobj=self._raw, mode="w", format=tarfile.USTAR_FORMAT)

    def _end(self):
        self._tar.close()

    def write(self, key: str | None, ending: str, data: bytes, info: dict, size: tuple):
        """Adds one sample: the picture's bytes and the object of its json."""
        file, place = self.next()
        key, shown = key or f"{file:05d}{place:04d}", {"at": place}
        if self.folder is not None:
            shown = {"file": self.files[-1][0], "at": self._tar.offset + tarfile.BLOCKSIZE, "bytes": len(data)}
            for name, content in ((f"{key}.{ending}", data), (f"{key}.json", dumps(info))):
                entry = tarfile.TarInfo(name)
                entry.size, entry.mtime, entry.mode = len(content), 0, 0o644
                self._tar.addfile(entry, io.BytesIO(content))
        regions = info.get("regions", ())
        self.stats.picture(self.prefix, size, info, shown)
        captions = len(info.get("captions", ())) + sum(len(texts(r)) for r in regions)
        self.report.wrote(self.prefix, captions, len(regions))


class LinePart(Part):
    """JSON Lines shards, uncompressed: a line is found by its byte offset."""

    suffix = "jsonl"

    def write(self, text: str):
        self.next()
        self._raw.write(dumps({"text": text}) + b"\n")
        self.stats.text(self.prefix, text)
        self.report.wrote(self.prefix)


def dumps(record: dict) -> bytes:
    return json.dumps(record, ensure_ascii=False, separators=(",", ":")).encode()


def write_drafts(drafts: list, part: TarPart):
    """Reads the pictures of drafts and writes their samples.

    A picture that is not there, is none or has another size than its annotations say is a wrong record.
    """
    for draft in drafts:
        try:
            ending, data, size = picture(_source(draft), draft.where, part.options.verify)
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
        part.write(draft.key, ending, data, info, size)


def _source(draft: Draft) -> Path | bytes:
    if not isinstance(draft.picture, Inside):
        return draft.picture
    tar, at = draft.picture.tar, draft.picture.at
    try:
        with open(tar, "rb") as raw:
            raw.seek(at)
            with tarfile.open(fileobj=raw, mode="r:") as inside:
                member = inside.next()
                if member is None or not member.isreg():
                    raise tarfile.ReadError("no file there: the tar has changed")
                if member.size > limits.MAX_IMAGE:
                    raise tarfile.ReadError(f"{member.size:,} bytes, more than {limits.MAX_IMAGE:,}")
                return inside.extractfile(member).read()
    except (OSError, tarfile.TarError) as error:
        raise BadRecord(f"{draft.where}: {tar}: cannot be read at byte {at}: {error}") from None


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
