"""What a record says that a dataset of tasks reads: texts, pictures by name, answers, a label among known classes."""

import math
import os
import random
from collections import Counter
from functools import cached_property

from xtoolkit.batch import Batch
from xtoolkit.data import items, kinds, paths, tables
from xtoolkit.data.classes import Classes, class_names, class_paths, missing_classes, named
from xtoolkit.data.errors import BadSample
from xtoolkit.data.sharded import Sharded
from xtoolkit.data.shards import Shards

LARGEST = 3e38  # what a float32 holds
SHOWN = 60  # characters of a wrong value that a message shows


class Record:
    """The json of one sample, or its row of a table, read part by part; whatever is wrong with a part is a BadSample.

    Args:
        shards: where it lies.
        sample: its number there.
    """

    def __init__(self, shards: Shards, sample: int):
        self._shards, self._sample = shards, sample

    @cached_property
    def meta(self) -> dict:
        """All of it, as ``Shards.meta``."""
        return self._shards.meta(self._sample)

    @property
    def place(self) -> str:
        """Its file, by its whole path, and its key or number in it."""
        file = self._shards.file(self._sample)
        return f"{file if paths.is_remote(file) else os.path.abspath(file)}:{self._shards.name(self._sample)}"

    @property
    def name(self) -> str:
        """``image_id``, else its place."""
        given = self.meta.get("image_id")
        return self.place if given is None else str(given)

    @property
    def data(self) -> bytes:
        """The bytes of the sample's own picture; empty where it has none."""
        return self._shards.read(self._sample, "image") or b""

    def captions(self) -> list[str]:
        if not (found := tables.captions(self.meta)):
            raise self.bad("empty caption", tables.no_caption(self.meta))
        return found

    def bad(self, kind: str, detail: str) -> BadSample:
        return self._shards.bad(kind, self._sample, detail)

    def text(self, *names: str) -> str:
        """The text under the first of some names that the record has; where ``text`` is one of them, captions are it, too."""
        others = ("captions", "caption") if "text" in names else ()
        name = next((name for name in (*names, *others) if name in self.meta), None)
        if name is None:
            raise self.bad("missing text", f"it has no `{'` and no `'.join(names)}`")
        return self._word(self.meta[name], f"`{name if name in names else names[-1]}`")

    def _word(self, value, name: str) -> str:
        if not isinstance(value, str):
            raise self.bad("bad text", f"{name} must be a text, not {repr(value)[:SHOWN]}")
        return value

    def picture(self, place: int = 0, of: int = 1) -> tuple[bytes, str]:
        """The bytes and the name of the first or second picture, of so many: ``images`` name both; else the first is the sample's
        own, and ``second`` names the other."""
        listed = self.meta.get("images")
        if isinstance(listed, list) and len(listed) > of:
            raise self.bad("too many pictures", f"`images` name {len(listed)}, and {of} {'is' if of == 1 else 'are'} read")
        named = listed if isinstance(listed, list) else [None, self.meta.get("second")]
        name = named[place] if place < len(named) else None
        if place and name is None:
            raise self.bad("missing picture", "it names no second one: `images: [first, second]`, or `second`")
        if name is not None:
            return self.file(name), str(name)
        if not (data := self.data):
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

        Without weights an answer weighs its share of the list, as in the X-VLM family. ``answers`` that are empty say nothing:
        then ``answer`` is read.
        """
        listed, weights = self.meta.get("answers") or self.meta.get("answer"), self.meta.get("weight")
        listed = listed if isinstance(listed, list) else [] if listed is None else [listed]
        if listed and all(isinstance(one, dict) for one in listed):
            if any("weight" in one or "text" in one for one in listed):  # else VQA's release: an answer a person
                weights = [one.get("weight") for one in listed]
            listed = [one.get("text", one.get("answer")) for one in listed]
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


class Recorded(Sharded):
    """What the datasets of records share. A record is the json of a tar's sample, or a row of a table.

    Args:
        images: the folder of the pictures that records name.
        classes: as ``class_names`` has them; None: a label is a target of regression.

    Attributes:
        names: of the classes, in the order of their numbers; None: regression.
    """

    COLUMNS = ()
    ALIKE = ("classes",)
    secret = False  # not training, a record without `label` is as one whose `label` is null

    def __init__(self, path, sources, shards, train: bool, images: str | None = None, classes: Classes | None = None):
        super().__init__(path, sources, shards, train, images)
        self.names = None if classes is None else class_names(classes)
        self._numbers = {name: number for number, name in enumerate(self.names or ())}
        if not any(name.isdecimal() for name in self._numbers):  # else a number would have two meanings
            self._numbers |= {str(number): number for number in range(len(self._numbers))}

    @classmethod
    def _reads(cls) -> tuple[str, ...]:
        return kinds.PICTURES

    @classmethod
    def paths(cls, block: dict) -> list[tuple[str, str]]:
        return super().paths(block) + class_paths(block)

    @classmethod
    def missing(cls, block: dict) -> list[tuple[str, str]]:
        return super().missing(block | {"classes": None}) + missing_classes(block)

    def _label(self, record: Record) -> int | float:
        """The number of the record's class, or its target. Not training, one that is null, and kept secret, is -1, or NaN."""
        label = record.meta.get("label")
        if ("label" not in record.meta and not self.secret) or (self.train and label is None):
            raise record.bad("no label", "it has no `label`")
        if label is None:
            return math.nan if self.names is None else -1
        said, target = repr(label)[:SHOWN], number(label)
        if self.names is None and math.isnan(target):
            raise record.bad("bad label", f"`label` must be a number where `classes` are not given, not {said}")
        found = target if self.names is None else self._numbers.get(str(label)) if isinstance(label, int | str) else None
        if found is None:
            kind = "label out of range" if str(label).lstrip("-").isdecimal() else "unknown class"
            raise record.bad(kind, f"{said} is none of the {len(self.names)} classes: {', '.join(self.names)[:SHOWN]}")
        return found

    def collate(self, loaded: list[items.Item]) -> Batch:
        return named(super().collate(loaded), self.names)

    def _image(self, record: Record, data: bytes, name: str, rng: random.Random, texts=()) -> items.Image:
        return self.images(data, name, rng, lambda kind, detail: record.bad(kind, f"{name}: {detail}"), texts)

    def _item(self, source: int, record: Record, image: items.Image | None, texts: list, **fields) -> items.Item:
        told = {} if self.train else {"record": record.meta, "source": self._names[source]}
        return items.Item(image, texts, fields=fields | told)
