"""BEiTv2 against timm's Beit and against a plain float64 forward; masking, sizes, initial values, loading."""

import math

import pytest
import torch
import torch.nn.functional as F

from xtoolkit.batch import ImageField
from xtoolkit.encoders.beit import BEiTv2, relative_position_index, resize_position_table
from xtoolkit.weights.files import WeightsError

SMALL = dict(width=16, layers=2, heads=4, patch_size=4, drop_path=0.0)


def build(image_size=12, **keys):
    """An encoder whose every parameter matters: tables, gammas and biases are drawn too."""
    model = BEiTv2(**{**SMALL, "image_size": image_size, **keys}).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return model


def picture(rows=3, image_size=12, masked=False):
    mask = torch.rand(rows, (image_size // 4) ** 2) < 0.4 if masked else None
    return ImageField(torch.randn(rows, 3, image_size, image_size), patch_mask=mask)


def timm_twin(model):
    from timm.models.beit import Beit

    twin = Beit(img_size=model.image_size, patch_size=4, num_classes=0, embed_dim=16, depth=2, num_heads=4,
                init_values=0.1, use_abs_pos_emb=False, use_rel_pos_bias=True, qkv_bias=True).eval()
    twin.load_state_dict({k: v for k, v in model.state_dict().items() if k != "mask_token"})
    return twin


def plain_forward(model, image):
    """The same network in float64, one head and one image at a time, from the parameters' names alone."""
    p = {k: v.double() for k, v in model.state_dict().items()}
    grid, heads, rows = model.grid, model.blocks[0].attn.heads, []
    tokens, d = grid * grid + 1, model.width // heads
    norm = lambda x, name: F.layer_norm(x, (model.width,), p[f"{name}.weight"], p[f"{name}.bias"], 1e-6)
    for b, pixels in enumerate(image.pixels.double()):
        x = [p["cls_token"][0, 0]]
        for n in range(grid * grid):
            r, c = divmod(n, grid)
            patch = pixels[:, r * 4:r * 4 + 4, c * 4:c * 4 + 4]
            hidden = image.patch_mask is not None and image.patch_mask[b, n]
            x.append(p["mask_token"][0, 0] if hidden else
                     (p["patch_embed.proj.weight"] * patch).sum((1, 2, 3)) + p["patch_embed.proj.bias"])
        x = torch.stack(x)
        for i in range(len(model.blocks)):
            name, y = f"blocks.{i}", norm(x, f"blocks.{i}.norm1")
            q, k, v = (y @ p[f"{name}.attn.qkv.weight"].t()).split(model.width, 1)
            q, v, out = q + p[f"{name}.attn.q_bias"], v + p[f"{name}.attn.v_bias"], []
            for h in range(heads):
                at = slice(h * d, h * d + d)
                scores = q[:, at] @ k[:, at].t() / math.sqrt(d)
                for s in range(tokens):
                    for t in range(tokens):
                        (rs, cs), (rt, ct) = divmod(s - 1, grid), divmod(t - 1, grid)
                        row = -1 if s == t == 0 else -3 if s == 0 else -2 if t == 0 else \
                            (rs - rt + grid - 1) * (2 * grid - 1) + cs - ct + grid - 1
                        scores[s, t] += p[f"{name}.attn.relative_position_bias_table"][row, h]
                out.append(scores.softmax(1) @ v[:, at])
            y = torch.cat(out, 1) @ p[f"{name}.attn.proj.weight"].t() + p[f"{name}.attn.proj.bias"]
            x = x + p[f"{name}.gamma_1"] * y
            y = F.gelu(norm(x, f"{name}.norm2") @ p[f"{name}.mlp.fc1.weight"].t() + p[f"{name}.mlp.fc1.bias"])
            x = x + p[f"{name}.gamma_2"] * (y @ p[f"{name}.mlp.fc2.weight"].t() + p[f"{name}.mlp.fc2.bias"])
        patches = norm(x[1:], "fc_norm")
        rows.append(torch.cat([patches.mean(0, keepdim=True), patches]))
    return torch.stack(rows)


@pytest.mark.parametrize("image_size", [8, 12])
@pytest.mark.parametrize("masked", [False, True])
def test_forward_equals_a_plain_float64_forward(image_size, masked):
    model, image = build(image_size), picture(2, image_size, masked)
    assert not masked or image.patch_mask.any()
    tokens = model(view=None, image=image).tokens
    assert tokens.shape == (2, 1 + (image_size // 4) ** 2, 16)
    torch.testing.assert_close(tokens.double(), plain_forward(model, image), atol=1e-5, rtol=1e-5)


def test_forward_and_gradients_equal_timm():
    model, image = build(), picture()
    twin = timm_twin(model)
    patches = twin.fc_norm(twin.forward_features(image.pixels)[:, 1:])
    theirs = torch.cat([patches.mean(1, keepdim=True), patches], 1)
    ours = model(view=None, image=image).tokens
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)
    pull = torch.randn_like(ours)
    (ours * pull).sum().backward()
    (theirs * pull).sum().backward()
    gradients = {k: v.grad for k, v in twin.named_parameters()}
    for name, parameter in model.named_parameters():
        if name != "mask_token":
            torch.testing.assert_close(parameter.grad, gradients[name], atol=1e-4, rtol=1e-4,
                                       msg=lambda m: f"{name}: {m}")


def test_cls_summary_is_the_normed_cls_token_and_leaves_patches_alone():
    mean, image = build(), picture()
    cls = build(summary="cls")
    cls.load_state_dict(mean.state_dict())
    a, b = mean(view=None, image=image), cls(view=None, image=image)
    torch.testing.assert_close(a.tokens[:, 1:], b.tokens[:, 1:])
    twin = timm_twin(mean)
    torch.testing.assert_close(b.pooled, twin.fc_norm(twin.forward_features(image.pixels)[:, 0]), atol=1e-5, rtol=1e-5)


def test_what_a_masked_patch_showed_cannot_be_known():
    model, image = build(), picture(masked=True)
    hidden = image.patch_mask.view(-1, 1, 3, 3).repeat_interleave(4, 2).repeat_interleave(4, 3)
    other = ImageField(torch.where(hidden, torch.randn_like(image.pixels), image.pixels), patch_mask=image.patch_mask)
    assert torch.equal(model(view=None, image=image).tokens, model(view=None, image=other).tokens)
    assert not torch.equal(model(view=None, image=image.clean()).tokens, model(view=None, image=other.clean()).tokens)


def test_checkpointing_changes_no_gradient():
    image, results = picture(masked=True), []
    plain = BEiTv2(**SMALL | {"drop_path": 0.5}, image_size=12)
    saving = BEiTv2(**SMALL | {"drop_path": 0.5}, image_size=12, checkpointing=True)
    saving.load_state_dict(plain.state_dict())
    for model in (plain, saving):
        torch.manual_seed(1)
        model(view=None, image=image).tokens.square().sum().backward()
        results.append([p.grad for p in model.parameters()])
    torch.testing.assert_close(*results)


def test_drop_path_keeps_the_expectation_and_is_off_in_evaluation():
    model = build(drop_path=0.5)
    assert [b.drop_path for b in model.blocks] == [0.0, 0.5]
    branch = torch.ones(4000, 2, 3)
    dropped = model.blocks[1].train()._drop(branch)
    assert set(dropped.unique().tolist()) == {0.0, 2.0}
    assert dropped.mean().item() == pytest.approx(1, abs=0.1)
    assert (dropped == dropped[:, :1, :1]).all()  # per image, not per token
    assert model.blocks[1].eval()._drop(branch) is branch


def test_initial_values_are_the_releases():
    model = BEiTv2(width=64, layers=3, heads=4, patch_size=4, image_size=8)
    for depth, block in enumerate(model.blocks, start=1):
        assert (block.gamma_1 == 0.1).all() and (block.gamma_2 == 0.1).all()
        assert (block.attn.relative_position_bias_table == 0).all()
        assert block.attn.qkv.weight.std().item() == pytest.approx(0.02, rel=0.1)
        for linear in (block.attn.proj, block.mlp.fc2):
            assert linear.weight.std().item() == pytest.approx(0.02 / math.sqrt(2 * depth), rel=0.1)
            assert (linear.bias == 0).all()


def test_wrong_sizes_are_told():
    with pytest.raises(ValueError, match="image_size: 16"):
        build()(view=None, image=picture(image_size=16))
    with pytest.raises(ValueError, match="not a multiple of patch_size"):
        BEiTv2(**SMALL, image_size=13)
    with pytest.raises(ValueError, match="not a multiple of heads"):
        BEiTv2(**{**SMALL, "heads": 3}, image_size=12)
    with pytest.raises(ValueError, match="patch_mask"):
        build()(view=None, image=ImageField(torch.randn(1, 3, 12, 12), patch_mask=torch.ones(1, 4, dtype=torch.bool)))


@pytest.mark.parametrize("grid", [1, 2, 5])
def test_position_index_equals_timm(grid):
    from timm.models.beit import gen_relative_position_index

    assert torch.equal(relative_position_index(grid), gen_relative_position_index((grid, grid)))


@pytest.mark.parametrize("size", [8, 20])
def test_weights_of_another_size_are_resized_as_timm_does(tmp_path, size):
    from timm.models.beit import checkpoint_filter_fn

    state = build(12).state_dict()
    torch.save({"model": state}, tmp_path / "weights.pth")
    ours = BEiTv2(**SMALL, image_size=size, init=str(tmp_path / "weights.pth"))
    twin = timm_twin(BEiTv2(**SMALL, image_size=size))
    twin.load_state_dict(checkpoint_filter_fn({k: v for k, v in state.items() if k != "mask_token"}, twin))
    ours.load_init()
    for name, value in twin.state_dict().items():
        assert torch.equal(ours.state_dict()[name], value), name
    kept = resize_position_table(state["blocks.0.attn.relative_position_bias_table"], size // 4)
    assert torch.equal(kept[-3:], state["blocks.0.attn.relative_position_bias_table"][-3:])


def test_resizing_keeps_what_neighbours_mean():
    """Offsets of -1, 0 and 1 patches keep their bias: the geometric points start at one."""
    small = torch.randn(5 * 5 + 3, 4)
    large = resize_position_table(small, 6)
    assert large.shape == (11 * 11 + 3, 4)
    torch.testing.assert_close(large[:-3].view(11, 11, 4)[4:7, 4:7], small[:-3].view(5, 5, 4)[1:4, 1:4],
                               atol=1e-5, rtol=1e-5)
    assert resize_position_table(small, 3) is small


def points(source, target):
    """Where the release puts the offsets of a table, in plain Python."""
    low, high = 1.01, 1.5
    while high - low > 1e-6:
        q = (low + high) / 2
        if sum(q ** i for i in range(source // 2)) > target // 2:
            high = q
        else:
            low = q
    right = [sum(q ** i for i in range(k)) for k in range(1, source // 2 + 1)]
    return [-x for x in reversed(right)] + [0.0] + right


@pytest.mark.parametrize("old, new", [(6, 9), (14, 24), (14, 48), (9, 6), (3, 20)])  # the last: further than the largest ratio reaches
def test_the_spline_is_fitpacks(old, new):
    """``interp2d(kind="cubic")``, which the release calls and scipy has removed, was this very routine on a grid."""
    interpolate = pytest.importorskip("scipy.interpolate")
    table = torch.randn((2 * old - 1) ** 2 + 3, 2)
    x, at = points(2 * old - 1, 2 * new - 1), range(1 - new, new)
    resized = resize_position_table(table, new, "spline")
    assert torch.equal(resized[-3:], table[-3:]) and resized.dtype == table.dtype
    for head in range(2):
        z = table[:-3, head].double().view(2 * old - 1, -1).numpy()
        expected = torch.from_numpy(interpolate.RectBivariateSpline(x, x, z, kx=3, ky=3, s=0)(at, at))
        torch.testing.assert_close(resized[:-3, head].double().view(2 * new - 1, -1), expected, atol=1e-6, rtol=1e-5)


def test_the_spline_keeps_a_cubic_and_the_ends():
    x = torch.tensor(points(11, 17), dtype=torch.float64)
    cubic = lambda x: 1 - x / 3 + x ** 2 / 16 - x ** 3 / 200
    table = torch.cat([(cubic(x)[:, None] * cubic(-x)).flatten(), x.new_zeros(3)])[:, None]
    at = torch.arange(-8, 9, dtype=torch.float64).clamp(x[0], x[-1])
    torch.testing.assert_close(resize_position_table(table, 9, "spline")[:-3, 0].view(17, 17), cubic(at)[:, None] * cubic(-at))


def test_the_rules_agree_on_what_is_smooth_and_a_small_table_is_refused(tmp_path):
    x = torch.tensor(points(11, 17))
    table = torch.cat([torch.exp(-(x[:, None] ** 2 + x ** 2) / 200).flatten(), torch.zeros(3)])[:, None]
    linear, spline = (resize_position_table(table, 9, rule) for rule in ("timm", "spline"))
    assert 1e-4 < (linear - spline).abs().max() < 0.02
    torch.save(BEiTv2(**SMALL, image_size=8).state_dict(), tmp_path / "small.pt")
    with pytest.raises(WeightsError, match="3 offsets a side is too small for a cubic spline: take `resize: timm`"):
        BEiTv2(**SMALL, image_size=16, resize="spline", init=str(tmp_path / "small.pt")).load_init()


def test_a_pretraining_checkpoint_loads_whole(tmp_path):
    """The published self-supervised weights: one shared table, a last norm, output layers, no fc_norm."""
    source = build()
    state = {k: v for k, v in source.state_dict().items() if not k.startswith("fc_norm") and "bias_table" not in k}
    table = torch.randn(28, 4)
    state |= {"rel_pos_bias.relative_position_bias_table": table, "norm.weight": torch.randn(16),
              "norm.bias": torch.randn(16), "rel_pos_bias.relative_position_index": relative_position_index(3),
              "lm_head.weight": torch.randn(8, 16),
              "cls_pt_layers.0.norm1.weight": torch.randn(16)}
    torch.save({"model": state}, tmp_path / "pt.pth")
    model = BEiTv2(**SMALL, image_size=12, init=str(tmp_path / "pt.pth"))
    model.load_init()
    for block in model.blocks:
        assert torch.equal(block.attn.relative_position_bias_table, table)
    assert torch.equal(model.mask_token, source.mask_token) and torch.equal(model.fc_norm.weight, torch.ones(16))


def test_what_does_not_fit_is_listed_and_nothing_is_loaded(tmp_path):
    state = build().state_dict()
    state["blocks.0.mlp.fc3.bias"] = state.pop("blocks.0.mlp.fc1.bias")
    state["cls_token"] = torch.zeros(1, 1, 8)
    del state["mask_token"]  # allowed
    torch.save(state, tmp_path / "bad.pt")
    model = BEiTv2(**SMALL, image_size=12, init=str(tmp_path / "bad.pt"))
    before = {k: v.clone() for k, v in model.state_dict().items()}
    with pytest.raises(WeightsError) as error:
        model.load_init()
    for line in ("missing: blocks.0.mlp.fc1.bias", "unexpected: blocks.0.mlp.fc3.bias",
                 "other shape: cls_token (1, 1, 8) there, (1, 1, 16) here", "bad.pt"):
        assert line in str(error.value)
    assert "mask_token" not in str(error.value)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def test_fc_norm_may_be_missing_only_from_a_pretraining_checkpoint(tmp_path):
    state = {k: v for k, v in build().state_dict().items() if not k.startswith("fc_norm")}
    torch.save(state, tmp_path / "no_norm.pt")
    with pytest.raises(WeightsError, match="missing: fc_norm.weight"):
        BEiTv2(**SMALL, image_size=12, init=str(tmp_path / "no_norm.pt")).load_init()


def test_a_name_on_the_hub_of_transformers_beit_is_read_from_the_cache(tmp_path, monkeypatch):
    from transformers import BeitConfig, BeitModel

    model = BeitModel(BeitConfig(
        hidden_size=SMALL["width"], num_hidden_layers=SMALL["layers"], num_attention_heads=SMALL["heads"], image_size=12,
        intermediate_size=4 * SMALL["width"], patch_size=SMALL["patch_size"], use_relative_position_bias=True,
        use_mask_token=True, layer_scale_init_value=0.1))
    folder = tmp_path / "models--org--beit"
    model.save_pretrained(folder / "snapshots" / ("0" * 40))
    (folder / "refs").mkdir()
    (folder / "refs/main").write_text("0" * 40)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("socket.getaddrinfo", lambda *a, **k: pytest.fail("the network is asked"))
    loaded = BEiTv2(**SMALL, image_size=12, init="org/beit")
    loaded.load_init()
    assert torch.equal(loaded.cls_token, model.embeddings.cls_token)


def test_an_unreachable_name_says_what_to_fetch_and_where_to_put_it():
    with pytest.raises(WeightsError, match="hf download timm/beitv2_base_patch16_224.in1k_ft_in22k"):
        BEiTv2(**SMALL, image_size=12, init="beitv2_base_patch16_224.in1k_ft_in22k").load_init()
    with pytest.raises(WeightsError, match="nor a model that timm knows"):
        BEiTv2(**SMALL, image_size=12, init="beit_v9").load_init()


def plain_stem(model, pixels):
    """The convolutional stem in float64, a vector a place, from the parameters' names alone."""
    p = {k.removeprefix("patch_embed."): v.double() for k, v in model.patch_embed.state_dict().items()}
    x, layers = pixels.double(), len(model.patch_embed.convs)
    for i in range(layers):
        weight = p[f"convs.{i}.weight"]
        size, stride = weight.shape[-1], 2 if i else weight.shape[-1]
        x = F.pad(x, [int(i > 0)] * 4)
        places = range(0, x.shape[-1] - size + 1, stride)
        x = torch.stack([torch.stack([torch.einsum("ichw,ochw->io", x[:, :, r:r + size, c:c + size], weight) for c in places], -1)
                         for r in places], -2)
        groups = x.view(len(x), model.patch_embed.norms[i].num_groups, -1)
        x = ((groups - groups.mean(-1, True)) / (groups.var(-1, correction=0, keepdim=True) + 1e-5).sqrt()).view_as(x)
        x = x * p[f"norms.{i}.weight"][:, None, None] + p[f"norms.{i}.bias"][:, None, None]
        x = x * 0.5 * (1 + torch.erf(x / 2 ** 0.5))
    return x.flatten(2).transpose(1, 2) @ p["proj.weight"].t() + p["proj.bias"]


@pytest.mark.parametrize("patch_size, stem", [(8, [32, 48]), (8, [8, 16, 32]), (4, [24]), (12, [16, 40, 16])])
def test_a_convolutional_stem_is_what_its_names_say(patch_size, stem):
    model, image = build(image_size=24, patch_size=patch_size, stem=stem), picture(image_size=24)
    ours = model.double().patch_embed(image.pixels.double(), None)
    assert ours.shape == (3, (24 // patch_size) ** 2, 16)
    torch.testing.assert_close(ours, plain_stem(model, image.pixels), rtol=1e-9, atol=1e-9)


def test_no_patch_sees_the_pixels_of_a_masked_one_through_the_stem():
    model, image = build(stem=[8, 16, 16]), picture(masked=True)
    hidden = image.patch_mask.view(3, 1, 3, 3).repeat_interleave(4, 2).repeat_interleave(4, 3)
    other = ImageField(torch.where(hidden, 7.0, image.pixels), patch_mask=image.patch_mask)
    assert torch.equal(model(view="mask_image", image=image).tokens, model(view="mask_image", image=other).tokens)
    whole = [ImageField(each.pixels) for each in (image, other)]
    assert not torch.equal(*(model(view=None, image=each).tokens for each in whole))


def test_a_stem_must_fit_the_patches_and_an_empty_one_is_none():
    with pytest.raises(ValueError, match="4 convolutions of `stem` halve a picture 3 times.*multiple of 8, not 4"):
        build(stem=[8, 8, 8, 8])
    assert build(stem=[]).state_dict().keys() == build().state_dict().keys()


def test_a_stem_draws_its_weights_anew_and_the_same_for_a_seed():
    torch.manual_seed(3)
    model = BEiTv2(**SMALL, image_size=12, stem=[8, 16])
    first = {k: v.clone() for k, v in model.state_dict().items()}
    for parameter in model.parameters():
        torch.nn.init.constant_(parameter, 5.0)
    torch.manual_seed(3)
    again = BEiTv2(**SMALL, image_size=12, stem=[8, 16])
    assert all(torch.equal(first[k], v) for k, v in again.state_dict().items())
    model.init_weights()
    assert all(not (v == 5).any() for k, v in model.state_dict().items() if v.is_floating_point())
