"""Accuracy and Correlation: figures against scikit-learn and scipy, floors, servers' files, and what they do not depend on."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy import stats
from sklearn import metrics
from torch import nn

from batches import Batches
from pairs import Rank
from xtoolkit.batch import Batch, ImageField, TextField
from xtoolkit.fields import LabelField
from xtoolkit.registry import TASK_REGISTRY, ConfigError
from xtoolkit.tasks import Accuracy, Correlation


class Told(nn.Module):
    """A head that says what its rows' pixels hold."""

    def __init__(self, classes):
        super().__init__()
        self.scale, self.classes = nn.Parameter(torch.ones(())), classes

    def logits(self, f):
        return f.batch.image.pixels[:, 0, 0, :self.classes] * self.scale

    def values(self, f):
        return self.logits(f)[:, 0]


class FakeModel(nn.Module):
    recipe = SimpleNamespace(train=SimpleNamespace(precision="fp32"))

    def __init__(self, classes):
        super().__init__()
        self.losses = nn.ModuleDict({"classify": Told(classes), "regress": Told(1)})

    def features(self, batch):
        return SimpleNamespace(batch=batch)


def batches(scores, label, names=None, size=4, records=None):
    """Pictures whose pixels are the scores (N, C), in batches."""
    found, rows = Batches(), len(label)
    for first in range(0, rows, size):
        at = slice(first, min(first + size, rows))
        pixels = scores[at][:, None, None].expand(-1, 3, 1, -1)
        ids = torch.arange(5 * (at.stop - first)).view(-1, 5) % 7 + 4
        more = {} if records is None else {"record": records[at]}
        found.append(Batch(image=ImageField(pixels, image_id=[f"{n}.jpg" for n in range(first, at.stop)]), label=LabelField(label[at], names),
                           text=TextField(ids, ids > 0), **more))
    return found


def made(classes, rows=41, seed=0):
    g = torch.Generator().manual_seed(seed)
    label = torch.randint(0, classes, (rows,), generator=g)
    return torch.randn(rows, classes, generator=g) + 1.2 * nn.functional.one_hot(label, classes), label


def test_two_classes():
    scores, label = made(2)
    found = Accuracy().evaluate(FakeModel(2), batches(scores, label))
    told, y = scores.argmax(1).numpy(), label.numpy()
    want = {"accuracy": metrics.accuracy_score(y, told), "mean_per_class": metrics.balanced_accuracy_score(y, told),
            "f1": metrics.f1_score(y, told), "matthews": metrics.matthews_corrcoef(y, told),
            "roc_auc": metrics.roc_auc_score(y, scores[:, 1] - scores[:, 0])}
    assert found["metrics"] == pytest.approx({name: 100 * value for name, value in want.items()})
    share = max(y.mean(), 1 - y.mean())
    assert found["floor"] == pytest.approx({"accuracy": 100 * share, "mean_per_class": 50, "matthews": 0, "roc_auc": 50,
                                            "f1": 100 * metrics.f1_score(y, np.ones_like(y))})
    rows = [json.loads(line) for line in found["files"]["samples.jsonl"].splitlines()]
    assert np.mean([row["score"] for row in rows]) * 100 == pytest.approx(found["metrics"]["accuracy"])
    assert rows[3]["image_id"] == "3.jpg" and rows[3]["label"] == str(y[3]) and rows[3]["told"] == str(told[3])


def test_many_classes():
    scores, label = made(20, 150)
    found = Accuracy().evaluate(FakeModel(20), batches(scores, label, tuple(f"c{n}" for n in range(20))))
    assert found["metrics"] == pytest.approx({
        "accuracy": 100 * metrics.accuracy_score(label, scores.argmax(1)), "mean_per_class": 100 * metrics.balanced_accuracy_score(label, scores.argmax(1)),
        "top5": 100 * metrics.top_k_accuracy_score(label, scores, k=5, labels=range(20))})
    counts = np.sort(np.bincount(label))[::-1]
    assert found["floor"] == pytest.approx({"accuracy": 100 * counts[0] / 150, "top5": 100 * counts[:5].sum() / 150, "mean_per_class": 5})
    assert found["files"]["classes.txt"].split() == [f"c{n}" for n in range(20)]


def test_nothing_depends_on_batches_or_ranks():
    scores, label = made(3)
    found = [Accuracy().evaluate(FakeModel(3), batches(scores, label, size=size)) for size in (1, 4, 41)]
    assert found[0]["metrics"] == found[1]["metrics"] == found[2]["metrics"] and found[0]["files"] == found[1]["files"]
    first = Rank(range(3))
    Accuracy().evaluate(FakeModel(3), batches(scores, label), first)
    assert Accuracy().evaluate(FakeModel(3), batches(scores, label), Rank(range(3, 11), first.all)) == found[1]


def test_rows_without_a_label_are_predicted_and_not_scored():
    scores, label = made(2)
    secret = label.clone()
    secret[::2] = -1
    records = [{"id": 7 + n} for n in range(41)]
    names = ("entailment", "not_entailment")
    found = Accuracy(server="RTE").evaluate(FakeModel(2), batches(scores, secret, names, records=records))
    own = Accuracy().evaluate(FakeModel(2), batches(scores[1::2], label[1::2]))
    assert found["metrics"] == pytest.approx(own["metrics"] | {"unlabelled": 21}) and len(found["files"]["samples.jsonl"].splitlines()) == 20
    lines = found["files"]["RTE.tsv"].splitlines()
    assert lines[0] == "index\tprediction" and lines[1:] == [f"{7 + n}\t{names[told]}" for n, told in enumerate(scores.argmax(1).tolist())]
    none = Accuracy().evaluate(FakeModel(2), batches(scores, torch.full_like(label, -1)))
    assert none["metrics"] == {"unlabelled": 41} and none["floor"] == {} and Accuracy().table(none["metrics"], {})[1] == [["rows without a label", "41", "–"]]


def test_consistency_is_that_of_nlvr2():
    """A sentence about four pairs of pictures, told right of all four; one told wrong of one; one with a single pair."""
    told = [(f"dev-{s}-{pair}-{k}", right) for s, k, several in ((0, 0, (1, 1, 1, 1)), (0, 1, (1, 0, 1, 1)), (5, 0, (1,)))
            for pair, right in enumerate(several)]
    label = torch.tensor([n % 2 for n in range(len(told))])
    scores = torch.stack([torch.eye(2)[y if right else 1 - y] for y, (_, right) in zip(label.tolist(), told)])
    data = batches(scores, label, ("False", "True"), records=[{"identifier": name} for name, _ in told])
    found = Accuracy(consistency="identifier", server="NLVR2").evaluate(FakeModel(2), data)
    assert found["metrics"]["consistency"] == pytest.approx(200 / 3) and found["metrics"]["accuracy"] == pytest.approx(800 / 9)
    assert found["files"]["NLVR2.csv"].splitlines()[:2] == ["dev-0-0-0,False", "dev-0-1-0,True"]
    plain = [{"group": n // 3} for n in range(9)]
    found = Accuracy(consistency="group").evaluate(FakeModel(2), batches(scores, label, records=plain))
    assert found["metrics"]["consistency"] == pytest.approx(200 / 3)  # rows 3 to 5 hold the wrong one
    dated = [{"group": f"run-2020-{n}-{n // 3}"} for n in range(9)]  # four parts, and no identifier of NLVR2's: nine groups
    found = Accuracy(consistency="group").evaluate(FakeModel(2), batches(scores, label, records=dated))
    assert found["metrics"]["consistency"] == pytest.approx(found["metrics"]["accuracy"])
    with pytest.raises(ConfigError, match="`consistency: sentence` is no key of the data's records; they have: group"):
        Accuracy(consistency="sentence").evaluate(FakeModel(2), batches(scores, label, records=plain))


def test_hateful_memes():
    scores, label = made(2)
    found = Accuracy(server="Hateful-Memes").evaluate(FakeModel(2), batches(scores, label, records=[{"id": f"{n:05d}"} for n in range(41)]))
    lines = found["files"]["Hateful-Memes.csv"].splitlines()
    assert lines[0] == "id,proba,label" and lines[3] == f"00002,{scores[2].softmax(0)[1]:.6f},{scores[2].argmax()}"


def test_figures_and_table():
    scores, label = made(2)
    task = Accuracy(tokenizer=SimpleNamespace(decode=lambda ids: f" {len(ids)} words"))
    found = task.evaluate(FakeModel(2), batches(scores, label, ("no", "yes")))
    figure, = task.figures(found["examples"])
    told = [("no", "yes")[one] for one in scores.argmax(1)]
    assert figure["items"][0]["image"] == "0.jpg" and figure["items"][0]["caption"] == "5 words"
    assert figure["items"][0]["note"].startswith(f"told: {told[0]}, 0.") and figure["items"][0]["right"] == (scores[0].argmax() == label[0])
    heading, rows = task.table(found["metrics"], found["floor"])
    assert rows[0] == ["accuracy %", f"{found['metrics']['accuracy']:.1f}", f"{found['floor']['accuracy']:.1f}"] and len(heading) == 3


@pytest.mark.parametrize("label, names, keys, message", [
    (torch.tensor([0, 1, 5]), None, {}, "a label of its data is 5, the head tells 2 classes"),
    (torch.tensor([0, 1, 1]), ("a", "b", "c"), {}, "the head tells 2 classes, and its data have 3: a, b, c"),
    (torch.tensor([0.5, 1, 1]), None, {}, "targets of regression: give the data `classes`, or take `type: Correlation`"),
    (torch.tensor([0, 1, 1]), ("no", "yes"), {"server": "RTE"}, "server: RTE knows the classes entailment, not_entailment; .* are no, yes"),
    (torch.tensor([0, 1, 1]), ("a", "b"), {"server": "CoLA"}, "server: CoLA knows the classes 0, 1; its data's `classes` are a, b")])
def test_data_that_do_not_fit_are_one_clear_error(label, names, keys, message):
    with pytest.raises(ConfigError, match=message):
        Accuracy(**keys).evaluate(FakeModel(2), batches(torch.randn(3, 2), label, names))


def test_ids_that_a_server_cannot_use():
    with pytest.raises(ConfigError, match="the data have 3 more than once"):
        Accuracy(server="CoLA").evaluate(FakeModel(2), batches(torch.randn(2, 2), torch.tensor([0, 1]), records=[{"id": 3}, {"id": 3}]))
    with pytest.raises(ConfigError, match="unknown key|must be one of CoLA"):
        TASK_REGISTRY.build({"type": "Accuracy", "server": "cola"}, "here")


def test_correlation():
    g = torch.Generator().manual_seed(0)
    label = 5 * torch.rand(37, generator=g)
    scores = (label + torch.randn(37, generator=g))[:, None]
    found = Correlation(server="STS-B").evaluate(FakeModel(1), batches(scores, label, records=[{"id": n} for n in range(37)]))
    assert found["metrics"] == pytest.approx({"pearson": 100 * stats.pearsonr(scores[:, 0], label).statistic,
                                              "spearman": 100 * stats.spearmanr(scores[:, 0], label).statistic}, rel=1e-5)
    assert found["floor"] == {"pearson": 0, "spearman": 0}
    rows = [json.loads(line) for line in found["files"]["samples.jsonl"].splitlines()]
    assert 100 * np.mean([row["score"] for row in rows]) == pytest.approx(found["metrics"]["pearson"], rel=1e-5)
    lines = found["files"]["STS-B.tsv"].splitlines()
    assert lines[0] == "index\tprediction" and lines[1:] == [f"{n}\t{min(5, max(0, x)):.3f}" for n, x in enumerate(scores[:, 0].tolist())]
    label[::3] = torch.nan
    part = Correlation().evaluate(FakeModel(1), batches(scores, label))
    known = ~label.isnan()
    assert part["metrics"]["pearson"] == pytest.approx(100 * stats.pearsonr(scores[known, 0], label[known]).statistic, rel=1e-5)
    assert part["metrics"]["unlabelled"] == 13
    constant = Correlation().evaluate(FakeModel(1), batches(torch.ones(37, 1), label))
    assert constant["metrics"]["pearson"] == constant["metrics"]["spearman"] == 0
    with pytest.raises(ConfigError, match="the labels of its data are classes: give the data `classes: null`"):
        Correlation().evaluate(FakeModel(1), batches(torch.ones(2, 1), torch.tensor([0, 1])))
