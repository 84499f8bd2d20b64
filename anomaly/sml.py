"""Standardised max logits: make classes comparable, take the blame off class boundaries, smooth.

Source: Jung et al., Standardized Max Logits: A Simple yet Effective Approach for Identifying Unexpected Road Obstacles
in Urban-Scene Segmentation (ICCV 2021), and their code where the text leaves a choice.
Everything is written as shifted sums instead of convolutions: as fast for one channel, and no library rounds them to
fewer bits.
"""

import math

import torch

import metrics

PARTS = ("standardise", "boundary", "smooth")  # in the order in which they are applied

EXPANSIONS = 3  # the boundary is expanded by 3 pixels at first, then by 2, 1, 0
TAPS, DILATION = 3, 6  # the Gaussian, sigma 1, has 2 * TAPS + 1 taps in each direction, DILATION pixels apart
SMALLEST_STD = 1e-6  # of max logits; what varies less has no scale of its own


def sml(top, labels, mean, std, parts=PARTS):
    """Anomaly score: minus the max logits after the parts asked for, in PARTS' order.

    top: (N, H, W) float32 largest logits at full size; labels: (N, H, W) integers, the predicted classes; mean, std:
    (C,) of the largest logit by predicted class over the training split. Returns (N, H, W) float32.
    Raises: ValueError for other types or shapes, a label outside the classes, an unknown part.
    """
    if not set(parts) <= set(PARTS):
        raise ValueError(f"parts of sml are {', '.join(PARTS)}, got {parts}")
    _check(top, labels)
    if "standardise" in parts:
        top = standardise(top, labels, mean, std)
    if "boundary" in parts:
        top = suppress_boundaries(top, labels)
    if "smooth" in parts:
        top = smooth(top)
    return -top


def standardise(top, labels, mean, std):
    """(top - mean) / std of the predicted class.

    top: (N, H, W) float32 largest logits; labels: (N, H, W) integers, the predicted classes; mean, std: (C,) finite, of
    the largest logit by predicted class over the training split, std >= 0. Returns (N, H, W) float32, larger = surer.
    A class with std <= SMALLEST_STD (never predicted in training, or on one pixel) takes the average mean and the
    average std of the others; where no class has more, mean 0 and std 1, so the max logits stay as they are.
    Raises: ValueError for other types, shapes or values.
    Source: Jung et al., the standardised max logit. Deviation: the authors' division by 0 is replaced as above.
    """
    _check(top, labels)
    mean, std = (torch.as_tensor(values).to(top.device, torch.float64) for values in (mean, std))
    if mean.dim() != 1 or mean.shape != std.shape:
        raise ValueError(f"mean {tuple(mean.shape)} and std {tuple(std.shape)} must both be (C,)")
    if not bool(torch.isfinite(mean).all() & torch.isfinite(std).all() & (std >= 0).all()):
        raise ValueError(f"mean and std must be finite and std not negative, got {mean.tolist()} and {std.tolist()}")
    metrics.check_labels(labels, "label", len(mean))
    varied = std > SMALLEST_STD
    others = (mean[varied].mean(), std[varied].mean()) if bool(varied.any()) else (0.0, 1.0)
    mean, std = (torch.where(varied, own, other) for own, other in zip((mean, std), others, strict=True))
    places = labels.reshape(-1).int()
    mean, std = (values.float().index_select(0, places).view(top.shape) for values in (mean, std))  # (N, H, W)
    return (top - mean).div_(std)


def suppress_boundaries(scores, labels):
    """Replace scores on the boundaries of the predicted classes, from outside in, by the means of their neighbours.

    scores: (N, H, W) float32; labels: (N, H, W) integers, the predicted classes. Returns (N, H, W) float32.
    Boundary: the pixels where the largest label of the 3x3 cross differs from the smallest of the 3x3 square (two
    pixels wide; outside the image there is nothing). Four rounds, with the boundary expanded to all pixels at most 3,
    2, 1, 0 steps away: each of its pixels becomes the mean of those in its 3x3 square that are not on it, the image's
    edge repeated outward; without such a neighbour it waits for the next round. With the classes numbered otherwise,
    some corners of the boundary lie otherwise: the authors' definition.
    Raises: ValueError for other types or shapes.
    Source: Jung et al., iterative boundary suppression; the square, the cross and the edges as in their code.
    """
    _check(scores, labels)
    largest = torch.maximum(_of_three(labels, 1, torch.maximum), _of_three(labels, 2, torch.maximum))
    smallest = _of_three(_of_three(labels, 1, torch.minimum), 2, torch.minimum)
    boundaries = [largest != smallest]  # (N, H, W) bool, each a step wider than the one before
    for _ in range(EXPANSIONS):
        rows, columns = (_of_three(boundaries[-1], dim, torch.maximum) for dim in (1, 2))
        boundaries.append(rows | columns)
    for boundary in reversed(boundaries):
        count = _sum_of_nine((~boundary).to(torch.uint8))
        total = _sum_of_nine(scores.masked_fill(boundary, 0))
        scores = torch.where(boundary & (count > 0), total / count.clamp(min=1), scores)
    return scores


def smooth(scores):
    """Blur with a Gaussian of sigma 1 whose 7x7 taps lie 6 pixels apart, the image's edge repeated outward.

    scores: (N, H, W) float32. Returns (N, H, W) float32. Raises: ValueError for another type or shape.
    Source: Jung et al., dilated smoothing, with kernel size 7 and dilation 6 as they chose.
    """
    _check(scores)
    weights = [math.exp(-0.5 * tap**2) for tap in range(TAPS + 1)]
    whole = weights[0] + 2 * sum(weights[1:])
    for dim in (1, 2):  # the Gaussian is the product of one down and one across
        length = scores.shape[dim]
        padded = _padded(scores, dim, TAPS * DILATION)
        blurred = scores * (weights[0] / whole)
        for tap in range(1, TAPS + 1):
            before, after = ((TAPS + side * tap) * DILATION for side in (-1, 1))
            pair = padded.narrow(dim, before, length) + padded.narrow(dim, after, length)
            blurred.add_(pair, alpha=weights[tap] / whole)
        scores = blurred
    return scores


def _of_three(values, dim, pick):
    """Pick (maximum or minimum) of each value and its neighbours along a dimension; outside there is nothing."""
    length = values.shape[dim] - 1
    result = values.clone()
    for here, there in ((0, 1), (1, 0)):
        part = result.narrow(dim, here, length)
        pick(part, values.narrow(dim, there, length), out=part)
    return result


def _sum_of_nine(values):
    """Sums over 3x3 squares, the edge repeated outward."""
    for dim in (1, 2):
        length = values.shape[dim]
        padded = _padded(values, dim, 1)
        values = padded.narrow(dim, 0, length) + values
        values += padded.narrow(dim, 2, length)
    return values


def _padded(values, dim, margin):
    """Repeat the edges outward along a dimension."""
    sizes = [-1] * values.dim()
    sizes[dim] = margin
    first, last = (values.narrow(dim, place, 1).expand(sizes) for place in (0, values.shape[dim] - 1))
    return torch.cat([first, values, last], dim)


def _check(scores, labels=None):
    if scores.dtype != torch.float32:
        raise ValueError(f"max logits must be float32, got {scores.dtype}: scores rounded to fewer bits are ties")
    if scores.dim() != 3 or 0 in scores.shape[1:]:
        raise ValueError(f"max logits must be (N, H, W), got {tuple(scores.shape)}")
    if labels is None:
        return
    metrics.check_labels(labels, "label")
    if labels.shape != scores.shape:
        raise ValueError(f"labels {tuple(labels.shape)} and max logits {tuple(scores.shape)} differ in shape")
