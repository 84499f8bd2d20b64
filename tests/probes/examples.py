"""Small data sets and models that several tests of probes share."""

import io
import json
from dataclasses import replace

import numpy as np
import torch
from PIL import Image
from torch import nn

import data
import metrics
from datasets.audit import audit_split
from datasets.catalogue import build_spec
from datasets.spec import VOID, Spec
from engine.predictor import Predictor
from networks.blocks import Normalise
from probes.answers import Sample
from probes.noise_test import TrainingSettings
from probes.subject import Subject
from tests.folder_set import write_folder_set

CPU = torch.device("cpu")
CLASSES, SIZE = 4, (48, 64)
COLOURS = torch.tensor([[0.62, 0.40, 0.42], [0.40, 0.58, 0.38], [0.38, 0.42, 0.62], [0.60, 0.58, 0.40]])
BANDS = np.array([[200, 40, 40], [40, 200, 40], [40, 40, 200]])  # the colours of the sets that conftest writes


def open_splits(root, names=("train", "val")):
    """{name: Split} of a folder set."""
    spec = build_spec("folder", root)
    return {name: data.open_split(spec, root, name) for name in names}


def audits_of(splits):
    """{name: Audit} on the layout grid."""
    return {name: audit_split(split, metrics.GRID) for name, split in splits.items()}


def banded_set(root, counts=(("train", 24), ("val", 8)), fitting=True):
    """Three bands of rows whose borders move, so that there is a layout to be learnt; fitting: the images show them."""
    write_folder_set(root, counts=counts)
    rng = np.random.RandomState(1)
    for path in sorted(root.glob("masks/*/*.png")):
        first = 4 + rng.randint(0, 14)
        second = first + 6 + rng.randint(0, 14)
        rows = np.arange(40)[:, None].repeat(56, 1)
        mask = (rows > first).astype(np.uint8) + (rows > second)
        Image.fromarray(mask.astype(np.uint8)).save(path)
        if fitting:
            image = (BANDS[mask] + rng.randint(-30, 30, (40, 56, 3))).clip(0, 255).astype(np.uint8)
            Image.fromarray(image).save(root / "images" / path.parent.name / path.name)
    return root


def small_settings(**changes):
    """A training of seconds."""
    base = {"model": "fpn_mobilenet_v2:channels=32", "image_size": (32, 48), "lr": 3e-3, "iters": 60, "workers": 0}
    return TrainingSettings(**{**base, **changes})


# ---------------------------------------------------------------------------------------------------------------------
# Scenes on disk, to be spoilt


SCENE_CLASSES = 8
SCENE_COLOURS = np.random.RandomState(3).randint(30, 226, (SCENE_CLASSES, 3))
IDENTITY = {**{i: i for i in range(SCENE_CLASSES)}, SCENE_CLASSES: VOID}
SCENES = Spec("folder", tuple("abcdefgh"), (), IDENTITY, {}, {})


def draw_scene(rng, size=(96, 128)):
    """A mask of large rectangles and a picture of it: each class its colour, with a grain that is smooth."""
    target = np.zeros(size, np.uint8)
    for _ in range(14):
        top, left = rng.randint(0, size[0] - 20), rng.randint(0, size[1] - 20)
        target[top : top + rng.randint(12, 50), left : left + rng.randint(12, 60)] = rng.randint(0, SCENE_CLASSES)
    grain = rng.randint(0, 60, (size[0] // 4, size[1] // 4, 3)).astype(np.uint8)
    grain = np.asarray(Image.fromarray(grain).resize(size[::-1], Image.Resampling.BICUBIC))
    return (SCENE_COLOURS[target] + grain - 30).clip(0, 255).astype(np.uint8), target


def with_spec(splits, **changes):
    return {name: replace(split, spec=replace(split.spec, **changes)) for name, split in splits.items()}


def change(split, masks=None, images=None, every=1, ending=".png"):
    """Rewrite every n-th pair of a split: masks(mask, image) and images(image) take and give arrays."""
    pairs = list(split.pairs)
    for i in range(0, len(pairs), every):
        image_path, mask_path = pairs[i]
        picture = np.array(Image.open(image_path).convert("RGB"))
        if masks:
            mask = masks(np.array(Image.open(mask_path)), picture)
            mask_path.unlink()
            pairs[i] = image_path, mask_path.with_suffix(ending)
            Image.fromarray(mask).save(pairs[i][1])
        if images:
            Image.fromarray(images(picture)).save(image_path)
    return replace(split, pairs=pairs)


def as_jpeg(array, quality=75):
    memory = io.BytesIO()
    Image.fromarray(array).save(memory, "JPEG", quality=quality)
    return np.array(Image.open(memory))


def blended(array, factor=0.5):
    image = Image.fromarray(array)
    small = image.resize((int(image.width * factor), int(image.height * factor)), Image.Resampling.BILINEAR)
    return np.array(small.resize(image.size, Image.Resampling.BILINEAR))


def grey(picture):
    return np.array(Image.fromarray(picture).convert("L"))


def check(probe, subject, verdict, cause):
    """The one finding of a probe about a subject, or about splits: it must be this, and fit for JSON."""
    [finding] = probe(subject if isinstance(subject, Subject) else Subject(subject))
    assert (finding.verdict, finding.cause) == (verdict, cause), finding.why
    assert json.dumps(finding.json(), allow_nan=False)
    assert verdict == "pass" or finding.remedy
    return finding


# ---------------------------------------------------------------------------------------------------------------------
# A model that is right from the start


class ByColour(nn.Module):
    """Logits: closeness of each pixel to each class's colour, as ImageNet's normalisation shows it."""

    def __init__(self):
        super().__init__()
        shown = Normalise()(COLOURS[:, :, None, None])[..., 0, 0]  # (C, 3)
        self.layer = nn.Conv2d(3, CLASSES, 1)
        with torch.no_grad():
            self.layer.weight.copy_(2 * shown[:, :, None, None])
            self.layer.bias.copy_(-shown.square().sum(1))

    def forward(self, images):
        return {"out": self.layer(images)}


class Then(nn.Module):
    """A network and what is done to its logits."""

    def __init__(self, net, change):
        super().__init__()
        self.net, self.change = net, change

    def forward(self, images):
        return {"out": self.change(self.net(images)["out"])}


class Before(nn.Module):
    """What is done to images before a network, or before a preparation."""

    def __init__(self, change, net):
        super().__init__()
        self.net, self.change = net, change

    def forward(self, images):
        return self.net(self.change(images))


class Scale(nn.Module):
    """Images multiplied, then moved."""

    def __init__(self, factor, offset=0.0):
        super().__init__()
        self.factor, self.offset = factor, offset

    def forward(self, images):
        return images * self.factor + self.offset


def constant(logits):
    """Always the first class."""
    return logits * 0 + torch.tensor([1.0, 0, 0, 0])[:, None, None]


def layout(logits):
    """The same mask for every image, half of it of each of two classes."""
    logits = constant(logits)
    logits[:, 1, :, : SIZE[1] // 2] = 2
    return logits


BROKEN = [constant, layout, lambda logits: torch.rand(logits.shape, generator=torch.manual_seed(0))]


def draw_sample(count=12, seed=0, size=SIZE):
    """Blobs of four classes, each at other places in each image, in their colours with some noise."""
    generator = torch.Generator().manual_seed(seed)
    images, targets = [], []
    for _ in range(count):
        fields = torch.rand(CLASSES, 4, 5, generator=generator)[None]
        target = nn.functional.interpolate(fields, size, mode="bilinear")[0].argmax(0).to(torch.uint8)
        noise = 0.02 * torch.randn(*size, 3, generator=generator)
        images.append(((COLOURS[target.long()] + noise).clamp(0, 1) * 255).to(torch.uint8))
        targets.append(target)
    names = [f"{i}.png" for i in range(count)]
    return Sample(images, targets, names, [(2 * size[0], 2 * size[1])] * count, tuple("abcd"))


def predictor_of(net=None, normalise=None):
    """A network as it is asked, ByColour by default."""
    return Predictor(net or ByColour(), CLASSES, data.Geometry(list(SIZE)), CPU, normalise or Normalise())


def subject_of(predictor, sample, layout_map=None, **about):
    """A subject whose sample is already drawn; about: of `Subject`."""
    subject = Subject({}, predictor, **about)
    subject.sample, subject.layout_map = sample, layout_map
    return subject


def ask_probe(probe, predictor, sample, **options):
    """The one finding of a probe about a model and a sample."""
    [finding] = probe(subject_of(predictor, sample), **options)
    return finding
