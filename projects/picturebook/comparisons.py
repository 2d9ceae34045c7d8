"""Sentences about two scenes, each with a pair for which it is true and a pair for which it is not: NLVR2's format."""

from . import vocabulary
from .drawings import Concept
from .language import Language, article, kind_phrase
from .scenes import Scene, kind_members
from .seeded import rng
from .writers import Picture


class Comparer:
    """Makes sentences about two pictures, each with a pair for which it is true and a pair for which it is not."""

    def __init__(self, pictures: list[Picture], language: Language):
        self.pictures, self.language = pictures, language

    def sets(self, count: int, name: str) -> list[dict]:
        """`count` sentences as 2 * `count` NLVR2 records; words alone say nothing about the label."""
        records, used = [], set()
        for number in range(50 * count):
            if len(used) == count:
                return records
            made = self._try(rng("nlvr2", name, number))
            if made is None or made[0] in used:
                continue
            sentence, pairs = made
            for place, (label, (left, right)) in enumerate(pairs):
                key = f"{name}-{len(used)}-{place}"
                records.append(
                    {
                        "sentence": sentence,
                        "label": label,
                        "identifier": f"{key}-0",
                        "directory": str(len(used)),
                        "left": left.path,
                        "right": right.path,
                        "left_url": left.path,
                        "right_url": right.path,
                    }
                )
            used.add(sentence)
        raise RuntimeError(f"NLVR2 {name}: only {len(used)} of {count} different sentences could be made")

    def _try(self, random):
        form = random.choice((self._total, self._both, self._one_colour, self._each, self._more, self._kind))
        sentence, shown, holds = form(random)
        found: dict[str, tuple[Picture, Picture]] = {}
        for _ in range(600 if shown else 0):
            # one picture always shows something that the sentence names, so that a false pair is not false at a glance
            left, right = random.choice(shown), random.choice(self.pictures)
            if random.random() < 0.5:
                left, right = right, left
            truth = holds(left.scene, right.scene) if left is not right else None
            if truth is not None:
                found.setdefault(str(truth), (left, right))
            if len(found) == 2:
                pairs = sorted(found.items(), key=lambda item: item[0])
                random.shuffle(pairs)
                return sentence[0].upper() + sentence[1:] + ".", pairs
        return None

    def _pick(self, random) -> tuple[Concept, list[Picture]]:
        """A thing and the pictures that show it."""
        concept = random.choice(random.choice(self.pictures).scene.things).concept
        return concept, [picture for picture in self.pictures if picture.scene.count(concept.label)]

    def _phrase(self, concept: Concept, random, count: int = 1) -> str:
        return self.language.some(self.language.name(concept, random), count)

    # Each form gives a sentence, pictures to start from, and whether it holds for (left, right): None if arguable.

    def _total(self, random):
        (concept, shown), count = self._pick(random), random.choice((1, 2, 2, 3))
        phrase = _exact(self._phrase(concept, random, count))
        return (
            f"there {'is' if count == 1 else 'are'} exactly {phrase} in the two pictures",
            shown,
            lambda a, b: _sure(concept, a, b) and a.count(concept.label) + b.count(concept.label) == count,
        )

    def _both(self, random):
        concept, shown = self._pick(random)
        return (
            f"both pictures show at least {_exact(self._phrase(concept, random))}",
            shown,
            lambda a, b: _sure(concept, a, b) and a.count(concept.label) > 0 and b.count(concept.label) > 0,
        )

    def _one_colour(self, random):
        (concept, shown), colour = self._pick(random), random.choice(list(vocabulary.COLOURS))
        phrase = self._phrase(concept, random)
        return (
            f"one of the pictures has {phrase} on {article(colour)} {colour} background",
            shown,
            lambda a, b: _sure(concept, a, b)
            and any(s.count(concept.label) > 0 and s.colour == colour for s in (a, b)),
        )

    def _each(self, random):
        (first, shown), (second, _) = self._pick(random), self._pick(random)
        phrases = self._phrase(first, random), self._phrase(second, random)
        return (
            f"there is {phrases[0]} in the left picture and {phrases[1]} in the right picture",
            shown,
            lambda a, b: (
                _sure(first, a, b) and _sure(second, a, b) and a.count(first.label) > 0 and b.count(second.label) > 0
            ),
        )

    def _more(self, random):
        concept, shown = self._pick(random)
        name = self.language.many(self.language.name(concept, random))
        if random.random() < 0.5:
            return (
                f"the left picture has more {name} than the right picture",
                shown,
                lambda a, b: _sure(concept, a, b) and a.count(concept.label) > b.count(concept.label),
            )
        return (
            f"the right picture has more {name} than the left picture",
            shown,
            lambda a, b: _sure(concept, a, b) and a.count(concept.label) < b.count(concept.label),
        )

    def _kind(self, random):
        kind, count = random.choice(list(vocabulary.KINDS)), random.choice((1, 2, 3))
        shown = [picture for picture in self.pictures if kind_members(kind, picture.scene.things)]

        def holds(a: Scene, b: Scene) -> bool | None:
            members = [kind_members(kind, scene.things) for scene in (a, b)]
            return None if None in members else len(members[0]) + len(members[1]) == count

        phrase = _exact(kind_phrase(kind, count))
        return f"there {'is' if count == 1 else 'are'} exactly {phrase} in the two pictures", shown, holds


def _exact(phrase: str) -> str:
    """ "one dog" for "a dog"."""
    for start in ("a ", "an "):
        if phrase.startswith(start):
            return "one " + phrase[len(start) :]
    return phrase


def _sure(concept: Concept, *scenes: Scene) -> bool | None:
    """True, or None if a picture holds something that could be called by the concept's name."""
    for scene in scenes:
        if vocabulary.confusable(concept.label, {thing.label for thing in scene.things}):
            return None
    return True
