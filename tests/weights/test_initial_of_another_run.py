"""Starting from a run of other sizes, of another system, or with another tokenizer: what differs is said, nothing is loaded."""

import json
import shutil

import pytest
import torch
from convert_recipes import tiny
from hostile import tiny_tokenizer

from xtoolkit.data.text import load_tokenizer
from xtoolkit.engine import checkpoint
from xtoolkit.engine.initial import load_initial
from xtoolkit.engine.optim import build_optimizer
from xtoolkit.model import Model
from xtoolkit.weights.files import WeightsError


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The folder of a run with a checkpoint and a tokenizer."""
    folder = tmp_path_factory.mktemp("of") / "run"
    recipe = tiny(folder.parent)
    model = Model(recipe)
    checkpoint.save(folder, 1, model, build_optimizer(model, recipe.optim), {"config": recipe.config}, keep=1)
    (folder / "tokenizer").mkdir()
    tiny_tokenizer(folder / "tokenizer")
    return folder


def started(folder, run, *overrides, tokenizer=None):
    recipe = tiny(folder, f"init={{path: {run}, parts: shared}}", *overrides)
    model = Model(recipe)
    load_initial(model, recipe, tokenizer)
    return model


@pytest.mark.parametrize("override, said", [
    ("encoders.text.layers=1", "encoders.text.layers: was 2, is 1"),
    ("encoders.vision.patch_size=16", "encoders.vision.patch_size: was 8, is 16"),
    ("encoders.text.vocab_size=5000", "encoders.text.vocab_size: was 60, is 5000"),
    ("encoders.text={type: BERT, width: 16, layers: 2, heads: 2, vocab_size: 60}", 'encoders.text.type: was "RoBERTa", is "BERT"'),
])
def test_the_keys_that_differ_are_the_last_line(tmp_path, run, override, said):
    with pytest.raises(WeightsError) as error:
        started(tmp_path, run, override)
    assert f"that run has other encoders ({said}" in str(error.value).splitlines()[-1]


def test_another_tokenizer_is_refused_where_its_embeddings_are_read(tmp_path, run):
    shutil.copytree(run / "tokenizer", tmp_path / "other")
    known = json.loads((tmp_path / "other/tokenizer.json").read_text())
    words = known["model"]["vocab"]
    a, b = sorted(set(words) - {"<s>", "<pad>", "</s>", "<unk>", "<mask>"})[:2]
    words[a], words[b] = words[b], words[a]
    (tmp_path / "other/tokenizer.json").write_text(json.dumps(known))
    same, other = load_tokenizer(str(run / "tokenizer")), load_tokenizer(str(tmp_path / "other"))
    assert torch.equal(*(next(started(tmp_path, run, tokenizer=one).encoders["text"].parameters()) for one in (same, None)))
    with pytest.raises(WeightsError, match="encoder `text` was trained with another tokenizer: of its .* tokens 2 have another id in "
                                           f"`{tmp_path}/other`, or none; set tokenizer={run}/tokenizer$"):
        started(tmp_path, run, tokenizer=other)
    assert "text" not in started(tmp_path, run, "losses.*=null", "streams.*=null", "losses={mim: {type: MIM, feature: vision@mask_image, target: vision}}", "stop_gradient=null",
                                 "streams={pairs: {batch_size: 4, losses: {mim: 1}, data: {type: SyntheticPairs, size: 20, tokens: 6, image_mask: "
                                 "{patches: 3, min_block: 1}}}}",
                                 tokenizer=other).encoders, "pictures alone do not care"
