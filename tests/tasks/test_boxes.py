"""Box accuracy: by hand, against torchvision, and the floor that knows no text."""

import json
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from batches import Batches
from xtoolkit.batch import Batch, ImageField, RegionField, TextField
from xtoolkit.tasks import BoxAccuracy
from xtoolkit.tasks.boxes import iou


def box(x0, y0, x1, y1):
    return [(x0 + x1) / 2, (y0 + y1) / 2, x1 - x0, y1 - y0]


@pytest.mark.parametrize("a, b, expected", [
    (box(0, 0, .5, .5), box(0, 0, .5, .5), 1.0),
    (box(0, 0, .5, .5), box(.5, .5, 1, 1), 0.0),
    (box(0, 0, .4, .4), box(0, 0, .4, .2), 0.5),              # exactly the threshold
    (box(0, 0, .2, .2), box(.1, .1, .3, .3), .01 / .07),
    (box(.1, .1, .9, .9), box(.3, .3, .5, .5), .04 / .64),
    ([.5, .5, -.2, .3], box(0, 0, 1, 1), 0.0),                # a negative width has no area
    ([.5, .5, 0, 0], [.5, .5, 0, 0], 0.0),
])
def test_iou_by_hand(a, b, expected):
    assert iou(torch.tensor([a]), torch.tensor([b])).item() == pytest.approx(expected, abs=1e-6)


def test_iou_equals_torchvision():
    from torchvision.ops import box_convert, box_iou

    a, b = torch.rand(2, 200, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    expected = box_iou(box_convert(a, "cxcywh", "xyxy"), box_convert(b, "cxcywh", "xyxy")).diagonal()
    torch.testing.assert_close(iou(a, b), expected)
    assert (expected > 0).sum() > 20


class Echo(nn.Module):
    """A loss that predicts the boxes it was given."""

    def __init__(self, boxes):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))
        self.rows = list(boxes)

    def boxes(self, f):
        assert f["fusion@whole"] == "fused"
        return torch.tensor([self.rows.pop(0)])


class FakeModel(nn.Module):
    """Features that know one reference."""

    recipe = SimpleNamespace(train=SimpleNamespace(precision="fp32"))

    def __init__(self, predicted):
        super().__init__()
        self.encoders, self.losses = nn.ModuleDict(), nn.ModuleDict({"bbp": Echo(predicted)})

    def features(self, batch):
        return {"fusion@whole": "fused"}


def region_batch(boxes, picture, is_box=True, source=None, biggest=None):
    return Batch(
        text=TextField(torch.tensor([[0, 5, 2, 1]]), torch.tensor([[True, True, True, False]])),
        image=ImageField(torch.zeros(1, 3, 4, 4), key=torch.tensor([picture]), image_id=[f"p{picture}"]),
        region=RegionField(torch.tensor([0]), torch.tensor([boxes]), torch.ones(1, 4, dtype=torch.bool),
                           torch.tensor([is_box])),
        **({} if source is None else {"source": [source]})
        | ({} if biggest is None else {"biggest": torch.tensor([biggest])}))


def test_accuracy_mean_iou_and_floor_over_sources():
    small, big, other = box(0, 0, .2, .2), box(.2, .2, .9, .9), box(0, 0, .3, .3)
    batches = [region_batch(small, 1, source="testA", biggest=big), region_batch(big, 1, source="testA", biggest=big),
               region_batch(other, 2, source="testB", biggest=other),
               region_batch(box(0, 0, 1, 1), 2, is_box=False, source="testB", biggest=other)]
    predicted = [box(0, 0, .2, .1), small, other, other]     # IoU 0.5 (a hit), 0, 1, and one that does not count
    found = BoxAccuracy(loss="bbp").evaluate(FakeModel(predicted), Batches(batches))
    assert found["metrics"] == pytest.approx({
        "accuracy": 200 / 3, "mean_iou": .5, "testA.accuracy": 50.0, "testA.mean_iou": .25,
        "testB.accuracy": 100.0, "testB.mean_iou": 1.0}, abs=1e-5)
    # The biggest box answers `big` and `other`, not `small`.
    assert found["floor"]["accuracy"] == pytest.approx(200 / 3)
    assert found["floor"]["testA.accuracy"] == 50 and found["floor"]["testB.accuracy"] == 100
    first = found["examples"][0]
    assert first["image_id"] == "p1" and first["ids"] == [0, 5, 2] and first["iou"] == pytest.approx(.5, abs=1e-5)
    assert first["true"] == pytest.approx(small) and len(found["examples"]) == 3


def test_without_the_biggest_boxes_there_is_no_floor():
    found = BoxAccuracy().evaluate(FakeModel([box(0, 0, 1, 1)]), Batches([region_batch(box(0, 0, 1, 1), 1)]))
    assert found["floor"] == {}


def test_the_model_is_left_in_the_modes_it_was_in():
    model = FakeModel([box(0, 0, 1, 1)])
    model.train()
    model.losses.eval()
    BoxAccuracy().evaluate(model, Batches([region_batch(box(0, 0, 1, 1), 1)]))
    assert model.training and not model.losses.training


def test_no_data_and_no_boxes_are_named():
    with pytest.raises(ValueError, match="no batch"):
        BoxAccuracy().evaluate(FakeModel([]), Batches([]))
    with pytest.raises(ValueError, match="no expression"):
        BoxAccuracy().evaluate(FakeModel([box(0, 0, 1, 1)]), Batches([region_batch(box(0, 0, 1, 1), 1, is_box=False)]))


def test_what_it_reaches_is_declared():
    assert BoxAccuracy.needs({}) == [] and BoxAccuracy.HEADS == {"loss": "boxes"}
    assert BoxAccuracy.suggest({}, {"one": nn.Linear, "two": Echo}) == {"type": "BoxAccuracy", "loss": "two"}
    assert BoxAccuracy.suggest({"sim": Echo}, {"one": nn.Linear}) is None


def test_its_table_has_a_row_for_each_source_and_its_figure_an_item_for_each_expression():
    heading, rows = BoxAccuracy().table({"accuracy": 40.0, "mean_iou": .3, "b.accuracy": 39.0, "b.mean_iou": None},
                                        {"accuracy": 36.5, "mean_iou": .341})
    assert heading == ["expressions", "accuracy %", "floor %", "mean IoU", "floor"]
    assert rows == [["all", "40.0", "36.5", "0.300", "0.341"], ["b", "39.0", "–", "–", "–"]]
    task = BoxAccuracy(tokenizer=SimpleNamespace(decode=lambda ids: " a cat" * (ids == [0, 5, 2])))
    examples = task.evaluate(FakeModel([box(0, 0, 1, 1)]), Batches([region_batch(box(0, 0, .5, 1), 1)]))["examples"]
    figure, = task.figures(examples)
    assert figure["items"] == [{"image": "p1", "caption": "a cat", "note": "IoU 0.50", "boxes": [
        {"box": [.25, .5, .5, 1.0], "kind": "true"}, {"box": [.5, .5, 1.0, 1.0], "kind": "predicted"}]}]
    assert figure["text"].startswith("Expressions spread evenly") and task.figures([]) == []


def test_the_release_s_iou_is_the_plain_one_but_for_overlaps_of_a_pixel():
    """Its function in xywh pixels, spelt out: ends are included, so they cancel; a strict < between them asks for more than one."""
    def released(a, b):
        first = [max(a[k], b[k]) for k in (0, 1)]
        last = [min(a[k] + a[k + 2], b[k] + b[k + 2]) - 1 for k in (0, 1)]
        shared = (last[0] - first[0] + 1) * (last[1] - first[1] + 1) if first[0] < last[0] and first[1] < last[1] else 0
        return shared / (a[2] * a[3] + b[2] * b[3] - shared)

    width, height = 64, 48
    draw, found = torch.Generator().manual_seed(0), []
    low = torch.randint(0, 20, (400, 2, 2), generator=draw).double()
    side = torch.randint(1, 9, (400, 2, 2), generator=draw).double()
    boxes = torch.cat([low + side / 2, side], 2) / torch.tensor([width, height] * 2)
    task = BoxAccuracy(iou="release")
    outputs = {"predicted": boxes[:, 0], "true": boxes[:, 1], "size": torch.tensor([[width, height]]).expand(400, 2)}
    found = task._overlap(outputs, "predicted")
    want = torch.tensor([released([*a[0], *a[1]], [*b[0], *b[1]]) for a, b in zip(
        zip(low[:, 0].tolist(), side[:, 0].tolist()), zip(low[:, 1].tolist(), side[:, 1].tolist()))], dtype=torch.float64)
    torch.testing.assert_close(found, want)
    plain = iou(boxes[:, 0], boxes[:, 1])
    assert ((plain > 0) & (want == 0)).sum() > 5 and torch.equal(found[found > 0], plain[found > 0])
    with pytest.raises(ValueError, match="do not say the `size`"):
        task.evaluate(FakeModel([box(0, 0, 1, 1)]), Batches([region_batch(box(0, 0, 1, 1), 1)]))


def test_a_row_of_each_expression_is_kept():
    batches = [region_batch(box(0, 0, .2, .2), 1, source="testA"), region_batch(box(0, 0, 1, 1), 2, is_box=False, source="testB"),
               region_batch(box(.2, .2, .9, .9), 3, source="testB")]
    found = BoxAccuracy().evaluate(FakeModel([box(0, 0, .2, .2)] * 3), Batches(batches))
    rows = [json.loads(line) for line in found["files"]["samples.jsonl"].splitlines()]
    assert [(row["id"], row["image_id"], row["source"], row["score"]) for row in rows] == [
        ("testA:p1:0", "p1", "testA", 1.0), ("testB:p3:0", "p3", "testB", 0.0)]
    assert sum(row["score"] for row in rows) / 2 == found["metrics"]["accuracy"] / 100
    fewer = BoxAccuracy().evaluate(FakeModel([box(0, 0, .2, .2)]), Batches(batches[2:]))
    assert json.loads(fewer["files"]["samples.jsonl"])["id"] == rows[1]["id"], "what came before changes no name"
