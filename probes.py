"""What can be wrong, one function a check: inputs -> `Finding`. Nothing here knows a command line.

A finding says pass, warn, fail or skip, names a cause from a closed list, and carries the numbers it rests on. This is
the front of its parts: `probes_data` needs no model, `probes_model` judges a trained one, `probes_shortcut` asks
whether it looks at the image, `probes_noise` trains on noise; findings and thresholds are in `probes_finding`.
"""

from probes_data import audit_files, class_distribution, layout_floor
from probes_finding import CAUSES, LIMITS, ORDER, Exhibit, Finding, Tile, conclude, explained_by, rank
from probes_model import MaskStatistics, collapse
from probes_shortcut import gradient_flow, image_reliance

__all__ = [
    "CAUSES",
    "LIMITS",
    "ORDER",
    "Exhibit",
    "Finding",
    "MaskStatistics",
    "Tile",
    "audit_files",
    "class_distribution",
    "collapse",
    "conclude",
    "explained_by",
    "gradient_flow",
    "image_reliance",
    "layout_floor",
    "rank",
]
