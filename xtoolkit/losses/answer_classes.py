"""AnswerClassification: the answer to a question as one of a few thousand classes.

Shape letters: B questions, A answers, C candidates.
"""

from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from xtoolkit.batch import TextField
from xtoolkit.graph import Need
from xtoolkit.losses.answers import questions
from xtoolkit.losses.base import Loss
from xtoolkit.losses.heads import summary_head
from xtoolkit.registry import LOSS_REGISTRY, ConfigError, Range

ANNOTATORS, EACH = 10, 0.3  # of a question; what the answer of each of them adds to a target


@LOSS_REGISTRY.register
class AnswerClassification(Loss):
    """Question answering as the choice among candidates, each right to the degree to which annotators gave it.

        loss = 1 / B  sum over questions and candidates of  -t log s(z) - (1 - t) log(1 - s(z)),    z = head(fusion's summary)

    with t the candidate's target and s the logistic function. Answers that are no candidate have no term.

    YAML: {type: AnswerClassification, feature: fusion, classes: 3129}

    Args:
        feature: the encoder whose summary token is read.
        classes: how many candidates there are: those of the data's `candidates`.
        targets: `soft`: min(1, 0.3 x annotators who gave it), of ten whose share the answer's weight is; `weights`: the weights.

    Source: Anderson et al. 2018 (1707.07998), 3,129 candidates and soft targets with cross-entropy of each; so do FLAVA,
    VL-BEiT and ViLT, whose released code has the targets 0.3, 0.6, 0.9 and 1. The head is that of ITM.
    """

    def __init__(self, feature: str, classes: Annotated[int, Range(2)],
                 targets: Literal["soft", "weights"] = "soft", *, widths: dict):
        super().__init__()
        self.feature, self.classes, self.targets = feature, classes, targets
        self.head = summary_head(widths[feature], classes)

    @classmethod
    def needs(cls, block: dict) -> list[Need]:
        return [Need(block["feature"]), Need("$answers")]

    def forward(self, f, batch):
        answers = f["$answers"]
        if answers.label is None or answers.candidates not in (None, self.classes):
            found = "name no `candidates`" if answers.label is None else f"have {answers.candidates} `candidates`"
            raise ConfigError(f"AnswerClassification has `classes: {self.classes}`, and its data {found}: they must be as many")
        weight = answers.weight if self.targets == "weights" else (ANNOTATORS * EACH * answers.weight).clamp(max=1)
        logits = self._logits(f)
        wanted = logits.new_zeros(answers.rows, self.classes + 1)  # the last column is of answers that are no candidate
        wanted = wanted.index_put((answers.row, answers.label % (self.classes + 1)), weight.to(logits.dtype), accumulate=True)
        cost = F.binary_cross_entropy_with_logits(logits, wanted[:, :-1].clamp(max=1), reduction="sum")
        return f.mean(cost / max(1, answers.rows), questions)

    def rank(self, f, candidates: TextField, k: int = 128, chunk: int = 512, score: str = "exact") -> Tensor:
        """(B, C) float32, log s(z): of how right each candidate is. All are ranked, whatever k, chunk and score say.

        Raises:
            ConfigError: not as many candidates as classes.
        """
        if len(candidates.ids) != self.classes:
            raise ConfigError(f"AnswerClassification has `classes: {self.classes}`, and there are {len(candidates.ids)} "
                             "candidates: they must be those of its training, all and in order")
        return F.logsigmoid(self._logits(f))

    def _logits(self, f) -> Tensor:
        logits = self.head(f[self.feature].pooled)
        return logits.to(torch.promote_types(logits.dtype, torch.float32))
