"""Every recipe of projects/xfm/finetune for the real data at its whole base size, on ten samples a split in the official formats,
through the converters: two steps and its evaluations cut short, or, where nothing is trained, the evaluation.

What is written, a checkpoint and the best one, is tested elsewhere: nothing is here, so that a recipe takes a minute.
"""

import ctypes
import gc
import math
import os
import shutil
import time
from pathlib import Path

import pytest

from miniature import jpeg, put
from miniature_tasks import COUNT, glue, hateful_memes, karpathy_split, nlvr2, pets, refcoco, snli_ve, vqa
from xtoolkit import recipe as recipes
from xtoolkit.engine.run import Run
from xtoolkit.engine.trainer import Trainer

FOLDER = Path(__file__).resolve().parents[2] / "projects/xfm/finetune"
LIMIT = 12 * 2**30  # bytes of this process
CLASSES, ANSWERS = 1000, 3129
CHANGES = ["tokenizer=sample://picturebook/tokenizer", "init.path=null", "encoders.vision.init=null", "encoders.text.init=null",
           "train.workers=0", "train.device=cpu"]
TRAINED = ["streams.train.batch_size=2", "train.steps=2", "evaluate.*.limit=2", "evaluate.*.every=null", "train.keep_best=null"]
EXPECT = ["evaluate.*.expect=null"]
MORE = {"probe": [*EXPECT, "evaluate.pets.batch_size=5"], "retrieval_coco": EXPECT, "retrieval_flickr30k": EXPECT,
        **{f"retrieval_{name}_zero_shot": [*EXPECT, "evaluate.test.limit=4"] for name in ("coco", "flickr30k")}}
ONLY = {"probe": "pets"}  # of the sets, those that are here
NAMES = sorted(path.stem for path in FOLDER.glob("*.yaml"))
# Weights of the encoders at the paper's size, without heads: what no override has made smaller.
LEAST = {"vision": 85_000_000, "text": 124_000_000, "fusion": 110_000_000}


def prepare(command, *paths):
    from xtoolkit.cli.prepare import main

    assert main([*command.split(), *map(str, paths), "--workers", "1"]) == 0


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """`data/` of all recipes, where the documentation's commands write it; everything is gone afterwards."""
    root = tmp_path_factory.mktemp("finetune")
    raw, data = root / "raw", root / "data"
    prepare("glue", "--root", glue(raw), "--out", data / "glue")
    files, pictures = nlvr2(data)
    prepare("nlvr2", "--input", *files, "--images", pictures, "--out", data / "nlvr2")
    files, pictures = snli_ve(raw)
    shutil.copytree(pictures, data / "flickr30k")
    prepare("snli-ve", "--input", *files, "--images", pictures, "--out", data / "snli_ve")
    memes = hateful_memes(data)
    for split in ("dev", "test"):  # as they are called since there are others, unseen; test without labels
        shutil.copy(memes / f"{split}.jsonl", memes / f"{split}_seen.jsonl")
    for name, split in (("train", "train2014"), ("val", "val2014"), ("test", "test2015")):
        questions, annotations, pictures = vqa(data, split)
        told = () if name == "test" else ("--annotations", annotations)
        prepare("vqa", "--questions", questions, *told, "--name", name, "--out", data / "vqa")
    prepare("vqa-answers --least 1 --annotations", data / "vqa/v2_mscoco_train2014_annotations.json", "--out", data / "vqa")
    answers = (data / "vqa/answers.txt").read_text().splitlines()
    (data / "vqa/answers.txt").write_text("\n".join([*answers, *(f"thing {n}" for n in range(len(answers), ANSWERS))]) + "\n")
    for name, years in (("coco", "train2014"), ("flickr30k", "")):
        listed = karpathy_split(raw, name, pictures := raw / "pictures" / name, years)
        prepare("coco", "--annotations", listed, "--images", pictures, "--out", data / name)
    for name, splits in (("refcoco", ("train", "val", "testA", "testB")), ("refcoco+", ("train", "val", "testA", "testB")),
                         ("refcocog", ("train", "val", "test"))):
        refs, instances, pictures = refcoco(raw / name, splits)
        prepare("refcoco", "--refs", refs, "--instances", instances, "--images", pictures, "--out", data / name)
    prepare("torchvision --set pets", "--root", pets(raw), "--out", data / "pets")
    for split in ("train", "val"):
        for n in range(CLASSES):  # none of ImageNet's folders may be empty: ten pictures, in each folder one
            place = data / f"imagenet/{split}/n{n:08d}/{n}.JPEG"
            if n < COUNT:
                put(place, jpeg(colour=(25 * n, 90, 9)))
            else:
                place.parent.mkdir(parents=True)
                os.link(data / f"imagenet/{split}/n{n % COUNT:08d}/{n % COUNT}.JPEG", place)
    yield root
    shutil.rmtree(root)
    largest(start=True)  # what is tested next has children that need the memory


def largest(start=False) -> int:
    """Bytes of this process at its largest since the last ``start``, at which it gives back what it has freed."""
    if start:
        gc.collect()
        ctypes.CDLL(None).malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")
    line, = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024


@pytest.mark.slow
@pytest.mark.skipif(not os.access("/proc/self/clear_refs", os.W_OK), reason="memory is read and given back as Linux does it")
@pytest.mark.parametrize("name", NAMES)
def test_two_steps_at_base_size(name, folder, monkeypatch, capsys):
    monkeypatch.chdir(folder)
    largest(start=True)
    began, processor, steps = time.perf_counter(), time.process_time(), []
    alone = name in ONLY or name.endswith("_zero_shot")
    changes = [*CHANGES, *([] if alone else TRAINED), *MORE.get(name, [])]
    run = Run(recipes.load(str(FOLDER / f"{name}.yaml"), changes, missing_files=False))
    if not alone:
        before = {n: p.detach().float().norm().item() for n, p in run.model.named_parameters()}
        trainer = Trainer(run.model, run.recipe, run.loaders)
        while trainer.done < 2:
            trainer.step()
            steps.append(float(trainer.values["loss"]))
        moved = {n.split(".")[1] for n, p in run.model.named_parameters() if p.detach().float().norm().item() != before[n]}
        assert all(map(math.isfinite, steps)) and {n for n, loss in run.model.losses.items() if list(loss.parameters())} <= moved
        if name != "probe_release5":
            assert set(run.model.encoders) - {"second", "fusion_second"} <= moved
        del trainer
    counts = {n: sum(p.numel() for p in encoder.parameters()) for n, encoder in run.model.encoders.items()}
    assert all(counts[n] >= least for n, least in LEAST.items() if n in counts) and set(LEAST) & set(counts)
    trained = time.perf_counter() - began
    if name in ONLY:
        run.tasks = {ONLY[name]: run.tasks[ONLY[name]]}
    figures = run.evaluate(say=lambda line: None)
    run.close()
    assert all(math.isfinite(value) for found in figures.values() for value in found.values()) and all(figures.values())
    peak, seconds, processor = largest(), time.perf_counter() - began, time.process_time() - processor
    size = sum(p.numel() for p in run.model.parameters())
    with capsys.disabled():
        said = ", ".join(f"{loss:.3f}" for loss in steps) or "none"
        print(f"\n{name}: {size / 1e6:.0f} M weights, losses {said}; built and trained in "
              f"{trained:.0f} s, with its evaluations {seconds:.0f} s, processor {processor:.0f} s; {peak / 2**30:.1f} GiB")
    assert peak < LIMIT
