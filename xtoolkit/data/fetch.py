"""Writes all of a remote shard to a file, however often the line breaks, or says that it is dead.

http and https are read by the standard library, pipes by a shell, all else by fsspec. fsspec's own http was tried and is worse:
its ``open`` takes a 500 for a missing file and a body that a proxy cut for the whole, and sews two versions of a file together;
its ``get`` begins at the first byte after every failure; and both need aiohttp.
"""

import contextlib
import http.client
import os
import re
import select
import shutil
import signal
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
from typing import NamedTuple
from urllib.parse import urlsplit

from xtoolkit.data import paths
from xtoolkit.data.blocks import ShardBlock
from xtoolkit.data.errors import BadDataError, DeadShard

BLOCK = 1 << 18  # bytes read in one go
STEP = 1 << 26  # bytes after which room is made again, where nobody says how many will come
LONGEST_WAIT = 60  # seconds between two tries
# Answers that another try would not change. A bucket that may not be listed answers 403 where there is no file.
FINAL = (400, 401, 403, 404, 405, 410, 451)
FAILURES = (OSError, http.client.HTTPException, EOFError, ValueError)  # of one try: a broken line, an answer that is none
FSSPEC_TAGS = ("ETag", "etag", "LastModified", "last_modified", "updated", "mtime", "created")


class Version(NamedTuple):
    """A version of a remote file: its bytes, and its ETag or date; None where the server does not say."""

    total: int | None = None
    tag: str | None = None


def fetch(name: str, file: str, how: ShardBlock, room, check, changed=lambda tag: None) -> str | None:
    """Writes a remote shard to ``file``; returns the tag of its version, or None.

    A try that fails is followed by another after ``backoff`` seconds, then twice that, and so on; it goes on where the last one
    stopped if the server can (HTTP ranges) and has the same version. Any new byte starts the count anew: a line that breaks at
    every megabyte delivers in the end. Fewer bytes than announced are a failure, and so is a file that ``check`` finds fault
    with: proxies that cut a body announce what is left of it.

    Args:
        how: timeout, retries and backoff.
        room: called with the bytes that the file will have before they are written; again and again where that is not known.
        check: of the written file, what is wrong with it or None; called with True where no try is left, so that it may accept
            what will not get better.
        changed: of a version's tag, before its bytes are read, what is wrong with it or None.

    Raises:
        DeadShard: ``retries`` tries after the first failed too, or the server says that there is no such shard.
        BadDataError: the file cannot be written.
    """
    most, failures, version = 0, 0, Version()
    with writing(file), open(file, "wb") as out:
        while True:
            at = out.tell() if version.tag else 0
            try:
                with contextlib.closing(_answer(name, at, version, how.timeout)) as answer:
                    at, version = next(answer)
                    with writing(file):
                        out.seek(at)
                        out.truncate()
                    if version.tag and (trouble := changed(version.tag)):
                        raise EOFError(trouble)
                    granted = at
                    for block in answer:
                        at += len(block)
                        with writing(file):
                            if at > granted:
                                granted = version.total or at + STEP
                                room(version.total or at)
                            out.write(block)
                if version.total not in (None, at):
                    raise EOFError(f"{at} of {version.total} bytes came")
            except FAILURES as error:
                trouble = _line(error)
            else:
                out.flush()
                if (trouble := check(failures >= how.retries)) is None:
                    return version.tag
                version = Version()
            failures, most = (1, at) if at > most else (failures + 1, most)
            if failures > how.retries:
                raise DeadShard(name, f"{failures} tries in a row failed, the last with: {trouble}")
            time.sleep(min(how.backoff * 2 ** (failures - 1), LONGEST_WAIT))


def tag_of(name: str, timeout: float) -> str | None:
    """The tag of a remote file's version, without its bytes; None where the server does not say."""
    with contextlib.suppress(DeadShard, *FAILURES), contextlib.closing(_answer(name, 0, Version(), timeout, "HEAD")) as answer:
        return next(answer)[1].tag


@contextlib.contextmanager
def writing(file):
    """What goes wrong with a file on this machine is not the server's fault."""
    try:
        yield
    except OSError as error:
        raise BadDataError(f"{file}: cannot be written: {error.strerror}; make room, lower `shards.cache_gb`, or name another "
                           "folder in `shards.cache`") from None


def _line(error: Exception | str) -> str:
    return " ".join(str(error).split()) or type(error).__name__


# ---- answers: each yields (the byte that it begins with, its Version), then blocks of bytes ------------------------------
def _answer(name: str, at: int, known: Version, timeout: float, method: str = "GET"):
    """A remote file from byte ``at`` of the version ``known`` on, or from its beginning."""
    if name.startswith(paths.PIPE):
        return _pipe(name.removeprefix(paths.PIPE), timeout)
    if urlsplit(name).scheme in ("http", "https"):
        return _http(name, at, known, timeout, method)
    return _fsspec(name, at, known)


def _http(url: str, at: int, known: Version, timeout: float, method: str):
    headers = {"Accept-Encoding": "identity", "User-Agent": "xtoolkit"}
    if at:
        headers |= {"Range": f"bytes={at}-", "If-Range": known.tag}
    try:
        answer = urllib.request.urlopen(urllib.request.Request(url, headers=headers, method=method), timeout=timeout)
    except urllib.error.HTTPError as error:
        if error.code in FINAL or error.code < 400:  # below: redirects in a loop, or to what is no http
            error.close()
            raise DeadShard(url, f"the server answers {error.code} {_line(error.reason)}") from None
        if error.code != 416:
            raise
        answer = error  # there are no bytes from there on
    with answer:
        said = answer.headers
        tag = next((tag for tag in (said.get("ETag"), said.get("Last-Modified"))
                    if tag and not tag.startswith("W/") and len(tag) < 200 and tag.isprintable()), None)
        packed, length = said.get("Content-Encoding", "identity"), said.get("Content-Length", "")
        version, begin = Version(int(length) if re.fullmatch(r"[0-9]{1,18}", length) else None, tag), 0
        if at and answer.status in (206, 416):
            span = re.fullmatch(r"bytes (\d{1,18})-\d+/(\d{1,18})", said.get("Content-Range", ""))
            if span is None or int(span[1]) != at or Version(int(span[2]), tag) != known:
                yield from _http(url, 0, Version(), timeout, method)  # it cannot go on: two versions must not be sewn together
                return
            version, begin = known, at
        if packed != "identity" and not urlsplit(url).path.endswith(".gz"):  # of a .gz it is often said of the file itself
            raise DeadShard(url, f"the server packs it ({packed}), asked not to; read it by `pipe:curl -sf --compressed URL`")
        yield begin, version
        while block := answer.read1(BLOCK):
            yield block


def _pipe(command: str, timeout: float):
    """The output of a shell command, always from its beginning. Its exit status tells whether it is whole."""
    bash = shutil.which("bash")  # with it, the status of `curl ... | gunzip` is that of whichever failed
    shell = [bash, "-o", "pipefail", "-c"] if bash else ["/bin/sh", "-c"]
    with tempfile.TemporaryFile() as said, subprocess.Popen([*shell, command], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                                                            stderr=said, start_new_session=True) as process:
        try:
            yield 0, Version()
            while select.select([process.stdout], [], [], timeout)[0]:
                if not (block := os.read(process.stdout.fileno(), BLOCK)):
                    break
                yield block
            else:
                raise TimeoutError(f"the command wrote nothing for {timeout:g} s")
            if status := process.wait(timeout):
                said.seek(max(0, said.seek(0, os.SEEK_END) - 4096))
                last = said.read().decode("utf-8", "replace").strip().rpartition("\n")[2]
                raise EOFError(f"the command ended with status {status}" + (f": {last[:200]}" if last else ""))
        except subprocess.TimeoutExpired:
            raise TimeoutError(f"the command did not end within {timeout:g} s of its last byte") from None
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)  # the group: a shell's own end does not end what it started


def _fsspec(url: str, at: int, known: Version):
    """A file of any file system that fsspec knows; its own waiting times hold."""
    import fsspec  # only here: it loads the package of the file system
    try:
        system, path = fsspec.url_to_fs(url)
        info = system.info(path)
        version = Version(info["size"], next((str(info[key]) for key in FSSPEC_TAGS if info.get(key)), None))
        at = at if version == known else 0
        yield at, version
        with system.open(path, "rb") as file:
            file.seek(at)
            while block := file.read(BLOCK):
                yield block
    except (FileNotFoundError, PermissionError) as error:
        raise DeadShard(url, _line(error)) from None
    except Exception as error:  # each file system has errors of its own
        raise OSError(_line(error)) from None
