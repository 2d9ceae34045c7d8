"""What img2dataset downloaded (CC3M, CC12M, SBU, LAION) -> pairs, checked, filtered and re-sharded.

It writes one of three forms, a shard of some thousand pictures each: ``00000.tar`` (webdataset), ``00000/`` with a file
a picture (files), or ``00000.parquet`` with the pictures in it. Beside the first two lies a ``00000.parquet`` that
holds no picture and is not needed; beside all of them ``00000_stats.json`` counts the downloads that failed.
"""

import hashlib
from array import array
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path

import numpy as np

from xtoolkit.data import limits
from xtoolkit.data.images import ENDINGS
from xtoolkit.prepare import parquet
from xtoolkit.prepare.official import BadFile, BadRecord, Report, clean, field, picture, unread
from xtoolkit.prepare.records import each
from xtoolkit.prepare.run import Job, run
from xtoolkit.prepare.spans import Span, together
from xtoolkit.prepare.tars import Names, members, packed
from xtoolkit.prepare.writer import Options, TarPart

READ = ENDINGS | {"json", "txt"}
KEPT = ("url", "key", "width", "height", "status", "caption", "txt")  # what is read of a Parquet row beside its picture


@dataclass(frozen=True)
class Shard:
    """One shard of a download: its span, its form (``tar``, ``files`` or ``parquet``) and the stats beside it."""

    span: Span
    form: str
    stats: tuple


def convert(shards: list, options: Options, prefix: str = "train") -> Report:
    """Writes the samples that were downloaded with success and have a picture and a caption.

    Args:
        shards: tars, ``.parquet`` files, folders of one shard (``00000``), or folders of such. All of one form.
        options: ``out`` None only checks and counts.
        prefix: of the shards.

    Raises:
        BadRecord: names the shard and the sample; also where a shard holds other samples than its stats say.
    """
    prefix = prefix if options.out else "checked"
    found = [_shard(*place) for place in _places([Path(s) for s in shards])]
    jobs = [Job(prefix, TarPart, write_shards, shards) for shards in together(found, lambda shard: shard.span.size)]
    return run(f"img2dataset-{prefix}", jobs, options, Report(options.skip_bad), len(jobs))


def _places(paths: list) -> list:
    """(path, form) of every shard, sorted; folders are looked into."""
    found = []
    for path in paths:
        if not path.is_dir():
            found.append((path, "parquet" if path.suffix == ".parquet" else "tar"))
            continue
        inside = sorted(path.iterdir())
        tars = [(p, "tar") for p in inside if p.suffix.lower() == ".tar" or packed(p)]
        folders = [(p, "files") for p in inside if p.name[0].isdecimal() and p.is_dir()]
        found += tars or folders or [(p, "parquet") for p in inside if p.suffix == ".parquet"] or [(path, "files")]
    if trouble := next(filter(None, (packed(path) for path, _ in found)), None):
        raise BadFile(trouble)
    return sorted(dict.fromkeys(found))


def _shard(path: Path, form: str) -> Shard:
    span = Span.whole(path)
    if form == "files":
        span = replace(span, size=sum(file.stat().st_size for file in path.iterdir()))
    beside = path.with_name(f"{path.name if form == 'files' else path.stem}_stats.json")
    return Shard(span, form, _stats(beside) if beside.is_file() else ())


def _stats(path: Path) -> tuple:
    """(what, count) of a stats file: its successes, and each kind of failure."""
    try:
        stats = limits.parse(path.read_bytes())
        return tuple((name, field(stats, name, int, path.name))
                     for name in ("successes", "failed_to_download", "failed_to_resize"))
    except ValueError as error:
        raise BadFile(f"{path.name}: not the stats of a download: {error}") from None


def write_shards(payload: tuple, part: TarPart):
    """The work of one job."""
    for shard in payload:
        path, stats, downloaded = Path(shard.span.path), dict(shard.stats), 0

        def write(files, where):
            nonlocal downloaded
            downloaded += not files.keys().isdisjoint(ENDINGS | {"json"})
            info = _info(files, where)
            if (status := field({"status": "success", **info}, "status", str, where)) != "success":
                downloaded -= 1
                part.report.leave_out(f"downloads with status {status}", where)
            elif sample := _sample(files, info, where, part):
                part.write(None, *sample)

        for _ in each(READERS[shard.form](shard.span, part.report), f"{path.name}:", write, part.report):
            pass
        if stats and stats["successes"] != downloaded:
            part.report.bad(f"{path.name}: {downloaded:,} pictures in it, {path.stem}_stats.json says "
                            f"{stats['successes']:,}: download this shard again")
        if shard.form != "parquet":  # there the rows of failures have been met already
            for what in ("failed_to_download", "failed_to_resize"):
                for _ in range(stats.get(what, 0)):
                    part.report.leave_out(f"downloads with status {what}", f"{path.stem}_stats.json")


def _in_tar(span, report):
    """(key, {ending: bytes}) of the members whose names are equal up to the last dot, in the order of their first."""
    path, found, keys = Path(span.path), Names(), array("q")
    try:
        with path.open("rb") as raw:
            for member in members(raw, path.stat().st_size, path.name, report):
                found.add(member.name, member.offset_data, member.size)
                keys.append(hash(_key(member.name)[0]))
            _, first, inverse = np.unique(np.asarray(keys), return_index=True, return_inverse=True)
            order = np.argsort(first[inverse], kind="stable")
            for key, group in groupby((found[int(n)] for n in order), lambda member: _key(member[0])[0]):
                places = {}
                for name, at, size in group:
                    ending = _key(name)[1]
                    if ending in places:
                        report.change("names that come twice: the last counts", f"{path.name}: {name}")
                    places[ending] = at, size
                files = {}
                for ending, (at, size) in places.items():
                    if _fits(size, ending, f"{path.name}: {key}", report):
                        raw.seek(at)
                        files[ending] = raw.read(size) if ending in READ else b""
                yield key, files
    except OSError as error:
        raise unread(path, error) from None


def _key(name: str) -> tuple[str, str]:
    """The name of a sample, and the ending that tells what of it a file is."""
    key, dot, ending = name.rpartition(".")
    return (key, ending.lower()) if dot and "/" not in ending else (name, "")


def _fits(size: int, ending: str, where: str, report: Report) -> bool:
    if large := ending in READ and size > limits.MAX_IMAGE:
        report.bad(f"{where}.{ending}: {size:,} bytes, more than {limits.MAX_IMAGE:,}")
    return not large


def _in_folder(span, report):
    samples, path = {}, Path(span.path)
    for file in sorted(path.iterdir()):
        key, ending = _key(file.name)
        if ending in READ and file.is_file() and _fits(file.stat().st_size, ending, f"{path.name}: {key}", report):
            samples.setdefault(key, {})[ending] = file
    for key, files in samples.items():
        yield key, {ending: file.read_bytes() for ending, file in files.items()}


def _in_parquet(span, report):
    for row, values in parquet.rows(span, ("status",), (*sorted(ENDINGS), *KEPT)):
        if row == 0 and ENDINGS.isdisjoint(values):
            raise BadFile(f"{Path(span.path).name}: no column jpg, png, webp: it is what img2dataset writes beside tars or "
                          "folders; give those")
        files = {ending: values.pop(ending) for ending in ENDINGS.intersection(values)}
        yield values.get("key", f"row {row}"), {e: data for e, data in files.items() if data is not None} | {"json": values}


READERS: dict[str, Callable] = {"tar": _in_tar, "files": _in_folder, "parquet": _in_parquet}


def _info(files, where) -> dict:
    info = files.get("json", {})
    if isinstance(info, bytes):
        try:
            info = limits.parse(info)
        except ValueError as error:
            raise BadRecord(f"{where}.json: broken JSON: {error}") from None
    if not isinstance(info, dict):
        raise BadRecord(f"{where}.json: expected an object")
    return info


def _sample(files, info, where, part):
    """(ending, bytes, info, size), or None where there is no caption."""
    ending = next((ending for ending in files if ending in ENDINGS), None)
    if ending is None:
        raise BadRecord(f"{where}: no picture in it, only {', '.join(files) or 'names without an ending'}")
    text = next((found for found in (info.get("caption"), info.get("txt"), files.get("txt")) if found is not None), None)
    if text is None:
        raise BadRecord(f"{where}: no caption: neither `caption` in its json nor a txt")
    if text is files.get("txt"):
        try:
            text = limits.decode(text)
        except ValueError as error:
            raise BadRecord(f"{where}.txt: {error}") from None
    caption = clean(text, where, part.report)
    if caption is None:
        return None
    ending, data, size = picture(files[ending], where, part.options.verify)
    # The same picture often comes under several addresses: what it shows is its identity.
    kept = {name: info[name] for name in ("url", "key", "width", "height") if name in info}
    return ending, data, {"image_id": hashlib.sha256(data).hexdigest()[:16], "captions": [caption], **kept}, size
