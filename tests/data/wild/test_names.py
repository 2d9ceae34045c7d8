"""Names and orders of members that tars from elsewhere have: every sample is served, or what is left out is counted."""

import io
import json
import logging
import tarfile

import pytest
from PIL import Image

from xtoolkit.data.counts import SampleCounts
from xtoolkit.data.datasets import Images, Pairs
from xtoolkit.data.errors import BadSample
from xtoolkit.data.loader import EvalLoader
from xtoolkit.data.shards import Shards
from xtoolkit.registry import ConfigError


def pairs(shards, name="{:06d}", numbers=range(6), ending="jpg", caption="a dog {}"):
    return [m for n in numbers for m in ((f"{name.format(n)}.{ending}", shards.jpeg(n)),
                                         (f"{name.format(n)}.json", json.dumps({"caption": caption.format(n)}).encode()))]


def captions(found):
    return [found.meta(n)["caption"] for n in range(len(found))]


def test_a_key_ends_at_the_last_dot(tmp_path, shards):
    members = pairs(shards, "a/pic{:03d}.v1", range(0, 3)) + pairs(shards, "a.b/pic.{:03d}", range(3, 6))
    found = Shards([shards.tar(tmp_path / "x.tar", members)])
    assert [found.name(n) for n in range(6)] == [f"a/pic{n:03d}.v1" for n in range(3)] + [f"a.b/pic.{n:03d}" for n in range(3, 6)]
    assert captions(found) == [f"a dog {n}" for n in range(6)] and not found.left_out
    assert all(found.read(n, "image") == shards.jpeg(n) for n in range(6))


@pytest.mark.parametrize("ending, kind", [("gif", "GIF"), ("bmp", "BMP"), ("tiff", "TIFF"), ("tif", "TIFF"), ("jp2", "JPEG2000"),
                                          ("ppm", "PPM"), ("tga", "TGA"), ("JPG", "JPEG"), ("Jpeg", "JPEG")])
def test_every_format_of_pillows_is_a_picture(ending, kind, tmp_path, shards):
    data = io.BytesIO()
    Image.new("RGB", (32, 24), "red").save(data, kind)
    members = [("0.jpg", shards.jpeg(0)), (f"1.{ending}", data.getvalue()), ("1.txt", b"a red dog")]
    found = Shards([shards.tar(tmp_path / "x.tar", members)])
    assert len(found) == 2 and found.read(1, "image") == data.getvalue() and found.meta(1) == {"caption": "a red dog"}


def test_tars_one_behind_the_other_are_read_through(tmp_path, shards):
    parts = [shards.tar(tmp_path / f"{n}.tar", pairs(shards, numbers=range(3 * n, 3 * n + 3))) for n in range(3)]
    whole = tmp_path / "whole" / "x.tar"
    whole.parent.mkdir()
    whole.write_bytes(b"".join(open(part, "rb").read() for part in parts))
    found = Shards([str(whole)])
    assert captions(found) == [f"a dog {n}" for n in range(9)] and not found.damaged
    assert all(found.read(n, "image") == shards.jpeg(n) for n in range(9))


def test_what_follows_the_end_of_a_tar_and_is_none_is_damage(tmp_path, shards):
    path = shards.tar(tmp_path / "x.tar", pairs(shards))
    with open(path, "ab") as f:
        f.write(b"no tar" * 1000)
    found = Shards([path])
    assert len(found) == 6 and "no header at byte" in found.damaged[path]


def test_of_members_with_one_name_the_last_counts_as_in_tar(tmp_path, shards):
    path = shards.tar(tmp_path / "x.tar", pairs(shards, caption="old {}"))
    with tarfile.open(path, "a") as tar:  # `tar -r`
        for name, data in pairs(shards, caption="new {}"):
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    found = Shards([path])
    assert captions(found) == [f"new {n}" for n in range(6)]
    assert found.left_out == {path: {"members of a name that comes again": 12}}
    with tarfile.open(path) as tar:
        assert json.load(tar.extractfile("000003.json")) == found.meta(3), "what tar itself would unpack"


def test_what_is_left_out_is_counted_and_said_once_a_file(tmp_path, shards, tokenizer, caplog):
    odd = [("README", b"x"), ("._000000.jpg", b"x"), ("000099.json", b"{}"), ("000098.mp4", b"x"), ("a.b c", b"x")]
    path = shards.tar(tmp_path / "x.tar", pairs(shards) + odd)
    shards.tar(tmp_path / "y.tar", pairs(shards, "y{:03d}"))
    data = Pairs(tokenizer, 32, 8, path=str(tmp_path))
    with caplog.at_level(logging.WARNING):
        counts = SampleCounts("stream `pairs`", data, 0.01)
        SampleCounts("stream `pairs`", data, 0.01, speaks=False)
    reasons = {"files without an ending": 1, "hidden files": 1, "files of unknown endings": 1,
               "samples without a picture, only .json, .mp4": 2}
    assert counts.report()["left_out"] == reasons and counts.report()["bad"] == {}
    line, = [record.getMessage() for record in caplog.records]
    assert line.startswith(f"stream `pairs`: {path}: left out: ") and all(f"{n} {what}" in line for what, n in reasons.items())


def test_a_second_picture_is_left_out_and_counted(tmp_path, shards):
    path = shards.tar(tmp_path / "x.tar", [("0.jpg", shards.jpeg(0)), ("0.png", b"its mask"), ("0.txt", b"a dog")])
    found = Shards([path])
    assert found.read(0, "image") == shards.jpeg(0)
    assert found.left_out == {path: {"pictures behind a sample's first": 1}}


def test_any_other_part_of_a_sample_can_be_read_by_its_ending(tmp_path, shards):
    members = [("0.jpg", shards.jpeg(0)), ("0.cls", b"7"), ("1.jpg", shards.jpeg(1)), ("1.NPY", b"numbers"), ("1.mp4", b"film")]
    found = Shards([shards.tar(tmp_path / "x.tar", members)])
    assert [found.read(n, "cls") for n in range(2)] == [b"7", None]
    assert (found.read(1, "npy"), found.read(1, "mp4"), found.read(1, "flac")) == (b"numbers", b"film", None)
    assert not found.left_out
    header = json.loads((tmp_path / "x.tar.idx").read_bytes().split(b"\n")[0])
    assert header["parts"] == ["image", "cls", "npy", "mp4"]


def test_more_endings_than_an_index_holds(tmp_path, shards):
    members = [("0.jpg", shards.jpeg(0)), *((f"0.e{n}", b"x") for n in range(100)), ("0.key", b"x"), ("0." + "e" * 99, b"x")]
    path = shards.tar(tmp_path / "x.tar", members)
    assert Shards([path]).left_out == {path: {"files of unknown endings": 39}} and Shards([path]).read(0, "e9") == b"x"


@pytest.mark.parametrize("members, why", [
    ([("0.foo", b"x"), ("0.json", b"{}")], "1 samples without a picture, only .foo, .json"),
    ([("README", b"x"), ("LICENSE", b"x")], "2 files without an ending"),
    ([("._0.jpg", b"x")], "1 hidden files")])
def test_a_tar_of_which_nothing_is_left_is_named_with_the_reason(members, why, tmp_path, shards):
    path = shards.tar(tmp_path / "x.tar", members)
    with pytest.raises(ConfigError, match="data.sources.a.path") as caught:
        Images(32, 8, sources={"a": source(path)})
    assert caught.value.problems == [f"data.sources.a.path: {path}: no sample is left of it: {why}"]


def source(path):
    from xtoolkit.data.blocks import SourceBlock
    return SourceBlock(path)


def test_a_caption_that_is_a_number_takes_the_txt_beside_it(tmp_path, shards, tokenizer):
    members = [("0.jpg", shards.jpeg(0)), ("0.json", b'{"caption": 12}'), ("0.txt", b"\xef\xbb\xbfa red dog"),
               ("1.jpg", shards.jpeg(1)), ("1.json", b'{"captions": [12, 13]}'), ("2.jpg", shards.jpeg(2)), ("2.json", b"{}"),
               ("3.jpg", shards.jpeg(3)), ("3.txt", b"caf\xe9"), ("4.jpg", shards.jpeg(4)), ("4.txt", "dog".encode("utf-16"))]
    data = Pairs(tokenizer, 32, 8, path=shards.tar(tmp_path / "x.tar", members), train=False)
    assert tokenizer.decode(data.load(0, 0, 1, None).texts[0].ids).strip() == "a red dog"
    for sample, told in ((1, "empty caption: 1: captions must be strings, not 12$"), (2, "empty caption: 2: no caption, and no .txt"),
                         (3, "not utf-8: 3: not UTF-8: byte 0xe9 at 3"), (4, "not utf-8: 4: .*iconv -f utf-16 ")):
        with pytest.raises(BadSample, match=told):
            data.load(0, sample, 1, None)


@pytest.mark.parametrize("kind", [tarfile.XHDTYPE, tarfile.GNUTYPE_LONGNAME])
def test_a_header_that_says_it_has_terabytes_is_damage(kind, tmp_path, shards):
    path = shards.tar(tmp_path / "x.tar", pairs(shards))
    with tarfile.open(path) as tar:
        tar.getmembers()
        end = tar.offset
    info = tarfile.TarInfo("x")
    info.type, info.size = kind, 10**13
    with open(path, "r+b") as f:
        f.seek(end)
        f.write(info.tobuf(tarfile.GNU_FORMAT))
    found = Shards([path])
    assert len(found) == 6 and found.damaged


# ---- which picture a sample is ------------------------------------------------------------------------------------------------
def test_equal_keys_in_equally_named_tars_of_two_folders_are_two_pictures(tmp_path, shards, tokenizer, monkeypatch):
    for corpus in ("cc3m", "cc12m"):
        (tmp_path / corpus).mkdir()
        shards.tar(tmp_path / corpus / "00000.tar", pairs(shards, numbers=range(1)))
    monkeypatch.chdir(tmp_path)
    data = Pairs(tokenizer, 32, 8, path=["cc3m", "cc12m/00000.tar", f"{tmp_path}/cc3m/../cc3m"], train=False)
    batch, = EvalLoader(data, 3)
    assert batch.image.image_id == [f"{tmp_path}/{corpus}/00000.tar:000000" for corpus in ("cc3m", "cc12m", "cc3m")]


def test_long_keys_stay_apart_and_begin_as_they_do(tmp_path, shards):
    keys = [f"{folder}/{'x' * 80}" for folder in ("a", "b")] + ["y" * 64]
    found = Shards([shards.tar(tmp_path / "x.tar", [(f"{key}.jpg", shards.jpeg(0)) for key in keys])])
    assert [found.name(n)[:48] for n in (0, 1)] == [key[:47] + "~" for key in keys[:2]]
    assert len({found.name(n) for n in range(3)}) == 3 and {len(found.name(n)) for n in range(3)} == {64} and found.name(2) == keys[2]
