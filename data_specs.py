"""What each data set looks like on disk, as plain declarations.

A `Spec` says where the pairs of a split lie and how a mask's values become train ids: 0 … C-1 for the known classes, C
for anomaly where the set has one, 255 for void. A set that comes in several official forms has one Spec a form, and
what lies in the data folder decides. `folder` is anyone's own set, described by its `classes.json`.
"""

import hashlib
import json
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

import numpy as np

import data_ade20k
from flags import UserError, nearest, warn

VOID = 255  # the train id no loss and no metric counts
UNKNOWN = 254  # in a decoded mask: a value that is neither a class nor void; never reaches a target
NORMAL = 253  # no anomaly, but of no known class either: sets that label anomalies and nothing else
IMAGE_ENDINGS = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff", ".ppm")


@dataclass(frozen=True)
class Spec:
    """One data set's layout and coding.

    values: mask value -> train id, for masks that hold one number a pixel; colours: (r, g, b) -> train id, for masks
    drawn in colours (empty where there are none); splits: name -> (image folder, mask folder) under the data folder;
    cut: the splits without a folder of their own, cut from train by the hash rule of `cut_of`, which reads an image's
    name, or with cut_by="folder" its folder's; image_ending, mask_ending: what a file's name ends with before its type,
    after the name that image and mask share; lists: split -> file under the data folder with one such name a line,
    where a split's folders hold more than the split; note: what to know before its numbers are compared with others';
    held_out: mask values and colours of the classes that `hold_out` made anomalies, void in training; flat: images lie
    in their folder itself, what is deeper is none.
    """

    name: str
    classes: tuple
    palette: tuple
    values: dict
    splits: dict
    colours: dict
    anomaly: bool = False
    cut: tuple = ()
    cut_by: str = "name"
    image_ending: str = ""
    mask_ending: str = ""
    lists: dict = field(default_factory=dict)
    note: str = ""
    held_out: frozenset = frozenset()
    flat: bool = False

    @property
    def num_classes(self):
        """Known classes: without void, without anomaly."""
        return len(self.classes)

    def of_split(self, split):
        """The coding of one split: what is held out is void in training, so that nothing is learnt from it."""
        if split != "train" or not self.held_out:
            return self
        values, colours = (
            {code: VOID if code in self.held_out else i for code, i in coding.items()}
            for coding in (self.values, self.colours)
        )
        return replace(self, values=values, colours=colours)

    @cached_property
    def value_table(self):
        """Mask value 0 … 65535 -> train id, (65536,) uint8; UNKNOWN where the set has no such value."""
        table = np.full(65536, UNKNOWN, np.uint8)
        for value, train_id in self.values.items():
            table[value] = train_id
        return table

    @cached_property
    def colour_table(self):
        """Mask colour r·65536 + g·256 + b -> train id, (2^24,) uint8; UNKNOWN where the set has no such colour."""
        table = np.full(1 << 24, UNKNOWN, np.uint8)
        for (red, green, blue), train_id in self.colours.items():
            table[red << 16 | green << 8 | blue] = train_id
        return table


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

# The official test masks of both following sets are kept by their evaluation servers. What is commonly reported is the
# official validation set, so that is `test` here; `val`, on which best.pth is chosen, is cut from train instead.
SERVER_NOTE = "its test masks are not public: test is the official validation set, val is cut from train by hash"

ADE20K = Spec(
    name="ade20k",
    classes=data_ade20k.CLASSES,
    palette=data_ade20k.PALETTE,
    values={0: VOID, **{i + 1: i for i in range(150)}},
    splits={
        "train": ("images/training", "annotations/training"),
        "test": ("images/validation", "annotations/validation"),
    },
    colours={},
    cut=("val",),
    note=SERVER_NOTE,
)

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
    values={**{i: i for i in range(19)}, 255: VOID},
    splits={"train": ("leftImg8bit/train", "gtFine/train"), "test": ("leftImg8bit/val", "gtFine/val")},
    colours={},
    cut=("val",),
    cut_by="folder",  # by city (aachen, erfurt and jena: 402 of 2975): frames of one drive resemble each other
    image_ending="_leftImg8bit",
    mask_ending="_gtFine_labelTrainIds",
    note=SERVER_NOTE,
)  # fmt: skip

# The ids of the 19 classes among the 34 of the archive's own masks; the others count as void.
CITYSCAPES_IDS = (7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33)
CITYSCAPES_LABEL_IDS = replace(
    CITYSCAPES,
    values={**dict.fromkeys(range(34), VOID), **{label: i for i, label in enumerate(CITYSCAPES_IDS)}},
    mask_ending="_gtFine_labelIds",
)


# The frames are named one by one, "normal" and "anomaly" are its only labels: its classes are those of the model that
# looks at it (`adopt_classes`).
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


def below(spec, folder):
    """The same set with its archive's own top folder still around it."""
    splits = {split: tuple(f"{folder}/{part}" for part in parts) for split, parts in spec.splits.items()}
    return replace(spec, splits=splits, lists={split: f"{folder}/{file}" for split, file in spec.lists.items()})


# Every set's forms, in order of preference.
SPECS = {
    "streets": (STREETS,),
    "camvid": (CAMVID,),
    "streethazards": (STREETHAZARDS,),
    "msrc": (
        MSRC,
        MSRC_UNLISTED,
        below(MSRC, "MSRC_ObjCategImageDatabase_v2"),
        below(MSRC_UNLISTED, "MSRC_ObjCategImageDatabase_v2"),
    ),
    "ade20k": (ADE20K, below(ADE20K, "ADEChallengeData2016")),
    "cityscapes": (CITYSCAPES, CITYSCAPES_LABEL_IDS),
    "road_anomaly": (ROAD_ANOMALY, below(ROAD_ANOMALY, "RoadAnomaly_jpg")),
}
DATASETS = (*SPECS, "folder")


def build_spec(name, root):
    """The spec of a data set by name, in the form that lies in ROOT; for `folder`, read from ROOT/classes.json.

    Raises UserError for an unknown name, or a classes.json that is missing or wrong.
    """
    if name == "folder":
        return folder_spec(Path(root))
    if name not in SPECS:
        raise UserError(f"unknown data set {name!r}", "--dataset", nearest(name, DATASETS))
    forms = SPECS[name]
    return next((spec for spec in forms if len(forms) > 1 and _lies_in(Path(root), spec)), forms[0])


def _lies_in(root, spec):
    """Whether the first split of this form is there: folders, list, masks of its ending."""
    split, parts = next(iter(spec.splits.items()))
    images, masks = (root / part for part in parts)
    listed = not spec.lists or (root / spec.lists[split]).is_file()
    ending = spec.mask_ending.rpartition("/")[2]
    return images.is_dir() and masks.is_dir() and listed and any(masks.rglob(f"*{ending}.*"))


def recognise(root):
    """The spec of whatever known set lies in a folder, `folder` included. Raises UserError where none does."""
    root = Path(root)
    if not root.is_dir():
        raise UserError("no such folder", root, "check the path")
    if (root / "classes.json").is_file():
        return folder_spec(root)
    found = next((spec for forms in SPECS.values() for spec in forms if _lies_in(root, spec)), None)
    if found is None:
        raise UserError("no known data set", root, f"it holds none of the layouts of {', '.join(SPECS)}; {FOLDER_HELP}")
    return found


# ---------------------------------------------------------------------------------------------------------------------
# The same class by other names

# Other sets' names for what Cityscapes calls so, where it has such a class.
ALIASES = {
    "pavement": "sidewalk",
    "footpath": "sidewalk",
    "tree": "vegetation",
    "sign": "traffic sign",
    "sign symbol": "traffic sign",
    "pedestrian": "person",
    "body": "person",
    "bicyclist": "rider",
    "cyclist": "rider",
    "road line": "road",  # most sets do not label lines apart
    "lane marking": "road",
    "aeroplane": "airplane",
    "ship": "boat",
    "minibike": "motorcycle",
}


def canonical_classes(classes):
    """The common names of a set's classes, in their order: two sets hold the same class where these are equal.

    Two classes of one set may share a name ("road" and "road line"). StreetHazards' "unlabeled", where there is no
    "sky" beside it, is the sky.
    """
    names = [" ".join(name.lower().replace("_", " ").replace("-", " ").split()) for name in classes]
    aliases = ALIASES if "sky" in names else {**ALIASES, "unlabeled": "sky"}
    return [aliases.get(name, name) for name in names]


# ---------------------------------------------------------------------------------------------------------------------
# Anomalies by agreement


def hold_out(spec, names):
    """The set with some of its classes as anomalies: void in training, positive in validation and test.

    Raises UserError for a name that is no class of the set, or where no class would be left.
    Source: the protocol of BDD-Anomaly (Hendrycks et al., 2022). Deviation: there the images that show a held-out class
    are left out of training; here only its pixels are void, so that small sets stay whole.
    """
    for name in names:
        if name not in spec.classes:
            raise UserError(f"no class {name!r} in {spec.name}", "--anomaly-classes", nearest(name, spec.classes))
    kept = [i for i, name in enumerate(spec.classes) if name not in names]
    if not kept:
        raise UserError("no class is left to learn", "--anomaly-classes", "hold fewer classes out")
    train_ids = {VOID: VOID, spec.num_classes: len(kept), **{old: new for new, old in enumerate(kept)}}
    held_out = [code for coding in (spec.values, spec.colours) for code, i in coding.items() if i not in train_ids]
    values, colours = (
        {code: train_ids.get(i, len(kept)) for code, i in coding.items()} for coding in (spec.values, spec.colours)
    )
    palette = tuple(spec.palette[i] for i in kept) if spec.palette else ()
    return replace(
        spec,
        classes=tuple(spec.classes[i] for i in kept),
        palette=palette,
        values=values,
        colours=colours,
        anomaly=True,
        held_out=frozenset(held_out),
    )


def adopt_classes(spec, classes, palette):
    """A set without classes of its own, as a model with these classes sees it: its anomaly gets their number."""
    values = {value: len(classes) if i == 0 else i for value, i in spec.values.items()}
    return replace(spec, classes=tuple(classes), palette=tuple(palette), values=values)


# ---------------------------------------------------------------------------------------------------------------------
# folder: anyone's own set

FOLDER_HELP = (
    "a folder set holds images/{train,val,test}/, masks/{train,val,test}/ (same names, PNG) and classes.json: "
    '{"classes": [{"name": "floor", "color": [80, 50, 50]}, …], "void": [255]}'
)


def folder_spec(root):
    """Read ROOT/classes.json.

    "classes": a list of names, or of {"name", "color": [r, g, b], "values": [mask values]}; a class without values is
    its place in the list. "void": mask values, or colours, no metric counts. "label_map": {"mask value": "class name"
    or null for void}, which overrides the rest. Colours also code masks that are drawn in RGB.
    Raises UserError for a missing or malformed file, a repeated name, value or colour.
    """
    path = root / "classes.json"
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        entries = [{"name": e} if isinstance(e, str) else dict(e) for e in content["classes"]]
        names = tuple(str(entry["name"]) for entry in entries)
        colours = {_colour(e["color"]): i for i, e in enumerate(entries) if "color" in e}
        values, void_colours = _folder_values(content, entries, names)
    except FileNotFoundError:
        raise UserError("no classes.json", path, FOLDER_HELP) from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"classes.json cannot be used ({error!r})", path, FOLDER_HELP) from None
    coloured = sum("color" in entry for entry in entries)
    if void_colours.keys() & colours.keys():
        raise UserError("a colour is both void and a class", path, FOLDER_HELP)
    if not 1 <= len(names) <= 252 or len(set(names)) < len(names) or len(colours) < coloured:
        raise UserError(f"{len(names)} classes, with a name or colour that repeats, or too many", path, FOLDER_HELP)
    palette = tuple(_colour(e["color"]) for e in entries) if coloured == len(names) else ()
    present = [split for split in ("train", "val", "test") if (root / "images" / split).is_dir()]
    return Spec(
        name="folder",
        classes=names,
        palette=palette,
        values=values,
        splits={split: (f"images/{split}", f"masks/{split}") for split in ("train", *present)},
        colours={**colours, **void_colours} if coloured == len(names) else {},
        cut=tuple(split for split in ("val", "test") if split not in present),
    )


def _colour(entry):
    red, green, blue = map(int, entry)
    if not all(0 <= part < 256 for part in (red, green, blue)):
        raise ValueError(f"colour {entry} is not [r, g, b] of 0 to 255")
    return red, green, blue


def _folder_values(content, entries, names):
    """classes.json's mask values -> train ids, and its void colours."""
    values = {}
    for i, entry in enumerate(entries):
        for value in entry.get("values", [i]):
            if values.setdefault(int(value), i) != i:
                raise ValueError(f"mask value {value} belongs to two classes")
    void_colours = {}
    for void in content.get("void", [VOID]):
        if isinstance(void, list):
            void_colours[_colour(void)] = VOID
        elif values.setdefault(int(void), VOID) != VOID:
            raise ValueError(
                f"mask value {void} is void and class {names[values[int(void)]]}; give classes their values"
            )
    for value, name in content.get("label_map", {}).items():
        values[int(value)] = VOID if name is None else names.index(name)
    if not all(0 <= value < 65536 for value in values):
        raise ValueError("mask values lie between 0 and 65535")
    return values, void_colours


def cut_of(stem, cut):
    """The split a training image goes to where val or test have no folder of their own.

    The rule: the first 8 hex digits of the SHA-256 of the file's name without ending, as a fraction of 2^32; below 0.15
    is val, below 0.30 is test, where that split has to be cut, and the rest is train.
    """
    share = int(hashlib.sha256(stem.encode()).hexdigest()[:8], 16) / 2**32
    split = "val" if share < 0.15 else "test" if share < 0.30 else "train"
    return split if split in cut else "train"


# ---------------------------------------------------------------------------------------------------------------------
# Pairs


def layout_text(spec):
    """The folders and lists a set is expected to have, for an error message."""
    folders = dict.fromkeys(f"{images}/ with {masks}/" for images, masks in spec.splits.values())
    return ", ".join((*folders, *spec.lists.values()))


def find_images(folder, pattern="**/*"):
    """All images below a folder, sorted by path; pattern "*": in the folder itself only."""
    return sorted(p for p in folder.glob(pattern) if p.suffix.lower() in IMAGE_ENDINGS and not p.name.startswith("."))


def find_pairs(spec, root, split):
    """The (image, mask) paths of a split, sorted by the image's path; a mask has its image's name with any file type.

    Raises UserError for a missing folder, an empty one, an unknown split, two images or masks of one name, images
    without a mask, or a list that is missing, names what is not there or shares a name with another split's. Masks
    without an image are named in a warning.
    """
    root = Path(root)
    image_folder, mask_folder = _folders(spec, root, split)
    images = _by_name(image_folder, spec.image_ending, "*" if spec.flat else "**/*")
    masks = _by_name(mask_folder, spec.mask_ending)
    names = _listed(spec, root, split, images) if spec.lists else sorted(images)
    lonely = [name for name in names if name not in masks]
    if lonely:
        raise UserError(
            f"{len(lonely)} of {len(names)} images have no mask, the first {images[lonely[0]].name}",
            mask_folder,
            f"give every image a mask of the same name{spec.mask_ending and ' + ' + spec.mask_ending}, or remove it",
        )
    if not spec.lists and masks.keys() - images.keys():
        warn(f"{len(masks.keys() - images.keys())} masks in {mask_folder} have no image; they are not used")
    if names and spec.cut and (split in spec.cut or split == "train"):
        names = _cut(spec, split, names, image_folder)
    if not names:
        endings = ", ".join(spec.image_ending + ending for ending in IMAGE_ENDINGS)
        raise UserError(f"no image for split {split!r}", image_folder, f"expected files that end in {endings}")
    return [(images[name], masks[name]) for name in names]


def _folders(spec, root, split):
    """The image and the mask folder a split is read from, both there."""
    if split not in spec.splits and split not in spec.cut:
        raise UserError(f"no split {split!r} in {spec.name}", "--split", f"known: {', '.join(spec.splits)}")
    parts = spec.splits["train" if split in spec.cut else split]
    for part in (".", *parts):
        if not (root / part).is_dir():
            name = root if part == "." else part
            raise UserError(f"no folder {name}", root / part, f"{spec.name} expects {layout_text(spec)}")
    return [root / part for part in parts]


def _by_name(folder, ending, pattern="**/*"):
    """{name: path} of the images below a folder whose names end in `ending`, which the names here leave out."""
    found = {}
    for path in find_images(folder, pattern):
        stem = path.relative_to(folder).with_suffix("").as_posix()
        if not stem.endswith(ending):
            continue
        name = stem.removesuffix(ending)
        if name in found:
            raise UserError(f"two files named {stem}", folder, f"keep one of {found[name].name} and {path.name}")
        found[name] = path
    return found


def _cut(spec, split, names, folder):
    """The names that the hash rule gives to a split."""
    parts = [Path(name).parent.name if spec.cut_by == "folder" else Path(name).name for name in names]
    chosen = [name for name, part in zip(names, parts, strict=True) if cut_of(part, spec.cut) == split]
    if not chosen:
        what = f"none of the {len(names)} images falls into split {split!r} where splits are cut by the files' names"
        own = "make images/val/ and masks/val/ (or test) yourself"
        raise UserError(what, folder, own if spec.name == "folder" else f"is {spec.name} complete?")
    return chosen


def _listed(spec, root, split, images):
    """A split's names from its list, sorted, each of them among the images and in no other split's list."""
    names, file = _read_list(root, spec, split), root / spec.lists[split]
    missing = sorted(names - images.keys())
    if missing:
        what = f"{len(missing)} of {len(names)} names have no image, the first {missing[0]}"
        raise UserError(what, file, "add the images, or take the names out")
    for other in spec.lists:
        shared = sorted(names & _read_list(root, spec, other)) if other != split else []
        if shared:
            what = f"{len(shared)} names are in {split} and in {other} too, the first {shared[0]}"
            raise UserError(what, file, "give every image to one split: what was trained on cannot be measured on")
    return sorted(names)


def _read_list(root, spec, split):
    """The set of names in a split's list, their file types left out."""
    path = root / spec.lists[split]
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        what = f"cannot read the list of split {split!r} ({error.__class__.__name__})"
        raise UserError(what, path, f"{spec.name} expects {layout_text(spec)}") from None
    names = (Path(line.strip()) for line in lines if line.strip())
    return {(n.with_suffix("") if n.suffix.lower() in IMAGE_ENDINGS else n).as_posix() for n in names}
