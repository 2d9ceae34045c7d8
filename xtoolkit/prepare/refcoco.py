"""RefCOCO, RefCOCO+ and RefCOCOg in the REFER release -> region samples, a set of shards a split."""

import pickle
from functools import partial
from pathlib import Path

from xtoolkit.prepare import records
from xtoolkit.prepare.coco import YEARS
from xtoolkit.prepare.official import BadFile, Report, clean, field, fit, unread
from xtoolkit.prepare.records import Finder, each, nested
from xtoolkit.prepare.run import write_pictures
from xtoolkit.prepare.streaming import elements
from xtoolkit.prepare.writer import Draft, Options
from xtoolkit.registry import nearest


def convert(refs: Path, instances: Path, images: Path, options: Options, names: dict | None = None) -> Report:
    """Writes one region sample a picture and split: a region a referred object, its expressions as captions.

    Every sample also has ``boxes``: all annotated boxes of the picture, for floors such as "always the biggest".

    Args:
        refs: ``refs(unc).p``, ``refs(umd).p`` or ``refs(google).p``, or the same list as JSON.
        instances: ``instances.json`` beside it.
        names: split -> prefix of its shards; a split not in it is left out. None: each split under its own name.

    Raises:
        BadFile: the file has no such split; a pickle that holds more than plain values is refused.
    """
    report, refs, instances = Report(options.skip_bad), Path(refs), Path(instances)
    grouped = _grouped(refs, names, report)
    pictures, boxes = _annotated(instances, {image for _, image in grouped}, Finder(images, YEARS), report)
    found = _drafts(grouped, pictures, boxes, refs.name, instances.name, report)
    return write_pictures("-".join(["refcoco", *(names or {}).values()]), found, options, report)


def _grouped(refs, names, report) -> dict:
    """(prefix, image) -> (where, ref) of its refs, in the order of the file."""
    def parse(ref, where):
        image, number, _ = (field(ref, key, int, where) for key in ("image_id", "ref_id", "ann_id"))
        field(ref, "sentences", list, where)
        return number, field(ref, "split", str, where), image, where, ref

    grouped, splits = {}, set()
    for _, split, image, where, ref in each(load(refs), f"{refs.name}: ref", parse, report, "ref_id", "ref_id"):
        splits.add(split)
        if names is None or split in names:
            grouped.setdefault((split if names is None else names[split], image), []).append((where, ref))
    if missing := sorted(set(names or ()) - splits):
        raise BadFile(f"{refs.name}: no split `{missing[0]}` in it; it has {', '.join(sorted(splits))}"
                      f"{nearest(missing[0], splits)}")
    return grouped


def _annotated(instances, wanted, finder, report):
    """image -> (file, size), and image -> {annotation id: box}, of the images wanted."""
    def picture(record, where):
        image, *size = (field(record, key, int, where) for key in ("id", "width", "height"))
        return (image, (finder(field(record, "file_name", str, where), where), tuple(size))) if image in wanted else None

    def annotation(record, where):
        image, number = field(record, "image_id", int, where), field(record, "id", int, where)
        return (number, image, field(record, "bbox", list, where)) if image in pictures else None

    found = elements(instances, "images")
    pictures, boxes = dict(each(found, f"{instances.name}: images: record", picture, report, unique="image")), {}
    found = elements(instances, "annotations")
    place = f"{instances.name}: annotations: record"
    for number, image, box in each(found, place, annotation, report, unique="annotation"):
        boxes.setdefault(image, {})[number] = box
    return pictures, boxes


def _drafts(grouped, pictures, boxes, file, instances, report):
    for (prefix, image), refs in grouped.items():
        if image not in pictures:
            report.bad(f"{refs[0][0]}: image {image} is not in {instances}")
            continue
        path, size = pictures[image]
        annotated = boxes.get(image, {})
        regions = [region for where, ref in refs if (region := _region(where, ref, annotated, instances, size, report))]
        if not regions:
            report.leave_out("pictures without regions", f"{file}: image {image}")
            continue
        quiet = Report(skip_bad=True)  # what is wrong with a box that nobody refers to is not worth a word
        others = [box for box in (fit(b, size, "", quiet) for b in annotated.values()) if box]
        info = {"image_id": f"coco-{image}", "width": size[0], "height": size[1], "regions": regions, "boxes": others}
        yield Draft(prefix, f"{image:012d}", path, info, f"{instances}: image {image}", size)


def _region(where, ref, annotated, instances, size, report):
    number = ref["ann_id"]
    if number not in annotated:
        report.bad(f"{where}: annotation {number} of image {ref['image_id']} is not in {instances}")
        return None
    box = fit(annotated[number], size, f"{where}: annotation {number}", report)
    said = list(nested(ref, "sentences", where, "sentence", partial(_sentence, report=report), report))
    return {"box": box, "caption": said, "ref_id": ref["ref_id"]} if box and said else None


def _sentence(sentence, where, report):
    return clean(field(sentence, "sent", str, where), where, report)


def held_out(refs: Path) -> frozenset:
    """The COCO ids of every split but train. Raises BadFile where any of its records is wrong."""
    def number(ref, where):
        return field(ref, "image_id", int, where) if field(ref, "split", str, where) != "train" else None

    return records.held_out(load(Path(refs)), f"{Path(refs).name}: ref", number, "ref_id")


def load(path: Path):
    """(index, ref) of a REFER file, pickle or JSON."""
    if path.suffix == ".json":
        return elements(path)
    try:
        with path.open("rb") as file:  # Python 2 wrote the release: its strings are bytes
            found = _Plain(file, encoding="utf-8", errors="replace").load()
    except OSError as error:
        raise unread(path, error) from None
    except BadFile as error:
        raise BadFile(f"{path.name}: {error}") from None
    except Exception as error:  # pickle raises whatever it meets in a damaged file
        raise BadFile(f"{path.name}: not a whole pickle ({type(error).__name__}: {error})") from None
    if not isinstance(found, list):
        raise BadFile(f"{path.name}: expected a list of refs, found a {type(found).__name__}")
    return enumerate(found)


class _Plain(pickle.Unpickler):
    """Loads lists, dicts, strings and numbers only: a pickle that names anything else could run code."""

    def find_class(self, module, name):
        raise BadFile(f"refused: it names `{module}.{name}`, and a REFER file holds only lists, dicts, strings and numbers; "
                      "get the file from its official source")
