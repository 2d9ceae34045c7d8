"""A folder of pictures, unpacked or in tars (ImageNet, ImageNet-21k) -> image-only samples."""

import hashlib
import os
from pathlib import Path

import numpy as np

from xtoolkit.data import scan
from xtoolkit.data.images import ENDINGS
from xtoolkit.prepare.official import BadFile, Report, unread
from xtoolkit.prepare.run import write_pictures
from xtoolkit.prepare.tars import Names, members, packed
from xtoolkit.prepare.writer import Draft, Options


def convert(images: Path, options: Options, prefix: str = "train") -> Report:
    """Writes every picture below a folder, in an order drawn once: neighbours are not of one class.

    Tars are read where they lie: ``n01440764.tar``, and tars inside a tar, count as folders of that name, so the
    release gives the same shards whether it was unpacked or not. Names are held as bytes, 40 or so a picture.

    Raises:
        BadRecord: also where there is no picture, and where a tar is compressed or damaged.
    """
    report, images = Report(options.skip_bad), Path(images)
    if images.is_file() and (trouble := packed(images)):
        raise BadFile(trouble)
    found, tars = Names(), []
    _search(str(images), "", found, tars, report)
    if not len(found):
        raise BadFile(f"{images}: no .jpg, .png or other picture in it, and no tar of them")
    order = np.random.RandomState(0).permutation(len(found))  # this generator's draws never change

    def draft(name, tar, at):
        where, source = (name, images / name) if tar < 0 else (f"{tars[tar].name}: {name}", (tars[tar], at))
        return Draft(prefix, None, source, {"image_id": identity(name), "file": name}, where)

    drafts = (draft(*found[int(n)]) for n in order)
    return write_pictures(f"images-{prefix}", drafts, options, report, -(-len(found) // options.shard_size))


def identity(name: str) -> str:
    """The name of a picture, short: equal for equal paths in the folder."""
    return hashlib.blake2b(name.encode(errors="surrogateescape"), digest_size=8).hexdigest()


def _search(place: str, name: str, found: Names, tars: list, report: Report, above: tuple = ()):
    """Adds what is below a folder or in a tar, in the order of the names."""
    if os.path.isdir(place):
        real = os.path.realpath(place)
        if real in above:
            report.bad(f"{place}: a link to a folder that it lies in")
            return
        with os.scandir(place) as entries:
            entries = sorted(((e.name, e.is_dir()) for e in entries), key=lambda e: _unended(e[0]))
        for entry, is_folder in entries:
            path, inside = os.path.join(place, entry), f"{name}/{entry}" if name else entry
            if scan.hidden(inside) and not is_folder:
                report.leave_out("hidden files", inside)
            elif is_folder or _is_tar(entry):
                _search(path, inside, found, tars, report, (*above, real))
            elif _is_picture(entry):
                found.add(inside, -1, 0)
            elif trouble := packed(path):
                report.bad(trouble)
        return
    tar = Path(place)
    tars.append(tar)
    try:
        with tar.open("rb") as raw:
            inside = _in_tar(raw, _unended(name), tar.stat().st_size, tar.name, report)
        for member, at in sorted(inside.items()):
            found.add(member, len(tars) - 1, at)
    except OSError as error:
        raise unread(place, error) from None


def _is_tar(name: str) -> bool:
    return name.lower().endswith(".tar")


def _unended(name: str) -> str:
    """The folder that a tar counts as."""
    return name[:-len(".tar")] if _is_tar(name) else name


def _is_picture(name: str) -> bool:
    return name.lower().rpartition(".")[2] in ENDINGS


def _in_tar(raw, name: str, end: int, place: str, report: Report) -> dict:
    """Name -> place of its header, of the pictures in the tar that begins where ``raw`` stands, those in tars too."""
    found = {}
    for member in members(raw, end, place, report):
        path = "/".join(p for p in (name, *member.name.split("/")) if p not in ("", ".", ".."))
        if scan.hidden(path):
            report.leave_out("hidden files", f"{place}: {member.name}")
        elif _is_tar(path):
            raw.seek(member.offset_data)
            found |= _in_tar(raw, _unended(path), member.offset_data + member.size, f"{place}: {member.name}", report)
        elif _is_picture(path):
            if path in found:
                report.change("names that come twice: the last counts", f"{place}: {member.name}")
            found[path] = member.offset
    return found
