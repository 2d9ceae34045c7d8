"""VL-BEiT from its recipes: one output layer for all losses, steps on the sample pack, fine-tuned."""

import json
from pathlib import Path

import pytest
import torch
from PIL import Image

from xtoolkit import recipe as recipes
from xtoolkit.cli.train import main as train
from xtoolkit.engine import checkpoint
from xtoolkit.model import Model
from xtoolkit.recipe.folder import latest

BASELINES = Path(__file__).resolve().parents[2] / "projects/xfm/baselines"
FINETUNE = ("vlbeit_retrieval", "vlbeit_vqa", "vlbeit_nlvr2", pytest.param("vlbeit_imagenet", marks=pytest.mark.slow))
SMALL = ["encoders.backbone.width=32", "encoders.backbone.layers=2", "encoders.backbone.heads=2", "encoders.backbone.stem=[8, 8, 8]",
         "streams.*.batch_size=8", "train.workers=0", "train.log_every=1", "train.checkpoint_every=1", "train.keep=9",
         "train.device=cpu"]
TOKENS = ["encoders.tokens={width: 32, layers: 1, heads: 2, stem: [8, 8, 8], init: null}"]


def recipe(name, *overrides):
    return recipes.load(str(BASELINES / f"{name}.yaml"), overrides, missing_files=False)


def run(name, output, *overrides):
    assert train(["--config", str(BASELINES / f"{name}.yaml"), *SMALL, *overrides, f"train.output={output}"]) == 0
    return output


def lines(output):
    return [line for line in map(json.loads, (output / "metrics.jsonl").read_text().splitlines()) if "loss" in line]


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory):
    """Three steps with all three streams; masked words are told of nine made-up pairs."""
    data = "{type: SyntheticPairs, size: 9, tokens: 8, mask: {prob: 0.5, max: 4}, image_mask: {patches: 14, min_block: 2}}"
    return run("tiny/vlbeit", tmp_path_factory.mktemp("vlbeit") / "run", *TOKENS, "train.steps=3", "evaluate.neighbours=null",
               f"evaluate.words={{type: MaskedWords, loss: mvlm, every: null, data: {data}}}")


def test_it_takes_steps_with_all_streams(pretrained):
    found = lines(pretrained)
    assert len(found) == 3
    for line in found:
        for loss in ("text.mlm", "image.mim", "pairs.mvlm", "pairs.mvim"):
            assert line[loss] > 0 and line[f"{loss}.guess"] > 0, loss
        assert "pairs.mvim.accuracy" in line
    one, two = (checkpoint.read_model(pretrained / f"checkpoints/step_{n:08}") for n in (1, 3))
    assert [n for n in one if n.startswith("encoders.backbone.") and torch.equal(one[n], two[n])] == []
    assert [n for n in one if n.startswith("encoders.tokens.") and not torch.equal(one[n], two[n])] == []
    assert not any(n.startswith("losses.") for n in one), "both output layers are the backbone's"
    metrics = json.loads((pretrained / "results.json").read_text())
    assert "words" in str(metrics)


@pytest.mark.parametrize("name", FINETUNE)
def test_it_is_finetuned_from_a_pretrained_run(pretrained, tmp_path, name, capsys):
    projections = ["encoders.vision_proj.dim=32", "encoders.text_proj.dim=32", "evaluate.test.k=2"] if "retrieval" in name else []
    output = run(f"tiny/finetune/{name}", tmp_path / "run", *projections, f"init.path={pretrained}", "train.steps=1",
                 "evaluate.val=null", "train.keep_best=null", "evaluate.test=null" if not projections else "evaluate.test.every=null",
                 *(["evaluate.test=null"] if projections else []))
    said = capsys.readouterr().err
    assert "backbone.lm_head" in said and "tokens" in said
    before, after = (checkpoint.read_model(latest(path)) for path in (pretrained, output))
    shared = [n for n in after if n.startswith("encoders.backbone.")]
    assert shared and {n for n in shared} <= before.keys() and lines(output)[0]["loss"] > 0
    unmoved = max((after[n] - before[n]).abs().max().item() for n in shared)
    assert 0 < unmoved < 0.01, "one small step from the pretrained weights"
    if projections:
        import xtoolkit

        model = xtoolkit.load(str(output))
        pictures = [Image.linear_gradient("L").rotate(50 * n).convert("RGB") for n in range(2)]
        assert model.similarity(pictures, ["a dog", "a red cat"]).shape == (2, 2)
        assert model.match(pictures[0], ["a dog", "a red cat"]).shape == (2,)


def test_imagenet_has_the_figures_of_beits_release():
    """Epochs of both stages; mixed in the first alone; the summary is the mean of the patches."""
    first, second = (recipe(f"finetune/{name}") for name in ("vlbeit_imagenet22k", "vlbeit_imagenet"))
    for found, pictures, batch, epochs, warm, rate, mixes in ((first, 14_197_122, 4096, 90, 20, 6e-4, (0.8, 1.0)),
                                                             (second, 1_281_167, 1024, 30, 20, 5e-5, (0.0, 0.0))):
        epoch, optim = found.train.checkpoint_every, found.optim
        assert found.streams["train"].batch_size == batch and abs(epoch - pictures / batch) < 1
        assert (found.train.steps, optim.warmup, optim.lr) == (epochs * epoch, warm * epoch, rate)
        assert (optim.decay, optim.weight_decay, optim.layer_decay, optim.betas) == ("cosine", 0.05, 0.75, (0.9, 0.999))
        classify, backbone = found.config["losses"]["classify"], found.config["encoders"]["backbone"]
        assert (classify["mixup"], classify["cutmix"]) == mixes and classify["smoothing"] == 0.1
        assert (backbone["image_summary"], backbone["image_size"], backbone["drop_path"]) == ("mean", 224, 0.1)
    assert second.init.path == first.train.output and second.evaluate["test"]["data"]["crop"] == 0.875


# ---- one output layer for several losses, in the core --------------------------------------------------------------------
def test_losses_share_the_output_layer_that_the_encoder_owns():
    keys = ["encoders.tokens={codes: 16, width: 16, layers: 1, heads: 1, stem: null, init: null}", "encoders.backbone.visual_tokens=16"]
    model = Model(recipe("tiny/vlbeit", *SMALL, *keys))
    assert model.losses["mim"].decoder is None and not list(model.losses.parameters())
    assert model.encoders["backbone"].code_matrix.shape == (16, 32)
    own = Model(recipe("tiny/vlbeit", *SMALL, *keys, "losses.mim.head=linear", "losses.mvim.head=mlm"))
    assert own.encoders["backbone"].code_head is None and own.losses["mvim"].dense is not None
    assert own.losses["mim"].decoder.out_features == 16


def test_another_number_of_codes_is_told(tmp_path, capsys):
    code = train(["--config", str(BASELINES / "tiny/vlbeit.yaml"), *SMALL, *TOKENS, "encoders.backbone.visual_tokens=99",
                  "train.steps=1", "evaluate=null", f"train.output={tmp_path / 'run'}"])
    assert code != 0 and "has 256 codes, and `code_logits` of `backbone@mask_image` tells 99: they must be as many" in capsys.readouterr().err
