"""``init.own``: an encoder that starts by its own weights though the run has others of it; X2-VLM's text encoder becomes XLM-R."""

import json
from pathlib import Path

import pytest
import torch
from convert_recipes import tiny, write
from hostile import tiny_tokenizer
from PIL import Image
from safetensors.torch import save_file

import xtoolkit
from xtoolkit import recipe as recipes
from xtoolkit.cli import recipes as ours
from xtoolkit.cli.train import main as train
from xtoolkit.data.text import load_tokenizer
from xtoolkit.engine import checkpoint
from xtoolkit.engine.initial import load_initial
from xtoolkit.engine.optim import build_optimizer
from xtoolkit.model import Model, trainable
from xtoolkit.plan import origins
from xtoolkit.recipe.folder import latest
from xtoolkit.registry import ConfigError
from xtoolkit.weights.files import WeightsError

BASELINES = Path(__file__).resolve().parents[2] / "projects/xfm/baselines"
SMALL = ["encoders.vision.stem=[8, 8, 8]", "encoders.vision_proj.dim=32", "encoders.text_proj.dim=32",
         *(f"encoders.{name}.{key}" for name in ("vision", "text", "fusion") for key in ("width=32", "layers=1", "heads=2"))]


def saved(folder, recipe, tokenizer):
    """A run's folder with a checkpoint of weights that no seed draws; and those weights."""
    model = Model(recipe)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    checkpoint.save(folder, 1, model, build_optimizer(model, recipe.optim), {"config": recipe.config}, keep=1)
    tokenizer.save(folder / "tokenizer")
    return folder, model.state_dict()


# ---- X2-VLM and XLM-R -----------------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    """A small XLM-R as the hub stores it, with a Unigram tokenizer of its specials; and its tensors."""
    import tokenizers
    from transformers import XLMRobertaConfig, XLMRobertaForMaskedLM

    folder = tmp_path_factory.mktemp("hub") / "xlm-roberta-tiny"
    letters = [part for letter in "abcdefghijklmnopqrstuvwxyz0123456789" for part in (letter, f"▁{letter}")]
    pieces = [*((special, 0.0) for special in ("<s>", "<pad>", "</s>", "<unk>")), ("▁", -1.0), ("ß", -3.0), ("ü", -3.0),
              *((part, -3.0) for part in letters), ("<mask>", 0.0)]
    words = tokenizers.Tokenizer(tokenizers.models.Unigram(pieces, unk_id=3))
    words.pre_tokenizer, words.decoder = tokenizers.pre_tokenizers.Metaspace(), tokenizers.decoders.Metaspace()
    words.add_special_tokens(["<s>", "<pad>", "</s>", "<unk>", "<mask>"])
    torch.manual_seed(0)
    model = XLMRobertaForMaskedLM(XLMRobertaConfig(
        vocab_size=len(pieces), hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=128,
        max_position_embeddings=514, type_vocab_size=1, layer_norm_eps=1e-5, initializer_range=0.2))
    model.save_pretrained(folder)
    words.save(str(folder / "tokenizer.json"))
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= {file.name for file in folder.iterdir()}
    return folder, {f"encoders.text.{n}": t for n, t in model.state_dict().items() if n.startswith("roberta.")}, len(pieces)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """X2-VLM after pretraining, with the sample pack's words."""
    recipe = recipes.load(str(BASELINES / "tiny/x2vlm.yaml"), SMALL)
    return saved(tmp_path_factory.mktemp("x2vlm") / "run", recipe, load_tokenizer(recipe.tokenizer))


@pytest.fixture
def swapped(run, hub, tmp_path):
    """The file of retrieval with the swap laid over it, and what makes it small."""
    path = tmp_path / "german.yaml"
    path.write_text(f"_BASE_: [xfm/finetune/tiny/retrieval.yaml, xfm/xlm_r.yaml]\ninit: {run[0]}\n")
    return path, [*SMALL, f"tokenizer={hub[0]}", f"encoders.text.init={hub[0]}", f"encoders.text.vocab_size={hub[2]}"]


def test_vision_and_fusion_are_the_runs_and_text_is_xlm_r_bit_for_bit(run, hub, swapped, capsys):
    recipe = ours.read(str(swapped[0]), swapped[1])
    model = Model(recipe)
    load_initial(model, recipe, load_tokenizer(recipe.tokenizer))
    found, text = model.state_dict(), {n for n in model.state_dict() if n.startswith("encoders.text.")}
    assert text == set(hub[1]) and not [n for n in text if not torch.equal(found[n], hub[1][n])]
    assert not [n for n in found.keys() - text if not torch.equal(found[n], run[1][n])]
    assert {n.split(".")[1] for n in found.keys() - text} == {"vision", "fusion", "vision_proj", "text_proj", "sim", "itm"}
    origin = latest(run[0])
    assert f"init {origin}: by its own `init`, as `init.own` says: encoders.text from {hub[0]}" in capsys.readouterr().err.splitlines()
    assert origins(recipe) == [f"all encoders and losses that are in {run[0]}, but text from {hub[0]}; the others drawn from seed 42"]


@pytest.mark.slow
def test_it_trains_evaluates_and_answers(run, hub, swapped, tmp_path):
    keys = [*swapped[1], "train.steps=2", "train.log_every=1", "train.device=cpu", "train.keep_best=null", "evaluate.val=null",
            "streams.train.batch_size=8", "evaluate.test.k=2", "evaluate.test.expect=null", "evaluate.test.limit=20"]
    assert train(["--config", str(swapped[0]), *keys, f"train.output={tmp_path / 'out'}"]) == 0
    lines = [json.loads(line) for line in (tmp_path / "out/metrics.jsonl").read_text().splitlines()]
    trained = [line for line in lines if "loss" in line]
    assert len(trained) == 2 and all(line[loss] > 0 for line in trained for loss in ("train.itc", "train.itm"))
    assert 0 <= json.loads((tmp_path / "out/evaluations/test.json").read_text())["metrics"]["dual.t2i_r1"] <= 100
    after = checkpoint.read_model(latest(tmp_path / "out"))
    for name, before in (run[1] | hub[1]).items():
        if name in after and "bias" not in name and after[name].is_floating_point():
            assert (after[name] - before).abs().max() < 0.01, name
    assert not torch.equal(after["encoders.text.roberta.embeddings.LayerNorm.weight"],
                           hub[1]["encoders.text.roberta.embeddings.LayerNorm.weight"])
    model = xtoolkit.load(tmp_path / "out", precision="fp32")
    assert model.similarity(Image.new("RGB", (96, 96)), ["ein grüner hund", "eine straße"]).shape == (2,)


def test_without_it_the_runs_embeddings_do_not_fit_and_the_key_is_named(run, swapped):
    recipe = ours.read(str(swapped[0]), [*swapped[1], "init.own=[]"])
    with pytest.raises(WeightsError) as error:
        load_initial(Model(recipe), recipe)
    said = str(error.value).splitlines()
    assert any(line.startswith("  other shape: encoders.text.roberta.embeddings.word_embeddings.weight (4000, 32) there") for line in said)
    assert "with `own: [X]` there encoder `X` starts by its own `init`" in said[-1]


def test_another_tokenizer_than_the_new_encoders_is_refused(run, hub, swapped, tmp_path):
    recipe = ours.read(str(swapped[0]), swapped[1])
    other = tmp_path / "other"
    other.mkdir()
    with pytest.raises(WeightsError, match=f"{hub[0]}: encoder `text` was trained with another tokenizer: of its {hub[2]} tokens .* have "
                                           f"another id in `{other}`, or none; set tokenizer={hub[0]}$"):
        load_initial(Model(recipe), recipe, tiny_tokenizer(other))


def test_at_base_size_it_is_one_line(tmp_path):
    """Of the new encoder's words alone: 250,002 rows in the place of 50,265."""
    (tmp_path / "plain.yaml").write_text("_BASE_: xfm/finetune/retrieval_coco.yaml\ninit: outputs/x2vlm\n")
    (tmp_path / "german.yaml").write_text("_BASE_: [xfm/finetune/retrieval_coco.yaml, xfm/xlm_r.yaml]\ninit: outputs/x2vlm\n")
    one, other = (ours.read(str(tmp_path / f"{name}.yaml"), missing_files=False) for name in ("plain", "german"))
    assert other.tokenizer == other.config["encoders"]["text"]["init"] == "xlm-roberta-base"
    assert (other.init.path, other.init.parts, other.init.own) == ("outputs/x2vlm", "shared", ["text"])
    with torch.device("meta"):
        trained = [{name: trainable(module) for name, module in Model(recipe).parts()} for recipe in (one, other)]
    assert trained[1].pop("text") - trained[0].pop("text") == (250_002 - 50_265) * 768 and trained[0] == trained[1]


def test_over_bert_too(tmp_path):
    """X2-VLM's own text encoder is of another type: the block is replaced, its wiring stays."""
    (tmp_path / "swap.yaml").write_text("_BASE_: [xfm/baselines/x2vlm_base.yaml, xfm/xlm_r.yaml]\ninit: outputs/x2vlm_base\n")
    text = ours.read(str(tmp_path / "swap.yaml"), missing_files=False).config["encoders"]["text"]
    assert (text["type"], text["vocab_size"], text["inputs"]) == ("RoBERTa", 250_002, {"text": "$text"})


# ---- any encoder ----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("parts", ["all", "shared"])
def test_an_encoder_of_the_same_shapes_is_swapped_too(tmp_path, parts, capsys):
    recipe = tiny(tmp_path)
    _, before = saved(tmp_path / "run", recipe, tiny_tokenizer(tmp_path))
    vision = {n.removeprefix("encoders.vision."): 2 * t for n, t in before.items() if n.startswith("encoders.vision.")}
    save_file(vision, tmp_path / "vision.safetensors")
    recipe = tiny(tmp_path, f"encoders.vision.init={tmp_path / 'vision.safetensors'}",
                  f"init={{path: {tmp_path / 'run'}, parts: {parts}, own: [vision]}}")
    model = Model(recipe)
    load_initial(model, recipe)
    for name, tensor in model.state_dict().items():
        inner = name.removeprefix("encoders.vision.")
        assert torch.equal(tensor, before[name] if inner == name else vision[inner]), name
    assert capsys.readouterr().err.count("by its own `init`, as `init.own` says: encoders.vision from") == 1


@pytest.mark.parametrize(("own", "said"), [
    ("[txet]", "`own` names no encoder: `txet`; did you mean `text`?"),
    ("[sim]", "`own` names encoder `sim`, which has no `init` of its own: set `encoders.sim.init`, or leave it out"),
    ("[text]", "`own` names encoder `text`, which has no `init` of its own: set `encoders.text.init`, or leave it out"),
    ("[words]", "`own` names encoder `words`, which shares the module of `text`: name that"),
    ("text", "`own` of Init must be a list of words")])
def test_mistakes_have_their_line(tmp_path, own, said):
    words = "encoders.words={shares: text, inputs: {text: $text}}"
    with pytest.raises(ConfigError) as error:
        recipes.load(write(tmp_path, words, f"init={{path: {tmp_path}, parts: shared, own: {own}}}"), missing_files=False)
    line, = error.value.problems
    assert line.startswith(f"{tmp_path}/recipe.yaml:") and said in line


def test_weights_of_its_own_that_are_not_there(tmp_path):
    save_file({"encoders.sim.temperature": torch.ones(1)}, tmp_path / "whole.safetensors")
    keys = [f"tokenizer={tmp_path}", "encoders.vision.init=weights/nowhere.pth", "encoders.text.init=weights/neither.pth"]
    with pytest.raises(ConfigError) as error:
        recipes.load(write(tmp_path, *keys, f"init={{path: {tmp_path / 'whole.safetensors'}, own: [text]}}"))
    line, = error.value.problems
    assert "weights/neither.pth: no such file" in line, "of vision the run's count"


def test_a_run_of_that_encoder_alone_gives_nothing(tmp_path):
    save_file({"encoders.text.x": torch.ones(1)}, tmp_path / "text.safetensors")
    recipe = tiny(tmp_path, "encoders.text.init=roberta-base", f"init={{path: {tmp_path / 'text.safetensors'}, own: [text]}}")
    with pytest.raises(WeightsError, match=r"has no encoder beside those of `init.own`: nothing would come from it; start without it"):
        load_initial(Model(recipe), recipe)
