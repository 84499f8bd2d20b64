"""The histogram of anomaly scores against the exact figures, scikit-learn's curves, brute force and properties."""

import itertools
import math
import threading
import tracemalloc
from fractions import Fraction

import numpy as np
import pytest
import torch
from sklearn.metrics import precision_recall_curve, roc_curve

from anomaly import histogram as histogram_module
from anomaly.histogram import EXACT, MANTISSA_BITS, MAX_PAGES, PAGE_BITS, ScoreHistogram
from metrics import key_scores, order_keys, ranking_figures
from tests.metrics.score_kinds import KINDS, draw

ROUNDING = 1e-12  # of float64 sums


def histogram_of(scores, positives, resolution=EXACT):
    histogram = ScoreHistogram()
    histogram.resolution = resolution
    histogram.update(scores, positives)
    return histogram


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("resolution", [EXACT, 12, 0])
def test_the_figures_are_within_their_bounds_of_the_exact_ones(kind, resolution):
    generator = torch.Generator().manual_seed(KINDS.index(kind))
    for size in (2, 5, 30, 1000):
        scores, positives = draw(kind, size, generator)
        for truth in (positives, ~positives, torch.arange(size) == size // 2):
            histogram, exact = histogram_of(scores, truth, resolution), ranking_figures(scores, truth)
            for name, (value, error) in (("aupr", histogram.aupr()), ("auroc", histogram.auroc())):
                assert 0 <= error <= 1
                assert abs(value - exact[name]) <= error + ROUNDING
                if resolution == EXACT:  # so few scores need no bins wider than a float
                    assert error == 0
            bins = histogram.state()
            unsure = (bins["pixels"] - bins["positives"]) * (bins["low"] < bins["high"])
            above = histogram.fpr95() - exact["fpr95"]
            assert 0 <= above <= int(unsure.max()) / histogram.negatives + ROUNDING


@pytest.mark.parametrize("kind", ["logits", "narrow", "probabilities", "offset"])
def test_the_bound_is_small_on_continuous_scores(kind):
    scores, positives = draw(kind, 200_000, torch.Generator().manual_seed(0))
    value, error = histogram_of(scores, positives).aupr()
    assert abs(value - ranking_figures(scores, positives)["aupr"]) <= error + ROUNDING
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
    histogram, exact = histogram_of(scores, positives), ranking_figures(scores, positives)
    assert histogram.aupr() == (pytest.approx(exact["aupr"]), 0)
    assert histogram.auroc() == (pytest.approx(exact["auroc"]), 0)
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


@pytest.mark.parametrize("kind", ["logits", "lognormal", "heavy ties", "all equal"])
def test_two_threads_count_the_same_as_one(kind, monkeypatch):
    scores, positives = draw(kind, 300_000, torch.Generator().manual_seed(11))
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    whole = histogram_of(scores, positives)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 8)
    monkeypatch.setattr(histogram_module, "CPU_CHUNK", 20_000)  # many turns, and drops of the resolution
    for _ in range(3):
        assert_same(histogram_of(scores, positives), whole)


@pytest.mark.parametrize("kind", KINDS)
def test_counting_without_sorting_as_on_other_devices_gives_the_same(kind):
    scores, positives = draw(kind, 60_000, torch.Generator().manual_seed(12))
    histogram, keys = ScoreHistogram(), order_keys(scores)
    histogram._insert(keys, keys, torch.ones_like(keys), positives)
    assert_same(histogram, histogram_of(scores, positives))


def test_an_error_in_a_thread_is_raised(monkeypatch):
    def fail(*_, **__):
        if threading.current_thread() is not threading.main_thread():
            raise MemoryError

    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    monkeypatch.setattr(histogram_module, "CPU_CHUNK", 10)
    monkeypatch.setattr(ScoreHistogram, "_insert", fail)
    with pytest.raises(MemoryError):
        ScoreHistogram().update(torch.zeros(100), torch.zeros(100, dtype=torch.bool))


def test_counting_needs_little_memory_besides(monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    generator = torch.Generator().manual_seed(7)
    scores = torch.randint(-(2**31), 2**31, (10_000_000,), generator=generator).int().view(torch.float32)
    scores = scores.where(torch.isfinite(scores), 0.0)
    positives = torch.ones_like(scores, dtype=torch.bool)
    histogram = histogram_of(scores[:1_000_000], positives[:1_000_000])
    tracemalloc.start()  # sees numpy's memory; torch's are the bins, and what a block of scores needs
    histogram.update(scores, positives)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    stored = [value for value in vars(histogram).values() if isinstance(value, torch.Tensor)]
    assert sum(tensor.numel() * tensor.element_size() for tensor in stored) <= 34e6
    assert peak <= 24e6


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
            assert abs(value - ranking_figures(scores[:seen], positives[:seen])["aupr"]) <= error + ROUNDING
    histogram = ScoreHistogram.from_state(coarse.state())
    histogram.update(scores[4000:], positives[4000:])
    assert_same(histogram, histogram_of(scores, positives, resolution=0))


def pages_at(scores, resolution):
    """How many pages of 1024 bins the scores touch when bins are 2**-resolution wide, within their limits."""
    exponent = np.frexp(scores)[1] - 1
    kept = (resolution + exponent).clip(MANTISSA_BITS, 23)
    page = np.floor(np.abs(scores).astype(np.float64) / 2.0 ** (exponent - kept + PAGE_BITS))
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
    assert pages_at(scores.numpy(), histogram.resolution) <= MAX_PAGES
    assert pages_at(scores.numpy(), histogram.resolution + 1) > MAX_PAGES
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
    assert abs(value - ranking_figures(scores, positives)["aupr"]) <= error + ROUNDING


def test_billions_of_pixels_do_not_overflow():
    keys = torch.tensor([1, 2, 3, 4], dtype=torch.int32) << 23
    pixels = torch.tensor([4 * 10**9, 3 * 10**9, 2 * 10**9, 10**9])
    positives = torch.tensor([0, 10**9, 10**9, 0])
    state = {"low": keys, "high": keys, "pixels": pixels, "positives": positives}
    histogram = ScoreHistogram.from_state({**state, "resolution": torch.tensor(EXACT)})
    assert histogram.aupr() == (pytest.approx((0.5 * 1 / 3) + (0.5 * 2 / 6), abs=1e-12), 0)
    above, pairs = 10**9 * 15 * 10**8 + 10**9 * 3 * 10**9, 2 * 10**9 * 8 * 10**9
    assert histogram.auroc() == (pytest.approx(1 - above / pairs, abs=1e-12), 0)
    assert histogram.fpr95() == 0.5
    one = {**state, "positives": torch.tensor([0, 0, 0, 1]), "resolution": torch.tensor(0)}
    histogram = ScoreHistogram.from_state(one)
    assert histogram.aupr() == (pytest.approx(1e-9), 0)


@pytest.mark.parametrize("kind", ["logits", "heavy ties", "all equal", "narrow"])
def test_a_coarse_fpr95_is_a_rate_that_a_threshold_has(kind):
    generator = torch.Generator().manual_seed(1)
    for size in (2, 25, 500):
        scores, positives = draw(kind, size, generator)
        fpr, tpr, _ = roc_curve(positives, scores, drop_intermediate=False)
        coarse = histogram_of(scores, positives, resolution=0).fpr95()
        assert any(coarse == pytest.approx(rate) for rate in fpr[tpr >= 0.95])


def f1_scores(scores, positives):
    """F1 at every score as a threshold, from the highest down: (thresholds, f1)."""
    precision, recall, thresholds = precision_recall_curve(positives, scores)
    f1 = 2 * precision * recall / np.maximum(precision + recall, 1e-300)
    return thresholds[::-1], f1[:-1][::-1]  # scikit-learn adds a threshold above all scores


def rates_at(threshold, scores, positives):
    """False and true positive rate, and precision, of `score >= threshold`."""
    alarms = scores >= threshold
    hit = float((alarms & positives).sum())
    return (
        float((alarms & ~positives).sum() / (~positives).sum()),
        hit / float(positives.sum()),
        hit / float(alarms.sum()),
    )


FEW_KINDS = ["logits", "mixed signs", "heavy ties", "narrow", "all equal", "tiny"]


@pytest.mark.parametrize("kind", FEW_KINDS)
def test_best_f1_is_the_largest_over_all_thresholds(kind):
    generator = torch.Generator().manual_seed(2)
    for size in (2, 25, 500):
        scores, positives = draw(kind, size, generator)
        thresholds, f1 = f1_scores(scores, positives)
        best, threshold = histogram_of(scores, positives).best_f1()
        assert best == pytest.approx(f1.max(), abs=1e-12)
        assert threshold in thresholds[f1 >= f1.max() - 1e-12].tolist()
        coarse = histogram_of(scores, positives, resolution=0)
        found, threshold = coarse.best_f1()
        assert found == pytest.approx(f1[thresholds == threshold][0], abs=1e-12)  # can be had
        bins = coarse.state()
        widest = int((bins["pixels"] - bins["positives"]).max())
        assert found <= best + 1e-12
        assert best <= found + widest / int(positives.sum())


def test_of_equally_good_thresholds_the_highest_is_taken():
    scores, positives = torch.tensor([3.0, 2.0, 1.0]), torch.tensor([True, False, True])  # F1 2/3, 1/2, 4/5
    assert histogram_of(scores, positives).best_f1() == (pytest.approx(0.8), 1.0)
    scores, positives = (
        torch.tensor([4.0, 3.0, 2.0, 1.0]),
        torch.tensor([True, False, False, True]),
    )  # 2/3, 1/2, 2/5, 2/3
    assert histogram_of(scores, positives).best_f1() == (pytest.approx(2 / 3), 4.0)


@pytest.mark.parametrize("kind", FEW_KINDS)
@pytest.mark.parametrize("rate", [0.0, 0.001, 0.01, 0.25, 1.0])
def test_what_is_found_at_a_false_positive_rate(kind, rate):
    generator = torch.Generator().manual_seed(3)
    for size in (2, 25, 500):
        scores, positives = draw(kind, size, generator)
        fpr, tpr, _ = roc_curve(positives, scores, drop_intermediate=False)
        exact = histogram_of(scores, positives).found_at(rate)
        assert exact == pytest.approx(tpr[fpr <= rate].max(), abs=1e-12)
        coarse = histogram_of(scores, positives, resolution=0)
        found = coarse.found_at(rate)
        assert any(found == pytest.approx(share) for share in tpr[fpr <= rate])  # can be had within the rate
        assert exact <= found + int(coarse.state()["positives"].max()) / int(positives.sum()) + 1e-12


@pytest.mark.parametrize("kind", FEW_KINDS)
@pytest.mark.parametrize("rate", [0.0, 0.001, 0.05, 0.5, 1.0])
def test_the_threshold_at_a_rate_is_the_smallest_score_that_keeps_it(kind, rate):
    generator = torch.Generator().manual_seed(4)
    for size in (2, 25, 500):
        scores, positives = draw(kind, size, generator)
        for truth in (positives, torch.zeros_like(positives)):  # an alarm threshold is chosen without any positive
            exact = histogram_of(scores, truth).threshold_at(rate)
            candidates = [*scores.tolist(), float(np.nextafter(scores.max().numpy(), np.float32(np.inf)))]
            alarming = {score: int((scores[~truth] >= score).sum()) / int((~truth).sum()) for score in candidates}
            assert exact == min(score for score, share in alarming.items() if share <= rate)
            coarse = histogram_of(scores, truth, resolution=0)
            tried = [*key_scores(coarse.state()["low"].numpy()).tolist(), candidates[-1]]
            assert coarse.threshold_at(rate) == min(score for score in tried if alarming[score] <= rate)


def test_a_threshold_above_all_scores_where_the_highest_alarm_too_often():
    scores, normal = torch.tensor([1.0, 5.0, 5.0]), torch.zeros(3, dtype=torch.bool)
    assert histogram_of(scores, normal).threshold_at(0.5) == float(np.nextafter(np.float32(5), np.float32(6)))
    assert histogram_of(scores, normal).threshold_at(0.7) == 5.0
    assert histogram_of(-scores, normal).threshold_at(0.0) == float(np.nextafter(np.float32(-1), np.float32(0)))


@pytest.mark.parametrize("bad", [-0.1, 1.1, math.nan])
def test_a_rate_outside_its_range_is_refused(bad):
    histogram = histogram_of(*draw("logits", 10, torch.Generator().manual_seed(0)))
    for function in (histogram.found_at, histogram.threshold_at):
        with pytest.raises(ValueError, match="a rate lies in 0..1"):
            function(bad)


@pytest.mark.parametrize("kind", ["logits", "heavy ties", "all equal", "saturated"])
@pytest.mark.parametrize("resolution", [EXACT, 0])
def test_the_curves_hold_real_points_in_small_steps(kind, resolution):
    generator = torch.Generator().manual_seed(6)
    for size, points in ((2, 200), (30, 200), (5000, 200), (5000, 31), (5000, 2)):
        scores, positives = draw(kind, size, generator)
        histogram = histogram_of(scores, positives, resolution)
        curves = histogram.curves(points)
        rows = list(zip(*(curves[name] for name in ("threshold", "fpr", "tpr", "precision")), strict=True))
        assert 1 <= len(rows) <= points
        for threshold, *rates in rows:
            assert rates == pytest.approx(rates_at(threshold, scores, positives), abs=1e-6)
        assert curves["threshold"] == sorted(curves["threshold"], reverse=True)
        lowest = key_scores(histogram.state()["low"].numpy())
        assert (curves["threshold"][0], curves["threshold"][-1]) == (lowest[-1], lowest[0])
        if points > 2 and kind == "logits" and resolution > 0:  # single scores, so no step is large in itself
            for axis, kind_size in (("fpr", int((~positives).sum())), ("tpr", int(positives.sum()))):
                assert np.diff([0, *curves[axis]]).max() <= 1 / (points // 2 - 1) + 1 / kind_size + 1e-12


@pytest.mark.parametrize("kind", KINDS)
def test_the_density_is_the_clipped_histogram_of_each_kind(kind):
    scores, positives = draw(kind, 3000, torch.Generator().manual_seed(8))
    density = histogram_of(scores, positives).density(bins=20)
    edges, values = np.array(density["edges"]), scores.double().numpy()
    assert len(edges) == 21
    assert (np.diff(edges) > 0).all()
    low, high = np.quantile(values, [0.001, 0.999], method="inverted_cdf")
    if low < high:
        assert edges[[0, -1]].tolist() == [low, high]
    for name, chosen in (("normal", ~positives), ("anomaly", positives)):
        inside = values[chosen.numpy()].clip(edges[0], edges[-1])
        counts = np.array([((inside >= a) & (inside < b)).sum() for a, b in itertools.pairwise(edges)])
        counts[-1] += (inside == edges[-1]).sum()
        assert density[name] == pytest.approx((counts / counts.sum()).tolist(), abs=1e-12)


def test_the_density_of_one_kind_or_none():
    scores = torch.tensor([1.0, 2.0, 3.0])
    density = histogram_of(scores, torch.zeros(3, dtype=torch.bool)).density(2)
    assert density == {"edges": [1.0, 2.0, 3.0], "normal": pytest.approx([1 / 3, 2 / 3]), "anomaly": None}
    assert ScoreHistogram().density() is None
    equal = histogram_of(torch.full((9,), 7.0), torch.arange(9) < 3).density(3)
    assert equal == {
        "edges": pytest.approx([3.5, 5.8333333, 8.1666667, 10.5]),
        "normal": [0, 1, 0],
        "anomaly": [0, 1, 0],
    }


def test_without_both_kinds_there_is_no_figure():
    scores = torch.tensor([1.0, 2.0])
    for histogram in (ScoreHistogram(), *(histogram_of(scores, torch.full((2,), kind)) for kind in (False, True))):
        assert histogram.aupr() == (None, None)
        assert histogram.auroc() == (None, None)
        assert histogram.fpr95() is None
        assert histogram.best_f1() == (None, None)
        assert histogram.found_at(0.01) is None
        assert histogram.curves() is None
    assert (histogram.negatives, histogram.positives) == (0, 2)
    assert histogram.threshold_at(0.01) is None


@pytest.mark.parametrize("bad", [math.nan, -math.nan, math.inf, -math.inf])
def test_scores_that_are_not_finite_are_refused_whole(bad):
    scores, positives = torch.zeros(100_000), torch.zeros(100_000, dtype=torch.bool)
    scores[-1] = bad
    histogram = ScoreHistogram()
    for function in (histogram.update, ranking_figures):
        with pytest.raises(ValueError, match="1 of 100000 scores are not finite"):
            function(scores, positives)
    assert histogram.negatives == 0


def test_wrong_types_and_shapes_are_refused():
    positives = torch.zeros(4, dtype=torch.bool)
    for function in (ScoreHistogram().update, ranking_figures):
        for dtype in (torch.float64, torch.bfloat16, torch.int32):
            with pytest.raises(ValueError, match="float32"):
                function(torch.zeros(4, dtype=dtype), positives)
        with pytest.raises(ValueError, match="positives must be bool"):
            function(torch.zeros(2, 2), positives)
        with pytest.raises(ValueError, match="positives must be bool"):
            function(torch.zeros(4), positives.int())
