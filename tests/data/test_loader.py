"""The loader: the same batches for any workers and ranks; bad samples replaced, counted, and fatal above a share."""

import json
import os
import re
import signal
import subprocess
import sys
import tarfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import pytest
import torch

from xtoolkit.data.datasets import Images, Pairs, Regions, Text
from xtoolkit.data.errors import BadDataError
from xtoolkit.batch import Batch, Field
from xtoolkit.data.loader import EvalLoader, Loader
from xtoolkit.registry import ConfigError

STREAMS = ("text", "image", "pairs", "region")
SIZES = {"image_size": 32, "patch_size": 8}


def tensors(value, prefix=""):
    """Every tensor of a field by name."""
    if isinstance(value, torch.Tensor):
        return {prefix: value}
    if not isinstance(value, Field):
        return {}
    parts = value.items() if isinstance(value, Batch) else vars(value).items()
    return {k: t for name, v in parts for k, t in tensors(v, f"{prefix}.{name}").items()}


def same(a, b):
    a, b = tensors(a), tensors(b)
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def rows(batch):
    """A batch as one tuple a row, free of padding and of the place of a picture in its batch."""
    found = []
    for row in range(batch.size):
        line = []
        if batch.text is not None:
            real = batch.text.mask[row]
            line += [batch.text.ids[row][real].tolist(), int(batch.text.key[row])]
            if batch.text.masked_ids is not None:
                length = batch.text.ids.shape[1]
                mine = batch.text.masked_pos // length == row
                line += [batch.text.masked_ids[row][real].tolist(), (batch.text.masked_pos[mine] % length).tolist(),
                         batch.text.labels[mine].tolist()]
        if batch.region is not None:
            r = batch.region
            line += [r.box[row].tolist(), r.box_patches[row].tolist(), bool(r.is_box[row]), int(r.key[row])]
        if batch.image is not None:
            i = row if batch.region is None else int(batch.region.image_index[row])
            line += [batch.image.pixels[i].sum().item(), int(batch.image.key[i]), batch.image.image_id[i]]
            line += [] if batch.image.patch_mask is None else [batch.image.patch_mask[i].tolist()]
        found.append(tuple(map(str, line)))
    return found


@pytest.mark.parametrize("stream", STREAMS)
def test_batches_depend_on_seed_stream_and_visit_alone(datasets, stream):
    here = Loader(stream, datasets[stream], 8, seed=1, workers=0)
    there = Loader(stream, datasets[stream], 8, seed=1, workers=2)
    batches = [here.at(v) for v in range(5)]
    assert all(same(there.at(v), batches[v]) for v in range(5)), "in workers"
    assert same(there.at(1), batches[1]) and same(there.at(2), batches[2]), "after a jump"
    there.close()
    assert same(here.at(3), batches[3])
    assert batches[0].size == 8 and not same(batches[0], batches[1])
    assert not same(Loader(stream, datasets[stream], 8, seed=2, workers=0).at(0), batches[0])
    assert not same(Loader("other", datasets[stream], 8, seed=1, workers=0).at(0), batches[0])


@pytest.mark.parametrize("stream", STREAMS)
def test_slices_of_ranks_and_parts_make_up_the_global_batch(datasets, stream):
    for visit in (0, 3):
        whole = rows(Loader(stream, datasets[stream], 12, 1, 0).at(visit))
        for world, parts in ((2, 1), (3, 1), (1, 3), (2, 2)):
            loaders = [Loader(stream, datasets[stream], 12, 1, 0, rank, world, parts=parts) for rank in range(world)]
            assert [r for l in loaders for p in range(parts) for r in rows(l.at(visit, p))] == whole, (world, parts)


def test_parts_are_prefetched_in_order(datasets):
    here, there = (Loader("pairs", datasets["pairs"], 8, 1, workers, parts=2) for workers in (0, 1))
    for visit in range(3):
        for part in range(2):
            assert same(here.at(visit, part), there.at(visit, part))
    there.close()


def test_the_global_generator_is_left_alone(datasets):
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    loader = Loader("pairs", datasets["pairs"], 8, 1, workers=1)
    loader.at(0)
    assert torch.equal(torch.rand(1), expected)
    assert loader.wait_s > 0
    loader.close()


def test_a_batch_must_divide(datasets):
    with pytest.raises(ValueError, match="streams.pairs.batch_size: 8 does not divide by 3 ranks x 1"):
        Loader("pairs", datasets["pairs"], 8, 1, 0, 0, 3)


def test_workers_ignore_signals_and_end_with_the_loader(datasets):
    loader = Loader("pairs", datasets["pairs"], 8, 1, workers=2)
    first, _ = loader.at(0), loader.at(1)  # one of each worker: both ignore signals by now
    workers = [w.pid for w in loader._running._workers]
    for pid in workers:
        os.kill(pid, signal.SIGINT)
        os.kill(pid, signal.SIGTERM)
    for visit in range(2, 8):
        loader.at(visit)
    assert same(loader.at(0), first) and [w.pid for w in loader._running._workers] == workers
    loader.close()
    deadline = time.time() + 10
    while time.time() < deadline and any(os.path.exists(f"/proc/{p}") for p in workers):
        time.sleep(0.05)
    assert not any(os.path.exists(f"/proc/{p}") for p in workers)


FAILS = """
from xtoolkit.recipe.plugins import import_components; import_components()
from xtoolkit.data.loader import EvalLoader, Loader
from xtoolkit.data.synthetic import SyntheticText
from xtoolkit.data.text import load_tokenizer
data = SyntheticText(load_tokenizer("sample://picturebook/tokenizer"))
def fails(*_): raise RuntimeError("its own fault")
data.load = fails
kept = []
for first in (lambda: Loader("t", data, 8, 1, 1).at(0), lambda: next(iter(EvalLoader(data, 8, 1)))):
    try:
        first()
    except RuntimeError as error:
        kept.append(error)
raise kept[FAILED]
"""


@pytest.mark.parametrize("failed", [0, 1])
def test_an_error_of_a_dataset_reaches_the_user_and_the_process_ends(failed):
    code = FAILS.replace("FAILED", str(failed))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 1 and "its own fault" in done.stderr


BROKEN = {
    "corrupt image": lambda n: [(f"{n:06d}.jpg", b"\xff\xd8 no"), (f"{n:06d}.json", b'{"captions": ["a dog"]}')],
    "broken json": lambda n: [(f"{n:06d}.jpg", b""), (f"{n:06d}.json", b'{"captions": ["a d')],
    "empty caption": lambda n: [(f"{n:06d}.jpg", b""), (f"{n:06d}.json", b'{"captions": ["..."]}')],
}


@pytest.fixture
def broken(tmp_path, shards):
    """A whole shard of 8, one with three bad samples of 8, and one of 8 that is cut off in its seventh."""
    def good(first):
        numbers = range(first, first + 8)
        return [m for n in numbers for m in shards.sample(n, image_id=n, captions=[f"a dog {n}"])]

    shards.tar(tmp_path / "a.tar", good(0))
    middle = good(8)
    for place, make in zip((1, 4, 6), BROKEN.values()):
        middle[2 * place:2 * place + 2] = make(8 + place)
    shards.tar(tmp_path / "b.tar", middle)
    last = shards.tar(tmp_path / "c.tar", good(16))
    with tarfile.open(last) as tar:
        inside = tar.getmember("000022.jpg").offset_data + 5
    os.truncate(last, inside)
    return tmp_path


def test_bad_samples_are_replaced_and_counted(broken, tokenizer):
    data = Pairs(tokenizer, **SIZES, path=str(broken / "*.tar"))
    whole = len(data)
    assert whole == 22 and list(data.damaged) == [str(broken / "c.tar")]
    reports = []
    for workers in (0, 2):
        loader = Loader("pairs", data, whole, 1, workers, max_bad=1.0)
        batches = [loader.at(v) for v in range(3)]
        for batch in batches:
            assert batch.size == whole
            assert not set(batch.image.image_id) & {"9", "12", "14"}
            for row in range(whole):
                assert tokenizer.decode(batch.text.ids[row]) == f"a dog {batch.image.image_id[row]}"
        reports.append(loader.report())
        loader.close()
    report, again = reports
    assert report == again, "whatever the workers"
    bad = report["bad"]
    assert set(bad) == set(BROKEN) | {"truncated shard"} and bad["truncated shard"] == 1
    assert min(bad.values()) >= 1 and all(bad[kind] >= 3 for kind in BROKEN), "once an epoch, and as a reserve"
    assert report["read"] == 3 * whole + sum(bad[kind] for kind in BROKEN)
    assert report["worst_shard"] == str(broken / "b.tar")


def test_counts_go_on_in_another_process_and_count_a_cut_shard_once(broken, tokenizer):
    make = lambda: Loader("pairs", Pairs(tokenizer, **SIZES, path=str(broken / "*.tar")), 8, 1, 0, max_bad=1.0)
    whole, first, second = make(), make(), make()
    for visit in range(9):
        whole.at(visit)
    for visit in range(5):
        first.at(visit)
    second.count_on(json.loads(json.dumps(first.counted())))  # as it comes from a checkpoint
    for visit in range(5, 9):
        second.at(visit)
    assert second.report() == whole.report() and whole.report()["bad"]["truncated shard"] == 1


def test_one_pass_counts_each_bad_sample_once(broken, tokenizer):
    data = Pairs(tokenizer, **SIZES, path=str(broken / "*.tar"), train=False)
    for workers in (0, 1):
        loader = EvalLoader(data, 4, workers, max_bad=1.0)
        ids = [i for batch in loader for i in batch.image.image_id]
        assert ids == [str(n) for n in range(22) if n not in (9, 12, 14)]
        assert loader.report()["bad"] == dict.fromkeys(BROKEN, 1) | {"truncated shard": 1}
        assert loader.report()["read"] == len(data)


def test_too_many_bad_samples_stop_the_run_and_name_the_worst_shard(broken, tokenizer):
    data = Pairs(tokenizer, **SIZES, path=str(broken / "*.tar"))
    for workers in (0, 1):
        loader = Loader("pairs", data, 8, 1, workers, max_bad=0.05)
        said = r"stream `pairs`: .* more than train.max_bad=0.05 allows. Worst shard: .*b.tar \(\d+;"
        with pytest.raises(BadDataError, match=said):
            for visit in range(20):
                loader.at(visit)
        assert 100 <= loader.report()["read"] < 125
        loader.close()


class Threads:
    """Ranks as threads: each gets what all bring."""

    def __init__(self, world=2):
        self._world, self._met, self._brought = world, threading.Barrier(world, timeout=30), {}

    def of(self, rank):
        def gather(items):
            self._brought[rank] = items
            self._met.wait()
            joined = [item for other in range(self._world) for item in self._brought[other]]
            self._met.wait()
            return joined

        return SimpleNamespace(gather=gather, agree=lambda number: max(gather([number])),
                               part=lambda n: range(n * rank // self._world, n * (rank + 1) // self._world))

    def run(self, work):
        """What ``work(rank, ranks)`` returns or raises on each rank."""
        with ThreadPoolExecutor(self._world) as pool:
            tasks = [pool.submit(work, rank, self.of(rank)) for rank in range(self._world)]
        return [task.exception() or task.result() for task in tasks]


def spoilt(tmp_path, shards, bad):
    """240 pairs in order, some of them bad."""
    samples = [BROKEN["broken json"](n) if n in bad else shards.sample(n, image_id=n, captions=[f"a dog {n}"]) for n in range(240)]
    shards.tar(tmp_path / "x.tar", [member for sample in samples for member in sample])
    return str(tmp_path / "x.tar")


@pytest.mark.parametrize("max_bad, stopped", [(0.05, False), (0.02, True)])
def test_bad_samples_of_an_evaluation_are_judged_over_all_ranks(tmp_path, shards, tokenizer, max_bad, stopped):
    """Eight of 240 are bad, all of them in the first rank's half: 7% of its samples."""
    data = Pairs(tokenizer, **SIZES, path=spoilt(tmp_path, shards, range(50, 58)), train=False)

    def work(rank, ranks):
        loader = EvalLoader(data, 12, 0, max_bad=max_bad, shared=True)
        read = sum(batch.size for batch in loader.batches(ranks.part(len(loader))))
        loader.judge(ranks)
        return read

    found = Threads().run(work)
    if stopped:
        assert all(isinstance(one, BadDataError) for one in found) and str(found[0]) == str(found[1])
        assert "8 broken json in 240 samples read" in str(found[0])
    else:
        assert found == [112, 120]


def test_ranks_of_a_stream_judge_what_all_have_read_and_refuse_at_the_same_visit(broken, tokenizer):
    data = Pairs(tokenizer, **SIZES, path=str(broken / "*.tar"))

    def until(max_bad, world):
        def work(rank, ranks):
            loader = Loader("pairs", data, 8, 1, 0, rank, world, max_bad=max_bad, ranks=ranks)
            for visit in range(60):
                try:
                    loader.at(visit)
                except BadDataError as error:
                    return visit, re.sub(r"\(\d+; the last.*?\)", "", str(error))
            return None
        return work

    for max_bad in (0.05, 0.15, 0.5):
        (alone,) = [until(max_bad, 1)(0, None)]
        first, second = Threads().run(until(max_bad, 2))
        assert first == second == alone, max_bad


def test_a_rank_that_cannot_go_on_stops_the_other_with_its_reason(broken, tokenizer, monkeypatch):
    monkeypatch.setattr("xtoolkit.data.loader.RESERVES", 1)
    data = Pairs(tokenizer, **SIZES, path=str(broken / "*.tar"))

    def work(rank, ranks):
        loader = Loader("pairs", data, 4, 1, 0, rank, 2, max_bad=1.0, ranks=ranks)
        for visit in range(60):
            loader.at(visit)

    first, second = Threads().run(work)
    assert isinstance(first, BadDataError) and str(first) == str(second) and "1 samples in a row are bad" in str(first)


def test_a_stream_of_bad_samples_only_stops_at_once(tmp_path, shards, tokenizer):
    shards.tar(tmp_path / "x.tar", [m for n in range(5) for m in BROKEN["corrupt image"](n)])
    data = Pairs(tokenizer, **SIZES, path=str(tmp_path / "x.tar"))
    with pytest.raises(BadDataError, match="50 samples in a row are bad.*x.tar"):
        Loader("pairs", data, 4, 1, 0).at(0)


def test_bad_regions_are_left_out_and_the_batch_is_filled(tmp_path, shards, tokenizer):
    regions = [{"box": [0, 0, 10, 10], "caption": "dog"}, {"box": [500, 0, 10, 10], "caption": "cat"},
               {"box": [5, 5, 10, 10], "caption": "!!"}, {"box": [1, 2, 3], "caption": "ball"},
               {"box": [9, 9, 9, 9], "caption": "tree"}]
    members = [m for n in range(6) for m in shards.sample(n, regions=regions)]
    members += [("9.jpg", shards.jpeg(1)), ("9.json", b"{broken")]
    shards.tar(tmp_path / "x.tar", members)
    loader = Loader("region", Regions(tokenizer, **SIZES, path=str(tmp_path / "x.tar")), 8, 1, 0, max_bad=1.0)
    for visit in range(8):
        batch = loader.at(visit)
        assert batch.size == 8 and {tokenizer.decode(t) for t in batch.text.ids} <= {"dog", "tree"}
    assert set(loader.report()["bad"]) == {"bad box", "empty caption", "broken json"}


def test_broken_lines_of_text(tmp_path, tokenizer):
    lines = [json.dumps({"text": "a dog"})] * 30 + ["{no json", json.dumps({"text": ""}), json.dumps({"text": "  "})]
    (tmp_path / "x.jsonl").write_text("\n".join(lines))
    loader = Loader("text", Text(tokenizer, path=str(tmp_path / "x.jsonl"), window=1), 33, 1, 0, max_bad=1.0)
    assert loader.at(0).size == 33
    bad = loader.report()["bad"]
    assert bad["broken json"] >= 1 and bad["empty caption"] >= 2


@pytest.mark.parametrize("stream", ["pairs", "region"])
def test_a_batch_of_one_picture_is_refused_by_name(tmp_path, shards, tokenizer, stream):
    regions = [{"box": [0, 0, 10, 10], "caption": "dog"}, {"box": [5, 5, 10, 10], "caption": "cat"}]
    meta = {"image_id": "same", "caption": "a", "regions": regions}
    shards.tar(tmp_path / "x.tar", [m for n in range(4) for m in shards.sample(n, **meta)])
    data = {"pairs": Pairs, "region": Regions}[stream](tokenizer, **SIZES, path=str(tmp_path / "x.tar"))
    with pytest.raises(BadDataError, match=f"stream `{stream}`: visit 2: a batch without two distinct pictures"):
        Loader(stream, data, 4, 1, 0, contrasts=True).at(2)
    assert Loader(stream, data, 4, 1, 0).at(2).size == 4, "no loss asks for two"
    Loader("image", Images(**SIZES, path=str(tmp_path / "x.tar")), 4, 1, 0).at(0)


def test_every_part_must_show_two_pictures_and_all_ranks_refuse_together(datasets):
    """Regions of one picture fill a small part: the rank that reads it stops all, whichever part it is."""
    def refused(batch_size, world, parts, visit):
        def work(rank, ranks):
            loader = Loader("region", datasets["region"], batch_size, 1, 0, rank, world, parts=parts, contrasts=True, ranks=ranks)
            for part in range(parts):
                loader.at(visit, part)

        found = Threads(world).run(work)
        assert all(one is None or isinstance(one, BadDataError) for one in found), found
        said = {one and str(one) for one in found}
        assert len(said) == 1, "all or none"
        return said.pop()

    found = [refused(12, world, parts, visit) for world, parts in ((1, 4), (2, 2), (4, 1)) for visit in range(5)]
    assert all(said.startswith(f"stream `region`: visit {i % 5}: 3 rows of a batch without two distinct pictures")
               for i, said in enumerate(found) if said) and any(found)
    assert any("batch_size 12 over 2 ranks x accumulate 2; raise batch_size, lower accumulate" in said for said in found if said)
    assert not any(refused(12, 2, 1, visit) for visit in range(5)), "six rows are more than one picture has"


def test_ranks_read_parts_of_a_pass(datasets, tokenizer, broken):
    data = Pairs(tokenizer, **SIZES, path=str(broken / "*.tar"), train=False)
    for workers in (0, 1):
        loader = EvalLoader(data, 4, workers, max_bad=1.0)
        whole, first, last = list(loader), list(loader.batches(range(0, 2))), list(loader.batches(range(2, len(loader))))
        assert loader.report()["read"] == len(data) - 8
        assert list(loader.batches(range(3, 3))) == [], "a rank with nothing to do"
        assert all(same(a, b) for a, b in zip(whole, first + last, strict=True))


def test_an_empty_stream_is_named(tmp_path, tokenizer):
    (tmp_path / "x.tar").write_bytes(b"no tar at all" * 100)
    with pytest.raises(ConfigError, match="data.path: .*x.tar: no sample is left of it: no tar: invalid header"):
        Loader("pairs", Pairs(tokenizer, **SIZES, path=str(tmp_path / "x.tar")), 4, 1, 0)


def test_a_visit_that_failed_is_made_again_and_not_the_next_one(datasets, monkeypatch):
    data = datasets["pairs"]
    loader, expected = Loader("pairs", data, 8, 1, 0), [Loader("pairs", data, 8, 1, 0).at(visit) for visit in range(2)]

    def fails(*sample):
        raise RuntimeError("a dataset's own mistake")

    with monkeypatch.context() as patched:
        patched.setattr(data, "load", fails)
        with pytest.raises(RuntimeError, match="own mistake"):
            loader.at(0)
    assert [same(loader.at(visit), expected[visit]) for visit in range(2)] == [True, True]
