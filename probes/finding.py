"""What a probe says: a `Finding`, its cause from a closed list, what can be looked at, and the ranking."""

import math
from dataclasses import dataclass, field, fields

import numpy as np

# Every cause a finding may name, most upstream first, with the causes it explains.
CAUSES = {
    # files and masks
    "unreadable_files": ["unknown_labels", "nothing_learnt", "collapse"],
    "greyscale_masks": ["class_imbalance", "absent_classes", "shifted_masks", "masks_do_not_fit", "nothing_learnt",
                        "collapse", "below_layout_floor"],
    "jpeg_masks": ["unknown_labels", "blended_masks"],
    "blended_masks": ["unknown_labels", "shifted_masks"],
    "one_based_labels": ["unknown_labels", "absent_classes", "class_ids_shifted"],
    "mapped_twice": ["absent_classes", "class_imbalance", "collapse"],
    "other_coding": ["absent_classes", "class_imbalance", "collapse"],
    "clamped_masks": ["class_imbalance", "absent_classes", "shifted_masks", "masks_do_not_fit", "collapse",
                      "below_layout_floor"],
    "unknown_labels": ["class_imbalance", "absent_classes", "nothing_learnt", "collapse"],
    "anomaly_in_training": [],
    "no_labels": ["nothing_learnt", "collapse"],
    "noise_images": ["masks_do_not_fit", "nothing_learnt", "below_layout_floor", "layout_shortcut"],
    "constant_images": ["masks_do_not_fit", "below_layout_floor"],
    "shuffled_masks": ["layout_shortcut", "below_layout_floor", "collapse", "ignores_the_image", "flip_missed_masks"],
    "mirrored_masks": ["flip_missed_masks", "below_layout_floor", "layout_shortcut"],
    "shifted_masks": ["shifted_predictions"],
    "masks_do_not_fit": ["layout_shortcut", "below_layout_floor", "collapse", "ignores_the_image"],
    "repeated_across_splits": [],
    # training
    "noise_is_not_noise": ["nothing_learnt", "label_leak", "memorised_noise"],
    "learning_rate_zero": ["untrained_layers", "frozen_backbone", "loss_flat", "nothing_learnt", "collapse",
                           "below_layout_floor", "stale_batch_norm", "ignores_the_image", "wrong_schedule"],
    "answers_not_finite": ["gradient_not_finite", "no_gradient", "nothing_learnt", "collapse"],
    "gradient_not_finite": ["nothing_learnt", "collapse"],
    "no_gradient": ["untrained_layers", "nothing_learnt", "collapse"],
    "frozen_backbone": ["untrained_layers", "loss_flat", "nothing_learnt", "collapse", "below_layout_floor",
                        "layout_shortcut"],
    "untrained_layers": [],
    "frozen_parameters": ["nothing_learnt"],
    # what enters the network and what comes out
    "normalised_twice": ["stale_batch_norm", "collapse", "below_layout_floor", "ignores_the_image"],
    "wrong_channel_order": ["stale_batch_norm", "below_layout_floor"],
    "wrong_value_range": ["stale_batch_norm", "collapse", "below_layout_floor", "ignores_the_image"],
    "stale_batch_norm": ["collapse", "below_layout_floor", "ignores_the_image"],
    "softmax_inside": ["loss_flat", "collapse"],
    "class_ids_shifted": ["below_layout_floor", "class_ids_permuted"],
    "class_ids_permuted": ["below_layout_floor"],
    "shifted_predictions": [],
    "flip_missed_masks": ["layout_shortcut", "below_layout_floor"],
    "wrong_schedule": ["loss_flat", "nothing_learnt"],
    "vanishing_gradient": ["loss_flat", "nothing_learnt", "collapse"],
    "exploding_gradient": ["loss_flat", "nothing_learnt", "collapse"],
    "loss_flat": ["nothing_learnt", "collapse", "below_layout_floor"],
    "nothing_learnt": ["collapse", "below_layout_floor"],
    "label_leak": [],
    "memorised_noise": [],
    # what follows
    "collapse": ["below_layout_floor", "ignores_the_image"],
    "ignores_the_image": ["below_layout_floor", "layout_shortcut"],
    "below_layout_floor": [],
    "layout_shortcut": [],
    "spatial_overfitting": [],
    "appearance_shift": [],
    "overfit": [],
    "underfit": [],
    "absent_classes": ["class_imbalance"],
    "class_imbalance": [],
}  # fmt: skip
ORDER = {"fail": 0, "warn": 1, "pass": 2, "skip": 3}


@dataclass
class Tile:
    """One picture of an exhibit: the image (h, w, 3) uint8, a mask of train ids (h, w) uint8, or both.

    Only a mask is drawn in the classes' colours; with both, the mask's borders are drawn on the image.
    """

    title: str
    image: np.ndarray | None = None
    mask: np.ndarray | None = None


@dataclass
class Exhibit:
    """Evidence to look at: tiles side by side, or a confusion matrix (C, C) [target, prediction], or curves.

    curves: {name: [(x, y)]}; the name of the file that `diagnose.py` draws it into is made from the probe's.
    """

    caption: str
    tiles: list = field(default_factory=list)
    confusion: np.ndarray | None = None
    curves: dict = field(default_factory=dict)


@dataclass
class Finding:
    """One probe's outcome. value and reference: the number judged and what it is judged by.

    evidence: plain JSON values; exhibits: what can be looked at, drawn by `report.exhibits` and not part of the JSON.
    """

    probe: str
    verdict: str  # pass, warn, fail or skip
    why: str
    cause: str | None = None
    value: float | None = None
    reference: float | None = None
    remedy: str = ""
    evidence: dict = field(default_factory=dict)
    seconds: float = 0.0
    exhibits: list = field(default_factory=list)

    def json(self):
        """Plain values, with the causes this one explains."""
        assert self.cause is None or self.cause in CAUSES, self.cause
        values = {f.name: plain(getattr(self, f.name)) for f in fields(self) if f.name != "exhibits"}
        return {**values, "consequences": CAUSES.get(self.cause, [])}


def plain(value):
    """What JSON can hold of a value: numpy's numbers as Python's, None for one that is not finite."""
    if isinstance(value, dict):
        return {str(key): plain(part) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(part) for part in value]
    if isinstance(value, np.generic):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value


def explained_by(cause):
    """Every cause that `cause` explains, directly or through another."""
    found, open_causes = set(), [cause]
    while open_causes:
        for one in CAUSES.get(open_causes.pop(), []):
            if one not in found:
                found.add(one)
                open_causes.append(one)
    return found


def rank(findings):
    """Most likely root cause first: failures before warnings, upstream causes before what they explain."""
    upstream = list(CAUSES)

    def key(finding):
        place = upstream.index(finding.cause) if finding.cause else len(upstream)
        return ORDER[finding.verdict], place

    return sorted(findings, key=key)


def conclude(findings):
    """The JSON of a diagnosis: findings ranked, each consequence with the probe that explains it, the root cause.

    A fault is explained by the most upstream finding of at least its own severity that names it as a consequence, or
    names the same cause.
    """
    ranked = rank(findings)
    rows = [finding.json() | {"explained_by": _explanation(finding, ranked)} for finding in ranked]
    faults = [f for f in ranked if f.verdict == "fail"]
    return {
        "findings": rows,
        "root_cause": faults[0].cause if faults else None,
        "verdict": ranked[0].verdict if ranked else "skip",
    }


def _explanation(finding, ranked):
    """The probe whose finding explains this one, or None."""
    if finding.cause is None or finding.verdict not in ("fail", "warn"):
        return None
    for other in ranked:
        if other is finding:
            return None
        if finding.cause in {other.cause, *explained_by(other.cause)}:
            return other.probe
    return None
