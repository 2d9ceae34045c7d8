"""Classification sets as torchvision reads them -> pictures with a label, and the names of the classes."""

import io
from collections import defaultdict
from dataclasses import dataclass, field
from functools import lru_cache
from hashlib import sha256
from pathlib import Path

from xtoolkit.prepare.official import BadRecord, MissingFile, Report, picture
from xtoolkit.prepare.run import Job, run
from xtoolkit.prepare.writer import ListPart, Options, TarPart
from xtoolkit.registry import nearest


@dataclass(frozen=True)
class Set:
    """How torchvision reads one.

    Attributes:
        name: of its class in ``torchvision.datasets``.
        splits: our split -> what its constructor is told.
        drawn: for a set without splits, our split -> how many of each class, drawn once and for all; None: all others.
        loads: it takes a ``loader``, so that its pictures can be stored byte for byte; others are stored as PNG.
        numbers: the labels of a set whose classes torchvision has no names for.
    """

    name: str
    splits: dict = field(default_factory=lambda: {split: {"split": split} for split in ("train", "test")})
    drawn: dict = field(default_factory=dict)
    loads: bool = False
    numbers: range | None = None


THREE = {split: {"split": split} for split in ("train", "val", "test")}
FLAG = {"train": {"train": True}, "test": {"train": False}}
SETS = {
    "food101": Set("Food101", loads=True),
    "cifar10": Set("CIFAR10", FLAG),
    "cifar100": Set("CIFAR100", FLAG),
    "cars": Set("StanfordCars", loads=True),
    "aircraft": Set("FGVCAircraft", THREE, loads=True),
    "dtd": Set("DTD", THREE, loads=True),
    "pets": Set("OxfordIIITPet", {"train": {"split": "trainval"}, "test": {"split": "test"}}),
    "flowers102": Set("Flowers102", THREE, loads=True),
    "mnist": Set("MNIST", FLAG),
    "fashion-mnist": Set("FashionMNIST", FLAG),
    "stl10": Set("STL10"),
    "svhn": Set("SVHN", numbers=range(10)),
    "country211": Set("Country211", THREE | {"val": {"split": "valid"}}, loads=True),
    "sst2": Set("RenderedSST2", THREE, loads=True),
    "gtsrb": Set("GTSRB", numbers=range(43)),
    "pcam": Set("PCAM", THREE, numbers=range(2)),
    "fer2013": Set("FER2013", numbers=range(7)),
    "clevr": Set("CLEVRClassification",
                 {split: {"split": split} for split in ("train", "val")}, loads=True, numbers=range(3, 11)),
    "caltech101": Set("Caltech101", {}, {"train": 30, "test": None}),
    "eurosat": Set("EuroSAT", {}, {"train": 1000, "test": 500}, loads=True),
    "sun397": Set("SUN397", {}, {"train": 50, "test": 50}, loads=True),
}


def convert(called: str, root: Path, options: Options, splits: list | None = None) -> Report:
    """Writes ``SPLIT-00000.tar`` and on, whose jsons have ``label``, a class's name; ``classes.txt`` has the names in order.

    Nothing is downloaded: the files lie in ``root`` as torchvision has them there. A class without a name is called by its
    number.

    Args:
        called: which of SETS.
        splits: which of its splits; None: all.

    Raises:
        MissingFile: there is no such set or split, or torchvision does not find the files.
    """
    if called not in SETS:
        raise MissingFile(f"{root}: no set `{called}`{nearest(called, SETS)}; there are {', '.join(SETS)}")
    there = SETS[called].splits or SETS[called].drawn
    if wrong := next((split for split in splits or () if split not in there), None):
        raise MissingFile(f"{root}: {called} has no split `{wrong}`{nearest(wrong, there)}; it has {', '.join(there)}")
    jobs = []
    for split in splits or there:
        found, _, numbers = _load(called, str(root), split)
        jobs += [Job(split, TarPart, write_pictures, (called, str(root), split, first, len(numbers)))
                 for first in range(0, len(numbers), options.shard_size)]
    jobs.append(Job("classes", ListPart, write_classes, (called, str(root), next(iter(splits or there)))))
    return run(f"torchvision-{called}", jobs, options, Report(options.skip_bad), len(jobs))


@lru_cache(maxsize=3)
def _load(called: str, root: str, split: str) -> tuple:
    """torchvision's dataset, {label: name of the class}, and the numbers of the split's samples."""
    from torchvision import datasets  # takes seconds: not for who prepares anything else

    what = SETS[called]
    told = dict(what.splits.get(split, {})) | ({"loader": Path} if what.loads else {})
    try:
        found = getattr(datasets, what.name)(root, **told)
    except (RuntimeError, OSError, ImportError) as error:
        raise MissingFile(f"{root}: torchvision finds no {what.name} there: {error}. Nothing is downloaded here: "
                          f"`torchvision.datasets.{what.name}` says what lies where") from None
    names = getattr(found, "classes", getattr(found, "categories", None)) or ()
    names = {n: str(n) for n in what.numbers} if what.numbers else {n: " ".join(name.split()) for n, name in enumerate(names)}
    return found, names, range(len(found)) if what.splits else _drawn(found, what.drawn)[split]


def _drawn(found, counts: dict) -> dict:
    """{split: numbers of its samples}, where the set has no splits: so many of each class, by a draw that is always the same."""
    classes, drawn = defaultdict(list), {split: [] for split in counts}
    for number, label in enumerate(_labels(found)):
        classes[label].append(number)
    for numbers in classes.values():
        left = sorted(numbers, key=lambda number: sha256(str(number).encode()).digest())
        for split, count in counts.items():
            drawn[split] += left[:count]
            left = left[len(left[:count]):]
    return {split: sorted(numbers) for split, numbers in drawn.items()}


def _labels(found) -> list:
    """Of every sample, without opening its picture: torchvision keeps them as `targets`, `_labels` or Caltech's `y`."""
    return next(getattr(found, name) for name in ("targets", "_labels", "y") if hasattr(found, name))


def write_pictures(payload: tuple, part: TarPart):
    """The work of one job: samples of a split, from the ``first`` on."""
    called, root, split, first, _ = payload
    found, names, numbers = _load(called, root, split)
    for number in numbers[first:first + part.options.shard_size]:
        where = f"{called}: {split}: sample {number}"
        try:
            shown, label = found[number]
            ending, data, size = picture(shown if isinstance(shown, Path) else _png(shown), where, part.options.verify)
            if label not in names:
                raise BadRecord(f"{where}: the label is {label}, none of the {len(names)} classes")
        except BadRecord as error:
            part.report.bad(str(error))
            continue
        part.write(f"{number:07d}", ending, data, {"image_id": f"{called}-{split}-{number}", "label": names[label]}, size)


def _png(image) -> bytes:
    data = io.BytesIO()
    image.save(data, "PNG")
    return data.getvalue()


def write_classes(payload: tuple, part: ListPart):
    """The work of one job: the names of a set's classes, in the order of their numbers."""
    _, names, _ = _load(*payload)
    for name in names.values():
        part.write(name)
