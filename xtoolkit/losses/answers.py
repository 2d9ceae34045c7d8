"""AnswerGeneration: answers to questions, word by word, and the ranking of candidates by how likely each is as a whole.

Shape letters: B questions, A answers, C candidates, K rows of a pass, L tokens of an answer, V vocabulary.
"""

import copy
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from xtoolkit.batch import Batch, TextField
from xtoolkit.features import Encoded, full_precision
from xtoolkit.graph import Need, Ref
from xtoolkit.losses.base import Loss
from xtoolkit.registry import LOSS_REGISTRY, Count


@LOSS_REGISTRY.register
class AnswerGeneration(Loss):
    """Generative question answering: a causal decoder that attends to the fused tokens of question and picture.

        loss = 1 / B  sum over answers a of weight(a)  sum over its tokens after <s>, </s> included  -log p(token | those before)

    The decoder starts as a copy of the fusion encoder, all its layers or some: its self-attention turns causal, and where that
    attends to a picture it attends to the fused tokens. An answer's words and places are embedded as the text encoder embeds
    them, at first with its weights. The output layer is dense, GELU, LayerNorm, and a matrix tied to the decoder's word
    embeddings. A question's keys and values are computed once, however many answers it has.

    YAML: {type: AnswerGeneration, fusion: fusion, words: text, layers: 6}

    Args:
        fusion: the fusion encoder, a ``CrossAttention``: its tokens are read, and its layers are what the decoder starts as.
        words: an encoder of texts, whose embeddings are copied.
        layers: of the decoder; null: as many as the fusion encoder has.
        spread: which of its layers, where there are fewer: evenly spaced ones, from the first on; false: the first ones.
        embeddings: `copied` from ``words``; `drawn`: N(0, 0.02), which is how the places and the LayerNorm of the release start.

    Source: X-FM, appendix C, and its released ``model_generation.py``: twelve layers. There everything is taken from the
    fusion encoder, also the embeddings of places and their LayerNorm, which no loss ever trained; its word embeddings are what
    is IMLM's output matrix here, a head that stays behind. Here they come from the text encoder, which is trained. X2-VLM's
    decoder has six layers: all of its fusion encoder, or of twelve every second with ``spread``.
    """

    def __init__(self, fusion: str, words: str = "text", layers: Count | None = None,
                 spread: bool = False, embeddings: Literal["copied", "drawn"] = "copied", *, widths: dict, modules: dict):
        super().__init__()
        self.fusion, self._layers, self._copied = fusion, (layers, spread), embeddings == "copied"
        source, text = (modules[name] if (name := Ref.parse(ref).name) in modules else None for ref in (fusion, words))
        if not hasattr(source, "decoder"):
            raise ValueError(f"`fusion: {fusion}` cannot be copied as a decoder: it must be an encoder that can, a "
                             "CrossAttention which is no other's under a second name")
        if getattr(text, "embeddings", None) is None:
            raise ValueError(f"`words: {words}` has no embeddings to copy: name an encoder of texts, a RoBERTa")
        self._start = (source, text)  # in a tuple: their parameters are not this loss's
        self.decoder, self.embeddings = source.decoder(*self._layers), copy.deepcopy(text.embeddings)
        self.lm_head = OutputLayer(widths[fusion], *reversed(self._matrix.shape))
        if not self._copied:
            self._draw()

    @classmethod
    def needs(cls, block: dict) -> list[Need]:
        return [Need(block["fusion"]), Need("$answers")]

    def load_init(self) -> None:
        source, text = self._start
        self.decoder.load_state_dict(source.decoder(*self._layers).state_dict())
        if self._copied:
            self.embeddings.load_state_dict(text.embeddings.state_dict())

    def forward(self, f, batch):
        answers = f["$answers"]
        costs = self.token_costs(answers.text, f[self.fusion].select(answers.row)).sum(1)
        return f.mean((answers.weight * costs).sum() / max(1, answers.rows), questions)

    def guess(self, f, batch):
        """The tokens of answers as frequent as they were so far."""
        answers = f["$answers"]
        labels, real = answers.text.ids[:, 1:], answers.text.mask[:, 1:]
        costs = -f.frequencies(labels.flatten(), len(self._matrix), real.flatten()).log()[labels]
        return f.mean((answers.weight * costs.masked_fill(~real, 0).sum(1)).sum() / max(1, answers.rows), questions)

    def token_costs(self, text: TextField, memory: Encoded) -> Tensor:
        """(K, L - 1) float32 or better: -log p of each token after ``<s>``, 0 where there is none.

        Args:
            text: K answers, (K, L).
            memory: what the fusion encoder says of the question of each, K rows.
        """
        logits, labels = self._logits(text.ids[:, :-1], text.mask[:, :-1], memory), text.ids[:, 1:]
        costs = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="none").view(labels.shape)
        return costs.masked_fill(~text.mask[:, 1:], 0)

    def rank(self, f, candidates: TextField, k: int = 128, chunk: int = 512, score: str = "exact") -> Tensor:
        """(B, C) float32 or better: log p of each candidate as the answer to each question; -inf where it was left out.

        Of each question the k candidates with the likeliest first tokens are scored as a whole, of equal ones those named first;
        with k = C all are, and the order is that of their likelihoods.

        Args:
            f: Features of questions.
            candidates: (C, L), each ``<s> ... </s>``.
            chunk: candidates a pass.
            score: `exact`, or `release`: with the first token counted twice, as the released X-FM adds it to the whole.
        """
        memory, count = f[self.fusion], candidates.ids.shape[0]
        rows, lengths = len(memory), candidates.mask.sum(1)
        start = candidates.ids[:1, :1].expand(rows, 1)
        first = self._logits(start, torch.ones_like(start, dtype=torch.bool), memory)[:, 0].log_softmax(1)
        first = first[:, candidates.ids[:, 1]]
        best = first.sort(dim=1, descending=True, stable=True).indices[:, :k].flatten()
        of = torch.arange(rows, device=best.device).repeat_interleave(min(k, count))
        found = torch.full_like(first, -torch.inf)
        for some in lengths[best].argsort(stable=True).split(chunk):  # alike in length: little is padding
            row, which = of[some], best[some]
            text = candidates.select(which).trim(int(lengths[which].max()))
            found[row, which] = -self.token_costs(text, memory.select(row)).sum(1).to(found.dtype)
        return found + first if score == "release" else found

    @property
    def _matrix(self) -> Tensor:
        return self.embeddings.word_embeddings.weight

    def _logits(self, ids, mask, memory):
        """(K, L, V) float32 or better, of every token the scores of the one after it."""
        causal = torch.ones(ids.shape[1], ids.shape[1], dtype=torch.bool, device=ids.device).tril().expand(len(ids), -1, -1)
        said = Encoded.of(self.embeddings(ids), mask, attention=causal)
        hidden = self.decoder(view=None, text=said, image=memory).tokens
        if self.training:
            logits = self.lm_head(hidden, self._matrix)
        else:  # bf16 has so few logits that candidates would tie
            with full_precision(hidden):
                logits = self.lm_head(hidden.to(self._matrix.dtype), self._matrix)
        return logits.to(torch.promote_types(logits.dtype, torch.float32))

    def _draw(self):
        for module in self.embeddings.modules():
            if isinstance(module, nn.Embedding):
                nn.init.normal_(module.weight, std=0.02)
            elif isinstance(module, nn.LayerNorm):
                module.reset_parameters()


def questions(batch: Batch) -> int:
    """B, the questions of a batch."""
    return batch["answers"].rows


class OutputLayer(nn.Module):
    """Dense, GELU, LayerNorm (1e-5), then a matrix (V, E) that is given: (K, L, D) -> (K, L, V). Named as the released
    ``lm_head``."""

    def __init__(self, width: int, out: int, words: int):
        super().__init__()
        self.dense = nn.Linear(width, out)
        self.layer_norm = nn.LayerNorm(out, eps=1e-5)
        self.bias = nn.Parameter(torch.zeros(words))
        nn.init.normal_(self.dense.weight, std=0.02)
        nn.init.zeros_(self.dense.bias)

    def forward(self, hidden: Tensor, matrix: Tensor) -> Tensor:
        return F.linear(self.layer_norm(F.gelu(self.dense(hidden))), matrix, self.bias)
