"""Recipes for the real data, of which the sample pack has none, on ten samples a file in their prepared formats: two steps of a small
model, the best kept, the test evaluated once, and the file for the benchmark's server written."""

import json
from pathlib import Path

import pytest
from PIL import Image

from xtoolkit.cli.train import main

FOLDER = Path(__file__).resolve().parents[2] / "projects/xfm/finetune"
SMALL = ["tokenizer=sample://picturebook/tokenizer", "init.path=null", "encoders.vision.image_size=32", "encoders.vision.patch_size=8",
         "encoders.text.vocab_size=4000", *(f"encoders.{name}.{key}" for name in ("vision", "text") for key in ("width=16", "init=null")),
         *(f"encoders.{name}.{key}" for name in ("vision", "text", "fusion") for key in ("layers=1", "heads=2")),
         "train.steps=2", "train.workers=0", "train.log_every=1", "train.checkpoint_every=2", "train.device=cpu", "train.precision=fp32",
         "streams.train.batch_size=4", "evaluate.val.every=1"]
TEXTS = [{"sentence1": f"A man eats {n} apples.", "sentence2": f"Somebody eats {n} fruits."} for n in range(10)]


def rows(labels):
    return [text | {"label": labels[n % len(labels)] if labels else None, "id": n} for n, text in enumerate(TEXTS)]


def write(path, records):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(record) + "\n" for record in records))


def pictures(folder, names):
    folder.mkdir(parents=True, exist_ok=True)
    for n, name in enumerate(names):
        Image.new("RGB", (40, 30), (20 * n, 90, 200 - 15 * n)).save(folder / name)


def glue(task, labels, splits=("train", "dev", "test")):
    for split in splits:
        write(Path(f"data/glue/{task}/{split}.jsonl"), rows(None if "test" in split else labels))


def memes():
    pictures(Path("data/hateful_memes/img"), [f"{n:05d}.png" for n in range(10)])
    for split in ("train", "dev_seen", "test_seen"):
        write(Path(f"data/hateful_memes/{split}.jsonl"), [
            {"id": f"{n:05d}", "img": f"img/{n:05d}.png", "text": f"what a meme {n}", "label": n % 2} for n in range(10)])


def nlvr2():
    pictures(Path("data/nlvr2"), [f"{n}.png" for n in range(10)])
    for split in ("train", "dev", "test1"):
        write(Path(f"data/nlvr2/{split}.jsonl"), [
            {"images": [f"{n}.png", f"{9 - n}.png"], "sentence": "One is red.", "label": str(n % 2 == 0), "identifier": f"{split}-0-{n}-0"}
            for n in range(10)])


ENTAILMENT = ["entailment", "not_entailment"]
MNLI = ("train", "dev_matched", "dev_mismatched", "test_matched", "test_mismatched")
RECIPES = {"mrpc": (lambda: glue("mrpc", [0, 1]), "test/MRPC.tsv", {"0", "1"}), "qqp": (lambda: glue("qqp", [0, 1]), "test/QQP.tsv", {"0", "1"}),
           "qnli": (lambda: glue("qnli", ENTAILMENT), "test/QNLI.tsv", set(ENTAILMENT)),
           "mnli": (lambda: glue("mnli", ["entailment", "neutral", "contradiction"], MNLI), "test_mismatched/MNLI-mm.tsv",
                    {"entailment", "neutral", "contradiction"}),
           "stsb": (lambda: glue("stsb", [0.0, 2.5, 4.2]), "test/STS-B.tsv", None),
           "hateful_memes": (memes, "test/Hateful-Memes.csv", None), "nlvr2": (nlvr2, "test/NLVR2.csv", None)}


SLOW = {"qqp", "qnli", "stsb", "nlvr2"}  # as MRPC is, or with another test of their own


@pytest.mark.parametrize("name", [pytest.param(name, marks=pytest.mark.slow) if name in SLOW else name for name in RECIPES])
def test_two_steps_and_the_server_s_file(name, tmp_path, monkeypatch, capsys):
    make, file, told = RECIPES[name]
    monkeypatch.chdir(tmp_path)
    make()
    assert main(["--config", str(FOLDER / f"{name}.yaml"), *SMALL]) == 0
    run = tmp_path / "outputs/finetune" / name
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert sum("loss" in line for line in lines) == 2
    written = (run / "evaluations" / file).read_text().splitlines()
    assert len(written) == 10 + (name != "nlvr2")
    if told is not None:
        assert written[0] == "index\tprediction" and {line.split("\t")[1] for line in written[1:]} <= told
        assert [line.split("\t")[0] for line in written[1:]] == [str(n) for n in range(10)]
    test = json.loads((run / "evaluations" / f"{file.split('/')[0]}.json").read_text())
    assert test["metrics"]["unlabelled"] == 10 if name in ("mrpc", "qqp", "qnli", "mnli", "stsb") else test["metrics"]["accuracy"] >= 0


def test_an_evaluation_of_another_task_s_file_is_one_clear_error(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    glue("mrpc", ["entailment", "not_entailment"])
    assert main(["--config", str(FOLDER / "mrpc.yaml"), *SMALL]) != 0
    said = capsys.readouterr().err
    assert "'entailment' is none of the 2 classes: 0, 1" in said and "Traceback" not in said
