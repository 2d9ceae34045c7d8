"""Mixup and CutMix of a batch of pictures: what is drawn, and the mixed pixels.

Shape letters: B rows, H and W pixels.
"""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Mix:
    """How a batch is mixed: each picture with that of the row as far from the end as its own is from the start.

    Attributes:
        own: the share of a row's own label.
        box: top, bottom, left, right, in pixels, of what is cut from the other picture; None: the pictures are blended.
    """

    own: float = 1.0
    box: tuple | None = None

    def pixels(self, pixels: Tensor) -> Tensor:
        """(B, 3, H, W) mixed."""
        if self.box is None:
            return pixels if self.own == 1 else pixels * self.own + pixels.flip(0) * (1 - self.own)
        top, bottom, left, right = self.box
        out = pixels.clone()
        out[:, :, top:bottom, left:right] = pixels.flip(0)[:, :, top:bottom, left:right]
        return out

    def labels(self, cost) -> Tensor:
        """The cost of mixed labels; ``cost(flip)`` is that of the rows' own, or (``flip``) of the other's."""
        return cost(False) if self.own == 1 else self.own * cost(False) + (1 - self.own) * cost(True)


def cut(share: float, height: int, width: int, y: int, x: int) -> Mix:
    """CutMix around a centre: of the other picture a box of the share 1 - ``share`` of the area, less what lies outside.

    A box of an odd side reaches one pixel further to the end than to the start, as in timm of today; CutMix's own code halves
    the side rounded down both ways, so that it loses a row or a column.
    """
    side = (1 - share) ** 0.5
    h, w = int(height * side), int(width * side)
    top, bottom = max(y - h // 2, 0), min(y + (h + 1) // 2, height)
    left, right = max(x - w // 2, 0), min(x + (w + 1) // 2, width)
    return Mix(1 - (bottom - top) * (right - left) / (height * width), (top, bottom, left, right))


def draw(height: int, width: int, mixup: float, cutmix: float, prob: float, switch_prob: float) -> Mix:
    """One draw for a batch, by torch's generator of the host: the device is asked nothing.

    Args:
        mixup, cutmix: alpha of the Beta(alpha, alpha) that the share is drawn from; 0: never.
        prob: that anything is mixed.
        switch_prob: that it is CutMix where both could be.
    """
    uniform = lambda: torch.rand((), device="cpu").item()
    if uniform() >= prob:
        return Mix()
    by_box = cutmix > 0 and (mixup == 0 or uniform() < switch_prob)
    alpha = torch.tensor([cutmix if by_box else mixup] * 2, device="cpu")
    share = torch.distributions.Dirichlet(alpha, validate_args=False).sample()[0].item()
    if not by_box:
        return Mix(share)
    return cut(share, height, width, int(uniform() * height), int(uniform() * width))
