"""Files that are missing or hold nothing, alone and beside others: an error line, or counted and told, never passed over."""

import logging
import os

import pytest

from xtoolkit.data.blocks import ShardBlock, SourceBlock
from xtoolkit.data.counts import SampleCounts
from xtoolkit.data.datasets import Images, Regions
from xtoolkit.data.errors import BadDataError
from xtoolkit.registry import ConfigError

SIZES = {"image_size": 32, "patch_size": 8}
EMPTY = {"x.tar": b"\0" * 10240, "x.csv": b"image,caption\n", "x.jsonl": b"\n \n"}


def told(make) -> str:
    with pytest.raises(ConfigError) as caught:
        make()
    line, = caught.value.problems
    assert "\n" not in line
    return line


@pytest.mark.parametrize("path", ["", "*.tar", "1.tar"])
def test_a_link_that_leads_nowhere_is_an_error_wherever_it_lies(path, tmp_path, shards):
    shards.tar(tmp_path / "0.tar", shards.sample(0))
    (tmp_path / "1.tar").symlink_to(".git/annex/objects/SHA256E-1.tar")
    assert told(lambda: Images(**SIZES, path=str(tmp_path / path))).startswith(
        f"data.path: {tmp_path}/1.tar: a link to .git/annex/objects/SHA256E-1.tar, which is not there")


@pytest.mark.parametrize("name", EMPTY)
def test_a_file_without_a_sample_is_told_beside_others_and_named_alone(name, tmp_path, shards, caplog):
    path = tmp_path / name
    path.write_bytes(EMPTY[name])
    data = Images(**SIZES, path=[str(path), shards.tar(tmp_path / "full.tar", shards.sample(0))])
    with caplog.at_level(logging.WARNING):
        counts = SampleCounts("stream `s`", data, 0.1)
    assert len(data) == 1 and counts.report()["left_out"] == {"files without a sample": 1}
    assert f"stream `s`: {path}: left out: 1 files without a sample" in caplog.text
    assert told(lambda: Images(**SIZES, path=str(path))) == f"data.path: {path}: it has no sample"


def test_a_path_that_names_no_file():
    assert told(lambda: Images(**SIZES, path=[])) == "data.path: it names no file"


def test_a_source_all_of_whose_shards_are_dead_names_url_and_answer(tmp_path, shards, monkeypatch):
    from flaky import Flaky
    monkeypatch.setenv("XTOOLKIT_HOME", str(tmp_path / "home"))
    good = SourceBlock(shards.tar(tmp_path / "0.tar", shards.sample(0)))
    with Flaky({}) as server:
        url = f"{server.url}/{{0..1}}.tar"
        line = told(lambda: Images(**SIZES, sources={"a": good, "b": SourceBlock(url)}, shards=ShardBlock(retries=0)))
    assert line.startswith(f"data.sources.b.path: {server.url}/0.tar: the server answers 404")


def test_a_source_with_nothing_to_draw_goes_by_its_name(tmp_path, shards, tokenizer):
    path = shards.tar(tmp_path / "x.tar", shards.sample(0, regions=[]))
    with pytest.raises(BadDataError, match="stream `r`: source `vg` has no sample to draw"):
        Regions(tokenizer, **SIZES, sources={"vg": SourceBlock(path)}).order(0, "r", 4)


@pytest.mark.parametrize("name", ["x.tar", "x.csv"])
def test_a_pipe_or_a_device_is_one_line_and_not_waited_for(name, tmp_path):
    os.mkfifo(tmp_path / name)
    for path in (str(tmp_path / name), "/dev/null"):
        assert told(lambda: Images(**SIZES, path=path)).startswith(f"data.path: {path}: no regular file, but a pipe")
