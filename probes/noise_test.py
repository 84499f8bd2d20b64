"""The noise test: train on fresh noise instead of images, with the true targets.

The best possible outcome is then known, the position-only distribution of the labels, so the validation loss says what
the training machinery really does: nothing (at or above the class prior), its job (between prior and layout), or too
much (below the layout: the labels leak in). Before anything is judged, the tensors that enter the network are shown to
be noise: a noise test that silently trained on real images is the classic way to fool oneself.

`prepare`, `learn` and `validate` are the small plain training itself, which `probes.conditions` runs on other inputs.
"""

import copy
import math
import time
from dataclasses import dataclass, fields
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F

import cli
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
from probes.finding import Exhibit, Finding
from probes.limits import LIMITS

# |correlation| between neighbouring pixels, or between two draws, below which pixels pass for independent. White noise
# of 120x160x3 values stays below 0.02; photographs have 0.8 and more between neighbours.
WHITE = 0.1
CURVES = {"validation": "loss", "training": "train_loss"}
NOTHING_LEARNT = "the training is broken or too short: check --lr, frozen layers, the loss, then --iters"


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


def noise_test(subject, change=replacement_inputs.noise, fresh=True):
    """Train on noise and say what was learnt: [Finding]. In a notebook, on a set with a model of one's choice:

        noise_test(Subject.open("camvid", "DIR", settings=TrainingSettings(model="unet_mobilenet_v2", iters=200)))

    subject: its splits "train" and "val", its settings (model, steps …) and device. change: what makes the noise, a
    function of `probes.replacement_inputs`; fresh: whether it must be new at every draw.
    Raises UserError for faulty files or labels, and for a model, weights or a freezing rule that do not exist.
    """
    audits, settings = subject.clean_audits, subject.settings
    start = time.perf_counter()
    train, val = subject.splits["train"], subject.splits["val"]
    ready = prepare(settings, audits["train"], subject.device, change)
    complaint, proof = prove_noise(ready.training, ready.criterion, train, ready.geometry, fresh=fresh)
    if complaint:
        why = f"this is no noise test: {complaint}"
        remedy = "look at what replaces the images on their way to the network"
        return [
            Finding("noise_test", "fail", why, cause="noise_is_not_noise", remedy=remedy, evidence={"proof": proof})
        ]
    layout = metrics.fit_layout(audits["train"].grids, train.spec.num_classes)
    known = references(audits["train"], val, layout)
    curve = learn(settings, ready, train, lambda: validate(settings, ready.predictor, val, change), subject.tell_step)
    finding = judge(curve, known)
    finding.evidence.update(proof=proof, curve=curve, references=known, classes=train.spec.num_classes)
    finding.exhibits.append(_draw_curve(curve, known))
    finding.seconds = time.perf_counter() - start
    return [finding]


def _draw_curve(curve, known):
    """The exhibit: the losses on the way, beside what is known beforehand."""
    lines = {"class prior": known["prior"], "layout": known["layout"]}
    ends = [step["iteration"] for step in curve]
    curves = {name: [(step["iteration"], step[key]) for step in curve] for name, key in CURVES.items()}
    curves |= {name: [(ends[0], nats), (ends[-1], nats)] for name, nats in lines.items()}
    return Exhibit("nats per pixel after so many steps of training on noise", curves=curves)


# ---------------------------------------------------------------------------------------------------------------------
# The small plain training


@dataclass(frozen=True)
class TrainingSettings:
    """With what a small training starts; the defaults are those of the flags with these names."""

    model: str = "fpn_mobilenet_v2"
    weights: str = "none"
    freeze: str = "none"
    aux_task: str = "none"
    image_size: tuple = (120, 160)  # height, width
    iters: int = 400
    batch_size: int = 8
    lr: float = 2e-3
    seed: int = 0
    workers: int = 2

    @classmethod
    def from_args(cls, args):
        """The settings that the flags name."""
        values = {one.name: getattr(args, one.name) for one in fields(cls)}
        return cls(**{**values, "image_size": tuple(args.image_size)})

    @property
    def geometry(self):
        """How images enter the network: stretched to its size."""
        return data.Geometry(list(self.image_size))

    def start_model(self, num_classes):
        """The network as it starts, drawn from the seed. Raises UserError as `models.start_model` does."""
        torch.manual_seed(self.seed)
        about = {"weights": self.weights, "freeze": self.freeze, "aux_task": self.aux_task}
        return models.start_model(self.model, num_classes, **about)[0]


def add_training_flags(parser):
    """The flags of a small training, beside the network's and `--workers`; a foreign model sees images as it does."""
    group = parser.add_argument_group("how the fresh or foreign model sees images, and how probes that train do it")
    group.add_argument("--image-size", type=cli.size, default=[120, 160], metavar="HxW", help="canvas, pixels")
    group.add_argument("--iters", type=cli.positive_int, default=400, help="steps of each training")
    group.add_argument("--batch-size", type=cli.positive_int, default=8, help="images a step")
    group.add_argument("--lr", type=cli.non_negative, default=2e-3, help="peak learning rate")
    group.add_argument("--seed", type=cli.natural, default=0, help="of weights, order and noise")
    group.add_argument("--device", default="auto", help="auto (CUDA when there is one), cpu, cuda, cuda:N")


class ChangedInput:
    """Stands where data.Augment stands: what enters the network is what `change` makes of the batch, or the batch.

    change(images, targets, generator) -> (images, targets), all uint8, as in `probes.replacement_inputs`; None
    for none.
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


def prepare(settings, audit, device, change=None):
    """The training: the model as the settings start it, AdamW, one-cycle, unweighted cross-entropy, no augmentation.

    audit: of the training split; change: of every batch, as in ChangedInput.
    """
    num_classes, geometry = audit.split.spec.num_classes, settings.geometry
    model = settings.start_model(num_classes)
    predictor = Predictor(model, num_classes, geometry, device)  # brings the model to the device
    criterion = losses.Criterion({"ce": [1.0]}, num_classes, Normalise()).to(device)
    training = Training(
        model=model,
        optimizer=build_optimizer(model, "adamw", lr=settings.lr, weight_decay=0.01),
        schedule=Schedule("onecycle", settings.iters, max(1, math.ceil(len(audit.split) / settings.batch_size))),
        sampling=Sampling("uniform", {}, audit, geometry),
        augment=ChangedInput(change),
        device=device,
        dtype=autocast_dtype("auto", device),
        clip=1.0,
        seed=settings.seed,
    )
    return Ready(training, criterion, predictor, geometry)


def learn(settings, ready, split, evaluate, progress=None):
    """Train for `settings.iters` steps; evaluate() -> EvaluationCounts at a quarter, a half and the whole of them.

    Returns [{"iteration", "train_loss", **figures}]; train_loss is the mean over the later half of the steps since the
    entry before. progress(steps) after each.
    """
    training, curve, window, iters = ready.training, [], [], settings.iters
    stops = sorted({max(1, iters // 4), max(1, iters // 2), iters})
    while training.step < iters:
        until = next(stop for stop in stops if stop > training.step)
        for result in train_one_epoch(
            training, ready.criterion, split, ready.geometry, settings.batch_size, settings.workers, until
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
    """What the curve notes of EvaluationCounts: loss in nats per pixel, miou, pixel_accuracy, active_classes."""
    scores = totals.scores()
    return {"loss": totals.loss(), **{name: scores[name] for name in ("miou", "pixel_accuracy", "active_classes")}}


def validate(settings, predictor, split, change=None):
    """EvaluationCounts of a split whose images are those that `change` makes, and whose targets are the true ones."""
    generator = torch.Generator().manual_seed(settings.seed + 1)

    def replace(images, targets, _indices):
        size = images.shape[1:3]
        small = [F.interpolate(t[None, None].float(), size)[0, 0].to(torch.uint8) for t in targets]
        return change(images, torch.stack(small), generator)[0]

    replaced = replace if change else None
    options = {"batch_size": settings.batch_size, "workers": settings.workers}
    return evaluation.evaluate(predictor, split, change=replaced, **options)


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
        why = f"nothing learnt: {held}"
        return Finding("noise_test", "fail", why, cause="nothing_learnt", remedy=NOTHING_LEARNT, **about)
    return Finding("noise_test", "pass", f"the labels' layout, nothing else: {held}", **about)
