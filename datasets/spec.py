"""What a data set's declaration is made of: where the pairs of a split lie and how mask values become train ids."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np

# Train ids beside those of the classes.
VOID = 255  # the train id no loss and no metric counts
UNKNOWN = 254  # in a decoded mask: a value that is neither a class nor void; never reaches a target
NORMAL = 253  # no anomaly, but of no known class either: sets that label anomalies and nothing else

# Many sets' official test masks are kept by their evaluation servers. What is commonly reported is the official
# validation set, so that is `test` here; `val`, on which best.pth is chosen, is cut from train instead.
SERVER_NOTE = "its test masks are not public: test is the official validation set, val is cut from train by hash"


@dataclass(frozen=True)
class Spec:
    """One data set's layout and coding.

    values: mask value -> train id, for masks that hold one number a pixel; colours: (r, g, b) -> train id, for masks
    drawn in colours (empty where there are none); coding: what the set calls its numbers, for messages;
    splits: name -> (image folder, mask folder) under the data folder;
    cut: the splits without a folder of their own, cut from train by the hash rule of `cut_of`, which reads an image's
    name, or with cut_by="folder" its folder's; image_ending, mask_ending: what a file's name ends with before its type,
    after the name that image and mask share; lists: split -> file under the data folder with one such name a line,
    where a split's folders hold more than the split; note: what to know before its numbers are compared with others';
    held_out: mask values and colours of the classes that `hold_out` made anomalies, void in training; flat: images lie
    in their folder itself, what is deeper is none;
    subsets: condition -> the text that stands for {subset} in the folders, for a set that is sorted by conditions;
    top: the archive's own top folder, where it is still around the set; reader: (spec, root) -> spec, completes a
    declaration by what the set says about itself in a file of its own; asks: a file that reader cannot do without;
    unmapped: code -> name of the classes that `label_spaces.translate` made void; parts: the sets (`label_spaces.Part`)
    that several sets as one consist of, which then has no coding itself; own: the set before `translate` or `hold_out`
    changed its classes, None where none did: by its coding are masks judged.
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
    coding: str = "class numbers"
    subsets: dict = field(default_factory=dict)
    top: str = ""
    reader: Callable | None = None
    asks: str = ""
    unmapped: dict = field(default_factory=dict)
    parts: tuple = ()
    own: "Spec | None" = field(default=None, compare=False)

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


def below(spec, folder):
    """The same set with its archive's own top folder still around it."""
    splits = {split: tuple(f"{folder}/{part}" for part in parts) for split, parts in spec.splits.items()}
    lists = {split: f"{folder}/{file}" for split, file in spec.lists.items()}
    return replace(spec, splits=splits, lists=lists, top=f"{folder}/{spec.top}".rstrip("/"))


def with_tops(*forms, tops):
    """The forms of a set, bare and below each of the folders its archives unpack to; no top folder is preferred."""
    return (*forms, *(below(form, top) for top in tops for form in forms))


def narrow(spec, subset):
    """The part of a set that was taken under one condition. subset: a key of `spec.subsets`."""
    splits = {
        split: tuple(part.replace("{subset}", spec.subsets[subset]) for part in parts)
        for split, parts in spec.splits.items()
    }
    return replace(spec, name=f"{spec.name}/{subset}", splits=splits, subsets={})


def by_condition(spec):
    """The set's conditions, each a set with plain folders; the set itself where it has none."""
    return [narrow(spec, subset) for subset in spec.subsets] or [spec]
