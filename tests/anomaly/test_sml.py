"""Standardised max logits against double loops over the pixels, and their properties."""

import math

import numpy as np
import pytest
import torch

from anomaly.scores import max_logit
from anomaly.sml import PARTS, sml, smooth, standardise, suppress_boundaries

SIZES = [(11, 13), (1, 9), (9, 1), (1, 1), (2, 2), (3, 40), (25, 24)]
CLOSE = {"rtol": 1e-5, "atol": 1e-5}


def draw(size, classes=5, kind="blobs", seed=0):
    """Max logits (2, H, W) and predicted classes of several kinds, from single pixels to halves of the picture."""
    rng = np.random.RandomState(seed)
    labels = {
        "blobs": lambda: (
            rng.randint(0, classes, (2, size[0] // 5 + 1, size[1] // 5 + 1))
            .repeat(5, 1)
            .repeat(5, 2)[:, : size[0], : size[1]]
        ),
        "noise": lambda: rng.randint(0, classes, (2, *size)),
        "one pixel": lambda: (np.arange(2 * size[0] * size[1]).reshape(2, *size) == size[0] * size[1] // 2) * 3,
        "diagonal": lambda: np.stack([np.add.outer(np.arange(size[0]), s * np.arange(size[1])) > 4 for s in (1, -1)]),
        "one class": lambda: np.full((2, *size), 2),
    }[kind]()
    top = 6 + 3 * rng.randn(2, *size)
    return torch.from_numpy(top).float(), torch.from_numpy(labels.astype(np.uint8).copy())


KINDS = ["blobs", "noise", "one pixel", "diagonal", "one class"]


# ---------------------------------------------------------------------------------------------------------------------
# The same in double loops, from the paper and the authors' code


def looped_standardise(top, labels, mean, std):
    result = top.copy()
    for place in np.ndindex(top.shape):
        result[place] = (top[place] - mean[labels[place]]) / std[labels[place]]
    return result


def looped_boundary(labels):
    height, width = labels.shape
    boundary = np.zeros(labels.shape, bool)
    for y in range(height):
        for x in range(width):
            inside = [
                (y + dy, x + dx, abs(dy) + abs(dx))
                for dy in (-1, 0, 1)
                for dx in (-1, 0, 1)
                if 0 <= y + dy < height and 0 <= x + dx < width
            ]
            dilated = max(labels[a, b] for a, b, steps in inside if steps <= 1)
            eroded = min(labels[a, b] for a, b, _ in inside)
            boundary[y, x] = dilated != eroded
    return boundary


def looped_suppress(scores, labels):
    height, width = scores.shape
    boundary = looped_boundary(labels)
    for radius in (3, 2, 1, 0):
        wide = np.zeros_like(boundary)
        for y, x in np.argwhere(boundary):
            for a in range(height):
                for b in range(width):
                    wide[a, b] |= abs(a - y) + abs(b - x) <= radius
        before, scores = scores, scores.copy()
        for y, x in np.argwhere(wide):
            found = []
            for dy in (-1, 0, 1):
                for dx in (-1, 0, 1):
                    a, b = min(max(y + dy, 0), height - 1), min(max(x + dx, 0), width - 1)
                    if not wide[a, b]:
                        found.append(before[a, b])
            if found:
                scores[y, x] = sum(found) / len(found)
    return scores


def looped_smooth(scores):
    height, width = scores.shape
    kernel = np.array([[math.exp(-(i * i + j * j) / 2) for j in range(-3, 4)] for i in range(-3, 4)])
    kernel /= kernel.sum()
    result = np.zeros_like(scores)
    for y in range(height):
        for x in range(width):
            for i in range(-3, 4):
                for j in range(-3, 4):
                    a, b = min(max(y + 6 * i, 0), height - 1), min(max(x + 6 * j, 0), width - 1)
                    result[y, x] += kernel[i + 3, j + 3] * scores[a, b]
    return result


def looped(top, labels, mean, std, parts):
    results = []
    for scores, classes in zip(top.double().numpy(), labels.numpy(), strict=True):
        if "standardise" in parts:
            scores = looped_standardise(scores, classes, mean, std)
        if "boundary" in parts:
            scores = looped_suppress(scores, classes)
        if "smooth" in parts:
            scores = looped_smooth(scores)
        results.append(-scores)
    return torch.from_numpy(np.stack(results)).float()


MEAN, STD = torch.tensor([5.0, 7.5, 3.0, 10.0, 6.0]), torch.tensor([1.0, 2.5, 0.5, 3.0, 1.5])


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("kind", KINDS)
def test_boundaries_are_suppressed_as_in_double_loops(size, kind):
    top, labels = draw(size, kind=kind)
    expected = np.stack([looped_suppress(t, c) for t, c in zip(top.double().numpy(), labels.numpy(), strict=True)])
    found = suppress_boundaries(top, labels)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, torch.from_numpy(expected).float(), **CLOSE)


@pytest.mark.parametrize("size", SIZES)
def test_smoothing_is_the_sum_over_49_taps(size):
    top, _ = draw(size)
    expected = np.stack([looped_smooth(image) for image in top.double().numpy()])
    torch.testing.assert_close(smooth(top), torch.from_numpy(expected).float(), **CLOSE)


@pytest.mark.parametrize(
    "parts", [(), PARTS[:1], PARTS[1:2], PARTS[2:], PARTS[:2], PARTS[1:], (PARTS[0], PARTS[2]), PARTS]
)
@pytest.mark.parametrize("kind", ["blobs", "noise"])
def test_the_parts_together_are_the_double_loops(parts, kind):
    top, labels = draw((11, 13), kind=kind, seed=1)
    found = sml(top, labels, MEAN, STD, parts)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, looped(top, labels, MEAN.numpy(), STD.numpy(), parts), **CLOSE)


def test_all_parts_are_the_default():
    top, labels = draw((11, 13))
    assert torch.equal(sml(top, labels, MEAN, STD), sml(top, labels, MEAN, STD, PARTS))


# ---------------------------------------------------------------------------------------------------------------------
# Standardise


def test_each_class_gets_mean_0_and_std_1():
    top, labels = draw((40, 40), kind="noise")
    mean = torch.stack([top[labels == c].mean() for c in range(5)])
    std = torch.stack([top[labels == c].std(correction=0) for c in range(5)])
    found = standardise(top, labels, mean, std)
    for c in range(5):
        assert float(found[labels == c].mean()) == pytest.approx(0, abs=1e-5)
        assert float(found[labels == c].std(correction=0)) == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64, torch.int32])
def test_any_integer_type_of_labels_will_do(dtype):
    top, labels = draw((11, 13))
    assert torch.equal(sml(top, labels.to(dtype), MEAN, STD), sml(top, labels, MEAN, STD))


def test_a_class_without_spread_takes_the_average_of_the_others():
    top, labels = draw((11, 13), kind="noise")
    mean, std = MEAN.clone(), STD.clone()
    mean[1], std[1] = 1000, 0  # seen on one pixel
    mean[3], std[3] = 0, 0  # never seen
    found = standardise(top, labels, mean, std)
    filled = [MEAN.clone(), STD.clone()]
    for values in filled:
        values[[1, 3]] = values[[0, 2, 4]].mean()
    torch.testing.assert_close(found, standardise(top, labels, *filled))


def test_without_any_spread_the_max_logits_stay():
    top, labels = draw((11, 13))
    assert torch.equal(standardise(top, labels, MEAN, torch.zeros(5)), top)


def test_a_spread_too_small_to_divide_by_leaves_every_score_finite():
    top, labels = draw((11, 13), kind="noise")
    for std in (STD * 1e-40, STD * 1e-6, torch.tensor([1e-45, 1, 1, 1, 1])):
        assert bool(torch.isfinite(standardise(top, labels, MEAN, std)).all())


# ---------------------------------------------------------------------------------------------------------------------
# Boundaries and smoothing


def test_a_step_has_a_boundary_two_pixels_wide_whose_scores_come_from_outside():
    labels = torch.zeros(1, 9, 20, dtype=torch.uint8)
    labels[..., 10:] = 1
    top = torch.full((1, 9, 20), 5.0)
    top[..., 9:11] = -100  # what a boundary does to max logits
    found = suppress_boundaries(top, labels)
    assert torch.equal(found, torch.full_like(top, 5.0))
    top[..., 8] = -100  # a third pixel is no boundary, but in reach of its expansion: it is repaired too
    assert torch.equal(suppress_boundaries(top, labels), torch.full_like(top, 5.0))
    top[..., 5] = 7  # five from the step: beyond the reach, so it is copied inward but not changed
    found = suppress_boundaries(top, labels)
    assert bool((found[..., 5] == 7).all())
    assert bool((found[..., :5] == 5).all())


def test_one_class_has_no_boundary():
    top, labels = draw((11, 13), kind="one class")
    assert torch.equal(suppress_boundaries(top, labels), top)


def test_where_all_is_boundary_nothing_changes():
    top, labels = draw((12, 12))
    checks = torch.arange(12)[:, None].add(torch.arange(12)).remainder(2).to(torch.uint8).expand(2, -1, -1)
    assert torch.equal(suppress_boundaries(top, checks), top)


def test_a_mirrored_picture_has_mirrored_scores():
    top, labels = draw((25, 24))
    for dims in ((1,), (2,), (1, 2)):
        torch.testing.assert_close(
            sml(top.flip(dims), labels.flip(dims), MEAN, STD), sml(top, labels, MEAN, STD).flip(dims)
        )


def test_images_of_a_batch_do_not_touch():
    top, labels = draw((25, 24))
    alone = [sml(top[n : n + 1], labels[n : n + 1], MEAN, STD) for n in range(2)]
    assert torch.equal(sml(top, labels, MEAN, STD), torch.cat(alone))


def test_smoothing_keeps_a_constant_and_adds_up_in_the_middle():
    torch.testing.assert_close(smooth(torch.full((1, 20, 20), 3.0)), torch.full((1, 20, 20), 3.0))
    spike = torch.zeros(1, 61, 61)
    spike[0, 30, 30] = 1
    found = smooth(spike)
    assert float(found.sum()) == pytest.approx(1)
    assert int((found > 0).sum()) == 49
    ys, xs = found[0].nonzero().T
    assert sorted({int(y) - 30 for y in ys}) == sorted({int(x) - 30 for x in xs}) == [-18, -12, -6, 0, 6, 12, 18]


def test_without_parts_the_score_is_that_of_the_max_logit():
    logits = torch.randn(2, 5, 11, 13, generator=torch.Generator().manual_seed(3))
    top, labels = logits.max(dim=1)
    assert torch.equal(sml(top, labels, MEAN, STD, ()), max_logit(logits))


def test_the_inputs_stay_as_they_are():
    top, labels = draw((11, 13))
    copies = top.clone(), labels.clone()
    sml(top, labels, MEAN, STD)
    assert torch.equal(top, copies[0])
    assert torch.equal(labels, copies[1])


# ---------------------------------------------------------------------------------------------------------------------
# What is refused


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_other_precisions_are_refused(dtype):
    top, labels = draw((11, 13))
    for parts in (PARTS, (), PARTS[2:]):
        with pytest.raises(ValueError, match="float32"):
            sml(top.to(dtype), labels, MEAN, STD, parts)
    with pytest.raises(ValueError, match="float32"):
        smooth(top.to(dtype))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"top": torch.zeros(11, 13)}, "N, H, W"),
        ({"top": torch.zeros(2, 0, 13), "labels": torch.zeros(2, 0, 13, dtype=torch.uint8)}, "N, H, W"),
        ({"labels": torch.zeros(2, 11, 12, dtype=torch.uint8)}, "differ in shape"),
        ({"labels": torch.zeros(2, 11, 13)}, "integers"),
        ({"labels": torch.full((2, 11, 13), 5)}, "label 5 is outside"),
        ({"labels": torch.full((2, 11, 13), -1)}, "label -1 is outside"),
        ({"mean": MEAN[:4]}, "must both be"),
        ({"std": -STD}, "not negative"),
        ({"mean": MEAN * math.nan}, "finite"),
        ({"parts": ("smoothen",)}, "parts of sml"),
    ],
)
def test_what_does_not_fit_is_refused(change, message):
    top, labels = draw((11, 13))
    with pytest.raises(ValueError, match=message):
        sml(**{"top": top, "labels": labels, "mean": MEAN, "std": STD, **change})
