"""Left-to-right masked generation: who sees whom, against loops written from its definition."""

import random

import numpy as np
import pytest
import torch

from xtoolkit.data.figures import masked_samples
from xtoolkit.data.left_to_right import LeftToRight, Predicted, field, prompt_ids
from xtoolkit.data.loader import Loader
from xtoolkit.registry import DATASET_REGISTRY, ConfigError, filled

MASK, PAD = 4, 1
TEXTS = [(np.array([0, 10, 11, 12, 13, 2]), np.array([2, 5]), MASK), (np.array([0, 20, 21, 2]), np.array([1, 2, 3]), MASK)]


def test_each_mask_sees_itself_and_what_stands_before_its_token():
    made, length = field(TEXTS, PAD), 6
    assert made.ids.tolist() == [[0, 10, 11, 12, 13, 2, MASK, MASK, PAD], [0, 20, 21, 2, PAD, PAD, MASK, MASK, MASK]]
    assert made.positions[0].tolist()[:8] == [0, 1, 2, 3, 4, 5, 2, 5] and made.positions[1].tolist()[6:] == [1, 2, 3]
    assert made.labels.tolist() == [11, 2, 20, 21, 2]
    assert made.ids.flatten()[made.masked_pos].tolist() == [MASK] * 5 and made.masked_pos.tolist() == [6, 7, 15, 16, 17]
    for row, (ids, places, _) in enumerate(TEXTS):
        for at in range(len(ids)):
            assert made.attention[row, at].nonzero()[:, 0].tolist() == list(range(at + 1))
        for number, place in enumerate(places.tolist()):
            assert made.attention[row, length + number].nonzero()[:, 0].tolist() == [*range(place), length + number]
    seen = made.attention & made.mask[:, None]
    assert seen.any(2).all(), "a token that sees nothing would be NaN"
    assert made.mask.sum(1).tolist() == [8, 7]


def test_what_is_predicted_is_of_the_caption_its_end_included(tokenizer):
    drawn, how = set(), LeftToRight(prob=0.5, max=3, prompt="a red")
    predicted, prompt = Predicted(tokenizer, how, 30), prompt_ids(tokenizer, "a red")
    rng = random.Random(0)
    for _ in range(60):
        ids, places, mask = predicted("dog under the tree", rng)
        assert ids.tolist() == tokenizer.encode("a red dog under the tree") and mask == tokenizer.mask
        assert len(set(places.tolist())) == min(3, round((len(ids) - len(prompt)) * 0.5)) and (np.diff(places) > 0).all()
        drawn |= set(places.tolist())
    assert drawn == set(range(len(prompt), len(ids)))
    short = Predicted(tokenizer, LeftToRight(0.1, 18, ""), 4)("a red dog under the tree", rng)
    assert len(short[0]) == 4 and short[0][-1] == tokenizer.eos and len(short[1]) == 1
    assert len(Predicted(tokenizer, how, 4)("dog under the tree", rng)[0]) == 4 + len(prompt) - 1


def test_a_prompt_of_special_tokens_is_refused(tokenizer):
    assert prompt_ids(tokenizer, " a red ") == tokenizer.encode("a red")[:-1] and prompt_ids(tokenizer, "") == [tokenizer.bos]
    with pytest.raises(ConfigError, match="prompt `a </s> red`.*or it holds a special token; give whole words"):
        prompt_ids(tokenizer, "a </s> red")


def test_a_stream_draws_it_if_it_is_read_and_the_plan_knows_its_shape(tokenizer, pair_shards):
    cls = DATASET_REGISTRY.get("Pairs")
    block = {"type": "Pairs", "path": pair_shards, "mask": {"prob": 0.5, "max": 6}, "left_to_right": {"prompt": "a red"}}
    given = {"tokenizer": tokenizer, "image_size": 32, "patch_size": 8}
    for views in (frozenset(), frozenset({"left_to_right"})):
        batch = Loader("it", DATASET_REGISTRY.build(block, "here", views=views, **given), 4, 1, 0).at(0)
        assert (batch.text.left_to_right is not None) == bool(views) and batch.text.masked_ids is None
    figure, = masked_samples(batch, None, tokenizer, 2)
    for row, item in enumerate(figure["items"]):
        asked = [word for word, chosen, _ in item["words"] if chosen]
        width = batch.text.left_to_right.ids.shape[1]
        labels = [l for l, p in zip(batch.text.left_to_right.labels.tolist(), batch.text.left_to_right.masked_pos.tolist())
                  if p // width == row]
        assert asked == [tokenizer.decode([label]) or " (end)" for label in labels] and len(item["words"]) > len(asked)
    text, again = batch.text, Loader("it", DATASET_REGISTRY.build(block, "here", views=views, **given), 4, 1, 0).at(0).text
    made = text.left_to_right
    assert text.causal() is made and all(torch.equal(getattr(made, n), getattr(again.left_to_right, n)) for n in ("ids", "labels"))
    prompt = prompt_ids(tokenizer, "a red")
    assert made.ids[:, :len(prompt)].tolist() == [prompt] * 4
    assert text.select(torch.tensor([0])).left_to_right is None
    with torch.device("meta"):
        example = LeftToRight(prompt="a red").example(4, 12)
    assert example.ids.shape == (4, 12 + 2 + 7) and example.attention.shape == (4, 21, 21) and example.labels.shape == (28,)
    planned = cls.example(filled(cls, block | {"max_tokens": 12}), 4, {"image_size": 32, "patch_size": 8}, views)
    assert planned.text.left_to_right.ids.is_meta and planned.text.masked_ids is None
    with pytest.raises(ValueError, match="no text from left to right.*`left_to_right: {prob, max}`"):
        text.trim(3).causal()


def test_a_stream_that_does_not_say_how_it_is_drawn_is_told():
    (key, problem), = DATASET_REGISTRY.get("Pairs").check({"path": "somewhere.tar"}, frozenset({"left_to_right"}))
    assert key == "left_to_right" and "{prob: 0.6, max: 18, prompt: a picture of}" in problem
