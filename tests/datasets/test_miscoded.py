"""Masks in a wrong coding: each is named with its remedy, and no healthy split is."""

from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

import data
from cli import UserError
from datasets.audit import audit_split
from datasets.catalogue import SPECS, build_spec, hold_out
from datasets.driving import CAMVID, CITYSCAPES, CITYSCAPES_LABEL_IDS, read_mapillary
from datasets.label_spaces import LabelSpace, build_space, translate
from datasets.masks import read_target
from datasets.miscoded import NEVER_LABELLED, hidden_fault, likely_cause, starts_at_one
from datasets.scenes import ADE20K, VOC
from probes.files import judge_files
from probes.finding import CAUSES
from tests.datasets.miniatures import (
    BY_ID,
    GRID,
    LABEL_IDS,
    SIZE,
    VOID,
    Case,
    audits_of,
    config,
    open_folder,
    picture,
    plain_rows,
    recode,
    rewrite,
    save,
)

OTHER = [
    # the set, its form; what its masks hold; the cause and what the error must say
    ("cityscapes-labelIds", [*range(19), 255], "mapped_twice", ["label 255", "train ids", "labelTrainIds"]),
    ("cityscapes-labelIds", range(19), "mapped_twice", ["values 0, 1, 2, 3 …", "13 of 19 classes", "vegetation"]),
    ("cityscapes-labelTrainIds", range(34), "other_coding", ["label 19", "label ids on disk", "expects train ids"]),
    ("acdc-rgb_anon-labelIds", range(19), "mapped_twice", ["values 0", "split train of acdc", "train ids"]),
    ("acdc-rgb_anon-labelTrainIds", LABEL_IDS, "other_coding", ["label 19", "label ids", "_gt_labelTrainIds"]),
    ("bdd100k-", LABEL_IDS, "other_coding", ["bdd100k", "label ids on disk"]),
    ("idd-labellevel3Ids", [*range(19), 255], "other_coding", ["train ids on disk", "7 of 26", "labelcsTrainIds"]),
    ("idd-labelcsTrainIds", [*range(26), 255], "other_coding", ["label 19", "level3 ids on disk", "labellevel3Ids"]),
    ("idd_aw-labellevel3Ids", range(19), "other_coding", ["train ids on disk", "idd_aw"]),
    ("cocostuff-images", range(1, 183), "one_based_labels", ["label 182", "start at 1", "subtract 1"]),
    ("ade20k-", [*range(150), 255], "mapped_twice", ["label 255", "train ids on disk", "second time"]),
    ("camvid-0", range(1, 13), "one_based_labels", ["label 12", "start at 1"]),
    ("streethazards", [*range(14), 255], "mapped_twice", ["label 255", "train ids"]),
    ("voc-P", range(1, 22), "one_based_labels", ["label 21", "start at 1"]),
    ("folder", range(1, 4), "one_based_labels", ["label 3", "classes.json"]),
    ("msrc-lists", range(23), "unknown_labels", ["codes its classes by colour"]),
]  # fmt: skip


@pytest.mark.parametrize(("which", "codes", "cause", "parts"), OTHER, ids=[f"{row[0]}-{row[2]}" for row in OTHER])
def test_each_wrong_coding_is_named_with_its_remedy(which, codes, cause, parts, tmp_path):
    case = BY_ID[which]
    recode(case, tmp_path, codes, mode="L", colours={})
    audit = audits_of(case.name, tmp_path, ["train"])[0]
    found, error = audit.fault()
    assert found == cause
    assert "\n" not in str(error)
    for part in [*parts, str(tmp_path)]:
        assert part in str(error)


def test_every_cause_is_one_that_diagnose_knows():
    assert {row[2] for row in OTHER} <= CAUSES.keys()


def test_train_ids_in_mapillary_are_told_though_its_config_declares_each(tmp_path):
    names = [f"void--{i}" for i in range(66)]
    places = {
        2: "construction--barrier--curb", 3: "construction--barrier--fence", 13: "construction--flat--road",
        19: "human--person", 27: "nature--sky", 30: "nature--vegetation", 48: "object--traffic-light",
        50: "object--traffic-sign--front", 55: "object--vehicle--car", 61: "object--vehicle--truck",
    }  # fmt: skip
    for place, name in places.items():
        names[place] = name
    case = BY_ID["mapillary-config.json"]
    recode(case, tmp_path, range(19), files={"config.json": config(names)}, mode="L")
    cause, error = audits_of("mapillary", tmp_path, ["train"])[0].fault()
    assert cause == "mapped_twice"
    assert "7 of 19 classes" in str(error)


@pytest.mark.parametrize("which", ["cityscapes-labelIds", "ade20k-", "floorplan", "bdd100k-"])
def test_masks_in_colours_where_numbers_are_expected(which, tmp_path):
    case = BY_ID[which]
    case.write(tmp_path)
    drawn = np.random.RandomState(0).randint(0, 3, SIZE)
    for _, mask in case.rows:
        save(tmp_path / mask, Image.fromarray(np.array([(128, 64, 128), (244, 35, 232), (0, 0, 0)], np.uint8)[drawn]))
    cause, error = audits_of(case.name, tmp_path, ["train"])[0].fault()
    assert cause == "unknown_labels"
    assert f"a mask in colours, but {case.name} declares none" in str(error)
    assert "label rgb 0,0,0" in str(error)
    with pytest.raises(UserError, match="a mask in colours"):
        read_target(tmp_path / case.rows[0][1], build_spec(case.name, tmp_path))


@pytest.mark.parametrize(
    ("mask", "cause"),
    [
        (np.full((*SIZE, 3), (1, 2, 3), np.uint8), "another set's coding"),
        (picture(3), "make a photograph, not a mask"),
    ],
)
def test_colours_that_a_set_does_not_declare(tmp_path, mask, cause):
    case = BY_ID["msrc-lists"]
    save(case.write(tmp_path) / case.rows[0][1], Image.fromarray(mask))
    assert cause in str(audits_of("msrc", tmp_path, ["train"])[0].error())


def test_voc_masks_turned_to_grey(tmp_path):
    case = BY_ID["voc-P"]
    case.write(tmp_path)
    for _, mask in case.rows:
        with Image.open(tmp_path / mask) as image:
            grey = image.convert("RGB").convert("L")
        save(tmp_path / mask, grey)
    cause, error = audits_of("voc", tmp_path, ["train"])[0].fault()
    assert cause == "greyscale_masks"
    assert "the colours of voc's palette turned to shades of grey" in str(error)


COCO_STUFF = SPECS["cocostuff"][0]


@pytest.mark.parametrize(
    ("spec", "first"),
    [(CAMVID, "sky"), (CITYSCAPES, "road"), (SPECS["idd"][0], "road"),
     (VOC, "background")],
    ids=lambda part: getattr(part, "name", part),
)  # fmt: skip
def test_a_first_class_that_50_images_lack_is_a_shift_by_one(spec, first):
    """Only where the set has that class in nearly every image."""
    seen = dict.fromkeys(range(1, spec.num_classes), 100)
    cause, words, _ = hidden_fault(seen, 50, spec)
    assert cause == "one_based_labels"
    assert f"no pixel of {first}" in words
    assert hidden_fault(seen, 49, spec) is None
    assert hidden_fault({**seen, 0: 1}, 50, spec) is None


def test_cocostuff_masks_of_its_json_ids_show_things_that_are_never_labelled():
    cause, words, remedy = hidden_fault(dict.fromkeys([*range(1, 182), 255], 100), 3, COCO_STUFF)
    assert cause == "one_based_labels"
    assert "street sign, hat, shoe" in words
    assert "255" in remedy
    assert hidden_fault(dict.fromkeys(range(182), 100), 3, COCO_STUFF)[0] == "one_based_labels"  # 0 for void
    labelled = [i for i, name in enumerate(COCO_STUFF.classes) if name not in NEVER_LABELLED]
    assert len(labelled) == 171
    assert hidden_fault(dict.fromkeys([*labelled[1:], 255], 100), 5000, COCO_STUFF) is None  # nobody in it


def test_what_a_healthy_split_may_lack_is_no_fault():
    cityscapes = CITYSCAPES_LABEL_IDS
    road_only = dict.fromkeys([0, 1, 3, 4, 7, 8, 11], 100)  # a tunnel: nothing above 18, but hardly any class at all
    assert hidden_fault(road_only, 500, cityscapes) is None
    assert hidden_fault({**dict.fromkeys(range(19), 100), 26: 1}, 500, cityscapes) is None  # one car
    level3 = SPECS["idd"][0]
    assert hidden_fault(dict.fromkeys([*range(19), 24, 255], 100), 500, level3) is None
    train_ids = CITYSCAPES
    assert hidden_fault(dict.fromkeys(range(19), 100), 500, train_ids) is None  # no void at all
    assert hidden_fault(dict.fromkeys(range(1, 151), 100), 500, ADE20K) is None
    assert hidden_fault(dict.fromkeys([0, 2, 3, 5, 7], 100), 500, ADE20K) is None  # no wall outdoors
    export = replace(VOC, classes=("background", "weed", "crop"), values={0: 0, 1: 1, 2: 2, 255: 255})
    assert hidden_fault({1: 100, 2: 100}, 500, export) is None  # a tool names a background that nobody uses


def test_a_mapillary_without_curbs_is_healthy(tmp_path):
    names = ["animal--bird", "construction--barrier--curb", "construction--flat--road", "human--person", "nature--sky"]
    (tmp_path / "config.json").write_text(config(names))
    spec = replace(SPECS["mapillary"][2], asks="config.json")
    spec = read_mapillary(spec, tmp_path)
    assert spec.values[1] == 1
    assert hidden_fault({0: 5, 2: 100, 3: 100, 4: 100}, 500, spec) is None


@pytest.mark.parametrize("view", ["own", "driving11", "driving19", "held out"])
def test_a_wrong_coding_is_told_in_every_label_space(view, tmp_path):
    """It is the set's own coding that masks are in, whatever it is then seen as."""
    case = BY_ID["cityscapes-labelIds"]
    recode(case, tmp_path, range(19))
    audit = audit_seen_as(case.name, tmp_path, view)
    assert audit.fault()[0] == "mapped_twice"
    assert "13 of 19 classes" in str(audit.error())
    healthy = BY_ID["cityscapes-labelTrainIds"]
    healthy.write(tmp_path / "healthy")
    assert audit_seen_as("cityscapes", tmp_path / "healthy", view).fault() is None


def test_label_spaces_and_held_out_classes_are_judged_by_the_sets_own_coding():
    seen = dict.fromkeys(range(1, 11), 100)
    for spec in (hold_out(CAMVID, ["sky", "building"]),
                 translate(CAMVID, LabelSpace(("pole", "car"))),
                 hold_out(translate(CAMVID, LabelSpace(("pole", "car"))), ["car"]),
                 hold_out(CAMVID, ["car"]).of_split("train")):  # fmt: skip
        assert spec.own is CAMVID
        assert hidden_fault(seen, 50, spec)[0] == "one_based_labels"
        assert hidden_fault({**seen, 0: 9}, 50, spec) is None
        assert starts_at_one(seen, spec)
        assert likely_cause({12: 5}, dict.fromkeys(range(1, 13), 5), "m.png", spec)[0] == "one_based_labels"


def audit_seen_as(name, root, view):
    """The train split's audit of a set in a label space, or with classes held out."""
    seen = {"held_out": ["bus", "train"]} if view == "held out" else {"label_space": view}
    spec, root = data.open_dataset(name, str(root), **seen)
    return audit_split(data.open_split(spec, root, "train"), GRID)


# StreetHazards as its masks are, pixels in 1000 of each value: none is 0.
STREETS_SHARES = dict(zip(range(1, 15), (166, 192, 14, 15, 3, 30, 30, 290, 67, 86, 84, 20, 3, 30), strict=True))


@pytest.mark.parametrize("name", ["streets", "streethazards"])
def test_street_masks_already_reduced_by_one(name):
    spec = SPECS[name][0]
    trained = {v: n for v, n in STREETS_SHARES.items() if v < 14}
    for split, seen in (("train", trained), ("val", trained), ("test", STREETS_SHARES)):
        reduced = {v - 1: n for v, n in seen.items()}
        cause, words, _ = hidden_fault(reduced, 20, spec, split)
        assert cause == "mapped_twice"
        assert "0 on 1" in words
        assert hidden_fault(reduced, 19, spec, split) is None
        assert hidden_fault(seen, 500, spec, split) is None
    driving = translate(spec, build_space("driving11", [spec]))
    assert hidden_fault({v - 1: n for v, n in trained.items()}, 20, driving, "train")[0] == "mapped_twice"
    no_signs = {v: n for v, n in trained.items() if v < 13}
    assert hidden_fault(no_signs, 500, spec, "train") is None
    assert hidden_fault({**no_signs, 0: 20}, 500, spec, "train") is None  # a few pixels of void
    assert hidden_fault({**trained, 0: 200}, 500, spec, "train") is None  # the bonnet made void
    assert hidden_fault({**STREETS_SHARES, 0: 200}, 500, spec, "test") is None
    few = {0: 200, 1: 100, 2: 100, 8: 300}
    assert hidden_fault(few, 500, spec, "train") is None  # hardly any class


def test_reduced_test_masks_lack_the_anomaly_that_training_masks_never_have(tmp_path):
    rows = plain_rows("test/images/{split}/{name}.png", "test/annotations/{split}/{name}.png", {"test": 20})
    Case("reduced", "streethazards", rows, dict.fromkeys([*range(1, 14), 0], VOID)).write(tmp_path)
    cause, error = audits_of("streethazards", tmp_path, ["test"])[0].fault()
    assert cause == "mapped_twice"
    assert "no pixel of anomaly" in str(error)
    Case("whole", "streethazards", rows, dict.fromkeys([*range(1, 15), 0], VOID)).write(tmp_path)
    assert audits_of("streethazards", tmp_path, ["test"])[0].fault() is None


@pytest.mark.parametrize(
    ("spec", "seen", "unknown", "cause", "parts"),
    [
        (SPECS["bdd100k"][0], {0: 100, **dict.fromkeys(range(1, 20), 300)}, 19, "one_based_labels",
         ["start at 1, with 0 for void", "subtract 1", "255"]),
        (CITYSCAPES, {0: 400, **dict.fromkeys(range(1, 20), 50)}, 19, "unknown_labels",
         ["19 after the last class, as void", "write void as 255"]),
        (SPECS["acdc"][0], dict.fromkeys(range(20), 100), 19, "unknown_labels",
         ["or labels that start at 1"]),
        (CITYSCAPES, dict.fromkeys([0, 1, 3, 4, 5, 6, 7, 8, 11, 12, 13, 17, 19], 100), 19, "other_coding",
         ["label ids on disk"]),
        (COCO_STUFF, dict.fromkeys(range(183), 100), 182, "one_based_labels",
         ["0 for unlabeled", "subtract 1", "becomes 255"]),
        (CAMVID, dict.fromkeys([*range(11), 255], 9), 255, "unknown_labels",
         ["255 for void", "camvid's own void is 11", "another export"]),
        (ADE20K, dict.fromkeys([5, 200, 255], 9) | {1: 4}, 255, "unknown_labels", ["own void is 0"]),
    ],
)  # fmt: skip
def test_void_by_another_number_than_the_sets(spec, seen, unknown, cause, parts):
    found, words, remedy = likely_cause({unknown: seen[unknown]}, seen, "m.png", spec)
    assert found == cause
    assert "classes.json" not in remedy
    for part in parts:
        assert part in f"{words}: {remedy}"


def test_a_label_space_without_place_for_what_occurs_is_the_cause_of_no_labels(tmp_path):
    case = BY_ID["folder"]
    recode(case, tmp_path, [2])
    audit = audit_seen_as("folder", tmp_path, "own")
    audit.split = replace_spec(audit.split, LabelSpace(("sky", "ground")))
    audit = audit_split(audit.split, GRID)
    cause, error = audit.fault()
    assert cause == "no_labels"
    for part in ("split train of folder", str(tmp_path), "none of its classes that occur has a place", "--label-space"):
        assert part in str(error)


def replace_spec(split, space):
    return data.open_split(translate(split.spec, space), split.root, split.name)


def test_masks_of_void_alone_name_set_and_folder(tmp_path):
    case = BY_ID["folder"]
    recode(case, tmp_path, [255])
    cause, error = audits_of("folder", tmp_path, ["train"])[0].fault()
    assert cause == "no_labels"
    assert f"split train of folder at {tmp_path / 'masks' / 'train'}; all masks are void" in str(error)
    recode(case, tmp_path, [1])
    spec = hold_out(build_spec("folder", tmp_path), ["ground"])
    error = audit_split(data.open_split(spec, tmp_path, "train"), GRID).error()
    assert "hold fewer classes out" in str(error)


def test_black_and_white_masks_whose_white_is_void_by_default(tmp_path):
    case = Case(**{**vars(BY_ID["folder"]), "files": {"classes.json": '{"classes": ["wall", "crack"]}'}})
    recode(case, tmp_path, [0, 255])
    cause, error = audits_of("folder", tmp_path, ["train"])[0].fault()
    assert cause == "unknown_labels"
    for part in ("black and white", "second class is 1", '"values": [255]', '"void": []'):
        assert part in str(error)
    (tmp_path / "classes.json").write_text('{"classes": ["wall", {"name": "crack", "values": [255]}], "void": []}')
    assert audits_of("folder", tmp_path, ["train"])[0].fault() is None
    recode(case, tmp_path, [0, 1, 255])  # 255 is void beside both classes
    assert audits_of("folder", tmp_path, ["train"])[0].fault() is None
    recode(BY_ID["folder"], tmp_path, [0, 255])  # one of three classes, and void
    assert audits_of("folder", tmp_path, ["train"])[0].fault() is None


def test_diagnose_names_a_hidden_coding_as_the_fault_of_the_files(tmp_path):
    recode(BY_ID["idd-labellevel3Ids"], tmp_path, range(19))
    finding = judge_files({"train": audits_of("idd", tmp_path, ["train"])[0]})
    assert (finding.verdict, finding.cause) == ("fail", "other_coding")
    assert "labellevel3Ids" in finding.remedy
    assert finding.json()["consequences"]


@pytest.mark.parametrize(
    ("change", "cause"),
    [
        (lambda m: m + 1, "labels that start at 1"),
        (lambda m: np.where(m == 2, 255, m).astype(np.uint8), None),
        (lambda m: np.where(m == 2, 77, m).astype(np.uint8), "another set's coding"),
        (lambda m: np.add.outer(np.arange(m.shape[0]) * 4, np.arange(m.shape[1])).astype(np.uint8), "grey-scale"),
    ],
)
def test_unknown_labels_name_value_count_file_and_likely_cause(folder_set, change, cause):
    split = open_folder(folder_set)
    for _, mask in split.pairs:
        rewrite(mask, change)
    error = audit_split(split, GRID).error()
    if cause is None:
        assert error is None
        return
    assert cause in str(error)
    assert str(split.pairs[0][1]) in str(error)
    assert "in 8 files" in str(error)


def test_jpeg_masks_are_named_as_such(folder_set):
    split = open_folder(folder_set)
    for _, mask in split.pairs:
        Image.open(mask).point(lambda v: v * 40).save(mask.with_suffix(".jpg"), quality=60)
        mask.unlink()
    error = audit_split(open_folder(folder_set), GRID).error()
    assert "JPEG" in str(error)
