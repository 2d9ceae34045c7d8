"""Similarity: every image against every text of the batch, on all ranks, over a learned temperature.

Shape letters: B rows of this rank, W ranks.
"""

from dataclasses import dataclass, replace
from typing import Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn

from xtoolkit.encoders.base import Encoder
from xtoolkit.features import Encoded, full_precision
from xtoolkit.registry import ENCODER_REGISTRY, Positive


@dataclass(frozen=True)
class Scores:
    """Similarities over temperature. Columns are the rows of all ranks in rank order.

    Attributes:
        image_to_text: (B, W * B) float32 or better, this rank's images against all texts.
        text_to_image: (B, W * B), this rank's texts against all images.
        first: the column of this rank's row 0: row b's own partner is column ``first + b``.
        temperature: (1,), what the similarities were divided by.
    """

    image_to_text: Tensor
    text_to_image: Tensor
    first: int
    temperature: Tensor

    @property
    def local(self) -> Tensor:
        """(B, B): this rank's images against this rank's texts."""
        return self.image_to_text[:, self.first:self.first + self.image_to_text.shape[0]]

    def columns(self, rows: Tensor) -> Tensor:
        """(B, ...) of this rank, as the columns have it: (W * B, ...) of all ranks. Without gradient: keys, labels."""
        gathered = self.image_to_text.shape[1] != self.image_to_text.shape[0]
        return _all_rows(rows.detach()) if gathered else rows.detach()

    def detach(self) -> "Scores":
        return replace(self, image_to_text=self.image_to_text.detach(), text_to_image=self.text_to_image.detach(),
                       temperature=self.temperature.detach())


@ENCODER_REGISTRY.register
class Similarity(Encoder):
    """Dot products of two sets of unit vectors over a learned temperature, clamped.

    YAML: {type: Similarity, inputs: {image: vision_proj, text: text_proj}, temperature: 0.07, min: 0.001, max: 0.5}

    A slot that is wired to an encoder of tokens compares its summaries, scaled to length one; a Projection's are that already.

    The clamp moves the parameter itself, before each forward and after each update, so that its gradient stays alive
    at the bounds. On several ranks the vectors of all are compared, which every rank must then do at the same time
    with as many rows; not in evaluation (eval mode, no gradient), where each rank is on its own.

    Args:
        temperature: initial value.
        min: lower bound.
        max: upper bound.
        gather: ``global``: compare across ranks with the true gradient: with each rank's loss a mean over its rows
            and gradients averaged over ranks, as the trainer does, they equal those of one process on the whole
            batch. ``local``: each rank compares its own rows only.

    Source: X-FM 3.2 (ITC), bounds from its released code, which gathers but lets gradients flow through the own rows
    only: 1/W of the true gradient of the features. FLAVA (2112.04482), section 4 and its ablations, for the global
    gradient.
    """

    def __init__(self, widths: dict, temperature: Positive = 0.07, min: Positive = 0.001, max: Positive = 0.5,
                 gather: Literal["global", "local"] = "global"):
        super().__init__()
        if widths["image"] != widths["text"]:
            raise ValueError(f"Similarity compares vectors of one size, got image {widths['image']} and text "
                             f"{widths['text']}: give both projections the same `dim`")
        if not 0 < min <= temperature <= max:
            raise ValueError(f"Similarity: temperature {temperature} must lie between min {min} and max {max}, above 0")
        self.width = widths["image"]
        self.min, self.max, self.gather = min, max, gather
        # One element, not a scalar: fully_shard refuses parameters without a dimension.
        self.temperature = nn.Parameter(torch.full((1,), float(temperature)))

    @torch.no_grad()
    def after_update(self) -> None:
        """Brings the temperature back between its bounds."""
        self.temperature.clamp_(self.min, self.max)

    def current(self) -> Tensor:
        """(1,), what similarities are divided by; a subclass may have learnt another number than this.

        A copy: what backward needs must not change when the next stream's forward clamps the parameter in place.
        """
        return self.temperature.clone()

    def forward(self, *, view: str | None, image: Tensor | Encoded, text: Tensor | Encoded) -> Scores:
        """Scores of images (B, dim) and texts (B, dim), in float32 or better, under autocast too."""
        self.after_update()
        image, text = (read.unit if isinstance(read, Encoded) else read for read in (image, text))
        temperature = self.current()
        images, texts, first = image, text, 0
        if self.gather == "global" and _ranks() > 1 and (self.training or torch.is_grad_enabled()):
            # Both at once: one collective each way, in an order that no rank can disagree about.
            images, texts = GatherRows.apply(torch.stack([image, text], 1)).unbind(1)
            first = dist.get_rank() * image.shape[0]
        with full_precision(image):
            image, text, images, texts = (t.to(torch.promote_types(t.dtype, torch.float32))
                                          for t in (image, text, images, texts))
            return Scores(image @ texts.t() / temperature, text @ images.t() / temperature, first, temperature)


class GatherRows(torch.autograd.Function):
    """(B, ...) of each rank -> (W * B, ...) in rank order; backward sums what all ranks want of a row, in its owner."""

    @staticmethod
    def forward(ctx, rows):
        ctx.rows = rows.shape[0]
        return _all_rows(rows)

    @staticmethod
    def backward(ctx, grad):
        grad = grad.contiguous()
        dist.all_reduce(grad)
        first = dist.get_rank() * ctx.rows
        return grad[first:first + ctx.rows]


def _ranks():
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def _all_rows(rows):
    rows = rows.contiguous()
    out = rows.new_empty(_ranks() * rows.shape[0], *rows.shape[1:])
    dist.all_gather(list(out.chunk(_ranks())), rows)
    return out
