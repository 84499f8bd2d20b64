"""The audit: read every pair of a split once, before anything is learnt from it.

One pass gives what is wrong (unreadable files, sizes, label values), what is there (pixels per class, void share) and
the targets shrunk to the layout grid, from which the class weights and the layout floor follow; and where in each image
each class lies, for the sampling that looks for rare ones.
"""

import os
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image

from data import count_values, label_error, likely_cause, match_size, read_image, read_labels, starts_at_one
from data_specs import UNKNOWN, VOID
from flags import UserError, warn

ORIENTATION = 0x0112  # the EXIF tag


@dataclass
class Audit:
    """What a split holds.

    grids: (N, rows, columns) uint8 shrunken targets; image_counts: (N, C) int64 pixels per image and class;
    places: (N, C, 2) float32, row and column in [0, 1] of one pixel of the class, -1 where the image has none;
    image_sizes: (N, 2) int64, height and width, 0 for a broken file.
    """

    split: object
    grids: np.ndarray
    image_counts: np.ndarray
    places: np.ndarray
    image_sizes: np.ndarray
    values: Counter = field(default_factory=Counter)  # mask value -> pixels
    sizes: Counter = field(default_factory=Counter)  # (height, width) -> images
    void: int = 0
    anomaly: int = 0
    unknown: dict = field(default_factory=dict)  # file -> {undeclared mask value: pixels}
    faulty_values: Counter = field(default_factory=Counter)  # all mask values of those files -> pixels
    anomaly_values: Counter = field(default_factory=Counter)  # all mask values of files that hold an anomaly -> pixels
    broken: dict = field(default_factory=dict)  # file -> the error's text
    rotated: list = field(default_factory=list)  # files with an EXIF orientation

    @property
    def counts(self):
        """(C,) int64 pixels per class."""
        return self.image_counts.sum(axis=0)

    @property
    def pixels(self):
        """All pixels read: classes, void, anomaly and unknown values."""
        return sum(self.values.values())

    @property
    def absent(self):
        """Names of the classes that hold no pixel."""
        return [name for name, n in zip(self.split.spec.classes, self.counts, strict=True) if not n]

    @property
    def unknown_values(self):
        """Undeclared mask value -> pixels, over all files."""
        total = Counter()
        for values in self.unknown.values():
            total.update(values)
        return total

    def error(self):
        """The first fault as UserError, or None."""
        fault = self.fault()
        return fault and fault[1]

    def fault(self):
        """The first fault as (cause as the doctor names it, UserError), or None."""
        if self.broken:
            first = next(iter(self.broken.values()))
            what, _, remedy = first.rpartition("; ")
            more = f" (and {len(self.broken) - 1} more files of {self.split.name} fail)" if len(self.broken) > 1 else ""
            return "unreadable_files", UserError(what + more, remedy=remedy)
        if self.unknown:
            about = self.unknown_values, self.faulty_values, next(iter(self.unknown)), self.split.spec
            return likely_cause(*about)[0], label_error(*about, len(self.unknown))
        if self.split.name == "train" and self.anomaly:
            what = f"{self.anomaly:,} anomaly pixels in the training split of {self.split.spec.name}"
            if starts_at_one(self.anomaly_values, self.split.spec):
                what = f"{what}, none of the lowest class in these files"
                return "one_based_labels", UserError(what, remedy="labels that start one too high: export them anew")
            return "anomaly_in_training", UserError(
                what, remedy="anomalies belong in the test split only; relabel or remove them"
            )
        if not self.counts.any():
            what = f"no labelled pixel in split {self.split.name}"
            return "no_labels", UserError(what, remedy="all masks are void; fix the masks")
        return None


def audit(split, grid, progress=None):
    """Read all pairs of a split; a broken file is noted, not raised.

    grid: (rows, columns) of the shrunken targets (nearest, pixel centres). progress: called with the pairs done.
    """
    result = _empty(split, grid)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for index, pair in enumerate(pool.map(lambda i: _read(split, i, grid), range(len(split)))):
            _add(result, index, pair)
            if progress:
                progress(index + 1)
    return result


def _empty(split, grid):
    images, classes = len(split), split.spec.num_classes
    return Audit(
        split,
        grids=np.full((images, *grid), VOID, np.uint8),
        image_counts=np.zeros((images, classes), np.int64),
        places=np.full((images, classes, 2), -1, np.float32),
        image_sizes=np.zeros((images, 2), np.int64),
    )


def class_places(target, counts):
    """A pixel of each class in a target (H, W) uint8: in its pixels' median row, the middle one.

    counts: (C,) int, pixels of each class. Returns the pixels' centres, (C, 2) float32, row and column in [0, 1]; -1
    where the class is absent.
    """
    width, ends = target.shape[1], np.cumsum(counts)
    pixels = np.argsort(target, axis=None, kind="stable")  # class by class, each in reading order
    places = np.full((len(counts), 2), -1, np.float32)
    for train_id in np.flatnonzero(counts):
        own = pixels[ends[train_id] - counts[train_id] : ends[train_id]]
        row = own[len(own) // 2] // width
        first, after = np.searchsorted(own, (row * width, (row + 1) * width))
        column = own[(first + after) // 2] % width
        places[train_id] = (row + 0.5) / target.shape[0], (column + 0.5) / width
    return places


def _read(split, index, grid):
    """Everything the audit wants of one pair, or the error's text."""
    image_path, mask_path = split.pairs[index]
    try:
        image = read_image(image_path)
        target, values = read_labels(mask_path, split.spec)
        match_size(image, target.shape, image_path)
    except UserError as error:
        return str(error)
    rotated = image.getexif().get(ORIENTATION, 1) != 1
    shrunken = Image.fromarray(target).resize(grid[::-1], Image.Resampling.NEAREST)
    counts = np.bincount(target.ravel(), minlength=256)
    unknown = count_values(values[target == UNKNOWN]) if counts[UNKNOWN] else {}
    places = class_places(target, counts[: split.spec.num_classes])
    return target.shape, counts, places, count_values(values), unknown, np.asarray(shrunken), rotated


def _add(result, index, pair):
    image_path, mask_path = result.split.pairs[index]
    if isinstance(pair, str):
        result.broken[str(image_path)] = pair
        return
    size, counts, result.places[index], values, unknown, result.grids[index], rotated = pair
    classes = result.split.spec.num_classes
    result.image_counts[index] = counts[:classes]
    result.image_sizes[index] = size
    result.void += int(counts[VOID])
    if result.split.spec.anomaly and counts[classes]:
        result.anomaly += int(counts[classes])
        result.anomaly_values.update(values)
    result.values.update(values)
    result.sizes[size] += 1
    if unknown:
        result.unknown[str(mask_path)] = unknown
        result.faulty_values.update(values)
    if rotated:
        result.rotated.append(str(image_path))


def require_clean(audits):
    """Stop at the first fault of a list of audits; name what is odd but bearable in warnings.

    Raises UserError.
    """
    for one in audits:
        if error := one.error():
            raise error
        if one.absent:
            warn(f"{one.split.name} holds no pixel of: {', '.join(one.absent)}")
        if one.rotated:
            names = ", ".join(Path(path).name for path in one.rotated[:3])
            warn(f"{len(one.rotated)} images of {one.split.name} carry an EXIF orientation: {names}")
