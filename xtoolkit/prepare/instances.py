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
        images: the folder of its ``file_name``. Objects365 says ``images/v1/patch8/NAME.jpg``, and its archives unpack
            to ``patch8/NAME.jpg``: folders in front that are not there are passed over.
        exclude: COCO ids to leave out.
        prefix: of the shards.

    Raises:
        BadRecord: names the file and the annotation.
    """
    report, annotations = Report(options.skip_bad), Path(annotations)
    names = dict(_categories(annotations, report))
    boxes = _Boxes(annotations, names, report)
    found = _drafts(annotations, Finder(images, YEARS), names, boxes, exclude, prefix, report)
    return write_pictures(f"objects-{prefix}", found, options, report)


def _categories(annotations, report):
    """(category, its names)."""
    def category(record, where):
        number, name = field(record, "id", int, where), clean(field(record, "name", str, where), where, report)
        words = [word.strip() for word in (name or "").split("/") if word.strip()]
        return number, words[0] if len(words) == 1 else words

    return each(elements(annotations, "categories"), f"{annotations.name}: categories: record", category, report,
                unique="category")


class _Boxes:
    """All boxes of a file, in arrays: Python's objects would take ten times the room."""

    def __init__(self, annotations, names, report):
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

        found = elements(annotations, "annotations")
        for row, box in each(found, f"{annotations.name}: annotation", parse, report, "id"):
            rows.extend(row)
            boxes.extend(box)
        rows = np.asarray(rows).reshape(-1, 3)
        order = np.argsort(rows[:, 0], kind="stable")
        self.rows, self.boxes = rows[order], np.asarray(boxes).reshape(-1, 4)[order]

    def strangers(self, known: set):
        """(annotation id, image) of the first box of each picture that is not known."""
        for first in np.unique(self.rows[:, 0], return_index=True)[1]:
            image, _, number = self.rows[first].tolist()
            if image not in known:
                yield number, image

    def of(self, image: int):
        """(category, annotation id, box) of a picture's boxes, in the order of the file."""
        for row in range(*np.searchsorted(self.rows[:, 0], [image, image + 1])):
            box = [int(v) if v.is_integer() else v for v in self.boxes[row].tolist()]
            yield *self.rows[row, 1:].tolist(), box


def _drafts(annotations, finder, names, boxes, exclude, prefix, report):
    file, known = annotations.name, set()

    def draft(record, where):
        image, *size = (field(record, key, int, where) for key in ("id", "width", "height"))
        name = field(record, "file_name", str, where)
        picture, coco = finder(name, where), coco_id(name)
        known.add(image)
        if coco in exclude:
            return report.leave_out("excluded pictures", where)
        regions = []
        for category, number, box in boxes.of(image):
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
    for number, image in boxes.strangers(known):
        report.bad(f"{file}: annotation {number}: image {image} is not in the list of images")
