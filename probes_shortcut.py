"""Does the model look at the image? Gradients that reach it, and what is left of the score without it."""

import copy
import math

import numpy as np
import torch
from PIL import Image
from torchvision.ops import StochasticDepth

import engine
import models
from probes_finding import LIMITS, Finding
from probes_model import MaskStatistics


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
    if survives > LIMITS["survives"].value:
        why = f"{shown}: {survives:.0%} of the score survives without the image"
        remedy = "the model answers from the layout: augment with scale, translate and crop, train longer"
        return Finding("model.image_reliance", "fail", why, cause="layout_shortcut", remedy=remedy, **about)
    return Finding("model.image_reliance", "pass", f"{shown}: {survives:.0%} of the score survives without it", **about)
