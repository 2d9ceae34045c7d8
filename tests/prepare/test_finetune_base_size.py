"""Every recipe of projects/xfm/finetune for the real data, and some of other systems, at its whole base size, on ten samples a split in
the official formats, through the converters: two steps and its evaluations cut short, or, where nothing is trained, the evaluation. Two
start from a file of weights of smaller pictures.

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
import torch
from safetensors.torch import load_file, save_file

from miniature import jpeg, put
from miniature_tasks import COUNT, glue, hateful_memes, karpathy_split, nlvr2, pets, refcoco, snli_ve, vqa
from xtoolkit import recipe as recipes
from xtoolkit.engine.run import Run
from xtoolkit.engine.trainer import Trainer

FOLDER = Path(__file__).resolve().parents[2] / "projects/xfm/finetune"
LIMIT = 12 * 2**30  # bytes of this process
CLASSES, ANSWERS = 1000, 3129
TABLE = "relative_position_bias_table"
CHANGES = ["tokenizer=sample://picturebook/tokenizer", "init.path=null", "train.workers=0", "train.device=cpu"]
TRAINED = ["streams.train.batch_size=2", "train.steps=2", "evaluate.*.limit=2", "evaluate.*.every=null", "train.keep_best=null"]
EXPECT = ["evaluate.*.expect=null"]
MORE = {"probe": [*EXPECT, "evaluate.pets.batch_size=5"], "retrieval_coco": EXPECT, "retrieval_flickr30k": EXPECT,
        **{f"retrieval_{name}_zero_shot": [*EXPECT, "evaluate.test.limit=4"] for name in ("coco", "flickr30k")}}
ONLY = {"probe": "pets"}  # of the sets, those that are here
NAMES = sorted(path.stem for path in FOLDER.glob("*.yaml"))
OTHERS = ["flava_stsb", "flava_vqa", "vlbeit_nlvr2"]
# {system: weights of its encoders at the paper's size, without heads}: what no override has made smaller.
LEAST = {"xfm": {"vision": 85_000_000, "text": 124_000_000, "fusion": 110_000_000}, "vlbeit": {"backbone": 200_000_000},
         "flava": {"image_layers": 85_000_000, "text_layers": 108_000_000, "fusion": 42_000_000}}
# {recipe: the encoder whose tables of positions are resized, and how many}: VL-BEiT's with the bias that its paper lacks.
STARTED = {"snli_ve": ("vision", 12), "vlbeit_nlvr2": ("backbone", 2)}
MORE |= {"vlbeit_nlvr2": ["encoders.backbone.relative_positions=true"],
         **dict.fromkeys(("flava_stsb", "flava_vqa"), ["encoders.text_layers.pad_id=1"])}  # the sample pack's tokenizer


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


def smaller(path, changes, encoder):
    """Writes `start.safetensors`, of a recipe's model for pictures of 224 px; biases, which begin as zeros, are drawn."""
    run = Run(recipes.load(path, [*changes, f"encoders.{encoder}.image_size=224"], missing_files=False))
    state = {n: torch.randn(t.shape) if n.endswith(TABLE) else t for n, t in run.model.state_dict().items()}
    run.close()
    save_file(state, "start.safetensors")


def check_start(model, encoder, count):
    """Each weight is the file's, positions those of 24 x 24 patches, the bias by timm's own rule."""
    from timm.layers import resize_rel_pos_bias_table

    file, state, resized = load_file("start.safetensors"), model.state_dict(), []
    assert file.keys() == state.keys()
    for name, found in state.items():
        if found.shape == file[name].shape:
            assert torch.equal(found, file[name]), name
        else:
            resized.append(name)
            assert name.startswith(f"encoders.{encoder}.") and name.endswith(("image_positions", TABLE))
    assert len(resized) == count
    for name in [name for name in resized if name.endswith(TABLE)][:2]:
        wanted = resize_rel_pos_bias_table(file[name], new_window_size=(24, 24), new_bias_shape=tuple(state[name].shape))
        assert state[name].shape[0] == 47**2 + 3 and torch.allclose(state[name], wanted, atol=1e-6)


@pytest.mark.slow
@pytest.mark.skipif(not os.access("/proc/self/clear_refs", os.W_OK), reason="memory is read and given back as Linux does it")
@pytest.mark.parametrize("name", [*NAMES, *OTHERS])
def test_two_steps_at_base_size(name, folder, monkeypatch, capsys):
    monkeypatch.chdir(folder)
    largest(start=True)
    began, processor, steps = time.perf_counter(), time.process_time(), []
    alone, system = name in ONLY or name.endswith("_zero_shot"), name.split("_")[0] if name in OTHERS else "xfm"
    own = [f"encoders.{encoder}.init=null" for encoder in ("vision", "text") if system == "xfm"]
    path = str((FOLDER.parent / "baselines/finetune" if name in OTHERS else FOLDER) / f"{name}.yaml")
    changes = [*CHANGES, *own, *([] if alone else TRAINED), *MORE.get(name, [])]
    if name in STARTED:
        smaller(path, changes, STARTED[name][0])
        changes.append("init.path=start.safetensors")
    run = Run(recipes.load(path, changes, missing_files=False))
    if name in STARTED:
        check_start(run.model, *STARTED[name])
    if not alone:
        before = {n: p.detach().float().norm().item() for n, p in run.model.named_parameters()}
        trainer = Trainer(run.model, run.recipe, run.loaders)
        while trainer.done < 2:
            trainer.step()
            steps.append(float(trainer.values["loss"]))
        moved = {n.split(".")[1] for n, p in run.model.named_parameters() if p.detach().float().norm().item() != before[n]}
        assert all(map(math.isfinite, steps)) and {n for n, loss in run.model.losses.items() if list(loss.parameters())} <= moved
        if name != "probe_release5":
            assert set(run.model.encoders) - {"second", "fusion_second", "backbone_second"} <= moved
        del trainer
    counts = {n: sum(p.numel() for p in encoder.parameters()) for n, encoder in run.model.encoders.items()}
    assert all(counts[n] >= least for n, least in LEAST[system].items() if n in counts) and set(LEAST[system]) & set(counts)
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
