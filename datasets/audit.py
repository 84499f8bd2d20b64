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

from cli import UserError, warn
from datasets.label_spaces import codes
from datasets.masks import count_runs, find_runs, match_size, read_image, read_labels
from datasets.miscoded import hidden_fault, label_error, likely_cause, starts_at_one
from datasets.spec import UNKNOWN, VOID

ORIENTATION = 0x0112  # the EXIF tag
COUNTERS = ("values", "sizes", "unknown_values")  # what adds up over several sets


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
    unknown: dict = field(default_factory=dict)  # file -> its pixels of undeclared mask values
    unknown_values: Counter = field(default_factory=Counter)  # undeclared mask value -> pixels, over all files
    faulty_values: Counter = field(default_factory=Counter)  # all mask values of those files -> pixels
    anomaly_values: Counter = field(default_factory=Counter)  # all mask values of files that hold an anomaly -> pixels
    broken: dict = field(default_factory=dict)  # file -> the error's text
    rotated: list = field(default_factory=list)  # files with an EXIF orientation
    parts: list = field(default_factory=list)  # of several sets: the Audit of each

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

    def error(self):
        """The first fault as UserError, or None."""
        fault = self.fault()
        return fault and fault[1]

    def fault(self):
        """The first fault as (cause as diagnose names it, UserError), or None."""
        if self.parts:
            return next(filter(None, (part.fault() for part in self.parts)), None)
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
            return "no_labels", self._no_labels()
        return self._hidden_fault()

    def _no_labels(self):
        """The error of a split without a labelled pixel: its masks are void, or what is asked for makes them so."""
        spec = self.split.spec
        what, where = f"no labelled pixel in split {self.split.name} of {spec.name}", self.split.pairs[0][1].parent
        own = self._own_classes()
        if not own:
            return UserError(what, where, "all masks are void; fix the masks")
        if own & set(spec.unmapped.values()):
            remedy = "leave the set out, or choose another --label-space"
            return UserError(f"{what}: none of its classes that occur has a place in --label-space", where, remedy)
        return UserError(f"{what}: all classes that occur are --anomaly-classes", where, "hold fewer classes out")

    def _own_classes(self):
        """The names of the classes that occur by the set's own coding; none where nobody translated or held out any."""
        own = self.split.spec.own
        return {own.classes[i] for code, i in codes(own) if i < own.num_classes and self.values[code]} if own else set()

    def _hidden_fault(self):
        """Masks in another coding though every value is declared, as (cause, UserError), or None."""
        found = hidden_fault(self.values, len(self.split), self.split.spec, self.split.name)
        if found is None:
            return None
        cause, words, remedy = found
        shown, more = ", ".join(map(str, sorted(self.values)[:4])), " …" if len(self.values) > 4 else ""
        what = f"values {shown}{more} in split {self.split.name} of {self.split.spec.name}"
        return cause, UserError(what, self.split.pairs[0][1].parent, f"{words}: {remedy}")


def audit_split(split, grid, progress=None, images=True):
    """Read all pairs of a split; a broken file is noted, not raised.

    grid: (rows, columns) of the shrunken targets (nearest, pixel centres). progress: called with the pairs done.
    images: whether to read them, too; without, only what the masks say is known, in a fraction of the time.
    """
    if split.parts:
        parts = [audit_split(part, grid, _counted_on(progress, one), images) for _, part, one in split.ranges()]
        return join(parts, split)
    result = _empty(split, grid)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for index, pair in enumerate(pool.map(lambda i: _read(split, i, grid, images), range(len(split)))):
            _add(result, index, pair)
            if progress:
                progress(index + 1)
    return result


def _counted_on(progress, indices):
    """The progress of a part of a split, counted on from the parts before it."""
    return progress and (lambda done: progress(indices.start + done))


def join(parts, split):
    """The audits of several sets as the one of `split`, which holds their pairs one after the other.

    Mask values mean something else in each set: the joint counters of values say only how many pixels were read.
    """
    arrays = {
        name: np.concatenate([getattr(part, name) for part in parts])
        for name in ("grids", "image_counts", "places", "image_sizes")
    }
    counters = {name: sum((getattr(part, name) for part in parts), Counter()) for name in COUNTERS}
    files = {name: {k: v for part in parts for k, v in getattr(part, name).items()} for name in ("unknown", "broken")}
    void, anomaly = (sum(getattr(part, name) for part in parts) for name in ("void", "anomaly"))
    rotated = [file for part in parts for file in part.rotated]
    return Audit(split, **arrays, **counters, **files, void=void, anomaly=anomaly, rotated=rotated, parts=parts)


def unmapped_shares(audit):
    """{class that the label space has no place for: its share of the pixels of the set's masks}, the largest first."""
    pixels = Counter()
    for code, name in audit.split.spec.unmapped.items():
        pixels[name] += audit.values[code]
    return {name: count / max(1, audit.pixels) for name, count in pixels.most_common()}


def shrink(target, grid):
    """A target (H, W) uint8 on the grid (rows, columns), nearest, pixel centres."""
    return np.asarray(Image.fromarray(target).resize(grid[::-1], Image.Resampling.NEAREST))


def _empty(split, grid):
    images, classes = len(split), split.spec.num_classes
    return Audit(
        split,
        grids=np.full((images, *grid), VOID, np.uint8),
        image_counts=np.zeros((images, classes), np.int64),
        places=np.full((images, classes, 2), -1, np.float32),
        image_sizes=np.zeros((images, 2), np.int64),
    )


def class_places(runs, shape, classes):
    """A pixel of each class in a target of `shape` (H, W): in its pixels' median row, the middle one.

    runs: (train ids, starts, lengths), each (runs,), of the target in reading order. Returns the pixels' centres,
    (classes, 2) float32, row and column in [0, 1]; -1 where the class is absent.
    """
    train_ids, starts, lengths = runs
    places = np.full((classes, 2), -1, np.float32)
    order = np.argsort(train_ids, kind="stable")  # class by class, each in reading order
    ends = np.searchsorted(train_ids[order], np.arange(classes + 1))
    for train_id in np.flatnonzero(np.diff(ends)):
        own = order[ends[train_id] : ends[train_id + 1]]
        row, column = _middle(starts[own], lengths[own], shape[1])
        places[train_id] = (row + 0.5) / shape[0], (column + 0.5) / shape[1]
    return places


def _middle(starts, lengths, width):
    """(row, column) of the middle pixel in the median row of a class's runs, in reading order."""
    before = np.cumsum(lengths) - lengths  # pixels of the class before each run

    def place(rank):
        run = np.searchsorted(before, rank, side="right") - 1
        return int(starts[run] + rank - before[run])

    def rank_of(position):
        run = max(np.searchsorted(starts, position, side="right") - 1, 0)
        return int(before[run] + np.clip(position - starts[run], 0, lengths[run]))

    row = place(int(lengths.sum()) // 2) // width
    return row, place((rank_of(row * width) + rank_of((row + 1) * width)) // 2) % width


def _read(split, index, grid, images):
    """Everything the audit wants of one pair, or the error's text."""
    image_path, mask_path = split.pairs[index]
    spec, rotated = split.spec_of(index), False
    try:
        if images:
            image = read_image(image_path)
            rotated = image.getexif().get(ORIENTATION, 1) != 1
        target, values = read_labels(mask_path, spec)
        if images:
            match_size(image, target.shape, image_path)
    except UserError as error:
        return str(error)
    flat = values.ravel()
    starts, lengths = find_runs(flat)
    codes, train_ids = flat[starts], target.ravel()[starts]
    counts = np.bincount(train_ids, lengths, minlength=256).astype(np.int64)
    strange = train_ids == UNKNOWN
    unknown = count_runs(codes[strange], lengths[strange])
    places = class_places((train_ids, starts, lengths), target.shape, split.spec.num_classes)
    return target.shape, counts, places, count_runs(codes, lengths), unknown, shrink(target, grid), rotated


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
        result.unknown[str(mask_path)] = sum(unknown.values())
        result.unknown_values.update(unknown)
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
