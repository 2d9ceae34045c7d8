"""What a record says that a dataset of tasks reads: texts, pictures by name, answers, a label among known classes."""

import os
import random
from collections import Counter
from pathlib import Path
from typing import Annotated

from xtoolkit.data import items, limits, paths
from xtoolkit.data.sharded import Sharded
from xtoolkit.data.shards import Shards
from xtoolkit.registry import ConfigError, Range

Classes = list[str] | Annotated[int, Range(2)] | str
LARGEST = 3e38  # what a float32 holds
SHOWN = 60  # characters of a wrong value that a message shows


class Record:
    """The json of one sample, or its line, read part by part; whatever is wrong with a part is a BadSample.

    Args:
        shards: where it lies.
        sample: its number there.
        images: the folder that the names of its pictures are in; None: the folder of its file.

    Attributes:
        meta: all of it.
        name: of its file and the sample.
        bad: ``bad(kind, detail)`` makes the BadSample that names the place.
    """

    def __init__(self, shards: Shards, sample: int, images: str | None = None):
        self.bad = lambda kind, detail: shards.bad(kind, sample, detail)
        self._folder = images or os.path.dirname(shards.file(sample))
        self._own, self.name = None, f"{os.path.basename(shards.file(sample))}:{shards.name(sample)}"
        if paths.ending(shards.file(sample)) == ".tar":
            self.meta, self._own = shards.meta(sample), lambda: shards.read(sample, "image")
            return
        try:
            self.meta = limits.parse(shards.read(sample, "text"))
        except ValueError as e:
            raise self.bad("broken json", str(e))
        if not isinstance(self.meta, dict):
            raise self.bad("broken json", f"an object is expected, not {type(self.meta).__name__}")

    def text(self, *names: str) -> str:
        """The text under the first of some names that the record has."""
        name = next((name for name in names if name in self.meta), None)
        if name is None:
            raise self.bad("missing text", f"it has no `{'` and no `'.join(names)}`")
        return self.word(self.meta[name], f"`{name}`")

    def word(self, value, name: str) -> str:
        """A value that must be a text."""
        if not isinstance(value, str):
            raise self.bad("bad text", f"{name} must be a text, not {repr(value)[:SHOWN]}")
        return value

    def picture(self, place: int = 0) -> tuple[bytes, str]:
        """The bytes and the name of the first or second picture: ``images`` name both, or ``image`` and ``second``; without a
        name the first is the sample's own."""
        listed = self.meta.get("images")
        named = listed if isinstance(listed, list) else [self.meta.get("image"), self.meta.get("second")]
        name = named[place] if place < len(named) else None
        if name is None and (place or self._own is None):
            raise self.bad("missing picture", f"it has no `{('image', 'second')[place]}`, and no `images` of so many names")
        data = self._own() if name is None else self.file(name)
        return data, str(self.meta.get("image_id", name or self.name) if place == 0 else name)

    def frames(self, count: int, rng: random.Random | None) -> list[str]:
        """Names of ``count`` of its ``frames``, one out of each of as many equal parts, drawn; without ``rng`` the middle one."""
        found = self.meta.get("frames")
        if not isinstance(found, list) or not found:
            raise self.bad("missing frames", "it has no `frames`: [name, ...]")
        return [found[int((part + (rng.random() if rng else 0.5)) * len(found) / count)] for part in range(count)]

    def file(self, name: str) -> bytes:
        """The bytes of a picture by its name."""
        if os.path.isabs(self.word(name, "the name of a picture")) or ".." in Path(name).parts:
            raise self.bad("refused member", f"the name {name[:SHOWN]!r} leads out of the folder of pictures")
        return read_picture(os.path.join(self._folder, name), self.bad)

    def answers(self) -> list[tuple[str, float]]:
        """(text, weight) each: of ``answers: [{text, weight}]``, or of ``answer``, a text or a list, with ``weight`` or weights.

        Without weights an answer weighs its share of the list, as in the X-VLM family.
        """
        listed, weights = self.meta.get("answers", self.meta.get("answer")), self.meta.get("weight")
        listed = listed if isinstance(listed, list) else [] if listed is None else [listed]
        if listed and all(isinstance(one, dict) for one in listed):
            listed, weights = [one.get("text") for one in listed], [one.get("weight") for one in listed]
        texts = [self.word(one, "an answer") for one in listed]
        if not all(map(str.strip, texts)):
            raise self.bad("empty answer", "an answer without a letter")
        if weights is None:
            return [(text, count / len(texts)) for text, count in Counter(texts).items()]
        weights = weights if isinstance(weights, list) else [weights] * len(texts)
        if len(weights) != len(texts):
            raise self.bad("bad weight", f"{len(weights)} weights of {len(texts)} answers")
        if wrong := [w for w in weights if type(w) not in (int, float) or not 0 < w < LARGEST]:
            raise self.bad("bad weight", f"a weight must be a number above 0, not {repr(wrong[0])[:SHOWN]}")
        return list(zip(texts, map(float, weights)))


def read_picture(file: str, bad) -> bytes:
    """The bytes of a picture's file."""
    if not os.path.isfile(file):
        raise bad("missing picture", f"no file {file}")
    if os.path.getsize(file) > limits.MAX_IMAGE:
        raise bad("too large", f"{file} has {os.path.getsize(file):,} bytes, more than {limits.MAX_IMAGE:,}")
    return Path(file).read_bytes()


class Labels:
    """What a label means: the number of a class, or, without classes, a target of regression.

    Args:
        classes: as ``class_names`` has them; None: regression.
        train: False: a label of null, of a split whose labels are kept secret, is -1, or NaN.

    Attributes:
        names: of the classes, in the order of their numbers; None: regression.
    """

    def __init__(self, classes: Classes | None, train: bool):
        self.names, self._train = None if classes is None else class_names(classes), train
        self._numbers = {name: number for number, name in enumerate(self.names or ())}
        if not any(name.isdecimal() for name in self._numbers):  # else a number would have two meanings
            self._numbers |= {str(number): number for number in range(len(self._numbers))}

    def __call__(self, record: Record) -> int | float:
        if "label" not in record.meta or (self._train and record.meta["label"] is None):
            raise record.bad("no label", "it has no `label`")
        label = record.meta["label"]
        if label is None:
            return float("nan") if self.names is None else -1
        said = repr(label)[:SHOWN]
        if self.names is None:
            try:
                value = float(label) if isinstance(label, int | float | str) else float("nan")
            except (ValueError, OverflowError):
                value = float("nan")
            if not abs(value) < LARGEST or isinstance(label, bool):
                raise record.bad("bad label", f"`label` must be a number where `classes` are not given, not {said}")
            return value
        number = self._numbers.get(str(label)) if isinstance(label, int | str) else None
        if number is None:
            kind = "label out of range" if str(label).lstrip("-").isdecimal() else "unknown class"
            raise record.bad(kind, f"{said} is none of the {len(self.names)} classes: {', '.join(self.names)[:SHOWN]}")
        return number


class Recorded(Sharded):
    """What the datasets of records share.

    Args:
        images: the folder that the names of pictures are in.
        classes: see Labels.

    Attributes:
        names: of the classes, in the order of their numbers; None: regression.
    """

    def __init__(self, path, sources, shards, train: bool, images: str | None = None, classes: Classes | None = None):
        super().__init__(path, sources, shards, train)
        self._folder, self._label = images, Labels(classes, train)
        self.names = self._label.names

    @classmethod
    def paths(cls, block: dict) -> list[tuple[str, str]]:
        return super().paths(block) + folder_paths(block, "images", "classes")

    def _record(self, source: int, sample: int) -> Record:
        return Record(self._shards[source], sample, self._folder)

    def _image(self, record: Record, data: bytes, name: str, rng: random.Random, texts=()) -> items.Image:
        return self.images(data, name, rng, lambda kind, detail: record.bad(kind, f"{name}: {detail}"), texts)

    def _item(self, record: Record, image: items.Image | None, texts: list, **fields) -> items.Item:
        return items.Item(image, texts, fields=fields if self.train else fields | {"record": record.meta})


def folder_paths(block: dict, *keys: str) -> list[tuple[str, str]]:
    """Keys that name a folder, or a file, as ``StreamDataset.paths`` has them."""
    named = [(key, block[key]) for key in keys if isinstance(block.get(key), str)]
    return [(key, path if os.path.isfile(path) else path + paths.FOLDER) for key, path in named]


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
            found = folders(classes) if os.path.isdir(classes) else Path(classes).read_text("utf-8-sig").split("\n")
        except (OSError, ValueError) as e:
            raise ConfigError(f"data.classes: {classes}: {getattr(e, 'strerror', None) or 'not UTF-8'}; give names, a file of "
                              "a name a line, or a folder of a folder a class")
    found = [name.strip() for name in found if name.strip()]
    twice = [name for name, count in Counter(found).items() if count > 1]
    if twice or len(found) < 2:
        what = f"`{twice[0]}` stands there twice" if twice else f"{len(found)} classes, two at least"
        raise ConfigError(f"data.classes: {classes if isinstance(classes, str) else found}: {what}")
    return found


def folders(path: str) -> list[str]:
    """The sorted names of the folders in a folder, hidden ones left out."""
    with os.scandir(path) as entries:
        return sorted(entry.name for entry in entries if entry.is_dir() and not entry.name.startswith("."))
