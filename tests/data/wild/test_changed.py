"""Shards whose content changes while the number of their samples stays: a run that goes on says which, and stops."""

import gzip
import json
import os
import shutil

import pytest

from xtoolkit.cli import train
from xtoolkit.data.blocks import SourceBlock
from xtoolkit.data.datasets import Images, Text
from xtoolkit.data.shards import Shards

SIZES = {"image_size": 32, "patch_size": 8}


def members(shards, caption="a dog", first=0):
    return [m for n in range(6) for m in shards.sample(first + n, captions=[caption])]


def tar(shards, path, **how):
    return Shards([shards.tar(path, members(shards, **how))]).digest


def test_a_tar_is_known_by_its_size_its_headers_and_its_jsons(tmp_path, shards):
    one = tar(shards, tmp_path / "a.tar")
    assert one == tar(shards, tmp_path / "b.tar"), "wherever it lies"
    shutil.copy(tmp_path / "a.tar", tmp_path / "c.tar")
    os.utime(tmp_path / "c.tar", ns=(1, 1))
    assert one == Shards([str(tmp_path / "c.tar")]).digest, "whenever it was copied"
    others = [tar(shards, tmp_path / "d.tar", caption="a cat"), tar(shards, tmp_path / "e.tar", caption="a longer dog"),
              tar(shards, tmp_path / "f.tar", first=1)]
    others += [Shards([shards.tar(tmp_path / f"{text}.tar", [*members(shards), ("000000.txt", text)])]).digest for text in (b"aaa", b"bbb")]
    assert len({one, *others}) == 6, "as many bytes of json, more of them, other names, another text"


@pytest.mark.parametrize("name, one, other", [
    ("x.txt", b"a dog\na cat\n", b"a dog\na cow\n"), ("x.jsonl", b'{"text": "a dog"}\n', b'{"text": "a cat"}\n'),
    ("x.jsonl.gz", gzip.compress(b'{"text": "a dog"}\n', mtime=0), gzip.compress(b'{"text": "a cat"}\n', mtime=0)),
    ("x.csv", b"caption\na dog\n", b"caption\na cat\n")])
def test_lines_and_tables_are_known_by_their_content(name, one, other, tmp_path):
    digests = []
    for data, time in ((one, 1), (other, 2), (one, 3)):
        (tmp_path / name).write_bytes(data)
        os.utime(tmp_path / name, ns=(time, time))
        digests.append(Shards([str(tmp_path / name)]).digest)
    assert digests[0] == digests[2] != digests[1]


def test_the_digest_of_a_source_is_of_all_its_files_in_their_order(tmp_path, tokenizer, shards):
    for n, text in enumerate(("a dog", "a cat", "a cow")):
        (tmp_path / f"{n}.txt").write_text(text)
    digests = lambda *names: Text(tokenizer, sources={"a": SourceBlock(str(tmp_path / "0.txt")), "b": SourceBlock(
        [str(tmp_path / name) for name in names])}).digests
    both, turned, other = digests("1.txt", "2.txt"), digests("2.txt", "1.txt"), digests("1.txt", "0.txt")
    assert both["a"] == turned["a"] == other["a"]
    assert len({both["b"], turned["b"], other["b"]}) == 3
    assert list(Images(**SIZES, path=shards.tar(tmp_path / "x.tar", members(shards))).digests) == ["data"]


RECIPE = """
_BASE_: projects/xfm/tiny.yaml
encoders:
  vision: {width: 48, layers: 1, heads: 3}
  text: {width: 48, layers: 1, heads: 3}
  fusion: {layers: 1, heads: 3}
  vision_proj: {dim: 48}
  text_proj: {dim: 48}
losses: {mlm: null, mim: null, bbp: null, itm: null, imlm: null}
streams:
  text: null
  image: null
  match: null
  region: null
  pairs: {batch_size: 4, losses: {itc: 1}, data: {sources: {coco: {path: WHERE/coco.tar}, web: {path: WHERE/web.jsonl}}}}
schedule: {every_step: [[pairs]], every: null}
evaluate: null
optim: {lr_mult: null}
train: {steps: 1, log_every: 1, checkpoint_every: 1, output: WHERE/out, device: cpu, workers: 0}
"""


def test_resume_refuses_and_names_stream_and_source(tmp_path, shards, capsys):
    config = tmp_path / "pairs.yaml"
    config.write_text(RECIPE.replace("WHERE", str(tmp_path)).replace("projects/", os.path.abspath("projects") + "/"))
    shards.tar(tmp_path / "coco.tar", members(shards))
    (tmp_path / "7.jpg").write_bytes(shards.jpeg(7))

    def web(caption):
        (tmp_path / "web.jsonl").write_text("".join(json.dumps({"image": "7.jpg", "caption": f"{caption} {n}"}) + "\n"
                                                    for n in range(6)))
    web("a dog")
    run = lambda *more: train.main(["--config", str(config), *more])
    assert run() == 0
    web("a cat")
    capsys.readouterr()
    assert run("--resume", "train.steps=2") == 2
    said = capsys.readouterr().err
    assert "data of stream `pairs`: what source `web` holds has changed, at the same number of samples" in said
    assert "`coco`" not in said and "Traceback" not in said
    web("a dog")
    assert run("--resume", "train.steps=2") == 0
