"""Records of official releases: boxes, captions, pictures; errors name the file and the record."""

import io
import json
from collections import Counter, defaultdict
from collections.abc import Iterable
from pathlib import Path
from types import NoneType, UnionType
from typing import get_args, get_origin

from PIL import Image, UnidentifiedImageError

from xtoolkit.data import limits
from xtoolkit.data.images import FORMATS

CALLED = {int: "a 64-bit integer", float: "a number", str: "text", list: "a list", dict: "an object", NoneType: "null",
          list[str]: "a list of texts"}


class BadRecord(ValueError):
    """A record that is not what its format says: one line that names the file and the record."""


class BadFile(BadRecord):
    """A file of which nothing more can be read: no record to skip."""


class MissingFile(BadFile):
    """A file or folder that is not there: a mistake of the caller's."""


def unread(path, error: OSError) -> BadFile:
    """What to raise where a file cannot be read."""
    kind = MissingFile if isinstance(error, FileNotFoundError) else BadFile
    return kind(f"{path}: {error.strerror or error}")


def pictures_folder(path) -> Path:
    """The folder of pictures that was named. Raises MissingFile where it is none, before a picture is looked for in it."""
    path = Path(path)
    if not path.is_dir():
        raise MissingFile(f"{path}: not a folder; name the one that holds the pictures, unpacked" if path.exists()
                          else f"{path}: no such folder; name the one that holds the pictures")
    return path


class Report:
    """What a conversion wrote and what it left out: counts, and the first case of each kind."""

    def __init__(self, skip_bad: bool = False):
        self.skip_bad = skip_bad
        self.written = defaultdict(Counter)  # file prefix -> {"samples": n, "captions": n, "boxes": n}
        self.bins = defaultdict(Counter)     # histogram -> {its bin, as text: n}
        self.left_out = {}  # kind -> [count, first case]
        self.changed = {}   # kind -> [count, first case]

    def wrote(self, prefix: str, captions: int = 0, boxes: int = 0, bins: Iterable = ()):
        """Counts one sample written under a file prefix, with its captions and boxes and in its (histogram, bin)."""
        self.written[prefix].update(samples=1, captions=captions, boxes=boxes)
        for kind, number in bins:
            self.bins[kind][str(number)] += 1

    def leave_out(self, kind: str, case: str):
        """A known quirk of an official release, or what the user asked to leave out: counted, never fatal."""
        self.left_out.setdefault(kind, [0, case])[0] += 1

    def change(self, kind: str, case: str):
        """A record that is kept, but not as it was written."""
        self.changed.setdefault(kind, [0, case])[0] += 1

    def bad(self, case: str):
        """A wrong record. Raises BadRecord unless wrong records are to be skipped."""
        if not self.skip_bad:
            raise BadRecord(case)
        self.leave_out("wrong records", case)

    def add(self, other: dict):
        """Adds what ``as_dict`` gave, of a later part of the work: first cases stay the first."""
        for mine in ("written", "bins"):
            for name, found in other[mine].items():
                getattr(self, mine)[name].update(found)
        for mine in ("left_out", "changed"):
            for kind, (count, case) in other[mine].items():
                getattr(self, mine).setdefault(kind, [0, case])[0] += count

    def as_dict(self) -> dict:
        """Everything counted, as JSON has it and ``add`` takes it."""
        return {name: getattr(self, name) for name in ("written", "left_out", "changed", "bins")}

    def __str__(self):
        lines = [f"{prefix}: " + ", ".join(f"{number:,} {name}" for name, number in counts.items() if number)
                 for prefix, counts in self.written.items()] or ["nothing was written"]
        for verb, kinds in (("left out", self.left_out), ("changed", self.changed)):
            lines += [f"{verb}: {count:,} {kind} (the first: {case})" for kind, (count, case) in kinds.items()]
        return "\n".join(lines)


def field(record, name: str, kind, where: str):
    """``record[name]`` of the type ``kind``: a type, several (``int | None``), a list of one (``list[str]``).

    None where ``kind`` allows it and there is no such key. Raises BadRecord that says what was found in its place.
    """
    if not isinstance(record, dict):
        raise BadRecord(f"{where}: expected an object, found {_short(record)}")
    value = record.get(name)
    kinds = kind if isinstance(kind, tuple) else get_args(kind) if isinstance(kind, UnionType) else (kind,)
    if not any(_is(value, one) for one in kinds):
        wanted = " or ".join(CALLED.get(one, str(one)) for one in kinds)
        raise BadRecord(f"{where}: `{name}` is {_short(value)}, not {wanted}" if name in record
                        else f"{where}: no key `{name}`")
    for text in value if isinstance(value, list) and list not in kinds else [value]:
        if isinstance(text, str):
            _writable(text, where)
    return value


def _is(value, kind) -> bool:
    if get_origin(kind) is list:
        return isinstance(value, list) and all(_is(one, *get_args(kind)) for one in value)
    if isinstance(value, bool) or isinstance(value, int) and abs(value) >= 2**63:
        return False
    return isinstance(value, kind)


def _writable(text: str, where: str) -> str:
    """The text itself. Raises BadRecord where it holds half a character, which JSON can say and no file can hold."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise BadRecord(f"{where}: half a character (a lone surrogate) in {_short(text)}") from None
    return text


def below(root: Path, name: str, where: str) -> Path:
    """The file ``name`` in a folder. Raises BadRecord where the name leads out of it."""
    if Path(name).is_absolute() or ".." in Path(name).parts or "\0" in name:
        raise BadRecord(f"{where}: refused: {_short(name)} leads out of the folder of pictures")
    return root / name


def outside(member) -> bool:
    """Whether a member of a tar is a link or a device, or has a name that leads out of the archive."""
    return not (member.isreg() or member.isdir()) or member.name.startswith("/") or ".." in member.name.split("/")


def clean(text, where: str, report: Report) -> str | None:
    """A caption with its white space made single; an empty one is left out with a count."""
    if not isinstance(text, str):
        report.bad(f"{where}: the caption is {_short(text)}, not text")
        return None
    try:
        text = _writable(" ".join(text.split()), where)
    except BadRecord as error:
        report.bad(str(error))
        return None
    if not text:
        report.leave_out("empty captions", f"{where}: the caption is empty")
    return text or None


def cleaned(texts: Iterable, where: str, report: Report) -> list[str]:
    """The captions that ``clean`` leaves."""
    return [text for text in (clean(text, where, report) for text in texts) if text]


def is_box(box) -> bool:
    """Whether a value is four numbers that can be pixels of a picture."""
    return isinstance(box, list) and len(box) == 4 and all(type(v) in (int, float) and abs(v) < 1e9 for v in box)


def fit(box, size: tuple, where: str, report: Report) -> list | None:
    """A box clipped to its picture; None where nothing of it remains.

    Official boxes reach over the edge by a pixel or lie beside the picture now and then: that is counted, not fatal.
    ``box`` is x, y, w, h in pixels, ``size`` width and height of the picture.
    """
    if not is_box(box):
        report.bad(f"{where}: box {_short(box)} is not four numbers x, y, w, h")
        return None
    x, y, w, h = box
    left, top, right, bottom = max(x, 0), max(y, 0), min(x + w, size[0]), min(y + h, size[1])
    if w <= 0 or h <= 0:
        report.leave_out("boxes without area", f"{where}: box {box} has no area")
        return None
    if right <= left or bottom <= top:
        report.leave_out("boxes beside the picture", f"{where}: box {box} is outside of {size[0]}x{size[1]}")
        return None
    inside = [left, top, right - left, bottom - top]
    if inside[0] != x or inside[1] != y or inside[2] < w - 1e-6 or inside[3] < h - 1e-6:
        report.change("boxes clipped", f"{where}: box {box} reaches over the edge of {size[0]}x{size[1]}")
        return [round(v, 3) for v in inside]
    return box


def picture(source: Path | bytes, where: str, verify: bool = False) -> tuple[str, bytes, tuple]:
    """The bytes of a picture as they are, its file ending by content, and its width and height from its header.

    ``verify`` decodes it to its last row, which finds one that is cut off and takes ten times as long.
    """
    given = isinstance(source, bytes)
    name = "the picture" if given else source
    try:
        size = len(source) if given else source.stat().st_size
        if size > limits.MAX_IMAGE:
            raise BadRecord(f"{where}: {name}: {size:,} bytes, more than {limits.MAX_IMAGE:,}")
        data = source if given else source.read_bytes()
    except OSError as error:
        raise BadRecord(f"{where}: {name}: {error.strerror}") from None
    try:
        with Image.open(io.BytesIO(data), formats=list(FORMATS)) as opened:
            found, size = opened.format, opened.size
            if size[0] * size[1] > limits.MAX_PIXELS:
                raise BadRecord(f"{where}: {name}: {size[0]}x{size[1]} pixels, more than {limits.MAX_PIXELS:,}")
            if verify:
                opened.load()
    except BadRecord:
        raise
    except Exception as error:  # so many readers raise whatever they meet in a damaged file
        reason = limits.looks(data) if isinstance(error, UnidentifiedImageError) else f"{type(error).__name__}: {error}"
        raise BadRecord(f"{where}: {name}: not a picture that can be read: {reason}") from None
    return FORMATS.get(found, "jpg").split()[0], data, size  # MPO is a JPEG with a second picture behind it


def _short(value) -> str:
    text = json.dumps(value) if isinstance(value, (dict, list, str, int, float, bool, type(None))) else repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
