"""The ranking figures of anomaly scores against scikit-learn and hand-worked cases."""

import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score, roc_auc_score, roc_curve

from metrics import key_scores, order_keys, ranking_figures
from tests.metrics.score_kinds import KINDS, draw


def nearest_recall_fpr(scores, positives):
    """FPR where the recall is nearest to 0.95, walking from the first complete recall towards higher thresholds."""
    fpr, tpr, _ = roc_curve(positives, scores, drop_intermediate=False)
    fpr, tpr = fpr[1:], tpr[1:]  # scikit-learn adds a threshold above all scores
    complete = int(np.argmax(tpr == 1))
    walk = range(complete, -1, -1)
    return min(walk, key=lambda i: (abs(tpr[i] - 0.95), -i)), fpr, tpr


@pytest.mark.parametrize("kind", KINDS)
def test_the_figures_are_scikit_learns(kind):
    generator = torch.Generator().manual_seed(KINDS.index(kind) + 100)
    for size in (2, 3, 12, 100, 2000):
        scores, positives = draw(kind, size, generator)
        for truth in (positives, torch.arange(size) == 0):
            figures = ranking_figures(scores.view(1, -1), truth.view(1, -1), nearest=True)
            assert figures["aupr"] == pytest.approx(average_precision_score(truth, scores), abs=1e-9)
            assert figures["auroc"] == pytest.approx(roc_auc_score(truth, scores), abs=1e-9)
            nearest, fpr, tpr = nearest_recall_fpr(scores, truth)
            assert figures["fpr95"] == pytest.approx(fpr[nearest], abs=1e-9)
            pooled = ranking_figures(scores, truth)
            assert pooled == {**figures, "fpr95": fpr[tpr >= 0.95][0]}


def test_per_image_fpr95_takes_the_nearest_recall_not_the_first_beyond():
    scores = torch.arange(13.0).flip(0)  # 10 positives, a negative, a positive, a negative
    positives = torch.tensor([True] * 10 + [False, True, False])
    # recalls 10/11 = 0.909 and 1: 10/11 is nearer to 0.95 (0.041 against 0.05); both thresholds there, the lower counts
    assert ranking_figures(scores, positives, nearest=True)["fpr95"] == 0.5
    assert ranking_figures(scores, positives)["fpr95"] == 0.5
    positives = torch.tensor([True] * 10 + [False, False, True])
    assert ranking_figures(scores, positives, nearest=True)["fpr95"] == 1.0
    positives = torch.tensor([True] * 12 + [False])
    assert ranking_figures(scores, positives, nearest=True)["fpr95"] == 0.0


def test_pooled_fpr95_is_that_of_the_first_threshold_reaching_it():
    scores = torch.arange(40.0).flip(0)  # 19 of 20 positives first, then all negatives, then the last positive
    positives = (torch.arange(40) < 19) | (torch.arange(40) == 39)
    assert ranking_figures(scores, positives)["fpr95"] == 0


def test_without_both_kinds_there_is_no_figure():
    for kind in (False, True):
        assert ranking_figures(torch.tensor([1.0, 2.0]), torch.full((2,), kind)) is None
    assert ranking_figures(torch.zeros(0), torch.zeros(0, dtype=torch.bool)) is None


@pytest.mark.parametrize("kind", KINDS)
def test_keys_are_in_the_order_of_the_scores_and_give_them_back(kind):
    scores, _ = draw(kind, 1000, torch.Generator().manual_seed(0))
    keys = order_keys(scores)
    assert keys.dtype == torch.int32
    assert torch.equal(keys[:, None] < keys, scores[:, None] < scores)
    assert np.array_equal(key_scores(keys.numpy()), scores.numpy())
