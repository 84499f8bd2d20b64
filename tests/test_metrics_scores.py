"""Anomaly metrics against scikit-learn, brute force and properties."""

import itertools
import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score, roc_auc_score, roc_curve

import metrics_scores
from metrics import ScoreHistogram, image_anomaly_scores

ROUNDING = 1e-12  # of float64 sums, ours and scikit-learn's


def histogram_of(scores, positives, resolution=metrics_scores.EXACT):
    histogram = ScoreHistogram()
    histogram.resolution = resolution
    histogram.update(scores, positives)
    return histogram


def draw(kind, size, generator):
    """Scores of a kind, float32, and positives that score somewhat higher."""
    positives = torch.rand(size, generator=generator) < 0.2
    normal = torch.randn(size, generator=generator) + positives
    scores = {
        "logits": -8 + 3 * normal,
        "mixed signs": normal,
        "offset": 1000 + 3 * normal,
        "narrow": 1 + torch.rand(size, generator=generator) * 2.0**-8,
        "narrow negative": -1 - torch.rand(size, generator=generator) * 2.0**-8,
        "heavy ties": (2 * normal).round() / 2,
        "bfloat16": normal.bfloat16().float(),
        "probabilities": torch.sigmoid(2 * normal - 3),
        "saturated": torch.sigmoid(20 * normal),
        "huge": normal * 1e37,
        "tiny": normal * 1e-42,
        "lognormal": torch.exp(5 * normal),
        "all equal": torch.full((size,), -3.7),
    }[kind]
    positives[0], positives[1] = True, False
    return scores, positives


KINDS = [
    "logits",
    "mixed signs",
    "offset",
    "narrow",
    "narrow negative",
    "heavy ties",
    "bfloat16",
    "probabilities",
    "saturated",
    "huge",
    "tiny",
    "lognormal",
    "all equal",
]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("resolution", [metrics_scores.EXACT, 12, 0])
def test_the_bounds_hold_against_scikit_learn(kind, resolution):
    generator = torch.Generator().manual_seed(KINDS.index(kind))
    for size in (2, 5, 30, 1000):
        scores, positives = draw(kind, size, generator)
        for truth in (positives, ~positives, torch.arange(size) == size // 2):
            histogram = histogram_of(scores, truth, resolution)
            for (value, error), reference in (
                (histogram.aupr(), average_precision_score(truth, scores)),
                (histogram.auroc(), roc_auc_score(truth, scores)),
            ):
                assert 0 <= error <= 1
                assert abs(value - reference) <= error + ROUNDING
                if resolution == metrics_scores.EXACT:  # so few scores need no bins wider than a float
                    assert error == 0


@pytest.mark.parametrize("kind", ["logits", "narrow", "probabilities", "offset"])
def test_the_bound_is_small_on_continuous_scores(kind):
    scores, positives = draw(kind, 200_000, torch.Generator().manual_seed(0))
    value, error = histogram_of(scores, positives).aupr()
    assert abs(value - average_precision_score(positives, scores)) <= error + ROUNDING
    assert error < 2e-5


def average_precision_of(groups):
    """Average precision of tied groups [(positives, negatives)], best first, in exact fractions."""
    total, tp, fp, area = sum(p for p, _ in groups), 0, 0, Fraction(0)
    for p, n in groups:
        tp, fp = tp + p, fp + n
        area += Fraction(p, total) * Fraction(tp, tp + fp) if p else 0
    return area


def arrangements(p, n):
    """Every way to line up p positives and n negatives in groups of ties."""
    if not p and not n:
        yield []
    for first in itertools.product(range(p + 1), range(n + 1)):
        if any(first):
            for rest in arrangements(p - first[0], n - first[1]):
                yield [first, *rest]


@pytest.mark.parametrize(
    ("above", "inside", "below"), [((0, 0), (3, 2), (1, 1)), ((2, 9), (3, 2), (0, 4)), ((1, 0), (1, 3), (2, 2))]
)
def test_the_bound_is_the_best_and_the_worst_order_inside_a_bin(above, inside, below):
    groups = ((above, 3.0), (inside, 2.0), (below, 1.0))
    scores = torch.tensor([s for (p, n), s in groups for _ in range(p + n)])
    positives = torch.tensor([kind for (p, n), _ in groups for kind in [True] * p + [False] * n])
    ulps = torch.arange(sum(inside)) * 2.0**-22  # different scores in one bin
    scores[scores == 2.0] += ulps
    value, error = histogram_of(scores, positives, resolution=0).aupr()
    possible = [average_precision_of([above, *order, below]) for order in arrangements(*inside)]
    assert value + error == pytest.approx(float(max(possible)), abs=1e-12)
    assert value - error <= float(min(possible)) + 1e-12
    assert value - error == pytest.approx(float(min(possible)), abs=0.01)  # an integral stands for a sum there


def test_ties_cost_nothing_and_zero_has_one_sign():
    scores = torch.tensor([0.0, -0.0, 0.0, -0.0, 1.0, -1.0])
    positives = torch.tensor([True, False, False, True, False, True])
    histogram = histogram_of(scores, positives)
    assert histogram.aupr() == (pytest.approx(average_precision_score(positives, scores)), 0)
    assert histogram.auroc() == (pytest.approx(roc_auc_score(positives, scores)), 0)
    assert len(histogram.state()["low"]) == 3
    equal = histogram_of(torch.full((1000,), 123.456), torch.arange(1000) < 10)
    assert equal.aupr() == (pytest.approx(0.01, abs=1e-15), 0)
    assert equal.auroc() == (0.5, 0)
    assert equal.fpr95() == 1


def assert_same(first, second):
    first, second = first.state(), second.state()
    assert first.keys() == second.keys()
    for name, tensor in first.items():
        assert torch.equal(tensor, second[name]), name


@pytest.mark.parametrize("kind", ["logits", "lognormal", "saturated", "heavy ties"])
def test_shards_and_batches_in_any_order_add_up_to_the_whole(kind):
    scores, positives = draw(kind, 150_000, torch.Generator().manual_seed(3))
    whole = histogram_of(scores, positives)
    if kind != "heavy ties":
        assert whole.resolution < 23  # the store had to coarsen on the way
    order = torch.randperm(len(scores), generator=torch.Generator().manual_seed(4))
    shards = [ScoreHistogram(), ScoreHistogram(), ScoreHistogram()]
    for number, part in enumerate(torch.cat([order[:500], order[500:]]).split([500, 9_500, 40_000, 100_000])):
        shards[min(number, 2)].update(scores[part].view(-1, 10), positives[part].view(-1, 10))
    few, some, many = shards
    forward, backward = ScoreHistogram(), ScoreHistogram()
    for shard in (few, some, many):
        forward.merge(shard)
    for shard in (many, some, few):
        backward.merge(ScoreHistogram.from_state(shard.state()))
    few.merge(many)
    few.merge(some)
    for histogram in (forward, backward, few):
        assert_same(histogram, whole)
    assert forward.aupr() == whole.aupr()
    assert forward.negatives == int((~positives).sum())
    assert forward.positives == int(positives.sum())


def test_merging_keeps_the_coarser_resolution():
    scores, positives = draw("narrow", 5000, torch.Generator().manual_seed(6))
    coarse = histogram_of(scores[:4000], positives[:4000], resolution=0)
    for first, second in ((coarse, histogram_of(scores[4000:], positives[4000:])), (ScoreHistogram(), coarse)):
        for merged, other in ((first, second), (second, first)):
            histogram = ScoreHistogram.from_state(merged.state())
            histogram.merge(other)
            assert histogram.resolution == 0
            value, error = histogram.aupr()
            seen = histogram.positives + histogram.negatives
            assert abs(value - average_precision_score(positives[:seen], scores[:seen])) <= error + ROUNDING
    histogram = ScoreHistogram.from_state(coarse.state())
    histogram.update(scores[4000:], positives[4000:])
    assert_same(histogram, histogram_of(scores, positives, resolution=0))


def pages_at(scores, resolution):
    """How many pages of 1024 bins the scores touch when bins are 2**-resolution wide, within their limits."""
    exponent = np.frexp(scores)[1] - 1
    kept = (resolution + exponent).clip(metrics_scores.MANTISSA_BITS, 23)
    page = np.floor(np.abs(scores).astype(np.float64) / 2.0 ** (exponent - kept + metrics_scores.PAGE_BITS))
    return len(np.unique(np.stack([np.signbit(scores), exponent, page]), axis=1).T)


@pytest.mark.parametrize("kind", ["logits", "mixed signs", "lognormal", "a little more than fits"])
def test_the_resolution_is_the_finest_that_fits(kind):
    generator = torch.Generator().manual_seed(5)
    if kind == "a little more than fits":  # exact, 1..1.25 has 2048 pages
        scores, positives = (
            1 + torch.rand(40_000, generator=generator) / 4,
            torch.rand(40_000, generator=generator) > 0.5,
        )
    else:
        scores, positives = draw(kind, 40_000, generator)
    histogram = ScoreHistogram()
    for part in scores.argsort().split(1000):  # sorted, so that the pages come a few at a time
        histogram.update(scores[part], positives[part])
    assert pages_at(scores.numpy(), histogram.resolution) <= metrics_scores.MAX_PAGES
    assert pages_at(scores.numpy(), histogram.resolution + 1) > metrics_scores.MAX_PAGES
    assert_same(histogram, histogram_of(scores, positives))


def test_memory_stays_bounded_whatever_the_scores():
    generator = torch.Generator().manual_seed(0)
    bits = torch.randint(-(2**31), 2**31, (1_000_000,), generator=generator).int()
    scores = bits.view(torch.float32)
    scores = scores[torch.isfinite(scores)]
    positives = torch.rand(len(scores), generator=generator) < 0.5
    histogram = histogram_of(scores, positives)
    stored = [value for value in vars(histogram).values() if isinstance(value, torch.Tensor)]
    assert sum(tensor.numel() * tensor.element_size() for tensor in stored) <= 64e6
    value, error = histogram.aupr()
    assert abs(value - average_precision_score(positives, scores.double())) <= error + ROUNDING


def test_billions_of_pixels_do_not_overflow():
    keys = torch.tensor([1, 2, 3, 4], dtype=torch.int32) << 23
    pixels = torch.tensor([4 * 10**9, 3 * 10**9, 2 * 10**9, 10**9])
    positives = torch.tensor([0, 10**9, 10**9, 0])
    state = {"low": keys, "high": keys, "pixels": pixels, "positives": positives}
    histogram = ScoreHistogram.from_state({**state, "resolution": torch.tensor(metrics_scores.EXACT)})
    assert histogram.aupr() == (pytest.approx((0.5 * 1 / 3) + (0.5 * 2 / 6), abs=1e-12), 0)
    above, pairs = 10**9 * 15 * 10**8 + 10**9 * 3 * 10**9, 2 * 10**9 * 8 * 10**9
    assert histogram.auroc() == (pytest.approx(1 - above / pairs, abs=1e-12), 0)
    assert histogram.fpr95() == 0.5
    one = {**state, "positives": torch.tensor([0, 0, 0, 1]), "resolution": torch.tensor(0)}
    histogram = ScoreHistogram.from_state(one)
    assert histogram.aupr() == (pytest.approx(1e-9), 0)


@pytest.mark.parametrize("kind", ["logits", "heavy ties", "all equal", "narrow"])
def test_pooled_fpr95_is_that_of_the_first_threshold_reaching_it(kind):
    generator = torch.Generator().manual_seed(1)
    for size in (2, 25, 500):
        scores, positives = draw(kind, size, generator)
        fpr, tpr, _ = roc_curve(positives, scores, drop_intermediate=False)
        assert histogram_of(scores, positives).fpr95() == fpr[tpr >= 0.95][0]
        coarse = histogram_of(scores, positives, resolution=0).fpr95()
        assert coarse >= fpr[tpr >= 0.95][0]
        assert any(coarse == pytest.approx(rate) for rate in fpr)  # a rate that a threshold has
    twenty = torch.arange(40.0).flip(0)  # 19 of 20 positives first, then all negatives, then the last positive
    positives = (torch.arange(40) < 19) | (torch.arange(40) == 39)
    assert histogram_of(twenty, positives).fpr95() == 0


def test_without_both_kinds_there_is_no_figure():
    scores = torch.tensor([1.0, 2.0])
    for histogram in (ScoreHistogram(), *(histogram_of(scores, torch.full((2,), kind)) for kind in (False, True))):
        assert histogram.aupr() == (None, None)
        assert histogram.auroc() == (None, None)
        assert histogram.fpr95() is None
    assert (histogram.negatives, histogram.positives) == (0, 2)
    for kind in (False, True):
        assert image_anomaly_scores(scores, torch.full((2,), kind)) is None
    assert image_anomaly_scores(torch.zeros(0), torch.zeros(0, dtype=torch.bool)) is None


@pytest.mark.parametrize("bad", [math.nan, -math.nan, math.inf, -math.inf])
def test_scores_that_are_not_finite_are_refused_whole(bad):
    scores, positives = torch.zeros(100_000), torch.zeros(100_000, dtype=torch.bool)
    scores[-1] = bad
    histogram = ScoreHistogram()
    for function in (histogram.update, image_anomaly_scores):
        with pytest.raises(ValueError, match="1 of 100000 scores are not finite"):
            function(scores, positives)
    assert histogram.negatives == 0


def test_wrong_types_and_shapes_are_refused():
    positives = torch.zeros(4, dtype=torch.bool)
    for function in (ScoreHistogram().update, image_anomaly_scores):
        for dtype in (torch.float64, torch.bfloat16, torch.int32):
            with pytest.raises(ValueError, match="float32"):
                function(torch.zeros(4, dtype=dtype), positives)
        with pytest.raises(ValueError, match="positives must be bool"):
            function(torch.zeros(2, 2), positives)
        with pytest.raises(ValueError, match="positives must be bool"):
            function(torch.zeros(4), positives.int())


def nearest_recall_fpr(scores, positives):
    """FPR where the recall is nearest to 0.95, walking from the first complete recall towards higher thresholds."""
    fpr, tpr, _ = roc_curve(positives, scores, drop_intermediate=False)
    fpr, tpr = fpr[1:], tpr[1:]  # scikit-learn adds a threshold above all scores
    complete = int(np.argmax(tpr == 1))
    walk = range(complete, -1, -1)
    return min(walk, key=lambda i: (abs(tpr[i] - 0.95), -i)), fpr, tpr


@pytest.mark.parametrize("kind", KINDS)
def test_per_image_figures_are_exact(kind):
    generator = torch.Generator().manual_seed(KINDS.index(kind) + 100)
    for size in (2, 3, 12, 100, 2000):
        scores, positives = draw(kind, size, generator)
        for truth in (positives, torch.arange(size) == 0):
            figures = image_anomaly_scores(scores.view(1, -1), truth.view(1, -1))
            assert figures["aupr"] == pytest.approx(average_precision_score(truth, scores), abs=1e-9)
            assert figures["auroc"] == pytest.approx(roc_auc_score(truth, scores), abs=1e-9)
            nearest, fpr, _ = nearest_recall_fpr(scores, truth)
            assert figures["fpr95"] == pytest.approx(fpr[nearest], abs=1e-9)


def test_per_image_fpr95_takes_the_nearest_recall_not_the_first_beyond():
    scores = torch.arange(13.0).flip(0)  # 10 positives, a negative, a positive, a negative
    positives = torch.tensor([True] * 10 + [False, True, False])
    # recalls 10/11 = 0.909 and 1: 10/11 is nearer to 0.95 (0.041 against 0.05); both thresholds there, the lower counts
    assert image_anomaly_scores(scores, positives)["fpr95"] == 0.5
    assert histogram_of(scores, positives).fpr95() == 0.5
    positives = torch.tensor([True] * 10 + [False, False, True])
    assert image_anomaly_scores(scores, positives)["fpr95"] == 1.0
    positives = torch.tensor([True] * 12 + [False])
    assert image_anomaly_scores(scores, positives)["fpr95"] == 0.0
