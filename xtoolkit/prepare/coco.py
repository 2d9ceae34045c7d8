"""COCO's captions, in Karpathy's split or in COCO's own files, and Flickr30k's -> pairs."""

import re
from pathlib import Path

from xtoolkit.prepare import records
from xtoolkit.prepare.official import BadRecord, Report, clean, field
from xtoolkit.prepare.records import Finder, coco_id, each
from xtoolkit.prepare.run import write_pictures
from xtoolkit.prepare.streaming import elements
from xtoolkit.prepare.writer import Draft, Options

SPLITS = {"train": "train", "restval": "train", "val": "val", "test": "test"}
YEARS = tuple(f"{split}{year}" for year in (2014, 2017) for split in ("train", "val", "test"))  # the folders of COCO's archives


def convert(annotations: Path, images: Path, options: Options, names: dict | None = None,
            exclude: frozenset = frozenset()) -> Report:
    """Writes a pair sample a picture, with all its captions; ``restval`` joins ``train``.

    Args:
        annotations: ``dataset_coco.json`` of Karpathy's ``caption_datasets.zip``; ``dataset_flickr30k.json``, which has
            the same structure without ``cocoid`` and ``filepath``; or COCO's own ``captions_train2017.json``. In that one
            captions come in any order, so all are held: about 150 bytes each, 90 MB for ``train2017``.
        names: split -> prefix of its shards; a split not in it is left out. None: each split under its own name. COCO's
            own files hold the split of their name, and ``train`` where it says none.
        exclude: COCO ids to leave out of the train split.
    """
    report, annotations = Report(options.skip_bad), Path(annotations)
    label = "-".join(["coco", *(names or {}).values()])
    names = {name: name for name in SPLITS.values()} if names is None else names
    _, first = next(elements(annotations, "images"), (0, None))
    read = _karpathy
    if isinstance(first, dict) and "file_name" in first:
        read, label = _own, f"{label}-{annotations.stem}"
    return write_pictures(label, read(annotations, Finder(images, YEARS), names, exclude, report), options, report)


def _karpathy(annotations, finder, names, exclude, report):
    def draft(record, where):
        filename, folder = field(record, "filename", str, where), field(record, "filepath", str | None, where)
        where = f"{where} ({filename})"
        split = _split(record, where)
        coco = field(record, "cocoid", int | None, where)
        if split not in names:
            return None
        if split == "train" and coco in exclude:
            return report.leave_out("excluded pictures", where)
        said = ((field(sentence, "raw", str, f"{where}: sentence {n}"), f"{where}: sentence {n}")
                for n, sentence in enumerate(field(record, "sentences", list, where)))
        captions = [caption for text, place in said if (caption := clean(text, place, report))]
        if not captions:
            raise BadRecord(f"{where}: no captions")
        stem = Path(filename).stem
        key, image_id = (stem.replace(".", "_"), f"flickr30k-{stem}") if coco is None else (f"{coco:012d}", f"coco-{coco}")
        picture = finder(f"{folder}/{filename}" if folder else filename, where)
        return key, Draft(names[split], key, picture, {"image_id": image_id, "captions": captions}, where)

    found = each(elements(annotations, "images"), f"{annotations.name}: image", draft, report, "cocoid", "picture")
    return (draft for _, draft in found)


def _split(record, where) -> str:
    split = field(record, "split", str, where)
    if split not in SPLITS:
        raise BadRecord(f"{where}: unknown split {split!r}; it must be one of {', '.join(SPLITS)}")
    return SPLITS[split]


def _own(annotations, finder, names, exclude, report):
    """Drafts of COCO's own file: pictures and captions are lists of their own, joined by the picture's id."""
    file, said, known = annotations.name, {}, set()
    named = re.search("(?<![a-z])(?:mini)?(train|val|test)", file)
    split = named.group(1) if named else "train"
    prefix = names.get(split)

    def caption(record, where):
        image = field(record, "image_id", int, where)
        return image, clean(field(record, "caption", str, where), where, report)

    def draft(record, where):
        image, name = field(record, "id", int, where), field(record, "file_name", str, where)
        where, picture, coco = f"{where} ({name})", finder(name, where), coco_id(name)
        known.add(image)
        if coco in exclude and split == "train":
            return report.leave_out("excluded pictures", where)
        if image not in said:
            return report.leave_out("pictures without captions", where)
        info = {"image_id": f"coco-{coco}" if coco is not None else f"{annotations.stem}-{image}", "captions": said[image]}
        return image, Draft(prefix, f"{image:012d}", picture, info, where)

    if prefix is None:
        return
    for image, text in each(elements(annotations, "annotations"), f"{file}: annotation", caption, report, "id"):
        if text:
            said.setdefault(image, []).append(text)
    for _, found in each(elements(annotations, "images"), f"{file}: image", draft, report, "id", "image"):
        yield found
    for image in said.keys() - known:
        report.bad(f"{file}: image {image} has captions and is not in the list of images")


def held_out(annotations: Path) -> frozenset:
    """The COCO ids of Karpathy's val and test splits. Raises BadFile where any of its records is wrong."""
    def number(record, where):
        return field(record, "cocoid", int, where) if _split(record, where) != "train" else None

    return records.held_out(elements(annotations, "images"), f"{Path(annotations).name}: image", number)
