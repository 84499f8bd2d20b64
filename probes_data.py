"""What the files alone tell: label values, classes, the layout floor."""

import math

import torch

import losses
import metrics
from probes_finding import LIMITS, Finding


def audit_files(audits):
    """Are all files readable, of one size with their mask, and all mask values declared? audits: {split: Audit}."""
    for audit in audits.values():
        error = audit.error()
        if error:
            if audit.broken:
                cause, files = "unreadable_files", list(audit.broken)
            elif audit.unknown:
                cause, files = "unknown_labels", list(audit.unknown)
            else:
                cause, files = ("anomaly_in_training" if audit.anomaly else "no_labels"), []
            return Finding(
                "data.files",
                "fail",
                f"{audit.split.name}: {error}",
                cause=cause,
                value=float(len(files)),
                reference=0.0,
                remedy=str(error).rpartition("; ")[2],
                evidence={"files": files[:20], "values": {str(v): n for v, n in audit.values.most_common(20)}},
            )
    counted = ", ".join(f"{len(a.split)} {name}" for name, a in audits.items())
    rotated = sum(len(a.rotated) for a in audits.values())
    return Finding(
        "data.files",
        "pass",
        f"all of {counted} read, sizes match, every mask value is declared",
        value=0.0,
        reference=0.0,
        evidence={"exif_orientation": rotated, "void_share": {name: a.void / a.pixels for name, a in audits.items()}},
    )


def class_distribution(audits):
    """Which classes are absent or rare, and which weights follow. audits: {split: Audit} with train among them."""
    train = audits["train"]
    classes, counts = train.split.spec.classes, train.counts
    shares = {
        name: dict(zip(classes, (a.counts / max(1, a.counts.sum())).tolist(), strict=True))
        for name, a in audits.items()
    }
    weights = losses.class_weights("sqrt", torch.from_numpy(counts), classes)
    present = counts[counts > 0]
    ratio = float(present.max() / present.min()) if len(present) else math.inf
    absent = {name: a.absent for name, a in audits.items() if a.absent}
    evidence = {
        "shares": shares,
        "absent": absent,
        "recommended_weights": dict(zip(classes, weights.tolist(), strict=True)),
    }
    about = {"value": ratio, "reference": LIMITS["imbalance"].value, "evidence": evidence}
    if absent.get("train"):
        names = ", ".join(absent["train"])
        return Finding(
            "data.classes",
            "warn",
            f"train holds no pixel of {names}: the model cannot learn them",
            cause="absent_classes",
            remedy="add images of them, or leave the classes out",
            **about,
        )
    if ratio > LIMITS["imbalance"].value:
        rarest = classes[int(counts.argmin())]
        return Finding(
            "data.classes",
            "warn",
            f"the most frequent class has {ratio:.0f} times the pixels of the rarest ({rarest})",
            cause="class_imbalance",
            remedy="try --class-weights sqrt, or class_weights.json beside this diagnosis",
            **about,
        )
    return Finding("data.classes", "pass", f"all classes occur; most to least frequent {ratio:.0f} to 1", **about)


def layout_floor(audits, split):
    """What a predictor that never opens the image gets on a split. audits: {split: Audit}, split: its name."""
    num_classes = audits["train"].split.spec.num_classes
    layout = metrics.fit_layout(audits["train"].grids, num_classes)
    confusion = sum(
        metrics.confusion_matrix(torch.from_numpy(layout.map), torch.from_numpy(grid), num_classes)
        for grid in audits[split].grids
    )
    floor = metrics.segmentation_scores(confusion)["miou"]
    if floor is None:
        return Finding("data.layout_floor", "skip", f"{split} has no labelled pixel")
    return Finding(
        "data.layout_floor",
        "pass",
        f"without opening an image, the training masks alone give {split} mIoU {floor:.3f}: what a model scores up to "
        "there proves nothing",
        value=floor,
        evidence={"exponent": layout.exponent, "split": split},
    )
