"""Recall at k, honest about ties; the best candidates of a query, and a ranking of which only they were scored.

Shape letters: Q queries, C candidates, I images, T texts.
"""

import torch
from torch import Tensor

DEPTHS = (1, 5, 10)


def recall_at(scores: Tensor, relevant: Tensor, depths=DEPTHS) -> dict[int, float]:
    """The share of queries, in per cent, with a relevant candidate among their first k.

    Tied candidates are taken in random order and the share is its exact expectation: nothing depends on where a
    candidate stands in the file, and a model that scores everything alike gets what chance gives. (A plain ``argsort``
    of a constant row leaves the candidates in file order, where the right one may well be first.)

    A query with several relevant candidates is served by the best of them, as for a picture with five captions.

    Args:
        scores: (Q, C) float, higher is better; -inf is allowed, NaN and +inf are not.
        relevant: (Q, C) bool. Queries without a relevant candidate do not count.
        depths: the k.

    Raises:
        FloatingPointError: a score is NaN or +inf.
    """
    if bool((scores.isnan() | scores.isposinf()).any()):
        raise FloatingPointError("retrieval scores are not finite: the model has diverged; "
                                 "evaluate an earlier checkpoint")
    asked = relevant.any(1)
    scores, relevant = scores[asked], relevant[asked]
    best = scores.masked_fill(~relevant, -torch.inf).amax(1, keepdim=True)
    tied = scores == best
    above = (scores > best).sum(1)
    right = (tied & relevant).sum(1).double()
    wrong = (tied & ~relevant).sum(1).double()
    missed, recalls = torch.ones_like(right), {}
    for place in range(max(depths)):
        drawn = (place - above).double()  # tied candidates that took the places before this one
        wrong_again = (wrong - drawn).clamp(min=0) / (right + wrong - drawn).clamp(min=1)
        missed = torch.where(drawn >= 0, missed * wrong_again, missed)
        if place + 1 in depths:
            recalls[place + 1] = 100 * (1 - missed).mean().item()
    return recalls


def both_ways(t2i: Tensor, i2t: Tensor, owner: Tensor, chunk: int = 1024) -> dict[str, float]:
    """R@1, R@5, R@10 of texts to images (``t2i_r1`` ...) and of images to texts (``i2t_r1`` ...), per cent; ``r_mean``.

    Args:
        t2i: (images, texts) float, the scores by which a text ranks the images.
        i2t: (images, texts) float, those by which an image ranks the texts; a dual encoder has one matrix for both.
        owner: (texts,) int64, the image that a text describes.
        chunk: queries ranked at once.

    Source: the released X-FM code; for an image the best of its captions counts, ``r_mean`` is the mean of the six.
    """
    images = torch.arange(t2i.shape[0], device=owner.device)
    by_text = _recalls(t2i.T, lambda rows: owner[rows][:, None] == images, chunk)
    by_image = _recalls(i2t, lambda rows: rows[:, None] == owner, chunk)
    named = {f"t2i_r{k}": v for k, v in by_text.items()} | {f"i2t_r{k}": v for k, v in by_image.items()}
    return named | {"r_mean": sum(named.values()) / len(named)}


def chance(images: int, owner: Tensor) -> dict[str, float]:
    """What ``both_ways`` gives a model that scores everything alike."""
    same = torch.zeros(1, 1, device=owner.device).expand(images, owner.numel())
    return both_ways(same, same, owner)


def best(similarity: Tensor, k: int, dim: int) -> Tensor:
    """(I, T) bool, True at the k largest along ``dim``; of equal ones those that stand first."""
    order = similarity.argsort(dim=dim, descending=True, stable=True).narrow(dim, 0, min(k, similarity.shape[dim]))
    return torch.zeros_like(similarity, dtype=torch.bool).scatter_(dim, order, True)


def below_scored(logits: Tensor, scored: Tensor, similarity: Tensor) -> Tensor:
    """``logits`` where ``scored``, and below all of them the others, in the order of ``similarity``; float64 (I, T)."""
    logits, similarity = logits.double(), similarity.double()
    lowest = logits.masked_fill(~scored, torch.inf).min()
    return torch.where(scored, logits, similarity - similarity.max() + lowest - 1)


def _recalls(scores, relevant_of, chunk):
    """``recall_at`` in chunks of queries; ``relevant_of(rows)`` gives the relevant candidates of some of them."""
    found = []
    for start in range(0, scores.shape[0], chunk):
        rows = torch.arange(start, min(start + chunk, scores.shape[0]), device=scores.device)
        relevant = relevant_of(rows)
        found.append((int(relevant.any(1).sum()), recall_at(scores[rows], relevant)))
    asked = sum(n for n, _ in found)
    return {k: sum(n * recalls[k] for n, recalls in found if n) / asked for k in DEPTHS}
