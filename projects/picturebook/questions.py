"""Questions about scenes with ten answers each, in VQA v2's format."""

from collections import Counter

from . import vocabulary
from .drawings import Concept
from .language import Language, kind_phrase
from .scenes import Scene, SceneMaker, kind_members, relation
from .seeded import rng
from .writers import Picture

ANSWERS = 10
KIND_ANSWER = 0.06  # how often an annotator names the kind instead of the thing


class Questioner:
    """Asks about scenes.

    Args:
        maker: knows the words of the scenes, so that absent things can be asked about.
        language: phrases and names.
    """

    def __init__(self, maker: SceneMaker, language: Language):
        self.maker, self.language = maker, language

    def ask(self, scene: Scene) -> list[tuple[str, str, list[str]]]:
        """(question, answer type, ten answers): one or two yes/no, a number, one or two others; none twice."""
        random = rng("vqa", scene.key)
        makers = [self._yes_no, self._number, self._other]
        if random.random() < 0.4:
            makers.append(self._yes_no)
        if random.random() < 0.5 and len(scene.things) > 1:
            makers.append(self._other)
        if scene.colour and random.random() < 0.15:
            makers.append(self._colour)
        found = []
        for make in makers:
            asked = make(scene, random)
            if asked and asked[0] not in [question for question, *_ in found]:
                found.append(asked)
        return found

    def absent(self, scene: Scene, random) -> Concept:
        """A word of the scenes that is not in this one; in three of five cases of a subgroup that is."""
        present = {thing.label for thing in scene.things}
        near = self.maker.by_subgroup[random.choice(scene.things).concept.subgroup]
        for _ in range(200):
            concept = random.choice(near if random.random() < 0.6 else self.maker.words)
            if concept.label not in present and not vocabulary.confusable(concept.label, present):
                return concept
        return next(
            c for c in self.maker.words if c.label not in present and not vocabulary.confusable(c.label, present)
        )

    def _yes_no(self, scene: Scene, random) -> tuple[str, str, list[str]]:
        truth = random.random() < 0.5
        language = self.language
        form = random.choice(("there", "there", "there", "kind", "two", "relation", "colour"))
        if form == "kind":
            kinds = [
                k
                for k in vocabulary.KINDS
                if kind_members(k, scene.things) is not None and bool(kind_members(k, scene.things)) == truth
            ]
            if kinds:
                return self._agreed(f"Is there {kind_phrase(random.choice(kinds), 1)} in the picture?", truth)
        if form == "two":
            counted = [g for g in scene.groups() if (len(g) == 2) == truth]
            if counted:
                name = language.name(random.choice(counted)[0].concept, random)
                return self._agreed(f"Are there exactly {language.some(name, 2)}?", truth)
        if form == "relation":
            pair = language.pair(scene, random)
            if pair:
                a, b, how = pair
                first, second = language.bare(language.name(a.concept, random)), language.bare(
                    language.name(b.concept, random)
                )
                return self._agreed(f"Is the {first} {how if truth else _OPPOSITE[how]} the {second}?", truth)
        if form == "colour" and scene.colour:
            colour = scene.colour if truth else random.choice([c for c in vocabulary.COLOURS if c != scene.colour])
            return self._agreed(f"Is the background {colour}?", truth)
        concept = random.choice(scene.things).concept if truth else self.absent(scene, random)
        phrase = language.one(language.name(concept, random))
        return self._agreed(
            random.choice((f"Is there {phrase} in the picture?", f"Is there {phrase}?", f"Can you see {phrase}?")),
            truth,
        )

    @staticmethod
    def _agreed(question: str, truth: bool) -> tuple[str, str, list[str]]:
        return question, "yes/no", ["yes" if truth else "no"] * ANSWERS

    def _number(self, scene: Scene, random) -> tuple[str, str, list[str]]:
        form = random.random()
        if form < 0.15:
            return "How many things are in the picture?", "number", [str(len(scene.things))] * ANSWERS
        kinds = [kind for kind in vocabulary.KINDS if kind_members(kind, scene.things)]
        if form < 0.4 and kinds:
            kind = random.choice(kinds)
            count = len(kind_members(kind, scene.things))
            return f"How many {vocabulary.KINDS[kind][0]} are in the picture?", "number", [str(count)] * ANSWERS
        groups = scene.groups()
        # what repeats is asked about more often, and one question in eight is about what is not there
        concept = random.choices([g[0].concept for g in groups], weights=[2 * len(g) - 1 for g in groups])[0]
        if random.random() < 0.15:
            concept = self.absent(scene, random)
        name = self.language.many(self.language.name(concept, random))
        return (
            random.choice((f"How many {name} are there?", f"How many {name} are in the picture?")),
            "number",
            [str(scene.count(concept.label))] * ANSWERS,
        )

    def _colour(self, scene: Scene, random) -> tuple[str, str, list[str]]:
        return "What color is the background?", "other", [scene.colour] * ANSWERS

    def _other(self, scene: Scene, random) -> tuple[str, str, list[str]] | None:
        thing, question = self._pointed_at(scene, random)
        if thing is None:
            return None
        kinds = [
            kind
            for kind in vocabulary.KINDS
            if kind in ("animal", "vehicle", "fruit", "flower", "drink", "boat", "bird")
            and thing in (kind_members(kind, scene.things) or ())
            and f"the {kind}" not in question
        ]
        names, votes = zip(*thing.concept.names)
        answers = []
        for _ in range(ANSWERS):
            if kinds and random.random() < KIND_ANSWER:
                answers.append(kinds[0])
            else:
                answers.append(random.choices(names, weights=votes)[0])
        return question, "other", answers

    def _pointed_at(self, scene: Scene, random):
        """(the one thing that a question without its name points at, the question)."""
        language = self.language
        forms = []
        if len(scene.groups()) == 1:
            plural = len(scene.things) > 1
            forms.append((scene.things[0], "What are these?" if plural else "What is this?"))
            forms.append((scene.things[0], "What is shown in the picture?"))
        for thing in scene.things:
            kinds = [k for k in vocabulary.KINDS if (kind_members(k, scene.things) or ()) == [thing]]
            if kinds and len(scene.things) > 1:
                forms.append((thing, f"What is the {random.choice(kinds)}?"))
            place = thing.place()
            if (
                place
                and all(other is thing or other.place() != place for other in scene.things)
                and _most(thing, place, scene)
            ):
                forms.append((thing, f"What is {place} of the picture?"))
            for other in scene.things:
                how = relation(thing, other)
                if how and scene.count(other.label) == 1 and other.label != thing.label:
                    fits = [t for t in scene.things if t is not other and relation(t, other) in (how, None)]
                    if fits == [thing]:
                        forms.append(
                            (thing, f"What is {how} the {language.bare(language.name(other.concept, random))}?")
                        )
        if len(scene.things) > 1:
            big = max(scene.things, key=lambda t: t.area)
            if all(t is big or big.area > 1.5 * t.area for t in scene.things):
                forms.append((big, "What is the biggest thing?"))
        return random.choice(forms) if forms else (None, None)


_OPPOSITE = {
    "to the left of": "to the right of",
    "to the right of": "to the left of",
    "above": "below",
    "below": "above",
}


def _most(thing, place: str, scene: Scene) -> bool:
    """Whether no other thing is about as far on that side (always true of the middle)."""
    axis = 0 if "left" in place or "right" in place else 1
    sign = 1 if "left" in place or "top" in place else -1
    others = [sign * other.centre[axis] for other in scene.things if other is not thing]
    return place == "in the middle" or all(sign * thing.centre[axis] < other - 14 for other in others)


def vqa(pictures: list[Picture], questioner: Questioner) -> tuple[dict, dict]:
    """(questions, annotations) of one split as VQA v2 ships them."""
    split = {"train": "train2014", "val": "val2014", "test": "test2015"}[pictures[0].scene.split]
    questions, annotations = [], []
    for picture in pictures:
        for number, (question, kind, answers) in enumerate(questioner.ask(picture.scene)):
            question_id = picture.id * 1000 + number
            common = Counter(answers)
            best = min(common, key=lambda answer: (-common[answer], answer))
            questions.append({"image_id": picture.id, "question": question, "question_id": question_id})
            annotations.append(
                {
                    "question_type": " ".join(question.lower().rstrip("?").split()[:2]),
                    "multiple_choice_answer": best,
                    "answers": [
                        {"answer": answer, "answer_confidence": "yes", "answer_id": n + 1}
                        for n, answer in enumerate(answers)
                    ],
                    "image_id": picture.id,
                    "answer_type": kind,
                    "question_id": question_id,
                }
            )
    head = {
        "info": {"description": "PictureBook v1", "version": "1", "year": 2026},
        "license": {"name": "see NOTICE", "url": ""},
        "data_subtype": split,
    }
    return (
        {**head, "task_type": "Open-Ended", "data_type": "mscoco", "questions": questions},
        {**head, "data_type": "mscoco", "annotations": annotations},
    )
