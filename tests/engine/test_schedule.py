"""Who takes part in a step, and how often before: held against counting step by step."""

import random

import pytest

from xtoolkit.engine.schedule import BLOCK, Schedule
from xtoolkit.recipe.settings import ScheduleBlock, schedule_problems
from xtoolkit.registry import ConfigError

STREAMS = ["text", "image", "pairs", "region"]


def test_groups_keep_their_order_and_every_makes_a_stream_sit_out():
    block = ScheduleBlock(every_step=[["text"], ["region", "image"], ["pairs"]], every={"text": 2, "region": 3})
    schedule = Schedule(block, seed=0, streams=STREAMS)
    assert [schedule.groups(step) for step in range(4)] == [
        [["text"], ["region", "image"], ["pairs"]],
        [["image"], ["pairs"]],
        [["text"], ["image"], ["pairs"]],
        [["region", "image"], ["pairs"]]]


def test_how_often_a_stream_takes_part_may_change_with_the_step():
    schedule = Schedule(ScheduleBlock(every={"pairs": [[2, 3], [7, None], [9, 1]]}), 0, ["text", "pairs"])
    assert [step for step in range(12) if "pairs" in schedule.groups(step)[0]] == [2, 5, 9, 10, 11]


@pytest.mark.parametrize("block", [
    ScheduleBlock(every_step=[["text", "image"], ["pairs", "region"]], every={"text": 4, "region": 3}),
    ScheduleBlock(every={"text": [[5, 3], [700, None], [1100, 1]], "image": [[0, None], [1030, 7]], "pairs": [], "region": 1}),
    ScheduleBlock(sample={"text": 1, "image": 0.5, "pairs": 3, "region": 2})])
def test_a_visit_is_the_count_of_earlier_draws(block):
    schedule, counts, steps = Schedule(block, 7, STREAMS), dict.fromkeys(STREAMS, 0), 2 * BLOCK + 50
    expected = []
    for step in range(steps):
        expected.append(dict(counts))
        for stream in sum(schedule.groups(step), []):
            counts[stream] += 1
    # In any order, and from a schedule that has never seen the steps before.
    order = list(range(0, steps, 37)) + [BLOCK - 1, BLOCK, BLOCK + 1]
    random.Random(0).shuffle(order)
    fresh = Schedule(block, 7, STREAMS)
    for step in order:
        assert {name: fresh.visit(name, step) for name in STREAMS} == expected[step]


def test_draws_follow_weights_and_seed_and_not_the_order_of_writing():
    weights = {"text": 1, "image": 2, "pairs": 4, "region": 3}

    def draw(weights, seed):
        schedule = Schedule(ScheduleBlock(sample=weights), seed, STREAMS)
        return [schedule.groups(step)[0][0] for step in range(3000)]

    drawn = draw(weights, 1)
    for name, weight in weights.items():
        assert abs(drawn.count(name) / 3000 - weight / 10) < 0.03
    assert drawn == draw(dict(reversed(weights.items())), 1)
    assert drawn != draw(weights, 2)


@pytest.mark.parametrize("block, expected", [
    (ScheduleBlock(every_step=[["text", "imagee", "pairs", "region"]]),
     ["('every_step',)", "unknown stream `imagee`; did you mean `image`?", "`image` is never scheduled"]),
    (ScheduleBlock(every_step=[STREAMS], sample={"text": 1}), ["exclude each other"]),
    (ScheduleBlock(every_step=[STREAMS], every={"txt": 2}), ["('every', 'txt')", "`txt` stands in no group"]),
    (ScheduleBlock(every_step=[STREAMS], every=dict.fromkeys(STREAMS, 2)), ["step 1 would have no stream"]),
    (ScheduleBlock(every={"text": [[0, 1], [9, 2]], "image": 2, "pairs": [[5, 1], [9, None]], "region": 3}),
     ["('every',)", "step 10 would have no stream"]),
    (ScheduleBlock(every={"text": [[0, 1], [9, 2], [9, 3]]}), ["('every', 'text')", "must rise"]),
    (ScheduleBlock(every_step=[STREAMS, ["text"]]), ["`text` stands in 2 places"]),
    (ScheduleBlock(every_step=[STREAMS, []]), ["an empty group"]),
    (ScheduleBlock(sample=dict.fromkeys(STREAMS, 1), every={"text": 2}), ["only goes with `every_step`"]),
    (ScheduleBlock(sample={"text": 1, "image": 1, "pairs": 1}), ["`region` is never scheduled"])])
def test_mistakes_are_named(block, expected):
    found = str(schedule_problems(block, STREAMS))
    for words in expected:
        assert words in found
    with pytest.raises(ConfigError):
        Schedule(block, 0, STREAMS)


def test_a_good_block_has_no_schedule_problems():
    assert schedule_problems(ScheduleBlock(every_step=[STREAMS], every={"text": 3}), STREAMS) == []
    assert schedule_problems(ScheduleBlock(sample=dict.fromkeys(STREAMS, 1.5)), STREAMS) == []
    assert schedule_problems(ScheduleBlock(), STREAMS) == []


def test_without_a_schedule_all_streams_are_one_group():
    assert Schedule(ScheduleBlock(every={"text": 2}), 0, STREAMS).groups(1) == [["image", "pairs", "region"]]


def test_what_comes_after_the_last_step_is_not_asked_about():
    block = ScheduleBlock(every={"pairs": [[0, 1], [300, None]]})
    assert schedule_problems(block, ["pairs"], steps=300) == [] and Schedule(block, 0, ["pairs"], 300).groups(299) == [["pairs"]]
    for steps in (301, None):
        assert "step 301 would have no stream" in str(schedule_problems(block, ["pairs"], steps))
