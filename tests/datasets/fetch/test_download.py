"""What download.py does besides: renders, says where to register, and refuses what it cannot do."""

import os
import re
import shlex
import signal
import subprocess
import sys
import time
from dataclasses import replace

import pytest

import download
from datasets.fetch.install import LOCK, MARK, working_folder
from datasets.fetch.sources import SOURCES
from datasets.streets.render import write_streets
from tests.datasets.fetch.archives import CAMVID, CITY, below, pack, part, tree
from tests.datasets.fetch.conftest import beside, error_line, wait_for
from tests.scripts import ROOT


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
    few = {"train": 1, "validation": 1, "test": 1}
    monkeypatch.setattr(download, "COUNTS", few)
    real = write_streets
    monkeypatch.setattr(
        download,
        "write_streets",
        lambda root, progress: real(root, counts=few, workers=1, progress=progress),
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


def test_a_registered_set_is_unpacked_and_checked(tmp_path, root, run, monkeypatch):
    archives = []
    for kind in ("leftImg8bit", "gtFine"):
        members = below(kind, part(CITY, f"{kind}/")).items()
        archives.append(pack(tmp_path / f"{kind}_trainvaltest.zip", members, "zip"))
    code, _, err = run("cityscapes", "--data-dir", root, "--archive", ",".join(map(str, archives)))
    assert code == 0, err
    assert tree(root) == CITY
    code, out, _ = run("cityscapes", "--data-dir", root)
    assert code == 0
    assert "complete: " in out
    monkeypatch.setitem(SOURCES, "cityscapes", replace(SOURCES["cityscapes"], pairs=3475))
    error_line(run("cityscapes", "--data-dir", root), "cityscapes is not complete: 8 of 3475 images with masks")
    (root / "gtFine/val/v1/v1_1_gtFine_labelIds.png").unlink()
    error_line(run("cityscapes", "--data-dir", root), "1 of 2 images have no mask, the first v1_1_leftImg8bit.png")
