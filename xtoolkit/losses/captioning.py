"""Captioning: the words of a caption from left to right, each from a mask in its place."""

import torch
from torch import Tensor

from xtoolkit.batch import Batch, TextField
from xtoolkit.encoded import Encoded
from xtoolkit.graph import Need
from xtoolkit.losses.heads import WordLoss
from xtoolkit.registry import LOSS_REGISTRY, Share


@LOSS_REGISTRY.register
class Captioning(WordLoss):
    """Left-to-right masked generation: X2-VLM's, which keeps a masked language model what it is.

        loss = 1 / M  sum_m sum_w  -q_m(w) log p(w | picture, the tokens before m, a mask in its place)

    q_m is 1 - ``smoothing`` for the true token; the rest is spread evenly over the other words but the one that begins a text,
    which is never said. Which tokens are asked for, and after which prompt, the stream's ``left_to_right`` block says; the end
    of the caption is one of them. No picture and no encoder differs from pretraining: the text and the fusion encoder read the
    caption under a causal mask (``data.left_to_right``). Logs ``nll``, the same without smoothing. No token: exactly 0.

    The output layer is IMLM's, of the same parameters: it is the one that pretraining has fitted to the fusion encoder's
    masks, as X2-VLM generates by the head of its own masked language model; the text encoder's reads other states. Called
    `imlm` in a recipe, the loss starts from that head: `init: {path: RUN, parts: shared}` matches parts by name.

    YAML: {type: Captioning, feature: fusion@left_to_right, smoothing: 0.1}

    Args:
        feature: the fusion encoder under ``@left_to_right``; it, and the text encoder below, must heed a text's attention.
        smoothing: the share of a target that is spread over other words.

    Source: X2-VLM 4.3 and its released captioning; Zeng and Nie (Findings of ACL 2021, 393) for masks that nothing else sees. The
    release's divergence is this less the entropy of q, a constant, and it adds 1e-5 to M. Its masks are drawn as runs of up to
    three tokens; since each mask sees the true tokens before it, which others are asked for changes nothing for it.
    """

    VIEWS = {"feature": "left_to_right"}

    def __init__(self, feature: str, smoothing: Share = 0.1, *, widths: dict, vocab_size_of: int):
        super().__init__(widths[feature], vocab_size_of)
        self.feature, self.smoothing = feature, smoothing

    @classmethod
    def needs(cls, block: dict) -> list[Need]:
        return [Need(block["feature"])]

    def forward(self, f, batch):
        text, encoded = batch.text.causal(), f[self.feature]
        if encoded.attention is None:
            raise ValueError(f"`{self.feature}` does not heed the attention of its text, so that a word would see itself: an "
                             "encoder that does returns Encoded with that attention (RoBERTa and CrossAttention do)")
        log_p = self.next_words(encoded, text)
        true = log_p.gather(1, text.labels[:, None])[:, 0]
        f.log("nll", -true.sum() / max(1, len(true)))
        return f.mean(self._cost(true, log_p.sum(1), log_p.index_select(1, text.ids[0, :1])[:, 0]), _count)

    def guess(self, f, batch):
        """The words as frequent as those that were asked for so far, smoothed as the targets are."""
        text, count = batch.text.causal(), self.decoder.out_features
        shares = f.frequencies(text.labels, count)
        log_p = ((1 - self.smoothing) * shares + self.smoothing * (1 - shares) / (count - 2)).log()
        return f.mean(self._cost(log_p[text.labels], log_p.sum(), log_p[text.ids[0, :1]]), _count)

    def next_words(self, encoded: Encoded, text: TextField) -> Tensor:
        """(M, vocabulary) log p of every word at the ``masked_pos`` of a text, float32 or better.

        Args:
            encoded: what the fusion encoder says of ``text`` under its attention.
        """
        scores = self.decoder(self.hidden(encoded, text))
        return scores.to(torch.promote_types(scores.dtype, torch.float32)).log_softmax(1)

    def _cost(self, true: Tensor, every: Tensor, never: Tensor) -> Tensor:
        """() the mean over M tokens, from log p of the true word (M,), summed over all words, and of the one never said."""
        others = (every - true - never) / (self.decoder.out_features - 2)
        return -((1 - self.smoothing) * true + self.smoothing * others).sum() / max(1, len(true))


def _count(batch: Batch) -> int:
    """M, the tokens that a batch asks for."""
    return batch.text.left_to_right.labels.numel()
