"""What enters the network: is it what these weights were trained on?

The same weights are asked with other channel orders and value ranges; if another one clearly wins, it is named.
"""

import itertools

import torch

import data
from networks import blocks
from probes.answers import floor_of, label_maps, miou_of
from probes.finding import Finding
from probes.limits import LIMITS, stands_out

# Reversed are the values that were made of each channel, or the channels before: with RGB's means on BGR's channels.
CARELESS = "BGR with the means of RGB"
ORDERS = ("RGB", "BGR", CARELESS)
MEAN, STD = torch.tensor(blocks.MEAN), torch.tensor(blocks.STD)
ONCE, TWICE = "ImageNet's normalisation", "ImageNet's normalisation twice"
RANGES = {  # what a value x in [0, 1] becomes: scale · x + offset, each channel's own
    "[0, 1]": (torch.ones(3), torch.zeros(3)),
    "[0, 255]": (torch.full((3,), 255.0), torch.zeros(3)),
    "[-1, 1]": (torch.full((3,), 2.0), -torch.ones(3)),
    ONCE: (1 / STD, -MEAN / STD),
    TWICE: (1 / STD**2, -MEAN / STD**2 - MEAN / STD),
}
DECLARED, REVERSED = "as declared", "channels reversed"


def prepare_as(order, value_range):
    """A function: images (N, 3, h, w) float32 in [0, 1], RGB -> what would enter the network."""
    scale, offset = (part.view(1, 3, 1, 1) for part in RANGES[value_range])

    def prepare(images):
        images = images.flip(1) if order == CARELESS else images
        images = images * scale.to(images.device) + offset.to(images.device)
        return images.flip(1) if order == "BGR" else images

    return prepare


def recognise(normalise, device):
    """(order, value range) of a preparation, by what it makes of black and of pure red, green and blue; else None.

    normalise: images (N, 3, h, w) float32 in [0, 1] -> what enters the network.
    """
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(4, 3, 8, 8, generator=generator).to(device)
    images[:, :, :4] = torch.cat([torch.zeros(1, 3), torch.eye(3)])[:, :, None, None]
    with torch.inference_mode():
        found = normalise(images)
        for order, value_range in itertools.product(ORDERS, RANGES):
            wanted = prepare_as(order, value_range)(images)
            if found.shape == wanted.shape and torch.allclose(found, wanted, rtol=1e-3, atol=2e-3):
                return order, value_range
    return None


def _variants(normalise, now):
    """{(order, value range): preparation} to compare; `now`: what `recognise` made of the predictor's own."""
    pairs = [pair for pair in itertools.product(ORDERS, RANGES) if pair[0] != CARELESS or pair[1] in (ONCE, TWICE)]
    variants = {pair: prepare_as(*pair) for pair in pairs}  # elsewhere all channels have the same mean
    if now not in variants:
        variants[now] = normalise
        variants[REVERSED, now[1]] = lambda images: normalise(images.flip(1))
    return variants


def preprocessing(subject):
    """Do the same weights score clearly better on images prepared in another way?

    All preparations are tried on a few images, the best of them and the predictor's own compared on the whole sample.
    """
    predictor, sample, layout_map = subject.predictor, subject.sample, subject.layout_map
    name, classes, few = "model.preprocessing", predictor.num_classes, sample.thin(8)
    now = recognise(predictor.normalise, predictor.device) or (DECLARED, DECLARED)
    variants = _variants(predictor.normalise, now)
    tried = {
        pair: miou_of(label_maps(predictor, few, prepare=prepare), few, classes) for pair, prepare in variants.items()
    }
    best = _best(tried, now)
    labels = {pair: label_maps(predictor, sample, prepare=variants[pair]) for pair in {now, best}}
    mious = {pair: miou_of(masks, sample, classes) for pair, masks in labels.items()}
    helped = _share_helped(labels[now], labels[best], sample.targets, classes)
    floor = floor_of(sample, classes, layout_map)
    evidence = {"now": _words(now), "best": _words(best), "images_helped": helped, "layout_floor": floor}
    evidence["miou_of_8_images"] = {_words(pair): miou for pair, miou in tried.items()}
    about = {"value": mious[now], "reference": mious[best], "evidence": evidence}
    enters = f"what enters the network is {_words(now)}, with mIoU {mious[now]:.3f}"
    clear = mious[best] - mious[now] > LIMITS["better_input"].value and helped >= LIMITS["inputs_helped"].value
    if not (clear and stands_out(mious[best], floor)):
        return [
            Finding(name, "pass", f"{enters}; none of {len(tried) - 1} other preparations is clearly better", **about)
        ]
    cause, remedy = _explain(now, best)
    why = f"{enters}; {_words(best)} gives the same weights {mious[best]:.3f} (layout floor {floor:.3f})"
    return [Finding(name, "fail", why, cause=cause, remedy=remedy, **about)]


def _words(pair):
    """(order, value range) as a person says it."""
    return ", ".join(dict.fromkeys(pair))


def _share_helped(before, after, targets, num_classes):
    """Share of the images of which more pixels are right in the masks `after` than in those `before`."""
    gains = [
        int(((new == target) & (target < num_classes)).sum() - ((old == target) & (target < num_classes)).sum())
        for old, new, target in zip(before, after, targets, strict=True)
    ]
    return sum(gain > 0 for gain in gains) / len(gains)


def _best(mious, now):
    """The winner; of those that are as good as it, one that a known fault leads to from `now`."""
    top = max(mious.values())
    if mious[now] == top:
        return now
    close = [pair for pair, miou in mious.items() if pair != now and miou > top - LIMITS["as_good"].value]
    return max(close, key=lambda pair: (_explain(now, pair)[0] != "wrong_value_range", mious[pair]))


def _explain(now, best):
    """(cause, remedy) of another preparation winning. now, best: (order, value range)."""
    if best[1] == now[1]:
        return "wrong_channel_order", f"feed the channels as {best[0]}: OpenCV reads BGR, PIL reads RGB"
    if now[1] == TWICE and best[1] == ONCE:
        return "normalised_twice", "normalise in one place only: the data pipeline and the caller both do it"
    if now[1] == ONCE and best[1] == "[0, 1]":
        return "normalised_twice", "the model normalises by itself: feed it values in [0, 1] (mean 0, std 1)"
    return "wrong_value_range", f"prepare the images as in training: {_words(best)}"


def input_contrast(subject):
    """Do the mean and spread of the tensor that enters the network look like any usual preparation?"""
    predictor, sample = subject.predictor, subject.sample
    name, sums, squares, count = "model.input_contrast", 0.0, 0.0, 0
    for image in sample.images:
        with torch.inference_mode():
            entered = predictor.normalise(data.to_float(image[None].to(predictor.device))).double()
        sums, squares = sums + entered.sum((0, 2, 3)), squares + entered.square().sum((0, 2, 3))
        count += entered[:, 0].numel()
    means = sums / count
    mean, deviation = float(means.mean()), float((squares / count - means.square()).clamp(min=0).mean().sqrt())
    if not bool(torch.isfinite(means).all()):
        remedy = "look for a division by a standard deviation of 0 in the preparation"
        why = "what enters the network is not finite"
        return [Finding(name, "fail", why, cause="wrong_value_range", remedy=remedy)]
    raw = float(torch.cat([image.reshape(-1, 3) for image in sample.images]).float().std(0).mean() / 255)
    evidence = {"mean": mean, "deviation": deviation, "channel_means": means.tolist(), "deviation_of_images": raw}
    about = {"value": deviation, "reference": 1.0, "evidence": evidence}
    shown = f"what enters the network has mean {mean:.3g} and standard deviation {deviation:.3g}"
    if deviation < LIMITS["no_contrast"].value * raw:
        remedy = "look for a second division by 255, or a standard deviation meant for values up to 255"
        why = f"{shown}, the images in [0, 1] {raw:.3g}: next to nothing of them is left"
        return [Finding(name, "fail", why, cause="wrong_value_range", remedy=remedy, **about)]
    known = recognise(predictor.normalise, predictor.device)
    if known and known[1] == TWICE:
        remedy = "normalise in one place only; weights from ImageNet expect it once"
        return [Finding(name, "warn", f"{shown}: {TWICE}", cause="normalised_twice", remedy=remedy, **about)]
    if known is None and not _usual(mean, deviation):
        remedy = "check the mean and standard deviation of the preparation against the range of its values"
        why = f"{shown}: neither standardised nor in [0, 1], [-1, 1] or [0, 255]"
        return [Finding(name, "warn", why, cause="wrong_value_range", remedy=remedy, **about)]
    return [Finding(name, "pass", shown + (f": {_words(known)}" if known else ""), **about)]


def _usual(mean, deviation):
    """Whether a preparation keeps to about 0 and 1, or to 0 … 255 with or without its mean."""
    return (abs(mean) < 3 and deviation < 3) or (abs(mean) < 256 and 10 < deviation < 128)
