"""The classes of labels: their names, where these come from, and the dataset of a folder for each."""

import hashlib
import os
import random
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

import numpy as np

from xtoolkit.batch import Batch, ImageField
from xtoolkit.data import items, limits, paths, scan, tables
from xtoolkit.data.base import StreamDataset
from xtoolkit.data.errors import BadSample
from xtoolkit.data.images import CLIP_MEAN, CLIP_STD, ENDINGS, Augment, Mean, Scale, Std
from xtoolkit.data.process import ImageProcessor
from xtoolkit.data.order import Order
from xtoolkit.data.sharded import Sharded
from xtoolkit.fields import LabelField
from xtoolkit.registry import DATASET_REGISTRY, ConfigError, Positive, Range

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
        try:
            path = Path(paths.folder(classes))
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


def named(batch: Batch, names: list[str] | None) -> Batch:
    """The batch with the names of the classes beside its labels; itself without classes."""
    return batch if names is None else batch.with_fields(label=replace(batch["label"], classes=tuple(names)))


def class_paths(block: dict) -> list[tuple[str, str]]:
    """The path of classes, where a block names one, as ``StreamDataset.paths`` has it."""
    return [("classes", block["classes"])] if isinstance(block.get("classes"), str) else []


def missing_classes(block: dict) -> list[tuple[str, str]]:
    return [(key, f"{line}; give names, a file of a name a line, or a folder of a folder a class")
            for key, path in class_paths(block) if (line := paths.no_folder(path, files=True))]


@dataclass(frozen=True)
class FolderSource:
    """One of several `sources` of an ImageFolder.

    Attributes:
        path: a folder of a folder a class.
        weight: its share of the draws, among the weights of all sources.
    """

    path: str
    weight: Positive = 1.0


@DATASET_REGISTRY.register
class ImageFolder(StreamDataset):
    """Pictures in a folder for each class, as torchvision reads them: `beagle/1.jpg`, `pug/a/2.jpg`; but hidden folders are none.

    YAML: {type: ImageFolder, path: data/pets/val, classes: data/pets/train}

    Args:
        path: a folder of a folder a class; what is no picture by its ending, lies beside the folders or is hidden is left out.
        sources: several, {name: {path, weight}}, instead of `path`. Not training: ``source`` names the source of each picture.
        classes: null: the folders, of the first source, sorted; else as LabelledImages has them. The folders of each source
            must be these and no others.
        crop: not training: the middle square, its side this share of the picture's shorter one, as in timm's evaluation (0.875
            at 224 pixels); null: the whole picture, its sides made equal, as the release.
        others: augment: mean: std: as Images has them.
    """

    FIELDS = {"image": ImageField, "label": LabelField}
    ALIKE = ("classes",)

    def __init__(self, image_size, patch_size, path: str | None = None, train: bool = True,
                 sources: dict[str, FolderSource] | None = None, classes: Classes | None = None,
                 augment: Augment | None = None, mean: Mean = CLIP_MEAN, std: Std = CLIP_STD,
                 crop: Scale | None = None):
        block = {"path": path, "sources": sources and {n: vars(one) for n, one in sources.items()}, "classes": classes}
        if found := self.check_source(block) or self.missing(block):
            raise ConfigError([f"data.{key}: {message}" for key, message in found])
        self.train, self._several, listed = train, sources is not None, sources or {"data": FolderSource(path)}
        self._sources, self._weights = list(listed), [source.weight for source in listed.values()]
        self._paths = [paths.folder(source.path) for source in listed.values()]
        if wrong := [source.path for source, folder in zip(listed.values(), self._paths) if not os.path.isdir(folder)]:
            raise ConfigError(f"data.path: {wrong[0]}: no folder of a folder a class")
        self.names = class_names(classes or self._paths[0])
        self._ends, self._files, self.left_out = [], [], {}
        for (name, source), folder in zip(listed.items(), self._paths):
            found, left_out = _files(folder)
            self.left_out |= {source.path: left_out} if left_out else {}
            for wrong, what in ((sorted(found.keys() - set(self.names)), "folders that are no class"),
                                ([one for one in self.names if not found.get(one)], "no picture of the class")):
                if wrong:
                    of = f" of {classes}" if isinstance(classes, str) else ""
                    key = f"sources.{name}.path" if self._several else "path"
                    raise ConfigError(f"data.{key}: {source.path}: {what}: {', '.join(wrong[:6])}{', ...' if wrong[6:] else ''} "
                                      f"({len(wrong)}; there are {len(self.names)} classes{of})")
            self._ends.append(np.cumsum([len(found[one]) for one in self.names]))
            # One array: forked workers share it.
            self._files.append(np.array([file for one in self.names for file in found[one]]))
        self.images = ImageProcessor(image_size, patch_size, mean, std, (augment or Augment()) if train else None, crop=crop)

    @classmethod
    def check_source(cls, block: dict) -> list[tuple[str, str]]:
        return Sharded.check_source(block)

    @classmethod
    def paths(cls, block: dict) -> list[tuple[str, str]]:
        return _folders_of(block) + class_paths(block)

    @classmethod
    def missing(cls, block: dict) -> list[tuple[str, str]]:
        named = block.get("classes") is not None
        return [(key, line) for key, path in _folders_of(block)
                if (line := paths.no_folder(path) or (None if named else _few(path)))] + missing_classes(block)

    @classmethod
    def example(cls, block: dict, rows: int, sizes: dict, views: frozenset, length: int | None = None) -> Batch:
        folders = {} if block["classes"] is not None else {"classes": "the folders"}  # unopened: which is not known
        return super().example(block | folders, rows, sizes, views, length)

    def collate(self, loaded: list[items.Item]) -> Batch:
        return named(super().collate(loaded), self.names)

    @property
    def sizes(self) -> list[int]:
        return [len(files) for files in self._files]

    @property
    def digests(self) -> dict[str, str]:
        """Of the names: which sample is which."""
        return {name: hashlib.blake2b(files.tobytes(), digest_size=16).hexdigest()
                for name, files in zip(self._sources, self._files)}

    def order(self, seed: int, stream: str, batch_size: int) -> Order:
        return Order(seed, stream, batch_size, self.sizes, self._weights)

    def place(self, source: int, sample: int) -> str:
        return os.path.join(self._paths[source], self._name(source, sample))

    def _name(self, source: int, sample: int) -> str:
        return self._files[source][sample].decode("utf-8", "replace")

    def load(self, source: int, sample: int, rows: int, rng: random.Random) -> items.Item:
        name, label = self._name(source, sample), int(np.searchsorted(self._ends[source], sample, side="right"))
        bad = lambda kind, detail: BadSample(kind, self._paths[source], f"{name}: {detail}")
        # A link may lead anywhere: it is the user's own.
        whole = os.path.join(self._paths[source], os.fsdecode(self._files[source][sample]))
        folder, file = os.path.split(os.path.realpath(whole))
        told = {} if self.train else {"source": self._sources[source]}
        name = f"{self._sources[source]}/{name}" if self._several else name
        return items.Item(self.images(tables.picture(folder, file, bad), name, rng, bad), fields={"label": label} | told)


def _folders_of(block: dict) -> list[tuple[str, str]]:
    """The path of each source with its key."""
    several = {f"sources.{name}.path": one.get("path") for name, one in (block.get("sources") or {}).items() if one is not None}
    return [(key, path) for key, path in ({"path": block.get("path")} | several).items() if path is not None]


def _few(path: str) -> str | None:
    """Why a folder cannot say what classes there are; None: it can, or is not unpacked yet."""
    if "://" in path or len(found := folders(path)) > 1:
        return None
    return (f"{path}: {f'one folder in it, `{found[0]}`' if found else 'no folder in it'}; a folder for each class is expected, "
            "its pictures inside")


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
