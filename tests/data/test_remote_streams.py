"""Streams from remote shards: local ones' order, each sample once an epoch also after a resume, the dead replaced."""

import json
import os
import random
from collections import Counter

import pytest
from flaky import Flaky, bodies

from xtoolkit.data.blocks import ShardBlock
from xtoolkit.data.datasets import Images, Pairs, Regions, Text
from xtoolkit.data.errors import BadDataError
from xtoolkit.data.images import Augment
from xtoolkit.data.loader import EvalLoader, Loader
from xtoolkit.recipe.folder import differences
from xtoolkit.registry import ConfigError, check

SIZES = {"image_size": 16, "patch_size": 8}
HOW = {"window": 2, "timeout": 20, "retries": 4, "backoff": 0.01}


@pytest.fixture(autouse=True)
def home(monkeypatch, tmp_path):
    monkeypatch.setenv("XTOOLKIT_HOME", str(tmp_path / "home"))


def ids(batch):
    return [int(i) for i in batch.image.image_id]


def pairs(tokenizer, path, **how):
    return Pairs(tokenizer, **SIZES, path=path, shards=ShardBlock(**HOW | how), augment=Augment(flip=0.0))


def test_a_bad_server_costs_no_sample_and_changes_no_batch(tars, tokenizer):
    local = Loader("pairs", pairs(tokenizer, str(tars)), 10, 1, workers=0)
    expected = [local.at(v) for v in range(6)]
    with Flaky(bodies(tars)) as server:
        draw = random.Random(3)
        server.faults = {f"{n:02d}.tar": draw.choices(["drop", "stall", "cut", "error", "refuse"], k=3)
                         for n in range(10)}
        data = pairs(tokenizer, server.url + "/{00..09}.tar", timeout=0.5, retries=20)
        remote = Loader("pairs", data, 10, 1, workers=2)
        found = [remote.at(v) for v in range(6)]
        remote.close()
        assert not any(server.faults.values()), "all of them were met"
    assert Counter(i for b in found for i in ids(b)) == Counter(range(60)), "an epoch has each sample once"
    for a, b in zip(found, expected):
        assert ids(a) == ids(b) and (a.image.pixels == b.image.pixels).all() and (a.text.ids == b.text.ids).all()
    assert remote.report() == {"read": 60, "bad": {}, "worst_shard": None}


def test_after_a_resume_no_sample_is_read_twice_and_none_is_skipped(tars, tokenizer):
    with Flaky(bodies(tars)) as server:
        def read(visits, world, workers):
            """The ids that all ranks read at some visits, each rank with a dataset and workers of its own."""
            found = []
            for rank in range(world):
                data = pairs(tokenizer, server.url + "/{00..09}.tar")
                loader = Loader("pairs", data, 12, 7, workers, rank, world)
                found += [(visit, i) for visit in visits for i in ids(loader.at(visit))]
                loader.close()
            return Counter(found)

        whole = read(range(10), 1, 0)
        resumed = read(range(2), 2, 1) + read(range(2, 5), 3, 2) + read(range(5, 10), 1, 1)
    assert resumed == whole
    epochs = [Counter(i for (visit, i), n in resumed.items() for _ in range(n) if visit // 5 == e) for e in (0, 1)]
    assert epochs == [Counter(range(60))] * 2


def test_a_shard_is_fetched_once_an_epoch_though_the_cache_holds_few(tars):
    Loader("image", Images(**SIZES, path=str(tars)), 4, 1, 0)  # writes the indexes
    files = bodies(tars, ".tar", ".idx")
    largest = max(len(data) for data in files.values())
    with Flaky(files) as server:
        url = server.url + "/{00..09}.tar"
        with pytest.raises(ConfigError, match="data.shards.cache_gb: .*read at a time have .* lower `shards.window`"):
            Loader("image", Images(**SIZES, path=url, shards=ShardBlock(**HOW, cache_gb=3 * largest / 1e9)), 4, 1, 0)
        data = Images(**SIZES, path=url, shards=ShardBlock(**HOW, cache_gb=6.5 * largest / 1e9))
        loader = Loader("image", data, 2, 1, workers=2)
        for visit in range(60):
            loader.at(visit)
        loader.close()
        asked = [server.asked[f"{n:02d}.tar"] for n in range(10)]
    assert min(asked) >= 1 and sum(asked) <= 2 * 10 + 4, f"two epochs, and two windows ahead: {asked}"


def test_regions_and_texts_go_by_shards_too(tars, tokenizer, tmp_path):
    region = lambda path: Loader("region", Regions(tokenizer, **SIZES, path=path, shards=ShardBlock(**HOW)), 9, 1, 0)
    for n in range(6):
        lines = [json.dumps({"text": "dog " * (1 + (7 * n + i) % 9)}) for i in range(10)]
        (tars / f"{n}.jsonl").write_text("\n".join(lines))
    text = lambda path: Loader("text", Text(tokenizer, path=path, shards=ShardBlock(**HOW), window=2), 5, 1, 0)
    with Flaky(bodies(tars, ".tar", ".jsonl")) as server:
        for make, place, remote in ((region, str(tars), "{00..09}.tar"), (text, f"{tars}/*.jsonl", "{0..5}.jsonl")):
            here, there = make(place), make(f"{server.url}/{remote}")
            for visit in (0, 1, 5, 13):
                a, b = here.at(visit), there.at(visit)
                assert (a.text.ids == b.text.ids).all()
                assert a.region is None or a.image.image_id == b.image.image_id


def dead_server(tars, indexed: bool):
    Images(**SIZES, path=str(tars))
    files = bodies(tars, ".tar", ".idx")
    del files["03.tar"]
    if not indexed:
        del files["03.tar.idx"]
    return Flaky(files)


def test_a_shard_that_dies_is_named_once_and_replaced(tars, tokenizer, caplog):
    with dead_server(tars, indexed=True) as server:
        data = pairs(tokenizer, server.url + "/{00..09}.tar")
        loaders = [Loader("pairs", data, 12, 1, workers, max_bad=0.2) for workers in (0, 2)]
        runs = [[ids(loader.at(v)) for v in range(10)] for loader in loaders]
        loaders[1].close()
        strict = Loader("pairs", data, 12, 1, 0, max_bad=0.05)
        said = r"stream `pairs`: \d+ dead shard in \d+ samples .*Worst shard: http.*03.tar \(.*the server answers 404"
        with pytest.raises(BadDataError, match=said):
            for visit in range(20):
                strict.at(visit)
    assert runs[0] == runs[1], "whatever the workers"
    read = Counter(i for batch in runs[0] for i in batch)
    assert sum(read.values()) == 120 and set(read) == set(range(60)) - set(range(18, 24))
    assert all(n >= 2 for n in read.values()), "the others are read as ever"
    report = loaders[0].report()
    assert report["bad"]["dead shard"] >= 12 and report["dead_shards"] == [server.url + "/03.tar"]
    named = [r.getMessage() for r in caplog.records if "dead shard" in r.getMessage()]
    assert len(named) == 3 and all("03.tar" in line and "6 samples" in line for line in named), "once a loader"


def test_a_shard_that_was_dead_from_the_start_stays_out(tars, tokenizer):
    with dead_server(tars, indexed=False) as server:
        make = lambda: pairs(tokenizer, server.url + "/{00..09}.tar")
        with pytest.raises(BadDataError, match="1 dead shard in 0 samples read.*03.tar .*404.*raise train.max_bad"):
            Loader("pairs", make(), 9, 1, 0, max_bad=0.01)
        loader = Loader("pairs", make(), 9, 1, 0, max_bad=0.2)
        assert len(loader.dataset) == 54
        first = [ids(loader.at(v)) for v in range(6)]
        assert Counter(i for b in first for i in b) == Counter(set(range(60)) - set(range(18, 24)))
        assert loader.report()["dead_shards"] == [server.url + "/03.tar"]
        server.files["03.tar"] = (tars / "03.tar").read_bytes()  # it comes back, and a run that is resumed goes on
        resumed = Loader("pairs", make(), 9, 1, 0, max_bad=0.2)
        assert [ids(resumed.at(v)) for v in range(6)] == first
        marker, = (tars.parent / "home" / "remote" / "index").glob("*.dead")
        os.unlink(marker)
        assert len(make()) == 60


def test_a_resumed_run_may_have_another_cache_but_no_other_window():
    recipe = lambda **shards: {"streams": {"web": {"data": {"type": "Pairs", "path": "x", "shards": shards}}}}
    assert differences(recipe(), recipe(cache="elsewhere", cache_gb=3, timeout=5, retries=1)) == []
    assert differences(recipe(cache="/a"), recipe(window=4)) == ["streams.web.data.shards.window: was absent, is 4"]


def test_evaluation_reads_remote_shards_in_order(tars, tokenizer):
    with Flaky(bodies(tars)) as server:
        data = Pairs(tokenizer, **SIZES, train=False, path=server.url + "/{00..03}.tar", shards=ShardBlock(**HOW))
        assert [i for batch in EvalLoader(data, 5, workers=1) for i in ids(batch)] == list(range(24))


@pytest.mark.parametrize("block, said", [
    ({"window": 0}, "`shards.window` of Pairs must be an integer of at least 1 or null, not 0"),
    ({"cache_gb": 0}, "`shards.cache_gb` of Pairs must be a number above 0, not 0"),
    ({"retries": -1}, "`shards.retries` of Pairs must be an integer of at least 0, not -1"),
    ({"windw": 3}, "unknown key `windw` of `shards` of Pairs; did you mean `window`")])
def test_mistakes_of_the_block(tars, block, said):
    found, = check(Pairs, {"path": str(tars), "shards": block}, "here")
    assert found.startswith(f"here: {said}")
