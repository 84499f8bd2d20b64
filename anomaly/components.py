"""Anomaly metrics of whole objects: how well each component is found, whatever its size.

A component is a set of pixels joined by their edges or corners. Pixel metrics let one large object hide ten small ones;
here each counts once. The figures belong to one alarm, so its threshold must be chosen before, on validation data.
"""

import math
from typing import NamedTuple

import numpy as np
import torch

THRESHOLDS = tuple(n / 20 for n in range(5, 16))  # 0.25, 0.30 ... 0.75, each the float nearest to its fraction


# ---------------------------------------------------------------------------------------------------------------------
# Labelling


def label_components(mask):
    """Number the 8-connected components of a mask: (labels (H, W) int32, count K).

    mask: (H, W) bool, array or tensor. Labels are 0 outside and 1..K inside, in the reading order of each component's
    first pixel.
    Raises: ValueError for another shape or type.
    """
    mask = _bool_map("mask", mask)
    height, width = mask.shape
    pitch = width + 1  # a column of False before each row, so that no run goes on in the next row
    flat = np.zeros(height * pitch + 1, dtype=bool)
    flat[:-1].reshape(height, pitch)[:, 1:] = mask
    edges = np.flatnonzero(flat[1:] != flat[:-1]) + 1  # a run's start and the place behind its end, by turns
    first = _join(len(edges) // 2, *_touching(edges[0::2], edges[1::2], pitch))
    is_root = first == np.arange(len(first))
    values = np.zeros(len(edges) + 1, dtype=np.int32)  # gap, run, gap ... gap
    values[1::2] = is_root.cumsum()[first]
    labels = np.repeat(values, np.diff(edges, prepend=0, append=flat.size))
    return np.ascontiguousarray(labels[:-1].reshape(height, pitch)[:, 1:]), int(is_root.sum())


def _touching(starts, ends, pitch):
    """Pairs (upper, lower) of runs in neighbouring rows that share an edge or a corner: two (E,) int64 arrays."""
    low = np.searchsorted(ends, starts + pitch, side="left")  # the runs touched by one run follow each other
    count = np.maximum(np.searchsorted(starts, ends + pitch, side="right") - low, 0)
    upper = np.repeat(np.arange(len(starts)), count)
    return upper, np.arange(len(upper)) + np.repeat(low - (count.cumsum() - count), count)


def _join(size, one, other):
    """The smallest member of each node's connected component: (size,) int64. one, other: (E,) int64, joined nodes.

    In each round every root hangs itself below its smallest neighbour, if that is smaller, and all trees are flattened.
    A root either takes in a neighbour or has a smaller one in the next round, so the number of rounds is logarithmic.
    """
    root = np.arange(size)
    while len(one):
        np.minimum.at(root, np.maximum(one, other), np.minimum(one, other))
        while True:
            above = root[root]
            if np.array_equal(above, root):
                break
            root = above
        one, other = root[one], root[other]
        apart = one != other
        one, other = one[apart], other[apart]
    return root


def _bool_map(name, mask):
    mask = mask.cpu().numpy() if isinstance(mask, torch.Tensor) else np.asarray(mask)
    if mask.ndim != 2 or mask.dtype != bool:
        raise ValueError(f"{name} must be (H, W) bool, got {mask.shape} {mask.dtype}")
    return mask


# ---------------------------------------------------------------------------------------------------------------------
# One image


class Components(NamedTuple):
    """How well the components of one image, or of several, were found."""

    siou: np.ndarray  # (K,) float64 in 0..1, of each true component, in reading order
    ppv: np.ndarray  # (P,) float64 in 0..1, of each predicted component, in reading order


def component_counts(alarm, target_anomaly, judged, min_prediction=500, min_truth=100):
    """Hold the components of one image's alarm against the true ones: Components.

    alarm: (H, W) bool, predicted anomaly; target_anomaly: (H, W) bool, true anomaly; judged: (H, W) bool, False where
    void; arrays or tensors. Void belongs to nothing: an alarm that void cuts in two is two components.
    min_prediction, min_truth: pixels; 0 or 1 turns them off. A predicted component below min_prediction is dropped. A
    true one below min_truth turns void, but only after the labelling: its pixels leave the predicted components, which
    are neither cut nor held against min_prediction again; one that has no pixel left is none.
    With K(k) the union of the predicted components that meet the true component k, and A(k) the pixels of the other
    true components: sIoU(k) = |k & K(k)| / |(k | K(k)) - A(k)|. PPV of a predicted component: the share of its pixels
    on true components.
    Raises: ValueError for masks of another type or of several sizes.
    Source: Chan et al., SegmentMeIfYouCan (2021), component-level metrics, after Rottmann et al., Prediction Error Meta
    Classification (2020); what becomes of void and of small components, and the sizes (500 and 100 in its anomaly
    track, 50 and 10 in its obstacle track), are those of its code. Deviation: where all that is no true component has
    fewer than min_truth pixels, that code turns it to void too.
    """
    maps = zip(("alarm", "target_anomaly", "judged"), (alarm, target_anomaly, judged), strict=True)
    alarm, target_anomaly, judged = (_bool_map(name, mask) for name, mask in maps)
    if not alarm.shape == target_anomaly.shape == judged.shape:
        shapes = f"alarm {alarm.shape}, target_anomaly {target_anomaly.shape} and judged {judged.shape}"
        raise ValueError(f"{shapes} must be of one size")
    predicted, num_predicted = label_components(alarm & judged)
    true, num_true = label_components(target_anomaly & judged)
    predicted_size = np.bincount(predicted.ravel(), minlength=num_predicted + 1)  # [0] is no component
    true_size = np.bincount(true.ravel(), minlength=num_true + 1)
    large = predicted_size >= min_prediction
    judged_truth = true_size >= min_truth
    large[0] = judged_truth[0] = False

    t, p, shared = _overlaps(true, predicted)  # (E,) each: pixels that true component t and predicted p share
    t, p, shared = (column[large[p]] for column in (t, p, shared))
    stray = predicted_size - _add_up(p, shared, num_predicted)  # pixels on no true component, not even a small one
    t, p, shared = (column[judged_truth[t]] for column in (t, p, shared))
    hit, found = _add_up(p, shared, num_predicted), _add_up(t, shared, num_true)
    union = true_size + _add_up(t, stray[p], num_true)  # of K(k), what lies outside all truth: A(k) is taken out
    large &= hit + stray > 0
    return Components(found[judged_truth] / union[judged_truth], hit[large] / (hit + stray)[large])


def _overlaps(true, predicted):
    """Pairs of components that share pixels, and how many: three (E,) int64 arrays."""
    both = (true > 0) & (predicted > 0)
    codes, pixels = np.unique((true[both].astype(np.int64) << 32) | predicted[both], return_counts=True)
    return codes >> 32, codes & 0xFFFFFFFF, pixels


def _add_up(index, amounts, last):
    """Sum of the amounts of each index 0..last: (last + 1,) int64."""
    sums = np.zeros(last + 1, dtype=np.int64)
    np.add.at(sums, index, amounts)
    return sums


# ---------------------------------------------------------------------------------------------------------------------
# A set of images


class ComponentScores:
    """The components of a set of images. Any order and sharding gives the same figures: sums are exact before rounding.

    Memory: a float for each component.
    """

    def __init__(self):
        self.siou, self.ppv = [], []

    def update(self, components):
        """Add the Components of one image."""
        self.siou += components.siou.tolist()
        self.ppv += components.ppv.tolist()

    def merge(self, other):
        """Add what another one holds; it stays as it is."""
        self.siou += other.siou
        self.ppv += other.ppv

    def figures(self):
        """{"siou", "ppv": means over all components; "f1"; "components", "predicted": their numbers}; None without any.

        f1: the mean over the thresholds t = 0.25, 0.30 ... 0.75 of 2 TP / (2 TP + FN + FP), where a true component is
        found (TP) if sIoU >= t, else missed (FN), and a predicted one is false (FP) if PPV < t. It is None only
        without any component of either kind; with predicted ones alone it is 0.
        Source: as component_counts. Deviations: the paper finds with > and calls false with <=, its code with >= and <
        as here; that code's threshold 0.6 is a float above 3 / 5, so it misses a component with exactly 3 / 5.
        """
        return {
            "siou": math.fsum(self.siou) / len(self.siou) if self.siou else None,
            "ppv": math.fsum(self.ppv) / len(self.ppv) if self.ppv else None,
            "f1": self._f1() if self.siou or self.ppv else None,
            "components": len(self.siou),
            "predicted": len(self.ppv),
        }

    def _f1(self):
        values = []
        for threshold in THRESHOLDS:
            found = sum(value >= threshold for value in self.siou)
            false = sum(value < threshold for value in self.ppv)
            values.append(2 * found / (found + len(self.siou) + false))  # without true components each PPV is 0 < t
        return math.fsum(values) / len(values)
