"""English for scenes: noun phrases that agree in number, captions, region phrases and referring expressions."""

import re

from . import vocabulary
from .drawings import Concept
from .scenes import Scene, Thing, kind_members, relation
from .seeded import rng
from .wordnet import WordNet


class Language:
    """Says things about scenes; whatever is said is true by construction.

    Args:
        wordnet: gives the irregular plurals.
    """

    def __init__(self, wordnet: WordNet):
        self._irregular = {word: form for word, form in wordnet.plurals.items() if word in _IRREGULAR}

    # -- noun phrases

    def name(self, concept: Concept, random) -> str:
        """One of the concept's names, as often as naming vocabularies use it."""
        names, votes = zip(*concept.names)
        return random.choices(names, weights=votes)[0]

    def plural(self, name: str) -> str:
        """The plural of a one-thing name."""
        head, space, last = name.rpartition(" ")
        if last in self._irregular:
            last = self._irregular[last]
        elif last.endswith("man"):
            last = last[:-3] + "men"
        elif re.search(r"(s|x|z|ch|sh|tato|mato)$", last):
            last += "es"
        elif re.search(r"[^aeiou]y$", last):
            last = last[:-1] + "ies"
        else:
            last += "s"
        return head + space + last

    def one(self, name: str, adjective: str = "") -> str:
        """ "a dog", "a small dog", "an owl", "a slice of pizza"."""
        phrase = self.bare(name)
        if adjective:
            phrase = f"{adjective} {phrase}"
        return f"{article(phrase)} {phrase}"

    def bare(self, name: str) -> str:
        """ "dog", "slice of pizza"."""
        return re.sub(r"^an? ", "", vocabulary.COUNTERS[name][0]) if name in vocabulary.COUNTERS else name

    def many(self, name: str) -> str:
        """ "dogs", "slices of pizza"."""
        return vocabulary.COUNTERS[name][1] if name in vocabulary.COUNTERS else self.plural(name)

    def some(self, name: str, count: int) -> str:
        """ "a dog" or "two dogs"."""
        return self.one(name) if count == 1 else f"{vocabulary.NUMBERS[count]} {self.many(name)}"

    def listing(self, scene: Scene, random, shuffle: bool = True) -> str:
        """ "a lemon and two dogs"."""
        groups = scene.groups()
        if shuffle:
            random.shuffle(groups)
        return joined([self.some(self.name(group[0].concept, random), len(group)) for group in groups])

    # -- captions

    def captions(self, scene: Scene, count: int = 5) -> list[str]:
        """`count` different sentences about a scene, as if by as many people."""
        found: list[str] = []
        for attempt in range(400):
            random = rng("caption", scene.key, attempt)
            # the first two name everything; the others dwell on what they like
            makers = (
                (self._all,)
                if len(found) < 2
                else (self._all, self._related, self._placed, self._sized, self._kinds, self._related, self._placed)
            )
            said = random.choice(makers)(scene, random)
            if said:
                said = said[0].upper() + said[1:] + "."
                if said not in found:
                    found.append(said)
            if len(found) == count:
                return found
        raise RuntimeError(f"scene {scene.key}: only {len(found)} different captions")

    def _where(self, scene: Scene, random) -> str:
        return scene.backdrop or f"on {article(scene.colour)} {scene.colour} background"

    def _all(self, scene: Scene, random) -> str:
        things, where = self.listing(scene, random), self._where(scene, random)
        first = scene.groups()
        forms = [
            f"{things} {where}",
            f"{things} {where}",
            f"a picture of {things}",
            f"a drawing of {things} {where}",
            f"{things} shown {where}",
            f"here {'is' if len(scene.things) == 1 else 'are'} {things}",
        ]
        if len(first) == 1:
            verb = "is" if len(scene.things) == 1 else "are"
            forms.append(f"there {verb} {things} {where}")
        else:
            forms.append(f"we can see {things} {where}")
        if scene.colour:
            forms.append(f"{article(scene.colour)} {scene.colour} background with {things}")
        return random.choice(forms)

    def _related(self, scene: Scene, random) -> str | None:
        pair = self.pair(scene, random)
        if pair is None:
            return None
        a, b, how = pair
        first, second = self.name(a.concept, random), self.name(b.concept, random)
        rest = [group for group in scene.groups() if group[0].label not in (a.label, b.label)]
        forms = [
            f"{self.one(first)} {how} {self.one(second)}",
            f"the {self.bare(first)} is {how} the {self.bare(second)}",
            f"{self.one(first)} {how} {self.one(second)} {self._where(scene, random)}",
        ]
        if rest:
            others = joined([self.some(self.name(group[0].concept, random), len(group)) for group in rest])
            forms.append(f"{self.one(first)} {how} {self.one(second)}, and {others}")
        return random.choice(forms)

    def pair(self, scene: Scene, random) -> tuple[Thing, Thing, str] | None:
        """Two things, each the only one of its concept, with a plain relation."""
        single = [group[0] for group in scene.groups() if len(group) == 1]
        pairs = [(a, b, relation(a, b)) for a in single for b in single if a is not b and relation(a, b)]
        return random.choice(pairs) if pairs else None

    def _placed(self, scene: Scene, random) -> str | None:
        placed = [t for t in scene.things if t.place() and scene.count(t.label) == 1]
        if not placed:
            return None
        random.shuffle(placed)
        names = [self.one(self.name(t.concept, random)) for t in placed[:2]]
        places = [t.place() for t in placed[:2]]
        if len(placed) > 1 and places[0] != places[1] and random.random() < 0.7:
            return f"{names[0]} {places[0]} and {names[1]} {places[1]}"
        forms = [f"{names[0]} {places[0]} of the picture", f"{places[0]} there is {names[0]}"]
        if scene.colour:
            forms.append(
                f"{names[0]} {places[0]} of a {scene.colour} picture"
                if article(scene.colour) == "a"
                else f"{names[0]} {places[0]} of an {scene.colour} picture"
            )
        return random.choice(forms)

    def _sized(self, scene: Scene, random) -> str | None:
        pairs = [(a, b) for a in scene.things for b in scene.things if a.area > 1.8 * b.area]
        if not pairs:
            return None
        big, small = random.choice(pairs)
        name = self.name(big.concept, random)
        if big.label == small.label:
            return f"{self.one(name, 'big')} and {self.one(name, 'small')} {self._where(scene, random)}"
        if scene.count(big.label) > 1 or scene.count(small.label) > 1:
            return None
        other = self.name(small.concept, random)
        return random.choice(
            [
                f"{self.one(name, 'big')} and {self.one(other, 'small')}",
                f"{self.one(other, 'small')} next to {self.one(name, 'bigger')}",
                f"the {self.bare(name)} is bigger than the {self.bare(other)}",
            ]
        )

    def _kinds(self, scene: Scene, random) -> str | None:
        kinds = [kind for kind in vocabulary.KINDS if (kind_members(kind, scene.things) or ())]
        if not kinds:
            return None
        kind = random.choice(kinds)
        members = kind_members(kind, scene.things)
        rest = [group for group in scene.groups() if group[0] not in members]
        phrase = kind_phrase(kind, len(members))
        if rest:
            return joined([phrase] + [self.some(self.name(group[0].concept, random), len(group)) for group in rest])
        return f"{phrase} {self._where(scene, random)}"

    # -- regions and expressions

    def regions(self, scene: Scene) -> list[tuple[tuple[int, int, int, int], str]]:
        """(box, phrase) pairs in Visual Genome's manner: things, and pairs of things with the box of both."""
        random = rng("regions", scene.key)
        found = []
        for thing in scene.things:
            name = self.name(thing.concept, random)
            found.append((thing.box, self.one(name)))
            if random.random() < 0.55:
                found.append((thing.box, random.choice(self._details(scene, thing, random))))
        for group in scene.groups():
            if len(group) > 1:
                found.append(
                    (union([t.box for t in group]), self.some(self.name(group[0].concept, random), len(group)))
                )
        pair = self.pair(scene, random)
        if pair:
            a, b, how = pair
            phrase = f"{self.one(self.name(a.concept, random))} {how} {self.one(self.name(b.concept, random))}"
            found.append((union([a.box, b.box]), phrase))
        return found

    def _details(self, scene: Scene, thing: Thing, random) -> list[str]:
        name = self.name(thing.concept, random)
        forms = self.expressions(scene, thing) or [self.one(name)]
        forms = [random.choice(forms)]
        if scene.colour and scene.count(thing.label) == 1:
            forms.append(f"{self.one(name)} on {article(scene.colour)} {scene.colour} background")
        if thing.place() and scene.count(thing.label) == 1:
            forms.append(f"{self.one(name)} {thing.place()}")
        return forms

    def expressions(self, scene: Scene, thing: Thing) -> list[str]:
        """Phrases without words of location that fit this thing and no other of the scene."""
        same = [t for t in scene.things if t.label == thing.label]
        names = [name for name, _ in thing.concept.names]
        found = []
        if len(same) == 1:
            found += [f"the {self.bare(name)}" for name in names]
        elif len(same) == 2:
            other = same[0] if same[1] is thing else same[1]
            if max(thing.area, other.area) > 1.35 * min(thing.area, other.area):
                bigger = thing.area > other.area
                words = ("bigger", "larger") if bigger else ("smaller", "little")
                found += [f"the {word} {self.bare(name)}" for word in words for name in names]
        elif _extreme(thing, same):
            found += [f"the {_extreme(thing, same)} {self.bare(name)}" for name in names]
        if len(scene.things) > 2 and _extreme(thing, list(scene.things)):
            found.append(f"the {_extreme(thing, list(scene.things))} thing")
        for kind in vocabulary.KINDS:
            members = kind_members(kind, scene.things)
            if members and thing in members:
                if len(members) == 1:
                    found.append(f"the {kind}")
                elif len(members) == 2:
                    other = members[0] if members[1] is thing else members[1]
                    if max(thing.area, other.area) > 1.35 * min(thing.area, other.area):
                        found.append(f"the {'bigger' if thing.area > other.area else 'smaller'} {kind}")
        return found


_IRREGULAR = {"mouse", "ox", "leaf", "loaf", "wolf", "scarf", "knife", "calf"}


def article(phrase: str) -> str:
    """ "a" or "an"."""
    if re.match(r"(uni|eu|use|uk|one)", phrase) or not phrase:
        return "a"
    return "an" if re.match(r"([aeiou]|hour|mp3|x-|8|tv\b$)", phrase) and not phrase.startswith("tv") else "a"


def kind_phrase(kind: str, count: int) -> str:
    """ "an animal", "two pieces of fruit"."""
    if count == 1:
        single = "piece of fruit" if kind == "fruit" else kind
        return f"{article(single)} {single}"
    return f"{vocabulary.NUMBERS[count]} {vocabulary.KINDS[kind][0]}"


def joined(parts: list[str]) -> str:
    """ "a", "a and b", "a, b and c"."""
    return parts[0] if len(parts) == 1 else ", ".join(parts[:-1]) + " and " + parts[-1]


def union(boxes: list[tuple[int, int, int, int]]) -> tuple[int, int, int, int]:
    """The smallest (x, y, w, h) box around some."""
    left, top = min(b[0] for b in boxes), min(b[1] for b in boxes)
    return left, top, max(b[0] + b[2] for b in boxes) - left, max(b[1] + b[3] for b in boxes) - top


def _extreme(thing: Thing, among: list[Thing]) -> str | None:
    areas = sorted(t.area for t in among)
    if thing.area == areas[-1] and areas[-1] > 1.35 * areas[-2]:
        return "biggest"
    if thing.area == areas[0] and areas[1] > 1.35 * areas[0]:
        return "smallest"
    return None
