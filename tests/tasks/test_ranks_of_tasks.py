"""What the tasks say depends neither on how many processes evaluate nor on how large, and so how padded, their batches are."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
MODEL = ROOT / "projects/xfm/model_tiny.yaml"
SIDES = {f"{name}.{key}": value for name in ("vision", "text", "fusion") for key, value in (("layers", 1), ("heads", 2))}
PACK, ANSWERS = "sample://picturebook", "sample://picturebook/vqa-answers"
CLASSES = ["contradiction", "neutral", "entailment"]


def recipe(size: int) -> dict:
    """One small model with a head of every kind, of random weights, and an evaluation of each; ``size`` samples a batch."""
    entailment = {"type": "LabelledPairs", "path": f"{PACK}/ve-val", "classes": CLASSES, "max_tokens": 40}
    glue = {"type": "LabelledText", "path": f"{PACK}/glue-stsb-dev", "sentences": 2, "max_tokens": 64}
    asked = {"type": "Questions", "path": f"{PACK}/vqa-val", "candidates": ANSWERS, "max_tokens": 24}
    said, shown = {"type": "Pairs", "path": f"{PACK}/pairs-val", "max_tokens": 40}, {"type": "Regions", "path": f"{PACK}/refcoco+-val"}
    two = {"type": "LabelledTwoImages", "path": f"{PACK}/nlvr2-dev", "classes": ["False", "True"], "max_tokens": 40}
    looked = {"type": "Regions", "sources": {split: {"path": f"{PACK}/refcoco+-{split}"} for split in ("val", "testA")}}
    folders = {"type": "ImageFolder", "sources": {part: {"path": f"{PACK}/imagenet-{part}"} for part in ("train", "val")}}
    generates = {"left_to_right": {"prob": 0.6, "max": 18, "prompt": "a picture of"}}
    stream = lambda data, *losses: {"batch_size": 8, "losses": dict.fromkeys(losses, 1), "data": data}
    tasks = {"accuracy": {"type": "Accuracy", "loss": "classify", "data": entailment},
             "correlation": {"type": "Correlation", "loss": "regress", "data": glue},
             "generated": {"type": "VQAAccuracy", "loss": "answer", "k": 16, "data": asked},
             "chosen": {"type": "VQAAccuracy", "loss": "choose", "data": asked},
             "captions": {"type": "CaptionScores", "loss": "imlm", "max_length": 8, "data": said, "limit": 9},
             "retrieval": {"type": "Retrieval", "sim": "sim", "match": "itm", "k": 4, "pairs_per_pass": 3 * size, "data": said},
             "boxes": {"type": "BoxAccuracy", "loss": "bbp", "threshold": 0.1, "data": shown},
             "both": {"type": "Accuracy", "loss": "compare", "consistency": "identifier", "data": two},
             "looks": {"type": "PointingGame", "pairs_per_pass": 2 * size, "data": looked, "limit": 6},
             "probe": {"type": "LinearProbe", "feature": "vision", "c": 0.01, "bank": "val", "data": folders}}
    return {
        "_BASE_": str(MODEL),
        "encoders": {name: {key.split(".")[1]: value for key, value in SIDES.items() if key.startswith(name)} |
                     ({"width": 32, "init_std": 0.3} if name != "fusion" else {}) for name in ("vision", "text", "fusion")} |
        {"vision_proj": {"dim": 32}, "text_proj": {"dim": 32}, "second": {"shares": "vision", "inputs": {"image": "$second"}},
         "fusion_second": {"shares": "fusion", "inputs": {"text": "text", "image": "second"}}},
        "losses": {"classify": {"type": "Classification", "features": "fusion", "classes": 3},
                   "compare": {"type": "Classification", "features": ["fusion", "fusion_second"], "classes": 2},
                   "regress": {"type": "Regression", "features": "text"},
                   "answer": {"type": "AnswerGeneration", "fusion": "fusion", "words": "text"},
                   "choose": {"type": "AnswerClassification", "feature": "fusion", "classes": 320},
                   "imlm": {"type": "Captioning", "feature": "fusion@left_to_right"},
                   "itc": {"type": "ITC", "sim": "sim"}, "itm": {"type": "ITM", "fusion": "fusion", "negatives": "sim"},
                   "bbp": {"type": "BBP", "feature": "fusion@whole"}},
        "streams": {"ve": stream(entailment, "classify"), "two": stream(two, "compare"), "glue": stream(glue, "regress"),
                    "vqa": stream(asked, "answer", "choose"), "pairs": stream(said, "itc", "itm"),
                    "captions": stream(said | generates, "imlm"), "boxes": stream(shown, "bbp")},
        "evaluate": {name: {"batch_size": size, "every": None, "limit": 20} | task for name, task in tasks.items()},
        "optim": {"lr": 1e-4},
        "train": {"steps": 1, "workers": 0, "precision": "fp32", "device": "cpu", "output": "none", "seed": 5}}


def found(size: int) -> dict:
    """{evaluation: its metrics, floor, rows and files} of this process, or of all that were started."""
    import torch

    import xtoolkit
    from xtoolkit.engine import distributed

    torch.set_num_threads(1)
    run = xtoolkit.build(recipe(size), folder=str(ROOT))
    distributed.join(run.device)
    made = {}
    for name, task in run.tasks.items():
        evaluated = task.evaluate(run.model, run.eval_loader(name), distributed.Ranks())
        files = dict(evaluated["files"])
        rows = [json.loads(line) for line in files.pop("samples.jsonl").splitlines()]
        made[name] = {"metrics": evaluated["metrics"], "floor": evaluated["floor"], "rows": rows, "files": files}
    distributed.leave()
    return made


def same(one, other, where):
    """Equal, numbers to 1e-5."""
    if isinstance(one, dict):
        assert one.keys() == other.keys(), where
        for key in one:
            same(one[key], other[key], f"{where}.{key}")
    elif isinstance(one, list):
        assert len(one) == len(other), where
        for n, (a, b) in enumerate(zip(one, other)):
            same(a, b, f"{where}[{n}]")
    else:
        assert one == (pytest.approx(other, rel=1e-5, abs=1e-5) if isinstance(one, float) else other), where


@pytest.fixture(scope="module")
def alone():
    return found(20)


def test_every_task_says_something_of_every_sample(alone):
    rows = {name: len(one["rows"]) for name, one in alone.items()}
    assert rows["captions"] == 9 and rows["retrieval"] == 100 and rows["boxes"] >= 20  # 5 captions a picture
    assert {rows[name] for name in ("accuracy", "both", "correlation", "generated", "chosen", "probe")} == {20} and rows["looks"] >= 12
    for name, one in alone.items():
        assert len({row["id"] for row in one["rows"]}) == rows[name], f"{name}: two rows are called alike"
        assert len({row["score"] for row in one["rows"]}) > 1 or name in ("generated", "chosen", "captions", "probe"), name


def test_nothing_depends_on_the_batch_size_and_its_padding(alone):
    same(found(1), alone, "batches of one, which have no padding")
    same(found(7), alone, "batches of seven")


def test_two_processes_say_what_one_says(alone, tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    told = {**os.environ, "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "OMP_NUM_THREADS": "1",
            "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), str(ROOT)])}
    ranks = [subprocess.Popen([sys.executable, __file__, str(tmp_path / f"{rank}.json")], stderr=subprocess.PIPE, text=True,
                              env=told | {"RANK": str(rank), "LOCAL_RANK": str(rank)}) for rank in range(2)]
    for rank in ranks:
        _, trouble = rank.communicate(timeout=300)
        assert rank.returncode == 0, trouble[-3000:]
    for rank in range(2):
        same(json.loads((tmp_path / f"{rank}.json").read_text()), alone, f"process {rank}")


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(json.dumps(found(6)))
