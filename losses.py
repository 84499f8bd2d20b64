"""The training losses, and the class weights.

A criterion calls the model itself, since some losses need more than one pass, and returns its terms as totals; what
each total is divided by comes from the targets alone. The division happens once, over the whole step, all parts of a
batch and all processes together. So a batch of nothing but void is a zero, not a NaN, and splitting a batch does not
change the loss.

Every term of --loss is one row of the table `TERMS`: a new one needs a function below and its row.
"""

import json
import math
from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

import cli
from cli import UserError

VOID = 255
SMALLEST_SHARE = 16  # ohem keeps at least 1 / SMALLEST_SHARE of an image's labelled pixels
STRIDE = 4  # contrastive: pixels between the places that may become anchors
ANCHORS_PER_CLASS, ANCHORS = 64, 2048  # contrastive: at most, in one batch
EDGE_DECAY = 10.0  # spatial: a step of 0.1 in the image lets a prediction's edge through at exp(-1) of its price
EDGE_THRESHOLD = 0.1  # properties: gradient magnitude, in grey levels from 0 to 1 a pixel
RULES = ("inverse", "sqrt", "median", "effective")  # of class weights
LARGEST_RATIO = 100  # of a class's weight, before scaling
BETA, BLOCK = 0.9999, 32 * 32  # of effective numbers; pixels that count as one sample

# ---------------------------------------------------------------------------------------------------------------------
# Flags


def add_loss_flags(parser):
    """The flags of the loss."""
    group = parser.add_argument_group(
        "loss", "terms of --loss, with their default weight and parameter:\n" + _listing()
    )
    group.add_argument("--loss", default="ce=1", help="NAME=weight or NAME=weight:parameter,... of the terms above")
    group.add_argument(
        "--class-weights",
        default="none",
        help="none, inverse, sqrt, median or effective (of the class's share), or a JSON file",
    )
    group.add_argument(
        "--label-smoothing",
        type=cli.non_negative,
        default=0.0,
        help="share of the target spread over all classes, in ce and the auxiliary head; 0: none",
    )


def _listing():
    """One line a term: how it is written, and what it is for."""
    lines = []
    for name, term in TERMS.items():
        limits = " ({0} {2:g} to {3:g})".format(*term.parameter) if term.parameter else ""
        written = f"{name}={':'.join(f'{value:g}' for value in term.defaults)}"
        lines.append(f"  {written:<23}{term.purpose}{limits}")
    return "\n".join(lines)


def parse_loss(text):
    """Read 'ce=1,focal=1:2' into {term: [weight, own parameter]}; what is not written keeps its default.

    noisy and consistency share one noise: where only one of them says its sigma, it holds for both.
    Raises UserError for an unknown term, numbers too many or out of range, two different sigmas, or no term.
    """
    written = cli.parse_items(text, {name: [term.weight] for name, term in TERMS.items()})
    if not written:
        raise UserError(f"no term in {text!r}", "--loss", f"known: {', '.join(TERMS)}")
    for name, values in written.items():
        _check_term(name, values)
    if not any(TERMS[name].teaches for name in written):
        teaching = ", ".join(sorted(name for name, term in TERMS.items() if term.teaches))
        cli.warn(f"no term of --loss {text} teaches the classes; {teaching} would")
    terms = {name: [*values, *TERMS[name].defaults[len(values) :]] for name, values in written.items()}
    shared = [name for name in terms if TERMS[name].noise]
    sigmas = sorted({written[name][1] for name in shared if len(written[name]) > 1})
    if len(sigmas) > 1:
        what = f"sigma {sigmas[0]:g} and {sigmas[1]:g} of 'noisy' and 'consistency'"
        raise UserError(what, "--loss", "they share one noise: give it once")
    for name in shared if sigmas else ():
        terms[name][1:] = sigmas
    return terms


def _check_term(name, values):
    """Raise UserError unless the numbers written for a term are as many as it takes and within their ranges."""
    parameter, _, low, high = TERMS[name].parameter or (None, None, 0, 0)
    known = f"{name}=weight"
    if parameter:
        known += f" or {name}=weight:{parameter}, {parameter} from {low:g} to {high:g}"
    if len(values) > len(TERMS[name].defaults):
        raise UserError(f"{len(values)} numbers for term {name!r}", "--loss", f"write {known}")
    if not 0 < values[0] < math.inf:
        raise UserError(f"weight {values[0]:g} of term {name!r}", "--loss", "give a weight above 0 or leave it out")
    if len(values) > 1 and not low <= values[1] <= high:
        raise UserError(f"{parameter} {values[1]:g} of term {name!r}", "--loss", f"write {known}")


def choose_terms(text, outliers, distances=False):
    """The terms that --loss and --outliers describe together.

    Those written, and where none of them reads pasted pixels though there are some, the two energy terms; with a
    distance head, whose logits are never above 0, outlier-entropy instead.
    Raises UserError as `parse_loss` does, and for a term about pasted pixels where nothing is pasted.
    """
    terms = parse_loss(text)
    reading = [name for name in terms if TERMS[name].pasted]
    if outliers == "none" and reading:
        what = f"term {min(reading)!r} without pasted pixels"
        raise UserError(what, "--loss", "add --outliers DIR or --outliers noise-shapes")
    if outliers != "none" and not reading:
        added = ["outlier-entropy"] if distances else [name for name, term in TERMS.items() if term.energy]
        terms |= {name: TERMS[name].defaults for name in added if name not in terms}
    return terms


def check_heads(terms, options):
    """Raise UserError for terms that do not fit the model's heads; options: the model's."""
    distances = options["centres"] != "none"
    if "centre" in terms and not distances:
        raise UserError("term 'centre' of a model without centres", "--loss", "add centres=fixed to --model")
    energy = sorted(name for name in terms if TERMS[name].energy)
    if distances and energy:
        what = f"term {energy[0]!r} of a distance head, whose logits are never above 0"
        raise UserError(what, "--loss", "use outlier-entropy")
    if options["residual"] and not energy and not any(TERMS[name].pasted for name in terms):
        what = "a residual head that no term of the loss teaches"
        raise UserError(what, "--model", "add --outliers DIR or --outliers noise-shapes, or leave residual=on out")


# ---------------------------------------------------------------------------------------------------------------------
# The terms


class Batch(NamedTuple):
    """A batch as a term sees it; for a divisor the model has not been called, and there are no images and answers.

    targets: (N, H, W) uint8, void >= C; C itself is a pasted pixel. class_weights: (C,) float32 or None. images:
    (N, 3, H, W) float32 in [0, 1]. outputs: the model's, "out" (N, C, H, W) among them. noisy_logits: (N, C, H, W) of
    the images with noise, None where no term wants them. parameter: the term's own.
    """

    targets: torch.Tensor
    num_classes: int
    class_weights: torch.Tensor | None
    label_smoothing: float
    images: torch.Tensor | None = None
    outputs: dict | None = None
    noisy_logits: torch.Tensor | None = None
    parameter: float | None = None

    @property
    def logits(self):
        """The classifier's logits (N, C, H, W)."""
        return self.outputs["out"]

    @property
    def open_logits(self):
        """A residual head's logits, so that the classifier itself learns no outlier; without one the classifier's."""
        return self.outputs.get("open", self.logits)


class Term(NamedTuple):
    """A row of the table: how a term is written in --loss, and how it is computed.

    parameter: the number it takes beside its weight. total, divisor: of a `Batch`, scalar float32. teaches: without one
    of these the classifier learns nothing. noise: it wants the logits of noisy images. pasted: it reads pasted pixels.
    energy: it sets a level for log-sum-exp, which logits that are never above 0 cannot serve.
    """

    weight: float
    purpose: str
    parameter: tuple  # name, default, lowest, highest; or nothing
    total: Callable
    divisor: Callable
    teaches: bool = False
    noise: bool = False
    pasted: bool = False
    energy: bool = False

    @property
    def defaults(self):
        """[weight, the own parameter if there is one], a new list."""
        return [self.weight, *self.parameter[1:2]]


# fmt: off
TERMS = {
    "ce": Term(
        1.0, "cross-entropy, the plain loss", (),
        lambda b: cross_entropy(b.logits, b.targets, b.class_weights, b.label_smoothing),
        lambda b: sum_of_weights(b.targets, b.num_classes, b.class_weights), teaches=True),
    "focal": Term(
        1.0, "cross-entropy that fades on pixels already right; gamma 0: plain", ("gamma", 2.0, 0, 10),
        lambda b: focal(b.logits, b.targets, b.parameter, b.class_weights),
        lambda b: sum_of_weights(b.targets, b.num_classes, b.class_weights), teaches=True),
    "ohem": Term(
        1.0, "cross-entropy on hard pixels only: right class less probable than threshold", ("threshold", 0.7, 0, 1),
        lambda b: ohem(b.logits, b.targets, b.parameter, b.class_weights),
        lambda b: labelled_images(b.targets, b.num_classes), teaches=True),
    "dice": Term(
        1.0, "overlap of each class present, small ones as much as large ones", (),
        lambda b: dice(b.logits, b.targets),
        lambda b: labelled_images(b.targets, b.num_classes), teaches=True),
    "lovasz": Term(
        1.0, "stands in for the IoU of each class present", (),
        lambda b: lovasz(b.logits, b.targets),
        lambda b: labelled_images(b.targets, b.num_classes), teaches=True),
    "noisy": Term(
        0.1, "cross-entropy on the image with noise of sigma, in normalised units", ("sigma", 0.1, 0, 10),
        lambda b: cross_entropy(b.noisy_logits, b.targets, b.class_weights),
        lambda b: sum_of_weights(b.targets, b.num_classes, b.class_weights), teaches=True, noise=True),
    "consistency": Term(
        0.05, "same answer with and without that noise (KL, mean over pixels)", ("sigma", 0.1, 0, 10),
        lambda b: consistency(b.logits, b.noisy_logits, b.targets),
        lambda b: sum_of_weights(b.targets, b.num_classes), noise=True),
    "contrastive": Term(
        0.1, "features of one class alike, of different classes apart", ("temperature", 0.1, 0.01, 10),
        lambda b: contrastive(b.outputs["features"], b.targets, b.num_classes, b.parameter),
        lambda b: contrastive_anchors(b.targets, b.num_classes)),
    "spatial": Term(
        0.1, "edges of the prediction only where the image has edges", (),
        lambda b: spatial(b.logits, b.images, b.targets),
        lambda b: spatial_places(b.targets, b.num_classes)),
    "outlier-energy": Term(
        0.05, "log-sum-exp of the logits below level on pasted pixels (--outliers)", ("level", 0.0, -100, 100),
        lambda b: outlier_energy(b.open_logits, b.targets, b.parameter),
        lambda b: outlier_pixels(b.targets, b.num_classes), pasted=True, energy=True),
    "known-energy": Term(
        0.01, "above level on known pixels", ("level", 8.0, -100, 100),
        lambda b: known_energy(b.open_logits, b.targets, b.parameter),
        lambda b: sum_of_weights(b.targets, b.num_classes), energy=True),
    "outlier-entropy": Term(
        0.5, "all classes equally likely on pasted pixels (--outliers)", (),
        lambda b: outlier_entropy(b.open_logits, b.targets),
        lambda b: outlier_pixels(b.targets, b.num_classes), pasted=True),
    "centre": Term(
        0.01, "small distance to the own class's centre (models with centres=fixed or learnt)", (),
        lambda b: centre_distance(b.logits, b.targets),
        lambda b: sum_of_weights(b.targets, b.num_classes)),
}
PROPERTIES = Term(  # not of --loss: what the model's auxiliary output of this name is taught
    1.0, "what the image looks like as a whole", (),
    lambda b: property_regression(b.outputs["properties"], b.images),
    lambda b: torch.full((), float(len(b.targets)), device=b.targets.device),
)
# fmt: on


# ---------------------------------------------------------------------------------------------------------------------
# The criterion


class Criterion(nn.Module):
    """What is minimised: calls the model on normalised images and returns the named terms of the loss.

    `weights` says what each term's total is divided by; a step's loss is Σ_terms (Σ totals) / max(Σ weights, ε), the
    sums taken over all parts of the step. A pixel whose class has weight 0 is void to every term.

    terms: {name: [weight, own parameter]}, as `parse_loss` reads them. normalise: images in [0, 1] -> the network's
    input. class_weights: (C,) float32 or None. aux_weights: the model's own {output: weight}; "properties" is regressed
    on the image's properties, every other such output gets the cross-entropy, as a term of its name.
    Raises UserError for a label smoothing that leaves nothing of the target, ValueError for an unknown term.
    """

    def __init__(self, terms, num_classes, normalise, class_weights=None, label_smoothing=0.0, aux_weights=None):
        super().__init__()
        if not 0 <= label_smoothing < 1:
            raise UserError(f"label smoothing {label_smoothing}", "--label-smoothing", "give at least 0 and below 1")
        if class_weights is not None and class_weights.shape != (num_classes,):
            raise ValueError(f"class weights of shape {tuple(class_weights.shape)} for {num_classes} classes")
        if unknown := terms.keys() - TERMS.keys():
            raise ValueError(f"unknown term {min(unknown)!r}")
        self.terms = {name: list(values) for name, values in terms.items()}
        self.num_classes, self.aux_weights = num_classes, dict(aux_weights or {})
        self.normalise, self.label_smoothing = normalise, label_smoothing
        self.register_buffer("class_weights", class_weights)

    def weights(self, targets):
        """targets (N, H, W) uint8 with void >= C -> {term: scalar float32}, to be added up over the parts of a step.

        An auxiliary output has its entry also in evaluation mode, when its head rests.
        """
        batch = self._batch(targets)
        terms = {name: TERMS[name] for name in self.terms}
        terms |= {name: PROPERTIES if name == "properties" else TERMS["ce"] for name in self.aux_weights}
        return {name: term.divisor(batch) for name, term in terms.items()}

    def forward(self, model, images, targets):
        """images (N, 3, H, W) float32 in [0, 1], targets (N, H, W) uint8 -> {term: scalar float32}, scaled totals.

        noisy and consistency share a second pass over the images with noise from torch's global generator; batch norm
        in training mode counts that pass in its statistics too.
        """
        inputs = self.normalise(images)
        outputs = model(inputs)
        batch = self._batch(targets, images, outputs, self._noisy_logits(model, inputs))
        totals = {}
        for name, (scale, *own) in self.terms.items():
            totals[name] = scale * TERMS[name].total(batch._replace(parameter=own[0] if own else None))
        for name, scale in self.aux_weights.items():
            if name in outputs:  # an auxiliary head rests in evaluation mode
                totals[name] = scale * self._auxiliary(name, batch)
        return totals

    def _batch(self, targets, *passes):
        """The batch for the terms, with every pixel void whose class has weight 0."""
        if self.class_weights is not None:
            dropped = (self.class_weights == 0)[targets.long().clamp(max=self.num_classes - 1)]
            targets = targets.masked_fill(dropped & (targets < self.num_classes), VOID)  # pasted pixels stay
        return Batch(targets, self.num_classes, self.class_weights, self.label_smoothing, *passes)

    def _noisy_logits(self, model, inputs):
        """The logits of the images with noise, its sigma in normalised units; None where no term wants any."""
        sigmas = [self.terms[name][1] for name, term in TERMS.items() if term.noise and name in self.terms]
        return model(inputs + sigmas[0] * torch.randn_like(inputs))["out"] if sigmas else None

    def _auxiliary(self, name, batch):
        """An auxiliary output's total; a second classifier's is scaled as the main one's cross-entropy is."""
        if name == "properties":
            return PROPERTIES.total(batch)
        second = batch._replace(outputs={"out": batch.outputs[name]})
        return self.terms.get("ce", [1.0])[0] * TERMS["ce"].total(second)


# ---------------------------------------------------------------------------------------------------------------------
# Losses per pixel


def pixel_weights(targets, num_classes, class_weights=None):
    """Each pixel's class, 0 where void, and its weight, 0 where void: (N, H, W) int64 and (N, H, W) float32."""
    valid = targets < num_classes
    index = torch.where(valid, targets, 0).long()
    return index, valid.float() if class_weights is None else class_weights[index] * valid


def sum_of_weights(targets, num_classes, class_weights=None):
    """What totals of losses per pixel are divided by: Σ w_t over labelled pixels, scalar float32."""
    return pixel_weights(targets, num_classes, class_weights)[1].sum()


def labelled_images(targets, num_classes):
    """What totals of losses per image are divided by: the number of images with a labelled pixel, scalar float32."""
    return (targets < num_classes).flatten(1).any(1).sum().float()


def cross_entropy(logits, targets, class_weights=None, smoothing=0.0):
    """Weighted cross-entropy with void and label smoothing: Σ weighted losses in nats, scalar float32.

    smoothing: in [0, 1). Divided by `sum_of_weights` it is torch's F.cross_entropy(weight, ignore_index,
    label_smoothing): the loss at a pixel of class t is (1 - s) · w_t · -log p_t + s / C · Σ_c w_c · -log p_c, and its
    weight is w_t.
    Deviation: a pixel whose class has weight 0 is dropped like a void one, where torch keeps its smoothing part and
    then divides by nothing. Source: Szegedy et al., Rethinking the Inception Architecture, CVPR 2016, section 7.
    """
    num_classes = logits.shape[1]
    index, weights = pixel_weights(targets, num_classes, class_weights)
    log_probabilities = F.log_softmax(logits.float(), dim=1)  # (N, C, H, W)
    total = -(weights * _at(log_probabilities, index)).sum()
    if smoothing:
        if class_weights is not None:
            log_probabilities = log_probabilities * class_weights.view(1, -1, 1, 1)
        spread = -(log_probabilities.sum(1) * (weights > 0)).sum()
        total = (1 - smoothing) * total + smoothing / num_classes * spread
    return total


def focal(logits, targets, gamma, class_weights=None):
    """Cross-entropy that fades where the model is right: Σ w_t · (1 - p_t)^γ · -log p_t in nats, scalar float32.

    gamma: at least 0; 0 is the cross-entropy itself. Divided by the same `sum_of_weights`: the factor makes the loss
    smaller, not the divisor, so that a batch of easy pixels counts for little.
    Source: Lin et al., Focal Loss for Dense Object Detection, ICCV 2017, equation 5. Deviation: p_t is a softmax
    over the classes instead of a sigmoid, and α_t is the class weight.
    """
    index, weights = pixel_weights(targets, logits.shape[1], class_weights)
    log_p = _at(F.log_softmax(logits.float(), dim=1), index)  # (N, H, W)
    # Without the bound the power's slope at p = 1 is infinite for γ < 1, and infinite · 0 is NaN.
    factor = (-torch.expm1(log_p)).clamp(min=1e-8) ** gamma
    return -(weights * factor * log_p).sum()


def ohem(logits, targets, threshold, class_weights=None):
    """Online hard example mining: Σ over images of the mean cross-entropy of the hard pixels, scalar float32, nats.

    A labelled pixel is hard when the probability of its class is below `threshold`, in [0, 1]. Where fewer than 1/16
    of an image's labelled pixels are hard, its least probable 1/16 is taken. The mean is weighted by class. Divided by
    `labelled_images`.
    Source: Shrivastava et al., Training Region-based Object Detectors with Online Hard Example Mining, CVPR 2016; for
    pixels Wu et al., Bridging Category-level and Instance-level Semantic Image Segmentation, 2016.
    Deviation: hard pixels are chosen and averaged per image, not over the batch, so that the loss does not depend on
    how a step is split; the smallest number is a share of the labelled pixels, not a constant.
    """
    index, weights = pixel_weights(targets, logits.shape[1], class_weights)
    weights = weights.flatten(1)  # (N, HW)
    labelled = weights > 0
    log_p = _at(F.log_softmax(logits.float(), dim=1), index).flatten(1)
    probabilities = log_p.detach().exp().masked_fill(~labelled, torch.inf)  # void comes last
    order = probabilities.argsort(dim=1)
    smallest = (labelled.sum(1) + SMALLEST_SHARE - 1) // SMALLEST_SHARE
    kept = torch.maximum((probabilities < threshold).sum(1), smallest)  # (N,)
    kept = torch.arange(order.shape[1], device=order.device) < kept[:, None]
    weights = weights.gather(1, order) * kept
    sums, divisors = -(weights * log_p.gather(1, order)).sum(1), weights.sum(1)
    return (sums / torch.where(divisors > 0, divisors, 1)).sum()


def _at(values, index):
    """values (N, C, H, W) at each pixel's class index (N, H, W): (N, H, W)."""
    return values.gather(1, index.unsqueeze(1)).squeeze(1)


# ---------------------------------------------------------------------------------------------------------------------
# Losses per region


def dice(logits, targets):
    """Soft Dice loss: Σ over images of the mean over present classes of 1 - D_c, scalar float32, each in [0, 1].

    D_c = 2 Σ p_c g_c / (Σ p_c² + Σ g_c²) over the labelled pixels, g_c being 1 where the target is c.
    Source: Milletari et al., V-Net, 3DV 2016, section 3. Deviation: several classes, absent ones left out.
    """
    index, valid = (values.flatten(1) for values in pixel_weights(targets, logits.shape[1]))  # (N, HW)
    probabilities = F.softmax(logits.float(), dim=1).flatten(2) * valid.unsqueeze(1)  # (N, C, HW), void 0
    zeros = probabilities.new_zeros(logits.shape[:2])
    overlap = zeros.scatter_add(1, index, _at(probabilities, index))  # (N, C)
    sizes = zeros.scatter_add(1, index, valid)
    scores = 2 * overlap / (probabilities.square().sum(2) + sizes).clamp(min=1)  # at least 1 where the class is present
    present = sizes > 0
    return ((1 - scores) * present).sum(1).div(present.sum(1).clamp(min=1)).sum()


def lovasz(logits, targets):
    """Lovász-softmax: Σ over images of the mean over present classes of the Jaccard loss's extension, scalar float32.

    Source: Berman et al., The Lovász-Softmax Loss, CVPR 2018, algorithm 1, per image.
    """
    total = logits[:0].float().sum()  # 0, with a gradient
    for image, target in zip(logits, targets, strict=True):
        valid = target < len(image)
        labels = target[valid].long()  # (P,)
        present = labels.unique()
        if not len(present):
            continue
        probabilities = F.softmax(image.float(), dim=0)[present][:, valid]  # (K, P)
        truth = labels == present[:, None]
        errors = torch.where(truth, 1 - probabilities, probabilities)
        total = total + (errors * _jaccard_slope(errors.detach(), truth)).sum() / len(present)
    return total


def _jaccard_slope(errors, truth):
    """Each pixel's share in the Jaccard loss when pixels turn wrong in order of their error: (K, P) float32.

    errors: (K, P) in [0, 1]. truth: (K, P) bool, with at least one True a row. Algorithm 1 of the paper, put back from
    the order of errors to the order of pixels.
    """
    order = errors.argsort(dim=1, descending=True)
    sorted_truth = truth.gather(1, order)
    hits = sorted_truth.long().cumsum(1)
    left = hits[:, -1:] - hits  # of the class's pixels, with the first k pixels wrong
    union = hits[:, -1:] + (~sorted_truth).long().cumsum(1)
    # What the k-th wrong pixel adds, in closed form: taken as a difference it loses its digits in large images.
    slope = torch.where(sorted_truth, 1, left / (union - 1).clamp(min=1)) / union
    return torch.empty_like(errors).scatter_(1, order, slope)


# ---------------------------------------------------------------------------------------------------------------------
# Losses against shortcuts: noise, contrast, edges, image properties


def consistency(clean, noisy, targets):
    """KL(clean ‖ noisy) in nats: Σ over labelled pixels of Σ_c p_c · (log p_c - log q_c).

    clean: logits of the image, detached, so that the noisy answer is drawn to the clean one and not the other way
    round. noisy: logits of the same image with noise. Divided by the number of labelled pixels: a mean over pixels,
    as the cross-entropy is. Summed over the pixels of a batch instead (or averaged over its images alone) it is
    thousands of times larger and drowns every other term.
    """
    log_p = F.log_softmax(clean.detach().float(), dim=1)
    log_q = F.log_softmax(noisy.float(), dim=1)
    divergence = (log_p.exp() * (log_p - log_q)).sum(1)  # (N, H, W)
    return (divergence * (targets < clean.shape[1])).sum()


def _classes_at_places(targets, num_classes):
    """The classes at the places that may become anchors: (N, h, w) int64 at stride 4, void as num_classes."""
    return targets[:, STRIDE // 2 :: STRIDE, STRIDE // 2 :: STRIDE].long().clamp(max=num_classes)


def _anchors_per_class(classes, num_classes):
    """How many anchors each class gets: (C,) int64, at most 64 and, all classes together, at most 2048."""
    counts = torch.bincount(classes.flatten(), minlength=num_classes + 1)[:num_classes]
    limit = (ANCHORS // (counts > 0).sum().clamp(min=1)).clamp(max=ANCHORS_PER_CLASS)
    return counts.minimum(limit)


def contrastive_anchors(targets, num_classes):
    """What the contrastive total is divided by: the number of drawn anchors that have a partner of their class."""
    drawn = _anchors_per_class(_classes_at_places(targets, num_classes), num_classes)
    return (drawn * (drawn > 1)).sum().float()


def contrastive(features, targets, num_classes, temperature):
    """Supervised contrastive loss on pixel features, in nats: Σ over anchors of L_i.

    features: (N, D, h, w), any float dtype, read at the cell that holds the anchor's place. temperature: above 0.
    L_i = -1/|P(i)| Σ_{p in P(i)} log(exp(z_i·z_p / τ) / Σ_{a ≠ i} exp(z_i·z_a / τ)), z being features of length 1 and
    P(i) the other anchors of i's class. Anchors are drawn anew each time from torch's global generator, the same
    number for each class that has enough, over the whole batch; a single anchor of its class only repels, and
    anchors in one cell share its feature. Their number, and with it the memory, is bounded. Divided by
    `contrastive_anchors`.
    Source: Khosla et al., Supervised Contrastive Learning, NeurIPS 2020, equation 2 (L_out). Deviation: pixels of
    labelled images in place of augmented views, and no projection head.
    """
    classes = _classes_at_places(targets, num_classes)
    order = _draw_anchors(classes.flatten(), _anchors_per_class(classes, num_classes))
    labels = classes.flatten()[order]  # (A,)
    vectors = _vectors(features, targets.shape, classes.shape, order)  # (A, D)
    with torch.autocast(features.device.type, enabled=False):
        similar = vectors @ vectors.T / temperature  # (A, A)
    itself = torch.eye(len(labels), dtype=torch.bool, device=labels.device)
    partners = (labels[:, None] == labels) & ~itself
    number = partners.sum(1)
    paired = number > 0
    similar, partners, number = similar[paired], partners[paired], number[paired]
    others = similar.masked_fill(itself[paired], -torch.inf).logsumexp(1)  # at least one other is left in each row
    return (others - (similar * partners).sum(1) / number).sum()


def _draw_anchors(classes, drawn):
    """Choose `drawn` places of each class at random: their positions in classes (M,), grouped by class, (A,) int64."""
    shuffled = torch.randperm(len(classes), device=classes.device)
    order = shuffled[classes[shuffled].argsort(stable=True)]
    counts = torch.bincount(classes, minlength=len(drawn) + 1)
    starts = counts.cumsum(0) - counts
    rank = torch.arange(len(classes), device=classes.device) - starts[classes[order]]
    return order[rank < F.pad(drawn, (0, 1))[classes[order]]]  # of void, none


def _vectors(features, image_shape, grid_shape, order):
    """The features of length 1 at chosen places of the stride-4 grid: (A, D) float32."""
    (_, height, width), (_, rows, columns) = image_shape, grid_shape
    image = order // max(1, rows * columns)
    y = order // max(1, columns) % max(1, rows) * STRIDE + STRIDE // 2
    x = order % max(1, columns) * STRIDE + STRIDE // 2
    cells = features[image, :, y * features.shape[2] // height, x * features.shape[3] // width]
    return F.normalize(cells.float(), dim=1, eps=1e-4)  # a feature of zeros must not get a gradient of 1e12


def spatial_places(targets, num_classes):
    """What the spatial total is divided by: places whose own, right and lower pixel are labelled, scalar float32."""
    return _whole_corners(targets, num_classes).sum().float()


def _whole_corners(targets, num_classes):
    valid = targets < num_classes
    return valid[:, :-1, :-1] & valid[:, :-1, 1:] & valid[:, 1:, :-1]  # (N, H - 1, W - 1)


def spatial(logits, images, targets):
    """Edges of the prediction where the image has none: Σ over places and both directions of Σ_c |Δp_c| · exp(-k |ΔI|).

    images: (N, 3, H, W) in [0, 1], not normalised; |ΔI| is averaged over the colours, no gradient goes there. Both
    directions are cut to (H - 1, W - 1), so that each place has one difference of each; it counts where its own, its
    right and its lower pixel are labelled. Divided by `spatial_places`. It is least where the prediction is the same
    everywhere: a small weight beside a loss that knows the classes.
    Source: Godard et al., Unsupervised Monocular Depth Estimation with Left-Right Consistency, CVPR 2017, the
    disparity smoothness term, on class probabilities in place of disparities. Deviation: k = 10 where the paper has 1,
    with which even a step from black to grey 0.1 would count 0.9 as much as no step at all.
    """
    probabilities = F.softmax(logits.float(), dim=1)
    places = _whole_corners(targets, logits.shape[1])
    images = images.detach().float()
    total = 0
    for change, edge in zip(_differences(probabilities), _differences(images), strict=True):
        weight = torch.exp(-EDGE_DECAY * edge.abs().mean(1)) * places  # (N, H - 1, W - 1)
        total = total + (change.abs().sum(1) * weight).sum()
    return total


def _differences(values):
    """The steps to the right and the lower neighbour of values (N, C, H, W), both (N, C, H - 1, W - 1)."""
    corner = values[:, :, :-1, :-1]
    return values[:, :, :-1, 1:] - corner, values[:, :, 1:, :-1] - corner


@torch.no_grad()
def image_properties(images):
    """What an image looks like as a whole: (N, 6) float32, each between 0 and 1.

    images: (N, 3, H, W) in [0, 1]. Columns: brightness (mean grey), contrast (standard deviation of grey, at most
    0.5), mean red, green and blue, and edge density: the share of places where grey changes by more than 0.1 to the
    next pixel, right and lower taken together as a gradient. Grey is the mean of the three colours.
    """
    images = images.float()
    grey = images.mean(1, keepdim=True)  # (N, 1, H, W)
    right, below = _differences(grey)
    edges = (torch.hypot(right, below) > EDGE_THRESHOLD).flatten(1)
    density = edges.sum(1) / max(1, edges.shape[1])
    measures = grey.mean((1, 2, 3)), grey.std((1, 2, 3), correction=0), images.mean((2, 3)), density
    return torch.column_stack(measures)


def property_regression(predicted, images):
    """Σ over images of the squared error summed over the 6 properties, scalar float32. Divided by the image count.

    predicted: (N, 6). images: (N, 3, H, W) in [0, 1]. It needs no labels, so an image of nothing but void counts too.
    """
    return (predicted.float() - image_properties(images)).square().sum()


# ---------------------------------------------------------------------------------------------------------------------
# Losses for the unknown: pasted and known pixels, distance to the centre


def outlier_pixels(targets, num_classes):
    """What an outlier term's total is divided by: the pasted pixels, scalar float32."""
    return (targets == num_classes).sum().float()


def outlier_energy(logits, targets, level):
    """Σ over pasted pixels of max(0, log Σ_c e^z_c - level)²: little evidence for any class.

    Source: Liu et al., Energy-based Out-of-distribution Detection, NeurIPS 2020, equation 8, E = -log Σ e^z; level is
    their -m_out.
    """
    return _hinge(logits.float().logsumexp(1) - level, targets == logits.shape[1])


def known_energy(logits, targets, level):
    """Σ over known pixels of max(0, level - log Σ_c e^z_c)²: much evidence for some class.

    Source: as `outlier_energy`; level is their -m_in. Both levels are needed: cross-entropy alone leaves the common
    shift of all logits, and with it the energy, free.
    """
    return _hinge(level - logits.float().logsumexp(1), targets < logits.shape[1])


def _hinge(excess, counted):
    return torch.where(counted, F.relu(excess).square(), 0.0).sum()


def outlier_entropy(logits, targets):
    """Σ over pasted pixels of -1/C Σ_c log p_c: every class as likely as any other; log C at its best.

    Source: Chan et al., Entropy Maximization and Meta Classification for Out-of-Distribution Detection in Semantic
    Segmentation, ICCV 2021, equation 4.
    """
    uniform = -F.log_softmax(logits.float(), dim=1).mean(1)  # (N, H, W)
    return torch.where(targets == logits.shape[1], uniform, 0.0).sum()


def centre_distance(logits, targets):
    """Σ over known pixels of ||f - m_y||², of a distance head, whose logits are minus these squared distances.

    Source: Cen et al., Deep Metric Learning for Open World Semantic Segmentation, ICCV 2021, the variance loss.
    """
    index, known = pixel_weights(targets, logits.shape[1])
    return -torch.where(known > 0, _at(logits.float(), index), 0.0).sum()


# ---------------------------------------------------------------------------------------------------------------------
# Class weights


def class_weights(kind, counts, names):
    """One weight per class from the training targets' pixel counts: (C,) float32, or None for "none".

    kind: a rule that gives ratios w_c, each capped at 100, the whole then scaled to sum C; or a JSON file
    {class name: weight}, taken as it is. counts: (N, C) int64, pixels by image and class; n_c is a class's over all.
      inverse    total / (C · n_c)
      sqrt       the square root of that
      median     median(f) / f_c over the classes present, f_c a class's share of the labelled pixels of the images
                 that hold it. Source: Eigen & Fergus, Predicting Depth, Surface Normals and Semantic Labels, ICCV 2015.
      effective  E(total / C) / E(n_c), with the effective number E(n) = (1 - β^n) / (1 - β), β = 0.9999. Source: Cui
                 et al., Class-Balanced Loss Based on Effective Number of Samples, CVPR 2019, proposition 1. Deviation:
                 n is in blocks of 32×32 pixels, since neighbouring pixels are near copies of one another. Counted in
                 single pixels every class above some 50 000 has E = 10⁴, so that all weigh the same and the rule
                 does nothing. As it is, classes well below 10 million pixels weigh as with "inverse", and classes
                 above 50 million all the same.
    A class without pixels gets 0 from every rule, and a warning that names it.
    Raises UserError for an unknown kind, a file that cannot be read, and weights that cannot be meant.
    """
    if kind == "none":
        return None
    if kind not in RULES:
        return _read_class_weights(kind, names)
    images = torch.atleast_2d(counts.double())  # (N, C)
    counts = images.sum(0)
    if not counts.sum() > 0:
        raise UserError("no labelled pixel to weight classes by", f"--class-weights {kind}", "check the targets")
    absent = counts == 0
    if absent.any():
        missing = ", ".join(name for name, gone in zip(names, absent.tolist(), strict=True) if gone)
        cli.warn(f"no training pixel of {missing}; the weight of such a class is 0")
    ratios = _ratios(kind, images).clamp(max=LARGEST_RATIO).masked_fill(absent, 0)
    return (ratios * len(counts) / ratios.sum()).float()


def _ratios(kind, images):
    """Each class's weight before cap and scaling, from pixels by image and class (N, C) float64."""
    counts = images.sum(0)
    if kind == "median":
        homes = ((images > 0) * images.sum(1, keepdim=True)).sum(0)  # all pixels of the images that hold the class
        frequencies = counts / homes.clamp(min=1)
        return frequencies[counts > 0].quantile(0.5) / frequencies.clamp(min=1e-12)
    mean, counts = counts.mean(), counts.clamp(min=1)
    if kind == "effective":
        return _effective(mean) / _effective(counts)
    return (mean / counts).sqrt() if kind == "sqrt" else mean / counts


def _effective(pixels):
    """The effective number of samples in that many pixels."""
    return -torch.expm1(pixels / BLOCK * math.log(BETA)) / (1 - BETA)


def _read_class_weights(path, names):
    """Class weights from a JSON file {class name: weight}, every class exactly once."""
    try:
        with open(path, encoding="utf-8") as file:
            content = json.load(file)
    except (OSError, ValueError) as error:
        remedy = f"give none, {', '.join(RULES)}, or a JSON file {{class name: weight}}"
        raise UserError(f"cannot read class weights ({error})", f"--class-weights {path}", remedy) from None
    if not isinstance(content, dict):
        raise UserError(f"a {type(content).__name__} instead of class weights", path, 'write {"class name": weight}')
    for name in sorted(content.keys() - set(names)):
        raise UserError(f"unknown class {name!r}", path, cli.nearest(name, names))
    if len(content) < len(names):
        missing = ", ".join(name for name in names if name not in content)
        raise UserError(f"no weight for {missing}", path, "give every class a weight, 0 to leave it out of the loss")
    for name, value in content.items():
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < math.inf:
            raise UserError(f"weight {value!r} of class {name!r}", path, "give a number of at least 0")
    if not any(content.values()):
        raise UserError("every class has weight 0", path, "give at least one class a weight above 0")
    return torch.tensor([float(content[name]) for name in names])
