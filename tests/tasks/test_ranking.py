"""Recall at k: against a slow plain recomputation, with ties, and at chance; gains against a bootstrap by hand."""

import itertools
import random

import numpy as np
import pytest
import torch

from xtoolkit.tasks.base import cell
from xtoolkit.tasks.ranking import chance, gains, hits_at, hits_both_ways, recalls


def both_ways(t2i, i2t, owner, chunk=1024):
    return recalls(hits_both_ways(t2i, i2t, owner, chunk))


def plain_recall(scores, relevant, k):
    """Sorts each row in Python and looks at its first k; for rows without ties only."""
    hits, asked = 0, 0
    for row, right in zip(scores.tolist(), relevant.tolist()):
        if any(right):
            asked += 1
            order = sorted(range(len(row)), key=lambda c: -row[c])
            hits += any(right[c] for c in order[:k])
    return 100 * hits / asked


def test_equals_a_plain_sort_with_several_captions_a_picture():
    generator = torch.Generator().manual_seed(0)
    owner = torch.tensor([0, 0, 0, 1, 2, 2, 3, 3, 3, 3, 4, 5, 6, 7, 7, 8, 9, 9, 9, 10, 11, 11])
    scores = torch.randn(12, len(owner), generator=generator) + 1.5 * (owner == torch.arange(12)[:, None])
    found = both_ways(scores, scores, owner, chunk=5)
    relevant = owner == torch.arange(12)[:, None]
    for k in (1, 5, 10):
        assert found[f"t2i_r{k}"] == pytest.approx(plain_recall(scores.T, relevant.T, k))
        assert found[f"i2t_r{k}"] == pytest.approx(plain_recall(scores, relevant, k))
    six = [v for name, v in found.items() if name != "r_mean"]
    assert len(six) == 6 and found["r_mean"] == pytest.approx(sum(six) / 6)
    assert 0 < found["t2i_r1"] < found["t2i_r10"] <= 100


def test_the_two_directions_may_have_scores_of_their_own():
    owner = torch.arange(11)
    perfect, worst = torch.eye(11), -torch.eye(11)
    found = both_ways(perfect, worst, owner)
    assert found["t2i_r1"] == 100 and found["i2t_r10"] == 0


@pytest.mark.parametrize("seed", range(6))
def test_ties_count_as_the_mean_over_all_orders(seed):
    """Every order of the candidates is tried, and of tied ones the first in that order is taken first."""
    draw = random.Random(seed)
    scores = [draw.choice([0.0, 0.5, 1.0]) for _ in range(6)]
    relevant = [False] * 6
    for c in draw.sample(range(6), draw.choice([1, 2, 3])):
        relevant[c] = True
    for k in (1, 2, 5):
        orders = list(itertools.permutations(range(6)))
        hits = sum(any(relevant[c] for c in sorted(o, key=lambda c: -scores[c])[:k]) for o in orders)
        found = hits_at(torch.tensor([scores]), torch.tensor([relevant]), depths=(k,))
        assert found[k].tolist() == pytest.approx([hits / len(orders)])


def test_a_constant_model_scores_chance_and_not_more():
    owner = torch.arange(50).repeat_interleave(5)
    for value in (0.0, 7.0):
        found = both_ways(torch.full((50, 250), value), torch.full((50, 250), value), owner)
        assert found["t2i_r1"] == pytest.approx(100 / 50)
        assert found["t2i_r10"] == pytest.approx(100 * 10 / 50)
        assert found["i2t_r1"] == pytest.approx(100 * 5 / 250)
    assert chance(50, owner) == pytest.approx(found)
    miss = 1.0
    for place in range(10):
        miss *= (245 - place) / (250 - place)
    assert found["i2t_r10"] == pytest.approx(100 * (1 - miss))


def test_a_random_model_is_near_chance():
    owner = torch.arange(250).repeat_interleave(5)
    scores = torch.randn(250, 1250, generator=torch.Generator().manual_seed(1))
    found, expected = both_ways(scores, scores, owner), chance(250, owner)
    assert expected["t2i_r10"] == pytest.approx(4.0)
    for name, value in found.items():
        assert value == pytest.approx(expected[name], abs=2.5), name


def test_queries_that_nothing_answers_do_not_count():
    owner = torch.tensor([0, 0, 2])
    scores = torch.tensor([[3.0, 2.0, 1.0], [9.0, 9.0, 9.0], [0.0, 1.0, 5.0]])
    assert both_ways(scores, scores, owner)["i2t_r1"] == 100


def test_order_of_the_file_changes_nothing():
    generator = torch.Generator().manual_seed(2)
    owner = torch.arange(20).repeat_interleave(2)
    scores = torch.randint(0, 4, (20, 40), generator=generator).float()
    images, texts = torch.randperm(20, generator=generator), torch.randperm(40, generator=generator)
    moved = scores[images][:, texts]
    assert both_ways(moved, moved, images.argsort()[owner[texts]]) == pytest.approx(both_ways(scores, scores, owner))


def test_gains_equal_a_bootstrap_by_hand_of_pictures_with_all_their_texts():
    generator = torch.Generator().manual_seed(3)
    owner = torch.tensor([0, 2, 0, 1, 4, 4, 4, 5, 6, 7, 7, 8, 9, 10, 11, 12, 13, 13])  # nothing describes picture 3
    scores = [torch.randn(14, len(owner), generator=generator) + (owner == torch.arange(14)[:, None]) for _ in range(3)]
    before, after = hits_both_ways(scores[0], scores[0], owner), hits_both_ways(scores[1], scores[2], owner)
    found = gains(before, after, owner, draws=200)
    described = [picture for picture in range(14) if picture in owner.tolist()]
    seen = []
    for often in np.random.default_rng(0).multinomial(13, np.full(13, 1 / 13), size=200):
        drawn = [picture for picture, times in zip(sorted(described, key=str), often) for _ in range(times)]
        texts = [text for picture in drawn for text in range(len(owner)) if owner[text] == picture]
        rows = {name: texts if name.startswith("t2i") else drawn for name in after}
        seen.append({name: 100 * (after[name][rows[name]].mean() - before[name][rows[name]].mean()).item() for name in after})
        seen[-1]["r_mean"] = sum(seen[-1].values()) / 6
    plain = {name: recalls(after)[name] - recalls(before)[name] for name in recalls(after)}
    for name in ("t2i_r10", "i2t_r10", "r_mean"):
        values = sorted(one[name] for one in seen)
        at = lambda q: values[int(q * 199)] + (q * 199 % 1) * (values[int(q * 199) + 1] - values[int(q * 199)])
        assert found[f"{name}_gain"] == pytest.approx(plain[name])
        assert found[f"{name}_gain_low"] == pytest.approx(at(0.025)) and found[f"{name}_gain_high"] == pytest.approx(at(0.975))
    assert len(found) == 9 and found == gains(before, after, owner, draws=200)
    assert set(gains(before, before, owner, draws=20).values()) == {0.0}


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_scores_that_are_not_finite_are_an_error(bad):
    scores = torch.eye(12)
    scores[3, 4] = bad
    with pytest.raises(FloatingPointError, match="diverged"):
        both_ways(scores, scores, torch.arange(12))


def test_a_cell_of_next_to_nothing_has_no_sign():
    assert [cell(value, 3) for value in (-1e-8, -0.0, -0.0006, 15, None, float("nan"))] == [
        "0.000", "0.000", "-0.001", "15.000", "–", "–"]
