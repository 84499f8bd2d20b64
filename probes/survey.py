"""The survey: what each pair of a split looks like, in one pass over its files; most data probes judge by it.

Facts of the image (its pixels' digest, a small picture, how alike neighbouring pixels are) and of the mask (thin
classes along borders, lone pixels), and of up to 600 pairs a thumbnail. A broken pair is left out: the audit names it.
"""

import hashlib
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from PIL import Image

import data
from cli import UserError
from datasets.masks import match_size, read_image, read_labels

ICON = 48  # side of the small picture that copies are found by
THUMBNAIL = 240  # longer side of a thumbnail
THUMBNAILS = 600  # pairs of a split that get one
BLOCK = 8  # side of the blocks a JPEG is made of


class Pair(NamedTuple):
    """The facts of one pair; C classes."""

    digest: bytes  # of the decoded RGB pixels
    icon: np.ndarray  # (48, 48) uint8, grey
    neighbours: float  # correlation of pixels side by side or one above the other, the larger; 0 in a constant image
    extent: int  # largest difference of two pixels in one colour channel
    counts: np.ndarray  # (C,) int64, mask pixels per class
    top: float  # share of the mask's highest value
    lone: int  # mask pixels that differ from all four neighbours
    below_top: int  # mask pixels of any other value than the highest
    borders: int  # neighbouring mask pixels that differ
    thin: np.ndarray  # (C,) int64, pixels per class in runs of 1 or 2 whose value lies between the values beside
    phases: np.ndarray  # (8,) int64, borders by their row or column modulo 8


@dataclass
class Survey:
    """The facts of a split's N readable pairs, each field of `Pair` as one array with N in front, digests as a list.

    indices: (N,) int64, places in the split; files: their names; greys: {row of the N: (h, w) uint8}, longer side 240,
    antialiased, of up to 600 pairs spread evenly; targets: the same with train ids (h, w) uint8, nearest, 254 where a
    mask's value is not declared.
    """

    split: data.Split
    indices: np.ndarray
    files: list
    digests: list
    icons: np.ndarray
    neighbours: np.ndarray
    extent: np.ndarray
    counts: np.ndarray
    top: np.ndarray
    lone: np.ndarray
    below_top: np.ndarray
    borders: np.ndarray
    thin: np.ndarray
    phases: np.ndarray
    greys: dict
    targets: dict

    def __len__(self):
        return len(self.files)

    @property
    def constant(self):
        """(N,) bool: images of one colour; 8 levels are left to compression."""
        return self.extent <= 8

    def pairs(self):
        """[(file, grey (h, w) uint8, target (h, w) uint8)] of the pairs that have a thumbnail."""
        return [(self.files[i], self.greys[i], self.targets[i]) for i in sorted(self.greys)]

    def mask(self, row):
        """The path of one of the N masks."""
        return self.split.pairs[self.indices[row]][1]

    def picture(self, row, side=480):
        """The image of one of the N pairs, (h, w, 3) uint8, its longer side at most `side`. Raises UserError."""
        image = read_image(self.split.pairs[self.indices[row]][0])
        image.thumbnail((side, side))
        return np.asarray(image)


def survey_split(split, progress=None):
    """Read all pairs of a split once. progress: called with the pairs done."""
    count = len(split)
    kept = set(np.linspace(0, count - 1, min(count, THUMBNAILS)).round().astype(int).tolist())
    found, greys, targets = {}, {}, {}
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for index, read in enumerate(pool.map(lambda i: _read(split, i, i in kept), range(count))):
            if read is not None:
                row = len(found)
                found[index], thumbnail = read
                if thumbnail is not None:
                    greys[row], targets[row] = thumbnail
            if progress:
                progress(index + 1)
    return Survey(split, np.array(list(found), np.int64), [split.file(i) for i in found], **_columns(found, split),
                  greys=greys, targets=targets)  # fmt: skip


def _columns(found, split):
    """Every fact of the pairs as one array; right shapes for none, too."""
    pairs, classes = list(found.values()), split.spec.num_classes

    def column(name, dtype, *shape):
        return np.array([getattr(pair, name) for pair in pairs], dtype).reshape(len(pairs), *shape)

    numbers = {name: column(name, np.int64) for name in ("extent", "lone", "below_top", "borders")}
    return {
        **numbers,
        "digests": [pair.digest for pair in pairs],
        "icons": column("icon", np.uint8, ICON, ICON),
        "neighbours": column("neighbours", np.float64),
        "counts": column("counts", np.int64, classes),
        "top": column("top", np.float64),
        "thin": column("thin", np.int64, classes),
        "phases": column("phases", np.int64, BLOCK),
    }


def _read(split, index, keep):
    """(Pair, thumbnail or None) of one pair; None for a broken one."""
    image_path, mask_path = split.pairs[index]
    try:
        image = read_image(image_path)
        target, values = read_labels(mask_path, split.spec_of(index))
        image = match_size(image, target.shape, image_path)
    except UserError:
        return None  # the audit has named it
    pair = Pair(**image_facts(image), **mask_facts(target, values, split.spec.num_classes))
    return pair, _thumbnail(image, target) if keep else None


def _thumbnail(image, target):
    """(grey (h, w) uint8, target (h, w) uint8), the longer side 240."""
    scale = THUMBNAIL / max(image.size)
    size = [max(1, round(side * scale)) for side in image.size]
    grey = image.convert("L").resize(size, Image.Resampling.BILINEAR)
    return np.asarray(grey), np.asarray(Image.fromarray(target).resize(size, Image.Resampling.NEAREST))


def image_facts(image):
    """The facts of `Pair` about an RGB PIL image."""
    grey = image.convert("L")
    pixels = np.asarray(grey)
    return {
        "digest": hashlib.blake2b(image.tobytes(), digest_size=16, key=repr(image.size).encode()).digest(),
        "icon": np.asarray(grey.resize((ICON, ICON), Image.Resampling.BOX)),
        "neighbours": max(_correlation(pixels[:, :-1], pixels[:, 1:]), _correlation(pixels[:-1], pixels[1:])),
        "extent": max(high - low for low, high in image.getextrema()),
    }


def _correlation(first, second):
    """Pearson's, of two arrays of one size; 0 where one is constant."""
    first, second = (part.astype(np.float32).ravel() for part in (first, second))
    if not first.size:
        return 0.0
    first, second = first - first.mean(), second - second.mean()
    size = float(np.sqrt((first @ first) * (second @ second)))
    return float(first @ second) / size if size else 0.0


def mask_facts(target, values, num_classes):
    """The facts of `Pair` about a mask: target (H, W) uint8 train ids, values (H, W) its own whole numbers."""
    values = values.astype(np.int32)
    across, down = (np.sign(np.diff(values, axis=axis)).astype(np.int8) for axis in (1, 0))  # (H, W-1), (H-1, W)
    thin = _thin(across, values.shape) | _thin(down.T, values.T.shape).T
    across, down = across != 0, down != 0
    lone = (across[:, :-1] & across[:, 1:])[1:-1] & (down[:-1] & down[1:])[:, 1:-1]  # (H-2, W-2)
    below = int((values != values.max()).sum())
    phases = sum(
        np.bincount(np.arange(1, len(borders) + 1) % BLOCK, borders, BLOCK).astype(np.int64)
        for borders in (across.sum(axis=0), down.sum(axis=1))
    )
    return {
        "counts": np.bincount(target.ravel(), minlength=num_classes)[:num_classes],
        "top": 1 - below / values.size,
        "lone": int(lone.sum()),
        "below_top": below,
        "borders": int(phases.sum()),
        "thin": np.bincount(target[thin], minlength=num_classes)[:num_classes],
        "phases": phases,
    }


def _thin(step, shape):
    """Pixels in runs of one or two, with a lower value on one side of the run and a higher one on the other.

    step: (H, W-1) int8, the sign of each change along a row. Returns `shape` (H, W) bool.
    """
    thin = np.zeros(shape, bool)
    thin[:, 1:-1] = step[:, :-1] * step[:, 1:] > 0
    double = (step[:, 1:-1] == 0) & (step[:, :-2] * step[:, 2:] > 0)  # (H, W-3)
    thin[:, 1:-2] |= double
    thin[:, 2:-1] |= double
    return thin


def fingerprints(icons):
    """What tells one picture from another: its detail, whatever its brightness.

    icons: (N, 48, 48) uint8. Returns (N, 2304) float32: less the mean of 3x3 pixels, of length 1, or 0 where flat.
    """
    icons = icons.astype(np.float32)
    around = np.pad(icons, ((0, 0), (1, 1), (1, 1)), mode="edge")
    for axis in (1, 2):
        first, middle, last = (np.take(around, range(i, i + ICON), axis) for i in range(3))
        around = (first + middle + last) / 3
    return unit((icons - around).reshape(len(icons), ICON * ICON))


def unit(rows):
    """Rows (N, K) float32 brought to length 1; a row of nothing stays 0."""
    return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-3)
