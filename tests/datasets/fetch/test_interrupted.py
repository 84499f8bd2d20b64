"""download.py cut off and killed at any moment: whole, or not at all, and the same command goes on."""

import multiprocessing
import os
import signal
import sys
from pathlib import Path

import pytest

import cli
import download
from datasets.fetch import transfer
from datasets.fetch.install import LOCK, MARK
from datasets.fetch.obtain import Job, obtain
from datasets.fetch.sources import Archive
from tests.datasets.fetch.archives import CAMVID, camvid, pack, tree
from tests.datasets.fetch.conftest import beside, wait_for
from tests.scripts import ROOT


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
# Killed


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
        patch.setattr("datasets.fetch.obtain.clear", stop)
        assert run(*words)[0] == 130
    code, out, _ = run(*words)
    assert code == 0
    assert "kept: " in out
    assert beside(root) == ["set", "set.zip"]


def test_killed_between_the_rename_and_the_clearing(tmp_path, root, run):
    archive = pack(tmp_path / "a", CAMVID.items(), "zip")
    assert run("camvid", "--data-dir", root, "--archive", archive)[0] == 0
    (root.parent / "set.part").mkdir()
    for name, content in ((LOCK, MARK), ("x.zip", b"x")):
        (root.parent / "set.part" / name).write_bytes(content)
    assert run("camvid", "--data-dir", root)[0] == 0
    assert beside(root) == ["set"]
