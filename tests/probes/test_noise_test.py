"""The noise test says what labels alone teach, and its controls come out as what they are."""

from argparse import Namespace

import numpy as np
import pytest
import torch
from PIL import Image

import data
import metrics
from datasets.audit import audit_split
from datasets.catalogue import build_spec
from probes.noise_test import chance_miou, fresh_noise, judge, noise_test
from tests.folder_set import write_folder_set

CPU = torch.device("cpu")


def audits_of(root):
    spec = build_spec("folder", root)
    splits = {name: data.open_split(spec, root, name) for name in ("train", "val")}
    return splits, {name: audit_split(split, metrics.GRID) for name, split in splits.items()}


def banded_set(root):
    """Labels that depend on the place (three bands whose borders move), so that there is a layout to be learnt."""
    write_folder_set(root, counts=(("train", 24), ("val", 8)))
    rng = np.random.RandomState(1)
    for path in sorted(root.glob("masks/*/*.png")):
        first = 4 + rng.randint(0, 14)
        second = first + 6 + rng.randint(0, 14)
        rows = np.arange(40)[:, None].repeat(56, 1)
        Image.fromarray(((rows > first).astype(np.uint8) + (rows > second)).astype(np.uint8)).save(path)
    return root


def options(**changes):
    base = {"model": "fpn_mobilenet_v2:channels=32", "image_size": [32, 48], "batch_size": 8, "lr": 3e-3, "iters": 90}
    return Namespace(
        **{**base, "seed": 0, "workers": 0, "weights": "none", "freeze": "none", "aux_task": "none", **changes}
    )


def leak(images, targets, generator):
    """Noise, white and unlike any picture, that tells the label by its size: |value - 127| grows with the class."""
    sign = torch.randint(0, 2, images.shape, generator=generator) * 2 - 1
    size = 10 + 50 * targets.clamp(max=2)[..., None].int() + torch.randint(0, 8, images.shape, generator=generator)
    return (127 + sign * size).to(torch.uint8)


def repeated(images, _targets, _generator):
    """Noise, but the same for the same image."""
    noise = []
    for image in images:
        generator = torch.Generator().manual_seed(int(image.long().sum()))
        noise.append(torch.randint(0, 256, image.shape, dtype=torch.uint8, generator=generator))
    return torch.stack(noise)


def real(images, _targets, _generator):
    """What fooled others: the images themselves."""
    return images


@pytest.mark.slow
@pytest.mark.parametrize(
    ("make", "changes", "fresh", "cause"),
    [
        (fresh_noise, {}, True, None),
        (fresh_noise, {"lr": 0.0, "iters": 8}, True, "nothing_learnt"),
        (real, {}, True, "noise_is_not_noise"),
        (repeated, {}, True, "noise_is_not_noise"),
        (leak, {}, True, "label_leak"),
    ],
    ids=["healthy", "lr 0", "real images", "repeated, undeclared", "leak"],
)
def test_noise_test_and_its_controls(make, changes, fresh, cause, tmp_path):
    splits, audits = audits_of(banded_set(tmp_path / "set"))
    finding = noise_test(options(**changes), splits, audits, CPU, make=make, fresh=fresh)
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
