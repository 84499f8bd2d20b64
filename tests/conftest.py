"""What several tests share: a tiny data set in the folder layout, and the scripts run as a user runs them."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
def real_data():
    """The folder of real data sets; the test is skipped where there is none."""
    path = os.environ.get("HONESTSEG_DATA")
    if not path or not Path(path).is_dir():
        pytest.skip("HONESTSEG_DATA does not name a folder of real data sets")
    return Path(path)


def write_folder_set(root, counts=(("train", 8), ("val", 3), ("test", 3)), size=(40, 56), classes=3, seed=0):
    """A folder data set whose classes differ in colour: vertical bands that move from image to image."""
    rng = np.random.RandomState(seed)
    colours = [[200, 40, 40], [40, 200, 40], [40, 40, 200], [200, 200, 40]][:classes]
    root = Path(root)
    for split, count in counts:
        for kind in ("images", "masks"):
            (root / kind / split).mkdir(parents=True)
        for i in range(count):
            target = (
                ((np.arange(size[1])[None] + rng.randint(0, 30)) // 14 % classes).repeat(size[0], 0).astype(np.uint8)
            )
            image = np.asarray(colours, np.int64)[target] + rng.randint(-30, 30, (*size, 3))
            Image.fromarray(image.clip(0, 255).astype(np.uint8)).save(root / "images" / split / f"{i:03}.png")
            Image.fromarray(target).save(root / "masks" / split / f"{i:03}.png")
    names = ["red", "green", "blue", "yellow"][:classes]
    entries = [{"name": n, "color": c} for n, c in zip(names, colours, strict=True)]
    (root / "classes.json").write_text(json.dumps({"classes": entries, "void": [255]}))
    return root


@pytest.fixture
def folder_set(tmp_path):
    """A written folder data set."""
    return write_folder_set(tmp_path / "set")


# One thread and no bf16: what a test starts computes the same on every machine.
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "PYTHONWARNINGS": "error"}


def run_script(name, *args, cwd=None, **options):
    """Run a script of the project as a user would; returns the finished process with its text output."""
    command = [sys.executable, str(ROOT / name), *map(str, args)]
    return subprocess.run(command, cwd=cwd, env=ENVIRONMENT, capture_output=True, text=True, timeout=300, **options)


TINY = (
    "--model", "mobilenetv2", "--image-size", "32x48", "--epochs", "2", "--batch-size", "4", "--workers", "0",
    "--amp", "off", "--device", "cpu", "--log-every", "1", "--lr", "0.001",
)  # fmt: skip


@pytest.fixture(scope="session")
def trained(tmp_path_factory):
    """(run directory, data folder) of a short real training on a tiny folder set."""
    root = tmp_path_factory.mktemp("trained")
    data = write_folder_set(root / "set")
    done = run_script("train.py", "--dataset", "folder", "--data-dir", data, "--run-dir", root / "run", *TINY)
    assert done.returncode == 0, done.stderr
    return root / "run", data
