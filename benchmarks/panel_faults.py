"""The faults that `panel.py` plants: in a data set's files, in a checkpoint, in the code that trains.

Each is as small as the real thing: files are changed, weights are moved, a line of training goes missing. The cause
that a diagnosis should name stands beside it.
"""

import io
import os
from pathlib import Path
from typing import NamedTuple
from unittest import mock

import numpy as np
import torch
from PIL import Image

import data
import models
import train
from datasets.pairs import find_pairs
from datasets.spec import VOID

# ---------------------------------------------------------------------------------------------------------------------
# Files


def copy_set(spec, root, target, counts):
    """A smaller copy of a data set, file by file a link: {split: pairs of (image, mask) paths} there.

    counts: {split: how many pairs}, evenly spaced; a file to be changed must be unlinked first (`write`).
    """
    copied = {}
    for split, count in counts.items():
        pairs = find_pairs(spec, root, split)
        chosen = [pairs[i * len(pairs) // count] for i in range(min(count, len(pairs)))]
        copied[split] = [tuple(_link(path, root, target) for path in pair) for pair in chosen]
    return copied


def _link(path, root, target):
    link = Path(target) / path.relative_to(root)
    link.parent.mkdir(parents=True, exist_ok=True)
    os.symlink(path.resolve(), link)
    return link


def write(path, array, **options):
    """Put an array in the place of a link."""
    path.unlink()
    Image.fromarray(array).save(path, **options)


def read(path):
    """A file's own pixels: (H, W) for masks, (H, W, 3) for images."""
    with Image.open(path) as image:
        return np.array(image.convert("RGB") if image.mode == "RGBA" else image)


def some(pairs, share):
    """Every n-th pair, so many that it is this share of them."""
    count = max(2, round(share * len(pairs)))
    return [pairs[i * len(pairs) // count] for i in range(count)]


def on_masks(change):
    """A fault of single masks: change(mask, spec) -> mask."""

    def plant(copied, spec, share):
        for pairs in copied.values():
            for _, mask in some(pairs, share):
                write(mask, change(read(mask), spec))

    return plant


def on_images(change):
    """A fault of single images: change(image, random state) -> image."""

    def plant(copied, _spec, share):
        random = np.random.RandomState(0)
        for pairs in copied.values():
            for image, _ in some(pairs, share):
                changed = change(read(image), random)
                write(image, changed, **({"quality": 92} if image.suffix == ".jpg" else {}))

    return plant


def shuffle_masks(copied, _spec, share):
    """Each chosen image gets the mask of the chosen one a third of the list on."""
    for pairs in copied.values():
        chosen = some(pairs, share)
        masks = [read(mask) for _, mask in chosen]
        step = max(1, len(chosen) // 3)
        for i, (_, mask) in enumerate(chosen):
            write(mask, masks[(i + step) % len(masks)])


def shift_mask(mask, spec, pixels=8):
    """Eight pixels to the right; void where nothing was."""
    void = next(value for value, train_id in spec.values.items() if train_id == VOID)
    shifted = np.full_like(mask, void)
    shifted[:, pixels:] = mask[:, :-pixels]
    return shifted


def grey_picture(mask, _spec):
    """Class numbers stretched over 0 to 255 and resized once with blending: a grey picture of about 256 values."""
    grey = Image.fromarray((mask.astype(np.float32) * 255 / max(1, int(mask.max()))).astype(np.uint8))
    small = grey.resize((grey.width // 2, grey.height // 2), Image.Resampling.BILINEAR)
    return np.asarray(small.resize(grey.size, Image.Resampling.BILINEAR))


def clamp(mask, spec):
    """The grey picture clamped into the classes, as `masks.clamp(0, C - 1)` does it."""
    values = [value for value, train_id in spec.values.items() if train_id < spec.num_classes]
    return grey_picture(mask, spec).clip(min(values), max(values)).astype(np.uint8)


def blend(mask, _spec):
    """Resized to two thirds and back with blending: third classes along the borders."""
    image = Image.fromarray(mask)
    small = image.resize((2 * image.width // 3, 2 * image.height // 3), Image.Resampling.BILINEAR)
    return np.asarray(small.resize(image.size, Image.Resampling.BILINEAR))


def compress_masks(copied, _spec, share):
    """Masks saved as JPEG files."""
    for pairs in copied.values():
        for _, mask in some(pairs, share):
            values = read(mask)
            mask.unlink()
            Image.fromarray(values).save(mask.with_suffix(".jpg"), quality=85)


def compress_unseen(mask, spec):
    """Compressed as JPEG on the way and saved as PNG, its values moved to the nearest ones that the set knows."""
    buffer = io.BytesIO()
    Image.fromarray(mask).save(buffer, "JPEG", quality=75)
    known = np.array([value for value, train_id in sorted(spec.values.items()) if train_id != spec.num_classes])
    values = np.asarray(Image.open(buffer)).astype(np.int64)
    return known[np.abs(values[..., None] - known).argmin(-1)].astype(np.uint8)


def repeat_in_test(copied, _spec, share):
    """Training pairs, encoded anew, in the place of test pairs."""
    for (image, mask), (own_image, own_mask) in zip(some(copied["train"], share), some(copied["test"], share)):  # noqa: B905
        write(own_image, read(image), **({"quality": 90} if own_image.suffix == ".jpg" else {}))
        write(own_mask, read(mask))


class FileFault(NamedTuple):
    """plant(copied pairs, spec, share) changes files; cause: what it is to be called."""

    cause: str
    plant: object


FILE_FAULTS = {
    "masks shuffled": FileFault("shuffled_masks", shuffle_masks),
    "flip missed the mask": FileFault("mirrored_masks", on_masks(lambda mask, _: mask[:, ::-1].copy())),
    "masks shifted 8 px": FileFault("shifted_masks", on_masks(shift_mask)),
    "labels off by one": FileFault("one_based_labels", on_masks(lambda mask, _: mask + 1)),
    "masks of 256 grey values": FileFault("greyscale_masks", on_masks(grey_picture)),
    "256 values clamped": FileFault("clamped_masks", on_masks(clamp)),
    "JPEG masks": FileFault("jpeg_masks", compress_masks),
    "masks once JPEG, now PNG": FileFault("blended_masks", on_masks(compress_unseen)),
    "masks resized with blending": FileFault("blended_masks", on_masks(blend)),
    "noise images": FileFault(
        "noise_images", on_images(lambda image, random: random.randint(0, 256, image.shape).astype(np.uint8))
    ),
    "black images": FileFault("constant_images", on_images(lambda image, _: np.zeros_like(image))),
    "train images in test": FileFault("repeated_across_splits", repeat_in_test),
}

# ---------------------------------------------------------------------------------------------------------------------
# Checkpoints


def normalise_twice(content):
    """The normalisation applied to what is already normalised: x -> ((x - m) / s - m) / s."""
    mean, std = content["data"]["mean"], content["data"]["std"]
    content["data"]["mean"] = [m + m * s for m, s in zip(mean, std, strict=True)]
    content["data"]["std"] = [s * s for s in std]


def swap_channels(content):
    """Weights that expect blue first."""
    name = next(key for key, value in content["state"].items() if value.ndim == 4 and value.shape[1] == 3)
    content["state"][name] = content["state"][name][:, [2, 1, 0]].clone()


def reorder_classes(order):
    """order(C) -> the new place's old class: what the classifier calls class c was order[c]."""

    def plant(content):
        classes = len(content["data"]["classes"])
        model = models.build_model(content["model"]["name"], classes, content["model"]["options"])
        for layer in model.class_layers:
            for kind in ("weight", "bias"):
                key = f"{layer}.{kind}"
                content["state"][key] = content["state"][key][order(classes)].clone()

    return plant


def forget_statistics(content):
    """Batch norm as it was before any image: mean 0, variance 1."""
    for key, value in content["state"].items():
        if key.endswith("running_mean"):
            value.zero_()
        if key.endswith("running_var"):
            value.fill_(1.0)


def collapse(content):
    """A classifier that answers the most frequent class whatever it is shown."""
    frequent = int(np.bincount(content["data"]["layout_map"].numpy().ravel()).argmax())
    classes = len(content["data"]["classes"])
    model = models.build_model(content["model"]["name"], classes, content["model"]["options"])
    layer = model.class_layers[0]
    content["state"][f"{layer}.weight"].mul_(0.01)
    content["state"][f"{layer}.bias"].fill_(-1.0)[frequent] = 3.0


CHECKPOINT_FAULTS = {
    "normalised twice": ("normalised_twice", normalise_twice),
    "BGR instead of RGB": ("wrong_channel_order", swap_channels),
    "class ids permuted": (
        "class_ids_permuted", reorder_classes(lambda n: torch.randperm(n, generator=torch.Generator().manual_seed(3)))
    ),
    "class ids off by one": ("class_ids_shifted", reorder_classes(lambda n: torch.arange(n).roll(1))),
    "batch norm statistics stale": ("stale_batch_norm", forget_statistics),
    "majority collapse": ("collapse", collapse),
}  # fmt: skip

# ---------------------------------------------------------------------------------------------------------------------
# Models that come as somebody else's file

WRAPPER = """
import sys

import torch

sys.path.insert(0, {root!r})
from engine import checkpoint


class Wrapped(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.net, _ = checkpoint.load_model({path!r})

    def forward(self, images):
        {line}
        return logits


def build():
    return Wrapped()
"""
FOREIGN_FAULTS = {
    "softmax inside": ("softmax_inside", 'logits = self.net(images)["out"].softmax(dim=1)'),
    "normalises by itself as well": (
        "normalised_twice",
        "mean, std = (images.new_tensor(v).view(3, 1, 1) for v in ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]))\n"
        '        logits = self.net((images - mean) / std)["out"]',
    ),
    "output shifted": ("shifted_predictions", 'logits = self.net(images)["out"].roll(images.shape[-1] // 40, dims=3)'),
}
HEALTHY_FOREIGN = 'logits = self.net(images)["out"]'

# ---------------------------------------------------------------------------------------------------------------------
# Training


def _without_aux(build):
    def build_criterion(args, model, audit, spec):
        criterion = build(args, model, audit, spec)
        criterion.aux_weights = {}
        return criterion

    return build_criterion


def _frozen(start):
    def start_model(*words, **options):
        model, lines = start(*words, **options)
        for parameter in model.backbone.parameters():
            parameter.requires_grad_(False)
        return model, lines

    return start_model


class HalfFlip(data.Augment):
    """Mirrors half of the images, and no target."""

    def __call__(self, images, targets, generator):
        images, targets = super().__call__(images, targets, generator)
        mirror = torch.rand(len(images), generator=generator, device=images.device) < 0.5
        return torch.where(mirror[:, None, None, None], images.flip(3), images), targets


# name: (cause, flags of train.py on top of the base's, what replaces what in the code)
TRAINING_FAULTS = {
    "learning rate 0": ("learning_rate_zero", "--lr 0 --backbone-lr 0 --iters 30", None),
    "backbone frozen by mistake": (
        "frozen_backbone",
        "--iters 80",
        lambda: mock.patch.object(models, "start_model", _frozen(models.start_model)),
    ),
    "auxiliary head left out of the loss": (
        "untrained_layers",
        "--model deeplabv3_mobilenet_v3_large --weights none --iters 60",
        lambda: mock.patch.object(train, "build_criterion", _without_aux(train.build_criterion)),
    ),
    "images flipped without masks": (
        "flip_missed_masks",
        "--augment colour=0.2 --iters 200 --weights BASE",
        lambda: mock.patch.object(data, "Augment", HalfFlip),
    ),
}
