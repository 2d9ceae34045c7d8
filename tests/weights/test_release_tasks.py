"""Fine-tuning heads on released tensors give the release's losses and gradients, by a second computation of them in float64.

``release_forward`` computes the encoders from the released tensors; what comes after, the heads that the release calls
``cls_head`` and its losses, is spelt out here. Where the release differs from the paper (an MLP on [CLS] where it says a linear
classifier, five layers for a linear probe) `head` asks for the release's; ours is the paper's.
"""

from pathlib import Path

import pytest
import torch
from release_forward import Release, cross_entropy, gelu
from test_release_losses import SIZES, SMALL, TIED, Pair, error, pictures, texts, to_release

from xtoolkit import recipe as recipes
from xtoolkit.batch import Batch
from xtoolkit.fields import LabelField
from xtoolkit.losses import classification
from xtoolkit.losses.mixing import Mix
from xtoolkit.model import Model

BASE = Path(__file__).resolve().parents[2] / "projects/xfm/model_base.yaml"
RECIPE = """
_BASE_: {base}
encoders:
  second: {{shares: vision, inputs: {{image: $second}}}}
  fusion_second: {{shares: fusion, inputs: {{text: text, image: second}}}}
losses:
  glue: {{type: Classification, features: text, classes: 3, head: mlp}}
  linear: {{type: Classification, features: text, classes: 3}}
  stsb: {{type: Regression, features: text, head: mlp}}
  nlvr: {{type: Classification, features: [fusion, fusion_second], classes: 2, head: mlp}}
  imagenet: {{type: Classification, features: vision, classes: 5, head: release5, smoothing: 0.1}}
  probe: {{type: Classification, features: vision, classes: 5, head: release5, smoothing: 0.1, frozen: true}}
  mixed: {{type: Classification, features: vision, classes: 5, head: release5, smoothing: 0.1, mixup: 0.8, cutmix: 1.0}}
streams:
  texts: {{batch_size: 4, losses: {{glue: 1, linear: 1}}, data: {{type: LabelledText, path: none.jsonl, classes: 3}}}}
  numbers: {{batch_size: 4, losses: {{stsb: 1}}, data: {{type: LabelledText, path: none.jsonl}}}}
  pairs: {{batch_size: 4, losses: {{nlvr: 1}}, data: {{type: LabelledTwoImages, path: none.jsonl, classes: 2}}}}
  images: {{batch_size: 4, losses: {{imagenet: 1, probe: 1, mixed: 1}}, data: {{type: LabelledImages, path: none.jsonl, classes: 5}}}}
optim: {{lr: 1e-4}}
train: {{steps: 1, output: outputs/none, precision: fp32, workers: 0, device: cpu}}
"""
STREAMS = {"glue": "texts", "linear": "texts", "stsb": "numbers", "nlvr": "pairs", **dict.fromkeys(("imagenet", "probe", "mixed"), "images")}
# Mixup, and CutMix of a box of 13 x 9 pixels of 32 x 32 that reaches the right side: what both are given as drawn.
MIXED = [Mix(0.3), Mix(1 - 13 * 9 / 32**2, (5, 18, 23, 32))]
CASES = [*((loss, None) for loss in STREAMS if loss != "mixed"), *(("mixed", drawn) for drawn in MIXED)]
TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-5}  # of float32 its rounding


class Heads:
    """Our model of the recipe above and the release's, of the same tensors."""

    def __init__(self, folder, dtype=torch.float64):
        pair = Pair(dtype)
        file = folder / "tasks.yaml"
        file.write_text(RECIPE.format(base=BASE))
        own = [change for change in SMALL if "_proj" not in change]
        self.recipe, self.shared, self.dtype = recipes.load(str(file), own, missing_files=False), pair.recipe, dtype
        self.model = Model(self.recipe).to(dtype).train()
        state = {n: t for n, t in pair.model.state_dict().items() if n in self.model.state_dict() and n.startswith("encoders.")}
        missing, _ = self.model.load_state_dict(state, strict=False)
        assert missing and all(name.startswith("losses.") for name in missing)
        torch.manual_seed(5)
        self.heads = {}  # a leaf of its own for each parameter of a head
        for name, parameter in self.model.losses.named_parameters():
            with torch.no_grad():
                parameter.copy_(0.3 * torch.randn(parameter.shape, dtype=dtype) + (".1." in name and name.endswith("weight")))
            self.heads[name] = parameter.detach().double().requires_grad_()
        self.tensors = pair.tensors
        self.release = Release(pair.tensors | self.heads, text_heads=SIZES["heads"])

    def batch(self, loss):
        g = torch.Generator().manual_seed(9)
        text, given = texts(4, g)
        image, shown = pictures(4, g, self.dtype)
        second, other = pictures(4, g, self.dtype)
        label = torch.tensor([1, 0, 1, 1] if loss == "nlvr" else [2, 0, 1, 2])
        if loss == "stsb":
            label = torch.tensor([2.5, 0.0, 4.75, 3.2], dtype=self.dtype)
        batch = {"texts": dict(text=text), "numbers": dict(text=text), "pairs": dict(text=text, image=image, second=second),
                 "images": dict(image=image)}[STREAMS[loss]]
        return Batch(**batch, label=LabelField(label)), given | shown | {"second": other["image"], "label": label}

    def theirs(self, loss, given, drawn):
        r, label = self.release, given["label"]
        if loss == "nlvr":
            text, mask = r.encode_text(given["ids"]), given["ids"] != 1
            fused = []
            for image in (given["image"], given["second"]):
                image = r.encode_image(image)
                fused.append(r.fuse(text, mask, image, torch.ones(image.shape[:2], dtype=torch.bool))[:, 0])
            return cross_entropy(r.head("nlvr.head", torch.cat(fused, 1)), label)
        if STREAMS[loss] == "images":
            picture, own = given["image"].clone(), drawn.own if drawn else 1
            for row, other in enumerate(reversed(given["image"].unbind())):
                if drawn and drawn.box:
                    top, bottom, left, right = drawn.box
                    picture[row, :, top:bottom, left:right] = other[:, top:bottom, left:right]
                else:
                    picture[row] = own * picture[row] + (1 - own) * other
            image = r.encode_image(picture)
            if loss == "probe":
                image = image.detach()
            x = torch.cat([image[:, 0], image[:, 1:].mean(1)], 1)
            for place in (0, 3, 6, 9):
                x = gelu(r.norm(f"{loss}.head.{place + 1}", r.linear(f"{loss}.head.{place}", x), 1e-5))
            x = r.linear(f"{loss}.head.12", x)
            told = x - torch.log(torch.exp(x).sum(1, keepdim=True))
            target = torch.full_like(x, 0.1 / 5)
            for row, (one, other) in enumerate(zip(label.tolist(), reversed(label.tolist()))):
                target[row, one] += 0.9 * own
                target[row, other] += 0.9 * (1 - own)
            return -(target * told).sum(1).mean()
        cls = r.encode_text(given["ids"])[:, 0]
        if loss == "stsb":
            return sum((a - b) ** 2 for a, b in zip(r.head("stsb.head", cls)[:, 0], label.double())) / len(label)
        return cross_entropy(r.head("glue.head", cls) if loss == "glue" else r.linear("linear.head", cls), label)


@pytest.fixture(scope="module", params=TOLERANCE, ids=str)
def heads(request, tmp_path_factory):
    return Heads(tmp_path_factory.mktemp("tasks"), request.param)


@pytest.mark.parametrize("loss, drawn", CASES)
def test_every_loss_and_every_gradient_is_the_release_s(heads, loss, drawn, monkeypatch):
    """Of frozen features only the head has a gradient, in both."""
    monkeypatch.setattr(classification, "draw", lambda *given: drawn or Mix())
    tolerance, (batch, given) = TOLERANCE[heads.dtype], heads.batch(loss)
    ours, theirs = heads.model(STREAMS[loss], batch)[loss], heads.theirs(loss, given, drawn)
    assert ours.item() == pytest.approx(theirs.item(), rel=tolerance)
    named = dict(heads.model.named_parameters())
    found = torch.autograd.grad(ours, list(named.values()), allow_unused=True)
    found = {n: g.double() for n, g in zip(named, found) if g is not None}
    back, _ = to_release({n: g for n, g in found.items() if n.startswith("encoders.")}, heads.shared)
    got = {TIED.get(n, n): g for n, g in back.items() if g.is_floating_point()}
    got |= {n.removeprefix("losses."): g for n, g in found.items() if n.startswith("losses.")}
    leaves = heads.tensors | heads.heads
    wanted = torch.autograd.grad(theirs, list(leaves.values()), allow_unused=True)
    wanted = {n: g for n, g in zip(leaves, wanted) if g is not None}
    assert got.keys() == wanted.keys() and any(n.startswith(loss) for n in got)
    most = max(g.abs().max().item() for g in wanted.values())
    errors = {n: error(got[n], wanted[n], most if n.endswith("key.bias") else 1e-3 * most) for n in wanted}
    worst = max(errors, key=errors.get)
    assert errors[worst] < tolerance, (worst, errors[worst])


def test_the_shapes_of_the_release_s_heads():
    from xtoolkit.losses.heads import deep_head, summary_head

    shapes = lambda head: [tuple(p.shape) for p in head.parameters() if p.dim() == 2]
    with torch.device("meta"):
        assert shapes(summary_head(1536, 2)) == [(3072, 1536), (2, 3072)]
        deep = deep_head(1536, 1000)
    assert shapes(deep) == [(3072, 1536), (6144, 3072), (3072, 6144), (1536, 3072), (1000, 1536)]
    assert round(sum(p.numel() for p in deep.parameters()) / 1e6, 1) == 48.8
