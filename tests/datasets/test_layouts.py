"""Every set's official layout, as its archive unpacks, read end to end; and what can be wrong with one."""

import json
import shutil
from collections import Counter

import numpy as np
import pytest
from PIL import Image

import data
import evaluate
import train
from cli import UserError
from datasets.audit import audit_split, require_clean
from datasets.catalogue import SPECS, build_spec, recognise
from datasets.label_spaces import LabelSpace, translate
from datasets.masks import read_target
from datasets.pairs import cut_of, find_pairs, lies_in
from datasets.spec import NORMAL, by_condition
from tests.datasets.miniatures import (
    BY_ID,
    CASES,
    FIRST,
    GRID,
    SIZE,
    VOID,
    audits_of,
    cityscapes,
    ids34,
)
from tests.scripts import TINY
from tests.test_errors import is_one_error_line, run

every = pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
every_set = pytest.mark.parametrize("case", FIRST, ids=lambda case: case.name)


@every
def test_each_official_layout_is_read_as_its_own_table_says(case, tmp_path, capsys):
    case.write(tmp_path)
    audits = audits_of(case.name, tmp_path)
    assert [audit.error() for audit in audits] == [None, None, None]
    assert sum(len(audit.split) for audit in audits) == len(case.rows)
    files = {pair for audit in audits for pair in audit.split.pairs}
    assert files == {(tmp_path / image, tmp_path / mask) for image, mask in case.rows}
    if official := case.official_test():
        assert {image for image, _ in audits[2].split.pairs} == {tmp_path / image for image in official}
    classes = audits[0].split.spec.classes
    counts = dict(zip(classes, sum(audit.counts for audit in audits).tolist(), strict=True))
    expected = case.expected()
    assert sum(audit.void for audit in audits) == expected.pop(VOID, 0)
    assert {name: count for name, count in counts.items() if count} == expected
    assert capsys.readouterr().err == ""


@every
def test_a_folder_is_recognised_as_this_set_and_no_other(case, tmp_path):
    case.write(tmp_path)
    expected = case.recognised or case.name
    if expected == "none":  # what the numbers mean stands nowhere
        with pytest.raises(UserError, match="no known data set"):
            recognise(tmp_path)
    else:
        assert recognise(tmp_path).name == expected
    lying = {name for name, forms in SPECS.items() if any(lies_in(tmp_path, f) for f in forms)}
    alike = {"streets", "streethazards"}  # the embedded scenes are of that layout
    assert lying == (alike if case.name in alike else {case.name} & SPECS.keys())


@pytest.mark.slow
@every_set
def test_one_step_of_training_and_an_evaluation(case, tmp_path, monkeypatch, capsys):
    root = case.write(tmp_path / "set")
    words = ["--dataset", case.name, "--data-dir", root, "--run-dir", tmp_path / "run", *TINY]
    words += ["--iters", "1", "--image-size", "32x32", "--batch-size", "2", "--limit", "2"]
    code, err = run(train, words, monkeypatch, capsys)
    assert code == 0, err
    log = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in log if line["kind"] == "train"] == [1]
    words = ["--ckpt", tmp_path / "run" / "best.pth", "--workers", "0", "--device", "cpu", "--panels", "0"]
    code, err = run(evaluate, words, monkeypatch, capsys)
    assert code == 0, err
    result = json.loads((tmp_path / "run" / "evaluation.json").read_text())
    assert result["split"] == "test"
    assert result["iou"].keys() == set(build_spec(case.name, root).classes)


def test_a_set_without_lists_says_that_it_is_cut(tmp_path, capsys):
    BY_ID["msrc-archive-"].write(tmp_path)
    data.open_dataset("msrc", tmp_path)
    assert "no train.txt" in capsys.readouterr().err


def test_cityscapes_in_both_codings_is_read_by_its_train_ids(tmp_path):
    for ending in ("labelIds", "labelTrainIds"):
        BY_ID[f"cityscapes-{ending}"].write(tmp_path)
    [(_, mask), *_] = find_pairs(build_spec("cityscapes", tmp_path), tmp_path, "train")
    assert mask.name.endswith("_gtFine_labelTrainIds.png")


def test_cityscapes_validation_is_cut_by_city(tmp_path):
    cities = (
        "aachen", "bochum", "bremen", "cologne", "darmstadt", "dusseldorf", "erfurt", "hamburg", "hanover", "jena",
        "krefeld", "monchengladbach", "strasbourg", "stuttgart", "tubingen", "ulm", "weimar", "zurich",
    )  # fmt: skip
    cityscapes("labelIds", ids34(), cities).write(tmp_path)
    train, val, test = (
        {image.parent.name for image, _ in audit.split.pairs} for audit in audits_of("cityscapes", tmp_path)
    )
    assert (val, test) == ({"aachen", "erfurt", "jena"}, {"v1"})
    assert train == {*cities} - val


def test_a_few_drives_still_give_a_validation_split(tmp_path):
    """The rule's lowest drive where none is low enough: a share of 0.15 of two drives may be none."""
    assert {cut_of(drive, ("val",)) for drive in ("ulm", "zurich")} == {"train"}
    cityscapes("labelIds", ids34(), ("ulm", "zurich")).write(tmp_path)
    train_split, val, _ = (audit.split for audit in audits_of("cityscapes", tmp_path))
    assert (len(train_split), len(val)) == (2, 2)


def test_road_anomaly_is_read_as_it_is_published(tmp_path):
    for top in ("", "RoadAnomaly_jpg"):
        root = tmp_path / (top or "plain") / "set"
        frames = root / top / "frames"
        for name in ("animals01_cows", "vehicle02.old"):
            (frames / f"{name}.labels").mkdir(parents=True)
            Image.fromarray(np.zeros((6, 8, 3), np.uint8)).save(frames / f"{name}.jpg")
            labels = np.zeros((6, 8), np.uint8)
            labels[2:4, 2:5] = 2
            Image.fromarray(labels).save(frames / f"{name}.labels" / "labels_semantic.png")
            Image.fromarray(labels).save(frames / f"{name}.labels" / "labels_semantic_color.png")
        spec = build_spec("road_anomaly", root)
        pairs = find_pairs(spec, root, "test")
        assert [image.name for image, _ in pairs] == ["animals01_cows.jpg", "vehicle02.old.jpg"]
        assert {mask.name for _, mask in pairs} == {"labels_semantic.png"}
        with pytest.raises(UserError, match="no split 'train' in road_anomaly.*known: test"):
            find_pairs(spec, root, "train")
        seen = translate(spec, LabelSpace(("road", "car")))
        target = read_target(pairs[0][1], seen)
        assert (target == 2).sum() == 6  # anomaly: the number of classes
        assert (target == NORMAL).sum() == 42
        assert seen.num_classes == 2


# ---- conditions


@pytest.mark.parametrize(("name", "condition"), [("acdc", "fog"), ("acdc", "night"), ("idd_aw", "lowlight")])
def test_a_condition_is_the_part_of_the_set_taken_under_it(name, condition, tmp_path):
    case = next(case for case in CASES if case.name == name)
    case.write(tmp_path)
    whole, part = audits_of(name, tmp_path), audits_of(f"{name}/{condition}", tmp_path)
    assert part[0].split.spec.name == f"{name}/{condition}"
    for every_pair, own in zip(whole, part, strict=True):
        own_pairs = [p for p in every_pair.split.pairs if f"/{condition}/" in p[0].as_posix().lower()]
        assert own.split.pairs == own_pairs
        assert 0 < len(own_pairs) < len(every_pair.split.pairs)
    drives = [{image.parent for image, _ in audit.split.pairs} for audit in whole]
    assert not drives[0] & drives[1]  # no drive is trained on and validated on


def test_a_condition_alone_suffices_for_itself_and_not_for_the_set(tmp_path):
    case = BY_ID["acdc-rgb_anon-labelIds"]
    case.write(tmp_path)
    for part in ("rgb_anon", "gt"):
        shutil.rmtree(tmp_path / part / "snow")
    assert len(audits_of("acdc/rain", tmp_path)) == 3
    with pytest.raises(UserError, match=r"no split 'train' of acdc/snow at .*--dataset acdc/fog"):
        audits_of("acdc", tmp_path)
    shutil.rmtree(tmp_path / "gt")
    with pytest.raises(
        UserError, match=r"no folder of split 'train' at .*; acdc expects rgb_anon/\{fog,night,rain,snow\}"
    ):
        audits_of("acdc", tmp_path)
    with pytest.raises(UserError, match=r"no folder .*nowhere at .*; acdc expects"):
        audits_of("acdc", tmp_path / "nowhere")


def test_a_missing_condition_is_told_in_the_form_that_lies_there(tmp_path):
    case = BY_ID["acdc-rgb_anon_trainvaltest/rgb_anon-labelTrainIds"]
    case.write(tmp_path)
    shutil.rmtree(tmp_path / "rgb_anon_trainvaltest" / "rgb_anon" / "snow")
    for name in ("acdc", "acdc/snow"):
        with pytest.raises(UserError, match="rgb_anon_trainvaltest/rgb_anon/") as caught:
            audits_of(name, tmp_path, ["train"])
        assert "expect" in str(caught.value)


# ---- bad input


def first_of(case, root, split="train"):
    """The first pair of a split."""
    return find_pairs(build_spec(case.name, root), root, split)[0]


def no_masks(case, root):
    part = build_spec(case.name, root)
    _, masks = next(iter(by_condition(part)[0].splits.values()))
    shutil.rmtree(root / masks)
    return ["no folder" if not part.subsets else "no split 'train'", case.name]


def lonely_image(case, root):
    image, mask = first_of(case, root)
    mask.unlink()
    ending = build_spec(case.name, root).mask_ending
    ending = ending and f" + {ending}"
    return ["have no mask, the first " + image.name, "give every image a mask of the same name" + ending]


def other_size(case, root):
    image, _ = first_of(case, root)
    with Image.open(image) as old:
        old.resize((30, 24)).save(image)
    return ["image and mask differ in size (image 24x30, mask 24x32)", image.name]


def undeclared(case, root):
    _, mask = first_of(case, root)
    coloured = isinstance(next(iter(case.codes)), tuple) or case.mode == "RGB"
    colour = np.full((*SIZE, 3), (1, 2, 3), np.uint8)
    Image.fromarray(colour if coloured else np.full(SIZE, 200, np.uint8)).save(mask)
    return ["label " + ("rgb 1,2,3" if coloured else "200"), "(768 pixels)", "outside the", mask.name]


def damaged(case, root):
    image, _ = first_of(case, root)
    image.write_bytes(image.read_bytes()[:80])
    return ["cannot read image", image.name, "damaged"]


def damaged_mask(case, root):
    _, mask = first_of(case, root)
    mask.write_text("no mask")
    return ["cannot read mask", mask.name]


def empty_split(case, root):
    for image, _ in find_pairs(build_spec(case.name, root), root, "test"):
        image.unlink()
    return ["no image for split 'test'"]


def empty_listed_split(case, root):
    spec = build_spec(case.name, root)
    (root / spec.lists["test"]).write_text("\n")
    return ["no image for split 'test'"]


@pytest.mark.parametrize("fault", [no_masks, lonely_image, other_size, undeclared, damaged, damaged_mask, empty_split])
@every_set
def test_bad_input_is_one_line_that_names_the_place(case, fault, tmp_path, capsys):
    case.write(tmp_path)
    if fault is empty_split and build_spec(case.name, tmp_path).lists:
        fault = empty_listed_split
    parts = fault(case, tmp_path)
    with pytest.raises(UserError) as caught:
        require_clean(audits_of(case.name, tmp_path))
    capsys.readouterr()
    is_one_error_line(f"error: {caught.value}", [*parts, str(tmp_path)])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["msrc", "ade20k", "cityscapes"])
def test_a_missing_folder_is_told_the_layout(tmp_path, name):
    for root in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(UserError, match=f"no folder .*{name} expects "):
            data.open_split(build_spec(name, root), root, "train")


@pytest.mark.parametrize(
    ("text", "message"),
    [("{", "label list cannot be used"), ("{}", "cannot be used"), ('{"labels": []}', "no label of")],
)
def test_a_wrong_config_of_mapillarys(text, message, tmp_path):
    BY_ID["mapillary-config.json"].write(tmp_path)
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(UserError, match=r"config\.json") as caught:
        build_spec("mapillary", tmp_path)
    assert message in str(caught.value)


def test_mapillary_without_its_config_is_told_the_layout(tmp_path):
    BY_ID["mapillary-config_v2.0.json"].write(tmp_path)
    (tmp_path / "config_v2.0.json").unlink()
    with pytest.raises(UserError, match=r"no config_v2\.0\.json at .*; mapillary expects training/images/"):
        audits_of("mapillary", tmp_path)
    with pytest.raises(UserError, match="no known data set"):  # images/ and labels/ of a training set may be anyone's
        recognise(tmp_path)


# ---- the real sets


@pytest.mark.real_data
def test_camvid_counts_equal_an_independent_count(real_data):
    root = real_data / "camvid"
    spec = build_spec("camvid", root)
    for name, images in (("train", 367), ("val", 101), ("test", 233)):
        audit = audit_split(data.open_split(spec, root, name), GRID)
        expected = np.zeros(256, np.int64)
        for path in sorted((root / f"{name}annot").iterdir()):
            with Image.open(path) as mask:
                expected += np.asarray(mask.histogram()[:256])
        assert len(audit.split) == images
        assert audit.fault() is None
        assert audit.counts.tolist() == expected[:11].tolist()
        assert audit.void == expected[11]
        assert expected[12:].sum() == 0


@pytest.mark.real_data
def test_msrc_counts_equal_an_independent_count(real_data):
    root = real_data / "msrc"
    split = data.open_split(build_spec("msrc", root), root, "train")
    audit = audit_split(split, GRID)
    expected = Counter()
    for name in (root / "train.txt").read_text().split():
        with Image.open(root / "GroundTruth" / f"{name}_GT.png") as mask:
            expected.update({colour: n for n, colour in mask.convert("RGB").getcolors(maxcolors=1 << 12)})
    assert len(split) == 276
    assert audit.error() is None
    assert audit.counts.tolist() == [expected[colour] for colour in split.spec.palette]
    assert audit.void == expected[0, 0, 0]
    assert audit.void / audit.pixels == pytest.approx(0.19, abs=0.015)


@pytest.mark.real_data
def test_road_anomaly_holds_60_frames_of_a_tenth_anomaly(real_data):
    root = real_data / "road_anomaly"
    spec = translate(build_spec("road_anomaly", root), LabelSpace(("road",)))
    split = data.open_split(spec, root, "test")
    assert len(split) == 60
    targets = [split.read_target(i) for i in range(60)]
    share = np.mean([(target == 1).mean() for target in targets])
    assert share == pytest.approx(0.099, abs=0.001)
    assert set(np.unique(np.concatenate([t.ravel() for t in targets]))) == {1, NORMAL}
