"""The script: which probes run, what they leave behind, and what happens to one that cannot run."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

import cli
import diagnose
import losses
from datasets.pairs import cut_of
from probes.registry import PROBES
from tests.folder_set import write_folder_set


def run(*words):
    return cli.run(lambda: diagnose.main([*map(str, words)]))


def findings_of(out):
    return {finding["probe"]: finding for finding in json.loads((out / "diagnosis.json").read_text())["findings"]}


def test_what_asks_for_masks_alone_opens_no_image(folder_set, tmp_path):
    for path in (folder_set / "images").rglob("*.png"):
        path.write_bytes(b"no image")
    words = ("--dataset", "folder", "--data-dir", folder_set, "--out", tmp_path, "--only")
    assert run(*words, "classes,layout_floor") == 0
    assert {name: one["verdict"] for name, one in findings_of(tmp_path).items()}["data.layout_floor"] != "skip"
    assert run(*words, "files,classes,layout_floor") == 1
    assert findings_of(tmp_path)["data.files"]["cause"] == "unreadable_files"


@pytest.mark.slow
def test_a_checkpoint_of_ours_leaves_findings_pictures_and_weights_that_train_reads(trained, tmp_path, capsys):
    run_dir, _ = trained
    code = run("--ckpt", run_dir / "best.pth", "--out", tmp_path)
    found = findings_of(tmp_path)
    assert code == (1 if any(f["verdict"] == "fail" for f in found.values()) else 0)
    groups = {name.partition(".")[0] for name in found}
    assert groups == {"data", "log", "model", "shortcut"}
    for finding in found.values():
        assert finding.keys() >= {"verdict", "cause", "value", "reference", "why", "remedy", "evidence", "seconds"}
        assert not finding["why"].startswith("could not run"), finding
    assert losses.class_weights(str(tmp_path / "class_weights.json"), torch.ones(3), ["red", "green", "blue"]).sum() > 0
    assert "Diagnosis" in (tmp_path / "diagnosis.html").read_text()
    shown = capsys.readouterr()
    assert "PASSED" in shown.out
    assert "diagnose  100/100 %" in shown.err


FOREIGN = """
import torch
from data import CLASSES

class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Conv2d(3, CLASSES, 1)
        with torch.no_grad():
            self.layer.weight.copy_(10 * torch.eye(3).view(3, 3, 1, 1))
            self.layer.bias.zero_()

    def forward(self, images):
        {fault}
        return self.layer(images)

def build():
    return Net()
"""


@pytest.mark.parametrize(
    ("fault", "verdicts"),
    [
        ("", {"pass"}),
        ("images = images.softmax(1); return images", {"fail"}),
        ("if images.any(): raise ValueError('their own trouble')", {"skip"}),
        ("return self.layer(images) * float('nan')", {"fail"}),
    ],
    ids=["healthy", "softmax", "raises", "not finite"],
)
def test_a_foreign_model_and_what_goes_wrong_in_it(fault, verdicts, tmp_path, capsys):
    """Its own data.py is found before ours, and a probe that it breaks is a skip with the reason, or a fault."""
    scenes = write_folder_set(tmp_path / "set", counts=(("train", 8), ("val", 6)))
    (tmp_path / "net.py").write_text(FOREIGN.format(fault=fault))
    (tmp_path / "data.py").write_text("CLASSES = 3")
    words = ["--model-from", f"{tmp_path / 'net.py'}:build", "--dataset", "folder", "--data-dir", scenes]
    words += ["--mean", "0,0,0", "--std", "1,1,1", "--image-size", "40x56", "--device", "cpu"]
    code = run(*words, "--only", "softmax,collapse", "--out", tmp_path / "out")
    found = findings_of(tmp_path / "out")
    assert found["model.softmax"]["verdict"] in verdicts, found["model.softmax"]["why"]
    assert found.keys() == {"model.softmax", "model.collapse"}
    assert code == (1 if "fail" in verdicts else 0)
    if "skip" in verdicts:
        assert "their own trouble" in found["model.softmax"]["why"]


@pytest.mark.parametrize(
    ("fault", "part"),
    [
        ("return images[:, :1]", "knows 1 classes, the data set has 3"),
        ("raise SystemExit(0)", "SystemExit"),
        ("return {'nothing': images}", "no logits"),
    ],
)
def test_a_foreign_model_that_never_answers_is_a_wrong_input(fault, part, tmp_path, capsys):
    scenes = write_folder_set(tmp_path / "set", counts=(("train", 4), ("val", 2)))
    (tmp_path / "net.py").write_text(FOREIGN.format(fault=fault))
    (tmp_path / "data.py").write_text("CLASSES = 3")
    words = ["--model-from", f"{tmp_path / 'net.py'}:build", "--dataset", "folder", "--data-dir", scenes]
    assert run(*words, "--image-size", "40x56", "--out", tmp_path / "out") == 2
    err = capsys.readouterr().err.strip().splitlines()
    assert part in err[-1]
    assert len(err) == 1


def test_a_checkpoint_on_another_set_through_the_command_line(trained, tmp_path, capsys):
    run_dir, own = trained
    other = write_folder_set(tmp_path / "other", counts=(("train", 6), ("val", 4)), seed=5)
    words = ["--ckpt", run_dir / "best.pth", "--out", tmp_path / "out", "--cross-dataset"]
    assert run(*words, other) == 0
    found = findings_of(tmp_path / "out")
    assert list(found) == [f"cross.{other}"]
    assert found[f"cross.{other}"]["verdict"] in ("pass", "warn", "skip")
    for folder, part in ((own, "no other set"), (tmp_path / "nowhere", "no such folder")):
        capsys.readouterr()
        assert run(*words, folder) == 2
        assert part in capsys.readouterr().err


@pytest.mark.slow
def test_a_foreign_models_weights_are_not_for_the_small_trainings(tmp_path):
    scenes = write_folder_set(tmp_path / "set", counts=(("train", 8), ("val", 6)))
    (tmp_path / "net.py").write_text("import torch\ndef build():\n    return torch.nn.Conv2d(3, 3, 1)\n")
    torch.save(torch.nn.Conv2d(3, 3, 1).state_dict(), tmp_path / "w.pth")
    words = ["--model-from", f"{tmp_path / 'net.py'}:build", "--weights", tmp_path / "w.pth", "--only", "real,softmax"]
    words += ["--dataset", "folder", "--data-dir", scenes, "--iters", 4, "--image-size", "32x48", "--workers", 0]
    run(*words, "--device", "cpu", "--out", tmp_path / "out")
    found = findings_of(tmp_path / "out")
    assert found["shortcut.real"]["verdict"] != "skip", found["shortcut.real"]["why"]
    assert found["model.softmax"]["verdict"] != "skip"


def test_a_probe_that_breaks_is_a_skip_that_shows_why_and_the_others_still_run(folder_set, tmp_path, monkeypatch):
    def broken(_subject):
        raise KeyError("nobody expected this")

    monkeypatch.setitem(PROBES, "images", PROBES["images"]._replace(run=broken))
    words = ["--dataset", "folder", "--data-dir", folder_set, "--only", "images,duplicates", "--out", tmp_path]
    assert run(*words) == 0
    found = findings_of(tmp_path)
    assert found["data.images"]["verdict"] == "skip"
    assert "KeyError" in found["data.images"]["why"]
    assert "nobody expected this" in " ".join(found["data.images"]["evidence"]["traceback"])
    assert found["data.duplicates"]["verdict"] == "pass"


def test_a_set_too_small_for_a_test_split_of_its_own_is_examined_without(tmp_path):
    scenes = write_folder_set(tmp_path / "set", counts=(("train", 2), ("val", 2)))
    names = [name for name in "abcdefghij" if cut_of(name, ("test",)) == "train"]
    for kind in ("images", "masks"):
        for file, name in zip(sorted((scenes / kind / "train").iterdir()), names[:2], strict=True):
            file.rename(file.with_stem(name))
    words = ["--dataset", "folder", "--data-dir", scenes, "--only", "files", "--out", tmp_path / "out"]
    assert run(*words) == 0
    assert "2 train, 2 val read" in findings_of(tmp_path / "out")["data.files"]["why"]
    (scenes / "images" / "test").mkdir()
    (scenes / "masks" / "test").mkdir()
    assert run(*words) == 2  # an empty folder is a mistake


def test_faulty_masks_are_the_root_cause_and_probes_that_need_sound_ones_say_so(folder_set, tmp_path):
    for mask in (folder_set / "masks").rglob("*.png"):
        Image.fromarray(np.array(Image.open(mask)) + 1).save(mask)
    code = run("--data", "--dataset", "folder", "--data-dir", folder_set, "--out", tmp_path)
    diagnosis = json.loads((tmp_path / "diagnosis.json").read_text())
    assert code == 1
    assert diagnosis["root_cause"] == "one_based_labels"
    found = findings_of(tmp_path)
    assert found["data.classes"]["verdict"] == "skip"
    assert found["data.files"]["evidence"]["pictures"], "the mask is shown"


@pytest.mark.slow
def test_conditions_are_judged_together_the_noise_test_among_them(tmp_path):
    scenes = write_folder_set(tmp_path / "set", counts=(("train", 8), ("val", 6)))
    words = ["--dataset", "folder", "--data-dir", scenes, "--only", "noise_test,real,mismatched,frozen_backbone"]
    words += ["--iters", 4, "--image-size", "32x48", "--device", "cpu", "--workers", 0, "--out", tmp_path / "out"]
    run(*words)
    found = findings_of(tmp_path / "out")
    assert found.keys() >= {"noise_test", "shortcut.conditions", "shortcut.real", "shortcut.mismatched"}
    assert found["shortcut.frozen_backbone"]["verdict"] == "skip"
    rows = [row["condition"] for row in found["shortcut.conditions"]["evidence"]["table"]]
    assert rows[:4] == ["chance", "class prior", "layout map", "layout floor"]
    assert {"noise", "real", "mismatched"} <= set(rows)
