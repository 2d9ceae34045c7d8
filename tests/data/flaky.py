"""A server of shards that fails on order: it drops, stalls, cuts, answers 500 or not; and counts what it was asked."""

import http.server
import re
import threading
from collections import Counter


def bodies(folder, *endings) -> dict[str, bytes]:
    """The files of a folder with one of some endings (``.tar``), by name."""
    return {f.name: f.read_bytes() for f in sorted(folder.iterdir()) if f.name.endswith(endings or (".tar",))}


class Flaky:
    """Serves ``files`` ({name: bytes}) at ``url``.

    Args:
        files: what is served; a name that is missing is a 404.
        ranges: whether it goes on in the middle of a file.
        stall: seconds for which a stalled answer stays open.

    Attributes:
        faults: {name: [fault, ...]}, one for each request to come; after the last, the server is well. Faults: ``drop``
            (half of the body, then the line breaks), ``stall`` (half, then nothing), ``cut`` (half, announced as the
            whole), ``error`` (500), ``refuse`` (no answer), ``begin`` (every byte, from the first, whatever was asked).
        asked: requests by name.
        sent: bytes of bodies by name.
    """

    def __init__(self, files: dict, ranges: bool = True, stall: float = 5.0):
        self.files, self.faults, self.asked, self.sent = files, {}, Counter(), Counter()
        self.ranges, self.stopped, lock = ranges, threading.Event(), threading.Lock()
        flaky = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self):
                name = self.path.lstrip("/")
                with lock:
                    flaky.asked[name] += 1
                    todo = flaky.faults.get(name, [])
                    fault = todo.pop(0) if todo else None
                self.close_connection = True
                if fault == "refuse":
                    return
                if fault == "error" or name not in flaky.files:
                    self.send_error(500 if fault == "error" else 404)
                    return
                self._body(name, flaky.files[name], fault)

            def do_HEAD(self):
                name = self.path.lstrip("/")
                if name not in flaky.files:
                    self.send_error(404)
                    return
                self.send_response(200)
                self.send_header("ETag", f'"{hash(flaky.files[name])}"')
                self.send_header("Content-Length", str(len(flaky.files[name])))
                self.end_headers()

            def _body(self, name, data, fault):
                tag, start = f'"{hash(data)}"', 0
                asked = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
                if asked and flaky.ranges and fault != "begin" and self.headers.get("If-Range") in (None, tag):
                    start = int(asked[1])
                    if start >= len(data):
                        self.send_error(416)
                        return
                body = data[start:]
                half = body[:len(body) // 2] if fault in ("drop", "stall", "cut") else body
                self.send_response(206 if start else 200)
                self.send_header("ETag", tag)
                self.send_header("Content-Length", str(len(half if fault == "cut" else body)))
                if start:
                    self.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
                self.end_headers()
                with lock:
                    flaky.sent[name] += len(half)
                try:
                    self.wfile.write(half)
                    self.wfile.flush()
                except OSError:
                    return
                if fault == "stall":
                    flaky.stopped.wait(stall)

            def log_message(self, *arguments):
                """Nothing is printed."""

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *_):
        self.stopped.set()
        self._server.shutdown()
        self._server.server_close()
