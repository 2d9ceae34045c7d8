"""Nearest neighbours: by hand, of pictures and of texts, and what they do not depend on."""

from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from batches import Batches
from pairs import Rank
from xtoolkit.batch import Batch, ImageField, TextField
from xtoolkit.features import Encoded
from xtoolkit.fields import LabelField
from xtoolkit.tasks import NearestNeighbours
from xtoolkit.tasks.neighbours import vote


class Means(nn.Module):
    """A feature whose summary is the mean colour."""

    def __init__(self, precision="fp32"):
        super().__init__()
        self.recipe = SimpleNamespace(train=SimpleNamespace(precision=precision))
        self.encoders, self.losses = nn.ModuleDict({"one": nn.Linear(1, 1)}), nn.ModuleDict()

    def features(self, batch):
        means = batch.image.pixels.mean((2, 3)) if batch.image is not None else F.one_hot(batch.text.ids[:, 1], 9).float()
        return {"vision": Encoded.of(torch.stack([means, -means], 1)), "vector": means}


def batches(sizes=(5, 9, 1, 6), sources="bq", labels=None):
    """Pictures of three classes, each a colour with noise, with a pattern that has nothing to do with it."""
    draw, found = torch.Generator().manual_seed(0), Batches()
    for number, rows in enumerate(sizes):
        label = torch.randint(0, 3, (rows,), generator=draw) if labels is None else torch.full((rows,), labels)
        colour = torch.eye(3)[label.long().clamp(min=0)] + 0.6 * torch.randn(rows, 3, generator=draw)
        pixels = colour[:, :, None, None] + 2 * torch.randn(rows, 3, 32, 32, generator=draw)
        source = [sources[(row + number) % len(sources)] for row in range(rows)]
        names = [f"{number}-{row}" for row in range(rows)]
        found.append(Batch(image=ImageField(pixels, image_id=names), label=LabelField(label), source=source))
    return found


@pytest.mark.parametrize("feature", ["vision", "vector"])
@pytest.mark.parametrize("k", [1, 4, 99])
def test_figures_equal_a_vote_by_hand(k, feature):
    found = NearestNeighbours(feature=feature, bank="b", k=k).evaluate(Means(), batches())
    rows = [(pixels, label, source) for batch in batches() for pixels, label, source in
            zip(batch.image.pixels, batch["label"].value.tolist(), batch["source"])]
    bank, asked = ([row for row in rows if row[2] == source] for source in "bq")
    small = lambda pixels: pixels.reshape(3, 16, 2, 16, 2).mean((2, 4)).flatten()
    mean = torch.stack([small(row[0]) for row in bank]).mean(0)
    for name, of in (("accuracy", lambda pixels: pixels.mean((1, 2))), ("pixels.accuracy", lambda pixels: small(pixels) - mean)):
        right = 0
        for pixels, label, _ in asked:
            near = sorted(((F.cosine_similarity(of(pixels), of(other[0]), dim=0).item(), other[1]) for other in bank),
                          reverse=True)[:k]
            votes = [sum(2.718281828459045 ** (cosine / 0.07) for cosine, voted in near if voted == c) for c in range(3)]
            right += votes.index(max(votes)) == label
        assert found["metrics"][name] == pytest.approx(100 * right / len(asked)), name
    common = max(range(3), key=[row[1] for row in bank].count)
    share = 100 * [row[1] for row in asked].count(common) / len(asked)
    assert found["floor"] == pytest.approx({"accuracy": share, "pixels.accuracy": share})


def test_a_figure_is_the_same_in_other_batches_on_other_processes_and_in_full_precision_under_bf16():
    task = NearestNeighbours(feature="vector", bank="b", k=3)
    found, whole = task.evaluate(Means("bf16"), batches()), batches()
    one = Batches([Batch(image=ImageField.cat([b.image for b in whole]), label=LabelField.cat([b["label"] for b in whole]),
                         source=[source for b in whole for source in b["source"]])])
    assert task.evaluate(Means("bf16"), one) == found
    first = Rank(range(3))
    task.evaluate(Means("bf16"), batches(), first)
    assert task.evaluate(Means("bf16"), batches(), Rank(range(3, 4), first.all)) == found


def test_texts_have_neighbours_too_and_rows_without_a_label_are_left_out():
    def texts(*words):
        ids = torch.tensor([[0, word, 2] for word, _, _ in words])
        return Batch(text=TextField(ids, ids >= 0), label=LabelField(torch.tensor([label for _, label, _ in words])),
                     source=[source for _, _, source in words])

    task = NearestNeighbours(feature="vision", bank="b", tokenizer=SimpleNamespace(decode=lambda ids: f"word {ids[1]}"))
    found = task.evaluate(Means(), Batches([texts((3, 0, "b"), (4, 1, "b"), (5, -1, "b")),
                                            texts((3, 0, "q"), (4, 0, "q"), (3, -1, "q"), (4, 1, "r"))]))
    assert found["metrics"] == {"accuracy": pytest.approx(200 / 3)} and found["floor"] == {"accuracy": pytest.approx(200 / 3)}
    figure, = task.figures(found["examples"])
    assert [(item["caption"], item.get("right")) for item in figure["items"]] == [
        ("word 3", None), ("word 3", True), ("word 4", None), ("word 4", False), ("word 4", None), ("word 4", True)]
    assert [row[0] for row in task.table(found["metrics"], found["floor"])[1]] == ["by vision", "floor: most frequent class"]


def test_the_nearer_weighs_more_but_two_outvote_it():
    bank, label = torch.tensor([[1.0, 0.1], [1.0, 0.3], [1.0, 0.31], [0.0, 1.0]]), torch.tensor([1, 0, 0, 2])
    asked = torch.tensor([[1.0, 0.0], [0.1, 1.0]])
    assert [vote(asked, bank, label, k, chunk=1).tolist() for k in (1, 2, 3, 9)] == [[1, 2], [1, 2], [0, 2], [0, 2]]


@pytest.mark.parametrize("given, message", [
    ({"sources": "q"}, "0 labelled rows in the source `b`"),
    ({"sources": "b"}, "21 labelled rows in the source `b`, 0 in the others"),
    ({"labels": -1}, "0 labelled rows in the source `b`, 0"), ({"labels": 0.5}, "whose labels are classes")])
def test_data_that_cannot_serve_are_an_error(given, message):
    with pytest.raises(ValueError, match=message):
        NearestNeighbours(feature="vector", bank="b").evaluate(Means(), batches(**given))


def test_its_table_and_figures():
    task = NearestNeighbours(feature="vision", bank="b")
    found = task.evaluate(Means(), batches())
    heading, rows = task.table(found["metrics"], found["floor"])
    assert [row[0] for row in rows] == ["by vision", "by 16 x 16 pixels", "floor: most frequent class"] and len(heading) == 2
    assert rows[1][1] == f"{found['metrics']['pixels.accuracy']:.1f}"
    figure, = task.figures(found["examples"])
    query, nearest = figure["items"][:2]
    assert query["image"] == found["examples"][0]["image_id"] and nearest["note"].startswith("nearest, cosine ")
    assert nearest["image"] == found["examples"][0]["neighbour"]["image_id"]
    assert len(figure["items"]) == 2 * len(found["examples"])
    assert task.figures([]) == []
