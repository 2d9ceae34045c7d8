"""Detection annotations in COCO's format (COCO, Objects365) -> region samples whose captions are category names."""

from pathlib import Path

from xtoolkit.data.convert.official import BadRecord, Report, elements, field, fit
from xtoolkit.data.convert.writer import Draft, Options, write_pictures


def convert(annotations: Path, images: Path, options: Options, exclude: frozenset = frozenset(),
            prefix: str = "train") -> Report:
    """Writes one region sample a picture; boxes around crowds are left out with a count.

    Args:
        annotations: ``instances_train2014.json`` or a file like it.
        images: the folder of its ``file_name``.
        exclude: image ids to leave out.
        prefix: of the shards.

    Raises:
        BadRecord: names the file and the annotation.
    """
    report, annotations = Report(options.skip_bad), Path(annotations)
    names = {}
    for index, category in elements(annotations, "categories"):
        where = f"{annotations.name}: categories: record {index}"
        names[field(category, "id", int, where)] = field(category, "name", str, where)
    found = _by_image(annotations, names, report)
    return write_pictures(_drafts(annotations, Path(images), found, exclude, prefix, report), options, report)


def _by_image(annotations, names, report) -> dict:
    """image id -> [(place for messages, box, name)]: annotations come in any order, so all are held."""
    found = {}
    for index, record in elements(annotations, "annotations"):
        where = f"{annotations.name}: annotation {record.get('id', index) if isinstance(record, dict) else index}"
        try:
            image, category = field(record, "image_id", int, where), field(record, "category_id", int, where)
            box = field(record, "bbox", list, where)
            if category not in names:
                raise BadRecord(f"{where}: category {category} is not in the list of categories")
        except BadRecord as error:
            report.bad(str(error))
            continue
        if record.get("iscrowd"):
            report.leave_out("boxes around crowds", where)
            continue
        found.setdefault(image, []).append((where, box, names[category]))
    return found


def _drafts(annotations, images, found, exclude, prefix, report):
    for index, record in elements(annotations, "images"):
        where = f"{annotations.name}: images: record {index}"
        try:
            image, name = field(record, "id", int, where), field(record, "file_name", str, where)
            size = field(record, "width", int, where), field(record, "height", int, where)
        except BadRecord as error:
            report.bad(str(error))
            continue
        if image in exclude:
            report.leave_out("excluded pictures", where)
            continue
        boxes = [(fit(box, size, place, report), word) for place, box, word in found.get(image, ())]
        regions = [{"box": box, "caption": word} for box, word in boxes if box]
        if not regions:
            report.leave_out("pictures without regions", where)
            continue
        info = {"image_id": f"{_corpus(name)}-{image}", "width": size[0], "height": size[1], "regions": regions}
        yield Draft(prefix, f"{image:012d}", images / name, info, f"{where} ({name})", size)


def _corpus(name: str) -> str:
    """COCO's ids are those of its captions and expressions; another release's must not be taken for them."""
    return "coco" if "COCO_" in name or name.removesuffix(".jpg").isdecimal() else "instances"
