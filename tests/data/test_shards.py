"""The shard reader: byte-exact members, an index that is built once, and damage that costs only what is damaged."""

import gzip
import io
import json
import os
import tarfile

import pytest

from xtoolkit.data import index, scan
from xtoolkit.data.errors import BadSample
from xtoolkit.data.shards import Shards


def test_members_of_a_sample_are_found_by_their_key(tmp_path, shards):
    members = [("a/000.jpg", b"picture 0"), ("a/000.json", b'{"captions": ["x"]}'), ("b/000.PNG", b"picture 1"),
               ("notes.txt", b"no picture"), ("a/001.cls", b"3"), ("a/001.webp", b"picture 2"),
               ("a/001.txt", "ä".encode()), ("README", b"text")]
    tar = shards.tar(tmp_path / "x.tar", members)
    found = Shards([tar])
    assert len(found) == 3
    assert [found.read(i, "image") for i in range(3)] == [b"picture 0", b"picture 1", b"picture 2"]
    assert [found.name(i) for i in range(3)] == ["a/000", "b/000", "a/001"]
    assert found.meta(0) == {"captions": ["x"]}
    assert found.meta(1) == {} and found.read(1, "txt") is None
    assert found.meta(2) == {"caption": "ä"}


def test_samples_are_numbered_through_the_shards(tmp_path, shards):
    files = [shards.tar(tmp_path / f"{s}.tar", [(f"{s}{n}.jpg", f"{s}{n}".encode()) for n in range(k)])
             for s, k in (("p", 3), ("q", 0), ("r", 2))]
    found = Shards(files)
    assert [found.read(i, "image") for i in range(5)] == [b"p0", b"p1", b"p2", b"r0", b"r1"]
    assert found.file(4) == files[2]


def test_the_index_is_built_once_and_again_when_the_shard_changes(tmp_path, shards, monkeypatch):
    tar = shards.tar(tmp_path / "x.tar", [("0.jpg", b"one")])
    Shards([tar])
    assert sorted(os.listdir(tmp_path)) == ["x.tar", "x.tar.idx"]
    with monkeypatch.context() as patched:
        patched.setattr(index, "build", lambda file, kind: pytest.fail("built again"))
        assert Shards([tar]).read(0, "image") == b"one"
    shards.tar(tmp_path / "x.tar", [("0.jpg", b"two"), ("1.jpg", b"three")])
    os.utime(tar, ns=(1, 1))
    assert [Shards([tar]).read(i, "image") for i in range(2)] == [b"two", b"three"]
    (tmp_path / "x.tar.idx").write_bytes(b"no index")
    assert len(Shards([tar])) == 2


def test_the_index_of_a_folder_that_cannot_be_written_goes_to_the_cache(tmp_path, shards, monkeypatch):
    monkeypatch.setenv("XTOOLKIT_HOME", str(tmp_path / "home"))
    tar = shards.tar(tmp_path / "x.tar", [("0.jpg", b"one")])
    real = index.tempfile.mkstemp

    def refuse(dir, prefix):
        if str(dir) == str(tmp_path):
            raise PermissionError(13, "read-only")
        return real(dir=dir, prefix=prefix)

    monkeypatch.setattr(index.tempfile, "mkstemp", refuse)
    assert len(Shards([tar])) == 1
    assert os.listdir(tmp_path / "home" / "index") != [] and "x.tar.idx" not in os.listdir(tmp_path)
    monkeypatch.setattr(index, "build", lambda file, kind: pytest.fail("built again"))
    assert len(Shards([tar])) == 1


@pytest.mark.parametrize("where", ["data", "header", "json"])
def test_a_truncated_tar_serves_what_lies_before_the_damage(tmp_path, shards, where):
    tar = shards.tar(tmp_path / "x.tar", [m for n in range(6) for m in shards.sample(n, captions=["x"])])
    with tarfile.open(tar) as opened:
        spot = {"data": opened.getmember("000004.jpg").offset_data + 5,
                "header": opened.getmember("000004.jpg").offset + 100,
                "json": opened.getmember("000004.json").offset_data + 3}[where]
    with open(tar, "r+b") as f:
        f.truncate(spot)
    found = Shards([tar])
    assert len(found) == (5 if where == "json" else 4)
    assert list(found.damaged) == [tar]
    assert all(found.meta(i) == {"captions": ["x"]} and found.read(i, "image") == shards.jpeg(i) for i in range(4))
    assert Shards([tar]).damaged == found.damaged, "the damage is in the index too"


def test_what_is_no_file_or_leads_out_is_a_bad_sample(tmp_path):
    with tarfile.open(tmp_path / "x.tar", "w") as tar:
        for name, kind in (("0.jpg", tarfile.REGTYPE), ("1.jpg", tarfile.SYMTYPE), ("2.jpg", tarfile.LNKTYPE),
                           ("3.jpg", tarfile.FIFOTYPE), ("../4.jpg", tarfile.REGTYPE), ("/5.jpg", tarfile.REGTYPE),
                           ("6.jpg", tarfile.DIRTYPE), (".7.jpg", tarfile.REGTYPE), ("8.jpg", tarfile.REGTYPE)):
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, "/etc/passwd"
            info.size = 3 if kind == tarfile.REGTYPE else 0
            tar.addfile(info, io.BytesIO(b"abc"))
    found = Shards([str(tmp_path / "x.tar")])
    assert [found.name(i) for i in range(len(found))] == ["0", "1", "2", "3", "../4", "/5", "8"]
    assert found.read(0, "image") == found.read(6, "image") == b"abc"
    for i in range(1, 6):
        with pytest.raises(BadSample, match="refused member"):
            found.read(i, "image")


def test_something_else_than_a_tar(tmp_path, shards):
    (tmp_path / "x.tar").write_bytes(b"hello" * 500)
    found = Shards([str(tmp_path / "x.tar")])
    assert len(found) == 0 and found.damaged
    (tmp_path / "y.tar").write_bytes(gzip.compress(b"hello"))
    with pytest.raises(ValueError, match="y.tar: a compressed tar"):
        Shards([str(tmp_path / "y.tar")])


def test_broken_json_names_shard_and_sample(tmp_path, shards):
    members = [("7.jpg", b"p"), ("7.json", b'{"captions": ["x"'), ("8.jpg", b"p"), ("8.json", b"[]")]
    tar = shards.tar(tmp_path / "x.tar", members)
    found = Shards([tar])
    for sample in (0, 1):
        with pytest.raises(BadSample, match=rf"x.tar: broken json: {7 + sample}:") as caught:
            found.meta(sample)
        assert (caught.value.kind, caught.value.path) == ("broken json", tar)
    assert found.column("elements").tolist() == [1, 1], "so that a region stream meets them"


def test_elements_are_regions_and_a_caption_of_the_whole(tmp_path, shards):
    metas = [{"regions": [1, 2, 3]}, {"regions": [1], "captions": ["x"]}, {"caption": "x"}, {"regions": []},
             {"regions": 5}]
    tar = shards.tar(tmp_path / "x.tar", [m for n, meta in enumerate(metas) for m in shards.sample(n, **meta)])
    assert Shards([tar]).column("elements").tolist() == [3, 2, 1, 0, 0]


LINES = ['{"text": "eins"}', "", '{"text": "zwei ä"}', "   ", "no json", '{"caption": "x"}', '{"text": "last"}']


def check_lines(found):
    assert len(found) == 5
    assert [found.text(i) for i in (0, 1, 4)] == ["eins", "zwei ä", "last"]
    for i in (2, 3):
        with pytest.raises(BadSample, match="broken json"):
            found.text(i)
    assert found.column("text", "size").shape == (5,)


@pytest.mark.parametrize("end", ["", "\n", "\n\n"])
def test_lines_of_jsonl(tmp_path, end):
    (tmp_path / "x.jsonl").write_text("\n".join(LINES) + end)
    check_lines(Shards([str(tmp_path / "x.jsonl")]))


def test_lines_are_found_in_small_pieces_too(tmp_path, monkeypatch):
    monkeypatch.setattr(scan, "CHUNK", 16)
    (tmp_path / "x.jsonl").write_text("\n".join(LINES))
    check_lines(Shards([str(tmp_path / "x.jsonl")]))


def test_gzip_is_unpacked_once_and_a_cut_one_serves_what_is_whole(tmp_path, monkeypatch):
    whole = gzip.compress("\n".join(LINES).encode())
    file = tmp_path / "x.jsonl.gz"
    file.write_bytes(whole)
    check_lines(Shards([str(file)]))
    with monkeypatch.context() as patched:
        patched.setattr(index, "build", lambda file, kind: pytest.fail("built again"))
        check_lines(Shards([str(file)]))
    os.unlink(tmp_path / "x.jsonl.gz.unpacked")
    check_lines(Shards([str(file)]))
    lines = "\n".join(json.dumps({"text": os.urandom(40).hex()}) for _ in range(100))
    file.write_bytes(gzip.compress(lines.encode())[:3500])
    found = Shards([str(file)])
    assert 10 < len(found) < 100 and found.damaged
    assert all(len(found.text(i)) == 80 for i in range(len(found)))


def test_plain_text_is_one_text_a_line(tmp_path):
    (tmp_path / "x.txt").write_text("one\n\ntwo words\n")
    found = Shards([str(tmp_path / "x.txt")])
    assert [found.text(i) for i in range(len(found))] == ["one", "two words"]


def test_a_shard_that_shrinks_after_it_was_indexed_is_a_bad_sample(tmp_path, shards):
    tar = shards.tar(tmp_path / "x.tar", [("0.jpg", b"p" * 5000)])
    found = Shards([tar])
    with open(tar, "r+b") as f:
        f.truncate(1000)
    with pytest.raises(BadSample, match="unreadable shard"):
        found.read(0, "image")


def test_more_shards_than_may_be_open(tmp_path, shards, monkeypatch):
    monkeypatch.setattr("xtoolkit.data.shards.OPEN_FILES", 2)
    files = [shards.tar(tmp_path / f"{n}.tar", [(f"{n}.jpg", str(n).encode())]) for n in range(5)]
    found = Shards(files)
    before = len(os.listdir("/proc/self/fd"))
    assert [found.read(i, "image") for i in (0, 1, 2, 3, 4, 0, 4)] == [b"0", b"1", b"2", b"3", b"4", b"0", b"4"]
    assert len(os.listdir("/proc/self/fd")) == before + 2
    found.close()
    assert len(os.listdir("/proc/self/fd")) == before
