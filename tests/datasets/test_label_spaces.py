"""Several sets in one label space: names, codes, parts, proportions."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

import data
from cli import UserError
from datasets.audit import audit_split, require_clean, unmapped_shares
from datasets.catalogue import SPECS, hold_out
from datasets.label_spaces import (
    LabelSpace,
    answer_table,
    build_space,
    common_names,
    declared_names,
    parse_sets,
    run_name,
    translate,
)
from datasets.own_folder import folder_spec
from datasets.scenes import MSRC_COLOURS
from datasets.spec import NORMAL, VOID
from engine.sampling import SampleRequest, build_sampling, share_batches, take_turns
from tests.folder_set import write_folder_set

CAMVID, STREETS, CITYSCAPES, MSRC = (SPECS[name][0] for name in ("camvid", "streets", "cityscapes", "msrc"))


def test_common_names():
    camvid, streets, cityscapes = (spec.classes for spec in (CAMVID, STREETS, CITYSCAPES))
    assert common_names(cityscapes) == list(cityscapes)
    assert {*common_names(camvid)} <= {*cityscapes}
    assert {*common_names(camvid)} - {*common_names(streets)} == {"rider"}
    assert common_names(["sky", "unlabeled", "road line"])[:2] == ["sky", "unlabeled"]
    assert common_names(["unlabeled", "road", "car"])[0] == "unlabeled"  # StreetHazards' alone is the sky
    assert common_names(["Traffic_Sign", " sign-symbol "]) == ["traffic sign", "traffic sign"]


# ---------------------------------------------------------------------------------------------------------------------
# Spaces


def test_driving11_holds_camvids_groups():
    space = build_space("driving11", [CAMVID])
    assert len(space.classes) == len(space.palette) == 11
    assert sorted(space.classes) == sorted(common_names(CAMVID.classes))
    seen = translate(CITYSCAPES, space)
    became = {CITYSCAPES.classes[i]: space.classes[seen.values[i]] for i in range(19)}
    assert {name for name, to in became.items() if to == "car"} == {"car", "truck", "bus", "train"}
    assert {name for name, to in became.items() if to == "rider"} == {"rider", "motorcycle", "bicycle"}
    assert became["wall"] == "building"
    assert became["terrain"] == "vegetation"
    assert became["traffic light"] == "traffic sign"
    assert {name for name, to in became.items() if name == to} == {*space.classes}
    assert seen.values[255] == VOID
    assert not seen.unmapped


def test_translate_keeps_void_and_anomaly_and_names_what_it_drops():
    seen = translate(STREETS, build_space("driving19", [STREETS]))
    assert seen.num_classes == 19
    assert seen.values[14] == 19  # anomaly
    assert seen.values[0] == VOID
    assert seen.values[1] == CITYSCAPES.classes.index("sky")  # "unlabeled"
    assert seen.values[7] == seen.values[8] == 0  # road line, road
    assert seen.values[4] == VOID
    assert seen.unmapped == {4: "other"}
    coloured = translate(MSRC, build_space("driving19", [MSRC]))
    assert coloured.colours[MSRC_COLOURS["car"]] == CITYSCAPES.classes.index("car")
    cow = MSRC_COLOURS["cow"]
    assert coloured.colours[cow] == VOID
    assert coloured.unmapped[cow[0] << 16 | cow[1] << 8 | cow[2]] == "cow"


def test_own_is_the_first_sets_classes_and_the_same_name_comes_first():
    space = build_space("own", [STREETS, CAMVID])
    assert translate(STREETS, space) == replace(STREETS, unmapped={})
    seen = translate(CAMVID, space)
    assert seen.classes[seen.values[CAMVID.values[3]]] == "road"  # and not "road line"
    assert set(seen.unmapped.values()) == {"bicyclist"}


def test_intersection_is_what_all_have_in_the_first_ones_order():
    space = build_space("intersection", [CAMVID, STREETS, CITYSCAPES])
    expected = [name for name in common_names(CAMVID.classes) if name != "rider"]
    assert list(space.classes) == expected
    assert space.palette == tuple(CITYSCAPES.palette[CITYSCAPES.classes.index(name)] for name in expected)
    other = replace(CAMVID, classes=tuple("abcdefghijk"))
    with pytest.raises(UserError, match="camvid, camvid share 0 classes by name"):
        build_space("intersection", [CAMVID, other])
    with pytest.raises(UserError, match=r"no class of camvid \(a, b, c, d, …\) has a place among sky"):
        translate(other, build_space("own", [CAMVID]))


def test_a_set_of_anomalies_alone_is_seen_in_any_space():
    seen = translate(SPECS["road_anomaly"][0], LabelSpace(("road", "car"), ((0, 0, 0), (9, 9, 9))))
    assert seen.values == {0: NORMAL, 2: 2}
    assert seen.num_classes == 2
    assert declared_names(seen) == []


def test_normal_stays_normal_for_a_model_with_classes_held_out():
    space = LabelSpace(("road", "car", "rider"))
    seen = hold_out(translate(SPECS["road_anomaly"][0], space), ["rider"])
    assert seen.values == {0: NORMAL, 2: 2}
    assert seen.classes == ("road", "car")


def test_what_a_set_does_not_label_apart_counts_as_what_it_does():
    streets = build_space("own", [STREETS])
    table = answer_table(translate(CAMVID, streets))
    line, road, sky, other = (STREETS.classes.index(name) for name in ("road line", "road", "unlabeled", "other"))
    assert table[line] == table[road] == road
    assert table[sky] == sky
    assert table[other] == other  # of no name that CamVid has: it stays an error
    assert table.dtype == np.uint8
    assert answer_table(STREETS) is None
    assert answer_table(translate(CAMVID, build_space("driving19", [CAMVID]))) is None


# ---------------------------------------------------------------------------------------------------------------------
# The flags


def test_sets_folders_and_shares_are_read():
    rows = parse_sets("camvid:0.5, acdc/fog:1.5", "A,B")
    assert [(name, root.as_posix(), share) for name, root, share in rows] == [
        ("camvid", "A", 0.5),
        ("acdc/fog", "B", 1.5),
    ]
    assert [root.as_posix() for _, root, _ in parse_sets("camvid,acdc/fog", None)] == [
        "data/camvid",
        "data/acdc",
    ]
    assert parse_sets("camvid", "a,b")[0][1].as_posix() == "a,b"  # one set: a comma is part of the name
    assert run_name("camvid:0.5, acdc/fog:1.5") == "camvid+acdc-fog"


@pytest.mark.parametrize(
    ("dataset", "data_dir", "message"),
    [
        ("camvid:0.5,streets", None, "some sets have a share, others not"),
        ("camvid:half,streets:1", None, "share 'half' of camvid is no number above 0"),
        ("camvid:0,streets:1", None, "share '0' of camvid"),
        ("camvid:nan,streets:1", None, "share 'nan' of camvid"),
        ("camvid,streets", "A", "1 folders for 2 sets.*give one for each, in the order of --dataset"),
        ("camvid,camvid", None, "camvid and camvid hold the same images"),
        ("camvid,camvid", "a/../b,b", "camvid and camvid hold the same images"),
        ("acdc/fog,acdc/night,acdc", None, "acdc/fog and acdc hold the same images"),
        ("camvit", None, "unknown data set 'camvit'.*did you mean 'camvid'"),
        ("", None, "unknown data set ''"),
        ("camvid,streets,", "A,B,C", "3 folders for 2 sets"),
    ],
)
def test_wrong_flags_are_one_line(dataset, data_dir, message):
    with pytest.raises(UserError, match=message):
        data.open_dataset(dataset, data_dir)


# ---------------------------------------------------------------------------------------------------------------------
# Several sets as one


@pytest.fixture
def two_sets(tmp_path):
    """Two folder sets: of red, green, blue (8, 3, 3 images), and of red, green, blue, yellow, larger (5, 2, 2)."""
    first = write_folder_set(tmp_path / "first")
    counts = (("train", 5), ("val", 2), ("test", 2))
    second = write_folder_set(tmp_path / "second", counts, size=(60, 70), classes=4, seed=1)
    return first, second


def open_both(two_sets, split="train", shares=("", ""), **options):
    dataset = ",".join(f"folder{share}" for share in shares)
    spec, root = data.open_dataset(dataset, ",".join(map(str, two_sets)), **options)
    return data.open_split(spec, root, split)


def test_a_joint_split_is_its_sets_one_after_the_other(two_sets):
    split = open_both(two_sets)
    assert len(split) == 13
    first, second = (data.open_split(folder_spec(root), root, "train") for root in two_sets)
    assert split.pairs == first.pairs + second.pairs
    assert [len(own) for _, _, own in split.ranges()] == [8, 5]
    image, target = split.read(9)
    expected_image, expected = second.read(1)
    assert np.array_equal(image, expected_image)
    assert np.array_equal(target, np.where(expected == 3, VOID, expected))  # yellow has no place
    assert np.array_equal(split.read_target(9), target)
    assert split.file(9) == f"folder {two_sets[1].as_posix()}/images/train/001.png"
    assert split.spec_of(7) is split.parts[0].spec


def test_the_audit_of_several_is_each_ones_added_up(two_sets):
    split = open_both(two_sets)
    whole = audit_split(split, (6, 8))
    parts = [audit_split(part, (6, 8)) for part in split.parts]
    for name in ("grids", "image_counts", "places", "image_sizes"):
        assert np.array_equal(getattr(whole, name), np.concatenate([getattr(part, name) for part in parts]))
    assert whole.pixels == 8 * 40 * 56 + 5 * 60 * 70
    assert whole.void == parts[1].void > 0
    assert whole.sizes == {(40, 56): 8, (60, 70): 5}
    shares = unmapped_shares(whole.parts[1])
    yellow = sum((np.asarray(Image.open(mask)) == 3).sum() for _, mask in split.parts[1].pairs)
    assert shares == {"yellow": yellow / (5 * 60 * 70)}
    assert unmapped_shares(whole.parts[0]) == {}


def test_a_fault_names_the_set_it_is_in(two_sets):
    mask = two_sets[1] / "masks" / "train" / "002.png"
    Image.fromarray(np.full((60, 70), 9, np.uint8)).save(mask)
    audit = audit_split(open_both(two_sets), (6, 8))
    with pytest.raises(
        UserError, match=r"label 9 \(4,200 pixels\) outside the .* classes of folder at .*second.*002.png"
    ):
        require_clean([audit])


def test_held_out_classes_are_void_in_training_and_anomalies_after_in_every_set(two_sets):
    train, val = (open_both(two_sets, split, held_out=["blue"]) for split in ("train", "val"))
    assert train.spec.classes == ("red", "green")
    assert train.spec.anomaly
    for split, expected in ((train, VOID), (val, 2)):
        for label, part, own in split.ranges():
            values = np.asarray(Image.open(part.pairs[0][1]))
            assert (split.read_target(own.start)[values == 2] == expected).all(), label


def test_workers_read_several_sets_as_the_main_process_does(two_sets):
    split = open_both(two_sets)
    requests = [[SampleRequest(i, 0, 0) for i in (0, 8, 12)], [SampleRequest(i, 0, 0) for i in (7, 9)]]
    for (images, targets), (others, other_targets) in zip(
        *(data.training_batches(split, data.Geometry([20, 28]), requests, workers) for workers in (0, 2)), strict=True
    ):
        assert torch.equal(images, others)
        assert torch.equal(targets, other_targets)


# ---------------------------------------------------------------------------------------------------------------------
# Proportions


@pytest.mark.parametrize(("shares", "wanted"), [((":0.5", ":0.5"), (0.5, 0.5)), ((":1", ":3"), (0.25, 0.75))])
@pytest.mark.parametrize("kind", ["uniform", "balanced"])
def test_every_batch_is_mixed_in_proportion(two_sets, shares, wanted, kind):
    audit = audit_split(open_both(two_sets, shares=shares), (6, 8))
    sampling = build_sampling(kind, audit, data.Geometry([20, 28]))
    order, drawn = torch.Generator().manual_seed(0), []
    for _ in range(40):
        batches = sampling.draw(order, 4)
        assert sum(map(len, batches)) == 13
        for batch in batches:
            first = sum(request.index < 8 for request in batch)
            assert abs(first - wanted[0] * len(batch)) <= 1
        drawn += [request.index for batch in batches for request in batch]
    counts = np.bincount(drawn, minlength=13)
    assert counts[:8].sum() / len(drawn) == pytest.approx(wanted[0], abs=0.05)
    assert (counts > 0).all()
    if kind == "uniform":  # no image of a set much more often than another
        assert counts[:8].max() - counts[:8].min() <= 25
        assert counts[8:].max() - counts[8:].min() <= 25


def test_without_shares_an_epoch_shows_each_image_once(two_sets):
    audit = audit_split(open_both(two_sets), (6, 8))
    sampling = build_sampling("uniform", audit, data.Geometry([20, 28]))
    first, second = (sampling.draw(torch.Generator().manual_seed(seed), 4) for seed in (0, 1))
    for batches in (first, second):
        assert sorted(request.index for batch in batches for request in batch) == list(range(13))
    assert first != second
    assert first == sampling.draw(torch.Generator().manual_seed(0), 4)


def test_a_small_set_is_shown_whole_before_any_of_it_comes_again(two_sets):
    audit = audit_split(open_both(two_sets, shares=(":0.1", ":0.9")), (6, 8))
    sampling = build_sampling("uniform", audit, data.Geometry([20, 28]))
    indices = [t.index for batch in sampling.draw(torch.Generator().manual_seed(0), 13) for t in batch]
    counts = np.bincount(indices, minlength=13)
    assert counts.sum() == 13
    assert set(counts[8:]) == {2, 3}
    assert counts[:8].max() == 1


def test_processes_get_both_sets_of_every_batch(two_sets):
    audit = audit_split(open_both(two_sets, shares=(":1", ":1")), (6, 8))
    sampling, order = build_sampling("uniform", audit, data.Geometry([20, 28])), torch.Generator()
    seen = [set(), set()]
    for _ in range(20):
        batches = sampling.draw(order, 4)
        for rank in (0, 1):
            seen[rank] |= {t.index < 8 for batch in share_batches(batches, rank, 2) for t in batch}
    assert seen == [{True, False}, {True, False}]


def test_turns_stay_within_one_of_each_share():
    for shares in ([0.5, 0.5], [0.9, 0.1], [1 / 3, 2 / 3], [0.2, 0.3, 0.5], [0.05] * 20):
        turns = take_turns(shares, 300)
        for number, share in enumerate(shares):
            given = np.cumsum([turn == number for turn in turns])
            assert np.abs(given - share * np.arange(1, 301)).max() <= (1 if len(shares) == 2 else 2)
