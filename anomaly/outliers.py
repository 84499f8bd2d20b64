"""Objects of unknown kinds, pasted into training images: how a model learns what it does not know.

`--outliers DIR` takes the objects from another set, image and mask, `--outliers noise-shapes` makes them up. Which
object, its size, place and look are drawn in the main process, as part of a request; workers only paste. Pasted pixels
get the train id C, as anomalies have; every known-class loss skips them, the outlier terms of `--loss` read them.
"""

import re
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image, ImageDraw

import cli
from cli import UserError
from data import Split
from datasets.audit import audit_split
from datasets.catalogue import build_spec, recognise
from datasets.pairs import find_pairs

PASTE = {"chance": 0.5, "number": 3, "size": [0.1, 0.6], "match": 0.5}
PASTED = "chance=0.5"  # the default of --paste
LIMITS = {"chance": (0, 1), "number": (1, 20), "size": (0.02, 2), "match": (0, 1)}
LEAST_PIXELS, LEAST_SIDE = 400, 16  # of an object in its own image: smaller ones are specks
SHAPE_SIDE = 192  # pixels of a made-up object before it is resized
SHAPES = "noise-shapes"

# Different names for one kind of thing: an object of a kind the model knows is no outlier.
KINDS = (
    {"person", "people", "pedestrian", "human", "man", "woman", "child", "body", "face", "rider", "bicyclist",
     "cyclist"},
    {"bicycle", "bike", "bicyclist", "cyclist", "rider"},
    {"motorcycle", "motorbike", "motorcyclist", "rider"},
    {"car", "vehicle", "van", "automobile"},
    {"truck", "lorry", "vehicle"},
    {"bus", "coach", "vehicle"},
    {"train", "tram", "vehicle"},
    {"road", "street", "lane", "asphalt"},
    {"sidewalk", "pavement", "footpath"},
    {"tree", "vegetation", "plant", "bush", "flower", "hedge", "grass"},
    {"building", "house", "wall"},
    {"sign", "signboard"},
    {"pole", "column", "post"},
    {"chair", "seat", "bench"},
)  # fmt: skip
# What has no outline of its own is no object.
STUFF = {
    "sky", "cloud", "water", "sea", "river", "lake", "grass", "ground", "sand", "snow", "mountain", "hill", "terrain",
    "road", "floor", "ceiling", "background", "other", "unlabeled", "void",
}  # fmt: skip


def add_outlier_flags(parser):
    """The flags of training for the unknown."""
    group = parser.add_argument_group("training for the unknown")
    group.add_argument(
        "--outliers",
        default="none",
        metavar="DIR",
        help="paste objects of this other data set into training images, or noise-shapes; none: off",
    )
    group.add_argument(
        "--outlier-classes",
        default="",
        metavar="NAME,...",
        help="which of its classes; empty: all objects whose names do not overlap with the known or held-out classes",
    )
    group.add_argument(
        "--paste",
        default=PASTED,
        help="chance=share of images, number=objects at most, size=low:high of the longer side over the shorter one of "
        "the canvas, match=how much of the place's mean colour and contrast they take on at most",
    )


class Paste(NamedTuple):
    """One object's appearance in a training image.

    source: its place among the objects, or the seed of a made-up one; size: its longer side over the canvas's shorter
    one; row, column: its centre, 0 … 1 of the canvas; flip: mirrored; match: 0 as it is … 1 mean and contrast of the
    place it comes to lie on.
    """

    source: int
    size: float
    row: float
    column: float
    flip: bool
    match: float


class Found(NamedTuple):
    """An object in the outlier set: its image's index, its class's train id, its box (left, top, right, bottom)."""

    index: int
    train_id: int
    box: tuple


def outlier_options(args):
    """What the flags about outliers say, as `open_outliers` and `check_outliers` take it."""
    return {"outliers": args.outliers, "outlier_classes": cli.names(args.outlier_classes), "paste": args.paste}


def check_outliers(outliers, outlier_classes=(), paste=PASTED):
    """Read the flags about outliers, and look whether there is a data set, before hours go into reading data.

    Raises UserError for what cannot be meant.
    """
    parse_paste(paste)
    if outliers == "none":
        for name, given in (("outlier-classes", bool(outlier_classes)), ("paste", paste != PASTED)):
            if given:
                raise UserError(f"--{name} without --outliers", remedy="add --outliers DIR or --outliers noise-shapes")
    elif outliers != SHAPES:
        recognise(outliers)
    elif outlier_classes:
        raise UserError(f"{SHAPES} have no classes", "--outlier-classes", "leave it out")


def parse_paste(text):
    """Read --paste into {name: value}; 'none' is chance=0.

    Raises UserError for an unknown name or a value out of range.
    """
    options = {**PASTE, **cli.parse_items("chance=0" if text == "none" else text, PASTE)}
    for name, value in options.items():
        low, high = LIMITS[name]
        ends = value if isinstance(value, list) else [value]
        if not all(low <= end <= high for end in ends) or ends != sorted(ends) or len(ends) > 2:
            raise UserError(f"{name}={value} is out of range", "--paste", f"it lies between {low} and {high}")
    return options


# ---------------------------------------------------------------------------------------------------------------------
# Names


def name_words(name):
    """The words of a class name, singular and in lower case."""
    return {singular(word) for word in re.findall(r"[a-z]+", name.lower())}


def singular(word):
    """'cars' -> 'car', 'benches' -> 'bench', 'grass' and 'bus' as they are."""
    if re.search("(s|x|ch|sh)es$", word):
        return word[:-2]
    return word if len(word) <= 3 or word.endswith("ss") else word.removesuffix("s")


def overlaps(name, known):
    """The class of `known` that a name may also mean, None where there is none: a shared word, or two of one kind."""
    own = name_words(name)
    meant = own.union(*(kind for kind in KINDS if own & kind))
    return next((other for other in known if meant & name_words(other)), None)


def choose_classes(spec, wanted, known, held_out=()):
    """The train ids of an outlier set's classes to paste, and {class left out: why}.

    wanted: names, all must be classes of the set; [] takes those that are objects and overlap with no name of `known`.
    Raises UserError for a wanted name the set does not have or that may mean a class of `held_out`, which would be
    taught before it is looked for; or where nothing is left.
    """
    for name in wanted:
        if name not in spec.classes:
            raise UserError(f"no class {name!r} in {spec.name}", "--outlier-classes", cli.nearest(name, spec.classes))
        if other := overlaps(name, held_out):
            what = f"{name!r} may mean the held-out class {other!r}"
            raise UserError(what, "--outlier-classes", "what is to be found as unknown must not be taught")
    left = {}
    for name in spec.classes:
        if wanted:
            if name not in wanted:
                left[name] = "not asked for"
        elif other := overlaps(name, known):
            left[name] = f"known as {other}"
        elif name_words(name) & STUFF:
            left[name] = "no object"
    chosen = [i for i, name in enumerate(spec.classes) if name not in left]
    if not chosen:
        raise UserError(f"no class of {spec.name} is left to paste", "--outliers", "name some with --outlier-classes")
    return chosen, left


# ---------------------------------------------------------------------------------------------------------------------
# Objects


class Outliers:
    """The objects, the draw of their pastes, and the pasting.

    objects: [Found], [] where they are made up; split: what they lie in, or None; train_id: of pasted pixels;
    options: `parse_paste`'s.
    """

    def __init__(self, objects, split, train_id, options):
        self.objects, self.split, self.train_id, self.options = objects, split, train_id, options

    def add_pastes(self, requests, order):
        """The requests, a share of them with pastes; all drawn from the generator `order`."""
        chance, most = self.options["chance"], self.options["number"]
        low, high = np.log((self.options["size"] * 2)[:2])
        draws = torch.rand(len(requests), 2 + 6 * most, generator=order, dtype=torch.float64)
        result = []
        for request, (hit, many, *rest) in zip(requests, draws.tolist(), strict=True):
            count = 1 + int(many * most) if hit < chance else 0
            pastes = []
            for start in range(0, 6 * count, 6):
                which, size, row, column, flip, match = rest[start : start + 6]
                source = int(which * (len(self.objects) or 2**31))
                size = float(np.exp(low + size * (high - low)))
                pastes.append(Paste(source, size, row, column, flip < 0.5, match * self.options["match"]))
            result.append(request._replace(pastes=tuple(pastes)))
        return result

    def paste(self, image, target, paste):
        """Put one object into image (h, w, 3) uint8 and target (h, w) uint8, in place; what lies outside is cut off."""
        patch, cover = self.make(paste, min(target.shape))
        height, width = cover.shape
        top = round(paste.row * target.shape[0] - height / 2)
        left = round(paste.column * target.shape[1] - width / 2)
        rows = slice(max(top, 0), min(top + height, target.shape[0]))
        columns = slice(max(left, 0), min(left + width, target.shape[1]))
        inside = (slice(rows.start - top, rows.stop - top), slice(columns.start - left, columns.stop - left))
        below, patch, cover = image[rows, columns].numpy(), patch[inside], cover[inside]  # numpy shares the memory
        if not (cover >= 0.5).any():
            return
        patch = match_colours(patch, cover, below, paste.match)
        below[:] = np.rint(below + cover[..., None] * (patch - below)).clip(0, 255)
        target[rows, columns][torch.from_numpy(cover >= 0.5)] = self.train_id

    def make(self, paste, shorter):
        """An object at its size: colours (h, w, 3) float32 0..255, cover (h, w) float32 0..1, soft at its border."""
        if self.objects:
            patch, mask = self.read(self.objects[paste.source])
        else:
            patch, mask = noise_shape(paste.source)
        if paste.flip:
            patch, mask = (part.transpose(Image.Transpose.FLIP_LEFT_RIGHT) for part in (patch, mask))
        scale = paste.size * shorter / max(patch.size)
        size = [max(2, round(side * scale)) for side in patch.size]
        patch, mask = (part.resize(size, Image.Resampling.BILINEAR) for part in (patch, mask))
        return np.asarray(patch, np.float32), np.asarray(mask, np.float32) / 255

    def read(self, found):
        """An object as PIL images: its box in colours, and its mask 0 or 255."""
        image, target = self.split.read(found.index)
        mask = Image.fromarray(((target == found.train_id) * 255).astype(np.uint8))
        return image.crop(found.box), mask.crop(found.box)


def match_colours(patch, cover, below, strength):
    """The patch with its mean and standard deviation, channel by channel, moved towards those of what it covers.

    patch, below: (h, w, 3); cover: (h, w) 0..1; strength: 0 as it is … 1 theirs.
    """
    inside = cover >= 0.5
    own, place = patch[inside], below[inside].astype(np.float32)  # (pixels, 3)
    mean, spread = own.mean(0), own.std(0) + 1
    wanted_mean = mean + strength * (place.mean(0) - mean)
    wanted_spread = spread + strength * (place.std(0) + 1 - spread)
    return ((patch - mean) / spread * wanted_spread + wanted_mean).clip(0, 255).astype(np.float32)


def noise_shape(seed):
    """A made-up object: a random star-shaped outline filled with noise of some grain, or stripes, in random colours.

    Returns PIL images: RGB, and the mask 0 or 255. The same seed gives the same object.
    """
    rng = np.random.RandomState(seed)
    corners = rng.randint(3, 14)
    angles = np.sort(rng.uniform(0, 2 * np.pi, corners))
    radii = rng.uniform(0.35, 1.0, corners) * SHAPE_SIDE / 2
    stretch = np.exp(rng.uniform(-0.7, 0.7))
    points = np.stack([np.cos(angles) * min(1, stretch), np.sin(angles) * min(1, 1 / stretch)], 1) * radii[:, None]
    mask = Image.new("L", (SHAPE_SIDE, SHAPE_SIDE))
    ImageDraw.Draw(mask).polygon([tuple(point) for point in points + SHAPE_SIDE / 2], fill=255)
    first, second = rng.randint(0, 256, (2, 3))
    if rng.rand() < 0.3:
        along = np.add.outer(*(np.arange(SHAPE_SIDE) * part for part in rng.uniform(-1, 1, 2)))
        mix = np.sin(along * rng.uniform(0.05, 1.5)) / 2 + 0.5  # (side, side), 0..1
        mix = mix[..., None].repeat(3, 2)
    else:
        grain = 2 ** rng.randint(1, 8)  # noise cells along a side
        cells = rng.randint(0, 256, (grain, grain, 3)).astype(np.uint8)
        mix = np.asarray(Image.fromarray(cells).resize((SHAPE_SIDE,) * 2, Image.Resampling.BICUBIC), np.float32) / 255
    colours = (first + mix * (second - first)).astype(np.uint8)
    box = mask.getbbox() or (0, 0, SHAPE_SIDE, SHAPE_SIDE)
    return Image.fromarray(colours).crop(box), mask.crop(box)


def find_objects(split, chosen):
    """Every object of the chosen train ids in a split: all pixels of one class in one image are one object.

    Raises UserError for a file that cannot be read or a label the set does not declare, and for a split without any
    such object.
    """
    audit = audit_split(split, (1, 1))
    if error := audit.error():
        raise error
    found = []
    for index, counts in enumerate(audit.image_counts):
        large = [i for i in chosen if counts[i] >= LEAST_PIXELS]
        target = split.read_target(index) if large else None
        for train_id in large:
            box = Image.fromarray(target == train_id).getbbox()
            if min(box[2] - box[0], box[3] - box[1]) >= LEAST_SIDE:
                found.append(Found(index, train_id, box))
    if not found:
        raise UserError(f"no object of {LEAST_PIXELS} pixels or more", split.root, "name other --outlier-classes")
    return found


def open_outliers(spec, outliers, *, outlier_classes=(), paste=PASTED, sets=(), held_out=()):
    """What is pasted into training images: (Outliers or None, lines that say what it is).

    spec: of the training set, held-out classes taken out; outliers: "none", "noise-shapes" or a folder that holds a
    data set; outlier_classes: names of its classes, none for all objects; paste: as --paste takes it; sets: the rows
    of `parse_sets` that are trained on; held_out: names of the classes that are held out.
    By default no class is pasted whose name overlaps with any of the training set's, the held-out ones among them: what
    is to be found as unknown later must not be taught now.
    Raises UserError for a folder that holds no known data set, or the training set itself, for classes or options that
    do not exist, and for files that cannot be read.
    """
    check_outliers(outliers, outlier_classes, paste)
    if outliers == "none":
        return None, []
    options = parse_paste(paste)
    if outliers == SHAPES:
        return Outliers([], None, spec.num_classes, options), ["outliers: made-up shapes"]
    if Path(outliers).resolve() in {folder.resolve() for _, folder, _ in sets}:
        raise UserError("the training set itself", "--outliers", "its other splits are evaluated on; name another set")
    other = replace(recognise(outliers), cut=())  # all its images: none of them is evaluated on
    known = list(dict.fromkeys(name for one, folder, _ in sets for name in build_spec(one, folder).classes))
    chosen, left = choose_classes(other, outlier_classes, known, held_out)
    pairs = {pair for name in other.splits for pair in find_pairs(other, outliers, name)}
    split = Split("outliers", other, Path(outliers), sorted(pairs))
    objects = find_objects(split, chosen)
    names = ", ".join(other.classes[i] for i in chosen)
    lines = [f"outliers: {len(objects)} objects of {other.name}: {names}"]
    if left:
        lines.append("outliers left out: " + ", ".join(f"{name} ({why})" for name, why in left.items()))
    return Outliers(objects, split, spec.num_classes, options), lines
