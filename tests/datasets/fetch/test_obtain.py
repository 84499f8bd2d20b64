"""Sets out of archives, fetched or local: the right ones, in any order, and those that are no good."""

import json
import zipfile
from dataclasses import replace

import pytest

from datasets import driving
from datasets.catalogue import SPECS
from datasets.fetch import transfer
from datasets.fetch.install import LOCK
from datasets.fetch.sources import SOURCES, Archive, Source
from datasets.fetch.transfer import fetch
from datasets.fetch.unpack import MOST_FILES
from tests.datasets.fetch.archives import CAMVID, CITY, HAZARDS, OFFICIAL, TUTORIAL, below, pack, part, tree
from tests.datasets.fetch.conftest import beside, error_line
from tests.scripts import run_script


@pytest.mark.parametrize("kind", ["zip", "tar", "tar.gz"])
def test_camvid_out_of_the_tutorials_archive(tmp_path, server, root, run, kind):
    server.files["/set.zip"] = pack(tmp_path / "a", TUTORIAL.items(), kind).read_bytes()
    code, out, err = run("camvid", "--data-dir", root, "--url", server.url())
    assert code == 0, err
    assert tree(root) == CAMVID
    assert f"camvid is in {root}: 2 train, 2 val, 2 test images with masks" in out
    assert "no checksum is published; checked are its size as the server told it and the archive's own structure" in out
    assert beside(root) == ["set"]
    code, out, _ = run("camvid", "--data-dir", root, "--url", server.url())
    assert code == 0
    assert "is there already: 2 train" in out
    assert server.asked("Range") == [None]


@pytest.mark.parametrize("files", [CAMVID, below("CamVid", CAMVID), below("a/b", CAMVID)])
def test_a_local_archive_packed_in_another_way(tmp_path, root, run, files):
    archive = pack(tmp_path / "my, own.zip", {**files, "__MACOSX/x": b"", ".DS_Store": b""}.items(), "zip")
    before = archive.read_bytes()
    code, out, err = run("camvid", "--data-dir", root, "--archive", archive)
    assert code == 0, err
    assert CAMVID.items() <= tree(root).items()
    assert archive.read_bytes() == before
    assert "checked are the archive's own structure" in out
    assert beside(root) == ["set"]


def test_a_set_of_two_archives_with_checksums(server, two, root, run):
    code, out, err = run("streethazards", "--data-dir", root)
    assert code == 0, err
    assert tree(root) == HAZARDS
    assert out.count("md5 checksum as published") == 2
    assert beside(root) == ["set"]


@pytest.mark.parametrize("order", [("train", "test"), ("test", "train")])
@pytest.mark.parametrize("joined", [True, False])
def test_local_archives_under_their_own_names_in_any_order(two, root, run, order, joined):
    names = [str(two[half]) for half in order]
    words = ["--archive", ",".join(names)] if joined else [word for name in names for word in ("--archive", name)]
    code, out, err = run("streethazards", "--data-dir", root, *words)
    assert code == 0, err
    assert tree(root) == HAZARDS
    assert out.count("md5 checksum as published") == 2


def test_one_archive_that_holds_both(tmp_path, two, root, run):
    archive = pack(tmp_path / "both.zip", HAZARDS.items(), "zip")
    assert run("streethazards", "--data-dir", root, "--archive", archive)[0] == 0
    assert tree(root) == HAZARDS


def test_half_of_a_set_is_none(two, root, run):
    text = error_line(run("streethazards", "--data-dir", root, "--archive", two["train"]), "no complete streethazards")
    assert "no folder test/images/test" in text
    assert str(root.parent) not in text  # the temporary place is nobody's business
    assert beside(root) == []


def test_another_number_of_archives(two, root, run):
    three = [word for path in (*two.values(), two["test"]) for word in ("--archive", path)]
    text = error_line(run("streethazards", "--data-dir", root, *three), "3 archives for streethazards")
    assert "streethazards_train.tar, streethazards_test.tar" in text


def test_other_addresses_of_one_name_are_told_apart(server, two, root, run):
    for half, path in two.items():
        server.files[f"/{half}/get"] = path.read_bytes()
    urls = ",".join(server.url(f"/{half}/get?token=a,b") for half in two)
    code, _, err = run("streethazards", "--data-dir", root, "--url", urls)
    assert code == 0, err
    assert tree(root) == HAZARDS


def test_archives_into_their_own_folders(tmp_path, server, root, run, monkeypatch):
    """As COCO's come: train2017/ in each, of images in one and of masks in the other."""
    parts = {"images": {"train/0.png": b"1"}, "masks": {"train/0.png": b"2"}}
    own = []
    for into, files in parts.items():
        server.files[f"/{into}.zip"] = pack(tmp_path / into, files.items(), "zip").read_bytes()
        own.append(Archive(server.url(f"/{into}.zip"), into=into))
    monkeypatch.setitem(SOURCES, "camvid", Source(archives=tuple(own)))
    spec = replace(driving.CAMVID, splits={"train": ("images/train", "masks/train")})
    monkeypatch.setitem(SPECS, "camvid", (spec,))
    assert run("camvid", "--data-dir", root)[0] == 0
    assert tree(root) == {"images/train/0.png": b"1", "masks/train/0.png": b"2"}


def test_kept_archives_lie_beside_the_set(tmp_path, server, root, run):
    server.files["/set.zip"] = pack(tmp_path / "a", TUTORIAL.items(), "zip").read_bytes()
    (root.parent / "set.zip").write_text("somebody's own")
    code, out, _ = run("camvid", "--data-dir", root, "--url", server.url(), "--keep-archive")
    assert code == 0
    assert beside(root) == ["1-set.zip", "set", "set.zip"]
    assert (root.parent / "1-set.zip").read_bytes() == server.files["/set.zip"]
    assert (root.parent / "set.zip").read_text() == "somebody's own"
    assert f"kept: {root.parent / '1-set.zip'}" in out


@pytest.mark.parametrize("name", OFFICIAL)
def test_the_official_archives_unpack_to_what_is_read(tmp_path, root, run, monkeypatch, name):
    """In small, and with nothing but their names in them: no checksum then."""
    own = SOURCES[name].archives
    monkeypatch.setitem(SOURCES, name, replace(SOURCES[name], archives=tuple(replace(a, digest="") for a in own)))
    words = []
    for i, files in enumerate(OFFICIAL[name]):
        words += ["--archive", pack(tmp_path / f"{i}", files.items(), "tar" if name == "voc" else "zip")]
    code, out, err = run(name, "--data-dir", root, *words)
    assert code == 0, err
    assert f"{name} is in {root}" in out
    tops = {path.name for path in root.iterdir()}
    assert tops <= {
        "images", "annotations", "Images", "GroundTruth", "JPEGImages", "SegmentationClass", "ImageSets", "frames",
        "credits.txt",
    }, "the archive's own top folder is left out"  # fmt: skip
    assert run(name, "--data-dir", root)[0] == 0


@pytest.mark.parametrize(
    ("extra", "match"),
    [
        (({"README": b"1"}, {"README": b"2"}), None),
        (({"train/note.txt": b"1"}, {"train/note.txt": b"1"}), None),
        (
            ({"train/note.txt": b"1"}, {"train/note.txt": b"2"}),
            "test.tar holds another 'note.txt' than streethazards_tr",
        ),
        (({"x/y": b"1"}, {"x": b"2"}), "holds another 'x'"),
        (({"x": b"1"}, {"x/y": b"2"}), "holds another 'x'"),
    ],
)
def test_files_that_two_archives_of_a_set_share(tmp_path, two, root, run, monkeypatch, extra, match):
    """Both halves of Cityscapes have a README and a licence."""
    unchecked = tuple(replace(archive, digest="") for archive in SOURCES["streethazards"].archives)
    monkeypatch.setitem(SOURCES, "streethazards", Source(archives=unchecked))
    for (half, path), more in zip(two.items(), extra, strict=True):
        pack(path, {**below(half, part(HAZARDS, f"{half}/")), **more}.items(), "tar")
    result = run("streethazards", "--data-dir", root, "--archive", ",".join(map(str, two.values())))
    if match:
        error_line(result, match)
        return
    assert result[0] == 0, result[2]
    assert tree(root) == {**HAZARDS, **extra[0]}


def test_an_archive_with_an_official_name_is_that_one(tmp_path, two, root, run):
    two["train"] = two["train"].rename(tmp_path / "mine.tar")
    code, out, err = run("streethazards", "--data-dir", root, "--archive", f"{two['test']},{two['train']}")
    assert code == 0, err
    assert out.count("md5 checksum as published") == 2
    half = two["test"]
    half.write_bytes(half.read_bytes() + bytes(512))
    error_line(run("streethazards", "--data-dir", root.parent / "b", "--archive", half), "wrong md5 checksum")
    error_line(run("streethazards", "--data-dir", root.parent / "b", "--archive", f"{half},{half}"), "is named twice")


def test_a_set_packed_anew_under_another_name(tmp_path, two, root, run):
    two["train"].write_bytes(two["train"].read_bytes() + bytes(512))
    two["train"] = two["train"].rename(tmp_path / "mine.tar")
    code, out, err = run("streethazards", "--data-dir", root, "--archive", f"{two['train']},{two['test']}")
    assert code == 0
    assert "warning: wrong md5 checksum" in err
    assert "mine.tar: not the official archive" in out


@pytest.mark.slow
def test_the_script_itself(tmp_path, root):
    archive = pack(tmp_path / "a", CAMVID.items(), "zip")
    done = run_script("download.py", "camvid", "--data-dir", root, "--archive", archive)
    assert done.returncode == 0, done.stderr
    assert tree(root) == CAMVID
    assert "the official camvid holds 701" in done.stderr


# ---------------------------------------------------------------------------------------------------------------------
# What goes wrong


def test_a_wrong_checksum(server, two, root, run):
    server.files["/streethazards_test.tar"] = pack(two["test"].with_name("x"), [("x", b"")], "tar").read_bytes()
    error_line(run("streethazards", "--data-dir", root), "wrong md5 checksum")
    assert beside(root) == ["set.part"]  # the first archive is whole and kept
    assert sorted(path.name for path in (root.parent / "set.part").iterdir()) == [
        "honestseg-download.lock", "streethazards_train.tar", "streethazards_train.tar.json",
    ]  # fmt: skip
    server.files["/streethazards_test.tar"] = two["test"].read_bytes()
    assert run("streethazards", "--data-dir", root)[0] == 0
    assert tree(root) == HAZARDS
    gets = [path for method, path, _ in server.requests if method == "GET"]
    assert gets.count("/streethazards_train.tar") == 1


def test_a_wrong_local_archive_is_not_removed(two, root, run):
    two["test"].write_bytes(two["train"].read_bytes())
    error_line(run("streethazards", "--data-dir", root, "--archive", f"{two['train']},{two['test']}"), "wrong md5")
    assert two["test"].exists()
    assert beside(root) == []


@pytest.mark.parametrize(
    ("content", "match"),
    [
        (b"<html>log in</html>", "a web page"),
        (b"PK\3\4" + bytes(500), "damaged or cut short"),
        (zipfile, "no complete camvid"),
    ],
)
def test_what_was_fetched_and_is_no_good_is_fetched_anew(tmp_path, server, root, run, content, match):
    if content is zipfile:
        content = pack(tmp_path / "a", [("x", b"")], "zip").read_bytes()
    server.files["/set.zip"] = content
    assert server.url() in error_line(run("camvid", "--data-dir", root, "--url", server.url()), match)
    assert beside(root) == []
    server.files["/set.zip"] = pack(tmp_path / "b", CAMVID.items(), "zip").read_bytes()
    assert run("camvid", "--data-dir", root, "--url", server.url())[0] == 0


@pytest.mark.parametrize("place", ["/a.zip", "/mirror/a.zip"])
def test_a_bad_archive_does_not_block_the_set(tmp_path, server, root, run, place):
    """The first comes as a web page, the second not at all; then both are right, here or on another server."""
    server.files["/a.zip"] = b"<html>log in</html>"
    urls = ",".join(map(server.url, ("/a.zip", "/b.zip")))
    error_line(run("cityscapes", "--data-dir", root, "--url", urls), "answers 404")
    for where, kind in ((place, "leftImg8bit"), ("/b.zip", "gtFine")):
        members = below(kind, part(CITY, f"{kind}/")).items()
        server.files[where] = pack(tmp_path / kind, members, "zip").read_bytes()
    urls = ",".join(map(server.url, (place, "/b.zip")))
    if place == "/a.zip":  # what lies there is seen, and goes
        assert server.url(place) in error_line(run("cityscapes", "--data-dir", root, "--url", urls), "a web page")
    code, _, err = run("cityscapes", "--data-dir", root, "--url", urls)
    assert code == 0, err
    assert tree(root) == CITY


def test_a_zip_that_claims_to_be_huge_is_removed(tmp_path, server, root, run, monkeypatch):
    content = bytearray(pack(tmp_path / "a", CAMVID.items(), "zip").read_bytes())
    at = content.index(b"PK\1\2") + 24
    content[at : at + 4] = b"\xf0\xff\xff\xff"
    server.files["/set.zip"] = bytes(content)
    error_line(run("camvid", "--data-dir", root, "--url", server.url()), "it says that it unpacks to 4.3 GB")
    assert beside(root) == []


@pytest.mark.parametrize("name", ["lock", "unpacked", "x.json", "x.zip.part", "a" * 251, LOCK])
def test_names_that_the_working_folder_has_a_use_for(tmp_path, server, root, run, name):
    server.files[f"/{name}"] = pack(tmp_path / "a", CAMVID.items(), "zip").read_bytes()
    code, _, err = run("camvid", "--data-dir", root, "--url", server.url(f"/{name}"))
    assert code == 0, err
    assert beside(root) == ["set"]


def test_an_archive_cut_without_a_word_is_fetched_anew(tmp_path, server, root, run):
    """No length and no checksum: only the archive itself can tell."""
    server.files["/set.zip"] = pack(tmp_path / "a", TUTORIAL.items(), "zip").read_bytes()
    server.plan = [("unsized", 1500)]
    error_line(run("camvid", "--data-dir", root, "--url", server.url()), "damaged or cut short")
    assert beside(root) == []
    assert run("camvid", "--data-dir", root, "--url", server.url())[0] == 0
    assert tree(root) == CAMVID


def test_a_disk_too_small(tmp_path, server, root, run, monkeypatch):
    server.files["/set.zip"] = pack(tmp_path / "a", TUTORIAL.items(), "zip").read_bytes()
    monkeypatch.setattr(transfer.shutil, "disk_usage", lambda folder: type("", (), {"free": 3000})())
    error_line(run("camvid", "--data-dir", root, "--url", server.url()), "GB are free")
    assert [method for method, _, _ in server.requests] == ["HEAD"]  # seen before a byte came
    assert beside(root) == []


def test_a_disk_too_small_for_what_a_local_zip_unpacks_to(tmp_path, root, run, monkeypatch):
    archive = pack(tmp_path / "a", {**CAMVID, "x": bytes(1_000_000)}.items(), "zip")
    monkeypatch.setattr(transfer.shutil, "disk_usage", lambda folder: type("", (), {"free": 900_000})())
    error_line(run("camvid", "--data-dir", root, "--archive", archive), "GB are free")


def test_notes_are_plain(tmp_path, server):
    server.files["/a"] = b"x"
    fetch(server.url("/a"), tmp_path / "a")
    note = json.loads((tmp_path / "a.json").read_text())
    assert note == {"url": server.url("/a"), "size": 1, "validator": '"1"'}
    assert MOST_FILES >= 300_000  # COCO-Stuff
