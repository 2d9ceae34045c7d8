"""The tool end to end on the sample pack: trains, reports, resumes, survives bad data, answers mistakes."""

import errno
import io
import json
import tarfile

import pytest
import torch

from commands import ROOT, SMALL, TINY, tool
from xtoolkit.data import paths
from xtoolkit.encoders.roberta import RoBERTa


@pytest.fixture(scope="module", autouse=True)
def pack(tmp_path_factory):
    """The sample pack, unpacked once for this module."""
    home = tmp_path_factory.mktemp("home")
    patch = pytest.MonkeyPatch()
    patch.setenv("XTOOLKIT_HOME", str(home))
    yield home
    patch.undo()


def run(*arguments):
    return tool("train_net").main(["--config", TINY, *arguments])


def test_from_nothing_to_tables_and_report_and_on(tmp_path, capsys):
    output = tmp_path / "run"
    assert run(*SMALL, f"train.output={output}", "train.steps=2", "hooks.audit={type: GradientAudit, every: 2}") == 0
    out = capsys.readouterr().out
    assert "stop gradient: text -> fusion for bbp, imlm, itm" in out                     # the plan comes first
    assert "step 1/2" in out and "retrieval" in out and f"report: {output / 'report.html'}" in out
    results = json.loads((output / "results.json").read_text())
    metrics = results["evaluations"]["retrieval"]
    assert {"dual.t2i_r10", "dual.i2t_r10", "matched.t2i_r10", "matched.i2t_r10"} <= metrics.keys()
    assert {"accuracy", "mean_iou", "testA.accuracy", "testB.accuracy"} <= results["evaluations"]["boxes"].keys()
    assert {"accuracy", "auc"} <= results["evaluations"]["matching"].keys()
    assert {"gain", "gain_error"} <= results["evaluations"]["words"].keys()
    assert 40 < results["evaluations"]["neighbours"]["pixels.accuracy"] < 55, "no model, a fact of the pack"
    lines = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2] and next(iter(lines[0])) == "step"
    assert {"mlm", "mim", "itc", "itm", "imlm", "bbp", "region.bbp.giou", "pairs.itc.temperature"} <= lines[0].keys()
    assert lines[1]["audit.vision.blocks.0.norm"] > 0 and "audit.bbp.zero" not in lines[0]
    assert {p.name for p in output.iterdir()} >= {"config.yaml", "environment.json", "tensorboard", "results.json", "report.html"}
    samples = json.loads((output / "samples.json").read_text())
    assert samples.keys() == {"text", "image", "pairs", "match", "region"} and samples["image"][0]["items"][0]["image"]

    assert run(*SMALL, f"train.output={output}", "train.steps=2", "train.seed=7") == 2    # an old folder is not written over
    answer = capsys.readouterr()
    assert "go on from its last checkpoint with --resume" in answer.err and answer.out == "", "answered after the plan"
    assert run(*SMALL, f"train.output={output}", "train.steps=2", "train.seed=7", "--resume") == 2
    answer = capsys.readouterr()
    assert answer.err.startswith("1 problem, ") and "train.seed: was 42, is 7" in answer.err and answer.out == ""
    assert run(*SMALL, f"train.output={output}", "train.steps=4", "--resume") == 0
    out = capsys.readouterr().out
    assert f"weights: those of the checkpoint {output}/checkpoints/step_00000002" in out and "drawn from" not in out
    assert "resumed from" in out and "train.steps was 2 and is 4, which bends the schedule" in out
    lines = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3, 4]
    assert run(*SMALL, f"train.output={output}", "train.steps=4", "--resume", "streams.text.data.path=sample://picturebook/text") == 0
    out = capsys.readouterr().out
    assert "is finished: all 4 steps are taken and evaluated" in out and "step 4/4" not in out
    boxes = (output / "evaluations/boxes.json").read_bytes()
    # An evaluation reads the checkpoint and its own data: neither training data nor weights to start from.
    gone = ["streams.text.data.path=gone/*.jsonl", "streams.pairs.data.sources.coco.path=gone/*.tar", "encoders.vision.init=gone.pth"]
    assert run(*SMALL, f"train.output={output}", "--eval-only", "evaluate.boxes=null", *gone) == 0
    assert f"weights: those of the checkpoint {output}/checkpoints/step_00000004" in capsys.readouterr().out
    assert list(json.loads((output / "results.json").read_text())["evaluations"]) == [
        "boxes", "matching", "neighbours", "pointing", "retrieval", "words"]
    assert (output / "evaluations/boxes.json").read_bytes() == boxes, "another evaluation's results were touched"
    shown = json.loads((output / "evaluations/retrieval.json").read_text())
    assert shown["step"] == 4 and any("image" in item for figure in shown["figures"] for item in figure.get("items", ()))


def test_left_at_once_or_stopped_by_the_disk_says_what_is_there(tmp_path, capsys, monkeypatch):
    from xtoolkit.cli import train

    def fail(error):
        def start(config, recipe, purpose):
            raise error
        monkeypatch.setattr(train, "_start", start)

    output = tmp_path / "run"
    arguments = [*SMALL, f"train.output={output}"]
    fail(KeyboardInterrupt())
    assert run(*arguments) == 130
    assert capsys.readouterr().err == "left at once; no checkpoint was written\n"
    checkpoint = output / "checkpoints" / "step_00000002"
    checkpoint.mkdir(parents=True)
    (checkpoint / ".metadata").touch()
    (checkpoint / "checkpoint.json").touch()
    assert run(*arguments) == 130
    assert capsys.readouterr().err == f"left at once; {checkpoint} is whole, go on with --resume\n"
    fail(OSError(errno.EROFS, "Read-only file system", str(tmp_path / "home" / "index")))
    assert run(*arguments) == 2
    assert capsys.readouterr().err == f"{TINY}: {tmp_path}/home/index: Read-only file system\n"
    fail(OSError("not the system's own"))
    with pytest.raises(OSError, match="not the system's own"):
        run(*arguments)


def damaged(tmp_path, every):
    """Pair shards of the pack in which each ``every``-th sample is broken, one kind after the other, and one tar is cut."""
    folder = tmp_path / "damaged"
    folder.mkdir()
    source, = paths.resolve("sample://picturebook/pairs-val")
    with tarfile.open(source) as tar, tarfile.open(folder / "pairs-0.tar", "w") as broken:
        members = [m for m in tar.getmembers() if m.isfile()]
        for i, member in enumerate(members):
            data = tar.extractfile(member).read()
            sample = i // 2
            if sample % every == 0:
                kind = sample // every % 3
                if kind == 0 and member.name.endswith(".jpg"):
                    data = b"\xff\xd8 no picture" + data[20:40]
                elif kind == 1 and member.name.endswith(".json"):
                    data = data[:-7]
                elif kind == 2 and member.name.endswith(".json"):
                    data = json.dumps({**json.loads(data), "captions": [" .. "]}).encode()
            member.size = len(data)
            broken.addfile(member, io.BytesIO(data))
    whole = (folder / "pairs-0.tar").read_bytes()
    (folder / "pairs-1.tar").write_bytes(whole[:len(whole) // 3 + 100])
    return f"{folder}/pairs-*.tar"


PAIRS_ONLY = ["losses.mlm=null", "losses.mim=null", "losses.bbp=null", "losses.itm=null", "losses.imlm=null", "evaluate=null",
              "streams.region=null", "streams.text=null", "streams.image=null", "streams.match=null", "streams.pairs.data.sources.web=null"]


def test_bad_samples_are_skipped_counted_and_reported(tmp_path, capsys):
    output = tmp_path / "run"
    weights = tmp_path / "text.pt"
    torch.save(RoBERTa(32, 1, 2, vocab_size=4000).state_dict(), weights)
    arguments = [*SMALL, *PAIRS_ONLY, f"train.output={output}", "train.max_bad=0.5", "train.log_every=10", f"encoders.text.init={weights}",
                 "streams.pairs.data.sources.coco.path=" + damaged(tmp_path, every=10)]
    assert run(*arguments, "train.steps=20") == 0
    before = json.loads((output / "results.json").read_text())["data"]["pairs"]
    weights.unlink()
    assert run(*arguments, "train.steps=30", "--resume") == 0     # the checkpoint has those weights; counts go on
    found = json.loads((output / "results.json").read_text())["data"]["pairs"]
    assert found["read"] - before["read"] >= 10 * 8 and before["read"] >= 20 * 8
    assert all(found["bad"][kind] >= before["bad"][kind] for kind in before["bad"])
    assert set(found["bad"]) == {"corrupt image", "broken json", "empty caption", "truncated shard"}
    assert found["bad"]["truncated shard"] == 1 and min(found["bad"].values()) > 0
    out = capsys.readouterr().out
    assert "bad samples" in out and "samples were bad and replaced" in out and "1 truncated shard" in out


def test_above_the_set_share_the_run_stops_and_names_the_worst_shard(tmp_path, capsys):
    assert run(*SMALL, *PAIRS_ONLY, f"train.output={tmp_path / 'run'}", "train.steps=60", "train.max_bad=0.05",
               "streams.pairs.data.sources.coco.path=" + damaged(tmp_path, every=4)) == 1
    err = capsys.readouterr().err
    assert "more than train.max_bad=0.05" in err and "Worst shard: " in err and "damaged/pairs-0.tar" in err
