"""Makes cases/iou.json: the IoU of pairs of boxes as torchvision has it, ordinary ones and traps.

    python tests/metrics/make_iou.py
"""

import json
import random
from importlib.metadata import version
from pathlib import Path

import torch
from torchvision.ops import box_convert, box_iou

FIXED = [  # cx, cy, w, h of two boxes
    ("equal", [.5, .5, .2, .3], [.5, .5, .2, .3]), ("apart", [.1, .1, .1, .1], [.9, .9, .1, .1]),
    ("sides touch", [.25, .5, .5, 1], [.75, .5, .5, 1]), ("corners touch", [.25, .25, .5, .5], [.75, .75, .5, .5]),
    ("one in the other", [.5, .5, .8, .8], [.5, .5, .2, .2]), ("exactly a half", [.5, .5, .4, .4], [.5, .4, .4, .2]),
    ("over the edge", [0, 0, .5, .5], [.1, .1, .3, .3]), ("no width", [.5, .5, 0, .4], [.5, .5, .4, .4]),
    ("all of it", [.5, .5, 1, 1], [.5, .5, 1, 1]), ("a hair", [.5, .5, 1e-4, 1], [.5, .5, 1, 1e-4]),
    ("a cross", [.5, .5, .2, .9], [.5, .5, .9, .2]), ("tiny and shifted", [.5, .5, 1e-3, 1e-3], [.5005, .5, 1e-3, 1e-3])]


def main():
    draw, pairs = random.Random(0), list(FIXED)
    for _ in range(68):
        near = draw.random() < 0.7
        a = [draw.random(), draw.random(), draw.uniform(.05, .6), draw.uniform(.05, .6)]
        b = [v + draw.gauss(0, 0.05) for v in a[:2]] + [v * draw.uniform(.7, 1.4) for v in a[2:]] if near else [
            draw.random(), draw.random(), draw.uniform(.05, .6), draw.uniform(.05, .6)]
        pairs.append(("near" if near else "random", a, b))
    a, b = (box_convert(torch.tensor([pair[n] for pair in pairs], dtype=torch.float64), "cxcywh", "xyxy") for n in (1, 2))
    found = {"provenance": f"tests/metrics/make_iou.py, seed 0, with torchvision {version('torchvision')}",
             "cases": [{"note": note, "a": one, "b": other, "expected": value}
                       for (note, one, other), value in zip(pairs, box_iou(a, b).diagonal().tolist())]}
    (Path(__file__).parent / "cases/iou.json").write_text(json.dumps(found) + "\n")
    print(len(found["cases"]), "cases")


if __name__ == "__main__":
    main()
