"""Lines of text and rows of tables, one in memory at a time: plain text, JSON Lines, CSV, also gzipped; Parquet."""

import gzip
import itertools
import json
import zlib
from pathlib import Path

from xtoolkit.data import limits, tables
from xtoolkit.prepare import parquet
from xtoolkit.prepare.official import BadFile, BadRecord, Report, unread
from xtoolkit.prepare.records import each
from xtoolkit.prepare.spans import Span, together

OBJECTS = (".jsonl", ".json", ".ndjson")  # one a line
TABLES = (".csv", ".tsv")


def kind(path: str | Path) -> str:
    """The ending that tells what is in a file, without that of gzip."""
    return Path(str(path).lower().removesuffix(".gz")).suffix


def grouped(inputs: list) -> list[tuple]:
    """The spans of each job. A file that is packed, or where a row may have several lines, is not cut."""
    wholes = [(Span.whole(path), Path(path).suffix.lower() != ".gz" and kind(path) not in TABLES) for path in inputs]
    return together(span for whole, cuttable in wholes for span in (whole.cut() if cuttable else [whole]))


def records(span: Span, report: Report, columns: tuple = (), either: tuple = ()):
    """(where, record) of a piece of JSON Lines or of a table, which must have some columns; Parquet's others are not read.

    Args:
        either: groups of names; the heading of a CSV file most likely has one of each.
    """
    path, parse, found = Path(span.path), _value, ((where, line) for where, line, _ in lines(span, report))
    if kind(path) == ".parquet":
        yield from ((f"{path.name}: row {row}", values) for row, values in parquet.rows(span, columns))
        return
    if kind(path) in TABLES:
        found = rows(path, report, either or tuple((name,) for name in columns))
        where, heading = next(found, (path.name, []))
        if missing := [name for name in columns if name not in heading]:
            raise BadFile(f"{where}: no column {', '.join(missing)}; it has {', '.join(heading)[:200]}")

        def parse(cells, where):
            if len(cells) != len(heading):
                raise BadRecord(f"{where}: {len(cells)} columns, the heading has {len(heading)}")
            return where, dict(zip(heading, cells))

    yield from each(found, "", parse, report)


def _value(line, where):
    try:
        return (where, limits.parse(line)) if line.strip() else None
    except json.JSONDecodeError as error:
        raise BadRecord(f"{where}: broken JSON at column {error.colno}: {error.msg}") from None
    except ValueError as error:
        raise BadRecord(f"{where}: broken JSON: {error}") from None


def rows(path: Path, report: Report, either: tuple = ()):
    """(where, cells) of a CSV file; an empty row is passed over.

    Its delimiter is that under which its first line has a name of each group of ``either``; of several, and of none, what that
    line has most of.
    """
    def likely(delimiter):
        try:
            heading = tables.cells_of(first[1], delimiter)
        except ValueError:
            heading = []
        return all(any(name in heading for name in names) for names in either), first[1].count(delimiter)

    found = ((where, text) for where, text, _ in lines(Span(str(path), 0, 0), report))
    first = next(found, ("", ""))
    delimiter = max(",\t;", key=likely)
    for record in tables.records(itertools.chain([first], found), delimiter):
        try:
            yield record[0][0], tables.cells_of("".join(text for _, text in record), delimiter)
        except ValueError as error:
            report.bad(f"{record[0][0]}: broken CSV: {error}")


def lines(span: Span, report: Report, behind: bool = False):
    """(file: line n, text, place of its first byte) of the lines that begin in a span, or ``behind`` it as well.

    A line that is not UTF-8 or too long, and an archive that is cut or a bomb, are wrong records.

    Raises:
        BadFile: a file of another kind, by its first bytes.
    """
    path, number = Path(span.path), 0
    after = f" after byte {span.start}" if span.start else ""
    try:
        with path.open("rb") as packed, (gzip.open(packed) if path.suffix.lower() == ".gz" else packed) as file:
            found, place, beginning = _whole(file, packed), span.start, packed.peek(512)[:512]
            if span.start:  # the line that is under way belongs to the span before
                file.seek(span.start - 1)
                place += next(found, (b"", 1))[1] - 1
            for number, (raw, size) in enumerate(found, 1):
                start, place = place, place + size
                if span.end is not None and start >= span.end and not behind:
                    return
                where = f"{path.name}: line {number}{after}"
                if raw is None:
                    report.bad(f"{where}: {size:,} bytes; a text has at most {limits.MAX_TEXT:,}")
                    continue
                try:
                    text = limits.decode(raw)
                except ValueError as error:
                    if file is packed and limits.seen(beginning)[0] not in (None, "empty", "UTF-16"):
                        raise BadFile(f"{path.name}: {limits.looks(beginning)}") from None
                    report.bad(f"{where}: {error}")
                    continue
                yield where, text, start
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        report.bad(f"{path.name}: broken after line {number}: {error}")
    except OSError as error:
        raise unread(path, error) from None


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
