"""Archives, sound and hostile, against the unpacker."""

import gzip
import io
import stat
import struct
import tarfile
import tracemalloc
import zipfile
import zlib

import pytest

from cli import UserError
from datasets.fetch import unpack as unpack_module
from datasets.fetch.unpack import unpack, unpacked_size
from tests.datasets.fetch.archives import pack, tree

FILES = {"train/0.png": b"a" * 700, "train/1.png": b"b", "trainannot/0.png": b"", "notes.txt": bytes(range(256)) * 4}
KINDS = ("tar", "tar.gz", "zip")


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "out" / "in").mkdir(parents=True)
    (tmp_path / "out" / "beside.txt").write_text("mine")
    return tmp_path / "out" / "in"


def refused(archive, folder, match):
    with pytest.raises(UserError, match=match) as caught:
        unpack(archive, folder)
    assert str(archive) in str(caught.value)
    beside = {path.name for path in folder.parent.iterdir()}
    assert beside == {"in", "beside.txt"}  # nothing has left the folder
    assert (folder.parent / "beside.txt").read_text() == "mine"
    assert sorted(path.name for path in folder.parent.parent.iterdir()) == sorted({"out", archive.name})


@pytest.mark.parametrize("kind", KINDS)
def test_a_sound_archive(tmp_path, folder, kind):
    archive = pack(tmp_path / "a", FILES.items(), kind)
    assert unpack(archive, folder) == len(FILES)
    assert tree(folder) == FILES


@pytest.mark.parametrize("kind", KINDS)
def test_names_that_mean_well(tmp_path, folder, kind):
    """`tar c .` starts every name with a dot; folders come once more; names are not only English."""
    members = [("./a//b.png", b"1"), ("a/./c.png", b"2"), ("ü/é ñ…日.png", b"3"), ("a..b/..c", b"4"), ("A/b.png", b"5")]
    unpack(pack(tmp_path / "a", members, kind), folder)
    assert tree(folder) == {"a/b.png": b"1", "a/c.png": b"2", "ü/é ñ…日.png": b"3", "a..b/..c": b"4", "A/b.png": b"5"}


@pytest.mark.parametrize("kind", ["tar", "zip"])
def test_folders_of_their_own(tmp_path, folder, kind):
    top = tarfile.TarInfo("x/y")
    top.type = tarfile.DIRTYPE
    members = [(top if kind == "tar" else "x/y/", b""), ("x/y/z", b"1")]
    unpack(pack(tmp_path / "a", members, kind), folder)
    assert tree(folder) == {"x/y/z": b"1"}


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_all_forms_of_tar(tmp_path, folder, form):
    name = "/".join(["long" * 12] * 4) + ".png"
    with tarfile.open(tmp_path / "a", "w", format=form) as file:
        info = tarfile.TarInfo(name)
        info.size = 3
        file.addfile(info, io.BytesIO(b"abc"))
    unpack(tmp_path / "a", folder)
    assert tree(folder) == {name: b"abc"}


def test_old_modes_and_owners_are_not_taken_over(tmp_path, folder):
    info = tarfile.TarInfo("a")
    info.mode, info.uid = 0o4777, 12345
    unpack(pack(tmp_path / "a", [(info, b"x")], "tar"), folder)
    assert stat.S_IMODE((folder / "a").stat().st_mode) & 0o7111 == 0


OUTSIDE = {
    "/etc/passwd": "an absolute path",
    "../beside.txt": "a way out",
    "a/../../beside.txt": "a way out",
    "a/..": "a way out",
    "C:/x": "a drive letter",
    "a/c:x": "a drive letter",
    "..\\beside.txt": "a backslash",
    "a\nb": "a control character",
    "\x1b[2J": "a control character",
    "x" * 300: "a name too long",
    "/".join("d" * 40): "a name too long",
    "/".join(["d" * 200] * 6): "a name too long",
}


@pytest.mark.parametrize("kind", ["tar", "zip"])
@pytest.mark.parametrize("name", OUTSIDE)
def test_names_that_lead_outside(tmp_path, folder, kind, name):
    members = [("good", b"1"), (name, b"bad")]
    refused(pack(tmp_path / "a", members, kind), folder, OUTSIDE[name])


def test_a_nul_in_a_zips_name(tmp_path, folder):
    archive = pack(tmp_path / "a", [("goodX.png", b"1")], "zip")
    archive.write_bytes(archive.read_bytes().replace(b"goodX", b"good\0"))
    refused(archive, folder, "a control character")


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT])
def test_a_tars_name_that_is_no_utf8(tmp_path, folder, form):
    with tarfile.open(tmp_path / "a", "w", format=form, encoding="latin-1") as file:
        file.addfile(tarfile.TarInfo("b\xe4d.png"))
    refused(tmp_path / "a", folder, "a name that is no UTF-8")


def test_a_zips_name_that_is_no_utf8(tmp_path, folder):
    archive = pack(tmp_path / "a", [("bäd.png", b"1")], "zip")
    archive.write_bytes(archive.read_bytes().replace("ä".encode(), b"\xff\xfe"))
    refused(archive, folder, "damaged|no UTF-8")


LINKS = ("SYMTYPE", "LNKTYPE", "CHRTYPE", "BLKTYPE", "FIFOTYPE")


@pytest.mark.parametrize("kind", LINKS)
@pytest.mark.parametrize("goal", ["../beside.txt", "/etc/passwd", "good", ".."])
def test_a_tars_links_and_devices(tmp_path, folder, kind, goal):
    info = tarfile.TarInfo("bad")
    info.type, info.linkname = getattr(tarfile, kind), goal
    refused(pack(tmp_path / "a", [("good", b"1"), (info, b""), ("bad/x", b"2")], "tar"), folder, "a link, a device")


def test_a_tars_file_with_holes(tmp_path, folder):
    info = tarfile.TarInfo("bad")
    info.pax_headers = {"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.realsize": str(1 << 40)}
    archive = pack(tmp_path / "a", [(info, b"1\n0\n1\n" + bytes(600))], "tar")
    refused(archive, folder, "a file with holes")


@pytest.mark.parametrize("kind", [stat.S_IFLNK, stat.S_IFCHR, stat.S_IFIFO, stat.S_IFSOCK, stat.S_IFDIR])
def test_a_zips_links_and_devices(tmp_path, folder, kind):
    info = zipfile.ZipInfo("bad")
    info.create_system, info.external_attr = 3, (kind | 0o777) << 16
    refused(pack(tmp_path / "a", [(info, b"../beside.txt"), ("bad/x", b"2")], "zip"), folder, "a link or device")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("names", [("a", "a"), ("a", "./a"), ("a", "a/b"), ("a/b", "a"), ("a/b", "a//b")])
@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_names_that_come_twice(tmp_path, folder, kind, names):
    refused(pack(tmp_path / "a", [(name, b"x") for name in names], kind), folder, "twice")
    assert set(tree(folder).values()) == {b"x"}


@pytest.mark.parametrize("kind", KINDS)
def test_too_many_files(tmp_path, folder, kind, monkeypatch):
    monkeypatch.setattr(unpack_module, "MOST_FILES", 10)
    refused(pack(tmp_path / "a", [(str(i), b"") for i in range(11)], kind), folder, "more than 10 files")
    assert len(tree(folder)) == 10


@pytest.mark.parametrize("kind", KINDS)
def test_too_many_bytes(tmp_path, folder, kind, monkeypatch):
    monkeypatch.setattr(unpack_module, "MOST_BYTES", 100_000)
    monkeypatch.setattr(unpack_module, "MOST_GROWTH", 0)
    refused(pack(tmp_path / "a", [("a", bytes(1_000_000))], kind), folder, "unpacks to more than 100000 bytes")
    assert (folder / "a").stat().st_size <= 100_000


def test_a_zip_that_declares_less_than_it_holds(tmp_path, folder, monkeypatch):
    """What is written counts: zipfile itself stops at the declared size and compares the checksum."""
    archive = pack(tmp_path / "a", [("a", bytes(1_000_000))], "zip")
    size = struct.pack("<I", 1_000_000)
    archive.write_bytes(archive.read_bytes().replace(size, struct.pack("<I", 10)))
    refused(archive, folder, "damaged")
    assert (folder / "a").stat().st_size <= 10


def test_a_zip_whose_entries_share_their_bytes(tmp_path, folder, monkeypatch):
    """A thousand entries that all point at one megabyte of zeros."""
    monkeypatch.setattr(unpack_module, "MOST_BYTES", 5_000_000)
    body = zlib.compressobj(9, zlib.DEFLATED, -15)
    packed = body.compress(bytes(1_000_000)) + body.flush()
    crc = zlib.crc32(bytes(1_000_000))
    middle = struct.pack("<HHHHHIII", 20, 0, 8, 0, 0, crc, len(packed), 1_000_000)
    local = b"PK\3\4" + middle + struct.pack("<HH", 1, 0) + b"a" + packed
    entries = b"".join(
        b"PK\1\2" + struct.pack("<H", 20) + middle + struct.pack("<HHHHHII", 1, 0, 0, 0, 0, 0, 0) + b"a"
        for _ in range(1000)
    )
    end = b"PK\5\6" + struct.pack("<HHHHIIH", 0, 0, 1000, 1000, len(entries), len(local), 0)
    (tmp_path / "a").write_bytes(local + entries + end)
    refused(tmp_path / "a", folder, "twice|more than|damaged")


def test_a_tar_gz_with_endless_zeros_after_its_end(tmp_path, folder, monkeypatch):
    monkeypatch.setattr(unpack_module, "MOST_BYTES", 100_000)
    plain = pack(tmp_path / "plain", [("a", b"x")], "tar").read_bytes()
    (tmp_path / "plain").unlink()
    (tmp_path / "a").write_bytes(gzip.compress(plain + bytes(1_000_000)))
    refused(tmp_path / "a", folder, "too much")


@pytest.mark.parametrize("kind", ["x", "g", "L", "K"])
def test_a_header_that_claims_to_be_huge(tmp_path, folder, kind):
    """tarfile reads such a header whole, into memory."""
    info = tarfile.TarInfo("a")
    info.type, info.size = kind.encode(), 1 << 33
    (tmp_path / "a").write_bytes(gzip.compress(info.tobuf(tarfile.GNU_FORMAT) + bytes(4_000_000)))
    refused(tmp_path / "a", folder, "a header of 8589934592 bytes")


@pytest.mark.parametrize("kind", ["tar", "tar.gz"])
def test_a_tar_that_ends_after_a_member_is_cut_short(tmp_path, folder, kind):
    """Which tarfile takes for a whole one."""
    content = pack(tmp_path / "a", [("a", b"1"), ("b", b"2")], "tar").read_bytes()[:2048]
    (tmp_path / "a").write_bytes(content if kind == "tar" else gzip.compress(content))
    refused(tmp_path / "a", folder, "no end mark")


@pytest.mark.parametrize("kind", ["hole", "two", "junk"])
def test_a_tar_with_more_after_what_looks_like_its_end(tmp_path, folder, kind):
    """tarfile stops at the first block of zeros without a word."""
    content = pack(tmp_path / "a", [(str(i), bytes([i]) * 600) for i in range(1, 30)], "tar").read_bytes()
    more = {"hole": content[:3072] + bytes(4096) + content[7168:], "two": content * 2, "junk": content + b"junk"}
    (tmp_path / "a").write_bytes(more[kind])
    refused(tmp_path / "a", folder, "something follows the end mark")


def test_a_damaged_bzip2_inside_a_zip(tmp_path, folder):
    with zipfile.ZipFile(tmp_path / "a", "w", zipfile.ZIP_BZIP2) as file:
        file.writestr("a", bytes(range(256)) * 20)
    content = bytearray((tmp_path / "a").read_bytes())
    content[45:60] = b"\xaa" * 15
    (tmp_path / "a").write_bytes(content)
    refused(tmp_path / "a", folder, "damaged")


def record(key, value):
    """A pax record: its own length in digits first."""
    body = b" " + key + b"=" + value + b"\n"
    size = len(body)
    while len(str(size)) + len(body) != size:
        size = len(str(size)) + len(body)
    return str(size).encode() + body


def header(kind, size=0):
    info = tarfile.TarInfo("x")
    info.type, info.size = kind, size
    return info.tobuf(tarfile.USTAR_FORMAT)


def padded(content):
    return content + bytes(-len(content) % 512)


def long_header():
    """One for all that follows, of a megabyte."""
    records = record(b"k", b"A" * 1_000_000)
    return header(b"g", len(records)) + padded(records) + header(b"0")


def sparse():
    """A file with holes whose map has no end, in the newest form."""
    marks = {b"major": b"1", b"minor": b"0", b"realsize": b"1", b"name": b"x"}
    records = b"".join(record(b"GNU.sparse." + key, value) for key, value in marks.items())
    numbers = b"999999999999\n" + b"7\n" * 4_000_000
    return header(b"x", len(records)) + padded(records) + header(b"0", 9_000_000) + numbers


def old_sparse():
    """The same in the oldest form."""
    first = bytearray(header(b"S"))
    first[482] = 1
    first[148:156] = b" " * 8
    first[148:156] = b"%06o\0 " % sum(first)
    return bytes(first) + (b"00000000001\0" * 42 + b"\1" + bytes(7)) * 20_000


@pytest.mark.parametrize("make", [long_header, sparse, old_sparse])
def test_headers_that_would_fill_the_memory(tmp_path, folder, make):
    (tmp_path / "a").write_bytes(gzip.compress(make() + bytes(1024), 1))
    tracemalloc.start()
    refused(tmp_path / "a", folder, "a header of")
    assert tracemalloc.get_traced_memory()[1] < 3_000_000
    tracemalloc.stop()


def test_headers_for_all_members_do_not_add_up(tmp_path, folder):
    content = b""
    for i in range(200):
        records = record(b"k%04d" % i, b"A" * 100)
        info = tarfile.TarInfo(str(i))
        content += header(b"g", len(records)) + padded(records) + info.tobuf(tarfile.USTAR_FORMAT)
    (tmp_path / "a").write_bytes(content + bytes(1024))
    refused(tmp_path / "a", folder, "too many headers")


def test_folders_are_counted(tmp_path, folder, monkeypatch):
    monkeypatch.setattr(unpack_module, "MOST_FILES", 100)
    refused(
        pack(tmp_path / "a", [("/".join([str(i)] * 30), b"") for i in range(4)], "tar"), folder, "files and folders"
    )


def test_the_checksum_of_a_tar_gz_is_compared_even_behind_much_padding(tmp_path, folder):
    plain = pack(tmp_path / "a", FILES.items(), "tar").read_bytes() + bytes(9_000_000)
    packed = bytearray(gzip.compress(plain))
    packed[-5] ^= 1
    (tmp_path / "a").write_bytes(packed)
    refused(tmp_path / "a", folder, "CRC check failed")


def test_an_encrypted_zip(tmp_path, folder):
    archive = pack(tmp_path / "a", [("a", b"x")], "zip")
    content = bytearray(archive.read_bytes())
    content[6] |= 1
    content[content.index(b"PK\1\2") + 8] |= 1
    archive.write_bytes(content)
    refused(archive, folder, "an encrypted file")


@pytest.mark.parametrize(
    ("content", "match"),
    [
        (b"<!DOCTYPE html><title>Log in</title>", "a web page"),
        (b"  \n<html>", "a web page"),
        (b"", "no zip, tar or tar.gz"),
        (b"hello" * 500, "no zip, tar or tar.gz"),
        (b"BZh91AY" * 100, "no zip, tar or tar.gz"),
        (b"PK\3\4" + bytes(100), "damaged"),
        (b"\x1f\x8b" + bytes(100), "damaged"),
        (gzip.compress(b"no tar" * 200), "damaged"),
    ],
)
def test_what_is_no_archive(tmp_path, folder, content, match):
    (tmp_path / "a").write_bytes(content)
    refused(tmp_path / "a", folder, match)


@pytest.mark.parametrize("kind", KINDS)
def test_any_flipped_byte_gives_an_error_or_the_right_bytes_or_another_name(tmp_path, folder, kind):
    """No flip ends in a traceback, or in files whose content a checksum should have caught."""
    archive = pack(tmp_path / "a", FILES.items(), kind)
    content, errors = archive.read_bytes(), 0
    for at in range(0, len(content), 1 if len(content) < 2000 else 23):
        archive.write_bytes(content[:at] + bytes([content[at] ^ 0x55]) + content[at + 1 :])
        fresh = folder / str(at)
        fresh.mkdir()
        try:
            unpack(archive, fresh)
        except UserError:
            errors += 1
        else:
            wrong = [c for c in tree(fresh).values() if c not in FILES.values()]
            assert kind == "tar" or not wrong, at  # a tar has no checksum of its contents
    assert errors > 10


def test_the_unpacked_size(tmp_path):
    archive = pack(tmp_path / "a", FILES.items(), "zip")
    assert unpacked_size(archive, 9) == sum(map(len, FILES.values()))
    plain = pack(tmp_path / "b", FILES.items(), "tar")
    assert unpacked_size(plain, 2) == 2 * plain.stat().st_size
