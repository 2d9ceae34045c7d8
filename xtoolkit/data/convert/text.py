"""Plain text: lines, paragraphs or JSON Lines, also gzipped -> JSON Lines shards."""

import gzip
import json
import zlib
from pathlib import Path

from xtoolkit.data.convert.official import BadFile, BadRecord, Report, field
from xtoolkit.data.convert.writer import LineShards, Options

SHARD_SIZE = 100_000  # lines


def convert(inputs: list, options: Options, prefix: str = "train", key: str = "text",
            paragraphs: bool = False) -> Report:
    """Writes one line a text: ``{"text": ...}``, as raw as it is but for white space at its ends.

    Args:
        inputs: files, read one after the other. ``.jsonl`` and ``.json`` have an object a line (C4: ``.json.gz``);
            everything else is text.
        prefix: of the shards.
        key: the key of the text in JSON Lines.
        paragraphs: a text ends at an empty line (books, Wikipedia) rather than at the end of each line.

    Raises:
        BadRecord: names the file and the line.
    """
    report = Report(options.skip_bad)
    with LineShards(options) as shards:
        for path in map(Path, inputs):
            for where, text in _texts(path, key, paragraphs, report):
                text = text.strip()
                if text:
                    shards.write(prefix, {"text": text})
                    report.wrote(prefix)
                else:
                    report.leave_out("empty texts", where)
    return report


def _texts(path, key, paragraphs, report):
    plain = path.name.removesuffix(".gz")
    if plain.endswith((".jsonl", ".json", ".ndjson")):
        return _from_json(path, key, report)
    return _paragraphs(path, report) if paragraphs else _lines(path, report)


def _from_json(path, key, report):
    for where, line in _lines(path, report):
        if not line.strip():
            continue
        try:
            yield where, field(json.loads(line), key, str, where)
        except json.JSONDecodeError as error:
            report.bad(f"{where}: broken JSON at column {error.colno}: {error.msg}")
        except BadRecord as error:
            report.bad(str(error))


def _paragraphs(path, report):
    begun, words = None, []
    for where, line in _lines(path, report):
        if line.strip():
            begun = begun or where
            words.append(line.strip())
        elif words:
            yield begun, " ".join(words)
            begun, words = None, []
    if words:
        yield begun, " ".join(words)


def _lines(path, report):
    """(file: line n, text) of a file; a line that is not UTF-8 and an archive that is cut are wrong records."""
    number = 0
    try:
        with (gzip.open(path) if path.suffix == ".gz" else path.open("rb")) as file:
            for number, raw in enumerate(file, 1):
                try:
                    text = raw.decode()
                except UnicodeDecodeError as error:
                    report.bad(f"{path.name}: line {number}: not UTF-8 at byte {error.start} of the line")
                    continue
                yield f"{path.name}: line {number}", text
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        report.bad(f"{path.name}: broken after line {number}: {error}")
    except OSError as error:
        raise BadFile(f"{path}: {error.strerror}") from None
