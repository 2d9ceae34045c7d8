"""What a file from a stranger may not do: take more memory than a sample is worth, or end the process by its JSON."""

import json
import re

MAX_TEXT = 1 << 24  # bytes of one json, caption or line of text
MAX_IMAGE = 1 << 26  # bytes of one picture's file
MAX_PIXELS = 64_000_000  # of one picture: a larger one is taken for a decompression bomb
UNPACKED = 1 << 28  # bytes that any gzip file may unpack to
RATIO = 200  # beyond that: how many times its size a gzip file may unpack to; text stays below 20, a bomb reaches 1000
CHARACTERS = 1024  # a text is cut to so many for each token that is kept of it: the words of no language are longer

POINTER = b"version https://git-lfs"  # how a file of git-lfs begins that was not fetched

_COMMAND = re.compile(r"^`(.*?)( \{.*)?`$")
_BINARY = re.compile(rb"[\0-\x08\x0e-\x1a]")
_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]|[\ud800-\udfff]")

# First bytes, what such a file is, and what mends it, with the names that ``kinds`` fills in.
STARTS = tuple((re.compile(start, re.DOTALL | re.IGNORECASE), what, mend) for start, what, mend in (
    (rb"$", "empty", "make or download it again, or remove it"),
    (POINTER, "a git-lfs pointer, not the file itself", "`git lfs pull`"),
    (rb"(\xef\xbb\xbf)?\s*(<\?xml[^>]*>\s*)?(<!doctype html|<html)", "an HTML page", "the download failed: download it again"),
    (rb"PAR1", "Parquet", "`xtoolkit prepare {table} --input {file} --out DIR`"),
    (rb"PK\x03\x04.{26}(\[Content_Types\]|_rels/|docProps/|word/|xl/|ppt/|mimetypeapplication/vnd\.oasis)",
     "an Office document (.docx, .xlsx, .odt)", "save it as plain text, and a sheet as CSV"),
    (rb"PK\x03\x04", "a zip archive", "`unzip {file} -d DIR`"),
    (rb"\x1f\x8b", "compressed by gzip", "`gunzip {file}.gz`"),
    (rb"BZh[1-9]", "compressed by bzip2", "`bunzip2 {file}.bz2`"),
    (rb"\xfd7zXZ\0", "compressed by xz", "`unxz {file}.xz`"),
    (rb"\x28\xb5\x2f\xfd", "compressed by zstd", "`unzstd {file}.zst`"),
    (rb".{257}ustar", "a tar", "end its name in .tar"),
    (rb"\0\x05\x16[\0\x07]", "what macOS keeps beside a file (AppleDouble)", "remove it"),
    (rb"\xff\xd8\xff|\x89PNG|GIF8|RIFF....WEBP|II\*\0|MM\0\*|BM....\0{4}|\0{3}\x0cjP|\0{3}.ftyp(avi|hei|mif)",
     "a picture", "`xtoolkit prepare images --images DIR --out DIR`"),
    (rb"\xff\xfe|\xfe\xff|([\t\n\r -~]\0){4}|(\0[\t\n\r -~]){4}", "UTF-16",
     "`iconv -f utf-16 -t utf-8 {file} > {out}-utf8{last}`"),
))


def seen(start: bytes) -> tuple[str | None, str]:
    """What a file is, by its first bytes, and what mends it; None where they are those of no known kind."""
    return next(((what, mend) for pattern, what, mend in STARTS if pattern.match(start)), (None, ""))


def looks(raw: bytes, otherwise: str = "") -> str:
    """What a file is, by its first bytes, that is not what it was taken for; where they are unknown, ``otherwise``."""
    what, mend = seen(raw)
    if not raw.strip():
        return "it is empty"
    if what is None:
        return otherwise or f"it begins with {raw[:16]!r}"
    return f"it is {what}: " + _COMMAND.sub(r"run `\1`", mend)


def decode(raw: bytes) -> str:
    """The text of bytes, by the one rule of every reader: UTF-8; a byte order mark is taken off.

    Raises:
        ValueError: they are of another encoding, or hold a NUL.
    """
    try:
        text = raw.decode()
        if "\0" not in text:
            return text.removeprefix("\ufeff")
        wrong = f"a NUL at {raw.index(0)}"
    except UnicodeDecodeError as e:
        wrong = f"not UTF-8: byte 0x{raw[e.start]:02x} at {e.start}"
    what = seen(raw)[0] or ("binary" if _BINARY.search(raw) else None)
    mend = {"UTF-16": "it is UTF-16; convert it: `iconv -f utf-16 -t utf-8`", None: "convert it: `iconv -f latin1 -t utf-8`"}
    raise ValueError(f"{wrong}; {mend.get(what, f'no text, but {what}')}")


def parse(raw: bytes | str, kind: type = object):
    """The value of a JSON text.

    Args:
        kind: what it must be, such as ``dict``.

    Raises:
        ValueError: it is none, or of another kind; its bytes are no text by ``decode``; it is nested deeper than Python reads;
            it holds half a character (a lone surrogate), which no tokenizer takes and no file can be written with.
    """
    text = decode(raw) if isinstance(raw, bytes) else raw
    try:
        value = json.loads(text)
        if _SURROGATE.search(text):
            json.dumps(value, ensure_ascii=False).encode()
    except RecursionError:
        raise ValueError("nested too deeply") from None
    except UnicodeEncodeError:
        raise ValueError("half a character: a lone surrogate") from None
    if not isinstance(value, kind):
        raise ValueError(f"an object is expected, not {type(value).__name__}")
    return value
