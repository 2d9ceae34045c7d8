"""What a stream keeps in memory does not grow with the number of its samples."""

import json
import os
import subprocess
import sys

import pytest
from flaky import Flaky

ENOUGH_MB = 4  # what an allocator's moods amount to

SCRIPT = """
import gc, json, sys
from xtoolkit.data.datasets import Images, Regions, Text
from xtoolkit.data.loader import Loader
from xtoolkit.data.text import load_tokenizer

stream, tokenizer, *paths = sys.argv[1:]
tokenizer = load_tokenizer(tokenizer)

def read(path):
    sizes = {"image_size": 16, "patch_size": 8}
    data = Text(tokenizer, path=path) if stream == "text" else Images(**sizes, path=path) if stream == "image" \\
        else Regions(tokenizer, **sizes, path=path)
    loader = Loader(stream, data, 40, 1, workers=0)
    for visit in range(20):
        loader.at(visit)
    gc.collect()
    lines = [line.split() for line in open("/proc/self/status")]
    mb = {line[0].rstrip(":"): int(line[1]) / 1024 for line in lines if line[-1] == "kB"}
    # Its own pages, also those that another process has pushed out; all that is resident; the most that ever was.
    return {"samples": len(data), "own": mb["RssAnon"] + mb["VmSwap"], "resident": mb["VmRSS"], "peak": mb["VmHWM"]}

print(json.dumps([read(path) for path in paths]))
"""


def shard_bytes(tmp_path, stream, shards, each) -> bytes:
    if stream == "text":
        return "".join(json.dumps({"text": f"a red dog {n}"}) + "\n" for n in range(each)).encode()
    meta = {"regions": [{"box": [1, 1, 9, 9], "caption": "dog"}]} if stream == "region" else None
    members = [m for n in range(each) for m in [(f"{n:06d}.jpg", shards.jpeg(n % 20, 16, 16))]
               + ([(f"{n:06d}.json", json.dumps(meta).encode())] if meta else [])]
    return open(shards.tar(tmp_path / "one", members), "rb").read()


@pytest.mark.parametrize("stream, remote, each", [
    ("image", True, 100),
    *(pytest.param(stream, remote, 1000, marks=pytest.mark.slow)
      for stream in ("image", "region", "text") for remote in (False, True))])
def test_memory_does_not_grow_with_the_number_of_samples(tmp_path, shards, tokenizer_folder, stream, remote, each):
    data, ending = shard_bytes(tmp_path, stream, shards, each), ".jsonl" if stream == "text" else ".tar"
    few, many = 10, 100  # shards
    folder = tmp_path / "shards"
    folder.mkdir()
    first = folder / f"000{ending}"
    first.write_bytes(data)
    for n in range(1, many):
        os.link(first, folder / f"{n:03d}{ending}")
    with Flaky({f.name: data for f in folder.iterdir()}) as server:
        place = server.url if remote else str(folder)
        counts = (few, few, many)  # the first run of the few is for what is loaded once
        paths = [f"{place}/{{000..{n - 1:03d}}}{ending}" for n in counts]
        env = os.environ | {"XTOOLKIT_HOME": str(tmp_path / "home"), "OMP_NUM_THREADS": "1"}
        run = subprocess.run([sys.executable, "-c", SCRIPT, stream, str(tokenizer_folder), *paths], env=env,
                             capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    _, small, large = json.loads(run.stdout)
    print(stream, "remote" if remote else "local", small, large)
    assert (small["samples"], large["samples"]) == (few * each, many * each)
    grown = {what: large[what] - small[what] for what in ("own", "resident", "peak")}
    said = f"MB that {(many - few) * each} more samples take: {grown}"
    assert grown["own"] < ENOUGH_MB and grown["resident"] < ENOUGH_MB and grown["peak"] < 2 * ENOUGH_MB, said
