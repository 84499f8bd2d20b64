"""One small training, run under different conditions: what does each kind of input teach?

The model, its seed, the number of steps and everything else stay the same; what enters in training, what in validation,
or which parameters train is changed. Beside chance, the class prior, the layout and a training on the real pairs, the
figures say what the score rests on: noise and wrong pairs can teach the labels' layout and nothing more; class ids can
be permuted without loss; a random backbone, shapes without content and content without layout each teach a part.
"""

import time
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import nn

import data
from engine.sampling import draw_requests
from probes.finding import Exhibit, Finding
from probes.limits import LIMITS
from probes.noise_test import NOTHING_LEARNT, figures, judge, leaks, learn, noise_test, prepare, validate
from probes.replacement_inputs import flat_segments, noise, other_images, permuted_ids, shuffled_patches

FIGURES = ("loss", "miou", "pixel_accuracy", "active_classes")  # of one validation, loss in nats per pixel
REAL = {"real images": None}  # the validation split as it is


class Condition(NamedTuple):
    """One way to train.

    trained_on: in words. change: of every training batch, a function of `probes.replacement_inputs`, None for none.
    validated_on: {in words: change of the validation images}; the first is noted along the way, all at the end.
    permuted: "pairs" gives each training image another one's target for good, "ids" renames the classes in the training
    targets. freeze, weights: in place of the settings of that name, None for those.
    """

    trained_on: str
    change: object = None
    validated_on: dict = REAL
    permuted: str = ""
    freeze: str | None = None
    weights: str | None = None


CONDITIONS = {
    "real": Condition("real images"),
    "noise": Condition("fresh noise", noise, {"noise": noise}),
    "label_permutation": Condition("real images, each with one other image's target", permuted="pairs"),
    "mismatched": Condition("real images of other targets, new ones each time", other_images),
    "class_permutation": Condition("real images, class ids permuted", permuted="ids"),
    "frozen_backbone": Condition("real images, the backbone frozen as loaded", freeze="backbone"),
    "random_frozen_backbone": Condition(
        "real images, the backbone random and frozen", freeze="backbone", weights="none"
    ),
    "spatial_only": Condition("a random colour a segment", flat_segments, {"flat segments": flat_segments, **REAL}),
    "content_only": Condition("patches shuffled with their labels", shuffled_patches),
}
WRONG_PAIRS = ("label_permutation", "mismatched")
LAYOUT_ONLY = ("noise", *WRONG_PAIRS)  # where no image tells anything of its target


# ---------------------------------------------------------------------------------------------------------------------
# Training under a condition


def train_under(subject, name):
    """Train under the condition `name` of CONDITIONS; `subject.rows` notes the outcome.

    Returns no finding yet: `judge_conditions` compares all rows when they are there. Raises as `run_condition` does.
    """
    subject.rows.append(run_condition(subject, name))
    return []


def run_condition(subject, name):
    """Train as `subject.settings` say under the condition `name` of CONDITIONS, on the splits "train" and "val".

    Returns plain values: {"condition", "skipped": why it could not run or None, "validated_on", and at the end of the
    training "loss" (nats per pixel), "miou", "pixel_accuracy", "active_classes"; "curve": [these four, "iteration" and
    "train_loss"]; "others": [these four and "validated_on"] of further validations; "seconds"}.
    Raises: UserError for faulty files or labels, a model, weights or a freezing rule that does not exist.
    """
    audits, condition, start = subject.clean_audits, CONDITIONS[name], time.perf_counter()
    if reason := find_obstacle(name, subject.settings, subject.splits["train"]):
        return _row(name, [], [{"validated_on": next(iter(condition.validated_on))}], 0.0, reason)
    if name == "noise":
        return noise_row(*noise_test(subject))
    curve, views = _train(condition, subject, audits["train"])
    return _row(name, curve, views, time.perf_counter() - start)


def noise_row(finding):
    """`run_condition`'s row from the finding of a noise test that has already run."""
    curve = finding.evidence.get("curve", [])  # a test that saw no noise has not trained
    view = {"validated_on": "noise", **last_figures(curve)}
    return _row("noise", curve, [view], finding.seconds, "" if curve else finding.why)


def _row(name, curve, views, seconds, skipped=""):
    about = {"condition": name, "skipped": skipped or None, **dict.fromkeys(FIGURES), **views[0]}
    return {**about, "curve": curve, "others": views[1:], "seconds": seconds}


def find_obstacle(name, settings, train):
    """Why a condition cannot run on a training split, or ""."""
    if len(train) < 2 or settings.batch_size < 2:
        return "a batch of one image: batch norm needs two, and no other image can take its place"
    if name == "class_permutation" and train.spec.num_classes < 2:
        return "a single class cannot be permuted"
    if name == "frozen_backbone" and settings.weights == "none":
        return "no pretrained backbone to freeze; give --weights"
    return ""


def last_figures(curve):
    """FIGURES at a curve's end; {} for a curve without an entry."""
    return {name: curve[-1][name] for name in FIGURES} if curve else {}


def _train(condition, subject, audit):
    """Train and validate; returns the curve and [{"validated_on", **FIGURES}], the curve's own validation first."""
    settings, train, val = subject.settings, subject.splits["train"], subject.splits["val"]
    changed = {"freeze": condition.freeze, "weights": condition.weights}
    settings = replace(settings, **{name: value for name, value in changed.items() if value})
    change, permutation = condition.change, None
    if condition.permuted == "pairs":
        train = RepairedSplit(**vars(train), partners=draw_derangement(len(train), settings.seed))
    if condition.permuted == "ids":
        permutation = draw_derangement(train.spec.num_classes, settings.seed)
        change = permuted_ids(permutation)
    ready = prepare(settings, audit, subject.device, change)
    if condition.freeze and settings.weights == "none":
        measure_norms(ready, train, settings)
    views = [(about, ready.predictor, changed) for about, changed in condition.validated_on.items()]
    if permutation:
        renamed = replace(ready.predictor, model=PermutedBack(ready.predictor.model, permutation))
        views.insert(0, ("real images, ids permuted alike", renamed, None))

    def look(_about, predictor, changed):
        return validate(settings, predictor, val, changed)

    curve = learn(settings, ready, train, lambda: look(*views[0]), subject.tell_step)
    ends = [last_figures(curve), *(figures(look(*view)) for view in views[1:])]
    return curve, [{"validated_on": view[0], **end} for view, end in zip(views, ends, strict=True)]


def draw_derangement(count, seed):
    """A list of `count` indices, none of them at its own place: one cycle through all of them, drawn from `seed`.

    Raises: ValueError below 2.
    """
    if count < 2:
        raise ValueError(f"{count} cannot change places; at least 2 can")
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed)).tolist()
    partners = [0] * count
    for place, index in enumerate(order):
        partners[index] = order[place - 1]
    return partners


@dataclass(frozen=True, kw_only=True)
class RepairedSplit(data.Split):
    """A split whose image i keeps the target of pair partners[i]; both may have different sizes before the canvas."""

    partners: list

    def read(self, index):
        """(PIL image, target (H, W) uint8 of its partner)."""
        return super().read(index)[0], self.read_target(self.partners[index])


class PermutedBack(nn.Module):
    """A model that learnt permuted class ids, answering with the true ones: what it calls permutation[c] is class c."""

    def __init__(self, model, permutation):
        super().__init__()
        self.model, self.permutation = model, permutation

    def forward(self, images):
        """{"out": (N, C, h, w)}: in channel c the logit that the model learnt for the id permutation[c]."""
        return {"out": self.model(images)["out"][:, self.permutation]}


@torch.no_grad()
def measure_norms(ready, split, settings, count=8):
    """Give a random backbone's batch norms the statistics of `count` batches of its training images.

    Frozen as initialised, with mean 0 and variance 1, they do not normalise: MobileNetV2's features fade to 1e-9 of the
    image, and the head would read nothing, whatever there is to be read.
    """
    model, training = ready.training.model, ready.training
    norms = [m for m in model.backbone.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    momenta = [norm.momentum for norm in norms]
    model.eval()
    for norm in norms:
        norm.momentum = None  # the plain mean over the batches
        norm.train()
    requests = draw_requests(len(split), settings.batch_size, torch.Generator().manual_seed(settings.seed))[:count]
    for batch in data.training_batches(split, ready.geometry, requests, settings.workers):
        images, _ = training.augment(*(part.to(training.device) for part in batch), training.varying)
        model(ready.criterion.normalise(images))
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum


# ---------------------------------------------------------------------------------------------------------------------
# The verdict


def conditions_table(rows, known):
    """All figures beside each other: a list of dicts with equal keys, None where a figure does not apply.

    rows: of `run_condition`, in any order; known: `noise_test.references`. First the lines that are known beforehand
    (chance, prior, layout map, layout floor), then one row a condition and validation.
    """
    empty = dict.fromkeys(("condition", "trained_on", "validated_on", "iterations", *FIGURES, "seconds", "skipped"))
    table = [
        {**empty, "condition": "chance", "miou": known["chance"]},
        {**empty, "condition": "class prior", "miou": known["prior_miou"], "loss": known["prior"]},
        {**empty, "condition": "layout map", "miou": known["layout_map"], "loss": known["layout"]},
        {**empty, "condition": "layout floor", "miou": known["floor"]},
    ]
    for row in rows:
        about = {"condition": row["condition"], "trained_on": CONDITIONS[row["condition"]].trained_on}
        about["iterations"] = row["curve"][-1]["iteration"] if row["curve"] else None
        for view in (row, *row["others"]):
            table.append({key: {**view, **about}.get(key) for key in empty})
    return table


def judge_conditions(rows, known):
    """Findings on rows of `run_condition`: "shortcut.conditions" with the table and curves, then one a condition.

    known: `noise_test.references` of the same splits. A row is compared with the rows that are there; the more there
    are, the more can be said.
    """
    ran = {row["condition"]: row for row in rows if not row["skipped"]}
    findings = [_judge_place(ran, known)]
    findings[0].evidence.update(table=conditions_table(rows, known), references=known)
    findings[0].exhibits.append(_draw_curves(ran, known))
    for row in rows:
        if row["skipped"]:
            finding = Finding("", "skip", row["skipped"])
        else:
            finding = JUDGES[row["condition"]](row, ran, known)
            finding.evidence.update(curve=row["curve"], others=row["others"])
        finding.probe, finding.seconds = f"shortcut.{row['condition']}", row["seconds"]
        findings.append(finding)
    return findings


def _draw_curves(ran, known):
    """The exhibit: mIoU over the iterations of every condition, chance and floor as lines."""
    curves = {name: [(step["iteration"], step["miou"]) for step in row["curve"]] for name, row in ran.items()}
    ends = sorted({step["iteration"] for row in ran.values() for step in row["curve"]})
    lines = {"chance": "chance", "layout map": "layout_map", "layout floor": "floor"}
    curves |= {name: [(x, known[key]) for x in (ends[0], ends[-1])] for name, key in lines.items() if ends}
    return Exhibit("validation mIoU after so many iterations, by what the training was given", curves=curves)


def shown(row):
    """A row's figures in words."""
    return f"{row['loss']:.3f} nats per pixel, mIoU {row['miou']:.3f} on {row['validated_on']}"


def place_loss(ran, known):
    """What the labels' layout alone is worth: the best of the trainings that no image can help, else the layout's."""
    return min((ran[name]["loss"] for name in LAYOUT_ONLY if name in ran), default=known["layout"])


def share_of_real(loss, ran, base):
    """How much of what real images teach below the loss `base` is there at `loss`; None where they teach nothing."""
    learnt = base - ran["real"]["loss"] if "real" in ran else 0.0
    return (base - loss) / learnt if learnt > 0 else None


def share_of_place(ran, known):
    """How much of what real images teach below the class prior needs no image; None where they teach nothing."""
    return share_of_real(place_loss(ran, known), ran, known["prior"])


def _judge_place(ran, known):
    """Do real images teach more than the layout, which needs no image?"""
    share = share_of_place(ran, known)
    if share is None:
        return Finding(
            "shortcut.conditions", "skip", "no training on real images that learnt something to compare with"
        )
    limit = LIMITS["place_share"].value
    why = (
        f"of what real images teach ({known['prior']:.3f} nats per pixel without any training, "
        f"{ran['real']['loss']:.3f} after it), {share:.0%} comes without them ({place_loss(ran, known):.3f})"
    )
    about = {"value": share, "reference": limit}
    if share > limit:
        remedy = "check that masks and images belong together (label_agreement); if they do, train longer"
        return Finding("shortcut.conditions", "warn", why, cause="layout_shortcut", remedy=remedy, **about)
    return Finding("shortcut.conditions", "pass", why, **about)


def _judge_real(row, _ran, known):
    """Does the training work at all?"""
    train_loss, about = row["curve"][-1]["train_loss"], {"value": row["loss"], "reference": known["prior"]}
    if train_loss > LIMITS["still_prior"].value * known["train_prior"]:
        why = f"nothing learnt: training loss {train_loss:.3f}, class prior {known['train_prior']:.3f}; {shown(row)}"
        return Finding("", "fail", why, cause="nothing_learnt", remedy=NOTHING_LEARNT, **about)
    if row["loss"] >= known["prior"]:
        why = f"learnt by heart: training loss {train_loss:.3f}, but {shown(row)} (class prior {known['prior']:.3f})"
        remedy = "more training images, fewer --iters, or validation images of the same kind"
        return Finding("", "warn", why, cause="overfit", remedy=remedy, **about)
    return Finding("", "pass", f"{shown(row)} (layout floor {known['floor']:.3f})", **about)


def _judge_noise(row, _ran, known):
    """As the noise test does."""
    return judge(row["curve"], known)


def _judge_wrong_pairs(row, _ran, known):
    """Trained on images of other targets: the layout is all that can be learnt."""
    about = {"value": row["loss"], "reference": known["layout"]}
    bound = f"layout {known['layout']:.3f} ± {known['spread']:.3f}, floor {known['floor']:.3f}"
    if leaks(row, known):
        why = f"trained on wrong pairs, and yet {shown(row)} ({bound}): the labels reach the network by another way"
        remedy = "find what carries the labels: an input channel, a cached target, images that hold their own masks"
        return Finding("", "fail", why, cause="label_leak", remedy=remedy, **about)
    return Finding("", "pass", f"wrong pairs teach no more than the layout: {shown(row)} ({bound})", **about)


def _judge_renamed(row, ran, known):
    """Trained with permuted class ids: as good as with the true ones, once the answers are named alike."""
    if leaks(row["others"][0], known):
        why = f"trained with permuted class ids, and yet it answers with the true ones: {shown(row['others'][0])}"
        remedy = "the training reads its labels elsewhere than from the targets: a cached target, a second file"
        return Finding("", "fail", why, cause="label_leak", remedy=remedy, value=row["others"][0]["loss"])
    share, limit = share_of_real(row["loss"], ran, known["prior"]), LIMITS["renamed_share"].value
    if share is None:
        return Finding("", "pass", f"permuted class ids are learnt: {shown(row)}")
    why = f"with permuted class ids {share:.0%} of what the true ones teach is learnt: {shown(row)}"
    about = {"value": share, "reference": limit}
    if share < limit:
        remedy = "something treats class ids by number: a weight, an ignored id, a mapping; look at the loss"
        return Finding("", "warn", why, cause="class_ids_permuted", remedy=remedy, **about)
    return Finding("", "pass", why, **about)


def _judge_frozen(row, ran, known):
    """A backbone that does not train: is it worth more than a random one, and is the trained one worth more than it?"""
    base, limit, random = place_loss(ran, known), LIMITS["frozen_share"].value, ran.get("random_frozen_backbone")
    if row is not random and random and row["loss"] >= random["loss"]:
        why = f"the backbone as loaded is worth no more than a random one ({random['loss']:.3f}): {shown(row)}"
        remedy = "were the weights loaded, and does the input have the mean, range and channel order they expect?"
        return Finding("", "warn", why, cause="untrained_layers", remedy=remedy, value=row["loss"])
    place = share_of_place(ran, known)
    if place is None or place > LIMITS["place_share"].value:  # nothing beyond the layout to have a share of
        return Finding("", "pass", f"the head alone: {shown(row)}", value=row["loss"], reference=base)
    share = share_of_real(row["loss"], ran, base)
    why = f"beyond the layout ({base:.3f}) the head alone learns {share:.0%} of what all layers do: {shown(row)}"
    about = {"value": share, "reference": limit}
    if row is random and share > limit:
        remedy = "the backbone's training contributes nothing at this budget: is it frozen, is its --lr too low?"
        return Finding("", "warn", why, cause="frozen_backbone", remedy=remedy, **about)
    return Finding("", "pass", why, **about)


def _judge_spatial(row, ran, known):
    """Trained on shapes without content: on real images it must do worse than a training that saw content."""
    on_real, real = row["others"][0], ran.get("real")
    why = f"shapes and places alone: {shown(row)}, {shown(on_real)}"
    about = {"value": on_real["loss"], "reference": real["loss"] if real else known["layout"]}
    if real and on_real["loss"] <= real["loss"]:
        remedy = "content teaches nothing here: check that masks and images belong together, then train longer"
        return Finding("", "warn", why, cause="layout_shortcut", remedy=remedy, **about)
    return Finding("", "pass", why, **about)


def _judge_content(row, _ran, known):
    """Trained on content without layout: on real images it must be worth something."""
    about = {"value": row["loss"], "reference": known["prior"]}
    why = f"content alone: {shown(row)} (class prior {known['prior']:.3f})"
    if row["loss"] >= known["prior"]:
        remedy = "where a thing stands is all that tells what it is: check label_agreement, then train longer"
        return Finding("", "warn", why, cause="layout_shortcut", remedy=remedy, **about)
    return Finding("", "pass", why, **about)


JUDGES = {
    "real": _judge_real,
    "noise": _judge_noise,
    "label_permutation": _judge_wrong_pairs,
    "mismatched": _judge_wrong_pairs,
    "class_permutation": _judge_renamed,
    "frozen_backbone": _judge_frozen,
    "random_frozen_backbone": _judge_frozen,
    "spatial_only": _judge_spatial,
    "content_only": _judge_content,
}
