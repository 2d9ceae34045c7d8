"""Box accuracy: does the box predicted for an expression overlap the true one enough?

Shape letters: R expressions, each with a box.
"""

from typing import Literal

import numpy as np
import torch
from torch import Tensor

from xtoolkit.batch import Batch, RegionField
from xtoolkit.registry import TASK_REGISTRY, ConfigError, Share
from xtoolkit.tasks.base import Measured, Task, cell, column, decoded, evaluating, numbered, spread, token_ids


@TASK_REGISTRY.register()
class BoxAccuracy(Task):
    """The share of expressions whose predicted box reaches an IoU of ``threshold`` with the true one, and the mean IoU.

    YAML: {type: BoxAccuracy, loss: bbp, threshold: 0.5, iou: exact}

    Metrics: ``accuracy`` in per cent and ``mean_iou`` in [0, 1] over all expressions, and ``testA.accuracy`` ... for
    each of several sources that the batches name in ``source``, a list of R names. The floor answers each
    expression with the biggest annotated box of its picture, whatever is asked for: ``biggest`` (R, 4), which
    Regions gives; without it there is no floor.

    Args:
        loss: the loss that predicts boxes: it has ``boxes``, a function of features.
        threshold: the least IoU of a hit.
        iou: ``release``: boxes that overlap by no more than a pixel of the picture as it was given, across or down, do not
            overlap at all; the data must then say in ``size`` (R, 2), width and height, how many pixels a picture has.

    Source: X-FM, appendix C (RefCOCO+), and its released ``Grounding_bbox.py``: IoU of at least 0.5. Its function (ALBEF's, from
    the RefCOCO tools) counts pixels from the first to the last, both included, so that the ends cancel and the IoU is the
    plain one, but for overlaps of up to one pixel, which it takes for none. At 0.5 the two agree unless a box is under 2 pixels.
    """

    HEADS = {"loss": "boxes"}
    FIELDS = frozenset({"image", "text", "region"})
    HEADLINES = {"accuracy": "Boxes found, %"}
    ABILITIES = {"ground": "a loss that predicts boxes, `losses.bbp: {type: BBP, feature: fusion@whole}`"}

    def __init__(self, loss: str = "bbp", threshold: Share = 0.5, iou: Literal["exact", "release"] = "exact", *, tokenizer=None):
        self.loss, self.threshold, self.iou, self.tokenizer = loss, threshold, iou, tokenizer

    @classmethod
    def suggest(cls, encoders: dict, losses: dict) -> dict | None:
        loss = next((name for name, kind in losses.items() if hasattr(kind, "boxes")), None)
        return None if loss is None else {"type": cls.__name__, "loss": loss}

    def predict(self, f, batch) -> dict:
        loss, region = self.heads["loss"], batch.region
        rows = region.image_index.tolist()
        shown = [batch.image.image_id[row] for row in rows]
        if self.iou == "release" and "size" not in batch:
            raise ConfigError("BoxAccuracy: `iou: release` counts pixels, and these data do not say the `size` of pictures")
        return {"predicted": loss.boxes(f).float(), "true": region.box.float(), "is_box": region.is_box,
                **{name: batch[name].float() for name in ("biggest", "size") if name in batch},
                "image_id": shown, "name": list(batch["name"]) if "name" in batch else shown, "ids": token_ids(batch.text),
                "source": list(batch["source"]) if "source" in batch else ["all"] * len(rows)}

    def score(self, outputs: dict) -> dict[str, float]:
        return self._shares(outputs, self._overlap(outputs, "predicted"))

    def floor(self, outputs: dict) -> dict[str, float]:
        return self._shares(outputs, self._overlap(outputs, "biggest")) if "biggest" in outputs else {}

    def samples(self, outputs: dict) -> list[dict]:
        """A row for each expression with a box, called by its source, its own picture and its number there: ``score`` 1
        where it is hit, its IoU and both boxes."""
        ids = numbered([f"{source}:{name}" for source, name in zip(outputs["source"], outputs["name"])])
        rows, overlap = outputs["is_box"].nonzero()[:, 0].tolist(), self._overlap(outputs, "predicted").tolist()
        return [{"id": ids[r], "image_id": outputs["image_id"][r], "source": outputs["source"][r],
                 "score": float(overlap[r] >= self.threshold), "iou": overlap[r], "predicted": outputs["predicted"][r].tolist(),
                 "true": outputs["true"][r].tolist()} for r in rows]

    def measured(self, rows: list[dict]) -> dict[str, Measured]:
        source, found = np.array([row["source"] for row in rows]), {}
        names = sorted(set(source.tolist()))
        for name in ("", *(names if len(names) > 1 else ())):
            for figure, values in (("accuracy", column(rows, "score", 100)), ("mean_iou", column(rows, "iou"))):
                found[f"{name}.{figure}".lstrip(".")] = Measured(np.where((source == name) | (name == ""), values, np.nan))
        return found

    def examples(self, outputs: dict, shown: int = 12) -> list[dict]:
        """Expressions spread evenly over the set: [{``ids``, ``image_id``, ``predicted``, ``true``, ``iou``}]."""
        rows = outputs["is_box"].nonzero()[:, 0].tolist()
        overlap = self._overlap(outputs, "predicted").tolist()
        return [{"ids": outputs["ids"][r], "image_id": outputs["image_id"][r], "iou": overlap[r],
                 "predicted": outputs["predicted"][r].tolist(), "true": outputs["true"][r].tolist()}
                for r in spread(rows, shown)]

    def table(self, metrics: dict, floor: dict) -> tuple[list[str], list[list[str]]]:
        """A row for all expressions, and one for each source."""
        parts = [name.removesuffix("accuracy") for name in metrics if name.endswith("accuracy")]
        rows = [[part.rstrip(".") or "all", *(cell(side.get(f"{part}{name}"), places) for name, places in
                                              (("accuracy", 1), ("mean_iou", 3)) for side in (metrics, floor))]
                for part in parts]
        return ["expressions", "accuracy %", "floor %", "mean IoU", "floor"], rows

    def figures(self, examples: list[dict]) -> list[dict]:
        items = [{"image": e["image_id"], "caption": decoded(self.tokenizer, e["ids"]), "note": f"IoU {e['iou']:.2f}",
                  "boxes": [{"box": e["true"], "kind": "true"}, {"box": e["predicted"], "kind": "predicted"}]}
                 for e in examples]
        lead = "Expressions spread evenly over the data, not picked."
        return [{"title": "Where it looks", "text": lead, "items": items}] if items else []

    def abilities(self) -> dict:
        return {"ground": self.ground}

    def ground(self, loaded, images, texts, normalized: bool = False, batch_size: int = 64) -> Tensor:
        """(B, 4) float32, the box of what each text says: x, y (upper left), w, h in pixels of the picture as given.

        Pair by pair; one picture goes with every text, one text with every picture. (4,) for one of both. The box is
        the model's own, as the evaluations measure it: it may reach over the picture's edge.

        Args:
            normalized: cx, cy (centre), w, h in shares of the picture's width and height instead.
        """
        loss, pairs, found = loaded.model.losses[self.loss], loaded.pairs(images, texts), []
        sizes = loaded.model.sizes(self.FIELDS)
        side = sizes["image_size"] // sizes["patch_size"]
        with evaluating(loaded.model):
            for image, text, shown, sizes in pairs.batches(batch_size):
                if sizes is None and not normalized:
                    raise ValueError("an ImageField does not say how large its pictures were: ask with normalized=True")
                # A region stream that asks for boxes: each text with a box that is the whole of its picture.
                whole = torch.tensor([0.5, 0.5, 1, 1], device=shown.device).expand(len(shown), 4)
                patches = torch.ones(len(shown), side * side, dtype=torch.bool, device=shown.device)
                batch = Batch(text=text, image=image, region=RegionField(shown, whole, patches, patches[:, 0]))
                box = loss.boxes(loaded.model.features(batch)).float()
                if not normalized:
                    box = torch.cat([box[:, :2] - box[:, 2:] / 2, box[:, 2:]], 1) * sizes.repeat(1, 2)
                found.append(box)
        return pairs.result(torch.cat(found))

    def _overlap(self, outputs: dict, which: str) -> Tensor:
        """(R,) the IoU of boxes, ``predicted`` or ``biggest``, with the true ones."""
        found = iou(outputs[which], outputs["true"])
        if self.iou == "release":
            (low_a, high_a), (low_b, high_b) = corners(outputs[which]), corners(outputs["true"])
            pixels = (torch.minimum(high_a, high_b) - torch.maximum(low_a, low_b)) * outputs["size"].double()
            found = found.where((pixels > 1.001).all(1), 0)  # shares of a picture are rounded
        return found

    def _shares(self, outputs, overlap) -> dict[str, float]:
        groups = {"": outputs["is_box"]}
        names = sorted(set(outputs["source"]))
        for source in names if len(names) > 1 else ():
            groups[source] = outputs["is_box"] & torch.tensor([s == source for s in outputs["source"]])
        shares = {}
        for source, rows in groups.items():
            prefix = f"{source}." if source else ""
            if not bool(rows.any()):
                raise ConfigError(f"BoxAccuracy: no expression of {source or 'the evaluation data'} has a box")
            shares[f"{prefix}accuracy"] = 100 * (overlap[rows] >= self.threshold).double().mean().item()
            shares[f"{prefix}mean_iou"] = overlap[rows].double().mean().item()
        return shares


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
