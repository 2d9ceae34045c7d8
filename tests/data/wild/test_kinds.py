"""Files of another kind than a stream reads: one line with the file, what it is and what mends it, before anything loads."""

import bz2
import gzip
import io
import json
import lzma
import re
import subprocess
import zipfile

import pytest

from xtoolkit.cli import train
from xtoolkit.data import kinds, limits
from xtoolkit.data.datasets import Images, Pairs, Regions, Text
from xtoolkit.data.errors import BadSample
from xtoolkit.data.shards import Shards
from xtoolkit.registry import ConfigError

HTML = b"<!DOCTYPE html>\n<html><head><title>404</title>" * 50
LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"
TEXT = b"a dog\n" * 50
LINES = b'{"text": "a dog"}\n' * 50
SIZES = {"image_size": 32, "patch_size": 8}
ZSTD = b"\x28\xb5\x2f\xfd" + bytes(range(50))


def zipped(folder):
    with zipfile.ZipFile(folder / "z", "w") as z:
        z.writestr("a.txt", "a dog")
    return (folder / "z").read_bytes()


def office(*first):
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as z:
        z.writestr(*(first if len(first) == 2 else (*first, "<Types/>")))
        z.writestr("word/document.xml", "<w/>")
    return out.getvalue()


@pytest.fixture(scope="module")
def tarred(tmp_path_factory):
    from shard_fixtures import sample, write_tar
    path = write_tar(tmp_path_factory.mktemp("tar") / "x.tar", [m for n in range(4) for m in sample(n, caption="a dog")])
    return open(path, "rb").read()


WRONG = {  # stream, name, bytes: what is said behind the file's name, {f} for it
    "tar.gz": (Pairs, "x.tar.gz", lambda tar: gzip.compress(tar), "it is a tar compressed by gzip, and Pairs reads .tar, .*: `gunzip {f}`"),
    "tgz": (Images, "x.TGZ", lambda tar: gzip.compress(tar), "it is a tar compressed by gzip, and .*: `gunzip {f}`"),
    "tar.bz2": (Regions, "x.tar.bz2", lambda tar: bz2.compress(tar), "it is a tar compressed by bzip2, .*: `bunzip2 {f}`"),
    "tar.xz": (Pairs, "x.tar.xz", lambda tar: lzma.compress(tar), "it is a tar compressed by xz, .*: `unxz {f}`"),
    "tar.zst": (Pairs, "x.tar.zst", lambda tar: ZSTD, "it is a tar compressed by zstd, .*: `unzstd {f}`"),
    "gzip named tar": (Pairs, "x.tar", lambda tar: gzip.compress(tar),
                       "it is compressed by gzip, not a tar: `mv {f} {f}.gz` and `gunzip {f}.gz`"),
    "html": (Pairs, "x.tar", lambda tar: HTML, "it is an HTML page, not a tar: the download failed: download it again$"),
    "lfs": (Pairs, "x.tar", lambda tar: LFS, "it is a git-lfs pointer, not the file itself, not a tar: `git lfs pull`"),
    "empty tar": (Pairs, "x.tar", lambda tar: b"", "it is empty, not a tar: make or download it again"),
    "texts for pairs": (Pairs, "x.jsonl", lambda tar: LINES, "the first row: it has no picture, one of image, .*, only text"),
    "plain text for pairs": (Pairs, "x.txt", lambda tar: TEXT, "it is plain text, and Pairs reads .*: `type: Text` reads it"),
    "packed text for pairs": (Images, "x.txt.gz", lambda tar: gzip.compress(TEXT), "it is plain text, and .*`type: Text`"),
    "zip": (Images, "x.zip", None, "it is a zip archive, and Images reads .*: `unzip {f} -d DIR`"),
    "parquet": (Pairs, "x.parquet", lambda tar: b"PAR1 PAR1", "it is Parquet, .*`xtoolkit prepare table --input {f} --out DIR`"),
    "picture": (Pairs, "x.jpg", lambda tar: b"\xff\xd8\xff\xe0", "it is a picture, and .*`xtoolkit prepare images"),
    "json": (Pairs, "x.json", lambda tar: b'[{"image": "a.jpg"}]', "it is one JSON text, not JSON Lines, .*json.load.* < {f} > .*x.jsonl`"),
    "npz": (Pairs, "x.bin", lambda tar: b"binary", "it is a `.bin` file, and Pairs reads .tar"),
    "no ending": (Pairs, "x", lambda tar: b"binary", "it is of no known kind, and Pairs reads .tar"),
    "tar for texts": (Text, "x.tar", lambda tar: tar, "it is a tar, and Text reads .jsonl, .*: `type: Pairs`"),
    "tar.gz for texts": (Text, "x.tar.gz", lambda tar: gzip.compress(tar), "it is a tar compressed by gzip, and Text reads"),
    "parquet for texts": (Text, "x.parquet", lambda tar: b"PAR1 PAR1", "it is Parquet, .*`xtoolkit prepare text --input {f}"),
    "xz": (Text, "x.jsonl.xz", lambda tar: lzma.compress(LINES), "it is compressed by xz, and .*: `unxz {f}`"),
    "gzip named jsonl": (Text, "x.jsonl", lambda tar: gzip.compress(LINES), "it is compressed by gzip, not JSON Lines: `mv {f} {f}.gz`$"),
    "jsonl named gz": (Text, "x.jsonl.gz", lambda tar: LINES, "it is not compressed, not JSON Lines: `mv {f} .*x.jsonl`"),
    "html for texts": (Text, "x.txt", lambda tar: HTML, "it is an HTML page, not text: the download failed: download it again"),
    "utf-16": (Text, "x.txt", lambda tar: "a dog\n".encode("utf-16"), "it is UTF-16, not text: `iconv -f utf-16 -t utf-8 {f} > .*x-utf8.txt`"),
    "utf-16 without mark": (Text, "x.jsonl", lambda tar: LINES.decode().encode("utf-16-le"), "it is UTF-16, not JSON Lines: `iconv"),
    "utf-16 table": (Pairs, "x.csv", lambda tar: "image,caption\n".encode("utf-16"), "it is UTF-16, not a CSV: `iconv"),
    "a table without texts": (Text, "x.csv", lambda tar: b"a,b\n1,2\n", "the header row: it has no caption, one of captions, .*, only a, b"),
    "gzip in gzip": (Text, "x.txt.gz", lambda tar: gzip.compress(gzip.compress(TEXT)), "what it packs is compressed by gzip, not text: `gunzip {f}`"),
    "picture in gzip": (Text, "x.jsonl.gz", lambda tar: gzip.compress(b"\xff\xd8\xff\xe0"), "what it packs is a picture, not JSON Lines"),
    "AppleDouble": (Text, "x.txt", lambda tar: b"\0\5\x16\7\0\2\0\0Mac OS X", "it is what macOS keeps beside a file .AppleDouble., not text: remove it$"),
    "docx": (Text, "x.docx", lambda tar: office("[Content_Types].xml"), "it is an Office document .*, and Text reads .*: save it as plain text"),
    "odt named txt": (Text, "x.txt", lambda tar: office("mimetype", "application/vnd.oasis.opendocument.text"), "it is an Office document .*, not text"),
    "a page behind a mark": (Text, "x.txt", lambda tar: b"\xef\xbb\xbf" + HTML, "it is an HTML page, not text"),
    "a page in XML": (Text, "x.txt", lambda tar: b"<?xml version='1.0'?>\n" + HTML, "it is an HTML page, not text"),
    "a page in gzip": (Text, "x.txt.gz", lambda tar: gzip.compress(HTML), "what it packs is an HTML page, not text: `gunzip {f}` and look"),
    "a page named gz": (Text, "x.txt.gz", lambda tar: HTML, "it is an HTML page, not text: the download failed: download it again"),
    "zstd named txt": (Text, "x.txt", lambda tar: ZSTD, "it is compressed by zstd, not text: `mv"),
    "its own index": (Text, "x.jsonl.idx", lambda tar: b"{}\n", "it is a `.idx` file"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_file_of_another_kind_is_named_with_what_mends_it(case, tmp_path, tarred, tokenizer):
    stream, name, make, told = WRONG[case]
    path = tmp_path / name
    path.write_bytes(zipped(tmp_path) if make is None else make(tarred))
    (key, line), = stream.missing({"path": str(path)})
    assert key == "path" and line.startswith(f"{path}: ") and "\n" not in line
    assert re.search(told.replace("{f}", re.escape(str(path))), line), line
    with pytest.raises(ConfigError, match="data.path: "):
        stream(**({} if stream is Images else {"tokenizer": tokenizer}), **({} if stream is Text else SIZES), path=str(path))
    assert [p.name for p in tmp_path.iterdir() if p.suffix == ".idx"] == [name] * name.endswith(".idx"), "nothing was loaded"


def test_the_command_that_is_named_mends_it(tmp_path, tarred, tokenizer):
    """Those that every machine has are run as they stand in the message."""
    files = {"a b.tar.gz": gzip.compress(tarred), "y.tar": gzip.compress(tarred)}
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
        (_, line), = Pairs.missing({"path": str(tmp_path / name)})
        for command in line.split("`")[1::2]:
            subprocess.run(command, shell=True, check=True)
    (tmp_path / "z.json").write_text(json.dumps([{"image": "a.jpg", "caption": "x"}, {"image": "b.jpg", "caption": "ä"}]))
    (_, line), = Pairs.missing({"path": str(tmp_path / "z.json")})
    subprocess.run(line.split("`")[-2], shell=True, check=True)
    (tmp_path / "u.txt").write_bytes("ein Bär\n".encode("utf-16"))
    (_, line), = Text.missing({"path": str(tmp_path / "u.txt")})
    subprocess.run(line.split("`")[-2], shell=True, check=True)
    (tmp_path / "a.jpg").write_bytes(b"")
    for name in ("a b.tar", "y.tar", "z.jsonl"):
        assert Pairs.missing({"path": str(tmp_path / name)}) == []
    assert Shards([str(tmp_path / "u-utf8.txt")]).text(0) == "ein Bär"
    assert len(Pairs(tokenizer, **SIZES, path=str(tmp_path / "*.tar"))) == 8


def test_many_files_are_one_line(tmp_path, tarred):
    for n in range(5):
        (tmp_path / f"{n}.tar").write_bytes(HTML if n > 1 else tarred)
    assert Pairs.missing({"path": str(tmp_path)}) == [
        ("path", f"{tmp_path}/2.tar: it is an HTML page, not a tar: the download failed: download it again (and so 2 more)")]


@pytest.mark.parametrize("name, packed", [("x.TAR", False), ("x.JSONL", False), ("x.Txt", False), ("x.txt.gz", True), ("X.JSONL.GZ", True),
                                          ("x.TXT.GZ", True)])
def test_endings_in_any_case_and_packed_text(name, packed, tmp_path, tarred, tokenizer):
    data = tarred if "TAR" in name else LINES if "JSON" in name else TEXT
    (tmp_path / name).write_bytes(gzip.compress(data) if packed else data)
    for path in (tmp_path / name, tmp_path):
        if "TAR" in name:
            assert len(Pairs(tokenizer, **SIZES, path=str(path))) == 4
        else:
            found = Text(tokenizer, path=str(path))
            assert len(found) == 50 and tokenizer.decode(found.load(0, 7, 1, None).texts[0].ids).strip() == "a dog"


def test_tables_and_texts_at_a_url(tokenizer):
    assert "a table is read from a disk" in Pairs.missing({"path": "https://h/a.jsonl"})[0][1]
    assert "a table is read from a disk" in Pairs.missing({"path": "https://h/a.csv"})[0][1]
    assert "`type: Pairs`" in Text.missing({"path": "https://h/{0..3}.tar"})[0][1]
    assert "`type: Text`" in Pairs.missing({"path": "pipe:zcat a.txt"})[0][1]
    assert Text.missing({"path": "https://h/a.txt.gz"}) == Pairs.missing({"path": "https://h/a.tar"}) == []


def test_all_mistakes_of_a_recipe_are_one_answer(tmp_path, tarred, capsys):
    (tmp_path / "x.tar.gz").write_bytes(gzip.compress(tarred))
    (tmp_path / "x.parquet").write_bytes(b"PAR1")
    (tmp_path / "x.txt").write_bytes(TEXT)
    code = train.main(["--config", "projects/xfm/tiny.yaml", f"train.output={tmp_path}/out",
                       f"streams.text.data.path={tmp_path}/x.parquet", f"streams.image.data.path={tmp_path}/x.tar.gz",
                       f"evaluate.retrieval.data.path={tmp_path}/x.txt"])
    said = capsys.readouterr().err
    assert code == 2 and "Traceback" not in said and "runs as it is" not in said
    assert all(what in said for what in ("it is Parquet", "it is a tar compressed by gzip", "it is plain text"))


def test_text_is_utf8_with_or_without_a_mark(tmp_path):
    lines = [f"a café dog {n}" for n in range(4)]
    for code in ("utf-8", "utf-8-sig"):
        (tmp_path / "x.txt").write_bytes("\n".join(lines).encode(code))
        (tmp_path / "x.jsonl").write_bytes("\n".join(json.dumps({"text": l}, ensure_ascii=False) for l in lines).encode(code))
        for name in ("x.txt", "x.jsonl"):
            found = Shards([str(tmp_path / name)])
            assert [found.text(n) for n in range(4)] == lines
    (tmp_path / "x.txt").write_bytes(b"a dog\n" + "a café\n".encode("latin-1") + b"a cat")
    (tmp_path / "x.jsonl").write_bytes(b'{"text": "a dog"}\n' + '{"text": "a café"}\n'.encode("latin-1") + b'{"text": "a cat"}')
    for name in ("x.txt", "x.jsonl"):
        found = Shards([str(tmp_path / name)])
        assert (found.text(0), found.text(2)) == ("a dog", "a cat")
        with pytest.raises(BadSample, match="not utf-8: text 2: not UTF-8: byte 0xe9") as caught:
            found.text(1)
        assert caught.value.kind == "not utf-8"


def test_no_more_than_so_many_files_are_opened(tmp_path, tarred, monkeypatch):
    monkeypatch.setattr(kinds, "LOOKED_AT", 2)
    for n in range(5):
        (tmp_path / f"{n}.tar").write_bytes(HTML if n > 1 else tarred)
    assert Pairs.missing({"path": str(tmp_path)}) == []


def test_and_those_behind_are_named_when_they_are_indexed(tmp_path, tarred, tokenizer, monkeypatch):
    monkeypatch.setattr(kinds, "LOOKED_AT", 1)
    (tmp_path / "0.tar").write_bytes(tarred)
    (tmp_path / "1.tar").write_bytes(gzip.compress(tarred))
    with pytest.raises(ConfigError, match="data.path: .*1.tar: a compressed tar cannot be read"):
        Pairs(tokenizer, **SIZES, path=str(tmp_path))
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "0.csv").write_text("image,caption\n0.csv,a dog\n")
    (tmp_path / "a" / "1.csv").write_bytes("image,Bär\n".encode("latin-1"))
    with pytest.raises(ConfigError, match="data.path: .*1.csv: the header row: not UTF-8"):
        Pairs(tokenizer, **SIZES, path=str(tmp_path / "a"))
    for n, (name, page) in enumerate([("1.txt", HTML), ("1.txt.gz", gzip.compress(HTML)), ("1.jsonl", b"PAR1" + HTML)]):
        (tmp_path / f"t{n}").mkdir()
        (tmp_path / f"t{n}" / name.replace("1", "0")).write_bytes(gzip.compress(LINES) if name.endswith("gz") else LINES)
        (tmp_path / f"t{n}" / name).write_bytes(page)
        text = Text(tokenizer, path=str(tmp_path / f"t{n}"))
        what = "Parquet: .*" if page.startswith(b"PAR1") else "an HTML page: the download failed: download it again"
        (file, why), = text.damaged.items()
        assert len(text) == 50 and file.endswith(name) and re.fullmatch(f"it is {what}; 0 samples before it are served", why)


@pytest.mark.parametrize("start", [b"\0\5\x16\7\0\2\0\0", b"I\0I", b"II*\0", b"MM\0*", b"BM\x9a\1\0\0\0\0\0\0", b"\xff\xd8\xff\xe0\0\x10JFIF\0",
                                   gzip.compress(TEXT, mtime=0), bz2.compress(TEXT), ZSTD, b"PK\x03\x04\x14\0\xff", b"\1\0\2\0\3\0\4\0", b"\0\1\0\2\0\3\0\4"])
def test_what_is_binary_is_not_taken_for_text_of_another_encoding(start):
    assert limits.seen(start)[0] != "UTF-16"
    with pytest.raises(ValueError) as caught:
        limits.decode(start + bytes(range(256)))
    assert "iconv" not in str(caught.value)


@pytest.mark.parametrize("code", ["utf-16", "utf-16-le", "utf-16-be"])
def test_utf_16_is_known_by_its_mark_or_its_nuls(code):
    assert limits.seen(TEXT.decode().encode(code))[0] == "UTF-16"
    with pytest.raises(ValueError, match="UTF-16.*; convert .*: `iconv -f utf-16"):
        limits.decode(TEXT.decode().encode(code))
