"""The noise test: train on fresh noise instead of images, with the true targets.

The best possible outcome is then known, the position-only distribution of the labels, so the validation loss says what
the training machinery really does: nothing (at or above the class prior), its job (between prior and layout), or too
much (below the layout: the labels leak in). Before anything is judged, the tensors that enter the network are shown to
be noise: a noise test that silently trained on real images is the classic way to fool oneself.

`prepare`, `learn` and `validate` are the small plain training itself, which `probes_conditions` runs on other inputs.
"""

import copy
import math
import time
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F

import data
import losses
import metrics
import models
from engine import evaluation
from engine.devices import autocast_dtype
from engine.optim import Schedule, build_optimizer
from engine.predictor import Predictor
from engine.sampling import Sampling, draw_requests
from engine.training import Training, train_one_epoch
from networks.blocks import Normalise
from probes import replacement_inputs
from probes.finding import LIMITS, Exhibit, Finding

# |correlation| between neighbouring pixels, or between two draws, below which pixels pass for independent. White noise
# of 120x160x3 values stays below 0.02; photographs have 0.8 and more between neighbours.
WHITE = 0.1
CURVES = {"validation": "loss", "training": "train_loss"}


def fresh_noise(images, targets, generator):
    """Uniform noise in place of images (N, h, w, 3) uint8: new at every call, independent at every pixel."""
    return replacement_inputs.noise(images, targets, generator)[0]


def correlation(a, b):
    """Largest |Pearson correlation| over the images of two batches (N, …), each flattened; 1 for a constant one."""
    a, b = a.flatten(1).double(), b.flatten(1).double()
    a, b = a - a.mean(1, keepdim=True), b - b.mean(1, keepdim=True)
    scale = a.norm(dim=1) * b.norm(dim=1)
    return float(((a * b).sum(1) / scale).abs().nan_to_num(1.0).max())


def prove_noise(training, criterion, split, geometry, count=8, fresh=True):
    """Pass the same examples through the training path twice and look at the tensors that enter the network.

    fresh: whether two draws for one image must differ. Returns (complaint or None, {measure: value}).
    """
    requests = draw_requests(len(split), count, torch.Generator().manual_seed(0))[0]
    raw = [geometry.cut(*split.read(request.index), request) for request in requests]
    images, targets = (torch.stack(part).to(training.device) for part in zip(*raw, strict=True))
    network = copy.deepcopy(training.model).eval()  # the run's own batch-norm statistics stay untouched
    seen = []
    network.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].detach().float()))
    generator = torch.Generator(training.device).manual_seed(1)
    with torch.no_grad():
        for _ in range(2):
            noise, kept = training.augment(images, targets, generator)
            criterion(network, noise, kept)
    first, second = seen
    real = data.to_float(images)
    measures = {
        "neighbours": max(
            correlation(first[..., 1:], first[..., :-1]), correlation(first[..., 1:, :], first[..., :-1, :])
        ),
        "real_images": correlation(first, real),
        "other_draw": correlation(first, second),
        "labelled_share": float((kept < split.spec.num_classes).float().mean()),
        "targets_unchanged": float(torch.equal(kept, targets)),
    }
    return _complain(measures, fresh), measures


def _complain(measures, fresh):
    """What is wrong with the input of a noise test, or None."""
    if measures["neighbours"] > WHITE:
        return f"neighbouring pixels correlate ({measures['neighbours']:.2f}): these are pictures, not noise"
    if measures["real_images"] > WHITE:
        return f"the input correlates with the real images ({measures['real_images']:.2f})"
    if fresh and measures["other_draw"] > WHITE:
        return f"two draws for one image are alike ({measures['other_draw']:.2f}): the noise is not fresh"
    if not measures["targets_unchanged"] or not measures["labelled_share"]:
        return "the targets are not the true ones, or all void"
    return None


def chance_miou(shares):
    """mIoU of labels drawn uniformly at random, classes with these pixel shares (C,): Σ (s/C) / (s + 1/C - s/C) / C."""
    present = shares[shares > 0]
    uniform = 1 / len(shares)
    return float((present * uniform / (present + uniform - present * uniform)).mean())


def references(audit, split, layout):
    """What is known beforehand, on a split's targets at their own size.

    Returns {"prior", "layout": nats per pixel, "spread": the layout loss's standard deviation over images,
    "train_prior" and "train_layout": both on the training targets themselves, where nothing that only knows the place
    can beat the layout by more than chance, "chance", "prior_miou", "layout_map": mIoU of the a = 0 map, "floor"}.
    """
    num_classes = split.spec.num_classes
    distribution = torch.from_numpy(np.asarray(metrics.layout_distribution(audit.grids, num_classes)))
    prior = torch.from_numpy(np.asarray(metrics.class_prior(audit.counts)))
    plain = metrics.layout_map(audit.grids, num_classes, 0.0)
    sums = {"prior": [], "layout": []}
    confusions = dict.fromkeys(("prior_miou", "layout_map", "floor"), 0)
    for index in range(len(split)):
        target = torch.from_numpy(split.read_target(index))
        sums["prior"].append(metrics.pixel_nll(prior, target))
        sums["layout"].append(metrics.pixel_nll(distribution, target))
        top = np.full_like(plain, int(prior.argmax()))
        for name, guess in (("prior_miou", top), ("layout_map", plain), ("floor", layout.map)):
            guess = torch.from_numpy(metrics.resize_nearest(guess, tuple(target.shape)))
            confusions[name] = confusions[name] + metrics.confusion_matrix(guess, target, num_classes)
    for name, known in (("train_prior", prior), ("train_layout", distribution)):
        sums[name] = [metrics.pixel_nll(known, torch.from_numpy(grid)) for grid in audit.grids]
    per_image = [nats / n for nats, n in sums["layout"] if n]
    return {
        **{name: sum(nats for nats, _ in rows) / max(1, sum(n for _, n in rows)) for name, rows in sums.items()},
        "spread": float(np.std(per_image)),
        "chance": chance_miou(audit.counts / audit.counts.sum()),
        **{name: metrics.segmentation_scores(confusion)["miou"] for name, confusion in confusions.items()},
    }


def noise_test(args, splits, audits, device, make=fresh_noise, fresh=True, progress=None):
    """Train `args.model` on noise for `args.iters` steps and say what it learnt.

    args: model, weights, freeze, image_size, batch_size, lr, iters, seed, workers. splits, audits: {"train", "val"}.
    make(images, targets, generator): the noise, uint8; fresh: whether it must be new at every draw. progress(steps).
    """
    start = time.perf_counter()
    train, val = splits["train"], splits["val"]

    def change(images, targets, generator):
        return make(images, targets, generator), targets

    ready = prepare(args, audits["train"], device, change)
    complaint, proof = prove_noise(ready.training, ready.criterion, train, ready.geometry, fresh=fresh)
    if complaint:
        why = f"this is no noise test: {complaint}"
        remedy = "look at what replaces the images on their way to the network"
        return Finding("noise_test", "fail", why, cause="noise_is_not_noise", remedy=remedy, evidence={"proof": proof})
    layout = metrics.fit_layout(audits["train"].grids, train.spec.num_classes)
    known = references(audits["train"], val, layout)
    curve = learn(args, ready, train, lambda: validate(args, ready.predictor, val, change), progress)
    finding = judge(curve, known)
    finding.evidence.update(proof=proof, curve=curve, references=known, classes=train.spec.num_classes)
    finding.exhibits.append(_draw_curve(curve, known))
    finding.seconds = time.perf_counter() - start
    return finding


def _draw_curve(curve, known):
    """The exhibit: the losses on the way, beside what is known beforehand."""
    lines = {"class prior": known["prior"], "layout": known["layout"]}
    ends = [step["iteration"] for step in curve]
    curves = {name: [(step["iteration"], step[key]) for step in curve] for name, key in CURVES.items()}
    curves |= {name: [(ends[0], nats), (ends[-1], nats)] for name, nats in lines.items()}
    return Exhibit("nats per pixel after so many steps of training on noise", curves=curves)


# ---------------------------------------------------------------------------------------------------------------------
# The small plain training


class ChangedInput:
    """Stands where data.Augment stands: what enters the network is what `change` makes of the batch, or the batch.

    change(images, targets, generator) -> (images, targets), all uint8, as in `probes_inputs`; None for none.
    """

    def __init__(self, change):
        self.change = change

    def __call__(self, images, targets, generator):
        """images (N, h, w, 3) uint8, targets (N, h, w) uint8 -> (N, 3, h, w) float32 in [0, 1], targets."""
        if self.change:
            images, targets = self.change(images, targets, generator)
        return data.to_float(images), targets


class Ready(NamedTuple):
    """A small training before its first step, and what asks its network about an image."""

    training: Training
    criterion: losses.Criterion
    predictor: Predictor
    geometry: data.Geometry


def prepare(args, audit, device, change=None):
    """The training: `args.model` as its flags start it, AdamW, one-cycle, unweighted cross-entropy, no augmentation.

    args: model, weights, freeze, aux_task, image_size, batch_size, lr, iters, seed; audit: of the training split;
    change: of every batch, as in ChangedInput.
    """
    torch.manual_seed(args.seed)
    num_classes, geometry = audit.split.spec.num_classes, data.Geometry(args.image_size)
    model, _ = models.start_model(args, num_classes)
    predictor = Predictor(model, num_classes, geometry, device)  # brings the model to the device
    criterion = losses.Criterion({"ce": [1.0]}, num_classes, Normalise()).to(device)
    args = copy.copy(args)
    args.optimizer, args.weight_decay, args.backbone_lr = "adamw", 0.01, None
    training = Training(
        model=model,
        optimizer=build_optimizer(args, model),
        schedule=Schedule("onecycle", args.iters, max(1, math.ceil(len(audit.split) / args.batch_size))),
        sampling=Sampling("uniform", {}, audit, geometry),
        augment=ChangedInput(change),
        device=device,
        dtype=autocast_dtype("auto", device),
        clip=1.0,
        seed=args.seed,
    )
    return Ready(training, criterion, predictor, geometry)


def learn(args, ready, split, evaluate, progress=None):
    """Train for `args.iters` steps; evaluate() -> engine.EvaluationCounts at a quarter, a half and the whole of them.

    Returns [{"iteration", "train_loss", **figures}]; train_loss is the mean over the later half of the steps since the
    entry before. progress(steps) after each.
    """
    training, curve, window = ready.training, [], []
    stops = sorted({max(1, args.iters // 4), max(1, args.iters // 2), args.iters})
    while training.step < args.iters:
        until = next(stop for stop in stops if stop > training.step)
        for result in train_one_epoch(
            training, ready.criterion, split, ready.geometry, args.batch_size, args.workers, until
        ):
            window.append(result["loss"])
            if progress:
                progress(training.step)
        if training.step == until:
            train_loss = float(torch.stack(window[-len(window) // 2 :]).mean())
            window = []
            curve.append({"iteration": until, "train_loss": train_loss, **figures(evaluate())})
        else:
            training.finish_epoch()
    return curve


def figures(totals):
    """What the curve notes of engine.EvaluationCounts: loss in nats per pixel, miou, pixel_accuracy, active_classes."""
    scores = totals.scores()
    return {"loss": totals.loss(), **{name: scores[name] for name in ("miou", "pixel_accuracy", "active_classes")}}


def validate(args, predictor, split, change=None):
    """EvaluationCounts of a split whose images are those that `change` makes, and whose targets are the true ones.

    args: seed, batch_size, workers.
    """
    generator = torch.Generator().manual_seed(args.seed + 1)

    def replace(images, targets, _indices):
        size = images.shape[1:3]
        small = [F.interpolate(t[None, None].float(), size)[0, 0].to(torch.uint8) for t in targets]
        return change(images, torch.stack(small), generator)[0]

    replaced = replace if change else None
    return evaluation.evaluate(predictor, split, batch_size=args.batch_size, workers=args.workers, change=replaced)


# ---------------------------------------------------------------------------------------------------------------------
# The verdict


def leaks(figures, known):
    """Whether a training that could learn the layout at most clearly learnt more, by its loss and by its mIoU."""
    bound = min(known["layout"], known["prior"])
    bound -= max(known["spread"], LIMITS["leak_margin"].value * bound)
    return figures["loss"] < bound and figures["miou"] > known["floor"]


def judge(curve, known):
    """The verdict from the loss curve and the references, all in nats per pixel."""
    last = curve[-1]
    loss, train_loss, miou = last["loss"], last["train_loss"], last["miou"]
    prior, layout, spread = known["prior"], known["layout"], known["spread"]
    held = (
        f"validation loss {loss:.3f} nats per pixel (class prior {prior:.3f}, layout {layout:.3f} ± {spread:.3f}), "
        f"mIoU {miou:.3f} (a = 0 map {known['layout_map']:.3f}, floor {known['floor']:.3f})"
    )
    about = {"value": loss, "reference": layout}
    if leaks(last, known):
        remedy = "find what carries the labels into the network: an input channel, a file order, a cached target"
        return Finding("noise_test", "fail", f"the labels leak in: {held}", cause="label_leak", remedy=remedy, **about)
    if train_loss < known["train_layout"] - spread:
        why = (
            f"memorised: training loss {train_loss:.3f} (layout there {known['train_layout']:.3f}) ran away from the "
            f"validation loss; {held}"
        )
        remedy = "the noise repeats for each image, so that it can be learnt by heart; draw it anew every time"
        return Finding("noise_test", "fail", why, cause="memorised_noise", remedy=remedy, **about)
    if loss >= prior:
        remedy = "the training is broken or too short: check --lr, frozen layers, the loss, then --iters"
        return Finding("noise_test", "fail", f"nothing learnt: {held}", cause="nothing_learnt", remedy=remedy, **about)
    return Finding("noise_test", "pass", f"the labels' layout, nothing else: {held}", **about)
