"""Open Images' own CSV files -> region samples whose captions are class names."""

import re
from itertools import groupby
from pathlib import Path

from xtoolkit.prepare.lines import records, rows
from xtoolkit.prepare.official import BadRecord, Report
from xtoolkit.prepare.records import Finder, each
from xtoolkit.prepare.run import write_pictures
from xtoolkit.prepare.spans import Span
from xtoolkit.prepare.writer import Draft, Options

SIDES = ("XMin", "YMin", "XMax", "YMax")
COLUMNS = ("ImageID", "LabelName", *SIDES, "IsGroupOf")
NAME = re.compile(r"[0-9A-Za-z_-]+")  # of a picture; it becomes the name of a file
# As the archives unpack: the train split has sixteen, by the first letter of the name.
FOLDERS = ("train", "validation", "test", *(f"train_{letter}" for letter in "0123456789abcdef"))


def convert(boxes: Path, classes: Path, images: Path, options: Options, prefix: str = "train") -> Report:
    """Writes one region sample a picture; boxes around groups (``IsGroupOf``) are left out with a count.

    The boxes are read as a stream: the rows of a picture are neighbours in the release, and only the names of the
    pictures seen are held. Boxes are shares of the picture, so its size is read from the picture itself.

    Args:
        boxes: ``oidv6-train-annotations-bbox.csv``, or the file of another split or version.
        classes: ``class-descriptions-boxable.csv``, of any version: since the seventh it has a heading.
    """
    report, boxes, classes = Report(options.skip_bad), Path(boxes), Path(classes)
    found = _drafts(boxes, dict(_classes(classes, report)), classes.name, Finder(images, FOLDERS), prefix, report)
    return write_pictures(f"openimages-{prefix}", found, options, report)


def _classes(path, report):
    """(class, its name)."""
    def parse(cells, where):
        if cells[0] in ("LabelName", "id"):
            return None
        if len(cells) != 2 or not cells[0] or not cells[1].strip():
            raise BadRecord(f"{where}: expected a class and its name, found {','.join(cells)[:60]!r}")
        return cells[0], cells[1].strip()

    return each(rows(path, report), "", parse, report, unique="class")


def _drafts(path, names, classes, finder, prefix, report):
    seen = set()
    for image, found in groupby(_regions(path, names, classes, report), lambda found: found[0]):
        _, where, first = next(found)
        if image in seen:
            report.bad(f"{where} comes a second time: the rows of a picture must be neighbours, as in the release (`sort` "
                       "brings them together)")
            continue
        seen.add(image)
        regions = [region for region in (first, *(region for _, _, region in found)) if region]
        if regions:
            info = {"image_id": f"openimages-{image}", "regions": regions}
            yield Draft(prefix, image, finder(f"{image}.jpg", where), info, where, relative=True)


def _regions(path, names, classes, report):
    """(image, where, region) of each row; the region is None where it is left out."""
    def parse(row, where):
        image, label, *box, group = (row[name] for name in COLUMNS)
        if not NAME.fullmatch(image):
            raise BadRecord(f"{where}: {image!r} is not the name of a picture")
        place = f"{where}: image {image}"
        if label not in names:
            raise BadRecord(f"{place}: class {label!r} is not in {classes}")
        if group not in ("0", "1", "-1"):  # -1: nobody has looked
            raise BadRecord(f"{place}: IsGroupOf is {group!r}, none of 0, 1 and -1")
        box = [_share(side, name, place) for side, name in zip(box, SIDES)]
        if group == "1":
            report.leave_out("boxes around groups", where)
            return image, place, None
        return image, place, {"box": box, "caption": names[label], "where": place}

    return each(records(Span.whole(path), report, COLUMNS), "", parse, report)


def _share(text: str, name: str, where: str) -> float:
    try:
        value = float(text)
    except ValueError:
        raise BadRecord(f"{where}: {name} is {text!r}, not a number") from None
    if not -0.01 <= value <= 1.01:  # a hair outside is clipped; pixels in the place of shares are a mistake
        raise BadRecord(f"{where}: {name} is {text}: sides are shares of the picture, from 0 to 1")
    return value
