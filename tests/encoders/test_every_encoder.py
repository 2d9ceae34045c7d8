"""Every registered encoder: forward, backward, autocast, the meta device; parameters and FLOPs at base size."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

import xtoolkit.encoders  # noqa: F401  registers them
from xtoolkit.batch import ImageField, TextField
from xtoolkit.features import Encoded, _grad
from xtoolkit.registry import ENCODER_REGISTRY


def image(rows=3):
    mask = torch.zeros(rows, 9, dtype=torch.bool)
    mask[:, :4] = True
    return ImageField(torch.randn(rows, 3, 12, 12), patch_mask=mask)


def text(rows=3, length=6):
    mask = torch.ones(rows, length, dtype=torch.bool)
    mask[0, 4:] = False
    return TextField(torch.randint(2, 40, (rows, length)).masked_fill(~mask, 1), mask)


def encoded(rows=3, tokens=6, width=16):
    return Encoded.of(torch.randn(rows, tokens, width, requires_grad=True))


def unit(rows=3, dim=8):
    return torch.nn.functional.normalize(torch.randn(rows, dim), dim=-1).requires_grad_()


VISION = dict(type="BEiTv2", width=16, layers=2, heads=4, patch_size=4, image_size=12)
TINY = {  # type -> (block, what the toolkit gives, inputs)
    "BEiTv2": lambda: (VISION, {}, {"image": image()}),
    "RoBERTa": lambda: (dict(type="RoBERTa", width=16, layers=2, heads=4, vocab_size=40, max_positions=20), {},
                        {"text": text()}),
    "CrossAttention": lambda: (dict(type="CrossAttention", layers=2, heads=4), {"widths": {"text": 16, "image": 8}},
                               {"text": encoded(), "image": encoded(width=8)}),
    "Projection": lambda: (dict(type="Projection", dim=8), {"widths": {"x": 16}}, {"x": encoded()}),
    "Similarity": lambda: (dict(type="Similarity"), {"widths": {"image": 8, "text": 8}},
                           {"image": unit(), "text": unit()}),
    "Teacher": lambda: (dict(type="Teacher", of="vision"),
                        {"modules": {"vision": ENCODER_REGISTRY.build(VISION, "test")}},
                        {"image": image()}),
}
OURS = sorted(n for n in ENCODER_REGISTRY.names()
              if ENCODER_REGISTRY.get(n).__module__.startswith("xtoolkit.encoders."))


def build(name):
    block, given, inputs = TINY[name]()
    model = ENCODER_REGISTRY.build(block, "test", **given)
    for head in model.HEADS:
        model.build_head(head)
    return model, inputs


def outputs(model, inputs):
    """All that an encoder says as one tensor, its heads included."""
    out = model(view=None, **inputs)
    if isinstance(out, Encoded):
        assert out.tokens.shape[-1] == out.width == model.width and out.mask.dtype == torch.bool
        assert out.mask.shape == out.tokens.shape[:2] == (3, out.tokens.shape[1])
        heads = [getattr(model, head)(out.tokens.flatten(0, 1)) for head in model.HEADS]
        return torch.cat([t.float().flatten() for t in (out.tokens, *heads)])
    return out if isinstance(out, torch.Tensor) else torch.cat([out.image_to_text, out.text_to_image])


def reached(model):
    """Names without a gradient, or with a zero one; key biases move no softmax, so theirs is zero in truth."""
    return [n for n, p in model.named_parameters()
            if p.requires_grad and not n.endswith("key.bias") and (p.grad is None or not p.grad.any())]


def test_every_encoder_has_a_tiny_configuration_here():
    assert OURS == sorted(TINY)


@pytest.mark.parametrize("name", OURS)
def test_forward_is_finite_and_backward_reaches_every_parameter(name):
    model, inputs = build(name)
    out = outputs(model, inputs)
    assert out.isfinite().all() and out.numel() > 0
    if model.TRAINABLE:
        (out * torch.randn_like(out)).sum().backward()
        assert reached(model) == []
        assert all(p.grad.isfinite().all() for p in model.parameters())
    else:
        assert not out.requires_grad and not any(p.requires_grad for p in model.parameters())


@pytest.mark.parametrize("name", [n for n in OURS if ENCODER_REGISTRY.get(n).TRAINABLE])
def test_a_pass_without_a_graph_does_not_poison_the_next_under_autocast(name):
    model, inputs = build(name)
    with torch.autocast("cpu", torch.bfloat16):
        with _grad(False):
            assert not outputs(model, inputs).requires_grad
        out = outputs(model, inputs)
    assert out.isfinite().all()
    (out * torch.randn_like(out)).sum().backward()
    assert reached(model) == []


@pytest.mark.parametrize("name", OURS)
def test_bf16_stays_near_float32(name):
    model, inputs = build(name)
    model.eval()
    with torch.no_grad():
        exact = outputs(model, inputs)
        with torch.autocast("cpu", torch.bfloat16):
            rounded = outputs(model, inputs)
    assert rounded.dtype == torch.float32
    assert (exact - rounded).norm() / exact.norm() < 0.02


@pytest.mark.parametrize("name", OURS)
def test_meta_device_builds_and_runs(name):
    """The plan counts there; and any question to the device would raise there: DESIGN's no host sync in the step."""
    with torch.device("meta"):
        model, inputs = build(name)
        out = outputs(model, inputs)
    assert out.is_meta and all(t.is_meta for t in model.state_dict().values())


def parameters(module):
    return sum(p.numel() for p in module.parameters())


def test_parameter_counts_at_base_size_are_the_releases():
    with torch.device("meta"):
        vision, language = ENCODER_REGISTRY.get("BEiTv2")(), ENCODER_REGISTRY.get("RoBERTa")()
        fusion = ENCODER_REGISTRY.get("CrossAttention")(widths={"text": 768, "image": 768})
        projection = ENCODER_REGISTRY.get("Projection")(widths={"x": 768})
        assert parameters(vision) == 85_762_752 and parameters(vision.blocks) == 85_169_088
        assert parameters(language.roberta.embeddings) == 39_000_576
        assert parameters(language.roberta.encoder) == 85_054_464
        assert parameters(language) == 39_000_576 + 85_054_464
        language.build_head("lm_logits")
        assert parameters(language.lm_head) == 642_393
        assert parameters(fusion) == 113_421_312
        assert parameters(projection) == 196_864


def flops(run):
    with FlopCounterMode(display=False) as counter:
        result = run()
    return counter.get_total_flops(), result


def test_flops_counted_on_meta_equal_the_hand_formula():
    """Two per multiply-add of every matrix product, attention's two included; keys and values of an image once."""
    d, layers, n, s = 768, 12, 197, 12
    linear = lambda rows, a, b: 2 * rows * a * b
    attention = lambda queries, keys: 2 * 2 * queries * keys * d
    # Queries, keys, values and output; scores and sums of values; the MLP.
    block = lambda t: linear(t, d, 4 * d) + attention(t, t) + linear(t, d, 8 * d)
    with torch.device("meta"):
        vision, language = ENCODER_REGISTRY.get("BEiTv2")(), ENCODER_REGISTRY.get("RoBERTa")()
        fusion = ENCODER_REGISTRY.get("CrossAttention")(widths={"text": d, "image": d})
        found, picture = flops(lambda: vision(view=None, image=ImageField(torch.zeros(1, 3, 224, 224))))
        assert found == layers * block(n) + linear(n - 1, 3 * 16 * 16, d)
        field = TextField(torch.ones(1, s, dtype=torch.long), torch.ones(1, s, dtype=torch.bool))
        found, words = flops(lambda: language(view=None, text=field))
        assert found == layers * block(s)
        own = layers * (block(s) + linear(s, d, 2 * d) + attention(s, n))
        assert flops(lambda: fusion(view=None, text=words, image=picture))[0] == own + layers * linear(n, d, 2 * d)
        assert flops(lambda: fusion(view=None, text=words, image=picture))[0] == own
