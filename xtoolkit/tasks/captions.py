"""Captions: what a model says of a picture, and how near it comes to what people said.

Shape letters: I images, R captions that are grown together, n tokens so far, V vocabulary.
"""

import json
import re
from dataclasses import replace
from typing import Annotated

import numpy as np
import torch
from torch import Tensor

from xtoolkit.batch import Batch, TextField
from xtoolkit.graph import Ref
from xtoolkit.metrics.captions import bleu_counts, bleu_of, cider_d, rouge_l, words
from xtoolkit.registry import TASK_REGISTRY, ConfigError, Count, NotNegative, Range
from xtoolkit.tasks.base import Alone, Measured, Task, column, evaluating, spread
from xtoolkit.tasks.beams import Beams, beam_search
from xtoolkit.tasks.comparing import sides
from xtoolkit.tasks.masked_words import another


@TASK_REGISTRY.register()
class CaptionScores(Task):
    """Says a caption of every picture, by beam search, and compares it with those that the data have of it.

    YAML: {type: CaptionScores, loss: imlm, beams: 3, min_length: 5, max_length: 20}

    Every picture is described once; all its captions, as they are written, are references. Metrics are those of coco-caption
    (``metrics.captions``) times 100, as papers print them: ``bleu1`` to ``bleu4`` of the whole set; ``rouge_l`` and ``cider``
    (CIDEr-D, its document frequencies those of the evaluated references), means over pictures. The floor says of each picture
    the first caption of another one, in an order drawn by a seed made of their names.

    In the evaluation's folder: ``samples.jsonl``, of each picture its caption, ROUGE-L, what BLEU counts
    (``metrics.captions.bleu_counts``) and, as ``score``, CIDEr-D; and
    ``captions.json``, [{"image_id", "caption"}], as COCO's server takes them, where pictures are named by COCO's ids.

    Args:
        loss: the loss that generates (it has ``feature``, a reference, and ``next_words``).
        beams: captions that are kept at a time; 1: the likeliest token each time.
        min_length: tokens of the shortest caption, neither prompt nor end counted.
        max_length: of the longest.
        ngram: no run of so many tokens is said twice; 0: any may be.
        length_penalty: 0: captions compare by log-likelihood; more: longer ones gain, see ``Beams``.
        prompt: what captions begin with: that of the stream's `left_to_right` block.

    Source: X2-VLM 4.3 and its released captioning. That names 50 tokens at most, X-FM's yaml 20, and bounds the length by the
    pictures in the batch as well.
    """

    HEADS = {"loss": "next_words"}
    FIELDS = frozenset({"image"})
    HEADLINES = {"cider": "Captions, CIDEr", "bleu4": "Captions, BLEU-4"}
    ABILITIES = {"caption": "a loss that generates, `losses.imlm: {type: Captioning, feature: fusion@left_to_right}`"}

    def __init__(self, loss: str = "imlm", beams: Count = 3, min_length: Annotated[int, Range(0)] = 5,
                 max_length: Count = 20, ngram: Annotated[int, Range(0)] = 3, length_penalty: NotNegative = 0.0,
                 prompt: str = "a picture of", *, tokenizer=None):
        self.loss, self.tokenizer = loss, tokenizer
        self.how = Beams(beams, min_length, max_length, ngram, length_penalty)
        self.prompt = prompt.strip()

    @classmethod
    def suggest(cls, encoders: dict, losses: dict) -> dict | None:
        loss = next((name for name, kind in losses.items() if hasattr(kind, "next_words")), None)
        return None if loss is None else {"type": cls.__name__, "loss": loss}

    # ---- what is computed -----------------------------------------------------------------------------------------------
    def evaluate(self, model, loader, ranks=Alone()) -> dict:
        self._graph = model.graph
        return super().evaluate(model, loader, ranks)

    def predict(self, f, batch) -> dict:
        if "captions" not in batch:
            raise ConfigError("CaptionScores: its data give no `captions`: it reads those of pictures, {type: Pairs}")
        first = [batch["image_index"].tolist().index(row) for row in range(len(batch.image.image_id))]
        said = self.said(f, self._graph, self.heads["loss"], batch.image, self.how)
        return {"caption": said, "references": [batch["captions"][row] for row in first], "image_id": list(batch.image.image_id)}

    def said(self, f, graph, loss, image, how: Beams) -> list[str]:
        """A caption of each picture.

        Args:
            f: features of a batch with these pictures.
            loss: that which generates.
            image: ImageField (I).
        """
        ref, tokenizer = Ref.parse(loss.feature), self.tokenizer
        image_slot, text_slot = sides(graph, ref.name)
        inputs = graph.encoders[ref.name].inputs
        reads, = (slot for slot, source in graph.encoders[inputs[text_slot]].inputs.items() if graph.sources(source) == {"text"})
        shown, device = f[inputs[image_slot]], image.pixels.device
        begin = torch.tensor(tokenizer.encode(self.prompt)[:-1], device=device)
        mask = torch.tensor([tokenizer.mask], device=device)
        mute = torch.tensor(sorted(tokenizer.special - {tokenizer.eos}), device=device)

        def log_p(said: Tensor, row: Tensor) -> Tensor:
            rows = len(said)
            ids = torch.cat([begin.expand(rows, -1), said, mask.expand(rows, 1)], 1)
            length = ids.shape[1]
            before = torch.ones(length, length, dtype=torch.bool, device=device).tril().expand(rows, -1, -1)
            last = torch.arange(rows, device=device) * length + length - 1
            text = TextField(ids, before[:, -1], masked_pos=last, attention=before)
            states = f.run(inputs[text_slot], **{reads: text})
            told = loss.next_words(f.run(loss.feature, **{text_slot: states, image_slot: shown.select(row)}), text)
            told[:, mute] = told[:, tokenizer.vocab_size:] = -torch.inf
            return told

        found = beam_search(log_p, len(image.pixels), tokenizer.eos, how, device)
        return [tokenizer.decode(ids).strip() for ids in found]

    def score(self, outputs: dict) -> dict[str, float]:
        return _figures(*_by_picture(outputs))

    def floor(self, outputs: dict) -> dict[str, float]:
        _, true, names = _by_picture(outputs)
        return _figures([true[row][0] for row in another(names).tolist()], true, names) if len(names) > 1 else {}

    def samples(self, outputs: dict) -> list[dict]:
        made, true, names = _by_picture(outputs)
        split, several = _split(made, true)
        scores = zip(names, made, cider_d(split, several), rouge_l(split, several), bleu_counts(split, several))
        return [{"id": name, "image_id": name, "score": cider, "rouge_l": 100 * rouge, "caption": caption, "counts": counts}
                for name, caption, cider, rouge, counts in scores]

    def measured(self, rows: list[dict]) -> dict[str, Measured]:
        """A caption's CIDEr-D holds on to the document frequencies of all references, whichever pictures are drawn: they are
        the benchmark's, no part of what a model says, and of a set drawn with replacement they would be of fewer pictures."""
        counts = np.array([row["counts"] for row in rows], dtype=np.float64)
        of = lambda n: Measured(counts, lambda some: 100 * bleu_of(some.sum(0).tolist())[n])
        return {**{f"bleu{n + 1}": of(n) for n in range(4)}, "rouge_l": Measured(column(rows, "rouge_l")),
                "cider": Measured(column(rows, "score", 100))}

    def files(self, outputs: dict) -> dict[str, str]:
        made, _, names = _by_picture(outputs)
        rows = [{"image_id": _coco_id(name), "caption": caption} for name, caption in zip(names, made)]
        return {"captions.json": json.dumps(rows, ensure_ascii=False) + "\n"}

    # ---- what is shown --------------------------------------------------------------------------------------------------
    def examples(self, outputs: dict, shown: int = 12) -> list[dict]:
        """Pictures spread evenly over the set: [{``image_id``, ``caption``, ``references``, ``cider``}]."""
        made, true, _ = _by_picture(outputs)
        rows = [{"image_id": row["image_id"], "caption": row["caption"], "references": several, "cider": row["score"]}
                for row, several in zip(self.samples(outputs), true)]
        return spread(rows, shown)

    def figures(self, examples: list[dict]) -> list[dict]:
        said = lambda e: f"CIDEr {e['cider']:.0f}; people: {e['references'][0]}"
        items = [{"image": e["image_id"], "caption": e["caption"], "note": said(e)} for e in examples]
        lead = "Pictures spread evenly over the data, not picked."
        return [{"title": "What it says of a picture", "text": lead, "items": items}] if items else []

    # ---- what xtoolkit.load can then do ---------------------------------------------------------------------------------
    def abilities(self) -> dict:
        return {"caption": self.caption}

    def caption(self, loaded, images, beams: int | None = None, min_length: int | None = None, max_length: int | None = None,
                batch_size: int = 32) -> str | list[str]:
        """What the model says of a picture, or of each of several, by beam search.

        Args:
            beams: captions that are kept at a time; None: as many as the evaluation keeps. Likewise the fewest and most tokens.
        """
        given = {"beams": beams, "min_length": min_length, "max_length": max_length}
        how = replace(self.how, **{key: value for key, value in given.items() if value is not None})
        pictures, model, found = loaded.pictures(images), loaded.model, []
        with evaluating(model):
            for image in pictures.batches(batch_size):
                found += self.said(model.features(Batch(image=image)), model.graph, model.losses[self.loss], image, how)
        return found[0] if pictures.single else found


def _by_picture(outputs: dict) -> tuple[list[str], list[list[str]], list[str]]:
    """Captions, references and names of the different pictures: one that comes again brings further references."""
    made, true = {}, {}
    for name, caption, references in zip(outputs["image_id"], outputs["caption"], outputs["references"]):
        made.setdefault(name, caption)
        true.setdefault(name, []).extend(references)
    return list(made.values()), list(true.values()), list(made)


def _split(made, true):
    """Captions and references as lists of words, as coco-caption cuts them."""
    return [words(caption) for caption in made], [[words(caption) for caption in several] for several in true]


def _figures(made, true, names) -> dict[str, float]:
    """All metrics, times 100, of captions and their references, an entry a picture."""
    split, several = _split(made, true)
    of_all = bleu_of([sum(one) for one in zip(*bleu_counts(split, several))])
    mean = lambda values: sum(values) / len(values)
    return {**{f"bleu{n}": 100 * value for n, value in enumerate(of_all, 1)},
            "rouge_l": 100 * mean(rouge_l(split, several)), "cider": 100 * mean(cider_d(split, several))}


def _coco_id(name: str) -> int | str:
    """The number of one of COCO's pictures, `coco-391895` or `COCO_val2014_000000391895`; another name as it is."""
    number = re.fullmatch(r"(?:coco-|COCO_\w+_)?0*(\d+)(?:\.jpg)?", name)
    return int(number[1]) if number else name
