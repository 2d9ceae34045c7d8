"""ITC: image-text contrastive learning."""

from typing import Literal

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

    YAML: {type: ITC, sim: sim, targets: excluded}

    Args:
        sim: an encoder that returns scores, divided by the temperature already, as Similarity's ``Scores``.
        ignore_same: False: every other row is a negative, as the release has it.
        targets: of columns that show the row's picture. ``excluded``: left out, as above. ``shared``: they are right answers like
            its own partner, n of them each with probability 1 / n: the release's fine-tuning for retrieval, where captions of a
            picture are rows of their own. With ``ignore_same: false`` it is exactly that.

    Source: X-FM, equation 2. The release keeps duplicates as negatives in pretraining, and on W ranks its gradient is
    1 / W of the true one; how far gradients reach across ranks is a key of the similarity encoder here. Shared targets:
    ALBEF's and X-FM's released retrieval; in a batch with no picture twice both targets are one loss.
    """

    CONTRASTS = True

    def __init__(self, sim: str, ignore_same: bool = True, targets: Literal["excluded", "shared"] = "excluded"):
        super().__init__()
        self.sim, self.ignore_same, self.targets = sim, ignore_same, targets

    @classmethod
    def needs(cls, block: dict) -> list[Need]:
        return [Need(block["sim"])]

    def forward(self, f, batch):
        scores = f[self.sim]
        f.log("temperature", scores.temperature.reshape(()))
        own, ignored = self._columns(scores, batch)
        ways = [s.to(torch.promote_types(s.dtype, torch.float32)) for s in (scores.image_to_text, scores.text_to_image)]
        if self.targets == "shared":
            losses = [_to_shared(way, ignored, same_picture(scores, batch, own)) for way in ways]
        else:
            losses = [nn.functional.cross_entropy(way.masked_fill(ignored, -torch.inf), own) for way in ways]
        return (losses[0] + losses[1]) / 2

    def guess(self, f, batch):
        """Every candidate of a row is as likely as the others: the logarithm of how many it has, both ways the same."""
        scores = f[self.sim]
        _, ignored = self._columns(scores, batch)
        return (scores.image_to_text.shape[1] - ignored.sum(1)).float().log().mean()

    def _columns(self, scores, batch):
        """(B,) int64, the column of each row's own partner; (B, W B) bool, those left out of its softmax."""
        own = scores.first + torch.arange(batch.size, device=scores.image_to_text.device)
        ignored = same_columns(scores, batch, own) & self.ignore_same
        return own, ignored & ~same_picture(scores, batch, own) if self.targets == "shared" else ignored


def same_columns(scores, batch: Batch, own: Tensor) -> Tensor:
    """(B, W B) bool: ``Batch.same_rows`` of this rank's rows against every column of the scores.

    Args:
        own: (B,) int64, the column of each row's own partner; False there.
    """
    keys = batch.row_keys()
    return (keys[:, None] == scores.columns(keys)).any(2).scatter(1, own[:, None], False)


def same_picture(scores, batch: Batch, own: Tensor) -> Tensor:
    """(B, W B) bool: the columns that show the picture of this rank's rows, on a region stream the same box of it; True at the
    row's own."""
    keys = (batch["image"] if batch.region is None else batch.region).row_key()
    return (keys[:, None] == scores.columns(keys)).scatter(1, own[:, None], True)


def _to_shared(scores: Tensor, ignored: Tensor, right: Tensor) -> Tensor:
    """(), the mean cross-entropy of rows to their ``right`` columns, alike likely each; ``ignored`` ones take no part."""
    log = scores.masked_fill(ignored, -torch.inf).log_softmax(1).masked_fill(ignored, 0)
    return -((log * right).sum(1) / right.sum(1)).mean()
