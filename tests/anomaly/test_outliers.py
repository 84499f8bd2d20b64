"""Pasted objects: which classes, which pixels, the same for any number of workers, and nothing of what is held out."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import data
from anomaly.outliers import (
    Outliers,
    Paste,
    choose_classes,
    match_colours,
    noise_shape,
    open_outliers,
    overlaps,
    parse_paste,
)
from cli import UserError
from datasets import driving
from datasets.catalogue import hold_out
from datasets.own_folder import folder_spec
from datasets.scenes import MSRC
from engine.sampling import uniform_requests
from tests.folder_set import write_folder_set
from tests.scripts import run_script

CAMVID = driving.CAMVID.classes


def open_pasted(outliers="none", *, spec=driving.CAMVID, sets=(("camvid", Path("data/camvid"), None),), **options):
    """`open_outliers` with an object in every image, beside CamVid unless told otherwise."""
    return open_outliers(spec, outliers, sets=sets, **{"paste": "chance=1", **options})


@pytest.fixture
def object_set(tmp_path):
    """A folder set of 5 images: a bright disc of class 'cow' on grass, and a small speck of it that is no object."""
    root = tmp_path / "objects"
    for kind in ("images", "masks"):
        (root / kind / "train").mkdir(parents=True)
    y, x = np.mgrid[:80, :100]
    for i in range(5):
        mask = ((y - 40) ** 2 + (x - 50) ** 2 < (20 + i) ** 2).astype(np.uint8)
        image = np.where(mask[..., None] == 1, [240, 200 + i, 10], [20, 120, 20]).astype(np.uint8)
        Image.fromarray(image).save(root / "images" / "train" / f"{i}.png")
        Image.fromarray(mask).save(root / "masks" / "train" / f"{i}.png")
    Image.fromarray(image).save(root / "images" / "train" / "speck.png")
    Image.fromarray((y + x < 5).astype(np.uint8)).save(root / "masks" / "train" / "speck.png")
    (root / "classes.json").write_text(json.dumps({"classes": ["grass", "cow"]}))
    return root


def open_objects(object_set, **changes):
    return open_pasted(str(object_set), **changes)


def test_by_default_msrc_gives_what_camvid_does_not_know():
    chosen, left = choose_classes(MSRC, [], CAMVID)
    names = {MSRC.classes[i] for i in chosen}
    assert names == {"cow", "horse", "sheep", "aeroplane", "bird", "book", "chair", "cat", "dog", "boat"}
    assert left["bicycle"] == "known as bicyclist"
    assert left["body"] == left["face"] == "known as pedestrian"
    assert left["sign"] == "known as sign symbol"
    assert left["grass"] == left["flower"] == "known as tree"
    assert left["water"] == "no object"
    assert names | left.keys() == set(MSRC.classes)


@pytest.mark.parametrize(
    ("name", "known", "expected"),
    [
        ("cars", ["car"], "car"),
        ("traffic sign", ["sign symbol"], "sign symbol"),
        ("bus", ["vehicle"], "vehicle"),
        ("bus", ["truck"], None),
        ("buses", ["bus"], "bus"),
        ("benches", ["bench"], "bench"),
        ("bushes", ["vegetation"], "vegetation"),
        ("body", ["road", "rider"], "rider"),
        ("carpet", ["car"], None),
        ("glass", ["grass"], None),
        ("boat", CAMVID, None),
    ],
)
def test_names_overlap_by_word_or_kind(name, known, expected):
    assert overlaps(name, known) == expected


def test_named_classes_are_taken_as_they_are_and_wrong_ones_refused():
    chosen, left = choose_classes(MSRC, ["car", "sheep"], CAMVID)
    assert [MSRC.classes[i] for i in chosen] == ["sheep", "car"]
    assert left["cow"] == "not asked for"
    with pytest.raises(UserError, match="no class 'sheeps' in msrc.*did you mean 'sheep'"):
        choose_classes(MSRC, ["sheeps"], CAMVID)
    with pytest.raises(UserError, match="no class of camvid is left"):
        choose_classes(driving.CAMVID, [], CAMVID)


def test_objects_are_found_and_specks_are_none(object_set):
    outliers, lines = open_objects(object_set)
    assert len(outliers.objects) == 5
    assert [found.box for found in outliers.objects][0] == (31, 21, 70, 60)
    assert outliers.train_id == 11
    assert lines[0] == "outliers: 5 objects of folder: cow"
    assert "grass (known as tree)" in lines[1]


def test_an_object_lands_where_the_ticket_says_and_nowhere_else(object_set):
    outliers, _ = open_objects(object_set)
    image, target = torch.full((60, 80, 3), 128, dtype=torch.uint8), torch.full((60, 80), 3, dtype=torch.uint8)
    outliers.paste(image, target, Paste(0, size=0.5, row=0.5, column=0.25, flip=False, match=0.0))
    pasted = target == 11
    rows, columns = pasted.nonzero().T
    assert (int(rows.min()), int(rows.max()) + 1) == (15, 45)  # 0.5 of 60 high, its centre at 30
    assert (int(columns.min()), int(columns.max()) + 1) == (5, 35)
    area = np.pi * 15**2
    assert abs(int(pasted.sum()) - area) < 0.08 * area  # the disc, not its box
    assert set(target[~pasted].tolist()) == {3}
    assert (image[20:40, 15:25].float() - torch.tensor([240.0, 200.0, 10.0])).abs().max() <= 1
    untouched = torch.ones(60, 80, dtype=torch.bool)
    untouched[14:46, 4:36] = False
    assert (image[untouched] == 128).all()


def test_an_object_over_the_border_is_cut_off_and_one_outside_changes_nothing(object_set):
    outliers, _ = open_objects(object_set)
    image, target = torch.zeros(40, 40, 3, dtype=torch.uint8), torch.zeros(40, 40, dtype=torch.uint8)
    outliers.paste(image, target, Paste(1, 1.0, 0.0, 0.0, False, 0.0))
    assert target[0, 0] == 11
    assert not (target[21:] == 11).any()
    before = image.clone(), target.clone()
    outliers.paste(image, target, Paste(1, 0.1, 3.0, 3.0, False, 0.0))
    assert torch.equal(image, before[0])
    assert torch.equal(target, before[1])


def test_flip_moves_colours_and_mask_together():
    shape, mask = noise_shape(5)
    outliers = Outliers([], None, 2, parse_paste(""))
    results = []
    for flip in (False, True):
        image, target = torch.zeros(64, 64, 3, dtype=torch.uint8), torch.zeros(64, 64, dtype=torch.uint8)
        outliers.paste(image, target, Paste(5, 0.6, 0.5, 0.5, flip, 0.0))
        results.append((image, target))
    (image, target), (mirrored, mirrored_target) = results
    assert not torch.equal(target, mirrored_target)
    assert (mirrored_target.flip(1) != target).float().mean() < 0.04  # but for the half pixel of its place
    assert shape.size == mask.size


def test_matching_colours_takes_on_mean_and_contrast():
    rng = np.random.RandomState(0)
    patch, below = rng.uniform(80, 120, (20, 20, 3)), rng.uniform(0, 40, (20, 20, 3))
    cover = np.ones((20, 20))
    same = match_colours(patch, cover, below, 0.0)
    assert np.abs(same - patch).max() < 1e-3
    theirs = match_colours(patch, cover, below, 1.0)
    assert np.abs(theirs.mean((0, 1)) - below.mean((0, 1))).max() < 0.5
    half = match_colours(patch, cover, below, 0.5)
    assert np.abs(half.mean((0, 1)) - (patch.mean((0, 1)) + below.mean((0, 1))) / 2).max() < 0.5


def test_pastes_come_from_the_order_generator_alone():
    outliers = Outliers([], None, 2, parse_paste("chance=0.5,number=2,size=0.2:0.4,match=0.7"))
    drawn = []
    for _ in range(2):
        order = torch.Generator().manual_seed(3)
        torch.manual_seed(len(drawn))  # another state of the global one
        drawn.append(outliers.add_pastes(uniform_requests(400, order), order))
    assert drawn[0] == drawn[1]
    pastes = [paste for request in drawn[0] for paste in request.pastes]
    assert 150 < sum(bool(request.pastes) for request in drawn[0]) < 250
    assert {len(request.pastes) for request in drawn[0]} == {0, 1, 2}
    assert all(0.2 <= paste.size <= 0.4 and 0 <= paste.match <= 0.7 for paste in pastes)
    assert {paste.flip for paste in pastes} == {True, False}
    assert [t[:3] for t in drawn[0]] == [t[:3] for t in uniform_requests(400, torch.Generator().manual_seed(3))]


def test_workers_paste_as_the_main_process_does(folder_set, object_set):
    spec = folder_spec(folder_set)
    split = data.open_split(spec, folder_set, "train")
    outliers, _ = open_pasted(str(object_set), spec=spec, sets=[("folder", folder_set, None)])
    order = torch.Generator().manual_seed(0)
    requests = outliers.add_pastes(uniform_requests(len(split), order), order)
    batches = [requests[:4], requests[4:]]
    geometry = data.Geometry([40, 56])
    one, two = (list(data.training_batches(split, geometry, batches, workers, outliers=outliers)) for workers in (0, 2))
    for (images, targets), (others, other_targets) in zip(one, two, strict=True):
        assert torch.equal(images, others)
        assert torch.equal(targets, other_targets)
    assert sum(int((targets == spec.num_classes).sum()) for _, targets in one) > 0


def test_made_up_shapes_differ_and_repeat():
    first, again, other = (np.asarray(noise_shape(seed)[0]) for seed in (1, 1, 2))
    assert np.array_equal(first, again)
    assert first.shape != other.shape or not np.array_equal(first, other)
    for seed in range(40):
        shape, mask = noise_shape(seed)
        assert shape.size == mask.size
        assert set(np.unique(np.asarray(mask))) <= {0, 255}


def test_what_is_held_out_is_not_taught(tmp_path):
    """A held-out 'cow' must not come in again as an outlier: the names of all classes count, not of the known alone."""
    held = hold_out(MSRC, ["cow", "body"])
    _, left = choose_classes(MSRC, ["sheep", "dog"], MSRC.classes)
    assert left["cow"] == "not asked for"
    with pytest.raises(UserError, match="left to paste"):  # all of MSRC's own classes are known or held out
        choose_classes(MSRC, [], MSRC.classes)
    chosen, _ = choose_classes(MSRC, [], held.classes)  # what would happen with the known ones alone
    assert "cow" in {MSRC.classes[i] for i in chosen}
    with pytest.raises(UserError, match="'face' may mean the held-out class 'body'"):  # not even when asked for
        choose_classes(MSRC, ["sheep", "face"], held.classes, ["cow", "body"])


def test_train_leaves_out_the_held_out_names(tmp_path, object_set):
    """The same through the script: the class held out is called cow, the outlier set's only object is a cow."""
    root = write_folder_set(tmp_path / "set")
    content = json.loads((root / "classes.json").read_text())
    content["classes"][0]["name"] = "cow"
    (root / "classes.json").write_text(json.dumps(content))
    done = run_script(
        "train.py", "--dataset", "folder", "--data-dir", root, "--run-dir", tmp_path / "run", "--image-size", "32x48",
        "--anomaly-classes", "cow", "--outliers", object_set, "--iters", "1", "--batch-size", "2", "--device", "cpu",
    )  # fmt: skip
    assert done.returncode == 2
    assert "no class of folder is left to paste" in done.stdout + done.stderr


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"outlier_classes": ["cow"]}, "--outlier-classes without --outliers"),
        ({}, "--paste without --outliers"),
        ({"outliers": "noise-shapes", "outlier_classes": ["cow"]}, "have no classes"),
        ({"outliers": "nowhere"}, "no such folder"),
        ({"outliers": "noise-shapes", "paste": "chance=2"}, "chance=2.0 is out of range"),
        ({"outliers": "noise-shapes", "paste": "sise=1"}, "unknown option 'sise'.*did you mean 'size'"),
    ],
)
def test_wrong_flags_are_one_line(changes, message):
    with pytest.raises(UserError, match=message):
        open_pasted(**changes)


def test_a_folder_without_a_known_layout_is_refused(tmp_path):
    with pytest.raises(UserError, match="no known data set"):
        open_pasted(str(tmp_path))


def test_the_training_set_itself_is_refused(folder_set):
    with pytest.raises(UserError, match="the training set itself"):
        open_pasted(
            str(folder_set / "." / "images" / ".."),
            spec=folder_spec(folder_set),
            sets=[("folder", folder_set, None)],
        )


def test_a_damaged_outlier_file_stops_before_the_first_step(object_set):
    path = object_set / "images" / "train" / "2.png"
    path.write_bytes(path.read_bytes()[:60])
    with pytest.raises(UserError, match="2.png"):
        open_objects(object_set)


def test_a_label_the_outlier_set_does_not_declare_stops_before_the_first_step(object_set):
    Image.fromarray(np.full((80, 100), 77, np.uint8)).save(object_set / "masks" / "train" / "1.png")
    with pytest.raises(UserError, match="label 77"):
        open_objects(object_set)


def test_paste_none_pastes_nothing():
    outliers = Outliers([], None, 2, parse_paste("none"))
    order = torch.Generator().manual_seed(0)
    assert not any(request.pastes for request in outliers.add_pastes(uniform_requests(50, order), order))
