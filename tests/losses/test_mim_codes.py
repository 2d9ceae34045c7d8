"""MIMCodes against a float64 loop over the masked patches; its guess, its gradient, what it refuses; two ranks' mean."""

import copy
import json
import math
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from xtoolkit.batch import ImageField
from xtoolkit.encoders.base import Encoder
from xtoolkit.engine import checkpoint
from xtoolkit.engine.guessing import Known
from xtoolkit.features import Encoded, Features
from xtoolkit.graph import EncoderSpec, Graph
from xtoolkit.losses.mim_codes import MIMCodes
from xtoolkit.recipe.folder import latest

from .tiny import PATCH, PATCHES, WIDTH, Tiny, make_batch

CODES = 7
ROOT = Path(__file__).resolve().parents[2]


class Tokens(Encoder):
    """The brightness of each patch, in seven steps."""

    def __init__(self):
        super().__init__()
        self.width, self.codes, self.factor = 1, CODES, nn.Parameter(torch.ones(1))

    def forward(self, *, view, image: ImageField):
        assert image.patch_mask is None and image.masked_count is None and not torch.is_grad_enabled()
        light = nn.functional.avg_pool2d(image.pixels.mean(1), PATCH).flatten(1) * self.factor
        return (light * 40 + CODES / 2).long().clamp(0, CODES - 1)


class Joint(Encoder):
    """Two tokens of no picture, then the patches."""

    def __init__(self, vision):
        super().__init__()
        self.vision, self.width = vision, WIDTH

    def forward(self, *, view, image: ImageField):
        tokens = self.vision(view=view, image=image).tokens
        return Encoded.of(torch.cat([tokens.new_zeros(len(tokens), 2, WIDTH), tokens[:, 1:]], 1), None,
                          {"text": slice(0, 2), "image": slice(2, None)})


@pytest.fixture(scope="module")
def made():
    encoders = nn.ModuleDict({"vision": Tiny().encoders["vision"], "tokens": Tokens()})
    encoders["joint"] = Joint(encoders["vision"])
    graph = Graph({name: EncoderSpec(name, {"image": "$image"}) for name in encoders}, {"image": ImageField})
    torch.manual_seed(0)
    losses = {name: MIMCodes(f"{feature}@mask_image", "tokens", head, widths={f"{feature}@mask_image": WIDTH}, modules=encoders)
              for name, feature, head in (("linear", "vision", "linear"), ("mlm", "vision", "mlm"), ("joint", "joint", "linear"))}
    for loss in losses.values():
        for parameter in loss.parameters():
            parameter.data.add_(0.3 * torch.randn(parameter.shape))
    return graph, encoders, losses


def features(made, batch, name):
    graph, encoders, losses = made
    needs = {name: losses[name].needs({"feature": losses[name].feature, "codes": "tokens", "head": "linear"})}
    passes = graph.passes(needs, frozenset(batch.fields))
    return Features(graph, encoders, batch, needs, {p.node for p in passes if p.graph}).bound(name)


def unequal(seed=0):
    """Four pictures with 6, 0, 3 and 9 masked patches."""
    batch, g = make_batch("image", seed), torch.Generator().manual_seed(seed)
    mask = torch.zeros(4, PATCHES, dtype=torch.bool)
    for row, count in enumerate((6, 0, 3, 9)):
        mask[row, torch.randperm(PATCHES, generator=g)[:count]] = True
    return batch.with_fields(image=replace(batch.image, patch_mask=mask))


def by_hand(made, batch, name):
    """(loss, share that is right) by a loop in float64."""
    _, encoders, losses = made
    loss, image, terms, right = losses[name].double(), batch.image, [], 0
    with torch.no_grad():
        tokens = encoders["vision"](view=None, image=image).tokens.double()
        codes = encoders["tokens"](view=None, image=image.clean())
        for row in range(len(tokens)):
            for patch in image.patch_mask[row].nonzero()[:, 0].tolist():
                x = tokens[row, 1 + patch]
                if loss.dense is not None:
                    x = loss.dense.weight @ x + loss.dense.bias
                    x = torch.stack([v * 0.5 * (1 + math.erf(v / math.sqrt(2))) for v in x])
                    x = (x - x.mean()) / (x.var(correction=0) + 1e-5).sqrt() * loss.layer_norm.weight + loss.layer_norm.bias
                scores = (loss.decoder.weight @ x + loss.decoder.bias).tolist()
                label = int(codes[row, patch])
                terms.append(math.log(sum(math.exp(s) for s in scores)) - scores[label])
                right += max(range(CODES), key=scores.__getitem__) == label
    loss.float()
    return sum(terms) / len(terms), right / len(terms)


@pytest.mark.parametrize("name", ["linear", "mlm", "joint"])
@pytest.mark.parametrize("counted", [False, True])
def test_the_loss_is_the_mean_over_masked_patches(made, name, counted):
    batch = unequal()
    if counted:
        batch = batch.with_fields(image=replace(batch.image, masked_count=18))
    f = features(made, batch, name)
    value = made[2][name](f, batch)
    loss, right = by_hand(made, batch, name)
    assert value.item() == pytest.approx(loss, rel=1e-5)
    assert f.logged[f"{name}.accuracy"].item() == pytest.approx(right)


def test_codes_of_an_object_are_read(made):
    class Quantized:
        def __init__(self, codes):
            self.codes = codes

        def detach(self):
            return self

    batch, plain = unequal(), made[1]["tokens"].forward
    expected = made[2]["linear"](features(made, batch, "linear"), batch)
    made[1]["tokens"].forward = lambda **slots: Quantized(plain(**slots))
    try:
        assert torch.equal(made[2]["linear"](features(made, batch, "linear"), batch), expected)
    finally:
        del made[1]["tokens"].forward


def test_the_gradient_reaches_the_feature_and_not_the_tokenizer(made):
    batch, (_, encoders, losses) = unequal(), made
    losses["linear"](features(made, batch, "linear"), batch).backward()
    vision, head, tokenizer = encoders["vision"], losses["linear"], encoders["tokens"]
    assert vision.mask_token.grad.any() and head.decoder.weight.grad.any() and tokenizer.factor.grad is None
    states = vision(view=None, image=batch.image).tokens[:, 1:][batch.image.patch_mask]
    labels = tokenizer_codes(tokenizer, batch)[batch.image.patch_mask]
    share = (head.decoder(states).softmax(1) - nn.functional.one_hot(labels, CODES)) / len(labels)
    torch.testing.assert_close(head.decoder.bias.grad, share.sum(0), rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(head.decoder.weight.grad, share.T @ states, rtol=1e-4, atol=1e-6)
    for part in (vision, head):
        part.zero_grad()


@torch.no_grad()
def tokenizer_codes(tokenizer, batch):
    return tokenizer(view=None, image=batch.image.clean())


def test_codes_are_guessed_by_their_frequencies_so_far(made):
    kept, seen = {}, Counter()
    for step in range(4):
        batch, n, d = unequal(step), sum(seen.values()), 0.75
        p = lambda code: (max(seen[code] - d, 0) + d * len(seen) / CODES) / n if n else 1 / CODES
        f = features(made, batch, "linear")
        f._known = Known("image", kept)
        with torch.no_grad():
            value = made[2]["linear"].guess(f, batch)
        codes = tokenizer_codes(made[1]["tokens"], batch)
        labels = codes[batch.image.patch_mask].tolist()
        assert value.item() == pytest.approx(-sum(math.log(p(c)) for c in labels) / len(labels), rel=1e-6)
        seen.update(codes.flatten().tolist())
    assert 1 < len(seen)


def test_no_masked_patch_costs_nothing(made):
    batch = make_batch("image")
    batch = batch.with_fields(image=replace(batch.image, patch_mask=torch.zeros_like(batch.image.patch_mask)))
    f = features(made, batch, "linear")
    value = made[2]["linear"](f, batch)
    value.backward()
    assert value.item() == 0 and not made[2]["linear"].decoder.weight.grad.any()
    with torch.no_grad():
        assert made[2]["linear"].guess(f, batch).item() == 0
    made[1]["vision"].zero_grad()


def test_the_device_is_asked_nothing(made):
    graph, encoders, losses = made
    batch = unequal()
    batch = batch.with_fields(image=replace(batch.image, masked_count=18))
    on_meta, loss = copy.deepcopy(encoders).to("meta"), copy.deepcopy(losses["mlm"]).to("meta")
    needs = {"mlm": loss.needs({"feature": loss.feature, "codes": "tokens", "head": "linear"})}
    f = Features(graph, on_meta, batch.to("meta"), needs).bound("mlm")
    on_meta["tokens"].forward = lambda **slots: torch.zeros(4, PATCHES, dtype=torch.long, device="meta")
    loss(f, f.batch).backward()


def test_what_does_not_fit_is_told(made):
    graph, encoders, losses = made
    widths = {"vision@mask_image": WIDTH}
    with pytest.raises(ValueError, match=r"`vision` \(BEiTv2\) has no codes; `codes` must name an image tokenizer"):
        MIMCodes("vision@mask_image", "vision", widths=widths, modules=encoders)
    batch = unequal()
    for codes in (torch.zeros(4, PATCHES - 1, dtype=torch.long), torch.zeros(4, PATCHES)):
        encoders["tokens"].forward = lambda **slots: codes
        with pytest.raises(ValueError, match=r"`tokens` gives torch\..*the batch has \(4, 16\) patches: it must give an int64 code"):
            losses["linear"](features(made, batch, "linear"), batch)
    del encoders["tokens"].forward
    batch = batch.with_fields(image=replace(batch.image, patch_mask=None))
    with pytest.raises(ValueError, match="no patch masks.*`image_mask: {patches, min_block}`"):
        losses["linear"](features(made, batch, "linear"), batch)


# ---- the masked positions of a batch ------------------------------------------------------------------------------------
def test_the_loader_counts_them(tokenizer):
    from xtoolkit.data.loader import Loader
    from xtoolkit.registry import DATASET_REGISTRY

    block = {"type": "SyntheticImages", "size": 9, "image_mask": {"patches": 6, "min_block": 2}}
    given = {"tokenizer": tokenizer, "image_size": 32, "patch_size": 8}
    batch = Loader("image", DATASET_REGISTRY.build(block, "here", **given, views=frozenset({"mask_image"})), 5, 0, 0).at(0)
    assert batch.image.masked_patches().tolist() == batch.image.patch_mask.flatten().nonzero()[:, 0].tolist()
    assert batch.image.masked_count == 5 * 6 and batch.image.clean().masked_count is None
    rows = batch.image.select(torch.tensor([3, 3]))
    assert rows.masked_count is None and torch.equal(rows.masked_patches(), rows.patch_mask.flatten().nonzero()[:, 0])
    both = ImageField.cat([batch.image, rows])
    assert both.masked_count is None and both.masked_patches().numel() == 7 * 6


# ---- two ranks ----------------------------------------------------------------------------------------------------------
def trained(output, *command):
    done = subprocess.run([*command, "tools/train_net.py", "--config", "tests/contracts/codes.yaml", f"train.output={output}"],
                          cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    lines = (output / "metrics.jsonl").read_text().splitlines()
    return checkpoint.read_model(latest(output)), [json.loads(line) for line in lines]


def test_two_ranks_with_unequal_masks_take_the_steps_of_one(tmp_path):
    alone = trained(tmp_path / "one", sys.executable)
    both = trained(tmp_path / "two", sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
    for name, parameter in alone[0].items():
        assert torch.allclose(parameter, both[0][name], rtol=1e-4, atol=2e-6), name
    for one, other in zip(alone[1], both[1]):
        for key in ("image.codes", "image.codes.guess", "loss"):
            assert one[key] == pytest.approx(other[key], rel=1e-5), key
