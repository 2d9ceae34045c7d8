"""BBP: where in the picture is what the text says."""

import torch
from torch import Tensor, nn

from xtoolkit.batch import Batch
from xtoolkit.features import Features
from xtoolkit.graph import Need
from xtoolkit.losses.base import Loss
from xtoolkit.losses.heads import summary_head
from xtoolkit.registry import LOSS_REGISTRY


@LOSS_REGISTRY.register
class BBP(Loss):
    """Bounding box prediction.

        loss = mean over real boxes of  |b - b^|_1 + 1 - GIoU(b, b^),   b^ = sigmoid(head(fusion(text, whole picture)))

    with boxes cx, cy, w, h in shares of the picture. The text of a region is fused with the whole picture, not with
    the region. Rows that describe the whole picture (``is_box`` False) do not count; a batch without a real box costs
    exactly 0. Logged apart as ``l1`` (the sum of the four differences) and ``giou``.

    YAML: {type: BBP, feature: fusion@whole}

    Args:
        feature: the fusion encoder under ``@whole``; its summary token is read.
        centred: the head's last layer starts at zero, so that the first box is the middle half of the picture. False: drawn,
            as in the release.

    Source: X-FM, equation 5; X2-VLM 3.3. The release divides by 0 if no row is a real box, and drops the GIoU of all
    boxes if one of them is degenerate.
    """

    GUESSED = (1.0, 1.1, 1.25)

    def __init__(self, feature: str, centred: bool = False, *, widths: dict):
        super().__init__()
        from xtoolkit.kernels import box_loss  # only here: it imports Triton

        self.feature, self.box_loss = feature, box_loss
        self.head = summary_head(widths[feature], 4)
        if centred:
            nn.init.zeros_(self.head[3].weight)
            nn.init.zeros_(self.head[3].bias)

    @classmethod
    def needs(cls, block: dict) -> list[Need]:
        return [Need(block["feature"]), Need("$region")]

    def boxes(self, f: Features) -> Tensor:
        """(R, 4) predicted cx, cy, w, h in [0, 1], float32 or better."""
        logits = self.head(f[self.feature].pooled)
        return logits.to(torch.promote_types(logits.dtype, torch.float32)).sigmoid()

    def forward(self, f, batch):
        region = f["$region"]
        l1, giou = self.box_loss(self.boxes(f), region.box, valid=region.is_box)
        return {"l1": f.mean(l1, real_boxes), "giou": f.mean(giou, real_boxes)}

    def guess(self, f, batch):
        """One box for every text: the mean of the batch's own, in that of ``GUESSED`` sizes which costs least (what covers more
        overlaps more). On the sample pack it costs under 0.01 more than the best box in hindsight."""
        region = f["$region"]
        mean, costs = f.global_mean(region.box, region.is_box), []
        for size in self.GUESSED:
            box = torch.cat([mean[:2], size * mean[2:]]).expand_as(region.box)
            costs += self.box_loss(box, region.box, valid=region.is_box)
        costs = f.global_mean(torch.stack(costs)[None], region.is_box.sum()[None]).view(-1, 2)
        l1, giou = costs.index_select(0, costs.sum(1).argmin(0, keepdim=True))[0]
        return {"l1": f.mean(l1, real_boxes), "giou": f.mean(giou, real_boxes)}


def real_boxes(batch: Batch) -> Tensor:
    """() int64, the boxes of a batch that are none of a whole picture."""
    return batch.region.is_box.sum()
