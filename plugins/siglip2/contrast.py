"""Sigmoid contrast over the rows of all ranks.

Shape letters: B rows of this rank, W ranks.
"""

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid
from torch.special import entr

from xtoolkit.batch import Batch
from xtoolkit.features import Features
from xtoolkit.losses.itc import same_columns
from xtoolkit.plugins.siglip import SigLIP
from xtoolkit.registry import LOSS_REGISTRY


@LOSS_REGISTRY.register
class GlobalSigLIP(SigLIP):
    """SigLIP whose questions are this rank's pictures against the texts of all ranks; on one rank it is SigLIP.

    With gradients averaged over ranks, and a similarity that gathers (``gather: global``), that is the loss of the whole batch.
    Its guess is SigLIP's, of as many questions.

    YAML: {type: GlobalSigLIP, sim: sim}

    Args:
        sim: as SigLIP.
        bias: as SigLIP; about -log of the rows of all ranks is what never seeing a difference would learn.

    Source: SigLIP (2303.15343) 3, whose chunked exchange of texts between devices makes the same sum.
    """

    def forward(self, f: Features, batch: Batch) -> Tensor:
        scores, own, same = self._columns(f, batch)
        logits = scores.to(torch.promote_types(scores.dtype, torch.float32)) + self.bias
        sign = torch.full_like(logits, -1).scatter(1, own[:, None], 1)
        return -logsigmoid(sign * logits).masked_fill(same, 0).sum() / len(logits)

    def guess(self, f: Features, batch: Batch) -> Tensor:
        scores, _, same = self._columns(f, batch)
        yes = batch.size / (scores.numel() - same.sum())
        return (entr(yes) + entr(1 - yes)) / yes

    def _columns(self, f, batch):
        """(B, W B) scores of pictures by texts, (B,) the column of each row's own text, (B, W B) bool what is not asked."""
        scores = f[self.sim]
        own = scores.first + torch.arange(batch.size, device=scores.image_to_text.device)
        return scores.image_to_text, own, same_columns(scores, batch, own)
