"""Beam search: the likeliest sequences of tokens, a beam of them grown token by token.

Shape letters: P sequences asked for (pictures), K beams of each, n tokens so far, R beams that go on, V vocabulary.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from xtoolkit.registry import ConfigError


@dataclass(frozen=True)
class Beams:
    """How sequences are searched.

    Attributes:
        beams: sequences that are kept at a time; 1: the likeliest token each time.
        min_length: tokens before which a sequence does not end.
        max_length: tokens at which it ends as it is. Neither counts the prompt or the end.
        ngram: no run of so many tokens comes twice; 0: any may.
        length_penalty: the log-likelihood of n tokens, the end counted, is divided by ((5 + n) / 6)^length_penalty.
    """

    beams: int = 3
    min_length: int = 5
    max_length: int = 20
    ngram: int = 3
    length_penalty: float = 0.0

    def __post_init__(self):
        least = {"beams": 1, "min_length": 0, "max_length": max(1, self.min_length), "ngram": 0, "length_penalty": 0}
        for key, lowest in least.items():
            if getattr(self, key) < lowest:
                why = " (`min_length`)" if key == "max_length" and lowest > 1 else ""
                raise ConfigError(f"{key}: must be at least {lowest}{why}, not {getattr(self, key)}")


def beam_search(log_p, count: int, end: int, how: Beams, device=None) -> list[list[int]]:
    """The best sequence found of each of ``count``, without its end.

    Of all ways to go on from a sequence's beams by one token the ``beams`` likeliest are kept; those that end leave the beam,
    and the best of them is what is found. A beam that could no longer become better than that is left.

    Args:
        log_p: ``log_p(said, row)`` gives (R, V), log p of the next token after ``said`` (R, n) int64, for the sequences
            ``row`` (R,) int64; -inf where a token is never said.
        end: the token that ends a sequence.

    Source: the search of X2-VLM's released captioning (UniLM's), whose length also counts the pictures of the batch: there a
        longer batch may say more.
    """
    said = torch.zeros(count, 1, 0, dtype=torch.long, device=device)
    score = torch.zeros(count, 1, dtype=torch.float64, device=device)  # (P, K); -inf: no beam
    best, found = torch.full_like(score[:, 0], -torch.inf), [[] for _ in range(count)]
    worth = lambda total, n: total / ((5 + n) / 6) ** how.length_penalty
    for n in range(how.max_length):
        row, beam = (score > -torch.inf).nonzero(as_tuple=True)
        if not len(row):
            break
        next_p = log_p(said[row, beam], row).double()
        if n < how.min_length:
            next_p[:, end] = -torch.inf
        _forbid_repeats(next_p, said[row, beam], how.ngram)
        # The best of all ways are among the best ways of each beam.
        most = min(how.beams, next_p.shape[1])
        ways = torch.full((*score.shape, most), -torch.inf, dtype=torch.float64, device=device)
        tokens = torch.zeros(ways.shape, dtype=torch.long, device=device)
        next_p, tokens[row, beam] = next_p.topk(most)
        ways[row, beam] = score[row, beam][:, None] + next_p
        score, way = ways.flatten(1).topk(min(how.beams, ways[0].numel()))
        token = tokens.flatten(1).gather(1, way)
        said = torch.cat([said.gather(1, (way // most)[..., None].expand(-1, -1, n)), token[..., None]], 2)
        ends = (token == end) | (n + 1 == how.max_length)
        value, which = worth(score, n + 1).masked_fill(~ends, -torch.inf).max(1)
        for one in (value > best).nonzero()[:, 0].tolist():
            best[one], found[one] = value[one], [t for t in said[one, which[one]].tolist() if t != end]
        hopeless = worth(score, how.max_length) <= best[:, None]  # a log-likelihood only falls
        score = score.masked_fill(ends | hopeless, -torch.inf)
    return found


def _forbid_repeats(log_p: Tensor, said: Tensor, n: int) -> None:
    """Sets to -inf, in place, the tokens that would say a run of n tokens again."""
    if n and said.shape[1] >= n:
        runs = said.unfold(1, n, 1)
        again = (runs[..., :-1] == said[:, None, said.shape[1] - n + 1:]).all(2)
        row, column = again.nonzero(as_tuple=True)
        log_p[row, runs[row, column, -1]] = -torch.inf
