"""From a trained network to what it says of a picture: the one way to predict, used by every command."""

import argparse
import math
from dataclasses import dataclass, field

import torch
from torch.nn import functional as F

import data
from anomaly.features import FEATURE_SCORES
from anomaly.scores import DISTANCE_SCORES, LOGIT_SCORES, NAMES, energy, pixelwise_score, sml_parts
from anomaly.sml import sml
from cli import UserError
from networks.blocks import Normalise

STRIP_BYTES = 16 << 20  # of full-size logits held at once
FEATURE_MAPS = {"similarity": "features", "mahalanobis": "backbone"}  # which of the model's maps a score reads


def add_prediction_flags(parser):
    """The flags of how a picture is put to the network, for every script that predicts."""
    group = parser.add_argument_group("prediction")
    group.add_argument(
        "--tta",
        default="none",
        choices=("none", "flip"),
        help="flip: average with the mirror image's logits, twice the time; none: as it is",
    )
    group.add_argument(
        "--scales",
        type=scales,
        default="1",
        metavar="S,S,...",
        help="average over the network's input resized by these factors; time and memory grow with their squares",
    )
    group.add_argument(
        "--sliding-window",
        action="store_true",
        help="windows of the size of the training --crop, each overlapping the next by a third; off: the whole image",
    )


def scales(text):
    """'0.75,1,1.25' -> (0.75, 1.0, 1.25)."""
    try:
        values = tuple(float(part) for part in text.split(","))
    except ValueError:
        values = (0.0,)
    if not all(0.1 <= value <= 4 for value in values):
        what = f"{text!r} is not a list of factors from 0.1 to 4; write them like 0.75,1,1.25"
        raise argparse.ArgumentTypeError(what)
    return values


def view_options(args):
    """What the flags of prediction say, as `set_views` takes it."""
    return {"flip": args.tta == "flip", "scales": args.scales, "sliding_window": args.sliding_window}


def set_views(predictor, *, flip=False, scales=(1.0,), sliding_window=False):
    """Let a predictor average over the mirror image, several scales, and windows of the size of the training crop.

    Raises UserError for --sliding-window where the model was not trained on crops.
    """
    crop = predictor.geometry.crop
    if sliding_window and crop is None:
        remedy = "leave the flag out, or train with --crop HxW"
        raise UserError("the model was trained on whole images, so no window has a size", "--sliding-window", remedy)
    predictor.flip, predictor.scales = flip, scales
    predictor.window = crop if sliding_window else None


@dataclass
class Predictor:
    """A network with all that is needed to ask it about a picture. num_classes: without void and anomaly.

    flip: also ask about the mirror image; scales: the factors by which the network's input is resized; window: height
    and width of the windows that slide over each of these, None: each is seen whole. statistics: what some anomaly
    scores need beside the answer (`ScoreStatistics.finish`), {} without.
    """

    model: torch.nn.Module
    num_classes: int
    geometry: data.Geometry
    device: torch.device
    normalise: torch.nn.Module = field(default_factory=Normalise)
    flip: bool = False
    scales: tuple = (1.0,)
    window: list | None = None
    statistics: dict = field(default_factory=dict)

    def __post_init__(self):
        self.model.to(self.device, memory_format=torch.channels_last)
        self.normalise.to(self.device)

    @property
    def plain(self):
        """Whether each image is seen once, as it is."""
        return not self.flip and self.scales == (1.0,) and self.window is None

    def scores(self):
        """Names of the anomaly scores that this model and its statistics allow, in `anomaly.scores.NAMES`' order."""
        distances = getattr(self.model, "centres", None) is not None
        known = {*LOGIT_SCORES, *(DISTANCE_SCORES if distances else ())}
        known |= {"residual"} if hasattr(self.model, "residual_head") else set()
        known |= {"sml"} if "max_logit" in self.statistics else set()
        known |= FEATURE_SCORES.keys() & self.statistics.keys()
        return [name for name in NAMES if name in known]

    def logits(self, images):
        """images (N, h, w, 3) uint8 at the network's size -> (N, C, h, w) float32: `answer`'s "out" alone."""
        return self.answer(images)["out"]

    @torch.inference_mode()
    def answer(self, images, scores=()):
        """What the network says of images (N, h, w, 3) uint8 at its size, in evaluation mode, no autocast.

        {"out": logits (N, C, h, w); "open": what anomalies are judged by, with a residual head, the same shape;
        "similarity" and "mahalanobis", where `scores` names them: (N, 1, rows, columns) of the map they read}, float32.
        Logits are the plain mean over flips and scales of logits, not of probabilities: anomaly scores are made of
        logits. Each scale's are brought to (h, w) first. The scores from features see the image as it is.
        """
        images = self._normalised(images)
        wanted = [name for name in FEATURE_MAPS if name in scores]
        outputs = self.model(images) if self.plain or wanted else {}
        logits = stack_logits(outputs) if self.plain else self._views(images)
        answer = {"out": logits[:, : self.num_classes]}
        if logits.shape[1] > self.num_classes:
            answer["open"] = logits[:, self.num_classes :]
        for name in wanted:
            score = FEATURE_SCORES[name](outputs[FEATURE_MAPS[name]].float(), self.statistics[name])
            answer[name] = score[:, None]
        return answer

    @torch.inference_mode()
    def maps(self, images):
        """The model's outputs for images (N, h, w, 3) uint8, seen as they are."""
        return self.model(self._normalised(images))

    def _views(self, images):
        """The mean over flips, scales and windows of the stacked logits."""
        total = self._at_scale(images, self.scales[0])
        for scale in self.scales[1:]:
            total = total + self._at_scale(images, scale)
        return total / (len(self.scales) * (2 if self.flip else 1))

    @torch.inference_mode()
    def features(self, images):
        """images (N, h, w, 3) uint8 -> {stage: (N, D, rows, columns) float32} of backbone and pyramid, finest first.

        The image as it is: no flip, scale or window.
        """
        images = self._normalised(images)
        parts = {"backbone": self.model.backbone_features(images), "pyramid": self.model.pyramid_features(images)}
        return {f"{part} {n}": found.float() for part, maps in parts.items() for n, found in enumerate(maps, 1)}

    def _normalised(self, images):
        """uint8 (N, h, w, 3) -> float32 (N, 3, h, w) on the device; the model is put in evaluation mode."""
        self.model.eval()
        return self.normalise(data.to_float(images.to(self.device, non_blocking=True)))

    def _at_scale(self, images, scale):
        """Logits at the images' own size, summed over the flips, of the images resized by `scale`."""
        size = images.shape[2:]
        if scale != 1:
            smaller = [max(1, round(side * scale)) for side in size]
            images = F.interpolate(images, smaller, mode="bilinear", align_corners=False, antialias=scale < 1)
        logits = self._windows(images)
        if self.flip:
            logits = logits + self._windows(images.flip(3)).flip(3)
        return F.interpolate(logits, size, mode="bilinear", align_corners=False) if scale != 1 else logits

    def _windows(self, images):
        """The network's stacked logits; with a window, the mean of all windows that see a pixel, one place at a time.

        A side shorter than the window is seen whole.
        """
        if self.window is None:
            return stack_logits(self.model(images))
        sides = images.shape[2:]
        rows, columns = (min(window, side) for window, side in zip(self.window, sides, strict=True))
        total = 0  # (N, C or 2 C, h, w) from the first window on
        times = images.new_zeros(sides)  # how many windows have seen the pixel
        for top in window_starts(sides[0], rows):
            for left in window_starts(sides[1], columns):
                part = (..., slice(top, top + rows), slice(left, left + columns))
                found = stack_logits(self.model(images[part]))
                if not torch.is_tensor(total):
                    total = found.new_zeros(*found.shape[:2], *sides)
                total[part] += found
                times[part] += 1
        return total.div_(times)


def stack_logits(outputs):
    """A model's float32 logits (N, C, h, w), those of a residual head under them: (N, 2 C, h, w)."""
    logits = outputs["out"].float()
    return torch.cat([logits, outputs["open"].float()], dim=1) if "open" in outputs else logits


def window_starts(length, window):
    """Where windows along a side start: each overlaps the next by at least a third, the last one ends at the end."""
    last = length - window
    return [*range(0, last, max(1, 2 * window // 3)), last]


def feature_statistics(predictor, images):
    """Shape, mean, standard deviation and share of exact zeros of each stage's maps over a few images.

    images: iterable of (h, w, 3) uint8 tensors at the network's size, taken one at a time.
    Returns [{"stage", "shape": [channels, rows, columns] of the first image's map, "mean", "std", "zeros"}], finest
    first; a figure that is not finite is None. Sums are float64.
    """
    shapes, sums = {}, {}
    for image in images:
        for stage, maps in predictor.features(image[None]).items():
            shapes.setdefault(stage, list(maps.shape[1:]))
            wide = maps.double()
            found = torch.stack([wide.sum(), wide.square().sum(), (wide == 0).sum().double()]).cpu()
            sums[stage] = sums.get(stage, 0) + torch.cat([found, torch.tensor([float(maps.numel())]).double()])
    rows = []
    for stage, (total, squares, zeros, count) in ((stage, found.tolist()) for stage, found in sums.items()):
        mean = total / count
        spread = max(0.0, squares / count - mean**2) ** 0.5 if math.isfinite(squares) else None
        figures = {"mean": mean if math.isfinite(mean) else None, "std": spread, "zeros": zeros / count}
        rows.append({"stage": stage, "shape": shapes[stage], **figures})
    return rows


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


def predict(answer, size, target=None, scores=(), statistics=None):
    """One image's answer {"out": (C, h, w) float32 logits, …} -> its Prediction at `size`.

    answer: one image's part of `Predictor.answer`. target: (H, W) uint8 for the loss, or None; scores: names of anomaly
    scores to compute; statistics: the Predictor's.
    """
    labels, confidence, tops = torch.empty(size, dtype=torch.uint8), torch.empty(size), torch.empty(size)
    statistics = statistics or {}
    maps = {name: torch.empty(size) for name in scores}
    pointwise = {name: f for name in scores if (f := pixelwise_score(name, statistics.get("centres")))}
    nll, pixels = 0.0, 0
    for rows, strip in strips(answer["out"], size):
        top, best = strip.max(dim=0)
        total = strip.logsumexp(dim=0)
        labels[rows], confidence[rows] = best.to("cpu", torch.uint8), (top - total).exp().cpu()
        tops[rows] = top.cpu()
        for name, score in pointwise.items():
            maps[name][rows] = score(strip[None])[0].cpu()
        if target is not None:
            wanted = target[rows].to(strip.device).long()
            known = wanted < len(strip)
            chosen = strip.gather(0, wanted.where(known, 0)[None])[0]
            nll += float((total - chosen)[known].double().sum())
            pixels += int(known.sum())
    for name in (name for name in scores if name not in pointwise):
        if name == "residual":
            for rows, strip in strips(answer["open"], size):
                maps[name][rows] = energy(strip[None])[0].cpu()
        elif name in FEATURE_SCORES:
            for rows, strip in strips(answer[name], size):
                maps[name][rows] = strip[0].cpu()
        else:
            spread = statistics["max_logit"]
            parts = sml_parts(name)
            maps[name] = sml(tops[None], labels[None], spread["mean"], spread["std"], parts)[0]
    return Prediction(labels, confidence, maps, nll, pixels)


def predict_image(predictor, image, size, scores=()):
    """The Prediction of one PIL image at `size` (H, W)."""
    answer = predictor.answer(predictor.geometry.resize(image)[None], scores)
    return predict({name: values[0] for name, values in answer.items()}, size, None, scores, predictor.statistics)
