"""The declarations: names as typed, class names, colours and codings; what is held out of a set."""

import pytest

from cli import UserError
from datasets.catalogue import DATASETS, SPECS, build_spec, check_name, hold_out, parse_name, recognise
from datasets.driving import CAMVID, STREETHAZARDS, STREETS
from datasets.masks import read_target
from datasets.scenes import ADE20K, MSRC, MSRC_COLOURS
from datasets.spec import UNKNOWN, VOID
from tests.datasets.miniatures import BY_ID, THREE, write_mask


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("acdc/frog", "unknown condition 'frog' of acdc at --dataset; did you mean 'fog'"),
        ("acdc/", "unknown condition '' of acdc at --dataset; known: fog, night, rain, snow"),
        ("camvid/fog", "camvid has no conditions, as 'camvid/fog' asks for at --dataset; write camvid"),
        ("folder/fog", "folder has no conditions"),
        ("cityscape", "unknown data set 'cityscape' at --dataset; did you mean 'cityscapes'"),
        ("iddaw/fog", "unknown data set 'iddaw' at --dataset; did you mean 'idd_aw'"),
    ],
)
def test_an_unknown_name_or_condition_is_told_the_nearest(text, message, tmp_path):
    for call in (lambda: check_name(text), lambda: build_spec(text, tmp_path)):
        with pytest.raises(UserError) as caught:
            call()
        assert message in str(caught.value)


def test_names_as_typed():
    assert parse_name("acdc/fog") == ("acdc", "fog")
    assert parse_name("camvid") == ("camvid", "")
    for name in ("acdc/fog", "idd_aw/snow", *DATASETS):
        assert check_name(name) is None


def test_the_checked_in_floor_plan_classes_are_used_only_where_a_folder_has_none(tmp_path):
    case = BY_ID["floorplan"]
    case.write(tmp_path)
    spec = build_spec("floorplan", tmp_path)
    assert (spec.name, spec.num_classes, spec.values[255]) == ("floorplan", 34, 255)
    (tmp_path / "classes.json").write_text(THREE)
    assert build_spec("floorplan", tmp_path).classes == ("sky", "ground", "thing")


def test_cocostuffs_names_stand_at_cocos_ids_less_one():
    names = SPECS["cocostuff"][0].classes
    known = {
        1: "person", 10: "traffic light", 12: "street sign", 27: "backpack", 44: "bottle", 46: "wine glass", 47: "cup",
        48: "fork", 62: "chair", 67: "dining table", 72: "tv", 82: "refrigerator", 84: "book", 90: "toothbrush",
    }  # fmt: skip
    assert {i: names[i - 1] for i in known} == known
    assert list(names[91:]) == sorted(names[91:])  # the stuff is in the alphabet's order
    assert (names[91], names[181]) == ("banner", "wood")


def test_a_folder_is_recognised_by_what_lies_in_it(tmp_path):
    for name in ("train", "trainannot"):
        (tmp_path / "c" / name).mkdir(parents=True)
    write_mask(tmp_path / "c" / "trainannot" / "a.png", [[0]])
    assert recognise(tmp_path / "c").name == "camvid"
    with pytest.raises(UserError, match="no known data set"):
        recognise(tmp_path)
    with pytest.raises(UserError, match="no such folder"):
        recognise(tmp_path / "none")


def voc_colour(index):
    """The colour map both sets share: the bits of the index, spread over red, green and blue from the highest down."""
    return tuple(sum((index >> (3 * k + c) & 1) << (7 - k) for k in range(3)) for c in range(3))


def test_msrcs_colours_are_the_colour_map_it_was_drawn_with():
    indices = [*range(1, 19), *range(21, 26)]
    assert MSRC.palette == tuple(voc_colour(i) for i in indices)
    assert MSRC.colours[0, 0, 0] == VOID


def test_ade20ks_150_classes():
    spec = ADE20K
    assert len(spec.classes) == len(set(spec.classes)) == len(spec.palette) == 150
    assert [spec.classes[i] for i in (0, 12, 20, 149)] == ["wall", "person", "car", "flag"]
    assert [spec.palette[i] for i in (0, 12, 149)] == [(120, 120, 120), (150, 5, 61), (92, 0, 255)]


def test_streethazards_coding():
    values = STREETHAZARDS.value_table
    assert values[0] == VOID
    assert values[1:15].tolist() == list(range(14))
    assert (values[15:] == UNKNOWN).all()
    assert STREETS.classes == STREETHAZARDS.classes


# ---- anomalies by agreement


def test_held_out_classes_are_void_in_training_and_anomalies_elsewhere(tmp_path):
    spec = hold_out(CAMVID, ["bicyclist", "building"])
    assert spec.classes == tuple(c for c in CAMVID.classes if c not in ("bicyclist", "building"))
    assert len(spec.palette) == spec.num_classes == 9
    assert spec.palette[1] == CAMVID.palette[2]
    path = write_mask(tmp_path / "m.png", [[0, 1, 2, 9, 10, 11]])  # sky, building, pole, pedestrian, bicyclist, void
    assert read_target(path, spec.of_split("val")).tolist() == [[0, 9, 1, 8, 9, 255]]
    assert read_target(path, spec.of_split("test")).tolist() == [[0, 9, 1, 8, 9, 255]]
    assert read_target(path, spec.of_split("train")).tolist() == [[0, 255, 1, 8, 255, 255]]


def test_held_out_classes_of_a_set_in_colours(tmp_path):
    spec = hold_out(MSRC, ["cow"])
    colours = [MSRC_COLOURS["cow"], MSRC_COLOURS["boat"], (0, 0, 0)]
    path = write_mask(tmp_path / "m.png", [[0, 1, 2]], colours)
    assert read_target(path, spec.of_split("train")).tolist() == [[255, 21, 255]]
    assert read_target(path, spec.of_split("test")).tolist() == [[22, 21, 255]]


def test_a_sets_own_anomaly_stays_one_and_stays_an_error_in_training(tmp_path):
    spec = hold_out(STREETS, ["car"])
    path = write_mask(tmp_path / "m.png", [[0, 1, 11, 13, 14]])  # void, unlabeled, car, traffic sign, anomaly
    assert read_target(path, spec.of_split("test")).tolist() == [[255, 0, 12, 11, 12]]
    assert read_target(path, spec.of_split("train")).tolist() == [[255, 0, 255, 11, 12]]


def test_what_cannot_be_held_out_is_refused():
    with pytest.raises(UserError, match="no class 'bicycle' in camvid.*'bicyclist'"):
        hold_out(CAMVID, ["bicycle"])
    with pytest.raises(UserError, match="no class is left"):
        hold_out(CAMVID, CAMVID.classes)
