"""How a score travels: drops whose cause is known by construction, and sets between which nothing drops."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import data
import metrics
from datasets.catalogue import build_spec
from engine.predictor import Predictor
from probes.cross_dataset import Move, best_move, compare_sets, layout_pull

CPU = torch.device("cpu")
SIZE = (48, 64)
CLASSES = ("sky", "tree", "road", "pedestrian")
COLOURS = np.array([(90, 150, 230), (30, 120, 30), (110, 100, 110), (220, 40, 60), (160, 120, 60)])


def scenes(count, seed=0):
    """(image (H, W, 3) uint8, target (H, W) uint8 by CLASSES) of a road under a sky, with trees and people."""
    rng = np.random.RandomState(seed)
    for _ in range(count):
        horizon = rng.randint(14, 22)
        target = np.zeros(SIZE, np.uint8)
        target[horizon:] = 2
        for label, height, width in ((1, 14, 10), (1, 12, 14), (3, 9, 4)):
            left = rng.randint(0, SIZE[1] - width)
            target[horizon - height // 2 : horizon + height // 2, left : left + width] = label
        image = COLOURS[target] + rng.randint(-12, 13, (*SIZE, 1))
        yield image.clip(0, 255).astype(np.uint8), target


def write_set(root, change=lambda image, target: (image, target), names=CLASSES, count=12, seed=0):
    """A folder set of changed scenes: (test split, training grids)."""
    for split, first in (("train", 0), ("test", 1)):
        for i, pair in enumerate(scenes(count, seed + first)):
            for kind, array in zip(("images", "masks"), change(*pair), strict=True):
                path = root / kind / split / f"{i:02}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(np.ascontiguousarray(array)).save(path)
    (root / "classes.json").write_text(json.dumps({"classes": list(names), "void": [255]}))
    spec = build_spec("folder", root)
    train, test = (data.open_split(spec, root, split) for split in ("train", "test"))
    return test, np.stack([metrics.resize_nearest(train.read_target(i)) for i in range(len(train))])


class ByColour(nn.Module):
    """Looks at each pixel's colour and at nothing else."""

    centres = None

    def forward(self, images):
        colours = torch.from_numpy(COLOURS[: len(CLASSES)] / 255).float()[None, :, :, None, None]
        return {"out": -(images[:, None] - colours).square().sum(2) * 100}  # (N, C, H, W)


class ByPlace(nn.Module):
    """Never looks at the image: answers by the training layout."""

    centres = None

    def __init__(self, layouts, classes):
        super().__init__()
        self.register_buffer("logits", torch.from_numpy(metrics.layout_distribution(layouts, classes)).log()[None])

    def forward(self, images):
        logits = nn.functional.interpolate(self.logits, images.shape[2:], mode="bilinear")
        return {"out": logits.expand(len(images), -1, -1, -1)}


class ByColourElsePlace(nn.Module):
    """Falls back on the training layout where it knows no colour."""

    centres = None

    def __init__(self, layouts, classes):
        super().__init__()
        self.colour, self.place = ByColour(), ByPlace(layouts, classes)

    def forward(self, images):
        logits = self.colour(images)["out"]
        known = logits.amax(1, keepdim=True) > -2
        return {"out": torch.where(known, logits, self.place(images)["out"])}


def predictor(model):
    return Predictor(model, len(CLASSES), data.Geometry(list(SIZE)), CPU, nn.Identity())


def upside_down(image, target):
    return image[::-1], target[::-1]


def lowered(image, target):
    return np.roll(image, 12, 0), np.roll(target, 12, 0)


def sideways(image, target):
    """What was above is on the left: no flip or shift brings it back."""
    rows, columns = (np.arange(n) * m // n for n, m in zip(SIZE[::-1], SIZE, strict=True))
    return image[rows][:, columns].transpose(1, 0, 2)[: SIZE[1]], target[rows][:, columns].T


def inverted(image, target):
    return 255 - image, target


@pytest.fixture
def reference(tmp_path):
    return write_set(tmp_path / "reference")


def judge(model, reference, other, **options):
    (finding,) = compare_sets(predictor(model), CLASSES, {"own": reference, "far": other}, **options)
    assert finding.probe == "cross.far"
    json.dumps(finding.json(), allow_nan=False)
    return finding


def test_a_model_that_looks_travels_and_names_are_matched(tmp_path, reference):
    """The other set calls the classes otherwise, in another order, and has one more: half of the sky."""

    def renamed(image, target):
        left = np.arange(SIZE[1]) < SIZE[1] // 2
        return image, np.where((target == 0) & left, 4, np.array([3, 2, 1, 0], np.uint8)[target]).astype(np.uint8)

    names = ("Person", "road_line", "vegetation", "sky", "wall")
    split, layouts = write_set(tmp_path / "far", renamed, names)
    finding = judge(ByColour(), reference, (split, layouts))
    assert (finding.verdict, finding.cause) == ("pass", None)
    row = finding.evidence["sets"]["far"]
    assert finding.evidence["common_classes"] == ["sky", "vegetation", "road", "person"]
    assert row["miou"] == row["pixel_accuracy"] == finding.value == 1.0
    targets = np.stack([split.read_target(i) for i in range(len(split))])
    assert row["void"] == {"wall": pytest.approx((targets == 4).mean())}
    assert row["images"] == 12


@pytest.mark.parametrize("change", [upside_down, lowered, sideways])
def test_no_layout_matters_to_a_model_that_does_not_use_it(tmp_path, reference, change):
    finding = judge(ByColour(), reference, write_set(tmp_path / "far", change))
    assert finding.verdict == "pass"
    row = finding.evidence["sets"]["far"]
    assert row["miou"] == 1.0
    assert row["floor_of_training_layout"] < row["floor_of_own_layout"]


@pytest.mark.parametrize(
    ("change", "move"), [(upside_down, "turned upside down"), (lowered, "25% of the height up"), (sideways, None)]
)
def test_a_model_that_answers_by_place_is_overfitted_to_it(tmp_path, reference, change, move):
    far = write_set(tmp_path / "far", change)
    finding = judge(ByPlace(reference[1], len(CLASSES)), reference, far)
    assert (finding.verdict, finding.cause) == ("warn", "spatial_overfitting")
    if move:
        assert finding.evidence["moved"] == move
        assert finding.evidence["recovered"] == pytest.approx(1.0, abs=0.05)
        assert move in finding.why
    else:
        assert finding.evidence["sets"]["far"]["layout_pull"] > 0.5


@pytest.mark.parametrize("also", [lambda *pair: pair, sideways])
def test_other_colours_are_appearance_whatever_the_layout(tmp_path, reference, also):
    finding = judge(ByColour(), reference, write_set(tmp_path / "far", lambda *pair: inverted(*also(*pair))))
    assert (finding.verdict, finding.cause) == ("warn", "appearance_shift")
    assert ("agree at 100%" in finding.why) == (also is not sideways)


def test_falling_back_on_the_layout_is_no_fault_of_the_layout(tmp_path, reference):
    """The answers follow the training layout, which is right: it is the colours that are strange."""
    finding = judge(ByColourElsePlace(reference[1], 4), reference, write_set(tmp_path / "far", inverted))
    rows = finding.evidence["sets"]
    assert (rows["own"]["miou"], rows["own"]["layout_pull"]) == (1.0, 0.0)
    assert rows["far"]["layout_pull"] > 0.3
    assert (finding.verdict, finding.cause) == ("warn", "appearance_shift")


def test_another_split_of_the_same_set_is_silent(tmp_path, reference):
    finding = judge(ByPlace(reference[1], len(CLASSES)), reference, write_set(tmp_path / "far", seed=7))
    assert finding.verdict == "pass"


def test_the_exhibit_shows_layouts_and_the_worst_image_in_the_models_ids(tmp_path, reference):
    def one_bad(image, target):
        image = inverted(image, target)[0] if (target == 0).mean() > 0.3 else image
        return image, np.array([2, 1, 0, 3], np.uint8)[target]

    split, layouts = write_set(tmp_path / "far", one_bad, ("road", "tree", "sky", "person"))
    finding = judge(ByColour(), reference, (split, layouts))
    assert finding.verdict == "warn"
    training, own, image, labels, answer = finding.exhibits[0].tiles
    assert (training.mask == metrics.fit_layout(reference[1], 4).map).all()
    assert own.mask[0, 0] == CLASSES.index("sky")
    accuracies = []
    for i in range(len(split)):
        picture, target = split.read(i)
        guess = -np.square(np.asarray(picture)[..., None, :].astype(int) - COLOURS[:4]).sum(-1)
        accuracies.append((guess.argmax(-1) == np.array([2, 1, 0, 3])[target]).mean())
    worst = int(np.argmin(accuracies))
    assert image.title == split.file(worst)
    assert (labels.mask == np.array([2, 1, 0, 3])[split.read_target(worst)]).all()
    assert answer.mask.shape == metrics.GRID


def test_sets_without_common_classes_are_skipped(tmp_path, reference):
    finding = judge(ByColour(), reference, write_set(tmp_path / "far", names=("a", "b", "c", "sky")))
    assert finding.verdict == "skip"
    assert finding.evidence["common_classes"] == ["sky"]


def test_samples_are_even_and_progress_reaches_the_total(tmp_path, reference):
    steps = []
    far = write_set(tmp_path / "far", upside_down)
    model = ByPlace(reference[1], len(CLASSES))
    finding = judge(model, reference, far, count=5, progress=lambda done, total: steps.append((done, total)))
    assert [row["images"] for row in finding.evidence["sets"].values()] == [5, 5]
    assert steps == [(done, 15) for done in range(1, 16)]


# ---- the parts


def test_layout_pull_is_the_share_that_follows_beyond_the_same_elsewhere():
    joint = np.random.RandomState(0).randint(0, 50, (3, 3, 4))
    pulled = places = 0.0
    for layout in range(3):
        for truth in range(3):
            if layout != truth:
                here = joint[layout, truth]
                rest = sum(joint[other, truth] for other in range(3) if other != layout)
                pulled += here[layout] - here.sum() * rest[layout] / rest.sum()
                places += here.sum()
    assert layout_pull(joint) == pytest.approx(pulled / places)


def test_layout_pull_is_0_without_and_1_with_the_layout():
    cells = np.random.RandomState(0).randint(1, 50, (3, 3))  # (layout, truth)
    blind, bound = np.zeros((3, 3, 4)), np.zeros((3, 3, 4))
    for layout in range(3):
        bound[layout, :, layout] = cells[layout]
        blind[layout] = cells[layout][:, None] * np.array([[0.6, 0.3, 0.1, 0], [0.1, 0.5, 0.1, 0.3], [0, 0, 1, 0]])
    assert layout_pull(blind) == pytest.approx(0, abs=1e-12)
    assert layout_pull(bound) == pytest.approx(1)


@pytest.mark.parametrize("move", [Move(), Move(True), Move(False, True, 0.3, -0.2), Move(True, True, -0.45, 0.5)])
def test_a_move_is_undone(move):
    picture = torch.arange(2 * 7 * 11).view(2, 7, 11)
    assert move.back(move.there(picture, (1, 2)), (1, 2)).equal(picture)
    if move != Move():
        assert not move.there(picture, (1, 2)).equal(picture)


def test_the_best_move_is_found_and_none_where_none_helps():
    own = np.random.RandomState(0).randint(0, 5, (24, 32)).astype(np.uint8)
    assert best_move(own, own) == (Move(), 1.0)
    turned = np.roll(own[::-1], (3, -4), (0, 1))
    move, agreement = best_move(turned, own)
    assert agreement == 1.0
    assert move == Move(True, False, 3 / 24, -4 / 32)
    assert "turned upside down" in move.describe()
    assert "12% of the height down, 12% of the width left" in move.describe()
    assert best_move(np.zeros_like(own), own)[0] == Move()


@pytest.mark.real_data
def test_camvid_upside_down_to_a_model_of_its_layout(real_data):
    """Real layouts: the floor's own predictor, on CamVid and on CamVid turned over."""

    class TurnedOver:
        cache = None

        def __init__(self, split):
            self.split, self.spec, self.file = split, split.spec, split.file

        def __len__(self):
            return len(self.split)

        def read(self, index):
            image, target = self.split.read(index)
            return image.transpose(Image.Transpose.FLIP_TOP_BOTTOM), target[::-1]

    root = real_data / "camvid"
    spec = build_spec("camvid", root)
    train, val = data.open_split(spec, root, "train", 64), data.open_split(spec, root, "val")
    layouts = np.stack([metrics.resize_nearest(train.read_target(i)) for i in range(len(train))])
    model = ByPlace(layouts, spec.num_classes)
    asked = Predictor(model, spec.num_classes, data.Geometry([60, 80]), CPU)
    sets = {"own": (val, layouts), "over": (TurnedOver(val), layouts[:, ::-1]), "same": (val, layouts)}
    over, same = compare_sets(asked, spec.classes, sets, count=12)
    assert (over.cause, over.evidence["moved"]) == ("spatial_overfitting", "turned upside down")
    assert same.verdict == "pass"
