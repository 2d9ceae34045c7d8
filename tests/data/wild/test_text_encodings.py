"""Bytes of text as people save them: which are read, and as what; which are refused, in which one line."""

import codecs
import json

import pytest

from xtoolkit.data.limits import decode, parse

CAFE = "a café dog"


@pytest.mark.parametrize("raw, text", [
    (CAFE.encode(), CAFE), (CAFE.encode("utf-8-sig"), CAFE), (codecs.BOM_UTF8, ""), (b"", ""),
    ("日本 \U0001f600\r\n".encode(), "日本 \U0001f600\r\n"), ("a\ufeffb".encode("utf-8-sig"), "a\ufeffb"),
    (b"a\tb\x0b\x1f", "a\tb\x0b\x1f"),
], ids=["utf-8", "with a mark", "only the mark", "empty", "four bytes a character", "a mark inside stays", "control characters"])
def test_text_in_utf_8_is_read_without_its_mark(raw, text):
    assert decode(raw) == text


@pytest.mark.parametrize("raw, said", [
    (CAFE.encode("latin-1"), "not UTF-8: byte 0xe9 at 5; convert it: `iconv -f latin1 -t utf-8`"),
    ("“quoted”".encode("cp1252"), "not UTF-8: byte 0x93 at 0; convert it: `iconv -f latin1 -t utf-8`"),
    (codecs.BOM_UTF8 + b"caf\xe9", "not UTF-8: byte 0xe9 at 6; convert it: `iconv -f latin1 -t utf-8`"),
    ("日本".encode("shift-jis"), "not UTF-8: byte 0x93 at 0; convert it: `iconv -f latin1 -t utf-8`"),
    (CAFE.encode()[:6], "not UTF-8: byte 0xc3 at 5; convert it: `iconv -f latin1 -t utf-8`"),
    (b"\xed\xa0\x80", "not UTF-8: byte 0xed at 0; convert it: `iconv -f latin1 -t utf-8`"),
    (b"\xc0\xaf", "not UTF-8: byte 0xc0 at 0; convert it: `iconv -f latin1 -t utf-8`"),
    (CAFE.encode("utf-16"), "not UTF-8: byte 0xff at 0; it is UTF-16; convert it: `iconv -f utf-16 -t utf-8`"),
    (codecs.BOM_UTF16_BE + CAFE.encode("utf-16-be"), "not UTF-8: byte 0xfe at 0; it is UTF-16; convert it: `iconv -f utf-16 -t utf-8`"),
    ("a dog".encode("utf-16-le"), "a NUL at 1; it is UTF-16; convert it: `iconv -f utf-16 -t utf-8`"),
    (b"a dog\0", "a NUL at 5; no text, but binary"),
], ids=["latin-1", "windows", "a mark before latin-1", "shift-jis", "cut in a character", "half a character", "overlong", "utf-16",
        "utf-16, big end", "utf-16 without a mark", "NUL"])
def test_text_of_another_encoding_is_one_line(raw, said):
    for read in (decode, parse):
        with pytest.raises(ValueError) as e:
            read(raw)
        assert str(e.value) == said


@pytest.mark.parametrize("raw, value", [
    (json.dumps({"caption": CAFE}, ensure_ascii=False).encode("utf-8-sig"), {"caption": CAFE}),
    (b'\xef\xbb\xbf{"text": "a"}\n', {"text": "a"}),
    ('{"text": "\\u00e9 \\ud83d\\ude00"}', {"text": "é \U0001f600"}),
    (b'{"text": "\\\\ud800"}', {"text": "\\ud800"}),
], ids=["a mark", "a mark and a line's end", "an escaped pair", "a backslash, no escape"])
def test_json_is_read_with_a_mark(raw, value):
    assert parse(raw) == value


@pytest.mark.parametrize("raw, said", [
    (b'{"text": "\\ud800"}', "half a character: a lone surrogate"), ('{"text": "\ud800"}', "half a character: a lone surrogate"),
    (b"[" * 200_000, "nested too deeply"), (b'{"caption": "caf\xe9"}', "not UTF-8: byte 0xe9 at 16"),
    (b'{"caption": "a', "Unterminated string"), (b"", "Expecting value")],
    ids=["half a character", "the same, not escaped", "deep", "latin-1", "cut", "empty"])
def test_json_that_is_none_is_one_line(raw, said):
    with pytest.raises(ValueError, match=f"^{said}") as e:
        parse(raw)
    assert "\n" not in str(e.value)
