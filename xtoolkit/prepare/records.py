"""Records of official releases, one by one, and where the picture of a record lies."""

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path, PurePath

from xtoolkit.prepare.official import BadFile, BadRecord, Report, below, field, pictures_folder


def each(found: Iterable, place: str, parse: Callable, report: Report, number: str = "", unique: str = "") -> Iterator:
    """What ``parse(record, where)`` makes of each (index, record), but None; wrong records are told or counted.

    Args:
        place: the file and the kind of its records, such as ``objects.json: object``; ``where`` adds the number. Empty
            where the index says all that.
        number: the key of a record's own number; the index where it has none.
        unique: what the first value of each result is called; it must not come a second time.
    """
    seen = set()
    for index, record in found:
        called = record.get(number, index) if number and isinstance(record, dict) else index
        where = f"{place} {called}" if place else called
        try:
            value = parse(record, where)
            if unique and value is not None:
                if value[0] in seen:
                    raise BadRecord(f"{where}: {unique} {value[0]} comes a second time")
                seen.add(value[0])
        except BadRecord as error:
            report.bad(str(error))
            continue
        if value is not None:
            yield value


def nested(record, key: str, where: str, kind: str, parse: Callable, report: Report, number: str = "") -> Iterator:
    """``each`` of the list ``record[key]``."""
    try:
        found = field(record, key, list, where)
    except BadRecord as error:
        report.bad(str(error))
        return
    yield from each(enumerate(found), f"{where}: {kind}", parse, report, number)


def held_out(found: Iterable, place: str, parse: Callable, number: str = "") -> frozenset:
    """The ids that ``parse`` gives for what no pretraining may show. Raises BadFile where a record is wrong."""
    try:
        return frozenset(each(found, place, parse, Report(), number))
    except BadRecord as error:
        raise BadFile(str(error)) from None


def coco_id(name: str) -> int | None:
    """COCO's id of a picture by its file's name, so that it is known in any release; None: it is not COCO's."""
    stem = PurePath(name).stem
    number = stem.rpartition("_")[2] if stem.startswith("COCO_") else stem
    return int(number) if number.isdecimal() and len(number) == 12 else None  # as all of COCO's names have it


class Finder:
    """Where a picture is: under its whole name, or without the first parts of it, in the root or in one of its folders.

    Archives are unpacked one way or another: ``images/v1/patch8/x.jpg`` may be ``patch8/x.jpg``, ``x.jpg`` may be
    ``train2014/x.jpg``.
    """

    def __init__(self, root: Path, folders: Iterable[str] = ()):
        self.root = pictures_folder(root)
        self.places = [self.root, *(self.root / name for name in folders if (self.root / name).is_dir())]
        self.last = self.root, 0

    def __call__(self, name: str, where: str) -> Path:
        """The file; where there is none, the one that should be. Raises BadRecord where the name leads out of the root."""
        whole, parts = below(self.root, name, where), PurePath(name).parts
        for place, skip in ((self.root, 0), self.last, *((p, s) for s in range(len(parts)) for p in self.places)):
            file = place.joinpath(*parts[skip:])
            if parts[skip:] and file.is_file():
                self.last = place, skip  # nearly always that of the next one
                return file
        return whole
