"""`sample://PACK/PART`: the parts of the sample pack, prepared by the converters of the official formats on first use."""

import dataclasses
import fcntl
import json
import os
import shutil
from pathlib import Path

from xtoolkit.data import paths
from xtoolkit.prepare import sample_pack
from xtoolkit.registry import nearest

FORMAT = 1  # raise it where what the converters write changes: older prepared files are then made anew
SCHEME = "sample://"
PARTS = ("pairs", "pairs-val", "pairs-test", "regions", "refcoco+-val", "refcoco+-testA", "refcoco+-testB", "images",
         "web", "text", "text-val", "tokenizer")
ALIASES = {"images": ("pairs", "web")}  # the image-only stream reads pictures and leaves their captions


def resolve(path: str) -> list[str]:
    """The files of one part of the sample pack, unpacked and prepared if they are not yet; the folder of its tokenizer.

    Raises:
        FileNotFoundError: with the line of ``problem``.
    """
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
    """Prepares one part of an unpacked pack in ``pack/prepared``, once and whole, whoever else asks at the same time.

    Args:
        pack: the folder with ``coco``, ``vg``, ``refcoco+``, ``web``, ``text`` and ``tokenizer``.
        name: one of ``PARTS``.

    Returns:
        The files, sorted; for the tokenizer its folder.
    """
    if name == "tokenizer":
        return [str(pack / "tokenizer")]
    if name in ALIASES:
        return sorted(file for part in ALIASES[name] for file in prepare(pack, part))
    out = pack / "prepared"
    out.mkdir(exist_ok=True)
    done = out / f"{name}.json"
    files = _listed(done)
    if files is None:
        with (out / f".{name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            files = _listed(done)
            if files is None:
                files = _make(pack, name, out, done)
    return [str(out / file) for file in files]


def _listed(done: Path) -> list | None:
    """The files that a part consists of, if it was prepared and they are still there."""
    if not done.exists():
        return None
    noted = json.loads(done.read_text())
    whole = noted["format"] == FORMAT and all((done.parent / file).exists() for file in noted["files"])
    return noted["files"] if whole else None


def _make(pack, name, out, done):
    from xtoolkit.prepare.writer import Options  # only here: a start that needs no data imports no converter

    staged = out / f".preparing-{name}"
    shutil.rmtree(staged, ignore_errors=True)
    reports = _convert(pack, name, Options(staged))
    files = sorted(path.name for path in staged.iterdir() if path.suffix in (".tar", ".jsonl"))
    for file in files:
        os.replace(staged / file, out / file)
    note = staged / "note.json"
    note.write_text(json.dumps({"format": FORMAT, "files": files, "reports": [r.as_dict() for r in reports]}, indent=1))
    os.replace(note, done)
    shutil.rmtree(staged)
    return files


def _convert(pack, name, options) -> list:
    from xtoolkit.prepare import coco, img2dataset, refcoco, text, vg

    karpathy, images = pack / "coco/dataset_coco.json", pack / "coco/images"
    refs, instances = pack / "refcoco+/refs(unc).p", pack / "refcoco+/instances.json"
    if name in ("pairs", "pairs-val", "pairs-test"):
        split = {"pairs": "train", "pairs-val": "val", "pairs-test": "test"}[name]
        return [coco.convert(karpathy, images, options, {split: name})]
    if name == "regions":
        described = vg.convert(pack / "vg/image_data.json", pack / "vg/region_descriptions.json", pack / "vg", options,
                               objects=pack / "vg/objects.json", exclude=coco.held_out(karpathy), prefix="regions-vg")
        return [described, refcoco.convert(refs, instances, images, options, {"train": "regions-refcoco+"})]
    if name.startswith("refcoco+-"):
        return [refcoco.convert(refs, instances, images, options, {name.removeprefix("refcoco+-"): name})]
    if name == "web":
        return [img2dataset.convert(sorted((pack / "web").glob("*.tar")), options, prefix="web")]
    split = {"text": "train", "text-val": "val"}[name]
    lines = dataclasses.replace(options, shard_size=text.SHARD_SIZE)
    return [text.convert(sorted((pack / "text").glob(f"{split}-*.jsonl.gz")), lines, prefix=name)]
