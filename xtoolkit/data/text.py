"""Tokenizers, the cleaning of captions, and the padded batch of texts."""

import os
import re

import numpy as np
import torch

from xtoolkit.batch import TextField, stable_key
from xtoolkit.data import limits, paths
from xtoolkit.registry import ConfigError
from xtoolkit.weights.hub import cached_first

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
        if not self.plain.size:
            raise ConfigError(f"tokenizer `{name}` has no token but its specials: the file of its vocabulary is missing")

    @property
    def vocabulary(self) -> dict[str, int]:
        """{token: id}, added ones included."""
        return self._backend.get_vocab(with_added_tokens=True)

    def encode(self, text: str, max_tokens: int | None = None) -> list[int]:
        """``<s> ... </s>``, at most ``max_tokens`` ids, the two specials counted."""
        return self.encode_words(text, max_tokens)[0].tolist()

    def encode_words(self, text: str, max_tokens: int | None = None) -> tuple[np.ndarray, np.ndarray]:
        """The ids (L,) int64 of ``encode``, and (L,) int8: 1 where a word starts, 0 inside a word, -1 at a special."""
        coded = self._backend.encode(text, add_special_tokens=False)
        kept = coded.ids if max_tokens is None else coded.ids[:max_tokens - 2]
        starts = [-1 if token in self.special else int(word is None or word != last)
                  for token, word, last in zip(kept, coded.word_ids, [None, *coded.word_ids])]
        return np.array([self.bos, *kept, self.eos], np.int64), np.array([-1, *starts, -1], np.int8)

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

    def words(self, ids) -> list[tuple[str, list[int]]]:
        """The words of ids, each with the places of its tokens; words are what spaces part, and specials belong to none."""
        places, before = [], ""
        for place in (place for place, token in enumerate(ids) if int(token) not in self.special):
            text = self.decode(ids[:place + 1])
            if not places or places[-1][-1] != place - 1 or text[len(before):len(before) + 1].isspace():
                places.append([])
            places[-1].append(place)
            before = text
        return [(self.decode([ids[place] for place in word]).strip(), word) for word in places]

    def save(self, folder: str | os.PathLike) -> None:
        """Writes ``tokenizer.json`` into a folder, which ``load_tokenizer`` then reads; whatever this was read from."""
        os.makedirs(folder, exist_ok=True)
        unfinished = os.path.join(folder, ".unfinished.json")
        self._backend.save(unfinished)
        os.replace(unfinished, os.path.join(folder, "tokenizer.json"))


def load_tokenizer(name: str) -> Tokenizer:
    """The tokenizer of a hub name (``roberta-base``), a folder, a ``tokenizer.json``, or a part of a sample pack.

    Raises:
        ConfigError: it is not there, it is damaged, or it lacks a special that the losses need.
    """
    place = paths.resolve(name)[0] if "://" in name else name
    if os.path.isfile(place):
        return Tokenizer(_from_json(place), name)
    if not os.path.isdir(place):
        return Tokenizer(_from_hub(name), name)
    if (backend := _in_folder(place)) is None:
        raise ConfigError(f"tokenizer `{name}`: the folder has neither tokenizer.json nor vocab.json and merges.txt; write "
                          "them by `AutoTokenizer.from_pretrained(NAME).save_pretrained(FOLDER)` of transformers")
    return Tokenizer(backend, name)


_FILES = "tokenizer.json", "vocab.json", "merges.txt"
_AGAIN = "fetch the file again"


def _in_folder(folder: str):
    """The backend that a folder's files describe; None if it lacks them."""
    whole, *pair = (os.path.join(folder, file) for file in _FILES)
    if os.path.lexists(whole):  # a link to nowhere is to be named, too
        return _from_json(whole)
    return _from_pair(*pair) if all(map(os.path.lexists, pair)) else None


def _from_hub(name: str):
    from huggingface_hub import try_to_load_from_cache
    try:
        cached = [file for file in (try_to_load_from_cache(name, file) for file in _FILES) if isinstance(file, str)]
        # transformers reads damaged files into other ids without a word; and it asks the hub for files beside a whole one
        backend = _in_folder(os.path.dirname(cached[0])) if cached else None
        if backend is not None and cached[0].endswith(_FILES[0]):
            return backend
        from transformers import AutoTokenizer  # seconds to import: only where the hub, or its library, is needed
        loaded = cached_first(lambda local: AutoTokenizer.from_pretrained(name, local_files_only=local))
    except ConfigError:
        raise
    except Exception as e:  # its own, tokenizers' and the hub's, which have no class in common
        raise ConfigError(f"tokenizer `{name}`: neither a folder nor known to the hub from here ({_line(e)}); give a folder with "
                          "tokenizer.json, or `sample://picturebook/tokenizer`")
    if not loaded.is_fast:
        raise ConfigError(f"tokenizer `{name}` has no fast version (tokenizer.json), which the loader's workers need")
    return loaded.backend_tokenizer


def _from_json(file: str):
    import tokenizers  # only where it is needed: a misspelt key elsewhere is to be answered without it
    text = _read(file)
    try:
        model, backend = limits.parse(text)["model"], tokenizers.Tokenizer.from_str(text)
    except Exception as e:  # the library raises no narrower class
        raise ConfigError(f"{file}: not a whole tokenizer ({_line(e)}); {_AGAIN}")
    _check_ids(backend.get_vocab(with_added_tokens=True), file)
    if model.get("merges") == [] and not model.get("ignore_merges") and (unmade := _unmade(model["vocab"], [])):
        raise ConfigError(f"{file}: its merges make none of {len(unmade)} tokens, such as `{unmade[0]}`; {_AGAIN}")
    return backend


def _from_pair(vocab_file: str, merges_file: str):
    import tokenizers
    text, lines = _read(vocab_file), _read(merges_file).splitlines()
    try:
        vocab = dict(limits.parse(text))
    except (TypeError, ValueError) as e:
        raise ConfigError(f"{vocab_file}: not a whole vocabulary ({e}); {_AGAIN}")
    _check_ids(vocab, vocab_file)
    merges = [tuple(line.split(" ")) for line in lines if not line.startswith("#version")]
    wrong = [" ".join(m) for m in merges if len(m) != 2 or not vocab.keys() >= {*m, "".join(m)}]
    if wrong:
        raise ConfigError(f"{merges_file}: `{wrong[0]}` is no merge of two tokens of vocab.json; {_AGAIN}")
    if unmade := _unmade(vocab, merges):
        raise ConfigError(f"{merges_file}: it makes none of {len(unmade)} tokens of vocab.json, such as `{unmade[0]}`; {_AGAIN}")
    backend = tokenizers.Tokenizer(tokenizers.models.BPE(vocab, merges))
    backend.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = tokenizers.decoders.ByteLevel()
    spelt = [t for spellings in SPECIALS.values() for t in spellings] + ["<unk>"]
    backend.add_special_tokens([t for t in spelt if t in vocab])
    return backend


def _read(file: str) -> str:
    try:
        with open(file, "rb") as f:
            raw = f.read()
        if not raw or raw.startswith(limits.POINTER):
            raise ValueError(limits.looks(raw))
        return limits.decode(raw)
    except (OSError, ValueError) as e:
        raise ConfigError(f"{file}: {getattr(e, 'strerror', None) or e}; {_AGAIN}")


def _check_ids(vocab: dict, where: str) -> None:
    unused = set(range(len(vocab))) - {i for i in vocab.values() if isinstance(i, int)}
    if unused:
        raise ConfigError(f"{where}: of {len(vocab)} tokens none has id {min(unused)}: the ids must be 0 to {len(vocab) - 1}, "
                          f"each once; {_AGAIN}")


def _unmade(vocab: dict, merges: list) -> list[str]:
    """Tokens of several characters that no merge makes, so that no text has them; but for those that look like specials."""
    made, special = set(map("".join, merges)), re.compile(r"<.*>|\[.*\]|madeupword\d+")
    return [t for t in vocab if len(t.removesuffix("</w>")) > 1 and t not in made and not special.fullmatch(t)]


def _line(error: Exception) -> str:
    return str(error).partition("\n")[0] or repr(error)


def text_field(ids: list, pad: int, masks: list | None = None) -> TextField:
    """Pads texts to the longest of them.

    Args:
        ids: B arrays of token ids, specials included.
        pad: the pad id.
        masks: B results of ``mask_text``; None: the field carries no masking.
    """
    padded = _padded(ids, pad)
    length = padded.shape[1]
    real = torch.arange(length) < torch.tensor([len(row) for row in ids])[:, None]
    key = torch.tensor([stable_key(*row.tolist()) for row in map(np.asarray, ids)], dtype=torch.int64)
    if masks is None:
        return TextField(padded, real, key)
    masked, positions, labels = zip(*masks)
    flat = np.concatenate([row * length + places for row, places in enumerate(positions)])
    return TextField(padded, real, key, _padded(masked, pad), torch.from_numpy(flat), torch.from_numpy(np.concatenate(labels)))


def _padded(rows, pad: int) -> torch.Tensor:
    padded = np.full((len(rows), max(map(len, rows))), pad, np.int64)  # torch's pad_sequence takes ten times as long
    for row, tokens in enumerate(rows):
        padded[row, :len(tokens)] = tokens
    return torch.from_numpy(padded)


def says_side(texts) -> bool:
    """Whether any text says left or right, so that its picture must not be mirrored."""
    return any(_SIDE.search(text) for text in texts)


_SIDE = re.compile(r"\b(left|right)(most|ward|wards|hand)?\b", re.IGNORECASE)
