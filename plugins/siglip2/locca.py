"""LocCa: a box for a phrase, and a phrase for a box, as tokens of one decoder.

Shape letters: R rows, L tokens of the longest phrase.
"""

import torch
from torch import Tensor

from xtoolkit.batch import Batch, TextField
from xtoolkit.features import Features
from xtoolkit.graph import Need, Ref
from xtoolkit.losses.base import Loss
from xtoolkit.registry import LOSS_REGISTRY

from .decoder import decoder_of, left_to_right, token_costs, weighted_mean

BOX = 4  # tokens of a box: left, top, right, bottom


@LOSS_REGISTRY.register
class LocCa(Loss):
    """Referring expressions and grounded captions, on a region stream, from the whole picture.

        refer     [refer] words  [box] ->  left top right bottom        mean over the four of each real box
        describe  [describe] left top right bottom  ->  words           mean over the words of all rows

    A row that describes the whole picture has that for its box: its ``describe`` is a caption, and it has no ``refer``. The two
    are summed and logged apart. The third of LocCa's tasks, captions, is CapPa on a stream of pairs, over the same decoder.

    YAML: {type: LocCa, decoder: decoder@whole}

    Args:
        decoder: an encoder of type CaptionDecoder, on the whole picture: the region alone would tell its box.

    Source: LocCa (2403.19596) 3; SigLIP 2 (2502.14786) 2, which sums the tasks. There a grounded caption begins with a box that
    is told too; here it is given, as SigLIP 2 words it.
    """

    VIEWS = {"decoder": "whole"}

    def __init__(self, decoder: str, *, modules: dict):
        super().__init__()
        self.decoder = decoder
        self._decoder = (decoder_of("LocCa", Ref.parse(decoder).name, modules),)  # in a tuple: the parameters are not this loss's

    @classmethod
    def needs(cls, block: dict) -> list[Need]:
        return [Need(block["decoder"], runs=2, head="lm_logits"), Need("$region")]

    def forward(self, f: Features, batch: Batch) -> dict[str, Tensor]:
        inputs, region = f.inputs(self.decoder), f["$region"]
        text, box = inputs["text"], self._decoder[0].box_tokens(region.box)
        rows = torch.arange(len(box), device=box.device).repeat(2)
        states = f.run(self.decoder, text=self.targets(text, box), image=inputs["image"].select(rows)).tokens
        referred, described = states[:len(box), -BOX:], states[len(box):, BOX:BOX + text.ids.shape[1] - 1]
        costs = lambda states, labels: token_costs(f.head(Ref.parse(self.decoder).name), states, labels)
        refer = weighted_mean(costs(referred, box), region.is_box[:, None].expand_as(box))
        return {"refer": f.mean(refer, real_boxes),
                "describe": f.mean(weighted_mean(costs(described, text.ids[:, 1:]), text.mask[:, 1:]), told_words)}

    def guess(self, f: Features, batch: Batch) -> dict[str, Tensor]:
        """Each of the four coordinates as frequent as it was so far, whatever it is of; the words likewise."""
        text, region, decoder = batch.text, batch.region, self._decoder[0]
        box, real = decoder.box_tokens(region.box), text.mask[:, 1:]
        # One count for both, which is all that a guess may ask for: words lie before the coordinates, and both sum to one.
        seen = torch.cat([box.flatten(), text.ids[:, 1:].flatten()])
        weight = torch.cat([region.is_box[:, None].expand_as(box).flatten(), real.flatten()])
        shares = f.frequencies(seen, decoder.tokens, weight)
        coordinates, words = shares[decoder.first_bin:].sum(), shares[:decoder.first_bin].sum()
        refer = weighted_mean(-(shares[box] / coordinates).log(), region.is_box[:, None].expand_as(box))
        describe = weighted_mean(-(shares[text.ids[:, 1:]] / words).log(), real)
        return {"refer": f.mean(refer.float(), real_boxes), "describe": f.mean(describe.float(), told_words)}

    def targets(self, text: TextField, box: Tensor) -> TextField:
        """(2 R, L + 4) what the decoder reads: R rows of ``refer``, then R of ``describe``, each with one more of padding.

        Args:
            text: R phrases.
            box: (R, 4) ids of their boxes.
        """
        decoder, (rows, length) = self._decoder[0], text.ids.shape
        every = lambda token: torch.full_like(box[:, :1], token)
        yes = torch.ones_like(box, dtype=torch.bool)
        refer = torch.cat([every(decoder.refer_id), text.ids[:, 1:], every(decoder.box_id), box[:, :-1]], 1)
        describe = torch.cat([every(decoder.describe_id), box, text.ids[:, 1:-1], every(decoder.mask_id)], 1)
        # The words of a shorter phrase and its box stand side by side, whatever pads the row between them.
        places = torch.arange(length + BOX, device=box.device)
        behind = text.mask.sum(1, keepdim=True) + places[:BOX]
        places = places.expand(rows, -1)
        return TextField(torch.cat([refer, describe]),
                         torch.cat([torch.cat([text.mask, yes], 1), torch.cat([yes, text.mask[:, 1:], ~yes[:, :1]], 1)]),
                         positions=torch.cat([torch.cat([places[:, :length], behind], 1), places]),
                         attention=left_to_right(2 * rows, length + BOX, box.device))

    @torch.no_grad()
    def boxes(self, f: Features) -> Tensor:
        """(R, 4) cx, cy, w, h of the box of each phrase of a batch: the likeliest coordinates, one after the other."""
        inputs, decoder, name = f.inputs(self.decoder), self._decoder[0], Ref.parse(self.decoder).name
        box = torch.full((inputs["text"].rows, BOX), decoder.first_bin, device=inputs["text"].ids.device)
        for place in range(BOX):
            half = self.targets(inputs["text"], box).select(torch.arange(len(box), device=box.device))
            states = f.run(self.decoder, text=half, image=inputs["image"]).tokens[:, place - BOX]
            box[:, place] = decoder.first_bin + f.head(name)(states)[:, decoder.first_bin:].argmax(1)
        return decoder.boxes(box)


def real_boxes(batch: Batch) -> Tensor:
    """() int64, the boxes of a batch that are none of a whole picture."""
    return batch.region.is_box.sum()


def told_words(batch: Batch) -> Tensor:
    """() int64, the tokens of a batch's phrases but for the first of each."""
    return batch.text.mask[:, 1:].sum()
