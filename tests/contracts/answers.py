"""A toy of generative VQA, as a plugin of ``decoder.yaml``: a field of answers, and a decoder that starts as a copy of an encoder.

Shape letters: B rows, A answer tokens, D width, V vocabulary.
"""

import copy
import random
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from xtoolkit.batch import Batch, Field
from xtoolkit.data.items import Item
from xtoolkit.data.synthetic import SyntheticPairs
from xtoolkit.graph import Need
from xtoolkit.losses.base import Loss
from xtoolkit.registry import DATASET_REGISTRY, LOSS_REGISTRY


@dataclass(frozen=True)
class ToyAnswers(Field):
    """ids (B, A) int64, an answer a row."""

    ids: Tensor

    @classmethod
    def example(cls, rows: int) -> "ToyAnswers":
        return cls(torch.zeros(rows, 4, dtype=torch.long))


@DATASET_REGISTRY.register
class ToyQuestions(SyntheticPairs):
    """Made-up pictures and questions, with an answer of four tokens.

    YAML: {type: ToyQuestions, size: 64, tokens: 8}
    """

    FIELDS = SyntheticPairs.FIELDS | {"toy_answers": ToyAnswers}

    def load(self, source: int, sample: int, rows: int, rng: random.Random) -> Item:
        item = super().load(source, sample, rows, rng)
        answer = np.array([0, 5 + sample % 7, 6 + sample % 5, 2], np.int64)
        return Item(item.image, item.texts, fields={"toy_answers": answer})


@LOSS_REGISTRY.register
class ToyAnswer(Loss):
    """The answer, token by token, from the fused question and picture.

    YAML: {type: ToyAnswer, fusion: fusion, answers: $toy_answers, start: fusion}

    Args:
        fusion: the encoder whose tokens the decoder attends to.
        answers: the field of answers.
        start: the encoder of which the decoder is a copy at the start.
    """

    def __init__(self, fusion: str, answers: str, start: str, *, widths: dict, vocab_size_of: int, modules: dict):
        super().__init__()
        self.fusion, self.answers, width = fusion, answers, widths[fusion]
        self.decoder = copy.deepcopy(modules[start])
        self._start = (modules[start],)  # in a tuple: its parameters are not this loss's
        self.words, self.out = nn.Embedding(vocab_size_of, width), nn.Linear(width, vocab_size_of)

    @classmethod
    def needs(cls, block: dict) -> list[Need]:
        return [Need(block["fusion"]), Need(block["answers"])]

    def load_init(self) -> None:
        self.decoder.load_state_dict(self._start[0].state_dict())

    def forward(self, f, batch: Batch) -> Tensor:
        from xtoolkit.features import Encoded

        ids, memory = f[self.answers].ids, f[self.fusion]
        said = Encoded.of(self.words(ids[:, :-1]))
        states = self.decoder(view=None, text=said, image=memory)
        loss = nn.functional.cross_entropy(self.out(states.tokens).float().flatten(0, 1), ids[:, 1:].flatten())
        return f.mean(loss, lambda b: b[self.answers[1:]].ids[:, 1:].numel())
