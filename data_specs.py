"""What each data set looks like on disk, as plain declarations.

A `Spec` says where the pairs of a split lie and how a mask's values become train ids: 0 … C-1 for the known classes, C
for anomaly where the set has one, 255 for void. `folder` is anyone's own set, described by its `classes.json`.
"""

import hashlib
import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from flags import UserError, nearest, warn

VOID = 255  # the train id no loss and no metric counts
UNKNOWN = 254  # in a decoded mask: a value that is neither a class nor void; never reaches a target
IMAGE_ENDINGS = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff", ".ppm")


@dataclass(frozen=True)
class Spec:
    """One data set's coding.

    values: mask value -> train id, for masks that hold one number a pixel; colours: (r, g, b) -> train id, for masks
    drawn in colours (empty where there are none); splits: name -> (image folder, mask folder) under the data folder;
    cut: the splits without a folder of their own, cut from train by the hash rule of `cut_of`.
    """

    name: str
    classes: tuple
    palette: tuple
    values: dict
    splits: dict
    colours: dict
    anomaly: bool = False
    cut: tuple = ()

    @property
    def num_classes(self):
        """Known classes: without void, without anomaly."""
        return len(self.classes)

    @cached_property
    def value_table(self):
        """Mask value 0 … 65535 -> train id, (65536,) uint8; UNKNOWN where the set has no such value."""
        table = np.full(65536, UNKNOWN, np.uint8)
        table[list(self.values)] = list(self.values.values())
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

STREETS = Spec(**{**vars(STREETHAZARDS), "name": "streets"})  # the embedded scenes: same layout, same coding

SPECS = {spec.name: spec for spec in (STREETS, CAMVID, STREETHAZARDS)}
DATASETS = (*SPECS, "folder")


def build_spec(name, root):
    """The spec of a data set by name; for `folder`, read from ROOT/classes.json.

    Raises UserError for an unknown name, or a classes.json that is missing or wrong.
    """
    if name == "folder":
        return folder_spec(Path(root))
    if name not in SPECS:
        raise UserError(f"unknown data set {name!r}", "--dataset", nearest(name, DATASETS))
    return SPECS[name]


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
    if not 1 <= len(names) <= 253 or len(set(names)) < len(names) or len(colours) < coloured:
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
    """The folders a set is expected to have, for an error message."""
    return ", ".join(f"{images}/ with {masks}/" for images, masks in spec.splits.values())


def find_images(folder):
    """All images below a folder, sorted by path."""
    return sorted(p for p in folder.rglob("*") if p.suffix.lower() in IMAGE_ENDINGS and not p.name.startswith("."))


def find_pairs(spec, root, split):
    """The (image, mask) paths of a split, sorted by the image's path; a mask has its image's name with any ending.

    Raises UserError for a missing folder, an empty one, an unknown split, two images or masks of one name, or images
    without a mask. Masks without an image are named in a warning.
    """
    root = Path(root)
    if split not in spec.splits and split not in spec.cut:
        raise UserError(f"no split {split!r} in {spec.name}", "--split", f"known: {', '.join(spec.splits)}")
    cutting = split in spec.cut or (split == "train" and spec.cut)
    parts = spec.splits["train" if split in spec.cut else split]
    for part in (".", *parts):
        if not (root / part).is_dir():
            name = root if part == "." else part
            raise UserError(f"no folder {name}", root / part, f"{spec.name} expects {layout_text(spec)}")
    image_folder, mask_folder = (root / part for part in parts)
    images, masks = _by_stem(image_folder), _by_stem(mask_folder)
    lonely = sorted(set(images) - set(masks))
    if lonely:
        raise UserError(
            f"{len(lonely)} of {len(images)} images have no mask, the first {images[lonely[0]].name}",
            mask_folder,
            "give every image a mask of the same name, or remove it",
        )
    if set(masks) - set(images):
        warn(f"{len(set(masks) - set(images))} masks in {mask_folder} have no image; they are not used")
    stems = sorted(images)
    if cutting and stems and not any(cut_of(Path(s).name, spec.cut) == split for s in stems):
        what = f"the hash rule puts none of the {len(stems)} images into split {split!r}"
        raise UserError(what, image_folder, f"make images/{split}/ and masks/{split}/ yourself")
    stems = [s for s in stems if not cutting or cut_of(Path(s).name, spec.cut) == split]
    if not stems:
        raise UserError(f"no image for split {split!r}", image_folder, f"expected {', '.join(IMAGE_ENDINGS)} files")
    return [(images[stem], masks[stem]) for stem in stems]


def _by_stem(folder):
    found = {}
    for path in find_images(folder):
        stem = path.relative_to(folder).with_suffix("").as_posix()
        if stem in found:
            raise UserError(f"two files named {stem}", folder, f"keep one of {found[stem].name} and {path.name}")
        found[stem] = path
    return found
