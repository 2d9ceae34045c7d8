"""Orders that go by shards: each sample once an epoch, each shard in one stretch of it, and neighbours mixed."""

from collections import Counter

import numpy as np
import pytest

from xtoolkit.data.order import Order
from xtoolkit.data.shuffle import Mixed, Windowed

COUNTS = [7, 0, 12, 5, 9, 1, 0, 30, 4, 8, 6]  # samples of each shard
FIRSTS = np.cumsum([0, *COUNTS])


def shard(sample):
    return int(np.searchsorted(FIRSTS, sample, side="right")) - 1


@pytest.mark.parametrize("window", [1, 2, 3, 11, 50])
def test_an_epoch_has_each_sample_once_and_leaves_a_shard_for_good(window):
    order = Windowed(COUNTS, window)
    samples = order.samples(0, order.size, key=3).tolist()
    assert sorted(samples) == list(range(sum(COUNTS)))
    pieces = np.concatenate([order.samples(a, min(a + 7, order.size), 3) for a in range(0, order.size, 7)])
    assert pieces.tolist() == samples, "the same in pieces"
    ends = order.ends(3).tolist()
    for block, (begin, end) in enumerate(zip([0, *ends], ends)):
        members = order.shards(block, 3)
        assert len(members) <= window
        assert {shard(s) for s in samples[begin:end]} == {m for m in members if COUNTS[m]}
    assert order.samples(0, order.size, key=4).tolist() != samples


def test_shards_of_a_window_are_mixed_and_the_order_of_shards_is_drawn():
    order = Windowed([100] * 40, 4)
    samples = order.samples(0, 400, 1)
    shards = [shard_of // 100 for shard_of in samples.tolist()]
    assert len(set(shards)) == 4 and all(60 < len(set(samples[i:i + 100] % 100)) for i in (0, 100, 200, 300))
    assert all(15 <= n <= 35 for n in Counter(shards[:100]).values()), "about as many of each in any stretch"
    assert [order.shards(b, 1) for b in range(10)] != [order.shards(b, 2) for b in range(10)]
    assert sorted(s for b in range(10) for s in order.shards(b, 1)) == list(range(40))


def test_a_spare_comes_from_the_same_window_and_from_the_next_where_ten_failed():
    order = Windowed(COUNTS, 3)
    ends = order.ends(5).tolist()
    for place in (0, 20, 60, order.size - 1):
        sample = int(order.samples(place, place + 1, 5)[0])
        block = int(np.searchsorted(ends, place, side="right"))
        for attempt in range(40):
            members = order.shards((block + attempt // 10) % len(ends), 5)
            assert shard(order.replacement(sample, 5, 1234567 * attempt, attempt)) in members
    assert Mixed(10).replacement(3, 5, 27, 0) == 7


def orders(**more):
    return [Order(1, "s", 8, [sum(COUNTS)], [1.0], shuffles=[Windowed(COUNTS, 2)], **more) for _ in range(2)]


def shards_of(order, visit, counts):
    return {int(np.searchsorted(np.cumsum(counts), s.sample, side="right")) for s in order.slots(visit)}


def test_a_visit_says_which_shards_it_reads_and_which_come_next():
    elements = np.random.default_rng(0).integers(0, 4, sum(COUNTS))
    for more in ({}, {"lengths": [lambda samples: samples], "window": 3}, {"elements": [elements]}):
        order, other = orders(**more)
        for visit in range(40):
            assert shards_of(order, visit, COUNTS) <= set(order.shards(visit)[0])
        assert other.slots(33) == order.slots(33)
    even = Order(1, "s", 8, [200], [1.0], shuffles=[Windowed([20] * 10, 2)])
    for visit in range(40):
        listed, = even.shards(visit)
        both = shards_of(even, visit, [20] * 10) | shards_of(even, visit + 1, [20] * 10)
        assert both <= set(listed), "what comes next too"
        assert len(listed) in (4, 6)
    assert Order(1, "s", 8, [100], [1.0]).shards(3) == [[]], "nothing is fetched ahead where all is mixed"


def test_regions_by_shards_offer_every_element_once_an_epoch():
    elements = np.random.default_rng(1).integers(0, 4, sum(COUNTS))
    order, _ = orders(elements=[elements])
    offered = Counter()
    for visit in range(int(elements.sum())):
        slots = order.slots(visit)
        assert sum(s.rows for s in slots) == 8 and elements[order.reserve(visit, slots[0], 3)] > 0
        for slot in slots:
            offered[slot.sample] += slot.rows
    assert [offered[i] for i in range(sum(COUNTS))] == (8 * elements).tolist(), "8 epochs"


def test_pieces_of_an_epoch_do_not_show(monkeypatch):
    elements = np.random.default_rng(2).integers(0, 4, 5000)
    whole = Order(1, "s", 64, [5000], [1.0], elements=[elements])
    expected = [whole.slots(v) for v in range(0, 300, 7)]
    monkeypatch.setattr("xtoolkit.data.order.PIECE", 97)
    small = Order(1, "s", 64, [5000], [1.0], elements=[elements])
    assert [small.slots(v) for v in range(0, 300, 7)] == expected
