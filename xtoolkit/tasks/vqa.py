"""VQA accuracy: is the answer to a question about a picture the one that people gave?

Shape letters: B questions of a batch, C candidates.
"""

import json
from typing import Annotated, Literal

import numpy as np
import torch
from torch import Tensor

from xtoolkit.batch import Batch, TextField
from xtoolkit.metrics.vqa import accuracies, normalise
from xtoolkit.registry import TASK_REGISTRY, ConfigError, Count, Range
from xtoolkit.tasks.base import Measured, Task, cell, column, decoded, evaluating, spread, token_ids

FILE = "answers.txt"  # of the task's folder: the candidates that were ranked
TYPES = ("yes/no", "number", "other")  # of answers, as the table lists them
TOP = 5               # answers that are kept of each question


@TASK_REGISTRY.register()
class VQAAccuracy(Task):
    """The best of the data's ``candidates`` as the answer to each question, scored as VQA v2's own evaluation does.

    YAML: {type: VQAAccuracy, loss: answer, k: 128}

    Metrics, per cent: ``accuracy``, ten annotators of whom each is left out once (``metrics.vqa``), and the same of each answer
    type, ``yes_no.accuracy``, ``number.accuracy``, ``other.accuracy``; ``coverage``, of how many questions a best answer is among
    the candidates. The floor sees no picture: to all questions of a type (`question_type`: "how many", "is there"; without it,
    of an answer type) it gives the one answer that scores best on them in hindsight. Questions without annotations, as of a
    test server's split, are answered and not scored; the server's file is ``vqa.json``, [{question_id, answer}].

    Args:
        loss: the loss that ranks (it has ``rank``): `AnswerGeneration` or `AnswerClassification`.
        k: candidates a question that a generating loss scores as a whole: those with the likeliest first tokens.
        chunk: candidates a pass of its decoder.
        score: `exact` likelihoods, or `release`: the first token counted twice.
        normalise: `differing`: answers are normalised where a question's annotators differ; `always`: of every question.
        answer_tokens: longest candidate, its two specials counted: the training data's.

    Source: Goyal et al. 2017; ``metrics.vqa`` says which rules. X-FM and X2-VLM rank 3,129 candidates with k = 128.
    """

    HEADS = {"loss": "rank"}
    FIELDS = frozenset({"image", "text", "answers"})
    HEADLINES = {"accuracy": "VQA accuracy, %"}
    ABILITIES = {"answer": "a loss that answers, `losses.answer: {type: AnswerGeneration, fusion: fusion}`"}

    def __init__(self, loss: str = "answer", k: Count = 128, chunk: Count = 512, score: Literal["exact", "release"] = "exact",
                 normalise: Literal["differing", "always"] = "differing", answer_tokens: Annotated[int, Range(3)] = 10, *,
                 tokenizer=None, output=None):
        self.loss, self.answer_tokens, self.always = loss, answer_tokens, normalise == "always"
        self._how = {"k": k, "chunk": chunk, "score": score}
        self.tokenizer, self.output, self._ready = tokenizer, output, ((), None, {})

    @classmethod
    def suggest(cls, encoders: dict, losses: dict) -> dict | None:
        loss = next((name for name, kind in losses.items() if hasattr(kind, "rank")), None)
        return None if loss is None else {"type": cls.__name__, "loss": loss}

    def check(self, model, data) -> None:
        if data.candidates is None:
            raise ConfigError("VQAAccuracy ranks the candidates that its data name: give them `candidates: FILE`, an answer "
                              "a line")
        classes = getattr(model.losses[self.loss], "classes", None)  # of a head that classifies
        if classes is not None and len(data.candidates) != classes:
            raise ConfigError(f"VQAAccuracy: the head tells {classes} answers apart, and its data have {len(data.candidates)} "
                              "`candidates`: they must be those of its training, all and in order")

    # ---- what is computed -----------------------------------------------------------------------------------------------
    def predict(self, f, batch) -> dict:
        """Lists, an entry a question: its record's ``question_id``, ``kind`` and ``type``, ``told`` [(answer, probability)] of
        the best, and of those with annotations their ``score`` and whether a best answer is a candidate; else None."""
        if "candidates" not in batch or "record" not in batch:
            raise ConfigError("VQAAccuracy ranks the candidates that its data name: give them `candidates: FILE`, an answer "
                              "a line")
        named = batch["candidates"][0]
        told = self._told(f, self.heads["loss"], named, batch.text.ids.device, TOP)
        scores = [self._score(best[0][0], annotations(record), named) for best, record in zip(told, batch["record"])]
        found = {key: [record.get(key) for record in batch["record"]] for key in ("question_id", "question_type", "answer_type")}
        return found | {"told": told, "score": [score for score, _ in scores], "covered": [covered for _, covered in scores],
                        "annotations": [annotations(record) for record in batch["record"]], "ids": token_ids(batch.text),
                        "image_id": list(batch.image.image_id), "candidates": [named] * len(told)}

    def score(self, outputs: dict) -> dict[str, float]:
        scored = [row for row, score in enumerate(outputs["score"]) if score is not None]
        if not scored:
            return {"answered": len(outputs["score"])}
        coverage = _mean([outputs["covered"][row] for row in scored])
        if not coverage:
            raise ConfigError(f"VQAAccuracy: of {len(scored)} questions none has its best answer among the "
                              f"{len(outputs['candidates'][0])} candidates: they are those of other questions")
        return self._by_type(outputs, scored, {row: outputs["score"][row] for row in scored}) | {"coverage": coverage}

    def floor(self, outputs: dict) -> dict[str, float]:
        groups: dict = {}
        for row, said in enumerate(outputs["annotations"]):
            if said:
                kind = outputs["question_type"][row] or outputs["answer_type"][row]
                groups.setdefault(kind, {})[row] = said
        scores: dict = {}
        for rows in groups.values():
            totals: dict = {}
            for said in rows.values():
                for answer, worth in accuracies(said, self.always)[0].items():
                    totals[answer] = totals.get(answer, 0) + worth
            best = max(totals, key=totals.get)
            scores |= {row: self._score(best, said, ())[0] for row, said in rows.items()}
        return self._by_type(outputs, sorted(scores), scores) if scores else {}

    def samples(self, outputs: dict) -> list[dict]:
        ids = [row if number is None else number for row, number in enumerate(outputs["question_id"])]
        return [{"id": number, "image_id": image, "score": score, "answer": told[0][0], "type": kind, "covered": covered}
                for number, image, score, told, kind, covered in zip(
                    ids, *(outputs[key] for key in ("image_id", "score", "told", "answer_type", "covered")))]

    def measured(self, rows: list[dict]) -> dict[str, Measured]:
        score, kinds = column(rows, "score", 100), np.array([row["type"] or "" for row in rows])
        scored = set(kinds[~np.isnan(score)])
        parts = {_part(kind): Measured(np.where(kinds == kind, score, np.nan)) for kind in scored if kind}
        return {"accuracy": Measured(score), **parts, "coverage": Measured(column(rows, "covered", 100))} if scored else {}

    def files(self, outputs: dict) -> dict[str, str]:
        found = {FILE: "\n".join(outputs["candidates"][0]) + "\n"}
        if None in outputs["question_id"]:
            return found
        rows = [{"question_id": number, "answer": told[0][0]} for number, told in zip(outputs["question_id"], outputs["told"])]
        return found | {"vqa.json": json.dumps(rows, ensure_ascii=False)}

    # ---- what is shown --------------------------------------------------------------------------------------------------
    def examples(self, outputs: dict, shown: int = 12) -> list[dict]:
        """Questions spread evenly over the data: [{``ids``, ``image_id``, ``told``, ``annotations``, ``score``}]."""
        keys = ("ids", "image_id", "told", "annotations", "score")
        return [{key: outputs[key][row] for key in keys} for row in spread(range(len(outputs["told"])), shown)]

    def table(self, metrics: dict, floor: dict) -> tuple[list[str], list[list[str]]]:
        if "accuracy" not in metrics:
            return super().table(metrics, floor)
        rows = [[name.removesuffix("accuracy").rstrip(".").replace("_", "/") or "all", cell(value), cell(floor.get(name))]
                for name, value in metrics.items() if name.endswith("accuracy")]
        return ["questions", "accuracy %", "floor %"], [*rows, ["with a best answer among the candidates",
                                                               cell(metrics["coverage"]), ""]]

    def figures(self, examples: list[dict]) -> list[dict]:
        items = []
        for e in examples:
            said = ", ".join(dict.fromkeys(e["annotations"])) if e["annotations"] else "not annotated"
            items.append({"image": e["image_id"], "caption": decoded(self.tokenizer, e["ids"]),
                          "note": f"{e['told'][0][0]} ({100 * e['told'][0][1]:.0f} %); annotators: {said}",
                          "right": (e["score"] or 0) >= 0.5})
        lead = "Questions spread evenly over the data, not picked. A frame: an accuracy of a half at least."
        return [{"title": "What it answers", "text": lead, "items": items}] if items else []

    # ---- what xtoolkit.load can then do ---------------------------------------------------------------------------------
    def abilities(self) -> dict:
        return {"answer": self.answer}

    def answer(self, loaded, images, questions, candidates: list[str] | None = None, top: int | None = None,
               batch_size: int = 64):
        """The best of some candidates as the answer to each question about its picture.

        Pair by pair; one picture goes with every question, one question with every picture.

        Args:
            candidates: to choose from; None: those of the run's evaluation. A classifier chooses among its own.
            top: give so many answers, the best first, each with the probability that the model gives to that very answer: over
                all that could be said, they need not sum to 1.

        Returns:
            an answer, or a list of them; with ``top`` lists [(answer, probability)] in their place.
        """
        if isinstance(candidates, str):  # a list of its letters
            raise TypeError(f"candidates: {candidates!r} is a text; give a list of answers")
        if candidates is not None and not candidates:
            raise ValueError("candidates: none are given; None ranks those of the run's evaluation")
        loss, pairs, found = loaded.model.losses[self.loss], loaded.pairs(images, questions), []
        named = self._named() if candidates is None or hasattr(loss, "classes") else tuple(candidates)
        if strange := [one for one in candidates or () if one not in named]:
            raise ValueError(f"a classifier can only give the answers that it was trained on, and `{strange[0]}` is none of them")
        with evaluating(loaded.model):
            for image, text, shown, _ in pairs.batches(batch_size):
                f = loaded.model.features(Batch(image=image.select(shown), text=text))
                found += self._told(f, loss, named, text.ids.device, top or 1, candidates)
        found = found if top else [best[0][0] for best in found]
        which = pairs.result(torch.arange(len(found))).tolist()
        return [found[row] for row in which] if isinstance(which, list) else found[which]

    # ---- how it is done -------------------------------------------------------------------------------------------------
    def _told(self, f, loss, named: tuple, device, top: int, among: list[str] | None = None) -> list[list[tuple[str, float]]]:
        """For each question its best answers with their probabilities; ``among``: only some of those that are named."""
        scores = loss.rank(f, self._tokens(named).to(device), **self._how).float()
        if among is not None:
            left_out = torch.tensor([one not in set(among) for one in named], device=scores.device)
            scores = scores.masked_fill(left_out, -torch.inf)
        best = scores.sort(dim=1, descending=True, stable=True)
        rows = zip(best.indices[:, :top].tolist(), best.values[:, :top].exp().tolist())
        return [[(named[n], p) for n, p in zip(*row)] for row in rows]

    def _tokens(self, named: tuple) -> TextField:
        """The candidates as the decoder reads them, made once.

        Raises:
            ConfigError: fewer than two, one too long or without a token, two that are the same tokens.
        """
        if self._ready[0] != named:
            wrong = lambda text: ConfigError(f"VQAAccuracy: {text}")
            if len(named) < 2:
                raise wrong(f"{len(named)} candidate{'s' * (len(named) != 1)} to rank: two at least")
            coded, seen = [self.tokenizer.encode(answer) for answer in named], {}
            for answer, ids in zip(named, coded):
                if len(ids) > self.answer_tokens:
                    raise wrong(f"the candidate `{answer}` has {len(ids)} tokens, and answers are cut to {self.answer_tokens} in "
                                "training: raise the data's and the task's `answer_tokens`, or leave it out")
                if len(ids) < 3:
                    raise wrong(f"the candidate `{answer}` has no token")
                if (other := seen.setdefault(tuple(ids), answer)) is not answer:
                    raise wrong(f"the candidates `{other}` and `{answer}` are the same tokens: leave one out")
            ids = torch.full((len(coded), max(map(len, coded))), self.tokenizer.pad)
            for row, tokens in enumerate(coded):
                ids[row, :len(tokens)] = torch.tensor(tokens)
            mask = torch.arange(ids.shape[1]) < torch.tensor([len(tokens) for tokens in coded])[:, None]
            self._ready = named, TextField(ids, mask), {name(answer) for answer in named for name in (str, normalise)}
        return self._ready[1]

    def _named(self) -> tuple[str, ...]:
        """The candidates that the run's evaluation ranked."""
        path = None if self.output is None else self.output / FILE
        if path is None or not path.is_file():
            raise ValueError(f"this model's evaluation has left no {path or FILE}: evaluate it first, or give `candidates`")
        return tuple(path.read_text(encoding="utf-8").split("\n")[:-1])

    def _score(self, answer: str, said: list[str] | None, named) -> tuple[float | None, float | None]:
        """The accuracy of an answer, and 1 where a best answer of the annotators is a candidate; None without annotators."""
        if not said:
            return None, None
        worth, normalised = accuracies(said, self.always)
        known = self._ready[2] if named else ()
        best = max(worth.values())
        covered = any(value == best and one in known for one, value in worth.items())
        return worth.get(normalise(answer) if normalised else answer, 0.0), float(covered)

    @staticmethod
    def _by_type(outputs: dict, rows: list[int], scores: dict) -> dict[str, float]:
        kinds = dict.fromkeys(outputs["answer_type"][row] for row in rows if outputs["answer_type"][row])
        order = sorted(kinds, key=lambda kind: TYPES.index(kind) if kind in TYPES else len(TYPES))
        parts = {_part(kind): _mean([scores[row] for row in rows if outputs["answer_type"][row] == kind])
                 for kind in order}
        return {"accuracy": _mean([scores[row] for row in rows])} | parts


def annotations(record: dict) -> list[str] | None:
    """The answers of a record's annotators: ``annotations``; or ``answers``, or X-VLM's ``answer``, an annotator each; of answers
    with weights alone ten annotators of whom each has its share. None: it has none."""
    if record.get("annotations"):
        return list(record["annotations"])
    listed, weights = record.get("answers") or record.get("answer") or [], record.get("weight")
    listed = listed if isinstance(listed, list) else [listed]
    weights = weights if isinstance(weights, list) else [weights] * len(listed)
    given = [{"weight": weight} | (one if isinstance(one, dict) else {"answer": one}) for one, weight in zip(listed, weights)]
    if all("answer" in one and one["weight"] is None for one in given):
        return [one["answer"] for one in given] or None
    share = lambda one: 1 if one["weight"] is None else one["weight"]
    return [one.get("text", one.get("answer")) for one in given for _ in range(max(1, round(10 * share(one))))]


def _part(kind: str) -> str:
    """What the figure of an answer type is called."""
    return f"{kind.replace('/', '_')}.accuracy"


def _mean(values: list) -> float:
    return 100 * torch.tensor(values, dtype=torch.float64).mean().item()
