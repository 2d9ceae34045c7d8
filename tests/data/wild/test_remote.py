"""What servers answer that should not: each either costs no sample, or is one line that names the shard and the reason."""

import contextlib
import gzip
import http.server
import io
import json
import os
import re
import threading
from collections import Counter

import pytest
from flaky import Flaky

from xtoolkit.data.blocks import ShardBlock
from xtoolkit.data.datasets import Images
from xtoolkit.data.errors import BadDataError
from xtoolkit.data.remote import Cache
from xtoolkit.data.shards import Shards

HOW = ShardBlock(timeout=5.0, retries=2, backoff=0.01)
PAGE = b"<!DOCTYPE html><html><body>Please sign in</body></html>" * 40
TAG = {"ETag": '"one"'}


@pytest.fixture(autouse=True)
def home(monkeypatch, tmp_path):
    monkeypatch.setenv("XTOOLKIT_HOME", str(tmp_path / "home"))


@pytest.fixture
def tar(tars) -> bytes:
    return (tars / "00.tar").read_bytes()


@contextlib.contextmanager
def serve(*answers, status: str = "200 OK"):
    """A server whose n-th answer to a GET is the n-th of ``answers``, its last from then on; HEAD and ``.idx`` are 404s.

    An answer is (headers, body), with ``status``; or (status, headers, body). ``Content-Length`` is that of the body unless given; the
    connection is closed behind the body. ``{range}`` in a header is the byte that was asked for.
    """
    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self):
            self.close_connection = True
            if self.path.endswith(".idx"):
                return self.send_error(404)
            asked.append(dict(self.headers))
            answer = answers[min(len(asked), len(answers)) - 1]
            said, headers, body = (status, *answer) if len(answer) == 2 else answer
            headers = {"Content-Length": len(body)} | headers
            lines = [f"HTTP/1.1 {said}", *(f"{name}: {value}" for name, value in headers.items() if value is not None), "", ""]
            with contextlib.suppress(OSError):
                self.wfile.write("\r\n".join(lines).encode("latin-1") + body)

        def log_message(self, *arguments):
            """Nothing is printed."""

    asked = []
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}/x", asked
    finally:
        server.shutdown()
        server.server_close()


def whole(found: Shards) -> bool:
    """Whether the six samples of 00.tar are all there, byte for byte where it counts."""
    return len(found) == 6 and not found.damaged and [found.meta(n)["image_id"] for n in range(6)] == list(range(6)) \
        and all(found.read(n, "image").startswith(b"\xff\xd8") for n in range(6))


def half(data: bytes) -> bytes:
    return data[:len(data) // 2]


# ---- what costs no sample -------------------------------------------------------------------------------------------------------
GOOD = {
    "a sign-in page, once": lambda tar: [({}, PAGE), (TAG, tar)],
    "an empty body, once": lambda tar: [({}, b""), (TAG, tar)],
    "no content, once": lambda tar: [("204 No Content", {"Content-Length": None}, b""), (TAG, tar)],
    "the line breaks, and ranges are ignored": lambda tar: [(TAG | {"Content-Length": len(tar)}, half(tar)), (TAG, tar)],
    "the line breaks, and nobody says of which version": lambda tar: [({"Content-Length": len(tar)}, half(tar)), ({}, tar)],
    "it changes between two tries, and is sent whole": lambda tar: [
        ({"ETag": '"zero"', "Content-Length": len(tar)}, b"\0" * 5000), (TAG, tar)],
    "it changes between two tries, and goes on as if it had not": lambda tar: [
        ({"ETag": '"zero"', "Content-Length": len(tar)}, b"\0" * 5000),
        ("206 Partial Content", TAG | {"Content-Range": f"bytes 5000-{len(tar) - 1}/{len(tar)}"}, tar[5000:]), (TAG, tar)],
    "it grows between two tries": lambda tar: [
        (TAG | {"Content-Length": 9000}, b"\0" * 5000),
        ("206 Partial Content", TAG | {"Content-Range": f"bytes 5000-{len(tar) - 1}/{len(tar)}"}, tar[5000:]), (TAG, tar)],
    "it goes on at another byte": lambda tar: [
        (TAG | {"Content-Length": len(tar)}, tar[:5000]),
        ("206 Partial Content", TAG | {"Content-Range": f"bytes 4000-{len(tar) - 1}/{len(tar)}"}, tar[4000:]), (TAG, tar)],
    "it goes on and does not say where": lambda tar: [
        (TAG | {"Content-Length": len(tar)}, tar[:5000]), ("206 Partial Content", TAG, tar[5000:]), (TAG, tar)],
    "it has no byte from there on": lambda tar: [
        (TAG | {"Content-Length": len(tar)}, tar[:5000]), ("416 Range Not Satisfiable", {}, b""), (TAG, tar)],
    "part of it, though all was asked for": lambda tar: [
        ("206 Partial Content", TAG | {"Content-Range": f"bytes 0-4999/{len(tar)}"}, tar[:5000]), (TAG, tar)],
    "more bytes than announced, once": lambda tar: [(TAG | {"Content-Length": 5000}, tar), (TAG, tar)],
    "a length that is no number": lambda tar: [({"Content-Length": "many"}, tar)],
    "a length below zero": lambda tar: [({"Content-Length": -5}, tar)],
    "a length of 5000 digits": lambda tar: [({"Content-Length": "9" * 5000}, tar)],
    "no length": lambda tar: [({"Content-Length": None}, tar)],
    "no length, and the line breaks": lambda tar: [({"Content-Length": None}, half(tar)), ({"Content-Length": None}, tar)],
    "chunks, and one is cut": lambda tar: [
        ({"Content-Length": None, "Transfer-Encoding": "chunked"}, b"2000\r\n" + tar[:0x1000]), (TAG, tar)],
    "an ETag of 60,000 characters": lambda tar: [({"ETag": "x" * 60_000, "Content-Length": len(tar)}, half(tar)), ({}, tar)],
    "an ETag of two lines": lambda tar: [({"ETag": '"a\r\n b"', "Content-Length": len(tar)}, half(tar)), ({}, tar)],
    "an ETag that is not ASCII": lambda tar: [({"ETag": '"\xe9"', "Content-Length": len(tar)}, half(tar)), ({}, tar)],
    "a weak ETag": lambda tar: [({"ETag": 'W/"one"', "Content-Length": len(tar)}, half(tar)), ({}, tar)],
    "more headers than anybody reads, once": lambda tar: [({f"X-{n}": n for n in range(500)}, tar), (TAG, tar)],
    "no answer in HTTP, once": lambda tar: [("nonsense", {}, tar), (TAG, tar)],
    "a redirect to the right place": lambda tar: [("302 Found", {"Location": "/elsewhere/x.tar"}, b""), (TAG, tar)],
    "a redirect to nowhere, once": lambda tar: [("302 Found", {"Location": "http://[1:2/x"}, b""), (TAG, tar)],
}


@pytest.mark.parametrize("case", GOOD)
def test_it_costs_no_sample(case, tar):
    with serve(*GOOD[case](tar)) as (url, asked):
        assert whole(Shards([url + ".tar"], Cache(HOW)))
        assert len(asked) == len(GOOD[case](tar)), "each answer was met"


# ---- what is one line -----------------------------------------------------------------------------------------------------------
BAD = {
    "a sign-in page": (lambda tar: [({}, PAGE)], 3, r"3 tries in a row failed, the last with: .*it begins with b'<!DOCTYPE html>"),
    "an empty body": (lambda tar: [({}, b"")], 3, "3 tries in a row failed, the last with: it is empty"),
    "a tar of zeros": (lambda tar: [({}, b"\0" * 4000)], 1, None),
    "a redirect in a circle": (lambda tar: [("302 Found", {"Location": "/x.tar"}, b"")], None,
                               "the server answers 302 .* redirect error that would lead to an infinite loop"),
    "a redirect to a file of this machine": (lambda tar: [("302 Found", {"Location": "file:///etc/passwd"}, b"")], 1,
                                             "the server answers 302 .*file:///etc/passwd.* not allowed"),
    "a redirect without a place": (lambda tar: [("302 Found", {}, b"")], 1, "the server answers 302 Found"),
    "packed by the server": (lambda tar: [({"Content-Encoding": "gzip"}, gzip.compress(tar))], 1,
                             r"the server packs it \(gzip\), asked not to; read it by `pipe:curl -sf --compressed URL`"),
    "it never says where it goes on": (lambda tar: [({"Content-Length": len(tar)}, half(tar))], 3, r"\d+ of \d+ bytes came"),
    "the wrong half for ever": (lambda tar: [("206 Partial Content", {"Content-Range": f"bytes 0-9/{len(tar)}"}, tar[5000:])], 3,
                                "the last with: .*it begins with b"),
    "no answer in HTTP": (lambda tar: [("nonsense", {}, tar)], 3, "the last with: .*nonsense"),
    "gone": (lambda tar: [("410 Gone", {}, PAGE)], 1, "the server answers 410 Gone"),
    "for sale": (lambda tar: [("402 Payment Required", {}, PAGE)], 3, "the last with: HTTP Error 402: Payment Required"),
}


@pytest.mark.parametrize("case", BAD)
def test_it_is_one_line(case, tar):
    answers, tries, said = BAD[case]
    with serve(*answers(tar)) as (url, asked):
        found = Shards([url + ".tar"], Cache(HOW))
        assert len(found) == 0 and tries in (None, len(asked))
        assert [one.path for one in found.dead] == ([url + ".tar"] if said else [])
    for dead in found.dead:
        assert re.search(said, dead.detail) and "\n" not in str(dead) and len(str(dead)) < 400


def test_a_shard_of_more_bytes_than_announced_is_served_up_to_there(tar):
    with serve((TAG | {"Content-Length": len(half(tar))}, tar)) as (url, asked):
        found = Shards([url + ".tar"], Cache(HOW))
        assert len(asked) == 3 and 0 < len(found) < 6 and "cut off" in found.damaged[url + ".tar"]


def test_a_shard_larger_than_the_folder_stops_the_run_before_a_byte_is_written(tar, tmp_path):
    with serve((TAG | {"Content-Length": 10**15}, tar)) as (url, asked):
        with pytest.raises(BadDataError, match=r"x.tar: 1e\+06 GB are more than `shards.cache_gb` \(64\)$"):
            Shards([url + ".tar"], Cache(HOW))
        assert not list((tmp_path / "home" / "remote" / "shards").iterdir())


def test_texts_that_a_server_calls_packed_because_they_are(tar):
    lines = "".join(json.dumps({"text": f"text {n}"}) + "\n" for n in range(5)).encode()
    with serve(({"Content-Encoding": "gzip"}, gzip.compress(lines))) as (url, asked):
        found = Shards([url + ".jsonl.gz"], Cache(HOW))
        assert [found.text(n) for n in range(5)] == [f"text {n}" for n in range(5)]
        found = Shards([url + ".jsonl"], Cache(HOW))
        assert re.search(r"packs it \(gzip\)", found.dead[0].detail)


def test_what_a_killed_process_left_is_written_over_and_goes_in_the_end(tar):
    with serve((TAG, tar)) as (url, asked):
        cache = Cache(HOW)
        assert whole(Shards([url + ".tar"], cache))
        shard, = (cache.folder / "shards").iterdir()
        forget(cache)
        mine, others, younger = (shard.with_name(name) for name in (f"{shard.name}.part", "x.tar.part", "y.tar.part"))
        for left in (mine, others, younger):
            left.write_bytes(b"left over")
        os.utime(others, (0, 0))
        assert whole(Shards([url + ".tar"], cache)) and sorted((cache.folder / "shards").iterdir()) == sorted([shard, younger])


def test_other_file_systems_fail_in_ways_of_their_own(tar):
    import fsspec

    class Busy(Exception):
        """No OSError, as those of most clouds' clients."""

    class File(io.BytesIO):
        def read(self, size):
            begins.append(self.tell())
            if self.tell() >= 5000 and faults:
                raise faults.pop()
            return super().read(5000 if faults else size)

    class Faulty(fsspec.AbstractFileSystem):
        protocol = "faulty"

        def info(self, path, **options):
            return {"name": path, "size": len(tar), "type": "file", "ETag": "one"}

        def open(self, path, mode):
            return File(tar)

    begins, faults = [], []
    fsspec.register_implementation("faulty", Faulty, clobber=True)
    cache = Cache(HOW)
    faults[:] = [Busy()]
    assert whole(Shards(["faulty://x/x.tar"], cache)) and begins[:3] == [0, 5000, 5000], "it went on where it had stopped"
    forget(cache)
    faults[:] = [Busy("slow down,\nplease")] * 9
    with pytest.raises(Exception, match="3 tries in a row failed, the last with: slow down, please$"):
        Shards(["faulty://x/x.tar"], cache).read(0, "image")


# ---- another version than was indexed -------------------------------------------------------------------------------------------
def changed(tar: bytes) -> bytes:
    """Another tar of as many bytes."""
    return tar.replace(b'"image_id": 3', b'"image_id": 9')


def forget(cache: Cache) -> None:
    for file in (cache.folder / "shards").iterdir():
        file.unlink()


@pytest.mark.parametrize("indexed", ["from the shard", "by the server"])
def test_a_shard_that_changed_at_equal_size_is_named(tars, tar, indexed):
    assert changed(tar) != tar and len(changed(tar)) == len(tar)
    Shards([str(tars / "00.tar")])
    files = {"x.tar": tar} | ({"x.tar.idx": (tars / "00.tar.idx").read_bytes()} if indexed == "by the server" else {})
    with Flaky(files) as server:
        url, cache = server.url + "/x.tar", Cache(HOW)
        assert whole(Shards([url], cache))
        forget(cache)
        assert whole(Shards([url], cache)), "it goes, and comes again"
        forget(cache)
        server.files["x.tar"], asked, sent = changed(tar), server.asked["x.tar"], server.sent["x.tar"]
        with pytest.raises(Exception, match="dead shard: ") as error:
            Shards([url], cache).read(3, "image")
        idx, = (cache.folder / "index").glob("*.idx")
        tags = [f'"{hash(data)}"' for data in (changed(tar), tar)]
        assert f"its version is {tags[0]}, and was {tags[1]} when it was indexed; `rm '{idx}'` has it indexed anew" in str(error.value)
        assert server.asked["x.tar"] == asked + 1 + HOW.retries and "\n" not in str(error.value)
        idx.unlink()
        for marker in (cache.folder / "index").glob("*.failed"):
            os.unlink(marker)
        server.files.pop("x.tar.idx", None)
        assert [Shards([url], cache).meta(n)["image_id"] for n in range(6)] == [0, 1, 2, 9, 4, 5]


def test_a_page_in_the_place_of_a_known_shard_costs_nothing_if_it_goes(tars, tar):
    with serve((TAG, tar), ({"ETag": '"page"'}, PAGE), ({}, PAGE), (TAG, tar)) as (url, asked):
        cache = Cache(HOW)
        assert whole(Shards([url + ".tar"], cache))
        forget(cache)
        assert whole(Shards([url + ".tar"], cache)) and len(asked) == 4


def test_an_index_tells_the_version_of_its_shard(tar, tmp_path):
    def header(name, *answers):
        with serve(*answers) as (url, _):
            return Cache(ShardBlock(timeout=5.0, retries=0, cache=str(tmp_path / name))).index(url + ".tar").header

    date = {"Last-Modified": "Sat, 28 Nov 2026 11:00:00 GMT"}
    assert header("a", (TAG, tar))["tag"] == '"one"' and header("b", (date, tar))["tag"] == date["Last-Modified"]
    assert header("c", ({}, tar))["tag"] is None
    digests = [header(name, (tag, body))["digest"] for name, tag, body in (
        ("d", TAG, tar), ("e", TAG, tar), ("f", {"ETag": '"two"'}, changed(tar)))]
    assert digests[0] == digests[1] != digests[2]


def test_a_server_that_does_not_tell_the_version_once_changes_no_digest(tar, tmp_path):
    def digests(name, *answers):
        with serve(*answers) as (url, _):
            data = Images(32, 8, path=url + ".tar", shards=ShardBlock(timeout=5.0, retries=0, cache=str(tmp_path / name)))
            return data.digests["data"], data.digests["data (its version at the server)"]

    (tmp_path / "x.tar").write_bytes(tar)
    content = Shards([str(tmp_path / "x.tar")]).digest
    told, silent, other = digests("a", (TAG, tar)), digests("b", ({}, tar)), digests("c", ({"ETag": '"two"'}, tar))
    assert told[0] == silent[0] == other[0] == content and silent[1] is None and None not in told and told[1] != other[1]


def test_an_index_larger_than_any_is_not_taken(tars, tar):
    with Flaky({"x.tar": tar}) as server:
        real = server._server.RequestHandlerClass

        class Handler(real):
            def do_GET(self):
                if not self.path.endswith(".idx"):
                    return real.do_GET(self)
                self.close_connection = True
                self.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: 99999999999\r\n\r\n" + b"{" * 5000)

        server._server.RequestHandlerClass = Handler
        assert whole(Shards([server.url + "/x.tar"], Cache(HOW))) and Counter(server.asked) == {"x.tar": 1}
