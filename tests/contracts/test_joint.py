"""Matching where the matched encoder reads pictures and texts themselves: a joint encoder is no cross-attention over features."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from PIL import Image

from xtoolkit import recipe as recipes
from xtoolkit.batch import Batch, ImageField, RegionField, TextField
from xtoolkit.data.loader import EvalLoader
from xtoolkit.data.text import load_tokenizer
from xtoolkit.inference.pretrained import Pretrained
from xtoolkit.model import Model
from xtoolkit.registry import DATASET_REGISTRY, TASK_REGISTRY

BLOCK = ("evaluate={retrieval: {type: Retrieval, sim: sim, match: itm, k: 4, pairs_per_pass: 5, "
         "data: {type: SyntheticPairs, size: 9, tokens: 8, min_tokens: 4}}}")


@pytest.fixture(scope="module")
def made():
    """A joint model, weights drawn large enough that no two pairs match alike; its evaluation; its data, 9 pairs."""
    recipe = recipes.load(str(Path(__file__).parent / "experts.yaml"), [BLOCK], missing_files=False)
    model, tokenizer = Model(recipe).eval(), load_tokenizer(recipe.tokenizer)
    with torch.no_grad():
        for p in model.encoders["backbone"].parameters():
            p.add_(0.3 * torch.randn(p.shape, generator=torch.Generator().manual_seed(p.numel())))
    block = recipe.evaluate["retrieval"]
    sizes = model.sizes(DATASET_REGISTRY.get("SyntheticPairs").FIELDS)
    data = DATASET_REGISTRY.build(block["data"], "here", tokenizer=tokenizer, train=False, **sizes)
    task = TASK_REGISTRY.build(block, "here", tokenizer=tokenizer)
    return SimpleNamespace(model=model, task=task, data=data, tokenizer=tokenizer, loss=model.losses["itm"])


@torch.no_grad()
def logits(made, image, text):
    """(I, T, 2), each pair in a pass of its own."""
    rows = [[made.model.features(Batch(image=image.select(torch.tensor([i])), text=text.select(torch.tensor([t])).trim(
        int(text.mask[t].sum()))))["backbone"] for t in range(text.rows)] for i in range(image.rows)]
    return torch.stack([torch.cat([made.loss.match(one) for one in row]) for row in rows])


@pytest.mark.parametrize("batch_size", [9, 2, 1])
def test_retrieval_ranks_by_what_the_joint_encoder_says_of_each_pair(made, batch_size):
    kept, score = {}, made.task.score
    made.task.score = lambda outputs: kept.update(outputs) or score(outputs)
    try:
        metrics = made.task.evaluate(made.model, EvalLoader(made.data, batch_size))["metrics"]
    finally:
        made.task.score = score
    whole, = EvalLoader(made.data, 9)
    one_by_one = logits(made, whole.image, whole.text)[..., 1].double()
    assert len(set(whole.text.mask.sum(1).tolist())) > 1 and {"dual.r_mean", "matched.r_mean"} <= metrics.keys()
    for dim, (found, dual) in enumerate(zip(kept["ways"]["matched"], kept["ways"]["dual"])):
        best = dual.topk(4, dim).indices
        torch.testing.assert_close(found.gather(dim, best), one_by_one.gather(dim, best), atol=1e-5, rtol=1e-5)
        assert (found.sort(dim, descending=True).indices.narrow(dim, 0, 4).sort(dim).values == best.sort(dim).values).all()


def test_words_and_pairs_of_a_joint_encoder_are_told_apart(made):
    data = "data: {type: SyntheticPairs, size: 9, tokens: 8, mask: {prob: 0.4, max: 4}, image_mask: {patches: 5, min_block: 2}}"
    blocks = f"evaluate={{words: {{type: MaskedWords, loss: mvlm, {data}}}, pairs: {{type: Matching, {data}}}}}"
    recipe = recipes.load(str(Path(__file__).parent / "experts.yaml"), [blocks], missing_files=False)
    found = {}
    for name, block in recipe.evaluate.items():
        given = {"tokenizer": made.tokenizer}
        loaded = EvalLoader(recipe.dataset("evaluate", name, **given, **made.model.sizes({"image"})), 9)
        found[name] = TASK_REGISTRY.build(block, "here", **given).evaluate(made.model, loaded)
    words, pairs = found["words"]["metrics"], found["pairs"]["metrics"]
    assert words["gain"] != 0 and words["gain_error"] > 0 and 0 <= pairs["auc"] <= 100
    batch, = EvalLoader(recipe.dataset("evaluate", "words", **given, **made.model.sizes({"image"})), 9)
    loss = made.model.losses["mvlm"]
    with torch.no_grad():
        f = made.model.features(batch)
        assert words["loss"] == pytest.approx(loss.word_losses(f, f[loss.feature], batch.text)[0].mean().item(), abs=1e-4)


def test_a_loaded_model_matches_pair_by_pair(made):
    loaded = Pretrained(made.model, made.tokenizer)
    pictures = [Image.linear_gradient("L").rotate(50 * n).convert("RGB") for n in range(3)]
    texts = ["a red cat under the tree", "a dog", "two birds in the sky"]
    image, = loaded.pictures(pictures).batches(3)
    wanted = torch.stack([logits(made, image, next(loaded.texts(text).batches(1)))[:, 0] for text in texts], 1)
    found = loaded.match(pictures, texts, batch_size=2, logits=True)
    torch.testing.assert_close(found, wanted.diagonal().T, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(loaded.match(pictures[1], texts, logits=True), wanted[1], atol=1e-5, rtol=1e-5)
    assert loaded.match(pictures[0], texts[0]).item() == pytest.approx(wanted[0, 0].softmax(0)[1].item(), abs=1e-5)
    assert len(set(found[:, 1].tolist())) == 3


def test_fields_of_several_batches_are_joined():
    class Own(TextField):
        pass

    text = lambda kind, *ids: kind(torch.tensor(ids), torch.tensor(ids) != 1, torch.tensor([i[0] for i in ids]))
    short, long = text(Own, [0, 5, 2], [3, 2, 1]), text(Own, [4, 6, 7, 8, 2])
    joined = Own.cat([short, long])
    assert type(joined) is Own and joined.ids.tolist() == [[0, 5, 2, 1, 1], [3, 2, 1, 1, 1], [4, 6, 7, 8, 2]]
    assert torch.equal(joined.mask, joined.ids != 1) and joined.key.tolist() == [0, 3, 4]
    assert TextField.cat([text(TextField, [0, 2]), text(TextField, [0, 5, 2])]).mask.tolist() == [[True, True, False], [True] * 3]
    masked = Own(short.ids, short.mask, short.key, short.ids, torch.tensor([1]), torch.tensor([5]))
    for read in (masked.select(torch.tensor([1])), masked.trim(2), Own.cat([masked, long])):
        assert type(read) is Own and read.masked_ids is read.masked_pos is read.labels is None
    assert masked.trim(2).ids.tolist() == [[0, 5], [3, 2]]
    pictures = [ImageField(torch.full((n, 3, 2, 2), float(n)), image_id=[f"{n}-{i}" for i in range(n)]) for n in (1, 2)]
    both = ImageField.cat(pictures)
    assert both.pixels[:, 0, 0, 0].tolist() == [1, 2, 2] and both.image_id == ["1-0", "2-0", "2-1"] and both.patch_mask is None
    with pytest.raises(TypeError, match=r"a RegionField names rows of \$image"):
        RegionField.cat([])
