"""Recall at k, honest about ties, and what one ranking gains over another; the best candidates of a query, and a ranking of
which only they were scored.

Shape letters: Q queries, C candidates, I images, T texts.
"""

import numpy as np
import torch
from torch import Tensor

from xtoolkit.metrics.bootstrap import crossed_difference
from xtoolkit.metrics.mean import means

DEPTHS = (1, 5, 10)
GAINS = ("t2i_r10", "i2t_r10", "r_mean")


def hits_at(scores: Tensor, relevant: Tensor, depths=DEPTHS) -> dict[int, Tensor]:
    """For each query the probability, (Q,) float64, that a relevant candidate is among its first k; NaN if it has none.

    Tied candidates are taken in random order and the probability is exact: nothing depends on where a
    candidate stands in the file, and a model that scores everything alike gets what chance gives. (A plain ``argsort``
    of a constant row leaves the candidates in file order, where the right one may well be first.)

    A query with several relevant candidates is served by the best of them, as for a picture with five captions.

    Args:
        scores: (Q, C) float, higher is better; -inf is allowed, NaN and +inf are not.
        relevant: (Q, C) bool.
        depths: the k.

    Raises:
        FloatingPointError: a score is NaN or +inf.
    """
    if bool((scores.isnan() | scores.isposinf()).any()):
        raise FloatingPointError("retrieval scores are not finite: the model has diverged; "
                                 "evaluate an earlier checkpoint")
    best = scores.masked_fill(~relevant, -torch.inf).amax(1, keepdim=True)
    tied = scores == best
    above = (scores > best).sum(1)
    right = (tied & relevant).sum(1).double()
    wrong = (tied & ~relevant).sum(1).double()
    missed, hits = torch.ones_like(right).where(relevant.any(1), torch.nan), {}
    for place in range(max(depths)):
        drawn = (place - above).double()  # tied candidates that took the places before this one
        wrong_again = (wrong - drawn).clamp(min=0) / (right + wrong - drawn).clamp(min=1)
        missed = torch.where(drawn >= 0, missed * wrong_again, missed)
        if place + 1 in depths:
            hits[place + 1] = 1 - missed
    return hits


def hits_both_ways(t2i: Tensor, i2t: Tensor, owner: Tensor, chunk: int = 1024) -> dict[str, Tensor]:
    """``hits_at`` 1, 5 and 10 of texts that look for their image (``t2i_r1`` ..., (T,)) and of images that look for one of
    their texts (``i2t_r1`` ..., (I,)).

    Args:
        t2i: (images, texts) float, the scores by which a text ranks the images.
        i2t: (images, texts) float, those by which an image ranks the texts; a dual encoder has one matrix for both.
        owner: (texts,) int64, the image that a text describes.
        chunk: queries ranked at once.
    """
    images = torch.arange(t2i.shape[0], device=owner.device)
    by_text = _hits(t2i.T, lambda rows: owner[rows][:, None] == images, chunk)
    by_image = _hits(i2t, lambda rows: rows[:, None] == owner, chunk)
    return {f"t2i_r{k}": v for k, v in by_text.items()} | {f"i2t_r{k}": v for k, v in by_image.items()}


def recalls(hits: dict[str, Tensor]) -> dict[str, float]:
    """The means of ``hits_both_ways`` in per cent, over the queries that have a relevant candidate, and ``r_mean``.

    Source: the released X-FM code; for an image the best of its captions counts, ``r_mean`` is the mean of the six.
    """
    named = {name: 100 * values.nanmean().item() for name, values in hits.items()}
    return named | {"r_mean": sum(named.values()) / len(named)}


def gains(before: dict[str, Tensor], after: dict[str, Tensor], owner: Tensor, draws: int = 2000) -> dict[str, float]:
    """What one way of ranking the same queries gains over another, in per cent: ``t2i_r10_gain``, ``i2t_r10_gain`` and
    ``r_mean_gain``, each with ``_low`` and ``_high``, the ends of its 95 % interval.

    The interval is that of a paired bootstrap (percentiles): pictures are drawn with replacement, each with all its texts,
    always the same ones; the candidates stay as they are.

    Args:
        before, after: of ``hits_both_ways``.
        owner: (texts,) int64, the image that a text describes.
    """
    owner, found = owner.cpu().numpy(), {}
    _, first = np.unique(owner, return_index=True)  # a text of each picture that has some
    rows = []
    for hits in (after, before):
        columns = np.full((len(owner), len(hits)), np.nan)
        for column, (name, values) in zip(columns.T, hits.items()):
            which = np.arange(len(owner)) if name.startswith("t2i") else first
            column[which] = 100 * values.cpu().numpy()[which if name.startswith("t2i") else owner[first]]
        rows.append(columns)
    for name in GAINS:
        pick = slice(None) if name == "r_mean" else list(after).index(name)
        gain = crossed_difference(*([side[:, pick]] for side in rows), owner, means, draws)
        low, high = (gain.value, gain.value) if gain.low is None else (gain.low, gain.high)
        found |= {f"{name}_gain": gain.value, f"{name}_gain_low": low, f"{name}_gain_high": high}
    return found


def chance(images: int, owner: Tensor) -> dict[str, float]:
    """What ``recalls`` are of a model that scores everything alike."""
    same = torch.zeros(1, 1, device=owner.device).expand(images, owner.numel())
    return recalls(hits_both_ways(same, same, owner))


def best(similarity: Tensor, k: int, dim: int) -> Tensor:
    """(I, T) bool, True at the k largest along ``dim``; of equal ones those that stand first."""
    order = similarity.argsort(dim=dim, descending=True, stable=True).narrow(dim, 0, min(k, similarity.shape[dim]))
    return torch.zeros_like(similarity, dtype=torch.bool).scatter_(dim, order, True)


def below_scored(logits: Tensor, scored: Tensor, similarity: Tensor) -> Tensor:
    """``logits`` where ``scored``, and below all of them the others, in the order of ``similarity``; float64 (I, T)."""
    logits, similarity = logits.double(), similarity.double()
    lowest = logits.masked_fill(~scored, torch.inf).min()
    return torch.where(scored, logits, similarity - similarity.max() + lowest - 1)


def _hits(scores, relevant_of, chunk) -> dict[int, Tensor]:
    """``hits_at`` in chunks of queries; ``relevant_of(rows)`` gives the relevant candidates of some of them."""
    rows = torch.arange(scores.shape[0], device=scores.device).split(chunk)
    found = [hits_at(scores[some], relevant_of(some)) for some in rows]
    return {k: torch.cat([hits[k] for hits in found]) for k in DEPTHS}
