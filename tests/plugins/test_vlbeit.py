"""VL-BEiT's backbone: against timm's plain transformer, against a loop over tokens, its parameters by hand, its errors."""

import dataclasses
from functools import partial
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from xtoolkit.batch import ImageField, TextField
from xtoolkit.recipe.plugins import import_components
from xtoolkit.registry import ENCODER_REGISTRY

import_components()
WIDTH, HEADS, LAYERS, GRID = 24, 3, 3, 4
TINY = {"width": WIDTH, "layers": LAYERS, "heads": HEADS, "vocab_size": 50, "max_tokens": 12, "image_size": 32, "patch_size": 8,
        "vl_layers": 1, "drop_path": 0, "visual_tokens": 10}
CASES = {"text": ("text",), "picture": ("image",), "pair": ("text", "image")}


def build(**keys):
    """Drawn so large that every weight shows, biases and norms too; in float64."""
    torch.manual_seed(0)
    made = ENCODER_REGISTRY.get("VLBEiT")(**TINY | keys).double().eval()
    for p in made.parameters():
        p.data.add_(0.1 * torch.randn_like(p))
    return made


@pytest.fixture(scope="module")
def fields():
    torch.manual_seed(1)
    ids = torch.randint(3, 50, (3, 7))
    mask = torch.arange(7) < torch.tensor([7, 4, 5])[:, None]
    masked = torch.rand(3, GRID**2) < 0.4
    return {"text": TextField(ids.masked_fill(~mask, 1), mask),
            "image": ImageField(torch.randn(3, 3, 32, 32, dtype=torch.float64), patch_mask=masked)}


def read(made, fields, case, **changed):
    return made(view=None, **{name: changed[name] if name in changed else fields[name] for name in CASES[case]})


# ---- experts made equal: a plain transformer ------------------------------------------------------------------------------
@torch.no_grad()
def make_equal(made):
    """The experts of a block, and their norms, with the weights of the first."""
    for block in made.blocks:
        for pool in (block.norm2, block.mlp):
            first, *others = pool.values()
            for other in others:
                other.load_state_dict(first.state_dict())


def plain(made):
    """timm's blocks with these weights: keys have a bias there, of 0."""
    from timm.models.vision_transformer import Block

    blocks = nn.ModuleList(Block(WIDTH, HEADS, qkv_bias=True, init_values=0.1, norm_layer=partial(nn.LayerNorm, eps=1e-6))
                           for _ in made.blocks).double()
    for own, theirs in zip(made.blocks, blocks):
        bias = torch.cat([own.attn.q_bias, torch.zeros_like(own.attn.q_bias), own.attn.v_bias])
        state = {"attn.qkv.weight": own.attn.qkv.weight, "attn.qkv.bias": bias, "attn.proj.weight": own.attn.proj.weight,
                 "attn.proj.bias": own.attn.proj.bias, "ls1.gamma": own.gamma_1, "ls2.gamma": own.gamma_2}
        state |= {f"norm1.{n}": p for n, p in own.norm1.named_parameters()}
        state |= {f"norm2.{n}": p for n, p in own.norm2["text"].named_parameters()}
        state |= {f"mlp.{n}": p for n, p in own.mlp["text"].named_parameters()}
        theirs.load_state_dict({n: p.detach() for n, p in state.items()})
    return blocks


def tokens_of(made, fields, case):
    """Words and places; [I_CLS], patches by a convolution, masked ones replaced, and places: (B, T, D), and which are real."""
    parts, masks = [], []
    if "text" in CASES[case]:
        text = fields["text"]
        parts.append(F.embedding(text.ids, made.word_embeddings.weight) + made.text_positions[:7])
        masks.append(text.mask)
    if "image" in CASES[case]:
        image = fields["image"]
        x = F.conv2d(image.pixels, made.patch_embed.proj.weight, made.patch_embed.proj.bias, stride=8).flatten(2).transpose(1, 2)
        if image.patch_mask is not None:
            x = torch.where(image.patch_mask[..., None], made.mask_token[0, 0], x)
        parts.append(torch.cat([made.cls_token.expand(3, -1, -1), x], 1) + made.image_positions)
        masks.append(torch.ones(3, 1 + GRID**2, dtype=torch.bool))
    return torch.cat(parts, 1), torch.cat(masks, 1)


@pytest.mark.parametrize("case", CASES)
def test_with_equal_experts_it_is_a_plain_transformer(fields, case):
    made = build()
    make_equal(made)
    blocks = plain(made)
    x, mask = tokens_of(made, fields, case)
    for block in blocks:
        x = block(x, attn_mask=mask[:, None, None].expand(-1, -1, x.shape[1], -1))
    theirs, ours = made.norm(x), read(made, fields, case)
    torch.testing.assert_close(ours.tokens, theirs, rtol=0, atol=1e-9)
    torch.testing.assert_close(ours.pooled, theirs[:, 0])
    weight = torch.randn_like(theirs) * mask[..., None]
    (theirs * weight).sum().backward()
    (read(made, fields, case).tokens * weight).sum().backward()
    for own, other in zip(made.blocks, blocks):
        torch.testing.assert_close(own.attn.qkv.weight.grad, other.attn.qkv.weight.grad, rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(own.gamma_2.grad, other.ls2.gamma.grad, rtol=1e-9, atol=1e-9)
        experts = sum(mlp.fc1.weight.grad for mlp in own.mlp.values() if mlp.fc1.weight.grad is not None)
        torch.testing.assert_close(experts, other.mlp.fc1.weight.grad, rtol=1e-9, atol=1e-9)


# ---- routing: a loop over tokens ------------------------------------------------------------------------------------------
def looped(made, fields, case):
    """Token by token: which expert reads it, what it attends to. No layer of the toolkit runs."""
    x, mask = tokens_of(made, fields, case)
    words = 7 if "text" in CASES[case] else 0
    d, bias = WIDTH // HEADS, made.relative_positions
    norm = lambda v, n: F.layer_norm(v, (WIDTH,), n.weight, n.bias, 1e-6)
    for depth, block in enumerate(made.blocks):
        attn, out = block.attn, torch.zeros_like(x)
        q_k_v = norm(x, block.norm1) @ attn.qkv.weight.T
        for row in range(3):
            q, k, v = q_k_v[row].split(WIDTH, 1)
            q, v = q + attn.q_bias, v + attn.v_bias
            for head in range(HEADS):
                cut = slice(head * d, (head + 1) * d)
                scores = q[:, cut] @ k[:, cut].T / d**0.5
                if bias is not None:
                    for i in range(len(scores)):
                        for j in range(len(scores)):
                            scores[i, j] = scores[i, j] + relative(bias, i, j, words)[depth * HEADS + head]
                scores[:, ~mask[row]] = -torch.inf
                out[row, :, cut] = scores.softmax(1) @ v[:, cut]
        x = x + block.gamma_1 * (out @ attn.proj.weight.T + attn.proj.bias)
        told = []
        for at in range(x.shape[1]):
            name = "pair" if case == "pair" and depth >= LAYERS - 1 else "text" if at < words else "image"
            expert, own = block.mlp[name], block.norm2[name if name in block.norm2 else "all"]
            hidden = F.gelu(norm(x[:, at], own) @ expert.fc1.weight.T + expert.fc1.bias)
            told.append(hidden @ expert.fc2.weight.T + expert.fc2.bias)
        x = x + block.gamma_2 * torch.stack(told, 1)
    return norm(x, made.norm)


def relative(tables, i, j, words):
    if i < words and j < words:
        return tables.text_table[i - j + TINY["max_tokens"] - 1]
    if i < words or j < words:
        return tables.cross_table[0 if i < words else 1]
    i, j, side = i - words - 1, j - words - 1, 2 * GRID - 1
    table = tables.relative_position_bias_table
    if i < 0 or j < 0:  # BEiT: from [I_CLS], to it, itself
        return table[-1] if i == j else table[-3] if i < 0 else table[-2]
    return table[(i // GRID - j // GRID + GRID - 1) * side + i % GRID - j % GRID + GRID - 1]


@pytest.mark.parametrize("keys", [{}, {"expert_norms": False}, {"relative_positions": True}], ids=["own", "one norm", "relative"])
@pytest.mark.parametrize("case", CASES)
def test_each_token_takes_the_expert_of_its_modality(fields, case, keys):
    made = build(**keys)
    torch.testing.assert_close(read(made, fields, case).tokens, looped(made, fields, case), rtol=0, atol=1e-9)


@pytest.mark.parametrize("case, moved", [("text", {"text"}), ("picture", {"image"}), ("pair", {"text", "image", "pair"})])
def test_only_the_experts_of_the_modality_learn(fields, case, moved):
    made = build()
    read(made, fields, case).tokens.square().sum().backward()
    for depth, block in enumerate(made.blocks):
        wanted = {"pair"} & moved if depth == LAYERS - 1 and case == "pair" else moved - {"pair"}
        for pool in (block.mlp, block.norm2):
            assert {n for n, m in pool.items() if all(p.grad is not None for p in m.parameters())} == wanted
            assert {n for n, m in pool.items() if any(p.grad is not None for p in m.parameters())} == wanted


def test_padding_and_masked_patches_are_not_seen(fields):
    made, text, image = build(), fields["text"], fields["image"]
    real = read(made, fields, "pair")
    padded = dataclasses.replace(text, ids=torch.where(text.mask, text.ids, 7))
    other = read(made, fields, "pair", text=padded).tokens
    seen = torch.cat([text.mask, torch.ones(3, 17, dtype=torch.bool)], 1)
    torch.testing.assert_close(other[seen], real.tokens[seen], rtol=0, atol=1e-12)
    hidden = image.patch_mask.view(3, 1, 4, 4).repeat_interleave(8, 2).repeat_interleave(8, 3)
    painted = dataclasses.replace(image, pixels=image.pixels.masked_fill(hidden, 3.0))
    assert torch.equal(read(made, fields, "pair", image=painted).tokens, real.tokens)
    assert not torch.equal(read(made, fields, "pair", image=image.clean()).tokens, real.tokens)
    assert real.segment("text").shape == (3, 7, WIDTH) and real.segment("image").shape == (3, 16, WIDTH)
    assert torch.equal(real.mask, seen) and torch.equal(real.segment("image"), real.tokens[:, 8:])


def test_the_keys_that_the_paper_leaves_open_change_what_they_say(fields):
    whole = read(build(), fields, "picture")
    mean = read(build(image_summary="mean"), fields, "picture")
    torch.testing.assert_close(mean.pooled, whole.tokens[:, 1:].mean(1))
    assert torch.equal(mean.tokens[:, 1:], whole.tokens[:, 1:])
    names = lambda **keys: {n for n, _ in build(**keys).named_parameters()}
    own = names()
    assert {n.split(".")[3] for n in names(experts=False) if ".mlp." in n} == {"all"}
    assert own - names(vl_layers=0) == {n for n in own if ".pair." in n} and all(n.startswith("blocks.2.") for n in own - names(vl_layers=0))
    assert names(token_types=True) - own == {"token_types"}
    assert own - names(layer_scale=None) == {f"blocks.{i}.gamma_{g}" for i in range(3) for g in (1, 2)}


@pytest.mark.parametrize("form, tied", [("mlm", True), ("linear", False)])
def test_its_output_layers(form, tied):
    made = build(word_head=form, code_head=form, tied=tied)
    for name in made.HEADS:
        made.build_head(name)
    made.double()
    states = torch.randn(5, WIDTH, dtype=torch.float64)
    for layer, head, matrix in ((made.lm_logits, made.lm_head, made.word_embeddings.weight if tied else made.lm_matrix),
                                (made.code_logits, made.code_head, made.code_matrix)):
        hidden = states
        if form == "mlm":
            hidden = F.layer_norm(F.gelu(head.dense(states)), (WIDTH,), head.layer_norm.weight, head.layer_norm.bias, 1e-6)
        torch.testing.assert_close(layer(states), hidden @ matrix.T + head.bias)
        labels = torch.tensor([1, 2, 0, 9, 4])
        torch.testing.assert_close(layer.cross_entropy(states, labels), F.cross_entropy(layer(states), labels), rtol=1e-6, atol=1e-6)


def test_places_are_resized_for_larger_pictures(fields):
    small, large = build(relative_positions=True), build(relative_positions=True, image_size=48)
    fitted = large.fit(small.state_dict())
    large.load_state_dict(fitted)
    patches = small.image_positions[1:].T.reshape(1, WIDTH, 4, 4)
    wanted = F.interpolate(patches, (6, 6), mode="bicubic", align_corners=False).flatten(2)[0].T
    torch.testing.assert_close(large.image_positions[1:], wanted, atol=1e-6, rtol=1e-6)
    assert torch.equal(large.image_positions[0], small.image_positions[0]) and small.fit(small.state_dict()).keys() == fitted.keys()


@pytest.mark.parametrize("keys, told", [
    ({"heads": 5}, "width 24 is not a multiple of heads 5"), ({"image_size": 30}, "nearest: 32"),
    ({"vl_layers": 4}, "vl_layers 4 is more than layers 3")])
def test_wrong_keys_are_told(keys, told):
    with pytest.raises(ValueError, match=told):
        build(**keys)


def test_wrong_batches_are_told(fields):
    made, text = build(), fields["text"]
    with pytest.raises(ValueError, match="a text of 13 tokens does not fit VLBEiT's 12 positions"):
        made(view=None, text=TextField(torch.full((1, 13), 3), torch.ones(1, 13, dtype=torch.bool)))
    with pytest.raises(ValueError, match="built for 32 x 32 pixels, this batch has 40 x 40: set `image_size: 40`"):
        made(view=None, image=ImageField(torch.zeros(1, 3, 40, 40)))
    with pytest.raises(ValueError, match="a text, a picture or both"):
        made(view=None)
    with pytest.raises(ValueError, match="no `@left_to_right`"):
        made(view=None, text=dataclasses.replace(text, attention=torch.ones(3, 7, 7, dtype=torch.bool)))


# ---- parameters, by hand --------------------------------------------------------------------------------------------------
def test_the_parameters_of_base_size():
    """The derivation of plugins/vlbeit/README.md, whose every figure is here."""
    d, layers, hidden = 768, 12, 4 * 768
    linear = lambda i, o: i * o + o
    norm = 2 * d
    words, places = 64_000 * d, 196 * d
    image = linear(3 * 16 * 16, d) + 2 * d + (1 + 14 * 14) * d      # patches, [I_CLS] and [M], V_pos
    attention = d * 3 * d + 2 * d + linear(d, d)                    # keys have no bias
    expert = norm + linear(d, hidden) + linear(hidden, d)           # its norm and its network
    block = norm + attention + 2 * expert + 2 * d                   # two experts; layer scale on two branches
    backbone = words + places + image + layers * block + norm
    lm, codes = linear(d, d) + norm + 64_000, linear(d, 8192)       # the matrix of words is that of the embeddings
    count = lambda **keys: sum(p.numel() for p in heads(**keys).parameters())
    assert count(vl_layers=0) == backbone + lm + codes == 198_754_560
    assert count() == backbone + 2 * expert + lm + codes == 208_202_496
    assert count(experts=False) == backbone - layers * expert + lm + codes == 142_066_944
    table = (Path(__file__).resolve().parents[2] / "plugins/vlbeit/README.md").read_text().partition("## Its parameters")[2]
    found = [int(cell.strip(" *").replace(",", "")) for line in table.partition("\n## ")[0].splitlines()[4:] if line.startswith("|")
             for cell in line.split("|")[2:3]]
    assert found == [words + places, image, norm + attention, expert, layers * block, norm, lm, codes, 198_754_560, 208_202_496,
                     142_066_944]


def heads(**keys):
    with torch.device("meta"):
        made = ENCODER_REGISTRY.get("VLBEiT")(**keys)
        for name in made.HEADS:
            made.build_head(name)
    return made
