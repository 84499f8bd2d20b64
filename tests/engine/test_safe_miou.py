"""Safe mIoU against a case by hand, a loop over pixels with the tree written out, and its limits."""

import pytest
import torch

import metrics
from datasets.catalogue import SPECS
from datasets.driving import CITYSCAPES
from engine.safe_miou import safe_miou

CLASSES = SPECS["idd"][0].classes
PLACE = {name: i for i, name in enumerate(CLASSES)}


def confusion_of(pixels):
    """[(target, prediction, pixels)] by name -> (26, 26) int64."""
    confusion = torch.zeros(26, 26, dtype=torch.int64)
    for target, prediction, count in pixels:
        confusion[PLACE[target], PLACE[prediction]] = count
    return confusion


def test_by_hand():
    pixels = [
        ("person", "person", 50), ("person", "rider", 30), ("person", "road", 20),  # 2 / 3 and 3 / 3 a pixel
        ("car", "car", 80), ("car", "autorickshaw", 10), ("car", "truck", 10),  # 1 / 3 and 2 / 3
        ("road", "road", 100), ("road", "person", 5), ("road", "sidewalk", 40),  # 3 / 3, and nothing
    ]  # fmt: skip
    found = safe_miou(confusion_of(pixels), CLASSES)
    person = (50 - 30 * 2 / 3 - 20) / 105
    car = (80 - 10 / 3 - 20 / 3) / 100
    road = (100 - 5) / 165
    expected = {"person": person, "car": car, "road": road, "rider": 0, "autorickshaw": 0, "truck": 0, "sidewalk": 0}
    scores = dict(zip(CLASSES, found["safe_iou"], strict=True))
    assert {name: value for name, value in scores.items() if value is not None} == pytest.approx(expected)
    assert found["safe_miou"] == pytest.approx((person + car + road) / 7)


def test_taking_every_person_for_road_is_worse_than_nothing():
    found = safe_miou(confusion_of([("person", "road", 10)]), CLASSES)
    assert found["safe_iou"][PLACE["person"]] == -1
    assert found["safe_miou"] == -0.5


# The classes below each node of the tree, written out once more: [[siblings, …] of a first level, …].
SIBLINGS = [
    [["road"], ["drivable fallback"]],
    [["sidewalk"], ["non-drivable fallback"]],
    [["person"], ["rider"]],
    [["motorcycle", "bicycle"], ["autorickshaw", "car"], ["truck", "bus", "vehicle fallback"]],
    [["curb", "wall"], ["fence", "guard rail"], ["billboard", "traffic sign", "traffic light"],
     ["pole", "obs-str-bar-fallback"]],
    [["building", "bridge"], ["vegetation"]],
    [["sky"]],
]  # fmt: skip
IMPORTANT = {"person", "rider", "motorcycle", "bicycle", "autorickshaw", "car", "truck", "bus"}


def cost(target, prediction):
    if target == prediction or not {target, prediction} & IMPORTANT:
        return 0.0
    for family in SIBLINGS:
        if any(target in group and prediction in group for group in family):
            return 1 / 3
        members = sum(family, [])
        if target in members and prediction in members:
            return 2 / 3
    return 1.0


def test_against_a_loop_over_pixels():
    generator = torch.Generator().manual_seed(0)
    targets = torch.randint(0, 27, (60, 80), generator=generator)
    targets[targets == 26] = 255
    predictions = torch.randint(0, 26, (60, 80), generator=generator)
    predictions = torch.where(torch.rand(60, 80, generator=generator) < 0.6, targets.clamp(max=25), predictions)
    gained, union = [0.0] * 26, [0] * 26
    for target, prediction in zip(targets.flatten().tolist(), predictions.flatten().tolist(), strict=True):
        if target == 255:
            continue
        union[target] += 1
        union[prediction] += target != prediction
        gained[target] += (target == prediction) - cost(CLASSES[target], CLASSES[prediction])
    found = safe_miou(metrics.confusion_matrix(predictions, targets, 26), CLASSES)
    expected = [one / all_ for one, all_ in zip(gained, union, strict=True)]
    assert found["safe_iou"] == pytest.approx(expected)
    assert found["safe_miou"] == pytest.approx(sum(expected) / 26)


def test_any_order_of_the_classes_gives_the_same():
    confusion = torch.randint(0, 99, (26, 26), generator=torch.Generator().manual_seed(1))
    order = torch.randperm(26, generator=torch.Generator().manual_seed(2))
    turned = safe_miou(confusion[order][:, order], [CLASSES[i] for i in order])
    assert turned["safe_miou"] == pytest.approx(safe_miou(confusion, CLASSES)["safe_miou"])


def test_without_a_confusion_it_is_miou_and_never_above_it():
    perfect = torch.diag(torch.arange(26))  # road has no pixel
    found = safe_miou(perfect, CLASSES)
    assert found == {"safe_miou": 1.0, "safe_iou": [None, *[1.0] * 25]}
    confusion = torch.randint(0, 99, (26, 26), generator=torch.Generator().manual_seed(3))
    miou = metrics.segmentation_scores(confusion)["miou"]
    assert safe_miou(confusion, CLASSES)["safe_miou"] < miou


def test_what_it_is_not_defined_for():
    assert safe_miou(torch.zeros(19, 19, dtype=torch.int64), CITYSCAPES.classes) is None
    assert safe_miou(torch.zeros(26, 26, dtype=torch.int64), CLASSES)["safe_miou"] is None
    with pytest.raises(ValueError, match="26 classes"):
        safe_miou(torch.zeros(19, 19, dtype=torch.int64), CLASSES)
