"""The concepts, their human names, and one drawing of each by every artist, rendered and cut to its outline."""

import functools
import io
import json
import re
from collections import Counter
from dataclasses import dataclass

import numpy as np
import resvg_py
from PIL import Image

from . import vocabulary
from .seeded import rng
from .sources import Sources
from .wordnet import WordNet

FAMILIES = ("noto", "noto-v1", "fluent", "twemoji", "emojione", "fxemoji")
VOCABULARIES = ("cldr", "github", "iamcal", "joypixels", "emojibase")
RENDER = 160  # pixels of a drawing before it is cut to its outline and scaled
HELD_OUT = 0.30  # share of concepts that only image classification shows


@dataclass(frozen=True)
class Concept:
    """A thing that can be drawn.

    Args:
        label: its CLDR name.
        subgroup: its CLDR subgroup, the class in image classification.
        names: name -> number of vocabularies that use it; the label is among them.
        tags: CLDR keywords.
        families: artists who drew it: the last one's drawing is for test, the one before for val, the rest for train.
        scene: a word of the scenes; otherwise only image classification shows it.
    """

    label: str
    subgroup: str
    names: tuple[tuple[str, int], ...]
    tags: tuple[str, ...]
    families: tuple[str, ...]
    scene: bool

    def artists(self, split: str) -> tuple[str, ...]:
        """The families whose drawing of this concept may be seen in `split`."""
        return {"train": self.families[:-2], "val": self.families[-2:-1], "test": self.families[-1:]}[split]

    @property
    def living(self) -> bool:
        """Whether it counts among the living things, by its subgroup."""
        return self.subgroup in vocabulary.LIVING


class Drawings:
    """Finds and renders the drawings of the six icon sets."""

    def __init__(self, sources: Sources):
        self._sets = {family: json.loads(sources.read(family, "icons.json")) for family in FAMILIES}

    def icon(self, family: str, label: str) -> str | None:
        """The icon's name in the family's own spelling, or None. Aliases with a transform (a flip) do not count."""
        slug = re.sub(r"[^a-z0-9]+", "-", re.sub("['\u2019]", "", label.lower())).strip("-")
        icons = self._sets[family]
        if family == "fxemoji":
            slug = slug.replace("-", "")
        if slug in icons["icons"]:
            return slug
        alias = icons.get("aliases", {}).get(slug, {})
        return alias["parent"] if set(alias) == {"parent"} and alias["parent"] in icons["icons"] else None

    @functools.lru_cache(maxsize=None)
    def cutout(self, family: str, label: str) -> Image.Image:
        """The drawing as RGBA, about RENDER pixels high or wide, cut to the pixels that are not transparent."""
        icons = self._sets[family]
        icon = icons["icons"][self.icon(family, label)]
        width, height = icon.get("width", icons.get("width", 16)), icon.get("height", icons.get("height", 16))
        svg = (
            f'<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
            f'viewBox="0 0 {width} {height}">{icon["body"]}</svg>'
        )
        return cut(render(svg, RENDER))

    @functools.lru_cache(maxsize=None)
    def scaled(self, family: str, label: str, side: int) -> Image.Image:
        """The cut-out with its longer side at `side` pixels, cut again, so that its size is its exact box."""
        image = self.cutout(family, label)
        factor = side / max(image.size)
        size = tuple(max(1, round(edge * factor)) for edge in image.size)
        return cut(image.resize(size, Image.Resampling.LANCZOS))


def render(svg: str, side: int) -> Image.Image:
    """An SVG as RGBA, its longer side at `side` pixels."""
    return Image.open(io.BytesIO(bytes(resvg_py.svg_to_bytes(svg_string=svg, width=side)))).convert("RGBA")


def cut(image: Image.Image) -> Image.Image:
    """An RGBA image cut to the box of its pixels that are more than a tenth opaque."""
    box = image.getchannel("A").point(lambda a: 255 if a > 25 else 0).getbbox()
    return image.crop(box) if box else image


def concepts(sources: Sources, drawings: Drawings, wordnet: WordNet) -> list[Concept]:
    """The concepts that at least five of the six families drew, in CLDR order."""
    names = {v: json.loads(sources.read("emojibase", f"en/shortcodes/{v}.json")) for v in VOCABULARIES}
    subgroups = json.loads(sources.read("emojibase", "meta/groups.json"))["subgroups"]
    found = []
    for entry in json.loads(sources.read("emojibase", "en/data.json")):
        label, subgroup = entry["label"], subgroups.get(str(entry.get("subgroup")), "")
        families = [f for f in FAMILIES if drawings.icon(f, label) and (label, f) not in vocabulary.WRONG]
        if (
            subgroup not in vocabulary.SUBGROUPS
            or label in vocabulary.SKIP
            or len(label.split()) > 3
            or not label.isascii()
            or len(families) < 5
        ):
            continue
        rng("families", label).shuffle(families)
        spoken = vocabulary.RENAMED.get(label, label)
        votes = Counter({spoken: 1})
        for vocabulary_names in names.values():
            given = vocabulary_names.get(entry["hexcode"], [])
            given = {name.replace("_", " ") for name in ([given] if isinstance(given, str) else given)}
            votes.update({spoken if name == label else name for name in given})
        votes = {name: count for name, count in votes.items() if name == spoken or _is_english(name, wordnet)}
        found.append((label, subgroup, votes, tuple(entry.get("tags", ())), tuple(families)))
    return _with_roles(found)


def _is_english(name: str, wordnet: WordNet) -> bool:
    plural = re.search(r"[^su]s$", name) and name not in vocabulary.COUNTERS  # "tickets" for one ticket
    return (
        name not in vocabulary.BAD_NAMES and not plural and all(wordnet.knows(word) for word in re.split(r"[ -]", name))
    )


def _with_roles(found: list[tuple]) -> list[Concept]:
    """Chooses the words of the scenes and gives each name to one concept only."""
    labels = {label for label, *_ in found}
    twins = set()
    for line in vocabulary.TWINS.replace(";", "\n").split("\n"):
        present = [label.strip() for label in line.split("|") if label.strip() in labels]
        twins.update(present[1:])
    spare = max(0, round(HELD_OUT * len(found)) - len(twins))
    free = sorted(labels - twins)
    held_out = twins | set(rng("held-out").sample(free, spare))
    kinds = set(vocabulary.KINDS) | {plural for plural, *_ in vocabulary.KINDS.values()}
    owners = Counter(name for label, _, votes, *_ in found if label not in held_out for name in votes)
    result = []
    for label, subgroup, votes, tags, families in found:
        spoken = vocabulary.RENAMED.get(label, label)
        kept = {
            n: c for n, c in votes.items() if n == spoken or (owners[n] <= 1 and n not in kinds and n not in labels)
        }
        result.append(Concept(label, subgroup, tuple(sorted(kept.items())), tags, families, label not in held_out))
    return result


def contrast(image: Image.Image, background: np.ndarray) -> float:
    """Mean absolute difference, in 0..255, between a drawing's opaque pixels and what lies behind them."""
    pixels = np.asarray(image, dtype=np.float32)
    opaque = pixels[..., 3] > 128
    if not opaque.any():
        return 0.0
    return float(np.abs(pixels[..., :3] - background.astype(np.float32))[opaque].mean())
