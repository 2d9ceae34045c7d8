"""Unpacks the sample pack that comes with the package: once, whole, whoever else asks at the same time."""

import contextlib
import fcntl
import hashlib
import io
import json
import os
import pickle
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path

from xtoolkit.data.index import home
from xtoolkit.prepare.official import outside

FOLDER = Path(__file__).parent / "pack"
MEND = "`git checkout -- xtoolkit/prepare/pack` brings"


def ensure_sample_pack() -> Path:
    """The folder of the unpacked pack, ``$XTOOLKIT_HOME/<name>-<sha8>``; unpacks it if it is not there. Nothing is fetched.

    Raises:
        FileNotFoundError: the archive or its MANIFEST.json is not in the package.
        ValueError: the archive is not the one that MANIFEST.json names, or would write beside its folder.
        PermissionError: ``$XTOOLKIT_HOME`` cannot be written.
    """
    about = manifest()
    return once(home() / f"{name()}-{about['sha256'][:8]}", lambda folder: _unpack(about, folder))


def once(target: Path, make: Callable, is_whole: Callable = Path.is_dir) -> Path:
    """A folder that ``make(folder)`` fills: once, whoever else asks at the same time.

    It is made beside ``target`` and renamed when all is written: the folder is whole or it is not there, and what a
    killed process leaves is swept away by the next one.
    """
    if is_whole(target):
        return target
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        lock = open(target.parent / f".{target.name}.lock", "w")
    except PermissionError as error:
        raise PermissionError(f"{error.filename}: cannot be written, and the sample pack is unpacked there; set "
                              "XTOOLKIT_HOME to a folder of yours") from None
    with lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # the kernel lets go of it when the process ends, however it ends
        if not is_whole(target):
            partial = target.with_name(f".{target.name}.partial")
            for folder in (partial, target):
                shutil.rmtree(folder, ignore_errors=True)
            make(partial)
            partial.rename(target)
    return target


def manifest() -> dict:
    """What MANIFEST.json says of the pack: ``archive``, ``sha256``, ``size``, ``counts``, ``sources``, ``files``."""
    return json.loads(_read("MANIFEST.json"))


def name() -> str:
    """What the pack is called in ``sample://NAME/PART``."""
    return manifest()["archive"].partition("-")[0]


def _read(name: str) -> bytes:
    try:
        return (FOLDER / name).read_bytes()
    except FileNotFoundError:
        raise FileNotFoundError(f"{FOLDER / name}: not in this copy of xtoolkit; in a checkout {MEND} it back") from None


def _unpack(about: dict, folder: Path) -> None:
    data, archive = _read(about["archive"]), FOLDER / about["archive"]
    if (found := hashlib.sha256(data).hexdigest()) != about["sha256"]:
        raise ValueError(f"{archive}: its sha256 is {found}, MANIFEST.json says {about['sha256']}; the file is cut off or "
                         f"changed: {MEND} it back")
    with tarfile.open(fileobj=io.BytesIO(data), mode="r:xz") as tar:
        if bad := next((member.name for member in tar if outside(member)), None):
            raise ValueError(f"{archive}: refused: {bad} is a link, a device, or named so that it leads out of the archive; "
                             f"{MEND} the pack back")
        tar.extractall(folder, filter="data")
    _official_names(folder)


def _official_names(pack: Path) -> None:
    """Adds what the official releases have and the archive would hold twice: hard links where the file system has them.

    ``refcoco+/refs(unc).p`` is REFER's pickle (protocol 2, as Python 2 wrote it) of ``refs(unc).json``;
    ``vg/VG_100K/ID.jpg`` are COCO's pictures under Visual Genome's names; NLVR2 finds its pictures by ``identifier``,
    such as ``dev-0-0-img0.png`` (a JPEG here: readers go by content).
    """
    refs = json.loads((pack / "refcoco+" / "refs(unc).json").read_bytes())
    (pack / "refcoco+" / "refs(unc).p").write_bytes(pickle.dumps(refs, protocol=2))
    images = pack / "coco" / "images"
    for image in json.loads((pack / "vg" / "image_data.json").read_bytes()):
        same(images / "train2014" / f"COCO_train2014_{image['coco_id']:012d}.jpg", pack / "vg" / image["url"])
    for split in ("train", "dev", "test1"):
        for line in (pack / "nlvr2" / f"{split}.json").read_text(encoding="utf-8").splitlines():
            record = json.loads(line)
            pair = record["identifier"].rpartition("-")[0]
            folder = pack / "nlvr2" / "images" / split
            folder = folder / record["directory"] if split == "train" else folder
            for number, side in enumerate(("left", "right")):
                same(images / record[side], folder / f"{pair}-img{number}.png")


def same(source: Path, name: Path) -> None:
    """Makes a file that holds what another one does: a hard link where the file system has them, else a copy."""
    name.parent.mkdir(parents=True, exist_ok=True)
    with contextlib.suppress(OSError):  # no hard links there (some network and container file systems)
        os.link(source, name)
        return
    shutil.copyfile(source, name)
