"""`sample://PACK/PART`: the parts of the sample pack, prepared by the converters of the official formats on first use."""

import dataclasses
import json
import os
from pathlib import Path

from xtoolkit.data import paths
from xtoolkit.prepare import sample_pack
from xtoolkit.registry import nearest

OUT = "prepared-2"  # of a pack; raise it where what the converters write changes: older files are then not used
SCHEME = "sample://"
PARTS = ("pairs", "pairs-val", "pairs-test", "regions", "refcoco+-val", "refcoco+-testA", "refcoco+-testB", "images",
         "web", "text", "text-val", "imagenet-train", "imagenet-val", "tokenizer")
FOLDERS = {"tokenizer": "tokenizer", "imagenet-train": "imagenet/train", "imagenet-val": "imagenet/val"}  # read as they are
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
    out = sample_pack.once(pack / OUT / name, lambda folder: _convert(pack, name, folder), _is_whole)
    return sorted(str(path) for path in out.iterdir() if path.suffix in (".tar", ".jsonl"))


def _is_whole(folder: Path) -> bool:
    """Whether a part was prepared and none of its files was lost."""
    noted = [json.loads(path.read_bytes())["files"] for path in folder.glob("prepared-*.json")]
    return bool(noted) and all((folder / file).exists() for files in noted for file in files)


def _convert(pack, name, out):
    from xtoolkit.prepare import coco, img2dataset, refcoco, text, vg  # only here: most starts find it all prepared
    from xtoolkit.prepare.writer import Options

    karpathy, images, options = pack / "coco/dataset_coco.json", pack / "coco/images", Options(out)
    refs, instances = pack / "refcoco+/refs(unc).p", pack / "refcoco+/instances.json"
    kind, _, split = name.partition("-")
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
    else:
        lines = dataclasses.replace(options, shard_size=text.SHARD_SIZE)
        text.convert(sorted((pack / "text").glob(f"{split or 'train'}-*.jsonl.gz")), lines, prefix=name)
