"""Remote shards: each fetched whole, once a machine, into a folder of bounded size, and its index kept beside it."""

import contextlib
import fcntl
import os
import re
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

import numpy as np

from xtoolkit.batch import stable_key
from xtoolkit.data import index, paths, scan
from xtoolkit.data.blocks import ShardBlock
from xtoolkit.data.errors import BadDataError, DeadShard
from xtoolkit.data.fetch import fetch, tag_of, writing
from xtoolkit.data.index import Index

DEAD_FOR = 3600  # seconds for which the processes of a run take a shard that failed for dead; then one of them tries again
APART = 60  # seconds between the starts of two ranks
LEFT_OVER = 86400  # seconds without a new byte after which an unfinished file is nobody's
LARGEST_INDEX = 1 << 30  # bytes
AT_ONCE = 8  # shards whose index is made at a time
GB = 10**9


class Cache:
    """Remote shards on this machine. Any number of processes may use one folder; no two fetch the same shard at a time.

    Args:
        how: folder, limit and patience.
    """

    def __init__(self, how: ShardBlock):
        self._how, self.limit, self._began, self._thread = how, int(how.cache_gb * GB), time.time(), None
        self.folder = Path(how.cache).expanduser() if how.cache else index.home() / "remote"
        for part in ("shards", "index"):
            with writing(self.folder / part):
                (self.folder / part).mkdir(parents=True, exist_ok=True)

    # ---- indexes ----------------------------------------------------------------------------------------------------------
    def indexes(self, names: list[str]) -> dict[str, Index | DeadShard]:
        """The index of each shard, several at a time."""
        def index_or_dead(name):
            try:
                return self.index(name)
            except DeadShard as dead:
                return dead

        with ThreadPoolExecutor(AT_ONCE) as pool:
            return dict(zip(names, pool.map(index_or_dead, names)))

    def index(self, name: str) -> Index:
        """The index of a shard: the one kept here, else the server's own ``NAME.idx``, else one of the fetched shard.

        Raises:
            DeadShard: neither can be had.
            BadDataError: the shard is none that can be read.
        """
        file = self._file(name, ".idx")
        if (found := _read_index(file, name)) is None:
            with self._lock(name):
                found = _read_index(file, name)  # of another process, while this one waited
                if found is None:
                    self._raise_if_dead(name)
                    found = self._fetch_index(name) or self._fetch(name, None)
        return found

    def _fetch_index(self, name: str) -> Index | None:
        if name.startswith(paths.PIPE):
            return None

        def room(size):
            if size > LARGEST_INDEX:
                raise DeadShard(name, f"{size} bytes are no index")

        part, parts = self._file(name, ".idx.part"), urlsplit(name)
        try:
            fetch(urlunsplit(parts._replace(path=parts.path + ".idx")), str(part), self._how, room, lambda last: None)
            if (given := _read_index(part, name)) is None:
                return None
            # Only what is known of a header is taken over: it comes from a stranger.
            about = {key: given.header[key] for key in ("kind", "parts", "count", "size", "damage", "digest")}
            about |= {"left_out": {}, "bytes": None if paths.ending(name).endswith(".gz") else about["size"]}
            records = np.fromfile(part, given.dtype, offset=given.start)
            return self._keep_index(name, records, about, tag_of(name, self._how.timeout))
        except DeadShard:
            return None
        finally:
            part.unlink(missing_ok=True)

    def _keep_index(self, name: str, records: np.ndarray, about: dict, tag: str | None) -> Index:
        header = about | {"version": index.VERSION, "tag": tag}
        file = self._file(name, ".idx")
        with writing(file):
            index.replace(file, lambda f: index.write(f, records, header))
        return _read_index(file, name)

    # ---- shards -----------------------------------------------------------------------------------------------------------
    def read(self, name: str, header: dict, at: int, size: int) -> bytes:
        """Bytes of a shard (of a ``.gz`` unpacked), fewer at its end; it is fetched if it is not here.

        Args:
            header: of its index.

        Raises:
            DeadShard: it cannot be fetched.
            BadDataError: the folder cannot be written, or is too small.
        """
        for _ in range(3):
            self._have(name, header)
            # Not kept open: what is deleted would go on taking room.
            with contextlib.suppress(FileNotFoundError), open(self._file(name), "rb", buffering=0) as file:
                there = os.fstat(file.fileno()).st_size
                if header["bytes"] in (None, there):
                    return os.pread(file.fileno(), min(size, max(0, there - at)), at)  # a size comes from the server's index
                self._file(name).unlink()  # half of a file, after a power failure
        raise BadDataError(f"{self.folder}: shards go before they are read: raise `shards.cache_gb` "
                           f"({self._how.cache_gb:g}), or give each stream a folder of its own in `shards.cache`")

    def ahead(self, wanted: list[tuple[str, dict]]) -> None:
        """Says which shards (name, header) are being read and which come next: what is missing is fetched meanwhile."""
        missing = [(name, header) for name, header in wanted if not self._touch(name)]
        if missing and (self._thread is None or not self._thread.is_alive()):
            self._thread = threading.Thread(target=self._fetch_ahead, args=(missing,), name="shards ahead", daemon=True)
            self._thread.start()

    def _fetch_ahead(self, missing: list[tuple[str, dict]]) -> None:
        with contextlib.suppress(BadDataError):  # whoever reads the shard meets the same, and says so
            for name, header in missing:
                with contextlib.suppress(BlockingIOError, DeadShard):  # another process is at it, or nobody can have it
                    self._have(name, header, wait=False)

    def _have(self, name: str, header: dict, wait: bool = True) -> None:
        if not self._touch(name):
            with self._lock(name, wait):
                if not self._touch(name):
                    self._raise_if_dead(name)
                    self._fetch(name, header)

    def _touch(self, name: str) -> bool:
        """Makes a shard the last to go; returns whether it is here."""
        with contextlib.suppress(FileNotFoundError):
            os.utime(self._file(name))
            return True
        return False

    def _fetch(self, name: str, header: dict | None) -> Index | None:
        """Fetches a shard, under its lock; makes its index where ``header`` is None."""
        file, failed, made = self._file(name), self._file(name, ".failed"), []
        part, anew = f"{file}.part", f"`rm '{self._file(name, '.idx')}'` has it indexed anew"

        def check(last: bool) -> str | None:
            size = os.path.getsize(part)
            if header is not None and size != header["size"]:
                return f"it has {size} bytes, and had {header['size']} when it was indexed; {anew}"
            made[:] = _build(name, part, header is None)
            _, records, about = made
            return None if records is None or last and len(records) else about["damage"]

        def changed(tag: str) -> str | None:
            known = header and header.get("tag")
            return f"its version is {tag}, and was {known} when it was indexed; {anew}" if known and tag != known else None

        try:
            tag = fetch(name, part, self._how, lambda size: self._make_room(size, file.name), check, changed)
            with writing(file):
                os.replace(made[0], file)
        except DeadShard as dead:
            with writing(failed):
                index.replace(failed, lambda f: f.write(dead.detail.encode("utf-8", "backslashreplace")))
            raise
        finally:
            for rest in (part, f"{part}.unpacked"):
                Path(rest).unlink(missing_ok=True)
        self._make_room(0, file.name)
        failed.unlink(missing_ok=True)
        return self._keep_index(name, *made[1:], tag) if header is None else None

    def _make_room(self, size: int, name: str) -> None:
        """Deletes the shards that were not read for longest until there is room for ``size`` bytes, but not the file ``name``.

        What is on its way is left alone, and comes on top of the limit; what an ended process left of it is deleted.
        """
        if size > self.limit:
            raise BadDataError(f"{name}: {size / GB:.3g} GB are more than `shards.cache_gb` ({self._how.cache_gb:g})")
        found = []
        for entry in os.scandir(self.folder / "shards"):
            with contextlib.suppress(FileNotFoundError):
                seen = entry.stat()
                if not entry.name.endswith((".part", ".unpacked")):
                    found.append((seen.st_mtime_ns, seen.st_size, entry.name))
                elif seen.st_mtime < time.time() - LEFT_OVER:
                    os.unlink(entry)
        over = size + sum(n for _, n, _ in found) - self.limit
        for _, n, other in sorted(found):
            if over > 0 and other != name:
                (self.folder / "shards" / other).unlink(missing_ok=True)
                over -= n

    # ---- what processes tell each other -----------------------------------------------------------------------------------
    def give_up(self, dead: DeadShard) -> None:
        """A shard without index stays without samples from now on, so that a resumed run finds the same samples."""
        with contextlib.suppress(FileNotFoundError):  # another rank was first, or an earlier run
            os.replace(self._file(dead.path, ".failed"), self._file(dead.path, ".dead"))

    def _raise_if_dead(self, name: str) -> None:
        """Raises DeadShard if a shard was given up, or failed lately for a process of this run."""
        for ending, since in ((".dead", 0), (".failed", max(self._began - APART, time.time() - DEAD_FOR))):
            marker = self._file(name, ending)
            with contextlib.suppress(FileNotFoundError):
                if marker.stat().st_mtime > since:
                    reason = marker.read_text("utf-8", "replace")
                    raise DeadShard(name, f"{reason} (found before; `rm '{marker}'` has it tried again)")

    @contextlib.contextmanager
    def _lock(self, name: str, wait: bool = True):
        """Held by one thread of one process at a time, and let go when it dies."""
        lock = self._file(name, ".lock")
        with writing(lock):
            file = open(lock, "a")
        with file:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            try:
                yield
            finally:
                fcntl.flock(file, fcntl.LOCK_UN)  # closing is not enough: a forked worker may have a copy

    def _file(self, name: str, ending: str = "") -> Path:
        """Where a shard's bytes lie, or what is kept of it under an ``ending``."""
        last = re.sub(r"[^A-Za-z0-9._-]+", "_", name.rsplit("/", 1)[-1])[-60:]
        return self.folder / ("index" if ending else "shards") / f"{stable_key(name):016x}-{last}{ending}"


def _read_index(file: Path, name: str) -> Index | None:
    return index.read(file, {"version": index.VERSION, "kind": index.kind_of(name)})


def _build(name: str, part: str, indexed: bool) -> tuple[str, np.ndarray | None, dict | None]:
    """The file that is read of a fetched shard (a .gz unpacked); if it is ``indexed``, also its records and their header."""
    file, size, damage = part, os.path.getsize(part), None
    if paths.ending(name).endswith(".gz"):
        file = part + ".unpacked"
        with open(file, "wb") as out:
            damage = scan.gunzip(part, out)
    if not indexed:
        return file, None, None
    try:
        records, about = index.build(file, index.kind_of(name))
    except ValueError:
        raise BadDataError(f"{name}: a compressed tar cannot be read at any place; unpack it: "
                           "`pipe:curl -sf URL | gunzip`") from None
    damage = damage or about["damage"] if size else "it is empty"
    if damage and size and not len(records):
        with open(part, "rb") as f:
            damage += f"; it begins with {f.read(24)!r}"
    return file, records, about | {"size": size, "bytes": os.path.getsize(file), "damage": damage}
