"""One label space for several data sets: which classes are the same, by their common names.

`--dataset A,B --label-space NAME` codes every set's masks in one list of classes. A class of a set takes the place of
the class with the same common name; one that has no such place becomes void, and is listed with its share of pixels.
"""

import itertools
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

from cli import UserError
from cli import names as split_names
from datasets.catalogue import SPECS, parse_name
from datasets.spec import NORMAL, VOID, Spec

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
    "motorbike": "motorcycle",
    "sky other": "sky",  # COCO-Stuff's
    "building other": "building",
    "wall other": "wall",
}

# What a coarser label space has no place of its own for: common name -> the class it belongs to there. These are the
# groups in which CamVid's 32 classes became 11: its buildings hold walls, its cars all vehicles on four wheels and
# more, its bicyclists what they ride.
MERGED = {
    "driving19": {},
    "driving11": {
        "wall": "building",
        "traffic light": "traffic sign",
        "terrain": "vegetation",
        "truck": "car",
        "bus": "car",
        "train": "car",
        "motorcycle": "rider",
        "bicycle": "rider",
        "bridge": "building",  # IDD's, as CamVid's own
        "autorickshaw": "car",
    },
}
LABEL_SPACES = ("own", "intersection", *MERGED)


def common_names(classes):
    """The common names of a set's classes, in their order: two sets hold the same class where these are equal.

    Two classes of one set may share a name ("road" and "road line"). StreetHazards' "unlabeled" is its sky: the set is
    known by its road lines, and has no other sky.
    """
    names = [" ".join(name.lower().replace("_", " ").replace("-", " ").split()) for name in classes]
    of_streethazards = "road line" in names and "sky" not in names
    aliases = {**ALIASES, "unlabeled": "sky"} if of_streethazards else ALIASES
    return [aliases.get(name, name) for name in names]


@dataclass(frozen=True)
class LabelSpace:
    """The classes in which several sets are seen; merged: common name -> the class that holds it here."""

    classes: tuple
    palette: tuple = ()
    merged: dict = field(default_factory=dict)

    def common_names(self, classes):
        """The common names of a set's classes, those that this space merges as the one they merge into."""
        return [self.merged.get(name, name) for name in common_names(classes)]

    def places(self, classes):
        """For each of a set's classes its place in this space, None where it has none.

        The same name comes first, then the common name; of several that share it the one called so, or the first.
        """
        here = common_names(self.classes)
        by_common = {name: here.index(name) for name in here}
        by_common |= {name: i for i, name in enumerate(here) if self.classes[i] == name}
        by_name = {name: i for i, name in enumerate(self.classes)}
        common = self.common_names(classes)
        return [by_name.get(own, by_common.get(name)) for own, name in zip(classes, common, strict=True)]


def build_space(name, specs):
    """The LabelSpace that --label-space names, for sets with these specs.

    own: the first set's classes; intersection: the common names that every set has, in the first one's order.
    Raises UserError where fewer than two classes are left.
    """
    if name == "own":
        return LabelSpace(specs[0].classes, specs[0].palette)
    driving = SPECS["cityscapes"][0]
    if name in MERGED:
        kept = [i for i, one in enumerate(driving.classes) if one not in MERGED[name]]
        classes, palette = (tuple(part[i] for i in kept) for part in (driving.classes, driving.palette))
        return LabelSpace(classes, palette, MERGED[name])
    shared = set.intersection(*(set(common_names(spec.classes)) for spec in specs))
    classes = tuple(dict.fromkeys(one for one in common_names(specs[0].classes) if one in shared))
    if len(classes) < 2:
        what = f"{', '.join(spec.name for spec in specs)} share {len(classes)} classes by name"
        raise UserError(what, "--label-space intersection", "use own or driving19, or rename classes in classes.json")
    official = dict(zip(driving.classes, driving.palette, strict=True))
    own = dict(zip(common_names(specs[0].classes), specs[0].palette, strict=False))
    palette = tuple(official.get(one, own.get(one)) for one in classes)
    return LabelSpace(classes, () if None in palette or len(set(palette)) < len(palette) else palette)


def translate(spec, space):
    """A set as seen in a label space: its codes become the space's train ids, the anomaly's the number of classes.

    What has no place is void; `unmapped` keeps those classes' names by their codes.
    Raises UserError where the set has classes and none has a place.
    """
    places = space.places(spec.classes)
    if spec.classes and not any(place is not None for place in places):
        first, here = ", ".join(spec.classes[:4]), ", ".join(space.classes) or "no class at all"
        what = f"no class of {spec.name} ({first}, …) has a place among {here}"
        raise UserError(what, "--dataset", "leave it out; classes are matched by name")
    train_ids = {VOID: VOID, NORMAL: NORMAL, spec.num_classes: len(space.classes)}
    train_ids |= {old: VOID if place is None else place for old, place in enumerate(places)}
    values, colours = ({code: train_ids[i] for code, i in coding.items()} for coding in (spec.values, spec.colours))
    unmapped = {code: spec.classes[i] for code, i in codes(spec) if i < spec.num_classes and places[i] is None}
    palette = tuple(space.palette)
    classes = tuple(space.classes)
    own = spec.own or spec
    return replace(spec, classes=classes, palette=palette, values=values, colours=colours, unmapped=unmapped, own=own)


def codes(spec):
    """(mask value as the audit counts it, train id) of a set's whole coding."""
    yield from spec.values.items()
    yield from ((red << 16 | green << 8 | blue, i) for (red, green, blue), i in spec.colours.items())


def declared_classes(spec):
    """The train ids of known classes that a set's masks can hold: a translated set may have fewer than the space."""
    if spec.parts:
        return sorted({i for part in spec.parts for i in declared_classes(part.spec)})
    return sorted({i for _, i in codes(spec) if i < spec.num_classes})


def declared_names(spec):
    """The names of `declared_classes`."""
    return [spec.classes[i] for i in declared_classes(spec)]


def answer_table(spec):
    """What each answer of a model counts as on a set, (num_classes,) uint8, or None where all count as they are.

    A class that the set does not have, though another one of the same common name, counts as that one: "road line" is
    "road" where lines are not labelled apart.
    """
    declared = declared_classes(spec)
    common = common_names(spec.classes)
    by_common = {common[i]: i for i in reversed(declared)}
    table = [i if i in declared else by_common.get(common[i], i) for i in range(spec.num_classes)]
    return np.array(table, np.uint8) if table != list(range(spec.num_classes)) else None


# ---------------------------------------------------------------------------------------------------------------------
# Several sets as one


class Part(NamedTuple):
    """One of several sets: what figures call it, its spec in the common label space, its folder, and its share of
    every batch (of all shares given), None where each image counts alike."""

    label: str
    spec: Spec
    root: Path
    share: float | None


def parse_sets(text, data_dir):
    """Read --dataset 'camvid:0.5,acdc/fog:0.5' and --data-dir 'A,B' into [(name, folder, share or None)].

    One folder a set, in the same order; a set without one lies in data/NAME. Shares are given for all sets or none.
    Raises UserError.
    """
    names, shares = zip(*(_parse_share(entry) for entry in split_names(text) or [""]), strict=True)
    if None in shares and any(share is not None for share in shares):
        raise UserError(f"{text}: some sets have a share, others not", "--dataset", "write NAME:SHARE for all or none")
    folders = [data_dir or ""] if len(names) == 1 else [part.strip() for part in (data_dir or "").split(",")]
    if data_dir and len(folders) != len(names):
        what = f"{len(folders)} folders for {len(names)} sets"
        raise UserError(what, f"--data-dir {data_dir}", "give one for each, in the order of --dataset: A,B")
    folders += [""] * (len(names) - len(folders))
    places = [Path(folder or Path("data") / parse_name(name)[0]) for name, folder in zip(names, folders, strict=True)]
    for (name, place), (other, its_place) in itertools.combinations(zip(names, places, strict=True), 2):
        if _overlap(name, other) and place.resolve() == its_place.resolve():
            raise UserError(f"{name} and {other} hold the same images", f"--dataset {text}", "name each once")
    return list(zip(names, places, shares, strict=True))


def _overlap(name, other):
    """Whether two names of sets in one folder share images: acdc and acdc/fog do, two conditions not."""
    (one, condition), (another, its_condition) = parse_name(name), parse_name(other)
    return one == another and (condition == its_condition or not (condition and its_condition))


def _parse_share(entry):
    """'camvid:0.5' -> ('camvid', 0.5); without a share None."""
    name, colon, share = entry.partition(":")
    if not colon:
        return name, None
    try:
        value = float(share)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise UserError(f"share {share!r} of {name} is no number above 0", "--dataset", "write it like camvid:0.5")
    return name, value


def run_name(text):
    """What --dataset calls a folder: 'camvid:0.5,acdc/fog:0.5' -> 'camvid+acdc-fog'."""
    return "+".join(entry.partition(":")[0].replace("/", "-") for entry in split_names(text))


def join(specs, roots, shares):
    """Several translated specs, their folders and shares as one Spec in the same label space."""
    names = [spec.name for spec in specs]
    labels = [
        name if names.count(name) == 1 else f"{name} {root.as_posix()}" for name, root in zip(names, roots, strict=True)
    ]
    return Spec(
        name="+".join(names),
        classes=specs[0].classes,
        palette=specs[0].palette,
        values={},
        splits={},
        colours={},
        anomaly=any(spec.anomaly for spec in specs),
        parts=tuple(map(Part, labels, specs, roots, shares)),
    )
