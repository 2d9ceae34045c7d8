"""ITC against a float64 computation written plainly, with duplicates, and over two processes."""

import math
from dataclasses import replace

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from xtoolkit.batch import Batch, ImageField, TextField
from xtoolkit.encoders.similarity import Similarity
from xtoolkit.losses.itc import ITC

from .tiny import Tiny, make_batch


@pytest.fixture(scope="module")
def model():
    return Tiny()


def unit(x, layer):
    x = x.double() @ layer.weight.double().T + layer.bias.double()
    return x / x.norm(dim=1, keepdim=True)


def plain(images, texts, temperature, ignored=()):
    """Row by row; ``ignored`` holds pairs of rows, in either order, that are left out of each other's softmax."""
    scores, total, n = (images @ texts.T / temperature).tolist(), 0.0, len(images)
    out = {frozenset(p) for p in ignored}
    for i in range(n):
        columns = [j for j in range(n) if frozenset((i, j)) not in out]
        for row in ([scores[i][j] for j in columns], [scores[j][i] for j in columns]):
            total += math.log(sum(map(math.exp, row))) - scores[i][i]
    return total / (2 * n)


def shown(model, batch):
    """Unit vectors of the batch's rows, from the encoders' summaries."""
    e = model.encoders
    vision = e["vision"](view=None, image=batch.image.clean()).tokens
    text = e["text"](view=None, text=batch.text).tokens
    if batch.region is None:
        summary = vision[:, 0]
    else:
        summary = torch.stack([vision[i, 1:][patches].double().mean(0)
                               for i, patches in zip(batch.region.image_index, batch.region.box_patches)])
    return unit(summary, e["vision_proj"].linear), unit(text[:, 0], e["text_proj"].linear)


@pytest.mark.parametrize("stream", ["pairs", "region"])
@torch.no_grad()
def test_against_float64(model, stream):
    batch = make_batch(stream)
    values, log = model.run(batch, "itc")
    assert values["itc"].item() == pytest.approx(plain(*shown(model, batch), 0.07), rel=1e-5)
    assert log["itc.temperature"].shape == () and log["itc.temperature"].item() == pytest.approx(0.07)


@torch.no_grad()
def test_equal_texts_and_equal_pictures_are_no_negatives(model):
    batch = make_batch("pairs", duplicates=[(0, 3)])
    key = batch.image.key.clone()
    key[5] = key[2]
    batch = batch.with_fields(image=replace(batch.image, key=key))
    images, texts = shown(model, batch)
    got = model.run(batch, "itc")[0]["itc"].item()
    assert got == pytest.approx(plain(images, texts, 0.07, ignored=[(0, 3), (2, 5)]), rel=1e-5)
    release = Tiny(losses={"itc": {"type": "ITC", "sim": "sim", "ignore_same": False}})
    got = release.run(batch, "itc")[0]["itc"].item()
    assert got == pytest.approx(plain(images, texts, 0.07), rel=1e-5) != plain(images, texts, 0.07, [(0, 3), (2, 5)])


def shared(images, texts, temperature, groups, left_out=()):
    """Loss and its gradient by the unit vectors (n, d) of pictures, in closed form: rows of a group are right answers of each
    other, 1 / n each; ``left_out``: pairs of rows without a part in each other's softmax."""
    n, out = len(images), {frozenset(p) for p in left_out}
    scores, total, gradient = images @ texts.T / temperature, 0.0, torch.zeros_like(images)
    group_of = lambda row: next((g for g in groups if row in g), (row,))
    for which, rows in (("image", scores), ("text", scores.T)):
        for i in range(n):
            columns = [j for j in range(n) if frozenset((i, j)) not in out]
            norm = sum(math.exp(rows[i, j]) for j in columns)
            for j in columns:
                right, p = (1 / len(group_of(i)) if j in group_of(i) else 0.0), math.exp(rows[i, j]) / norm
                total -= right * math.log(p) / (2 * n)
                picture, text = (i, j) if which == "image" else (j, i)
                gradient[picture] += (p - right) / (2 * n) / temperature * texts[text]
    return total, gradient


@pytest.mark.parametrize("ignore_same", [True, False])
def test_shared_targets_and_their_gradient_against_float64(ignore_same):
    g = torch.Generator().manual_seed(3)
    images, texts = (torch.nn.functional.normalize(torch.randn(7, 16, generator=g, dtype=torch.float64), dim=1) for _ in range(2))
    image_key, text_key = torch.tensor([0, 1, 2, 1, 4, 1, 2]), torch.arange(7)
    text_key[4], text_key[3] = text_key[0], text_key[1]  # of other pictures, and of one
    ids = torch.zeros(7, 3, dtype=torch.long)
    batch = Batch(text=TextField(ids, ids == 0, text_key), image=ImageField(torch.zeros(7, 3, 8, 8), image_key))
    images.requires_grad_()
    scores = Similarity({"image": 16, "text": 16}).double()(view=None, image=images, text=texts)
    value = ITC("sim", ignore_same, targets="shared")(Stub(scores), batch)
    value.backward()
    want, gradient = shared(images.detach(), texts, scores.temperature.item(), [(1, 3, 5), (2, 6)], [(0, 4)] if ignore_same else ())
    assert value.item() == pytest.approx(want, rel=1e-10)
    torch.testing.assert_close(images.grad, gradient, rtol=1e-9, atol=1e-12)
    excluded = ITC("sim", ignore_same)(Stub(scores.detach()), batch).item()
    assert abs(excluded - want) > 1e-3
    guess = ITC("sim", ignore_same, targets="shared").guess(Stub(scores.detach()), batch).item()
    assert guess == pytest.approx((2 * math.log(6) + 5 * math.log(7)) / 7 if ignore_same else math.log(7))


def test_in_a_batch_with_no_picture_twice_both_targets_are_one_loss(model):
    batch = make_batch("pairs", duplicates=[(0, 3)])
    other = Tiny(losses={"itc": {"type": "ITC", "sim": "sim", "targets": "shared"}})
    with torch.no_grad():
        assert other.run(batch, "itc")[0]["itc"].item() == pytest.approx(model.run(batch, "itc")[0]["itc"].item(), rel=1e-6)


@torch.no_grad()
def test_regions_of_one_picture_are_negatives_unless_the_box_is_the_same(model):
    batch = make_batch("region")
    images, texts = shown(model, batch)
    key = batch.region.key.clone()
    key[4] = key[2]
    same = batch.with_fields(region=replace(batch.region, key=key))
    assert model.run(same, "itc")[0]["itc"].item() == pytest.approx(plain(images, texts, 0.07, [(2, 4)]), rel=1e-5)


def test_a_batch_of_one_pair_repeated_costs_nothing_and_has_a_finite_gradient(model):
    batch = make_batch("pairs")
    batch = batch.with_fields(text=replace(batch.text, key=torch.zeros(6, dtype=torch.long)))
    value = model.run(batch, "itc")[0]["itc"]
    value.backward()
    assert value.item() == 0
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters().values())
    model.encoders.zero_grad()


# ---- two processes -----------------------------------------------------------------------------------------------
class Stub:
    """What ITC asks of Features."""

    def __init__(self, scores):
        self.scores = scores

    def __getitem__(self, ref):
        return self.scores

    def log(self, name, tensor):
        pass


def rows(which):
    g = torch.Generator().manual_seed(3)
    images, texts = (torch.nn.functional.normalize(torch.randn(8, 16, generator=g), dim=1) for _ in range(2))
    image_key, text_key = torch.arange(8), torch.arange(10, 18)
    image_key[6] = image_key[1]   # the same picture, on the other rank
    text_key[5] = text_key[0]     # the same text, on the other rank
    text_key[3] = text_key[2]     # and here
    ids = torch.zeros(4, 3, dtype=torch.long)
    batch = Batch(text=TextField(ids, ids == 0, text_key[which]),
                  image=ImageField(torch.zeros(4, 3, 8, 8), image_key[which]))
    return images, texts, batch


def work(rank, path, out):
    dist.init_process_group("gloo", init_method=f"file://{path}", rank=rank, world_size=2)
    mine = slice(4 * rank, 4 * rank + 4)
    images, texts, batch = rows(mine)
    similarity = Similarity({"image": 16, "text": 16})
    scores = similarity(view=None, image=images[mine], text=texts[mine])
    value = ITC("sim")(Stub(scores), batch).detach()
    dist.all_reduce(value)
    if rank == 0:
        torch.save(value / 2, out)
    dist.destroy_process_group()


def test_duplicates_on_another_rank_are_no_negatives(tmp_path):
    """The mean of two processes' losses is that of one process on the whole batch."""
    mp.spawn(work, (tmp_path / "meet", tmp_path / "loss.pt"), nprocs=2)
    images, texts, _ = rows(slice(0, 8))
    want = plain(images.double(), texts.double(), 0.07, [(0, 5), (1, 6), (2, 3)])
    assert torch.load(tmp_path / "loss.pt").item() == pytest.approx(want, rel=1e-5)
