"""Closed-set segmentation metrics, and what a predictor gets that never opens an image.

Everything is counted in integers, image by image or batch by batch, and divided once at the end, so that any order,
batching or sharding gives the same figures. A figure that is not defined is None, never NaN and never 0.
Targets hold train ids 0..num_classes-1; every other value (255 void, anomalies) is dropped.
Scores of anomalies are in metrics_scores.py and metrics_bootstrap.py, whole objects in metrics_components.py,
boundaries in metrics_boundary.py; all are reached from here.
"""

from typing import NamedTuple

import numpy as np
import torch

from metrics_bootstrap import ImageHistograms
from metrics_boundary import boundary_counts, boundary_f1, boundary_f1_counts, boundary_iou
from metrics_components import ComponentScores, component_counts, label_components
from metrics_safe import safe_miou
from metrics_scores import ScoreHistogram, image_anomaly_scores

__all__ = [
    "Calibration",
    "ComponentScores",
    "GRID",
    "ImageHistograms",
    "Layout",
    "ScoreHistogram",
    "boundary_counts",
    "boundary_f1",
    "boundary_f1_counts",
    "boundary_iou",
    "class_prior",
    "component_counts",
    "confusion_matrix",
    "count_scores",
    "fit_layout",
    "image_anomaly_scores",
    "image_counts",
    "label_components",
    "largest_confusions",
    "layout_distribution",
    "layout_map",
    "layout_sigma",
    "mean_iou",
    "miou_interval",
    "pixel_nll",
    "resize_map",
    "safe_miou",
    "segmentation_scores",
    "semantic_gain",
    "shrink_nearest",
]

GRID = (120, 160)  # rows and columns of the layout grid
EXPONENTS = (0.0, 0.25, 0.5, 0.75, 1.0)  # of the class frequency, for the layout map
SIGMAS = (0, 1, 2, 4)  # Gaussian blur of the layout distribution, in grid cells
ACTIVE_IOU = 0.01


# ---------------------------------------------------------------------------------------------------------------------
# Confusion matrix and intersection over union


def confusion_matrix(predictions, targets, num_classes):
    """Count pixels by true and predicted class.

    predictions: integers 0..num_classes-1, any shape; targets: integers of the same shape, values outside
    0..num_classes-1 dropped. Returns (C, C) int64 [target, prediction], on the device of the targets.
    Raises: ValueError for other shapes, types that are not integers, or a prediction that is no class.
    """
    _check_labels(predictions, targets, num_classes)
    cells = (num_classes + 1) * num_classes  # one row more, for the pixels to drop
    dtype = torch.uint8 if cells <= 256 else torch.int16 if cells <= 2**15 else torch.int32
    if targets.dtype == torch.uint8:
        known = targets.clamp(max=min(num_classes, 255))
    else:
        known = targets.where((targets >= 0) & (targets < num_classes), num_classes)
    cell = known.to(dtype).mul_(num_classes).add_(predictions.to(dtype)).view(-1)
    return torch.bincount(cell, minlength=cells).view(num_classes + 1, num_classes)[:num_classes]


def _check_labels(predictions, targets, num_classes):
    if predictions.shape != targets.shape:
        raise ValueError(f"predictions {tuple(predictions.shape)} and targets {tuple(targets.shape)} differ in shape")
    for name, labels in (("predictions", predictions), ("targets", targets)):
        if labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
            raise ValueError(f"{name} must be integers, got {labels.dtype}")
    if predictions.numel():
        low, high = (int(end) for end in predictions.aminmax())
        if low < 0 or high >= num_classes:
            raise ValueError(f"prediction {low if low < 0 else high} is outside the classes 0..{num_classes - 1}")


def image_counts(confusion):
    """What intersection over union needs of an image: (C, C) -> (3, C) int64, true positives, target, predicted pixels.

    Leading dimensions are kept: (..., C, C) -> (..., 3, C).
    """
    return torch.stack([confusion.diagonal(dim1=-2, dim2=-1), confusion.sum(-1), confusion.sum(-2)], dim=-2)


def segmentation_scores(confusion):
    """All closed-set figures of a (C, C) confusion matrix [target, prediction], as fractions: `count_scores`."""
    return count_scores(image_counts(confusion))


def count_scores(counts):
    """All closed-set figures of (3, C) summed `image_counts`, as fractions.

    Returns a dict: iou (per class, None where a class is in neither targets nor predictions), miou over the
    classes_averaged other ones, pixel_accuracy, mean_accuracy over the classes in the targets, fwiou (IoU weighted by
    target pixels), active_classes (how many have IoU > 0.01), spurious_classes (indices of classes predicted though
    absent from the targets: they count 0 in miou). Without a valid pixel the figures are None.
    """
    hit, target, predicted = (row.tolist() for row in counts)
    union = [t + p - h for h, t, p in zip(hit, target, predicted, strict=True)]
    iou = [h / u if u else None for h, u in zip(hit, union, strict=True)]
    averaged = [value for value in iou if value is not None]
    accuracies = [h / t for h, t in zip(hit, target, strict=True) if t]
    pixels = sum(target)
    return {
        "iou": iou,
        "miou": _mean(averaged),
        "classes_averaged": len(averaged),
        "pixel_accuracy": sum(hit) / pixels if pixels else None,
        "mean_accuracy": _mean(accuracies),
        "fwiou": sum(t * v for t, v in zip(target, iou, strict=True) if t) / pixels if pixels else None,
        "active_classes": sum(value > ACTIVE_IOU for value in averaged),
        "spurious_classes": [c for c, (t, p) in enumerate(zip(target, predicted, strict=True)) if p and not t],
    }


def semantic_gain(miou, floor):
    """How far a model goes from the layout floor to a perfect 1; None where either is, or where the floor is 1."""
    return None if miou is None or floor is None or floor >= 1 else (miou - floor) / (1 - floor)


def _mean(values):
    return sum(values) / len(values) if values else None


def mean_iou(counts):
    """mIoU of `image_counts`: (..., 3, C) -> (...) float64, over the classes in targets or predictions.

    Also returns bool (...): whether there is such a class; where there is none the value is 0 and says nothing.
    """
    hit, target, predicted = counts.double().unbind(-2)
    union = target + predicted - hit
    classes = (union > 0).sum(-1)
    return (hit / union.clamp(min=1)).sum(-1) / classes.clamp(min=1), classes > 0


def largest_confusions(confusion, count=10):
    """The classes most often taken for another, by pixels: up to `count` dicts, the largest first.

    confusion: (C, C) counts [target, prediction]. Each dict: target, prediction (indices), share_of_target (of the
    target class's pixels), share_of_all (of all labelled pixels), pixels. Pairs without a pixel are left out; of two
    equal ones the lower indices come first.
    """
    confusion = torch.as_tensor(confusion)
    totals, everything = confusion.sum(1).tolist(), int(confusion.sum())
    wrong = confusion.clone().fill_diagonal_(0)
    order = wrong.flatten().argsort(descending=True, stable=True)[:count].tolist()
    rows = [(index // len(wrong), index % len(wrong)) for index in order]
    return [
        {
            "target": target,
            "prediction": prediction,
            "share_of_target": pixels / totals[target],
            "share_of_all": pixels / everything,
            "pixels": pixels,
        }
        for target, prediction in rows
        if (pixels := int(wrong[target, prediction]))
    ]


def miou_interval(counts, samples=1000, seed=0, level=0.95):
    """Bootstrap interval of the set's mIoU over its images: [low, high], or None with fewer than two images to vary.

    counts: (N, 3, C) int64, `image_counts` of each image. A sample draws N images with replacement, adds up their
    counts and divides once. Images without a valid pixel are left out: there is nothing to draw in them.
    Source: Efron and Tibshirani, An Introduction to the Bootstrap (1993), the percentile interval of section 13.3.
    """
    counts = torch.as_tensor(counts)
    counts = counts[counts[:, 1].sum(-1) > 0].double().cpu()
    images = len(counts)
    if images < 2:
        return None
    generator = torch.Generator().manual_seed(seed)
    values = []
    for start in range(0, samples, 100):  # so that many images need little memory
        drawn = torch.randint(images, (min(100, samples - start), images), generator=generator)
        times = torch.zeros(drawn.shape, dtype=torch.float64).scatter_add_(1, drawn, torch.ones_like(drawn).double())
        values.append(mean_iou((times @ counts.flatten(1)).view(-1, *counts.shape[1:]))[0])
    tail = (1 - level) / 2
    return torch.cat(values).quantile(torch.tensor([tail, 1 - tail], dtype=torch.float64)).tolist()


# ---------------------------------------------------------------------------------------------------------------------
# Layout: what the labels' places alone tell


class Layout(NamedTuple):
    """The predictor that never opens an image."""

    map: np.ndarray  # (rows, columns) uint8, the class predicted at each grid cell
    exponent: float


def shrink_nearest(target, size=GRID):
    """Sample a (H, W) array at the pixel centres of `size` (rows, columns); same dtype.

    Row i of the result is row floor((i + 0.5) * H / rows) of the target: torch's "nearest-exact", in exact integers.
    """
    (height, width), (rows, columns) = target.shape, size
    return target[_centres(height, rows)[:, None], _centres(width, columns)]


def _centres(length, places):
    return (2 * np.arange(places) + 1) * length // (2 * places)


def resize_map(layout_map, size):
    """A layout map at a target's size (H, W), nearest neighbour, by the rule of shrink_nearest."""
    return shrink_nearest(layout_map, size)


def fit_layout(grids, num_classes):
    """The layout map that scores best on the training targets, and its exponent.

    grids: (N, rows, columns) uint8, each training target through shrink_nearest. The map predicts
    argmax_c n_c(y, x) / f_c^a, with n_c how often class c stands at the cell and f_c its frequency; a is the one of
    0, 1/4, 1/2, 3/4, 1 with the highest mIoU on `grids` themselves, the smaller one if two are equal.
    Raises: ValueError if no cell of any grid holds a class.
    """
    counts = _cell_counts(grids, num_classes)
    best = None
    for exponent in EXPONENTS:
        chosen = _layout_map(counts, exponent)
        confusion = np.zeros((num_classes, num_classes), dtype=np.int64)
        np.add.at(confusion.T, chosen.reshape(-1), counts.reshape(num_classes, -1).T)
        miou = float(mean_iou(image_counts(torch.from_numpy(confusion)))[0])
        if best is None or miou > best[0]:
            best = miou, Layout(chosen, exponent)
    return best[1]


def layout_map(grids, num_classes, exponent):
    """The layout map of `fit_layout` for a given exponent: (rows, columns) uint8; exponent 0 is the plain majority.

    A class that never occurs is never predicted; a cell that holds no class in any grid gets the most frequent one.
    Raises: ValueError if no cell of any grid holds a class.
    """
    return _layout_map(_cell_counts(grids, num_classes), exponent)


def _layout_map(counts, exponent):
    totals = counts.sum(axis=(1, 2))
    if not totals.any():
        raise ValueError("the training targets hold no class at all, only void")
    frequency = np.maximum(totals, 1) / totals.sum()
    score = counts / frequency[:, None, None] ** exponent
    score[:, counts.sum(axis=0) == 0] = totals[:, None]
    return score.argmax(axis=0).astype(np.uint8)


def _cell_counts(grids, num_classes):
    """(C, rows, columns) int64: in how many grids each class stands at each cell."""
    grids = np.asarray(grids)
    cells = grids[0].size
    counts = np.zeros((num_classes + 1) * cells, dtype=np.int64)
    for start in range(0, len(grids), 64):
        known = np.minimum(grids[start : start + 64].reshape(-1, cells), num_classes)  # the last row is dropped
        counts += np.bincount((known.astype(np.int64) * cells + np.arange(cells)).ravel(), minlength=counts.size)
    return counts.reshape(num_classes + 1, *grids.shape[1:])[:num_classes]


def class_prior(counts):
    """Class probabilities (C,) float64 from pixel counts (C,), one pixel added to each class so that none is 0."""
    counts = np.asarray(counts, dtype=np.float64) + 1
    return counts / counts.sum()


def layout_distribution(grids, num_classes):
    """What position alone tells of the class: (C, rows, columns) float32 probabilities.

    grids: (N, rows, columns) uint8 as in fit_layout. Counts per cell, blurred in space by `layout_sigma`, plus one
    pixel a cell spread as the class prior.
    """
    counts = _cell_counts(grids, num_classes)
    return _smoothed(counts, layout_sigma(grids, num_classes)).astype(np.float32)


def layout_sigma(grids, num_classes):
    """The blur of layout_distribution in cells: of 0, 1, 2, 4 the one with the lowest two-fold held-out loss.

    The folds take turns, grid by grid: files lie sorted by place or subject, so halves would differ in what they show
    and ask for more blur than a validation split of the same kind.
    """
    folds = [_cell_counts(part, num_classes) for part in (grids[0::2], grids[1::2]) if len(part)]
    if len(folds) < 2:
        return max(SIGMAS)
    losses = [
        sum(-(seen * np.log(_smoothed(fitted, sigma))).sum() for fitted, seen in (folds, folds[::-1]))
        for sigma in SIGMAS
    ]
    return SIGMAS[int(np.argmin(losses))]


def _smoothed(counts, sigma):
    blurred = counts.astype(np.float64)
    if sigma:
        rows, columns = (_gaussian_matrix(length, sigma) for length in counts.shape[1:])
        blurred = rows @ blurred @ columns  # (C, rows, columns); nothing is outside: the sum below shrinks with it
    blurred += class_prior(counts.sum(axis=(1, 2)))[:, None, None]
    return blurred / blurred.sum(axis=0)


def _gaussian_matrix(length, sigma):
    """(length, length) symmetric: row i weights the places around i; weights of an endless row would sum to 1."""
    weights = np.exp(-0.5 * (np.arange(-length, length + 1) / sigma) ** 2)
    offsets = np.arange(length)[:, None] - np.arange(length)
    return weights[offsets + length] / weights.sum()


def pixel_nll(probabilities, target):
    """Negative log-likelihood of a target: (sum in nats, valid pixels).

    probabilities: (C,) the same everywhere, or (C, rows, columns) resized to the target by shrink_nearest's rule;
    target: (H, W) integers, values outside 0..C-1 dropped. A probability of 0 counts as 1e-12, so the sum is finite.
    """
    target = np.asarray(target)
    nats = -np.log(np.maximum(np.asarray(probabilities, dtype=np.float64), 1e-12))
    valid = (target >= 0) & (target < len(nats))
    known = np.where(valid, target, 0)
    if nats.ndim == 1:
        nats = nats[known]  # (H, W)
    else:
        rows, columns = (_centres(length, places) for length, places in zip(nats.shape[1:], target.shape, strict=True))
        nats = nats[known, rows[:, None], columns]  # (H, W)
    return float(nats[valid].sum()), int(valid.sum())


# ---------------------------------------------------------------------------------------------------------------------
# Calibration


class Calibration:
    """Expected calibration error of the top-1 confidence, counted so that any sharding adds up to the same.

    Source: Guo et al., On Calibration of Modern Neural Networks (2017), equation 3, with 15 equal bins
    ((b - 1) / 15, b / 15]; a confidence of 0 goes to the first. Confidences are summed in units of 2**-24.
    """

    BINS, UNITS = 15, 1 << 24

    def __init__(self):
        self.sums = torch.zeros(3, self.BINS, dtype=torch.int64)  # pixels, correct pixels, confidence

    def update(self, confidence, correct):
        """Count pixels. confidence: float in [0, 1], any shape; correct: bool, same shape. Leave void out before.

        Raises: ValueError for shapes that differ or a confidence outside [0, 1], NaN among them.
        """
        if confidence.shape != correct.shape:
            raise ValueError(f"confidence {tuple(confidence.shape)} and correct {tuple(correct.shape)} differ in shape")
        confidence, correct = confidence.detach().reshape(-1).float(), correct.reshape(-1)
        if confidence.numel() == 0:
            return
        low, high = (float(end) for end in confidence.aminmax())
        if not 0 <= low <= high <= 1:
            raise ValueError(f"confidences must lie in 0..1, got {low}..{high}")
        bins = (confidence * self.BINS).ceil_().sub_(1).clamp_(min=0).to(torch.uint8)  # bytes count fastest
        counts = torch.bincount(bins * 2 + correct, minlength=2 * self.BINS).view(self.BINS, 2)  # [wrong, correct]
        sums = torch.stack([counts.sum(1), counts[:, 1], torch.zeros_like(counts[:, 1])])
        sums[2].scatter_add_(0, bins.long(), (confidence * self.UNITS).round_().long())
        self.sums += sums.cpu()

    def merge(self, other):
        """Add what another one counted; it stays as it is."""
        self.sums += other.sums

    def ece(self):
        """Mean over pixels of |accuracy - confidence| of their bin, in 0..1; None without a pixel."""
        pixels, correct, confidence = self.sums.double()
        if not pixels.any():
            return None
        return float((correct - confidence / self.UNITS).abs().sum() / pixels.sum())
