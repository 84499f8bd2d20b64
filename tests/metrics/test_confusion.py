"""The confusion matrix, the IoU figures and their bootstrap interval against scikit-learn, torchmetrics and by hand."""

import json

import numpy as np
import pytest
import torch
from sklearn import metrics as sklearn_metrics
from torchmetrics.classification import MulticlassJaccardIndex

import metrics
from metrics import confusion_matrix, image_counts, miou_interval, segmentation_scores


def random_labels(num_classes, size, seed, void=0.1, dtype=torch.uint8):
    """Predictions and targets that agree on about half the pixels; some void."""
    generator = torch.Generator().manual_seed(seed)
    targets = torch.randint(num_classes, size, generator=generator)
    predictions = torch.randint(num_classes, size, generator=generator)
    predictions = torch.where(torch.rand(size, generator=generator) < 0.5, targets, predictions)
    targets[torch.rand(size, generator=generator) < void] = 255
    return predictions, targets.to(dtype)


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


def test_the_interval_is_that_of_its_draws():
    counts = torch.randint(1, 50, (7, 3, 4), generator=torch.Generator().manual_seed(0))
    counts[:, 0] = counts.min(dim=1).values
    weights = torch.cat(list(metrics.bootstrap_draws(7, 230, 5)))
    assert weights.shape == (230, 7)
    assert (weights.sum(dim=1) == 7).all()
    values, _ = metrics.mean_iou((weights @ counts.double().flatten(1)).view(-1, 3, 4))
    expected = np.quantile(values.numpy(), [0.025, 0.975]).tolist()
    assert miou_interval(counts, samples=230, seed=5) == pytest.approx(expected, abs=1e-12)


def test_the_interval_leaves_out_empty_images_and_classes():
    counts = image_counts(torch.tensor([[[30, 10, 0], [20, 40, 0], [0, 0, 0]]]))
    assert miou_interval(counts) is None  # one image does not vary
    assert miou_interval(torch.zeros(0, 3, 3, dtype=torch.int64)) is None
    same = counts.repeat(5, 1, 1)
    miou = (30 / 60 + 40 / 70) / 2
    assert miou_interval(same) == pytest.approx([miou, miou])
    assert miou_interval(torch.cat([same, torch.zeros(50, 3, 3, dtype=torch.int64)])) == pytest.approx([miou, miou])
