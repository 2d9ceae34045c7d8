"""Plain text: lines, paragraphs, and a field of JSON Lines, CSV or Parquet, also gzipped -> JSON Lines shards."""

from xtoolkit.data import limits
from xtoolkit.prepare.lines import OBJECTS, TABLES, grouped, kind, lines, records
from xtoolkit.prepare.official import Report, field
from xtoolkit.prepare.records import each
from xtoolkit.prepare.run import Job, run
from xtoolkit.prepare.writer import LinePart, Options

SHARD_SIZE = 100_000  # lines


def convert(inputs: list, options: Options, prefix: str = "train", key: str = "text",
            paragraphs: bool = False) -> Report:
    """Writes one line a text: ``{"text": ...}``, as raw as it is but for white space at its ends.

    Args:
        inputs: ``.jsonl`` and ``.json`` have an object a line (C4: ``.json.gz``), ``.parquet``, ``.csv`` and ``.tsv`` a
            column; everything else is text.
        key: the key of the text in JSON Lines, the column of a table.
        paragraphs: a text ends at an empty line (books, Wikipedia) rather than at the end of each line.
    """
    jobs = [Job(prefix, LinePart, write_texts, (spans, key, paragraphs)) for spans in grouped(inputs)]
    return run(f"text-{prefix}", jobs, options, Report(options.skip_bad), len(jobs))


def write_texts(payload: tuple, part: LinePart):
    """The work of one job."""
    spans, key, paragraphs = payload
    for span in spans:
        for where, text in _texts(span, key, paragraphs, part.report):
            if text := text.strip():
                part.write(text)
            else:
                part.report.leave_out("empty texts", where)


def _texts(span, key, paragraphs, report):
    if kind(span.path) in (*OBJECTS, *TABLES, ".parquet"):
        found = records(span, report, (key,))
        yield from each(found, "", lambda record, where: (where, field(record, key, str, where)), report)
    elif paragraphs:
        yield from _paragraphs(span, report)
    else:
        yield from ((where, text) for where, text, _ in lines(span, report))


def _paragraphs(span, report):
    """The paragraphs after the span's first empty line, to the first empty line behind its end.

    The first span of a file begins at the file's beginning: so each paragraph is read once, however a file is cut.
    """
    begun, words, ours, size = None, [], span.start == 0, 0
    for where, line, start in lines(span, report, behind=True):
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
