"""Answers to questions: what the decoder starts as, what it may see, its ranking against likelihoods one by one; and classes."""

import math
from dataclasses import replace

import pytest
import torch

from xtoolkit.batch import Batch, TextField
from xtoolkit.engine.guessing import Known
from xtoolkit.features import Features
from xtoolkit.fields import AnswerField
from xtoolkit.losses.answer_classes import AnswerClassification
from xtoolkit.losses.answers import AnswerGeneration

from .tiny import VOCAB, WIDTH, Tiny, make_batch

PAD, EOS = 1, 2
WORDS = [[5], [6, 7], [6, 8, 9], [10], [6], [11, 5, 5, 5], [5, 12], [13, 14]]  # three begin alike, a word of one is a start of others


def tokens(words) -> TextField:
    ids = torch.full((len(words), max(map(len, words)) + 2), PAD)
    for row, own in enumerate(words):
        ids[row, :len(own) + 2] = torch.tensor([0, *own, EOS])
    return TextField(ids, ids != PAD)


def answers(rows=(0, 0, 1, 2, 3, 4, 5), weights=None, words=None) -> AnswerField:
    row = torch.tensor(rows)
    weight = torch.tensor(weights or [0.1 * (n + 1) for n in range(len(rows))])
    label = torch.tensor([n % 8 - (n == 3) * 4 for n in range(len(rows))])
    return AnswerField(torch.bincount(row, minlength=6), tokens((words or WORDS)[:len(rows)]), row, weight, label, 8)


class Asked:
    """A small X-FM with a decoder, and six questions."""

    def __init__(self, dtype=torch.float64):
        self.tiny = Tiny()
        torch.manual_seed(7)
        self.loss = AnswerGeneration("fusion", widths={"fusion": WIDTH}, modules=self.tiny.encoders).to(dtype)
        self.classes = AnswerClassification("fusion", 8, widths={"fusion": WIDTH}).to(dtype)
        self.tiny.encoders.to(dtype)
        pairs = make_batch("pairs")
        self.batch = Batch(text=replace(pairs.text, masked_ids=None, masked_pos=None, labels=None),
                           image=replace(pairs.image, pixels=pairs.image.pixels.to(dtype), patch_mask=None),
                           answers=replace(answers(), weight=answers().weight.to(dtype)))

    def features(self, batch=None, share=None) -> Features:
        needs = {"answer": AnswerGeneration.needs({"fusion": "fusion"}) + AnswerClassification.needs({"feature": "fusion"})}
        return Features(self.tiny.graph, self.tiny.encoders, batch or self.batch, needs, share=share).bound("answer")

    def rows(self, *rows) -> Batch:
        """Some of the questions."""
        rows = torch.tensor(rows)
        return Batch(**{name: field.select(rows) for name, field in self.batch.items()})


@pytest.fixture(scope="module")
def asked():
    return Asked()


# ---- the decoder ----------------------------------------------------------------------------------------------------------
def test_it_starts_as_the_fusion_encoder_with_the_words_of_the_text_encoder():
    tiny = Tiny()
    loss = AnswerGeneration("fusion", widths={"fusion": WIDTH}, modules=tiny.encoders)
    with torch.no_grad():  # what init brings comes after construction
        for p in (*tiny.encoders["fusion"].parameters(), *tiny.encoders["text"].parameters()):
            p.add_(1)
    loss.load_init()
    for own, source in ((loss.decoder, tiny.encoders["fusion"]), (loss.embeddings, tiny.encoders["text"].roberta.embeddings)):
        assert own.state_dict().keys() == source.state_dict().keys()
        assert all(torch.equal(a, b) and a is not b for a, b in zip(own.state_dict().values(), source.state_dict().values()))
    with torch.no_grad():
        loss.decoder.layer[0].output.dense.weight.zero_()
    assert tiny.encoders["fusion"].layer[0].output.dense.weight.any(), "a copy, not the encoder itself"


def test_some_layers_and_drawn_embeddings():
    tiny = Tiny()
    source = tiny.encoders["fusion"]
    source.layer.extend([*source.decoder().layer])
    first, spread = (AnswerGeneration("fusion", layers=2, spread=how, embeddings="drawn", widths={"fusion": WIDTH},
                                      modules=tiny.encoders) for how in (False, True))
    for part in source.layer:
        torch.nn.init.normal_(part.output.dense.weight)
    for loss, which in ((first, (0, 1)), (spread, (0, 2))):
        loss.load_init()
        assert all(torch.equal(own.output.dense.weight, source.layer[n].output.dense.weight)
                   for own, n in zip(loss.decoder.layer, which, strict=True))
        assert 0.015 < loss.embeddings.word_embeddings.weight.std() < 0.025
        assert not torch.equal(loss.embeddings.word_embeddings.weight, tiny.encoders["text"].embeddings.word_embeddings.weight)


@pytest.mark.parametrize("keys, said", [
    ({"fusion": "text"}, "`fusion: text` cannot be copied as a decoder"),
    ({"words": "vision"}, "`words: vision` has no embeddings to copy"),
    ({"words": "nothing"}, "`words: nothing` has no embeddings"),
    ({"layers": 3}, "a decoder of 3 layers cannot be copied from CrossAttention's 2"),
])
def test_what_cannot_be_a_decoder(asked, keys, said):
    with pytest.raises(ValueError, match=said):
        AnswerGeneration(**{"fusion": "fusion"} | keys, widths={"fusion": WIDTH, "text": WIDTH}, modules=asked.tiny.encoders)


def test_no_token_sees_a_later_one_and_every_part_learns(asked):
    memory = asked.features()["fusion"].select(torch.tensor([0, 0]))
    two = asked.loss.token_costs(tokens([[5, 6, 7, 8], [5, 6, 9, 10]]), memory)
    assert torch.equal(two[0, :2], two[1, :2]) and not torch.isclose(two[0, 3:], two[1, 3:]).any()
    asked.loss.zero_grad()
    asked.loss(asked.features(), asked.batch).backward()
    assert [n for n, p in asked.loss.named_parameters() if p.grad is None or not p.grad.any()] == []
    assert all(p.grad is not None and p.grad.any() for n, p in asked.tiny.encoders["vision"].named_parameters() if "qkv" in n)


# ---- the loss -------------------------------------------------------------------------------------------------------------
def by_hand(asked, batch) -> float:
    """Each answer alone, without padding."""
    total = 0.0
    for n, (row, weight) in enumerate(zip(batch["answers"].row.tolist(), batch["answers"].weight.tolist())):
        ids = batch["answers"].text.ids[n][batch["answers"].text.mask[n]][None]
        memory = asked.features()["fusion"].select(torch.tensor([row]))
        total += weight * asked.loss.token_costs(TextField(ids, torch.ones_like(ids, dtype=torch.bool)), memory).sum().item()
    return total / batch["answers"].rows


def test_loss_by_hand_and_with_more_padding(asked):
    loss = asked.loss(asked.features(), asked.batch)
    assert loss.item() == pytest.approx(by_hand(asked, asked.batch), rel=1e-10) and loss.dtype == torch.float64
    text = asked.batch["answers"].text
    wide = TextField(torch.nn.functional.pad(text.ids, (0, 3), value=PAD), torch.nn.functional.pad(text.mask, (0, 3)))
    padded = asked.batch.with_fields(answers=replace(asked.batch["answers"], text=wide))
    assert asked.loss(asked.features(padded), padded).item() == pytest.approx(loss.item(), rel=1e-10)


@pytest.mark.parametrize("name", ["loss", "classes"])
def test_parts_of_a_batch_add_up_to_it(asked, name):
    """As on two ranks, or accumulated: unequal halves, each weighted by its questions."""
    loss, whole = getattr(asked, name), getattr(asked, name)(asked.features(), asked.batch)
    parts = [asked.rows(0, 1), asked.rows(2, 3, 4, 5)]
    found = [loss(asked.features(part, share=lambda count, part=part: count(part) / 6), part) for part in parts]
    assert sum(found).item() == pytest.approx(whole.item(), rel=1e-10)


def test_guessing_by_the_frequencies_of_tokens(asked):
    kept, field = {}, asked.batch["answers"]
    for step in range(2):
        f = asked.features()
        f._known = Known("vqa", kept)
        value = asked.loss.guess(f, asked.batch).item()
        labels = [ids[mask][1:].tolist() for ids, mask in zip(field.text.ids, field.text.mask)]
        flat, d = sum(labels, []), 0.75
        p = lambda w: (flat.count(w) - d + d * len(set(flat)) / VOCAB) / len(flat) if step else 1 / VOCAB
        want = sum(weight * sum(-math.log(p(w)) for w in own) for weight, own in zip(field.weight.tolist(), labels)) / 6
        assert value == pytest.approx(want, rel=1e-6)


# ---- ranking --------------------------------------------------------------------------------------------------------------
def test_with_all_candidates_the_order_is_that_of_likelihoods(asked):
    asked.loss.eval()
    with torch.no_grad():
        found = asked.loss.rank(asked.features(), tokens(WORDS), k=len(WORDS), chunk=5)
        alone = torch.empty_like(found)
        for row in range(6):
            for column, words in enumerate(WORDS):
                memory = asked.features(asked.rows(row))["fusion"]
                alone[row, column] = -asked.loss.token_costs(tokens([words]), memory).sum()
        torch.testing.assert_close(found, alone, rtol=1e-10, atol=1e-10)
        assert torch.equal(found.argsort(1), alone.argsort(1))
        for batch, chunk in ((asked.rows(3), 512), (asked.rows(3, 0), 1)):
            torch.testing.assert_close(asked.loss.rank(asked.features(batch), tokens(WORDS), 8, chunk)[0], found[3])
        twice = asked.loss.rank(asked.features(), tokens(WORDS), k=8, score="release")
        first = torch.stack([asked.loss.token_costs(tokens(WORDS), asked.features()["fusion"].select(torch.tensor([row] * 8)))[:, 0]
                             for row in range(6)])
        torch.testing.assert_close(twice, found - first)
    asked.loss.train()


def test_fewer_candidates_are_those_with_the_likeliest_first_tokens(asked):
    with torch.no_grad():
        asked.loss.eval()
        found, whole = (asked.loss.rank(asked.features(), tokens(WORDS), k=k) for k in (3, 99))
        memory = asked.features()["fusion"]
        for row in range(6):
            first = -asked.loss.token_costs(tokens(WORDS), memory.select(torch.tensor([row] * 8)))[:, 0]
            kept = sorted(range(8), key=lambda n: (-round(first[n].item(), 9), n))[:3]
            assert found[row].isfinite().nonzero()[:, 0].tolist() == sorted(kept)
            torch.testing.assert_close(found[row, kept], whole[row, kept])
    asked.loss.train()


def test_a_question_is_projected_once_however_many_candidates_it_has(asked):
    seen = []
    hook = asked.loss.decoder.layer[1].crossattention.self.key.register_forward_hook(lambda m, i, o: seen.append(len(o)))
    with torch.no_grad():
        asked.loss.rank(asked.features(), tokens(WORDS), k=8, chunk=3)
    hook.remove()
    assert seen == [6]


# ---- classes --------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("targets", ["soft", "weights"])
def test_each_class_is_right_to_the_degree_to_which_annotators_gave_it(asked, targets):
    loss, field = asked.classes, asked.batch["answers"]
    loss.targets = targets
    value = loss(asked.features(), asked.batch)
    with torch.no_grad():
        logits, total = loss.head(asked.features()["fusion"].pooled), 0.0
    wanted = {}
    for row, label, weight in zip(field.row.tolist(), field.label.tolist(), field.weight.tolist()):
        if label >= 0:  # one is no candidate
            wanted[row, label] = weight if targets == "weights" else min(1, 0.3 * 10 * weight)
    assert len(wanted) == 6
    for row in range(6):
        for column in range(8):
            t, s = wanted.get((row, column), 0), 1 / (1 + math.exp(-logits[row, column].item()))
            total -= t * math.log(s) + (1 - t) * math.log(1 - s)
    assert value.item() == pytest.approx(total / 6, rel=1e-10)
    ranked = loss.rank(asked.features(), tokens(WORDS))
    assert torch.equal(ranked.argsort(1), logits.argsort(1)) and (ranked < 0).all()


def test_candidates_and_classes_must_be_as_many(asked):
    field = asked.batch["answers"]
    for changed, said in (({"label": None}, "its data name no `candidates`"), ({"candidates": 9}, "its data have 9 `candidates`")):
        batch = asked.batch.with_fields(answers=replace(field, **changed))
        with pytest.raises(ValueError, match="`classes: 8`, and " + said):
            asked.classes(asked.features(batch), batch)
    with pytest.raises(ValueError, match="`classes: 8`, and there are 7 candidates"):
        asked.classes.rank(asked.features(), tokens(WORDS[:7]))


def test_nothing_asks_the_device():
    made = Asked(torch.float32)
    made.loss.to("meta"), made.classes.to("meta"), made.tiny.encoders.to("meta")
    batch = made.batch.to("meta")
    for loss in (made.loss, made.classes):
        value = loss(made.features(batch), batch)
        value.backward()
        assert value.shape == ()
