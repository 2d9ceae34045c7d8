"""COCO (and Flickr30k) captions in Karpathy's split -> pairs."""

from pathlib import Path

from xtoolkit.prepare.official import BadRecord, Report, below, clean, field
from xtoolkit.prepare.run import write_pictures
from xtoolkit.prepare.streaming import elements
from xtoolkit.prepare.writer import Draft, Options

SPLITS = {"train": "train", "restval": "train", "val": "val", "test": "test"}


def convert(annotations: Path, images: Path, options: Options, names: dict | None = None,
            exclude: frozenset = frozenset()) -> Report:
    """Writes a pair sample a picture, with all its captions; ``restval`` joins ``train``.

    Args:
        annotations: ``dataset_coco.json`` of Karpathy's ``caption_datasets.zip``; ``dataset_flickr30k.json`` has
            the same structure without ``cocoid`` and ``filepath``.
        images: the folder of ``train2014`` and ``val2014`` (Flickr30k: of the pictures).
        names: split -> prefix of its shards; a split not in it is left out. None: each split under its own name.
        exclude: COCO ids to leave out of the train split (pictures of other benchmarks' test splits).

    Raises:
        BadRecord: names ``dataset_coco.json`` and the image.
    """
    report = Report(options.skip_bad)
    label = "-".join(["coco", *(names or {}).values()])
    names = {name: name for name in SPLITS.values()} if names is None else names
    return write_pictures(label, _drafts(Path(annotations), Path(images), names, exclude, report), options, report)


def _drafts(annotations, images, names, exclude, report):
    seen = set()
    for index, record in elements(annotations, "images"):
        where = f"{annotations.name}: image {index}"
        try:
            draft = _draft(record, where, annotations.name, images, names, exclude, report)
            if draft is not None and draft.key in seen:
                raise BadRecord(f"{draft.where}: this picture comes a second time")
        except BadRecord as error:
            report.bad(str(error))
            continue
        if draft is not None:
            seen.add(draft.key)
            yield draft


def _draft(record, where, file, images, names, exclude, report):
    filename = field(record, "filename", str, where)
    where = f"{file}: image {record.get('cocoid', record.get('imgid'))} ({filename})"
    split = field(record, "split", str, where)
    if split not in SPLITS:
        raise BadRecord(f"{where}: unknown split {split!r}; it must be one of {', '.join(SPLITS)}")
    split = SPLITS[split]
    if split not in names:
        return None
    coco = field(record, "cocoid", int, where) if "cocoid" in record else None
    if split == "train" and coco in exclude:
        report.leave_out("excluded pictures", where)
        return None
    sentences = field(record, "sentences", list, where)
    captions = [clean(field(s, "raw", str, f"{where}: sentence {n}"), f"{where}: sentence {n}", report)
                for n, s in enumerate(sentences)]
    captions = [c for c in captions if c]
    if not captions:
        raise BadRecord(f"{where}: no captions")
    stem = Path(filename).stem
    key, image_id = stem.replace(".", "_"), f"flickr30k-{stem}"
    if coco is not None:
        key, image_id = f"{coco:012d}", f"coco-{coco}"
    info = {"image_id": image_id, "captions": captions}
    folder = below(images, field(record, "filepath", str, where), where) if "filepath" in record else images
    return Draft(names[split], key, below(folder, filename, where), info, where)


def held_out(annotations: Path) -> frozenset:
    """The COCO ids of Karpathy's val and test splits, which no pretraining may show."""
    return frozenset(field(record, "cocoid", int, f"{Path(annotations).name}: image {index}")
                     for index, record in elements(annotations, "images") if record.get("split") in ("val", "test"))
