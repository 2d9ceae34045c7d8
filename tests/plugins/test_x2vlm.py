"""X2-VLM: BERT against Hugging Face's, a fusion encoder that starts from BERT's upper half, one output layer for texts and pairs,
parameters of its recipes."""

import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file

from xtoolkit import recipe as recipes
from xtoolkit.batch import TextField
from xtoolkit.encoders.cross_attention import CrossAttention
from xtoolkit.encoders.roberta import RoBERTa
from xtoolkit.model import Model, trainable
from xtoolkit.registry import ENCODER_REGISTRY, ConfigError
from xtoolkit.weights.files import WeightsError

ROOT = Path(__file__).resolve().parents[2]
BASELINES = ROOT / "projects/xfm/baselines"
BERT = {"type": "BERT", "inputs": {"text": "$text"}, "width": 768, "layers": 12, "heads": 12}


def recipe(name, *overrides):
    return recipes.load(str(BASELINES / f"{name}.yaml"), overrides, missing_files=False)


# ---- parameters ---------------------------------------------------------------------------------------------------------
MASK_TOKEN = 768  # of our BEiTv2, which the release's lacks: it masks no pictures


def parameters(name, *overrides):
    with torch.device("meta"):
        return trainable(Model(recipe(name, *overrides)))


def test_parameters():
    assert parameters("x2vlm_base") == 254_758_401 + MASK_TOKEN, "the release's own model"
    layer = 56_710_656 // 6  # of fusion
    with_bert = ["tokenizer=bert-base-uncased", f"encoders.text={json.dumps(BERT)}"]
    assert parameters("x2vlm", *with_bert) == 254_758_401 + 6 * layer + MASK_TOKEN == 311_469_057 + MASK_TOKEN
    words, places = (50265 - 30522) * 769, 514 - 512  # a row of embeddings and a bias for each word
    segments = -768                                  # RoBERTa has one segment, BERT two
    assert parameters("x2vlm") == 311_469_057 + words + places * 768 + segments + MASK_TOKEN == 326_652_192 + MASK_TOKEN


def test_xlm_r_is_a_line_of_yaml():
    """XLM-R is RoBERTa with more words: parameters and states are transformers' own."""
    from transformers import XLMRobertaConfig, XLMRobertaModel

    with torch.device("meta"):
        assert sum(p.numel() for p in RoBERTa(vocab_size=250002).parameters()) == 278_043_648 - 590_592, "without its pooler"
        theirs = XLMRobertaModel(XLMRobertaConfig(vocab_size=250002, max_position_embeddings=514, type_vocab_size=1,
                                                  layer_norm_eps=1e-5))
        assert sum(p.numel() for p in theirs.parameters()) == 278_043_648


def test_xlm_r_loads_and_agrees(tmp_path):
    from transformers import XLMRobertaConfig, XLMRobertaModel

    torch.manual_seed(0)
    theirs = XLMRobertaModel(XLMRobertaConfig(vocab_size=60, hidden_size=24, num_hidden_layers=2, num_attention_heads=3,
                                              intermediate_size=96, max_position_embeddings=20, type_vocab_size=1,
                                              layer_norm_eps=1e-5)).eval()
    theirs.save_pretrained(tmp_path)
    ours = RoBERTa(width=24, layers=2, heads=3, vocab_size=60, max_positions=20, init=str(tmp_path)).eval()
    ours.load_init()
    text = texts(60, pad=1)
    with torch.no_grad():
        wanted = theirs(input_ids=text.ids, attention_mask=text.mask.long()).last_hidden_state
        found = ours(view=None, text=text).tokens
    assert torch.allclose(found[text.mask], wanted[text.mask], atol=1e-5)


# ---- BERT ---------------------------------------------------------------------------------------------------------------
def texts(vocab, pad, rows=3, length=9):
    g = torch.Generator().manual_seed(1)
    ids = torch.randint(5, vocab, (rows, length), generator=g)
    mask = torch.arange(length) < torch.tensor([length, length - 3, 2])[:rows, None]
    flat = torch.tensor([1, 3, 4, length + 2, 2 * length + 1])
    return TextField(ids.where(mask, pad), mask, torch.arange(rows), ids.where(mask, pad), flat, ids.flatten()[flat])


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    """A BertForMaskedLM of four layers in a folder, as the hub stores it, its LayerNorms called as in BERT's first files."""
    from transformers import BertConfig, BertForMaskedLM

    torch.manual_seed(0)
    config = BertConfig(vocab_size=50, hidden_size=24, num_hidden_layers=4, num_attention_heads=3, intermediate_size=96,
                        max_position_embeddings=20, initializer_range=0.2)
    model, folder = BertForMaskedLM(config).eval(), tmp_path_factory.mktemp("bert")
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "LayerNorm" in name or name.endswith("bias"):
                parameter.add_(0.1 * torch.randn_like(parameter))
    model.save_pretrained(folder)
    state = load_file(folder / "model.safetensors")
    old = {n.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): t for n, t in state.items()}
    save_file(old, folder / "model.safetensors", {"format": "pt"})
    return model, str(folder)


def bert(hub, layers=4, **keys):
    encoder = ENCODER_REGISTRY.get("BERT")(width=24, layers=layers, heads=3, vocab_size=50, max_positions=20, init=hub[1], **keys)
    encoder.build_head("lm_logits")
    encoder.load_init()
    return encoder.eval()


def test_bert_is_transformers_in_states_scores_and_gradients(hub):
    theirs, ours, text = hub[0], bert(hub), texts(50, pad=0)
    wanted = theirs(input_ids=text.ids, attention_mask=text.mask.long(), output_hidden_states=True)
    found = ours(view=None, text=text)
    assert torch.allclose(found.tokens[text.mask], wanted.hidden_states[-1][text.mask], atol=1e-5)
    hidden = found.tokens.flatten(0, 1)[text.masked_pos]
    assert torch.allclose(ours.lm_logits(hidden), wanted.logits.flatten(0, 1)[text.masked_pos], atol=1e-5)
    F.cross_entropy(wanted.logits.flatten(0, 1)[text.masked_pos], text.labels).backward()
    ours.lm_logits.cross_entropy(hidden, text.labels).backward()
    for ours_of, theirs_of in ((ours.bert.embeddings, theirs.bert.embeddings), (ours.bert.encoder, theirs.bert.encoder),
                               (ours.lm_head.dense, theirs.cls.predictions.transform.dense)):
        for (name, a), b in zip(ours_of.named_parameters(), theirs_of.parameters(), strict=True):
            assert torch.allclose(a.grad, b.grad, atol=1e-5), name


def test_the_first_layers_of_a_deeper_bert(hub):
    ours, text = bert(hub, layers=2), texts(50, pad=0)
    wanted = hub[0](input_ids=text.ids, attention_mask=text.mask.long(), output_hidden_states=True).hidden_states[2]
    assert torch.allclose(ours(view=None, text=text).tokens[text.mask], wanted[text.mask], atol=1e-5)


def test_a_text_longer_than_its_positions(hub):
    with pytest.raises(ValueError, match="25 tokens does not fit BERT's 20 positions: lower the stream's `max_tokens`"):
        bert(hub)(view=None, text=texts(50, pad=0, length=25))


# ---- the fusion encoder from BERT's upper half ---------------------------------------------------------------------------
def fusion(init, **keys):
    encoder = CrossAttention({"text": 24, "image": 16}, heads=3, layer_norm_eps=1e-12, init=init, **keys)
    encoder.load_init()
    return encoder


def test_upper_layers_become_the_fusion_encoder(hub):
    theirs, drawn, ours = hub[0].bert.encoder.layer, fusion(None, layers=2), fusion(hub[1], layers=2, init_first=2)
    for number in range(2):
        own = {n: p for n, p in ours.layer[number].named_parameters() if not n.startswith("crossattention")}
        assert own.keys() == dict(theirs[2 + number].named_parameters()).keys()
        assert all(torch.equal(p, theirs[2 + number].get_parameter(n)) for n, p in own.items())
    cross = [n for n, _ in ours.named_parameters() if "crossattention" in n and n.endswith("query.weight")]
    assert len(cross) == 2 and all(0.01 < ours.get_parameter(n).std() < 0.03 and drawn.get_parameter(n).std() < 0.03 for n in cross)


@pytest.mark.parametrize(("keys", "said"), [
    ({"layers": 3, "init_first": 2}, r"no layer 4: it has 4 layers of a text transformer, and 3 from `init_first: 2` on"),
    ({"layers": 2, "ffn_ratio": 2}, r"other shape: layer.0.intermediate.dense.weight \(96, 24\) there, \(48, 24\) here")])
def test_layers_that_are_not_there(hub, keys, said):
    with pytest.raises(WeightsError, match=said):
        fusion(hub[1], **keys)


def test_weights_of_something_else(tmp_path):
    save_file({"blocks.0.weight": torch.zeros(2)}, tmp_path / "model.safetensors")
    with pytest.raises(WeightsError, match="no layer 0: it has 0 layers of a text transformer"):
        fusion(str(tmp_path / "model.safetensors"), layers=1)


# ---- one output layer for texts and pairs --------------------------------------------------------------------------------
SMALL = [f"encoders.{e}.{k}" for e in ("vision", "text", "fusion") for k in ("width=32", "layers=1", "heads=2")] + [
    "encoders.vision.stem=[8, 8, 8]", "encoders.vision_proj.dim=32", "encoders.text_proj.dim=32"]


def test_words_of_pairs_are_told_by_the_text_encoders_layer():
    """Loss and gradients by hand; the text encoder's embeddings get them from their output side, too."""
    from xtoolkit import build

    encoders = {"vision": {"stem": [8, 8, 8]}, "vision_proj": {"dim": 32}, "text_proj": {"dim": 32}, "text": {}, "fusion": {}}
    for name in ("vision", "text", "fusion"):
        encoders[name] |= {"width": 32, "layers": 1, "heads": 2}
    run = build({"_BASE_": str(BASELINES / "tiny/x2vlm.yaml"), "encoders": encoders, "streams": {"match": {"batch_size": 4}}})
    model, batch = run.model.eval(), run.batch("match")
    found, text, head = model("match", batch)["imlm"], batch.text, model.encoders["text"].lm_head
    hidden = model.features(batch)["fusion@mask_text"].tokens.flatten(0, 1)[text.masked_pos].double()
    hidden = F.layer_norm(F.gelu(F.linear(hidden, head.dense.weight.double(), head.dense.bias.double())), (32,),
                          head.layer_norm.weight.double(), head.layer_norm.bias.double(), head.layer_norm.eps)
    scores = hidden @ model.encoders["text"].embeddings.word_embeddings.weight.double().T + head.bias.double()
    wanted = F.cross_entropy(scores, text.labels)
    assert torch.allclose(found.double(), wanted, atol=1e-5)
    names, parameters = zip(*((n, p) for n, p in model.named_parameters() if p.requires_grad))
    ours, theirs = (torch.autograd.grad(value, parameters, retain_graph=True, allow_unused=True) for value in (found, wanted))
    moved = {n for n, a, b in zip(names, ours, theirs, strict=True) if a is not None and torch.allclose(a, b, atol=1e-5)}
    assert moved == {n for n, a in zip(names, ours) if a is not None} and {n.split(".")[1] for n in moved} == {"text", "fusion", "vision"}


@pytest.mark.parametrize(("overrides", "said"), [
    (["losses.imlm.words=txet"], "txet"),
    (["losses.imlm.words=vision"], "`imlm` needs the head `lm_logits`, which encoder `vision` does not have"),
    (["encoders.fusion.width=64", "encoders.fusion.aligned=false"], "MLM: `fusion@mask_text` is 64 channels wide, and the output layer of `text` reads 192")])
def test_an_output_layer_that_cannot_serve(overrides, said):
    with pytest.raises((ConfigError, ValueError), match=said):
        Model(recipe("tiny/x2vlm", *overrides))
