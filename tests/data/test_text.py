"""Tokenizers, cleaning, and the padded field with its masks."""

import random
import re

import numpy as np
import pytest
import tokenizers
import torch

from xtoolkit.data.masking import TextMask, mask_text
from xtoolkit.data.text import clean_caption, load_tokenizer, says_side, text_field
from xtoolkit.registry import ConfigError


@pytest.mark.parametrize("raw, cleaned", [
    ("A man's hat, and (two) dogs!", "a man s hat and two dogs"),
    ("  black-and-white/grey;  \n", "black and white grey"),
    ("<person> and <PERSON> say: \"Hi?\"", "person and person say hi"),
    ("#1 * ~ .", "1"), ("...", ""), ("Straße 3 ä", "straße 3 ä"),
])
def test_captions_are_cleaned_as_the_release_does(raw, cleaned):
    assert clean_caption(raw) == cleaned


def test_ids_are_those_of_the_library_with_its_own_template(tokenizer, tokenizer_folder):
    library = tokenizers.Tokenizer.from_file(str(tokenizer_folder / "tokenizer.json"))
    library.post_processor = tokenizers.processors.RobertaProcessing(("</s>", 2), ("<s>", 0), add_prefix_space=False)
    library.enable_truncation(12)
    for text in ("a red dog", "Two big trees, under the sky!", "zzz qqq", "a " * 40):
        expected = library.encode(text).ids
        assert tokenizer.encode(text, 12) == expected
        assert tokenizer.encode(text, 12)[-1] == tokenizer.eos
    assert (tokenizer.bos, tokenizer.pad, tokenizer.eos, tokenizer.mask) == (0, 1, 2, 4)
    assert tokenizer.vocab_size == library.get_vocab_size()
    assert tokenizer.decode(tokenizer.encode("a red dog")) == "a red dog"


def test_a_saved_tokenizer_is_the_same_whatever_it_was_read_from(tokenizer, tmp_path):
    tokenizer.save(tmp_path / "run" / "tokenizer")
    pair = tmp_path / "pair"
    pair.mkdir()
    tokenizer._backend.model.save(str(pair))
    from_pair = load_tokenizer(str(pair))
    from_pair.save(tmp_path / "again")
    text = "Two zebras, quietly <mask> 42 über"
    for first, folder in ((tokenizer, tmp_path / "run" / "tokenizer"), (from_pair, tmp_path / "again")):
        again = load_tokenizer(str(folder))
        assert [p.name for p in folder.iterdir()] == ["tokenizer.json"]
        assert again.encode(text) == first.encode(text) and again.mask in again.encode(text)
        assert (again.vocab_size, again.special, again.pad) == (first.vocab_size, first.special, first.pad)
        assert again.decode(again.encode(text)) == first.decode(first.encode(text))


def test_words_start_where_the_byte_level_tokens_have_a_space_or_a_new_kind(tokenizer):
    text = "two zebras, quietly 42"
    ids, starts = tokenizer.encode_words(text)
    pieces, words = [tokenizer._backend.id_to_token(int(i)) for i in ids], []
    assert starts[0] == starts[-1] == -1 and starts.min() == -1
    for piece, start in list(zip(pieces, starts))[1:-1]:
        if start:
            words.append("")
        words[-1] += piece.replace("Ġ", "")
    assert words == re.findall(r"\w+|,", text)
    assert (starts == 0).sum() > 5, "the words are several tokens long, or this shows nothing"


def test_a_special_token_written_in_a_text_is_no_word(tokenizer):
    ids, starts = tokenizer.encode_words("a <mask> dog")
    assert starts[ids == tokenizer.mask].tolist() == [-1]
    assert not set(tokenizer.plain.tolist()) & tokenizer.special
    assert len(tokenizer.plain) + len(tokenizer.special) == tokenizer.vocab_size


def test_whole_words_of_a_byte_level_tokenizer_are_masked_whole(tokenizer):
    ids, starts = tokenizer.encode_words("zebras quietly jumped over yellow boxes")
    groups = np.cumsum(starts == 1)
    for seed in range(50):
        positions = mask_text(ids, starts, tokenizer.plain, tokenizer.mask, TextMask(0.4, 14, whole_word=True),
                              random.Random(seed))[1]
        for group in {groups[p] for p in positions}:
            members = set(np.flatnonzero((groups == group) & (starts >= 0)))
            assert members <= set(positions.tolist()) or len(members) > 14


def test_vocab_and_merges_serve_as_well(tokenizer, tokenizer_folder, tmp_path):
    library = tokenizers.ByteLevelBPETokenizer()
    library.train_from_iterator(["a red dog and a cat"] * 20, vocab_size=300, min_frequency=2,
                                special_tokens=["<s>", "<pad>", "</s>", "<unk>", "<mask>"])
    library.save_model(str(tmp_path))
    loaded = load_tokenizer(str(tmp_path))
    assert loaded.encode("a red dog")[1:-1] == library.encode("a red dog").ids
    assert {0, 1, 2, 3, 4} <= loaded.special


def test_tokenizers_that_cannot_serve_are_refused(tmp_path):
    with pytest.raises(ConfigError, match="neither tokenizer.json nor"):
        load_tokenizer(str(tmp_path))
    words = {"a": 0, "<s>": 1, "</s>": 2, "[UNK]": 3}
    bare = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="[UNK]"))
    bare.save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(ConfigError, match=r"none of <pad> \[PAD\]"):
        load_tokenizer(str(tmp_path))


def test_the_field_is_padded_to_its_longest_and_flat_positions_point_at_the_labels():
    rows = [np.array(r) for r in ([0, 7, 2], [0, 8, 9, 10, 2], [0, 7, 2])]
    starts = [np.array([-1] + [1] * (len(r) - 2) + [-1], np.int8) for r in rows]
    masks = [mask_text(r, s, np.arange(5, 50), 4, TextMask(0.5, 4), random.Random(i))
             for i, (r, s) in enumerate(zip(rows, starts))]
    field = text_field(rows, pad=1, masks=masks)
    assert field.ids.tolist() == [[0, 7, 2, 1, 1], [0, 8, 9, 10, 2], [0, 7, 2, 1, 1]]
    assert field.mask.tolist() == [[True] * 3 + [False] * 2, [True] * 5, [True] * 3 + [False] * 2]
    assert field.key[0] == field.key[2] != field.key[1]
    assert field.masked_pos.dtype == field.labels.dtype == torch.int64
    assert field.masked_pos.tolist() == sorted(field.masked_pos.tolist())
    assert torch.equal(field.ids.flatten()[field.masked_pos], field.labels)
    changed = (field.masked_ids != field.ids).flatten().nonzero().flatten()
    assert set(changed.tolist()) <= set(field.masked_pos.tolist())
    assert (field.masked_pos // 5).tolist().count(1) in (1, 2), "half of three tokens"
    assert text_field(rows, pad=1).masked_ids is None


@pytest.mark.parametrize("text, says", [
    ("a dog on the left", True), ("RIGHT-hand side", True), ("the leftmost cat", True),
    ("a bright light", False), ("leftover food", False), ("upright", False)])
def test_sides_are_found_as_words(text, says):
    assert says_side(["a cat", text]) is says
