"""The panel in small: faults planted in a few street scenes, each to be named first, and healthy files to pass."""

import re
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "benchmarks"))

import cli
from benchmarks import panel
from benchmarks.panel import HEALTHY, main
from benchmarks.panel_faults import CHECKPOINT_FAULTS, FILE_FAULTS, FOREIGN_FAULTS, TRAINING_FAULTS
from datasets.streets.render import write_streets
from probes.finding import CAUSES

COUNTS = {"train": 48, "val": 20, "test": 20}


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    root = tmp_path_factory.mktemp("panel") / "streets"
    write_streets(root, counts={"train": 48, "validation": 20, "test": 20})
    return root


def run_panel(scenes, tmp_path, monkeypatch, *words):
    monkeypatch.setattr(panel, "COUNTS", COUNTS)
    monkeypatch.setattr(sys, "argv", ["panel.py", "--streets", str(scenes), "--out", str(tmp_path), *words])
    return cli.run(main)


@pytest.mark.slow
def test_faults_of_files_are_named_and_healthy_files_pass(scenes, tmp_path, monkeypatch, capsys):
    assert run_panel(scenes, tmp_path, monkeypatch, "--files-only", "--shares", "1") == 0, capsys.readouterr().out


@pytest.mark.slow
def test_faults_that_need_no_skilled_model_are_named(scenes, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(HEALTHY, "late", ("--model fpn_mobilenet_v2 --epochs 2", True))
    for name, (cause, extra, patch) in TRAINING_FAULTS.items():
        few = re.sub(r"--iters \d+", "--iters 12", extra)
        monkeypatch.setitem(TRAINING_FAULTS, name, (cause, few, patch))
    only = "softmax,learning rate 0,auxiliary,frozen"
    assert run_panel(scenes, tmp_path, monkeypatch, "--only", only) == 0, capsys.readouterr().out


def test_every_planted_cause_is_one_that_a_finding_may_name():
    causes = {fault.cause for fault in FILE_FAULTS.values()}
    tables = (CHECKPOINT_FAULTS, FOREIGN_FAULTS, TRAINING_FAULTS)
    causes |= {fault[0] for table in tables for fault in table.values()}
    assert causes <= set(CAUSES)
