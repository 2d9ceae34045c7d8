"""Writes all of a remote shard to a file, however often the line breaks, or says that it is dead.

fsspec's ``get`` begins at the first byte again after any failure, and takes a body that a proxy has cut for the whole;
both would end a run of days, or change what it reads. Here a try goes on from the last byte, and the file is checked.
"""

import os
import time

from xtoolkit.data.blocks import ShardBlock
from xtoolkit.data.errors import BadDataError, DeadShard
from xtoolkit.data.transport import FAILURES, Restart, Refused, connect

LONGEST_WAIT = 60  # seconds between two tries
STEP = 1 << 26  # bytes after which room is asked for again, where nobody says how many will come


def fetch(name: str, file: str, how: ShardBlock, room, check) -> None:
    """Writes a remote shard to ``file``.

    A try that fails is followed by another after ``backoff`` seconds, then twice that, and so on; it goes on where the
    last one stopped if the server can (HTTP ranges) and still has the same version. Any new byte starts the count anew:
    a line that breaks at every megabyte delivers in the end. Fewer bytes than announced are a failure, and so is a file
    that ``check`` finds fault with: proxies that cut a body announce what is left of it.

    Args:
        how: timeout, retries and backoff.
        room: called with the bytes that the file will have before they are written; with those it has got to, and STEP
            more, where that is not known.
        check: of the written file, what is wrong with it or None; it is called with True where no try is left, so that
            it may accept what will not get better.

    Raises:
        DeadShard: ``retries`` tries after the first failed too, or the server says that there is no such shard.
        BadDataError: the file cannot be written.
    """
    most = failures = at = 0
    known = None
    with _local(file, open, file, "wb") as out:
        while True:
            try:
                at, known = _once(name, out, at, known, how.timeout, room, file)
                _local(file, out.flush)
                if (trouble := check(failures >= how.retries)) is None:
                    return
                got, at = at, 0
            except Refused as error:
                raise DeadShard(name, str(error)) from None
            except _Broken as error:
                got, at, known, trouble = error.at, error.at, error.known, error.trouble
            if got > most:
                most, failures = got, 0
            failures += 1
            if failures > how.retries:
                raise DeadShard(name, f"{failures} tries in a row failed, the last with: {trouble}")
            time.sleep(min(how.backoff * 2 ** (failures - 1), LONGEST_WAIT))


class _Broken(Exception):
    """A try that failed: the bytes that are here, the version they are of, and why there are no more."""

    def __init__(self, at: int, known: tuple | None, trouble: str):
        self.at, self.known, self.trouble = at, known, trouble


def _once(name, out, at, known, timeout, room, file) -> tuple[int, tuple | None]:
    """One try from byte ``at`` on; returns the bytes that are here then, all there are, and the version they are of."""
    try:
        source = connect(name, at, known, timeout)
    except Restart as error:
        raise _Broken(0, None, str(error)) from None
    except FAILURES as error:
        raise _Broken(at, known, _said(error)) from None
    try:
        at = source.at
        if source.total is not None:
            room(source.total)
        asked = at
        _local(file, out.seek, at)
        _local(file, out.truncate)
        try:
            while block := source.read():
                if source.total is None and at + len(block) > asked:
                    asked = at + STEP
                    room(asked)
                _local(file, out.write, block)
                at += len(block)
            source.finish()
            if source.total is not None and at != source.total:
                raise EOFError(f"{at} of {source.total} bytes came")
        except FAILURES as error:
            raise _Broken(at if source.same else 0, source.same, _said(error)) from None
    finally:
        source.close()
    return at, source.same


def _said(error: Exception) -> str:
    return str(error) or type(error).__name__


def _local(file: str, do, *arguments):
    """Does something to a file on this machine; what goes wrong there is not the server's fault."""
    try:
        return do(*arguments)
    except OSError as error:
        raise BadDataError(f"{file}: cannot be written: {error.strerror}; make room in {os.path.dirname(file)}, lower "
                           "`shards.cache_gb`, or name another folder in `shards.cache`") from None
