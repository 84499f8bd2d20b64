"""The probes of a trained model's answers: each names its planted fault, and a healthy model beside it passes.

Most ask a network that answers from colours alone, so that it is right from the start, and a fault is one line.
"""

import copy
import json

import numpy as np
import pytest
import torch
from torch import nn

import data
import models
from datasets.catalogue import build_spec
from engine.predictor import Predictor
from probes.answers import (
    ask,
    assign,
    batches,
    class_assignment,
    collapse,
    flip_equivariance,
    flip_figures,
    label_maps,
    miou_of,
    offset_hits,
    prediction_shift,
    softmax_inside,
    take_sample,
)
from probes.preprocessing import preprocessing
from tests.folder_set import write_folder_set
from tests.probes.examples import (
    BROKEN,
    CLASSES,
    CPU,
    SIZE,
    ByColour,
    Then,
    ask_probe,
    constant,
    draw_sample,
    layout,
    predictor_of,
)


def with_targets(sample, change):
    changed = copy.copy(sample)
    changed.targets = [change(target) for target in sample.targets]
    return changed


@pytest.fixture(scope="module")
def sample():
    return draw_sample()


PROBES = {
    "softmax": softmax_inside,
    "collapse": collapse,
    "class_ids": class_assignment,
    "shift": prediction_shift,
    "flip": flip_equivariance,
}


@pytest.mark.parametrize("probe", PROBES)
def test_healthy_model_passes_and_its_finding_is_plain_json(probe, sample):
    finding = ask_probe(PROBES[probe], predictor_of(), sample)
    assert (finding.probe, finding.verdict, finding.cause) == (f"model.{probe}", "pass", None), finding.why
    json.dumps(finding.json(), allow_nan=False)


RELATIVE = ["class_ids", "shift", "flip"]


@pytest.mark.parametrize("probe", RELATIVE)
@pytest.mark.parametrize("change", BROKEN)
def test_a_model_broken_otherwise_is_not_accused(probe, change, sample):
    assert ask_probe(PROBES[probe], predictor_of(Then(ByColour(), change)), sample).verdict == "pass"


# ---- the sample


def test_sample_is_even_at_the_networks_size_and_read_once(tmp_path):
    root = write_folder_set(tmp_path / "set", counts=(("train", 1), ("val", 10)))
    spec = build_spec("folder", root)
    split = data.open_split(spec, root, "val")
    sample = take_sample(split, data.Geometry([20, 28]), count=5)
    assert sample.files == [split.file(i) for i in (1, 3, 5, 7, 9)]
    assert sample.sizes == [(40, 56)] * 5
    assert sample.classes == ("red", "green", "blue")
    image, target = split.read(3)
    assert torch.equal(sample.images[1], data.Geometry([20, 28]).resize(image))
    assert np.array_equal(sample.targets[1].numpy(), target[1::2, 1::2])
    whole = take_sample(split, data.Geometry([20, 28], crop=[16, 16]), count=99)
    assert len(whole) == 10
    assert whole.images[0].shape == (40, 56, 3)
    assert whole.thin(3).files == [split.file(i) for i in (1, 5, 8)]


def test_batches_keep_the_order_and_mix_no_sizes():
    images = [torch.full((h, 4, 3), i, dtype=torch.uint8) for i, h in enumerate([4] * 9 + [6] * 2 + [4])]
    found = list(batches(images))
    assert [len(batch) for batch in found] == [5, 4, 2, 1]
    assert [int(image[0, 0, 0]) for batch in found for image in batch] == list(range(12))


def test_answers_are_those_of_the_predictor_and_coarse_ones_are_enlarged(sample):
    predictor = predictor_of()
    answers = list(ask(predictor, sample))
    assert torch.equal(torch.stack(answers[:2]), predictor.logits(torch.stack(sample.images[:2])))
    coarse = predictor_of(Then(ByColour(), lambda logits: nn.functional.avg_pool2d(logits, 4)))
    assert next(ask(coarse, sample)).shape == (CLASSES, *SIZE)
    assert miou_of(label_maps(coarse, sample), sample, CLASSES) > 0.7


def test_answers_that_are_not_finite_name_the_file(sample):
    broken = predictor_of(Then(ByColour(), lambda logits: logits / 0))
    with pytest.raises(FloatingPointError, match=r"0\.png"):
        label_maps(broken, sample)


# ---- softmax


@pytest.mark.parametrize(
    ("change", "verdict", "cause"),
    [
        (lambda x: x.softmax(1), "fail", "softmax_inside"),
        (lambda x: x.softmax(1).half().float(), "fail", "softmax_inside"),
        (torch.sigmoid, "warn", "softmax_inside"),
        (lambda x: x.log_softmax(1), "pass", None),
        (lambda x: x - x.amax(1, keepdim=True), "pass", None),
    ],
)
def test_probabilities_are_told_from_logits(change, verdict, cause, sample):
    finding = ask_probe(softmax_inside, predictor_of(Then(ByColour(), change)), sample)
    assert (finding.verdict, finding.cause) == (verdict, cause)


# ---- collapse


def test_one_class_and_one_mask_are_told_apart(sample):
    finding = ask_probe(collapse, predictor_of(Then(ByColour(), constant)), sample)
    assert (finding.verdict, finding.cause, finding.evidence["most_predicted"]) == ("fail", "collapse", "a")
    finding = ask_probe(collapse, predictor_of(Then(ByColour(), layout)), sample)
    assert (finding.verdict, finding.cause) == ("fail", "ignores_the_image")
    assert len(finding.exhibits[0].tiles) == 6


def test_a_single_image_has_no_other_to_be_compared_with(sample):
    assert ask_probe(collapse, predictor_of(), sample.take([0])).evidence["mask_agreement"] is None


# ---- class ids


def test_assignment_is_the_best_one():
    optimize = pytest.importorskip("scipy.optimize")
    random = np.random.RandomState(0)
    for rows, columns in [(1, 1), (3, 3), (11, 11), (7, 12), (20, 20)]:
        for gain in (random.rand(rows, columns), random.randint(0, 3, (rows, columns)), np.zeros((rows, columns))):
            found = assign(gain)
            assert len(set(found.tolist())) == rows
            best = gain[optimize.linear_sum_assignment(gain, maximize=True)].sum()
            assert gain[np.arange(rows), found].sum() == pytest.approx(best)


@pytest.mark.parametrize(
    ("order", "cause"),
    [
        ([1, 2, 3, 0], "class_ids_shifted"),
        ([3, 0, 1, 2], "class_ids_shifted"),
        ([1, 2, 3, 3], "class_ids_shifted"),  # clamped at the top
        ([0, 2, 1, 3], "class_ids_permuted"),
        ([3, 2, 1, 0], "class_ids_permuted"),
    ],
)
def test_classes_by_other_names_are_named(order, cause, sample):
    names = torch.tensor(order, dtype=torch.uint8)
    renamed = with_targets(sample, lambda target: names[target.long()])
    finding = ask_probe(class_assignment, predictor_of(), renamed)
    assert (finding.verdict, finding.cause) == ("fail", cause)
    pairs = {"abcd"[order[c]]: "abcd"[c] for c in range(CLASSES) if order[c] != c}
    assert finding.evidence["predicted_where_target_is"].items() <= pairs.items()
    assert finding.exhibits[0].confusion.sum() == len(sample) * SIZE[0] * SIZE[1]


def test_rare_classes_that_swap_are_no_fault(sample):
    def swap_rare(target):
        target = target % 2  # two classes cover all, the other two a corner
        target[0, :2], target[0, 2:4] = 2, 3
        return target

    def confuse(logits):
        logits = torch.cat([logits[:, :2] + logits[:, 2:], torch.full_like(logits[:, :2], -99.0)], dim=1)
        logits[:, 3, 0, :2], logits[:, 2, 0, 2:4] = 99, 99
        return logits

    finding = ask_probe(class_assignment, predictor_of(Then(ByColour(), confuse)), with_targets(sample, swap_rare))
    assert finding.verdict == "pass"
    assert finding.value > finding.reference + 0.2


# ---- shift


def test_offset_hits_counts_as_a_loop_does():
    random = np.random.RandomState(0)
    label, target = (torch.from_numpy(random.randint(0, 4, (13, 18)).astype(np.uint8)) for _ in range(2))
    hits, pixels = offset_hits(label, target, 3, 2)  # class 3 counts as void
    inner = target[2:-2, 2:-2]
    assert pixels == int((inner < 3).sum())
    for dy in range(-2, 3):
        for dx in range(-2, 3):
            seen = label[2 + dy : 11 + dy, 2 + dx : 16 + dx]
            assert hits[2 + dy, 2 + dx] == int(((seen == inner) & (inner < 3)).sum())


@pytest.mark.parametrize("shift", [(0, 5), (-4, 0), (3, -3)])
def test_a_shift_is_given_back_to_the_pixel(shift, sample):
    moved = predictor_of(Then(ByColour(), lambda logits: logits.roll(shift, (2, 3))))
    finding = ask_probe(prediction_shift, moved, sample)
    assert (finding.verdict, finding.cause) == ("fail", "shifted_predictions")
    assert (finding.evidence["down"], finding.evidence["right"]) == shift
    assert finding.evidence["original_pixels"] == [2 * shift[0], 2 * shift[1]]
    assert len(finding.exhibits[0].tiles) == 2


# ---- flip


def turned_by_chance(logits):
    """The mask for an image that was flipped without it: of this image or of its mirror image, half and half."""
    return logits.softmax(1) + logits.flip(3).softmax(1)


def knows_its_side(logits):
    """The same mask for an image and its mirror image, though not a symmetric one: that of the darker left side."""
    turn = logits[:, 0, :, : SIZE[1] // 2].mean((1, 2)) < logits[:, 0, :, SIZE[1] // 2 :].mean((1, 2))
    return torch.where(turn[:, None, None, None], logits, logits.flip(3))


def test_flip_figures_count_as_a_loop_does():
    random = np.random.RandomState(0)
    label, other, target = random.randint(0, 4, (3, 5, 6))
    target[0, 0] = 255
    known = [(y, x) for y in range(5) for x in range(6) if max(target[y, x], target[y, 5 - x]) < 3]  # 3 as void
    sided = [(y, x) for y, x in known if target[y, x] != target[y, 5 - x]]
    wanted = {
        "equivariant": np.mean([other[y, 5 - x] == label[y, x] for y, x in known]),
        "invariant": np.mean([other[y, x] == label[y, x] for y, x in known]),
        "symmetric": np.mean([label[y, 5 - x] == label[y, x] for y, x in known]),
        "symmetric_target": 1 - len(sided) / len(known),
        "turned": np.mean([other[y, x] == target[y, 5 - x] for y, x in sided]),
        "unturned": np.mean([other[y, x] == target[y, x] for y, x in sided]),
        "sided": len(sided),
    }
    masks = ([torch.from_numpy(mask.astype(np.uint8))] for mask in (label, other, target))
    assert flip_figures(*masks, 3) == pytest.approx(wanted)


def test_masks_that_do_not_turn_are_named(sample):
    assert ask_probe(flip_equivariance, predictor_of(), sample).value < 0.05
    for change in (turned_by_chance, knows_its_side):
        finding = ask_probe(flip_equivariance, predictor_of(Then(ByColour(), change)), sample)
        assert (finding.verdict, finding.cause) == ("fail", "flip_missed_masks"), finding.why
        assert len(finding.exhibits[0].tiles) == 4


def test_symmetric_scenes_prove_nothing(sample):
    both = copy.copy(sample)
    half = SIZE[1] // 2
    both.images = [torch.cat([image[:, :half], image[:, :half].flip(1)], dim=1) for image in sample.images]
    both.targets = [torch.cat([target[:, :half], target[:, :half].flip(1)], dim=1) for target in sample.targets]
    assert ask_probe(flip_equivariance, predictor_of(), both).verdict == "skip"


# ---- a real network on real images


@pytest.mark.real_data
def test_untrained_network_on_real_images_is_accused_of_nothing_relative(real_data):
    root = real_data / "camvid"
    spec = build_spec("camvid", root)
    geometry = data.Geometry([60, 80])
    sample = take_sample(data.open_split(spec, root, "val"), geometry, count=8)
    torch.manual_seed(0)
    predictor = Predictor(models.build_model("fpn_mobilenet_v2", spec.num_classes), spec.num_classes, geometry, CPU)
    for probe in (*(PROBES[name] for name in RELATIVE), preprocessing):
        assert ask_probe(probe, predictor, sample).verdict == "pass"
