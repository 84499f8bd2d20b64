"""download.py run in the test's own process, against a server on 127.0.0.1; and what it left."""

import hashlib
import os
import sys
import time
from dataclasses import replace

import pytest

import cli
import download
from datasets.fetch import transfer
from datasets.fetch.sources import SOURCES, Archive, Source
from tests.datasets.fetch.archives import HAZARDS, below, pack, part
from tests.datasets.fetch.server import serve


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


@pytest.fixture
def two(tmp_path, server, monkeypatch):
    """StreetHazards in small, behind its own two checksums; returns the local archives."""
    archives = {}
    for half in ("train", "test"):
        files = below(half, part(HAZARDS, f"{half}/"))
        archives[half] = pack(tmp_path / f"streethazards_{half}.tar", files.items(), "tar")
    own = []
    for path in archives.values():
        server.files[f"/{path.name}"] = path.read_bytes()
        own.append(Archive(server.url(f"/{path.name}"), hashlib.md5(path.read_bytes()).hexdigest()))
    monkeypatch.setitem(SOURCES, "streethazards", Source(archives=tuple(own)))
    return archives


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


def wait_for(condition, seconds=60):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.002)
