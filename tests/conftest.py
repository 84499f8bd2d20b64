"""Fixtures that several tests share."""

import os
from pathlib import Path

import pytest

from tests.folder_set import write_folder_set
from tests.scripts import TINY, run_script


@pytest.fixture
def real_data():
    """The folder of real data sets; the test is skipped where there is none."""
    path = os.environ.get("HONESTSEG_DATA")
    if not path or not Path(path).is_dir():
        pytest.skip("HONESTSEG_DATA does not name a folder of real data sets")
    return Path(path)


@pytest.fixture
def folder_set(tmp_path):
    """A written folder data set."""
    return write_folder_set(tmp_path / "set")


@pytest.fixture(scope="session")
def trained(tmp_path_factory):
    """(run directory, data folder) of a short real training on a tiny folder set."""
    root = tmp_path_factory.mktemp("trained")
    data = write_folder_set(root / "set")
    done = run_script("train.py", "--dataset", "folder", "--data-dir", data, "--run-dir", root / "run", *TINY)
    assert done.returncode == 0, done.stderr
    return root / "run", data
