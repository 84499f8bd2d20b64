"""The panel in small: faults planted in a few street scenes, each to be named first, and healthy files to pass."""

import re
import sys
from pathlib import Path

import pytest

import diagnose
import flags
import synthetic

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "benchmarks"))
import panel
import panel_faults

COUNTS = {"train": 48, "val": 20, "test": 20}


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    root = tmp_path_factory.mktemp("panel") / "streets"
    synthetic.write_streets(root, counts={"train": 48, "validation": 20, "test": 20})
    return root


def run_panel(scenes, tmp_path, monkeypatch, *words):
    monkeypatch.setattr(panel, "COUNTS", COUNTS)
    monkeypatch.setattr(sys, "argv", ["panel.py", "--streets", str(scenes), "--out", str(tmp_path), *words])
    return flags.run(panel.main)


@pytest.mark.slow
def test_faults_of_files_are_named_and_healthy_files_pass(scenes, tmp_path, monkeypatch, capsys):
    assert run_panel(scenes, tmp_path, monkeypatch, "--files-only", "--shares", "1") == 0, capsys.readouterr().out


@pytest.mark.slow
def test_faults_that_need_no_skilled_model_are_named(scenes, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(panel.HEALTHY, "late", ("--model fpn_mobilenet_v2 --epochs 2", True))
    for name, (cause, extra, patch) in panel_faults.TRAINING_FAULTS.items():
        few = re.sub(r"--iters \d+", "--iters 12", extra)
        monkeypatch.setitem(panel_faults.TRAINING_FAULTS, name, (cause, few, patch))
    only = "softmax,learning rate 0,auxiliary,frozen"
    assert run_panel(scenes, tmp_path, monkeypatch, "--only", only) == 0, capsys.readouterr().out


def test_every_planted_cause_is_one_that_a_finding_may_name():
    causes = {fault.cause for fault in panel_faults.FILE_FAULTS.values()}
    tables = (panel_faults.CHECKPOINT_FAULTS, panel_faults.FOREIGN_FAULTS, panel_faults.TRAINING_FAULTS)
    causes |= {fault[0] for table in tables for fault in table.values()}
    assert causes <= set(diagnose.probes.CAUSES)
