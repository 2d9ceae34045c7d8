"""`sample://PACK/PART`: the parts of the sample pack, prepared by the converters of the official formats on first use."""

import dataclasses
import json
import os
from pathlib import Path

from xtoolkit.data import paths
from xtoolkit.prepare import sample_pack
from xtoolkit.registry import nearest

OUT = "prepared-3"  # of a pack; raise it where what the converters write changes: older files are then not used
SCHEME = "sample://"
GLUE = ("sst2", "cola", "rte", "stsb")
VQA = {"train": "train2014", "val": "val2014", "test": "test2015"}  # what its files call the splits
PARTS = ("pairs", "pairs-val", "pairs-test", "regions", "refcoco+-train", "refcoco+-val", "refcoco+-testA", "refcoco+-testB",
         "images", "web", "text", "text-val", "imagenet-train", "imagenet-val", "imagenet-select-train", "imagenet-select-val",
         "digits-train", "digits-test", "vqa-train", "vqa-val", "vqa-test", "vqa-answers", "nlvr2-train", "nlvr2-dev",
         "nlvr2-test1", "ve-train", "ve-val", "ve-test",
         *(f"glue-{task}-{split}" for task in GLUE for split in ("train", "dev", "test")), "tokenizer")
FOLDERS = {"tokenizer": "tokenizer", "imagenet-train": "imagenet/train", "imagenet-val": "imagenet/val"}  # read as they are
SELECT = "imagenet-select-"
ALIASES = {"images": ("pairs", "web")}  # the image-only stream reads pictures and leaves their captions


def resolve(path: str) -> list[str]:
    """``prepare`` of a path. Raises FileNotFoundError with the line of ``problem``."""
    if trouble := problem(path):
        raise FileNotFoundError(trouble)
    return prepare(sample_pack.ensure_sample_pack(), path.rpartition("/")[2])


def problem(path: str) -> str | None:
    """A line with the nearest name where there is no such pack or part; nothing is unpacked."""
    pack, _, part = path.removeprefix(SCHEME).partition("/")
    if pack != sample_pack.name():
        return f"{path}: unknown sample pack `{pack}`{nearest(pack, [sample_pack.name()])}"
    return None if part in PARTS else f"{path}: the sample pack has no part `{part}`{nearest(part, PARTS)}"


def names() -> list[str]:
    """Every such path there is."""
    return [f"{SCHEME}{sample_pack.name()}/{part}" for part in PARTS]


paths.SCHEMES[SCHEME] = paths.Scheme(resolve, problem)


def prepare(pack: Path, name: str) -> list[str]:
    """The files, sorted, of one part of an unpacked pack, prepared once and whole; of what is read as it is its folder."""
    if name in FOLDERS:
        return [str(pack / FOLDERS[name])]
    if name in ALIASES:
        return sorted((file for part in ALIASES[name] for file in prepare(pack, part)), key=os.path.basename)
    if name.startswith(SELECT):
        return [str(sample_pack.once(pack / OUT / name, lambda folder: _select(pack, name, folder)))]
    out = sample_pack.once(pack / OUT / name, lambda folder: _convert(pack, name, folder), _is_whole)
    return sorted(str(path) for path in out.iterdir() if path.suffix in (".tar", ".jsonl", ".txt"))


def _is_whole(folder: Path) -> bool:
    """Whether a part was prepared and none of its files was lost."""
    noted = [json.loads(path.read_bytes())["files"] for path in folder.glob("prepared-*.json")]
    return bool(noted) and all((folder / file).exists() for files in noted for file in files)


def _select(pack, name, out):
    from xtoolkit.prepare import sample_tasks

    sample_tasks.select(pack / "imagenet/train", out, chosen=name == f"{SELECT}val")


def _convert(pack, name, out):
    from xtoolkit.prepare import coco, glue, img2dataset, nlvr2, refcoco, sample_tasks, text, vg, vqa  # most starts need none
    from xtoolkit.prepare.writer import Options

    karpathy, images, options = pack / "coco/dataset_coco.json", pack / "coco/images", Options(out)
    refs, instances = pack / "refcoco+/refs(unc).p", pack / "refcoco+/instances.json"
    kind, _, split = name.partition("-")
    said = lambda split: pack / f"vqa/v2_mscoco_{VQA[split]}_annotations.json"
    if kind == "pairs":
        coco.convert(karpathy, images, options, {split or "train": name})
    elif kind == "regions":
        vg.convert(pack / "vg/image_data.json", pack / "vg/region_descriptions.json", pack / "vg", options,
                   objects=pack / "vg/objects.json", exclude=coco.held_out(karpathy), prefix="regions-vg")
        refcoco.convert(refs, instances, images, options, {"train": "regions-refcoco+"})
    elif kind == "refcoco+":
        refcoco.convert(refs, instances, images, options, {split: name})
    elif kind == "web":
        img2dataset.convert(sorted((pack / "web").glob("*.tar")), options, prefix="web")
    elif kind == "text":
        lines = dataclasses.replace(options, shard_size=text.SHARD_SIZE)
        text.convert(sorted((pack / "text").glob(f"{split or 'train'}-*.jsonl.gz")), lines, prefix=name)
    elif kind == "glue":
        task, _, split = split.partition("-")
        glue.convert(pack / "glue", options, [task], {split: name})
    elif kind == "nlvr2":
        nlvr2.convert([pack / f"nlvr2/{split}.json"], pack / "nlvr2", options, {split: name})
        sample_tasks.beside(out, pack / "nlvr2")
    elif name == "vqa-answers":  # all: most are the answer of fewer than nine questions
        vqa.convert_answers([said("train")], options, name, least=1)
    elif kind == "vqa":
        asked = pack / f"vqa/v2_OpenEnded_mscoco_{VQA[split]}_questions.json"
        vqa.convert(asked, said(split), options, name, "train2014" if split == "train" else "val2014")
        sample_tasks.beside(out, images)
    elif kind == "digits":
        sample_tasks.digits(options, split, name)
    else:
        sample_tasks.entailment(pack, options, split, name)
        sample_tasks.beside(out, images)
