"""Matching: is a true pair told from hard negatives?

Shape letters: B pairs of a batch, K pairs that are judged.
"""

from dataclasses import replace

import torch
from torch import Tensor

from xtoolkit.batch import Batch, stable_key
from xtoolkit.registry import TASK_REGISTRY, ConfigError
from xtoolkit.tasks.base import Task, cell, decoded, drawing, spread, token_ids
from xtoolkit.tasks.comparing import matched


@TASK_REGISTRY.register()
class Matching(Task):
    """How well a matching loss tells true pairs from hard negatives, on pairs that it has not seen.

    YAML: {type: Matching, match: itm}

    The pairs are those that the loss itself makes of a batch in eval mode (``ITM.pairs``): every text with its picture, with a
    picture that the contrastive scores draw, and every picture with a text drawn so; rows without a legal negative give none. A
    batch is ``batch_size`` pictures with a text each: the first text of each, then the second of each that has two, and so
    on. So `batch_size` is part of what is measured: among more pictures negatives are harder. They are drawn by a seed
    made of what is in the batch: a figure repeats, on any number of processes. A better similarity draws harder ones: two
    models are not asked about the same pairs.

    Metrics, per cent: ``accuracy``, the mean of ``true.accuracy`` and ``drawn.accuracy``, the shares of true and of drawn
    pairs that are told as such (the larger logit), so that an answer that is always the same gets 50; and ``auc``, how
    often a true pair has higher odds than a drawn one, ties half (Mann and Whitney), which does not ask where the line is.

    Args:
        match: the loss (it has ``pairs`` and ``match``).
    """

    HEADS = {"match": "pairs"}
    FIELDS = frozenset({"image", "text"})
    HEADLINES = {"accuracy": "True from drawn pairs, balanced, %"}

    def __init__(self, match: str = "itm", *, tokenizer=None):
        self.match, self.tokenizer = match, tokenizer

    def parts(self, batch) -> list[Batch]:
        """Pictures with a text each: the n-th part has the n-th text of every picture that has so many."""
        owner, names, seen, rounds = batch["image_index"], batch.image.image_id, {}, {}
        for text, picture in enumerate(owner.tolist()):
            seen[picture] = seen.get(picture, 0) + 1
            rounds.setdefault(seen[picture], []).append(text)
        found = []
        for texts in rounds.values():
            texts = torch.tensor(texts, device=owner.device)
            pictures = owner[texts]
            image = replace(batch.image.select(pictures), image_id=[names[picture] for picture in pictures.tolist()])
            found.append(Batch(text=batch.text.select(texts), image=image))
        return found

    def predict(self, f, batch) -> dict:
        """``odds`` (K,) float32, the log odds of each pair that counts, ``label`` (K,), and what each pair is made of."""
        loss, names, ids = self.heads["match"], batch.image.image_id, token_ids(batch.text)
        with drawing(stable_key(*names, *ids), batch.image.pixels.device):
            pairs = loss.pairs(f, batch)
        logits = matched(loss, pairs.fused)
        rows = pairs.counts.nonzero()[:, 0]
        return {"odds": (logits[:, 1] - logits[:, 0])[rows], "label": pairs.label[rows],
                "image_id": [names[row] for row in pairs.image[rows].tolist()],
                "ids": [ids[row] for row in pairs.text[rows].tolist()]}

    def score(self, outputs: dict) -> dict[str, float]:
        true, odds = outputs["label"] == 1, outputs["odds"].double()
        if not bool((~true).any()):
            raise ConfigError("Matching: no pair has a legal negative: raise `batch_size`, or give data of more pictures")
        told = {"true.accuracy": 100 * (odds[true] > 0).double().mean().item(),
                "drawn.accuracy": 100 * (odds[~true] <= 0).double().mean().item()}
        return {"accuracy": sum(told.values()) / 2, **told, "auc": 100 * auc(odds, true)}

    def floor(self, outputs: dict) -> dict[str, float]:
        """An answer that is always the same."""
        return {"accuracy": 50.0, "auc": 50.0}

    def examples(self, outputs: dict, shown: int = 6) -> list[dict]:
        """True and drawn pairs spread evenly over the data: [{``ids``, ``image_id``, ``true``, ``odds``}]."""
        rows = [row for label in (1, 0) for row in spread((outputs["label"] == label).nonzero()[:, 0].tolist(), shown)]
        return [{"ids": outputs["ids"][row], "image_id": outputs["image_id"][row], "odds": outputs["odds"][row].item(),
                 "true": bool(outputs["label"][row])} for row in rows]

    def table(self, metrics: dict, floor: dict) -> tuple[list[str], list[list[str]]]:
        columns = ("accuracy", "true.accuracy", "drawn.accuracy", "auc")
        rows = [[name, *(cell(side.get(column)) for column in columns)]
                for name, side in (("all", metrics), ("floor: always the same", floor))]
        return ["pairs", "accuracy %, balanced", "of true pairs", "of drawn pairs", "AUC %"], rows

    def figures(self, examples: list[dict]) -> list[dict]:
        items = [{"image": e["image_id"], "caption": decoded(self.tokenizer, e["ids"]), "right": e["true"] == (e["odds"] > 0),
                  "note": f"{'a true' if e['true'] else 'a drawn'} pair, probability of a match "
                          f"{torch.tensor(e['odds']).sigmoid():.2f}"} for e in examples]
        lead = "Pairs spread evenly over the data, not picked. A frame: told right."
        return [{"title": "Does the text belong to the picture?", "text": lead, "items": items}] if items else []


def auc(scores: Tensor, true: Tensor) -> float:
    """The share of (true, other) pairs of scores (K,) of which the true one is higher; a tie counts half."""
    _, place, counts = scores.unique(return_inverse=True, return_counts=True)
    ranks = (counts.cumsum(0) - (counts - 1) / 2)[place]  # of tied scores the mean of theirs, from 1 on
    positives = int(true.sum())
    return ((ranks[true].sum() - positives * (positives + 1) / 2) / (positives * (len(true) - positives))).item()
