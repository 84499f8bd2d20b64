"""Anomaly scores: logits (or features) of a segmentation model -> one float32 per pixel, larger = more anomalous.

A score here looks at one pixel's logits and nothing else; the names of all scores, with those of `anomaly.sml` and
`anomaly.features`, are read here.
"""

from functools import partial

import torch

from anomaly.features import FEATURE_SCORES
from anomaly.sml import PARTS
from cli import UserError, nearest

# ---------------------------------------------------------------------------------------------------------------------
# Scores of logits


def msp(logits):
    """1 - max p, p the softmax probabilities.

    logits: (N, C, H, W) float32, before any softmax. Returns (N, H, W) float32 in 0 .. 1 - 1 / C.
    The other classes' probabilities are summed, so a pixel keeps its relative precision where max p rounds to 1; a
    pixel whose largest logit leads by more than 103 scores 0, since float32 ends there.
    Raises: ValueError for logits of another type (bfloat16 rounds distinct scores into ties) or shape, and for
    probabilities.
    Source: Hendrycks and Gimpel, A Baseline for Detecting Misclassified and Out-of-Distribution Examples (2017).
    """
    _, others = _below_the_top(logits)
    total = others.sum(dim=1)
    return total / (1 + total)  # (N, H, W)


def max_logit(logits):
    """Negative of the largest logit.

    logits: (N, C, H, W) float32, before any softmax. Returns (N, H, W) float32.
    Raises: as msp; after a softmax the score is another one, 1 - max p, under this one's name.
    Source: Hendrycks et al., Scaling Out-of-Distribution Detection for Real-World Settings (2022), section 3.
    """
    _check_logits(logits)
    return -logits.amax(dim=1)  # (N, H, W)


def energy(logits):
    """Free energy -log sum_c exp(logit_c), at temperature 1.

    logits: (N, C, H, W) float32, before any softmax. Returns (N, H, W) float32. Raises: as msp.
    Source: Liu et al., Energy-based Out-of-distribution Detection (2020), equation 4.
    """
    _check_logits(logits)
    return -logits.logsumexp(dim=1)  # (N, H, W)


def entropy(logits):
    """Entropy of the softmax in nats, 0 .. log C.

    logits: (N, C, H, W) float32, before any softmax. Returns (N, H, W) float32. Raises: as msp.
    With the logits counted from the largest one down it is a sum of terms that are never negative, so nothing cancels
    where one class is nearly sure.
    Source: Shannon, A Mathematical Theory of Communication (1948), section 6.
    """
    below, others = _below_the_top(logits)
    total = others.sum(dim=1)
    return total.log1p() - (others * below).sum(dim=1) / (1 + total)  # (N, H, W)


def margin(logits):
    """1 - (p1 - p2): how little the likeliest class leads the second.

    logits: (N, C, H, W) float32, before any softmax. Returns (N, H, W) float32 in 0..1. Raises: as msp.
    Computed as msp is: the other classes' probabilities, the second's once more.
    Source: Scheffer et al., Active Hidden Markov Models for Information Extraction (2001), the margin of a token.
    """
    _, others = _below_the_top(logits)
    total = others.sum(dim=1)
    return (total + others.amax(dim=1)) / (1 + total)  # (N, H, W)


def _below_the_top(logits):
    """Logits counted from each pixel's largest one down, and their exp with 0 at the predicted class: (N, C, H, W)."""
    _check_logits(logits)
    top, best = logits.max(dim=1, keepdim=True)
    below = logits - top
    return below, below.exp().scatter_(1, best, 0.0)


def _check_logits(logits):
    if logits.dtype != torch.float32:
        raise ValueError(f"logits must be float32, got {logits.dtype}: scores rounded to fewer bits are ties")
    if logits.dim() != 4:
        raise ValueError(f"logits must be (N, C, H, W), got {tuple(logits.shape)}")
    if logits.numel() and float(logits.amin()) >= 0 and bool(((logits.sum(dim=1) - 1).abs() < 1e-3).all()):
        raise ValueError("the logits are probabilities (each pixel's sum to 1); pass what goes into the softmax")


# ---------------------------------------------------------------------------------------------------------------------
# Scores of a distance head


def distance_sum(logits):
    """Negative sum of the squared distances to all class centres: what belongs nowhere lies between them.

    logits: (N, C, H, W) float32 of a distance head, -||f - m_c||^2. Returns (N, H, W) float32.
    Raises: as msp, and ValueError for a logit above 0.
    Source: Cen et al., Deep Metric Learning for Open World Semantic Segmentation (2021), the Euclidean distance sum
    (EDS), without its division by the image's largest sum, which does not change the order within an image.
    """
    _check_distances(logits)
    return logits.sum(dim=1)  # (N, H, W)


def distance_mix(logits, largest_sum, smallest_sum=0.0):
    """Mixture of the distance sum and 1 - max p, each where it is trusted.

    a P_eds + (1 - a) P_msp with P_eds = 1 - (S - smallest_sum) / (largest_sum - smallest_sum), S the sum of squared
    distances, P_msp = 1 - max p, a = 1 / (1 + exp(-20 (P_eds - 0.8))).
    logits: (N, C, H, W) float32 of a distance head, -||f - m_c||^2; the sums: `distance_sums` of the centres. Returns
    (N, H, W) float32; features further out than a centre have P_eds < 0.
    Raises: as distance_sum, and ValueError unless 0 <= smallest_sum < largest_sum.
    Source: Cen et al., Deep Metric Learning for Open World Semantic Segmentation (2021), the mixture of EDS and MMSP.
    Deviation: the paper divides by the image's largest S, here by a constant of the centres, so that a pixel's score
    depends on nothing but the pixel. Beware of smallest_sum = 0: S is never less than the smallest sum, which for
    equidistant centres is half the largest, so P_eds <= 0.5, a < 0.003, and the mixture is P_msp in all but name.
    """
    if not 0 <= smallest_sum < largest_sum < float("inf"):
        raise ValueError(f"the sums must be 0 <= smallest < largest, got {smallest_sum} and {largest_sum}")
    _check_distances(logits)
    eds = 1 - (-logits.sum(dim=1) - smallest_sum) / (largest_sum - smallest_sum)  # (N, H, W)
    return torch.lerp(msp(logits), eds, torch.sigmoid(20 * (eds - 0.8)))


def distance_sums(centres):
    """The smallest sum of squared distances to all centres that any point has, and the largest that a centre has.

    centres: (C, D) float. Returns two floats: sum_k ||m - m_k||^2 at the centres' mean m, and its maximum over the
    centres.
    """
    centres = centres.double()
    centred = centres - centres.mean(dim=0)
    lengths = centred.square().sum(dim=1)  # (C,)
    smallest = float(lengths.sum())
    return smallest, smallest + len(centres) * float(lengths.max())  # sum_k ||x - m_k||^2 = smallest + C ||x - m||^2


def _check_distances(logits):
    _check_logits(logits)
    if logits.numel() and float(logits.amax()) > 0.01:  # rounding lets -(|f|^2 - 2fm + |m|^2) end a little above 0
        raise ValueError(f"a distance head's logits are never above 0, got {float(logits.amax()):g}")


# ---------------------------------------------------------------------------------------------------------------------
# Names


LOGIT_SCORES = {"msp": msp, "maxlogit": max_logit, "energy": energy, "entropy": entropy, "margin": margin}
DISTANCE_SCORES = ("prototype", "prototype-mix")  # need the logits of a distance head
NAMES = (*LOGIT_SCORES, "sml", *DISTANCE_SCORES, *FEATURE_SCORES, "residual")


def pixelwise_score(name, centres=None):
    """The function (N, C, H, W) -> (N, H, W) of a score that looks at one pixel's logits, None for another score.

    centres: (C, C) of a distance head, for 'prototype-mix'.
    """
    if name == "prototype":
        return distance_sum
    if name == "prototype-mix":
        smallest, largest = distance_sums(centres)
        return partial(distance_mix, largest_sum=largest, smallest_sum=smallest)
    return LOGIT_SCORES.get(name)


def parse_scores(text):
    """Read 'maxlogit,sml,sml:boundary+smooth' into a list of names, in the order written.

    `sml` alone is all three parts, `sml:PARTS` those named, joined by + in the order of PARTS; a name that lists all
    three becomes 'sml'.
    Raises: UserError for an unknown score or part (with the nearest known one), parts in another order, a score given
    twice, or none.
    """
    names = []
    for word in filter(None, (word.strip() for word in text.split(","))):
        name, colon, parts = word.partition(":")
        if name not in NAMES:
            raise UserError(f"unknown score {name!r}", f"{text!r}", nearest(name, NAMES))
        if colon:
            name = _with_parts(name, parts, text)
        if name in names:
            raise UserError(f"score {name!r} given twice", f"{text!r}", "keep one of the two")
        names.append(name)
    if not names:
        raise UserError("no score named", f"{text!r}", "known: " + ", ".join(NAMES))
    return names


def _with_parts(name, parts, text):
    if name != "sml":
        raise UserError(f"score {name!r} has no parts", f"{text!r}", f"write {name}")
    chosen = parts.split("+")
    for part in chosen:
        if part not in PARTS:
            raise UserError(f"unknown part {part!r} of sml", f"{text!r}", nearest(part, PARTS))
    ordered = [part for part in PARTS if part in chosen]
    if chosen != ordered:
        raise UserError(f"parts {parts!r} of sml are out of order", f"{text!r}", f"write sml:{'+'.join(ordered)}")
    return "sml" if len(ordered) == len(PARTS) else f"sml:{parts}"


def sml_parts(name):
    """The parts of a name that parse_scores returned: 'sml:boundary+smooth' -> ('boundary', 'smooth').

    Raises: ValueError for a name that is not sml's.
    """
    kind, _, parts = name.partition(":")
    if kind != "sml":
        raise ValueError(f"{name!r} is not a name of sml")
    return tuple(parts.split("+")) if parts else PARTS
