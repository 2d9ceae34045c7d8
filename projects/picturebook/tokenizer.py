"""Trains the pack's tokenizer: RoBERTa's kind of byte-level BPE, small enough for small encoders."""

import io
import json
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

from tokenizers import AddedToken, ByteLevelBPETokenizer
from tokenizers.processors import RobertaProcessing

VOCABULARY = 4_000
SPECIALS = ("<s>", "<pad>", "</s>", "<unk>")  # ids 0..3 as in roberta-base; <mask> is the last id there and here
MAX_LENGTH = 512


def tokenizer_files(lines: Iterable[str]) -> Iterator[tuple[str, bytes]]:
    """(file name, bytes) of a Hugging Face tokenizer folder trained on `lines` in their order.

    Lines are counted once as they are and once in lower case: captions are lower-cased for the model, text is not.
    """
    bpe = ByteLevelBPETokenizer(add_prefix_space=False)
    both = [form for line in lines for form in (line, line.lower())]
    bpe.train_from_iterator(
        both, vocab_size=VOCABULARY - 1, min_frequency=2, special_tokens=list(SPECIALS), show_progress=False
    )
    bpe.add_special_tokens([AddedToken("<mask>", lstrip=True, normalized=False, special=True)])
    with tempfile.TemporaryDirectory() as folder:
        bpe.save_model(folder)
        vocab = json.loads(Path(folder, "vocab.json").read_text("utf-8"))
        merges = Path(folder, "merges.txt").read_bytes()
    vocab["<mask>"] = bpe.token_to_id("<mask>")
    bpe._tokenizer.post_processor = RobertaProcessing(
        ("</s>", 2), ("<s>", 0), trim_offsets=True, add_prefix_space=False
    )
    yield "vocab.json", _json(vocab)
    yield "merges.txt", merges
    yield "tokenizer.json", bpe._tokenizer.to_str(pretty=False).encode()
    yield "tokenizer_config.json", _json(
        {
            "tokenizer_class": "RobertaTokenizer",
            "model_max_length": MAX_LENGTH,
            "add_prefix_space": False,
            "trim_offsets": True,
            "errors": "replace",
            "clean_up_tokenization_spaces": False,
            "bos_token": "<s>",
            "eos_token": "</s>",
            "cls_token": "<s>",
            "sep_token": "</s>",
            "pad_token": "<pad>",
            "unk_token": "<unk>",
            "mask_token": "<mask>",
        }
    )
    mask = {"content": "<mask>", "lstrip": True, "normalized": False, "rstrip": False, "single_word": False}
    yield "special_tokens_map.json", _json(
        {
            "bos_token": "<s>",
            "eos_token": "</s>",
            "cls_token": "<s>",
            "sep_token": "</s>",
            "pad_token": "<pad>",
            "unk_token": "<unk>",
            "mask_token": mask,
        }
    )


def _json(value: object) -> bytes:
    buffer = io.StringIO()
    json.dump(value, buffer, ensure_ascii=False)
    return buffer.getvalue().encode()
