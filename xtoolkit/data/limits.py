"""What a file from a stranger may not do: take more memory than a sample is worth, or end the process by its JSON."""

import json
import re

MAX_TEXT = 1 << 24  # bytes of one json, caption or line of text
MAX_IMAGE = 1 << 26  # bytes of one picture's file
MAX_PIXELS = 64_000_000  # of one picture: a larger one is taken for a decompression bomb
UNPACKED = 1 << 28  # bytes that any gzip file may unpack to
RATIO = 200  # beyond that: how many times its size a gzip file may unpack to; text stays below 20, a bomb reaches 1000
CHARACTERS = 1024  # a text is cut to so many for each token that is kept of it: the words of no language are longer

_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")


def largest(part: str) -> int:
    """The most bytes that a part of a sample (``image``, ``json``, ``txt``, ``text``) may have."""
    return MAX_IMAGE if part == "image" else MAX_TEXT


def decode(raw: bytes) -> str:
    """The text that bytes are, for every reader: UTF-8, with or without a byte order mark.

    Raises:
        ValueError: they are not, with the command that converts their file.
    """
    if raw[:2] in (b"\xff\xfe", b"\xfe\xff"):
        raise ValueError("not UTF-8 but UTF-16; convert it: `iconv -f utf-16 -t utf-8`")
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as e:
        raise ValueError(f"not UTF-8: byte 0x{raw[e.start]:02x} at {e.start}; convert it: `iconv -f latin1 -t utf-8`") from None
    if "\0" in text:
        raise ValueError(f"not UTF-8: byte 0x00 at {raw.index(0)}; UTF-16 is converted by `iconv -f utf-16 -t utf-8`")
    return text


def parse(raw: bytes | str):
    """The value of a JSON text.

    Raises:
        ValueError: it is none, or not UTF-8; it is nested deeper than Python reads; it holds half a character (a lone surrogate), which no
            tokenizer takes and no file can be written with.
    """
    try:
        value = json.loads(decode(raw) if isinstance(raw, bytes) else raw)
    except RecursionError:
        raise ValueError("nested too deeply") from None
    if _SURROGATE.search(raw if isinstance(raw, bytes) else raw.encode("utf-8", "surrogatepass")):
        try:
            json.dumps(value, ensure_ascii=False).encode()
        except UnicodeEncodeError:
            raise ValueError("half a character: a lone surrogate") from None
    return value
