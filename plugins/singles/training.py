"""How VQKD learns and how its codes are used: the loss with its decoder, and the task that counts codes.

Shape letters: B pictures, N patches, C codes, D width of the teacher.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.special import entr

from xtoolkit.batch import Batch
from xtoolkit.features import Features, full_precision
from xtoolkit.graph import Need, Ref
from xtoolkit.hints import Count, NotNegative
from xtoolkit.losses.base import Loss
from xtoolkit.losses.mim import AFTER_SUMMARY
from xtoolkit.registry import LOSS_REGISTRY, TASK_REGISTRY, ConfigError
from xtoolkit.tasks.base import Alone, Task, cell, evaluating

from .codebook import mean_of_all_ranks
from .tokenizer import VQKD, Quantized
from .vit import PlainViT, task_layer


@LOSS_REGISTRY.register
class VQKDLoss(Loss):
    """Vector-quantized knowledge distillation: from a picture's codes a decoder tells what a teacher says of its patches.

        loss = mean over patches of 1 - cos(o, t)  +  beta * mean over patches and channels of (z - sg[v])^2

    with z the latents, v the codes that they chose, o the decoder's output for v, whose gradient goes straight through to z,
    and t the teacher's patches. Logs the parts, ``used``, how many codes the batch chose (on several ranks the mean of theirs),
    and ``perplexity``, exp of the entropy of how often.

    YAML: {type: VQKDLoss, feature: tokens, teacher: vision, layers: 3}

    Args:
        feature: a VQKD encoder with ``trained: true``.
        teacher: any encoder of pictures with as many patches, which is read without gradient; its weights come by ``init``.
        layers: blocks of the decoder, as wide as the tokenizer's. One uses more codes, three make better targets for MIM.
        beta: weight of the second term.
        centred: the mean of the teacher's patches over the batch, of all ranks, is taken away from them first. What a small
            teacher says of any patch is much the same; the tokenizer would learn that alone, and say it with one code. The
            release does not.

    Source: BEiTv2 (2208.06366), equations 2 and 3, whose first term for the codes their moving average replaces; beta 1 is the
    released code's. Its table 7: a decoder of one layer uses all codes, one of three 97 %, and three fine-tune better.
    """

    def __init__(self, feature: str, teacher: str, layers: Count = 3, beta: NotNegative = 1.0, centred: bool = False,
                 *, widths: dict, modules: dict):
        super().__init__()
        tokenizer = modules[Ref.parse(feature).name]
        if not isinstance(tokenizer, VQKD) or not tokenizer.trained:
            raise ValueError(f"VQKDLoss: `{feature}` must be a VQKD encoder with `trained: true`")
        self.feature, self.teacher, self.beta, self.centred, self.classes = feature, teacher, beta, centred, tokenizer.codes
        width, std = tokenizer.channels, tokenizer.init_std
        patches = (tokenizer.image_size // tokenizer.patch_size) ** 2
        embed = nn.Module()
        embed.proj = nn.Linear(tokenizer.width, width)
        self.decoder = PlainViT(embed, patches, width, layers, tokenizer.heads, int(width * tokenizer.mlp_ratio), std)
        self.decode_task_layer = task_layer(width, widths[teacher], std)

    @classmethod
    def needs(cls, block: dict) -> list[Need]:
        return [Need(block["feature"]), Need(block["teacher"], grad=False)]

    def forward(self, f, batch):
        quantized, wanted = f[self.feature], self._wanted(f)
        if wanted.shape[:2] != quantized.codes.shape:
            raise ValueError(f"VQKDLoss: teacher `{self.teacher}` has {wanted.shape[1]} patches, `{self.feature}` "
                             f"{quantized.codes.shape[1]}: give both the same image_size and patch_size")
        told = self.decode(quantized)
        with full_precision(told):
            cosine = 1 - (F.normalize(told.to(wanted.dtype), dim=-1) * wanted).sum(-1).mean()
        frequency = _counts(quantized.codes, self.classes) / quantized.codes.numel()
        f.log("used", (frequency > 0).sum().float())
        f.log("perplexity", entr(frequency).sum().exp())
        return {"cosine": cosine, "commitment": self.beta * F.mse_loss(quantized.latents, quantized.chosen)}

    def guess(self, f, batch):
        """The same for every patch: the mean direction of the teacher's, the best that there is in hindsight; latents may well
        lie on their codes."""
        wanted = self._wanted(f).flatten(0, 1)
        mean = f.global_mean(wanted, torch.ones_like(wanted[:, 0]))
        return {"cosine": 1 - (wanted @ F.normalize(mean, dim=0)).mean(), "commitment": mean.new_zeros(())}

    def decode(self, quantized: Quantized) -> Tensor:
        """(B, N, D), what the decoder tells of the teacher's patches."""
        return self.decode_task_layer(self.decoder(self.decoder.patch_embed.proj(quantized.straight_through)))

    def _wanted(self, f: Features) -> Tensor:
        """(B, N, D) float32 or better, of length 1."""
        patches = f[self.teacher].segment("image", AFTER_SUMMARY)
        patches = patches.to(torch.promote_types(patches.dtype, torch.float32))
        if self.centred:
            patches = patches - mean_of_all_ranks(patches.flatten(0, 1))
        return F.normalize(patches, dim=-1)


@TASK_REGISTRY.register
class CodeUse(Task):
    """How many of its codes an image tokenizer uses, over all pictures of the data.

    YAML: {type: CodeUse, tokens: tokens}

    Metrics: ``used``, per cent of the codes that at least one patch has; ``codes``, how many those are; ``perplexity``, exp of
    the entropy of how often each comes: as many codes that all come alike often would have it. The floor is a tokenizer
    that gives the same code to everything.

    Args:
        tokens: the image tokenizer.

    Source: BEiTv2 (2208.06366), table 7, "codebook usage".
    """

    FIELDS = frozenset({"image"})
    HEADLINES = {"used": "Codes used, %"}
    ABILITIES = {"picture_codes": "an image tokenizer, `encoders.tokens: {type: VQKD, inputs: {image: $image}}`"}

    def __init__(self, tokens: str):
        self.tokens, self.classes = tokens, 0

    @classmethod
    def suggest(cls, encoders: dict, losses: dict) -> dict | None:
        name = next((name for name, kind in encoders.items() if issubclass(kind, VQKD)), None)
        return None if name is None else {"type": cls.__name__, "tokens": name}

    @classmethod
    def needs(cls, block: dict) -> list[Need]:
        return [Need(block["tokens"], grad=False)]

    def evaluate(self, model, loader, ranks=Alone()) -> dict:
        self.classes = model.encoder(Ref.parse(self.tokens).name).codes
        if self.classes is None:
            raise ConfigError(f"CodeUse: `{self.tokens}` has no codes: `tokens` must name an image tokenizer")
        return super().evaluate(model, loader, ranks)

    def predict(self, f: Features, batch: Batch | None) -> dict:
        """``codes`` (B, N) int64."""
        found = f[self.tokens]
        return {"codes": found if isinstance(found, Tensor) else found.codes}

    def score(self, outputs: dict) -> dict[str, float]:
        counts = _counts(outputs["codes"], self.classes).double()
        used, perplexity = int((counts > 0).sum()), entr(counts / counts.sum()).sum().exp().item()
        return {"used": 100 * used / self.classes, "codes": float(used), "perplexity": perplexity}

    def floor(self, outputs: dict) -> dict[str, float]:
        return {"used": 100 / self.classes, "codes": 1.0, "perplexity": 1.0}

    def table(self, metrics: dict, floor: dict) -> tuple[list[str], list[list[str]]]:
        return ["codes used", "%", "perplexity"], [[cell(metrics["codes"]), cell(metrics["used"]), cell(metrics["perplexity"])]]

    def abilities(self) -> dict:
        return {"picture_codes": self.picture_codes}

    def picture_codes(self, loaded, images, batch_size: int = 64) -> Tensor:
        """(N,) int64, the code of each patch of a picture, row by row; (B, N) of several."""
        pictures = loaded.pictures(images)
        with evaluating(loaded.model):
            found = [self.predict(loaded.model.features(Batch(image=image)), None)["codes"]
                     for image in pictures.batches(batch_size)]
        return pictures.result(torch.cat(found))


def _counts(codes: Tensor, classes: int) -> Tensor:
    """(C,) float32, how often each code comes."""
    codes = codes.flatten()
    return torch.zeros(classes, device=codes.device).index_add_(0, codes, torch.ones_like(codes, dtype=torch.float32))
