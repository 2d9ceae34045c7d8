"""Regression: a number from summary tokens. STS-B.

Shape letters: B rows.
"""

from typing import Literal

from torch import Tensor

from xtoolkit.batch import Batch
from xtoolkit.features import Features
from xtoolkit.losses.heads import References, SummaryLoss, row_count
from xtoolkit.registry import LOSS_REGISTRY, ConfigError, Dropout


@LOSS_REGISTRY.register
class Regression(SummaryLoss):
    """The mean squared error of one output of a head on summary tokens.

        loss = 1 / B  sum_i  (head([s_1; s_2; ...]_i) - target_i)^2

    Targets are ``$label``, of data with `classes: null`, in their own unit: STS-B's lie in 0 to 5.

    YAML: {type: Regression, features: text}

    Args:
        features: head: dropout: as Classification has them.

    Source: X-FM, appendix C, a "regression head"; the mean squared error as BERT and the release have it. The release's head is
    `mlp`.
    """

    def __init__(self, features: References, head: Literal["linear", "mlp", "release5"] = "linear", dropout: Dropout = 0.0, *,
                 widths: dict):
        super().__init__(features, 1, head, dropout, widths)

    def values(self, f: Features) -> Tensor:
        """(B,) float32 or better, the predictions of a batch."""
        return self.outputs(f)[:, 0]

    def forward(self, f, batch):
        target = self.targets(batch)
        return f.mean((self.values(f) - target).square().mean(), row_count)

    def guess(self, f, batch):
        """Always the mean target of the batch, of all ranks: their variance."""
        target = self.targets(batch)
        mean = f.global_mean(target[:, None], target.new_ones(len(target)))
        return f.mean((target - mean).square().mean(), row_count)

    def targets(self, batch: Batch) -> Tensor:
        """(B,) float32.

        Raises:
            ConfigError: labels that are classes; on the CPU also one that is no number, a sample without a label. (On a device
                that is a loss that is not finite.)
        """
        target = batch["label"].value
        if not target.is_floating_point():
            raise ConfigError("Regression: the labels are classes: give the data `classes: null`, or take `type: Classification`")
        if target.device.type == "cpu" and not bool(target.isfinite().all()):
            raise ConfigError("Regression: a target is no number: a sample without a label cannot be trained on")
        return target
