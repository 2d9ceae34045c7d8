"""Composes a scene: which things, where, how big, on what; the facts that captions and questions may state about it."""

import io
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageFilter

from . import vocabulary
from .drawings import Concept, Drawings, contrast
from .seeded import rng
from .sources import Sources

SIDE = 96  # pixels of a scene
SIZES = {1: (40, 64), 2: (30, 60), 3: (26, 48), 4: (24, 40)}
MAX_OVERLAP = 0.08  # of the smaller box
MIN_CONTRAST = 25.0  # mean absolute difference to what lies behind, 0..255
PHOTO_SHARE, REPEAT_SHARE = 0.30, 0.35
JPEG_QUALITY = 80

# package, file, part of the picture that shows no thing of the vocabulary (left, top, right, bottom as shares), phrase
BACKDROPS = (
    ("stdlib", "img-black-canyon/data/image.jpg", (0.45, 0.0, 1.0, 1.0), "in front of a canyon"),
    ("stdlib", "img-dust-bowl-home/data/image.jpg", (0.0, 0.30, 0.50, 1.0), "on a dusty plain"),
    ("stdlib", "img-french-alpine-landscape/data/image.jpg", (0.15, 0.05, 0.85, 0.60), "in front of mountains"),
    ("stdlib", "img-nagasaki-boats/data/image.jpg", (0.0, 0.10, 0.50, 0.50), "in front of hills"),
    ("stdlib", "img-airplane-from-above/data/image.jpg", (0.0, 0.45, 0.42, 1.0), "above a misty land"),
    ("skimage", "skimage/data/grass.png", (0.0, 0.0, 1.0, 1.0), "on the grass"),
    ("skimage", "skimage/data/brick.png", (0.0, 0.0, 1.0, 1.0), "in front of a brick wall"),
    ("skimage", "skimage/data/gravel.png", (0.0, 0.0, 1.0, 1.0), "on gravel"),
)


@dataclass(frozen=True)
class Thing:
    """One drawing in a scene: its concept, the artist, and its exact box (x, y, w, h) in pixels."""

    concept: Concept
    family: str
    box: tuple[int, int, int, int]

    @property
    def label(self) -> str:
        """The word for it."""
        return self.concept.label

    @property
    def area(self) -> int:
        """Of its box, in pixels."""
        return self.box[2] * self.box[3]

    @property
    def centre(self) -> tuple[float, float]:
        """Of its box, (x, y) in pixels."""
        x, y, w, h = self.box
        return x + w / 2, y + h / 2

    def place(self) -> str | None:
        """Where it is, if that is plain: on the left, on the right, in the middle, at the top, at the bottom."""
        cx, cy = self.centre[0] / SIDE, self.centre[1] / SIDE
        if abs(cx - 0.5) < 0.1 and abs(cy - 0.5) < 0.1:
            return "in the middle"
        sides = {"on the left": 0.5 - cx, "on the right": cx - 0.5, "at the top": 0.5 - cy, "at the bottom": cy - 0.5}
        name, distance = max(sides.items(), key=lambda item: item[1])
        return name if distance > 0.17 else None


@dataclass(frozen=True)
class Scene:
    """A picture and all that is known of it. `key` seeds whatever is said about it.

    Args:
        backdrop: phrase of a photograph, or None.
        colour: name of the background's colour, or None.
    """

    key: str
    split: str
    things: tuple[Thing, ...]
    backdrop: str | None
    colour: str | None
    jpeg: bytes

    def groups(self) -> list[tuple[Thing, ...]]:
        """Things of one concept together, in order of first appearance."""
        found: dict[str, list[Thing]] = {}
        for thing in self.things:
            found.setdefault(thing.label, []).append(thing)
        return [tuple(group) for group in found.values()]

    def count(self, label: str) -> int:
        """How many things have a label."""
        return sum(thing.label == label for thing in self.things)


def relation(a: Thing, b: Thing) -> str | None:
    """The plain relation of a to b ("to the left of", "above"...), or None where one could argue."""
    (ax, ay), (bx, by) = a.centre, b.centre
    dx, dy = ax - bx, ay - by
    if abs(dx) > 18 and abs(dx) > 1.3 * abs(dy):
        return "to the left of" if dx < 0 else "to the right of"
    if abs(dy) > 18 and abs(dy) > 1.3 * abs(dx):
        return "above" if dy < 0 else "below"
    return None


def kind_members(kind: str, things: tuple[Thing, ...]) -> list[Thing] | None:
    """The things of a kind, or None if one of the things could be argued to be of that kind."""
    _, members, unsure = vocabulary.KINDS[kind]
    if any(thing.concept.subgroup in unsure or thing.label in unsure for thing in things):
        return None
    return [thing for thing in things if thing.concept.subgroup in members and thing.label not in vocabulary.KINDLESS]


class SceneMaker:
    """Makes scenes from the concepts that are words of the scenes."""

    def __init__(self, sources: Sources, drawings: Drawings, concepts: list[Concept]):
        self.drawings = drawings
        self.words = [concept for concept in concepts if concept.scene]
        self.by_subgroup: dict[str, list[Concept]] = {}
        for concept in self.words:
            self.by_subgroup.setdefault(concept.subgroup, []).append(concept)
        self._backdrops = []
        for package, member, (left, top, right, bottom), phrase in BACKDROPS:
            image = Image.open(io.BytesIO(sources.read(package, member))).convert("RGB")
            w, h = image.size
            image = image.crop((round(left * w), round(top * h), round(right * w), round(bottom * h)))
            if package == "stdlib":  # plate photographs are large: keep a window's content recognisable at 96 pixels
                image = image.resize((image.width * 260 // image.height, 260), Image.Resampling.LANCZOS)
            else:  # blades and pebbles are noise at 96 pixels: out of focus, as behind a near thing
                image = image.filter(ImageFilter.GaussianBlur(2.0))
            self._backdrops.append((image, phrase))

    def make(self, split: str, index: int) -> Scene:
        """Scene number `index` of a split; the same on every machine."""
        for attempt in range(100):
            scene = self._try(split, f"{split}/{index}/{attempt}")
            if scene is not None:
                return scene
        raise RuntimeError(f"no scene {split}/{index} in 100 attempts; the contrast or overlap limits are too strict")

    def _try(self, split: str, key: str) -> Scene | None:
        random = rng("scene", key)
        chosen = self._choose(random)
        placed = self._place(random, split, chosen)
        if placed is None:
            return None
        canvas, backdrop, colour = self._background(random)
        pixels = np.asarray(canvas)
        for thing, image in placed:
            x, y, w, h = thing.box
            if contrast(image, pixels[y : y + h, x : x + w]) < MIN_CONTRAST:
                return None
        for thing, image in placed:
            canvas.paste(image, thing.box[:2], image)
        buffer = io.BytesIO()
        canvas.save(buffer, "JPEG", quality=JPEG_QUALITY)
        return Scene(key, split, tuple(thing for thing, _ in placed), backdrop, colour, buffer.getvalue())

    def _choose(self, random) -> list[Concept]:
        count = random.choices((1, 2, 3, 4), weights=(14, 34, 32, 20))[0]
        first = random.choice(self.words)
        chosen = [first]
        if count > 1 and random.random() < REPEAT_SHARE / 0.86:
            chosen += [first] * (2 if count == 4 and random.random() < 0.3 else 1)
        while len(chosen) < count:
            # a third of the companions are of the same subgroup, so that kinds are worth counting
            pool = self.by_subgroup[first.subgroup] if random.random() < 0.33 else self.words
            concept = random.choice(pool)
            labels = {word.label for word in chosen}
            if concept.label not in labels and not vocabulary.confusable(concept.label, labels):
                chosen.append(concept)
        return chosen

    def _place(self, random, split: str, chosen: list[Concept]) -> list[tuple[Thing, Image.Image]] | None:
        low, high = SIZES[len(chosen)]
        placed: list[tuple[Thing, Image.Image]] = []
        used = set()
        for concept in chosen:
            families = [f for f in concept.artists(split) if (concept.label, f) not in used] or concept.artists(split)
            family = random.choice(families)
            used.add((concept.label, family))
            for _ in range(40):
                image = self.drawings.scaled(family, concept.label, random.randint(low, high))
                w, h = image.size
                box = (random.randint(0, SIDE - w), random.randint(0, SIDE - h), w, h)
                if all(overlap(box, other.box) < MAX_OVERLAP for other, _ in placed):
                    placed.append((Thing(concept, family, box), image))
                    break
            else:
                return None
        return placed

    def _background(self, random) -> tuple[Image.Image, str | None, str | None]:
        if random.random() < PHOTO_SHARE:
            image, phrase = random.choice(self._backdrops)
            side = random.randint(96, min(220, *image.size))
            x, y = random.randint(0, image.width - side), random.randint(0, image.height - side)
            return image.crop((x, y, x + side, y + side)).resize((SIDE, SIDE), Image.Resampling.LANCZOS), phrase, None
        name = random.choice(list(vocabulary.COLOURS))
        colour = tuple(min(255, max(0, value + random.randint(-12, 12))) for value in vocabulary.COLOURS[name])
        return Image.new("RGB", (SIDE, SIDE), colour), None, name


def overlap(a: tuple[int, int, int, int], b: tuple[int, int, int, int]) -> float:
    """Intersection of two (x, y, w, h) boxes as a share of the smaller."""
    w = min(a[0] + a[2], b[0] + b[2]) - max(a[0], b[0])
    h = min(a[1] + a[3], b[1] + b[3]) - max(a[1], b[1])
    return max(0, w) * max(0, h) / min(a[2] * a[3], b[2] * b[3])
