"""Orders: every sample once an epoch, sources by weight, lengths together, regions counted exactly."""

from collections import Counter

import numpy as np
import pytest

from xtoolkit.data.errors import BadDataError
from xtoolkit.data.order import Order, sample_rng, shares
from xtoolkit.data.shuffle import permute


@pytest.mark.parametrize("n", [1, 2, 3, 17, 64, 1000, 4097])
def test_permute_is_a_permutation_that_mixes(n):
    found = permute(np.arange(n), n, key=5)
    assert sorted(found.tolist()) == list(range(n))
    assert (permute(np.array([n - 1, 0]), n, 5) == found[[n - 1, 0]]).all(), "a position alone as among others"
    if n >= 1000:
        assert (found != permute(np.arange(n), n, key=6)).mean() > 0.9
        assert abs(np.corrcoef(np.arange(n), found)[0, 1]) < 0.1
        assert abs(np.corrcoef(found[:-1], found[1:])[0, 1]) < 0.1


def samples(order, visits):
    return [(s.source, s.sample) for v in visits for s in order.slots(v)]


def test_every_sample_once_an_epoch():
    order = Order(0, "pairs", 8, [24], [1.0])
    first, second = samples(order, range(3)), samples(order, range(3, 6))
    assert sorted(first) == sorted(second) == [(0, n) for n in range(24)]
    assert first != second
    odd = Order(0, "pairs", 10, [24], [1.0])
    assert set(Counter(samples(odd, range(12))).values()) == {5}, "120 draws of 24"


def test_a_batch_is_a_function_of_seed_stream_and_visit():
    one = Order(1, "pairs", 8, [100, 50], [2.0, 1.0])
    late = one.slots(40)
    one.slots(3)
    assert one.slots(40) == late == Order(1, "pairs", 8, [100, 50], [2.0, 1.0]).slots(40)
    assert Order(2, "pairs", 8, [100, 50], [2.0, 1.0]).slots(40) != late
    assert Order(1, "web", 8, [100, 50], [2.0, 1.0]).slots(40) != late
    places = [(1, "s", 0, 0), (1, "s", 0, 1), (1, "s", 1, 0), (1, "t", 0, 0), (2, "s", 0, 0)]
    draws = {sample_rng(*place).random() for place in places}
    assert len(draws) == 5


def test_sources_are_drawn_by_weight_and_each_goes_through_its_epochs():
    order = Order(0, "pairs", 7, [10, 1000, 30], [1.0, 2.0, 0.5])
    drawn = samples(order, range(100))
    count = Counter(source for source, _ in drawn)
    assert [count[i] for i in range(3)] == pytest.approx([200, 400, 100], abs=1)
    assert set(Counter(d for d in drawn if d[0] == 0).values()) == {20}
    assert max(Counter(d for d in drawn if d[0] == 1).values()) == 1
    assert all(sum(s.source == 1 for s in order.slots(v)) in (4, 3, 5) for v in range(20)), "evenly spread"


def test_shares_grow_by_one_source_a_draw():
    before = shares(0, [5, 3, 9])
    for position in range(1, 200):
        after = shares(position, [5, 3, 9])
        assert sorted(b - a for a, b in zip(before, after)) == [0, 0, 1]
        before = after


def test_lengths_are_alike_within_a_batch_and_nothing_is_lost():
    lengths = np.random.default_rng(0).integers(1, 500, 640)
    sorted_, plain = (Order(0, "text", 16, [640], [1.0], lengths=[lengths.__getitem__], window=w) for w in (8, 1))
    for window in range(5):
        visits = range(window * 8, window * 8 + 8)
        assert sorted(samples(sorted_, visits)) == sorted(samples(plain, visits))

    def spread(order):
        return np.mean([np.ptp(lengths[[s.sample for s in order.slots(v)]]) for v in range(40)])

    assert spread(sorted_) < 0.25 * spread(plain)
    means = [lengths[[s.sample for s in sorted_.slots(v)]].mean() for v in range(8)]
    assert means != sorted(means) and means != sorted(means)[::-1], "batches of a window are not in order of length"
    alone = Order(0, "text", 16, [640], [1.0], lengths=[lengths.__getitem__], window=8)
    assert alone.slots(13) == sorted_.slots(13)


def test_region_batches_have_exactly_their_rows_and_every_element_is_offered_once_an_epoch():
    elements = np.array([0, 1, 5, 2, 3, 1, 4, 2, 6, 0])
    order = Order(0, "region", 8, [10], [1.0], elements=[elements])
    capped = np.minimum(elements, 3)  # below half a batch: at least two pictures
    offered = Counter()
    for visit in range(int(capped.sum())):
        slots = order.slots(visit)
        assert sum(s.rows for s in slots) == 8
        assert [s.row for s in slots] == np.cumsum([0] + [s.rows for s in slots])[:-1].tolist()
        assert len({s.sample for s in slots}) >= 2 and max(s.rows for s in slots) <= 3
        offered.update(s.sample for s in slots for _ in range(s.rows))
        assert order.slots(visit) == Order(0, "region", 8, [10], [1.0], elements=[elements]).slots(visit)
    assert [offered[i] for i in range(10)] == (8 * capped).tolist(), "8 epochs"


def test_the_reserve_never_draws_a_picture_without_elements():
    order = Order(0, "region", 4, [5], [1.0], elements=[np.array([0, 2, 0, 1, 0])])
    slot = order.slots(0)[0]
    assert {order.reserve(0, slot, attempt) for attempt in range(60)} == {1, 3}
    assert order.reserve(3, slot, 7) == order.reserve(3, slot, 7)


def test_nothing_to_draw_is_said():
    with pytest.raises(BadDataError, match="stream `web`: source 1 has no sample"):
        Order(0, "web", 4, [5, 0], [1.0, 1.0])
    with pytest.raises(BadDataError, match="stream `region`"):
        Order(0, "region", 4, [2], [1.0], elements=[np.zeros(2, int)])
