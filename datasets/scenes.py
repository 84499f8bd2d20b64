"""The sets of things and places: MSRC, ADE20K, Pascal VOC and what is exported like it, COCO-Stuff."""

from dataclasses import replace

from datasets.class_names import ADE20K_CLASSES, ADE20K_PALETTE, COCOSTUFF_CLASSES
from datasets.own_folder import with_classes_json, with_labelmap
from datasets.spec import SERVER_NOTE, VOID, Spec, with_tops

MSRC_COLOURS = {
    "building": (128, 0, 0), "grass": (0, 128, 0), "tree": (128, 128, 0), "cow": (0, 0, 128), "horse": (128, 0, 128),
    "sheep": (0, 128, 128), "sky": (128, 128, 128), "mountain": (64, 0, 0), "aeroplane": (192, 0, 0),
    "water": (64, 128, 0), "face": (192, 128, 0), "car": (64, 0, 128), "bicycle": (192, 0, 128),
    "flower": (64, 128, 128), "sign": (192, 128, 128), "bird": (0, 64, 0), "book": (128, 64, 0), "chair": (0, 192, 0),
    "road": (128, 64, 128), "cat": (0, 192, 128), "dog": (128, 192, 128), "body": (64, 64, 0), "boat": (192, 64, 0),
}  # fmt: skip

MSRC = Spec(
    name="msrc",
    classes=tuple(MSRC_COLOURS),
    palette=tuple(MSRC_COLOURS.values()),
    values={},
    splits=dict.fromkeys(("train", "val", "test"), ("Images", "GroundTruth")),
    colours={(0, 0, 0): VOID, **{colour: i for i, colour in enumerate(MSRC_COLOURS.values())}},
    mask_ending="_GT",
    lists={split: f"{split}.txt" for split in ("train", "val", "test")},
)

# Microsoft's archive as it is: no lists.
MSRC_UNLISTED = replace(
    MSRC,
    splits={"train": ("Images", "GroundTruth")},
    lists={},
    cut=("val", "test"),
    note="there is no train.txt beside Images/: val and test are cut from all images by the hash of their names",
)

# The exercise with 276 training images: its own folders, masks with the ending or without.
MSRC_EXERCISE = replace(MSRC, splits=dict.fromkeys(MSRC.splits, ("images", "targets")))
MSRC_FORMS = (
    *with_tops(MSRC, MSRC_UNLISTED, tops=("MSRC_ObjCategImageDatabase_v2",)),
    MSRC_EXERCISE,
    replace(MSRC_EXERCISE, mask_ending=""),
)

ADE20K = Spec(
    name="ade20k",
    classes=ADE20K_CLASSES,
    palette=ADE20K_PALETTE,
    values={0: VOID, **{i + 1: i for i in range(150)}},
    splits={
        "train": ("images/training", "annotations/training"),
        "test": ("images/validation", "annotations/validation"),
    },
    colours={},
    cut=("val",),
    note=SERVER_NOTE,
)
ADE20K_FORMS = with_tops(ADE20K, tops=("ADEChallengeData2016",))

COCOSTUFF_FOLDERS = (
    ("images/{}", "annotations/{}"),
    ("images/{}", "annotations/stuffthingmaps_trainval2017/{}"),
    ("images/{}", "stuffthingmaps_trainval2017/{}"),
    ("{}", "stuffthingmaps_trainval2017/{}"),  # COCO's archives unpacked side by side
)


def read_own_classes(spec, root):
    """The set with the classes of a classes.json beside its folders, where there is one. Raises UserError."""
    path = root / spec.top / "classes.json"
    return with_classes_json(spec, path) if path.is_file() else spec


def _cocostuff(images, masks):
    return Spec(
        name="cocostuff",
        classes=COCOSTUFF_CLASSES,
        palette=(),
        values={**{i: i for i in range(182)}, VOID: VOID},
        splits={s: (images.format(f), masks.format(f)) for s, f in (("train", "train2017"), ("test", "val2017"))},
        colours={},
        cut=("val",),
        note=SERVER_NOTE,
        reader=read_own_classes,
    )


COCOSTUFF_FORMS = tuple(_cocostuff(*folders) for folders in COCOSTUFF_FOLDERS)

# ---------------------------------------------------------------------------------------------------------------------
# Pascal VOC


def voc_colour(index):
    """VOC's colour of a class: the bits of its number, spread over red, green and blue from the highest down."""
    return tuple(sum((index >> (3 * bit + part) & 1) << (7 - bit) for bit in range(8)) for part in range(3))


VOC_CLASSES = (
    "background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "diningtable",
    "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor",
)  # fmt: skip
VOC_LISTS = "ImageSets/Segmentation"


def read_voc(spec, root):
    """The classes of a labelmap.txt or classes.json beside a VOC-style set's folders, where there is one.

    A set with classes of its own is an export: its lists are what they are called, and what has none is cut from train.
    Raises UserError for a file that cannot be used.
    """
    labelmap, classes = (root / spec.top / name for name in ("labelmap.txt", "classes.json"))
    if classes.is_file():
        return _as_export(with_classes_json(spec, classes), root)
    return _as_export(with_labelmap(spec, labelmap), root) if labelmap.is_file() else spec


def _as_export(spec, root):
    """A VOC-style set that is not VOC: each split by its own list, the others cut."""
    folder = root / spec.top / VOC_LISTS
    first = spec.lists["train"]
    named = {split: f"{spec.top}/{VOC_LISTS}/{split}.txt".lstrip("/") for split in ("val", "test")}
    lists = {"train": first, **{split: file for split, file in named.items() if (folder / f"{split}.txt").is_file()}}
    cut = tuple(split for split in ("val", "test") if split not in lists)
    splits = dict.fromkeys(lists, spec.splits["train"])
    note = f"there is no list of {' or '.join(cut)}: cut from train by the hash of the names" if cut else ""
    return replace(spec, splits=splits, lists=lists, cut=cut, note=note)


VOC = Spec(
    name="voc",
    classes=VOC_CLASSES,
    palette=tuple(map(voc_colour, range(21))),
    values={**{i: i for i in range(21)}, VOID: VOID},
    splits=dict.fromkeys(("train", "test"), ("JPEGImages", "SegmentationClass")),
    colours={**{voc_colour(i): i for i in range(21)}, voc_colour(VOID): VOID},
    cut=("val",),
    lists={"train": f"{VOC_LISTS}/train.txt", "test": f"{VOC_LISTS}/val.txt"},
    note=SERVER_NOTE,
    reader=read_voc,
)


def _with_one_list(name):
    """An export whose images are all in one list."""
    splits = {"train": VOC.splits["train"]}
    lists = {"train": f"{VOC_LISTS}/{name}.txt"}
    note = "there is one list of all images: val and test are cut from it by the hash of their names"
    return replace(VOC, splits=splits, lists=lists, cut=("val", "test"), note=note)


VOC_FORMS = with_tops(
    VOC,
    _with_one_list("trainval"),
    _with_one_list("default"),
    tops=("VOCdevkit/VOC2012", "VOC2012", "VOCdevkit/VOC2007"),
)
