"""Opens a remote shard from some byte on: http(s) by the standard library, pipes by a shell, other URLs by fsspec.

fsspec alone does not serve: it reads http through aiohttp, which it does not bring, knows no pipes, and does not tell
whether a file is still the version that the bytes here came from (``If-Range``: two versions must not be sewn together),
nor a refusal from a line that breaks. ``s3://``, ``gs://`` and ``hf://`` are fsspec's.
"""

import http.client
import os
import re
import select
import shutil
import signal
import subprocess
import tempfile
import urllib.error
import urllib.request

from xtoolkit.data import paths

BLOCK = 1 << 20  # bytes read in one go
# Answers that another try would not change. A bucket that may not be listed answers 403 where there is no file.
FINAL = (400, 401, 403, 404, 405, 410, 451)
# What a try may fail with: a server that refuses, a line that breaks, an answer that is none.
FAILURES = (OSError, http.client.HTTPException, EOFError)


class Refused(Exception):
    """The shard is not there, or not for us: trying again is of no use."""


class Restart(EOFError):
    """The server cannot go on where the last try stopped: the next one must begin at the first byte."""


class Http:
    """One GET, from byte ``at`` on if the server still has the same file and can.

    Args:
        url: http or https.
        at: the bytes that are here already.
        known: ``same`` of the answer that they came from; None: there was none.
        timeout: seconds without a byte.

    Attributes:
        at: the byte that the answer begins with; 0 where it begins anew.
        total: bytes of the whole file; None where the server does not say.
        same: what tells this version of the file: (its total, its ETag or its date).
    """

    def __init__(self, url: str, at: int, known: tuple | None, timeout: float):
        headers = {"Accept-Encoding": "identity", "User-Agent": "xtoolkit"}
        if at:
            headers["Range"] = f"bytes={at}-"
            if known[1]:
                headers["If-Range"] = known[1]
        try:
            self._answer = urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=timeout)
        except urllib.error.HTTPError as error:
            error.close()
            if error.code in FINAL:
                raise Refused(f"the server answers {error.code} {error.reason}")
            if error.code == 416:
                raise Restart(f"the server has no bytes from {at} on")
            raise
        given = self._answer.headers
        etag = given.get("ETag")
        tag = etag if etag and not etag.startswith("W/") else given.get("Last-Modified")
        self.at, length = 0, given.get("Content-Length")
        self.total = int(length) if length and length.isdecimal() else None
        if self._answer.status == 206:
            span = re.fullmatch(r"bytes (\d+)-\d+/(\d+)", given.get("Content-Range", ""))
            if span is None or int(span[1]) != at or known[0] not in (None, int(span[2])):
                self.close()
                raise Restart(f"asked for the bytes from {at} on, got {given.get('Content-Range')!r}")
            self.at, self.total = at, int(span[2])
        self.same = self.total, tag

    def read(self) -> bytes:
        return self._answer.read1(BLOCK)

    def finish(self) -> None:
        """What is left to check when no byte comes any more."""

    def close(self) -> None:
        self._answer.close()


class Pipe:
    """The output of a shell command, always from its beginning. Its exit status tells whether it is whole."""

    at, total, same = 0, None, None

    def __init__(self, name: str, at: int, known: tuple | None, timeout: float):
        # With bash, the status of `curl ... | gunzip` is that of whichever failed.
        bash = shutil.which("bash")
        command = [bash, "-o", "pipefail", "-c"] if bash else ["/bin/sh", "-c"]
        self._timeout, self._said = timeout, tempfile.TemporaryFile()
        self._process = subprocess.Popen([*command, name.removeprefix(paths.PIPE)], stdin=subprocess.DEVNULL,
                                         stdout=subprocess.PIPE, stderr=self._said, start_new_session=True)

    def read(self) -> bytes:
        out = self._process.stdout.fileno()
        if not select.select([out], [], [], self._timeout)[0]:
            raise TimeoutError(f"the command wrote nothing for {self._timeout:g} s")
        return os.read(out, BLOCK)

    def finish(self) -> None:
        try:
            status = self._process.wait(self._timeout)
        except subprocess.TimeoutExpired:
            raise TimeoutError(f"the command did not end within {self._timeout:g} s of its last byte") from None
        if status:
            self._said.seek(0)
            said = self._said.read().decode("utf-8", "replace").strip().splitlines()
            raise EOFError(f"the command ended with status {status}" + (f": {said[-1][:200]}" if said else ""))

    def close(self) -> None:
        if self._process.poll() is None:
            os.killpg(self._process.pid, signal.SIGKILL)  # the group: a shell's own end does not end what it started
            self._process.wait()
        self._process.stdout.close()
        self._said.close()


class Fsspec:
    """A file of any file system that fsspec knows; its own waiting times hold."""

    def __init__(self, url: str, at: int, known: tuple | None, timeout: float):
        import fsspec  # only here: it loads the package of the file system
        system, path = fsspec.url_to_fs(url)
        try:
            self.total = system.size(path)
            self._file = system.open(path, "rb")
        except (FileNotFoundError, PermissionError) as error:
            raise Refused(str(error) or type(error).__name__)
        self.same = (self.total, None)
        self.at = at if known == self.same else 0
        self._file.seek(self.at)

    def read(self) -> bytes:
        return self._file.read(BLOCK)

    def finish(self) -> None:
        """What is left to check when no byte comes any more."""

    def close(self) -> None:
        self._file.close()


def connect(name: str, at: int, known: tuple | None, timeout: float) -> Http | Pipe | Fsspec:
    """A remote shard from byte ``at`` on, or from its beginning: ``at`` of what is returned says which.

    Raises:
        Refused: trying again is of no use.
        OSError, http.client.HTTPException, EOFError: trying again may help (``FAILURES``).
    """
    kind = Pipe if name.startswith(paths.PIPE) else Http if name.startswith(("http://", "https://")) else Fsspec
    return kind(name, at, known, timeout)
