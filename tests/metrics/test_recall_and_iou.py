"""Recall and IoU against tables that were made without the toolkit: make_recall.py, make_iou.py."""

import json
from pathlib import Path

import pytest
import torch

from xtoolkit.tasks.boxes import iou
from xtoolkit.tasks.ranking import hits_both_ways, recalls

CASES = {name: json.loads((Path(__file__).parent / f"cases/{name}.json").read_text())["cases"] for name in ("recall", "iou")}


@pytest.mark.parametrize("chunk", [1, 7, 1024])
def test_recall_is_the_share_of_orders_that_put_a_right_one_first(chunk):
    assert len(CASES["recall"]) > 90
    for case in CASES["recall"]:
        t2i, i2t = (torch.tensor(case[way], dtype=torch.float64) for way in ("t2i", "i2t"))
        found = recalls(hits_both_ways(t2i, i2t, torch.tensor(case["owner"]), chunk))
        assert found == pytest.approx(case["expected"], abs=1e-9), case["note"]


def test_iou_is_torchvision_s():
    a, b = (torch.tensor([case[name] for case in CASES["iou"]], dtype=torch.float64) for name in "ab")
    want = torch.tensor([case["expected"] for case in CASES["iou"]], dtype=torch.float64)
    assert len(want) == 80 and ((want > 0.5) & (want < 1)).sum() > 10 and (want == 0).sum() > 5
    torch.testing.assert_close(iou(a, b), want, rtol=1e-9, atol=1e-12)
    half = next(case for case in CASES["iou"] if case["note"] == "exactly a half")
    assert iou(torch.tensor([half["a"]]), torch.tensor([half["b"]])).item() == pytest.approx(0.5)
