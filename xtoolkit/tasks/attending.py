"""Where a text looks: cross-attention, weighted by what it does for the matching score, as maps over patches.

Shape letters: B pairs, h heads, L text tokens, N patches, K layers, W words.
"""

import json
import math
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from xtoolkit.batch import Batch
from xtoolkit.features import full_precision
from xtoolkit.registry import ConfigError
from xtoolkit.tasks.base import evaluating
from xtoolkit.tasks.comparing import matched, rows_of, sides

LAYERS = "layers.json"  # of an evaluation's folder: which layers were chosen, see ``Attending``


@dataclass(frozen=True)
class Attended:
    """Where each word of a text looks in a picture.

    Attributes:
        words: W, as the model reads them: cleaned, and cut where the text is longer than it reads.
        maps: (W, patches a side, patches a side) float32, at least 0, the mean of a word's tokens. Values compare within a
            text, not between texts.
        layer: of the fusion encoder, from 0 on, whose attention it is.
    """

    words: list[str]
    maps: Tensor
    layer: int


class Attending:
    """The ability of `PointingGame`: a method whose first argument is the loaded model.

    Args:
        matching: name of the loss that has ``match`` and ``fusion``.
        folder: of the evaluation; what it chose lies in it, or in that of another evaluation beside it.
    """

    def __init__(self, matching: str, folder: Path | None):
        self._matching, self._folder = matching, folder

    def attend(self, loaded, images, texts, layer: int | None = None, weighted: bool = True, batch_size: int = 64):
        """Which part of the picture each word looks at: an ``Attended``, with ``words``, ``maps`` and ``layer``.

        A map is the fusion encoder's cross-attention times the gradient of the matching score where that is positive, mean
        over heads (Grad-CAM, as in ALBEF): patches that speak for the match. Pair by pair, a list of them where several
        pictures or texts came; one picture goes with every text, one text with every picture. In float32.

        Args:
            layer: from 0 on. None: that whose maps point into the true box most often, which the run's `PointingGame`
                evaluation chose; where none was evaluated, the middle layer, as in ALBEF.
            weighted: False: the attention alone, without the gradient.

        Raises:
            ValueError: no such layer.
        """
        model, pairs, found = loaded.model, loaded.pairs(images, texts), []
        loss = model.losses[self._matching]
        for image, text, shown, _ in pairs.batches(batch_size):
            with evaluating(model), full_precision(image.pixels):
                slot, _ = sides(model.graph, loss.fusion)
                inputs = model.features(Batch(text=text, image=image)).inputs(loss.fusion)
                both = attention_maps(model, loss, inputs | {slot: rows_of(inputs[slot], shown)})
            maps = both[0 if weighted else 1]
            number = self._layer(layer, maps.shape[1], weighted)
            found += [self._words(loaded.tokenizer, ids[real].tolist(), rows[number], number)
                      for ids, real, rows in zip(text.ids, text.mask, maps)]
        return pairs.result(found)

    def _layer(self, asked, count: int, weighted: bool) -> int:
        if asked is None:
            known = chosen(self._folder, self._matching)
            asked = (count - 1) // 2 if known is None else known["layer" if weighted else "attention_layer"]
        if isinstance(asked, bool) or not isinstance(asked, int) or not 0 <= asked < count:
            raise ValueError(f"layer: {asked!r} is none; the fusion encoder has layers 0 to {count - 1}")
        return asked

    @staticmethod
    def _words(tokenizer, ids, maps: Tensor, layer: int) -> Attended:
        words, side = tokenizer.words(ids), side_of(maps.shape[-1])
        rows = [maps[places].mean(0) for _, places in words]
        return Attended([word for word, _ in words],
                        torch.stack(rows).view(-1, side, side) if rows else maps.new_zeros(0, side, side), layer)


def attention_maps(model, loss, inputs: dict) -> tuple[Tensor, Tensor]:
    """How much each text token looks at each patch, in each layer of the fusion encoder.

        mean over heads of  A * max(0, d s / d A),   s the loss's logit of a match, A a layer's cross-attention

    The picture's summary token is left out. What a layer gives its padding tokens means nothing.

    A matching head reads the text's first token alone, so that in the last layer no other token has a gradient: maps of words
    are 0 there.

    Args:
        inputs: {slot: Encoded of B rows} of the loss's fusion encoder, in float32.

    Returns:
        (B, K, L, N) float32; and the same of A alone, without its gradient.

    Raises:
        ConfigError: the encoder does not tell its attention.

    Source: ALBEF (2107.07651), section 6.3 and its released ``visualization.ipynb``; Grad-CAM, Selvaraju et al. 2017.
    """
    encoder = model.encoder(loss.fusion)
    if not hasattr(encoder, "attending"):
        raise ConfigError(f"encoder `{loss.fusion}` ({type(encoder).__name__}) does not tell where it looks: it has no "
                          "`attending`, as CrossAttention has it")
    with torch.enable_grad():
        fused, weights = encoder.attending(**inputs)
        slopes = torch.autograd.grad(matched(loss, fused)[:, 1].sum(), weights)
    weights = [weight.detach() for weight in weights]
    several = [weight * slope.clamp(min=0) for weight, slope in zip(weights, slopes)], weights
    return tuple(torch.stack([layer.mean(1)[..., 1:] for layer in layers], 1) for layers in several)


def chosen(folder: Path | None, matching: str) -> dict | None:
    """What an evaluation in this folder, or else in one beside it, chose for a loss: ``layer`` and ``attention_layer``."""
    files = [] if folder is None else [folder / LAYERS, *sorted(folder.parent.glob(f"*/{LAYERS}"))]
    known = [json.loads(file.read_text(encoding="utf-8")) for file in files if file.is_file()]
    return next((one for one in known if one["match"] == matching), None)


def side_of(patches: int) -> int:
    """How many patches a side a square picture of ``patches`` has."""
    side = math.isqrt(patches)
    if side * side != patches:
        raise ValueError(f"{patches} patches are no square")
    return side
