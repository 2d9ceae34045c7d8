"""CapPa: captions word by word, and for a share of the pictures all words at once.

Shape letters: B rows, L tokens of the longest caption.
"""

import torch
from torch import Tensor

from xtoolkit.batch import Batch, TextField
from xtoolkit.features import Features
from xtoolkit.graph import Need, Ref
from xtoolkit.hints import Share
from xtoolkit.losses.base import Loss
from xtoolkit.registry import LOSS_REGISTRY

from .decoder import decoder_of, left_to_right, token_costs, weighted_mean


@LOSS_REGISTRY.register
class CapPa(Loss):
    """Captioning by a decoder: a share of the rows in parallel, the others from left to right.

        loss = 1 / sum_b (L_b - 1)  sum_b sum_t  -log p(w_t | picture, w_0 ... w_{t-1})    or, in parallel,  p(w_t | picture)

    From left to right a token sees those before it. In parallel every token that is read is a mask and sees all masks of its row,
    so that only the picture tells the words, beside their number. Which rows are so read is told by their place in the batch,
    evenly spread; a batch is mixed, so that this is chance for a picture. Logs ``causal`` and ``parallel``, the means of both.

    On a region stream the phrase of each box is told from the box's patches.

    YAML: {type: CapPa, decoder: decoder, parallel: 0.75}

    Args:
        decoder: an encoder of type CaptionDecoder.
        parallel: the share of the rows that is decoded in parallel.

    Source: CapPa (2306.07915) 3: 75 % in parallel. SigLIP 2 (2502.14786) 2: 50 %. There all captions are padded to one length and
    the masks behind their end are seen too; here not, so that no row depends on the lengths of others.
    """

    def __init__(self, decoder: str, parallel: Share = 0.75, *, modules: dict):
        super().__init__()
        self.decoder, self.parallel = decoder, parallel
        self._decoder = (decoder_of("CapPa", Ref.parse(decoder).name, modules),)  # in a tuple: the parameters are not this loss's

    @classmethod
    def needs(cls, block: dict) -> list[Need]:
        return [Need(block["decoder"], runs=1, head="lm_logits")]

    def forward(self, f: Features, batch: Batch) -> Tensor:
        inputs = f.inputs(self.decoder)
        read, labels, at_once = self.targets(inputs["text"])
        states = f.run(self.decoder, text=read, image=inputs["image"]).tokens
        costs = token_costs(f.head(Ref.parse(self.decoder).name), states, labels)
        f.log("causal", weighted_mean(costs, read.mask & ~at_once[:, None]))
        f.log("parallel", weighted_mean(costs, read.mask & at_once[:, None]))
        return f.mean(weighted_mean(costs, read.mask), told_words)

    def guess(self, f: Features, batch: Batch) -> Tensor:
        """The words as frequent as they were so far."""
        real, labels = batch.text.mask[:, 1:], batch.text.ids[:, 1:]
        shares = f.frequencies(labels.flatten(), self._decoder[0].tokens, real.flatten())
        return f.mean(weighted_mean(-shares.log()[labels], real).float(), told_words)

    def targets(self, text: TextField) -> tuple[TextField, Tensor, Tensor]:
        """What the decoder reads of captions, (B, L - 1); the labels (B, L - 1); which rows are parallel, (B,) bool."""
        rows, length = text.ids.shape
        places = torch.arange(rows + 1, device=text.ids.device, dtype=torch.float64)
        at_once = (places * self.parallel + 1e-9).floor().diff() > 0
        ids = torch.where(at_once[:, None], self._decoder[0].mask_id, text.ids[:, :-1])
        attention = left_to_right(rows, length - 1, ids.device) | at_once[:, None, None]
        return TextField(ids, text.mask[:, 1:], attention=attention), text.ids[:, 1:], at_once


def told_words(batch: Batch) -> Tensor:
    """() int64, the tokens of a batch's captions but for the first of each."""
    return batch.text.mask[:, 1:].sum()
