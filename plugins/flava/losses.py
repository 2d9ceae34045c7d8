"""What FLAVA's pairs are trained by beside masks: contrast over the matching rows, and matching of masked pairs.

Shape letters: B rows of this rank, W ranks, D width.
"""

import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from xtoolkit.batch import Batch
from xtoolkit.encoders.similarity import Similarity
from xtoolkit.features import Encoded
from xtoolkit.graph import Need
from xtoolkit.losses.base import Loss
from xtoolkit.losses.heads import row_count
from xtoolkit.registry import ENCODER_REGISTRY, LOSS_REGISTRY, Positive


@ENCODER_REGISTRY.register
class LogSimilarity(Similarity):
    """Similarity whose learned number is the logarithm of 1 / temperature, as CLIP and FLAVA have it.

    YAML: {type: LogSimilarity, inputs: {image: vision_proj, text: text_proj}, temperature: 0.07}

    Args:
        temperature: initial value.
        min: lower bound.
        max: upper bound; with 0.01 and 1 the learned number lies in [0, ln 100].
        gather: as ``Similarity``; ``global`` is FLAVA's: gradients go through the gather.

    Source: FLAVA (2112.04482) 3.1, "global contrastive loss"; transformers' ``logit_scale``, bounds 0 and 4.6052.
    """

    def __init__(self, widths: dict, temperature: Positive = 0.07, min: Positive = 0.01, max: Positive = 1.0,
                 gather: Literal["global", "local"] = "global"):
        super().__init__(widths, temperature, min, max, gather)
        del self.temperature
        self.logit_scale = nn.Parameter(torch.full((1,), -math.log(temperature)))

    @torch.no_grad()
    def after_update(self) -> None:
        """Brings the learned number back between its bounds."""
        self.logit_scale.clamp_(-math.log(self.max), -math.log(self.min))

    def current(self) -> Tensor:
        """(1,), the temperature."""
        return torch.exp(-self.logit_scale)


@LOSS_REGISTRY.register
class MatchedContrast(Loss):
    """Contrast in which a row whose text is not its picture's is a negative of others, and asks nothing itself.

        loss = 1 / 2P  sum over the P rows that match  of  CE(image_to_text[i], i) + CE(text_to_image[i], i)

    over the scores (B, W B) of all ranks. A stream without ``$match`` has rows that match only. No row that matches: 0. Logs
    ``temperature``.

    YAML: {type: MatchedContrast, sim: sim}

    Args:
        sim: the similarity encoder.

    Source: transformers' ``FlavaForPreTraining``, which leaves those rows out after matching; where no row of a batch matches it
    takes all of them, here none. Every other column is a negative there, also one that shows the same picture; likewise here.
    """

    CONTRASTS = True

    def __init__(self, sim: str):
        super().__init__()
        self.sim = sim

    @classmethod
    def needs(cls, block: dict) -> list[Need]:
        return [Need(block["sim"])]

    def forward(self, f, batch):
        scores = f[self.sim]
        f.log("temperature", scores.temperature.reshape(()))
        weight = matching(batch).to(scores.image_to_text.dtype)
        own = scores.first + torch.arange(batch.size, device=weight.device)
        costs = [F.cross_entropy(way, own, reduction="none") for way in (scores.image_to_text, scores.text_to_image)]
        return f.mean(((costs[0] + costs[1]) * weight).sum() / (2 * weight.sum().clamp(min=1)), match_count)

    def guess(self, f, batch):
        """Every column is as likely: the logarithm of how many there are."""
        columns = f[self.sim].image_to_text.shape[1]
        return f.mean(torch.full((), math.log(columns), device=batch.image.pixels.device), match_count)


@LOSS_REGISTRY.register
class MaskedMatch(Loss):
    """Image-text matching on pairs as they come: whether a text is its picture's, told by the fused, masked pair.

        loss = 1 / B  sum_i  CE(W tanh(V CLS_M + v) + w, match_i)

    Labels are ``$match`` of a dataset that changes some texts for others (``FLAVAPairs``). Logs ``accuracy``.

    YAML: {type: MaskedMatch, feature: fusion@mask_text+mask_image}

    Args:
        feature: the multimodal encoder, under whatever marks; its summary token is judged.

    Source: FLAVA (2112.04482) 3.2; transformers' ``FlavaITMHead``.
    """

    def __init__(self, feature: str, *, widths: dict):
        super().__init__()
        self.feature = feature
        self.pooler, self.head = nn.Linear(widths[feature], widths[feature]), nn.Linear(widths[feature], 2)
        for layer in (self.pooler, self.head):
            nn.init.normal_(layer.weight, std=0.02)
            nn.init.zeros_(layer.bias)

    @classmethod
    def needs(cls, block: dict) -> list[Need]:
        return [Need(block["feature"])]

    @property
    def fusion(self) -> str:
        """The encoder of pairs, which retrieval asks without a mask."""
        return self.feature.partition("@")[0]

    def match(self, fused: Encoded) -> Tensor:
        """(B, 2) logits of fused pairs, float32 or better; column 1 is the score of a match."""
        logits = self.head(torch.tanh(self.pooler(fused.pooled)))
        return logits.to(torch.promote_types(logits.dtype, torch.float32))

    def forward(self, f, batch):
        logits, label = self.match(f[self.feature]), batch["match"].value
        f.log("accuracy", (logits.argmax(1) == label).float().mean())
        return f.mean(F.cross_entropy(logits, label), row_count)

    def guess(self, f, batch):
        """Matches as frequent as they were so far."""
        label = batch["match"].value
        return f.mean(-f.frequencies(label, 2).log()[label].mean().float(), row_count)


def matching(batch: Batch) -> Tensor:
    """(B,) bool: the rows whose text is their picture's."""
    match = batch.get("match")
    return torch.ones(batch.size, dtype=torch.bool, device=batch.image.pixels.device) if match is None else match.value.bool()


def match_count(batch: Batch) -> Tensor:
    """() int64, how many those are."""
    return matching(batch).sum()
