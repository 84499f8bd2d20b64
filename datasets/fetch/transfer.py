"""One file over HTTP, whatever the line does.

What has arrived stands in NAME.part; beside it NAME.json keeps the address, the size and the validator (ETag or date)
of that very version. A later request asks for the rest of the same version only (Range with If-Range); any other answer
starts over. The file gets its own name once its size and checksum are right and it is on disk.

Source: RFC 9110, sections 13.1.5 (If-Range), 14 (range requests), 15.5.17 (416).
"""

import contextlib
import hashlib
import http.client
import json
import os
import re
import shutil
import ssl
import time
import urllib.error
import urllib.request
from urllib.parse import urlsplit

import cli
from cli import UserError, warn
from datasets.fetch.sources import ELSEWHERE, MB, PIECE, megabytes, printable

TIMEOUT = 60  # seconds without a byte that count as a stall
ATTEMPTS = 6  # in a row without a byte more than ever before
PAUSE = 1.0  # seconds before the second attempt, doubled each time
HEAD_TIMEOUT = 5  # seconds for the size beforehand, which can be done without
PATIENCE = 120  # seconds, the longest pause a server may ask for
CHECKED_EVERY = 16 * MB  # bytes of a file of unknown size between two looks at the free space
HEADERS = {"User-Agent": "honestseg", "Accept-Encoding": "identity"}
BUSY = (408, 425, 429, 500, 502, 503, 504)  # answers that may be different a moment later
DIGESTS = {32: "md5", 40: "sha1", 64: "sha256"}


class BrokenOffError(Exception):
    """The transfer ended early, or the answer does not fit what was asked: another attempt may do better.

    pause: seconds the server asks to be left alone.
    """

    def __init__(self, reason, pause=0.0):
        super().__init__(reason)
        self.pause = pause


class Part:
    """What has arrived of a file, and of which version of it.

    version: {"url", "size" (bytes, None: not told), "validator" (for If-Range, None: the server gives none)}.
    """

    def __init__(self, target, url):
        self.target, self.url = target, url
        self.path, self.note = (target.with_name(target.name + ending) for ending in (".part", ".json"))
        self.version = self._read()
        if self.version.get("url") != url:
            target.unlink(missing_ok=True)  # fetched from elsewhere
            self.restart()

    def _read(self):
        """The note beside the file; empty where there is none, or none that can be read."""
        try:
            version = json.loads(self.note.read_text(encoding="utf-8"))
        except (FileNotFoundError, ValueError):
            return {}
        return version if isinstance(version, dict) and {"url", "size", "validator"} <= version.keys() else {}

    @property
    def size(self):
        """Bytes that have arrived."""
        return self.path.stat().st_size if self.path.exists() else 0

    @property
    def whole(self):
        """Whether all bytes announced are here."""
        return self.path.exists() and self.size == self.version["size"]

    def restart(self, size=None, validator=None):
        """Forget what has arrived. What is old goes first: no byte may ever stand under another version's note."""
        version = {"url": self.url, "size": size, "validator": validator}
        self.path.unlink(missing_ok=True)
        temporary = self.note.with_name(self.note.name + ".new")
        temporary.write_text(json.dumps(version), encoding="utf-8")
        os.replace(temporary, self.note)
        self.version = version

    def remove(self):
        """Remove what has arrived, whole or not, and the note."""
        for path in (self.path, self.target, self.note):
            path.unlink(missing_ok=True)

    def finish(self):
        """Give the file its own name, on disk."""
        with open(self.path, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(self.path, self.target)


# ---------------------------------------------------------------------------------------------------------------------
# The whole job


def fetch(url, target, digest="", growth=0.0):
    """Fetch a URL into the file `target`, going on where an earlier run stopped; what is there already stays.

    digest: the expected checksum in hexadecimal, empty: none; growth: bytes that must be free besides for each of the
    file's own, to unpack it.
    Returns the size that the server told, None where it did not.
    Raises UserError for an address that is none, an answer that will not change, a line that stays broken, a wrong
    checksum (what arrived is removed: it would be resumed for ever), too small a disk.
    """
    check_url(url)
    part = Part(target, url)
    if not target.exists():
        try:
            _arrive(url, part, growth)
        except BaseException:
            if not part.version["validator"]:  # no later run can go on with it
                part.remove()
            raise
        try:
            check_digest(part.path, digest)
        except UserError:
            part.remove()
            raise
        part.finish()
    return part.version["size"]


def _arrive(url, part, growth):
    """Ask until all bytes are there; only attempts in a row that bring nothing new are counted."""
    furthest, failures = part.size, 0
    while not part.whole:
        try:
            _attempt(url, part, growth)
            return
        except BrokenOffError as error:
            failures = 1 if part.size > furthest else failures + 1
            furthest = max(furthest, part.size)
            if failures >= ATTEMPTS:
                what = f"cannot fetch the file: {error}, {failures} times in a row"
                kept = f"{part.size / MB:.1f} MB are kept; " if part.size and part.version["validator"] else ""
                remedy = f"{kept}check the network and run the same command again to go on, or {ELSEWHERE}"
                raise UserError(what, url, remedy) from None
            pause = min(max(PAUSE * 2 ** (failures - 1), error.pause), PATIENCE)
            warn(f"{error}; trying again in {pause:.3g} s")
            time.sleep(pause)


def _attempt(url, part, growth):
    """One request and all that comes of it. Raises BrokenOffError unless the file is whole afterwards."""
    offset = part.size if part.version["validator"] else 0
    with contextlib.closing(_ask(url, part, offset)) as response:
        offset = _accept(response, url, part, offset)
        size = part.version["size"]
        check_space(part.path.parent, max((size or 0) - offset, 0) + (size or 0) * growth)
        _receive(response, part, size, growth)
    if size is not None and part.size != size:
        raise BrokenOffError(f"the line was cut after {part.size} of {size} bytes")


# ---------------------------------------------------------------------------------------------------------------------
# The question


def check_url(url, where="--url"):
    """Raise UserError for anything but an http or https address."""
    try:
        parts = urlsplit(url)
        sound = parts.hostname and parts.port != 0 and not re.search(r"[^!-~]", url)
    except ValueError:  # a port that is no number, a bracket left open
        parts, sound = urlsplit(""), False
    if "@" in parts.netloc:
        raise UserError("an address with a user's name or password", where, "fetch it yourself and give --archive")
    if not sound or parts.scheme not in ("http", "https"):
        what = f"no http or https address: {printable(url)!r}"
        raise UserError(what, printable(where), "a local file is given with --archive")


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follows to http and https only; the standard one would go on to ftp."""

    def http_error_302(self, request, file, *rest):
        try:
            return super().http_error_302(request, file, *rest)
        except ValueError:  # an address that is none
            file.close()
            raise

    http_error_301 = http_error_303 = http_error_307 = http_error_308 = http_error_302

    def redirect_request(self, request, file, code, message, headers, url):
        check_url(url, f"the redirect of {request.full_url}")
        return super().redirect_request(request, file, code, message, headers, url)


def _open(request, timeout):
    """The answer to a request. The environment's proxies are used. Raises HTTPError, UserError or BrokenOffError."""
    try:
        return urllib.request.build_opener(_Redirects).open(request, timeout=timeout)
    except (urllib.error.HTTPError, UserError):
        raise
    except UnicodeError as error:
        raise UserError(f"no host's name ({printable(error)})", printable(request.full_url), ELSEWHERE) from None
    except (ValueError, http.client.InvalidURL) as error:  # a redirect's address, or a proxy's
        _refuse_address(request, error)
    except (OSError, http.client.HTTPException) as error:
        reason = getattr(error, "reason", error)
        if isinstance(reason, str):  # urllib's own word on an address, the proxy's for instance
            _refuse_address(request, reason)
        if isinstance(reason, ssl.SSLCertVerificationError):
            what = f"the server's certificate is not valid ({printable(reason)})"
            raise UserError(what, request.full_url, ELSEWHERE) from None
        host = urlsplit(request.full_url).hostname
        raise BrokenOffError(f"no answer from {host} ({_words(reason)})") from error


def _refuse_address(request, reason):
    what = f"an address on the way cannot be used ({printable(reason)})"
    remedy = f"check http_proxy and https_proxy of the environment, or {ELSEWHERE}"
    raise UserError(what, printable(request.full_url), remedy) from None


def _words(error):
    """What went wrong on the line, in words."""
    return "it stalled" if isinstance(error, TimeoutError) else printable(error) or type(error).__name__


def _headers(part, offset):
    """The request's headers: the rest of the version we have, or all of the file."""
    return HEADERS | ({"Range": f"bytes={offset}-", "If-Range": part.version["validator"]} if offset else {})


def _ask(url, part, offset):
    """The server's answer, for the rest of the file where some of it is here.

    Raises BrokenOffError for an answer that may change, UserError for one that will not.
    """
    try:
        return _open(urllib.request.Request(url, headers=_headers(part, offset)), TIMEOUT)
    except urllib.error.HTTPError as error:
        error.close()
        if error.code == 416 and offset:  # the server has not as many bytes as we do: another version
            part.restart()
            raise BrokenOffError("the file has changed on the server") from None
        if error.code in BUSY:
            pause = _number(error.headers.get("Retry-After")) or 0
            raise BrokenOffError(f"the server answers {error.code} {printable(error.reason)}", pause) from None
        raise UserError(f"the server answers {error.code} {printable(error.reason)}", url, ELSEWHERE) from None


def told_size(url):
    """The size in bytes that a server tells of a file without sending it; None where it does not."""
    check_url(url)
    request = urllib.request.Request(url, headers=HEADERS, method="HEAD")
    try:
        with _open(request, HEAD_TIMEOUT) as response:
            return _number(response.headers.get("Content-Length"))
    except urllib.error.HTTPError as error:
        error.close()
    except BrokenOffError:  # told again, and dealt with, when the file itself is asked for
        pass
    return None


# ---------------------------------------------------------------------------------------------------------------------
# The answer


def _number(text):
    """A header's whole number; None where it is missing, none, or more than any file's."""
    return int(text) if text and re.fullmatch("[0-9]{1,18}", text) else None


def _validator(headers):
    """What names this version of the file in If-Range: a strong ETag, else the date; None where there is neither."""
    tag = headers.get("ETag", "")
    return tag if tag.startswith('"') else headers.get("Last-Modified")


def _accept(response, url, part, offset):
    """See what the answer holds; returns where its first byte belongs. Raises BrokenOffError, UserError."""
    if response.status == 206 and offset:
        return _accept_rest(response, part, offset)
    if response.status != 200:
        raise UserError(f"the server answers {response.status} {printable(response.reason)}", url, ELSEWHERE)
    size = _number(response.headers.get("Content-Length"))
    part.restart(size, _validator(response.headers))
    return 0


def _accept_rest(response, part, offset):
    """Hold a partial answer against what was asked for. An ETag has to come again, a date may be left out."""
    said = re.fullmatch(r"bytes ([0-9]+)-([0-9]+)/([0-9]+|\*)", response.headers.get("Content-Range", "").strip())
    size, version, known = part.version["size"], _validator(response.headers), part.version["validator"]
    fits = said and said[1] == str(offset) and (size is None or said[3] in ("*", str(size)))
    if not fits or (version != known and (version or known.startswith('"'))):
        part.restart()
        raise BrokenOffError("the server sent another part of the file, or of another version, than was asked for")
    part.version["size"] = size if size is not None else _number(said[3])
    return offset


def _receive(response, part, size, growth):
    """Append what the answer holds to the file, never more than `size` bytes in all.

    size None: until the end, as long as the disk has room for what has come, unpacked.
    """
    done = checked = part.size
    progress = cli.Progress(megabytes(size or 0), f"fetch {part.target.name}", "MB", done=done // MB)
    with open(part.path, "ab") as file, contextlib.closing(progress):
        while size is None or done < size:
            piece = _read(response, PIECE if size is None else min(PIECE, size - done))
            if not piece:
                break
            file.write(piece)
            file.flush()  # to the operating system, which outlives a killed process
            done += len(piece)
            progress.total = max(progress.total, megabytes(done))
            progress.update(megabytes(done) if done == size else done // MB)
            if size is None and done - checked >= CHECKED_EVERY:
                checked = done
                check_space(part.path.parent, done * growth)


def _read(response, most):
    """The bytes that are there, waiting for at least one; empty at the end."""
    try:
        return response.read1(most)
    except (OSError, http.client.HTTPException) as error:
        raise BrokenOffError(f"the line broke ({_words(error)})") from error


# ---------------------------------------------------------------------------------------------------------------------
# Checks


def check_digest(path, digest):
    """Hold a file against its checksum in hexadecimal (empty: none). Raises UserError where it differs."""
    if not digest:
        return
    name = DIGESTS[len(digest)]
    found = hashlib.new(name, usedforsecurity=False)
    with open(path, "rb") as file:
        while piece := file.read(PIECE):
            found.update(piece)
    if found.hexdigest() != digest.lower():
        what = f"wrong {name} checksum: {found.hexdigest()}, published is {digest}"
        name = path.name.removesuffix(".part")
        raise UserError(what, name, f"the file is damaged or another one; fetch it again, or {ELSEWHERE}")


def check_space(folder, needed):
    """Raise UserError where the disk of a folder has fewer bytes free than needed."""
    free = shutil.disk_usage(folder).free
    if free < needed:
        what = f"archive and unpacked files need {needed / 1e9:.2f} GB, {free / 1e9:.2f} GB are free"
        raise UserError(what, folder, "free some space, or choose another --data-dir")
