"""What anomaly scores need beside the network's answer: statistics of the training split, and alarm thresholds.

Both are taken with the finished weights and kept in the checkpoint beside them. Statistics come from the training
split, thresholds from the known pixels of the validation split; no anomaly is ever looked at.
"""

import anomaly
import data
import metrics
from engine_evaluate import FEATURE_MAPS, predictions, require_finite, strips

ALARM_RATES = (0.01, 0.001)  # share of known validation pixels that raise a false alarm


def collect_statistics(predictor, split, *, batch_size=8, workers=0, indices=None, observe=None):
    """Stream a training split through a model: `anomaly.ScoreStatistics`, to be merged with other processes'.

    Each image is seen as it is, in evaluation mode; logits at the target's size, as they are scored, and of them only
    pixels of a known class: what is void may be a class held out. observe: called with the images done.
    Raises ValueError for a target with anomaly pixels.
    """
    statistics = anomaly.ScoreStatistics(predictor.num_classes)
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
    """{score: metrics.ScoreHistogram} of the pixels of known classes of a validation split; anomalies are left out.

    observe: called with the images done; options: `predictions`' batch_size, workers, indices.
    """
    histograms = {name: metrics.ScoreHistogram() for name in scores}
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
