"""A set, a checkpoint or a model is opened in one line, and a probe is asked in another."""

import numpy as np
import pytest
import torch

import diagnose
from cli import UserError
from probes.answers import collapse
from probes.files import audit_files
from probes.noise_test import TrainingSettings, noise_test
from probes.shortcut import gradient_flow
from probes.subject import Subject
from probes.trained_weights import untrained
from probes.training_log import training_log
from tests.folder_set import write_folder_set
from tests.probes.examples import BANDS, CPU, banded_set, open_splits, small_settings

NET = """
import torch


class Net(torch.nn.Module):
    def __init__(self, num_classes):
        super().__init__()
        self.layer = torch.nn.Conv2d(3, num_classes, 1)

    def forward(self, images):
        return self.layer(images)
"""


def test_settings_have_the_flags_defaults():
    args = diagnose.build_parser().parse_args([])
    assert TrainingSettings.from_args(args) == TrainingSettings()


def test_a_set_alone(folder_set):
    subject = Subject.open("folder", folder_set, limit=2, device="cpu")
    assert {name: len(split) for name, split in subject.splits.items()} == {"train": 2, "val": 2, "test": 2}
    assert subject.title == "Diagnosis of folder"
    assert subject.layout_map.shape == (120, 160)
    [finding] = audit_files(subject)
    assert finding.verdict == "pass"
    images, targets = subject.training_batch()
    assert (images.shape, targets.shape) == ((2, 3, 120, 160), (2, 120, 160))
    with pytest.raises(UserError, match="no classes.json"):
        Subject.open("folder", folder_set / "nowhere")


def test_the_network_as_the_settings_start_it_is_the_same_each_time(folder_set):
    splits = open_splits(folder_set)
    first, second = (Subject(splits, settings=small_settings(seed=3)).model.state_dict() for _ in range(2))
    assert all(torch.equal(value, second[key]) for key, value in first.items())


@pytest.mark.slow
def test_a_checkpoint_brings_its_data_and_its_log(trained):
    run, folder = trained
    subject = Subject.load(run / "best.pth", device="cpu")
    assert subject.splits["train"].root == folder
    assert "mobilenetv2" in subject.title
    assert subject.log[0]["kind"]
    assert np.array_equal(subject.layout_map, subject.content["data"]["layout_map"])
    for probe in (training_log, untrained, collapse, gradient_flow):
        assert all(finding.json() for finding in probe(subject))


def test_a_foreign_model_and_one_in_memory(folder_set, tmp_path):
    (tmp_path / "net.py").write_text(NET)
    settings = small_settings(image_size=(40, 56))
    about = {"dataset": "folder", "data_dir": folder_set, "settings": settings, "device": "cpu"}
    subject = Subject.foreign(f"{tmp_path / 'net.py'}:Net", mean=(0, 0, 0), std=(1, 1, 1), **about)
    assert subject.title.endswith("net.py:Net")
    with torch.no_grad():
        subject.model.net.layer.weight.copy_(torch.from_numpy(BANDS)[..., None, None] / 25.5)
        subject.model.net.layer.bias.zero_()
    [finding] = collapse(subject)
    assert finding.verdict == "pass", finding.why
    again = Subject(open_splits(folder_set), subject.predictor)
    assert collapse(again)[0].why == finding.why


@pytest.mark.slow
def test_the_noise_test_on_this_set_with_this_model(tmp_path):
    folder = banded_set(tmp_path / "set")
    subject = Subject.open("folder", folder, settings=small_settings(model="mobilenetv2", iters=4), device="cpu")
    [finding] = noise_test(subject)
    assert finding.probe == "noise_test"
    assert [step["iteration"] for step in finding.evidence["curve"]] == [1, 2, 4]


def test_faulty_data_have_no_layout(tmp_path):
    folder = write_folder_set(tmp_path / "set")
    next((folder / "masks" / "train").iterdir()).write_bytes(b"no mask")
    subject = Subject(open_splits(folder), device=CPU)
    with pytest.raises(UserError, match="sound files"):
        _ = subject.layout_map
