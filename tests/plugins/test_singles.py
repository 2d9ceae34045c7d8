"""RoBERTa† and BEiTv2† from their recipes: parameters derived by hand, steps on the sample pack."""

import json
from pathlib import Path

import pytest
import torch
from PIL import Image

from xtoolkit import recipe as recipes
from xtoolkit.cli.train import main as train
from xtoolkit.engine import checkpoint
from xtoolkit.model import Model, trainable
from xtoolkit.recipe.folder import latest

ROOT = Path(__file__).resolve().parents[2]
BASELINES = ROOT / "projects/xfm/baselines"
OF_ALL = ["streams.*.batch_size=8", "train.workers=0", "train.log_every=1", "train.checkpoint_every=1", "train.keep=9",
          "train.device=cpu"]
VISION = ["encoders.vision.width=32", "encoders.vision.layers=1", "encoders.vision.heads=2", "encoders.vision.stem=[8, 8, 8]"]
TEXT = ["encoders.text.width=32", "encoders.text.layers=1", "encoders.text.heads=2"]
TOKENS = ["encoders.tokens.width=32", "encoders.tokens.layers=1", "encoders.tokens.heads=2", "encoders.tokens.stem=[8, 8, 8]"]
CONTRAST = [*VISION, *TEXT, "encoders.vision_proj.dim=32", "encoders.text_proj.dim=32"]


def recipe(name, *overrides):
    return recipes.load(str(BASELINES / f"{name}.yaml"), overrides, missing_files=False)


# ---- parameters, by hand ------------------------------------------------------------------------------------------------
D, LAYERS, HEADS, GRID, CODES = 768, 12, 12, 14, 8192
LINEAR = lambda i, o: i * o + o
NORM = 2 * D
TABLE = ((2 * GRID - 1) ** 2 + 3) * HEADS   # a bias for each offset of two patches, and three for the CLS token
BLOCK = D * 3 * D + 2 * D + LINEAR(D, D) + 2 * NORM + LINEAR(D, 4 * D) + LINEAR(4 * D, D)  # queries and values have biases
PATCHES = LINEAR(3 * 16 * 16, D)


@pytest.fixture(scope="module")
def base():
    with torch.device("meta"):
        return {name: Model(recipe(name)) for name in ("roberta", "beitv2", "vqkd")}


def test_beitv2_with_its_pretraining_head(base):
    """The release shares one table of 8,784 between its blocks; transformers' copy has 91,965,776. X-FM's has one a block."""
    scale, tokens, head = 2 * D, 2 * D, LINEAR(D, CODES)
    shared = PATCHES + tokens + TABLE + LAYERS * (BLOCK + scale) + NORM + head
    assert shared == 91_965_776 and TABLE == 8_784 and head == 6_299_648
    assert trainable(base["beitv2"]) == shared + (LAYERS - 1) * TABLE == 92_062_400
    # BEiTv2 3.3 adds a second head, two blocks that see the CLS token and an early layer's patches; its codes' matrix is shared.
    assert shared + 2 * (BLOCK + scale) == 106_143_056


def test_the_tokenizer(base):
    tokens = base["beitv2"].encoders["tokens"]
    width = D + (1 + GRID**2) * D   # CLS token and positions
    encoder = PATCHES + width + LAYERS * BLOCK + NORM
    count = lambda module: sum(p.numel() for p in module.parameters())
    assert count(tokens.encoder) == encoder == 85_789_440 and count(tokens.encode_task_layer) == LINEAR(D, D) + LINEAR(D, 32)
    assert tokens.quantize.weight.shape == (CODES, 32) and trainable(tokens) == 0


def test_the_tokenizer_in_training(base):
    decoder = LINEAR(32, D) + D + (1 + GRID**2) * D + 3 * BLOCK + NORM + 2 * LINEAR(D, D)
    trained = {name: trainable(module) for name, module in base["vqkd"].parts() if name != "clip"}
    assert trained == {"tokens": 86_404_640, "vqkd": decoder} and sum(trained.values()) == 109_026_080


def test_roberta_is_transformers(base):
    from transformers import RobertaConfig, RobertaForMaskedLM

    with torch.device("meta"):
        theirs = RobertaForMaskedLM(RobertaConfig(vocab_size=50265, max_position_embeddings=514, type_vocab_size=1))
    assert trainable(base["roberta"]) == sum(p.numel() for p in theirs.parameters()) == 124_697_433


# ---- on the sample pack -------------------------------------------------------------------------------------------------
def lines(output):
    return [line for line in map(json.loads, (output / "metrics.jsonl").read_text().splitlines()) if "loss" in line]


def run(name, output, *overrides):
    done = train(["--config", str(BASELINES / f"{name}.yaml"), *OF_ALL, *overrides, f"train.output={output}"])
    assert done == 0
    return output


@pytest.fixture(scope="module")
def chain(tmp_path_factory):
    """Contrast, then its image encoder as the tokenizer's teacher, then the tokenizer's codes as targets: two steps each."""
    folder = tmp_path_factory.mktemp("chain")
    contrast = run("tiny/contrast", folder / "contrast", *CONTRAST, "train.steps=2")
    vqkd = run("tiny/vqkd", folder / "vqkd", *VISION, *TOKENS, f"init.path={contrast}", "train.steps=2", "encoders.tokens.wait=1")
    beitv2 = run("tiny/beitv2", folder / "beitv2", *VISION, *TOKENS, f"encoders.tokens.init={vqkd}", "train.steps=2")
    return folder, contrast, vqkd, beitv2


def test_from_contrast_to_codes_to_masked_pictures(chain):
    _, contrast, vqkd, beitv2 = chain
    models = [checkpoint.read_model(latest(output)) for output in (contrast, vqkd, beitv2)]
    same = lambda a, b, prefix: [n for n in a if n.startswith(prefix) and not torch.equal(a[n], b[n])]
    assert not same(models[1], models[0], "encoders.vision."), "a teacher does not move"
    assert not same(models[2], models[1], "encoders.tokens."), "nor does a tokenizer"
    results = [json.loads((output / "results.json").read_text()) for output in (vqkd, beitv2)]
    used = [next(v for k, v in flat(result).items() if k.endswith("codes.used")) for result in results]
    assert used[0] == used[1] and 0 < used[0] <= 100
    assert lines(beitv2)[-1]["image.mim"] > 0 and "image.mim.accuracy" in lines(beitv2)[-1]


@pytest.mark.slow
@pytest.mark.parametrize(("teacher", "init"), [("clip", "null"), ("vision", "{path: RUN, parts: shared}")])
def test_the_base_recipe_of_the_tokenizer_small_towards_either_teacher(chain, tmp_path, teacher, init):
    sizes = [f"encoders.{name}.image_size=96" for name in ("vision", "clip", "tokens")]
    small = ["encoders.vision={absolute_positions: 0.5, init_std: 0.04}", "encoders.clip={width: 32, layers: 1, heads: 2, init: null}"]
    pictures = [f"{key}.data.path=sample://picturebook/imagenet-{part}" for key, part in (("streams.image", "train"), ("evaluate.codes", "val"))]
    small += ["tokenizer=sample://picturebook/tokenizer", "encoders.tokens.codes=16", "train.steps=2"]
    output = run("vqkd", tmp_path / "run", *VISION, *TOKENS, *sizes, *small, *pictures, f"losses.vqkd.teacher={teacher}",
                 f"init={init.replace('RUN', str(chain[1]))}")
    one, two = (checkpoint.read_model(output / f"checkpoints/step_{n:08}") for n in (1, 2))
    parts = {name.split(".")[1] for name in one if not torch.equal(one[name], two[name])}
    assert parts == {"tokens", "vqkd"} and any(name.startswith(f"encoders.{teacher}.") for name in one)
    assert all(line["image.vqkd.guess"] > 0 and line["image.vqkd.used"] > 0 for line in lines(output))


def flat(value, path=""):
    if not isinstance(value, dict):
        return {path: value}
    return {k: v for key, inner in value.items() for k, v in flat(inner, f"{path}.{key}").items()}


def test_a_loaded_model_tells_the_codes_of_pictures(chain):
    import xtoolkit

    _, _, vqkd, beitv2 = chain
    pictures = [Image.linear_gradient("L").rotate(50 * n).convert("RGB") for n in range(3)]
    one, other = (xtoolkit.load(str(output)) for output in (vqkd, beitv2))
    codes = other.picture_codes(pictures, batch_size=2)
    assert codes.shape == (3, 36) and codes.dtype == torch.int64 and torch.equal(codes, one.picture_codes(pictures))
    assert torch.equal(other.picture_codes(pictures[1]), codes[1])


def test_a_tokenizer_that_no_run_has_made_yet(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert train(["--config", str(BASELINES / "tiny/beitv2.yaml")]) == 2
    said = capsys.readouterr().err
    assert "outputs/vqkd_tiny: no such file; a run's folder, by its name: train that recipe first" in said and "hf download" not in said
