"""Visual Genome: region descriptions, and objects with their attributes -> region samples."""

from functools import partial
from pathlib import Path

from xtoolkit.prepare.official import Report, clean, cleaned, field, fit
from xtoolkit.prepare.records import Finder, each, nested
from xtoolkit.prepare.run import write_pictures
from xtoolkit.prepare.streaming import elements, join
from xtoolkit.prepare.writer import Draft, Options


def convert(image_data: Path, regions: Path, images: Path, options: Options, objects: Path | None = None,
            attributes: Path | None = None, exclude: frozenset = frozenset(), prefix: str = "train") -> Report:
    """Writes one region sample a picture: its described regions, then its objects, whose names are their captions.

    Args:
        image_data: ``image_data.json``: size, and the COCO id of the half of the pictures that COCO has too.
        regions: ``region_descriptions.json``.
        objects: ``objects.json``; None leaves objects out.
        attributes: ``attributes.json``: words that the reader may put before an object's name.
        exclude: COCO ids to leave out.
    """
    report = Report(options.skip_bad)
    pictures = {image: found for image, *found in _by_image(Path(image_data), _picture, report)}
    files = (("regions", regions), ("objects", objects), ("attributes", attributes))
    files = {name: Path(path) for name, path in files if path is not None}
    finder = Finder(images, ("VG_100K", "VG_100K_2"))
    drafts = _drafts(files, pictures, finder, exclude, prefix, report)
    return write_pictures(f"vg-{prefix}", drafts, options, report)


def _by_image(path, parse, report):
    return each(elements(path), f"{path.name}: record", parse, report, unique="image")


def _picture(record, where):
    """image, size, COCO id."""
    size = field(record, "width", int, where), field(record, "height", int, where)
    return _image_id(record, where), size, field(record, "coco_id", int | None, where)


def _image_id(record, where) -> int:
    """The files of the release call it ``image_id``, but for region descriptions, which say ``id``."""
    return field(record, "image_id" if isinstance(record, dict) and "image_id" in record else "id", int, where)


def _drafts(files, pictures, finder, exclude, prefix, report):
    def with_id(record, where):
        return _image_id(record, where), record

    for image, records in join({name: _by_image(path, with_id, report) for name, path in files.items()}):
        if image not in pictures:
            report.bad(f"{', '.join(files[name].name for name in records)}: image {image} is not in image_data.json")
            continue
        size, coco = pictures[image]
        if coco in exclude:
            report.leave_out("excluded pictures", f"image {image} (COCO {coco})")
            continue

        def inside(name, kind, parse):
            if name not in records:
                return ()
            return nested(records[name], name, f"{files[name].name}: image {image}", kind, parse, report, f"{kind}_id")

        words = dict(inside("attributes", "object", partial(_words, report=report)))
        found = [*inside("regions", "region", partial(_described, size=size, report=report)),
                 *inside("objects", "object", partial(_named, words=words, size=size, report=report))]
        where = f"image_data.json: image {image}"
        if not found:
            report.leave_out("pictures without regions", where)
            continue
        info = {"image_id": f"vg-{image}" if coco is None else f"coco-{coco}", "width": size[0], "height": size[1],
                "regions": found}
        yield Draft(prefix, str(image), finder(f"{image}.jpg", where), info, where, size)


def _described(region, where, size, report):
    box = [field(region, name, int | float, where) for name in ("x", "y", "width", "height")]
    box, phrase = fit(box, size, where, report), clean(field(region, "phrase", str, where), where, report)
    return {"box": box, "caption": phrase} if box and phrase else None


def _named(thing, where, words, size, report):
    box = [field(thing, name, int | float, where) for name in ("x", "y", "w", "h")]
    names, number = field(thing, "names", list[str], where), field(thing, "object_id", int | None, where)
    box, names = fit(box, size, where, report), cleaned(names, where, report)
    if not box or not names:
        return None
    region = {"box": box, "caption": names[0] if len(names) == 1 else names}
    return region | {"attributes": words[number]} if words.get(number) else region


def _words(thing, where, report):
    """(object id, its attributes, each once)."""
    words = field(thing, "attributes", list[str] | None, where) or ()  # an object without any may say null
    return field(thing, "object_id", int, where), list(dict.fromkeys(cleaned(words, where, report)))
