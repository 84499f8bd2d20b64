"""Does the model look at the image? Gradients that reach it, what is left of the score without it, and its features."""

import copy
import math

import torch
from torch import nn
from torchvision.ops import StochasticDepth

import metrics
import models
from engine.training import batch_loss
from probes import replacement_inputs
from probes.answers import NOT_SEEN, take_sample
from probes.finding import Exhibit, Finding, Tile, plain
from probes.limits import LIMITS
from probes.replacement_inputs import (
    flat_segments,
    mirrored,
    noise_segments,
    other_images,
    shifted,
    shuffled_patches,
    shuffled_segments,
)

SHORTCUT_REMEDY = "check that masks belong to their images, then augment with scale, translate and crop, train longer"

# ---------------------------------------------------------------------------------------------------------------------
# Gradients


def gradient_flow(subject):
    """Does the loss reach every trainable parameter, and the image? The Finding of `check_gradients`."""
    criterion = subject.criterion()  # freezes what the checkpoint's rule names
    return [check_gradients(subject.model, criterion, *subject.training_batch())]


def check_gradients(model, criterion, images, targets):
    """The Finding on the gradients that the loss of a batch has.

    images (N, 3, H, W) float32 in [0, 1], targets (N, H, W) uint8. Works on a copy: no weight and no batch-norm
    statistic of `model` changes. In somebody else's model, parts that its answer does not use are counted, not blamed:
    only an auxiliary head's own loss would reach it, and that is not known here.
    """
    ours = hasattr(model, "backbone_features")
    model = _awake(copy.deepcopy(model))
    images = images.clone().requires_grad_()
    batch_loss(model, criterion, images, targets).backward()
    image_norm = _norm(images.grad)
    norms, unreached, zero, frozen = {}, [], [], {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            frozen[name] = parameter.numel()
            continue
        norm = _norm(parameter.grad)
        stage = ".".join(name.removeprefix("net.").split(".")[:2])
        norms[stage] = math.hypot(norms.get(stage, 0.0), norm)
        if norm == 0:
            (unreached if parameter.grad is None else zero).append(name)
    evidence = {
        "norms": {stage: plain(norm) for stage, norm in norms.items()},
        "image": plain(image_norm),
        "dead": (unreached + zero)[:50],
        "frozen": len(frozen),
        "frozen_share": sum(frozen.values()) / max(1, sum(p.numel() for p in model.parameters())),
    }
    about = {"value": plain(image_norm), "reference": 0.0, "evidence": evidence}
    return _judge_gradients(norms, image_norm, unreached, zero, ours, about)


def _awake(model):
    """Training mode, in which nothing is left without a gradient by chance or by its starting value."""
    models.train_mode(model)
    for module in model.modules():
        if isinstance(module, StochasticDepth):  # a block left out by chance has no gradient, and no fault
            module.p = 0.0
        elif type(module).__name__.endswith("DropPath"):  # the same in timm and transformers
            module.drop_prob = 0.0
    for name, parameter in model.named_parameters():
        if name.endswith("weight") and parameter.requires_grad and not parameter.any():
            nn.init.normal_(parameter, std=1e-3)  # a layer that starts at zero hides all before it until the first step
    return model


def _norm(gradient):
    return 0.0 if gradient is None else float(gradient.norm())


def _judge_gradients(norms, image_norm, unreached, zero, ours, about):
    """The finding, from norms by stage and the names of parameters that are outside the loss, or get exactly zero."""
    probe, frozen = "model.gradient_flow", about["evidence"]["frozen"]
    if not all(math.isfinite(v) for v in (*norms.values(), image_norm)):
        bad = next((k for k, v in norms.items() if not math.isfinite(v)), "the image")
        remedy = "lower --lr, add --clip 1, or use --amp off"
        why = f"the gradient at {bad} is not finite"
        return Finding(probe, "fail", why, cause="gradient_not_finite", remedy=remedy, **about)
    if image_norm == 0:
        why = "no gradient arrives at the image: the loss does not see it"
        remedy = "look for a detach, an argmax or a constant inside the model, or targets that are all void"
        return Finding(probe, "fail", why, cause="no_gradient", remedy=remedy, **about)
    if unreached and ours:
        why = f"no gradient arrives at {len(unreached)} trainable parameters, the first {unreached[0]}"
        remedy = "look for a branch that is left out of the loss, or detached from it"
        return Finding(probe, "fail", why, cause="no_gradient", remedy=remedy, **about)
    if zero:
        why = f"the gradient at {len(zero)} trainable parameters is exactly zero, the first {zero[0]}"
        remedy = "look for a branch whose weight in the loss is 0, or units that no input wakes"
        return Finding(probe, "warn", why, cause="no_gradient", remedy=remedy, **about)
    if not norms:
        why = f"none of the {frozen} parameters is trainable"
        remedy = "fine for a finished model; to train it, set requires_grad (--freeze none)"
        return Finding(probe, "warn", why, cause="frozen_parameters", remedy=remedy, **about)
    share = about["evidence"]["frozen_share"]
    note = f"; {frozen} parameters are frozen ({share:.0%} of the weights)" if frozen else ""
    note += f"; {len(unreached)} have no part in the answer, the first {unreached[0]}" if unreached else ""
    return Finding(probe, "pass", f"the loss reaches the image and {len(norms)} stages{note}", **about)


# ---------------------------------------------------------------------------------------------------------------------
# What is left of the score


def far_apart(sample, batch_size):
    """A Sample in batches of its most common size: [(images (n, h, w, 3), targets (n, h, w), uint8)], n at least 2.

    The images of a batch lie far apart in the split, so that "another image" is no neighbour in a video.
    [] where that size leaves a single image.
    """
    sample = sample.of_one_size()
    parts = min(math.ceil(len(sample) / batch_size), len(sample) // 2)
    return [tuple(torch.stack(one[part::parts]) for one in (sample.images, sample.targets)) for part in range(parts)]


def own_images(images, targets, generator):
    """Nothing is replaced."""
    return images, targets


REPLACEMENTS = {
    "own": own_images,
    "other_images": other_images,
    "noise": replacement_inputs.noise,
    "flat_segments": flat_segments,
    "shuffled_segments": shuffled_segments,
    "noise_segments": noise_segments,
    "shuffled_patches": shuffled_patches,
    "mirrored": mirrored,
    "shifted": shifted,
}
SHOWN = ("own", "other_images", "noise", "flat_segments", "shuffled_patches")


def layout_reliance(subject, *, count=64):
    """From what does a trained model answer: from the image's content, or from the place alone? Trains nothing.

    An even sample of `count` images at the network's size is predicted under each of REPLACEMENTS. The score between 0
    and 1 is L / (L + K):

        a_c(x)  class c's IoU under condition x, less what as many pixels of it, strewn at random, would get
        K       mean of a_c(shuffled patches): kept when the content stays and its place is lost
        L       the larger of two, kept when only the place is left:
                mean of a_c(noise), and Σ_c (a_c(other images) - a_c(own) s_c) / Σ_c (1 - s_c),
                s_c the IoU between the sample's own targets and the other images' targets

    s_c takes off what a model gets on another image because scenes of one set are alike: one that answers from content
    alone gets about a_c(own) s_c there, one that answers from the place gets a_c(own). So the score is 0 for the
    first and 1 for the second; where L + K is next to nothing it is None. Evidence also has `kept`, L / mean a_c(own).

    The size of batches and the seed are the settings'.
    """
    predictor, split, layout_map = subject.predictor, subject.splits["val"], subject.layout_map
    batches = far_apart(take_sample(split, predictor.geometry, count), subject.settings.batch_size)
    if not batches:
        return [Finding("shortcut.layout_reliance", "skip", "a single image has no other to be mistaken for")]
    confusions, tiles = _ask_replaced(predictor, batches, subject.settings.seed, subject.tell)
    classes = predictor.num_classes
    scores = {name: metrics.segmentation_scores(confusion)["miou"] for name, confusion in confusions.items()}
    if not confusions["own"].any():
        return [Finding("shortcut.layout_reliance", "skip", "no labelled pixel in the sample")]
    guess = torch.from_numpy(metrics.resize_nearest(layout_map, tuple(batches[0][1].shape[1:])))
    floor = sum(metrics.confusion_matrix(guess.expand_as(t).contiguous(), t, classes) for _, t in batches)
    scenes = sum(_likeness(targets, classes) for _, targets in batches)
    evidence = {
        "images": sum(len(images) for images, _ in batches),
        "miou": scores,
        "layout_floor": metrics.segmentation_scores(floor)["miou"],
        **reliance_score(confusions, scenes),
    }
    exhibit = Exhibit("What the model answers when its image is replaced", tiles)
    return [judge_reliance(evidence, exhibit)]


def _ask_replaced(predictor, batches, seed, tell):
    """({replacement: confusion}, tiles of the first image under the replacements in SHOWN)."""
    confusions, done = {}, 0
    tiles = [Tile("labels", mask=batches[0][1][0].numpy())]
    for name, change in REPLACEMENTS.items():
        generator = torch.Generator().manual_seed(seed)
        confusions[name] = 0
        for number, batch in enumerate(batches):
            images, targets = change(*batch, generator)
            labels = predictor.logits(images).max(1).indices.to("cpu", torch.uint8)  # (n, h, w); argmax is slower
            confusions[name] = confusions[name] + metrics.confusion_matrix(labels, targets, predictor.num_classes)
            if name in SHOWN and number == 0:
                title = name.replace("_", " ")
                tiles += [Tile(title, images[0].numpy()), Tile(f"answer: {title}", mask=labels[0].numpy())]
            done += 1
            tell(done, len(REPLACEMENTS) * len(batches))
    return confusions, tiles


def _likeness(targets, num_classes):
    """The confusion between targets (n, h, w) and those of the images that take their images' place."""
    others = targets.roll(1, 0)
    known = (targets < num_classes) & (others < num_classes)
    return metrics.confusion_matrix(others[known], targets[known], num_classes)


def _class_iou(confusion):
    """(C,) float64, 0 for a class that is nowhere; what chance would get with the same row and column sums, likewise.

    Chance: predictions strewn at random meet the share p_c q_c of the pixels, p_c and q_c the shares of class c.
    """
    hit, wanted, predicted = metrics.image_counts(confusion).double()
    met = wanted * predicted / confusion.sum().clamp(min=1)
    return hit / (wanted + predicted - hit).clamp(min=1), met / (wanted + predicted - met).clamp(min=1)


def reliance_score(confusions, scenes):
    """`layout_reliance`'s score from the confusions (C, C) of own, other_images, noise, shuffled_patches and of scenes.

    Returns {"above_chance": {condition: mean of a_c}, "place": L, "content": K, "kept", "reliance"}; the last two None
    where they are not defined.
    """
    present = confusions["own"].sum(1) > 0
    above = {name: torch.sub(*_class_iou(confusion))[present] for name, confusion in confusions.items()}
    alike = _class_iou(scenes)[0][present]
    room = (1 - alike).mean().clamp(min=0.05)  # where all scenes are one, another image tells nothing
    beyond = (above["other_images"] - above["own"] * alike).mean() / room
    means = {name: float(values.mean()) for name, values in above.items()}
    place = max(0.0, float(beyond), means["noise"])
    content = max(0.0, means["shuffled_patches"])
    known = place + content > LIMITS["answers"].value
    return {
        "above_chance": means,
        "place": place,
        "content": content,
        "kept": place / means["own"] if means["own"] > LIMITS["answers"].value else None,
        "reliance": place / (place + content) if known else None,
    }


def judge_reliance(evidence, exhibit):
    """The finding from `layout_reliance`'s evidence."""
    miou, floor, reliance, kept = (evidence[key] for key in ("miou", "layout_floor", "reliance", "kept"))
    shown = (
        f"mIoU {miou['own']:.3f} on its own images, {miou['other_images']:.3f} on other images, {miou['noise']:.3f} on "
        f"noise, {miou['shuffled_patches']:.3f} on shuffled patches, layout floor {floor:.3f}; layout reliance "
    )
    shown += "not defined" if reliance is None else f"{reliance:.2f}"
    about = {"value": reliance, "reference": LIMITS["layout_reliance"].value}
    about |= {"evidence": evidence, "exhibits": [exhibit]}
    by_place = reliance is not None and reliance > LIMITS["layout_reliance"].value
    probe = "shortcut.layout_reliance"
    if kept is not None and kept > LIMITS["survives"].value:
        about |= {"cause": "layout_shortcut", "remedy": SHORTCUT_REMEDY}
        why = f"{shown}: {min(kept, 1):.0%} of what it knows beyond chance survives without the image"
        return Finding(probe, "fail" if by_place else "warn", why, **about)
    if miou["own"] <= floor:
        about |= {"cause": "below_layout_floor", "value": miou["own"], "reference": floor}
        if reliance is not None and not by_place:
            why = f"{shown}: not yet better than never opening the image, though it answers from the content"
            return Finding(probe, "warn", why, remedy="train longer, or with a larger --lr", **about)
        remedy = "look at the findings above; if none, train longer or with a larger --lr"
        return Finding(probe, "fail", f"{shown}: no better than never opening the image", remedy=remedy, **about)
    return Finding(probe, "pass", shown, **about)


# ---------------------------------------------------------------------------------------------------------------------
# Features


def feature_correlation(subject, *, count=16, batch_size=8, seed=0):
    """Do the features of a real image differ from those of noise, and from those of another image? Trains nothing.

    By stage (`stage_maps`), over `count` images of the sample: the cosine between flattened maps (D, rows, columns)
    of real and noise, and of real and another real image; raw, and with each channel's mean over the sample's real
    images taken off. Raw cosines of rectified features are high for any two inputs; the centred ones are judged, at the
    last stage, which the classifier reads.
    """
    predictor, sample = subject.predictor, subject.sample
    sums, generator = {}, torch.Generator().manual_seed(seed)
    batches = far_apart(sample.thin(count), batch_size)
    if not batches:
        return [Finding("shortcut.features", "skip", "a single image has no other to be compared with")]
    for done, (images, targets) in enumerate(batches, 1):
        real = stage_maps(predictor, images)
        fake = stage_maps(predictor, replacement_inputs.noise(images, targets, generator)[0])
        for stage in real:
            sums.setdefault(stage, []).append(_products(real[stage], fake[stage]))
        subject.tell(done, len(batches))
    if not sums:
        return [Finding("shortcut.features", "skip", "no part of this model returns maps (N, D, rows, columns)")]
    return [_judge_features({stage: _cosines(parts) for stage, parts in sums.items()})]


def stage_maps(predictor, images):
    """images (N, h, w, 3) uint8 -> {stage: (N, D, rows, columns) float32}, the last one nearest to the answer.

    Of our own models the backbone's maps, then the pyramid's from coarse to fine; of others what the network's
    outermost parts return, in the order in which they run: maps, or the last map in a tuple, list or dict.
    """
    if hasattr(predictor.model, "backbone_features"):
        maps = predictor.features(images)
        pyramid = [stage for stage in maps if stage.startswith("pyramid")]
        return {stage: maps[stage] for stage in [*(s for s in maps if s not in pyramid), *reversed(pyramid)]}
    parts, maps = predictor.model, {}
    while len(children := list(parts.children())) == 1:  # a wrapper
        parts = children[0]

    def keep(name):
        def note(_module, _inputs, output):
            if (found := _last_map(output)) is not None:
                maps.pop(name, None)
                maps[name] = found.float()

        return note

    hooks = [part.register_forward_hook(keep(name)) for name, part in parts.named_children()]
    try:
        predictor.logits(images)
    finally:
        for hook in hooks:
            hook.remove()
    return maps


def _last_map(output):
    """The last floating-point tensor of four dimensions in what a module returned, None without one."""
    if torch.is_tensor(output):
        return output if output.ndim == 4 and output.is_floating_point() else None
    if isinstance(output, dict):
        output = tuple(output.values())
    if not isinstance(output, (tuple, list)):
        return None
    return next((found for part in reversed(output) if (found := _last_map(part)) is not None), None)


def _products(real, fake):
    """What the cosines need of a batch's maps (N, D, rows, columns), pair by pair: real with other, real with noise.

    "sums": the channels' sums (N, D) of both; "dots": the inner products a·b, a·a, b·b (N,); float64. "places": how
    many a channel has.
    """
    real, fake = real.double(), fake.double()  # centring takes almost equal numbers off each other

    def pair(other):
        dots = [(a * b).flatten(1).sum(1) for a, b in ((real, other), (real, real), (other, other))]
        return {"sums": [maps.sum((2, 3)) for maps in (real, other)], "dots": dots}

    return {"other": pair(real.roll(1, 0)), "noise": pair(fake), "places": real[0, 0].numel()}


def _cosines(parts):
    """{"raw_other", "raw_noise", "other", "noise"}: mean cosines of a stage from its batches' `_products`.

    With m the channels' means and A, B the channels' sums, (a - m) · (b - m) = a · b - m · (A + B) + places m · m.
    """
    places = parts[0]["places"]
    means = torch.cat([part["other"]["sums"][0] for part in parts]).mean(0) / places  # (D,)
    found = {}
    for kind in ("other", "noise"):
        own, other = (torch.cat([part[kind]["sums"][side] for part in parts]) for side in (0, 1))  # (N, D)
        dots = [torch.cat([part[kind]["dots"][n] for part in parts]) for n in range(3)]  # a·b, a·a, b·b
        pairs = ((own, other), (own, own), (other, other))
        centred = [d - (a + b) @ means + places * means @ means for d, (a, b) in zip(dots, pairs, strict=True)]
        found[f"raw_{kind}"] = float(_cosine(*dots, dots[1]).mean())
        found[kind] = float(_cosine(*centred, dots[1]).mean())
    return found


def _cosine(product, first, second, scale):
    """Cosine from inner products (N,); 1 where both maps are one constant, up to the rounding of values of `scale`."""
    tiny = 1e-9 * scale + 1e-30
    same = (first <= tiny) & (second <= tiny)
    return (product / (first.clamp(min=0) * second.clamp(min=0)).sqrt().clamp(min=1e-30)).where(~same, 1.0)


def _judge_features(stages):
    """The finding from {stage: cosines}, the last stage being the one that is judged."""
    last = list(stages)[-1]
    other, noise = stages[last]["other"], stages[last]["noise"]
    about = {"value": noise, "reference": LIMITS["noise_features"].value}
    about["evidence"] = {"stages": stages, "judged": last}
    shown = (
        f"at {last}, features of an image and of noise correlate {noise:.2f}, of two images {other:.2f} (centred "
        f"cosine; raw {stages[last]['raw_noise']:.2f} and {stages[last]['raw_other']:.2f})"
    )
    if min(other, noise) > LIMITS["same_features"].value:
        why = f"{shown}: the features are the same for any input"
        return Finding("shortcut.features", "fail", why, cause="ignores_the_image", remedy=NOT_SEEN, **about)
    if noise > LIMITS["noise_features"].value:
        why = f"{shown}: noise looks like a real image to it, so that the place is what is left to tell classes apart"
        return Finding("shortcut.features", "warn", why, cause="layout_shortcut", remedy=SHORTCUT_REMEDY, **about)
    return Finding("shortcut.features", "pass", shown, **about)
