"""RefCOCO, RefCOCO+ and RefCOCOg in the REFER release -> region samples, a set of shards a split."""

import pickle
from pathlib import Path

from xtoolkit.prepare.official import BadFile, BadRecord, Report, below, clean, field, fit
from xtoolkit.prepare.run import write_pictures
from xtoolkit.prepare.streaming import elements
from xtoolkit.prepare.writer import Draft, Options


def convert(refs: Path, instances: Path, images: Path, options: Options, names: dict | None = None) -> Report:
    """Writes one region sample a picture and split: a region a referred object, its expressions as captions.

    Every sample also has ``boxes``: all annotated boxes of the picture, for floors such as "always the biggest".

    Args:
        refs: ``refs(unc).p``, ``refs(umd).p`` or ``refs(google).p``, or the same list as JSON.
        instances: ``instances.json`` beside it.
        images: the folder of COCO's ``train2014`` pictures (or of ``train2014`` and ``val2014``).
        names: split -> prefix of its shards; a split not in it is left out. None: each split under its own name.

    Raises:
        BadRecord: names the file and the ref; a pickle that holds more than plain values is refused.
    """
    report, refs, instances = Report(options.skip_bad), Path(refs), Path(instances)
    grouped, wanted = _grouped(refs, names, report)
    pictures, boxes = _annotated(instances, wanted, report)
    found = _drafts(grouped, pictures, boxes, refs.name, instances.name, Path(images), report)
    label = "-".join(["refcoco", *(names or {}).values()])
    return write_pictures(label, found, options, report)


def _grouped(refs, names, report):
    """(prefix, image) -> its refs, in the order of the file; and the images that have any."""
    grouped, wanted, seen = {}, set(), set()
    for index, ref in load(refs):
        where = f"{refs.name}: ref {ref.get('ref_id', index) if isinstance(ref, dict) else index}"
        try:
            split, image = field(ref, "split", str, where), field(ref, "image_id", int, where)
            for name, kind in (("ref_id", int), ("ann_id", int), ("sentences", list)):
                field(ref, name, kind, where)
            if ref["ref_id"] in seen:
                raise BadRecord(f"{where}: this ref_id comes a second time")
            seen.add(ref["ref_id"])
        except BadRecord as error:
            report.bad(str(error))
            continue
        if names is None or split in names:
            grouped.setdefault((split if names is None else names[split], image), []).append((where, ref))
            wanted.add(image)
    return grouped, wanted


def _annotated(instances, wanted, report):
    """image -> (file name, size), and image -> {annotation id: box}, of the images wanted."""
    pictures, boxes = {}, {}
    for index, record in elements(instances, "images"):
        where = f"{instances.name}: images: record {index}"
        try:
            image = field(record, "id", int, where)
            if image in wanted:
                size = field(record, "width", int, where), field(record, "height", int, where)
                name = field(record, "file_name", str, where)
                below(Path(), name, where)
                pictures[image] = name, size
        except BadRecord as error:
            report.bad(str(error))
    for index, record in elements(instances, "annotations"):
        where = f"{instances.name}: annotations: record {index}"
        try:
            image, number = field(record, "image_id", int, where), field(record, "id", int, where)
            if image in pictures:
                boxes.setdefault(image, {})[number] = field(record, "bbox", list, where)
        except BadRecord as error:
            report.bad(str(error))
    return pictures, boxes


def _drafts(grouped, pictures, boxes, file, instances, images, report):
    for (prefix, image), refs in grouped.items():
        if image not in pictures:
            report.bad(f"{refs[0][0]}: image {image} is not in {instances}")
            continue
        name, size = pictures[image]
        annotated = boxes.get(image, {})
        regions = [r for r in (_region(where, ref, annotated, instances, size, report) for where, ref in refs) if r]
        if not regions:
            report.leave_out("pictures without regions", f"{file}: image {image}")
            continue
        quiet = Report(skip_bad=True)  # what is wrong with a box that nobody refers to is not worth a word
        others = [box for box in (fit(b, size, "", quiet) for b in annotated.values()) if box]
        info = {"image_id": f"coco-{image}", "width": size[0], "height": size[1], "regions": regions, "boxes": others}
        yield Draft(prefix, f"{image:012d}", _find(images, name), info, f"{instances}: image {image}", size)


def _region(where, ref, annotated, instances, size, report):
    number = ref["ann_id"]
    if number not in annotated:
        report.bad(f"{where}: annotation {number} of image {ref['image_id']} is not in {instances}")
        return None
    box = fit(annotated[number], size, f"{where}: annotation {number}", report)
    said = []
    for index, sentence in enumerate(ref["sentences"]):
        try:
            said.append(clean(field(sentence, "sent", str, f"{where}: sentence {index}"), where, report))
        except BadRecord as error:
            report.bad(str(error))
    said = [s for s in said if s]
    if not box or not said:
        return None
    return {"box": box, "caption": said, "ref_id": ref["ref_id"]}


def _find(images: Path, name: str) -> Path:
    """COCO's pictures lie in one folder, or in one a year that their names tell."""
    inside = images / ("val2014" if "val2014" in name else "train2014") / name
    return inside if inside.is_file() else images / name


def held_out(refs: Path) -> frozenset:
    """The COCO ids of every split but train, which no pretraining may show."""
    return frozenset(ref["image_id"] for _, ref in load(Path(refs)) if ref.get("split") != "train")


def load(path: Path):
    """(index, ref) of a REFER file, pickle or JSON."""
    if path.suffix == ".json":
        return elements(path)
    try:
        with path.open("rb") as file:
            found = _Plain(file, path.name).load()
    except OSError as error:
        raise BadFile(f"{path}: {error.strerror}") from None
    except (pickle.UnpicklingError, EOFError, ValueError, LookupError, TypeError, AttributeError, OverflowError,
            MemoryError) as error:
        if isinstance(error, BadRecord):
            raise
        raise BadFile(f"{path.name}: not a whole pickle ({type(error).__name__}: {error})") from None
    if not isinstance(found, list):
        raise BadFile(f"{path.name}: expected a list of refs, found a {type(found).__name__}")
    return enumerate(found)


class _Plain(pickle.Unpickler):
    """Loads lists, dicts, strings and numbers only: a pickle that names anything else could run code."""

    def __init__(self, file, name):
        super().__init__(file, encoding="utf-8", errors="replace")  # Python 2 wrote the release: its strings are bytes
        self.name = name

    def find_class(self, module, name):
        raise BadFile(f"{self.name}: refused: it names `{module}.{name}`, and a REFER file holds only lists, dicts, "
                        "strings and numbers; get the file from its official source")
