"""A run from the outside: its directory, resume after any kill, signals, several processes."""

import json
import shutil
import signal
import subprocess
import sys
import time

import pytest
import torch

from engine.checkpoint import fingerprint, load_checkpoint, load_last, load_model, save_checkpoint
from engine.run_directory import figures_of, spread_of
from tests.folder_set import write_folder_set
from tests.scripts import ENVIRONMENT, ROOT, TINY, run_script

CLOCK = ("images_per_second",)  # the one thing in the log that no two runs share


def read_log(run):
    lines = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k not in CLOCK} for line in lines]


def same_weights(a, b):
    one, two = (load_checkpoint(run / "last.pth") for run in (a, b))
    pairs = [(one["state"], two["state"]), (one["training"]["average"] or {}, two["training"]["average"] or {})]
    return all(a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a) for a, b in pairs)


def test_run_directory_and_checkpoint_hold_what_was_promised(trained):
    run, _ = trained
    names = {path.name for path in run.iterdir()}
    assert {"config.json", "log.jsonl", "samples.png", "best.pth", "last.pth", "last.previous.pth"} <= names
    best = load_checkpoint(run / "best.pth")
    assert best["data"]["classes"] == ["red", "green", "blue"]
    assert best["data"]["layout_map"].shape == (120, 160)
    assert best["data"]["layout_map"].dtype == torch.uint8
    options = {"skips": False, "centres": "none", "residual": False, "properties": 0.0}
    assert best["model"] == {"name": "mobilenetv2", "options": options}
    assert best["data"]["statistics"].keys() == {"max_logit", "similarity", "mahalanobis"}
    assert best["data"]["alarms"]["sml"].keys() == {"0.01", "0.001"}
    assert best["config"]["lr"] == 0.001
    assert "training" not in best
    assert best["initial"]["classifier"]["hash"] != fingerprint(load_model(run / "best.pth")[0])["classifier"]["hash"]
    lines = read_log(run)
    steps = [line for line in lines if line["kind"] == "train"]
    assert [line["step"] for line in steps] == [1, 2, 3, 4]
    assert all(line["terms"].keys() == {"ce"} and line["gradient_norm"] > 0 for line in steps)
    validations = [line for line in lines if line["kind"] == "validation"]
    assert [line["epoch"] for line in validations] == [0, 1]
    assert validations[0]["iou"].keys() == {"red", "green", "blue"}
    assert 0 <= validations[0]["layout_floor"] <= 1


def test_a_run_directory_in_use_is_not_overwritten(trained):
    run, data = trained
    before = (run / "last.pth").read_bytes()
    done = run_script("train.py", "--dataset", "folder", "--data-dir", data, "--run-dir", run, *TINY)
    assert done.returncode == 2
    assert "--resume" in done.stderr
    assert (run / "last.pth").read_bytes() == before


def test_resume_refuses_flags_that_make_it_another_run(trained):
    run, _ = trained
    done = run_script("train.py", "--run-dir", run, "--resume", "--lr", "0.5")
    assert done.returncode == 2
    assert "--lr 0.5 differs from the run's 0.001" in done.stderr
    done = run_script("train.py", "--run-dir", run, "--resume")
    assert done.returncode == 0  # finished already: says so, changes nothing


# All that has a state of its own: dropout, two workers, several saves an epoch, noise from the augmentation's generator
# and from the loss, drawn classes and features, averaged weights, parts of a batch, pasted objects.
REAL = (
    "--dataset", "folder", "--model", "fpn_mobilenet_v2:channels=16,dropout=0.5", "--image-size", "32x48",
    "--epochs", "3", "--batch-size", "4", "--workers", "2", "--amp", "off", "--device", "cpu", "--save-every", "3",
    "--log-every", "2", "--augment", "flip,scale,colour,noise", "--schedule", "plateau:patience=0,factor=0.5",
    "--loss", "ce,noisy,consistency,contrastive", "--aux-task", "properties", "--sampling", "balanced",
    "--ema", "0.9", "--accumulate", "2", "--outliers", "noise-shapes",
)  # fmt: skip


def test_a_flag_that_came_later_counts_as_its_default(trained, tmp_path):
    run = shutil.copytree(trained[0], tmp_path / "run")
    for name in ("last.pth", "best.pth"):
        content = load_checkpoint(run / name)
        del content["config"]["label_space"]
        save_checkpoint(run / name, content)
    done = run_script("train.py", "--run-dir", run, "--resume", "--label-space", "own")
    assert done.returncode == 0, done.stderr
    done = run_script("train.py", "--run-dir", run, "--resume", "--label-space", "driving19")
    assert "--label-space driving19 differs from the run's own" in done.stderr


def start(run, *args):
    command = [sys.executable, str(ROOT / "train.py"), "--run-dir", str(run), *map(str, args)]
    return subprocess.Popen(command, env=ENVIRONMENT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)


def kill_at_step(run, process, step, number=signal.SIGKILL):
    """Wait until the log has reached a step, then kill."""
    deadline = time.time() + 120
    while time.time() < deadline and process.poll() is None:
        log = run / "log.jsonl"
        lines = log.read_text().splitlines() if log.exists() else []
        if lines and lines[-1].endswith("}") and json.loads(lines[-1])["step"] >= step:
            process.send_signal(number)
            break
        time.sleep(0.01)
    _, errors = process.communicate(timeout=60)
    return process.returncode, errors


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    """(data folder, run directory) of a run that nothing disturbed: 40 images, 10 steps an epoch, 30 in all."""
    root = tmp_path_factory.mktemp("whole")
    data = write_folder_set(root / "set", counts=(("train", 40), ("val", 3)))
    done = run_script("train.py", "--run-dir", root / "run", "--data-dir", data, *REAL)
    assert done.returncode == 0, done.stderr
    return data, root / "run"


@pytest.mark.slow
def test_killed_twice_in_one_epoch_and_once_later_ends_the_same_bit_for_bit(uninterrupted, tmp_path):
    data, whole = uninterrupted
    run = tmp_path / "run"
    code, _ = kill_at_step(run, start(run, "--data-dir", data, *REAL), 4)
    assert code == -signal.SIGKILL
    for step in (8, 22):
        code, errors = kill_at_step(run, start(run, "--resume"), step)
        assert code == -signal.SIGKILL, errors
    done = run_script("train.py", "--run-dir", run, "--resume")
    assert done.returncode == 0, done.stderr
    assert same_weights(run, whole)
    assert read_log(run) == read_log(whole)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_writes_a_checkpoint_and_its_code_and_the_run_goes_on(uninterrupted, tmp_path, number):
    data, whole = uninterrupted
    run = tmp_path / "run"
    code, errors = kill_at_step(run, start(run, "--data-dir", data, *REAL, "--save-every", "1000"), 14, number)
    assert code == 128 + number, errors
    assert "Traceback" not in errors
    assert load_last(run)["progress"]["step"] >= 14
    done = run_script("train.py", "--run-dir", run, "--resume", "--save-every", "3")
    assert done.returncode == 0, done.stderr
    assert same_weights(run, whole)
    assert read_log(run) == read_log(whole)


@pytest.mark.slow
def test_a_damaged_last_checkpoint_costs_one_save_not_the_run(uninterrupted, tmp_path):
    data, whole = uninterrupted
    run = tmp_path / "run"
    shutil.copytree(whole, run)
    last = run / "last.pth"
    last.write_bytes(last.read_bytes()[:-2000])
    done = run_script("train.py", "--run-dir", run, "--data-dir", data, "--resume")
    assert done.returncode == 0, done.stderr
    assert "falling back" in done.stderr
    assert same_weights(run, whole)
    assert read_log(run) == read_log(whole)


@pytest.mark.slow
def test_two_processes_train_and_agree(folder_set, tmp_path):
    environment = {**ENVIRONMENT, "PYTHONWARNINGS": "default"}  # torchrun itself warns
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command += [str(ROOT / "train.py"), "--dataset", "folder", "--data-dir", str(folder_set)]
    command += ["--run-dir", str(tmp_path / "run"), *TINY, "--batch-size", "8", "--epochs", "4"]
    command += ["--accumulate", "2", "--ema", "0.5", "--loss", "ce,noisy,consistency,contrastive,spatial,dice,lovasz"]
    command += ["--aux-task", "properties", "--sampling", "balanced", "--outliers", "noise-shapes"]
    command[command.index("mobilenetv2")] = "mobilenetv2:residual=on"
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    lines = read_log(tmp_path / "run")
    assert [line["step"] for line in lines if line["kind"] == "train"] == [1, 2, 3, 4]
    assert [line["step"] for line in lines if line["kind"] == "validation"] == [1, 2, 3, 4]
    states = load_checkpoint(tmp_path / "run" / "last.pth")["training"]["random"]
    assert len(states) == 2
    assert not torch.equal(states[0]["varying"], states[1]["varying"])


def test_a_loss_that_is_not_finite_stops_the_run_and_names_the_step(folder_set, tmp_path):
    done = run_script(
        "train.py", "--dataset", "folder", "--data-dir", folder_set, "--run-dir", tmp_path / "run",
        *TINY, "--lr", "1e30", "--schedule", "constant", "--epochs", "9",
    )  # fmt: skip
    assert done.returncode == 1
    assert "error: loss is nan at step" in done.stderr
    assert done.stderr.count("Traceback") == 0
    if (tmp_path / "run" / "last.pth").exists():  # whatever was saved was finite
        state = load_last(tmp_path / "run")["state"]
        assert all(value.isfinite().all() for value in state.values() if value.is_floating_point())


def test_every_figure_of_a_line_goes_to_the_board_under_its_own_name():
    entry = {"kind": "train", "step": 7, "epoch": 1, "terms": {"ce": 0.5}, "lr": [0.1, 0.2], "gradient_norm": None}
    expected = {"train/epoch": 1, "train/terms/ce": 0.5, "train/lr/0": 0.1, "train/lr/1": 0.2}
    assert dict(figures_of(entry)) == expected


def test_the_spread_of_gradient_norms_leaves_out_a_step_that_overflowed():
    assert spread_of([1.0, float("inf"), 3.0]) == {"mean": 2.0, "spread": 1.0}
    assert spread_of([float("nan")]) == {"mean": None, "spread": None}
