"""Inputs as people have them, and what is done to a folder of shards by others: expected values and one-line errors."""

import bz2
import gzip

import pyarrow
import pytest
from miniature import good, jpeg, packed, put, read
from pyarrow import parquet

from xtoolkit.cli import prepare
from xtoolkit.prepare import images, img2dataset, table, text
from xtoolkit.prepare.official import Report
from xtoolkit.prepare.run import Job, run
from xtoolkit.prepare.writer import LinePart, Options, TarPart
from xtoolkit.report.prepared import write_summary


def write_line(text, part):
    part.write(text)


def test_of_two_conversions_into_one_folder_at_a_time_the_second_that_ends_is_refused(tmp_path):
    def jobs():
        yield Job("train", LinePart, write_line, "second")
        run("first", [Job("train", LinePart, write_line, "first")], Options(tmp_path), Report())

    with pytest.raises(FileExistsError, match="train-00000.jsonl is there already: remove .* or give another"):
        run("second", jobs(), Options(tmp_path), Report())
    assert (tmp_path / "train-00000.jsonl").read_text() == '{"text":"first"}\n'
    assert sorted(path.name for path in tmp_path.iterdir()) == [".unfinished-second", "prepared-first.json", "train-00000.jsonl"]


def test_a_key_that_is_longer_than_readers_keep_is_a_number(tmp_path):
    with TarPart(Options(tmp_path), tmp_path, "train", 3) as part:
        for key in ("a" * 64, "a" * 110, "é" * 33):
            part.write(key, "jpg", b"", {"image_id": key}, (1, 1))
    assert list(read(tmp_path / "train-00003-0000.tar")) == ["a" * 64, "000030001", "000030002"]


HIDDEN = {"._1.jpg": b"\0\5\x16\7", ".DS_Store": b"\0", "__MACOSX/1.jpg": b"\0", "__MACOSX/._a.tar": b"\0"}


def test_hidden_files_are_passed_over_as_readers_do(tmp_path):
    for name, data in {**HIDDEN, "._a.tar": b"\0", "._b.tar.gz": b"\0", "b/1.jpg": jpeg()}.items():
        put(tmp_path / "in" / name, data)
    packed(tmp_path / "in/c.tar", {**HIDDEN, "2.jpg": jpeg()})
    report = images.convert(tmp_path / "in", Options(tmp_path / "out"))
    assert report.written["train"]["samples"] == 2 and report.left_out == {"hidden files": [10, ".DS_Store"]}
    samples = {f"{key}.{ending}": data for key, files in {"0": good(1), "1": good(2)}.items() for ending, data in files.items()}
    packed(tmp_path / "web/00000.tar", HIDDEN | samples)
    for name, data in {**HIDDEN, "._00000.tar": b"\0"}.items():
        put(tmp_path / "web" / name, data)
    report = img2dataset.convert([tmp_path / "web"], Options(tmp_path / "pairs"))
    assert report.written["train"]["samples"] == 2 and report.left_out == {"hidden files": [4, "00000.tar: ._1.jpg"]}


@pytest.mark.parametrize("source, flag, name, data", [
    ("text", "--input", "a.txt", b""), ("table", "--input", "a.csv", b""), ("table", "--input", "a.csv", b"image,caption\n"),
    ("table", "--input", "a.parquet", None), ("img2dataset", "--shards", "00000.PARQUET", None),
    ("coco", "--annotations", "captions_train2017.json", b'{"annotations": [], "images": []}')])
def test_an_input_without_samples_is_said_to_be_so(tmp_path, capsys, source, flag, name, data):
    if data is None:
        empty = pyarrow.table({key: pyarrow.array([], pyarrow.string()) for key in ("image", "caption", "jpg", "status")})
        parquet.write_table(empty, tmp_path / name)
    else:
        put(tmp_path / name, data)
    more = ["--images", str(tmp_path)] if source == "coco" else []
    assert prepare.main([source, flag, str(tmp_path / name), "--out", str(tmp_path / "out"), "--workers", "1", *more]) == 1
    assert f"xtoolkit prepare: nothing was written: there is no sample in {tmp_path / name}\n" in capsys.readouterr().err


def test_an_empty_folder_is_no_download(tmp_path, capsys):
    assert prepare.main(["img2dataset", "--shards", str(tmp_path)]) == 1
    assert f"{tmp_path}: no shard of img2dataset in it" in capsys.readouterr().err


def test_endings_in_capitals_are_those_in_small_letters(tmp_path):
    put(tmp_path / "in/M.TXT.GZ", gzip.compress(b"a\nb\n"))
    put(tmp_path / "in/1.jpg", jpeg())
    put(tmp_path / "in/A.CSV.GZ", gzip.compress(b"image,caption\n1.jpg,one\n"))
    for source, name in (("text", "M.TXT.GZ"), ("table", "A.CSV.GZ")):
        assert prepare.main([source, "--input", str(tmp_path / "in" / name), "--out", str(tmp_path / source), "--workers", "1"]) == 0
    packed(tmp_path / "in/B.TAR", {"2.JPG": jpeg()})
    images.convert(tmp_path / "in", Options(tmp_path / "images"))
    assert sorted(s["json"]["file"] for s in read(tmp_path / "images/train-00000.tar").values()) == ["1.jpg", "B/2.JPG"]


@pytest.mark.parametrize("name, data, what", [
    ("a.txt.bz2", bz2.compress(b"a\n" * 999), "compressed by bzip2"), ("a.jsonl.zst", b"\x28\xb5\x2f\xfd\4", "compressed by zstd"),
    ("a.txt", gzip.compress(b"a\n"), "compressed by gzip"), ("a.csv", gzip.compress(b"image,caption\n"), "compressed by gzip"),
    ("a.docx", b"PK\3\4\x14\0\6\0\x8b", "a zip archive"), ("a.xlsx", b"PK\3\4\x14\0\6\0\x8b", "a zip archive"),
    ("a.jsonl", b"\xff\xd8\xff\xe0", "a picture")])
@pytest.mark.parametrize("source", ["text", "table"])
def test_a_file_of_another_kind_is_called_what_it_is(tmp_path, capsys, source, name, data, what):
    put(tmp_path / name, data)
    assert prepare.main([source, "--input", str(tmp_path / name), "--out", str(tmp_path / "out"), "--workers", "1"]) == 1
    said = capsys.readouterr().err.splitlines()[-1]
    assert name in said and f"it is {what}" in said and "iconv" not in said and "--skip-bad" not in said


@pytest.mark.parametrize("data", [{"label": "old", "written": {"train": 3}, "files": ["a.tar"]}, {"version": 1}, [1], b"{", b"\xff"])
def test_what_another_version_noted_is_left_out_of_the_page(tmp_path, data):
    put(tmp_path / "prepared-old.json", data)
    run("new", [Job("train", LinePart, write_line, "a text")], Options(tmp_path), Report())
    page = write_summary(tmp_path).read_text()
    assert "prepared-old.json is not shown: another version" in page and "a text" in page


@pytest.mark.parametrize("heading, row", [("filepath;title;a, b, c, d", "1.jpg;one;x"), ("filepath,title,a; b; c; d", "1.jpg,one,x"),
                                          ("filepath\ttitle\ta, b, c, d", "1.jpg\tone\tx")])
def test_the_delimiter_is_that_which_gives_the_columns_that_are_read(tmp_path, heading, row):
    put(tmp_path / "1.jpg", jpeg())
    table.convert([put(tmp_path / "a.csv", f"{heading}\n{row}\n".encode())], Options(tmp_path / "out"))
    sample, = read(tmp_path / "out/train-00000.tar").values()
    assert sample["json"]["captions"] == ["one"]
    file = put(tmp_path / "b.csv", f"{heading}\n{row}\n".encode())
    text.convert([file], Options(tmp_path / "text"), key="title")
    assert (tmp_path / "text/train-00000.jsonl").read_text() == '{"text":"one"}\n'


def test_progress_in_a_log_is_lines(tmp_path, capsys):
    run("a", [Job("train", LinePart, write_line, "a text")], Options(tmp_path, progress=True), Report(), 1)
    said = capsys.readouterr().err
    assert "\r" not in said and said.endswith("\n") and "1/1" in said.splitlines()[-1] and ", 1 samples" in said
