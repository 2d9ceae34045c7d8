"""Correlation: do the predictions of a regression head rise with their targets? STS-B.

Shape letters: B rows, N rows of all batches.
"""

from typing import Literal

import numpy as np
import torch

from xtoolkit.metrics import classification as metrics
from xtoolkit.registry import TASK_REGISTRY, ConfigError
from xtoolkit.tasks.base import Measured, Task, cell, column, decoded, spread
from xtoolkit.tasks.rows import shown_items, told_rows
from xtoolkit.tasks.servers import numbers


@TASK_REGISTRY.register()
class Correlation(Task):
    """The correlations, x 100, of a Regression head's predictions with the targets: ``pearson`` and ``spearman``.

    YAML: {type: Correlation, loss: regress, server: STS-B}

    Rows without a target are predicted and not scored; ``unlabelled`` counts them. The floor is a constant prediction: 0.

    Args:
        loss: the loss whose head is read (it has ``values``).
        server: `STS-B`: the file that GLUE's server asks for, `STS-B.tsv`, predictions clipped to 0 and 5.

    Source: GLUE (STS-B), Wang et al. 2019.
    """

    HEADS = {"loss": "values"}
    FIELDS = frozenset({"label"})
    HEADLINES = {"pearson": "Pearson's correlation with the targets, x 100"}

    def __init__(self, loss: str = "regress", server: Literal["STS-B"] | None = None, *, tokenizer=None):
        self.loss, self.server, self.tokenizer = loss, server, tokenizer

    def predict(self, f, batch) -> dict:
        """``value`` and ``label`` (B,) float32, and lists of what each row shows and is called."""
        label = batch["label"].value
        if not label.is_floating_point():
            raise ConfigError("Correlation: the labels of its data are classes: give the data `classes: null`, or take "
                              "`type: Accuracy`")
        return {**told_rows(batch), "record": [], "value": self.heads["loss"].values(f).float(), "label": label}

    def score(self, outputs: dict) -> dict[str, float]:
        known = ~outputs["label"].isnan()
        missing = {"unlabelled": float((~known).sum())} if not known.all() else {}
        if not known.any():
            return missing
        value, label = outputs["value"][known], outputs["label"][known]
        return {"pearson": 100 * metrics.pearson(value, label), "spearman": 100 * metrics.spearman(value, label)} | missing

    def floor(self, outputs: dict) -> dict[str, float]:
        return {} if outputs["label"].isnan().all() else {"pearson": 0.0, "spearman": 0.0}

    def samples(self, outputs: dict) -> list[dict]:
        """The rows with a target: ``score`` is the product of both standard scores, whose mean is Pearson's correlation."""
        known = ~outputs["label"].isnan()
        if not known.any():
            return []
        standard = lambda x: (x - x.mean()) / x.std(correction=0).clamp(min=torch.finfo(x.dtype).tiny)
        value, label = outputs["value"][known].double(), outputs["label"][known].double()
        scores = (standard(value) * standard(label)).tolist()
        return [{"id": outputs["id"][row], "image_id": outputs["image_id"][row], "score": score, "label": target, "told": told}
                for row, score, target, told in zip(known.nonzero()[:, 0].tolist(), scores, label.tolist(), value.tolist())]

    def measured(self, rows: list[dict]) -> dict[str, Measured]:
        both = np.stack([column(rows, "told"), column(rows, "label")], 1)
        return {name: Measured(both, lambda some, metric=metric: 100 * metric(some[:, 0], some[:, 1]))
                for name, metric in (("pearson", metrics.pearson), ("spearman", metrics.spearman))}

    def files(self, outputs: dict) -> dict[str, str]:
        return {} if self.server is None else numbers(self.server, outputs["id"], outputs["value"].tolist())

    def examples(self, outputs: dict, shown: int = 12) -> list[dict]:
        """Rows spread evenly over the data: [{``image_id``, ``second_id``, ``ids``, ``label``, ``told``}]."""
        return [{key: outputs[key][row] for key in ("image_id", "second_id", "ids")} |
                {"told": outputs["value"][row].item(), "label": outputs["label"][row].item()}
                for row in spread(list(range(len(outputs["value"]))), shown)]

    def table(self, metrics: dict, floor: dict) -> tuple[list[str], list[list[str]]]:
        rows = [[name, cell(value), cell(floor.get(name))] for name, value in metrics.items()]
        return ["regression", "value", "floor: a constant"], rows

    def figures(self, examples: list[dict]) -> list[dict]:
        items = []
        for e in examples:
            note = f"told: {e['told']:.2f}; target: {cell(e['label'], 2)}"
            items += shown_items(e, decoded(self.tokenizer, e["ids"]) if e["ids"] else "", note, False)
        lead = "Rows spread evenly over the data, not picked."
        return [{"title": "What it tells", "text": lead, "items": items}] if items else []
