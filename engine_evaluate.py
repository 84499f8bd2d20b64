"""From a trained network to numbers: one way to predict, used by validation, evaluate, diagnose and predict alike.

The network runs in float32 at its own size; its logits are brought to the target's size row by row, in strips, so that
memory stays bounded; counts are integers added up over the whole set and divided once.
"""

from dataclasses import dataclass, field

import torch

import anomaly
import checkpoint
import data
import metrics
from flags import UserError

STRIP_BYTES = 16 << 20  # of full-size logits held at once


@dataclass
class Predictor:
    """A network with all that is needed to ask it about a picture. num_classes: without void and anomaly."""

    model: torch.nn.Module
    num_classes: int
    geometry: data.Geometry
    device: torch.device
    normalise: torch.nn.Module = field(default_factory=data.Normalise)

    def __post_init__(self):
        self.model.to(self.device, memory_format=torch.channels_last)
        self.normalise.to(self.device)

    @torch.inference_mode()
    def logits(self, images):
        """images (N, h, w, 3) uint8 at the network's size -> (N, C, h, w) float32, in evaluation mode, no autocast."""
        self.model.eval()
        images = self.normalise(data.to_float(images.to(self.device, non_blocking=True)))
        return self.model(images)["out"].float()


def strips(logits, size):
    """Bilinear resize of one image's logits (C, h, w) float32 to `size`, a few rows at a time.

    Yields (slice of rows, (C, rows, W) float32). Written out in single operations, each rounded once, so that the
    strips' height does not change a single bit. Pixel centres as in F.interpolate(align_corners=False).
    """
    height, width = size
    step = max(1, STRIP_BYTES // (4 * logits.shape[0] * width))
    above, below, down = _neighbours(logits.shape[1], height, logits.device)
    left, right, across = _neighbours(logits.shape[2], width, logits.device)
    for top in range(0, height, step):
        rows = slice(top, min(top + step, height))
        first, last = int(above[rows.start]), int(below[rows.stop - 1])
        source = logits[:, first : last + 1]
        wide = _between(source[..., left], source[..., right], across)  # (C, source rows, W)
        yield rows, _between(wide[:, above[rows] - first], wide[:, below[rows] - first], down[rows, None])


def _neighbours(length, places, device):
    """For each place of a resized axis: the two source positions it lies between, and how far along."""
    centres = (torch.arange(places, device=device) + 0.5) * (length / places) - 0.5
    centres = centres.clamp(0, length - 1)
    first = centres.long()
    return first, (first + 1).clamp(max=length - 1), centres - first


def _between(first, second, share):
    return (second - first).mul_(share).add_(first)


@dataclass
class Prediction:
    """What the network says of one image, at its own size (H, W): on the CPU.

    labels uint8; confidence float32, the largest softmax probability; scores {name: float32, larger = more anomalous};
    nll: sum of -log p(target) in nats over the `pixels` that have a known class (0 without target).
    """

    labels: torch.Tensor
    confidence: torch.Tensor
    scores: dict
    nll: float = 0.0
    pixels: int = 0


def predict(logits, size, target=None, scores=()):
    """One image's logits (C, h, w) float32 -> its Prediction at `size`.

    target: (H, W) uint8 for the loss, or None; scores: names of anomaly.SCORES to compute.
    """
    labels, confidence = torch.empty(size, dtype=torch.uint8), torch.empty(size)
    maps = {name: torch.empty(size) for name in scores}
    nll, pixels = 0.0, 0
    for rows, strip in strips(logits, size):
        top, best = strip.max(dim=0)
        total = strip.logsumexp(dim=0)
        labels[rows], confidence[rows] = best.to("cpu", torch.uint8), (top - total).exp().cpu()
        for name, score in maps.items():
            score[rows] = anomaly.SCORES[name](strip[None])[0].cpu()
        if target is not None:
            wanted = target[rows].to(strip.device).long()
            known = wanted < len(strip)
            chosen = strip.gather(0, wanted.where(known, 0)[None])[0]
            nll += float((total - chosen)[known].double().sum())
            pixels += int(known.sum())
    return Prediction(labels, confidence, maps, nll, pixels)


@dataclass
class Totals:
    """Counts over a set of images; `merge` of the parts equals the whole. `images`: index -> (3, C) counts of one."""

    num_classes: int
    confusion: torch.Tensor = None
    floor: torch.Tensor = None  # the layout map's confusion
    images: dict = field(default_factory=dict)
    nll: dict = field(default_factory=dict)  # index -> (nats, pixels)
    pixels: int = 0
    boundary: torch.Tensor = 0
    boundary_f1: torch.Tensor = 0
    calibration: metrics.Calibration = field(default_factory=metrics.Calibration)
    histograms: dict = field(default_factory=dict)
    image_scores: dict = field(default_factory=dict)  # score -> {index: dict of exact per-image figures}

    def __post_init__(self):
        shape = (self.num_classes, self.num_classes)
        self.confusion = torch.zeros(shape, dtype=torch.int64)
        self.floor = torch.zeros(shape, dtype=torch.int64)

    def add(self, index, target, found, layout_map=None):
        """Count one image: target (H, W) uint8 tensor, its Prediction, the layout map of the floor."""
        confusion = metrics.confusion_matrix(found.labels, target, self.num_classes)
        self.confusion += confusion
        self.images[index] = metrics.image_counts(confusion)
        self.nll[index] = (found.nll, found.pixels)
        self.pixels += target.numel()
        if layout_map is not None:
            guess = torch.from_numpy(metrics.resize_map(layout_map, tuple(target.shape)))
            self.floor += metrics.confusion_matrix(guess, target, self.num_classes)

    def add_details(self, index, target, found):
        """Count what only a full evaluation wants: boundaries, calibration, anomaly scores."""
        self.boundary = self.boundary + metrics.boundary_counts(found.labels, target, self.num_classes)
        self.boundary_f1 = self.boundary_f1 + metrics.boundary_f1_counts(found.labels, target, self.num_classes)
        known = target < self.num_classes
        self.calibration.update(found.confidence[known], (found.labels == target)[known])
        judged = target != data.VOID
        positives = (target == self.num_classes)[judged]
        for name, score in found.scores.items():
            self.histograms.setdefault(name, metrics.ScoreHistogram()).update(score[judged], positives)
            exact = metrics.image_anomaly_scores(score[judged], positives)
            if exact is not None:
                self.image_scores.setdefault(name, {})[index] = exact

    def merge(self, other):
        """Add another part's counts."""
        self.confusion += other.confusion
        self.floor += other.floor
        self.images.update(other.images)
        self.nll.update(other.nll)
        self.pixels += other.pixels
        self.boundary = self.boundary + other.boundary
        self.boundary_f1 = self.boundary_f1 + other.boundary_f1
        self.calibration.merge(other.calibration)
        for name, histogram in other.histograms.items():
            self.histograms.setdefault(name, metrics.ScoreHistogram()).merge(histogram)
        for name, rows in other.image_scores.items():
            self.image_scores.setdefault(name, {}).update(rows)

    def scores(self):
        """metrics.segmentation_scores of the whole."""
        return metrics.segmentation_scores(self.confusion)

    def layout_floor(self):
        """mIoU of the layout map, None without one."""
        return metrics.segmentation_scores(self.floor)["miou"] if self.floor.any() else None

    def loss(self):
        """Mean -log p(target), nats per pixel; None without a labelled pixel."""
        pixels = sum(n for _, n in self.nll.values())
        return sum(self.nll[i][0] for i in sorted(self.nll)) / pixels if pixels else None

    def image_loss(self):
        """{index: nats per pixel} of the images that have a labelled pixel."""
        return {i: nats / n for i, (nats, n) in self.nll.items() if n}


def evaluate(
    predictor, split, *, batch_size=8, workers=0, layout_map=None, scores=None, indices=None, observe=None, change=None
):
    """Predict a split and count.

    scores: anomaly scores to compute, in which case boundaries and calibration are counted too; None: the confusion and
    loss only. indices: the images to take, None for all. observe(done, totals, index, target, prediction): called after
    each image. change(images (N, h, w, 3) uint8, targets, indices): replaces what enters the network (noise, other
    images); targets are the list of N (H, W) uint8 ones.
    """
    totals = Totals(predictor.num_classes)
    pinned = predictor.device.type == "cuda"
    batches = data.evaluation_batches(split, predictor.geometry, batch_size, workers, pinned, indices)
    for numbers, images, targets in batches:
        logits = predictor.logits(change(images, targets, numbers) if change else images)
        for index, target, one in zip(numbers, targets, logits, strict=True):
            found = predict(one, tuple(target.shape), target, scores or ())
            totals.add(index, target, found, layout_map)
            if scores is not None:
                totals.add_details(index, target, found)
            if observe:
                observe(len(totals.images), totals, index, target, found)
    return totals


def load_predictor(path, device):
    """A checkpoint as (Predictor, the checkpoint's content). Raises UserError as checkpoint.load_model does."""
    model, content = checkpoint.load_model(path)
    about = content["data"]
    normalise = data.Normalise(about["mean"], about["std"])
    geometry = data.Geometry(**about["geometry"])
    return Predictor(model, len(about["classes"]), geometry, device, normalise), content


def check_classes(spec, content):
    """Raise UserError unless a data set has exactly the classes a checkpoint was trained on."""
    trained = content["data"]["classes"]
    if list(spec.classes) != trained:
        different = sorted(set(spec.classes) ^ set(trained))
        what = f"{spec.name} has {spec.num_classes} classes, the checkpoint {len(trained)}"
        raise UserError(f"{what}, not both: {', '.join(different[:6])}", "--data-dir", "use the set it was trained on")


def layout_map_of(content):
    """The layout floor's map kept in a checkpoint, (rows, columns) uint8 array."""
    return content["data"]["layout_map"].numpy()
