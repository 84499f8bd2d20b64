"""The anomaly part of an evaluation: which scores, what they find, at which alarm, and the pictures."""

import numpy as np

import cli
import metrics
from anomaly.components import ComponentScores, component_counts
from anomaly.scores import DISTANCE_SCORES, NAMES, parse_scores
from cli import UserError
from datasets.spec import VOID
from engine.evaluation import ALARM_RATES, predictions
from engine.predictor import predict_image
from report.files import save_picture
from report.pictures import anomaly_panel

ALARM_RATE = f"{ALARM_RATES[0]:g}"  # of the thresholds in the checkpoint, the one that figures are given for
FOUND_AT = (0.01, 0.001)  # false-positive rates at which the share of anomalies found is given
MISTAKEN = 5  # classes named
SIZES = {"min-prediction": 500, "min-truth": 100}  # pixels; SegmentMeIfYouCan's anomaly track


def add_anomaly_flags(parser):
    """The flags of anomaly scores."""
    group = parser.add_argument_group("anomalies, where the data set has some")
    group.add_argument(
        "--scores",
        default="all",
        metavar="NAME,...",
        help=f"of {', '.join(NAMES)}; sml:PARTS for parts of it, of standardise+boundary+smooth; all: those that apply",
    )
    group.add_argument(
        "--components",
        nargs="?",
        const="min-prediction=500",
        metavar="min-prediction=N,min-truth=N",
        help="also judge whole objects, in a second pass; sizes in pixels, 500 and 100 as in SegmentMeIfYouCan's "
        "anomaly track; none: off",
    )


def choose_scores(args, predictor, split):
    """The names of the scores to compute, [] where the split has no anomaly.

    Raises UserError for a score that does not exist, or that this checkpoint cannot give.
    """
    if args.components == "none":
        args.components = None
    if args.components:
        parse_sizes(args.components)
    wanted = [] if args.scores == "all" else parse_scores(args.scores)
    known = predictor.scores()
    for name in wanted:
        if name.partition(":")[0] not in known:
            raise UserError(f"this checkpoint gives no score {name!r}", "--scores", why_missing(name))
    if not split.spec.anomaly:
        if wanted or args.components:
            cli.warn(f"{split.name} of {split.spec.name} has no anomalies: no anomaly score is computed")
        return []
    if not predictor.plain:
        cli.warn("alarm thresholds were taken with each image seen once, as it is; here they may not hold their rate")
    if args.scores == "all" and "sml" not in known:
        cli.warn(f"no score statistics in the checkpoint, so no sml, similarity, mahalanobis; {why_missing('sml')}")
    return wanted or known


def why_missing(name):
    """What a checkpoint lacks that does not give a score."""
    if name in DISTANCE_SCORES:
        return "train a model with centres=fixed or centres=learnt"
    if name == "residual":
        return "train a model with residual=on"
    return "use best.pth of a finished run; train.py --run-dir RUN --resume adds the statistics to an older one"


def alarms_of(content):
    """{score: alarm threshold} of a checkpoint."""
    return {name: rates[ALARM_RATE] for name, rates in content["data"].get("alarms", {}).items()}


def parse_sizes(text):
    """'min-prediction=50,min-truth=10' -> {name: pixels}. Raises UserError for a name unknown or a size below 1."""
    sizes = {**SIZES, **cli.parse_items(text, SIZES)}
    if min(sizes.values()) < 1:
        raise UserError(f"a size of {min(sizes.values())}", "--components", "sizes are at least 1 pixel")
    return sizes


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


def add_components(result, args, predictor, split):
    """Judge whole objects: predict the split again, now that the threshold of the best pixel F1 is known.

    "components" of a score follows the published protocol, whose threshold has seen the split's own truth;
    "components_at_alarm" is what the threshold from the validation split gives.
    Source: Chan et al., SegmentMeIfYouCan, NeurIPS 2021 Datasets and Benchmarks; the default sizes are its anomaly
    track's.
    """
    sizes = parse_sizes(args.components)
    limits = {(name, "components"): row["best_f1_threshold"] for name, row in result["anomaly"].items()}
    for name, row in result["anomaly"].items():
        if row["alarm"]:
            limits[name, "components_at_alarm"] = row["alarm"]["threshold"]
    totals = {key: ComponentScores() for key in limits}
    progress = cli.Progress(len(split), "components", "images")
    options = {"batch_size": args.batch_size, "workers": args.workers, "scores": list(result["anomaly"])}
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


# ---------------------------------------------------------------------------------------------------------------------
# Pictures


def write_anomaly_panels(folder, predictor, split, totals, figures, count, palette):
    """Draw `count` images evenly from worst to best by the best score's own AUPR; returns [(caption, path)]."""
    best = max(figures, key=lambda name: figures[name]["aupr"])
    rated = sorted((row["aupr"], index) for index, row in totals.image_scores.get(best, {}).items())
    if not rated:
        return []
    places = np.unique(np.linspace(0, len(rated) - 1, count).round().astype(int)).tolist()
    pictures = []
    for number, place in enumerate(places, 1):
        aupr, index = rated[place]
        image, target = split.read(index)
        found = predict_image(predictor, image, target.shape, [best])
        alarm = f", outlined at the alarm threshold {totals.alarms[best]:.4g}" if best in totals.alarms else ""
        caption = f"{split.file(index)}: {best} AUPR {aupr:.3f} ({place + 1} of {len(rated)} from the worst){alarm}"
        picture = anomaly_panel(
            np.asarray(image),
            target,
            found.labels.numpy(),
            found.scores[best].numpy(),
            totals.alarms.get(best),
            split.spec.classes,
            palette,
            caption,
        )
        path = folder / f"anomaly-{number}.png"
        save_picture(picture, path)
        pictures.append((caption, path))
    return pictures
