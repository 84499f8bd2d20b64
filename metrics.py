"""Metrics: confusion matrix, IoU, layout floor, boundaries, calibration, and the ranking figures of anomaly scores.

Everything is counted in integers, image by image or batch by batch, and divided once at the end, so that any order,
batching or sharding gives the same figures. A figure that is not defined is None, never NaN and never 0.
Targets hold train ids 0..num_classes-1; every other value (255 void, anomalies) is dropped.
"""

from typing import NamedTuple

import numpy as np
import torch

ACTIVE_IOU = 0.01
DRAWN_AT_ONCE = 100  # bootstrap samples, so that many images need little memory
GRID = (120, 160)  # rows and columns of the layout grid
EXPONENTS = (0.0, 0.25, 0.5, 0.75, 1.0)  # of the class frequency, for the layout map
SIGMAS = (0, 1, 2, 4)  # Gaussian blur of the layout distribution, in grid cells


# ---------------------------------------------------------------------------------------------------------------------
# Confusion matrix


def confusion_matrix(predictions, targets, num_classes):
    """Count pixels by true and predicted class.

    predictions: integers 0..num_classes-1, any shape; targets: integers of the same shape, values outside
    0..num_classes-1 dropped. Returns (C, C) int64 [target, prediction], on the device of the targets.
    Raises: ValueError for other shapes, types that are not integers, or a prediction that is no class.
    """
    if predictions.shape != targets.shape:
        raise ValueError(f"predictions {tuple(predictions.shape)} and targets {tuple(targets.shape)} differ in shape")
    check_labels(targets, "target")
    check_labels(predictions, "prediction", num_classes)
    cells = (num_classes + 1) * num_classes  # one row more, for the pixels to drop
    dtype = torch.uint8 if cells <= 256 else torch.int16 if cells <= 2**15 else torch.int32
    if targets.dtype == torch.uint8:
        known = targets.clamp(max=min(num_classes, 255))
    else:
        known = targets.where((targets >= 0) & (targets < num_classes), num_classes)
    cell = known.to(dtype).mul_(num_classes).add_(predictions.to(dtype)).view(-1)
    return torch.bincount(cell, minlength=cells).view(num_classes + 1, num_classes)[:num_classes]


def check_labels(labels, name, num_classes=None):
    """Refuse labels that are no integers, or with `num_classes` not all in 0..num_classes-1, by a ValueError.

    labels: tensor of any shape; name: what one of them is called.
    """
    if labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
        raise ValueError(f"{name}s must be integers, got {labels.dtype}")
    if num_classes is not None and labels.numel():
        low, high = (int(end) for end in labels.aminmax())
        if low < 0 or high >= num_classes:
            raise ValueError(f"{name} {low if low < 0 else high} is outside the classes 0..{num_classes - 1}")


def image_counts(confusion):
    """What intersection over union needs of an image: (C, C) -> (3, C) int64, true positives, target, predicted pixels.

    Leading dimensions are kept: (..., C, C) -> (..., 3, C).
    """
    return torch.stack([confusion.diagonal(dim1=-2, dim2=-1), confusion.sum(-1), confusion.sum(-2)], dim=-2)


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


# ---------------------------------------------------------------------------------------------------------------------
# Intersection over union


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


def mean_iou(counts):
    """mIoU of `image_counts`: (..., 3, C) -> (...) float64, over the classes in targets or predictions.

    Also returns bool (...): whether there is such a class; where there is none the value is 0 and says nothing.
    """
    hit, target, predicted = counts.double().unbind(-2)
    union = target + predicted - hit
    classes = (union > 0).sum(-1)
    return (hit / union.clamp(min=1)).sum(-1) / classes.clamp(min=1), classes > 0


def _mean(values):
    return sum(values) / len(values) if values else None


# ---------------------------------------------------------------------------------------------------------------------
# Bootstrap over images


def bootstrap_draws(images, samples, seed):
    """How often each image is in each sample: (up to DRAWN_AT_ONCE, images) float64 tensors, `samples` rows in all.

    A sample draws as many images as there are, with replacement. The same arguments give the same draws.
    """
    generator = torch.Generator().manual_seed(seed)
    for start in range(0, samples, DRAWN_AT_ONCE):
        drawn = torch.randint(images, (min(DRAWN_AT_ONCE, samples - start), images), generator=generator)
        yield torch.zeros(drawn.shape, dtype=torch.float64).scatter_add_(1, drawn, torch.ones_like(drawn).double())


def miou_interval(counts, samples=1000, seed=0, level=0.95):
    """Bootstrap interval of the set's mIoU over its images: [low, high], or None with fewer than two images to vary.

    counts: (N, 3, C) int64, `image_counts` of each image. A sample adds up the counts of the images drawn and divides
    once. Images without a valid pixel are left out: there is nothing to draw in them.
    Source: Efron and Tibshirani, An Introduction to the Bootstrap (1993), the percentile interval of section 13.3.
    """
    counts = torch.as_tensor(counts)
    counts = counts[counts[:, 1].sum(-1) > 0].double().cpu()
    images = len(counts)
    if images < 2:
        return None
    values = [
        mean_iou((times @ counts.flatten(1)).view(-1, *counts.shape[1:]))[0]
        for times in bootstrap_draws(images, samples, seed)
    ]
    tail = (1 - level) / 2
    return torch.cat(values).quantile(torch.tensor([tail, 1 - tail], dtype=torch.float64)).tolist()


# ---------------------------------------------------------------------------------------------------------------------
# Layout: what the place alone tells, as a map of classes


class Layout(NamedTuple):
    """The predictor that never opens an image."""

    map: np.ndarray  # (rows, columns) uint8, the class predicted at each grid cell
    exponent: float


def resize_nearest(labels, size=GRID):
    """A (H, W) map, array or tensor, at `size` (rows, columns), sampled at the new pixels' centres; same dtype.

    Row i of the result is row floor((i + 0.5) * H / rows) of the map: torch's "nearest-exact", in exact integers.
    """
    rows, columns = (_centres(length, places) for length, places in zip(labels.shape, size, strict=True))
    return labels[rows[:, None], columns]


def _centres(length, places):
    return (2 * np.arange(places) + 1) * length // (2 * places)


def fit_layout(grids, num_classes):
    """The layout map that scores best on the training targets, and its exponent.

    grids: (N, rows, columns) uint8, each training target through resize_nearest. The map predicts
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


def semantic_gain(miou, floor):
    """How far a model goes from the layout floor to a perfect 1; None where either is, or where the floor is 1."""
    return None if miou is None or floor is None or floor >= 1 else (miou - floor) / (1 - floor)


# ---------------------------------------------------------------------------------------------------------------------
# Layout: what the place alone tells, as probabilities


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

    probabilities: (C,) the same everywhere, or (C, rows, columns) resized to the target by resize_nearest's rule;
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
# Boundaries


def boundary_counts(prediction, target, num_classes):
    """Intersection and union of the boundary bands of one image: (2, C) int64 tensor, to be added up over images.

    prediction, target: (H, W) integers, arrays or tensors. The band of a class are its pixels within
    d = max(1, round(0.02 * diagonal)) of a pixel outside it, the diagonal being the image's in pixels. Target values
    outside 0..C-1 are void: such pixels belong to no class in either map, whatever is predicted there.
    Source: Cheng et al., Boundary IoU (2021), equation 2, and its code, where distance is Chebyshev's and the edge of
    the image bounds a mask.
    """
    prediction, target = _label_maps(prediction, target, num_classes)
    reach = _reach(target.shape)
    valid = target < num_classes
    in_target, in_prediction = (_near_change(labels, reach, num_classes) & valid for labels in (target, prediction))
    both = in_target & in_prediction & (target == prediction)
    shared, first, second = (
        np.bincount(labels[mask], minlength=num_classes)
        for labels, mask in ((target, both), (target, in_target), (prediction, in_prediction))
    )
    return torch.from_numpy(np.stack([shared, first + second - shared]))


def boundary_iou(counts):
    """Mean over the classes that occur of intersection / union, from summed boundary_counts (2, C); None without."""
    shared, union = (row.tolist() for row in counts)
    return _mean([s / u for s, u in zip(shared, union, strict=True) if u])


def boundary_f1_counts(prediction, target, num_classes):
    """Boundary pixels of one image and how many of them have a match: (4, C) int64 tensor, to be added up over images.

    Rows: matched predicted, predicted, matched target, target boundary pixels. prediction, target as in
    boundary_counts. A boundary pixel is one with another known class above, below, left or right of it; the image's
    edge and void make no boundary. It has a match if the other map has a boundary pixel of its class within d.
    Source: Csurka et al., What is a good evaluation measure for semantic segmentation? (2013), section 3.
    Deviations: d is boundary_counts' with Chebyshev's distance, not 0.75 % of the diagonal with Euclid's; counts are
    added up over the set before dividing, not averaged over images.
    """
    prediction, target = _label_maps(prediction, target, num_classes)
    reach = _reach(target.shape)
    valid = target < num_classes
    edges = [_edge_pixels(labels, valid) for labels in (prediction, target)]
    rows = []
    for own, other in ((0, 1), (1, 0)):
        labels = (prediction, target)[own][edges[own]]
        matched = _matched((prediction, target), edges, own, other, reach, num_classes)
        rows += [np.bincount(labels[matched], minlength=num_classes), np.bincount(labels, minlength=num_classes)]
    return torch.from_numpy(np.stack(rows))


def boundary_f1(counts):
    """Mean over the classes that have a boundary of 2 P R / (P + R), from summed boundary_f1_counts (4, C), or None."""
    values = []
    for hit, predicted, found, true in zip(*(row.tolist() for row in counts), strict=True):
        if predicted or true:
            precision, recall = (hit / predicted if predicted else 0.0), (found / true if true else 0.0)
            values.append(2 * precision * recall / (precision + recall) if precision + recall else 0.0)
    return _mean(values)


def _label_maps(prediction, target, num_classes):
    """Both maps as small unsigned integers, void pixels set to num_classes in both."""
    prediction, target = (
        labels.cpu().numpy() if isinstance(labels, torch.Tensor) else np.asarray(labels)
        for labels in (prediction, target)
    )
    if prediction.shape != target.shape or target.ndim != 2:
        raise ValueError(f"prediction {prediction.shape} and target {target.shape} must be maps of one size")
    void = (target < 0) | (target >= num_classes)
    foreign = ~void & ((prediction < 0) | (prediction >= num_classes))
    if foreign.any():
        raise ValueError(f"prediction {prediction[foreign][0]} is outside the classes 0..{num_classes - 1}")
    dtype = np.uint8 if num_classes < 256 else np.uint16
    return tuple(np.where(void, num_classes, labels).astype(dtype) for labels in (prediction, target))


def _reach(size):
    return max(1, round(0.02 * float(np.hypot(*size))))


def _slide(array, reach, combine, outside):
    """Combine each pixel's square neighbourhood of half-width `reach`, with `outside` beyond the image: (H, W)."""
    width = 2 * reach + 1
    for axis in (0, 1):
        array = np.pad(array, [(reach, reach) if a == axis else (0, 0) for a in (0, 1)], constant_values=outside)
        array, covered = np.moveaxis(array, axis, 0), 1
        while 2 * covered <= width:  # windows of 1, 2, 4 ... pixels
            array, covered = combine(array[:-covered], array[covered:]), 2 * covered
        rest = width - covered
        array = np.moveaxis(combine(array[: len(array) - rest], array[rest:]), 0, axis)
    return array


def _near_change(labels, reach, outside):
    return _slide(labels, reach, np.maximum, outside) != _slide(labels, reach, np.minimum, outside)


def _edge_pixels(labels, valid):
    """(H, W) bool: pixels with another known class beside, above or below them."""
    edge = np.zeros(labels.shape, dtype=bool)
    for first, second in ((np.s_[1:], np.s_[:-1]), (np.s_[:, 1:], np.s_[:, :-1])):
        change = (labels[first] != labels[second]) & valid[first] & valid[second]
        edge[first] |= change
        edge[second] |= change
    return edge


def _matched(maps, edges, own, other, reach, num_classes):
    """For each edge pixel of map `own`: has map `other` an edge pixel of the same class within reach? (K,) bool."""
    labels = maps[own][edges[own]]
    matched = np.zeros(labels.shape, dtype=bool)
    for first in range(0, num_classes, 64):  # a bit a class, 64 classes at a time
        width = min(64, num_classes - first)
        dtype = next(kind for kind in (np.uint8, np.uint16, np.uint32, np.uint64) if kind(0).nbytes * 8 >= width)
        bit = np.zeros(num_classes + 1, dtype=dtype)
        bit[first : first + width] = dtype(1) << np.arange(width, dtype=dtype)
        near = _slide(np.where(edges[other], bit[maps[other]], dtype(0)), reach, np.bitwise_or, 0)
        matched |= (near[edges[own]] & bit[labels]) != 0
    return matched


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


# ---------------------------------------------------------------------------------------------------------------------
# Ranking figures of anomaly scores


def ranking_figures(scores, positives, nearest=False):
    """Exact average precision, ROC area and FPR95 of pixels: {"aupr", "auroc", "fpr95"}; None without both kinds.

    scores: float32, any shape, finite, larger = more anomalous; positives: bool, same shape, True on an anomaly.
    A pixel alarms when its score >= threshold, so equal scores are ties. AUPR: the sum over distinct scores k of
    (R_k - R_k-1) P_k, with recall R and precision P. AUROC: the share of (positive, negative) pairs in the right order,
    ties counting half. FPR95: false positives over negatives at the first threshold, from the highest down, with a
    recall of at least 0.95; that is for pixels pooled over a set. With `nearest`, for one image: at the recall nearest
    to 0.95; of equally near ones at the higher recall, and where several thresholds share that recall at the lowest of
    them (at the highest if the recall is 1).
    Raises: ValueError for scores that are not float32 or not finite, or shapes that differ.
    Source of `nearest`: Hendrycks et al., Scaling Out-of-Distribution Detection for Real-World Settings, the
    StreetHazards evaluation code (`anom_utils.py`).
    """
    tp, fp = _alarms(*check_scores(scores, positives))
    if not tp.numel() or tp[-1] == 0 or fp[-1] == 0:
        return None
    step_tp = tp.diff(prepend=tp.new_zeros(1)).double()
    aupr = float((step_tp * (tp / (tp + fp).double())).sum() / tp[-1])
    step_fp = fp.diff(prepend=fp.new_zeros(1)).double()
    wrong = float((step_tp * (fp - step_fp / 2)).sum())  # pairs with the negative above, ties counting half
    auroc = 1 - wrong / (int(tp[-1]) * int(fp[-1]))
    recall = tp.double() / tp[-1]
    place = _nearest_place(recall) if nearest else int((recall < 0.95).sum())
    return {"aupr": aupr, "auroc": auroc, "fpr95": int(fp[place]) / int(fp[-1])}


def _alarms(scores, positives):
    """True and false positives at each distinct score as threshold, from the highest down: two (K,) int64."""
    ranked = order_keys(scores).long() * 2 + positives
    if ranked.device.type == "cpu":  # numpy's vectorised sort takes a tenth of the time of torch's
        ranked = torch.from_numpy(np.sort(ranked.numpy())).flip(0)
    else:
        ranked = ranked.sort().values.flip(0)
    last = torch.ones_like(ranked, dtype=torch.bool)  # the last pixel of each distinct score
    last[:-1] = (ranked[1:] >> 1) != (ranked[:-1] >> 1)
    ends = last.nonzero().view(-1)
    tp = (ranked & 1).cumsum(0)[ends]
    return tp, ends + 1 - tp


def _nearest_place(recall):
    """Where a rising recall (K,) that ends at 1 is nearest to 0.95, as ranking_figures says."""
    complete = int((recall < 1).sum())  # where the recall first is 1
    return complete - int((recall[: complete + 1] - 0.95).abs().flip(0).argmin())


def check_scores(scores, positives):
    """Scores and positives, each flattened to (N,); ValueError unless float32, finite, and bool of the same shape."""
    if scores.dtype != torch.float32:
        raise ValueError(f"scores must be float32, got {scores.dtype}: other types round or hide ties")
    if scores.shape != positives.shape or positives.dtype != torch.bool:
        found = f"{tuple(positives.shape)} {positives.dtype} for scores {tuple(scores.shape)}"
        raise ValueError(f"positives must be bool and of the scores' shape, got {found}")
    check_finite(scores, "scores")
    return scores.detach().reshape(-1), positives.reshape(-1)


def check_finite(values, what):
    """Refuse a float tensor that holds NaN or infinity by a ValueError; what: the name of the values, plural."""
    if values.numel() and not all(bool(torch.isfinite(end)) for end in values.aminmax()):  # aminmax passes NaN on
        raise ValueError(f"{int((~torch.isfinite(values)).sum())} of {values.numel()} {what} are not finite")


def order_keys(scores):
    """int32 in the order of the float32 scores: their bits, those of negative ones inverted; -0.0 equals 0.0."""
    return _inverted((scores + 0.0).view(torch.int32))  # + 0.0 turns -0.0 into 0.0


def key_scores(keys):
    """The float32 scores of int32 order_keys, both numpy."""
    return _inverted(keys).view(np.float32)


def _inverted(bits):
    """From bits to keys, and from keys to bits: int32, torch or numpy."""
    return bits ^ ((bits >> 31) & 0x7FFFFFFF)
