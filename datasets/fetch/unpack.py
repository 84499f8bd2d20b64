"""Archives that nobody vouches for: tar, tar.gz and zip, unpacked so that nothing is written outside the folder.

The folder is new, only plain files and folders are made, every file is opened for creation only: a name that comes
twice, or differs in case on a disk that does not care, is an error and never overwrites. No link, no device, no
absolute path, no `..`; bytes are counted as they are written, whatever the archive declares.

`tarfile` takes an archive that was cut between two members, or has a hole where a header was, for a whole one; here
the end mark must be there, and nothing but zeros after it.
"""

import contextlib
import errno
import filecmp
import gzip
import io
import lzma
import os
import re
import stat
import struct
import sys
import tarfile
import zipfile
import zlib

import cli
from cli import UserError
from datasets.fetch.sources import ELSEWHERE, MB, PIECE, megabytes, printable

MOST_FILES = 1_000_000  # and folders
MOST_BYTES = 1 << 30  # for any archive …
MOST_GROWTH = 20  # … and this many bytes for each of its own: images hardly grow
MOST_HEADER = 1 << 16  # bytes of all headers of one member: tarfile keeps them in memory
MOST_GLOBAL = 100  # headers that hold for all members after them, which it keeps to the end
DEEPEST = 32
LONGEST = 1000  # characters of a path
WRONG = f"this is not the archive it should be: {ELSEWHERE}"
DAMAGED = f"fetch it again, or {ELSEWHERE}"
BROKEN = (
    tarfile.TarError, zipfile.BadZipFile, gzip.BadGzipFile, EOFError, zlib.error, lzma.LZMAError, struct.error,
    NotImplementedError, RuntimeError, ValueError, LookupError, OverflowError,
)  # fmt: skip


def unpack(archive, folder):
    """Unpack an archive into a folder, which may hold other archives' files already.

    Returns the number of files. Raises UserError, the folder half filled, for an archive that is damaged, cut short,
    of another kind, or hostile.
    """
    writer = _Writer(archive, folder)
    progress = cli.Progress(megabytes(archive.stat().st_size), f"unpack {archive.name}", "MB")
    with _told(archive), contextlib.closing(progress), contextlib.closing(_entries(archive)) as entries:
        for name, file, done in entries:
            writer.add(name, file)
            progress.update(min(done // MB, progress.total))
        progress.update(progress.total)
    return writer.files


@contextlib.contextmanager
def _told(archive):
    """Blame the archive for a fault in reading it, and the disk for its own."""
    try:
        yield
    except UserError:
        raise
    except (*BROKEN, OSError) as error:
        # Of the system's own errors only that of a position before the beginning; bz2's carry no number.
        if isinstance(error, OSError) and not isinstance(error, BROKEN) and error.errno not in (None, errno.EINVAL):
            raise
        what = f"the archive is damaged or cut short ({type(error).__name__}: {printable(error)})"
        raise UserError(what, archive, DAMAGED) from error


def unpacked_size(archive, growth):
    """Bytes an archive needs unpacked: what a zip declares, else its size times `growth`.

    Raises UserError for a file that is no archive, a damaged zip, and one that declares more than any data set's.
    """
    if _kind(archive) != "zip":
        return int(archive.stat().st_size * growth)
    with _told(archive), zipfile.ZipFile(archive) as content:
        size = sum(info.file_size for info in content.infolist())
    if size > _most_bytes(archive):
        raise UserError(f"it says that it unpacks to {size / 1e9:.1f} GB", archive, WRONG)
    return size


def _most_bytes(archive):
    return MOST_BYTES + MOST_GROWTH * archive.stat().st_size


def merge(source, target, archive, others, top=True):
    """Move what an archive was unpacked to, the folder `source`, into a folder that holds other archives' files.

    A file that is there already may come again with the same bytes; at the top, where each archive has its own README
    and licence, the first one stays. Raises UserError, naming this archive and the others, for any other.
    """
    for path in source.iterdir():
        there = target / path.name
        if not os.path.lexists(there):
            path.rename(there)
        elif path.is_dir() and there.is_dir():
            merge(path, there, archive, others, top=False)
        elif path.is_dir() or there.is_dir() or not (top or filecmp.cmp(path, there, shallow=False)):
            what = f"{archive.name} holds another {path.name!r} than {' or '.join(other.name for other in others)}"
            raise UserError(what, archive, WRONG)


class _Writer:
    """Makes an archive's files and folders below a folder, and counts."""

    def __init__(self, archive, folder):
        self.archive, self.folder = archive, folder
        self.files = self.folders = self.bytes = 0
        self.most_bytes = _most_bytes(archive)

    def add(self, name, file):
        """Make one file, or a folder where `file` is None."""
        parts = safe_parts(name, self.archive)
        self.files += 1
        self._count()
        path = self.folder.joinpath(*parts)
        try:
            self._make_folder(path if file is None else path.parent)
            if file is not None:
                self._write(path, file)
        except (FileExistsError, NotADirectoryError, IsADirectoryError):
            raise UserError(f"the archive holds {printable(name)!r} twice", self.archive, WRONG) from None

    def _count(self):
        if self.files + self.folders > MOST_FILES:
            raise UserError(f"more than {MOST_FILES} files and folders", self.archive, WRONG)

    def _make_folder(self, path):
        """Make a folder and those above it, each counted: one long name makes many."""
        if not path.is_dir():
            self._make_folder(path.parent)
            path.mkdir()
            self.folders += 1
            self._count()

    def _write(self, path, file):
        """Copy one member; `x` because a name may come once."""
        with open(path, "xb") as out:
            while piece := file.read(PIECE):
                self.bytes += len(piece)
                if self.bytes > self.most_bytes:
                    raise UserError(f"it unpacks to more than {self.most_bytes} bytes", self.archive, WRONG)
                out.write(piece)


def safe_parts(name, archive):
    """The parts of a member's name, "." and empty ones left out. Raises UserError for one that could lead outside."""
    parts = [part for part in name.split("/") if part not in ("", ".")]
    fault = (
        "an absolute path" if name.startswith("/")
        else "a way out of the folder" if ".." in parts
        else "a drive letter" if any(re.match(r"[A-Za-z]:", part) for part in parts)
        else "a backslash" if "\\" in name
        else "a name that is no UTF-8" if re.search("[\ud800-\udfff]", name)
        else "a control character in a name" if re.search(r"[\x00-\x1f\x7f]", name)
        else "a name too long" if max(len(parts) - DEEPEST, len(name) - LONGEST) > 0
        else "a name too long" if any(len(part.encode()) > 255 for part in parts)
        else None
    )  # fmt: skip
    if fault:
        raise UserError(f"the archive holds {fault} ({printable(name)!r})", archive, WRONG)
    return parts


# ---------------------------------------------------------------------------------------------------------------------
# Members: (name, open file or None for a folder, bytes of the archive read so far)


def _kind(archive):
    """ "zip", "gz" or "tar" by content. Raises UserError for anything else."""
    with open(archive, "rb") as file:
        head = file.read(512)
    if head[:4] in (b"PK\x03\x04", b"PK\x05\x06"):
        return "zip"
    if head[:2] == b"\x1f\x8b":
        return "gz"
    if len(head) == 512 and _is_header(head):
        return "tar"
    page = head.lstrip()[:1] == b"<"
    what = "no archive but a web page (a log-in, perhaps)" if page else "no zip, tar or tar.gz archive"
    raise UserError(what, archive, DAMAGED)


def _is_header(block):
    """Whether 512 bytes are a tar header, or the end mark of an empty one."""
    try:
        tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
    except tarfile.EOFHeaderError:
        return True
    except tarfile.HeaderError:
        return False
    return True


def _entries(archive):
    """The archive's members one after the other; the last one comes only from an archive that is whole."""
    kind = _kind(archive)
    return _zip_entries(archive) if kind == "zip" else _tar_entries(archive, kind == "gz")


def _zip_entries(archive):
    """The members of a zip; its checksums are compared as each is read to its end."""
    done = 0
    with zipfile.ZipFile(archive) as content:
        for info in content.infolist():
            name, kind = info.orig_filename, stat.S_IFMT(info.external_attr >> 16)
            _refuse(archive, name, info.flag_bits & 1, "an encrypted file")
            _refuse(archive, name, kind not in (0, stat.S_IFDIR if info.is_dir() else stat.S_IFREG), "a link or device")
            done += info.compress_size
            if info.is_dir():
                yield name, None, done
                continue
            with content.open(info) as file:
                yield name, file, done


def _refuse(archive, name, fault, what):
    if fault:
        raise UserError(f"the archive holds {what} ({printable(name)!r})", archive, WRONG)


class _Reader(io.BufferedReader):
    """A tar's bytes. What tarfile reads to find the next member is all headers, and is counted."""

    left = MOST_HEADER

    def read(self, size=-1):
        if size is None or not 0 <= size <= self.left:
            raise tarfile.ReadError(f"a header of {size} bytes")
        self.left -= size
        return super().read(size)

    def next_of(self, content):
        """The tar's next member. Raises ReadError for one with more than MOST_HEADER bytes of headers."""
        self.left = MOST_HEADER
        member = content.next()
        self.left = sys.maxsize  # the member's own bytes, in pieces
        return member


def _tar_entries(archive, packed):
    """The members of a tar; afterwards the end mark must be there, and a tar.gz's own checksum is compared.

    After the mark only zeros may come: a hole inside looks like an end, too.
    """
    with contextlib.ExitStack() as stack:
        raw = stack.enter_context(open(archive, "rb", buffering=0))
        source = stack.enter_context(gzip.GzipFile(fileobj=raw)) if packed else raw
        # Twice the longest read: tarfile steps back by one byte, and a gzip stream can only do so inside the buffer.
        file = stack.enter_context(_Reader(source, 2 * MOST_HEADER))
        content = tarfile.open(fileobj=file, mode="r:", encoding="utf-8", errors="surrogateescape")  # noqa: SIM115
        while (member := file.next_of(content)) is not None:
            _refuse(archive, member.name, len(content.pax_headers) > MOST_GLOBAL, "too many headers")
            content.members.clear()  # a list of all members would grow with the archive
            plain = member.isreg() and not member.issparse()
            _refuse(archive, member.name, not (plain or member.isdir()), "a link, a device or a file with holes")
            yield member.name, content.extractfile(member) if plain else None, raw.tell()
        file.seek(content.offset)
        end = file.read(tarfile.BLOCKSIZE)
        if end != bytes(tarfile.BLOCKSIZE):
            raise tarfile.ReadError("no end mark")
        rest = 0
        while piece := file.read(PIECE):  # to the end of a gzip stream, where its checksum stands
            rest += len(piece)
            _refuse(archive, "after its end", rest > MOST_BYTES, "too much")
            if piece.count(0) < len(piece):
                raise tarfile.ReadError("something follows the end mark, or a hole is inside")
