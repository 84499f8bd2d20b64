"""Counts over a set of images: what is added up, image by image, and divided once."""

from dataclasses import dataclass, field

import torch

import cli
import data
import metrics
from anomaly.components import ComponentScores, component_counts
from anomaly.features import ScoreStatistics
from anomaly.histogram import ScoreHistogram
from anomaly.intervals import ImageHistograms
from datasets.label_spaces import answer_table, declared_classes
from datasets.spec import VOID
from engine.predictor import FEATURE_MAPS, predict, strips

ALARM_RATES = (0.01, 0.001)  # share of known validation pixels that raise a false alarm


@dataclass
class EvaluationCounts:
    """Counts over a set of images; `merge` of the parts equals the whole. `images`: index -> (3, C) counts of one.

    classes: the ids that the set labels, None for all; others have no IoU, to answer one is no more than an error.
    """

    num_classes: int
    confusion: torch.Tensor = None
    floor: torch.Tensor = None  # (3, C) counts of the layout map
    own_floor: torch.Tensor = None  # those of the set's own layout map
    classes: list | None = None
    images: dict = field(default_factory=dict)
    nll: dict = field(default_factory=dict)  # index -> (nats, pixels)
    pixels: int = 0
    boundary: torch.Tensor = 0
    boundary_f1: torch.Tensor = 0
    calibration: metrics.Calibration = field(default_factory=metrics.Calibration)
    histograms: dict = field(default_factory=dict)
    image_scores: dict = field(default_factory=dict)  # score -> {index: dict of exact per-image figures}
    image_histograms: dict = field(default_factory=dict)  # score -> coarse ones, for the intervals
    alarms: dict = field(default_factory=dict)  # score -> threshold at and above which a pixel is called an anomaly
    raised: dict = field(default_factory=dict)  # score -> (2,) int64, alarms on normal and on anomalous pixels
    open_set: dict = field(default_factory=dict)  # score -> (C + 1, C + 1) confusion where an alarm is class C

    def __post_init__(self):
        self.confusion = torch.zeros(self.num_classes, self.num_classes, dtype=torch.int64)
        self.floor, self.own_floor = torch.zeros(2, 3, self.num_classes, dtype=torch.int64)
        self.labelled = torch.ones(self.num_classes, dtype=torch.int64)  # 1 for a class that has an IoU
        if self.classes is not None:
            self.labelled = torch.isin(torch.arange(self.num_classes), torch.tensor(self.classes)).long()

    def add(self, index, target, found, layout_map=None, own_map=None):
        """Count one image: target (H, W) uint8 tensor, its Prediction, the layout maps of the floors."""
        confusion = metrics.confusion_matrix(found.labels, target, self.num_classes)
        self.confusion += confusion
        self.images[index] = metrics.image_counts(confusion) * self.labelled
        self.nll[index] = (found.nll, found.pixels)
        self.pixels += target.numel()
        for counts, guess in ((self.floor, layout_map), (self.own_floor, own_map)):
            if guess is not None:
                guess = torch.from_numpy(metrics.resize_nearest(guess, tuple(target.shape)))
                confusion = metrics.confusion_matrix(guess, target, self.num_classes)
                counts += metrics.image_counts(confusion) * self.labelled

    def add_details(self, index, target, found):
        """Count what only a full evaluation wants: boundaries, calibration, anomaly scores."""
        answer = found.labels, target, self.num_classes
        self.boundary = self.boundary + metrics.boundary_counts(*answer) * self.labelled
        self.boundary_f1 = self.boundary_f1 + metrics.boundary_f1_counts(*answer) * self.labelled
        known = target < self.num_classes
        self.calibration.update(found.confidence[known], (found.labels == target)[known])
        judged = target != VOID
        positives = (target == self.num_classes)[judged]
        both = bool(positives.any()) and not bool(positives.all())
        for name, score in found.scores.items():
            values = score[judged]
            try:
                self.histograms.setdefault(name, ScoreHistogram()).update(values, positives)
            except ValueError as error:  # not finite
                raise ValueError(f"score {name} of image {index}: {error}") from None
            self.image_histograms.setdefault(name, ImageHistograms()).update(index, values, positives)
            if both:
                self.image_scores.setdefault(name, {})[index] = metrics.ranking_figures(values, positives, nearest=True)
            if name in self.alarms:
                self.add_alarms(name, target, found.labels, score >= self.alarms[name])

    def add_alarms(self, name, target, labels, alarm):
        """Count the pixels of one image at which a score raises the alarm: alarm (H, W) bool."""
        normal = (target != VOID) & (target != self.num_classes)
        raised = torch.stack([alarm[normal].sum(), alarm[target == self.num_classes].sum()])
        predictions = torch.where(alarm, self.num_classes, labels)
        confusion = metrics.confusion_matrix(predictions, target, self.num_classes + 1)
        self.raised[name] = self.raised.get(name, 0) + raised
        self.open_set[name] = self.open_set.get(name, 0) + confusion

    def merge(self, other):
        """Add another part's counts."""
        self.confusion += other.confusion
        self.floor += other.floor
        self.own_floor += other.own_floor
        self.images.update(other.images)
        self.nll.update(other.nll)
        self.pixels += other.pixels
        self.boundary = self.boundary + other.boundary
        self.boundary_f1 = self.boundary_f1 + other.boundary_f1
        self.calibration.merge(other.calibration)
        for name, histogram in other.histograms.items():
            self.histograms.setdefault(name, ScoreHistogram()).merge(histogram)
        for name, rows in other.image_scores.items():
            self.image_scores.setdefault(name, {}).update(rows)
        for name, histograms in other.image_histograms.items():
            self.image_histograms.setdefault(name, ImageHistograms()).merge(histograms)
        for mine, theirs in ((self.raised, other.raised), (self.open_set, other.open_set)):
            for name, counts in theirs.items():
                mine[name] = mine.get(name, 0) + counts

    def scores(self):
        """metrics.count_scores of the whole."""
        return metrics.count_scores(sum(self.images.values(), torch.zeros_like(self.floor)))

    def image_counts(self):
        """(N, 3, C) int64: `images` in the order of their indices."""
        return torch.stack([self.images[index] for index in sorted(self.images)])

    def layout_floor(self):
        """mIoU of the layout map, None without one."""
        return metrics.count_scores(self.floor)["miou"]

    def own_layout_floor(self):
        """mIoU of the evaluated set's own layout map, None without one."""
        return metrics.count_scores(self.own_floor)["miou"]

    def loss(self):
        """Mean -log p(target), nats per pixel; None without a labelled pixel."""
        pixels = sum(n for _, n in self.nll.values())
        return sum(self.nll[i][0] for i in sorted(self.nll)) / pixels if pixels else None

    def image_loss(self):
        """{index: nats per pixel} of the images that have a labelled pixel."""
        return {i: nats / n for i, (nats, n) in self.nll.items() if n}


def require_finite(values, split, numbers):
    """Raise FloatingPointError naming the image whose logits or scores (N, …) are not finite."""
    finite = values.isfinite().flatten(1).all(dim=1).tolist()
    if not all(finite):
        file = split.file(numbers[finite.index(False)])
        raise FloatingPointError(f"the network's answer is not finite at {file}; its weights are broken, or its input")


def predictions(predictor, split, *, batch_size=8, workers=0, indices=None, scores=(), losses=False, change=None):
    """Predict a split, image by image: yields (index, target (H, W) uint8, its Prediction).

    indices: the images to take, None for all. scores: anomaly scores to compute. losses: compute the loss, too.
    change(images (N, h, w, 3) uint8, targets, indices): replaces what enters the network (noise, other images); targets
    are the list of N (H, W) uint8 ones.
    """
    pinned = predictor.device.type == "cuda"
    for numbers, images, targets in data.evaluation_batches(
        split, predictor.geometry, batch_size, workers, pinned, indices
    ):
        answer = predictor.answer(change(images, targets, numbers) if change else images, scores)
        for values in answer.values():
            require_finite(values, split, numbers)
        for place, (index, target) in enumerate(zip(numbers, targets, strict=True)):
            one = {name: values[place] for name, values in answer.items()}
            wanted = target if losses else None
            yield index, target, predict(one, tuple(target.shape), wanted, scores, predictor.statistics)


def evaluate(
    predictor, split, *, layout_map=None, own_map=None, scores=None, alarms=None, observe=None, spec=None, **options
):
    """Predict a split and count, in the way its spec (or `spec`, of the set that all indices belong to) asks for: see
    `label_spaces.declared_classes`, `label_spaces.answer_table`.

    layout_map, own_map: of the training set and of the evaluated set, for the floors.
    scores: anomaly scores to compute, in which case boundaries and calibration are counted too; None: the confusion and
    loss only. alarms: {score: threshold}, to count what they raise. observe(done, totals, index, target, prediction):
    called after each image. options: `predictions`' batch_size, workers, indices, change.
    """
    spec = spec or split.spec
    totals = EvaluationCounts(predictor.num_classes, classes=declared_classes(spec), alarms=alarms or {})
    table = answer_table(spec)
    if table is not None and layout_map is not None:
        layout_map = table[layout_map]  # what holds for the model's answers holds for the floor's
    for index, target, found in predictions(predictor, split, scores=scores or (), losses=True, **options):
        if table is not None:
            found.labels = torch.from_numpy(table)[found.labels.long()]
        totals.add(index, target, found, layout_map, own_map)
        if scores is not None:
            totals.add_details(index, target, found)
        if observe:
            observe(len(totals.images), totals, index, target, found)
    return totals


def evaluate_sets(predictor, split, *, indices=None, own_maps=None, scores=None, **options):
    """`evaluate` each set of a split: {its name in figures: EvaluationCounts}, images by place in the whole split.

    indices: the images to take, None for all. own_maps: {name: its own layout map}. scores: as `evaluate`, but none
    where a set has no anomaly.
    """
    chosen = range(len(split)) if indices is None else indices
    return {
        label: evaluate(
            predictor,
            split,
            spec=part.spec,
            indices=[index for index in chosen if index in own],
            own_map=(own_maps or {}).get(label),
            scores=scores if scores is None or part.spec.anomaly else [],
            **options,
        )
        for label, part, own in split.ranges()
    }


def merge_all(parts):
    """Every process's counts as one, in the first."""
    for part in parts[1:]:
        parts[0].merge(part)
    return parts[0]


def merge_counts(parts):
    """The EvaluationCounts of several sets as one."""
    whole = EvaluationCounts(parts[0].num_classes, alarms=parts[0].alarms)
    for part in parts:
        whole.merge(part)
    return whole


# ---------------------------------------------------------------------------------------------------------------------
# What anomaly scores need beside the answer


def collect_statistics(predictor, split, *, batch_size=8, workers=0, indices=None, observe=None):
    """Stream a training split through a model: `ScoreStatistics`, to be merged with other processes'.

    Each image is seen as it is, in evaluation mode; logits at the target's size, as they are scored, and of them only
    pixels of a known class: what is void may be a class held out. observe: called with the images done.
    Raises ValueError for a target with anomaly pixels.
    """
    statistics = ScoreStatistics(predictor.num_classes)
    done, pinned = 0, predictor.device.type == "cuda"
    for numbers, images, targets in data.evaluation_batches(
        split, predictor.geometry, batch_size, workers, pinned, indices
    ):
        outputs = predictor.maps(images)
        require_finite(outputs["out"], split, numbers)
        for name, source in FEATURE_MAPS.items():
            statistics.add_features(name, outputs[source].float(), targets)
        for logits, target in zip(outputs["out"].float(), targets, strict=True):
            for rows, strip in strips(logits, tuple(target.shape)):
                known = (target[rows] < predictor.num_classes).to(strip.device)
                top, labels = strip.max(dim=0)
                statistics.add_logits(top[known], labels[known])
            done += 1
            if observe:
                observe(done)
    return statistics


def count_known(predictor, split, scores, *, observe=None, **options):
    """{score: ScoreHistogram} of the pixels of known classes of a validation split; anomalies are left out.

    observe: called with the images done; options: `predictions`' batch_size, workers, indices.
    """
    histograms = {name: ScoreHistogram() for name in scores}
    for done, (_, target, found) in enumerate(predictions(predictor, split, scores=scores, **options), 1):
        known = target < predictor.num_classes
        for name, histogram in histograms.items():
            values = found.scores[name][known]
            histogram.update(values, values.new_zeros(values.shape, dtype=bool))
        if observe:
            observe(done)
    return histograms


def alarm_thresholds(histograms):
    """{score: {rate: threshold}} at which that share of known pixels, or less, raises the alarm; rates as text."""
    return {
        name: {f"{rate:g}": histogram.threshold_at(rate) for rate in ALARM_RATES}
        for name, histogram in histograms.items()
        if histogram.negatives
    }


# ---------------------------------------------------------------------------------------------------------------------
# Whole objects


def add_components(result, predictor, split, sizes, *, batch_size=8, workers=0):
    """Judge whole objects: predict the split again, now that the threshold of the best pixel F1 is known.

    "components" of a score follows the published protocol, whose threshold has seen the split's own truth;
    "components_at_alarm" is what the threshold from the validation split gives.
    result: the JSON of `summary.summarise`, which gains them; sizes: {"min-prediction", "min-truth"} in pixels.
    Source: Chan et al., SegmentMeIfYouCan, NeurIPS 2021 Datasets and Benchmarks; the default sizes are its anomaly
    track's.
    """
    limits = {(name, "components"): row["best_f1_threshold"] for name, row in result["anomaly"].items()}
    for name, row in result["anomaly"].items():
        if row["alarm"]:
            limits[name, "components_at_alarm"] = row["alarm"]["threshold"]
    totals = {key: ComponentScores() for key in limits}
    progress = cli.Progress(len(split), "components", "images")
    options = {"batch_size": batch_size, "workers": workers, "scores": list(result["anomaly"])}
    for done, (_, target, found) in enumerate(predictions(predictor, split, **options), 1):
        truth, judged = target == predictor.num_classes, target != VOID
        for (name, key), components in totals.items():
            alarm = found.scores[name] >= limits[name, key]
            components.update(component_counts(alarm, truth, judged, *sizes.values()))
        progress.update(done)
    progress.close()
    for (name, key), components in totals.items():
        result["anomaly"][name][key] = {**components.figures(), "threshold": limits[name, key]}
    result["protocol"]["components"] = {"threshold": "of the best pooled pixel F1 on this split", **sizes}
