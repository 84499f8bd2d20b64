"""What can be wrong, one function a check: inputs -> `Finding`. Nothing here knows a command line.

A finding says pass, warn, fail or skip, names a cause from a closed list, and carries the numbers it rests on. This is
the front of its parts, which import only downwards:

    probes_finding        findings, the closed list of causes, the thresholds, the ranking
    probes_survey         one pass over a split's files, which most data probes judge by
    probes_data           files, label values, classes, repeats: no model needed
    probes_agreement      do label borders lie on image edges?
    probes_model          what a trained model's answers tell; the sample that they are asked for
    probes_preprocessing  what enters the network
    probes_weights        batch norm's statistics, what never trained
    probes_log            faults of a training that its log shows
    probes_inputs         what can be put in the place of an image
    probes_shortcut       does a trained model look at the image?
    probes_noise          train on noise
    probes_conditions     train under other conditions
    probes_cross          one model on several data sets
"""

from probes_agreement import label_agreement
from probes_conditions import CONDITIONS, judge_conditions, noise_row, run_condition
from probes_cross import cross_dataset
from probes_data import (
    audit_files,
    class_distribution,
    duplicates,
    layout_floor,
    mask_borders,
    mask_values,
    odd_images,
)
from probes_finding import CAUSES, LIMITS, ORDER, Exhibit, Finding, Tile, conclude, explained_by, rank
from probes_log import training_log
from probes_model import (
    class_assignment,
    collapse,
    flip_equivariance,
    prediction_shift,
    softmax_inside,
    take_sample,
)
from probes_noise import noise_test, references
from probes_preprocessing import input_contrast, preprocessing
from probes_shortcut import feature_correlation, gradient_flow, layout_reliance
from probes_survey import survey
from probes_weights import batch_norm_gap, untrained

__all__ = [
    "CAUSES",
    "CONDITIONS",
    "LIMITS",
    "ORDER",
    "Exhibit",
    "Finding",
    "Tile",
    "audit_files",
    "batch_norm_gap",
    "class_assignment",
    "class_distribution",
    "collapse",
    "conclude",
    "cross_dataset",
    "duplicates",
    "explained_by",
    "feature_correlation",
    "flip_equivariance",
    "gradient_flow",
    "input_contrast",
    "judge_conditions",
    "label_agreement",
    "layout_floor",
    "layout_reliance",
    "mask_borders",
    "mask_values",
    "noise_row",
    "noise_test",
    "odd_images",
    "prediction_shift",
    "preprocessing",
    "rank",
    "references",
    "run_condition",
    "softmax_inside",
    "survey",
    "take_sample",
    "training_log",
    "untrained",
]
