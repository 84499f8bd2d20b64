"""Component metrics against flood fill, scipy, sets of pixels and hand-worked cases."""

import json
from fractions import Fraction

import numpy as np
import pytest
import torch
from scipy import ndimage

from anomaly.components import THRESHOLDS, Components, ComponentScores, component_counts, label_components


def mask(*rows):
    """(H, W) bool: True where the drawing has no dot."""
    return np.array([[c != "." for c in row] for row in rows])


def rectangle(top, left, height, width, size=(40, 60)):
    inside = np.zeros(size, dtype=bool)
    inside[top : top + height, left : left + width] = True
    return inside


def flood_fill(pixels):
    """Components of a set of (y, x), each a set, in the reading order of their first pixels."""
    left, found = set(pixels), []
    for start in sorted(pixels):
        if start not in left:
            continue
        left.remove(start)
        component, waiting = {start}, [start]
        while waiting:
            y, x = waiting.pop()
            near = {(y + dy, x + dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1)} & left
            left -= near
            component |= near
            waiting += near
        found.append(component)
    return found


def pixels_of(array):
    return {(int(y), int(x)) for y, x in np.argwhere(array)}


def by_flood_fill(array):
    labels = np.zeros(array.shape, dtype=np.int32)
    components = flood_fill(pixels_of(array))
    for number, component in enumerate(components, 1):
        for place in component:
            labels[place] = number
    return labels, len(components)


def same_labels(array, reference=by_flood_fill):
    labels, count = label_components(array)
    expected, number = reference(array)
    assert labels.dtype == np.int32
    assert labels.shape == array.shape
    assert count == number
    assert np.array_equal(labels, expected)


def scipys(array):
    return ndimage.label(array, structure=np.ones((3, 3)))


# ---------------------------------------------------------------------------------------------------------------------
# Labelling


def test_labels_of_a_hand_worked_case():
    labels, count = label_components(mask("#..#.", ".#..#", ".....", "##.##", "..#.."))
    assert count == 3
    assert labels.tolist() == [[1, 0, 0, 2, 0], [0, 1, 0, 0, 2], [0, 0, 0, 0, 0], [3, 3, 0, 3, 3], [0, 0, 3, 0, 0]]


def test_the_edge_of_a_row_does_not_touch_the_next_row():
    assert label_components(mask("..#", "#.."))[1] == 2
    assert label_components(mask("..#", "...", "#.."))[1] == 2
    assert label_components(mask("##", "..", "##"))[1] == 2
    assert label_components(mask("#", "#", ".", "#"))[1] == 2


def test_labels_are_those_of_a_flood_fill():
    rng = np.random.default_rng(0)
    for density in np.linspace(0, 1, 21):
        for _ in range(12):
            same_labels(rng.random(rng.integers(1, 14, 2)) < density)
        for size in ((1, 17), (17, 1), (1, 1), (2, 9), (9, 2)):
            same_labels(rng.random(size) < density)


@pytest.mark.parametrize("size", [(1, 1), (5, 7), (0, 5), (5, 0), (0, 0)])
def test_empty_and_full_masks(size):
    same_labels(np.zeros(size, dtype=bool))
    same_labels(np.ones(size, dtype=bool))
    assert label_components(np.ones(size, dtype=bool))[1] == (1 if np.prod(size) else 0)


def spiral(side):
    """A path one pixel wide that winds to the middle, with a pixel between its turns."""
    path = np.zeros((side, side), dtype=bool)
    y, x, dy, dx = 0, 0, 0, 1
    path[0, 0] = True
    for steps in [side - 1, *(n for m in range(side - 1, 0, -2) for n in (m, m))]:
        for _ in range(steps):
            y, x = y + dy, x + dx
            path[y, x] = True
        dy, dx = dx, -dy
    return path


@pytest.mark.parametrize("turn", range(4))
def test_spirals_combs_and_serpents_hang_together(turn):
    comb, serpent = np.zeros((20, 31), dtype=bool), np.zeros((20, 31), dtype=bool)
    comb[:, ::2] = comb[-1] = True
    serpent[:, ::2] = serpent[-1, 1::4] = serpent[0, 3::4] = True
    double = np.zeros((31, 31), dtype=bool)
    double[::2] = double[:, ::2] = True
    for shape in (spiral(21), spiral(24), comb, serpent, double):
        turned = np.rot90(shape, turn)
        assert label_components(turned)[1] == 1
        same_labels(turned)
        same_labels(~turned)
        framed = np.pad(np.pad(turned, 1), 1, constant_values=True)
        assert label_components(framed)[1] == 2
        same_labels(framed)


@pytest.mark.parametrize("density", [0.02, 0.2, 0.35, 0.5, 0.8])
def test_labels_are_scipys_partition_and_numbering(density):
    rng = np.random.default_rng(1)
    same_labels(rng.random((300, 400)) < density, scipys)
    field = ndimage.gaussian_filter(rng.standard_normal((300, 400)), 2)
    same_labels(field > np.quantile(field, 1 - density), scipys)


def test_labelling_takes_tensors_views_and_nothing_but_bool_maps():
    array = np.random.default_rng(2).random((11, 13)) < 0.4
    before = array.copy()
    expected = label_components(array)[0]
    assert np.array_equal(array, before)
    assert np.array_equal(label_components(torch.from_numpy(array))[0], expected)
    assert np.array_equal(label_components(np.asfortranarray(array))[0], expected)
    same_labels(array[::2, ::-1])
    for wrong in (array.astype(np.uint8), array[None], array[0], torch.zeros(3, 3)):
        with pytest.raises(ValueError, match=r"mask must be \(H, W\) bool"):
            label_components(wrong)


# ---------------------------------------------------------------------------------------------------------------------
# One image


def by_definition(alarm, target_anomaly, judged, min_prediction, min_truth):
    """siou, ppv as lists of Fractions, from sets of pixels."""
    inside = pixels_of(judged)
    predicted = [c for c in flood_fill(pixels_of(alarm) & inside) if len(c) >= min_prediction]
    true = flood_fill(pixels_of(target_anomaly) & inside)
    void = set().union(*(c for c in true if len(c) < min_truth))
    true = [c for c in true if len(c) >= min_truth]
    predicted = [c - void for c in predicted if c - void]
    siou = []
    for k in true:
        meeting = set().union(*(c for c in predicted if c & k))
        others = set().union(*(c for c in true if c is not k))
        siou.append(Fraction(len(k & meeting), len((k | meeting) - others)))
    truth = set().union(*true)
    return siou, [Fraction(len(c & truth), len(c)) for c in predicted]


def check(counts, siou, ppv):
    assert counts.siou.dtype == counts.ppv.dtype == np.float64
    assert counts.siou.tolist() == [float(Fraction(value)) for value in siou]
    assert counts.ppv.tolist() == [float(Fraction(value)) for value in ppv]


def everywhere(array):
    return np.ones_like(array)


def test_a_perfect_prediction_is_one_everywhere():
    truth = rectangle(2, 2, 20, 30) | rectangle(30, 40, 10, 10)
    counts = component_counts(truth, truth, everywhere(truth), 100, 100)
    check(counts, [1, 1], [1, 1])
    scores = ComponentScores()
    scores.update(counts)
    assert scores.figures() == {"siou": 1, "ppv": 1, "f1": 1, "components": 2, "predicted": 2}


def test_two_true_components_under_one_prediction():
    truth = mask("aa..bbb", "aa..bbb")  # 4 and 6 pixels
    alarm = everywhere(truth)  # all 14
    # of component a: 4 shared; the union is the alarm's 14 pixels without the 6 of b
    check(component_counts(alarm, truth, everywhere(truth), 1, 1), ["4/8", "6/10"], ["10/14"])


def test_one_true_component_split_by_two_predictions():
    truth = mask("........", ".aaaaaa.", ".aaaaaa.")  # 12
    alarm = mask("##......", "##....##", "##....##")  # 6, of them 2 true; 4, of them 2 true
    check(component_counts(alarm, truth, everywhere(truth), 1, 1), ["4/18"], ["2/6", "2/4"])


def test_a_missed_component_and_a_false_alarm():
    truth, alarm = rectangle(0, 0, 10, 10), rectangle(20, 20, 25, 25)
    check(component_counts(alarm, truth, everywhere(truth)), [0], [0])


def test_images_without_truth_or_prediction():
    nothing, something = np.zeros((40, 60), dtype=bool), rectangle(5, 5, 30, 30)
    judged = everywhere(nothing)
    check(component_counts(nothing, nothing, judged), [], [])
    check(component_counts(nothing, something, judged), [0], [])
    check(component_counts(something, nothing, judged), [], [0])
    check(component_counts(something, something, nothing), [], [])  # all void
    check(component_counts(nothing[:0], nothing[:0], judged[:0]), [], [])


def test_the_minimum_sizes_belong_to_what_they_let_pass():
    truth = rectangle(0, 0, 10, 10) | rectangle(20, 0, 9, 11)  # 100 and 99
    alarm = rectangle(0, 0, 20, 25) | rectangle(25, 30, 15, 30) | rectangle(25, 30, 14, 30)  # 500 and 450
    check(component_counts(alarm, truth, everywhere(truth)), ["100/500"], ["100/500"])
    check(component_counts(alarm, truth, everywhere(truth), 501, 101), [], [])
    check(component_counts(alarm, truth, everywhere(truth), 450, 99), ["100/500", 0], ["100/500", 0])


def test_a_prediction_that_is_too_small_does_not_find():
    truth = rectangle(0, 0, 20, 30)
    alarm = rectangle(0, 0, 20, 24)  # 480 of 600
    check(component_counts(alarm, truth, everywhere(truth)), [0], [])
    check(component_counts(alarm, truth, everywhere(truth), 480), ["480/600"], [1])


def test_a_small_true_component_takes_its_pixels_out_of_the_prediction():
    truth = mask("aaaa....", "aaaa..bb")  # 8, and 2: too small
    alarm = mask("..######", "..######")  # 12: 4 on a, 2 on b, 6 on neither
    check(component_counts(alarm, truth, everywhere(truth), 12, 3), ["4/14"], ["4/10"])  # its size was measured before
    check(component_counts(alarm, truth, everywhere(truth), 12, 1), ["4/14", "2/8"], ["6/12"])
    alone = mask("......##", "......##") & truth  # a prediction on b and nothing else is none
    check(component_counts(alone, truth, everywhere(truth), 1, 3), [0], [])


def test_a_small_true_component_does_not_cut_a_prediction_but_void_does():
    truth = mask("aaa...", "aaa...") | mask("....b.", "....b.")
    alarm = mask("..####", "..####")
    check(component_counts(alarm, truth, everywhere(truth), 1, 3), ["2/10"], ["2/6"])
    judged = ~mask("....v.", "....v.")
    check(component_counts(alarm, truth, judged, 1, 3), ["2/8"], ["2/4", 0])
    check(component_counts(alarm, truth, judged, 3, 3), ["2/8"], ["2/4"])  # the piece behind void has 2 pixels


def test_void_takes_out_truth_too():
    truth = mask("aaaa", "aaaa")
    judged = ~mask(".vv.", ".vv.")
    alarm = mask("#...", "#...")
    check(component_counts(alarm, truth, judged, 1, 1), [1, 0], [1])
    check(component_counts(everywhere(truth), truth, judged, 1, 3), [], [])  # both halves too small: nothing is left


def test_components_touch_at_corners():
    truth = mask("aa..", "aa..", "..aa", "..aa")
    alarm = mask("##..", "##..", "....", "....")
    check(component_counts(alarm, truth, everywhere(truth), 1, 1), ["4/8"], [1])


@pytest.mark.parametrize("smooth", [0, 0.7, 1.5])
def test_random_images_follow_the_definition(smooth):
    rng = np.random.default_rng(int(10 * smooth))
    kinds = np.zeros(4, dtype=int)
    for _ in range(400):
        size = rng.integers(1, 22, 2)
        fields = [ndimage.gaussian_filter(rng.standard_normal(size), smooth) for _ in range(3)]
        fields[1] += rng.choice([0, 0.5, 1]) * fields[0]
        shares = rng.random(), rng.random(), rng.choice([0.05, 0.2, 1])
        truth, alarm, judged = (field <= np.quantile(field, share) for field, share in zip(fields, shares, strict=True))
        sizes = rng.integers(0, 12), rng.integers(0, 7)
        siou, ppv = by_definition(alarm, truth, judged, *sizes)
        check(component_counts(alarm, truth, judged, *sizes), siou, ppv)
        kinds += len(siou), len(ppv), sum(0 < v < 1 for v in siou), sum(0 < v < 1 for v in ppv)
    assert (kinds > 100).all()


def test_counting_takes_tensors_and_refuses_what_does_not_fit():
    truth, alarm = rectangle(0, 0, 20, 30), rectangle(5, 5, 25, 25)
    arrays = alarm, truth, everywhere(truth)
    expected = component_counts(*arrays)
    found = component_counts(*(torch.from_numpy(array) for array in arrays))
    assert found.siou.tolist() == expected.siou.tolist()
    assert found.ppv.tolist() == expected.ppv.tolist()
    with pytest.raises(ValueError, match=r"judged \(39, 60\) must be of one size"):
        component_counts(alarm, truth, everywhere(truth)[1:])
    with pytest.raises(ValueError, match="target_anomaly must be .* got .* uint8"):
        component_counts(alarm, truth.astype(np.uint8), everywhere(truth))


# ---------------------------------------------------------------------------------------------------------------------
# A set of images


def scores_of(*images):
    scores = ComponentScores()
    for siou, ppv in images:
        scores.update(Components(np.array(siou, dtype=float), np.array(ppv, dtype=float)))
    return scores


def test_figures_of_a_hand_worked_case():
    figures = scores_of(([0.5, 0.0], [0.3, 1.0]), ([1.0], [])).figures()
    assert (figures["components"], figures["predicted"]) == (3, 2)
    assert figures["siou"] == 0.5
    assert figures["ppv"] == 0.65
    # found: 2 up to 0.50, then 1; false: 0 up to 0.30, then 1
    f1 = 2 * [4 / (4 + 1)] + 4 * [4 / (4 + 1 + 1)] + 5 * [2 / (2 + 2 + 1)]
    assert figures["f1"] == pytest.approx(sum(f1) / 11)


def test_a_value_on_a_threshold_is_found_and_no_false_alarm():
    assert len(THRESHOLDS) == 11
    for n, threshold in enumerate(THRESHOLDS):
        siou = Fraction(5 + n, 20)
        assert threshold == float(siou)
        for pixels in (20, 60, 260, 20 * 99991):
            value = (pixels * siou).numerator / pixels
            assert value >= threshold
            assert (pixels * siou - 1).numerator / pixels < threshold
        assert scores_of(([float(siou)], [])).figures()["f1"] == pytest.approx((n + 1) / 11)  # found up to its own
        alarms = scores_of(([1], [float(siou)])).figures()["f1"]  # false above its own
        assert alarms == pytest.approx(((n + 1) + (10 - n) * 2 / 3) / 11)


def test_what_is_undefined_is_none():
    assert scores_of().figures() == {"siou": None, "ppv": None, "f1": None, "components": 0, "predicted": 0}
    assert scores_of(([], [])).figures() == scores_of().figures()
    assert scores_of(([], [0, 0])).figures() == {"siou": None, "ppv": 0, "f1": 0, "components": 0, "predicted": 2}
    assert scores_of(([0], [])).figures() == {"siou": 0, "ppv": None, "f1": 0, "components": 1, "predicted": 0}
    json.dumps(scores_of(([0.5], [1])).figures(), allow_nan=False)


def test_a_clean_image_with_an_alarm_costs_f1():
    found, clean = ([1.0], [1.0]), ([], [0.0])
    assert scores_of(found, ([], [])).figures()["f1"] == 1
    assert scores_of(found, clean).figures()["f1"] == pytest.approx(2 / 3)


def test_shards_in_any_order_give_exactly_the_figures_of_the_whole():
    rng = np.random.default_rng(0)
    images = [(rng.random(rng.integers(0, 5)), rng.random(rng.integers(0, 4))) for _ in range(60)]
    images = [(siou, ppv if len(siou) else 0 * ppv) for siou, ppv in images]  # no truth, no true alarm
    whole = scores_of(*images)
    expected = whole.figures()
    for shards in (2, 3, 7, 60):
        order = rng.permutation(60)
        merged = ComponentScores()
        for part in np.array_split(order, shards):
            shard = scores_of(*(images[i] for i in part))
            before = shard.figures()
            merged.merge(shard)
            assert shard.figures() == before
        assert merged.figures() == expected
    for values in (expected["siou"], expected["ppv"]):
        assert 0.3 < values < 0.6
    assert whole.figures() == expected
