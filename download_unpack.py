"""Archives from strangers: tar, tar.gz and zip, unpacked so that nothing can land outside the folder.

The folder is new, only plain files and folders are made, every file is opened for creation only: a name that comes
twice, or differs in case on a disk that does not care, is an error and never overwrites. No link, no device, no
absolute path, no `..`; bytes are counted as they are written, whatever the archive declares.

`tarfile` takes an archive that was cut between two members for a whole one; here the end mark must be there.
"""

import contextlib
import errno
import gzip
import io
import lzma
import re
import stat
import struct
import tarfile
import zipfile
import zlib

import report
from flags import UserError

MOST_FILES = 1_000_000
MOST_BYTES = 1 << 30  # for any archive …
MOST_GROWTH = 20  # … and this many bytes for each of its own: images hardly grow
MOST_HEADER = 1 << 20
DEEPEST = 32
PIECE = 1 << 16
MB = 1_000_000
WRONG = "this is not the archive it should be: name another place with --url, or a local file with --archive"
DAMAGED = "fetch it again, or name another place with --url, or a local file with --archive"
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
    progress = report.Progress(-(-archive.stat().st_size // MB), f"unpack {archive.name}", "MB")
    try:
        with contextlib.closing(progress), contextlib.closing(_entries(archive)) as entries:
            for name, file, done in entries:
                writer.add(name, file)
                progress.update(min(done // MB, progress.total))
            progress.update(progress.total)
    except UserError:
        raise
    except (*BROKEN, OSError) as error:
        if isinstance(error, OSError) and not isinstance(error, BROKEN) and error.errno != errno.EINVAL:
            raise  # the disk's, not the archive's: only a damaged one asks for a place before its beginning
        what = f"the archive is damaged or cut short ({type(error).__name__}: {error})"
        raise UserError(what, archive, DAMAGED) from error
    return writer.files


def unpacked_size(archive, growth):
    """Bytes an archive needs unpacked: what a zip declares, else its size times `growth`."""
    if _kind(archive) == "zip":
        try:
            with zipfile.ZipFile(archive) as content:
                return sum(info.file_size for info in content.infolist())
        except BROKEN:
            pass  # said in full when it is unpacked
    return int(archive.stat().st_size * growth)


class _Writer:
    """Makes an archive's files and folders below a folder, and counts."""

    def __init__(self, archive, folder):
        self.archive, self.folder = archive, folder
        self.files = self.bytes = 0
        self.most_bytes = MOST_BYTES + MOST_GROWTH * archive.stat().st_size

    def add(self, name, file):
        """Make one file, or a folder where `file` is None."""
        parts = safe_parts(name, self.archive)
        self.files += 1
        if self.files > MOST_FILES:
            raise UserError(f"more than {MOST_FILES} files", self.archive, WRONG)
        path = self.folder.joinpath(*parts)
        try:
            (path if file is None else path.parent).mkdir(parents=True, exist_ok=True)
            if file is not None:
                self._write(path, file)
        except (FileExistsError, NotADirectoryError, IsADirectoryError):
            raise UserError(f"the archive holds {name!r} twice", self.archive, WRONG) from None

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
        else "a name too long" if len(parts) > DEEPEST or any(len(part.encode()) > 255 for part in parts)
        else None
    )  # fmt: skip
    if fault:
        raise UserError(f"the archive holds {fault} ({name!r})", archive, WRONG)
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
        raise UserError(f"the archive holds {what} ({name!r})", archive, WRONG)


class _Reader(io.BufferedReader):
    """A tar's bytes. A long read is a header that claims a length: members are read in small pieces."""

    def read(self, size=-1):
        if size is None or not 0 <= size <= MOST_HEADER:
            raise tarfile.ReadError(f"a header of {size} bytes")
        return super().read(size)


def _tar_entries(archive, packed):
    """The members of a tar; afterwards the end mark must be there, and a tar.gz's own checksum is compared."""
    with contextlib.ExitStack() as stack:
        raw = stack.enter_context(open(archive, "rb", buffering=0))
        source = stack.enter_context(gzip.GzipFile(fileobj=raw)) if packed else raw
        # Twice the longest read: tarfile steps back by one byte, and a gzip stream can only do so inside the buffer.
        file = stack.enter_context(_Reader(source, 2 * MOST_HEADER))
        content = tarfile.open(fileobj=file, mode="r:", encoding="utf-8", errors="surrogateescape")  # noqa: SIM115
        while (member := content.next()) is not None:
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
