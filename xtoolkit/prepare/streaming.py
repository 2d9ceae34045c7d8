"""Official files of any size, record by record: JSON read in pieces, and several of them joined."""

import json
from collections import deque
from pathlib import Path

from xtoolkit.data import limits
from xtoolkit.prepare.official import BadFile, unread

CHUNK = 1 << 20


def elements(path: Path, key: str | None = None):
    """(position, record) of a JSON list, or of the list under ``key`` of an object: the file is never in memory whole.

    Raises:
        BadFile: broken or truncated JSON, with the record's position and the place in the file; a file of another kind.
    """
    path = Path(path)
    try:
        with path.open(encoding="utf-8-sig") as file:
            yield from _Scanner(file, path.name).records(key)
    except OSError as error:
        raise unread(path, error) from None


def header(path: Path) -> dict:
    """What an object in JSON says beside its lists, which are passed over without being held."""
    path = Path(path)
    try:
        with path.open(encoding="utf-8-sig") as file:
            return _Scanner(file, path.name).header()
    except OSError as error:
        raise unread(path, error) from None


class _Scanner:
    """A window over a JSON text; a value that runs over the window's end is decoded again with more text."""

    def __init__(self, file, name):
        self.file, self.name = file, name
        self.text, self.at, self.before, self.index = "", 0, 0, 0
        self.decode = json.JSONDecoder().raw_decode

    def records(self, key):
        self.begins(*(("[", "a list of records") if key is None else ("{", f"an object with the list `{key}`")))
        if key is not None and not self.find(key, {}):
            raise BadFile(f"{self.name}: no key `{key}`")
        yield from self.items()

    def header(self) -> dict:
        self.begins("{", "an object")
        self.find(None, said := {})
        return said

    def begins(self, opening, wanted):
        if (found := self.peek()) != opening:
            seen = limits.looks(self.text[:512].encode(), f"found {found!r} at its beginning")
            raise BadFile(f"{self.name}: expected {wanted}, {seen}")

    def items(self):
        """(position, value) of the list that begins here."""
        self.index = 0
        self.take("[")
        if self.peek() == "]":
            self.take("]")
            return
        while True:
            yield self.index, self.value()
            if self.take(",]") == "]":
                return
            self.index += 1

    def find(self, key, said: dict) -> bool:
        """Moves to the value of ``key``. What comes before it is ``said``, but for lists, which may be of any size."""
        self.take("{")
        while self.peek() != "}":
            name = self.value()
            self.take(":")
            if name == key:
                return True
            if self.peek() == "[":
                deque(self.items(), maxlen=0)
            else:
                said[name] = self.value()
            if self.take(",}") == "}":
                break
        return False

    def more(self) -> bool:
        try:
            chunk = self.file.read(max(CHUNK, len(self.text) - self.at))
        except UnicodeDecodeError as error:
            byte, at = error.object[error.start], self.file.buffer.tell() - len(error.object) + error.start
            self.file.buffer.seek(0)
            seen = limits.looks(self.file.buffer.read(512), "convert it: `iconv -f latin1 -t utf-8`")
            raise BadFile(f"{self.name}: not UTF-8: byte 0x{byte:02x} at {at}; {seen}") from None
        self.before += self.at
        self.text, self.at = self.text[self.at:] + chunk, 0
        return bool(chunk)

    def peek(self) -> str:
        while True:
            while self.at < len(self.text) and self.text[self.at] in " \t\r\n":
                self.at += 1
            if self.at < len(self.text) or not self.more():
                return self.text[self.at:self.at + 1]

    def take(self, allowed: str) -> str:
        char = self.peek()
        if not char:
            raise BadFile(f"{self.name}: ends after record {self.index}: the file is truncated")
        if char not in allowed:
            raise BadFile(f"{self.name}: record {self.index}: broken JSON at character {self.before + self.at}: "
                          f"expected {' or '.join(allowed)}, found {char!r}")
        self.at += 1
        return char

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
    """(id, {name: record}) of the records of several files, {name: iterator of (id, record)}, that have the same id.

    Memory is constant where the files have one order; those that lack in one file come last.
    """
    waiting, live = {}, dict(sources)
    while live:
        for name in list(live):
            item = next(live[name], None)
            if item is None:
                del live[name]
                continue
            together = waiting.setdefault(item[0], {})
            together[name] = item[1]
            if len(together) == len(sources):
                yield item[0], waiting.pop(item[0])
    yield from waiting.items()
