"""The worked example of a plugin: one loss in one file. docs/plugins.md walks through it line by line."""

from typing import Annotated

import torch
from torch import Tensor, nn
from torch.nn.functional import logsigmoid
from torch.special import entr

from xtoolkit.batch import Batch
from xtoolkit.features import Features
from xtoolkit.graph import Need
from xtoolkit.hints import Range
from xtoolkit.losses.base import Loss
from xtoolkit.registry import LOSS_REGISTRY


@LOSS_REGISTRY.register
class SigLIP(Loss):
    """Pairwise sigmoid loss: each image and text of a batch is a yes-or-no question of its own, with no softmax over the batch.

    ``-(1/B) sum_ij log sigmoid(z_ij (s_ij / temperature + bias))`` with ``z_ij`` = 1 on the diagonal and -1 elsewhere. Rows that
    show the same picture or have the same text are left out, as ITC leaves them out.

    YAML: {type: SigLIP, sim: sim}

    Args:
        sim: the Similarity encoder; its learnable temperature is the inverse of the paper's t'.
        bias: start of the learnable bias; the paper's -10 keeps the many negatives from swamping the first steps.

    Source: Zhai et al. 2023, "Sigmoid Loss for Language Image Pre-Training", equation 1 and Algorithm 1.
    """

    CONTRASTS = True

    def __init__(self, sim: str, bias: Annotated[float, Range(high=0)] = -10.0):
        super().__init__()
        self.sim = sim
        self.bias = nn.Parameter(torch.tensor([bias]))

    @classmethod
    def needs(cls, block: dict) -> list[Need]:
        return [Need(block["sim"])]

    def forward(self, f: Features, batch: Batch) -> Tensor:
        logits = f[self.sim].local.float() + self.bias                       # (B, B), image by text
        sign = 2 * torch.eye(len(logits), device=logits.device) - 1
        terms = logsigmoid(sign * logits).masked_fill(batch.same_rows(), 0)
        return -terms.sum() / len(logits)

    def guess(self, f: Features, batch: Batch) -> Tensor:
        asked = batch.size ** 2 - batch.same_rows().sum()
        yes = batch.size / asked                                             # the share of the questions to answer so
        return (entr(yes) + entr(1 - yes)) / yes
