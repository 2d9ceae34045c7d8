"""Open Images' own CSV files -> region samples whose captions are class names."""

import csv
import re
from pathlib import Path

from xtoolkit.prepare.official import BadFile, BadRecord, Report
from xtoolkit.prepare.run import write_pictures
from xtoolkit.prepare.writer import Draft, Options

SIDES = ("XMin", "YMin", "XMax", "YMax")
COLUMNS = ("ImageID", "LabelName", *SIDES, "IsGroupOf")
NAME = re.compile(r"[0-9A-Za-z_-]+")  # of a picture; it becomes the name of a file


def convert(boxes: Path, classes: Path, images: Path, options: Options, prefix: str = "train") -> Report:
    """Writes one region sample a picture; boxes around groups (``IsGroupOf``) are left out with a count.

    The boxes are read as a stream: the rows of a picture are neighbours in the release, and only the names of the
    pictures seen are held. Boxes are shares of the picture, so its size is read from the picture itself.

    Args:
        boxes: ``oidv6-train-annotations-bbox.csv``, or the file of another split or version.
        classes: ``class-descriptions-boxable.csv``, of any version: since the seventh it has a heading.
        images: the folder of the pictures, of ``train``, or of ``train_0`` to ``train_f`` as the archives unpack.
        prefix: of the shards.

    Raises:
        BadRecord: names the file and the row.
    """
    report, boxes = Report(options.skip_bad), Path(boxes)
    names = _classes(Path(classes), report)
    found = _drafts(boxes, names, Path(classes).name, _Finder(Path(images)), prefix, report)
    return write_pictures(f"openimages-{prefix}", found, options, report)


def _classes(path, report) -> dict:
    names = {}
    for row, cells in _rows(path):
        if row == 1 and cells[0] in ("LabelName", "id"):
            continue
        if len(cells) != 2 or not cells[0] or not cells[1].strip():
            report.bad(f"{path.name}: row {row}: expected a class and its name, found {','.join(cells)[:60]!r}")
        elif cells[0] in names:
            report.bad(f"{path.name}: row {row}: class {cells[0]} comes a second time")
        else:
            names[cells[0]] = cells[1].strip()
    return names


def _drafts(path, names, classes, finder, prefix, report):
    image, regions, seen, begun = None, [], set(), 0
    for row, found, region in _regions(path, names, classes, report):
        if found != image:
            if regions:
                yield _draft(path, begun, image, regions, finder, prefix)
            if found in seen:
                report.bad(f"{path.name}: row {row}: image {found} comes a second time: the rows of a picture must be "
                           "neighbours, as in the release (`sort` brings them together)")
                image, regions = None, []
                continue
            seen.add(found)
            image, regions, begun = found, [], row
        if region:
            regions.append(region)
    if regions:
        yield _draft(path, begun, image, regions, finder, prefix)


def _draft(path, row, image, regions, finder, prefix):
    where = f"{path.name}: row {row}: image {image}"
    return Draft(prefix, image, finder(image), {"image_id": f"openimages-{image}", "regions": regions}, where,
                 relative=True)


def _regions(path, names, classes, report):
    """(row, image, region) of each row; the region is None where it is left out."""
    at = None
    for row, cells in _rows(path):
        if at is None:
            missing = [name for name in COLUMNS if name not in cells]
            if missing:
                raise BadFile(f"{path.name}: row 1: no column {', '.join(missing)}; it has {', '.join(cells)[:200]}")
            at, width = [cells.index(name) for name in COLUMNS], len(cells)
            continue
        where = f"{path.name}: row {row}"
        try:
            if len(cells) != width:
                raise BadRecord(f"{where}: {len(cells)} columns, the heading has {width}")
            image, label, *box, group = (cells[i] for i in at)
            if not NAME.fullmatch(image):
                raise BadRecord(f"{where}: {image!r} is not the name of a picture")
            if label not in names:
                raise BadRecord(f"{where}: image {image}: class {label!r} is not in {classes}")
            box = [_share(side, name, f"{where}: image {image}") for side, name in zip(box, SIDES)]
        except BadRecord as error:
            report.bad(str(error))
            continue
        if group == "1":
            report.leave_out("boxes around groups", where)
            yield row, image, None
        else:
            yield row, image, {"box": box, "caption": names[label], "where": f"{where}: image {image}"}


def _share(text: str, name: str, where: str) -> float:
    try:
        value = float(text)
    except ValueError:
        raise BadRecord(f"{where}: {name} is {text!r}, not a number") from None
    if not -0.01 <= value <= 1.01:  # a hair outside is clipped; pixels in the place of shares are a mistake
        raise BadRecord(f"{where}: {name} is {text}: sides are shares of the picture, from 0 to 1")
    return value


def _rows(path: Path):
    """(row, cells) of a CSV file, rows from 1; an empty row is passed over."""
    row = 0
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            for row, cells in enumerate(csv.reader(file, strict=True), 1):
                if cells:
                    yield row, cells
    except csv.Error as error:
        raise BadFile(f"{path.name}: row {row + 1}: broken CSV: {error}") from None
    except UnicodeDecodeError as error:
        raise BadFile(f"{path.name}: after row {row}: not UTF-8 text: {error.reason}") from None
    except OSError as error:
        raise BadFile(f"{path}: {error.strerror}") from None


class _Finder:
    """Where a picture is: the archives of the train split are sixteen, by the first letter of the name."""

    def __init__(self, root: Path):
        self.root = root
        self.split = next((f for f in (root / "train", root / "validation", root / "test") if f.is_dir()), None)

    def __call__(self, image: str) -> Path:
        name, folder = f"{image}.jpg", self.root / f"train_{image[0].lower()}"
        places = [folder / name] if folder.is_dir() else [self.split / name] if self.split else []
        return next((place for place in places if place.is_file()), self.root / name)
