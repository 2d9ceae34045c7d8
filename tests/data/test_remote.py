"""Remote shards one by one: no byte is lost to a bad server, one machine fetches each once, and its limit is kept."""

import gzip
import json
import os
import random
from collections import Counter

import pytest

from xtoolkit.data.blocks import ShardBlock
from xtoolkit.data.remote import Cache
from xtoolkit.data.errors import BadDataError, DeadShard
from xtoolkit.data.fetch import fetch
from xtoolkit.data.shards import Shards

from flaky import Flaky, bodies

QUICK = {"timeout": 20.0, "retries": 4, "backoff": 0.01}
STALLS = {"timeout": 0.5, "retries": 20, "backoff": 0.01}  # on a busy machine an answer may take as long as that


@pytest.fixture(autouse=True)
def home(monkeypatch, tmp_path):
    monkeypatch.setenv("XTOOLKIT_HOME", str(tmp_path / "home"))


# ---- one shard ------------------------------------------------------------------------------------------------------
def get(url, tmp_path, check=lambda last: None, **how):
    file = tmp_path / "got"
    fetch(url, str(file), ShardBlock(**QUICK | how), lambda size: None, check)
    return file.read_bytes()


DATA = random.Random(0).randbytes(300_000)


@pytest.mark.parametrize("ranges", [True, False])
@pytest.mark.parametrize("faults", [["drop"], ["stall"], ["error", "error"], ["refuse"], ["drop", "begin"],
                                    ["drop", "stall", "refuse", "error", "drop"], ["drop"] * 12])
def test_every_byte_comes_in_the_end(tmp_path, ranges, faults):
    with Flaky({"x.tar": DATA}, ranges) as server:
        server.faults["x.tar"] = list(faults)
        if faults == ["drop"] * 12 and not ranges:
            with pytest.raises(DeadShard, match="5 tries in a row failed, the last with: 150000 of 300000 bytes came"):
                get(server.url + "/x.tar", tmp_path)
            return
        if "stall" in faults:
            assert get(server.url + "/x.tar", tmp_path, **STALLS) == DATA
            return
        assert get(server.url + "/x.tar", tmp_path) == DATA
        if ranges and "begin" not in faults:
            assert server.sent["x.tar"] == len(DATA), "it went on where it had stopped"
        assert server.asked["x.tar"] == len(faults) + (faults[-1] != "begin")


def test_another_version_is_begun_anew(tmp_path):
    with Flaky({"x.tar": DATA}) as server:
        server.faults["x.tar"] = ["drop"]
        real, changed = server.files, {"x.tar": DATA[::-1]}

        class Changing(dict):
            def __getitem__(self, name):
                return (real if server.asked[name] == 1 else changed)[name]

        server.files = Changing(real)
        assert get(server.url + "/x.tar", tmp_path) == DATA[::-1]


def test_what_is_announced_short_is_found_by_the_check_and_accepted_if_it_stays_so(tmp_path):
    check = lambda last: None if last or os.path.getsize(tmp_path / "got") == len(DATA) else "cut off"
    with Flaky({"x.tar": DATA}) as server:
        server.faults["x.tar"] = ["cut", "cut"]
        assert get(server.url + "/x.tar", tmp_path, check) == DATA
        server.faults["x.tar"] = ["cut"] * 20
        assert get(server.url + "/x.tar", tmp_path, check) == DATA[:150_000]
        assert server.asked["x.tar"] == 3 + 1 + QUICK["retries"]


def test_a_shard_is_dead_after_its_retries_or_at_once_if_it_is_not_there(tmp_path):
    with Flaky({"x.tar": DATA}) as server:
        server.faults["x.tar"] = ["error"] * 20
        with pytest.raises(DeadShard, match="x.tar: dead shard: 3 tries in a row failed, the last with: HTTP Error 500"):
            get(server.url + "/x.tar", tmp_path, retries=2)
        assert server.asked["x.tar"] == 3
        with pytest.raises(DeadShard, match="y.tar: dead shard: the server answers 404"):
            get(server.url + "/y.tar", tmp_path)
        assert server.asked["y.tar"] == 1
    with pytest.raises(DeadShard, match="refused"):
        get(server.url + "/x.tar", tmp_path, retries=0)


def test_the_waits_between_tries_are_doubled_up_to_a_minute(tmp_path, monkeypatch):
    waits = []
    monkeypatch.setattr("xtoolkit.data.fetch.time.sleep", waits.append)
    with Flaky({"x.tar": DATA}) as server:
        server.faults["x.tar"] = ["error"] * 8
        assert get(server.url + "/x.tar", tmp_path, retries=8, backoff=1) == DATA
    assert waits == [1, 2, 4, 8, 16, 32, 60, 60]


def test_pipes(tmp_path):
    (tmp_path / "x.tar").write_bytes(DATA)
    assert get(f"pipe:cat {tmp_path}/x.tar", tmp_path) == DATA
    tries = f"pipe:echo x >> {tmp_path}/tries; head -c 1000 {tmp_path}/x.tar; test $(wc -l < {tmp_path}/tries) -gt 2"
    assert get(tries, tmp_path) == DATA[:1000] and (tmp_path / "tries").read_text() == "x\n" * 3
    with pytest.raises(DeadShard, match="the last with: the command ended with status 1: cat: .*No such file"):
        get(f"pipe:cat {tmp_path}/none.tar", tmp_path, retries=1)
    with pytest.raises(DeadShard, match="ended with status 3"):
        get("pipe:(echo x; exit 3) | cat", tmp_path, retries=0)
    with pytest.raises(DeadShard, match="the command wrote nothing for 0.2 s"):
        get("pipe:echo x; sleep 60", tmp_path, retries=0, timeout=0.2)


def test_a_file_that_cannot_be_written_is_not_the_shards_fault(tmp_path):
    with pytest.raises(BadDataError, match="none/got: cannot be written: No such file.*`shards.cache`"):
        fetch("pipe:echo", str(tmp_path / "none" / "got"), ShardBlock(**QUICK), lambda size: None, lambda last: None)


# ---- a set of them --------------------------------------------------------------------------------------------------
def test_shards_read_the_same_here_and_there(tars, tmp_path):
    here = Shards(sorted(map(str, tars.glob("*.tar"))))
    with Flaky(bodies(tars)) as server:
        urls = [f"{server.url}/{n:02d}.tar" for n in range(10)]
        faults = random.Random(1)
        server.faults = {f"{n:02d}.tar": faults.choices(["drop", "stall", "cut", "error", "refuse"], k=3)
                         for n in range(10)}
        there = Shards(urls, Cache(ShardBlock(**STALLS)))
    pipes = Shards([f"pipe:cat {tars}/{n:02d}.tar" for n in range(10)], Cache(ShardBlock(**QUICK)))
    for found in (there, pipes):
        assert len(found) == 60 and not found.damaged and not found.dead
        for n in range(60):
            assert found.read(n, "image") == here.read(n, "image") and found.meta(n) == here.meta(n)
            assert found.name(n) == here.name(n)
        assert (found.column("elements") == here.column("elements")).all()


def test_the_servers_index_is_taken_and_the_shards_come_when_they_are_read(tars):
    Shards(sorted(map(str, tars.glob("*.tar"))))  # writes the .idx that are uploaded with the tars
    files = bodies(tars, ".tar", ".idx")
    with Flaky(files) as server:
        urls = [f"{server.url}/{n:02d}.tar" for n in range(10)]
        server.faults["03.tar.idx"] = ["error", "drop"]
        found = Shards(urls, Cache(ShardBlock(**QUICK)))
        assert len(found) == 60 and not any(server.asked[f"{n:02d}.tar"] for n in range(10))
        assert found.meta(20)["image_id"] == 20 and server.asked["03.tar"] == 1 and server.asked["04.tar"] == 0
        again = Shards(urls, Cache(ShardBlock(**QUICK)))
        assert again.meta(20)["image_id"] == 20
        assert server.asked["03.tar"] == 1 and server.asked["04.tar.idx"] == 1, "both are kept"


def test_an_index_that_is_not_the_shards_own(tars):
    Shards(sorted(map(str, tars.glob("*.tar"))))
    files = bodies(tars, ".tar", ".idx")
    header, records = files["00.tar.idx"].split(b"\n", 1)
    header = json.loads(header)
    wrong = {"00": b"<html>no such page</html>", "01": records, "02": files["02.tar.idx"][:-5],
             "03": json.dumps(header | {"count": -1}).encode() + b"\n", "04": b"[]\n",
             "05": json.dumps(header | {"count": "x"}).encode() + b"\n" + records}
    for name, data in wrong.items():
        files[f"{name}.tar.idx"] = data
    # An index that leads to another file of this machine, and one with bytes beyond the shard's end.
    stranger = json.dumps(header | {"unpacked": "/etc/passwd", "bytes": 5}).encode() + b"\n"
    beyond = bytearray(records)
    beyond[64:76] = (2**40).to_bytes(8, "little") + (10**6).to_bytes(4, "little")
    files |= {"06.tar": files["00.tar"], "06.tar.idx": stranger + bytes(beyond), "07.tar": files["07.tar"] + b"more"}
    with Flaky(files) as server:
        found = Shards([f"{server.url}/{n:02d}.tar" for n in range(10)], Cache(ShardBlock(**QUICK)))
        assert len(found) == 60, "what is none is built"
        with pytest.raises(Exception, match="unreadable shard: 000000: 1000000 bytes expected .* 0 found"):
            found.read(36, "image")
        assert found.read(37, "image") == found.read(1, "image")
        with pytest.raises(Exception, match=r"dead shard: .*it has \d+ bytes, and had \d+ when it was indexed"):
            found.read(42, "image")


def test_texts_come_packed_and_plain(tmp_path):
    lines = "\n".join(json.dumps({"text": f"text {n}"}) for n in range(20)).encode() + b"\n"
    files = {"a.jsonl": lines, "b.jsonl.gz": gzip.compress(lines), "c.txt": b"one\n\ntwo\n"}
    with Flaky(files) as server:
        server.faults["b.jsonl.gz"] = ["cut", "drop", "cut"]
        found = Shards([f"{server.url}/{name}?key=1" if name == "c" else f"{server.url}/{name}" for name in files],
                       Cache(ShardBlock(**QUICK)))
        assert [found.text(n) for n in range(len(found))] == [f"text {n}" for n in range(20)] * 2 + ["one", "two"]


def test_a_compressed_tar_is_unpacked_by_a_pipe(tars, tmp_path):
    (tmp_path / "x.tar").write_bytes(gzip.compress((tars / "00.tar").read_bytes()))
    cache = Cache(ShardBlock(**QUICK))
    with pytest.raises(BadDataError, match="x.tar: a compressed tar.*pipe:curl -sf URL | gunzip"):
        Shards([f"pipe:cat {tmp_path}/x.tar"], cache)
    assert len(Shards([f"pipe:gunzip < {tmp_path}/x.tar"], cache)) == 6


def test_other_schemes_are_read_through_fsspec(tars):
    import fsspec
    memory = fsspec.filesystem("memory")
    memory.pipe("/pack/00.tar", (tars / "00.tar").read_bytes())
    found = Shards(["memory://pack/00.tar", "memory://pack/01.tar"], Cache(ShardBlock(**QUICK)))
    assert len(found) == 6 and found.meta(3)["image_id"] == 3
    assert [dead.path for dead in found.dead] == ["memory://pack/01.tar"]


def test_the_cache_keeps_to_its_limit_and_the_last_read_stay(tars):
    size = (tars / "00.tar").stat().st_size
    with Flaky(bodies(tars)) as server:
        urls = [f"{server.url}/{n:02d}.tar" for n in range(10)]
        cache = Cache(ShardBlock(**QUICK, cache_gb=3.5 * size / 1e9))
        found = Shards(urls, cache)
        kept = lambda: sum(f.stat().st_size for f in (cache.folder / "shards").iterdir())
        assert kept() <= 3.5 * size
        before = Counter(server.asked)
        for shard in (0, 1, 0, 2, 0, 3, 0, 4, 0):
            assert found.meta(6 * shard)["image_id"] == 6 * shard
            assert kept() <= 3.5 * size
        assert server.asked["00.tar"] - before["00.tar"] <= 1, "it was read all the time"
        small = Shards(urls[:1], Cache(ShardBlock(**QUICK, cache_gb=3.5 * size / 1e9)))
        (cache.folder / "shards" / os.listdir(cache.folder / "shards")[0]).write_bytes(b"half")
        assert all(small.meta(n)["image_id"] == n for n in range(6))
        with pytest.raises(BadDataError, match="are more than `shards.cache_gb`"):
            Shards(urls[5:6], Cache(ShardBlock(**QUICK, cache_gb=1e-6, cache=str(cache.folder / "tiny"))))


def test_an_endless_shard_stops_at_the_limit(tmp_path, monkeypatch):
    monkeypatch.setattr("xtoolkit.data.fetch.STEP", 1 << 20)
    cache = Cache(ShardBlock(**QUICK, cache_gb=0.004))
    with pytest.raises(BadDataError, match="are more than `shards.cache_gb`"):
        Shards(["pipe:yes"], cache)
    assert os.listdir(cache.folder / "shards") == []


def test_processes_share_one_download(tars, tmp_path):
    with Flaky(bodies(tars)) as server:
        url = server.url + "/00.tar"
        children = []
        for _ in range(4):
            if (pid := os.fork()) == 0:
                try:
                    os._exit(0 if Shards([url], Cache(ShardBlock(**QUICK))).meta(5)["image_id"] == 5 else 1)
                finally:
                    os._exit(2)
            children.append(pid)
        assert [os.waitpid(pid, 0)[1] for pid in children] == [0] * 4
        assert server.asked["00.tar"] == 1
