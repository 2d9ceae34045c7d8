"""Plain text: lines, paragraphs, JSON Lines or Parquet, also gzipped -> JSON Lines shards."""

import gzip
import json
import zlib
from dataclasses import dataclass
from pathlib import Path

from xtoolkit.data import limits
from xtoolkit.prepare import parquet
from xtoolkit.prepare.official import BadFile, BadRecord, Report, field
from xtoolkit.prepare.run import Job, run
from xtoolkit.prepare.spans import grouped
from xtoolkit.prepare.writer import LinePart, Options

SHARD_SIZE = 100_000  # lines


@dataclass(frozen=True)
class Texts:
    """What one job reads, and how."""

    spans: tuple
    key: str
    paragraphs: bool


def convert(inputs: list, options: Options, prefix: str = "train", key: str = "text",
            paragraphs: bool = False) -> Report:
    """Writes one line a text: ``{"text": ...}``, as raw as it is but for white space at its ends.

    Args:
        inputs: files, read one after the other. ``.jsonl`` and ``.json`` have an object a line (C4: ``.json.gz``),
            ``.parquet`` a column; everything else is text.
        prefix: of the shards.
        key: the key of the text in JSON Lines, the column in Parquet.
        paragraphs: a text ends at an empty line (books, Wikipedia) rather than at the end of each line.

    Raises:
        BadRecord: names the file and the line.
    """
    jobs = [Job(prefix, LinePart, write_texts, Texts(spans, key, paragraphs)) for spans in grouped(inputs, _cuttable)]
    return run(f"text-{prefix}", jobs, options, Report(options.skip_bad), len(jobs))


def _cuttable(path):
    return path.suffix not in (".gz", ".parquet")


def write_texts(payload: Texts, part: LinePart):
    """The work of one job."""
    for span in payload.spans:
        for where, text in _texts(span, payload, part.report):
            text = text.strip()
            if text:
                part.write(text)
            else:
                part.report.leave_out("empty texts", where)


def _texts(span, payload, report):
    plain = Path(span.path).name.removesuffix(".gz")
    if plain.endswith(".parquet"):
        return _from_parquet(Path(span.path), payload.key, report)
    if plain.endswith((".jsonl", ".json", ".ndjson")):
        return _from_json(span, payload.key, report)
    return _paragraphs(span, report) if payload.paragraphs else ((w, t) for w, t, _ in _lines(span, report))


def _from_parquet(path, key, report):
    for row, values in parquet.rows(path, (key,)):
        where = f"{path.name}: row {row}"
        try:
            yield where, parquet.text(values[key], key, where)
        except BadRecord as error:
            report.bad(str(error))


def _from_json(span, key, report):
    for where, line, _ in _lines(span, report):
        if not line.strip():
            continue
        try:
            yield where, field(limits.parse(line), key, str, where)
        except BadRecord as error:
            report.bad(str(error))
        except json.JSONDecodeError as error:
            report.bad(f"{where}: broken JSON at column {error.colno}: {error.msg}")
        except ValueError as error:
            report.bad(f"{where}: broken JSON: {error}")


def _paragraphs(span, report):
    """The paragraphs after the span's first empty line, to the first empty line behind its end.

    The first span of a file begins at the file's beginning: so each paragraph is read once, however a file is cut.
    """
    begun, words, ours, size = None, [], span.start == 0, 0
    for where, line, start in _lines(span, report, behind=True):
        if line.strip():
            if ours:
                begun, size = begun or where, size + len(line)
                words.append(line.strip())
            if size > limits.MAX_TEXT:
                report.bad(f"{begun}: a paragraph of more than {limits.MAX_TEXT:,} bytes is no text")
                begun, words, ours, size = None, [], False, 0
            continue
        size = 0
        if words:
            yield begun, " ".join(words)
            begun, words = None, []
        if span.end is not None and start >= span.end:
            return
        ours = True
    if words:
        yield begun, " ".join(words)


def _lines(span, report, behind=False):
    """(file: line n, text, place of its first byte) of the lines that begin in a span, or ``behind`` it as well.

    A line that is not UTF-8 or too long, and an archive that is cut or a bomb, are wrong records.
    """
    path, number = Path(span.path), 0
    after = f" after byte {span.start}" if span.start else ""
    try:
        with path.open("rb") as packed, (gzip.open(packed) if path.suffix == ".gz" else packed) as file:
            lines, place = _whole(file, packed), span.start
            if span.start:  # the line that is under way belongs to the span before
                file.seek(span.start - 1)
                place += next(lines, (b"", 1))[1] - 1
            for number, (raw, size) in enumerate(lines, 1):
                start, place = place, place + size
                if span.end is not None and start >= span.end and not behind:
                    return
                where = f"{path.name}: line {number}{after}"
                if raw is None:
                    report.bad(f"{where}: {size:,} bytes; a text has at most {limits.MAX_TEXT:,}")
                    continue
                try:
                    text = raw.decode()
                except UnicodeDecodeError as error:
                    report.bad(f"{where}: not UTF-8 at byte {error.start} of the line")
                    continue
                yield where, text, start
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        report.bad(f"{path.name}: broken after line {number}: {error}")
    except OSError as error:
        raise BadFile(f"{path}: {error.strerror}") from None


def _whole(file, packed):
    """(line, its bytes) of each line; None for one that is too long to be a text, which is never in memory whole.

    Raises:
        BadGzipFile: the file that ``packed`` reads the bytes of unpacks to more than any text does.
    """
    size, read, most = 0, 0, limits.MAX_TEXT
    while piece := file.readline(most):
        size, read = size + len(piece), read + len(piece)
        if file is not packed and read > max(limits.UNPACKED, limits.RATIO * packed.tell()):
            raise gzip.BadGzipFile(f"unpacks to more than {limits.RATIO} times its size: taken for a decompression bomb")
        if len(piece) == most and not piece.endswith(b"\n"):
            continue
        yield (piece if size == len(piece) else None), size
        size = 0
    if size:
        yield None, size
