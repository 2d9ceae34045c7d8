"""`attend` of a loaded model: words with the maps of their tokens, one or several, from the layer that was chosen."""

from types import SimpleNamespace

import pytest
import tokenizers
import torch
from PIL import Image
from torch import nn

from pairs import model as small_model
from xtoolkit.batch import Batch
from xtoolkit.data.text import load_tokenizer
from xtoolkit.encoders.cross_attention import CrossAttention
from xtoolkit.features import Encoded
from xtoolkit.inference.pretrained import Pretrained
from xtoolkit.tasks.attending import attention_maps
from xtoolkit.tasks.pointing import centres_in

TEXTS = ["a small red umbrella", "hippopotamuses", "two cats beside a tree, and one more: a longer caption"]


@pytest.fixture(scope="module")
def loaded(tmp_path_factory):
    patch = pytest.MonkeyPatch()
    patch.setenv("XTOOLKIT_HOME", str(tmp_path_factory.mktemp("home")))
    model = small_model("encoders.fusion.layers=3", "evaluate=null")
    yield Pretrained(model, load_tokenizer("sample://picturebook/tokenizer"), tmp_path_factory.mktemp("run"))
    patch.undo()


@pytest.fixture(scope="module")
def pictures():
    draw = torch.Generator().manual_seed(0)
    return [Image.fromarray(torch.randint(0, 256, (50 + 9 * n, 70, 3), generator=draw, dtype=torch.uint8).numpy())
            for n in range(3)]


def same(a, b):
    assert a.words == b.words and a.layer == b.layer
    torch.testing.assert_close(a.maps, b.maps, atol=1e-8, rtol=1e-4)


def test_a_word_has_the_mean_of_its_tokens(loaded, pictures):
    found = loaded.attend(pictures[0], TEXTS)
    assert [one.words for one in found] == [["a", "small", "red", "umbrella"], ["hippopotamuses"],
                                            "two cats beside a tree and one more a longer caption".split()]
    assert all(one.maps.shape == (len(one.words), 6, 6) and one.maps.min() >= 0 and one.maps.amax() > 0 for one in found)
    assert not any(one.maps.requires_grad for one in found)
    ids = loaded.tokenizer.encode(TEXTS[1])
    assert len(ids) > 3, "one word of several tokens"
    text, image = loaded.texts(TEXTS[1]), loaded.pictures(pictures[0])
    with torch.no_grad():
        inputs = loaded.model.features(Batch(text=next(text.batches(1)), image=next(image.batches(1)))).inputs("fusion")
    maps, plain = attention_maps(loaded.model, loaded.model.losses["itm"], inputs)
    torch.testing.assert_close(found[1].maps[0], maps[0, 1, 1:-1].mean(0).view(6, 6))
    alone = loaded.attend(pictures[0], TEXTS[1], weighted=False)
    torch.testing.assert_close(alone.maps[0], plain[0, 1, 1:-1].mean(0).view(6, 6))


def test_pair_by_pair_whatever_else_is_in_the_batch(loaded, pictures):
    together = loaded.attend(pictures, TEXTS)
    for size in (1, 2):
        for one, other in zip(loaded.attend(pictures, TEXTS, batch_size=size), together):
            same(one, other)
    for picture, text, expected in zip(pictures, TEXTS, together):
        same(loaded.attend(picture, text), expected)
    assert not torch.allclose(together[1].maps, loaded.attend(pictures[0], TEXTS[1]).maps, rtol=1e-2), "pictures differ"
    assert isinstance(loaded.attend(pictures[0], TEXTS[:1]), list)


def test_the_layer_that_was_chosen_or_the_middle_one_or_the_one_that_is_asked_for(loaded, pictures, tmp_path):
    assert loaded.attend(pictures[0], TEXTS[0]).layer == 1, "of three, where none was chosen"
    folder = tmp_path / "evaluations" / "pointing"
    folder.mkdir(parents=True)
    (folder / "layers.json").write_text('{"match": "itm", "chosen_on": "val", "layer": 0, "attention_layer": 2}')
    told = Pretrained(loaded.model, loaded.tokenizer, tmp_path)
    assert told.attend(pictures[0], TEXTS[0]).layer == 0
    assert told.attend(pictures[0], TEXTS[0], weighted=False).layer == 2
    asked = told.attend(pictures[0], TEXTS[0], layer=1)
    same(asked, loaded.attend(pictures[0], TEXTS[0]))
    for wrong in (3, -1, True, "one"):
        with pytest.raises(ValueError, match=f"layer: {wrong!r} is none; the fusion encoder has layers 0 to 2"):
            told.attend(pictures[0], TEXTS[0], layer=wrong)


def test_a_model_that_lacks_it_says_what_gives_it():
    model = small_model("losses.itm=null", "evaluate=null")
    with pytest.raises(AttributeError, match="no `attend`: PointingGame gives it, where a recipe has a loss that matches by "
                                             "cross-attention"):
        Pretrained(model, None).attend


def test_words_look_where_it_is_planted_that_they_look():
    """Two layers of identities: a word asks for its own direction, which one patch alone has, with what speaks for a match."""
    fusion = CrossAttention(widths={"text": 8, "image": 8}, layers=2, heads=1, dropout=0.0)
    with torch.no_grad():
        for name, parameter in fusion.named_parameters():
            parameter.zero_()
            if "LayerNorm.weight" in name:
                parameter.fill_(1)
            elif parameter.dim() == 2 and "attention" in name:
                parameter.copy_(torch.eye(8))
            if name.endswith("crossattention.self.query.weight"):
                parameter.mul_(6)
    directions = torch.eye(8)[:2]
    text = torch.zeros(1, 4, 8)
    text[0, 1:3] = directions  # a summary, two words, an end
    image = torch.zeros(1, 10, 8)
    planted = [3, 8]  # of 9 patches
    for patch, direction in zip(planted, directions):
        image[0, 1 + patch] = 2 * direction + 2 * torch.eye(8)[2]
    loss = nn.Module()
    loss.fusion = "fusion"
    loss.match = lambda fused: torch.stack([torch.zeros(1), fused.pooled[:, 2]], 1)
    model = SimpleNamespace(encoder=lambda name: fusion)
    maps, _ = attention_maps(model, loss, {"text": Encoded.of(text), "image": Encoded.of(image)})
    highest = maps[0, 0, 1:3].argmax(-1).tolist()
    assert highest == planted
    box = torch.tensor([[1 / 6, 1 / 2, 1 / 3, 1 / 3], [5 / 6, 5 / 6, 1 / 3, 1 / 3]])  # patch 3: second row, first column
    inside = centres_in(box, 9)
    assert [bool(inside[word, patch]) for word, patch in enumerate(highest)] == [True, True]
    assert maps[0, 0, 1, planted[0]] > 10 * maps[0, 0, 1, planted[1]]


def test_words_of_tokenizers_of_both_kinds(tmp_path):
    specials = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    bpe = tokenizers.ByteLevelBPETokenizer()
    bpe.train_from_iterator(["a red cat under the tree"] * 9, vocab_size=270, special_tokens=specials)
    piece = tokenizers.BertWordPieceTokenizer()
    piece.train_from_iterator(["a red cat under the tree sh"] * 9, vocab_size=40)
    for made in (bpe, piece):
        made.save(str(tmp_path / "tokenizer.json"))
        tokenizer = load_tokenizer(str(tmp_path))
        text = "the redder cathedral under a dé tree" if made is bpe else "the redder cattree under a ed tree"
        ids = tokenizer.encode(text)
        words = tokenizer.words(ids)
        assert [word for word, _ in words] == text.split()
        assert [place for _, places in words for place in places] == list(range(1, len(ids) - 1))
        pair = tokenizer.encode_pair("the cat", "a tree")[0].tolist()
        assert [word for word, _ in tokenizer.words(pair)] == ["the", "cat", "a", "tree"]
