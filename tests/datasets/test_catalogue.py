"""The official layouts: a miniature of each, as its archive unpacks, read end to end."""

import json
from collections import Counter

import numpy as np
import pytest
from PIL import Image

import data
from cli import UserError
from datasets.audit import audit_split
from datasets.catalogue import build_spec, hold_out, recognise
from datasets.driving import CAMVID, STREETS
from datasets.label_spaces import LabelSpace, translate
from datasets.masks import read_target
from datasets.pairs import find_pairs
from datasets.scenes import ADE20K, MSRC, MSRC_COLOURS
from datasets.spec import NORMAL, VOID

GRID = (6, 8)
ARCHIVE = "MSRC_ObjCategImageDatabase_v2"


def write(path, array):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.asarray(array, np.uint8)).save(path)


def picture(seed):
    return np.random.RandomState(seed).randint(0, 256, (12, 16, 3))


def write_msrc(root, count=6, image=".jpg", mask=".png", lists=True):
    """Bands of void, building and boat."""
    colours = np.array([(0, 0, 0), (128, 0, 0), (192, 64, 0)])
    for i in range(count):
        write(root / "Images" / f"{i}_s{image}", picture(i))
        write(root / "GroundTruth" / f"{i}_s_GT{mask}", colours[np.arange(12) // 4][:, None].repeat(16, 1))
    for i, split in enumerate(("train", "val", "test") if lists else ()):
        names = [f"{k}_s" for k in range(count) if k % 3 == i]
        (root / f"{split}.txt").write_text("\n".join(names) + "\n")
    return root


def write_ade20k(root, count=20):
    for split, images in (("training", count), ("validation", 3)):
        for i in range(images):
            write(root / "images" / split / f"ADE_{split}_{i:08}.jpg", picture(i))
            write(root / "annotations" / split / f"ADE_{split}_{i:08}.png", np.arange(12 * 16).reshape(12, 16) % 151)
    return root


def write_cityscapes(root, *endings, cities=("aachen", "ulm")):
    """Every label id of the archive, and its train id as the official script writes it."""
    ids = np.arange(12 * 16).reshape(12, 16) % 34
    trained = np.full(34, 255)
    trained[[7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33]] = np.arange(19)
    masks = {"labelIds": ids, "labelTrainIds": trained[ids], "instanceIds": ids, "color": picture(0)}
    for split, towns in (("train", cities), ("val", ("munster",))):
        for city in towns:
            name = f"{split}/{city}/{city}_000000_000019"
            write(root / "leftImg8bit" / f"{name}_leftImg8bit.png", picture(1))
            for ending in ("instanceIds", "color", *endings):
                write(root / "gtFine" / f"{name}_gtFine_{ending}.png", masks[ending])
            (root / "gtFine" / f"{name}_gtFine_polygons.json").write_text(json.dumps({}))
    return root, trained[ids]


def read_all(name, root):
    """{split: Split} of a set, each audited without a fault."""
    spec = build_spec(name, root)
    splits = {split: data.open_split(spec, root, split) for split in ("train", "val", "test")}
    for split in splits.values():
        audit = audit_split(split, GRID)
        assert audit.error() is None
        assert audit.counts.sum() + audit.void == 12 * 16 * len(split)
        assert len(split.read(0)[1]) == 12
    files = [split.file(i) for split in splits.values() for i in range(len(split))]
    assert len(set(files)) == len(files)  # no image in two splits
    return splits


# ---- MSRC


def voc_colour(index):
    """The colour map both sets share: the bits of the index, spread over red, green and blue from the highest down."""
    return tuple(sum((index >> (3 * k + c) & 1) << (7 - k) for k in range(3)) for c in range(3))


def test_msrcs_colours_are_the_colour_map_it_was_drawn_with():
    indices = [*range(1, 19), *range(21, 26)]
    assert MSRC.palette == tuple(voc_colour(i) for i in indices)
    assert MSRC.colours[0, 0, 0] == VOID


def test_msrc_with_lists_is_read_by_them(tmp_path):
    splits = read_all("msrc", write_msrc(tmp_path))
    assert [splits["val"].file(i) for i in range(2)] == ["Images/1_s.jpg", "Images/4_s.jpg"]
    _, target = splits["train"].read(0)
    assert target[::4, 0].tolist() == [VOID, 0, 22]


@pytest.mark.parametrize("folder", ["", ARCHIVE])
def test_msrcs_own_archive_has_no_lists_and_is_cut_by_name(tmp_path, folder, capsys):
    write_msrc(tmp_path / folder, 40, ".bmp", ".bmp", lists=False)
    splits = read_all("msrc", tmp_path)
    assert sum(map(len, splits.values())) == 40
    assert all(splits["test"].pairs)
    data.open_dataset("msrc", tmp_path)
    assert "no train.txt" in capsys.readouterr().err


def test_a_list_may_name_files(tmp_path):
    write_msrc(tmp_path)
    path = tmp_path / "train.txt"
    path.write_text(path.read_text().replace("_s", "_s.bmp"))  # as the archive's own images are called
    assert len(data.open_split(MSRC, tmp_path, "train")) == 2


def break_list(root, change):
    path = root / "train.txt"
    path.unlink() if change is None else path.write_text(change(path.read_text()))


@pytest.mark.parametrize(
    ("fault", "text"),
    [
        (lambda r: break_list(r, lambda t: t + "nobody\n"), r"1 of 3 names have no image, the first nobody at .*train"),
        (lambda r: break_list(r, lambda t: t + "1_s\n"), "1 names are in train and in val too, the first 1_s"),
        (lambda r: break_list(r, lambda t: ""), "no image for split 'train'"),
        (lambda r: (r / "GroundTruth" / "3_s_GT.png").unlink(), "1 of 2 images have no mask, the first 3_s.jpg"),
        (lambda r: (r / "val.txt").unlink(), "cannot read the list of split 'val'"),
        (lambda r: write(r / "Images" / "3_s.bmp", picture(0)), "two files named 3_s"),
        (lambda r: (r / "Images").rename(r / "images0"), "no folder Images .*expects Images/ with GroundTruth/, train"),
    ],
)
def test_faults_of_a_listed_set_are_one_line(tmp_path, fault, text):
    fault(write_msrc(tmp_path))
    with pytest.raises(UserError, match=text) as caught:
        read_all("msrc", tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("mask", "cause"),
    [
        (np.full((12, 16), 3), "codes its classes by colour"),
        (np.full((12, 16, 3), (1, 2, 3)), "another set's coding"),
        (picture(3), "make a photograph, not a mask"),
    ],
)
def test_a_mask_in_another_coding_names_the_cause(tmp_path, mask, cause):
    write(write_msrc(tmp_path) / "GroundTruth" / "0_s_GT.png", mask)
    audit = audit_split(data.open_split(MSRC, tmp_path, "train"), GRID)
    assert cause in str(audit.error())


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
    assert audit.counts.tolist() == [expected[colour] for colour in MSRC.palette]
    assert audit.void == expected[0, 0, 0]
    assert audit.void / audit.pixels == pytest.approx(0.19, abs=0.015)


# ---- ADE20K and Cityscapes


@pytest.mark.parametrize("folder", ["", "ADEChallengeData2016"])
def test_ade20k_is_read_from_its_folder_or_the_one_around(tmp_path, folder):
    write_ade20k(tmp_path / folder)
    splits = read_all("ade20k", tmp_path)
    assert len(splits["train"]) + len(splits["val"]) == 20
    assert "images/validation" in splits["test"].file(0)
    _, target = splits["train"].read(0)
    assert target.ravel()[[0, 1, 150, 151]].tolist() == [VOID, 0, 149, VOID]


def test_ade20ks_150_classes():
    spec = ADE20K
    assert len(spec.classes) == len(set(spec.classes)) == len(spec.palette) == 150
    assert [spec.classes[i] for i in (0, 12, 20, 149)] == ["wall", "person", "car", "flag"]
    assert [spec.palette[i] for i in (0, 12, 149)] == [(120, 120, 120), (150, 5, 61), (92, 0, 255)]


@pytest.mark.parametrize("endings", [["labelIds"], ["labelTrainIds"], ["labelIds", "labelTrainIds"]])
def test_cityscapes_is_the_same_in_both_codings(tmp_path, endings):
    _, expected = write_cityscapes(tmp_path, *endings)
    splits = read_all("cityscapes", tmp_path)
    assert splits["train"].pairs[0][1].name == f"ulm_000000_000019_gtFine_{endings[-1]}.png"
    assert np.array_equal(splits["train"].read_target(0), expected)


def test_cityscapes_validation_is_cut_by_city_and_test_is_official(tmp_path):
    cities = (
        "aachen", "bochum", "bremen", "cologne", "darmstadt", "dusseldorf", "erfurt", "hamburg", "hanover", "jena",
        "krefeld", "monchengladbach", "strasbourg", "stuttgart", "tubingen", "ulm", "weimar", "zurich",
    )  # fmt: skip
    write_cityscapes(tmp_path, "labelIds", cities=cities)
    splits = read_all("cityscapes", tmp_path)
    assert [splits["val"].pairs[i][0].parent.name for i in range(3)] == ["aachen", "erfurt", "jena"]
    assert [len(splits[s]) for s in ("train", "val", "test")] == [15, 3, 1]
    assert splits["test"].pairs[0][0].parent.name == "munster"


def test_an_image_without_its_mask_is_told_how_masks_are_named(tmp_path):
    root, _ = write_cityscapes(tmp_path, "labelIds")
    (root / "gtFine/train/ulm/ulm_000000_000019_gtFine_labelIds.png").unlink()
    with pytest.raises(UserError, match=r"1 of 2 images have no mask.*_gtFine_labelIds"):
        read_all("cityscapes", root)


@pytest.mark.parametrize("name", ["msrc", "ade20k", "cityscapes"])
def test_a_missing_folder_is_told_the_layout(tmp_path, name):
    for root in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(UserError, match=f"no folder .*{name} expects "):
            data.open_split(build_spec(name, root), root, "train")


# --- anomalies by agreement


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


def write_mask(path, values, colours=None):
    mask = np.asarray(values, np.uint8)
    Image.fromarray(mask if colours is None else np.asarray(colours, np.uint8)[mask]).save(path)
    return path


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


def test_a_folder_is_recognised_by_what_lies_in_it(tmp_path, folder_set):
    assert recognise(folder_set).name == "folder"
    for name in ("train", "trainannot"):
        (tmp_path / "c" / name).mkdir(parents=True)
    write_mask(tmp_path / "c" / "trainannot" / "a.png", [[0]])
    assert recognise(tmp_path / "c").name == "camvid"
    with pytest.raises(UserError, match="no known data set"):
        recognise(tmp_path)
    with pytest.raises(UserError, match="no such folder"):
        recognise(tmp_path / "none")
