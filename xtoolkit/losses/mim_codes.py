"""MIMCodes: masked image modelling towards the codes of an image tokenizer.

Shape letters: I images, N patches, M masked patches, D width, C codes.
"""

from typing import Literal

import torch
from torch import Tensor, nn

from xtoolkit.batch import Batch
from xtoolkit.features import Encoded, Features
from xtoolkit.graph import Need, Ref
from xtoolkit.losses.base import Loss
from xtoolkit.losses.mim import AFTER_SUMMARY
from xtoolkit.registry import LOSS_REGISTRY, Positive


@LOSS_REGISTRY.register
class MIMCodes(Loss):
    """Masked image modelling as classification: which code an image tokenizer gives to each masked patch.

        loss = 1 / M  sum_m  -log p(code_m | picture with the M patches masked)

    over all masked patches of all ranks. The head is applied to the masked patches only; no masked patch: exactly 0. Logs
    ``accuracy``. It is drawn as N(0, 0.02), biases 0.

    YAML: {type: MIMCodes, feature: vision@mask_image, codes: tokens}

    Args:
        feature: an encoder of pictures under ``@mask_image``, or a joint encoder with tokens of ``$image``.
        codes: the image tokenizer, read on the whole picture and without gradient: an encoder with ``codes``, whose output is
            (I, N) int64, a code for each patch of ``feature``, or an object with those as its ``codes``.
        head: `linear`: Linear(D, C), as BEiT; `mlm`: Linear(D, D), GELU, LayerNorm, Linear(D, C), the head of language models,
            as FLAVA; `encoder`: the output layer ``code_logits`` that the encoder of ``feature`` owns, one for all losses that
            read it, as ``lm_logits`` of MLM.
        eps: of the LayerNorm of `mlm`.

    Source: BEiT (2106.08254), equation 1; BEiTv2 (2208.06366), equation 6. FLAVA (2112.04482), 3.2, whose released heads are
    `mlm` with eps 1e-12. BEiT's sum over the masked patches of a picture is the mean over all in every released code.
    """

    VIEWS = {"feature": "mask_image"}

    def __init__(self, feature: str, codes: str, head: Literal["linear", "mlm", "encoder"] = "linear", eps: Positive = 1e-5, *,
                 widths: dict, modules: dict):
        super().__init__()
        from xtoolkit.kernels.linear_cross_entropy import cross_entropy

        tokenizer = modules[Ref.parse(codes).name]
        if tokenizer.codes is None:
            raise ValueError(f"MIMCodes: `{codes}` ({type(tokenizer).__name__}) has no codes; `codes` must name an image "
                             "tokenizer, an encoder whose output is a code a patch")
        self.feature, self.tokenizer, self.classes, self.cross_entropy = feature, codes, tokenizer.codes, cross_entropy
        self.dense = nn.Linear(widths[feature], widths[feature]) if head == "mlm" else None
        self.layer_norm = nn.LayerNorm(widths[feature], eps=eps) if head == "mlm" else None
        self.decoder = nn.Linear(widths[feature], self.classes) if head != "encoder" else None
        for layer in filter(None, (self.dense, self.decoder)):
            nn.init.normal_(layer.weight, std=0.02)
            nn.init.zeros_(layer.bias)

    @classmethod
    def needs(cls, block: dict) -> list[Need]:
        own = "code_logits" if block["head"] == "encoder" else None
        return [Need(block["feature"], head=own), Need(block["codes"], grad=False)]

    def forward(self, f, batch):
        labels = self.labels(f, batch)
        scores = self.scores(f, f[self.feature], batch)
        f.log("accuracy", (scores.argmax(1) == labels).float().sum() / max(1, labels.numel()))
        return f.mean(self.cross_entropy(scores, labels), asked_patches)

    def guess(self, f, batch):
        """The codes as frequent as they were so far, over all patches, masked or not."""
        frequencies = f.frequencies(self._codes(f).flatten(), self.classes)
        labels = self.labels(f, batch)
        return f.mean((-frequencies.log()[labels].sum() / max(1, labels.numel())).float(), asked_patches)

    def labels(self, f: Features, batch: Batch) -> Tensor:
        """(M,) int64, the codes of the masked patches.

        Raises:
            ValueError: the tokenizer has not a code for each patch of the batch.
        """
        codes, patches = self._codes(f), batch.image.masked().patch_mask.shape
        if codes.shape != patches or codes.dtype != torch.int64:
            raise ValueError(f"MIMCodes: `{self.tokenizer}` gives {codes.dtype} {tuple(codes.shape)}, and the batch has "
                             f"{tuple(patches)} patches: it must give an int64 code for each patch")
        return codes.flatten().index_select(0, batch.image.masked_patches())

    def scores(self, f: Features, encoded: Encoded, batch: Batch) -> Tensor:
        """(M, C), scores of the codes for the masked patches, from what the encoder gave for the masked pictures."""
        patches = encoded.segment("image", AFTER_SUMMARY)
        if patches.shape[:2] != batch.image.patch_mask.shape:
            raise ValueError(f"MIMCodes: `{self.feature}` has {tuple(patches.shape[:2])} patches, the batch has "
                             f"{tuple(batch.image.patch_mask.shape)}: `feature` must have a token a patch, after its summary")
        hidden = patches.flatten(0, 1).index_select(0, batch.image.masked_patches())
        if self.dense is not None:
            hidden = self.layer_norm(nn.functional.gelu(self.dense(hidden)))
        if self.decoder is not None:
            return self.decoder(hidden)
        scores = f.head(Ref.parse(self.feature).name, "code_logits")(hidden)
        if scores.shape[1] != self.classes:
            raise ValueError(f"MIMCodes: `{self.tokenizer}` has {self.classes} codes, and `code_logits` of `{self.feature}` "
                             f"tells {scores.shape[1]}: they must be as many")
        return scores

    def _codes(self, f):
        found = f[self.tokenizer]
        return found if isinstance(found, Tensor) else found.codes


def asked_patches(batch: Batch) -> int:
    """M, the patches that a batch asks for: a dataset's pictures may ask for fewer than are masked."""
    return batch.image.masked_patches().numel()
