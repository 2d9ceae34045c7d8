"""Tokenizers, the cleaning of captions, and the padded batch of texts."""

import os
import re

import numpy as np
import torch

from xtoolkit.batch import TextField, stable_key
from xtoolkit.data import paths
from xtoolkit.registry import ConfigError

# The specials by their part, as RoBERTa-like and BERT-like tokenizers spell them.
SPECIALS = {"bos": ("<s>", "[CLS]"), "eos": ("</s>", "[SEP]"), "pad": ("<pad>", "[PAD]"), "mask": ("<mask>", "[MASK]")}

_SPACE = str.maketrans({c: " " for c in ",.'!?\"()*#:;~-/"})


def clean_caption(text: str) -> str:
    """A caption as the X-VLM family cleans it: lower case, punctuation to spaces, `<person>` to `person`."""
    return " ".join(text.lower().replace("<person>", "person").translate(_SPACE).split())


class Tokenizer:
    """A tokenizer of the ``tokenizers`` library with the specials of one sequence.

    Args:
        backend: ``tokenizers.Tokenizer``.
        name: for messages.

    Attributes:
        vocab_size: tokens, added ones included.
        bos, eos, pad, mask: ids of the specials.
        separators: how many ``eos`` stand between the two texts of a pair: RoBERTa's two, BERT's one.
        special: set of all special ids.
        plain: (V',) int64, the ids that are no specials.
    """

    def __init__(self, backend, name: str):
        backend.no_padding()
        backend.no_truncation()
        self._backend, self.name = backend, name
        self.vocab_size = backend.get_vocab_size(with_added_tokens=True)
        for part, spellings in SPECIALS.items():
            found = [i for i in map(backend.token_to_id, spellings) if i is not None]
            if not found:
                raise ConfigError(f"tokenizer `{name}` has none of {' '.join(spellings)}: it cannot serve as {part}")
            setattr(self, part, found[0])
        self.separators = 2 if backend.id_to_token(self.bos) == SPECIALS["bos"][0] else 1
        self.special = {i for i, token in backend.get_added_tokens_decoder().items() if token.special}
        self.special |= {self.bos, self.eos, self.pad, self.mask}
        self.plain = np.array(sorted(set(backend.get_vocab(with_added_tokens=True).values()) - self.special), np.int64)

    def encode(self, text: str, max_tokens: int | None = None) -> list[int]:
        """``<s> ... </s>``, at most ``max_tokens`` ids, the two specials counted."""
        return self.encode_words(text, max_tokens)[0].tolist()

    def encode_words(self, text: str, max_tokens: int | None = None) -> tuple[np.ndarray, np.ndarray]:
        """The ids (L,) int64 of ``encode``, and (L,) int8: 1 where a word starts, 0 inside a word, -1 at a special."""
        coded = self._backend.encode(text, add_special_tokens=False)
        kept = coded.ids if max_tokens is None else coded.ids[:max_tokens - 2]
        starts, last = [-1], None
        for token, word in zip(kept, coded.word_ids):
            starts.append(-1 if token in self.special else int(word is None or word != last))
            last = word
        return np.array([self.bos, *kept, self.eos], np.int64), np.array([*starts, -1], np.int8)

    def encode_pair(self, first: str, second: str, max_tokens: int | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Two texts as one sequence, as ``encode_words``: ``<s> a </s></s> b </s>``, or ``[CLS] a [SEP] b [SEP]``.

        Above ``max_tokens`` the longer text is cut to what the shorter one leaves, both to a half where both are longer:
        the ids of transformers' fast tokenizers under ``truncation=True``.
        """
        halves = [[part[1:-1] for part in self.encode_words(text)] for text in (first, second)]
        if max_tokens is not None:
            room, lengths = max_tokens - 2 - self.separators, [len(ids) for ids, _ in halves]
            shorter = min(*lengths, room // 2)
            most = (shorter, room - shorter) if lengths[0] <= lengths[1] else (room - shorter, shorter)
            halves = [[part[:n] for part in half] for half, n in zip(halves, most)]
        (a, a_starts), (b, b_starts) = halves
        ids = np.concatenate([[self.bos], a, [self.eos] * self.separators, b, [self.eos]])
        return ids.astype(np.int64), np.concatenate([[-1], a_starts, [-1] * self.separators, b_starts, [-1]]).astype(np.int8)

    def decode(self, ids) -> str:
        """The text of ids, specials left out."""
        return self._backend.decode([int(i) for i in ids if int(i) not in self.special])

    def save(self, folder: str | os.PathLike) -> None:
        """Writes ``tokenizer.json`` into a folder, which ``load_tokenizer`` then reads; whatever this was read from."""
        os.makedirs(folder, exist_ok=True)
        unfinished = os.path.join(folder, ".unfinished.json")
        self._backend.save(unfinished)
        os.replace(unfinished, os.path.join(folder, "tokenizer.json"))


def load_tokenizer(name: str) -> Tokenizer:
    """The tokenizer of a hub name (``roberta-base``), a folder, a ``tokenizer.json``, or a part of a sample pack.

    Raises:
        ConfigError: it is not there, or it lacks a special that the losses need.
    """
    import tokenizers  # only here: a misspelt key elsewhere is to be answered without it

    place = name
    if "://" in name:
        place, = paths.resolve(name)
    if os.path.isdir(place):
        file = os.path.join(place, "tokenizer.json")
        if os.path.exists(file):
            return Tokenizer(tokenizers.Tokenizer.from_file(file), name)
        vocab, merges = os.path.join(place, "vocab.json"), os.path.join(place, "merges.txt")
        if os.path.exists(vocab) and os.path.exists(merges):
            backend = tokenizers.Tokenizer(tokenizers.models.BPE.from_file(vocab, merges))
            backend.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
            backend.decoder = tokenizers.decoders.ByteLevel()
            spelt = [t for spellings in SPECIALS.values() for t in spellings] + ["<unk>"]
            backend.add_special_tokens([t for t in spelt if backend.token_to_id(t) is not None])
            return Tokenizer(backend, name)
        raise ConfigError(f"tokenizer `{name}`: the folder has neither tokenizer.json nor vocab.json and merges.txt")
    if os.path.isfile(place):
        return Tokenizer(tokenizers.Tokenizer.from_file(place), name)
    from transformers import AutoTokenizer  # seconds to import: only for names that the hub resolves
    try:
        loaded = AutoTokenizer.from_pretrained(name)
    except (OSError, ValueError) as e:
        raise ConfigError(f"tokenizer `{name}`: neither a folder nor known to the hub from here "
                          f"({str(e).splitlines()[0]}); give a folder with tokenizer.json, or "
                          "`sample://picturebook/tokenizer`")
    if not loaded.is_fast:
        raise ConfigError(f"tokenizer `{name}` has no fast version (tokenizer.json), which the loader's workers need")
    return Tokenizer(loaded.backend_tokenizer, name)


def text_field(ids: list, pad: int, masks: list | None = None) -> TextField:
    """Pads texts to the longest of them.

    Args:
        ids: B arrays of token ids, specials included.
        pad: the pad id.
        masks: B results of ``mask_text``; None: the field carries no masking.
    """
    length = max(len(row) for row in ids)
    padded, real = np.full((len(ids), length), pad, np.int64), np.zeros((len(ids), length), bool)
    for row, tokens in enumerate(ids):
        padded[row, :len(tokens)], real[row, :len(tokens)] = tokens, True
    key = torch.tensor([stable_key(*row.tolist()) for row in map(np.asarray, ids)], dtype=torch.int64)
    if masks is None:
        return TextField(torch.from_numpy(padded), torch.from_numpy(real), key)
    masked = padded.copy()
    for row, (tokens, _, _) in enumerate(masks):
        masked[row, :len(tokens)] = tokens
    flat = np.concatenate([row * length + positions for row, (_, positions, _) in enumerate(masks)])
    labels = np.concatenate([labels for _, _, labels in masks])
    return TextField(torch.from_numpy(padded), torch.from_numpy(real), key, torch.from_numpy(masked),
                     torch.from_numpy(flat), torch.from_numpy(labels))


def says_side(texts) -> bool:
    """Whether any text says left or right, so that its picture must not be mirrored."""
    return any(_SIDE.search(text) for text in texts)


_SIDE = re.compile(r"\b(left|right)(most|ward|wards|hand)?\b", re.IGNORECASE)
