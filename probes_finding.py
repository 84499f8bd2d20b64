"""What a probe says: a `Finding`, its cause from a closed list, the thresholds it was judged by, and the ranking."""

from dataclasses import dataclass, field, fields
from typing import NamedTuple

import numpy as np

# Every cause a finding may name, most upstream first, with the causes it explains.
CAUSES = {
    # files and masks
    "unreadable_files": ["unknown_labels", "nothing_learnt", "collapse"],
    "greyscale_masks": ["class_imbalance", "absent_classes", "nothing_learnt", "collapse", "below_layout_floor"],
    "jpeg_masks": ["unknown_labels", "blended_masks"],
    "blended_masks": ["unknown_labels"],
    "one_based_labels": ["unknown_labels", "absent_classes", "class_ids_shifted"],
    "mapped_twice": ["absent_classes", "class_imbalance", "collapse"],
    "clamped_masks": ["class_imbalance", "absent_classes", "collapse", "masks_do_not_fit", "below_layout_floor"],
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


class Limit(NamedTuple):
    """Where a verdict turns, and where the figure comes from."""

    value: float
    source: str


# Where verdicts turn. "panel": benchmarks/panel.py prints the healthy and the faulty side of each.
LIMITS = {
    "imbalance": Limit(100.0, "most frequent / rarest class: CamVid has 109. A warning, never a failure"),
    "one_class": Limit(0.95, "share of pixels given to one class while the targets give it far less"),
    "same_mask": Limit(0.99, "agreement between the masks of different images"),
    "survives": Limit(0.75, "share of the score that is left when the image is another one, or noise"),
}


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

    evidence: plain JSON values; exhibits: what can be looked at, drawn by report.py and not part of the JSON.
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
        plain = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "exhibits"}
        return {**plain, "consequences": CAUSES.get(self.cause, [])}


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
    """The JSON of a diagnosis: findings ranked, the root cause, the worst verdict."""
    ranked = rank(findings)
    faults = [f for f in ranked if f.verdict == "fail"]
    worst = ranked[0].verdict if ranked else "skip"
    return {
        "findings": [f.json() for f in ranked],
        "root_cause": faults[0].cause if faults else None,
        "verdict": worst,
    }
