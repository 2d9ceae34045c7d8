"""What a record says that a dataset of tasks reads: texts, pictures by name, answers, a label among known classes."""

import math
import os
import random
from collections import Counter
from pathlib import Path
from typing import Annotated

from xtoolkit.data import items, kinds, limits
from xtoolkit.data.errors import BadSample
from xtoolkit.data.sharded import Sharded
from xtoolkit.data.shards import Shards
from xtoolkit.registry import ConfigError, Range

Classes = list[str] | Annotated[int, Range(2)] | str
LARGEST = 3e38  # what a float32 holds
SHOWN = 60  # characters of a wrong value that a message shows


class Record:
    """The json of one sample, or its row of a table, read part by part; whatever is wrong with a part is a BadSample.

    Args:
        shards: where it lies.
        sample: its number there.

    Attributes:
        meta: all of it, as ``Shards.meta``.
    """

    def __init__(self, shards: Shards, sample: int):
        self._shards, self._sample, self.meta = shards, sample, shards.meta(sample)

    @property
    def name(self) -> str:
        """``image_id``, else its file and its key or number in it."""
        given = self.meta.get("image_id")
        place = f"{os.path.basename(self._shards.file(self._sample))}:{self._shards.name(self._sample)}"
        return place if given is None else str(given)

    def bad(self, kind: str, detail: str) -> BadSample:
        return self._shards.bad(kind, self._sample, detail)

    def text(self, *names: str) -> str:
        """The text under the first of some names that the record has, or under one of the names of captions."""
        name = next((name for name in (*names, "captions", "caption") if name in self.meta), None)
        if name is None:
            raise self.bad("missing text", f"it has no `{'` and no `'.join(names)}`")
        return self._word(self.meta[name], f"`{name if name in names else names[-1]}`")

    def _word(self, value, name: str) -> str:
        if not isinstance(value, str):
            raise self.bad("bad text", f"{name} must be a text, not {repr(value)[:SHOWN]}")
        return value

    def picture(self, place: int = 0) -> tuple[bytes, str]:
        """The bytes and the name of the first or second picture: ``images`` name both; else the first is the sample's own, and
        ``second`` names the other."""
        listed = self.meta.get("images")
        named = listed if isinstance(listed, list) else [None, self.meta.get("second")]
        name = named[place] if place < len(named) else None
        if place and name is None:
            raise self.bad("missing picture", "it names no second one: `images: [first, second]`, or `second`")
        if name is not None:
            return self.file(name), str(name)
        data = self._shards.read(self._sample, "image")
        if data is None:
            raise self.bad("missing picture", "it has none")
        return data, self.name

    def file(self, name) -> bytes:
        """The bytes of a picture that it names."""
        return self._shards.image(self._sample, name)

    def frames(self, count: int, rng: random.Random | None) -> list[str]:
        """Names of ``count`` of its ``frames``, one out of each of as many equal parts, drawn; without ``rng`` the middle one."""
        found = self.meta.get("frames")
        if not isinstance(found, list) or not found:
            raise self.bad("missing frames", "it has no `frames`: [name, ...]")
        return [found[int((part + (rng.random() if rng else 0.5)) * len(found) / count)] for part in range(count)]

    def answers(self) -> list[tuple[str, float]]:
        """(text, weight) each: of ``answers: [{text, weight}]``, or of ``answer``, a text or a list, with ``weight`` or weights.

        Without weights an answer weighs its share of the list, as in the X-VLM family.
        """
        listed, weights = self.meta.get("answers", self.meta.get("answer")), self.meta.get("weight")
        listed = listed if isinstance(listed, list) else [] if listed is None else [listed]
        if listed and all(isinstance(one, dict) for one in listed):
            listed, weights = [one.get("text") for one in listed], [one.get("weight") for one in listed]
        texts = [self._word(one, "an answer") for one in listed]
        if not all(map(str.strip, texts)):
            raise self.bad("empty answer", "an answer without a letter")
        if weights is None:
            return [(text, count / len(texts)) for text, count in Counter(texts).items()]
        weights = weights if isinstance(weights, list) else [weights] * len(texts)
        if len(weights) != len(texts):
            raise self.bad("bad weight", f"{len(weights)} weights of {len(texts)} answers")
        if wrong := [weight for weight in weights if not number(weight) > 0]:
            raise self.bad("bad weight", f"a weight must be a number above 0, not {repr(wrong[0])[:SHOWN]}")
        return list(zip(texts, map(number, weights)))


def number(value) -> float:
    """A number, or the text of one, as a CSV has it; NaN where it is none, or more than a float32 holds."""
    try:
        found = float(value) if isinstance(value, int | float | str) and not isinstance(value, bool) else math.nan
    except (ValueError, OverflowError):
        return math.nan
    return found if abs(found) < LARGEST else math.nan


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
            return math.nan if self.names is None else -1
        said = repr(label)[:SHOWN]
        if self.names is None:
            if math.isnan(target := number(label)):
                raise record.bad("bad label", f"`label` must be a number where `classes` are not given, not {said}")
            return target
        found = self._numbers.get(str(label)) if isinstance(label, int | str) else None
        if found is None:
            kind = "label out of range" if str(label).lstrip("-").isdecimal() else "unknown class"
            raise record.bad(kind, f"{said} is none of the {len(self.names)} classes: {', '.join(self.names)[:SHOWN]}")
        return found


class Recorded(Sharded):
    """What the datasets of records share. A record is the json of a tar's sample, or a row of a table.

    Args:
        images: the folder of the pictures that records name.
        classes: see Labels.

    Attributes:
        names: of the classes, in the order of their numbers; None: regression.
    """

    COLUMNS = ()

    def __init__(self, path, sources, shards, train: bool, images: str | None = None, classes: Classes | None = None):
        super().__init__(path, sources, shards, train, images)
        self._label = Labels(classes, train)
        self.names = self._label.names

    @classmethod
    def _reads(cls) -> tuple[str, ...]:
        return kinds.PICTURES

    @classmethod
    def paths(cls, block: dict) -> list[tuple[str, str]]:
        return super().paths(block) + class_paths(block)

    @classmethod
    def missing(cls, block: dict) -> list[tuple[str, str]]:
        return super().missing(block | {"classes": None}) + missing_classes(block)

    def _record(self, source: int, sample: int) -> Record:
        return Record(self._shards[source], sample)

    def _image(self, record: Record, data: bytes, name: str, rng: random.Random, texts=()) -> items.Image:
        return self.images(data, name, rng, lambda kind, detail: record.bad(kind, f"{name}: {detail}"), texts)

    def _item(self, record: Record, image: items.Image | None, texts: list, **fields) -> items.Item:
        return items.Item(image, texts, fields=fields if self.train else fields | {"record": record.meta})


def class_paths(block: dict) -> list[tuple[str, str]]:
    """The path of classes, where a block names one, as ``StreamDataset.paths`` has it."""
    return [("classes", block["classes"])] if isinstance(block.get("classes"), str) else []


def missing_classes(block: dict) -> list[tuple[str, str]]:
    return [(key, f"{path}: no such file or folder; give names, a file of a name a line, or a folder of a folder a class")
            for key, path in class_paths(block) if not os.path.exists(os.path.expanduser(path))]


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
    """The sorted names of the folders in a folder, hidden ones left out."""
    with os.scandir(path) as entries:
        return sorted(entry.name for entry in entries if entry.is_dir() and not entry.name.startswith("."))
