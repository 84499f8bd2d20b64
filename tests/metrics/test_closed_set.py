"""Closed-set metrics and the layout against scikit-learn, torchmetrics, brute force and hand-worked cases."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import ndimage
from sklearn import metrics as sklearn_metrics
from torch.nn import functional as F
from torchmetrics.classification import MulticlassCalibrationError, MulticlassJaccardIndex

import metrics
from metrics import Calibration, confusion_matrix, image_counts, miou_interval, segmentation_scores


def random_labels(num_classes, size, seed, void=0.1, dtype=torch.uint8):
    """Predictions and targets that agree on about half the pixels; some void."""
    generator = torch.Generator().manual_seed(seed)
    targets = torch.randint(num_classes, size, generator=generator)
    predictions = torch.randint(num_classes, size, generator=generator)
    predictions = torch.where(torch.rand(size, generator=generator) < 0.5, targets, predictions)
    targets[torch.rand(size, generator=generator) < void] = 255
    return predictions, targets.to(dtype)


# ---------------------------------------------------------------------------------------------------------------------
# Confusion matrix and intersection over union


@pytest.mark.parametrize("num_classes", [2, 11, 15, 16, 19, 150, 200])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64])
def test_confusion_matrix_is_scikit_learns(num_classes, dtype):
    predictions, targets = random_labels(num_classes, (2, 40, 50), num_classes, dtype=dtype)
    valid = targets < num_classes
    reference = sklearn_metrics.confusion_matrix(targets[valid], predictions[valid], labels=range(num_classes))
    for labels in (predictions, predictions.to(torch.uint8), predictions.int()):
        confusion = confusion_matrix(labels, targets, num_classes)
        assert confusion.dtype == torch.int64
        assert np.array_equal(confusion.numpy(), reference)


def test_every_value_that_is_no_class_is_dropped():
    predictions = torch.tensor([0, 1, 2, 2, 1, 0, 2])
    for void in (3, 4, 99, 254, 255):
        targets = torch.tensor([0, 1, 2, 1, void, void, 2], dtype=torch.uint8)
        assert confusion_matrix(predictions, targets, 3).tolist() == [[1, 0, 0], [0, 1, 1], [0, 0, 2]]
    for void in (-1, -100, 3, 10**6):
        targets = torch.tensor([0, 1, 2, 1, void, void, 2])
        assert confusion_matrix(predictions, targets, 3).tolist() == [[1, 0, 0], [0, 1, 1], [0, 0, 2]]
    assert confusion_matrix(torch.zeros(3, dtype=torch.uint8), torch.tensor([0, 255, 0]), 1).tolist() == [[2]]
    many = torch.arange(300)
    assert torch.equal(confusion_matrix(many, many, 300), torch.eye(300, dtype=torch.int64))
    assert int(confusion_matrix(many, many.clamp(max=255).to(torch.uint8), 300).sum()) == 300


def test_confusion_matrix_refuses_what_it_cannot_count():
    targets = torch.zeros(2, 2, dtype=torch.uint8)
    for wrong in (3, 255, -1):
        with pytest.raises(ValueError, match=f"prediction {wrong} is outside the classes 0..2"):
            confusion_matrix(torch.tensor([[0, wrong], [0, 0]]), targets, 3)
    with pytest.raises(ValueError, match="shape"):
        confusion_matrix(torch.zeros(4, dtype=torch.uint8), targets, 3)
    with pytest.raises(ValueError, match="integers"):
        confusion_matrix(torch.zeros(2, 2), targets, 3)
    with pytest.raises(ValueError, match="integers"):
        confusion_matrix(targets, targets.float(), 3)
    assert confusion_matrix(torch.zeros(0, dtype=torch.uint8), torch.zeros(0, dtype=torch.uint8), 3).sum() == 0


def test_a_hand_worked_case():
    #                                        0  1  2  3  <- predicted
    scores = segmentation_scores(torch.tensor([[3, 1, 0, 0], [2, 2, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]]))
    assert scores["iou"] == [3 / 6, 2 / 5, None, None]
    assert scores["miou"] == pytest.approx((3 / 6 + 2 / 5) / 2)
    assert scores["classes_averaged"] == 2
    assert scores["pixel_accuracy"] == 5 / 8
    assert scores["mean_accuracy"] == pytest.approx((3 / 4 + 2 / 4) / 2)
    assert scores["fwiou"] == pytest.approx(0.5 * 3 / 6 + 0.5 * 2 / 5)
    assert scores["active_classes"] == 2
    assert scores["spurious_classes"] == []


@pytest.mark.parametrize("num_classes", [2, 13])
def test_scores_are_those_of_the_reference_libraries(num_classes):
    predictions, targets = random_labels(num_classes, (3, 30, 20), num_classes)
    scores = segmentation_scores(confusion_matrix(predictions, targets, num_classes))
    for average, ours in (("none", scores["iou"]), ("macro", scores["miou"]), ("weighted", scores["fwiou"])):
        reference = MulticlassJaccardIndex(num_classes, average=average, ignore_index=255)(predictions, targets.long())
        assert ours == pytest.approx(reference.tolist(), abs=1e-6)
    valid = targets != 255
    pair = targets[valid], predictions[valid]
    assert scores["pixel_accuracy"] == pytest.approx(sklearn_metrics.accuracy_score(*pair))
    assert scores["mean_accuracy"] == pytest.approx(sklearn_metrics.balanced_accuracy_score(*pair))
    assert scores["miou"] == pytest.approx(sklearn_metrics.jaccard_score(*pair, average="macro"))


def test_an_absent_class_is_none_and_a_spurious_one_counts_zero():
    targets = torch.tensor([0, 0, 1, 1], dtype=torch.uint8)
    absent = segmentation_scores(confusion_matrix(torch.tensor([0, 0, 1, 1]), targets, 4))
    assert absent["iou"] == [1, 1, None, None]
    assert (absent["miou"], absent["classes_averaged"], absent["spurious_classes"]) == (1, 2, [])
    spurious = segmentation_scores(confusion_matrix(torch.tensor([0, 0, 1, 3]), targets, 4))
    assert spurious["iou"] == [1, 0.5, None, 0]
    assert (spurious["miou"], spurious["classes_averaged"], spurious["spurious_classes"]) == (0.5, 3, [3])
    assert spurious["mean_accuracy"] == 0.75  # over the classes in the targets
    assert spurious["active_classes"] == 2


def test_active_means_above_one_percent():
    confusion = torch.tensor([[1, 99, 0], [0, 900, 0], [0, 98, 2]])
    assert segmentation_scores(confusion)["iou"][0] == 0.01
    assert segmentation_scores(confusion)["active_classes"] == 2


def test_nothing_but_void_gives_none_everywhere():
    targets = torch.full((2, 8, 8), 255, dtype=torch.uint8)
    confusion = confusion_matrix(torch.ones_like(targets), targets, 5)
    scores = segmentation_scores(confusion)
    json.dumps(scores, allow_nan=False)
    assert scores["iou"] == [None] * 5
    assert all(scores[name] is None for name in ("miou", "pixel_accuracy", "mean_accuracy", "fwiou"))
    assert (scores["classes_averaged"], scores["active_classes"], scores["spurious_classes"]) == (0, 0, [])
    assert miou_interval(image_counts(confusion).expand(6, 3, 5)) is None


def test_image_counts_keep_what_iou_needs_and_any_sharding_adds_up_to_the_whole():
    predictions, targets = random_labels(7, (6, 16, 16), 0)
    whole = confusion_matrix(predictions, targets, 7)
    shards = torch.stack([confusion_matrix(p, t, 7) for p, t in zip(predictions, targets, strict=True)])
    assert torch.equal(shards.sum(0), whole)
    counts = image_counts(shards)
    assert counts.shape == (6, 3, 7)
    assert torch.equal(counts.sum(0), image_counts(whole))
    hit, target, predicted = image_counts(whole)
    valid = targets != 255
    for c in range(7):
        assert hit[c] == ((targets == c) & (predictions == c)).sum()
        assert target[c] == (targets == c).sum()
        assert predicted[c] == ((predictions == c) & valid).sum()


def test_the_miou_of_each_image_is_scikit_learns():
    predictions, targets = random_labels(5, (4, 9, 8), 3)
    targets[1][targets[1] == 2] = 0  # an absent class, maybe predicted
    targets[3] = 255
    counts = image_counts(torch.stack([confusion_matrix(p, t, 5) for p, t in zip(predictions, targets, strict=True)]))
    values, known = metrics.mean_iou(counts.view(2, 2, 3, 5))
    assert values.shape == known.shape == (2, 2)
    assert known.flatten().tolist() == [True, True, True, False]
    for i in range(3):
        valid = targets[i] < 5
        reference = sklearn_metrics.jaccard_score(targets[i][valid], predictions[i][valid], average="macro")
        assert float(values.flatten()[i]) == pytest.approx(reference)


def test_the_largest_confusions_of_a_hand_worked_case():
    confusion = torch.tensor([[50, 0, 10], [10, 5, 5], [0, 20, 0]])
    found = metrics.largest_confusions(confusion, count=3)
    assert [(row["target"], row["prediction"], row["pixels"]) for row in found] == [(2, 1, 20), (0, 2, 10), (1, 0, 10)]
    assert [row["share_of_target"] for row in found] == pytest.approx([1, 1 / 6, 1 / 2])
    assert [row["share_of_all"] for row in found] == pytest.approx([0.2, 0.1, 0.1])
    assert len(metrics.largest_confusions(confusion)) == 4  # pairs without a pixel are no confusion
    assert metrics.largest_confusions(torch.diag(torch.tensor([3, 0]))) == []
    assert metrics.largest_confusions(torch.zeros(2, 2, dtype=torch.int64)) == []
    assert confusion[0, 0] == 50  # the matrix given is left as it was


def test_the_largest_confusions_are_a_brute_force_sort():
    confusion = torch.from_numpy(np.random.default_rng(0).integers(0, 10**6, (13, 13)))
    pairs = [(int(confusion[t, p]), -t, -p) for t, p in np.ndindex(13, 13) if t != p]
    expected = [(-t, -p, n) for n, t, p in sorted(pairs, reverse=True)[:10]]
    assert [(r["target"], r["prediction"], r["pixels"]) for r in metrics.largest_confusions(confusion)] == expected


def test_the_interval_is_the_bootstraps():
    rng = np.random.default_rng(0)
    matrices = rng.integers(0, 50, (25, 3, 3)) + np.eye(3, dtype=int) * rng.integers(0, 200, (25, 1, 1))
    counts = image_counts(torch.from_numpy(matrices))
    low, high = miou_interval(counts, samples=4000)
    values = [
        segmentation_scores(torch.from_numpy(matrices[rng.integers(0, 25, 25)].sum(0)))["miou"] for _ in range(4000)
    ]
    assert [low, high] == pytest.approx(np.quantile(values, [0.025, 0.975]), abs=0.006)
    assert low < segmentation_scores(torch.from_numpy(matrices.sum(0)))["miou"] < high
    assert miou_interval(counts, samples=4000) == [low, high]
    assert miou_interval(counts, samples=4000, seed=1) != [low, high]
    narrow = miou_interval(counts, samples=4000, level=0.5)
    assert low < narrow[0] < narrow[1] < high


def test_the_interval_leaves_out_empty_images_and_classes():
    counts = image_counts(torch.tensor([[[30, 10, 0], [20, 40, 0], [0, 0, 0]]]))
    assert miou_interval(counts) is None  # one image does not vary
    assert miou_interval(torch.zeros(0, 3, 3, dtype=torch.int64)) is None
    same = counts.repeat(5, 1, 1)
    miou = (30 / 60 + 40 / 70) / 2
    assert miou_interval(same) == pytest.approx([miou, miou])
    assert miou_interval(torch.cat([same, torch.zeros(50, 3, 3, dtype=torch.int64)])) == pytest.approx([miou, miou])


# ---------------------------------------------------------------------------------------------------------------------
# Layout


@pytest.mark.parametrize("size", [(120, 160), (360, 480), (123, 457), (17, 900), (1, 1), (119, 161)])
def test_nearest_resizing_is_torchs_nearest_exact(size):
    target = np.random.default_rng(0).integers(0, 255, size, dtype=np.uint8)
    for wanted in (metrics.GRID, (7, 5), (240, 323)):
        reference = F.interpolate(torch.from_numpy(target)[None, None], size=wanted, mode="nearest-exact")[0, 0]
        resized = metrics.resize_nearest(target, wanted)
        assert resized.dtype == target.dtype
        assert np.array_equal(resized, reference.numpy())


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


# ---------------------------------------------------------------------------------------------------------------------
# Calibration


def test_calibration_is_torchmetrics():
    generator = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(2000, 6, generator=generator)
    targets = torch.where(torch.rand(2000, generator=generator) < 0.4, logits.argmax(1), torch.arange(2000) % 6)
    confidence, prediction = logits.softmax(1).max(1)
    calibration = Calibration()
    calibration.update(confidence, prediction == targets)
    reference = MulticlassCalibrationError(6, n_bins=15, norm="l1")(logits.softmax(1), targets)
    assert calibration.ece() == pytest.approx(float(reference), abs=1e-6)


def test_calibration_of_a_hand_worked_case():
    calibration = Calibration()
    assert calibration.ece() is None
    calibration.update(torch.zeros(0), torch.zeros(0, dtype=torch.bool))
    assert calibration.ece() is None
    calibration.update(torch.tensor([[0.5, 0.5], [1.0, 0.0]]), torch.tensor([[True, False], [True, False]]))
    assert calibration.ece() == 0
    calibration.update(torch.tensor([1.0, 1.0, 1.0]), torch.tensor([False, False, True]))
    assert calibration.ece() == pytest.approx((4 * abs(2 / 4 - 1) + 0 + 0) / 7)


def test_bins_close_on_the_right():
    edges = torch.arange(1, 16) / 15
    calibration = Calibration()
    calibration.update(edges.clamp(max=1), torch.ones(15, dtype=torch.bool))
    calibration.update(torch.tensor([0.0]), torch.tensor([False]))
    assert calibration.sums[0].tolist() == [2] + [1] * 14


def test_calibration_shards_add_up_to_the_whole_exactly():
    generator = torch.Generator().manual_seed(1)
    confidence, correct = torch.rand(10_000, generator=generator), torch.rand(10_000, generator=generator) < 0.7
    whole, merged = Calibration(), Calibration()
    whole.update(confidence.view(100, 100), correct.view(100, 100))
    for part in torch.randperm(10_000, generator=generator).split(1234):
        shard = Calibration()
        shard.update(confidence[part], correct[part])
        merged.merge(shard)
    assert torch.equal(whole.sums, merged.sums)
    assert whole.ece() == merged.ece()


def test_calibration_refuses_what_is_no_confidence():
    for bad in (1.001, -0.001, float("nan")):
        with pytest.raises(ValueError, match="confidences must lie in 0..1"):
            Calibration().update(torch.tensor([0.5, bad]), torch.tensor([True, True]))
    with pytest.raises(ValueError, match="shape"):
        Calibration().update(torch.zeros(3), torch.zeros(2, dtype=torch.bool))


# ---------------------------------------------------------------------------------------------------------------------
# Boundaries


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
    miou = map_miou(shifted, target[None], 5)
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
