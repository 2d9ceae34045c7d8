"""ITM: image-text matching against hard negatives drawn in the batch."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from xtoolkit.batch import Batch
from xtoolkit.features import Encoded, Features
from xtoolkit.graph import Need
from xtoolkit.losses.base import Loss
from xtoolkit.losses.heads import summary_head
from xtoolkit.registry import LOSS_REGISTRY, Positive

HARDEST = 1e-5


@dataclass(frozen=True)
class Judged:
    """Pairs of a text with a picture, K = 3B: the B that belong together, then B with a drawn picture, B with a drawn text.

    Attributes:
        fused: K rows of the fusion encoder.
        image: (K,) int64, the row of each pair's picture in the batch.
        text: (K,) int64, that of its text.
        label: (K,) int64, 1 where they belong together.
        counts: (K,) bool, False for draws of a row that has no legal negative.
    """

    fused: Encoded
    image: Tensor
    text: Tensor
    label: Tensor
    counts: Tensor


@LOSS_REGISTRY.register
class ITM(Loss):
    """Image-text matching.

        loss = 1 / 3B  sum over (t_i, v_i), (t_i, v~_i), (t~_i, v_i)  of  CE(head(fusion(t, v)), is it a pair)

    Each text draws one picture and each picture one text that does not belong to it, likelier the more alike the
    contrastive scores find them: weight softmax(scores) + ``smoothing`` over this rank's rows. Never drawn: a row's own
    partner, a row that shows the same picture (on a region stream: the same box of it) or holds the same tokens. A
    row with no legal negative keeps its positive pair; its two negatives drop out of the mean.

    All 3B rows are one pass of the fusion encoder, and rows are picked by index, so a picture's keys and values are
    projected once. Logs ``accuracy`` over the rows in the mean.

    YAML: {type: ITM, fusion: fusion, negatives: sim}

    Args:
        fusion: the encoder of pairs, with the slots ``text`` and ``image``; its summary token is judged.
        negatives: the encoder whose scores the negatives are drawn by; read without gradient.
        smoothing: added to each weight in training. 1e-5, the release's, leaves the hardest; the more, the more are drawn
            uniformly: a model that starts from nothing finds no way from "never a pair" with the hardest alone. In eval mode
            always 1e-5.
        ignore_same: False: any other row is a legal negative, as in the release.

    Source: X-FM, equation 3, which sums the three expectations; the release, as here, averages over the 3B rows. The
    release makes two passes (B and 2B rows) and 2B draws, each a question to the device; given the same negatives the
    value is the same.
    """

    CONTRASTS = True

    def __init__(self, fusion: str, negatives: str, smoothing: Positive = HARDEST, ignore_same: bool = True, *,
                 widths: dict):
        super().__init__()
        self.fusion, self.negatives, self.smoothing, self.ignore_same = fusion, negatives, smoothing, ignore_same
        self.head = summary_head(widths[fusion], 2)

    @classmethod
    def needs(cls, block: dict) -> list[Need]:
        return [Need(block["fusion"], runs=3), Need(block["negatives"], grad=False)]

    def match(self, fused: Encoded) -> Tensor:
        """(K, 2) logits of fused pairs, float32 or better; retrieval re-ranks by column 1, the score of a match."""
        logits = self.head(fused.pooled)
        return logits.to(torch.promote_types(logits.dtype, torch.float32))

    def forward(self, f, batch):
        pairs = self.pairs(f, batch)
        logits, weight = self.match(pairs.fused), pairs.counts.float()
        f.log("accuracy", ((logits.argmax(1) == pairs.label) * weight).sum() / weight.sum())
        loss = (nn.functional.cross_entropy(logits, pairs.label, reduction="none") * weight).sum() / weight.sum()
        return f.mean(loss, self._counted)

    def pairs(self, f: Features, batch: Batch) -> Judged:
        """The pairs that a batch is judged by, negatives drawn by torch's generator, in one pass of the fusion encoder."""
        (image, text, legal), inputs = self.draw(f[self.negatives], batch), f.inputs(self.fusion)
        if set(inputs) != {"text", "image"}:
            raise ValueError(f"ITM pairs the slots `text` and `image` of its fusion encoder; `{self.fusion}` has: "
                             f"{', '.join(inputs)}")
        own = torch.arange(len(image), device=image.device)
        images, texts = torch.cat([own, image, own]), torch.cat([own, own, text])
        fused = f.run(self.fusion, text=inputs["text"].select(texts), image=inputs["image"].select(images))
        yes, no = torch.ones_like(own), torch.zeros_like(own)
        return Judged(fused, images, texts, torch.cat([yes, no, no]), torch.cat([yes.bool(), legal, legal]))

    def guess(self, f, batch):
        """The entropy of the labels that count: 0.6365 where every row has legal negatives, one pair among three."""
        legal = ~self.illegal(batch).all(1)
        pairs = 1 / (1 + 2 * f.global_mean(legal[:, None], torch.ones_like(legal)))
        return f.mean((torch.special.entr(pairs) + torch.special.entr(1 - pairs)).sum(), self._counted)

    def _counted(self, batch):
        """() int64, the pairs of a batch that are in the mean."""
        return batch.size + 2 * (~self.illegal(batch).all(1)).sum()

    def draw(self, scores, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        """Hard negatives.

        Args:
            scores: ``image_to_text`` and ``text_to_image`` (B, W B), and ``first``, the column of row 0's own partner.

        Returns:
            (image, text, legal): for each text the row of a picture, for each picture the row of a text, (B,) int64;
            and (B,) bool, False where a row has no legal negative (its draws mean nothing).
        """
        rows, illegal = batch.size, self.illegal(batch)
        local = slice(scores.first, scores.first + rows)
        scores = torch.cat([scores.text_to_image[:, local], scores.image_to_text[:, local]]).float()
        weight = scores.softmax(1) + (self.smoothing if self.training else HARDEST)
        drawn = _draw_one(weight.masked_fill(illegal.repeat(2, 1), 0))
        return drawn[:rows], drawn[rows:], ~illegal.all(1)

    def illegal(self, batch: Batch) -> Tensor:
        """(B, B) bool, the pairs of rows that are no negatives of each other, a row and itself among them."""
        same = batch.same_rows()
        return (same if self.ignore_same else torch.zeros_like(same)).fill_diagonal_(True)


def _draw_one(weight: Tensor) -> Tensor:
    """(K,) an index a row of (K, n), with probability proportional to its weight; of a row of zeros, any.

    Exponential clocks with these rates: the first to ring. ``torch.multinomial`` draws so too, but first asks the
    device whether the weights are valid, and a NaN ends the process there; here it goes on to the loss, where the
    finite check names it.
    """
    return (weight / torch.empty_like(weight).exponential_()).argmax(1)
