"""Beam search against all sequences there are, against argmax token by token, and its rules one by one."""

import itertools
import math

import pytest
import torch

from xtoolkit.tasks.beams import Beams, beam_search

END, VOCAB = 0, 4


def table(count, seed=0, vocab=VOCAB):
    """log p of a made-up language, in which every token depends on all before it: a function for the search, one for a person."""
    known = {}

    def one(row, said):
        if (row, said) not in known:
            draw = torch.Generator().manual_seed(hash((seed, row, said)) % 2**31)
            known[row, said] = (1.5 * torch.randn(vocab, generator=draw, dtype=torch.float64)).log_softmax(0)
        return known[row, said]

    return (lambda said, row: torch.stack([one(r, tuple(s)) for r, s in zip(row.tolist(), said.tolist())])), one


def repeats(said, n):
    runs = [tuple(said[i:i + n]) for i in range(len(said) - n + 1)]
    return n > 0 and len(set(runs)) < len(runs)


def exhaustive(one, row, how, vocab=VOCAB):
    """The best of all sequences that the rules allow."""
    best = (-math.inf, None)
    for n in range(how.max_length + 1):
        for said in itertools.product(range(1, vocab), repeat=n):
            if repeats(said, how.ngram) or (n < how.min_length and n < how.max_length):
                continue
            whole = said if n == how.max_length else (*said, END)
            total = sum(one(row, whole[:i])[t].item() for i, t in enumerate(whole))
            best = max(best, (total / ((5 + len(whole)) / 6) ** how.length_penalty, said))
    return list(best[1])


@pytest.mark.parametrize("how", [Beams(200, 0, 4, 0), Beams(200, 2, 4, 2), Beams(200, 0, 4, 3, 1.0), Beams(200, 3, 3, 0),
                                 Beams(200, 1, 5, 2, 2.5)])
def test_with_beams_enough_it_finds_the_best_of_all(how):
    log_p, one = table(6)
    assert beam_search(log_p, 6, END, how) == [exhaustive(one, row, how) for row in range(6)]


@pytest.mark.parametrize("how", [Beams(1, 0, 6, 0), Beams(1, 3, 6, 2)])
def test_one_beam_is_the_likeliest_token_each_time(how):
    log_p, one = table(8, seed=1)
    for row, found in enumerate(beam_search(log_p, 8, END, how)):
        said = []
        while len(said) < how.max_length:
            allowed = [t for t in range(VOCAB) if not (t == END and len(said) < how.min_length)
                       and (t == END or not repeats([*said, t], how.ngram))]
            token = max(allowed, key=lambda t: one(row, tuple(said))[t].item())
            if token == END:
                break
            said.append(token)
        assert found == said


def test_more_beams_find_better_ones_and_the_best_is_not_always_the_first():
    log_p, one = table(40, seed=2)
    value = lambda row, said: sum(one(row, tuple(said[:i]))[t].item() for i, t in enumerate([*said, END][:5]))
    means = [sum(value(row, said) for row, said in enumerate(beam_search(log_p, 40, END, Beams(beams, 1, 5, 0)))) / 40
             for beams in (1, 2, 3, 100)]
    assert means == sorted(means) and means[0] < means[2] - 0.05


def test_it_does_not_depend_on_what_else_is_searched():
    log_p, _ = table(7, seed=3)
    whole = beam_search(log_p, 7, END, Beams(3, 1, 6, 2))
    alone = [beam_search(lambda said, row: log_p(said, row + one), 1, END, Beams(3, 1, 6, 2))[0] for one in range(7)]
    assert whole == alone and len({len(said) for said in whole}) > 1


def test_what_is_never_said_is_not_and_a_language_of_one_word_ends():
    log_p, _ = table(3, seed=4)

    def without(said, row):
        scores = log_p(said, row)
        scores[:, 2] = -torch.inf
        return scores

    assert not any(2 in said for said in beam_search(without, 3, END, Beams(3, 2, 6, 0)))
    mute = lambda said, row: torch.tensor([[0.0, -torch.inf]]).expand(len(row), 2).clone()
    assert beam_search(mute, 2, END, Beams(3, 0, 5)) == [[], []]
    assert beam_search(mute, 2, END, Beams(3, 1, 5)) == [[], []], "nothing may be said, and it may not end"


@pytest.mark.parametrize("keys, message", [
    ({"beams": 0}, "beams: must be at least 1, not 0"), ({"min_length": -1}, "min_length: must be at least 0, not -1"),
    ({"min_length": 6, "max_length": 5}, r"max_length: must be at least 6 \(`min_length`\), not 5"),
    ({"ngram": -1}, "ngram: must be at least 0"), ({"length_penalty": -0.5}, "length_penalty: must be at least 0, not -0.5")])
def test_wrong_settings_are_told(keys, message):
    with pytest.raises(ValueError, match=message):
        Beams(**keys)
