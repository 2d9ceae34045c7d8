"""Official files of any size, record by record: JSON read in pieces, and several of them joined."""

import json
from pathlib import Path

from xtoolkit.prepare.official import BadFile

CHUNK = 1 << 20


def elements(path: Path, key: str | None = None):
    """The records of a JSON list, one by one: the file is never in memory as a whole.

    Args:
        path: a JSON file that is a list, or an object with the list under ``key``.

    Yields:
        (int, object): position and record.

    Raises:
        BadFile: broken or truncated JSON, with the record's position and the place in the file.
    """
    path = Path(path)
    try:
        with path.open(encoding="utf-8") as file:
            yield from _Scanner(file, path.name).records(key)
    except UnicodeDecodeError as error:
        raise BadFile(f"{path.name}: not UTF-8 text near byte {error.start}") from None
    except OSError as error:
        raise BadFile(f"{path}: {error.strerror}") from None


class _Scanner:
    """A window over a JSON text; a value that runs over the window's end is decoded again with more text."""

    def __init__(self, file, name):
        self.file, self.name = file, name
        self.text, self.at, self.before, self.index = "", 0, 0, 0
        self.decode = json.JSONDecoder().raw_decode

    def records(self, key):
        opening = self.peek()
        if opening != ("[" if key is None else "{"):
            wanted = "a list of records" if key is None else f"an object with the list `{key}`"
            raise BadFile(f"{self.name}: expected {wanted}, found {opening!r} at its beginning")
        if key is not None:
            self.find(key)
        self.take("[")
        if self.peek() == "]":
            return
        while True:
            yield self.index, self.value()
            if self.take(",]") == "]":
                return
            self.index += 1

    def find(self, key):
        """Moves to the value of ``key``, over the values before it."""
        self.take("{")
        while self.peek() != "}":
            found = self.value()
            self.take(":")
            if found == key:
                return
            self.value()
            if self.take(",}") == "}":
                break
        raise BadFile(f"{self.name}: no key `{key}`")

    def more(self) -> bool:
        chunk = self.file.read(max(CHUNK, len(self.text) - self.at))
        self.before += self.at
        self.text, self.at = self.text[self.at:] + chunk, 0
        return bool(chunk)

    def peek(self) -> str:
        while True:
            while self.at < len(self.text) and self.text[self.at] in " \t\r\n":
                self.at += 1
            if self.at < len(self.text):
                return self.text[self.at]
            if not self.more():
                return ""

    def take(self, allowed: str) -> str:
        found = self.peek()
        if not found:
            raise BadFile(f"{self.name}: ends after record {self.index}: the file is truncated")
        if found not in allowed:
            raise BadFile(f"{self.name}: record {self.index}: broken JSON at character {self.before + self.at}: "
                            f"expected {' or '.join(allowed)}, found {found!r}")
        self.at += 1
        return found

    def value(self):
        self.peek()
        while True:
            try:
                value, end = self.decode(self.text, self.at)
            except json.JSONDecodeError as error:
                # Near the window's end, or in a string that does not end in it, the text may only be cut.
                cut = error.pos > len(self.text) - 16 or error.msg.startswith("Unterminated string")
                place = self.before + error.pos
                if cut and self.more():
                    continue
                what = "the file is truncated" if cut else error.msg
                raise BadFile(f"{self.name}: record {self.index}: broken JSON at character {place}: {what}") from None
            except (RecursionError, ValueError) as error:  # ValueError: a number of thousands of digits
                what = "nested too deeply" if isinstance(error, RecursionError) else str(error)
                raise BadFile(f"{self.name}: record {self.index}: {what}") from None
            if end == len(self.text) and self.more():  # a number may go on
                continue
            self.at = end
            return value


def join(sources: dict):
    """Records of several files that have the same id, together; constant memory where the files have one order.

    Args:
        sources: name -> iterator of (id, record).

    Yields:
        (id, dict): name -> record, of the files that have the id; those that lack in one file come last.
    """
    waiting, live = {}, dict(sources)
    while live:
        for name in list(live):
            item = next(live[name], None)
            if item is None:
                del live[name]
                continue
            found = waiting.setdefault(item[0], {})
            found[name] = item[1]
            if len(found) == len(sources):
                yield item[0], waiting.pop(item[0])
    yield from waiting.items()
