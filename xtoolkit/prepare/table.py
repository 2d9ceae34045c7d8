"""Tables of pictures and captions: CSV, JSON Lines, Hugging Face's ImageFolder, Parquet with pictures in it -> pairs."""

import hashlib
from dataclasses import dataclass
from itertools import chain, groupby
from pathlib import Path

from xtoolkit.data import limits, tables
from xtoolkit.prepare import parquet
from xtoolkit.prepare.lines import OBJECTS, TABLES, grouped, kind, records
from xtoolkit.prepare.official import BadFile, BadRecord, Report, below, cleaned, field, picture, pictures_folder, unread
from xtoolkit.prepare.records import each
from xtoolkit.prepare.run import Job, run, write_pictures
from xtoolkit.prepare.spans import Span
from xtoolkit.prepare.writer import Draft, Options, TarPart

# The usual names of the columns. A table must have one of each, or be told which is meant.
IMAGE, TEXT = (*tables.PICTURE, "image_path"), tables.CAPTIONS
METADATA = tuple(f"metadata{ending}" for ending in (".csv", ".jsonl", ".parquet"))  # of an ImageFolder


@dataclass(frozen=True)
class Table:
    """How rows are read: the names of two columns; None: a usual one. The folder of the pictures; None: the table's."""

    image: str | None = None
    text: str | None = None
    root: Path | None = None


def convert(inputs: list, options: Options, prefix: str = "train", table: Table = Table()) -> Report:
    """Writes a pair sample a row, or for rows of one picture that are neighbours.

    A row names a picture by its path, or has its bytes (Parquet): as they are, or as ``{"bytes": ..., "path": ...}``. It has
    a caption or a list of them. Rows are read as a stream; a row group of Parquet is in memory at a time.

    Args:
        inputs: ``.csv``, ``.tsv``, ``.jsonl``, the same gzipped, or ``.parquet``; not Parquet and others together.
    """
    report, inputs = Report(options.skip_bad), [Path(path) for path in inputs]
    if table.root is not None:
        pictures_folder(table.root)
    packed = [path for path in inputs if kind(path) == ".parquet"]
    for path in inputs:
        if kind(path) not in (*OBJECTS, *TABLES, ".parquet"):
            raise BadFile(f"{path}: not a table: {_kind(path)}its name must end in .csv, .tsv, .jsonl or .parquet")
        if packed and path not in packed:
            raise BadFile(f"{path}: prepare Parquet and other tables one after the other, with another --name")
    if packed:
        jobs = [Job(prefix, TarPart, write_rows, (spans, table)) for spans in grouped(inputs)]
        return run(f"table-{prefix}", jobs, options, report, len(jobs))
    drafts = (draft for path in inputs for draft in _drafts(path, table, prefix, report))
    return write_pictures(f"table-{prefix}", drafts, options, report)


def _kind(path: Path) -> str:
    try:
        with path.open("rb") as file:
            beginning = file.read(512)
    except OSError as error:
        raise unread(path, error) from None
    return f"{limits.looks(beginning)}; " if limits.seen(beginning)[0] else ""


def _drafts(path, table, prefix, report):
    def parse(record, where):
        name = field(record, image, str, where)
        return name, _file(name, root, where), _captions(record.get(text), where, report), where

    either = ((table.image,) if table.image else IMAGE, (table.text,) if table.text else TEXT)
    found, root = records(Span(str(path), 0, 0), report, either=either), table.root or path.parent
    first = next(found, None)
    if first is None:
        return
    image, text = _columns(path.name, list(first[1]) if isinstance(first[1], dict) else [], table)
    for _, rows in groupby(each(chain([first], found), "", parse, report), lambda row: row[0]):
        name, file, captions, where = next(rows)
        captions += [caption for _, _, more, _ in rows for caption in more]
        if captions:
            yield Draft(prefix, None, file, {"captions": captions}, where)


def write_rows(payload: tuple, part: TarPart):
    """The work of one job: rows of Parquet files."""
    def write(record, where):
        value, captions = record[image], _captions(record[text], where, part.report)
        if isinstance(value, dict):
            value = value.get("path") if value.get("bytes") is None else value["bytes"]
        if isinstance(value, str):
            value = _file(value, root, where)
        elif not isinstance(value, bytes):
            raise BadRecord(f"{where}: `{image}` is {str(value)[:60]}, neither a picture's bytes nor its path")
        if captions:
            ending, data, size = picture(value, where, part.options.verify)
            part.write(None, ending, data, {"image_id": hashlib.sha256(data).hexdigest()[:16], "captions": captions}, size)

    spans, table = payload
    for span in spans:
        path = Path(span.path)
        root = table.root or path.parent
        image, text = _columns(path.name, parquet.names(path), table)
        for _ in each(records(span, part.report, (image, text)), "", write, part.report):
            pass


def _columns(file: str, names: list, table: Table) -> list[str]:
    """The columns of pictures and of captions. Raises BadFile unless there is one of each."""
    found = []
    for what, given, usual in (("image", table.image, IMAGE), ("text", table.text, TEXT)):
        fitting = [name for name in ([given] if given else usual) if name in names]
        if len(fitting) != 1:
            trouble = f"no column {given or ', '.join(usual)}"
            if fitting:
                trouble = f"several columns may be meant, {', '.join(fitting)}"
            has = ", ".join(map(str, names))[:200] or "none"
            raise BadFile(f"{file}: {trouble}; it has {has}: name one with --{what}-column")
        found += fitting
    return found


def _captions(value, where, report) -> list:
    return cleaned(value if isinstance(value, list) else [value], where, report)


def _file(name: str, root: Path, where: str) -> Path:
    """The picture of a path below the folder of the pictures; open_clip's tables have whole paths, some have addresses."""
    if "://" in name[:9]:
        raise BadRecord(f"{where}: {name[:60]} is an address: download its picture by img2dataset")
    path = Path(name)
    return below(root, str(path.relative_to(root) if path.is_absolute() and path.is_relative_to(root) else path), where)
