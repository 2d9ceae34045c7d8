"""Projection and Similarity: unit vectors, the clamped temperature, and two processes against one."""

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn

from xtoolkit.encoders.projection import Projection
from xtoolkit.encoders.similarity import Similarity
from xtoolkit.features import Encoded


def unit(rows, dim=8):
    return F.normalize(torch.randn(rows, dim), dim=-1)


def similarity(**keys):
    return Similarity(widths={"image": 8, "text": 8}, **keys)


def test_projection_is_the_normed_linear_map_of_the_summary_token():
    model, x = Projection(widths={"x": 16}, dim=8), Encoded.of(torch.randn(3, 5, 16))
    out = model(view=None, x=x)
    expected = x.pooled @ model.linear.weight.t() + model.linear.bias
    torch.testing.assert_close(out, expected / expected.norm(dim=1, keepdim=True))
    assert model.width == 8


def test_vectors_and_scores_stay_float32_under_autocast():
    projection, sim = Projection(widths={"x": 16}, dim=8), similarity()
    with torch.autocast("cpu", torch.bfloat16):
        out = projection(view=None, x=Encoded.of(torch.randn(3, 5, 16)))
        scores = sim(view=None, image=out, text=out)
    assert out.dtype == scores.image_to_text.dtype == torch.float32
    torch.testing.assert_close(out.norm(dim=1), torch.ones(3))
    torch.testing.assert_close(scores.local.diagonal() * 0.07, torch.ones(3))


def test_wired_to_encoders_it_compares_their_summaries_at_length_one():
    image, text, sim = Encoded.of(3 * torch.randn(4, 5, 8)), Encoded.of(torch.randn(4, 3, 8).bfloat16()), similarity()
    scores = sim(view=None, image=image, text=text)
    expected = [F.normalize(side.tokens[:, 0].double(), dim=-1) for side in (image, text)]
    torch.testing.assert_close(scores.image_to_text.double(), expected[0] @ expected[1].t() / 0.07, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(scores.text_to_image, scores.image_to_text.t())


def test_a_model_in_float64_is_compared_in_float64():
    """Rounding vectors to float32 on the way would hide every difference below 1e-7 from a numerical check."""
    projection, sim = Projection(widths={"x": 16}, dim=8).double(), similarity().double()
    out = projection(view=None, x=Encoded.of(torch.randn(3, 5, 16, dtype=torch.float64)))
    scores = sim(view=None, image=out, text=out)
    assert out.dtype == scores.image_to_text.dtype == scores.text_to_image.dtype == torch.float64
    assert (out.norm(dim=1) - 1).abs().max() < 1e-15
    assert (scores.local.diagonal() * sim.temperature - 1).abs().max() < 1e-14


def test_scores_are_dot_products_over_temperature():
    image, text, sim = unit(3), unit(3), similarity(temperature=0.1)
    scores = sim(view=None, image=image, text=text)
    torch.testing.assert_close(scores.image_to_text, image @ text.t() / 0.1)
    assert torch.equal(scores.text_to_image, scores.image_to_text.t())
    assert scores.first == 0 and torch.equal(scores.local, scores.image_to_text)
    assert torch.equal(scores.columns(torch.arange(3)), torch.arange(3))
    cut = scores.detach()
    assert scores.image_to_text.requires_grad and not cut.local.requires_grad and not cut.temperature.requires_grad


@pytest.mark.parametrize("value, clamped", [(7.0, 0.5), (-1.0, 0.001), (0.2, 0.2)])
def test_temperature_is_clamped_and_its_gradient_stays_alive(value, clamped):
    sim = similarity()
    with torch.no_grad():
        sim.temperature.fill_(value)
    scores = sim(view=None, image=unit(3), text=unit(3))
    assert sim.temperature.item() == scores.temperature.item() == pytest.approx(clamped)
    scores.image_to_text.square().sum().backward()
    assert sim.temperature.grad.abs().item() > 0
    with torch.no_grad():
        sim.temperature.fill_(value)
    sim.after_update()
    assert sim.temperature.item() == pytest.approx(clamped)


def test_a_second_forward_does_not_disturb_the_first_ones_gradient():
    sim = similarity()
    first, second = (sim(view=None, image=unit(3), text=unit(3)) for _ in range(2))
    (first.local.sum() + second.local.sum()).backward()
    assert sim.temperature.grad.isfinite().all()


def test_bad_keys_are_told():
    with pytest.raises(ValueError, match="give both projections the same `dim`"):
        Similarity(widths={"image": 8, "text": 16})
    with pytest.raises(ValueError, match="between min 0.1 and max 0.5"):
        similarity(min=0.1)


class Pair(nn.Module):
    """Two linear maps and their similarity, with ITC's loss: each rank's mean over its own rows."""

    def __init__(self, gather):
        super().__init__()
        torch.manual_seed(5)
        self.image, self.text = nn.Linear(6, 8), nn.Linear(6, 8)
        self.sim = similarity(gather=gather)

    def forward(self, image, text):
        image, text = F.normalize(self.image(image), dim=-1), F.normalize(self.text(text), dim=-1)
        scores = self.sim(view=None, image=image, text=text)
        target = scores.first + torch.arange(len(image))
        return scores, F.cross_entropy(scores.image_to_text, target) + F.cross_entropy(scores.text_to_image, target)


def gradients(model):
    return {name: p.grad for name, p in model.named_parameters()}


def pairs(rows=6):
    torch.manual_seed(9)
    return torch.randn(rows, 6), torch.randn(rows, 6)


def one_of_two(rank, folder):
    """A process of two: its half of the batch, gradients averaged over ranks as the trainer does."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    half, found = slice(3 * rank, 3 * rank + 3), {}
    for gather in ("global", "local"):
        model, (image, text) = Pair(gather), pairs()
        scores, loss = model(image[half], text[half])
        loss.backward()
        for parameter in model.parameters():
            dist.all_reduce(parameter.grad)
            parameter.grad /= 2
        model.eval()
        with torch.no_grad():
            alone = model(image[half], text[half])[0].image_to_text.shape
        found[gather] = {"gradients": gradients(model), "scores": scores.image_to_text.detach(),
                         "local": scores.local.detach(), "first": scores.first, "alone": tuple(alone),
                         "columns": scores.columns(torch.arange(3) + 10 * rank)}
    torch.save(found, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def test_two_processes_give_the_gradients_of_one(tmp_path):
    torch.multiprocessing.spawn(one_of_two, (str(tmp_path),), nprocs=2)
    ranks = [torch.load(tmp_path / f"{r}.pt", weights_only=True) for r in range(2)]
    whole, (image, text) = Pair("global"), pairs()
    scores, loss = whole(image, text)
    loss.backward()
    for rank, found in enumerate(r["global"] for r in ranks):
        rows = slice(3 * rank, 3 * rank + 3)
        torch.testing.assert_close(found["scores"], scores.image_to_text[rows].detach())
        torch.testing.assert_close(found["local"], scores.image_to_text[rows, rows].detach())
        assert found["first"] == 3 * rank
        assert found["columns"].tolist() == [0, 1, 2, 10, 11, 12]
        assert found["alone"] == (3, 3)  # evaluation: no collective
        for name, gradient in gradients(whole).items():
            torch.testing.assert_close(found["gradients"][name], gradient, atol=1e-6, rtol=1e-5)
    local, expected = Pair("local"), {}
    for rows in (slice(0, 3), slice(3, 6)):
        (local(image[rows], text[rows])[1] / 2).backward()
    expected = gradients(local)
    for rank, found in enumerate(r["local"] for r in ranks):
        assert found["scores"].shape == (3, 3) and found["columns"].tolist() == [10 * rank + i for i in range(3)]
        for name, gradient in expected.items():
            torch.testing.assert_close(found["gradients"][name], gradient, atol=1e-6, rtol=1e-5)
    assert not torch.allclose(expected["image.weight"], gradients(whole)["image.weight"], rtol=1e-2)
