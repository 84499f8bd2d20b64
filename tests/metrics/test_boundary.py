"""Boundary IoU and F1 against eroded masks, distances and hand-worked cases."""

import numpy as np
import pytest
import torch
from scipy import ndimage

import metrics


def blobs(seed, size=(61, 83), num_classes=5, void=True, smooth=5):
    """A smooth label map, some of it void, and a disturbed copy as prediction."""
    rng = np.random.default_rng(seed)
    fields = np.stack([ndimage.gaussian_filter(rng.standard_normal(size), smooth) for _ in range(num_classes)])
    target = fields.argmax(0).astype(np.uint8)
    shifted = fields + 0.5 * np.roll(fields, (2, -3), axis=(1, 2))
    prediction = shifted.argmax(0).astype(np.uint8)
    if void:
        target[ndimage.gaussian_filter(rng.standard_normal(size), 4) > 0.06] = 255
    return prediction, target


def band(mask, reach):
    """The pixels of a mask within `reach` of its outside, as the authors of boundary IoU cut it: by erosion."""
    padded = np.pad(mask, 1)
    return padded[1:-1, 1:-1] & ~ndimage.binary_erosion(padded, np.ones((3, 3)), iterations=reach)[1:-1, 1:-1]


@pytest.mark.parametrize("size", [(61, 83), (200, 240), (9, 7), (1, 5)])
@pytest.mark.parametrize("num_classes", [1, 5])
def test_boundary_counts_are_those_of_eroded_masks(size, num_classes):
    for seed in range(3):
        prediction, target = blobs(seed, size, num_classes)
        reach = max(1, round(0.02 * (size[0] ** 2 + size[1] ** 2) ** 0.5))
        expected = np.zeros((2, num_classes), dtype=int)
        for c in range(num_classes):
            first, second = band(target == c, reach), band((prediction == c) & (target != 255), reach)
            expected[:, c] = (first & second).sum(), (first | second).sum()
        counts = metrics.boundary_counts(prediction, target, num_classes)
        assert counts.dtype == torch.int64
        assert counts.tolist() == expected.tolist()


@pytest.mark.parametrize(("size", "num_classes"), [((61, 83), 5), ((120, 150), 5), ((61, 83), 9), ((61, 83), 130)])
def test_boundary_f1_counts_are_those_of_distances(size, num_classes):
    prediction, target = blobs(0, size, min(num_classes, 20))
    prediction, target = (np.where(m < 20, m * (num_classes // 20 or 1), m) for m in (prediction, target))
    reach = max(1, round(0.02 * (size[0] ** 2 + size[1] ** 2) ** 0.5))
    edges = []
    for labels in (prediction, target):
        edge = np.zeros(size, dtype=bool)
        for y, x in np.ndindex(size):
            for other in ((y - 1, x), (y + 1, x), (y, x - 1), (y, x + 1)):
                inside = 0 <= other[0] < size[0] and 0 <= other[1] < size[1]
                known = inside and target[y, x] != 255 and target[other] != 255
                edge[y, x] |= known and labels[y, x] != labels[other]
        edges.append(edge)
    expected = np.zeros((4, num_classes), dtype=int)
    for c in range(num_classes):
        ours, theirs = edges[0] & (prediction == c), edges[1] & (target == c)
        for row, (own, other) in ((0, (ours, theirs)), (2, (theirs, ours))):
            distance = ndimage.distance_transform_cdt(~other, "chessboard") if other.any() else np.full(size, 10**6)
            expected[row : row + 2, c] = (own & (distance <= reach)).sum(), own.sum()
    counts = metrics.boundary_f1_counts(torch.from_numpy(prediction), torch.from_numpy(target), num_classes)
    assert counts.tolist() == expected.tolist()
    assert counts.sum() > 0
    f1 = [2 / (b / a + e / d) if a and d else 0 for a, b, d, e in expected.T if b or e]  # harmonic mean of both shares
    assert metrics.boundary_f1(counts) == pytest.approx(np.mean(f1))


def test_a_perfect_prediction_has_perfect_boundaries_whatever_it_says_in_void():
    _, target = blobs(3)
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 5, target.shape).astype(np.uint8)
    perfect = np.where(target == 255, noise, target)
    assert metrics.boundary_iou(metrics.boundary_counts(perfect, target, 5)) == 1
    assert metrics.boundary_f1(metrics.boundary_f1_counts(perfect, target, 5)) == 1
    prediction, _ = blobs(3, void=False)
    other = np.where(target == 255, noise, prediction)
    for function in (metrics.boundary_counts, metrics.boundary_f1_counts):
        assert torch.equal(function(prediction, target, 5), function(other, target, 5))


def test_boundaries_punish_a_shift_more_than_iou_does():
    _, target = blobs(1, (200, 240), void=False, smooth=25)
    shifted = np.roll(target, 3, axis=1)
    confusion = metrics.confusion_matrix(torch.from_numpy(shifted), torch.from_numpy(target), 5)
    miou = metrics.segmentation_scores(confusion)["miou"]
    biou = metrics.boundary_iou(metrics.boundary_counts(shifted, target, 5))
    assert biou < miou - 0.1
    within = metrics.boundary_f1(metrics.boundary_f1_counts(shifted, target, 5))
    beyond = metrics.boundary_f1(metrics.boundary_f1_counts(np.roll(target, 20, axis=1), target, 5))
    assert within > 0.9 > beyond


def test_absent_and_spurious_classes_on_boundaries():
    target = np.zeros((30, 40), dtype=np.uint8)
    target[10:20, 10:20] = 1
    prediction = target.copy()
    prediction[10:20, 10:20] = 2  # 1 is missed, 2 spurious, 3 in neither
    counts = metrics.boundary_counts(prediction, target, 4)
    assert metrics.boundary_iou(counts) == pytest.approx((1 + 0 + 0) / 3)
    counts = metrics.boundary_f1_counts(prediction, target, 4)
    assert metrics.boundary_f1(counts) == pytest.approx((1 + 0 + 0) / 3)
    void = np.full((30, 40), 255, dtype=np.uint8)
    for function, mean in (
        (metrics.boundary_counts, metrics.boundary_iou),
        (metrics.boundary_f1_counts, metrics.boundary_f1),
    ):
        assert mean(function(prediction, void, 4)) is None
        with pytest.raises(ValueError, match="prediction 4 is outside the classes 0..3"):
            function(prediction + 2, target, 4)
        with pytest.raises(ValueError, match="one size"):
            function(prediction[:5], target, 4)
    one = np.zeros((30, 40), dtype=np.uint8)
    assert metrics.boundary_f1(metrics.boundary_f1_counts(one, one, 4)) is None  # no boundary at all
