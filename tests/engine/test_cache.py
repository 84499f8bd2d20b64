"""What a cache gives is what decoding gives, bit for bit; it is whole, or it is not there."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import data
import train
from cli import UserError
from datasets.own_folder import folder_spec
from datasets.spec import VOID
from engine import cache
from engine.cache import HEADER, cache_split
from engine.sampling import SampleRequest
from tests.folder_set import write_folder_set
from tests.scripts import ENVIRONMENT, ROOT, TINY, run_script
from tests.test_train import kill_at_step, read_log, same_weights, start

WHOLE = data.Geometry([20, 28])
CROP = data.Geometry([20, 28], crop=[24, 30])
SHORT = data.Geometry([20, 28], crop=[44, 50], short_side=32)  # larger than the image: padded


@pytest.fixture
def sizes_set(tmp_path):
    """A folder set whose images differ in size; two are turned by their EXIF orientation, one the wrong way round."""
    root = write_folder_set(tmp_path / "set")
    for i, (height, width) in enumerate([(40, 56), (60, 44), (30, 80), (41, 57)]):
        for kind, way in (("images", Image.Resampling.BILINEAR), ("masks", Image.Resampling.NEAREST)):
            path = root / kind / "train" / f"{i:03}.png"
            Image.open(path).resize((width, height), way).save(path)
    path = root / "images" / "train" / "002.png"
    turned = Image.open(path).transpose(Image.Transpose.ROTATE_90)
    exif = Image.Exif()
    exif[0x0112] = 6  # to be seen right, turn it back
    turned.save(path, exif=exif)
    return root


def open_folder(root, split="train"):
    return data.open_split(folder_spec(root), root, split)


def requests(count):
    rng = np.random.RandomState(0)
    drawn = [
        SampleRequest(int(i), float(top), float(left))
        for i, (top, left) in zip(rng.permutation(count), rng.rand(count, 2), strict=True)
    ]
    return [drawn[:3], drawn[3:4], drawn[4:]]


def same_batches(one, other):
    one, other = list(one), list(other)
    assert len(one) == len(other) > 1
    for batch, again in zip(one, other, strict=True):
        for part, same in zip(batch, again, strict=True):
            if isinstance(part, torch.Tensor):
                assert part.dtype == same.dtype == torch.uint8
                assert torch.equal(part, same)
            elif isinstance(part[0], torch.Tensor):
                assert all(torch.equal(a, b) for a, b in zip(part, same, strict=True))
            else:
                assert part == same


@pytest.mark.parametrize("kind", ["ram", "disk"])
@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("geometry", [WHOLE, CROP, SHORT], ids=["whole", "crop", "short side"])
def test_batches_are_those_of_decoding_bit_for_bit(sizes_set, tmp_path, kind, workers, geometry):
    split = open_folder(sizes_set)
    kind = f"disk:{tmp_path / 'cache'}" if kind == "disk" else kind
    batches = requests(len(split))
    cached = cache_split(split, geometry, kind, training=True)
    assert data.cache_of(cached, geometry, training=True) is cached.cache
    same_batches(
        data.training_batches(split, geometry, batches), data.training_batches(cached, geometry, batches, workers)
    )
    cached = cache_split(split, geometry, kind, training=False)
    same_batches(data.evaluation_batches(split, geometry, 3), data.evaluation_batches(cached, geometry, 3, workers))


def test_two_sets_share_a_cache(tmp_path):
    roots = [write_folder_set(tmp_path / "a"), write_folder_set(tmp_path / "b", size=(60, 70), classes=4, seed=1)]
    split = data.open_split(*data.open_dataset("folder,folder", ",".join(map(str, roots))), "train")
    cached = cache_split(split, WHOLE, f"disk:{tmp_path / 'cache'}", training=True)
    batches = requests(len(split))
    same_batches(data.training_batches(split, WHOLE, batches), data.training_batches(cached, WHOLE, batches))


def cache_files(folder):
    return sorted(folder.glob("*.cache"))


def test_it_is_built_once_and_again_only_for_other_pixels(folder_set, tmp_path):
    folder = tmp_path / "cache"

    def build(split, geometry=WHOLE, training=True):
        built = []
        cache_split(split, geometry, f"disk:{folder}", training=training, progress=built.append)
        return len(built)

    split = open_folder(folder_set)
    assert build(split) == 8
    assert build(split) == 0
    assert build(split, training=False) == 8
    assert build(split, CROP) == 8
    assert build(split, replace(CROP, crop=[8, 8])) == 0  # what is cut from is the same
    assert build(split, data.Geometry([20, 30])) == 8
    assert build(replace(split, spec=replace(split.spec, values={**split.spec.values, 1: VOID}))) == 8
    other = folder_set / "images" / "train" / "000.png"
    state = other.stat()
    Image.new("RGB", (56, 40)).save(other)
    os.utime(other, ns=(state.st_atime_ns, state.st_mtime_ns))  # the time says nothing
    assert build(split) == 8
    assert len(cache_files(folder)) == 6


@pytest.mark.parametrize("place", ["header", "index", "example", "short", "empty", "foreign"])
def test_a_damaged_file_is_built_anew_with_a_warning(folder_set, tmp_path, capsys, place):
    split, folder = open_folder(folder_set), tmp_path / "cache"
    cache_split(split, WHOLE, f"disk:{folder}", training=True)
    (path,) = cache_files(folder)
    whole = path.read_bytes()
    at = {"header": 3, "index": HEADER + 9, "example": len(whole) - 5}.get(place)
    damaged = (
        {
            "short": whole[:-1],
            "empty": b"",
            "foreign": whole.replace(path.stem.rpartition("-")[2].encode(), b"0" * 32, 1),
        }.get(place)
        if at is None
        else whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :]
    )
    assert damaged != whole
    path.write_bytes(damaged)
    built = []
    cached = cache_split(split, WHOLE, f"disk:{folder}", training=True, progress=built.append)
    assert len(built) == 8
    assert "it is built anew" in capsys.readouterr().err
    assert path.read_bytes() == whole
    same_batches(data.training_batches(split, WHOLE, requests(8)), data.training_batches(cached, WHOLE, requests(8)))


BUILD = """
import sys
import data
from datasets.own_folder import folder_spec
from engine.cache import cache_split
from pathlib import Path
split = data.open_split(folder_spec(Path(sys.argv[1])), sys.argv[1], "train")
print("ready", flush=True)
sys.stdin.readline()
built = []
cache_split(split, data.Geometry([20, 28]), sys.argv[2], training=True, progress=built.append)
print(len(built), flush=True)
"""


def builder(root, kind):
    process = subprocess.Popen(
        [sys.executable, "-c", BUILD, str(root), kind], cwd=ROOT, env=ENVIRONMENT, text=True,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    assert process.stdout.readline() == "ready\n"
    return process


@pytest.mark.slow
def test_killed_at_any_moment_the_next_one_builds_it_whole(tmp_path):
    root, folder = (
        write_folder_set(tmp_path / "set", counts=(("train", 200), ("val", 1), ("test", 1)), size=(120, 160)),
        tmp_path / "cache",
    )
    seen = set()
    for delay in (0.0, 0.02, 0.05, 0.1, 0.15, 0.2, 0.3):
        process = builder(root, f"disk:{folder}")
        process.stdin.write("go\n")
        process.stdin.flush()
        time.sleep(delay)
        process.send_signal(signal.SIGKILL)
        process.communicate(timeout=60)
        seen |= {path.suffix for path in folder.glob("*")} if folder.exists() else set()
        if cache_files(folder):
            break
    assert ".part" in seen  # a moment was in the middle
    split, built = open_folder(root), []
    cached = cache_split(split, WHOLE, f"disk:{folder}", training=True, progress=built.append)
    assert len(built) in (0, 200)
    assert [path.suffix for path in folder.iterdir()] == [".cache"]
    batches = [[SampleRequest(i, 0, 0) for i in range(0, 200, 7)], [SampleRequest(1, 0, 0)]]
    same_batches(data.training_batches(split, WHOLE, batches), data.training_batches(cached, WHOLE, batches))


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["disk", "ram"])
def test_of_several_processes_one_builds(tmp_path, kind):
    root = write_folder_set(tmp_path / "set", counts=(("train", 200), ("val", 1), ("test", 1)), size=(120, 160))
    kind = f"disk:{tmp_path / 'cache'}" if kind == "disk" else kind
    processes = [builder(root, kind) for _ in range(2)]
    for process in processes:
        process.stdin.write("go\n")
        process.stdin.flush()
    answers = [process.communicate(timeout=60) for process in processes]
    assert all(process.returncode == 0 for process in processes), answers
    counts = sorted(int(out.split()[-1]) for out, _ in answers)
    assert counts == [0, 200] if kind != "ram" else counts[1] == 200
    if kind == "ram":
        assert not list(Path(f"/dev/shm/honestseg-{os.getuid()}").glob("train-*"))


def test_no_space_is_one_line_and_leaves_nothing(folder_set, tmp_path, monkeypatch):
    usage = cache.shutil.disk_usage(tmp_path)
    monkeypatch.setattr(cache.shutil, "disk_usage", lambda _: usage._replace(free=100))
    with pytest.raises(UserError, match=r"no space for a cache of .* GB \(1e-07 GB are free\) at .*; free some space"):
        cache_split(open_folder(folder_set), WHOLE, f"disk:{tmp_path / 'cache'}", training=True)
    assert list((tmp_path / "cache").iterdir()) == []


def test_a_disk_that_fills_up_on_the_way_is_one_line_and_leaves_nothing(folder_set, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(cache.os, "pwrite", full)
    with pytest.raises(UserError, match="No space left on device"):
        cache_split(open_folder(folder_set), WHOLE, f"disk:{tmp_path / 'cache'}", training=True)
    assert list((tmp_path / "cache").iterdir()) == []


def test_a_wrong_kind_is_one_line():
    for text in ("rom", "disk:", "ram:/tmp"):
        with pytest.raises(UserError, match="is no cache; write none, ram, disk or disk:DIR"):
            train.build_parser().parse_args(["--cache", text])


@pytest.mark.slow
def test_a_run_is_the_same_with_and_without_and_when_resumed_without(folder_set, tmp_path):
    """Crops, pastes, and workers; killed with a cache in memory, gone on with none."""
    words = ("--dataset", "folder", "--data-dir", folder_set, *TINY, "--crop", "24x32", "--outliers", "noise-shapes")
    words += ("--loss", "ce,outlier-entropy", "--save-every", "1")
    done = run_script("train.py", *words, "--run-dir", tmp_path / "plain")
    assert done.returncode == 0, done.stderr
    done = run_script(
        "train.py", *words, "--run-dir", tmp_path / "disk", "--cache", f"disk:{tmp_path / 'cache'}", "--workers", 2
    )
    assert done.returncode == 0, done.stderr
    assert len(cache_files(tmp_path / "cache")) == 2
    kill_at_step(tmp_path / "ram", start(tmp_path / "ram", *words, "--cache", "ram"), 2)
    done = run_script("train.py", "--run-dir", tmp_path / "ram", "--resume", "--cache", "none")
    assert done.returncode == 0, done.stderr
    for other in ("disk", "ram"):
        assert same_weights(tmp_path / "plain", tmp_path / other)
        assert read_log(tmp_path / "plain") == read_log(tmp_path / other)
    assert json.loads((tmp_path / "disk" / "config.json").read_text())["cache"].startswith("disk:")
