"""Classification and Regression: loss, smoothing and mixing against torch and timm, guesses by hand, and labels that are wrong."""

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from xtoolkit.batch import Batch
from xtoolkit.engine.guessing import Known
from xtoolkit.features import Features
from xtoolkit.fields import LabelField
from xtoolkit.losses import classification
from xtoolkit.losses.mixing import Mix, cut, draw
from xtoolkit.registry import ConfigError

from .tiny import SIDE, Tiny, make_batch

LOSSES = {"cls": {"type": "Classification", "features": "fusion", "classes": 4},
          "smooth": {"type": "Classification", "features": ["text", "vision"], "classes": 4, "head": "mlp", "smoothing": 0.1},
          "mixed": {"type": "Classification", "features": "vision", "classes": 4, "smoothing": 0.1, "mixup": 0.8, "cutmix": 1.0},
          "value": {"type": "Regression", "features": "text"}}
LABELS = torch.tensor([2, 0, 3, 2, 1, 2])


@pytest.fixture(scope="module")
def model():
    return Tiny(losses=LOSSES)


def batch(label=LABELS, classes=4):
    return make_batch("pairs").with_fields(label=LabelField(label, classes and tuple(map(str, range(classes)))))


def targets():
    return batch(torch.tensor([0.0, 5.0, 2.5, 1.0, 4.0, 3.0]), None)


def free(model, one):
    """The features of a batch, which anybody may read."""
    return Features(model.graph, model.encoders, one)


def test_the_loss_is_torch_s(model):
    one = batch()
    f = free(model, one)
    told = model.losses["cls"].head(f["fusion"].pooled)
    value, log = model.run(one, "cls")
    assert value["cls"].item() == pytest.approx(F.cross_entropy(told, LABELS).item(), rel=1e-6)
    assert log["cls.accuracy"].item() == pytest.approx((told.argmax(1) == LABELS).float().mean().item())
    told = model.losses["smooth"].head(torch.cat([f["text"].pooled, f["vision"].pooled], 1))
    assert model.run(one, "smooth")[0]["smooth"].item() == pytest.approx(F.cross_entropy(told, LABELS, label_smoothing=0.1).item(), rel=1e-6)
    told = model.losses["value"].head(f["text"].pooled)[:, 0]
    assert model.run(targets(), "value")[0]["value"].item() == pytest.approx(F.mse_loss(told, targets()["label"].value).item(), rel=1e-6)


@pytest.mark.parametrize("loss", LOSSES)
def test_a_batch_is_the_mean_of_its_rows_and_padding_changes_nothing(model, loss):
    one = targets() if loss == "value" else batch()
    model.losses.eval()
    whole = model.run(one, loss)[0][loss].item()
    rows = [one.with_fields(**{name: field.select(torch.tensor([row])) for name, field in one.fields.items()}) for row in range(6)]
    assert whole == pytest.approx(np.mean([model.run(row, loss)[0][loss].item() for row in rows]), rel=1e-5)
    text = one.text
    wide = lambda t, value: F.pad(t, (0, 4), value=value)
    padded = one.with_fields(text=replace(text, ids=wide(text.ids, 1), mask=wide(text.mask, False), masked_ids=None,
                                          masked_pos=None, labels=None))
    assert model.run(padded, loss)[0][loss].item() == pytest.approx(whole, rel=1e-5)
    model.losses.train()


@pytest.mark.parametrize("drawn", [Mix(0.3), cut(0.4, SIDE, SIDE, 9, 20), cut(0.1, SIDE, SIDE, 0, SIDE - 1), cut(1.0, SIDE, SIDE, 4, 4)])
def test_mixed_pictures_and_labels_are_timm_s(model, drawn, monkeypatch):
    from timm.data import mixup as timm_mixup

    monkeypatch.setattr(classification, "draw", lambda *given: drawn)
    theirs = timm_mixup.Mixup(mixup_alpha=0 if drawn.box else 1, cutmix_alpha=1 if drawn.box else 0, label_smoothing=0.1, num_classes=4)
    monkeypatch.setattr(theirs, "_params_per_batch", lambda: (drawn.own, bool(drawn.box)))
    if drawn.box:
        top, bottom, left, right = drawn.box
        monkeypatch.setattr(timm_mixup, "rand_bbox", lambda *given, **more: (top, bottom, left, right))
    one = batch()
    pixels, target = theirs(one.image.pixels.clone(), LABELS)
    f = free(model, one.with_fields(image=replace(one.image, pixels=pixels)))
    told = model.losses["mixed"].head(f["vision"].pooled)
    want = -(target * told.log_softmax(1)).sum(1).mean()
    assert torch.allclose(drawn.pixels(one.image.pixels), pixels, atol=1e-6)
    assert model.run(one, "mixed")[0]["mixed"].item() == pytest.approx(want.item(), rel=1e-5)


def test_boxes_are_those_of_timm(monkeypatch):
    from timm.data.mixup import cutmix_bbox_and_lam

    for trial in range(200):
        share, (y, x) = np.random.default_rng(trial).random(), np.random.default_rng(trial).integers(0, 31, 2)
        points = iter([y, x])
        monkeypatch.setattr(np.random, "randint", lambda *given, **more: next(points))
        (top, bottom, left, right), own = cutmix_bbox_and_lam((3, 31, 33), share)
        assert cut(share, 31, 33, int(y), int(x)) == Mix(pytest.approx(own), (top, bottom, left, right))


def test_what_is_drawn():
    torch.manual_seed(0)
    found = [draw(20, 20, 0.8, 1.0, 0.75, 0.4) for _ in range(4000)]
    mixed = [one for one in found if one != Mix()]
    assert len(mixed) / 4000 == pytest.approx(0.75, abs=0.03)
    assert sum(one.box is not None for one in mixed) / len(mixed) == pytest.approx(0.4, abs=0.03)
    shares = torch.tensor([one.own for one in mixed if one.box is None])
    assert shares.mean().item() == pytest.approx(0.5, abs=0.02)
    assert shares.var().item() == pytest.approx(1 / (4 * (2 * 0.8 + 1)), abs=0.01)  # of Beta(0.8, 0.8)
    assert all(draw(20, 20, 0.0, 1.0, 1.0, 0.0).box for _ in range(50)) and not any(draw(20, 20, 1.0, 0.0, 1.0, 1.0).box for _ in range(50))
    state = torch.get_rng_state()
    torch.manual_seed(3)
    first = draw(20, 20, 0.8, 1.0, 1.0, 0.5)
    torch.manual_seed(3)
    assert draw(20, 20, 0.8, 1.0, 1.0, 0.5) == first
    torch.set_rng_state(state)


def test_in_eval_mode_nothing_is_mixed_and_gradients_reach_the_encoder(model):
    one = batch()
    value = model.run(one, "mixed")[0]["mixed"]
    value.backward()
    assert model.encoders["vision"].patch_embed.proj.weight.grad.abs().sum() > 0
    model.losses["mixed"].eval()
    told = model.losses["mixed"].head(free(model, one)["vision"].pooled)
    want = F.cross_entropy(told, LABELS, label_smoothing=0.1)
    assert model.run(one, "mixed")[0]["mixed"].item() == pytest.approx(want.item(), rel=1e-5)
    model.losses["mixed"].train()


def guess(model, one, name, known=None):
    f = model.features(one, [name])
    f._known = known
    with torch.no_grad():
        model.losses[name](f.bound(name), one)
        return model.losses[name].guess(f.bound(name), one).item()


def test_guesses(model):
    """The classes seen so far, discounted (tests/losses/test_guesses.py); then smoothed as labels are. Regression: the variance."""
    known = Known("pairs", {})
    assert guess(model, batch(), "cls", known) == pytest.approx(np.log(4), rel=1e-6)
    counts, d = np.bincount(LABELS), 0.75
    for name in ("cls", "smooth"):
        known, s = Known("pairs", {f"pairs.{name}": torch.tensor(counts)}), {"cls": 0, "smooth": 0.1}[name]
        q = (1 - s) * (np.maximum(counts - d, 0) + d * (counts > 0).sum() / 4) / counts.sum() + s / 4
        target = (1 - s) * np.eye(4)[LABELS] + s / 4
        assert guess(model, batch(), name, known) == pytest.approx(-(target * np.log(q)).sum(1).mean(), rel=1e-6)
    assert guess(model, targets(), "value") == pytest.approx(np.var(targets()["label"].value.numpy()), rel=1e-6)


@pytest.mark.parametrize("loss, label, classes, message", [
    ("cls", LABELS + 1, None, "the label 4 is none of the 4 classes, 0 to 3"),
    ("cls", LABELS - 1, None, "the label -1 is none of the 4 classes, 0 to 3; -1 is a sample without a label"),
    ("cls", LABELS, 7, "`classes: 4`, and the data have 7 .*: set `classes: 7`"),
    ("cls", LABELS.float(), None, "targets of regression: give the data `classes`"),
    ("value", LABELS, 4, "the labels are classes: give the data `classes: null`"),
    ("value", LABELS / 0.0, None, "a target is no number")])
def test_wrong_labels_are_one_clear_error(model, loss, label, classes, message):
    with pytest.raises(ConfigError, match=message):
        model.run(batch(label, classes), loss)


def test_a_device_is_asked_nothing(model):
    other = Tiny(losses=LOSSES).to("meta")
    values, _ = other.run(batch().to("meta"), "cls", "smooth", "mixed")
    sum(values.values()).backward()
    other.run(targets().to("meta"), "value")[0]["value"].backward()


@pytest.mark.parametrize("block, message", [
    ({"features": ["vision", "text"], "mixup": 0.8}, "mix the pictures of one feature; `features` name 2"),
    ({"features": ["vision", "text"], "head": "release5"}, "head: release5 reads one feature"),
    ({"features": "vision", "classes": 1}, "`classes` of Classification must be an integer of at least 2, not 1"),
    ({"features": "vision", "head": "lin"}, "`head` of Classification must be one of linear, mlp, release5, not 'lin'"),
    ({"features": "vision", "smoothing": 1.0}, "`smoothing` of Classification must be a number of at least 0 and below 1")])
def test_wrong_blocks(block, message):
    with pytest.raises(ConfigError, match=message):
        Tiny(losses={"wrong": {"type": "Classification", "classes": 4} | block})


def test_only_pictures_that_an_encoder_reads_itself_are_mixed():
    made = Tiny(losses={"wrong": {"type": "Classification", "features": "fusion", "classes": 4, "mixup": 0.8}})
    with pytest.raises(ConfigError, match="`fusion` reads text, image, of which 0 are pictures"):
        made.run(batch(), "wrong")


def test_frozen_features_give_the_same_loss_and_only_the_head_learns():
    block = {"type": "Classification", "features": "vision", "classes": 4, "head": "release5", "smoothing": 0.1}
    made = Tiny(losses={"probe": block | {"frozen": True}, "free": block})
    made.losses["free"].load_state_dict(made.losses["probe"].state_dict())
    (one, _), (other, _) = made.run(batch(), "probe"), made.run(batch(), "free")
    assert one["probe"].item() == pytest.approx(other["free"].item(), rel=1e-6)
    moved = lambda value: {n for n, p in made.parameters().items() if (g := torch.autograd.grad(
        value, p, retain_graph=True, allow_unused=True)[0]) is not None and g.abs().max() > 0}
    assert moved(one["probe"]) == {n for n in made.parameters() if n.startswith("losses.probe.")}
    assert any(n.startswith("encoders.vision.") for n in moved(other["free"]))
    with pytest.raises(ConfigError, match="`frozen`: pictures that are mixed are encoded anew"):
        Tiny(losses={"probe": block | {"frozen": True, "mixup": 0.8}})
