"""Box accuracy: does the box predicted for an expression overlap the true one enough?

Shape letters: R expressions, each with a box.
"""

import torch
from torch import Tensor

from xtoolkit.registry import TASK_REGISTRY
from xtoolkit.tasks.base import Task, token_ids


@TASK_REGISTRY.register()
class BoxAccuracy(Task):
    """The share of expressions whose predicted box reaches an IoU of ``threshold`` with the true one, and the mean IoU.

    YAML: {type: BoxAccuracy, loss: bbp, threshold: 0.5}

    Metrics: ``accuracy`` in per cent and ``mean_iou`` in [0, 1] over all expressions, and ``testA.accuracy`` ... for
    each of several sources that the batches name in ``source``, a list of R names. The floor answers each
    expression with the biggest annotated box of its picture, whatever is asked for: ``biggest`` (R, 4), which
    Regions gives; without it there is no floor.

    Args:
        loss: the loss that predicts boxes (it has ``feature``, a reference, and ``boxes``).
        threshold: the least IoU of a hit.

    Source: X-FM, appendix C (RefCOCO+), and its released ``Grounding_bbox.py``: IoU of at least 0.5. That script
    computes IoU on integer pixels with one added to each side (as ALBEF does), which calls small boxes a little better
    than they are; here areas are plain floats.
    """

    LOSS_KEYS = ("loss",)
    LOSS_METHODS = {"loss": "boxes"}
    FIELDS = frozenset({"image", "text", "region"})

    def __init__(self, loss: str = "bbp", threshold: float = 0.5):
        self.loss, self.threshold = loss, threshold

    def predict(self, f, batch) -> dict:
        loss, region = self.parts["loss"], batch.region
        rows = region.image_index.tolist()
        return {"predicted": loss.boxes(f[loss.feature]).float(), "true": region.box.float(), "is_box": region.is_box,
                **({"biggest": batch["biggest"].float()} if "biggest" in batch else {}),
                "image_id": [batch.image.image_id[row] for row in rows], "ids": token_ids(batch.text),
                "source": list(batch["source"]) if "source" in batch else ["all"] * len(rows)}

    def score(self, outputs: dict) -> dict[str, float]:
        return self._figures(outputs, iou(outputs["predicted"], outputs["true"]))

    def floor(self, outputs: dict) -> dict[str, float]:
        return self._figures(outputs, iou(outputs["biggest"], outputs["true"])) if "biggest" in outputs else {}

    def examples(self, outputs: dict, shown: int = 12) -> list[dict]:
        """Expressions spread evenly over the set: [{``ids``, ``image_id``, ``predicted``, ``true``, ``iou``}]."""
        rows = outputs["is_box"].nonzero()[:, 0].tolist()
        overlap = iou(outputs["predicted"], outputs["true"]).tolist()
        return [{"ids": outputs["ids"][r], "image_id": outputs["image_id"][r], "iou": overlap[r],
                 "predicted": outputs["predicted"][r].tolist(), "true": outputs["true"][r].tolist()}
                for r in rows[::-(-len(rows) // shown)]]

    def _figures(self, outputs, overlap) -> dict[str, float]:
        groups = {"": outputs["is_box"]}
        names = sorted(set(outputs["source"]))
        for source in names if len(names) > 1 else ():
            groups[source] = outputs["is_box"] & torch.tensor([s == source for s in outputs["source"]])
        figures = {}
        for source, rows in groups.items():
            prefix = f"{source}." if source else ""
            if not bool(rows.any()):
                raise ValueError(f"BoxAccuracy: no expression of {source or 'the evaluation data'} has a box")
            figures[f"{prefix}accuracy"] = 100 * (overlap[rows] >= self.threshold).double().mean().item()
            figures[f"{prefix}mean_iou"] = overlap[rows].double().mean().item()
        return figures


def iou(a: Tensor, b: Tensor) -> Tensor:
    """(R,) intersection over union of boxes (R, 4) cx, cy, w, h, pairwise; 0 where the union has no area; float64.

    Negative widths and heights count as 0.
    """
    (low_a, high_a), (low_b, high_b) = corners(a), corners(b)
    overlap = (torch.minimum(high_a, high_b) - torch.maximum(low_a, low_b)).clamp(min=0).prod(1)
    union = (high_a - low_a).prod(1) + (high_b - low_b).prod(1) - overlap
    return torch.where(union > 0, overlap / union, torch.zeros_like(union))


def corners(box: Tensor) -> tuple[Tensor, Tensor]:
    """(R, 2) upper left and lower right corners of cx, cy, w, h, float64."""
    centre, half = box[:, :2].double(), box[:, 2:].double().clamp(min=0) / 2
    return centre - half, centre + half
