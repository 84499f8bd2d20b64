"""From counts to figures: the JSON of an evaluation, every figure a fraction, and how it was made."""

import numpy as np

import metrics
from datasets.label_spaces import declared_classes, declared_names
from engine.evaluation import merge_counts
from engine.safe_miou import safe_miou
from engine.trained_run import ALARM_RATE

WORST = CONFUSIONS = 10  # named in report and JSON; three of each on the terminal


def rate_images(totals):
    """[(mIoU, index)] of all images, the lowest first; those without a labelled pixel come last, with None."""
    order = sorted(totals.images)
    values, known = metrics.mean_iou(totals.image_counts())
    rated = [(v if k else None, i) for v, k, i in zip(values.tolist(), known.tolist(), order, strict=True)]
    return sorted(rated, key=lambda pair: (pair[0] is None, pair[0] or 0.0, pair[1]))


def name_confusions(confusion, classes):
    """metrics.largest_confusions with the classes' names."""
    rows = metrics.largest_confusions(confusion, CONFUSIONS)
    return [{**row, "target": classes[row["target"]], "prediction": classes[row["prediction"]]} for row in rows]


def pixel_shares(totals):
    """Each class's share of the labelled target pixels."""
    return (totals.confusion.sum(1) / totals.confusion.sum().clamp(min=1)).tolist()


def safe_figures(totals, spec, classes):
    """{"safe_miou", "safe_iou": {class: value or null}}; empty where not all of IDD's classes are labelled."""
    found = safe_miou(totals.confusion, classes)
    sets = [part.spec for part in spec.parts] or [spec]
    if found is None or any(len(declared_classes(one)) < len(classes) for one in sets):
        return {}
    return {**found, "safe_iou": dict(zip(classes, found["safe_iou"], strict=True))}


def summarise(totals, split, spec, content, predictor):
    """The JSON of an evaluation, every figure a fraction, null where undefined.

    spec: of the set, or of the several, that totals are of; split: where their images stand.
    """
    classes = content["data"]["classes"]
    scores = totals.scores()
    order = sorted(totals.images)
    floors = {"layout_floor": totals.layout_floor(), "own_layout_floor": totals.own_layout_floor()}
    miou = scores["miou"]
    rated = rate_images(totals)
    return {
        "split": split.name,
        "images": len(order),
        "pixels": totals.pixels,
        "miou": miou,
        "miou_interval": metrics.miou_interval(totals.image_counts()),
        "classes_averaged": scores["classes_averaged"],
        "pixel_accuracy": scores["pixel_accuracy"],
        "mean_accuracy": scores["mean_accuracy"],
        "fwiou": scores["fwiou"],
        **safe_figures(totals, spec, classes),
        "loss": totals.loss(),
        "iou": dict(zip(classes, scores["iou"], strict=True)),
        "pixel_share": dict(zip(classes, pixel_shares(totals), strict=True)),
        "active_classes": scores["active_classes"],
        "spurious_classes": [classes[i] for i in scores["spurious_classes"]],
        **floors,
        "semantic_gain": metrics.semantic_gain(miou, max((f for f in floors.values() if f is not None), default=None)),
        "boundary_iou": metrics.boundary_iou(totals.boundary),
        "boundary_f1": metrics.boundary_f1(totals.boundary_f1),
        "ece": totals.calibration.ece(),
        "per_image": {split.file(i): {"miou": value} for value, i in sorted(rated, key=lambda pair: pair[1])},
        "worst_images": [{"file": split.file(i), "miou": value} for value, i in rated[:WORST] if value is not None],
        "confusion": totals.confusion.tolist(),
        "confusions": name_confusions(totals.confusion, classes),
        **summarise_anomaly(totals, classes),
        "protocol": protocol(spec, content, predictor, totals.alarms),
    }


def summarise_sets(parts, split, content, predictor):
    """The JSON of one or several sets: of several all together, and below "sets" each by itself."""
    specs = {label: part.spec for label, part, _ in split.ranges()}
    whole = merge_counts(list(parts.values()))
    if whole.own_floor.any():  # beside sets with a layout of their own, those whose own is the training set's
        whole.own_floor += sum(one.floor for one in parts.values() if not one.own_floor.any())
    result = summarise(whole, split, split.spec, content, predictor)
    if len(parts) > 1:
        result["sets"] = {
            label: summarise(totals, split, specs[label], content, predictor) for label, totals in parts.items()
        }
    return whole, result


def protocol(spec, content, predictor, alarms=()):
    """How the figures were made, in words, so that they can be compared with others'."""
    geometry = content["data"]["geometry"]
    crop = geometry["crop"]
    labelled = declared_names(spec)
    return {
        "dataset": spec.name,
        "label_space": content["config"].get("label_space", "own"),
        "network_size": "full size" if crop else geometry["canvas"],
        "geometry": f"short side {geometry['short_side'] or 'kept'}"
        if crop
        else "stretched to the canvas, antialiased",
        "target_size": "own; logits resized bilinearly",
        "void": "left out",
        "void_by_name": sorted({*spec.unmapped.values(), *(n for p in spec.parts for n in p.spec.unmapped.values())}),
        "anomaly": "left out of every known-class figure; positive in the anomaly figures",
        "held_out": content["config"].get("anomaly_classes", "") or None,
        **(anomaly_protocol(alarms) if spec.anomaly else {}),
        "absent_classes": "null, not averaged",
        "unlabelled_classes": [name for name in spec.classes if name not in labelled],
        "layout_floor": f"layout map of {content['data']['dataset']}'s training targets",
        "own_layout_floor": "layout map of the evaluated set's own training targets, null where that is the same",
        "semantic_gain": "over the higher of the two floors",
        "together": "counts added up; a class counts on the sets that label it" if spec.parts else None,
        "boundary": "2 % of the image diagonal",
        "interval": "95 %, bootstrap over images",
        "scales": list(predictor.scales),
        "flip": predictor.flip,
        "window": predictor.window,
        "averaged": "float32 logits, over scales, flips and windows, each brought to the network's input size",
        "confusion": "counts, rows are targets, columns predictions, in the order of iou",
        "precision": "float32",
    }


FOUND_AT = (0.01, 0.001)  # false-positive rates at which the share of anomalies found is given
MISTAKEN = 5  # classes named


def anomaly_protocol(alarms):
    """How the anomaly figures were made, in words."""
    return {
        "anomaly_pooled": "all judged pixels of the split in one ranking; FPR at the first threshold with TPR >= 0.95",
        "anomaly_per_image": "exact, mean over images with both kinds of pixel; FPR at the recall nearest to 0.95",
        "anomaly_scores": "of float32 logits at the target's size; similarity and mahalanobis of the image as it is, "
        "their maps resized bilinearly",
        "anomaly_intervals": "95 %, bootstrap over images",
        "alarm": f"reached by {float(ALARM_RATE):.0%} of the validation split's known pixels, images seen as they are"
        if alarms
        else None,
        "open_miou": "IoU of known classes with alarms as a class of their own, anomalous pixels counted",
    }


# ---------------------------------------------------------------------------------------------------------------------
# Figures


def summarise_anomaly(totals, classes):
    """{"anomaly": {score: figures}, "anomaly_share"}; empty and None where the split holds no anomaly."""
    result, share = {}, None
    for name, histogram in totals.histograms.items():
        aupr, aupr_error = histogram.aupr()
        if aupr is None:
            continue
        share = histogram.positives / (histogram.positives + histogram.negatives)
        auroc, auroc_error = histogram.auroc()
        intervals = totals.image_histograms[name].interval() or {}
        best_f1, best_threshold = histogram.best_f1()
        rows = [totals.image_scores[name][i] for i in sorted(totals.image_scores.get(name, {}))]
        figures = ("aupr", "auroc", "fpr95")
        means = {key: float(np.mean([row[key] for row in rows])) if rows else None for key in figures}
        result[name] = {
            "aupr": aupr,
            "aupr_error": aupr_error,
            "aupr_interval": intervals.get("aupr"),
            "auroc": auroc,
            "auroc_error": auroc_error,
            "auroc_interval": intervals.get("auroc"),
            "fpr95": histogram.fpr95(),
            "fpr95_interval": intervals.get("fpr95"),
            "best_f1": best_f1,
            "best_f1_threshold": best_threshold,
            "found_at": {f"{rate:g}": histogram.found_at(rate) for rate in FOUND_AT},
            **summarise_alarm(totals, name, classes),
            "per_image": {**means, "images": len(rows)},
            "curves": histogram.curves(),
            "density": histogram.density(),
        }
    return {"anomaly": result, "anomaly_share": share}


def summarise_alarm(totals, name, classes):
    """What the alarm threshold of a score does on this split."""
    if name not in totals.raised:
        return {"alarm": None, "open_miou": None, "mistaken": [], "hidden": []}
    histogram, (false, found) = totals.histograms[name], totals.raised[name].tolist()
    confusion = totals.open_set[name]  # (C + 1, C + 1), the last row and column anomaly
    iou = metrics.segmentation_scores(confusion)["iou"][:-1]
    known = confusion[:-1].sum(1).tolist()
    alarms, missed = confusion[:-1, -1].tolist(), confusion[-1, :-1].tolist()
    present = [value for value, pixels in zip(iou, known, strict=True) if value is not None and pixels]
    return {
        "alarm": {
            "threshold": totals.alarms[name],
            "rate": float(ALARM_RATE),
            "found": found / histogram.positives,
            "false_alarms": false / histogram.negatives,
        },
        "open_miou": float(np.mean(present)) if present else None,
        "mistaken": largest(classes, alarms, known),
        "hidden": largest(classes, missed, [histogram.positives] * len(classes)),
    }


def largest(classes, pixels, wholes):
    """The classes with the largest share pixels / whole, as dicts, the largest first; none without a pixel."""
    rows = [
        {"class": name, "share": n / whole, "pixels": n}
        for name, n, whole in zip(classes, pixels, wholes, strict=True)
        if n
    ]
    return sorted(rows, key=lambda row: -row["share"])[:MISTAKEN]
