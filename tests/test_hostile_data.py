"""Hostile samples: each is a counted bad sample or one wrong record, and none takes the memory or ends the run."""

import gzip
import json
import random
import struct
import tracemalloc
import zlib
from pathlib import Path

import pytest

from hostile import jpeg, tar, tiny_tokenizer
from xtoolkit.data import limits, scan
from xtoolkit.prepare import coco, img2dataset, instances, text
from xtoolkit.prepare.official import BadRecord, picture
from xtoolkit.prepare.streaming import elements
from xtoolkit.prepare.writer import Options
from xtoolkit.data.datasets import Images, Pairs, Regions, Text
from xtoolkit.data.errors import BadSample
from xtoolkit.data.shards import Shards

DEEP = "[" * 200_000
SURROGATE = '"half \\ud83d a smile"'


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return tiny_tokenizer(tmp_path_factory.mktemp("tokenizer"))


# ---- pictures --------------------------------------------------------------------------------------------------------
def png_bomb(side=50_000) -> bytes:
    """A PNG of a few kilobytes that says it has side x side pixels."""
    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    pixels = zlib.compress(b"\0" * 10**6)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


def jpeg_bomb() -> bytes:
    data = bytearray(jpeg())
    frame = data.index(b"\xff\xc0")
    data[frame + 5:frame + 9] = struct.pack(">HH", 65_500, 65_500)
    return bytes(data)


def text_bomb() -> bytes:
    """A PNG whose comment unpacks to two hundred megabytes."""
    packer = zlib.compressobj(1)
    packed = b"".join(packer.compress(bytes(1 << 20)) for _ in range(200)) + packer.flush()
    data = b"Comment\0\0" + packed
    chunk = struct.pack(">I", len(data)) + b"zTXt" + data + struct.pack(">I", zlib.crc32(b"zTXt" + data))
    whole = jpeg(kind="PNG")
    return whole[:33] + chunk + whole[33:]


# Pillow hands this to Ghostscript, a program, if it may.
EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 40 30\n%%EndComments\nshowpage\n%%EOF\n"
PICTURES = {"png bomb": png_bomb(), "larger than Pillow warns of": png_bomb(9_600), "jpeg bomb": jpeg_bomb(),
            "text bomb": text_bomb(), "postscript": EPS}


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("kind", PICTURES)
def test_a_picture_that_would_take_the_memory_or_run_a_program_is_bad(kind, tmp_path):
    path = tar(tmp_path / "x.tar", [("0.jpg", PICTURES[kind]), ("0.json", b'{"caption": "a dog"}')])
    data = Images(32, 8, path=path, train=False)
    tracemalloc.start()
    try:
        with pytest.raises(BadSample, match="x.tar: corrupt image: 0: "):
            data.load(0, 0, 1, random.Random(0))
        with pytest.raises(BadRecord, match="x.tar: 0: the picture: ") as caught:
            img2dataset.convert([path], Options(None, verify=True))
        assert len(str(caught.value)) < 300 and tracemalloc.get_traced_memory()[1] < 2**27
    finally:
        tracemalloc.stop()


def test_a_file_that_is_too_large_for_a_picture_is_not_even_read(tmp_path, monkeypatch):
    monkeypatch.setattr(limits, "MAX_IMAGE", 500)
    path = tar(tmp_path / "x.tar", [("0.jpg", jpeg((400, 400))), ("0.json", b'{"caption": "a dog"}')])
    with pytest.raises(BadSample, match="too large: 0: its image has [0-9,]+ bytes, more than 500"):
        Shards([path]).read(0, "image")
    with pytest.raises(BadRecord, match="0.jpg: [0-9,]+ bytes, more than 500"):
        img2dataset.convert([path], Options(None))
    (tmp_path / "0.jpg").write_bytes(jpeg((400, 400)))
    with pytest.raises(BadRecord, match="bytes, more than 500"):
        picture(tmp_path / "0.jpg", "here")


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF"])
def test_damaged_pictures_are_bad_samples_whatever_is_damaged(kind, tmp_path):
    """Four hundred pictures with bytes changed, cut out or doubled: read, or refused as what they are."""
    rng, whole, members = random.Random(0), jpeg((64, 48), kind), []
    for n in range(400):
        data = bytearray(whole)
        for _ in range(rng.randint(1, 6)):
            at = rng.randrange(len(data))
            change = rng.randrange(3)
            if change == 0:
                data[at] = rng.randrange(256)
            elif change == 1:
                del data[at:at + rng.randint(1, 30)]
            else:
                data[at:at] = data[at:at + rng.randint(1, 30)]
            data = data or bytearray(b"x")
        members.append((f"{n:03d}.jpg", bytes(data)))
    data, bad = Images(32, 8, path=tar(tmp_path / "x.tar", members), train=False), 0
    for n in range(400):
        try:
            assert data.load(0, n, 1, None).image.pixels.shape == (3, 32, 32)
        except BadSample as error:
            assert error.kind == "corrupt image"
            bad += 1
    assert 10 < bad < 400


# ---- texts -----------------------------------------------------------------------------------------------------------
def gzip_bomb(path, megabytes, line=b"") -> Path:
    """Zeros, or lines, of so many megabytes in a thousandth of them."""
    with gzip.open(path, "wb", compresslevel=1) as out:
        for _ in range(megabytes):
            out.write(line * (2**20 // len(line)) if line else bytes(2**20))
    return path


@pytest.mark.parametrize("line", [b"", b'{"text": "%s"}\n' % (b"a dog " * 5000)], ids=["one line", "lines"])
def test_a_gzip_bomb_is_not_unpacked(line, tmp_path, monkeypatch):
    monkeypatch.setattr(limits, "UNPACKED", 1 << 23)
    monkeypatch.setattr(scan, "CHUNK", 1 << 20)
    monkeypatch.setattr(limits, "MAX_TEXT", 1 << 20)
    path = gzip_bomb(tmp_path / "x.jsonl.gz", 48, line)
    assert path.stat().st_size < 2**20
    tracemalloc.start()
    try:
        found = Shards([str(path)])
        assert "taken for a decompression bomb" in found.damaged[str(path)]
        with pytest.raises(BadRecord, match="x.jsonl.gz: broken after line .*taken for a decompression bomb"):
            text.convert([path], Options(tmp_path / "out", shard_size=10**6))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert (tmp_path / "x.jsonl.gz.unpacked").stat().st_size < 2**25
    assert peak < 2**24, f"{peak:,} bytes"


def test_an_absurd_line_is_a_bad_sample_that_is_never_in_memory(tmp_path, monkeypatch, tokenizer):
    monkeypatch.setattr(scan, "CHUNK", 1 << 16)
    monkeypatch.setattr(limits, "MAX_TEXT", 1 << 16)
    path = tmp_path / "x.jsonl"
    long = b'{"text": "' + b"a dog " * 10**6 + b'"}'
    path.write_bytes(b'{"text": "a dog"}\n' + long + b'\n{"text": "a red dog"}\n' + long)
    tracemalloc.start()
    try:
        data = Text(tokenizer, path=str(path), max_tokens=16)
        kinds = []
        for sample in range(len(data)):
            try:
                kinds.append(tokenizer.decode(data.load(0, sample, 1, None).texts[0].ids).strip())
            except BadSample as error:
                kinds.append(error.kind)
        report = text.convert([path], Options(tmp_path / "out", skip_bad=True))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert kinds == ["a dog", "too large", "a red dog", "too large"]
    assert report.written["train"]["samples"] == 2 and report.left_out["wrong records"][0] == 2
    assert peak < 2**21, f"{peak:,} bytes"


def test_a_long_text_costs_the_tokens_that_are_kept(tokenizer, tmp_path):
    path = tmp_path / "x.jsonl"
    path.write_text(json.dumps({"text": "a red dog " * 10**6}))
    data, seen = Text(tokenizer, path=str(path), max_tokens=16), []
    encode = tokenizer.encode_words
    tokenizer.encode_words = lambda text, most: seen.append(len(text)) or encode(text, most)
    try:
        assert len(data.load(0, 0, 1, random.Random(0)).texts[0].ids) == 16
    finally:
        del tokenizer.encode_words
    assert max(seen) <= 16 * limits.CHARACTERS


# ---- json ------------------------------------------------------------------------------------------------------------
JSON = {
    "deep": '{"captions": ["a dog"], "regions": %s' % DEEP,
    "deep and closed": '{"captions": %s"a dog"%s}' % ("[" * 50_000, "]" * 50_000),
    "half a character": '{"captions": [%s], "image_id": 1}' % SURROGATE,
    "half a character as a name": '{"captions": ["a dog"], "image_id": %s}' % SURROGATE,
    "a number without end": '{"captions": ["a dog"], "image_id": 1%s}' % ("0" * 10_000),
    "no utf-8": b'{"captions": ["\xff\xfe a dog"]}',
    "zeros": b"\0" * 1000,
}


@pytest.mark.parametrize("kind", JSON)
def test_a_hostile_json_is_one_bad_sample(kind, tmp_path, tokenizer):
    raw = JSON[kind] if isinstance(JSON[kind], bytes) else JSON[kind].encode()
    path = tar(tmp_path / "x.tar", [("0.jpg", jpeg()), ("0.json", raw)])
    for data in (Pairs(tokenizer, 32, 8, path=path), Regions(tokenizer, 32, 8, path=path)):
        with pytest.raises(BadSample, match="x.tar: broken json: 0: ") as caught:
            data.load(0, 0, 1, random.Random(0))
        assert len(str(caught.value)) < 300 + len(path)
    assert Shards([path]).column("elements").tolist() == [1], "drawn, so that it is found and counted"


@pytest.mark.parametrize("kind", JSON)
def test_and_one_wrong_record_of_a_converter(kind, tmp_path):
    raw = JSON[kind] if isinstance(JSON[kind], bytes) else JSON[kind].encode()
    captioned = raw.replace(b'"captions": [', b'"caption": "x", "y": [')
    path = tar(tmp_path / "x.tar", [("0.jpg", jpeg()), ("0.json", captioned)])
    with pytest.raises(BadRecord, match="x.tar: 0.json: |x.tar: 0: "):
        img2dataset.convert([path], Options(tmp_path / "out"))
    raw = raw.replace(b"\0", b"0")
    (tmp_path / "x.jsonl").write_bytes(raw.replace(b'"captions": ["a dog"]', b'"text": "a"') + b"\n")
    with pytest.raises(BadRecord, match="x.jsonl: line 1: "):
        text.convert([tmp_path / "x.jsonl"], Options(tmp_path / "out"))
    (tmp_path / "x.json").write_bytes(b'{"images": [' + raw + b"]}")
    with pytest.raises(BadRecord, match="x.json"):
        coco.convert(tmp_path / "x.json", tmp_path, Options(tmp_path / "out"))


def test_deep_json_in_an_official_file_is_named(tmp_path):
    (tmp_path / "x.json").write_text('{"images": [{"id": 1}, ' + DEEP)
    with pytest.raises(BadRecord, match="x.json: record 1: nested too deeply"):
        list(elements(tmp_path / "x.json", "images"))


@pytest.mark.parametrize("box", [
    "[NaN, 1, 5, 5]", "[1, 1, Infinity, 5]", "[1, 1, 1e999, 5]", "[1, 1, 1%s, 5]" % ("0" * 400), "[true, 1, 5, 5]",
    "[1, 1, 5]", '["1", 1, 5, 5]'])
def test_boxes_that_are_no_numbers_are_no_boxes(box, tmp_path, tokenizer):
    region = '{"regions": [{"box": %s, "caption": "a"}]}' % box
    path = tar(tmp_path / "x.tar", [("0.jpg", jpeg()), ("0.json", region.encode())])
    with pytest.raises(BadSample, match="no region"):
        Regions(tokenizer, 32, 8, path=path).load(0, 0, 1, random.Random(0))
    annotated = '{"images": [{"id": 1, "file_name": "1.jpg", "width": 40, "height": 30}], "annotations": ' \
                '[{"id": 1, "image_id": 1, "category_id": 1, "bbox": %s}], ' \
                '"categories": [{"id": 1, "name": "dog"}]}' % box
    (tmp_path / "i.json").write_text(annotated)
    with pytest.raises(BadRecord, match="annotation 1"):
        instances.convert(tmp_path / "i.json", tmp_path, Options(tmp_path / "out"))


# ---- an index that came with its shard -------------------------------------------------------------------------------
@pytest.mark.parametrize("change", [
    {"unpacked": "/etc/passwd"}, {"kind": "tar"}, {"count": -1}, {"count": "1"}, {"damage": {"a": 1}}, {"size": None}, {"parts": "text"},
    {"parts": ["text", "text"]}, {"parts": [["text"]]}, {"parts": ["../x"]}, {"parts": ["key"]}, {"parts": []},
    {"left_out": 1}, {"left_out": {"a": "b"}}, {"columns": [["a"]]}, {"digest": 1},
    {"columns": {}}, {"kind": ["tar"]}, {"version": 1}])
def test_a_forged_index_is_made_anew(change, tmp_path):
    path = tmp_path / "x.jsonl"
    path.write_text('{"text": "a dog"}\n')
    assert Shards([str(path)]).text(0) == "a dog"
    forged = tmp_path / "x.jsonl.idx"
    header, records = forged.read_bytes().split(b"\n", 1)
    forged.write_bytes(json.dumps(json.loads(header) | change).encode() + b"\n" + records)
    found = Shards([str(path)])
    assert len(found) == 1 and found.text(0) == "a dog" and not found.damaged


@pytest.mark.parametrize("at, size", [(2**63, 10), (2**64 - 2, 10), (10**15, 10), (0, 2**32 - 1)])
def test_an_index_that_points_nowhere_is_a_bad_sample(at, size, tmp_path):
    path = tmp_path / "x.jsonl"
    path.write_text('{"text": "a dog"}\n')
    Shards([str(path)])
    forged = tmp_path / "x.jsonl.idx"
    forged.write_bytes(forged.read_bytes()[:-12] + struct.pack("<QI", at, size))
    with pytest.raises(BadSample, match="x.jsonl: (unreadable shard|too large): text 1: "):
        Shards([str(path)]).text(0)
