"""Safe mIoU: intersection over union that charges confusions with road users by how far apart the classes are."""

import torch

# The third level of IDD's label tree, in the order of its ids: each class's parent on the second level, on the first.
# Source: level3Id, level2Id and level1Id in the authors' anue_labels.py (github.com/AutoNUE/public-code).
TREE = {
    "road": (0, 0), "drivable fallback": (1, 0),
    "sidewalk": (2, 1), "non drivable fallback": (3, 1),
    "person": (4, 2), "rider": (5, 2),
    "motorcycle": (6, 3), "bicycle": (6, 3), "autorickshaw": (7, 3), "car": (7, 3), "truck": (8, 3), "bus": (8, 3),
    "vehicle fallback": (8, 3),
    "curb": (9, 4), "wall": (9, 4), "fence": (10, 4), "guard rail": (10, 4), "billboard": (11, 4),
    "traffic sign": (11, 4), "traffic light": (11, 4), "pole": (12, 4), "obs str bar fallback": (12, 4),
    "building": (13, 5), "bridge": (13, 5), "vegetation": (14, 5),
    "sky": (15, 6),
}  # fmt: skip
LEVELS = 3
# "Traffic participants" of the authors' safe_iou.py (github.com/Furqan7007/IDDAW_kit).
IMPORTANT = {"person", "rider", "motorcycle", "bicycle", "autorickshaw", "car", "truck", "bus"}


def safe_miou(confusion, classes):
    """IoU less a penalty for unsafe confusions, and its mean, which can be negative.

    confusion: (C, C) int64 [target, prediction]; classes: C names.
    Returns {"safe_miou": float or None, "safe_iou": [float or None of each class]}; None as a whole where the names are
    not IDD's 26 classes of the third level, in any order, on which alone it is defined.
    Raises: ValueError where confusion and classes differ in size.

    For a class c with n_cs pixels predicted as s, and its union u_c = Σ_s n_cs + Σ_s n_sc - n_cc:

        safe_c = (n_cc - Σ_s d(c, s) / 3 · n_cs) / u_c,  over all s ≠ c where c is important, over important s elsewhere

    d(c, s): half the path between the two in the label tree of three levels, 1 to 3; important: the road users.
    Source: Shaik et al. 2024, "IDD-AW: A Benchmark for Safe and Robust Segmentation of Drive Scenes in Unstructured
    Traffic and Adverse Weather" (WACV), as their safe_iou.py computes it. Deviations: a class in neither targets nor
    predictions is None and left out of the mean (theirs divides 0 by 0 and leaves NaN out: the same mean), and d is
    read off the ids of the tree, where they write out each class's neighbours: equal for every pair that is charged.
    """
    if tuple(confusion.shape) != (len(classes), len(classes)):
        raise ValueError(f"confusion of {tuple(confusion.shape)} for {len(classes)} classes")
    names = [" ".join(name.lower().replace("-", " ").replace("_", " ").split()) for name in classes]
    if sorted(names) != sorted(TREE):
        return None
    counts = confusion.double().cpu()
    hits = counts.diag()
    unions = counts.sum(0) + counts.sum(1) - hits
    values = (hits - (counts * _charges(names)).sum(1)) / unions.clamp(min=1)
    known = unions > 0
    mean = values[known].mean().item() if known.any() else None
    scores = [value if is_known else None for value, is_known in zip(values.tolist(), known.tolist(), strict=True)]
    return {"safe_miou": mean, "safe_iou": scores}


def _charges(names):
    """What a pixel of class c that is taken for s costs, (C, C) float64: d(c, s) / 3 where either is important."""
    distances = torch.tensor([[_distance(one, other) for other in names] for one in names], dtype=torch.float64)
    important = torch.tensor([name in IMPORTANT for name in names])
    return distances / LEVELS * (important[:, None] | important[None, :])


def _distance(one, other):
    """Half the path between two classes in the tree: 0 to itself, 1 to a sibling, 2 within the first level, else 3."""
    if one == other:
        return 0
    (parent, root), (other_parent, other_root) = TREE[one], TREE[other]
    return 1 if parent == other_parent else 2 if root == other_root else LEVELS
