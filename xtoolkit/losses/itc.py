"""ITC: image-text contrastive learning."""

import torch
from torch import Tensor, nn

from xtoolkit.batch import Batch
from xtoolkit.graph import Need
from xtoolkit.losses.base import Loss
from xtoolkit.registry import LOSS_REGISTRY


@LOSS_REGISTRY.register
class ITC(Loss):
    """Image-text contrastive learning.

        loss = 1 / 2B  sum_i  CE(image_to_text[i], i) + CE(text_to_image[i], i)

    over scores (B, W B): B rows of this rank against the rows of all W ranks that the similarity encoder gathered.
    Columns that show the same picture (on a region stream: the same box of it) or hold the same tokens as the row are
    left out of its softmax: they are no negatives. Logs ``temperature``.

    YAML: {type: ITC, sim: sim}

    Args:
        sim: an encoder that returns scores: ``image_to_text``, ``text_to_image`` (B, W B), divided by the temperature
            already, ``first``, the column of row 0's own partner, and ``temperature``.
        ignore_same: False: every other row is a negative, as the release has it.

    Source: X-FM, equation 2. The release keeps duplicates as negatives in pretraining, and on W ranks its gradient is
    1 / W of the true one; how far gradients reach across ranks is a key of the similarity encoder here.
    """

    def __init__(self, sim: str, ignore_same: bool = True):
        super().__init__()
        self.sim, self.ignore_same = sim, ignore_same

    @classmethod
    def needs(cls, sim: str, ignore_same: bool = True) -> list[Need]:
        return [Need(sim)]

    def forward(self, f, batch):
        scores = f[self.sim]
        f.log("temperature", scores.temperature)
        rows, columns = scores.image_to_text.shape
        own = scores.first + torch.arange(rows, device=scores.image_to_text.device)
        ignored = same_columns(batch, columns, own) if self.ignore_same else None
        losses = [_cross_entropy(s, own, ignored) for s in (scores.image_to_text, scores.text_to_image)]
        return (losses[0] + losses[1]) / 2


def _cross_entropy(scores: Tensor, own: Tensor, ignored: Tensor | None) -> Tensor:
    scores = scores.to(torch.promote_types(scores.dtype, torch.float32))
    if ignored is not None:
        scores = scores.masked_fill(ignored, -torch.inf)
    return nn.functional.cross_entropy(scores, own)


def same_columns(batch: Batch, columns: int, own: Tensor) -> Tensor:
    """(B, columns) bool: ``Batch.same_rows`` of this rank's rows against every gathered column.

    Args:
        columns: B where the scores are this rank's alone; B times the number of ranks where they were gathered.
        own: (B,) int64, the column of each row's own partner; False there.
    """
    if columns == batch.size:
        return batch.same_rows()
    shown = batch.region.key if batch.region is not None else batch.image.key
    keys = torch.stack([shown, batch.text.key])
    everyone = [torch.empty_like(keys) for _ in range(columns // batch.size)]
    torch.distributed.all_gather(everyone, keys)
    everyone = torch.cat(everyone, 1)
    same = (keys[:, :, None] == everyone[:, None, :]).any(0)
    return same.scatter(1, own[:, None], False)
