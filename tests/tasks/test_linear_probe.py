"""Linear probe: against a float64 minimisation of its own objective, the choice of C, and what the figures do not depend on."""

import json
import math
from types import SimpleNamespace

import numpy as np
import pytest
import scipy.optimize
import torch
import torch.nn.functional as F
from torch import distributed as dist, nn

from batches import Batches, Two
from pairs import Rank
from xtoolkit.batch import Batch, ImageField, TextField
from xtoolkit.features import Encoded
from xtoolkit.fields import LabelField
from xtoolkit.registry import ConfigError
from xtoolkit.tasks import LinearProbe
from xtoolkit.tasks.linear_probe import cells, scaled, search, shares


class Means(nn.Module):
    """A feature whose summary is the mean colour."""

    def __init__(self):
        super().__init__()
        self.recipe = SimpleNamespace(train=SimpleNamespace(precision="fp32"))
        self.encoders, self.losses = nn.ModuleDict({"one": nn.Linear(1, 1)}), nn.ModuleDict()

    def features(self, batch):
        means = batch.image.pixels.mean((2, 3)) if batch.image is not None else F.one_hot(batch.text.ids[:, 1], 9).float()
        return {"vision": Encoded.of(torch.stack([means, -means], 1))}


def batches(sizes=(25, 19, 1, 36), labels=None, noise=0.6, of="bbq"):
    """Pictures of three classes, each a colour with noise; two of three rows are the bank's."""
    draw, found = torch.Generator().manual_seed(0), Batches()
    for number, rows in enumerate(sizes):
        label = torch.randint(0, 3, (rows,), generator=draw) if labels is None else torch.full((rows,), labels)
        colour = torch.eye(3)[label.long().clamp(min=0)] + noise * torch.randn(rows, 3, generator=draw)
        pixels = colour[:, :, None, None] + 2 * torch.randn(rows, 3, 32, 32, generator=draw)
        found.append(Batch(image=ImageField(pixels, image_id=[f"{number}-{row}" for row in range(rows)]), label=LabelField(label),
                           source=[of[(row + number) % len(of)] for row in range(rows)]))
    return found


def rows(source):
    """(colours float64, labels, names) of a source."""
    found = [(pixels.mean((1, 2)).double().numpy(), int(label), name) for batch in batches() for pixels, label, name, of in
             zip(batch.image.pixels, batch["label"].value, batch.image.image_id, batch["source"]) if of == source]
    return tuple(map(np.array, zip(*found)))


def minimised(x, label, c):
    """W (3, D) and b (3,) that minimise C times the sum of cross-entropies plus half the squares of W, in float64."""
    def objective(flat):
        w, b = flat[:-3].reshape(3, -1), flat[-3:]
        logits = x @ w.T + b
        log = logits - scipy.special.logsumexp(logits, axis=1, keepdims=True)
        rest = np.exp(log) - np.eye(3)[label]
        return (c * -log[range(len(label)), label].sum() + (w**2).sum() / 2,
                np.concatenate([(c * rest.T @ x + w).ravel(), c * rest.sum(0)]))

    found = scipy.optimize.minimize(objective, np.zeros(3 * x.shape[1] + 3), jac=True, method="BFGS", options={"gtol": 1e-9}).x
    return found[:-3].reshape(3, -1), found[-3:]


@pytest.mark.parametrize("scale", ["standard", "unit", "none"])
@pytest.mark.parametrize("c", [0.01, 1.0, 30.0])
def test_with_a_given_c_it_is_the_minimum_of_its_objective(c, scale):
    x, label, _ = rows("b")
    asked, right, names = rows("q")
    by = {"standard": lambda a: (a - x.mean(0)) / x.std(0), "none": lambda a: a,
          "unit": lambda a: a / np.sqrt((a**2).sum(1, keepdims=True))}[scale]
    w, b = minimised(by(x), label, c)
    told = (by(asked) @ w.T + b).argmax(1)
    found = LinearProbe(feature="vision", bank="b", c=c, scale=scale).evaluate(Means(), batches())
    assert found["metrics"]["accuracy"] == pytest.approx(100 * (told == right).mean())
    assert found["metrics"]["per_class"] == pytest.approx(100 * np.mean([(told == right)[right == k].mean() for k in range(3)]))
    samples = [json.loads(line) for line in found["files"]["samples.jsonl"].splitlines()]
    assert [(s["id"], s["told"], s["score"]) for s in samples] == list(zip(names, told, (told == right).astype(float)))
    common = np.bincount(label).argmax()
    assert found["floor"]["accuracy"] == found["floor"]["pixels.accuracy"] == pytest.approx(100 * (right == common).mean())
    assert found["floor"]["per_class"] == pytest.approx(100 / 3) and found["metrics"]["c"] == c


@pytest.mark.parametrize("folds, metric", [(1, "accuracy"), (5, "per_class")])
def test_c_is_chosen_on_what_is_held_out_of_the_bank_and_never_on_what_is_asked(folds, metric):
    task = LinearProbe(feature="vision", bank="b", folds=folds, metric=metric)
    found, other = task.evaluate(Means(), batches()), batches()
    x, label, _ = rows("b")
    splits, held_all = task._splits(label, np.arange(len(label))), []
    for fitted, held in splits:
        assert sorted([*fitted, *held]) == list(range(len(label)))
        for k in range(3):  # a fifth of each class
            assert abs((label[held] == k).sum() - (label == k).sum() / 5) < 1
        held_all += [*held]
    assert len(held_all) == len(set(held_all)) and len(splits) == folds

    def gives(c):
        told = [shares(task._fit(c, x[fitted], label[fitted], x[held]).told, label[held])[metric] for fitted, held in splits]
        return sum(told) / folds

    at = round(8 * math.log10(found["metrics"]["c"]))
    chosen = gives(found["metrics"]["c"])
    assert -48 <= at <= 48 and found["metrics"]["c"] == pytest.approx(10 ** (at / 8))
    assert chosen >= max(gives(10.0**power) for power in range(-6, 7, 2)) and chosen >= gives(10 ** ((at - 1) / 8))
    for batch in other:  # other labels of the rows that are asked about
        asked = torch.tensor([source == "q" for source in batch["source"]])
        batch["label"].value[asked] = (batch["label"].value[asked] + 1) % 3
    changed = task.evaluate(Means(), other)["metrics"]
    assert changed["c"] == found["metrics"]["c"] and changed["accuracy"] != found["metrics"]["accuracy"]


def test_the_search_is_the_halving_one_and_takes_the_smallest_of_equals():
    tried = []

    def gives(peak):
        return lambda c: tried.append(round(8 * math.log10(c))) or -abs(math.log10(c) - peak)

    assert search(gives(1.4)) == pytest.approx(10**1.375) and len(tried) == 7 + 2 * 4
    assert tried[7:] == [8, 24, 4, 12, 10, 14, 11, 13]
    assert search(gives(-9)) == pytest.approx(1e-6) and search(gives(9)) == pytest.approx(1e6)
    assert search(lambda c: 1.0) == pytest.approx(1e-6)


def test_best_on_test_is_a_name_of_its_own_and_no_less():
    fair = LinearProbe(feature="vision", bank="b").evaluate(Means(), batches(noise=1.5))["metrics"]
    task = LinearProbe(feature="vision", bank="b", selection="test")
    found = task.evaluate(Means(), batches(noise=1.5))
    assert all(name.startswith("best_on_test.") for name in [*found["metrics"], *found["floor"], *task.HEADLINES])
    assert found["metrics"]["best_on_test.accuracy"] >= fair["accuracy"]
    assert task.table(found["metrics"], found["floor"])[0][0] == "linear probe, C chosen on test"
    assert LinearProbe(feature="vision", metric="per_class").HEADLINES == {"per_class": "Linear probe, mean per class, %"}


def test_scaling_is_by_the_bank_alone():
    bank, asked = np.array([[1.0, 5, 0], [3, 5, 0]]), np.array([[2.0, 7, 0], [0, 0, 0]])
    assert scaled("standard", bank, asked)[1].tolist() == [[0, 2, 0], [-2, -5, 0]]
    np.testing.assert_allclose(np.linalg.norm(scaled("unit", bank, asked)[1], axis=1), [1, 0])


def test_a_figure_is_the_same_in_other_batches_and_on_processes_one_after_the_other():
    task, whole = LinearProbe(feature="vision", bank="b", c=1.0), batches()
    found = task.evaluate(Means(), whole)
    one = Batches([Batch(image=ImageField.cat([b.image for b in whole]), label=LabelField.cat([b["label"] for b in whole]),
                         source=[source for b in whole for source in b["source"]])])
    assert task.evaluate(Means(), one)["metrics"] == found["metrics"]
    first = Rank(range(3))
    task.evaluate(Means(), batches(), first)
    assert task.evaluate(Means(), batches(), Rank(range(3, 4), first.all)) == found


def in_a_group(rank, folder):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    torch.save(LinearProbe(feature="vision", bank="b", folds=2).evaluate(Means(), batches(), Two()), f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def test_two_processes_see_every_row_once_and_give_the_figures_of_one(tmp_path):
    torch.multiprocessing.spawn(in_a_group, (str(tmp_path),), nprocs=2)
    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=False) for rank in range(2))
    assert first == second == LinearProbe(feature="vision", bank="b", folds=2).evaluate(Means(), batches())


def test_texts_are_probed_too_and_rows_without_a_label_are_left_out():
    def texts(*words):
        ids = torch.tensor([[0, word, 2] for word, _, _ in words])
        return Batch(text=TextField(ids, ids >= 0), label=LabelField(torch.tensor([label for _, label, _ in words])),
                     source=[source for _, _, source in words])

    found = LinearProbe(feature="vision", bank="b", c=100.0).evaluate(Means(), Batches([
        texts((3, 0, "b"), (4, 1, "b"), (5, -1, "b")), texts((3, 0, "q"), (4, 0, "q"), (3, -1, "q"), (4, 1, "r"))]))
    assert found["metrics"]["accuracy"] == pytest.approx(200 / 3) and "pixels.accuracy" not in found["metrics"]
    assert found["metrics"]["per_class"] == 75 and found["files"]["samples.jsonl"].count("\n") == 3


@pytest.mark.parametrize("keys, given, message", [
    ({"bank": "x"}, {}, "0 labelled rows of 0 classes in the source `x`"),
    ({}, {"of": "b"}, "81 labelled rows of 3 classes in the source `b`, 0 in the others"),
    ({}, {"labels": 1}, "of 1 classes"), ({}, {"labels": 0.5}, "whose labels are classes"),
    ({}, {"sizes": (3,)}, "has no 1 rows of one class to choose C by"), ({"folds": 5}, {"sizes": (9,)}, "or fewer `folds`"),
    ({"expect": {"b": 54, "q": 29}}, {}, "expect` is not met: the data have 27 q, not 29. Another split"),
    ({"expect": {"test": 5, "classes": 4}}, {}, "the data have 0 test, not 5; 3 classes, not 4")])
def test_data_that_cannot_serve_are_an_error(keys, given, message):
    with pytest.raises(ConfigError, match=message):
        LinearProbe(**{"feature": "vision", "bank": "b"} | keys).evaluate(Means(), batches(**given))


def test_features_that_are_not_finite_are_an_error():
    with pytest.raises(ConfigError, match="not finite: the model has diverged"):
        LinearProbe(feature="vision", bank="b").evaluate(Means(), batches(noise=math.inf))


def test_its_table_says_where_it_was_cut_short():
    task = LinearProbe(feature="vision", bank="b", c=1e6, iterations=2)
    found = task.evaluate(Means(), batches())
    heading, (probe, pixels, floor) = task.table(found["metrics"], found["floor"])
    assert heading == ["linear probe", "accuracy %", "mean per class %", "C"] and probe[0] == "by vision"
    assert probe[3] == "1e+06 (not converged after 2 iterations)" and pixels[0] == "by 16 x 16 pixels"
    assert floor == ["floor: most frequent class", f"{found['floor']['accuracy']:.1f}", "33.3", ""]


def test_a_grid_keeps_where_things_are():
    tokens = torch.randn(2, 1 + 36, 5, generator=torch.Generator().manual_seed(0))
    found = cells(Encoded.of(tokens), 3, "vision").view(2, 5, 9)
    square = tokens[:, 1:].reshape(2, 6, 6, 5)
    for cell in range(9):
        y, x = 2 * (cell // 3), 2 * (cell % 3)
        torch.testing.assert_close(found[:, :, cell], square[:, y:y + 2, x:x + 2].mean((1, 2)))
    for given in (Encoded.of(tokens[:, :30]), Encoded.of(tokens[:, :5]), tokens[:, 0]):
        with pytest.raises(ConfigError, match="`grid: 3` needs a square of at least 3 x 3 picture tokens, and `vision` gives"):
            cells(given, 3, "vision")


def test_of_two_classes_c_is_half_as_strong():
    """A softmax over W (2, D) with half the C, minimised in float64, tells what scikit-learn's sigmoid tells, probability by probability."""
    from sklearn.linear_model import LogisticRegression

    draw = np.random.default_rng(0)
    label = draw.integers(0, 2, 60)
    x, c = draw.normal(size=(60, 3)) + label[:, None], 0.7

    def cost(given, strength):
        w, b = torch.tensor(given[:6], dtype=torch.float64).view(2, 3), torch.tensor(given[6:], dtype=torch.float64)
        w.requires_grad_(), b.requires_grad_()
        value = strength * F.cross_entropy(torch.tensor(x) @ w.T + b, torch.tensor(label), reduction="sum") + w.square().sum() / 2
        value.backward()
        return value.item(), torch.cat([w.grad.flatten(), b.grad]).numpy()

    found = LogisticRegression(C=c, max_iter=1000, tol=1e-10).fit(x, label)
    half, whole = (scipy.optimize.minimize(cost, np.zeros(8), args=(strength,), jac=True, tol=1e-12).x for strength in (c / 2, c))
    weight = lambda given: given[3:6] - given[:3]
    np.testing.assert_allclose(weight(half), found.coef_[0], atol=1e-4)
    assert np.abs(weight(whole) - found.coef_[0]).max() > 1e-2
    assert "twice the C" in LinearProbe.__doc__
