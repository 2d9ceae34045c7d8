"""Paths of a YAML file: what they name, and what is said where nothing is there."""

import importlib.util
import re
import subprocess
import sys

import pytest

from xtoolkit.data import paths
from xtoolkit.data.paths import ending, expand_braces, is_remote, problem, resolve
from xtoolkit.prepare import sample


@pytest.fixture
def shards(tmp_path):
    for name in ("train-00000.tar", "train-00001.tar", "train-00002.tar", "val-00000.tar", "notes.md"):
        (tmp_path / name).write_bytes(b"")
    return tmp_path


def test_file_folder_glob_and_braces(shards):
    train = [str(shards / f"train-{i:05d}.tar") for i in range(3)]
    assert resolve(train[1]) == [train[1]]
    assert resolve(str(shards)) == [*train, str(shards / "val-00000.tar")]
    assert resolve(str(shards / "train-*.tar")) == train
    assert resolve(str(shards / "train-{00000..00002}.tar")) == train
    assert resolve(str(shards / "{val,train}-00000.tar")) == [train[0], str(shards / "val-00000.tar")]
    assert resolve(str(shards / "{train-*,train-00001}.tar")) == train  # each once


def test_a_folder_gives_tars_before_jsonl_before_txt(tmp_path):
    (tmp_path / "a.txt").write_text("x")
    assert resolve(str(tmp_path)) == [str(tmp_path / "a.txt")]
    for name in ("b.jsonl.gz", "c.jsonl"):
        (tmp_path / name).write_text("x")
    assert resolve(str(tmp_path)) == [str(tmp_path / "b.jsonl.gz"), str(tmp_path / "c.jsonl")]
    (tmp_path / "d.tar").write_text("x")
    assert resolve(str(tmp_path)) == [str(tmp_path / "d.tar")]


def test_braces():
    assert expand_braces("a{08..11}b") == ["a08b", "a09b", "a10b", "a11b"]
    assert expand_braces("a{8..11}b") == ["a8b", "a9b", "a10b", "a11b"]
    assert expand_braces("{x,y}-{0..1}") == ["x-0", "x-1", "y-0", "y-1"]
    assert expand_braces("plain") == ["plain"]


@pytest.mark.parametrize("bad, said", [("a{0..", "not closed"), ("a}", "without"), ("a{5..2}", "backwards"),
                                       ("a{b}", "neither a range"), ("a{b..c}", "not a range")])
def test_bad_braces_are_named(bad, said):
    assert said in problem(bad)
    with pytest.raises(FileNotFoundError, match=said):
        resolve(bad)


def test_a_missing_path_names_the_command_that_prepares_it():
    assert problem("data/coco/train-*.tar") == (
        "data/coco/train-*.tar: no such file; prepare it with: xtoolkit prepare coco "
        "--annotations dataset_coco.json --images DIR --out data/coco")


@pytest.mark.parametrize("path, source", [
    ("data/vg/train-*.tar", "vg"), ("data/refcoco+/train-*.tar", "refcoco"),
    ("data/cc3m/{00000..00331}.tar", "img2dataset"),
    ("data/objects365/*.tar", "coco-objects"), ("data/openimages/*.tar", "openimages"),
    ("data/sbu", "img2dataset"), ("data/imagenet21k/train-*.tar", "images"), ("data/c4", "text"),
    ("data/roberta/train-*.jsonl.gz", "text")])
def test_hints_go_by_the_words_of_the_path(path, source):
    said = problem(path)
    assert said.startswith(path) and f"xtoolkit prepare {source} " in said
    assert said.endswith("--out data/" + path.split("/")[1])


def test_unknown_corpus_points_to_the_list():
    assert problem("data/zzz/a.tar").endswith("`xtoolkit prepare --help` lists what can be prepared")


def test_missing_shards_of_a_range_are_counted(shards):
    said = problem(str(shards / "train-{00000..00009}.tar"))
    assert "7 of 10 files are missing" in said and "train-00003.tar" in said


def test_folder_without_data(tmp_path):
    assert "has no *.tar" in problem(str(tmp_path))


def test_urls_and_pipes_are_expanded_and_not_asked_for():
    assert resolve("https://none.invalid/cc3m-{00000..00002}.tar") == [f"https://none.invalid/cc3m-{i:05d}.tar"
                                                                       for i in range(3)]
    assert resolve("pipe:cat {a,b}.tar | head -c 10") == ["pipe:cat a.tar | head -c 10", "pipe:cat b.tar | head -c 10"]
    assert problem("http://h:8000/a.jsonl.gz?key=x/y") is None and problem("memory://x/a.txt") is None
    kinds = {"https://h/a.tar?sig=b.txt": ".tar", "https://h/a.jsonl.gz": ".jsonl.gz", "a/b.jsonl": ".jsonl",
             "x.tgz": "", "pipe:aws s3 cp s3://b/c4.jsonl.gz -": ".jsonl.gz", "pipe:make shard 3": ".tar",
             "pipe:cat x.tar.gz": ".tar"}
    assert {name: ending(name) for name in kinds} == kinds
    assert [is_remote(p) for p in ("s3://b/a.tar", "pipe:x", "sample://picturebook/pairs", "a/b.tar", "c:d.tar")] == [
        True, True, False, False, False]


@pytest.mark.parametrize("path, said", [
    ("https:///a.tar", "no host"), ("https://h/*.tar", "cannot be listed.*{00000..00331}"),
    ("http://h/{0..", "not closed"),
    ("https://h/a.tar.gz", "ends in none of .tar.*gunzip"), ("https://h/a", "ends in none"),
    ("https://me:secret@h/a.tar", "~/.netrc"), ("http://h:x/a.tar", "no URL"), ("pipe: ", "no command"),
    ("htps://h/a.tar", "unknown scheme `htps`; did you mean `https`?")])
def test_what_is_wrong_with_a_url(path, said):
    assert re.search(said, problem(path))
    with pytest.raises(FileNotFoundError, match=said):
        resolve(path)


def test_a_file_system_that_is_not_installed_is_named():
    if importlib.util.find_spec("s3fs") is None:
        assert problem("s3://bucket/{0..3}.tar") == "s3://bucket/0.tar: Install s3fs to access S3"


def test_sample_names_are_checked_without_unpacking(monkeypatch, tmp_path):
    monkeypatch.setenv("XTOOLKIT_HOME", str(tmp_path))
    assert [problem(name) for name in sample.names()] == [None] * len(sample.PARTS)
    assert "did you mean `refcoco+-testA`?" in problem("sample://picturebook/refcoco-testA")
    assert "did you mean `picturebook`?" in problem("sample://picturebok/pairs")
    assert "choose from: digits-test," in problem("sample://picturebook/qqq")
    with pytest.raises(FileNotFoundError, match="no part `qqq`"):
        resolve("sample://picturebook/qqq")
    assert not list(tmp_path.iterdir())


def test_paths_alone_imports_nothing_heavy():
    code = (f"import importlib.util as u, sys; spec = u.spec_from_file_location('paths', {paths.__file__!r});"
            "p = u.module_from_spec(spec); sys.modules['paths'] = p; spec.loader.exec_module(p);"
            "p.problem('data/coco/x.tar');"
            "heavy = {'torch', 'PIL', 'numpy', 'tarfile', 'xtoolkit'} & set(sys.modules); assert not heavy, heavy")
    subprocess.run([sys.executable, "-c", code], check=True)
