"""Keeps remote shards in a folder of bounded size: each fetched whole, once a machine, and its index with it.

A shard is fetched whole: servers are made for that, and a line that breaks costs the bytes that it lost. fsspec's file
caches do not serve: no lock between processes (every rank and worker would fetch), no limit of size, no memory of what is
dead; and a run that goes on exactly where it stopped needs the index of each shard beside it.
"""

import contextlib
import fcntl
import json
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
from xtoolkit.data.fetch import fetch
from xtoolkit.data.index import Index
from xtoolkit.data.transport import Refused

DEAD_FOR = 3600  # seconds for which all processes take a dead shard for dead; then one of them tries again
LEFT_OVER = 86400  # seconds without a new byte after which an unfinished file is nobody's
APART = 60  # seconds between the starts of two ranks
LARGEST_INDEX = 1 << 30  # bytes
AT_ONCE = 8  # shards whose index is made at a time
GB = 10**9


class Cache:
    """Remote shards on this machine. Any number of processes may use one folder; no two fetch the same shard at a time.

    Args:
        how: folder, limit and patience.
    """

    def __init__(self, how: ShardBlock):
        folder = Path(how.cache).expanduser() if how.cache else index.home() / "remote"
        self._how, self.limit = how, int(how.cache_gb * GB)
        self.folder, self._data, self._index = folder, folder / "shards", folder / "index"
        self._locks, self._began = folder / "locks", time.time()
        self._wanted, self._thread = [], None
        try:
            for part in (self._data, self._index, self._locks):
                part.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise BadDataError(f"{error.filename}: {error.strerror}; name a folder that can be written in "
                               "`shards.cache`") from None

    def __getstate__(self):
        return self.__dict__ | {"_wanted": [], "_thread": None}

    # ---- indexes --------------------------------------------------------------------------------------------------
    def indexes(self, names: list[str]) -> dict[str, Index | DeadShard]:
        """The index of each shard, several at a time."""
        with ThreadPoolExecutor(AT_ONCE) as pool:
            return dict(zip(names, pool.map(self._index_or_dead, names)))

    def _index_or_dead(self, name: str) -> Index | DeadShard:
        try:
            return self.index(name)
        except DeadShard as dead:
            return dead

    def index(self, name: str) -> Index:
        """The index of a shard: the one kept here, else the server's own ``NAME.idx``, else one of the fetched shard.

        Raises:
            DeadShard: neither can be had.
            ValueError: the shard is none that can be read.
        """
        file = self._index / (self._key(name) + ".idx")
        found = _read_index(file, name)
        if found is None:
            with self._lock(name):
                found = _read_index(file, name)  # of another process, while this one waited
                if found is None:
                    self._raise_if_dead(name, self._began - APART, or_given_up=True)
                    found = self._fetch_index(name, file) or self._fetch(name, None)
        return found

    def _fetch_index(self, name: str, file: Path) -> Index | None:
        if name.startswith(paths.PIPE):
            return None
        parts, part = urlsplit(name), str(file) + ".part"
        url = urlunsplit(parts._replace(path=parts.path + ".idx"))
        try:
            fetch(url, part, self._how, _no_more_than_an_index, lambda last: None)
            given = _read_index(Path(part), name)
            if given is None:
                return None
            # Only what is known of a header is taken over: it comes from a stranger.
            about = {key: given.header[key] for key in ("kind", "parts", "count", "size", "damage", "digest")}
            about |= {"left_out": {}, "bytes": None if paths.ending(name).endswith(".gz") else about["size"]}
            return self._keep_index(file, name, np.fromfile(part, given.dtype, offset=given.start), about)
        except DeadShard:
            return None
        finally:
            Path(part).unlink(missing_ok=True)

    def _keep_index(self, file: Path, name: str, records: np.ndarray, about: dict) -> Index:
        self._keep(file, lambda f: index.write(f, records, about | {"version": index.VERSION}))
        return _read_index(file, name)

    def _keep(self, file: Path, write) -> None:
        try:
            index.replace(file, write)
        except OSError as error:
            raise BadDataError(f"{file}: cannot be written: {error.strerror}; make room, or name another folder in "
                               "`shards.cache`") from None

    def give_up(self, dead: DeadShard) -> None:
        """A shard without index stays without samples from now on, so that a resumed run finds the same samples."""
        with self._lock(dead.name):
            reason = dead.reason.partition(" (found before;")[0]
            self._keep(self._index / (self._key(dead.name) + ".dead"),
                       lambda f: f.write(json.dumps({"reason": reason, "given_up": True}).encode()))

    # ---- shards ---------------------------------------------------------------------------------------------------
    def open(self, name: str, header: dict) -> int:
        """A file descriptor of a shard's bytes (a ``.jsonl.gz`` unpacked); the shard is fetched if it is not here.

        Args:
            header: of its index.

        Raises:
            DeadShard: it cannot be fetched.
            BadDataError: the folder cannot be written, or is too small.
        """
        file = self._data / self._key(name)
        for _ in range(3):
            try:
                descriptor = os.open(file, os.O_RDONLY | os.O_CLOEXEC)
            except FileNotFoundError:
                with self._lock(name):
                    if not file.exists():
                        self._raise_if_dead(name, time.time() - DEAD_FOR)
                        self._fetch(name, header)
                continue
            if header["bytes"] in (None, os.fstat(descriptor).st_size):
                os.utime(descriptor)  # read just now: the last to go
                return descriptor
            os.close(descriptor)
            file.unlink(missing_ok=True)  # half of a file, after a power failure
        raise BadDataError(f"{self.folder}: shards go before they are read: raise `shards.cache_gb` "
                           f"({self._how.cache_gb:g}), or give each stream a folder of its own in `shards.cache`")

    def ahead(self, wanted: list[tuple[str, dict]]) -> None:
        """Says which shards (name, header) are being read and which come next: what is missing is fetched meanwhile."""
        self._wanted = wanted
        missing = False
        for name, _ in wanted:
            try:
                os.utime(self._data / self._key(name))
            except FileNotFoundError:
                missing = True
        if missing and (self._thread is None or not self._thread.is_alive()):
            self._thread = threading.Thread(target=self._fetch_ahead, name="shards ahead", daemon=True)
            self._thread.start()

    def _fetch_ahead(self) -> None:
        tried = set()
        while True:
            todo = next(((name, header) for name, header in self._wanted
                         if name not in tried and not (self._data / self._key(name)).exists()), None)
            if todo is None:
                return
            tried.add(todo[0])
            try:
                with self._lock(todo[0], wait=False):
                    if not (self._data / self._key(todo[0])).exists():
                        self._raise_if_dead(todo[0], time.time() - DEAD_FOR)
                        self._fetch(*todo)
            except (BlockingIOError, DeadShard):
                continue  # another process is at it, or nobody can have it
            except BadDataError:
                return  # whoever reads the shard meets the same, and says so

    def _fetch(self, name: str, header: dict | None) -> Index | None:
        """Fetches a shard, under its lock; makes its index where ``header`` is None."""
        key, kind = self._key(name), paths.ending(name)
        file, part, made = self._data / key, str(self._data / (key + ".part")), {}

        def check(last: bool) -> str | None:
            size, made["file"], damage = os.path.getsize(part), part, None
            if header is not None and size != header["size"]:
                return f"it has {size} bytes, and had {header['size']} when it was indexed"
            if kind.endswith(".gz"):
                made["file"] = part + ".unpacked"
                with open(made["file"], "wb") as f:
                    damage = scan.gunzip(part, f)
            if header is None:
                try:
                    made["records"], about = index.build(made["file"], index.kind_of(name))
                except ValueError:
                    raise BadDataError(f"{name}: a compressed tar cannot be read at any place; unpack it: "
                                       "`pipe:curl -sf URL | gunzip`") from None
                damage = damage or about["damage"]
                made["about"] = about | {"size": size, "damage": damage, "bytes": os.path.getsize(made["file"])}
            return None if last or header is not None else damage

        try:
            fetch(name, part, self._how, lambda size: self._make_room(size, key), check)
            os.replace(made["file"], file)
        except DeadShard as dead:
            said = json.dumps({"reason": dead.reason, "given_up": False}).encode()
            self._keep(self._index / (key + ".dead"), lambda f: f.write(said))
            raise
        except OSError as error:
            raise BadDataError(f"{file}: cannot be written: {error.strerror}; make room, or name another folder in "
                               "`shards.cache`") from None
        finally:
            for rest in (part, part + ".unpacked"):
                Path(rest).unlink(missing_ok=True)
        self._make_room(0, key)
        (self._index / (key + ".dead")).unlink(missing_ok=True)
        if header is not None:
            return None
        return self._keep_index(self._index / (key + ".idx"), name, made["records"], made["about"])

    def _make_room(self, size: int, key: str) -> None:
        """Deletes the shards that were not read for longest until there is room for ``size`` bytes, but not ``key``.

        What is on its way is left alone, and comes on top of the limit; what an ended process left of it is deleted.
        """
        if size > self.limit:
            raise BadDataError(f"{key}: {size / GB:.3g} GB are more than `shards.cache_gb` ({self._how.cache_gb:g})")
        with self._lock(None):
            found = []
            for entry in os.scandir(self._data):
                with contextlib.suppress(FileNotFoundError):
                    seen = entry.stat()
                    if not entry.name.endswith((".part", ".unpacked")):
                        found.append((seen.st_mtime_ns, seen.st_size, entry.name))
                    elif seen.st_mtime < time.time() - LEFT_OVER:
                        os.unlink(entry.path)
            over = size + sum(n for _, n, _ in found) - self.limit
            for _, n, name in sorted(found):
                if over > 0 and name != key:
                    (self._data / name).unlink(missing_ok=True)
                    over -= n

    # ---- what processes tell each other ---------------------------------------------------------------------------
    @contextlib.contextmanager
    def _lock(self, name: str | None, wait: bool = True):
        """Held by one thread of one process at a time, and let go when it dies. None: of the folder."""
        file = self._locks / ("folder" if name is None else self._key(name))
        descriptor = os.open(file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            try:
                yield
            finally:
                fcntl.flock(descriptor, fcntl.LOCK_UN)  # closing is not enough: a forked worker may have a copy
        finally:
            os.close(descriptor)

    def _raise_if_dead(self, name: str, since: float, or_given_up: bool = False) -> None:
        """Raises DeadShard if a process found a shard dead after the time ``since``, or gave it up whenever."""
        marker = self._index / (self._key(name) + ".dead")
        said = _read_marker(marker)
        if said and (marker.stat().st_mtime > since or or_given_up and said.get("given_up")):
            raise DeadShard(name, f"{said.get('reason')} (found before; `rm {marker}` has it tried again)")

    def _key(self, name: str) -> str:
        last = re.sub(r"[^A-Za-z0-9._-]+", "_", name.rsplit("/", 1)[-1])[-60:]
        return f"{stable_key(name):016x}-{last}"


def _no_more_than_an_index(size: int) -> None:
    if size > LARGEST_INDEX:
        raise Refused(f"{size} bytes are no index")


def _read_index(file: Path, name: str) -> Index | None:
    return index.read(file, {"version": index.VERSION, "kind": index.kind_of(name)})


def _read_marker(file: Path) -> dict:
    try:
        said = json.loads(file.read_bytes())
    except (OSError, ValueError):
        return {}
    return said if isinstance(said, dict) else {}
