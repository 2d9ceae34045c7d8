"""Nearest neighbours: do the features of one encoder tell classes apart, without any training on them?

Shape letters: B rows, Q queries, N rows of the bank, C classes, D width.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from xtoolkit.features import full_precision
from xtoolkit.graph import Need
from xtoolkit.registry import TASK_REGISTRY, ConfigError, Count
from xtoolkit.tasks.base import Task, cell, decoded, spread, token_ids
from xtoolkit.tasks.comparing import summary

SIDE = 16           # pixels a side of a picture as the features are compared with
TEMPERATURE = 0.07  # of a neighbour's weight, DINO's


@TASK_REGISTRY.register()
class NearestNeighbours(Task):
    """How often the nearest labelled neighbours of a row have its class, by the cosine of an encoder's summaries.

    YAML: {type: NearestNeighbours, feature: vision, bank: train, k: 1}

    One source of the data is the bank, the others are asked about; rows without a label are left out. The k nearest rows of
    the bank vote for their classes, each with weight exp(cosine / 0.07); k = 1 takes the nearest one's.

    Metrics, per cent of the queries that are told: ``accuracy``, and ``pixels.accuracy``, the same neighbours found by the
    pictures themselves, 16 x 16 pixels each, from which the bank's mean picture is taken away: features that tell less
    than that say nothing of what is shown. The floor is the most frequent class of the bank.

    Args:
        feature: the feature whose summary is compared, of an encoder of pictures or of texts.
        bank: the source of the labelled rows.
        k: neighbours that vote.

    Source: Caron et al. 2021 (DINO, 2104.14294), appendix F.1: weighted votes; it finds 20 neighbours best on ImageNet.
    """

    FIELDS = frozenset({"label"})
    HEADLINES = {"accuracy": "Nearest neighbour of the same class, %"}

    def __init__(self, feature: str, bank: str = "train", k: Count = 1, *, tokenizer=None):
        self.feature, self.bank, self.k, self.tokenizer = feature, bank, k, tokenizer

    @classmethod
    def needs(cls, block: dict) -> list[Need]:
        return [Need(block["feature"], grad=False)]

    def predict(self, f, batch) -> dict:
        """``feature`` (B, D), ``label`` (B,), ``in_bank`` (B,) bool, and what each row shows."""
        if "source" not in batch or batch["label"].value.is_floating_point():
            raise ConfigError("NearestNeighbours needs data that name each row's `source`, and whose labels are classes")
        image, label = batch.image, batch["label"].value
        in_bank = torch.tensor([source == self.bank for source in batch["source"]])
        kept = {"feature": summary(f[self.feature]).float(), "label": label, "in_bank": in_bank}
        if image is not None:
            kept["pixels"] = small(image)
        rows = range(len(label))
        return kept | {"image_id": list(image.image_id) if image is not None else [None for _ in rows],
                       "ids": token_ids(batch.text) if batch.text is not None else [[] for _ in rows]}

    def score(self, outputs: dict) -> dict[str, float]:
        bank, asked = self._rows(outputs)
        found = {"accuracy": outputs["feature"]}
        if "pixels" in outputs:
            found["pixels.accuracy"] = outputs["pixels"] - outputs["pixels"][bank].mean(0)
        label = outputs["label"]
        return {name: 100 * (vote(x[asked], x[bank], label[bank], self.k) == label[asked]).double().mean().item()
                for name, x in found.items()}

    def floor(self, outputs: dict) -> dict[str, float]:
        bank, asked = self._rows(outputs)
        share = 100 * (outputs["label"][asked] == outputs["label"][bank].bincount().argmax()).double().mean().item()
        return {"accuracy": share} | ({"pixels.accuracy": share} if "pixels" in outputs else {})

    def examples(self, outputs: dict, shown: int = 12) -> list[dict]:
        """Queries spread evenly over the data, each with its nearest row: [{``image_id``, ``ids``, ``neighbour`` with both,
        ``right``, ``cosine``}]."""
        bank, asked = self._rows(outputs)
        of = lambda row: {"image_id": outputs["image_id"][row], "ids": outputs["ids"][row]}
        found = []
        for row in spread(asked.tolist(), shown):
            cosine, nearest = nearest_rows(outputs["feature"][row:row + 1], outputs["feature"][bank], 1)
            nearest = bank[nearest].item()
            found.append(of(row) | {"neighbour": of(nearest), "cosine": cosine.item(),
                                    "right": bool(outputs["label"][row] == outputs["label"][nearest])})
        return found

    def table(self, metrics: dict, floor: dict) -> tuple[list[str], list[list[str]]]:
        named = {"accuracy": f"by {self.feature}", "pixels.accuracy": f"by {SIDE} x {SIDE} pixels"}
        rows = [[what, cell(metrics[name])] for name, what in named.items() if name in metrics]
        return ["nearest neighbours", "of the same class %"], rows + [["floor: most frequent class", cell(floor.get("accuracy"))]]

    def figures(self, examples: list[dict]) -> list[dict]:
        text = lambda e: decoded(self.tokenizer, e["ids"]) if e["ids"] else ""
        items = [item for e in examples for item in (
            {"image": e["image_id"], "caption": text(e)},
            {"image": e["neighbour"]["image_id"], "caption": text(e["neighbour"]), "right": e["right"],
             "note": f"nearest, cosine {e['cosine']:.2f}"})]
        lead = "Each with its nearest row of the bank, framed where it is of the same class. Spread evenly, not picked."
        return [{"title": "Nearest neighbours", "text": lead, "items": items}] if items else []

    def _rows(self, outputs: dict) -> tuple[Tensor, Tensor]:
        """The rows of the bank and those that are asked about."""
        known = outputs["label"] >= 0
        bank, asked = ((known & side).nonzero()[:, 0] for side in (outputs["in_bank"], ~outputs["in_bank"]))
        if not (len(bank) and len(asked)):
            raise ConfigError(f"NearestNeighbours: {len(bank)} labelled rows in the source `{self.bank}`, {len(asked)} in the "
                             "others: `bank` must name one of several `sources`")
        return bank, asked


def small(image) -> Tensor:
    """(I, 3 * 16 * 16) float32, the pictures of an ImageField, small: what features are held against."""
    return F.interpolate(image.pixels.float(), (SIDE, SIDE), mode="area").flatten(1)


def vote(queries: Tensor, bank: Tensor, label: Tensor, k: int, chunk: int = 1024) -> Tensor:
    """(Q,) int64, the class of each query (Q, D) by its k nearest rows of the bank (N, D), see NearestNeighbours.

    Args:
        label: (N,) int64, the classes of the bank's rows.
    """
    found = []
    for some in queries.split(chunk):
        cosine, nearest = nearest_rows(some, bank, k)
        votes = torch.zeros(len(some), int(label.max()) + 1).scatter_add_(1, label[nearest], (cosine / TEMPERATURE).exp())
        found.append(votes.argmax(1))
    return torch.cat(found)


def nearest_rows(queries: Tensor, bank: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """(Q, k) cosines of each query's k nearest rows of the bank, falling, and which rows these are."""
    with full_precision(queries):
        return (F.normalize(queries, dim=1) @ F.normalize(bank, dim=1).t()).topk(min(k, len(bank)), dim=1)
