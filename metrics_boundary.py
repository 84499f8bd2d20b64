"""Metrics of class boundaries: boundary IoU and boundary F1, one image at a time.

Both look at label maps as a whole: a pixel lies near its class's boundary where the labels around it are not all the
same, so one sliding maximum and minimum serve all classes.
"""

import numpy as np
import torch


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
    values = [s / u for s, u in zip(shared, union, strict=True) if u]
    return sum(values) / len(values) if values else None


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
    return sum(values) / len(values) if values else None


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
