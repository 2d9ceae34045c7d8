"""Self-distillation: a student that sees less of a picture tells what its moving average says of the whole.

Shape letters: B pictures, C crops of each, M masked patches, K prototypes.
"""

import torch
import torch.distributed as dist
from torch import Tensor
from torch.special import entr

from xtoolkit.batch import Batch
from xtoolkit.features import Encoded, Features
from xtoolkit.graph import Need
from xtoolkit.hints import Positive, Share
from xtoolkit.losses.base import Loss
from xtoolkit.losses.heads import row_count
from xtoolkit.losses.mim_codes import asked_patches
from xtoolkit.registry import LOSS_REGISTRY


class SelfDistillation(Loss):
    """What both losses share: temperatures, and a centre that keeps the teacher from saying one thing of all.

        target = softmax((teacher - centre) / teacher_temperature),   cost = -sum_k target_k log softmax(student / temperature)_k

    The centre moves once an update towards the mean of what the teacher said, over all ranks and parts of the step. Logs
    ``target_entropy``: log K where the teacher says nothing, 0 where it says one prototype a token.
    """

    def __init__(self, student: str, teacher: str, temperature: Positive, teacher_temperature: Positive, centre: Share,
                 width: int):
        super().__init__()
        self.student, self.teacher, self.momentum = student, teacher, centre
        self.temperature, self.teacher_temperature = temperature, teacher_temperature
        self.register_buffer("centre", torch.zeros(width))
        self._sums = self._mean = None  # of the teacher's scores in this update, and of the last targets, for the guess

    @classmethod
    def needs(cls, block: dict) -> list[Need]:
        return [Need(block["student"], runs=1), Need(block["teacher"], grad=False, runs=1)]

    def costs(self, f: Features, student: Tensor, teacher: Tensor) -> Tensor:
        """(T, S), of T tokens (T, D) of the teacher and S of the student's (T, S, D) for each."""
        scores = lambda ref, tokens: f.run(ref, x=Encoded.of(tokens[:, None]))[:, 0]
        exact = lambda t: t.to(torch.promote_types(t.dtype, torch.float32))
        said = exact(scores(self.student, student.flatten(0, 1)).unflatten(0, student.shape[:2]))
        with torch.no_grad():
            wanted = exact(scores(self.teacher, teacher))
            target = ((wanted - self.centre) / self.teacher_temperature).softmax(1)
            self._mean = target.sum(0) / max(1, len(target)), wanted.new_full((), len(wanted))
            f.log("target_entropy", entr(target).sum() / max(1, len(target)))
            if self.training:
                sums = torch.cat([wanted.sum(0), wanted.new_full((1,), len(wanted))])
                self._sums = sums if self._sums is None else self._sums + sums
        return -(target[:, None] * (said / self.temperature).log_softmax(2)).sum(2)

    def guess(self, f: Features, batch: Batch) -> Tensor:
        """One answer for all, the best in hindsight: the mean of the targets, which costs its entropy."""
        mean, count = self._mean
        return f.mean(entr(f.global_mean(mean[None], count[None])).sum().float(), self.count)

    @torch.no_grad()
    def after_update(self) -> None:
        """Moves the centre, if the update saw this loss."""
        sums, self._sums = self._sums, None
        if sums is None or sums.is_meta:
            return
        if dist.is_available() and dist.is_initialized():
            dist.all_reduce(sums)
        self.centre.lerp_((sums[:-1] / sums[-1].clamp(min=1)).to(self.centre.dtype), 1 - self.momentum)


@LOSS_REGISTRY.register
class LocalToGlobal(SelfDistillation):
    """What a small crop shows must tell what the teacher says of the picture.

        loss = 1 / (B C)  sum_b sum_c  cost(student of crop c, teacher of picture b),  see SelfDistillation

    YAML: {type: LocalToGlobal, student: proto_crops, teacher: proto_ema}

    Args:
        student: the Prototypes of an encoder over ``$crops``, whose summaries it reads: C rows a picture.
        teacher: a Teacher of those Prototypes over a Teacher of that encoder, on ``$image``.
        temperature: of the student.
        teacher_temperature: of the teacher; lower, so that its answers are sharper.
        centre: what the centre keeps of itself at each update; 1: none moves.

    Source: SILC (2310.13355) 3, whose loss is DINO's (2104.14294), equation 1 and algorithm 1. SigLIP 2 (2502.14786) 2: one
    global view for the teacher, eight local ones for the student.
    """

    count = staticmethod(row_count)

    def __init__(self, student: str, teacher: str, temperature: Positive = 0.1, teacher_temperature: Positive = 0.04,
                 centre: Share = 0.9, *, widths: dict):
        super().__init__(student, teacher, temperature, teacher_temperature, centre, widths[teacher])

    def forward(self, f: Features, batch: Batch) -> Tensor:
        crops, pictures = (f.inputs(ref)["x"].pooled for ref in (self.student, self.teacher))
        if len(crops) % len(pictures):
            raise ValueError(f"LocalToGlobal: `{self.student}` reads {len(crops)} rows and `{self.teacher}` {len(pictures)} "
                             "pictures: each picture must have as many crops")
        return f.mean(self.costs(f, crops.unflatten(0, (len(pictures), -1)), pictures).mean(), self.count)


@LOSS_REGISTRY.register
class MaskedPatches(SelfDistillation):
    """What stands around a masked patch must tell what the teacher, who sees it, says of it.

        loss = 1 / M  sum_m  cost(student of masked patch m, teacher of that patch),  see SelfDistillation

    No masked patch: exactly 0.

    YAML: {type: MaskedPatches, student: proto@mask_image, teacher: proto_ema}

    Args:
        student: the Prototypes of an encoder of pictures, under ``@mask_image``; its masked patches are read.
        teacher: a Teacher of those Prototypes over a Teacher of that encoder.
        temperature: of the student.
        teacher_temperature: of the teacher.
        centre: what the centre keeps of itself at each update.

    Source: iBOT (2111.07832), equation 2; TIPS (2410.16512); SigLIP 2 (2502.14786) 2: half of the patches masked.
    """

    VIEWS = {"student": "mask_image"}
    count = staticmethod(asked_patches)

    def __init__(self, student: str, teacher: str, temperature: Positive = 0.1, teacher_temperature: Positive = 0.04,
                 centre: Share = 0.9, *, widths: dict):
        super().__init__(student, teacher, temperature, teacher_temperature, centre, widths[teacher])

    def forward(self, f: Features, batch: Batch) -> Tensor:
        places = batch.image.masked_patches()
        seen, whole = (f.inputs(ref)["x"].segment("image", slice(1, None)).flatten(0, 1).index_select(0, places)
                       for ref in (self.student, self.teacher))
        return f.mean(self.costs(f, seen[:, None], whole).sum() / max(1, len(places)), self.count)
