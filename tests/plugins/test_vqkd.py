"""VQ-KD against loops in float64: codes, losses and their gradient, k-means, the codes' moving average; what is frozen."""

import copy
import math

import pytest
import torch

from xtoolkit.batch import Batch, ImageField
from xtoolkit.features import Encoded, Features, _grad
from xtoolkit.graph import EncoderSpec, Graph
from xtoolkit.recipe.plugins import import_components
from xtoolkit.registry import ENCODER_REGISTRY, LOSS_REGISTRY, TASK_REGISTRY

import_components()
from xtoolkit.plugins.singles.codebook import Codebook, spherical_kmeans  # noqa: E402

SMALL = dict(type="VQKD", codes=9, dim=4, width=16, layers=2, heads=2, patch_size=4, image_size=12, init_std=0.3)
PATCHES = 9


def tokenizer(**keys):
    return ENCODER_REGISTRY.build(SMALL | keys, "test")


def picture(rows=3, seed=0):
    return ImageField(torch.randn(rows, 3, 12, 12, generator=torch.Generator().manual_seed(seed)))


def unit(row):
    length = math.sqrt(sum(v * v for v in row))
    return [v / length for v in row]


def dot(a, b):
    return sum(x * y for x, y in zip(a, b))


def closest(row, codes):
    """By squared distance, the smallest number first."""
    return min(range(len(codes)), key=lambda c: sum((x - y) ** 2 for x, y in zip(row, codes[c])))


def latents_by_hand(model, pixels):
    """(B * N) rows of length 1 in float64: a plain transformer written with torch.nn's own attention."""
    model, d, heads = copy.deepcopy(model).double(), 16, 2
    pixels = (pixels.double() * model.std + model.mean) * 2 - 1
    x = torch.nn.functional.conv2d(pixels, model.encoder.patch_embed.proj.weight, model.encoder.patch_embed.proj.bias, stride=4)
    x = x.flatten(2).transpose(1, 2)
    x = torch.cat([model.encoder.cls_token.expand(len(x), -1, -1), x], 1) + model.encoder.pos_embed
    for block in model.encoder.blocks:
        y, attn = block.norm1(x), torch.nn.MultiheadAttention(d, heads, batch_first=True).double()
        with torch.no_grad():
            attn.in_proj_weight.copy_(block.attn.qkv.weight)
            attn.in_proj_bias.copy_(torch.cat([block.attn.q_bias, torch.zeros(d), block.attn.v_bias]))
            attn.out_proj.load_state_dict(block.attn.proj.state_dict())
        x = x + attn(y, y, y, need_weights=False)[0]
        y = block.mlp.fc1(block.norm2(x))
        x = x + block.mlp.fc2(0.5 * y * (1 + torch.erf(y / math.sqrt(2))))
    x = torch.nn.functional.layer_norm(x[:, 1:], (d,), model.encoder.fc_norm.weight, model.encoder.fc_norm.bias, 1e-6)
    x = model.encode_task_layer[2](model.encode_task_layer[0](x).tanh())
    return [unit(row) for row in x.flatten(0, 1).tolist()]


@torch.no_grad()
def test_codes_are_the_nearest_of_the_latents():
    model, image = tokenizer(), picture()
    for name in ("q_bias", "v_bias"):
        for block in model.encoder.blocks:
            getattr(block.attn, name).normal_()
    codes = model(view=None, image=image)
    rows = latents_by_hand(model, image.pixels)
    assert codes.shape == (3, PATCHES) and codes.dtype == torch.int64 and len(codes.unique()) > 2
    assert codes.flatten().tolist() == [closest(row, model.quantize.weight.tolist()) for row in rows]
    trained = tokenizer(trained=True)
    trained.load_state_dict(model.state_dict())
    found = trained(view=None, image=image)
    torch.testing.assert_close(found.latents.flatten(0, 1), torch.tensor(rows, dtype=torch.float32), atol=1e-5, rtol=1e-5)
    assert torch.equal(found.codes, codes) and torch.equal(found.chosen, model.quantize.weight[codes])


def test_a_frozen_tokenizer_has_no_gradient_and_learns_nothing():
    model, image = tokenizer().train(), picture()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    assert not model(view=None, image=image).is_floating_point() and not any(p.requires_grad for p in model.parameters())
    model.after_update()
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    trained = tokenizer(trained=True).train()
    before = trained.quantize.weight.clone()
    for quiet in (lambda: trained.eval()(view=None, image=image), lambda: _quietly(trained.train(), image)):
        quiet()
        trained.after_update()
        assert torch.equal(trained.quantize.weight, before) and not trained.quantize.started


def _quietly(model, image):
    with _grad(False):
        model(view=None, image=image)


# ---- k-means and the moving average -------------------------------------------------------------------------------------
def kmeans_by_hand(rows, count):
    """Ten rounds in plain numbers, from the rows that the generator of the function draws."""
    generator = torch.Generator().manual_seed(0)
    first = torch.randperm(len(rows), generator=generator)[:count].tolist()
    first += torch.randint(len(rows), (count - len(first),), generator=generator).tolist() if len(first) < count else []
    centres = [rows[i] for i in first]
    for _ in range(10):
        own = [max(range(count), key=lambda c: dot(row, centres[c])) for row in rows]
        for c in range(count):
            members = [row for row, o in zip(rows, own) if o == c]
            if members:
                centres[c] = unit([sum(column) for column in zip(*members)])
    return centres, [own.count(c) for c in range(count)]


@pytest.mark.parametrize("rows, count", [(40, 6), (5, 8)])
def test_kmeans(rows, count):
    points = torch.nn.functional.normalize(torch.randn(rows, 4), dim=1)
    centres, sizes = spherical_kmeans(points, count)
    wanted, counted = kmeans_by_hand([unit(row) for row in points.double().tolist()], count)
    torch.testing.assert_close(centres, torch.tensor(wanted, dtype=torch.float32), atol=1e-5, rtol=1e-5)
    assert sizes.tolist() == counted and sum(counted) == rows


def test_codes_follow_those_that_chose_them_and_dead_ones_stay():
    book, decay = Codebook(7, 4, 0.9, 0), 0.9
    book.weight[6] = -book.weight[:6].sum(0) / book.weight[:6].sum(0).norm()
    codes, sizes = [unit(row) for row in book.weight.double().tolist()], [0.0] * 7
    book.started.fill_(True)
    for step in range(5):
        counts, sums = [0] * 7, [[0.0] * 4 for _ in range(7)]
        for part in range(2):  # micro-batches: one update
            rows = torch.nn.functional.normalize(torch.randn(11, 4) + 2 * book.weight[0], dim=1)
            assert book.begin(rows)
            own = book.nearest(rows)
            assert own.tolist() == [closest(row, codes) for row in rows.double().tolist()]
            book.collect(rows, own)
            for row, c in zip(rows.double().tolist(), own.tolist()):
                counts[c] += 1
                sums[c] = [a + b for a, b in zip(sums[c], row)]
        before = book.weight.clone()
        book.update()
        for c in range(7):
            sizes[c] = decay * sizes[c] + (1 - decay) * counts[c]
            if counts[c]:
                codes[c] = unit([decay * a + (1 - decay) * b for a, b in zip(codes[c], unit(sums[c]))])
            else:
                torch.testing.assert_close(book.weight[c], before[c], atol=1e-7, rtol=0)
        assert 0 in counts
        torch.testing.assert_close(book.weight, torch.tensor(codes, dtype=torch.float32), atol=1e-6, rtol=1e-6)
        torch.testing.assert_close(book.cluster_size, torch.tensor(sizes), atol=1e-5, rtol=1e-5)
    before = book.weight.clone()
    book.update()
    assert torch.equal(book.weight, before) and book.updates == 5, "an update in which it took no part moves nothing"


def test_the_first_batch_that_trains_is_clustered_after_the_wait():
    model = tokenizer(trained=True, wait=2).train()
    for step in range(4):
        drawn, found = model.quantize.weight.clone(), model(view=None, image=picture(seed=step))
        begun = torch.nn.functional.normalize(found.latents.detach(), dim=-1)
        if step < 2:
            assert torch.equal(found.chosen, found.latents) and torch.equal(model.quantize.weight, drawn)
        if step == 2:
            centres, sizes = spherical_kmeans(begun.flatten(0, 1), 9)
            torch.testing.assert_close(model.quantize.weight, centres)
            assert torch.equal(model.quantize.cluster_size, sizes.float())
        model.after_update()
        assert bool(model.quantize.started) == (step >= 2) and model.quantize.updates == step + 1
    assert not torch.equal(model.quantize.weight, drawn)


# ---- the loss -----------------------------------------------------------------------------------------------------------
def made(**keys):
    encoders = torch.nn.ModuleDict({"tokens": tokenizer(trained=True), "vision": ENCODER_REGISTRY.build(dict(
        type="BEiTv2", width=12, layers=1, heads=2, patch_size=4, image_size=12, drop_path=0.0, init_std=0.3), "test")})
    block = {"type": "VQKDLoss", "feature": "tokens", "teacher": "vision", "layers": 1} | keys
    loss = LOSS_REGISTRY.build(block, "test", widths={"tokens": 4, "vision": 12}, modules=encoders)
    graph = Graph({name: EncoderSpec(name, {"image": "$image"}) for name in encoders}, {"image": ImageField})
    return encoders, loss, graph


def features(encoders, loss, graph, batch):
    needs = {"vqkd": loss.needs({"feature": "tokens", "teacher": "vision"})}
    passes = graph.passes(needs, frozenset(batch.fields))
    assert {p.node.label: p.graph for p in passes} == {"tokens": True, "vision": False}
    return Features(graph, encoders, batch, needs, {p.node for p in passes if p.graph}).bound("vqkd")


@pytest.mark.parametrize("centred", [False, True])
def test_the_loss_and_its_guess(centred):
    encoders, loss, graph = made(beta=0.5, centred=centred)
    encoders["tokens"].quantize.started.fill_(True)
    batch = Batch(image=picture())
    f = features(encoders, loss, graph, batch)
    value = loss(f, batch)
    with torch.no_grad():
        told = loss.decode(f["tokens"]).double().flatten(0, 1).tolist()
        wanted = encoders["vision"](view=None, image=batch.image).tokens[:, 1:].double().flatten(0, 1)
        wanted = [unit(row) for row in (wanted - wanted.mean(0) if centred else wanted).tolist()]
        z, v = (t.detach().double().flatten(0, 1).tolist() for t in (f["tokens"].latents, f["tokens"].chosen))
    rows = len(z)
    cosine = sum(1 - dot(unit(a), b) for a, b in zip(told, wanted)) / rows
    commitment = 0.5 * sum((a - b) ** 2 for x, y in zip(z, v) for a, b in zip(x, y)) / (rows * 4)
    assert value["cosine"].item() == pytest.approx(cosine, abs=1e-5)
    assert value["commitment"].item() == pytest.approx(commitment, rel=1e-5)
    codes = f["tokens"].codes.flatten().tolist()
    shares = [codes.count(c) / rows for c in set(codes)]
    assert f.logged["vqkd.used"].item() == len(shares)
    assert f.logged["vqkd.perplexity"].item() == pytest.approx(math.exp(-sum(p * math.log(p) for p in shares)), rel=1e-5)
    mean = [sum(column) / rows for column in zip(*wanted)]
    with torch.no_grad():
        guess = loss.guess(f, batch)
    assert guess["cosine"].item() == pytest.approx(1 - math.sqrt(dot(mean, mean)), abs=1e-5) and guess["commitment"].item() == 0
    assert all(1 - dot(unit(m), unit(mean)) >= -1e-9 for m in wanted)


def test_the_gradient_goes_straight_through_the_codes():
    encoders, loss, graph = made(beta=0.5)
    model, batch = encoders["tokens"], Batch(image=picture())
    model.quantize.started.fill_(True)
    f = features(encoders, loss, graph, batch)
    sum(loss(f, batch).values()).backward()
    got = {name: p.grad for name, p in model.named_parameters()}
    assert all(g is not None and g.isfinite().all() and g.any() for g in got.values())
    assert all(p.grad is None for p in encoders["vision"].parameters()) and not model.quantize.weight.requires_grad
    assert all(p.grad.any() for p in loss.parameters())
    # What the decoder wants of its input, given to the latents, and the pull towards the codes.
    quantized = model(view=None, image=batch.image)
    given = quantized.chosen.clone().requires_grad_()
    wanted = torch.nn.functional.normalize(encoders["vision"](view=None, image=batch.image).tokens[:, 1:].detach(), dim=-1)
    told = loss.decode_task_layer(loss.decoder(loss.decoder.patch_embed.proj(given)))
    pull, = torch.autograd.grad(1 - torch.nn.functional.cosine_similarity(told, wanted, dim=-1).mean(), given)
    pull = pull + 0.5 * 2 * (quantized.latents - quantized.chosen).detach() / quantized.latents.numel()
    want = torch.autograd.grad(quantized.latents, list(model.parameters()), pull)
    for name, g in zip(got, want):
        torch.testing.assert_close(got[name], g, rtol=1e-4, atol=1e-6, msg=name)


def test_what_does_not_fit_is_told():
    with pytest.raises(ValueError, match="image_size 13 is not a multiple of patch_size 4"):
        tokenizer(image_size=13)
    with pytest.raises(ValueError, match="built for 12 x 12 pixels, this batch has 8 x 8: set its `image_size`"):
        tokenizer()(view=None, image=ImageField(torch.zeros(1, 3, 8, 8)))
    block = {"type": "VQKDLoss", "feature": "tokens", "teacher": "tokens"}
    with pytest.raises(ValueError, match="`tokens` must be a VQKD encoder with `trained: true`"):
        LOSS_REGISTRY.build(block, "here", widths={"tokens": 4}, modules={"tokens": tokenizer()})
    encoders, loss, graph = made()
    encoders["vision"].forward = lambda **slots: Encoded.of(torch.zeros(3, 5, 12))
    with pytest.raises(ValueError, match="teacher `vision` has 4 patches, `tokens` 9: give both the same image_size"):
        loss(features(encoders, loss, graph, batch := Batch(image=picture())), batch)


def test_the_task_counts_codes_over_all_pictures():
    task = TASK_REGISTRY.build({"type": "CodeUse", "tokens": "tokens"}, "test")
    task.classes = 8
    counts = [5, 0, 3, 0, 0, 0, 0, 1]
    codes = torch.tensor([c for c, n in enumerate(counts) for _ in range(n)]).view(3, 3)
    metrics, shares = task.score({"codes": codes}), [n / 9 for n in counts if n]
    assert metrics["codes"] == 3 and metrics["used"] == 37.5
    assert metrics["perplexity"] == pytest.approx(math.exp(-sum(p * math.log(p) for p in shares)))
    assert task.floor({"codes": codes}) == {"used": 12.5, "codes": 1.0, "perplexity": 1.0}
