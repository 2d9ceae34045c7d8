"""Classification: one of N classes from summary tokens. GLUE, NLVR2, SNLI-VE, Hateful Memes, ImageNet.

Shape letters: B rows, C classes.
"""

from dataclasses import replace
from typing import Annotated, Literal

import torch
from torch import Tensor

from xtoolkit.batch import Batch, ImageField
from xtoolkit.features import Features
from xtoolkit.graph import Need
from xtoolkit.losses.heads import References, SummaryLoss, references, row_count
from xtoolkit.losses.mixing import Mix, draw
from xtoolkit.registry import LOSS_REGISTRY, ConfigError, Dropout, NotNegative, Range, Share


@LOSS_REGISTRY.register
class Classification(SummaryLoss):
    """The cross-entropy of a head on summary tokens.

        loss = 1 / B  sum_i  CE(head([s_1; s_2; ...]_i), label_i)

    Labels are ``$label``. Logs ``accuracy``, where nothing is mixed.

    YAML: {type: Classification, features: [fusion, fusion_second], classes: 2, head: mlp}
    YAML: {type: Classification, features: vision, classes: 1000, head: release5, smoothing: 0.1, frozen: true}

    Args:
        features: one reference, or a list: their summaries are concatenated.
        classes: how many.
        head: `linear`; `mlp`: Linear(D, 2D), LayerNorm, GELU, Linear(2D, C); `release5`: five linear layers on the summary
            and the mean of the other tokens, see ``heads.deep_head``.
        dropout: before the head, in training.
        smoothing: label smoothing: so much of each label goes to all classes alike.
        mixup: alpha of mixup, timm's `mixup_alpha`; 0: none. Pictures that `features`, one encoder of pictures, reads.
        cutmix: alpha of CutMix, timm's `cutmix_alpha`; 0: none.
        mix_prob: that a batch is mixed, timm's `prob`.
        switch_prob: that it is CutMix and not mixup where both are on.
        frozen: the features are read without gradient: the head alone learns, and encoders that nothing else trains stay.

    Source: X-FM, appendix C: "a new multi-class linear classifier" for GLUE, concatenated [CLS] of two fusion passes for NLVR2.
    The release's heads for both are `mlp`. Its ImageNet head is `release5`, on the mean of the patches twice, since its
    summary is that mean; the paper calls it linear evaluation, and in appendix C an MLP head. mixup: Zhang et al. 2018;
    CutMix: Yun et al. 2019; drawn a batch, on each rank its own, as timm's ``Mixup`` does in its mode `batch`.
    """

    def __init__(self, features: References, classes: Annotated[int, Range(2)],
                 head: Literal["linear", "mlp", "release5"] = "linear", dropout: Dropout = 0.0, smoothing: Dropout = 0.0,
                 mixup: NotNegative = 0.0, cutmix: NotNegative = 0.0, mix_prob: Share = 1.0, switch_prob: Share = 0.5,
                 frozen: bool = False, *, widths: dict):
        super().__init__(features, classes, head, dropout, widths)
        if frozen and (mixup or cutmix):
            raise ConfigError("`frozen`: pictures that are mixed are encoded anew, with a gradient; leave out `mixup`, `cutmix`")
        self.classes, self.smoothing = classes, smoothing
        self.mixing = (mixup, cutmix, mix_prob, switch_prob) if mixup or cutmix else None
        if self.mixing and len(self.features) > 1:
            raise ConfigError(f"`mixup` and `cutmix` mix the pictures of one feature; `features` name {len(self.features)}")

    @classmethod
    def needs(cls, block: dict) -> list[Need]:
        mixes = block.get("mixup") or block.get("cutmix")
        return [Need(ref, grad=not block.get("frozen"), runs=1 if mixes else 0) for ref in references(block["features"])]

    def logits(self, f: Features) -> Tensor:
        """(B, C), float32 or better, of a batch as it is."""
        return self.outputs(f)

    def forward(self, f, batch):
        labels, known = self.labels(batch)
        if self.mixing is None:
            logits, mix = self.logits(f), Mix()
            f.log("accuracy", (logits.argmax(1) == labels).float().mean())
        else:
            logits, mix = self._mixed(f)
        told = logits.log_softmax(1)
        costs = mix.labels(lambda flip: self._cost(told, labels.flip(0) if flip else labels))
        return f.mean(costs.masked_fill(~known, torch.nan).mean(), row_count)

    def guess(self, f, batch):
        """The classes as frequent as they were so far, smoothed as labels are. Mixing leaves a batch's mean label as it is."""
        labels, _ = self.labels(batch)
        frequencies = (1 - self.smoothing) * f.frequencies(labels, self.classes) + self.smoothing / self.classes
        return f.mean(self._cost(frequencies.log().expand(len(labels), -1), labels).mean().float(), row_count)

    def labels(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """(B,) int64, and (B,) bool, False where a label is none of the classes, which makes the loss NaN.

        On the CPU such a label is an error. On a device that would have to be asked; the toolkit's datasets give none.

        Raises:
            ConfigError: labels that are no classes, or of another number of classes.
        """
        field = batch["label"]
        if field.value.is_floating_point():
            raise ConfigError("Classification: the labels are targets of regression: give the data `classes`, or take `type: "
                              "Regression`")
        if field.classes is not None and (count := len(field.classes)) != self.classes:
            raise ConfigError(f"Classification: `classes: {self.classes}`, and the data have {count} "
                              f"({', '.join(field.classes)[:60]}): set `classes: {count}`")
        known = (field.value >= 0) & (field.value < self.classes)
        if field.value.device.type == "cpu" and not bool(known.all()):
            wrong = field.value[~known][0].item()
            raise ConfigError(f"Classification: the label {wrong} is none of the {self.classes} classes, 0 to {self.classes - 1}"
                              + ("; -1 is a sample without a label, which cannot be trained on" if wrong == -1 else ""))
        return field.value.clamp(0, self.classes - 1), known

    def _cost(self, told: Tensor, labels: Tensor) -> Tensor:
        """(B,) cross-entropy of log-probabilities (B, C) with smoothed labels."""
        own = -told.gather(1, labels[:, None])[:, 0]
        return own if self.smoothing == 0 else (1 - self.smoothing) * own - self.smoothing * told.mean(1)

    def _mixed(self, f: Features) -> tuple[Tensor, Mix]:
        """The logits of mixed pictures; in eval mode nothing is mixed."""
        ref, = self.features
        inputs = f.inputs(ref)
        pictures = {slot: value for slot, value in inputs.items() if isinstance(value, ImageField)}
        if len(pictures) != 1:
            raise ConfigError(f"`mixup` and `cutmix` mix the pictures that an encoder reads itself; `{ref}` reads "
                              f"{', '.join(inputs)}, of which {len(pictures)} are pictures")
        (slot, image), = pictures.items()
        mix = draw(*image.pixels.shape[2:], *self.mixing) if self.training else Mix()
        return self.told([f.run(ref, **inputs | {slot: replace(image, pixels=mix.pixels(image.pixels))})]), mix
