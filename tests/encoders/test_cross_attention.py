"""CrossAttention against Hugging Face's decoder layers; shared keys and values against projecting per pass."""

import dataclasses

import pytest
import torch
import torch.nn.functional as F

from xtoolkit.encoders.cross_attention import CrossAttention
from xtoolkit.features import Encoded


def build(text=16, image=16, **keys):
    model = CrossAttention(widths={"text": text, "image": image}, layers=2, heads=4, **keys).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return model


def texts(rows=3, length=5, width=16, grad=False):
    mask = torch.arange(length) < torch.randint(2, length + 1, (rows, 1))
    return Encoded.of(torch.randn(rows, length, width, requires_grad=grad), mask)


def images(rows=3, width=16, masked=False, grad=False):
    mask = torch.rand(rows, 7) < 0.6 if masked else torch.ones(rows, 7, dtype=torch.bool)
    mask[:, 0] = True
    return Encoded.of(torch.randn(rows, 7, width, requires_grad=grad), mask)


def hugging_face(model, text, image):
    """The same weights in HF's encoder: eager attention, additive masks; narrower images are padded with zeros."""
    from transformers import RobertaConfig
    from transformers.models.roberta.modeling_roberta import RobertaEncoder

    config = RobertaConfig(hidden_size=16, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64,
                           is_decoder=True, add_cross_attention=True, layer_norm_eps=1e-5, use_cache=False)
    config._attn_implementation = "eager"
    oracle = RobertaEncoder(config).eval()
    short = 16 - image.width
    oracle.load_state_dict({k: F.pad(v, (0, 16 - v.shape[1])) if v.dim() == 2 and ".crossattention.self." in k else v
                            for k, v in model.state_dict().items()})
    additive = lambda mask: torch.zeros(mask.shape).masked_fill(~mask, -1e9)[:, None, None]
    own = additive(text.mask)
    if text.attention is not None:
        own = own + torch.zeros(text.attention.shape).masked_fill(~text.attention, -1e9)[:, None]
    states = oracle(text.tokens, attention_mask=own,
                    encoder_hidden_states=F.pad(image.tokens, (0, short)),
                    encoder_attention_mask=additive(image.mask), use_cache=False).last_hidden_state
    return oracle, states


@pytest.mark.parametrize("image_width, causal", [(16, False), (8, False), (16, True)])
@pytest.mark.parametrize("masked", [False, True])
def test_forward_and_gradients_equal_hugging_face(image_width, causal, masked):
    model, text, image = build(image=image_width), texts(grad=True), images(width=image_width, masked=masked, grad=True)
    if causal:
        text = dataclasses.replace(text, attention=torch.ones(5, 5).tril().bool().expand(3, 5, 5))
    sources = [text.parts[0][0].tokens, image.parts[0][0].tokens]
    ours = model(view=None, text=text, image=image)
    assert torch.equal(ours.mask, text.mask) and ours.attention is text.attention
    pull = torch.randn_like(ours.tokens)
    input_gradients = torch.autograd.grad((ours.tokens * pull).sum(), sources, retain_graph=True)
    (ours.tokens * pull).sum().backward()
    oracle, theirs = hugging_face(model, text, image)
    torch.testing.assert_close(ours.tokens, theirs, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(input_gradients, torch.autograd.grad((theirs * pull).sum(), sources, retain_graph=True),
                               atol=1e-5, rtol=1e-4)
    (theirs * pull).sum().backward()
    gradients = {k: v.grad for k, v in oracle.named_parameters()}
    for name, parameter in model.named_parameters():
        expected = gradients[name]
        if parameter.dim() == 2:
            expected = expected[:, :parameter.shape[1]]
        torch.testing.assert_close(parameter.grad, expected, atol=1e-4, rtol=1e-4, msg=lambda m: f"{name}: {m}")


def test_rows_of_one_picture_share_keys_and_values_exactly():
    """ITM: 3B rows by index, and another pass, against copies of the tokens that share nothing."""
    model = build()
    text, image = texts(), images(masked=True)
    rows, pictures = torch.tensor([0, 1, 2, 0, 2, 2]), torch.tensor([0, 1, 2, 2, 0, 1])
    results = []
    for shared in (True, False):
        model.zero_grad()
        tokens = image.tokens.clone().requires_grad_()
        whole = Encoded.of(tokens, image.mask)
        first = whole if shared else Encoded.of(tokens * 1, image.mask)
        second = whole.select(pictures) if shared else Encoded.of(tokens[pictures], image.mask[pictures])
        out = [model(view=None, text=t, image=i).tokens for t, i in ((text, first), (text.select(rows), second))]
        (out[0].square().sum() + out[1].pow(3).sum()).backward()
        results.append(out + [tokens.grad] + [p.grad.clone() for p in model.parameters()])
    for a, b in zip(*results):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-4)


def test_region_parts_equal_materialised_tokens():
    model, boxes = build(), torch.rand(5, 6) < 0.5
    boxes[:, 0] = True
    index, text, results = torch.tensor([0, 0, 1, 2, 2]), texts(rows=5), []
    pixels = torch.randn(3, 7, 16)
    for shared in (True, False):
        model.zero_grad()
        tokens = pixels.clone().requires_grad_()
        full = Encoded.of(tokens)
        passes = [full.subset(index, boxes), full.repeat(index)]
        assert len(passes[0].parts) == len(passes[1].parts) == 2
        if not shared:
            passes = [Encoded.of(e.tokens, e.mask) for e in passes]
        out = [model(view=None, text=text, image=e).tokens for e in passes]
        (out[0].square().sum() + out[1].pow(3).sum()).backward()
        results.append(out + [tokens.grad] + [p.grad.clone() for p in model.parameters()])
    for a, b in zip(*results):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-4)


def count_projected(model):
    """{layer: rows x tokens that its key projection saw}, filled as the model runs."""
    seen = [[] for _ in model.layer]
    for found, layer in zip(seen, model.layer):
        layer.crossattention.self.key.register_forward_hook(
            lambda module, args, out, found=found: found.append(tuple(args[0].shape[:2])))
    return seen


def test_each_source_is_projected_once_however_many_passes_read_it():
    model, index, boxes = build(), torch.tensor([0, 0, 1, 2, 2]), torch.ones(5, 6, dtype=torch.bool)
    seen, full, text = count_projected(model), images(rows=3), texts(rows=5)
    region, whole = full.subset(index, boxes), full.repeat(index)
    for image in (region, region.select(torch.tensor([4, 3, 2, 1, 0])), whole, region):
        model(view=None, text=text, image=image)
    # summary tokens of the regions, patches of the pictures, summary tokens of the pictures
    assert seen == [[(5, 1), (3, 6), (3, 1)]] * 2


def test_a_pass_without_a_graph_never_serves_one_with_a_graph():
    model, text, image = build(), texts(), images(grad=True)
    with torch.no_grad():
        expected = model(view=None, text=text, image=image).tokens
    out = model(view=None, text=text, image=image).tokens
    torch.testing.assert_close(out, expected)
    out.sum().backward()
    assert image.parts[0][0].tokens.grad.abs().sum() > 0
    assert all(layer.crossattention.self.value.weight.grad.abs().sum() > 0 for layer in model.layer)


def test_behind_a_cut_keys_and_values_are_shared_too():
    model, text, image = build(), texts(), images(grad=True)
    seen = count_projected(model)
    for _ in range(2):
        model(view=None, text=text, image=image.detach()).tokens.sum().backward(retain_graph=True)
    assert seen == [[(3, 7)]] * 2 and image.parts[0][0].tokens.grad is None


def test_masked_image_tokens_and_padding_cannot_be_seen():
    model, text, image = build(), texts(), images(masked=True)
    other = Encoded.of(torch.where(image.mask[..., None], image.tokens, torch.randn_like(image.tokens)), image.mask)
    expected = model(view=None, text=text, image=image).tokens
    torch.testing.assert_close(model(view=None, text=text, image=other).tokens, expected)
    padded = Encoded.of(torch.where(text.mask[..., None], text.tokens, torch.randn_like(text.tokens)), text.mask)
    torch.testing.assert_close(expected[text.mask],
                               model(view=None, text=padded, image=image).tokens[text.mask])


def test_dropout_acts_on_attention_and_outputs_in_training_only():
    model, text, image = build(dropout=0.3), texts(), images()
    assert torch.equal(*[model(view=None, text=text, image=image).tokens for _ in range(2)])
    model.train()
    assert not torch.equal(*[model(view=None, text=text, image=image).tokens for _ in range(2)])
    for output in (m for m in model.modules() if isinstance(m, torch.nn.Dropout)):
        output.p = 0.0
    assert not torch.equal(*[model(view=None, text=text, image=image).tokens for _ in range(2)])


def test_width_defaults_to_the_texts_and_may_differ():
    assert build(text=16).width == 16
    wide = build(text=16, image=8, width=32)
    assert wide(view=None, text=texts(), image=images(width=8)).tokens.shape == (3, 5, 32)
    with pytest.raises(ValueError, match="not a multiple of heads"):
        build(text=18)


def test_initial_values():
    model = CrossAttention(widths={"text": 64, "image": 32}, layers=1, heads=4)
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            assert (parameter == 0).all(), name
        elif "LayerNorm" in name:
            assert (parameter == 1).all(), name
        else:
            assert parameter.std().item() == pytest.approx(0.02, rel=0.1), name


def test_unequal_rows_are_told():
    with pytest.raises(ValueError, match="3 texts and 2 images"):
        build()(view=None, text=texts(3), image=images(2))
