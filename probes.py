"""What can be wrong, one function a check: inputs -> `Finding`. Nothing here knows a command line.

A finding says pass, warn, fail or skip, names a cause from a closed list, and carries the numbers it rests on. The
noise test, the only probe that trains, is in `probes_noise`.
"""

import copy
import math
from dataclasses import asdict, dataclass, field

import numpy as np
import torch
from PIL import Image
from torchvision.ops import StochasticDepth

import engine
import losses
import metrics
import models

# Every cause a finding may name, most upstream first, with the causes it explains.
CAUSES = {
    "unreadable_files": ["unknown_labels", "nothing_learnt", "collapse"],
    "unknown_labels": ["class_imbalance", "absent_classes", "nothing_learnt", "collapse"],
    "anomaly_in_training": [],
    "no_labels": ["nothing_learnt", "collapse"],
    "noise_is_not_noise": ["nothing_learnt", "label_leak", "memorised_noise"],
    "gradient_not_finite": ["nothing_learnt", "collapse"],
    "no_gradient": ["nothing_learnt", "collapse"],
    "frozen_parameters": ["nothing_learnt"],
    "nothing_learnt": ["collapse", "below_layout_floor"],
    "label_leak": [],
    "memorised_noise": [],
    "collapse": ["below_layout_floor", "ignores_the_image"],
    "ignores_the_image": ["below_layout_floor"],
    "below_layout_floor": [],
    "layout_shortcut": [],
    "absent_classes": ["class_imbalance"],
    "class_imbalance": [],
}
ORDER = {"fail": 0, "warn": 1, "pass": 2, "skip": 3}

# Where a verdict turns.
LIMITS = {
    "imbalance": 100.0,  # most frequent / rarest class: CamVid has 109. A warning, never a failure
    "one_class": 0.95,  # share of pixels given to one class while the targets give it far less
    "same_mask": 0.99,  # agreement between the masks of different images
    "survives": 0.75,  # share of the score that is left when the image is another one, or noise
}


@dataclass
class Finding:
    """One probe's outcome; `asdict` is its JSON. value and reference: the number judged and what it is judged by."""

    probe: str
    verdict: str  # pass, warn, fail or skip
    why: str
    cause: str | None = None
    value: float | None = None
    reference: float | None = None
    remedy: str = ""
    evidence: dict = field(default_factory=dict)
    seconds: float = 0.0

    def json(self):
        """Plain values, with the causes this one explains."""
        assert self.cause is None or self.cause in CAUSES, self.cause
        return {**asdict(self), "consequences": CAUSES.get(self.cause, [])}


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


# ---------------------------------------------------------------------------------------------------------------------
# Data


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
    about = {"value": ratio, "reference": LIMITS["imbalance"], "evidence": evidence}
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
    if ratio > LIMITS["imbalance"]:
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


# ---------------------------------------------------------------------------------------------------------------------
# A model and its gradients


def gradient_flow(model, criterion, images, targets):
    """Does the loss reach every trainable parameter, and the image?

    images (N, 3, H, W) float32 in [0, 1], targets (N, H, W) uint8. Works on a copy: no weight and no batch-norm
    statistic of `model` changes.
    """
    model = copy.deepcopy(model)
    models.train_mode(model)
    for module in model.modules():
        if isinstance(module, StochasticDepth):  # a block left out by chance has no gradient, and no fault
            module.p = 0.0
    images = images.clone().requires_grad_()
    engine.batch_loss(model, criterion, images, targets).backward()
    norms, dead, frozen = {}, [], []
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            frozen.append(name)
            continue
        norm = float(parameter.grad.norm()) if parameter.grad is not None else 0.0
        stage = ".".join(name.split(".")[:2])
        norms[stage] = math.hypot(norms.get(stage, 0.0), norm)
        if norm == 0:
            dead.append(name)
    image_norm = float(images.grad.norm()) if images.grad is not None else 0.0
    evidence = {"norms": {k: _plain(v) for k, v in norms.items()}, "image": _plain(image_norm), "dead": dead[:50]}
    evidence["frozen"] = len(frozen)
    about = {"value": _plain(image_norm), "reference": 0.0, "evidence": evidence}
    if not all(math.isfinite(v) for v in (*norms.values(), image_norm)):
        bad = next((k for k, v in norms.items() if not math.isfinite(v)), "the image")
        why = f"the gradient at {bad} is not finite"
        remedy = "lower --lr, add --clip 1, or use --amp off"
        return Finding("model.gradient_flow", "fail", why, cause="gradient_not_finite", remedy=remedy, **about)
    if image_norm == 0 or len(dead) > 0.5 * (len(dead) + len(norms)):
        place = "the image" if image_norm == 0 else f"{len(dead)} parameters, the first {dead[0]}"
        why = f"no gradient arrives at {place}: the loss does not see it"
        remedy = "look for a detach, a head left out of the loss, or targets that are all void"
        return Finding("model.gradient_flow", "fail", why, cause="no_gradient", remedy=remedy, **about)
    if dead:
        why = f"no gradient arrives at {len(dead)} trainable parameters, the first {dead[0]}"
        remedy = "a branch is left out of the loss, or its output is constant"
        return Finding("model.gradient_flow", "fail", why, cause="no_gradient", remedy=remedy, **about)
    note = f"; {len(frozen)} parameters are frozen" if frozen else ""
    return Finding(
        "model.gradient_flow", "pass", f"the loss reaches the image and all {len(norms)} stages{note}", **about
    )


def _plain(value):
    """A number JSON can hold."""
    return value if math.isfinite(value) else None


# ---------------------------------------------------------------------------------------------------------------------
# A trained model


class MaskStatistics:
    """Gathers, image by image, what `collapse` judges: use `add` as engine.evaluate's `observe`."""

    def __init__(self):
        self.masks, self.targets = [], []

    def add(self, _done, _totals, _index, target, prediction):
        """Keep both masks on the layout grid."""
        self.masks.append(torch.from_numpy(metrics.shrink_nearest(prediction.labels.numpy())))
        self.targets.append(torch.from_numpy(metrics.shrink_nearest(target.numpy())))


def collapse(totals, statistics, classes):
    """Does the model use its classes, and give different images different masks?

    totals, statistics: of one evaluation; classes: names.
    """
    scores = totals.scores()
    predicted, wanted = totals.confusion.sum(0).double(), totals.confusion.sum(1).double()
    if not wanted.any():
        return Finding("model.collapse", "skip", "no labelled pixel in the split")
    share, top = (predicted / predicted.sum()).max(0)
    true_share = float(wanted[top] / wanted.sum())
    agreement, true_agreement = _agreement(statistics.masks), _agreement(statistics.targets)
    evidence = {
        "active_classes": scores["active_classes"],
        "classes": len(classes),
        "most_predicted": classes[int(top)],
        "share": float(share),
        "share_in_targets": true_share,
        "mask_agreement": agreement,
        "target_agreement": true_agreement,
        "never_predicted": [name for name, n in zip(classes, predicted.tolist(), strict=True) if not n],
    }
    about = {"value": float(share), "reference": true_share, "evidence": evidence}
    if share > LIMITS["one_class"] and share > true_share + 0.05:
        why = f"{float(share):.1%} of the pixels are called {classes[int(top)]}, which holds {true_share:.1%} of them"
        remedy = "if gradient flow and labels are sound: lower --lr, train longer, then --class-weights sqrt"
        return Finding("model.collapse", "fail", why, cause="collapse", remedy=remedy, **about)
    if agreement is not None and agreement > LIMITS["same_mask"] and agreement > true_agreement + 0.05:
        why = f"different images get the same mask ({agreement:.1%} of the pixels agree; targets: {true_agreement:.1%})"
        remedy = "the image does not reach the output: check normalisation, frozen layers and batch-norm statistics"
        return Finding("model.collapse", "fail", why, cause="ignores_the_image", remedy=remedy, **about)
    active = scores["active_classes"]
    return Finding(
        "model.collapse", "pass", f"{active} of {len(classes)} classes are active, masks differ between images", **about
    )


def _agreement(masks):
    """Mean share of equal pixels between each mask and the next image's, None for a single image."""
    if len(masks) < 2:
        return None
    pairs = zip(masks, masks[1:] + masks[:1], strict=True)
    return float(torch.stack([(a == b).float().mean() for a, b in pairs]).mean())


def image_reliance(predictor, split, layout_map, *, batch_size=8, workers=0, seed=0, progress=None):
    """How much of a trained model's score survives without the image: on its own images, on other images of the set
    (mismatched), and on noise, all against the true targets. Trains nothing.

    Returns (Finding, Totals on the own images, MaskStatistics).
    """
    generator = torch.Generator().manual_seed(seed)
    statistics = MaskStatistics()
    if len(split) < 2:
        only = engine.evaluate(predictor, split, layout_map=layout_map, observe=statistics.add)
        return (
            Finding("model.image_reliance", "skip", "a single image has no other to be mistaken for"),
            only,
            statistics,
        )
    other = _mismatch(split)

    def noise(images, _targets, _indices):
        return torch.randint(0, 256, images.shape, dtype=torch.uint8, generator=generator)

    def run(change, observe=None):
        def note(done, *rest):
            if observe:
                observe(done, *rest)
            if progress:
                progress()

        return engine.evaluate(
            predictor, split, batch_size=batch_size, workers=workers, layout_map=layout_map, change=change, observe=note
        )

    own = run(None, statistics.add)
    mious = {
        "own": own.scores()["miou"],
        "mismatched": run(other).scores()["miou"],
        "noise": run(noise).scores()["miou"],
    }
    floor = own.layout_floor()
    if mious["own"] is None:
        return Finding("model.image_reliance", "skip", "no labelled pixel in the split"), own, statistics
    return _judge_reliance(mious, floor), own, statistics


def _mismatch(split):
    """A `change` for engine.evaluate that gives every image the picture of the one half a set away."""

    def change(images, _targets, indices):
        height, width = images.shape[1:3]
        others = [split.read((i + max(1, len(split) // 2)) % len(split))[0] for i in indices]
        others = [other.resize((width, height), Image.Resampling.BILINEAR) for other in others]
        return torch.from_numpy(np.stack([np.array(other) for other in others]))

    return change


def _judge_reliance(mious, floor):
    """The finding from {"own", "mismatched", "noise"} mIoU and the layout floor."""
    survives = max(mious["mismatched"], mious["noise"]) / max(mious["own"], 1e-9)
    evidence = {**mious, "layout_floor": floor, "survives": survives}
    about = {"value": mious["own"], "reference": floor, "evidence": evidence}
    shown = (
        f"mIoU {mious['own']:.3f} on its own images, {mious['mismatched']:.3f} on other images, {mious['noise']:.3f} "
        f"on noise, layout floor {floor:.3f}"
    )
    if mious["own"] <= floor:
        why = f"{shown}: no better than never opening the image"
        remedy = "look at the findings above; if none, train longer or with a larger --lr"
        return Finding("model.image_reliance", "fail", why, cause="below_layout_floor", remedy=remedy, **about)
    if survives > LIMITS["survives"]:
        why = f"{shown}: {survives:.0%} of the score survives without the image"
        remedy = "the model answers from the layout: augment with scale, translate and crop, train longer"
        return Finding("model.image_reliance", "fail", why, cause="layout_shortcut", remedy=remedy, **about)
    return Finding("model.image_reliance", "pass", f"{shown}: {survives:.0%} of the score survives without it", **about)
