"""ITM: one pass equals the release's two, negatives are drawn by their weights and never illegally."""

import math
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from xtoolkit.encoders.similarity import Scores

from .tiny import Tiny, make_batch


@pytest.fixture(scope="module")
def model():
    return Tiny()


def plain_head(x, head):
    """Linear, LayerNorm, exact GELU, Linear of summaries (K, D), in float64."""
    x = x.double() @ head[0].weight.double().T + head[0].bias.double()
    mean = x.mean(1, keepdim=True)
    x = (x - mean) / torch.sqrt(((x - mean) ** 2).mean(1, keepdim=True) + 1e-5)
    x = x * head[1].weight.double() + head[1].bias.double()
    x = x * 0.5 * (1 + torch.erf(x / math.sqrt(2)))
    return x @ head[3].weight.double().T + head[3].bias.double()


def logistic(logits, label):
    """-log softmax(logits)[label] of each row, as a list."""
    return [math.log(math.exp(a) + math.exp(b)) - (a, b)[label] for a, b in logits.tolist()]


def released(model, batch, image, text, kept):
    """Two passes, B positives and 2B negatives, on tokens copied row by row. ``kept``: rows whose negatives count."""
    f = model.features(batch).bound("itm")
    slots = f.inputs("fusion")
    t, v = slots["text"], slots["image"]
    fuse = lambda a, b: model.encoders["fusion"](view=None, text=a, image=b).tokens[:, 0]
    positive = fuse(t, v)
    copies = type(t).cat
    negative = fuse(copies([t, t.select(text)]), copies([v.select(image), v]))
    head = model.losses["itm"].head
    terms = logistic(plain_head(positive, head), 1)
    terms += [x for x, k in zip(logistic(plain_head(negative, head), 0), kept.tolist() * 2) if k]
    return sum(terms) / len(terms), len(terms)


@pytest.mark.parametrize("stream", ["pairs", "region"])
@torch.no_grad()
def test_one_pass_equals_the_two_of_the_release(model, stream):
    batch, loss = make_batch(stream), model.losses["itm"]
    torch.manual_seed(5)
    image, text, legal = loss.draw(model.features(batch).bound("itm")["sim"], batch)
    assert legal.all() and (image != torch.arange(batch.size)).all() and (text != torch.arange(batch.size)).all()
    torch.manual_seed(5)
    value = model.run(batch, "itm")[0]["itm"].item()
    want, count = released(model, batch, image, text, legal)
    assert count == 3 * batch.size
    assert value == pytest.approx(want, rel=1e-5)


@torch.no_grad()
def test_rows_without_a_legal_negative_keep_only_their_positive(model):
    # Rows 0 to 4 have one text, and row 4's picture is row 5's: rows 0 to 3 may draw row 5 and it them, row 4 nobody.
    batch = make_batch("pairs", duplicates=[(0, i) for i in range(1, 5)])
    key = batch.image.key.clone()
    key[4] = key[5]
    batch, loss = batch.with_fields(image=replace(batch.image, key=key)), model.losses["itm"]
    torch.manual_seed(5)
    image, text, legal = loss.draw(model.features(batch).bound("itm")["sim"], batch)
    assert legal.tolist() == [True, True, True, True, False, True]
    assert image[:4].tolist() == text[:4].tolist() == [5] * 4 and image[5] < 4 and text[5] < 4
    torch.manual_seed(5)
    values, log = model.run(batch, "itm")
    want, count = released(model, batch, image, text, legal)
    assert count == 6 + 2 * 5
    assert values["itm"].item() == pytest.approx(want, rel=1e-5)
    assert (log["itm.accuracy"].item() * count) == pytest.approx(round(log["itm.accuracy"].item() * count), abs=1e-4)


@torch.no_grad()
def test_no_legal_negative_at_all_leaves_the_positives(model):
    batch = make_batch("pairs")
    batch = batch.with_fields(text=replace(batch.text, key=torch.zeros(6, dtype=torch.long)))
    own = torch.arange(6)
    want, count = released(model, batch, own, own, torch.zeros(6, dtype=torch.bool))
    assert count == 6 and model.run(batch, "itm")[0]["itm"].item() == pytest.approx(want, rel=1e-5)


def scores_of(matrix, first=0):
    """Scores with ``matrix`` (images by texts) as local block, among columns of other ranks that would win any draw."""
    wide = torch.full((len(matrix), first + 2 * len(matrix)), 50.0)
    i2t, t2i = wide.clone(), wide.clone()
    i2t[:, first:first + len(matrix)], t2i[:, first:first + len(matrix)] = matrix, matrix.T
    return Scores(i2t, t2i, first, torch.ones(1))


@pytest.mark.parametrize("first", [0, 6])
def test_illegal_negatives_are_never_drawn(model, first):
    # The illegal ones are by far the likeliest: a row's own partner, the same picture (0, 3), the same text (1, 4).
    batch, loss = make_batch("pairs", duplicates=[(1, 4)]), model.losses["itm"]
    key = batch.image.key.clone()
    key[3] = key[0]
    batch = batch.with_fields(image=replace(batch.image, key=key))
    illegal = {(i, i) for i in range(6)} | {(0, 3), (3, 0), (1, 4), (4, 1)}
    matrix = torch.randn(6, 6)
    for i, j in illegal:
        matrix[i, j] = 30.0
    seen = set()
    for _ in range(1000):
        image, text, legal = loss.draw(scores_of(matrix, first), batch)
        assert legal.all()
        seen |= set(enumerate(image.tolist())) | set(enumerate(text.tolist()))
    assert seen == {(i, j) for i in range(6) for j in range(6)} - illegal


def test_ignore_same_off_draws_duplicates_but_never_the_own_partner():
    block = {"type": "ITM", "fusion": "fusion", "negatives": "sim", "ignore_same": False}
    loss, batch = Tiny(losses={"itm": block}).losses["itm"], make_batch("pairs", duplicates=[(1, 4)])
    scores = scores_of(10 * torch.eye(6) + 5 * torch.eye(6)[[0, 4, 2, 3, 1, 5]])
    drawn = [loss.draw(scores, batch)[0] for _ in range(50)]
    assert any(d[1] == 4 for d in drawn) and all((d != torch.arange(6)).all() for d in drawn)


@pytest.mark.parametrize("smoothing, training, added", [(1e-5, True, 1e-5), (0.5, True, 0.5), (0.5, False, 1e-5)])
def test_negatives_follow_their_weights(smoothing, training, added):
    """Images by the text-to-image scores, texts by the image-to-text scores: softmax over the block, + smoothing in training."""
    block = {"type": "ITM", "fusion": "fusion", "negatives": "sim", "smoothing": smoothing}
    loss, matrix = Tiny(losses={"itm": block}).losses["itm"].train(training), 2 * torch.randn(3, 3)
    batch = SimpleNamespace(size=3, device=torch.device("cpu"), same_rows=lambda: torch.zeros(3, 3, dtype=torch.bool))
    counts = {"image": torch.zeros(3, 3), "text": torch.zeros(3, 3)}
    draws = 4000
    for _ in range(draws):
        image, text, _ = loss.draw(scores_of(matrix), batch)
        counts["image"][torch.arange(3), image] += 1
        counts["text"][torch.arange(3), text] += 1
    for name, block in (("image", matrix.T), ("text", matrix)):
        weight = (block.double().softmax(1) + added).fill_diagonal_(0)
        want = weight / weight.sum(1, keepdim=True)
        assert ((counts[name] / draws - want).abs() < 0.04).all()  # five standard deviations


def test_a_nan_among_the_scores_does_not_stop_the_draw(model):
    """It reaches the loss through the features instead, where the finite check names it."""
    batch, matrix = make_batch("pairs"), torch.randn(6, 6)
    matrix[2] = math.nan
    image, text, _ = model.losses["itm"].draw(scores_of(matrix), batch)
    assert ((0 <= image) & (image < 6)).all() and ((0 <= text) & (text < 6)).all()
    assert (text != torch.arange(6)).all() and (image != torch.arange(6)).all()


def test_the_scores_are_read_without_a_graph(model):
    """Where ITM alone reads them, on pairs or regions, nothing below them is differentiated for it."""
    for fields in ({"text", "image"}, {"text", "image", "region"}):
        passes = model.graph.passes({"itm": model.needs["itm"]}, frozenset(fields))
        assert {p.node.encoder for p in passes if p.graph} == {"fusion", "vision"}


def test_accuracy_counts_right_answers():
    model = Tiny()
    with torch.no_grad():  # always says: no pair, which is right for two rows of three
        model.losses["itm"].head[3].weight.zero_()
        model.losses["itm"].head[3].bias.copy_(torch.tensor([1.0, 0.0]))
    assert model.run(make_batch("pairs"), "itm")[1]["itm.accuracy"].item() == pytest.approx(2 / 3)


@torch.no_grad()
def test_match_is_the_head_on_the_summary(model):
    fused = model.features(make_batch("pairs")).bound("imlm")["fusion@mask_text"]
    logits = model.losses["itm"].match(fused)
    assert logits.shape == (6, 2)
    want = plain_head(fused.pooled, model.losses["itm"].head)
    torch.testing.assert_close(logits.double(), want, rtol=1e-5, atol=1e-6)


def test_the_head_has_the_released_names_and_shapes(model):
    shapes = {n: tuple(p.shape) for n, p in model.losses["itm"].named_parameters()}
    assert shapes == {"head.0.weight": (64, 32), "head.0.bias": (64,), "head.1.weight": (64,), "head.1.bias": (64,),
                      "head.3.weight": (2, 64), "head.3.bias": (2,)}


def test_the_picture_s_keys_and_values_are_projected_once(model, monkeypatch):
    """Over ITM's three passes' worth of rows and IMLM's, each image of a pair is projected once a layer."""
    layer, seen = model.encoders["fusion"].layer[0].crossattention.self.key, []
    forward = type(layer).forward
    monkeypatch.setattr(layer, "forward", lambda x: seen.append(x.shape[0]) or forward(layer, x))
    model.run(make_batch("pairs"), "itm", "imlm")
    assert seen == [6]


class Stub:
    """Features of a fusion encoder that ITM does not know how to feed."""

    def __getitem__(self, ref):
        return scores_of(torch.randn(6, 6))

    def inputs(self, encoder):
        return {"text": None, "image": None, "sound": None}


def test_a_fusion_encoder_with_other_slots_is_refused(model):
    with pytest.raises(ValueError, match="slots `text` and `image`.*`fusion` has: text, image, sound"):
        model.losses["itm"](Stub(), make_batch("pairs"))
