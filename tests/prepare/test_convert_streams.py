"""Tars, folders and text through their converters; streamed JSON; the parts of the sample pack; the command."""

import re
import gzip
import json
import os
import tracemalloc
from concurrent.futures import ThreadPoolExecutor

import pytest
from miniature import downloaded, genome, good, jpeg, karpathy, put, read, refer

from xtoolkit.prepare import images, img2dataset, official, sample, streaming, text
from xtoolkit.prepare.official import BadRecord
from xtoolkit.prepare.writer import Options
from xtoolkit.data.paths import resolve

# --- img2dataset, pictures, text -----------------------------------------------------------------------------------

def test_img2dataset_keeps_successes_and_numbers_anew(tmp_path):
    tars = [downloaded(tmp_path / "a/00000.tar", {"000000000": good(1),
                                                        "000000001": good(2, status="failed_to_download")}),
            downloaded(tmp_path / "b/00000.tar", {"000000000": {"jpg": good(3)["jpg"], "txt": b"words\n"}})]
    report = img2dataset.convert(tars, Options(tmp_path / "out"))
    samples = read(tmp_path / "out/train-00000.tar")
    assert list(samples) == ["000000000", "000000001"]  # the two tars had the same key
    first, second = (s["json"] for s in samples.values())
    assert first["captions"] == ["a thing"] and first["url"] == "https://x/1" and second["captions"] == ["words"]
    assert first["image_id"] != second["image_id"]
    assert report.left_out["downloads with status failed_to_download"] == [1, "00000.tar: 000000001"]
    assert img2dataset.convert(tars, Options(None)).written["checked"]["samples"] == 2


@pytest.mark.parametrize("files, said", [
    ({"json": b"{", "jpg": jpeg()}, "00000.tar: 000000001.json: broken JSON"),
    ({"json": {"caption": "x"}}, "00000.tar: 000000001: no picture"),
    ({"json": {}, "jpg": jpeg()}, "00000.tar: 000000001: no caption"),
    ({"json": {"caption": "x"}, "jpg": b"junk"}, "00000.tar: 000000001: the picture: not a picture"),
    ({"json": {"caption": 4}, "jpg": jpeg()}, "00000.tar: 000000001: the caption is 4, not text"),
])
def test_damage_in_img2dataset_names_tar_and_key(tmp_path, files, said):
    tar = downloaded(tmp_path / "00000.tar", {"000000000": good(1), "000000001": files, "000000002": good(2)})
    with pytest.raises(BadRecord, match=said):
        img2dataset.convert([tar], Options(tmp_path / "out"))
    report = img2dataset.convert([tar], Options(tmp_path / "out", skip_bad=True))
    assert report.written["train"]["samples"] == 2


def test_a_cut_tar_is_named_and_its_beginning_kept(tmp_path):
    tar = downloaded(tmp_path / "00000.tar", {f"{n:09d}": good(n) for n in range(4)})
    tar.write_bytes(tar.read_bytes()[:5000])
    with pytest.raises(BadRecord, match="00000.tar: broken after 00000000"):
        img2dataset.convert([tar], Options(tmp_path / "out"))
    report = img2dataset.convert([tar], Options(tmp_path / "out", skip_bad=True))
    assert report.written["train"]["samples"] >= 1


def test_a_folder_of_pictures(tmp_path):
    for n in range(6):
        put(tmp_path / f"in/n0{n % 2}/pic.{n}.JPEG", jpeg(colour=(n, n, n)))
    put(tmp_path / "in/readme.txt", b"x")
    report = images.convert(tmp_path / "in", Options(tmp_path / "out", shard_size=4))
    samples = read(tmp_path / "out/train-00000.tar") | read(tmp_path / "out/train-00001.tar")
    assert len(samples) == 6 and report.written["train"]["samples"] == 6
    assert all(s["jpg"] == (tmp_path / "in" / s["json"]["file"]).read_bytes() for s in samples.values())
    assert len({s["json"]["image_id"] for s in samples.values()}) == 6
    put(tmp_path / "in/n00/bad.jpg", b"no")
    with pytest.raises(BadRecord, match="n00/bad.jpg: .*not a picture"):
        images.convert(tmp_path / "in", Options(tmp_path / "out2"))
    with pytest.raises(BadRecord, match="no .jpg"):
        images.convert(put(tmp_path / "none/readme.txt", b"x").parent, Options(tmp_path / "out3"))


def lines(path):
    return [json.loads(line)["text"] for line in path.read_text().splitlines()]


def test_text_by_lines_paragraphs_and_json(tmp_path):
    plain = put(tmp_path / "a.txt", "One é.\n\nTwo\nthree \n".encode())
    report = text.convert([plain], Options(tmp_path / "l", shard_size=2))
    assert lines(tmp_path / "l/train-00000.jsonl") == ["One é.", "Two"]
    assert lines(tmp_path / "l/train-00001.jsonl") == ["three"]
    assert report.left_out["empty texts"] == [1, "a.txt: line 2"]
    text.convert([plain], Options(tmp_path / "p"), paragraphs=True)
    assert lines(tmp_path / "p/train-00000.jsonl") == ["One é.", "Two three"]
    packed = put(tmp_path / "c4.json.gz", gzip.compress(b'{"content": "a\\nb", "url": "u"}\n{"content": "c"}\n'))
    text.convert([packed], Options(tmp_path / "j"), key="content")
    assert lines(tmp_path / "j/train-00000.jsonl") == ["a\nb", "c"]


@pytest.mark.parametrize("name, data, said", [
    ("a.jsonl", b'{"text": "x"}\n{"text"\n{"text": "y"}\n', "a.jsonl: line 2: broken JSON at column"),
    ("a.jsonl", b'{"text": "x"}\n{"txt": "z"}\n{"text": "y"}\n', "a.jsonl: line 2: no key `text`"),
    ("a.jsonl", b'{"text": "x"}\n[]\n{"text": "y"}\n', r"a.jsonl: line 2: expected an object, found \[\]"),
    ("a.txt", b"x\n\xff\xfe\ny\n", "a.txt: line 2: not UTF-8: byte 0xff at 0; it is UTF-16; convert it: `iconv"),
])
def test_damage_in_text_names_file_and_line(tmp_path, name, data, said):
    path = put(tmp_path / name, data)
    with pytest.raises(BadRecord, match=said):
        text.convert([path], Options(tmp_path / "out"))
    text.convert([path], Options(tmp_path / "out", skip_bad=True))
    assert lines(tmp_path / "out/train-00000.jsonl") == ["x", "y"]


def test_a_cut_gzip_is_named(tmp_path):
    whole = gzip.compress(b"".join(b'{"text": "%d"}\n' % (n * 7919) for n in range(5000)))
    path = put(tmp_path / "a.jsonl.gz", whole[:len(whole) // 2])
    with pytest.raises(BadRecord, match="a.jsonl.gz: broken after line"):
        text.convert([path], Options(tmp_path / "out"))


# --- streamed JSON, the sample pack, the tool ----------------------------------------------------------------------

@pytest.mark.parametrize("chunk", [1, 2, 3, 7, 64])
def test_json_is_read_through_a_window_of_any_size(tmp_path, monkeypatch, chunk):
    monkeypatch.setattr(streaming, "CHUNK", chunk)
    records = [{"a": [1, 2.5e-3, -7], "é\"\\": "täxt \u2028 \U0001f600"}, [], 12345, "x]", True, {"b": [None]}]
    path = put(tmp_path / "x.json", json.dumps(records, indent=1).encode())
    assert [r for _, r in streaming.elements(path)] == records
    path = put(tmp_path / "y.json", json.dumps({"info": {"images": 3}, "n": 12, "images": records}).encode())
    assert [r for _, r in streaming.elements(path, "images")] == records
    assert list(streaming.elements(put(tmp_path / "z.json", b" [ ] "))) == []


def test_a_byte_order_mark_is_no_part_of_a_record(tmp_path):
    path = put(tmp_path / "x.json", b"\xef\xbb\xbf" + '[{"a": "é"}]'.encode())
    assert list(streaming.elements(path)) == [(0, {"a": "é"})]


def test_what_comes_before_a_list_is_not_held(tmp_path):
    """As in COCO's files, where the categories come last."""
    boxes = b",".join(b'{"id": %d, "bbox": [1.5, 2.5, 3.5, 4.5], "image_id": 7}' % n for n in range(60_000))
    path = put(tmp_path / "x.json", b'{"annotations": [' + boxes + b'], "categories": [{"id": 1}]}')
    tracemalloc.start()
    try:
        assert list(streaming.elements(path, "categories")) == [(0, {"id": 1})]
        assert tracemalloc.get_traced_memory()[1] < 10 * streaming.CHUNK
    finally:
        tracemalloc.stop()
    cut = put(tmp_path / "y.json", path.read_bytes()[:100])
    with pytest.raises(BadRecord, match="y.json: record 1: broken JSON at character .* truncated"):
        list(streaming.elements(cut, "categories"))


@pytest.mark.parametrize("kind, record, said", [
    (int, {"x": "2"}, '`x` is "2", not a 64-bit integer'), (int, {"x": 2**63}, "not a 64-bit integer"),
    (int, {"x": True}, "`x` is true, not a 64-bit integer"), (int, {}, "no key `x`"), (int, [], r"an object, found \[\]"),
    (int | None, {"x": "2"}, '`x` is "2", not a 64-bit integer or null'), (int | None, {"x": None}, None),
    (int | None, {}, None), (int | None, {"x": 5}, None), (float | int, {"x": 1.5}, None), ((int, float), {"x": 2}, None),
    (list[str], {"x": ["red", "big"]}, None), (list[str], {"x": "red"}, '`x` is "red", not a list of texts'),
    (list[str], {"x": ["red", 3]}, r'`x` is \["red", 3\], not a list of texts'), (list[str] | None, {"x": None}, None),
    (list[str] | None, {"x": "red"}, '`x` is "red", not a list of texts or null'), (list, {"x": [1, "a"]}, None),
    (str, {"x": "\ud800"}, "half a character"), (list[str], {"x": ["\ud800"]}, "half a character"),
])
def test_a_field_is_of_its_type(kind, record, said):
    if said is None:
        assert official.field(record, "x", kind, "x.json: record 3") == record.get("x")
    else:
        with pytest.raises(BadRecord, match=f"x.json: record 3: .*{said}"):
            official.field(record, "x", kind, "x.json: record 3")


@pytest.mark.parametrize("data, said", [
    (b"", "it is empty"), (b"<html>404", "it is an HTML page"), (b"version https://git-lfs.github.com", "a git-lfs pointer"),
    (gzip.compress(jpeg()), "compressed by gzip"), (b"junk", "it begins with b'junk'"), (jpeg((400, 300))[:-200], "image file is truncated"),
])
def test_what_is_no_picture_is_told(tmp_path, data, said):
    with pytest.raises(BadRecord, match=f"record 3: .*x.jpg: not a picture that can be read: .*{said}"):
        official.picture(put(tmp_path / "x.jpg", data), "record 3", verify=True)


@pytest.mark.parametrize("data, key, said", [
    (b'[{"a": 1}, {"a": ', None, "x.json: record 1: broken JSON at character 17: the file is truncated"),
    (b'[{"a": 1}, {"a": "cut', None, "x.json: record 1: .*truncated"),
    (b'[{"a": 1}', None, "x.json: ends after record 0: the file is truncated"),
    (b'[{"a": 1} {"a": 2}]', None, "x.json: record 0: broken JSON at character 10: expected , or ]"),
    (b'[{"a": 1}, {a: 2}' + b" " * 99 + b"]", None, "x.json: record 1: broken JSON at character 12"),
    (b'{"a": []}', None, "x.json: expected a list of records, found '{'"),
    (b'[]', "images", "x.json: expected an object with the list `images`"),
    (b'{"a": [], "b": 2}', "images", "x.json: no key `images`"),
    (b'[{"a": "\xff"}]', None, "x.json: not UTF-8"),
    (b"", None, "x.json: expected a list of records, it is empty"),
    (b"<!DOCTYPE html><html>", None, "x.json: expected a list of records, it is an HTML page: the download failed: download it again"),
    (b"version https://git-lfs.github.com/spec/v1\noid", "images", "x.json: expected an object with the list `images`, it is "
     "a git-lfs pointer, not the file itself: run `git lfs pull`"),
    (gzip.compress(b"[]"), None, "x.json: not UTF-8: byte 0x8b at 1; it is compressed by gzip: run `gunzip`"),
    ("[]".encode("utf-16"), None, "x.json: not UTF-8: byte 0xff at 0; it is UTF-16: run `iconv -f utf-16 -t utf-8`"),
    (b'[{"a": "' + b" " * 9000 + b'caf\xe9"}]', None, "x.json: not UTF-8: byte 0xe9 at 9011; convert it: `iconv -f latin1"),
])
def test_broken_json_is_placed(tmp_path, data, key, said):
    path = put(tmp_path / "x.json", data)
    with pytest.raises(BadRecord, match=said):
        list(streaming.elements(path, key))


@pytest.fixture
def pack(tmp_path, monkeypatch):
    """A miniature pack in the official formats, unpacked."""
    root = tmp_path / "pack"
    karpathy(root), genome(root), refer(root)
    downloaded(root / "web/icons-00000.tar", {"000000000": good(1)})
    put(root / "text/train-00000.jsonl.gz", gzip.compress(b'{"text": "one"}\n'))
    put(root / "text/val-00000.jsonl.gz", gzip.compress(b'{"text": "two"}\n'))
    (root / "tokenizer").mkdir()
    monkeypatch.setattr(sample.sample_pack, "ensure_sample_pack", lambda: root)
    return root


def test_sample_names_resolve_to_prepared_files(pack):
    def names(part):
        return [os.path.relpath(file, out) for file in resolve(f"sample://picturebook/{part}")]
    out = pack / sample.OUT
    assert names("pairs") == ["pairs/pairs-00000.tar"] and names("pairs-test") == ["pairs-test/pairs-test-00000.tar"]
    assert names("regions") == ["regions/regions-refcoco+-00000.tar", "regions/regions-vg-00000.tar"]
    assert names("images") == ["pairs/pairs-00000.tar", "web/web-00000.tar"]
    assert names("refcoco+-testA") == ["refcoco+-testA/refcoco+-testA-00000.tar"]
    assert names("text") == ["text/text-00000.jsonl"] and names("text-val") == ["text-val/text-val-00000.jsonl"]
    assert names("tokenizer") == ["../tokenizer"] and names("imagenet-val") == ["../imagenet/val"]
    assert sorted(read(out / "regions/regions-vg-00000.tar")) == ["7", "9"]  # 8 is in COCO's test split
    before = os.stat(out / "pairs/pairs-00000.tar").st_mtime_ns
    assert names("pairs") == ["pairs/pairs-00000.tar"]
    assert os.stat(out / "pairs/pairs-00000.tar").st_mtime_ns == before  # prepared once


def test_a_part_is_prepared_once_whoever_asks(pack, monkeypatch):
    made, convert = [], sample._convert
    monkeypatch.setattr(sample, "_convert", lambda *args: (made.append(args[1]), convert(*args))[1])
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda _: sample.prepare(pack, "pairs"), range(8)))
    assert made == ["pairs"] and all(f == found[0] for f in found)
    (pack / sample.OUT / "pairs/pairs-00000.tar").unlink()  # lost: made again
    assert sample.prepare(pack, "pairs") == found[0] and made == ["pairs", "pairs"]


def test_the_tool_says_what_it_did_and_what_is_wrong(tmp_path, capsys):
    from xtoolkit.cli import prepare as prepare_data

    annotations, pictures = karpathy(tmp_path, lambda r: r[1].pop("split"))
    command = ["coco", "--annotations", str(annotations), "--images", str(pictures), "--out", str(tmp_path / "out")]
    assert prepare_data.main(command) == 1
    assert "image 2 (COCO_val2014_000000000002.jpg): no key `split` (`--skip-bad`" in capsys.readouterr().err
    assert prepare_data.main([*command, "--skip-bad"]) == 0
    said = capsys.readouterr().out
    assert "train: 2 samples, 4 captions" in said and "left out: 1 wrong records (the first: dataset_coco.json" in said
    assert prepare_data.main([*command, "--skip-bad"]) == 1
    assert "is there already" in capsys.readouterr().err
    assert prepare_data.main(["text", "--input", str(tmp_path / "none*.txt"), "--out", str(tmp_path / "t")]) == 2
    assert "no such file" in capsys.readouterr().err
    assert prepare_data.main(["img2dataset", "--shards", str(tmp_path / "cc3m/none.tar")]) == 2
    assert capsys.readouterr().err == f"xtoolkit prepare: {tmp_path}/cc3m/none.tar: no such file\n", "no hint at the command itself"
    for picture in pictures.rglob("*.jpg"):
        picture.write_bytes(b"junk")
    command[-1] = str(tmp_path / "nothing")
    assert prepare_data.main([*command, "--skip-bad"]) == 1 and "nothing was written" in capsys.readouterr().out


@pytest.mark.parametrize("source, files", [
    ("coco", ["annotations", "images"]), ("coco-objects", ["annotations", "images"]), ("openimages", ["boxes", "classes", "images"]),
    ("vg", ["image-data", "regions", "images"]), ("refcoco", ["refs", "instances", "images"]), ("images", ["images"]),
    ("table", ["input"]), ("text", ["input"]), ("img2dataset", ["shards"])])
def test_missing_files_are_mistakes_of_the_caller_in_every_source(source, files, tmp_path, capsys):
    from xtoolkit.cli import prepare

    missing = [word for file in files for word in (f"--{file}", str(tmp_path / "gone.json"))]
    assert prepare.main([source, *missing, "--out", str(tmp_path / "out"), "--skip-bad"]) == 2
    assert re.fullmatch("xtoolkit prepare: .*gone.json: (no|No) such .*\n", capsys.readouterr().err)


def test_a_folder_of_pictures_that_is_none_is_told_at_once(tmp_path, capsys):
    from xtoolkit.cli import prepare

    annotations, _ = karpathy(tmp_path)
    (tmp_path / "t.csv").write_text("image,text\n1.jpg,one\n")
    packed = put(tmp_path / "n.tar.gz", b"1") or tmp_path / "n.tar.gz"
    for source in (["coco", "--annotations", str(annotations)], ["table", "--input", str(tmp_path / "t.csv")]):
        for place, said in (("gone", "gone: no such folder"), ("t.csv", "t.csv: not a folder")):
            command = [*source, "--images", str(tmp_path / place), "--out", str(tmp_path / "out"), "--skip-bad"]
            assert prepare.main(command) == 2 and said in capsys.readouterr().err
    assert prepare.main(["images", "--images", str(packed), "--out", str(tmp_path / "out")]) == 1
    assert "n.tar.gz: a compressed archive cannot be read at any place: unpack it" in capsys.readouterr().err
