"""Bootstrap intervals of the pooled anomaly figures, against a direct bootstrap of the scores themselves."""

import math

import numpy as np
import pytest
import torch

import metrics
from anomaly import intervals
from anomaly.intervals import FIRST_DROP, LAST_DROP, MAX_ENTRIES, SHARES, BinTable, ImageHistograms


def draw_images(count, size, generator, step=None):
    """Scores and positives of images that differ in level and in their share of positives; every fifth has none."""
    images = []
    for number in range(count):
        share = 0.3 * torch.rand(1, generator=generator) * (number % 5 > 0)
        positives = torch.rand(size, generator=generator) < share
        scores = -8 + 3 * torch.randn(size, generator=generator) + torch.randn(1, generator=generator) + 3 * positives
        images.append((scores if step is None else (scores / step).round() * step, positives))
    return images


def histograms_of(images):
    histograms = ImageHistograms()
    for index, (scores, positives) in enumerate(images):
        histograms.update(index, scores, positives)
    return histograms


def direct_figures(images, weights):
    """AUPR, AUROC, FPR95 of the pooled pixels, image i drawn weights[i] times; None where a kind is missing."""
    scores, positives = (
        np.concatenate([np.tile(image[part].numpy(), int(times)) for image, times in zip(images, weights, strict=True)])
        for part in (0, 1)
    )
    figures = metrics.ranking_figures(torch.from_numpy(scores), torch.from_numpy(positives))
    return figures and list(figures.values())


@pytest.mark.parametrize(("count", "size", "cells"), [(8, 40, 1 << 18), (2, 30, 1), (25, 120, 3000)])
def test_the_interval_is_that_of_a_direct_bootstrap_with_the_same_draws(count, size, cells, monkeypatch):
    monkeypatch.setattr(intervals, "CELLS", cells)  # few: the bins come in blocks
    images = draw_images(count, size, torch.Generator().manual_seed(count), step=1 / 32)  # each score a bin of its own
    interval = histograms_of(images).interval(samples=150, seed=4, level=0.9)
    weights = torch.cat(list(metrics.bootstrap_draws(count, 150, 4)))
    figures = [direct_figures(images, row) for row in weights.tolist()]
    figures = np.array([row for row in figures if row is not None])
    assert list(interval) == ["aupr", "auroc", "fpr95"]
    for values, ends in zip(figures.T, interval.values(), strict=True):
        assert ends == pytest.approx(np.quantile(values, [0.05, 0.95]).tolist(), abs=1e-12)


def test_samples_that_lack_a_kind_are_left_out():
    images = draw_images(6, 50, torch.Generator().manual_seed(1), step=1 / 32)
    images = [images[1]] + [(scores, torch.zeros_like(positives)) for scores, positives in images[1:]]
    weights = torch.cat(list(metrics.bootstrap_draws(6, 200, 0)))
    assert 0.2 < (weights[:, 0] == 0).double().mean() < 0.5  # the only image with positives is not drawn
    figures = np.array([direct_figures(images, row) for row in weights.tolist() if row[0]])
    interval = histograms_of(images).interval(samples=200)
    assert interval["aupr"] == pytest.approx(np.quantile(figures[:, 0], [0.025, 0.975]).tolist(), abs=1e-12)


def test_continuous_scores_in_many_bins_give_nearly_the_exact_interval():
    images = draw_images(12, 20_000, torch.Generator().manual_seed(3))
    histograms = histograms_of(images)
    table = BinTable(histograms._images)
    assert SHARES < table.column[-1] + 1 <= 2 * SHARES < histograms.entries
    weights = torch.cat(list(metrics.bootstrap_draws(12, 8, 0)))
    exact = np.array([direct_figures(images, row) for row in weights.tolist()])
    figures = table.figures(weights).T
    assert np.abs(figures - exact).max(axis=0).tolist() == pytest.approx([0, 0, 0], abs=1e-3)
    assert np.ptp(exact[:, 0]) > 0.02  # what the interval is about


def assert_same(first, second):
    assert first.drop == second.drop
    assert sorted(first._images) == sorted(second._images)
    for index, (bins, counts) in first._images.items():
        assert np.array_equal(bins, second._images[index][0])
        assert np.array_equal(counts, second._images[index][1])


@pytest.mark.parametrize("budget", [2_000_000, 6_000, 1_000])
def test_merged_parts_in_any_order_equal_the_whole(budget, monkeypatch):
    monkeypatch.setattr(intervals, "MAX_ENTRIES", budget)
    images = draw_images(9, 3000, torch.Generator().manual_seed(6))
    whole = histograms_of(images)
    assert (whole.drop > FIRST_DROP) == (budget < 1_000_000)
    parts = [ImageHistograms() for _ in range(3)]
    for index in (8, 0, 3, 7, 1, 2, 6, 5, 4):
        scores, positives = (part.view(60, 50) for part in images[index])
        for strip in (slice(40, 60), slice(0, 40)):  # an image may come in parts
            parts[index % 3].update(index, scores[strip], positives[strip])
    before = parts[2].drop, parts[2].entries
    for order in ((0, 1, 2), (2, 0, 1)):
        merged = ImageHistograms()
        for number in order:
            merged.merge(parts[number])
        assert_same(merged, whole)
        assert merged.interval(samples=50) == whole.interval(samples=50)
    assert (parts[2].drop, parts[2].entries) == before


def test_memory_stays_within_the_budget_at_the_smallest_drop_that_does(monkeypatch):
    monkeypatch.setattr(intervals, "MAX_ENTRIES", 5_000)
    images = draw_images(10, 4000, torch.Generator().manual_seed(7))
    histograms = histograms_of(images)
    keys = [metrics.order_keys(scores).numpy() for scores, _ in images]
    entries = {drop: sum(len(np.unique(part >> drop)) for part in keys) for drop in range(12, 32)}
    assert histograms.drop == min(drop for drop, number in entries.items() if number <= 5_000)
    assert histograms.entries == entries[histograms.drop]
    stored = sum(bins.nbytes + counts.nbytes for bins, counts in histograms._images.values())
    assert stored == 12 * histograms.entries
    pixels = np.sum([counts.sum(axis=1) for _, counts in histograms._images.values()], axis=0)
    assert pixels.tolist() == [int(sum((~p).sum() for _, p in images)), int(sum(p.sum() for _, p in images))]


def test_the_budget_in_bytes():
    assert MAX_ENTRIES * 12 <= 24e6


def test_more_images_than_the_budget_has_entries_end_at_the_sign(monkeypatch):
    monkeypatch.setattr(intervals, "MAX_ENTRIES", 3)
    histograms = histograms_of([(torch.tensor([-1.0, 2.0, 3.0]), torch.tensor([False, True, False]))] * 4)
    assert (histograms.drop, histograms.entries) == (LAST_DROP, 8)
    assert histograms.interval(samples=20)["auroc"] == [0.75, 0.75]


def test_there_is_no_interval_without_two_images_or_one_kind():
    scores, mixed = torch.tensor([1.0, 2.0, 3.0]), torch.tensor([False, True, False])
    assert ImageHistograms().interval() is None
    assert histograms_of([(scores, mixed)]).interval() is None
    assert histograms_of([(scores, mixed), (scores[:0], mixed[:0])]).interval() is None  # nothing to draw in it
    for kind in (torch.zeros(3, dtype=torch.bool), torch.ones(3, dtype=torch.bool)):
        assert histograms_of([(scores, kind)] * 3).interval() is None
    assert histograms_of([(scores, mixed), (scores, ~mixed)]).interval(samples=50) is not None


def test_the_seed_decides():
    histograms = histograms_of(draw_images(10, 200, torch.Generator().manual_seed(2)))
    assert histograms.interval(samples=120, seed=1) == histograms.interval(samples=120, seed=1)
    assert histograms.interval(samples=120, seed=1) != histograms.interval(samples=120, seed=2)
    narrow, wide = (histograms.interval(samples=120, level=level)["aupr"] for level in (0.5, 0.99))
    assert wide[0] < narrow[0] < narrow[1] < wide[1]


def test_wrong_scores_are_refused_whole():
    histograms, positives = ImageHistograms(), torch.zeros(4, dtype=torch.bool)
    for scores in (torch.zeros(4, dtype=torch.float64), torch.tensor([0.0, math.nan, 0.0, 0.0]), torch.zeros(3)):
        with pytest.raises(ValueError):
            histograms.update(0, scores, positives)
    assert histograms.entries == 0
