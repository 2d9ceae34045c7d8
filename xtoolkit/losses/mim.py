"""MIM: masked image modelling, towards features or pixels."""

import torch
from torch import Tensor, nn

from xtoolkit.batch import Batch
from xtoolkit.graph import Need
from xtoolkit.losses.base import Loss
from xtoolkit.registry import LOSS_REGISTRY

PIXELS = "$image"
AFTER_SUMMARY = slice(1, None)  # where the patches stand of an encoder that reads pictures alone


@LOSS_REGISTRY.register
class MIM(Loss):
    """Masked image modelling.

        loss = mean over masked patches and channels of (v - v^)^2  +  mean over rows and channels of (v_0 - v^_0)^2

    with v^ the features of the masked picture, v the target's of the whole one, without gradient, and v_0 the summary
    token. Computed in float32. No masked patch: the first term is exactly 0. Logs ``summary``, the second term, and
    ``target_std``, the standard deviation of a target channel over the tokens of the batch, averaged over channels:
    an encoder that is its own target can collapse without the loss showing it.

    YAML: {type: MIM, feature: vision@mask_image, target: vision}

    Args:
        feature: the image encoder under ``@mask_image``.
        target: what is predicted: an encoder of the clean picture with the width of ``feature`` (``vision`` itself,
            or a teacher), or ``$image``: the pixels of each patch, less their mean and divided by their standard
            deviation, through a Linear(D, 3 p p) of this loss. Pixels have no summary token, so the second term does
            not exist then.
        summary: False: without the second term.

    Source: X-FM, equation 6, a squared norm over masked patches and [CLS]; the release takes the mean over elements,
    and the summary weighs as much as all masked patches together. Pixels as in MAE (He et al. 2022, 3). The release's
    ``mim_cls_only: True`` is ``summary: false`` (the name says the opposite).
    """

    VIEWS = {"feature": "mask_image"}

    def __init__(self, feature: str, target: str, summary: bool = True, *, widths: dict, patch_size_of: int):
        super().__init__()
        from xtoolkit.kernels import masked_mse  # only here: it imports Triton

        self.masked_mse = masked_mse
        self.feature, self.target, self.summary, self.patch_size = feature, target, summary, patch_size_of
        if target == PIXELS:
            self.predictor = nn.Linear(widths[feature], 3 * patch_size_of ** 2)
        elif widths[feature] != widths[target]:
            raise ValueError(f"MIM compares `{feature}` (width {widths[feature]}) with its target `{target}` (width "
                             f"{widths[target]}): the widths must be equal")

    @classmethod
    def needs(cls, block: dict) -> list[Need]:
        return [Need(block["feature"]), Need(block["target"], grad=False)]

    def forward(self, f, batch):
        encoded, mask, target = f[self.feature], batch.image.patch_mask, f[self.target]
        patches = encoded.segment("image", AFTER_SUMMARY)
        if self.target == PIXELS:
            wanted = patch_pixels(target.pixels, self.patch_size)
            return f.mean(self.masked_mse(self.predictor(patches), wanted, mask), masked_patches)
        wanted = target.segment("image", AFTER_SUMMARY)
        f.log("target_std", wanted.flatten(0, 1).float().std(0, correction=0).mean())
        loss = f.mean(self.masked_mse(patches, wanted, mask), masked_patches)
        if not self.summary:
            return loss
        dtype = torch.promote_types(patches.dtype, torch.float32)
        summary = (encoded.pooled.to(dtype) - target.pooled.to(dtype)).square().mean()
        f.log("summary", summary)
        return loss + summary

    def guess(self, f, batch):
        """The same for every patch, and for every summary: their means over the batch, the best that there is in hindsight."""
        mask, target = batch.image.patch_mask, f[self.target]
        pixels = self.target == PIXELS
        wanted = patch_pixels(target.pixels, self.patch_size) if pixels else target.segment("image", AFTER_SUMMARY)
        mean = f.global_mean(wanted.flatten(0, 1), mask.flatten())
        patches = f.mean(self.masked_mse(mean.expand_as(wanted), wanted, mask), masked_patches)
        if pixels or not self.summary:
            return patches
        rows = target.pooled.float()
        summary = (rows - f.global_mean(rows, torch.ones_like(rows[:, 0]))).square().mean()
        f.log("summary.guess", summary)
        return patches + summary


def masked_patches(batch: Batch) -> Tensor:
    """() int64, the masked patches of a batch."""
    return batch.image.patch_mask.sum()


def patch_pixels(pixels: Tensor, size: int) -> Tensor:
    """(I, N, size * size * 3) float32: each patch's pixels, three channels a pixel, with mean 0 and variance 1.

    Args:
        pixels: (I, 3, H, W), sides a multiple of ``size``.
    """
    i, channels, height, width = pixels.shape
    grid = pixels.float().reshape(i, channels, height // size, size, width // size, size)
    patches = grid.permute(0, 2, 4, 3, 5, 1).reshape(i, -1, size * size * channels)
    centred = patches - patches.mean(-1, keepdim=True)
    return centred * (patches.var(-1, keepdim=True) + 1e-6).rsqrt()
