"""Exact figures of anomaly scores that can be sorted, against scikit-learn and hand-worked cases."""

import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score, roc_auc_score, roc_curve

import metrics
from tests.metrics.examples import KINDS, draw


def nearest_recall_fpr(scores, positives):
    """FPR where the recall is nearest to 0.95, walking from the first complete recall towards higher thresholds."""
    fpr, tpr, _ = roc_curve(positives, scores, drop_intermediate=False)
    fpr, tpr = fpr[1:], tpr[1:]  # scikit-learn adds a threshold above all scores
    complete = int(np.argmax(tpr == 1))
    walk = range(complete, -1, -1)
    return min(walk, key=lambda i: (abs(tpr[i] - 0.95), -i)), fpr, tpr


@pytest.mark.parametrize("kind", KINDS)
def test_figures_are_scikit_learns(kind):
    generator = torch.Generator().manual_seed(KINDS.index(kind) + 100)
    for size in (2, 3, 12, 100, 2000):
        scores, positives = draw(kind, size, generator)
        for truth in (positives, torch.arange(size) == 0):
            tp, fp = metrics.ranking_counts(scores.view(1, -1), truth.view(1, -1))
            assert metrics.average_precision(tp, fp) == pytest.approx(average_precision_score(truth, scores), abs=1e-9)
            assert metrics.roc_area(tp, fp) == pytest.approx(roc_auc_score(truth, scores), abs=1e-9)
            nearest, fpr, tpr = nearest_recall_fpr(scores, truth)
            assert metrics.fpr95(tp, fp, nearest=True) == pytest.approx(fpr[nearest], abs=1e-9)
            assert metrics.fpr95(tp, fp) == pytest.approx(fpr[tpr >= 0.95][0], abs=1e-9)
            assert metrics.image_anomaly_scores(scores, truth) == {
                "aupr": metrics.average_precision(tp, fp),
                "auroc": metrics.roc_area(tp, fp),
                "fpr95": metrics.fpr95(tp, fp, nearest=True),
            }


@pytest.mark.parametrize(
    ("positives", "nearest", "first"),
    [  # in the order of the scores, the highest first
        # recalls 10/11 = 0.909 and 1: 10/11 is nearer to 0.95; of both thresholds there the lower counts
        ([True] * 10 + [False, True, False], 0.5, 0.5),
        ([True] * 10 + [False, False, True], 1.0, 1.0),
        ([True] * 12 + [False], 0.0, 0.0),
        ([True] * 19 + [False] * 20 + [True], 1.0, 0.0),  # 0.95 itself, at the lowest and at the first threshold
        ([True] * 18 + [False] * 20 + [True] * 2, 1.0, 1.0),
    ],
)
def test_fpr95_of_hand_worked_cases(positives, nearest, first):
    scores = torch.arange(float(len(positives))).flip(0)
    counts = metrics.ranking_counts(scores, torch.tensor(positives))
    assert metrics.fpr95(*counts, nearest=True) == nearest
    assert metrics.fpr95(*counts) == first


def test_an_image_without_both_kinds_has_no_figures():
    for kind in (False, True):
        assert metrics.image_anomaly_scores(torch.tensor([1.0, 2.0]), torch.full((2,), kind)) is None
    assert metrics.image_anomaly_scores(torch.zeros(0), torch.zeros(0, dtype=torch.bool)) is None
