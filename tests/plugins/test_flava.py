"""FLAVA against transformers' FlavaForPreTraining with the same weights: states, losses, gradients; parameters; files."""

from pathlib import Path

import numpy as np
import pytest
import torch

from xtoolkit import recipe as recipes
from xtoolkit.data import items
from xtoolkit.batch import Batch, ImageField, TextField
from xtoolkit.model import Model, trainable
from xtoolkit.recipe.plugins import import_components
from xtoolkit.registry import DATASET_REGISTRY, ENCODER_REGISTRY
from xtoolkit.weights.report import ConversionError

import_components()
from xtoolkit.plugins.flava import release  # noqa: E402
from xtoolkit.plugins.flava.codebook import codebook_names  # noqa: E402
from xtoolkit.plugins.flava.data import MatchField  # noqa: E402

ROOT = Path(__file__).resolve().parents[2]
BASELINES = ROOT / "projects/xfm/baselines"
WIDTH, ROWS, LENGTH, WORDS, CODES, GRID = 24, 6, 9, 60, 16, 4
SMALL = [f"encoders.{name}.{key}={value}" for name, keys in {
    "image_layers": {"width": WIDTH, "layers": 2, "heads": 3, "image_size": 32, "patch_size": 8},
    "text_layers": {"width": WIDTH, "layers": 2, "heads": 3, "vocab_size": WORDS, "max_tokens": 12},
    "fusion": {"layers": 2, "heads": 3}, "vision_proj": {"dim": WIDTH}, "text_proj": {"dim": WIDTH},
    "tokens": {"image_size": 32, "patch_size": 8, "codes": CODES, "hidden": 8, "blocks": 1, "init": "null"},
}.items() for key, value in keys.items()]
POOLERS = [f"encoders.{name}.pooler=true" for name in ("image_layers", "text_layers", "fusion")]


def recipe(name, *overrides):
    return recipes.load(str(BASELINES / f"{name}.yaml"), overrides, missing_files=False)


@pytest.fixture(scope="module")
def theirs():
    from transformers import FlavaConfig, FlavaForPreTraining

    torch.manual_seed(0)
    sizes = {"hidden_size": WIDTH, "num_hidden_layers": 2, "num_attention_heads": 3, "intermediate_size": 4 * WIDTH}
    config = FlavaConfig(image_config=sizes | {"image_size": 32, "patch_size": 8, "vocab_size": CODES},
                         text_config=sizes | {"vocab_size": WORDS, "max_position_embeddings": 12},
                         multimodal_config=sizes | {"output_hidden_states": True},  # which the whole model asks of the other two alone
                         image_codebook_config={"num_groups": 4, "num_blocks_per_group": 1, "hidden_size": 8, "vocab_size": CODES},
                         hidden_size=WIDTH, projection_dim=WIDTH)
    model = FlavaForPreTraining(config).double().eval()
    for parameter in model.parameters():
        parameter.data.add_(0.1 * torch.randn_like(parameter))
    return model


@pytest.fixture(scope="module")
def ours(theirs):
    chosen = recipe("flava", *SMALL)
    model = Model(chosen).double().eval()
    state, _ = release.from_release(theirs.state_dict(), chosen)
    left = model.load_state_dict(state, strict=False)
    assert not left.missing_keys and not left.unexpected_keys
    return model


def batch(padded: bool, mismatched: bool):
    torch.manual_seed(1)
    lengths = torch.tensor([LENGTH, 5, 7, LENGTH, 4, 6]) if padded else torch.full((ROWS,), LENGTH)
    mask = torch.arange(LENGTH) < lengths[:, None]
    ids = torch.randint(3, WORDS, (ROWS, LENGTH)).masked_fill(~mask, 0)
    hidden = (torch.rand(ROWS, LENGTH) < 0.4) & mask
    hidden[:, 1] = True
    match = torch.ones(ROWS, dtype=torch.long)
    if mismatched:
        match[[1, 4]] = 0
    asked = (hidden & match.bool()[:, None]).flatten().nonzero()[:, 0]
    text = TextField(ids, mask, torch.arange(ROWS), ids.masked_fill(hidden, 2), asked, ids.flatten()[asked])
    patches = torch.rand(ROWS, GRID**2) < 0.4
    told = patches & match.bool()[:, None]
    image = ImageField(torch.randn(ROWS, 3, 32, 32, dtype=torch.float64), torch.arange(ROWS), patches, list("abcdef"),
                       int(told.sum()), told)
    return Batch(image=image, text=text, match=MatchField(match)), hidden


def ask(theirs, ours, made, hidden, **without):
    codes = ours.features(made)["tokens"]
    given = {"input_ids": made.text.ids, "input_ids_masked": made.text.masked_ids, "attention_mask": made.text.mask.long(),
             "pixel_values": made.image.pixels, "bool_masked_pos": made.image.patch_mask.long(),
             "mlm_labels": made.text.ids.masked_fill(~hidden, -100), "mim_labels": codes.clone(), "itm_labels": made["match"].value,
             "return_loss": True, "output_hidden_states": True}
    return theirs(**{k: v for k, v in given.items() if k not in without}, skip_unmasked_multimodal_encoder=True)


@pytest.mark.parametrize("mismatched", (False, True))
@pytest.mark.parametrize("padded", (False, True))
def test_every_loss_state_and_gradient_of_pairs_is_transformers(theirs, ours, padded, mismatched):
    made, hidden = batch(padded, mismatched)
    told = ask(theirs, ours, made, hidden)
    found = ours("pairs", made)
    for name, of in (("contrast", "global_contrastive"), ("itm", "itm"), ("mmm_image", "mmm_image"), ("mmm_text", "mmm_text")):
        torch.testing.assert_close(found[name], told.loss_info[of], atol=1e-10, rtol=0)
    f, real = ours.features(made), made.text.mask
    close = lambda a, b: torch.testing.assert_close(a, b, atol=1e-10, rtol=0)
    close(f["vision"].tokens, told.image_embeddings)
    close(f["vision@mask_image"].tokens, told.image_masked_embeddings)
    close(f["text"].tokens[real], told.text_embeddings[real])
    close(f["text@mask_text"].tokens[real], told.text_masked_embeddings[real])
    fused = f["fusion@mask_text+mask_image"]
    matched = made["match"].value.bool()  # transformers returns those rows alone
    close(fused.tokens[matched][fused.mask[matched]], told.multimodal_masked_embeddings[fused.mask[matched]])

    theirs.zero_grad(), ours.zero_grad()
    told.loss.backward()
    sum(value for value in found.values() if value.dim() == 0 and value.requires_grad).backward()
    grads = {n: p.grad for n, p in theirs.named_parameters() if p.grad is not None}
    # as weights: a loss that this stream does not have moves nothing
    full = {n: grads[n] if n in grads else torch.zeros_like(p) for n, p in theirs.named_parameters()}
    full |= {n.replace("_head.", "_head.decoder."): full[n] for n in release.TIED}
    wanted, _ = release.from_release(full, recipe("flava", *SMALL))
    for name, parameter in ours.named_parameters():
        if parameter.requires_grad:
            close(torch.zeros_like(parameter) if parameter.grad is None else parameter.grad, wanted[name].view_as(parameter))


@pytest.mark.parametrize("padded", (False, True))
def test_every_hidden_state_is_transformers(theirs, ours, padded):
    """What each encoder's first block reads, what each block gives, and the last norm; of whole and of masked inputs."""
    made, hidden = batch(padded, False)
    told, f = ask(theirs, ours, made, hidden), ours.features(made)
    for name, ref, of in (("image_layers", "vision", told.image_output), ("image_layers", "vision@mask_image", told.image_masked_output),
                          ("text_layers", "text", told.text_output), ("text_layers", "text@mask_text", told.text_masked_output),
                          ("fusion", "fusion@mask_text+mask_image", told.multimodal_masked_output)):
        blocks, found = ours.encoders[name].blocks, []
        hooks = [blocks[0].register_forward_pre_hook(lambda _, given: found.append(given[0]))]
        hooks += [block.register_forward_hook(lambda _, given, gives: found.append(gives)) for block in blocks]
        last = f[ref]
        for hook in hooks:
            hook.remove()
        assert len(found) == len(of.hidden_states) == 1 + len(blocks) == 3
        for one, other in zip([*found, last.tokens], [*of.hidden_states, of.last_hidden_state], strict=True):
            torch.testing.assert_close(one[last.mask], other[last.mask], atol=1e-10, rtol=0)


def test_losses_of_one_modality_are_transformers(theirs, ours):
    made, hidden = batch(True, False)
    told = ask(theirs, ours, made, hidden, input_ids=0, input_ids_masked=0, attention_mask=0, mlm_labels=0, itm_labels=0)
    torch.testing.assert_close(ours("image", Batch(image=made.image))["mim"], told.loss_info.mim, atol=1e-10, rtol=0)
    told = ask(theirs, ours, made, hidden, pixel_values=0, bool_masked_pos=0, mim_labels=0, itm_labels=0)
    torch.testing.assert_close(ours("text", Batch(text=made.text))["mlm"], told.loss_info.mlm, atol=1e-10, rtol=0)


def test_the_dvae_is_transformers(theirs):
    """Scores and codes of the codebook at its own size, at FLAVA's blocks and widths but for the channels."""
    from transformers import FlavaImageCodebook, FlavaImageCodebookConfig

    torch.manual_seed(0)
    config = {"num_groups": 4, "num_blocks_per_group": 2, "hidden_size": 8, "vocab_size": CODES}
    book = FlavaImageCodebook(FlavaImageCodebookConfig(**config)).eval()
    dvae = ENCODER_REGISTRY.get("DVAE")(image_size=32, patch_size=8, codes=CODES, hidden=8)
    assert not any(dvae.load_state_dict(codebook_names(book.state_dict())))
    pixels = torch.rand(2, 3, 32, 32) * 0.8 + 0.1
    torch.testing.assert_close(dvae.scores(pixels), book(pixels), atol=1e-5, rtol=0)
    normed = ImageField(((pixels - 0.1) / 0.8 - dvae.mean) / dvae.std)
    codes = dvae(view=None, image=normed)
    assert codes.dtype == torch.int64 and torch.equal(codes, book.get_codebook_indices(pixels).flatten(1))


# ---- parameters ---------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("overrides,count", [((), 239_584_513), (POOLERS, 241_356_289)])
def test_parameters_of_base_without_heads(overrides, count):
    with torch.device("meta"):
        model = Model(recipe("flava", *overrides))
    of = lambda module: sum(p.numel() for p in module.parameters())
    assert sum(of(e) for n, e in model.encoders.items() if n != "tokens") == count
    assert of(model.encoders["tokens"]) == 53_786_240 and trainable(model) == 302_087_287


# ---- files --------------------------------------------------------------------------------------------------------------
def test_a_checkpoint_of_transformers_comes_back_bit_for_bit(theirs):
    chosen = recipe("flava", *SMALL, *POOLERS)
    given = {n: t for n, t in theirs.float().state_dict().items() if n not in release.TIED}
    theirs.double()
    ours, _ = release.from_release(given, chosen)
    back, report = release.to_release(ours, chosen)
    assert set(back) == set(given) and not report.absent
    assert all(torch.equal(back[n], t) and back[n].shape == t.shape for n, t in given.items())


@pytest.mark.parametrize("change,says", [
    (lambda s: s | {"flava.more.weight": torch.zeros(2)}, r"unexpected: flava.more.weight \(2,\)"),
    (lambda s: {n: t for n, t in s.items() if not n.endswith("layer.1.attention.attention.key.weight")}, "missing: .*layer.1.*key.weight"),
    (lambda s: {n: t for n, t in s.items() if n != "flava.logit_scale"}, "missing: flava.logit_scale"),
])
def test_a_wrong_file_is_one_clear_error(theirs, change, says):
    with pytest.raises(ConversionError, match=says):
        release.from_release(change(theirs.state_dict()), recipe("flava", *SMALL))


# ---- data ---------------------------------------------------------------------------------------------------------------
def test_what_is_behind_the_masks_of_other_texts_is_not_asked_for():
    kind = DATASET_REGISTRY.get("FLAVAPairs")
    dataset = object.__new__(kind)
    dataset.train = True
    text = lambda: items.Text(np.array([0, 5, 6, 2]), 1, (np.array([0, 4, 4, 2]), np.array([1, 2]), np.array([5, 6])))
    image = lambda key: items.Image(torch.zeros(3, 16, 16), key, str(key), np.array([True, False, True, False]))
    made = dataset.collate([items.Item(image(row), [text()], fields={"match": match}) for row, match in enumerate((1, 0, 1))])
    assert made.text.masked_pos.tolist() == [1, 2, 9, 10] and made.text.labels.tolist() == [5, 6, 5, 6]
    assert made.image.masked_patches().tolist() == [0, 2, 8, 10] and made.image.patch_mask[1].tolist() == [True, False, True, False]
    assert made["match"].value.tolist() == [1, 0, 1] and made.image.clean().asked is None
