"""The training losses, and the class weights.

A criterion calls the model itself, since some losses need more than one pass, and returns its terms as totals; what
each total is divided by comes from the targets alone. The division happens once, over the whole step, all parts of a
batch and all processes together. So a batch of nothing but void is a zero, not a NaN, and splitting a batch does not
change the loss. The losses themselves are in `losses_pixel`, `losses_region`, `losses_robust` and
`losses_outlier`.
"""

import json
import math

import torch
from torch import nn

import flags
from flags import UserError
from losses_outlier import centre_distance, known_energy, outlier_energy, outlier_entropy, outlier_pixels
from losses_pixel import cross_entropy, focal, labelled_images, ohem, sum_of_weights
from losses_region import dice, lovasz
from losses_robust import (
    consistency,
    contrastive,
    contrastive_anchors,
    image_properties,  # noqa: F401  the front of its parts
    property_regression,
    spatial,
    spatial_places,
)

VOID = 255

# {term: [weight, the term's own parameter]}, each with its default
LOSSES = {
    "ce": [1.0],
    "focal": [1.0, 2.0],
    "ohem": [1.0, 0.7],
    "dice": [1.0],
    "lovasz": [1.0],
    "noisy": [0.1, 0.1],
    "consistency": [0.05, 0.1],
    "contrastive": [0.1, 0.1],
    "spatial": [0.1],
    "outlier-energy": [0.05, 0.0],
    "known-energy": [0.01, 8.0],
    "outlier-entropy": [0.5],
    "centre": [0.01],
}
OUTLIER_TERMS = {"outlier-energy", "outlier-entropy"}  # what reads pasted pixels
DEFAULT_OUTLIER_TERMS = ("outlier-energy", "known-energy")
ENERGY_TERMS = set(DEFAULT_OUTLIER_TERMS)
TEACHING = {"ce", "focal", "ohem", "dice", "lovasz", "noisy"}  # without one of these the classifier learns nothing
PARAMETERS = {  # {term: (name, lowest, highest)}
    "focal": ("gamma", 0, 10),
    "ohem": ("threshold", 0, 1),
    "noisy": ("sigma", 0, 10),
    "consistency": ("sigma", 0, 10),
    "contrastive": ("temperature", 0.01, 10),
    "outlier-energy": ("level", -100, 100),
    "known-energy": ("level", -100, 100),
}
PURPOSES = {
    "ce": "cross-entropy, the plain loss",
    "focal": "cross-entropy that fades on pixels already right; gamma 0: plain",
    "ohem": "cross-entropy on hard pixels only: right class less probable than threshold",
    "dice": "overlap of each class present, small ones as much as large ones",
    "lovasz": "stands in for the IoU of each class present",
    "noisy": "cross-entropy on the image with noise of sigma, in normalised units",
    "consistency": "same answer with and without that noise (KL, mean over pixels)",
    "contrastive": "features of one class alike, of different classes apart",
    "spatial": "edges of the prediction only where the image has edges",
    "outlier-energy": "log-sum-exp of the logits below level on pasted pixels (--outliers)",
    "known-energy": "above level on known pixels",
    "outlier-entropy": "all classes equally likely on pasted pixels (--outliers)",
    "centre": "small distance to the own class's centre (models with centres=fixed or learnt)",
}


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
        type=flags.non_negative,
        default=0.0,
        help="share of the target spread over all classes, in ce and the auxiliary head; 0: none",
    )


def _listing():
    """One line a term: how it is written, and what it is for."""
    lines = []
    for name, default in LOSSES.items():
        limits = " ({} {:g} to {:g})".format(*PARAMETERS[name]) if name in PARAMETERS else ""
        written = f"{name}={':'.join(f'{value:g}' for value in default)}"
        lines.append(f"  {written:<23}{PURPOSES[name]}{limits}")
    return "\n".join(lines)


def parse_loss(text):
    """Read 'ce=1,focal=1:2' into {term: [weight, own parameter]}; what is not written keeps its default.

    noisy and consistency share one noise: where only one of them says its sigma, it holds for both.
    Raises UserError for an unknown term, numbers too many or out of range, two different sigmas, or no term.
    """
    written = flags.parse_items(text, {name: default[:1] for name, default in LOSSES.items()})
    if not written:
        raise UserError(f"no term in {text!r}", "--loss", f"known: {', '.join(LOSSES)}")
    for name, values in written.items():
        _check_term(name, values)
    if not TEACHING & written.keys():
        flags.warn(f"no term of --loss {text} teaches the classes; {', '.join(sorted(TEACHING))} would")
    terms = {name: [*values, *LOSSES[name][len(values) :]] for name, values in written.items()}
    shared = terms.keys() & {"noisy", "consistency"}
    sigmas = sorted({written[name][1] for name in shared if len(written[name]) > 1})
    if len(sigmas) > 1:
        what = f"sigma {sigmas[0]:g} and {sigmas[1]:g} of 'noisy' and 'consistency'"
        raise UserError(what, "--loss", "they share one noise: give it once")
    for name in shared:
        terms[name][1:] = sigmas or LOSSES[name][1:]
    return terms


def choose_terms(text, outliers, distances=False):
    """The terms that --loss and --outliers describe together.

    Those written, and where none of them reads pasted pixels though there are some, DEFAULT_OUTLIER_TERMS; with a
    distance head, whose logits are never above 0, outlier-entropy instead.
    Raises UserError as `parse_loss` does, and for a term about pasted pixels where nothing is pasted.
    """
    terms = parse_loss(text)
    reading = OUTLIER_TERMS & terms.keys()
    if outliers == "none" and reading:
        what = f"term {min(reading)!r} without pasted pixels"
        raise UserError(what, "--loss", "add --outliers DIR or --outliers noise-shapes")
    if outliers != "none" and not reading:
        default = ("outlier-entropy",) if distances else DEFAULT_OUTLIER_TERMS
        terms |= {name: list(LOSSES[name]) for name in default if name not in terms}
    return terms


def check_heads(terms, options):
    """Raise UserError for terms that do not fit the model's heads; options: the model's."""
    distances = options["centres"] != "none"
    if "centre" in terms and not distances:
        raise UserError("term 'centre' of a model without centres", "--loss", "add centres=fixed to --model")
    if distances and (energy := sorted(ENERGY_TERMS & terms.keys())):
        what = f"term {energy[0]!r} of a distance head, whose logits are never above 0"
        raise UserError(what, "--loss", "use outlier-entropy")
    if options["residual"] and not (ENERGY_TERMS | OUTLIER_TERMS) & terms.keys():
        what = "a residual head that no term of the loss teaches"
        raise UserError(what, "--model", "add --outliers DIR or --outliers noise-shapes, or leave residual=on out")


def _check_term(name, values):
    """Raise UserError unless the numbers written for a term are as many as it takes and within their ranges."""
    parameter, low, high = PARAMETERS.get(name, (None, 0, 0))
    known = f"{name}=weight" + (
        f" or {name}=weight:{parameter}, {parameter} from {low:g} to {high:g}" if parameter else ""
    )
    if len(values) > len(LOSSES[name]):
        raise UserError(f"{len(values)} numbers for term {name!r}", "--loss", f"write {known}")
    if not 0 < values[0] < math.inf:
        raise UserError(f"weight {values[0]:g} of term {name!r}", "--loss", "give a weight above 0 or leave it out")
    if len(values) > 1 and not low <= values[1] <= high:
        raise UserError(f"{parameter} {values[1]:g} of term {name!r}", "--loss", f"write {known}")


class Criterion(nn.Module):
    """What is minimised: calls the model on normalised images and returns the named terms of the loss.

    `weights` says what each term's total is divided by; a step's loss is Σ_terms (Σ totals) / max(Σ weights, ε), the
    sums taken over all parts of the step. A pixel whose class has weight 0 is void to every term.

    terms: {name: [weight, own parameter]}, as `parse_loss` reads them. normalise: images in [0, 1] -> the network's
    input. class_weights: (C,) float32 or None. aux_weights: the model's own {output: weight}; "properties" is regressed
    on the image's properties, every other such output gets the cross-entropy, as a term of its name.
    Raises UserError for a label smoothing that leaves nothing of the target.
    """

    def __init__(self, terms, num_classes, normalise, class_weights=None, label_smoothing=0.0, aux_weights=None):
        super().__init__()
        if not 0 <= label_smoothing < 1:
            raise UserError(f"label smoothing {label_smoothing}", "--label-smoothing", "give at least 0 and below 1")
        if class_weights is not None and class_weights.shape != (num_classes,):
            raise ValueError(f"class weights of shape {tuple(class_weights.shape)} for {num_classes} classes")
        self.terms = {name: list(values) for name, values in terms.items()}
        self.num_classes, self.aux_weights = num_classes, dict(aux_weights or {})
        self.normalise, self.label_smoothing = normalise, label_smoothing
        self.register_buffer("class_weights", class_weights)

    def weights(self, targets):
        """targets (N, H, W) uint8 with void >= C -> {term: scalar float32}, to be added up over the parts of a step.

        An auxiliary output has its entry also in evaluation mode, when its head rests.
        """
        targets = self._without_dropped(targets)
        return {name: self._weight(name, targets) for name in (*self.terms, *self.aux_weights)}

    def _weight(self, name, targets):
        match name:
            case "ohem" | "dice" | "lovasz":
                return labelled_images(targets, self.num_classes)
            case "contrastive":
                return contrastive_anchors(targets, self.num_classes)
            case "spatial":
                return spatial_places(targets, self.num_classes)
            case "outlier-energy" | "outlier-entropy":
                return outlier_pixels(targets, self.num_classes)
            case "consistency" | "known-energy" | "centre":
                return sum_of_weights(targets, self.num_classes)
            case "properties":
                return torch.full((), float(len(targets)), device=targets.device)
            case _:
                return sum_of_weights(targets, self.num_classes, self.class_weights)

    def forward(self, model, images, targets):
        """images (N, 3, H, W) float32 in [0, 1], targets (N, H, W) uint8 -> {term: scalar float32}, scaled totals.

        noisy and consistency share a second pass over the images with noise from torch's global generator; batch norm
        in training mode counts that pass in its statistics too.
        """
        targets = self._without_dropped(targets)
        inputs = self.normalise(images)
        outputs = model(inputs)
        noisy = None
        if (sigma := self._sigma()) is not None:
            noisy = model(inputs + sigma * torch.randn_like(inputs))["out"]
        totals = {}
        for name, (scale, *own) in self.terms.items():
            totals[name] = scale * self._total(name, own, outputs, noisy, images, targets)
        for name, scale in self.aux_weights.items():
            if name in outputs:  # an auxiliary head rests in evaluation mode
                totals[name] = scale * self._auxiliary(name, outputs[name], images, targets)
        return totals

    def _total(self, name, own, outputs, noisy, images, targets):
        logits = outputs["out"]
        match name:
            case "ce":
                return cross_entropy(logits, targets, self.class_weights, self.label_smoothing)
            case "focal":
                return focal(logits, targets, *own, self.class_weights)
            case "ohem":
                return ohem(logits, targets, *own, self.class_weights)
            case "dice":
                return dice(logits, targets)
            case "lovasz":
                return lovasz(logits, targets)
            case "noisy":
                return cross_entropy(noisy, targets, self.class_weights)
            case "consistency":
                return consistency(logits, noisy, targets)
            case "contrastive":
                return contrastive(outputs["features"], targets, self.num_classes, *own)
            case "spatial":
                return spatial(logits, images, targets)
            case "centre":
                return centre_distance(logits, targets)
        open_logits = outputs.get("open", logits)  # with a residual head the classifier itself learns no outlier
        match name:
            case "outlier-energy":
                return outlier_energy(open_logits, targets, *own)
            case "known-energy":
                return known_energy(open_logits, targets, *own)
            case "outlier-entropy":
                return outlier_entropy(open_logits, targets)
        raise ValueError(f"unknown term {name!r}")

    def _auxiliary(self, name, output, images, targets):
        """An auxiliary output's total; a second classifier's is scaled as the main one's cross-entropy is."""
        if name == "properties":
            return property_regression(output, images)
        scale = self.terms["ce"][0] if "ce" in self.terms else 1.0
        return scale * cross_entropy(output, targets, self.class_weights, self.label_smoothing)

    def _sigma(self):
        """Standard deviation of the noise in normalised units; None where no term wants any."""
        for name in ("noisy", "consistency"):
            if name in self.terms:
                return self.terms[name][1]
        return None

    def _without_dropped(self, targets):
        """The targets with every pixel void whose class has weight 0."""
        if self.class_weights is None:
            return targets
        dropped = (self.class_weights == 0)[targets.long().clamp(max=self.num_classes - 1)]
        return targets.masked_fill(dropped & (targets < self.num_classes), VOID)  # pasted pixels stay


# ---------------------------------------------------------------------------------------------------------------------
# Class weights


LARGEST_RATIO = 100  # of a class's weight, before scaling
BETA, BLOCK = 0.9999, 32 * 32  # of effective numbers; pixels that count as one sample


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
    if kind not in ("inverse", "sqrt", "median", "effective"):
        return _read_class_weights(kind, names)
    images = torch.atleast_2d(counts.double())  # (N, C)
    counts = images.sum(0)
    if not counts.sum() > 0:
        raise UserError("no labelled pixel to weight classes by", f"--class-weights {kind}", "check the targets")
    absent = counts == 0
    if absent.any():
        missing = ", ".join(name for name, gone in zip(names, absent.tolist(), strict=True) if gone)
        flags.warn(f"no training pixel of {missing}; the weight of such a class is 0")
    ratios = _median_ratios(images) if kind == "median" else _ratios(kind, counts.clamp(min=1), counts.mean())
    ratios = ratios.clamp(max=LARGEST_RATIO).masked_fill(absent, 0)
    return (ratios * len(counts) / ratios.sum()).float()


def _median_ratios(images):
    """Median-frequency balancing from pixels by image and class (N, C)."""
    counts, homes = images.sum(0), ((images > 0) * images.sum(1, keepdim=True)).sum(0)
    frequencies = counts / homes.clamp(min=1)
    return frequencies[counts > 0].quantile(0.5) / frequencies.clamp(min=1e-12)


def _ratios(kind, counts, mean):
    """Each class's weight before cap and scaling; a class of `mean` pixels gets 1."""
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
        remedy = "give none, inverse, sqrt, median, effective, or a JSON file {class name: weight}"
        raise UserError(f"cannot read class weights ({error})", f"--class-weights {path}", remedy) from None
    if not isinstance(content, dict):
        raise UserError(f"a {type(content).__name__} instead of class weights", path, 'write {"class name": weight}')
    for name in sorted(content.keys() - set(names)):
        raise UserError(f"unknown class {name!r}", path, flags.nearest(name, names))
    if len(content) < len(names):
        missing = ", ".join(name for name in names if name not in content)
        raise UserError(f"no weight for {missing}", path, "give every class a weight, 0 to leave it out of the loss")
    for name, value in content.items():
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < math.inf:
            raise UserError(f"weight {value!r} of class {name!r}", path, "give a number of at least 0")
    if not any(content.values()):
        raise UserError("every class has weight 0", path, "give at least one class a weight above 0")
    return torch.tensor([float(content[name]) for name in names])
