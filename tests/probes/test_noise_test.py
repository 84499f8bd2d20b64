"""The noise test says what labels alone teach, and its controls come out as what they are."""

import numpy as np
import pytest
import torch

import metrics
from benchmarks.noise_controls import real, repeated
from probes.noise_test import chance_miou, judge, noise_test
from probes.replacement_inputs import noise
from probes.subject import Subject
from tests.probes.examples import banded_set, open_splits, small_settings


def leak(images, targets, generator):
    """Noise, white and unlike any picture, that tells the label by its size: |value - 127| grows with the class."""
    sign = torch.randint(0, 2, images.shape, generator=generator) * 2 - 1
    size = 10 + 50 * targets.clamp(max=2)[..., None].int() + torch.randint(0, 8, images.shape, generator=generator)
    return (127 + sign * size).to(torch.uint8), targets


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "settings", "cause"),
    [
        (noise, {}, None),
        (noise, {"lr": 0.0, "iters": 8}, "nothing_learnt"),
        (real, {}, "noise_is_not_noise"),
        (repeated, {}, "noise_is_not_noise"),
        (leak, {}, "label_leak"),
    ],
    ids=["healthy", "lr 0", "real images", "repeated, undeclared", "leak"],
)
def test_noise_test_and_its_controls(change, settings, cause, tmp_path):
    splits = open_splits(banded_set(tmp_path / "set", fitting=False))
    settings = small_settings(**{"iters": 90, **settings})
    [finding] = noise_test(Subject(splits, settings=settings), change)
    assert finding.cause == cause, finding.why
    assert finding.verdict == ("pass" if cause is None else "fail")


def test_judge_by_hand():
    known = {"prior": 1.9, "layout": 1.2, "train_layout": 1.0, "spread": 0.2, "layout_map": 0.17, "floor": 0.22}

    def cause(loss, train_loss, miou=0.1):
        return judge([{"loss": loss, "train_loss": train_loss, "miou": miou}], known).cause

    assert cause(1.3, 1.25) is None
    assert cause(1.3, 0.9) is None  # training images may be easier than validation images: no memory needed
    assert cause(1.9, 1.9) == "nothing_learnt"
    assert cause(0.99, 1.0, 0.3) == "label_leak"
    assert cause(0.99, 1.0) is None  # a few validation images that look alike: an easy layout, no better masks
    assert cause(2.5, 0.4) == "memorised_noise"


def test_chance_miou_against_simulation():
    shares = np.array([0.6, 0.3, 0.1, 0.0])
    generator = torch.Generator().manual_seed(0)
    targets = torch.from_numpy(np.random.RandomState(0).choice(4, 200_000, p=shares)).to(torch.uint8)
    guesses = torch.randint(0, 4, targets.shape, generator=generator).to(torch.uint8)
    confusion = metrics.confusion_matrix(guesses, targets, 4)
    present = [iou for iou, share in zip(metrics.segmentation_scores(confusion)["iou"], shares, strict=True) if share]
    assert chance_miou(shares) == pytest.approx(np.mean(present), abs=2e-3)
