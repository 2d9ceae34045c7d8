"""Visual Genome: region descriptions, and objects with their attributes -> region samples."""

from pathlib import Path

from xtoolkit.prepare.official import BadRecord, Report, clean, field, fit
from xtoolkit.prepare.run import write_pictures
from xtoolkit.prepare.streaming import elements, join
from xtoolkit.prepare.writer import Draft, Options


def convert(image_data: Path, regions: Path, images: Path, options: Options, objects: Path | None = None,
            attributes: Path | None = None, exclude: frozenset = frozenset(), prefix: str = "train") -> Report:
    """Writes one region sample a picture: its described regions, then its objects, whose names are their captions.

    Args:
        image_data: ``image_data.json``: size, and the COCO id of the half of the pictures that COCO has too.
        regions: ``region_descriptions.json``.
        images: the folder of ``VG_100K`` and ``VG_100K_2``, or of the pictures themselves.
        objects: ``objects.json``; None leaves objects out.
        attributes: ``attributes.json``: words that the reader may put before an object's name.
        exclude: COCO ids to leave out: the val and test pictures of the benchmarks to come.
        prefix: of the shards.

    Raises:
        BadRecord: names the file, the image and the region or object.
    """
    report = Report(options.skip_bad)
    pictures = dict(_pictures(Path(image_data), report))
    files = {"regions": regions, "objects": objects, "attributes": attributes}
    files = {name: Path(path) for name, path in files.items() if path is not None}
    sources = {name: _by_image(path, report) for name, path in files.items()}
    found = _drafts(join(sources), pictures, files, _Finder(Path(images)), exclude, prefix, report)
    return write_pictures(f"vg-{prefix}", found, options, report)


def _pictures(path, report):
    seen = set()
    for index, record in elements(path):
        where = f"{path.name}: record {index}"
        try:
            image = _image_id(record, where)
            size = field(record, "width", int, where), field(record, "height", int, where)
        except BadRecord as error:
            report.bad(str(error))
            continue
        if image in seen:
            report.bad(f"{where}: image {image} comes a second time")
            continue
        seen.add(image)
        yield image, (size, record.get("coco_id"))


def _image_id(record, where) -> int:
    """The files of the release call it ``image_id``, but for region descriptions, which say ``id``."""
    return field(record, "image_id" if isinstance(record, dict) and "image_id" in record else "id", int, where)


def _by_image(path, report):
    """(image id, record) of a file of the release."""
    seen = set()
    for index, record in elements(path):
        where = f"{path.name}: record {index}"
        try:
            image = _image_id(record, where)
        except BadRecord as error:
            report.bad(str(error))
            continue
        if image in seen:
            report.bad(f"{where}: image {image} comes a second time")
            continue
        seen.add(image)
        yield image, record


def _drafts(joined, pictures, files, finder, exclude, prefix, report):
    for image, records in joined:
        if image not in pictures:
            names = ", ".join(files[name].name for name in records)
            report.bad(f"{names}: image {image} is not in image_data.json")
            continue
        size, coco = pictures[image]
        if coco is not None and coco in exclude:
            report.leave_out("excluded pictures", f"image {image} (COCO {coco})")
            continue
        found = []
        if "regions" in records:
            found += _described(records["regions"], f"{files['regions'].name}: image {image}", size, report)
        if "objects" in records:
            words = _words(records.get("attributes"), f"{files['attributes'].name}: image {image}", report) \
                if "attributes" in files else {}
            found += _named(records["objects"], words, f"{files['objects'].name}: image {image}", size, report)
        if not found:
            report.leave_out("pictures without regions", f"image {image}")
            continue
        info = {"image_id": f"vg-{image}" if coco is None else f"coco-{coco}", "width": size[0], "height": size[1],
                "regions": found}
        yield Draft(prefix, str(image), finder(image), info, f"image_data.json: image {image}", size)


def _described(record, where, size, report):
    for index, region in enumerate(_list(record, "regions", where, report)):
        place = f"{where}: region {region.get('region_id', index) if isinstance(region, dict) else index}"
        try:
            box = [field(region, name, (int, float), place) for name in ("x", "y", "width", "height")]
            phrase = field(region, "phrase", str, place)
        except BadRecord as error:
            report.bad(str(error))
            continue
        box, phrase = fit(box, size, place, report), clean(phrase, place, report)
        if box and phrase:
            yield {"box": box, "caption": phrase}


def _named(record, words, where, size, report):
    for index, thing in enumerate(_list(record, "objects", where, report)):
        place = f"{where}: object {thing.get('object_id', index) if isinstance(thing, dict) else index}"
        try:
            box = [field(thing, name, (int, float), place) for name in ("x", "y", "w", "h")]
            names = field(thing, "names", list, place)
        except BadRecord as error:
            report.bad(str(error))
            continue
        box, names = fit(box, size, place, report), [n for n in (clean(n, place, report) for n in names) if n]
        if box and names:
            region = {"box": box, "caption": names[0] if len(names) == 1 else names}
            if words.get(thing.get("object_id")):
                region["attributes"] = words[thing["object_id"]]
            yield region


def _words(record, where, report) -> dict:
    """object id -> its attributes, each once."""
    found = {}
    for index, thing in enumerate(_list(record, "attributes", where, report) if record is not None else ()):
        place = f"{where}: object {thing.get('object_id', index) if isinstance(thing, dict) else index}"
        try:
            number = field(thing, "object_id", int, place)
        except BadRecord as error:
            report.bad(str(error))
            continue
        words = [clean(w, place, report) for w in thing.get("attributes") or ()]  # an object without any may say null
        found[number] = list(dict.fromkeys(w for w in words if w))
    return found


def _list(record, name, where, report) -> list:
    try:
        return field(record, name, list, where)
    except BadRecord as error:
        report.bad(str(error))
        return []


class _Finder:
    """Where the picture of an image id is: the release comes in two folders."""

    def __init__(self, root: Path):
        self.folders = [folder for folder in (root / "VG_100K", root / "VG_100K_2") if folder.is_dir()] or [root]

    def __call__(self, image: int) -> Path:
        places = [folder / f"{image}.jpg" for folder in self.folders]
        return next((place for place in places if place.is_file()), places[0])
