"""Tars that img2dataset downloaded (CC3M, CC12M, SBU, LAION) -> pairs, checked, filtered and re-sharded."""

import hashlib
import json
import tarfile
from pathlib import Path

from xtoolkit.data.convert.official import BadFile, BadRecord, Report, clean, picture
from xtoolkit.data.convert.writer import Options, TarShards, dumps

ENDINGS = ("jpg", "jpeg", "png", "webp")


def convert(shards: list, options: Options | None, prefix: str = "train", skip_bad: bool = False) -> Report:
    """Writes the samples that were downloaded with success and have a picture and a caption.

    Args:
        shards: the tars, read one after the other and never unpacked.
        options: where to write; None only checks the tars and counts.
        prefix: of the shards.
        skip_bad: for a check; otherwise ``options`` says it.

    Raises:
        BadRecord: names the tar and the sample.
    """
    report = Report(options.skip_bad if options else skip_bad)
    if options is None:
        for _, _, info in _samples(shards, report):
            report.wrote("checked", len(info["captions"]))
        return report
    with TarShards(options) as out:
        for ending, data, info in _samples(shards, report):
            out.write(prefix, None, {ending: data, "json": dumps(info)})
            report.wrote(prefix, len(info["captions"]))
    return report


def _samples(shards, report):
    for path in map(Path, shards):
        for key, files in _groups(path, report):
            where = f"{path.name}: {key}"
            try:
                sample = _sample(files, where, report)
            except BadRecord as error:
                report.bad(str(error))
                continue
            if sample:
                yield sample


def _groups(path, report):
    """(key, {ending: bytes}) of the neighbours in a tar that share a key."""
    key, files = None, {}
    try:
        with tarfile.open(path, "r|") as tar:
            for member in tar:
                if not member.isfile():
                    continue
                found, _, ending = member.name.rpartition("/")[2].partition(".")
                if found != key:
                    if files:
                        yield key, files
                    key, files = found, {}
                files[ending.lower()] = tar.extractfile(member).read()
        if files:
            yield key, files
    except (tarfile.TarError, EOFError) as error:
        report.bad(f"{path.name}: broken after {key or 'its beginning'}: {error}")
    except OSError as error:
        raise BadFile(f"{path}: {error.strerror or error}") from None


def _sample(files, where, report):
    info = {}
    if "json" in files:
        try:
            info = json.loads(files["json"])
        except ValueError as error:
            raise BadRecord(f"{where}.json: broken JSON: {error}") from None
        if not isinstance(info, dict):
            raise BadRecord(f"{where}.json: expected an object")
    if info.get("status", "success") != "success":
        report.leave_out(f"downloads with status {info['status']}", where)
        return None
    ending = next((e for e in ENDINGS if e in files), None)
    if ending is None:
        raise BadRecord(f"{where}: no picture ({', '.join(ENDINGS)}) in it, only {', '.join(files)}")
    if "caption" not in info and "txt" not in files:
        raise BadRecord(f"{where}: no caption: neither `caption` in its json nor a txt")
    text = info["caption"] if info.get("caption") is not None else files.get("txt", b"").decode(errors="replace")
    caption = clean(text, where, report)
    if caption is None:
        return None
    ending, data, _ = picture(files[ending], where)
    # The same picture often comes under several addresses: what it shows is its identity.
    kept = {name: info[name] for name in ("url", "key", "width", "height") if name in info}
    return ending, data, {"image_id": hashlib.sha256(data).hexdigest()[:16], "captions": [caption], **kept}
