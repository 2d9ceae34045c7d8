"""Tables of samples beside their pictures: what a row of JSON Lines, a CSV or a TSV holds, and where its picture is."""

import codecs
import csv
import io
import itertools
import os
import stat
import zlib
from array import array
from collections import deque
from collections.abc import Iterable, Iterator

from xtoolkit.data import limits, paths

# The names that people give to the columns, or keys, that are read. A row has one of each.
PICTURE = ("image", "file_name", "filepath", "path", "filename", "img")
CAPTIONS = ("captions", "caption", "text", "title")
NAMELESS = f"it has no `{'`, no `'.join(PICTURE)}`"
LONGEST = 1000  # lines of one record of a CSV
DELIMITERS = {"csv": ",", "tsv": "\t"}

csv.field_size_limit(max(csv.field_size_limit(), limits.MAX_TEXT))  # else a text of 128 KiB ends the table


def named(row, names: tuple[str, ...]) -> str | None:
    """Which of some names a row or header has.

    Raises:
        ValueError: it has several.
    """
    found = [name for name in names if name in row]
    if len(found) > 1:
        raise ValueError(f"it has {' and '.join(f'`{name}`' for name in found)}, and one must be meant: rename the others")
    return found[0] if found else None


def shown(value) -> str:
    """A value of a stranger's, within one line of a message."""
    return " ".join(str(value).split())[:100]


def lacking(row, needs: tuple[tuple[str, ...], ...]) -> str | None:
    """What a header or first row lacks of the groups of names that a stream needs, in words; None: nothing."""
    if twice := next((name for name in row if list(row).count(name) > 1), None):
        return f"it has `{shown(twice)}` twice"
    try:
        for names in needs:
            if named(row, names) is None:
                what = "picture" if names is PICTURE else "caption"
                near = next((key for key in row if str(key).strip().lower() in names), None)
                meant = f"; did you mean `{near.strip().lower()}` by {near[:20]!r}?" if near is not None else ""
                there = ", ".join(map(shown, list(row)[:8])) or "nothing"
                return f"it has no {what}, one of {', '.join(names)}, only {there}{meant}"
    except ValueError as e:
        return str(e)
    return None


def sample(raw: bytes, kind: str, columns: list[str], bad) -> dict:
    """What a row says, its picture's path as ``image`` and its captions as ``captions``, whatever they are called in it.

    Args:
        bad: (kind, detail) -> the BadSample to raise.
    """
    wrong = "not utf-8"
    try:
        text = limits.decode(raw)
        wrong = "broken json" if kind == "jsonl" else "broken row"
        row = limits.parse(text, dict) if kind == "jsonl" else _cells(text, columns, DELIMITERS[kind])
        wrong = "broken row"
        picture, captions = named(row, PICTURE), named(row, CAPTIONS)
    except ValueError as e:
        raise bad(wrong, str(e))
    given = {key: value for key, value in row.items() if key not in PICTURE + CAPTIONS}
    return given | {name: row[key] for name, key in (("image", picture), ("captions", captions)) if key is not None}


def _cells(text: str, columns: list[str], delimiter: str) -> dict:
    """The cells of a row by their columns. An empty ``label`` is None: a CSV has no other word for none."""
    cells = cells_of(text, delimiter)
    if len(cells) != len(columns):
        raise ValueError(f"{len(cells)} cells, and the header row has {len(columns)}")
    return {name: cell or None if name == "label" else cell for name, cell in zip(columns, cells)}


def picture(root: str, name, bad) -> bytes:
    """The bytes of a picture below a folder.

    Args:
        bad: (kind, detail) -> the BadSample to raise.
    """
    if not isinstance(name, str) or not name:
        raise bad("missing picture", f"the row names none: {shown(name) if name is not None else NAMELESS}")
    try:
        if why := outside(root, name):
            raise bad("refused picture", why)
        root, file = os.path.realpath(root), os.path.realpath(os.path.join(root, name))
        seen = os.stat(file)  # before it is opened: a pipe would never answer
        if not stat.S_ISREG(seen.st_mode):
            raise bad("refused picture", f"{shown(name)} is no file")
        if seen.st_size > limits.MAX_IMAGE:
            raise bad("too large", f"{shown(name)} has {seen.st_size:,} bytes, more than {limits.MAX_IMAGE:,}")
        with open(file, "rb") as f:
            return f.read(limits.MAX_IMAGE)
    except (OSError, ValueError) as e:
        raise bad("missing picture", f"{shown(name)} below {root}: {getattr(e, 'strerror', None) or e}")


def outside(root: str, name: str) -> str | None:
    """Why a picture does not lie below a folder, and what mends it; None: it does."""
    below = lambda made: os.path.commonpath([made(root), made(os.path.join(root, name))]) == made(root)
    if below(os.path.realpath):
        return None
    link = f"through a link: `{paths.TOOL} table` follows it"
    mend = link if below(os.path.abspath) else "`images` names the folder of the pictures"
    return f"{shown(name)} leads out of {os.path.realpath(root)}; {mend}"


def captions(meta: dict) -> list[str]:
    """The captions of a sample: the texts in ``captions``, else in ``caption``, which are a text or a list of texts."""
    return strings(meta.get("captions")) or strings(meta.get("caption"))


def strings(value) -> list[str]:
    """A text or a list of texts as a list; what is none is left out, and so is an empty text that stands alone."""
    return [text for text in (value if isinstance(value, list) else [value] if value else []) if isinstance(text, str)]


def no_texts(value) -> list[str]:
    """A line for each caption of a text or list of texts that is none."""
    listed = value if isinstance(value, list) else [value]
    return [f"captions must be strings, not {shown(text)}" for text in listed if not isinstance(text, str)]


def no_caption(meta: dict) -> str:
    """Why a sample has none."""
    given = [meta[name] for name in ("captions", "caption") if meta.get(name) not in (None, "", [])]
    value = given[0] if given else None
    value = value[0] if isinstance(value, list) else value
    return f"captions must be strings, not {shown(value)}" if given else "no caption, and no .txt"


# ---- csv -------------------------------------------------------------------------------------------------------------
def records(lines: Iterable[tuple], delimiter: str) -> Iterator[list[tuple]]:
    """The lines of each record of a CSV or TSV, several where a quoted cell holds line breaks; empty ones are passed over.

    A quote that is closed nowhere, or only rows later, would take all that lies between into one cell. So what cannot be one
    record, by csv's strict rules, by ``LONGEST``, or since each line between its first and last is a row by itself, is a
    record of its first line alone, which is then broken; the others are read as if it were not there.

    Args:
        lines: (anything, text) of each line, its end included.
    """
    behind, lines, width = deque(), iter(lines), 0
    while (line := behind.popleft() if behind else next(lines, None)) is not None:
        record, state = [line], _state(line[1], delimiter)
        while state == "open" and len(record) < LONGEST and (more := behind.popleft() if behind else next(lines, None)):
            record.append(more)
            state = _state("".join(text for _, text in record), delimiter) if '"' in more[1] else state
        rows = [len(cells_of(text, delimiter)) for _, text in record[1:-1] if '"' not in text] if len(record) > 3 else []
        if len(record) > 1 and (state != "whole" or len(rows) == len(record) - 2 and set(rows) == {width}):
            behind.extendleft(reversed(record[1:]))
            record = record[:1]
        if line[1].strip("\r\n"):
            width = width or len(next(csv.reader([text for _, text in record], delimiter=delimiter)))
            yield record


def _state(record: str, delimiter: str) -> str:
    """Whether the text of a record is ``whole``, still ``open``, or ``broken``."""
    try:
        if '"' in record:
            cells_of(record, delimiter)
        return "whole"
    except ValueError as e:
        return "open" if "unexpected end" in str(e) else "broken"


def places(f, delimiter: str) -> array:
    """Where each record begins, and its bytes, one after the other, the header row first."""
    def lines():
        at = 0
        while line := f.readline(limits.MAX_TEXT):
            mark = len(codecs.BOM_UTF8) if not at and line.startswith(codecs.BOM_UTF8) else 0
            yield at + mark, line[mark:].decode("latin-1")  # quotes and delimiters are the same bytes in UTF-8
            at += len(line)

    found = array("q")
    for record in records(lines(), delimiter):
        found.extend((record[0][0], sum(len(text) for _, text in record)))
    return found


def first_rows(f, ending: str, count: int = 8) -> tuple[list | dict | None, list[str]]:
    """The header row of an open CSV or TSV, or the first row of JSON Lines; and the pictures that the first rows name.

    Raises:
        ValueError: the header row is broken. Of JSON Lines, as of all rows below, what is broken ends what is looked at.
    """
    lines, head, found = iter(lambda: f.readline(limits.MAX_TEXT), b""), None, []
    if ending.startswith(".jsonl"):
        rows = map(limits.parse, filter(bytes.strip, lines))
    else:
        cells = filter(None, csv.reader(map(limits.decode, lines), delimiter=DELIMITERS[ending[1:]]))
        try:
            head = next(cells, [])
        except csv.Error as e:
            raise ValueError(str(e)) from None
        rows = (dict(zip(head, row)) for row in cells)
    try:
        for row in itertools.islice(rows, count):
            head = row if head is None else head
            found.append(row.get(named(row, PICTURE)) if isinstance(row, dict) else None)
    except (OSError, EOFError, ValueError, csv.Error, zlib.error):
        pass
    return head, [name for name in found if isinstance(name, str) and name]


def cells_of(record: str, delimiter: str) -> list[str]:
    """The cells of one record of a CSV or TSV. Raises ValueError."""
    try:
        return next(csv.reader(io.StringIO(record, newline="\n"), delimiter=delimiter, strict=True), [])
    except csv.Error as e:
        raise ValueError(str(e)) from None
