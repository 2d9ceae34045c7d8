"""What img2dataset downloaded (CC3M, CC12M, SBU, LAION) -> pairs, checked, filtered and re-sharded.

It writes one of three forms, a shard of some thousand pictures each: ``00000.tar`` (webdataset), ``00000/`` with a file
a picture (files), or ``00000.parquet`` with the pictures in it. Beside the first two lies a ``00000.parquet`` that
holds no picture and is not needed; beside all of them ``00000_stats.json`` counts the downloads that failed.
"""

import hashlib
import json
import tarfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from xtoolkit.data import limits
from xtoolkit.prepare import parquet
from xtoolkit.prepare.official import BadFile, BadRecord, Report, clean, outside, picture
from xtoolkit.prepare.run import Job, run
from xtoolkit.prepare.spans import SPAN, Span
from xtoolkit.prepare.writer import Options, TarPart

ENDINGS = ("jpg", "jpeg", "png", "webp")
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
    jobs, together, filled = [], [], 0
    for shard in found:  # small shards go together, in a way that depends on their sizes only
        together.append(shard)
        filled += shard.span.size
        if filled >= SPAN or shard is found[-1]:
            jobs.append(Job(prefix, TarPart, write_shards, tuple(together)))
            together, filled = [], 0
    return run(f"img2dataset-{prefix}", jobs, options, Report(options.skip_bad), len(jobs))


def _places(paths: list) -> list:
    """(path, form) of every shard, sorted; folders are looked into."""
    found = []
    for path in paths:
        if path.is_dir():
            tars, numbered = sorted(path.glob("*.tar")), [p for p in path.glob("[0-9]*") if p.is_dir()]
            if tars or numbered:
                found += [(p, "tar") for p in tars] or [(p, "files") for p in sorted(numbered)]
            elif any(path.glob("*.parquet")):
                found += [(p, "parquet") for p in sorted(path.glob("*.parquet"))]
            else:
                found.append((path, "files"))
        else:
            found.append((path, "parquet" if path.suffix == ".parquet" else "tar"))
    return sorted(dict.fromkeys(found))


def _shard(path: Path, form: str) -> Shard:
    try:
        stat = path.stat()
    except OSError as error:
        raise BadFile(f"{path}: {error.strerror}") from None
    size = sum(p.stat().st_size for p in path.iterdir()) if form == "files" else stat.st_size
    beside = path.with_name(f"{path.name if form == 'files' else path.stem}_stats.json")
    return Shard(Span(str(path), size, stat.st_mtime_ns), form, _stats(beside) if beside.is_file() else ())


def _stats(path: Path) -> tuple:
    """(what, count) of a stats file: its successes, and each kind of failure."""
    try:
        stats = json.loads(path.read_bytes())
        return tuple((name, int(stats[name])) for name in ("successes", "failed_to_download", "failed_to_resize"))
    except (ValueError, KeyError, TypeError) as error:
        raise BadFile(f"{path.name}: not the stats of a download: {type(error).__name__}: {error}") from None


def write_shards(payload: tuple, part: TarPart):
    """The work of one job."""
    for shard in payload:
        path, read = Path(shard.span.path), READERS[shard.form]
        success, stats = 0, dict(shard.stats)
        for key, files in read(path, part.report):
            where = f"{path.name}: {key}"
            try:
                sample = _sample(files, where, part)
            except BadRecord as error:
                part.report.bad(str(error))
                success += "json" in files or any(e in files for e in ENDINGS)
                continue
            success += sample is not FAILED
            if sample:
                part.write(None, *sample)
        if stats and stats["successes"] != success:
            part.report.bad(f"{path.name}: {success:,} pictures in it, {path.stem}_stats.json says "
                            f"{stats['successes']:,}: download this shard again")
        if shard.form != "parquet":  # there the rows of failures have been met already
            for what in ("failed_to_download", "failed_to_resize"):
                for _ in range(stats.get(what, 0)):
                    part.report.leave_out(f"downloads with status {what}", f"{path.stem}_stats.json")


def _in_tar(path, report):
    """(key, {ending: bytes}) of the neighbours in a tar that share a key."""
    key, files = None, {}
    try:
        with tarfile.open(path, "r|") as tar:
            for member in tar:
                if outside(member):
                    report.bad(f"{path.name}: {member.name}: refused: a link, a device, or a name that leads out of the tar")
                    continue
                if member.isdir():
                    continue
                found, _, ending = member.name.rpartition("/")[2].partition(".")
                if found != key:
                    if files:
                        yield key, files
                    key, files = found, {}
                if ending.lower() in files:
                    report.bad(f"{path.name}: {key}: {member.name} comes a second time")
                wanted = ending.lower() in (*ENDINGS, "json", "txt")
                if wanted and member.size > limits.MAX_IMAGE:
                    report.bad(f"{path.name}: {member.name}: {member.size:,} bytes, more than {limits.MAX_IMAGE:,}")
                    continue
                files[ending.lower()] = tar.extractfile(member).read() if wanted else b""
        if files:
            yield key, files
    except BadRecord:
        raise
    except (tarfile.TarError, EOFError, ValueError, OverflowError, RecursionError) as error:
        report.bad(f"{path.name}: broken after {key or 'its beginning'}: {error}")
    except OSError as error:
        raise BadFile(f"{path}: {error.strerror or error}") from None


def _in_folder(path, report):
    names = {}
    for file in sorted(path.iterdir()):
        key, _, ending = file.name.partition(".")
        names.setdefault(key, {})[ending.lower()] = file
    for key, files in names.items():
        yield key, {ending: file.read_bytes() for ending, file in files.items() if ending in (*ENDINGS, "json", "txt")}


def _in_parquet(path, report):
    for row, values in parquet.rows(path, ("status",), (*ENDINGS, *KEPT)):
        if row == 0 and not any(ending in values for ending in ENDINGS):
            raise BadFile(f"{path.name}: no column {', '.join(ENDINGS)}: it is what img2dataset writes beside tars or "
                          "folders; give those")
        files = {ending: values.pop(ending) for ending in ENDINGS if values.get(ending) is not None}
        yield values.get("key", f"row {row}"), {**files, "json": {n: v for n, v in values.items() if n not in ENDINGS}}


READERS: dict[str, Callable] = {"tar": _in_tar, "files": _in_folder, "parquet": _in_parquet}
FAILED = ()  # a download that did not succeed


def _sample(files, where, part):
    """(ending, bytes, info, size), ``FAILED``, or None where there is no caption."""
    info = files.get("json", {})
    if isinstance(info, bytes):
        try:
            info = limits.parse(info)
        except ValueError as error:
            raise BadRecord(f"{where}.json: broken JSON: {error}") from None
    if not isinstance(info, dict):
        raise BadRecord(f"{where}.json: expected an object")
    if info.get("status", "success") != "success":
        part.report.leave_out(f"downloads with status {info['status']}", where)
        return FAILED
    ending = next((e for e in ENDINGS if e in files), None)
    if ending is None:
        raise BadRecord(f"{where}: no picture ({', '.join(ENDINGS)}) in it, only {', '.join(files)}")
    text = info.get("caption")
    if text is None:
        text = info.get("txt", files.get("txt"))
    if text is None:
        raise BadRecord(f"{where}: no caption: neither `caption` in its json nor a txt")
    caption = clean(text.decode(errors="replace") if isinstance(text, bytes) else text, where, part.report)
    if caption is None:
        return None
    ending, data, size = picture(files[ending], where, part.options.verify)
    # The same picture often comes under several addresses: what it shows is its identity.
    kept = {name: info[name] for name in ("url", "key", "width", "height") if name in info}
    return ending, data, {"image_id": hashlib.sha256(data).hexdigest()[:16], "captions": [caption], **kept}, size
