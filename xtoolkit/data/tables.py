"""Tables of samples beside their pictures: what a row of JSON Lines, a CSV or a TSV holds, and where its picture is."""

import os
import stat

from xtoolkit.data import limits, scan

# The names that people give to the columns, or keys, that are read. A row has one of each.
PICTURE = ("image", "file_name", "filepath", "path", "filename")
CAPTIONS = ("captions", "caption", "text", "title")
DELIMITERS = {"csv": ",", "tsv": "\t"}


def named(row, names: tuple[str, ...]) -> str | None:
    """Which of some names a row or header has.

    Raises:
        ValueError: it has several.
    """
    found = [name for name in names if name in row]
    if len(found) > 1:
        raise ValueError(f"it has {' and '.join(f'`{name}`' for name in found)}, and one must be meant: rename the others")
    return found[0] if found else None


def lacking(row, needs: tuple[tuple[str, ...], ...]) -> str | None:
    """What a header or first row lacks of the groups of names that a stream needs, in words; None: nothing."""
    if twice := next((name for name in row if list(row).count(name) > 1), None):
        return f"it has `{twice}` twice"
    try:
        for names in needs:
            if named(row, names) is None:
                what = "picture" if names is PICTURE else "caption"
                return f"it has no {what}, one of {', '.join(names)}, only {', '.join(map(str, list(row)[:8])) or 'nothing'}"
    except ValueError as e:
        return str(e)
    return None


def sample(raw: bytes, kind: str, columns: list[str], bad) -> dict:
    """What a row says, its picture's path as ``image`` and its captions as ``captions``, whatever they are called in it.

    Args:
        bad: (kind, detail) -> the BadSample to raise.
    """
    try:
        row = limits.parse(raw) if kind == "jsonl" else scan.cells_of(raw, DELIMITERS[kind])
    except ValueError as e:
        raise bad("not utf-8" if str(e).startswith("not UTF-8") else "broken json" if kind == "jsonl" else "broken row", str(e))
    if kind != "jsonl":
        if len(row) != len(columns):
            raise bad("broken row", f"{len(row)} cells, and the header row has {len(columns)}")
        row = dict(zip(columns, row))
    elif not isinstance(row, dict):
        raise bad("broken json", f"an object is expected, not {type(row).__name__}")
    try:
        picture, captions = named(row, PICTURE), named(row, CAPTIONS)
    except ValueError as e:
        raise bad("broken row", str(e))
    given = {key: value for key, value in row.items() if key not in PICTURE + CAPTIONS}
    return given | {name: row[key] for name, key in (("image", picture), ("captions", captions)) if key is not None}


def picture(root: str, name, bad) -> bytes:
    """The bytes of a picture below a folder.

    Args:
        bad: (kind, detail) -> the BadSample to raise.
    """
    if not isinstance(name, str) or not name:
        raise bad("missing picture", f"the row names none: {name!r}"[:200])
    try:
        root, file = os.path.realpath(root), os.path.realpath(os.path.join(root, name))
        if os.path.commonpath([root, file]) != root:
            raise bad("refused picture", f"{name} leads out of {root}; `images` names the folder of the pictures")
        seen = os.stat(file)  # before it is opened: a pipe would never answer
        if not stat.S_ISREG(seen.st_mode):
            raise bad("refused picture", f"{name} is no file")
        if seen.st_size > limits.MAX_IMAGE:
            raise bad("too large", f"{name} has {seen.st_size:,} bytes, more than {limits.MAX_IMAGE:,}")
        with open(file, "rb") as f:
            return f.read(limits.MAX_IMAGE)
    except (OSError, ValueError) as e:
        raise bad("missing picture", f"{name[:200]} below {root}: {getattr(e, 'strerror', None) or e}")


def captions(meta: dict) -> list[str]:
    """The captions of a sample: the texts in ``captions``, else in ``caption``, which are a text or a list of texts."""
    return strings(meta.get("captions")) or strings(meta.get("caption"))


def strings(value) -> list[str]:
    """A text or a list of texts as a list; what is none is left out, and so is an empty text that stands alone."""
    return [text for text in (value if isinstance(value, list) else [value] if value else []) if isinstance(text, str)]


def no_caption(meta: dict) -> str:
    """Why a sample has none."""
    given = [meta[name] for name in ("captions", "caption") if meta.get(name) not in (None, "", [])]
    value = given[0] if given else None
    value = value[0] if isinstance(value, list) else value
    return f"captions must be strings, not {str(value)[:80]}" if given else "no caption, and no .txt"
