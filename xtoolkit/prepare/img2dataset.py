"""What img2dataset downloaded (CC3M, CC12M, SBU, LAION) -> pairs, checked, filtered and re-sharded.

It writes one of three forms, a shard of some thousand pictures each: ``00000.tar`` (webdataset), ``00000/`` with a file
a picture (files), or ``00000.parquet`` with the pictures in it. Beside the first two lies a ``00000.parquet`` that
holds no picture and is not needed; beside all of them ``00000_stats.json`` counts the downloads that failed.
"""

import hashlib
from contextlib import nullcontext
from pathlib import Path

from xtoolkit.data import limits, scan
from xtoolkit.data.images import ENDINGS
from xtoolkit.prepare import parquet
from xtoolkit.prepare.official import BadFile, BadRecord, Report, clean, field, picture, unread
from xtoolkit.prepare.records import each
from xtoolkit.prepare.run import Job, run
from xtoolkit.prepare.spans import Span, together
from xtoolkit.prepare.tars import members, packed
from xtoolkit.prepare.writer import Options, TarPart

READ = ENDINGS | {"json", "txt"}
KEPT = ("url", "key", "width", "height", "status", "caption", "txt")  # what is read of a Parquet row beside its picture
FAILURES = ("failed_to_download", "failed_to_resize")


def convert(shards: list, options: Options, prefix: str = "train") -> Report:
    """Writes the samples that were downloaded with success and have a picture and a caption.

    Args:
        shards: tars, ``.parquet`` files, folders of one shard (``00000``), or folders of such.
        options: ``out`` None only checks and counts.

    Raises:
        BadRecord: also where a shard holds other samples than its stats say.
    """
    prefix = prefix if options.out else "checked"
    found = [(Span.whole(path), _stats(path.with_name(f"{path.stem}_stats.json"))) for path in _places(map(Path, shards))]
    jobs = [Job(prefix, TarPart, write_shards, shards) for shards in together(found, lambda shard: shard[0].size)]
    return run(f"img2dataset-{prefix}", jobs, options, Report(options.skip_bad), len(jobs))


def _places(paths) -> list[Path]:
    """Every shard, sorted; folders are looked into for tars, folders of a shard, or Parquet files."""
    found = []
    for path in paths:
        inside = sorted(file for file in path.iterdir() if not scan.hidden(file.name)) if path.is_dir() else []
        forms = ([p for p in inside if p.suffix.lower() == ".tar" or packed(p)],
                 [p for p in inside if p.name[0].isdecimal() and p.is_dir()],
                 [p for p in inside if p.suffix.lower() == ".parquet"])
        found += next(filter(None, forms), [path])
        if path.is_dir() and path in found and not any(_is_read(file) for file in inside):
            raise BadFile(f"{path}: no shard of img2dataset in it: neither 00000.tar nor a folder 00000 nor 00000.parquet")
    if trouble := next(filter(None, map(packed, found)), None):
        raise BadFile(trouble)
    return sorted(set(found))


def _stats(path: Path) -> dict:
    """The successes of a shard, and each kind of failure; nothing where it has no stats."""
    if not path.is_file():
        return {}
    try:
        stats = limits.parse(path.read_bytes())
        return {name: field(stats, name, int, path.name) for name in ("successes", *FAILURES)}
    except ValueError as error:
        raise BadFile(f"{path.name}: not the stats of a download: {error}") from None


def write_shards(payload: tuple, part: TarPart):
    """The work of one job."""
    for span, stats in payload:
        path, downloaded = Path(span.path), 0
        samples = _in_parquet if path.suffix.lower() == ".parquet" else _in_files

        def write(files, where):
            nonlocal downloaded
            downloaded += not files.keys().isdisjoint(ENDINGS | {"json"})
            info = _info(files, where)
            if (status := field({"status": "success", **info}, "status", str, where)) != "success":
                downloaded -= 1
                part.report.leave_out(f"downloads with status {status}", where)
            elif sample := _sample(files, info, where, part):
                part.write(None, *sample)

        for _ in each(samples(path, part.report), f"{path.name}:", write, part.report):
            pass
        if stats and stats["successes"] != downloaded:
            part.report.bad(f"{path.name}: {downloaded:,} pictures in it, {path.stem}_stats.json says "
                            f"{stats['successes']:,}: download this shard again")
        for what in FAILURES if samples is _in_files else ():  # in Parquet the rows of failures have been met already
            for _ in range(stats.get(what, 0)):
                part.report.leave_out(f"downloads with status {what}", f"{path.stem}_stats.json")


def _in_files(path, report):
    """(key, {ending: bytes}) of the files of a tar or folder whose names are equal up to the last dot."""
    samples = {}
    try:
        with nullcontext() if path.is_dir() else path.open("rb") as tar:
            for name, size, place in _listed(path, tar, report):
                if scan.hidden(name):
                    report.leave_out("hidden files", f"{path.name}: {name}")
                    continue
                key, dot, ending = name.rpartition(".")
                key, ending = (key, ending.lower()) if dot and "/" not in ending else (name, "")
                if ending in samples.setdefault(key, {}):
                    report.change("names that come twice: the last counts", f"{path.name}: {name}")
                samples[key][ending] = size, place
            for key, files in samples.items():
                yield key, {ending: _content(tar, size, place) if ending in READ else b""
                            for ending, (size, place) in files.items()
                            if _fits(size, ending, f"{path.name}: {key}", report)}
    except OSError as error:
        raise unread(path, error) from None


def _listed(path, tar, report):
    """(name, size, place) of each file of a tar; where it is none, of a folder."""
    if tar is None:
        yield from ((file.name, file.stat().st_size, file) for file in sorted(path.iterdir())
                    if _is_read(file))
    else:
        for found in members(tar, path.stat().st_size, path.name, report):
            yield found.name, found.size, found.offset_data


def _is_read(file: Path) -> bool:
    return file.suffix[1:].lower() in READ and file.is_file()


def _content(tar, size, place) -> bytes:
    if tar is None:
        return place.read_bytes()
    tar.seek(place)
    return tar.read(size)


def _fits(size: int, ending: str, where: str, report: Report) -> bool:
    if large := ending in READ and size > limits.MAX_IMAGE:
        report.bad(f"{where}.{ending}: {size:,} bytes, more than {limits.MAX_IMAGE:,}")
    return not large


def _in_parquet(path, report):
    for row, values in parquet.rows(Span.whole(path), ("status",), (*sorted(ENDINGS), *KEPT)):
        if row == 0 and ENDINGS.isdisjoint(values):
            raise BadFile(f"{path.name}: no column jpg, png, webp: it is what img2dataset writes beside tars or folders; give "
                          "those")
        files = {ending: values.pop(ending) for ending in ENDINGS.intersection(values)}
        yield values.get("key", f"row {row}"), {e: data for e, data in files.items() if data is not None} | {"json": values}


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
