"""A proxy before an object store on loopback that fails for a share of the calls: 500, 503, cut off, no answer in time."""

import http.client
import http.server
import random
import threading
from collections import Counter
from contextlib import contextmanager
from urllib.parse import urlsplit

FAULTS = ("500", "503", "cut", "cut half way", "late")
_LOCAL = {"connection", "keep-alive", "transfer-encoding", "content-length"}


@contextmanager
def faulty(server, share, *, seed, seconds):
    """(address, Counter of what was done). A `share` of the calls fail; of the late ones nothing is heard for `seconds`."""
    done, draw, lock, place = Counter(), random.Random(seed), threading.Lock(), urlsplit(server)

    class Proxy(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def answer(self):
            body = self.body()
            with lock:
                fault = draw.choice(FAULTS) if draw.random() < share else "fine"
                done[fault] += 1
            self.close_connection = fault != "fine"
            if fault in ("500", "503"):
                self.reply(int(fault), {}, b"")
            elif fault == "late":
                ended.wait(seconds)
            if fault not in ("fine", "cut half way"):
                return
            upstream = http.client.HTTPConnection(place.hostname, place.port)
            asked = {name: value for name, value in self.headers.items() if name.lower() not in (*_LOCAL, "expect")}
            upstream.request(self.command, self.path, body, {**asked, "Connection": "close"})
            answer = upstream.getresponse()
            content, facts = answer.read(), {name: value for name, value in answer.getheaders() if name.lower() not in _LOCAL}
            length = answer.getheader("Content-Length") if self.command == "HEAD" else None
            upstream.close()
            self.reply(answer.status, facts, content, length, half=fault != "fine")

        def body(self):
            if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
                return self.rfile.read(int(self.headers.get("Content-Length") or 0))
            pieces = []
            while size := int(self.rfile.readline().split(b";")[0], 16):
                pieces.append(self.rfile.read(size))
                self.rfile.readline()
            while self.rfile.readline().strip():  # what is said after the last piece
                pass
            return b"".join(pieces)

        def reply(self, status, facts, content, length=None, *, half=False):
            self.send_response(status)
            for name, value in facts.items():
                self.send_header(name, value)
            if status != 204:
                self.send_header("Content-Length", length or str(len(content)))
            self.end_headers()
            self.wfile.write(content[: len(content) // 2] if half else content)

        do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = answer  # noqa: N815

        def log_message(self, *given):
            """Says nothing."""

    ended = threading.Event()
    made = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Proxy)
    made.daemon_threads = True
    threading.Thread(target=made.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{made.server_port}", done
    finally:
        ended.set()
        made.shutdown()
        made.server_close()
