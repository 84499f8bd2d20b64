"""Statistics of scores, and the scores of features, against numpy, scikit-learn and properties."""

import numpy as np
import pytest
import torch
from sklearn.covariance import EmpiricalCovariance, ShrunkCovariance
from sklearn.metrics.pairwise import cosine_similarity

from anomaly.features import SHRINKAGE, ScoreStatistics, mahalanobis, similarity
from anomaly.sml import sml

CLASSES = 4
NAMES = ["similarity", "mahalanobis"]


def logits_batch(seed, images=2, size=(6, 7), classes=CLASSES, offset=5.0):
    generator = torch.Generator().manual_seed(seed)
    logits = offset + 3 * torch.randn(images, classes, *size, generator=generator)
    return logits.max(dim=1)


def features_batch(seed, images=3, features=5, cells=(4, 6), size=(16, 24), offset=2.0):
    """Features with a mean and a skew of their own, and targets with void, class 2 missing."""
    generator = torch.Generator().manual_seed(seed)
    targets = torch.tensor([0, 1, 3, 255])[torch.randint(0, 4, (images, *size), generator=generator)].to(torch.uint8)
    mix = torch.randn(features, features, generator=torch.Generator().manual_seed(99))
    noise = torch.randn(images, *cells, features, generator=generator) @ mix
    shift = cell_targets(targets, cells)[..., None] * torch.linspace(-1, 1, features) / 4
    return (offset + noise + shift).movedim(-1, 1), targets


def cell_targets(targets, cells):
    """The target at each cell's centre, by floats and one at a time."""
    rows, columns = targets.shape[1:]
    at = [
        [int((i + 0.5) * rows / cells[0]) * columns + int((j + 0.5) * columns / cells[1]) for j in range(cells[1])]
        for i in range(cells[0])
    ]
    return targets.flatten(1)[:, torch.tensor(at)]


def rows_by_class(batches):
    """[(features, targets)] -> the labelled cells' features (n, D) float64 and classes (n,), as numpy."""
    values = np.concatenate([f.movedim(1, -1).reshape(-1, f.shape[1]).double().numpy() for f, _ in batches])
    labels = np.concatenate([cell_targets(t, f.shape[2:]).flatten().numpy() for f, t in batches])
    return values[labels != 255], labels[labels != 255]


def statistics_of(name, batches):
    statistics = ScoreStatistics(CLASSES)
    for features, targets in batches:
        statistics.add_features(name, features, targets)
    return statistics


def assert_same(found, expected, **tolerance):
    assert found.keys() == expected.keys()
    for name, parts in found.items():
        assert parts.keys() == expected[name].keys()
        for part, values in parts.items():
            torch.testing.assert_close(values, expected[name][part], **tolerance)


# ---------------------------------------------------------------------------------------------------------------------
# Max logits


def test_max_logits_are_counted_by_predicted_class():
    batches = [logits_batch(seed) for seed in range(3)]
    statistics = ScoreStatistics(CLASSES + 1)
    for top, labels in batches:
        statistics.add_logits(top, labels)
    found = statistics.finish()["max_logit"]
    top = np.concatenate([t.flatten().double().numpy() for t, _ in batches])
    labels = np.concatenate([c.flatten().numpy() for _, c in batches])
    for c in range(CLASSES):
        assert int(found["count"][c]) == (labels == c).sum()
        assert float(found["mean"][c]) == pytest.approx(top[labels == c].mean(), rel=1e-6)
        assert float(found["std"][c]) == pytest.approx(top[labels == c].std(), rel=1e-6)
    assert [float(found[part][CLASSES]) for part in ("count", "mean", "std")] == [0, 0, 0]  # never predicted


def test_a_large_offset_does_not_drown_the_spread():
    small, large = ScoreStatistics(CLASSES), ScoreStatistics(CLASSES)
    for seed in range(5):
        top, labels = logits_batch(seed)
        top = (top * 1024).round() / 1024  # so that adding 2**12 is exact
        small.add_logits(top, labels)
        large.add_logits(top + 4096, labels)
    torch.testing.assert_close(small.finish()["max_logit"]["std"], large.finish()["max_logit"]["std"])


def test_what_was_counted_is_what_sml_takes():
    top, labels = logits_batch(1, size=(40, 40))
    statistics = ScoreStatistics(CLASSES)
    statistics.add_logits(top, labels)
    found = statistics.finish()["max_logit"]
    scores = sml(top, labels, found["mean"], found["std"], ("standardise",))
    for c in range(CLASSES):
        assert float(scores[labels == c].std(correction=0)) == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"top": torch.zeros(2, 6, 7, dtype=torch.bfloat16)}, "float32"),
        ({"top": torch.zeros(2, 6, 7, dtype=torch.float64)}, "float32"),
        ({"top": torch.zeros(2, 6, 6)}, "shape"),
        ({"top": torch.full((2, 6, 7), torch.inf)}, "not finite"),
        ({"labels": torch.zeros(2, 6, 7)}, "integers"),
        ({"labels": torch.full((2, 6, 7), CLASSES)}, "label 4 is outside"),
        ({"labels": torch.full((2, 6, 7), -1)}, "label -1 is outside"),
        ({"targets": torch.full((2, 6, 7), CLASSES, dtype=torch.uint8)}, "anomaly pixels must never enter"),
    ],
)
def test_max_logits_that_do_not_fit_are_refused_and_not_counted(change, message):
    statistics = ScoreStatistics(CLASSES)
    top, labels = logits_batch(0)
    statistics.add_logits(top, labels)
    before = statistics.finish()
    with pytest.raises(ValueError, match=message):
        statistics.add_logits(**{"top": top, "labels": labels, **change})
    assert_same(statistics.finish(), before, rtol=0, atol=0)


# ---------------------------------------------------------------------------------------------------------------------
# Features


@pytest.mark.parametrize("name", NAMES)
def test_features_are_counted_by_true_class_at_the_cells_centre(name):
    batches = [features_batch(seed) for seed in range(3)]
    found = statistics_of(name, batches).finish()[name]
    values, labels = rows_by_class(batches)
    for c in range(CLASSES):
        mine = values[labels == c]
        assert int(found["count"][c]) == len(mine)
        expected = mine.mean(0) if len(mine) else np.zeros(5)
        np.testing.assert_allclose(found["means"][c].numpy(), expected, rtol=1e-5, atol=1e-6)
    assert int(found["count"][2]) == 0
    assert found["means"].dtype == torch.float32


def test_the_precision_is_scikit_learns_of_the_within_class_covariance():
    batches = [features_batch(seed) for seed in range(3)]
    found = statistics_of("mahalanobis", batches).finish()["mahalanobis"]
    values, labels = rows_by_class(batches)
    within = np.concatenate([values[labels == c] - values[labels == c].mean(0) for c in (0, 1, 3)])
    covariance = EmpiricalCovariance(assume_centered=True).fit(within).covariance_
    shrunk = covariance + SHRINKAGE * np.trace(covariance) / 5 * np.eye(5)
    np.testing.assert_allclose(found["precision"].double().numpy(), np.linalg.inv(shrunk), rtol=1e-4, atol=1e-5)
    # scikit-learn's own shrinkage, (1 - s) S + s trace / D I, is ours times 1 - s where s = SHRINKAGE / (1 + SHRINKAGE)
    other = ShrunkCovariance(shrinkage=SHRINKAGE / (1 + SHRINKAGE), assume_centered=True).fit(within)
    expected = other.precision_ / (1 + SHRINKAGE)
    np.testing.assert_allclose(found["precision"].double().numpy(), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("size", "cells"), [((7, 9), (3, 4)), ((720, 1280), (45, 80)), ((5, 5), (5, 5)), ((3, 3), (6, 7))]
)
def test_the_target_is_read_at_the_centre_of_each_cell(size, cells):
    target = (torch.arange(size[0])[:, None] * 3 + torch.arange(size[1])) % CLASSES
    features = torch.ones(1, 1, *cells)
    statistics = ScoreStatistics(CLASSES)
    statistics.add_features("similarity", features, [target.to(torch.uint8)])
    expected = torch.bincount(cell_targets(target[None], cells).flatten(), minlength=CLASSES)
    assert torch.equal(statistics.finish()["similarity"]["count"], expected)


def test_targets_of_several_sizes_come_as_a_list():
    features, targets = features_batch(0)
    larger = [
        target.repeat_interleave(n, 0).repeat_interleave(n, 1) for n, target in zip((1, 3, 5), targets, strict=True)
    ]
    listed = statistics_of("similarity", [(features, larger)]).finish()
    assert_same(listed, statistics_of("similarity", [(features, targets)]).finish())


def test_bfloat16_features_are_cast():
    features, targets = features_batch(0)
    rounded = features.bfloat16()
    for name, score in (("similarity", similarity), ("mahalanobis", mahalanobis)):
        found = statistics_of(name, [(rounded, targets)]).finish()
        assert_same(found, statistics_of(name, [(rounded.float(), targets)]).finish(), rtol=0, atol=0)
        scores = score(rounded, found[name])
        assert scores.dtype == torch.float32
        assert torch.equal(scores, score(rounded.float(), found[name]))


# ---------------------------------------------------------------------------------------------------------------------
# Shards and order


def counted(seeds):
    statistics = ScoreStatistics(CLASSES)
    for seed in seeds:
        statistics.add_logits(*logits_batch(seed, images=1 + seed % 3))
        for name, offset in (("similarity", 0.0), ("mahalanobis", 50.0)):
            statistics.add_features(name, *features_batch(seed, images=1 + seed % 2, offset=offset))
    return statistics


def assert_equal_states(found, expected):
    assert_same(found.state(), expected.state(), rtol=1e-10, atol=1e-10)


def test_shards_merge_to_the_whole_in_any_order():
    whole = counted(range(7))
    for shards in (([0, 3, 6], [1, 4], [2, 5]), ([6], [5, 4, 3, 2, 1], [0]), (range(7), [], [])):
        parts = [counted(seeds) for seeds in shards]
        for order in (parts, parts[::-1]):
            merged = ScoreStatistics(CLASSES)
            for part in order:
                merged.merge(part)
            assert_equal_states(merged, whole)


def test_batches_may_come_in_any_order_and_cut():
    assert_equal_states(counted([6, 2, 4, 0, 5, 1, 3]), counted(range(7)))
    features, targets = features_batch(0)
    one_by_one = [(features[n : n + 1], targets[n : n + 1]) for n in range(3)]
    assert_equal_states(statistics_of("mahalanobis", one_by_one), statistics_of("mahalanobis", [(features, targets)]))


def test_merging_leaves_the_other_as_it_was():
    one, two = counted([0]), counted([1])
    before = {name: {part: values.clone() for part, values in parts.items()} for name, parts in two.state().items()}
    fresh = ScoreStatistics(CLASSES)
    fresh.merge(two)
    fresh.merge(one)
    one.merge(two)
    assert_same(two.state(), before, rtol=0, atol=0)


def test_a_shard_travels_as_plain_tensors(tmp_path):
    torch.save(counted([0, 1]).state(), tmp_path / "shard")
    state = torch.load(tmp_path / "shard", weights_only=True)
    comparable_sets = ScoreStatistics.from_state(CLASSES, state)
    comparable_sets.merge(counted([2]))
    assert_equal_states(comparable_sets, counted([0, 1, 2]))


def test_other_classes_do_not_merge():
    with pytest.raises(ValueError, match="classes"):
        ScoreStatistics(3).merge(ScoreStatistics(4))


def test_what_was_never_added_is_left_out():
    assert ScoreStatistics(3).finish() == {}
    assert set(statistics_of("similarity", [features_batch(0)]).finish()) == {"similarity"}


# ---------------------------------------------------------------------------------------------------------------------
# What is refused


@pytest.mark.parametrize("name", NAMES)
def test_one_anomaly_pixel_is_an_error_and_nothing_is_counted(name):
    features, targets = features_batch(0)
    statistics = statistics_of(name, [(features, targets)])
    before = statistics.finish()
    for place in ((2, 15, 23), (0, 0, 0)):  # corners: no cell's centre
        planted = targets.clone()
        planted[place] = CLASSES
        assert CLASSES not in cell_targets(planted, (4, 6))
        with pytest.raises(ValueError, match="anomaly pixels must never enter score statistics: 1 pixels"):
            statistics.add_features(name, features, planted)
        assert_same(statistics.finish(), before, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"name": "residual"}, "counted for"),
        ({"features": torch.zeros(3, 5, 4)}, "float"),
        ({"features": torch.zeros(3, 5, 4, 6, dtype=torch.int64)}, "float"),
        ({"features": torch.full((3, 5, 4, 6), torch.nan)}, "not finite"),
        ({"features": torch.zeros(3, 6, 4, 6)}, "before there were 5"),
        ({"features": torch.zeros(2, 5, 4, 6)}, "3 targets for 2"),
        ({"targets": torch.zeros(3, 16, 24)}, "integers"),
        ({"targets": torch.zeros(3, 16, dtype=torch.uint8)}, "integers"),
        ({"targets": torch.full((3, 16, 24), 200, dtype=torch.uint8)}, "200 is neither"),
        ({"targets": torch.full((3, 16, 24), -1)}, "-1 is neither"),
    ],
)
def test_features_that_do_not_fit_are_refused_and_not_counted(change, message):
    features, targets = features_batch(0)
    statistics = statistics_of("similarity", [(features, targets)])
    before = statistics.finish()
    with pytest.raises(ValueError, match=message):
        statistics.add_features(**{"name": "similarity", "features": features, "targets": targets, **change})
    assert_same(statistics.finish(), before, rtol=0, atol=0)


@pytest.mark.parametrize(("name", "score"), [("similarity", similarity), ("mahalanobis", mahalanobis)])
def test_scores_refuse_what_does_not_fit(name, score):
    features, targets = features_batch(0)
    found = statistics_of(name, [(features, targets)]).finish()[name]
    with pytest.raises(ValueError, match="5"):
        score(torch.zeros(1, 6, 2, 2), found)
    with pytest.raises(ValueError, match="float"):
        score(torch.zeros(5, 2, 2), found)
    nothing = {**found, "count": torch.zeros_like(found["count"])}
    with pytest.raises(ValueError, match="no class"):
        score(features, nothing)
    assert statistics_of(name, [(features, torch.full_like(targets, 255))]).finish() == {}


# ---------------------------------------------------------------------------------------------------------------------
# Scores


def test_similarity_is_one_minus_the_largest_cosine_to_a_seen_class():
    batches = [features_batch(seed) for seed in range(3)]
    found = statistics_of("similarity", batches).finish()["similarity"]
    features, _ = features_batch(7, cells=(3, 5))
    values = features.movedim(1, -1).reshape(-1, 5).numpy()
    expected = 1 - cosine_similarity(values, found["means"][[0, 1, 3]].numpy()).max(axis=1)
    scores = similarity(features, found)
    assert scores.shape == (3, 3, 5)
    assert scores.dtype == torch.float32
    np.testing.assert_allclose(scores.flatten().numpy(), expected, atol=1e-6)


def test_mahalanobis_is_the_smallest_form_over_the_seen_classes():
    batches = [features_batch(seed) for seed in range(3)]
    found = statistics_of("mahalanobis", batches).finish()["mahalanobis"]
    features, _ = features_batch(7, cells=(3, 5))
    scores = mahalanobis(features, found)
    assert scores.shape == (3, 3, 5)
    assert scores.dtype == torch.float32
    precision, means = found["precision"].double().numpy(), found["means"].double().numpy()
    for place in np.ndindex(3, 3, 5):
        x = features[place[0], :, place[1], place[2]].double().numpy()
        expected = min((x - means[c]) @ precision @ (x - means[c]) for c in (0, 1, 3))
        assert float(scores[place]) == pytest.approx(expected, rel=1e-4)


def test_mahalanobis_is_scikit_learns_with_one_class():
    features, targets = features_batch(0, images=2)
    statistics = ScoreStatistics(1)
    statistics.add_features("mahalanobis", features, torch.zeros_like(targets))
    values = features.movedim(1, -1).reshape(-1, 5).double().numpy()
    oracle = ShrunkCovariance(shrinkage=SHRINKAGE / (1 + SHRINKAGE)).fit(values)
    scores = mahalanobis(features, statistics.finish()["mahalanobis"]).flatten()
    np.testing.assert_allclose(scores.numpy(), oracle.mahalanobis(values) / (1 + SHRINKAGE), rtol=1e-4)


def test_mahalanobis_does_not_care_for_a_far_origin_or_features_of_unlike_size():
    features, targets = features_batch(0, images=6, cells=(16, 24))
    found = statistics_of("mahalanobis", [(features, targets)]).finish()["mahalanobis"]
    near = mahalanobis(features, found)
    moved = features + 1000
    found = statistics_of("mahalanobis", [(moved, targets)]).finish()["mahalanobis"]
    torch.testing.assert_close(mahalanobis(moved, found), near, rtol=1e-2, atol=1e-2)
    scaled = features * 1e-8
    found = statistics_of("mahalanobis", [(scaled, targets)]).finish()["mahalanobis"]
    torch.testing.assert_close(mahalanobis(scaled, found), near, rtol=1e-3, atol=1e-3)


def test_many_features_that_hang_together_have_a_precision():
    """Fewer cells than features, all nearly one direction: without shrinkage there is no inverse."""
    generator = torch.Generator().manual_seed(0)
    direction = torch.randn(1, 300, 1, 1, generator=generator)
    features = direction * torch.randn(2, 1, 4, 6, generator=generator)
    features += 1e-3 * torch.randn(features.shape, generator=generator)
    targets = torch.zeros(2, 4, 6, dtype=torch.uint8)
    found = statistics_of("mahalanobis", [(features, targets)]).finish()["mahalanobis"]
    scores = mahalanobis(features, found)
    apart = (features - found["means"][0].view(1, -1, 1, 1)).movedim(1, -1).double()
    expected = torch.einsum("nhwd,de,nhwe->nhw", apart, found["precision"].double(), apart)
    torch.testing.assert_close(scores.double(), expected, rtol=2e-3, atol=1e-4)
    off = features + torch.randn(features.shape, generator=generator)
    assert float(mahalanobis(off, found).min()) > 10 * float(scores.max())


def test_features_that_never_vary_are_measured_by_plain_distance():
    features, targets = torch.ones(1, 3, 2, 2), torch.zeros(1, 2, 2, dtype=torch.uint8)
    found = statistics_of("mahalanobis", [(features, targets)]).finish()["mahalanobis"]
    assert torch.equal(found["precision"], torch.eye(3))
    torch.testing.assert_close(mahalanobis(features + 2, found), torch.full((1, 2, 2), 12.0))


def test_a_cell_at_a_class_mean_is_no_anomaly_and_a_far_one_is():
    batches = [features_batch(seed) for seed in range(3)]
    for name, score in (("similarity", similarity), ("mahalanobis", mahalanobis)):
        found = statistics_of(name, batches).finish()[name]
        means = found["means"][[0, 1, 3]].T.reshape(1, 5, 1, 3)
        assert float(score(means, found).max()) < 1e-5
        assert float(score(-5 * means, found).min()) > 1


def test_similarity_sees_the_direction_only_at_any_length():
    features, targets = features_batch(0)
    found = statistics_of("similarity", [(features, targets)]).finish()["similarity"]
    expected = similarity(features, found)
    for factor in (2.0**-120, 2.0**100):
        torch.testing.assert_close(similarity(features * factor, found), expected, rtol=1e-4, atol=1e-7)


def test_features_of_length_0_score_1():
    features, targets = features_batch(0)
    found = statistics_of("similarity", [(features, targets)]).finish()["similarity"]
    features[0, :, 1, 2] = 0
    scores = similarity(features, found)
    assert float(scores[0, 1, 2]) == 1
    assert bool(torch.isfinite(scores).all())


def test_a_class_whose_mean_is_0_has_no_direction():
    found = {"means": torch.tensor([[0.0, 0], [1, 0]]), "count": torch.tensor([3, 3])}
    assert float(similarity(torch.tensor([-1.0, 0]).view(1, 2, 1, 1), found)) == pytest.approx(2)
    with pytest.raises(ValueError, match="direction"):
        similarity(torch.ones(1, 2, 1, 1), {"means": torch.zeros(2, 2), "count": torch.tensor([3, 3])})


def test_close_directions_keep_their_order():
    angles = torch.logspace(-6, -3, 60, dtype=torch.float64)
    features = torch.stack([torch.ones(60), angles.float()]).view(1, 2, 1, 60)
    found = {"means": torch.tensor([[1.0, 0]]), "count": torch.tensor([1])}
    scores = similarity(features, found).flatten()
    assert bool((scores.diff() > 0).all())
    torch.testing.assert_close(scores.double(), 1 - angles.atan().cos(), rtol=1e-3, atol=1e-15)
    assert (1 - torch.nn.functional.normalize(features[0, :, 0], dim=0)[0]).unique().numel() < 20  # by cosines: ties


@pytest.mark.parametrize("score", [similarity, mahalanobis])
def test_classes_may_be_numbered_otherwise(score):
    features, targets = features_batch(0)
    name = score.__name__
    found = statistics_of(name, [(features, targets)]).finish()[name]
    order = torch.tensor([3, 2, 0, 1])
    renumbered = {**found, "means": found["means"][order], "count": found["count"][order]}
    torch.testing.assert_close(score(features, renumbered), score(features, found))
