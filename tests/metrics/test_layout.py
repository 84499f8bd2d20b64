"""The layout map, its floor and the layout distribution against their definitions, torch and scipy."""

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import ndimage
from torch.nn import functional as F

import metrics
from metrics import confusion_matrix, segmentation_scores


@pytest.mark.parametrize("size", [(120, 160), (360, 480), (123, 457), (17, 900), (1, 1), (119, 161)])
def test_nearest_resizing_is_torchs_nearest_exact(size):
    target = np.random.default_rng(0).integers(0, 255, size, dtype=np.uint8)
    for wanted in (metrics.GRID, (7, 5), (240, 323)):
        reference = F.interpolate(torch.from_numpy(target)[None, None], size=wanted, mode="nearest-exact")[0, 0]
        resized = metrics.resize_nearest(target, wanted)
        assert resized.dtype == target.dtype
        assert np.array_equal(resized, reference.numpy())
        assert torch.equal(metrics.resize_nearest(torch.from_numpy(target), wanted), reference)


def random_grids(count, seed, size=(6, 8), num_classes=4):
    """Grids with a rare class, a class bound to a place, and some void."""
    rng = np.random.default_rng(seed)
    grids = rng.choice(num_classes, p=[0.6, 0.25, 0.1, 0.05], size=(count, *size)).astype(np.uint8)
    grids[:, :2][rng.random((count, 2, size[1])) < 0.4] = 1
    grids[rng.random(grids.shape) < 0.1] = 255
    return grids


def layout_by_definition(grids, num_classes, exponent):
    share = [(grids == c).sum() / (grids < num_classes).sum() for c in range(num_classes)]
    result = np.zeros(grids.shape[1:], dtype=np.uint8)
    for y, x in np.ndindex(result.shape):
        score = [(grids[:, y, x] == c).sum() / share[c] ** exponent if share[c] else 0 for c in range(num_classes)]
        result[y, x] = int(np.argmax(score))
    return result


def map_miou(layout_map, grids, num_classes):
    predictions = torch.from_numpy(np.broadcast_to(layout_map, grids.shape).copy())
    return segmentation_scores(confusion_matrix(predictions, torch.from_numpy(grids), num_classes))["miou"]


def test_the_layout_map_and_its_exponent_follow_their_definition():
    chosen = set()
    for seed, count in enumerate((150, 7, 30, 90, 40, 200)):
        grids = random_grids(count, seed)
        maps = {a: layout_by_definition(grids, 4, a) for a in (0, 0.25, 0.5, 0.75, 1)}
        for a, expected in maps.items():
            assert np.array_equal(metrics.layout_map(grids, 4, a), expected)
        layout = metrics.fit_layout(grids, 4)
        best = max(maps, key=lambda a: map_miou(maps[a], grids, 4))  # noqa: B023
        assert layout.exponent == best
        assert layout.map.dtype == np.uint8
        assert np.array_equal(layout.map, maps[best])
        chosen.add(best)
    assert len(chosen) > 1


def test_a_class_that_never_occurs_is_never_predicted():
    grids = np.full((3, 4, 5), 255, dtype=np.uint8)
    grids[:, 1:, :] = 3
    grids[0, 3, :] = 2
    for exponent in (0, 0.5, 1):
        layout_map = metrics.layout_map(grids, 6, exponent)
        assert set(np.unique(layout_map)) <= {2, 3}
        assert (layout_map[0] == 3).all()  # seen in no image: the most frequent class
    with pytest.raises(ValueError, match="void"):
        metrics.fit_layout(np.full((2, 4, 5), 255, dtype=np.uint8), 6)


def test_the_layout_distribution_without_blur_is_the_smoothed_count():
    grids = random_grids(1, 0)[[0] * 40]  # 40 times the same labels: any blur would lose
    assert metrics.layout_sigma(grids, 5) == 0
    counts = np.stack([(grids == c).sum(0) for c in range(5)])
    prior = metrics.class_prior(counts.sum((1, 2)))
    expected = (counts + prior[:, None, None]) / (counts.sum(0) + 1)
    distribution = metrics.layout_distribution(grids, 5)
    assert distribution.dtype == np.float32
    assert np.allclose(distribution, expected, rtol=1e-6)


def test_the_layout_distribution_blurs_when_places_are_seen_too_seldom():
    rng = np.random.default_rng(0)
    chance = np.linspace(0.2, 0.8, 40)[None, :, None].repeat(30, 2)  # class 1 grows likely from top to bottom
    grids = (rng.random((10, 40, 30)) < chance).astype(np.uint8)
    assert metrics.layout_sigma(grids, 3) >= 2
    distribution = metrics.layout_distribution(grids, 3)
    assert np.allclose(distribution.sum(0), 1, atol=1e-5)
    assert (distribution > 0).all()  # also of the class that never occurs
    raw = (np.stack([grids == 0, grids == 1]).mean(1) - [1 - chance[0], chance[0]]) ** 2
    assert ((distribution[:2] - [1 - chance[0], chance[0]]) ** 2).mean() < raw.mean() / 5
    sigma = metrics.layout_sigma(grids, 3)
    counts = np.stack([(grids == c).sum(0) for c in range(3)]).astype(float)
    blurred = ndimage.gaussian_filter(counts, (0, sigma, sigma), mode="constant", truncate=8)
    blurred += metrics.class_prior(counts.sum((1, 2)))[:, None, None]
    assert np.allclose(distribution, blurred / blurred.sum(0), rtol=1e-4)
    assert metrics.layout_sigma(grids[:1], 3) == 4  # one grid cannot be held out


def test_position_tells_more_than_the_prior_only_where_it_matters():
    rng = np.random.default_rng(1)
    placed, scattered = random_grids(300, 1), rng.choice(4, p=[0.6, 0.25, 0.1, 0.05], size=(300, 6, 8)).astype(np.uint8)
    gains = []
    for grids in (placed, scattered):
        prior = metrics.class_prior(np.bincount(grids[:150].ravel(), minlength=256)[:4])
        layout = metrics.layout_distribution(grids[:150], 4)
        losses = [sum(metrics.pixel_nll(p, t)[0] for t in grids[150:]) for p in (prior, layout)]
        gains.append(1 - losses[1] / losses[0])
    assert gains[0] > 0.03
    assert abs(gains[1]) < 0.01


def test_class_prior_has_no_zero():
    assert metrics.class_prior([7, 0, 1]).tolist() == pytest.approx([8 / 11, 1 / 11, 2 / 11])
    assert metrics.class_prior(torch.tensor([0, 0])).tolist() == [0.5, 0.5]


@pytest.mark.parametrize("size", [(12, 16), (35, 50), (5, 7)])
def test_pixel_nll_is_torchs(size):
    rng = np.random.default_rng(0)
    probabilities = torch.from_numpy(rng.dirichlet(np.ones(5), (12, 16)).transpose(2, 0, 1).astype(np.float32))
    target = torch.from_numpy(rng.integers(0, 6, size))  # 5 is no class
    wide = F.interpolate(probabilities[None].double(), size=size, mode="nearest-exact")
    for p, full in ((probabilities, wide), (probabilities[:, 0, 0], probabilities[None, :, :1, :1].expand_as(wide))):
        total, pixels = metrics.pixel_nll(p.numpy(), target.to(torch.uint8).numpy())
        reference = F.nll_loss(full.double().log(), target[None], ignore_index=5, reduction="sum")
        assert total == pytest.approx(float(reference), rel=1e-6)
        assert pixels == int((target < 5).sum())


def test_pixel_nll_stays_finite_and_counts_no_void():
    assert metrics.pixel_nll(np.array([1.0, 0.0]), np.full((3, 3), 255, dtype=np.uint8)) == (0.0, 0)
    total, pixels = metrics.pixel_nll(np.array([1.0, 0.0]), np.array([[0, 1]], dtype=np.uint8))
    assert (total, pixels) == (pytest.approx(12 * np.log(10)), 2)


@pytest.mark.real_data
def test_the_layout_floor_of_camvid(real_data):
    """The published figures of the design: 0.220 with the chosen exponent 3/4, 0.170 for the plain majority."""
    train, test = (
        [np.array(Image.open(path)) for path in sorted((real_data / "camvid" / f"{split}annot").glob("*.png"))]
        for split in ("train", "test")
    )
    grids = np.stack([metrics.resize_nearest(target) for target in train])
    layout = metrics.fit_layout(grids, 11)
    assert layout.exponent == 0.75
    targets = torch.from_numpy(np.stack(test))
    for layout_map, floor in ((layout.map, 0.220), (metrics.layout_map(grids, 11, 0), 0.170)):
        resized = torch.from_numpy(metrics.resize_nearest(layout_map, targets.shape[1:])).expand_as(targets)
        assert segmentation_scores(confusion_matrix(resized, targets, 11))["miou"] == pytest.approx(floor, abs=5e-4)
