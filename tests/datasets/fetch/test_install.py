"""The working folder and the rename: what was there before stays, what is unfinished never passes for a set."""

import os
from dataclasses import replace
from pathlib import Path

import pytest

from datasets.fetch import install
from datasets.fetch.install import LOCK, MARK, NO_LOCKS, working_folder
from datasets.fetch.sources import SOURCES
from tests.datasets.fetch.archives import CAMVID, pack, tree
from tests.datasets.fetch.conftest import beside, error_line


def test_an_empty_folder_and_a_link_to_one_are_filled(tmp_path, root, run):
    archive = pack(tmp_path / "a", CAMVID.items(), "zip")
    (tmp_path / "big disk" / "set").mkdir(parents=True)
    root.symlink_to(tmp_path / "big disk" / "set")
    assert run("camvid", "--data-dir", root, "--archive", archive)[0] == 0
    assert root.is_symlink()
    assert tree(root) == CAMVID
    assert [path.name for path in (tmp_path / "big disk").iterdir()] == ["set"]


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


def test_a_place_that_may_not_be_written(tmp_path, root, run, monkeypatch):
    def refuse(*args, **kwargs):
        raise PermissionError(13, "Permission denied", str(root))

    monkeypatch.setattr(Path, "mkdir", refuse)
    error_line(run("camvid", "--data-dir", root), "choose a place that you may write to")


def test_two_runs_at_once(tmp_path, root, run):
    archive = pack(tmp_path / "a", CAMVID.items(), "zip")
    with working_folder(root):
        error_line(run("camvid", "--data-dir", root, "--archive", archive), "another download is at work")
    assert run("camvid", "--data-dir", root, "--archive", archive)[0] == 0


def test_a_second_run_while_the_first_clears_up(tmp_path, root, run):
    archive = pack(tmp_path / "a", CAMVID.items(), "zip")
    assert run("camvid", "--data-dir", root, "--archive", archive)[0] == 0
    with working_folder(root):
        assert run("camvid", "--data-dir", root, "--archive", archive)[0] == 0


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
