"""The line of guessing of each loss, against what a float64 loop over the batch says it is."""

import importlib.util
import math
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import count
from pathlib import Path

import pytest
import torch

from xtoolkit.batch import Batch
from xtoolkit.engine.guessing import Known

from .tiny import PATCH, VOCAB, Tiny, make_batch

DUPLICATES = [(0, 1), (0, 2)]
SIGLIP = Path(__file__).resolve().parents[2] / "plugins/siglip.py"


@pytest.fixture(scope="module")
def model():
    return Tiny(losses={"pixels": {"type": "MIM", "feature": "vision@mask_image", "target": "$image"},
                        "patches": {"type": "MIM", "feature": "vision@mask_image", "target": "vision", "summary": False}})


def guess(model, batch, name, known=None):
    """What the guess of a loss is, asked as a training step asks."""
    f = model.features(batch, [name])
    f._known = known
    with torch.no_grad():
        model.losses[name](f.bound(name), batch)
        return model.losses[name].guess(f.bound(name), batch), f


def entropy(*shares):
    return -sum(p * math.log(p) for p in shares if p)


def others(batch):
    """For each row how many rows differ from it in picture and in text."""
    text, image = batch.text.key.tolist(), (batch.region or batch.image).key.tolist()
    return [sum(text[i] != text[j] and image[i] != image[j] for j in range(len(text))) for i in range(len(text))]


@pytest.mark.parametrize("stream", ["pairs", "region"])
@pytest.mark.parametrize("duplicates", [(), DUPLICATES])
def test_itc_guesses_among_the_candidates_of_a_row(model, stream, duplicates):
    batch = make_batch(stream, duplicates=duplicates)
    rows = others(batch)
    assert guess(model, batch, "itc")[0].item() == pytest.approx(sum(math.log(1 + n) for n in rows) / len(rows), rel=1e-6)


def test_itm_guesses_by_the_share_of_pairs(model):
    assert guess(model, make_batch("pairs"), "itm")[0].item() == pytest.approx(0.6365, abs=1e-4)
    batch = make_batch("pairs", duplicates=[(0, i) for i in range(1, 5)])
    key = batch.image.key.clone()
    key[4] = key[5]  # rows 0 to 3 may draw row 5 and it them, row 4 nobody
    batch = batch.with_fields(image=replace(batch.image, key=key))
    legal = sum(n > 0 for n in others(batch))
    assert legal == 5
    share = 6 / (6 + 2 * legal)
    assert guess(model, batch, "itm")[0].item() == pytest.approx(entropy(share, 1 - share), rel=1e-6)
    nobody = make_batch("pairs", duplicates=[(0, i) for i in range(1, 6)])
    assert guess(model, nobody, "itm")[0].item() == 0


@pytest.mark.parametrize("name, stream", [("mlm", "text"), ("imlm", "pairs")])
def test_words_are_guessed_by_their_frequencies_so_far(model, name, stream):
    kept, seen = {}, Counter()
    for step in range(4):
        batch = make_batch(stream, seed=step)
        n, d = sum(seen.values()), 0.75
        p = lambda w: (max(seen[w] - d, 0) + d * len(seen) / VOCAB) / n if n else 1 / VOCAB
        assert sum(p(w) for w in range(VOCAB)) == pytest.approx(1)
        labels = batch.text.labels.tolist()
        want = -sum(math.log(p(w)) for w in labels) / len(labels)
        assert guess(model, batch, name, Known(stream, kept))[0].item() == pytest.approx(want, rel=1e-6)
        for ids, mask in zip(batch.text.ids.tolist(), batch.text.mask.tolist()):
            seen.update(ids[1:sum(mask) - 1])
    assert kept[f"{stream}.{name}"].tolist() == [seen[w] for w in range(VOCAB)]
    assert not {0, 1, 2} & set(seen)


def test_frequencies_tend_to_the_entropy(model):
    """A thousand batches of one word in four and three in a twelfth each."""
    torch.manual_seed(0)
    shares, kept = torch.tensor([0.75, 0.25 / 3, 0.25 / 3, 0.25 / 3]), {}
    for step in range(1000):
        f = model.features(make_batch("text"), ["mlm"]).bound("mlm")
        f._known = Known("text", kept)
        frequencies = f.frequencies(shares.multinomial(20, replacement=True), 50)
    assert -(shares.double() * frequencies[:4].log()).sum().item() == pytest.approx(entropy(*shares.tolist()), abs=2e-3)


def test_a_batch_that_asks_for_no_word_costs_nothing(model):
    batch = make_batch("text")
    none = replace(batch.text, masked_pos=batch.text.masked_pos[:0], labels=batch.text.labels[:0])
    assert guess(model, batch.with_fields(text=none), "mlm", Known("text", {}))[0].item() == 0


def variance(rows):
    """Mean over rows and channels of the squared distance to the rows' mean, (K, D), in float64."""
    rows = rows.double()
    return (rows - rows.mean(0)).square().mean().item()


@pytest.mark.parametrize("stream", ["image", "pairs"])
def test_mim_guesses_the_mean_target(model, stream):
    batch = make_batch(stream)
    value, f = guess(model, batch, "mim")
    target, mask = f.bound("mim")["vision"].tokens, batch.image.patch_mask
    patches = variance(target[:, 1:][mask])
    assert value.item() == pytest.approx(patches + variance(target[:, 0]), rel=1e-5)
    assert f.logged["mim.summary.guess"].item() == pytest.approx(variance(target[:, 0]), rel=1e-5)
    assert guess(model, batch, "patches")[0].item() == pytest.approx(patches, rel=1e-5)


def test_mim_guesses_the_mean_pixels(model):
    batch = make_batch("image")
    rows = []
    for picture, mask in zip(batch.image.pixels.double(), batch.image.patch_mask):
        squares = picture.unfold(1, PATCH, PATCH).unfold(2, PATCH, PATCH).permute(1, 2, 3, 4, 0).flatten(0, 1).flatten(1)
        rows += [(s - s.mean()) / (s.var() + 1e-6).sqrt() for s in squares[mask]]
    assert guess(model, batch, "pixels")[0].item() == pytest.approx(variance(torch.stack(rows)), rel=1e-5)


def box_cost(a, b):
    """(L1, 1 - GIoU) of two boxes cx, cy, w, h."""
    edges = lambda box: [box[0] - box[2] / 2, box[1] - box[3] / 2, box[0] + box[2] / 2, box[1] + box[3] / 2]
    p, q = edges(a), edges(b)
    area = lambda low, high: max(high[0] - low[0], 0) * max(high[1] - low[1], 0)
    both = area([max(p[i], q[i]) for i in (0, 1)], [min(p[i], q[i]) for i in (2, 3)])
    either = area(p[:2], p[2:]) + area(q[:2], q[2:]) - both
    hull = area([min(p[i], q[i]) for i in (0, 1)], [max(p[i], q[i]) for i in (2, 3)])
    return sum(abs(x - y) for x, y in zip(a, b)), 1 - both / either + (hull - either) / hull


def test_bbp_guesses_one_box(model):
    batch = make_batch("region")
    boxes = batch.region.box[batch.region.is_box].double().tolist()
    mean = [sum(column) / len(boxes) for column in zip(*boxes)]
    costs = []
    for size in (1, 1.1, 1.25):
        each = [box_cost([*mean[:2], size * mean[2], size * mean[3]], box) for box in boxes]
        costs.append([sum(column) / len(boxes) for column in zip(*each)])
    l1, giou = min(costs, key=sum)
    value = guess(model, batch, "bbp")[0]
    assert value["l1"].item() == pytest.approx(l1, rel=1e-5) and value["giou"].item() == pytest.approx(giou, rel=1e-5)
    none = batch.with_fields(region=replace(batch.region, is_box=torch.zeros(7, dtype=torch.bool)))
    assert sum(guess(model, none, "bbp")[0].values()).item() == 0


class OfTwo(Known):
    """What one of two ranks knows, each a thread of its own: sums wait for the other."""

    def __init__(self, stream, rank, brought, both):
        super().__init__(stream, {})
        self.rank, self.brought, self.both = rank, brought, both

    def total(self, values):
        self.brought[self.rank] = values
        self.both.wait(30)
        found = self.brought[0] + self.brought[1]
        self.both.wait(30)
        return found


@pytest.mark.parametrize("name, stream", [("mim", "image"), ("itm", "pairs")])
def test_two_ranks_guess_as_one(model, name, stream):
    """Means over the rows of both ranks, not of each: targets and shares that differ between them cost more together."""
    batch, rows = make_batch(stream), make_batch(stream).size // 2
    masks = batch.image.patch_mask
    halves = [Batch(**{n: replace(field, **{k: v[at] for k, v in vars(field).items() if isinstance(v, torch.Tensor) and len(v) == 2 * rows})
                       for n, field in batch.items()}) for at in (slice(rows), slice(rows, None))]
    assert masks.sum(1).unique().numel() == 1  # as many masked patches on each rank: their share of the mean is the same
    brought, both = {}, threading.Barrier(2)
    with ThreadPoolExecutor(2) as pool:
        asked = [pool.submit(guess, model, half, name, OfTwo(stream, rank, brought, both)) for rank, half in enumerate(halves)]
        values = [one.result()[0].item() for one in asked]
    whole = guess(model, batch, name)[0].item()
    assert sum(values) / 2 == pytest.approx(whole, rel=1e-5)
    alone = sum(guess(model, half, name)[0].item() for half in halves) / 2
    assert name == "itm" or alone < 0.99 * whole


def test_siglip_guesses_by_the_share_of_pairs():
    spec = importlib.util.spec_from_file_location("siglip_of_guesses", SIGLIP)
    from xtoolkit.registry import LOSS_REGISTRY

    if "SigLIP" not in LOSS_REGISTRY:
        spec.loader.exec_module(importlib.util.module_from_spec(spec))
    model = Tiny(losses={"siglip": {"type": "SigLIP", "sim": "sim"}})
    for duplicates in ((), DUPLICATES):
        batch = make_batch("pairs", duplicates=duplicates)
        asked = 6 + sum(others(batch))
        yes = 6 / asked
        assert guess(model, batch, "siglip")[0].item() == pytest.approx(asked * entropy(yes, 1 - yes) / 6, rel=1e-6)


@pytest.mark.parametrize("name, stream", [("mlm", "text"), ("mim", "image"), ("itc", "pairs"), ("itm", "region"), ("bbp", "region")])
def test_a_guess_draws_nothing_makes_no_pass_and_keeps_the_gradient(model, name, stream):
    batch, passes = make_batch(stream), count()
    f = model.features(batch, [name])
    f._known = Known(stream, {})
    value = model.losses[name](f.bound(name), batch)
    value = sum(value.values()) if isinstance(value, dict) else value
    f._observer = lambda node: next(passes)  # and no context manager: a pass would fail
    state = torch.get_rng_state()
    with torch.no_grad():
        model.losses[name].guess(f.bound(name), batch)
    assert torch.equal(torch.get_rng_state(), state) and next(passes) == 0
    value.backward()
