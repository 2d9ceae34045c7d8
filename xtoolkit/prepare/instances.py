"""Detection annotations in COCO's format (COCO, Objects365) -> region samples whose captions are category names."""

from array import array
from pathlib import Path

import numpy as np

from xtoolkit.prepare.official import BadRecord, Report, below, clean, field, fit, is_box
from xtoolkit.prepare.run import write_pictures
from xtoolkit.prepare.streaming import elements
from xtoolkit.prepare.writer import Draft, Options


def convert(annotations: Path, images: Path, options: Options, exclude: frozenset = frozenset(),
            prefix: str = "train") -> Report:
    """Writes one region sample a picture; boxes around crowds are left out with a count.

    Annotations come in any order, so all are held: 52 bytes a box, 1.5 GB for the 30 million of Objects365. A category
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
    found = _drafts(annotations, _Finder(Path(images)), names, boxes, exclude, prefix, report)
    return write_pictures(f"objects-{prefix}", found, options, report)


def _categories(annotations, report):
    """category -> its names."""
    seen = set()
    for index, record in elements(annotations, "categories"):
        where = f"{annotations.name}: categories: record {index}"
        try:
            number, name = field(record, "id", int, where), clean(field(record, "name", str, where), where, report)
            if number in seen:
                raise BadRecord(f"{where}: category {number} comes a second time")
        except BadRecord as error:
            report.bad(str(error))
            continue
        seen.add(number)
        words = [word.strip() for word in (name or "").split("/") if word.strip()]
        yield number, words[0] if len(words) == 1 else words


class _Boxes:
    """All boxes of a file, in arrays: Python's objects would take ten times the room."""

    def __init__(self, annotations, names, report):
        images, categories, numbers, boxes = array("q"), array("q"), array("q"), array("d")
        for index, record in elements(annotations, "annotations"):
            where = f"{annotations.name}: annotation {record.get('id', index) if isinstance(record, dict) else index}"
            try:
                image, category = field(record, "image_id", int, where), field(record, "category_id", int, where)
                box = field(record, "bbox", list, where)
                if category not in names:
                    raise BadRecord(f"{where}: category {category} is not in the list of categories")
                number = field(record, "id", int, where) if "id" in record else index
                if not is_box(box):
                    raise BadRecord(f"{where}: box {str(box)[:60]} is not four numbers x, y, w, h")
            except BadRecord as error:
                report.bad(str(error))
                continue
            if record.get("iscrowd"):
                report.leave_out("boxes around crowds", where)
                continue
            images.append(image)
            categories.append(category)
            numbers.append(number)
            boxes.extend(box)
        order = np.argsort(np.asarray(images, np.int64), kind="stable")
        self.images, self.categories = np.asarray(images)[order], np.asarray(categories)[order]
        self.numbers, self.boxes = np.asarray(numbers)[order], np.asarray(boxes).reshape(-1, 4)[order]

    def strangers(self, known: set):
        """(annotation id, image) of the first box of each picture that is not known."""
        for image, first in zip(*np.unique(self.images, return_index=True)):
            if int(image) not in known:
                yield int(self.numbers[first]), int(image)

    def of(self, image: int):
        """(annotation id, category, box) of a picture, in the order of the file."""
        first, last = np.searchsorted(self.images, [image, image + 1])
        for row in range(first, last):
            box = [int(v) if v.is_integer() else v for v in self.boxes[row].tolist()]
            yield int(self.numbers[row]), int(self.categories[row]), box


def _drafts(annotations, finder, names, boxes, exclude, prefix, report):
    seen = set()
    for index, record in elements(annotations, "images"):
        where = f"{annotations.name}: images: record {index}"
        try:
            image, name = field(record, "id", int, where), field(record, "file_name", str, where)
            size = field(record, "width", int, where), field(record, "height", int, where)
            below(finder.root, name, where)
            if image in seen:
                raise BadRecord(f"{where}: image {image} comes a second time")
        except BadRecord as error:
            report.bad(str(error))
            continue
        seen.add(image)
        corpus = _corpus(name)
        if corpus == "coco" and image in exclude:
            report.leave_out("excluded pictures", where)
            continue
        regions = []
        for number, category, box in boxes.of(image):
            box = fit(box, size, f"{annotations.name}: annotation {number}", report)
            if box and names[category]:
                regions.append({"box": box, "caption": names[category]})
        if not regions:
            report.leave_out("pictures without regions", where)
            continue
        info = {"image_id": f"{corpus}-{image}", "width": size[0], "height": size[1], "regions": regions}
        yield Draft(prefix, f"{image:012d}", finder(name), info, f"{where} ({name})", size)
    for number, image in boxes.strangers(seen):
        report.bad(f"{annotations.name}: annotation {number}: image {image} is not in the list of images")


def _corpus(name: str) -> str:
    """COCO's ids are those of its captions and expressions; another release's must not be taken for them."""
    if "COCO_" in name or name.removesuffix(".jpg").isdecimal():
        return "coco"
    return "objects365" if "objects365" in name else "instances"


class _Finder:
    """Where a picture is: below the folder under its whole name, or without the first parts of it."""

    def __init__(self, root: Path):
        self.root, self.skip = root, 0

    def __call__(self, name: str) -> Path:
        parts = Path(name).parts
        for skip in (self.skip, *range(len(parts))):  # the last answer first: it is nearly always the same
            place = self.root.joinpath(*parts[skip:])
            if place.is_file():
                self.skip = skip
                return place
        return self.root / name
