"""The classes of labels: their names, where these come from, and the dataset of a folder for each."""

import hashlib
import os
import random
from collections import Counter
from pathlib import Path
from typing import Annotated

import numpy as np

from xtoolkit.batch import ImageField
from xtoolkit.data import items, limits, scan, tables
from xtoolkit.data.base import StreamDataset
from xtoolkit.data.errors import BadSample
from xtoolkit.data.images import CLIP_MEAN, CLIP_STD, ENDINGS, Augment, Mean, Std
from xtoolkit.data.process import ImageProcessor
from xtoolkit.fields import LabelField
from xtoolkit.registry import DATASET_REGISTRY, ConfigError, Range

Classes = list[str] | Annotated[int, Range(2)] | str


def class_names(classes: Classes) -> list[str]:
    """The names of classes in the order of their numbers.

    Args:
        classes: the names; how many: `0`, `1`, ...; or a path: of a folder, the sorted names of the folders in it, else of a
            file of one name a line.

    Raises:
        ConfigError: a path that cannot be read, fewer than two names, a name twice.
    """
    found = classes
    if isinstance(classes, int):
        found = map(str, range(classes))
    elif isinstance(classes, str):
        path = Path(classes).expanduser()
        try:
            found = folders(path) if path.is_dir() else limits.decode(path.read_bytes()).split("\n")
        except (OSError, ValueError) as e:
            raise ConfigError(f"data.classes: {classes}: {getattr(e, 'strerror', None) or e}")
    found = [name.strip() for name in found if name.strip()]
    twice = [name for name, count in Counter(found).items() if count > 1]
    if twice or len(found) < 2:
        what = f"`{twice[0]}` stands there twice" if twice else f"{len(found)} classes, two at least"
        raise ConfigError(f"data.classes: {classes if isinstance(classes, str) else found}: {what}")
    return found


def folders(path: str | Path) -> list[str]:
    """The sorted names of the folders in a folder, hidden ones left out, see ``scan.hidden``."""
    with os.scandir(path) as entries:
        return sorted(entry.name for entry in entries if entry.is_dir() and not scan.hidden(entry.name))


def class_paths(block: dict) -> list[tuple[str, str]]:
    """The path of classes, where a block names one, as ``StreamDataset.paths`` has it."""
    return [("classes", block["classes"])] if isinstance(block.get("classes"), str) else []


def missing_classes(block: dict) -> list[tuple[str, str]]:
    return [(key, f"{path}: no such file or folder; give names, a file of a name a line, or a folder of a folder a class")
            for key, path in class_paths(block) if not os.path.exists(os.path.expanduser(path))]


@DATASET_REGISTRY.register
class ImageFolder(StreamDataset):
    """Pictures in a folder for each class, as torchvision reads them: `beagle/1.jpg`, `pug/a/2.jpg`; but hidden folders are none.

    YAML: {type: ImageFolder, path: data/pets/val, classes: data/pets/train}

    Args:
        path: a folder of a folder a class; what is no picture by its ending, lies beside the folders or is hidden is left out.
        classes: null: the folders, sorted; else as LabelledImages has them, and the folders must be these and no others.
        others: augment: mean: std: as Images has them.
    """

    FIELDS = {"image": ImageField, "label": LabelField}

    def __init__(self, image_size, patch_size, path: str, train: bool = True, classes: Classes | None = None,
                 augment: Augment | None = None, mean: Mean = CLIP_MEAN, std: Std = CLIP_STD):
        self.train, self._path = train, os.path.expanduser(path)
        if found := self.missing({"path": path, "classes": classes}):
            raise ConfigError([f"data.{key}: {message}" for key, message in found])
        self.names = class_names(classes or self._path)
        found, left_out = _files(self._path)
        self.left_out = {path: left_out} if left_out else {}
        for wrong, what in ((sorted(found.keys() - set(self.names)), "folders that are no class"),
                            ([name for name in self.names if not found.get(name)], "no picture of the class")):
            if wrong:
                of = f" of {classes}" if isinstance(classes, str) else ""
                raise ConfigError(f"data.path: {path}: {what}: {', '.join(wrong[:6])}{', ...' if wrong[6:] else ''} "
                                  f"({len(wrong)}; there are {len(self.names)} classes{of})")
        self._ends = np.cumsum([len(found[name]) for name in self.names])
        self._files = np.array([file for name in self.names for file in found[name]])  # one array: forked workers share it
        self.images = ImageProcessor(image_size, patch_size, mean, std, (augment or Augment()) if train else None)

    @classmethod
    def paths(cls, block: dict) -> list[tuple[str, str]]:
        return [("path", block["path"]), *class_paths(block)]

    @classmethod
    def missing(cls, block: dict) -> list[tuple[str, str]]:
        there = os.path.isdir(os.path.expanduser(block["path"]))
        return ([] if there else [("path", f"{block['path']}: no such folder")]) + missing_classes(block)

    @property
    def sizes(self) -> list[int]:
        return [len(self._files)]

    @property
    def digests(self) -> dict[str, str]:
        return {"data": hashlib.blake2b(self._files.tobytes(), digest_size=16).hexdigest()}  # of names: which sample is which

    def place(self, source: int, sample: int) -> str:
        return os.path.join(self._path, self._name(sample))

    def _name(self, sample: int) -> str:
        return self._files[sample].decode("utf-8", "replace")

    def load(self, source: int, sample: int, rows: int, rng: random.Random) -> items.Item:
        name, label = self._name(sample), int(np.searchsorted(self._ends, sample, side="right"))
        bad = lambda kind, detail: BadSample(kind, self._path, f"{name}: {detail}")
        # A link may lead anywhere: it is the user's own.
        folder, file = os.path.split(os.path.realpath(os.path.join(self._path, os.fsdecode(self._files[sample]))))
        return items.Item(self.images(tables.picture(folder, file, bad), name, rng, bad), fields={"label": label})


def _files(folder: str) -> tuple[dict[str, list[bytes]], Counter]:
    """The sorted pictures below each folder of a folder, relative to that; and how many files are left out, by reason."""
    found, left_out = {name: [] for name in folders(folder)}, Counter()
    for top in sorted(os.listdir(folder)):
        seen, inside = set(), os.walk(os.path.join(folder, top), followlinks=True)
        for at, below, files in inside if os.path.isdir(os.path.join(folder, top)) else [(folder, [], [top])]:
            seen.add(os.path.realpath(at))
            below[:] = [one for one in below if os.path.realpath(os.path.join(at, one)) not in seen]  # a link may lead upwards
            for name in (os.path.relpath(os.path.join(at, file), folder) for file in files):
                if scan.hidden(name):
                    left_out["hidden files"] += 1
                elif name.rpartition(".")[2].lower() not in ENDINGS:
                    left_out["files of unknown endings"] += 1
                elif top not in found:
                    left_out["pictures in no folder of a class"] += 1
                else:
                    found[top].append(os.fsencode(name))
    return {name: sorted(files) for name, files in found.items()}, left_out
