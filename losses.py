"""The training losses, and the class weights.

A criterion calls the model itself, since some losses need more than one pass, and returns its terms as sums beside the
weights that they are to be divided by: the division happens once, over the whole step, all processes together. So a
batch of nothing but void is a zero, not a NaN, and splitting a batch does not change the loss.
"""

import json
import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

import flags
from flags import UserError

LOSSES = {"ce": 1.0}
LARGEST_RATIO = 100  # of a class's weight, before scaling


def add_loss_flags(parser):
    """The flags of the loss."""
    group = parser.add_argument_group("loss")
    group.add_argument("--loss", default="ce=1", help="terms and their weights: ce (cross-entropy)")
    group.add_argument(
        "--class-weights",
        default="none",
        help="none, inverse or sqrt (of the class's share), or a JSON file",
    )
    group.add_argument(
        "--label-smoothing", type=flags.non_negative, default=0.0, help="share of the target spread over all classes"
    )


def parse_loss(text):
    """Read 'ce=1' into {term: weight}. Raises UserError for an unknown term, a weight not above 0, or no term."""
    terms = flags.parse_items(text, LOSSES)
    for name, weight in terms.items():
        if not 0 < weight < math.inf:
            raise UserError(f"weight {weight} of term {name!r}", "--loss", "give a weight above 0 or leave it out")
    if not terms:
        raise UserError(f"no term in {text!r}", "--loss", f"known: {', '.join(LOSSES)}")
    return terms


class Term(NamedTuple):
    """One named part of a loss: scale * total / weight, once totals and weights are added up over the step."""

    total: torch.Tensor  # scalar float32: sum of weighted losses, with gradient
    weight: torch.Tensor  # scalar float32: sum of weights, without
    scale: float


def cross_entropy(logits, targets, class_weights=None, smoothing=0.0):
    """Weighted cross-entropy with void and label smoothing, as sums: (Σ weighted losses in nats, Σ weights).

    logits: (N, C, H, W), any float dtype, computed in float32. targets: (N, H, W) uint8; values >= C are void and
    contribute nothing. class_weights: (C,) float32, at least 0, or None for ones. smoothing: in [0, 1).

    The quotient is torch's F.cross_entropy(weight, ignore_index, label_smoothing): the loss at a pixel of class t is
    (1 - s) · w_t · -log p_t + s / C · Σ_c w_c · -log p_c, and its weight is w_t.
    Deviation: a pixel whose class has weight 0 is dropped like a void one, where torch keeps its smoothing part and
    then divides by nothing. Source: Szegedy et al., Rethinking the Inception Architecture, CVPR 2016, section 7.
    """
    num_classes = logits.shape[1]
    valid = targets < num_classes
    index = torch.where(valid, targets, 0).long()  # (N, H, W)
    weights = valid.float() if class_weights is None else class_weights[index] * valid
    log_probabilities = F.log_softmax(logits.float(), dim=1)  # (N, C, H, W)
    total = -(weights * log_probabilities.gather(1, index.unsqueeze(1)).squeeze(1)).sum()
    if smoothing:
        if class_weights is not None:
            log_probabilities = log_probabilities * class_weights.view(1, -1, 1, 1)
        spread = -(log_probabilities.sum(1) * (weights > 0)).sum()
        total = (1 - smoothing) * total + smoothing / num_classes * spread
    return total, weights.sum()


class Criterion(nn.Module):
    """What is minimised: calls the model on normalised images and returns the named terms of the loss.

    terms: {name: weight}, as `parse_loss` reads them. normalise: images in [0, 1] -> the network's input.
    class_weights: (C,) float32 or None. aux_weights: the model's own {output: weight}; each such output gets the
    cross-entropy as a term of its name.
    Raises UserError for a label smoothing that leaves nothing of the target.
    """

    def __init__(self, terms, num_classes, normalise, class_weights=None, label_smoothing=0.0, aux_weights=None):
        super().__init__()
        if not 0 <= label_smoothing < 1:
            raise UserError(f"label smoothing {label_smoothing}", "--label-smoothing", "give at least 0 and below 1")
        if class_weights is not None and class_weights.shape != (num_classes,):
            raise ValueError(f"class weights of shape {tuple(class_weights.shape)} for {num_classes} classes")
        self.terms, self.aux_weights = dict(terms), dict(aux_weights or {})
        self.normalise, self.label_smoothing = normalise, label_smoothing
        self.register_buffer("class_weights", class_weights)

    def forward(self, model, images, targets):
        """images (N, 3, H, W) float32 in [0, 1], targets (N, H, W) uint8 with void >= C -> {name: Term}."""
        outputs = model(self.normalise(images))
        scale = self.terms["ce"]
        terms = {"ce": self._cross_entropy(outputs["out"], targets, scale)}
        for name, weight in self.aux_weights.items():
            if name in outputs:  # the auxiliary head rests in evaluation mode
                terms[name] = self._cross_entropy(outputs[name], targets, scale * weight)
        return terms

    def _cross_entropy(self, logits, targets, scale):
        return Term(*cross_entropy(logits, targets, self.class_weights, self.label_smoothing), scale)


# ---------------------------------------------------------------------------------------------------------------------
# Class weights


def class_weights(kind, counts, names):
    """One weight per class from the training targets' pixel counts: (C,) float32, or None for "none".

    kind: "inverse": total / (C · n_c), at most 100; "sqrt": the square root of total / (C · n_c), at most 100; both
    then scaled to sum C. Or a JSON file {class name: weight}, taken as it is. counts: (C,) int64.
    A class without pixels gets 0 from "inverse" and "sqrt", and a warning that names it.
    Raises UserError for an unknown kind, a file that cannot be read, and weights that cannot be meant.
    """
    if kind == "none":
        return None
    if kind not in ("inverse", "sqrt"):
        return _read_class_weights(kind, names)
    counts = counts.double()
    if not counts.sum() > 0:
        raise UserError("no labelled pixel to weight classes by", f"--class-weights {kind}", "check the targets")
    absent = counts == 0
    if absent.any():
        missing = ", ".join(name for name, gone in zip(names, absent.tolist(), strict=True) if gone)
        flags.warn(f"no training pixel of {missing}; the weight of such a class is 0")
    ratios = counts.sum() / (len(counts) * counts.clamp(min=1))
    ratios = (ratios.sqrt() if kind == "sqrt" else ratios).clamp(max=LARGEST_RATIO).masked_fill(absent, 0)
    return (ratios * len(counts) / ratios.sum()).float()


def _read_class_weights(path, names):
    """Class weights from a JSON file {class name: weight}, every class exactly once."""
    try:
        with open(path, encoding="utf-8") as file:
            content = json.load(file)
    except (OSError, ValueError) as error:
        remedy = "give none, inverse, sqrt, or a JSON file {class name: weight}"
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
