"""A real HTTP server on 127.0.0.1 that answers as it is told: whole, cut, stalled, lying, redirecting."""

import contextlib
import http.server
import threading
from email.utils import formatdate
from urllib.parse import urlsplit


class Server(http.server.ThreadingHTTPServer):
    """Serves `files` {path: bytes}, honestly and with ranges, but for what stands in `plan`.

    plan: for each GET in turn the name of a misbehaviour and what belongs to it, ("cut", 100) for instance; None:
    honest. requests: what was asked, as (method, path, headers). tag, date: ETag and Last-Modified of all files, None
    for none. mute: whether HEAD gets no answer. reached: set once a stalling answer has sent its part; release: ends
    all stalls.
    """

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.files, self.plan, self.requests = {}, [], []
        self.tag, self.date, self.mute = '"1"', None, False
        self.reached, self.release = threading.Event(), threading.Event()

    def url(self, path="/set.zip"):
        return f"http://127.0.0.1:{self.server_address[1]}{path}"

    def asked(self, header):
        """That header of every GET so far, None where it was not sent."""
        return [headers.get(header) for method, _, headers in self.requests if method == "GET"]

    def handle_error(self, request, address):
        """A client that is gone is what these tests are about."""


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *args):
        pass

    def do_HEAD(self):
        self.close_connection = True
        self.server.requests.append(("HEAD", self.path, dict(self.headers)))
        if self.server.mute:
            self.server.release.wait(30)
        self.head(200, len(self.server.files.get(urlsplit(self.path).path, b"")))

    def do_GET(self):
        self.close_connection = True
        self.server.requests.append(("GET", self.path, dict(self.headers)))
        path = urlsplit(self.path).path  # a proxy is asked for whole addresses
        behaviour, *rest = (self.server.plan.pop(0) if self.server.plan else None) or ("honest",)
        if path not in self.server.files:
            return self.head(404, 0)
        return getattr(self, f"answer_{behaviour}")(self.server.files[path], *rest)

    def head(self, code, length, **more):
        self.send_response(code)
        headers = {"ETag": self.server.tag, "Last-Modified": self.server.date, "Connection": "close"}
        headers |= {"Content-Length": length} | {name.replace("_", "-"): value for name, value in more.items()}
        for name, value in headers.items():
            if value is not None:
                self.send_header(name, str(value))
        self.end_headers()

    def start(self, content, lie=0, ignore_range=False):
        """Send the headers; returns the bytes that belong after them."""
        asked, known = self.headers.get("Range"), (self.server.tag, self.server.date)
        if asked and not ignore_range and self.headers.get("If-Range", self.server.tag) in known:
            first = int(asked.removeprefix("bytes=").rstrip("-"))
            if first >= len(content):
                self.head(416, 0, Content_Range=f"bytes */{len(content)}")
                return b""
            said = f"bytes {first}-{len(content) - 1}/{len(content)}"
            self.head(206, len(content) - first + lie, Content_Range=said)
            return content[first:]
        self.head(200, len(content) + lie)
        return content

    def answer_honest(self, content):
        self.wfile.write(self.start(content))

    def answer_cut(self, content, count):
        """The line breaks after so many bytes of the answer."""
        self.wfile.write(self.start(content)[:count])

    def answer_stall(self, content, count):
        """Nothing comes after so many bytes, and the line stays open."""
        self.wfile.write(self.start(content)[:count])
        self.wfile.flush()
        self.server.reached.set()
        self.server.release.wait(30)

    def answer_lie(self, content, more):
        """Another length than what comes."""
        self.wfile.write(self.start(content, lie=more))

    def answer_all(self, content, count=None):
        """Ranges are not known here."""
        self.wfile.write(self.start(content, ignore_range=True)[:count])

    def answer_code(self, content, code, **headers):
        self.head(code, 0, **headers)

    def answer_busy(self, content, seconds):
        self.head(503, 0, Retry_After=seconds)

    def answer_redirect(self, content, where):
        self.head(302, 0, Location=where)

    def answer_shifted(self, content):
        """Another part than was asked for."""
        self.head(206, len(content), Content_Range=f"bytes 0-{len(content) - 1}/{len(content)}")
        self.wfile.write(content)

    def answer_stubborn(self, content):
        """The rest of another version, as if If-Range had not been sent."""
        first = int(self.headers["Range"].removeprefix("bytes=").rstrip("-"))
        self.head(206, len(content) - first, Content_Range=f"bytes {first}-{len(content) - 1}/{len(content)}")
        self.wfile.write(content[first:])

    def answer_unsized(self, content, count=None):
        """No length; the end of the line is the end of the file, or seems to be."""
        self.head(200, None)
        self.wfile.write(content[:count])

    def answer_chunked(self, content, whole=True):
        self.head(200, None, Transfer_Encoding="chunked")
        for at in range(0, len(content), 1000):
            piece = content[at : at + 1000]
            self.wfile.write(b"%x\r\n%b\r\n" % (len(piece), piece))
            if not whole and at > len(content) // 2:
                return
        self.wfile.write(b"0\r\n\r\n")

    def answer_numbered(self, content, length):
        """Whatever is said to be the length."""
        self.head(200, length)
        self.wfile.write(content)

    def answer_says(self, content, code, words):
        """Other words beside the code."""
        self.wfile.write(f"HTTP/1.1 {code} {words}\r\nContent-Length: 0\r\n\r\n".encode("latin-1"))

    def answer_untagged(self, content, other):
        """The rest of another version, and not a word of which."""
        first = int(self.headers["Range"].removeprefix("bytes=").rstrip("-"))
        said = f"bytes {first}-{len(other) - 1}/{len(other)}"
        self.head(206, len(other) - first, Content_Range=said, ETag=None)
        self.wfile.write(other[first:])

    def answer_endless(self, content):
        """No length, no version, no end."""
        self.head(200, None, ETag=None)
        for _ in range(1000):
            self.wfile.write(bytes(100_000))

    def answer_garbage(self, content):
        self.wfile.write(b"this is not HTTP\r\n\r\n")


@contextlib.contextmanager
def serve():
    """A running server, stopped afterwards."""
    server = Server()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield server
    finally:
        server.release.set()
        server.shutdown()
        server.server_close()
        thread.join()


def a_date(days=0):
    """A Last-Modified value."""
    return formatdate(1_600_000_000 + 86400 * days, usegmt=True)
