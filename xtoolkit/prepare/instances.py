"""Detection annotations in COCO's format (COCO, Objects365) -> region samples whose captions are category names."""

import itertools
from array import array
from pathlib import Path

import numpy as np

from xtoolkit.prepare.coco import YEARS
from xtoolkit.prepare.official import BadRecord, Report, clean, field, fit, is_box
from xtoolkit.prepare.records import Finder, coco_id, each
from xtoolkit.prepare.run import write_pictures
from xtoolkit.prepare.streaming import elements
from xtoolkit.prepare.writer import Draft, Options


def convert(annotations: Path, images: Path, options: Options, exclude: frozenset = frozenset(),
            prefix: str = "train") -> Report:
    """Writes one region sample a picture; boxes around crowds are left out with a count.

    Annotations come in any order, so all are held: 56 bytes a box, 1.7 GB for the 30 million of Objects365. A category
    with a slash names a thing twice (``Cabinet/shelf``): its regions have both names as captions.

    Args:
        annotations: ``instances_train2014.json``, Objects365's ``zhiyuan_objv2_train.json``, or a file like them.
        exclude: COCO ids to leave out.
    """
    report, annotations = Report(options.skip_bad), Path(annotations)
    names = dict(_categories(annotations, report))
    found = _drafts(annotations, Finder(images, YEARS), names, exclude, prefix, report)
    return write_pictures(f"objects-{prefix}", found, options, report)


def _categories(annotations, report):
    """(category, its names)."""
    def category(record, where):
        number, name = field(record, "id", int, where), clean(field(record, "name", str, where), where, report)
        words = [word.strip() for word in (name or "").split("/") if word.strip()]
        return number, words[0] if len(words) == 1 else words

    return each(elements(annotations, "categories"), f"{annotations.name}: categories: record", category, report,
                unique="category")


def _boxes(annotations, names, report):
    """Rows of (image, category, annotation id) in the order of their images, and their boxes: arrays, for Python's objects
    would take ten times the room."""
    rows, boxes, position = array("q"), array("d"), itertools.count()

    def parse(record, where):
        index, number = next(position), field(record, "id", int | None, where)
        image, category = field(record, "image_id", int, where), field(record, "category_id", int, where)
        box = field(record, "bbox", list, where)
        if category not in names:
            raise BadRecord(f"{where}: category {category} is not in the list of categories")
        if not is_box(box):
            raise BadRecord(f"{where}: box {str(box)[:60]} is not four numbers x, y, w, h")
        if record.get("iscrowd") not in (None, 0, 1):
            raise BadRecord(f"{where}: `iscrowd` is {str(record['iscrowd'])[:60]!r}, neither 0 nor 1")
        if record.get("iscrowd"):
            return report.leave_out("boxes around crowds", where)
        return (image, category, index if number is None else number), box

    for row, box in each(elements(annotations, "annotations"), f"{annotations.name}: annotation", parse, report, "id"):
        rows.extend(row)
        boxes.extend(box)
    rows = np.asarray(rows).reshape(-1, 3)
    order = np.argsort(rows[:, 0], kind="stable")
    return rows[order], np.asarray(boxes).reshape(-1, 4)[order]


def _drafts(annotations, finder, names, exclude, prefix, report):
    file, known, (rows, boxes) = annotations.name, set(), _boxes(annotations, names, report)

    def draft(record, where):
        image, *size = (field(record, key, int, where) for key in ("id", "width", "height"))
        name = field(record, "file_name", str, where)
        picture, coco = finder(name, where), coco_id(name)
        known.add(image)
        if coco in exclude:
            return report.leave_out("excluded pictures", where)
        regions = []
        for row in range(*np.searchsorted(rows[:, 0], [image, image + 1])):
            _, category, number = rows[row].tolist()
            box = [int(v) if v.is_integer() else v for v in boxes[row].tolist()]
            box = fit(box, size, f"{file}: annotation {number}", report)
            if box and names[category]:
                regions.append({"box": box, "caption": names[category]})
        if not regions:
            return report.leave_out("pictures without regions", where)
        corpus, number = ("coco", coco) if coco is not None else ("objects365" if "objects365" in name else "instances", image)
        info = {"image_id": f"{corpus}-{number}", "width": size[0], "height": size[1], "regions": regions}
        return image, Draft(prefix, f"{image:012d}", picture, info, f"{where} ({name})", tuple(size))

    found = elements(annotations, "images")
    for _, made in each(found, f"{file}: images: record", draft, report, unique="image"):
        yield made
    for first in np.unique(rows[:, 0], return_index=True)[1]:
        image, _, number = rows[first].tolist()
        if image not in known:
            report.bad(f"{file}: annotation {number}: image {image} is not in the list of images")
