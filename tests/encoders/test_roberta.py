"""RoBERTa against Hugging Face's own model with eager attention: hidden states, logits, loss, gradients; loading."""

import pytest
import torch
import torch.nn.functional as F

from xtoolkit.batch import TextField
from xtoolkit.encoders.roberta import RoBERTa
from xtoolkit.weights.files import WeightsError

SMALL = dict(width=16, layers=2, heads=4, vocab_size=40, max_positions=20)


@pytest.fixture(scope="module")
def oracle():
    from transformers import RobertaConfig, RobertaForMaskedLM

    torch.manual_seed(3)
    config = RobertaConfig(vocab_size=40, hidden_size=16, num_hidden_layers=2, num_attention_heads=4,
                           intermediate_size=64, max_position_embeddings=20, type_vocab_size=1, pad_token_id=1,
                           layer_norm_eps=1e-5, attn_implementation="eager")
    model = RobertaForMaskedLM(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


@pytest.fixture
def ours(oracle, tmp_path):
    oracle.save_pretrained(tmp_path / "roberta")
    model = RoBERTa(**SMALL, init=str(tmp_path / "roberta")).eval()
    model.build_head("lm_logits")
    model.load_init()
    return model


def padded(lengths=(9, 4, 7)):
    ids = torch.ones(len(lengths), max(lengths), dtype=torch.long)
    for row, n in enumerate(lengths):
        ids[row, :n] = torch.randint(4, 40, (n,))
        ids[row, 0], ids[row, n - 1] = 0, 2
    return TextField(ids, ids != 1)


def test_hidden_states_logits_and_loss_equal_hugging_face(ours, oracle):
    text = padded()
    text = TextField(text.ids, text.mask, masked_pos=torch.tensor([1, 3, 11, 20]), labels=torch.tensor([5, 9, 30, 7]))
    labels = torch.full_like(text.ids, -100)
    labels.view(-1)[text.masked_pos] = text.labels
    theirs = oracle(input_ids=text.ids, attention_mask=text.mask.long(), labels=labels, output_hidden_states=True)
    encoded = ours(view=None, text=text)
    real = text.mask
    torch.testing.assert_close(encoded.tokens[real], theirs.hidden_states[-1][real], atol=1e-5, rtol=1e-5)
    assert torch.equal(encoded.mask, text.mask)
    logits = ours.lm_logits(encoded.tokens.flatten(0, 1)[text.masked_pos])
    torch.testing.assert_close(logits, theirs.logits.flatten(0, 1)[text.masked_pos], atol=1e-5, rtol=1e-5)
    loss = F.cross_entropy(logits, text.labels)
    torch.testing.assert_close(loss, theirs.loss, atol=1e-6, rtol=1e-6)
    loss.backward()
    theirs.loss.backward()
    gradients = dict(oracle.named_parameters())
    for name, parameter in ours.named_parameters():
        if not name.endswith("key.bias"):  # exactly zero in truth, rounding in practice
            torch.testing.assert_close(parameter.grad, gradients[name].grad, atol=1e-5, rtol=1e-4,
                                       msg=lambda m: f"{name}: {m}")


def test_padding_changes_nothing(ours):
    text = padded((4,))
    longer = TextField(F.pad(text.ids, (0, 5), value=1), F.pad(text.mask, (0, 5), value=False))
    torch.testing.assert_close(ours(view=None, text=text).tokens, ours(view=None, text=longer).tokens[:, :4],
                               atol=1e-6, rtol=1e-5)


def test_the_output_matrix_is_the_word_embeddings(ours):
    assert not any("decoder" in name for name, _ in ours.named_parameters())
    ours.lm_logits(torch.randn(2, 16)).sum().backward()
    assert ours.roberta.embeddings.word_embeddings.weight.grad.abs().sum() > 0


def test_output_layer_exists_only_if_declared():
    model = RoBERTa(**SMALL)
    assert not any(name.startswith("lm_head") for name in model.state_dict())
    with pytest.raises(ValueError, match="lm_logits"):
        model.lm_logits(torch.randn(1, 16))
    with pytest.raises(ValueError, match="no head `qa`; it has: lm_logits"):
        model.build_head("qa")


def test_weights_without_an_output_layer_do_not_fit_a_model_with_one(oracle, tmp_path):
    oracle.roberta.save_pretrained(tmp_path / "bare")
    bare = RoBERTa(**SMALL, init=str(tmp_path / "bare")).eval()
    bare.load_init()
    assert torch.equal(bare.roberta.embeddings.word_embeddings.weight, oracle.roberta.embeddings.word_embeddings.weight)
    bare.build_head("lm_logits")
    with pytest.raises(WeightsError, match="(?s)missing: lm_head.dense.weight.*have no output layer, which MLM reads"):
        bare.load_init()


def test_a_model_on_the_hub_goes_through_its_cache(oracle, tmp_path, monkeypatch):
    """What a hub name does, on a cache in its layout and without a network: names judged as strictly as from a file."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("socket.getaddrinfo", lambda *a, **k: pytest.fail("the network is asked"))
    for name, model in (("whole", oracle), ("bare", oracle.roberta)):
        folder = tmp_path / f"models--org--{name}"
        model.save_pretrained(folder / "snapshots" / ("0" * 40))
        (folder / "refs").mkdir()
        (folder / "refs/main").write_text("0" * 40)
        loaded = RoBERTa(**SMALL, init=f"org/{name}")
        loaded.load_init()
        words = loaded.roberta.embeddings.word_embeddings.weight
        assert torch.equal(words, oracle.roberta.embeddings.word_embeddings.weight)


def test_other_sizes_are_listed(oracle, tmp_path):
    oracle.save_pretrained(tmp_path / "roberta")
    with pytest.raises(WeightsError) as error:
        RoBERTa(**SMALL | {"vocab_size": 41, "layers": 3}, init=str(tmp_path / "roberta")).load_init()
    assert "other shape: roberta.embeddings.word_embeddings.weight (40, 16) there, (41, 16) here" in str(error.value)
    assert "missing: roberta.encoder.layer.2.output.dense.bias" in str(error.value)


def test_an_unreachable_name_says_what_to_fetch_and_where_to_put_it():
    with pytest.raises(WeightsError, match="hf download no-such-organisation/roberta"):
        RoBERTa(**SMALL, init="no-such-organisation/roberta").load_init()


def test_too_long_a_text_is_told():
    with pytest.raises(ValueError, match="19 tokens does not fit RoBERTa's 18 positions"):
        RoBERTa(**SMALL)(view=None, text=padded((19,)))
    RoBERTa(**SMALL)(view=None, text=padded((18,)))


def test_attention_and_positions_of_a_text_are_heeded(ours, oracle):
    """Left to right as Hugging Face's decoder reads, and in any order of the tokens."""
    text = padded()
    causal = torch.ones(9, 9).tril().bool().expand(3, 9, 9)
    encoded = ours(view=None, text=TextField(text.ids, text.mask, attention=causal))
    oracle.roberta.config.is_decoder = True
    try:
        theirs = oracle.roberta(input_ids=text.ids, attention_mask=text.mask.long()).last_hidden_state
    finally:
        oracle.roberta.config.is_decoder = False
    torch.testing.assert_close(encoded.tokens[text.mask], theirs[text.mask], atol=1e-5, rtol=1e-5)
    assert encoded.attention is causal and ours(view=None, text=text).attention is None
    order = torch.randperm(9)
    mixed = TextField(text.ids[:, order], text.mask[:, order], positions=order.expand(3, 9), attention=causal[:, order][..., order])
    torch.testing.assert_close(ours(view=None, text=mixed).tokens[mixed.mask], encoded.tokens[:, order][mixed.mask],
                               atol=1e-5, rtol=1e-5)
    assert not torch.allclose(ours(view=None, text=text).tokens, encoded.tokens, atol=1e-3)
