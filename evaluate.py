"""Evaluate a checkpoint: numbers as JSON, pictures, and one report page.

    python evaluate.py --ckpt runs/streets/best.pth                  the test split, into runs/streets/
    python evaluate.py --ckpt best.pth --split val --json val.json   another split, the numbers to a file of your choice
    python evaluate.py --ckpt best.pth --tta flip --scales 0.75,1,1.25   averaged over six views of each image
    python evaluate.py --ckpt best.pth --features                    also what each stage of the network sees
    python evaluate.py --ckpt best.pth --dataset road_anomaly --data-dir DIR   anomalies of another set
    python evaluate.py --ckpt best.pth --dataset camvid,acdc/fog,bdd100k       one row a set, in the model's classes

Every figure is a fraction. mIoU stands beside the layout floor: what a predictor gets that never opens the image.
"""

import itertools
import json
import sys
from pathlib import Path

import numpy as np

import cli
import metrics
from anomaly.scores import DISTANCE_SCORES, NAMES, parse_scores
from cli import UserError
from datasets.audit import audit_split
from datasets.label_spaces import run_name
from engine.devices import choose_device
from engine.evaluation import add_components, evaluate_sets
from engine.predictor import add_prediction_flags, feature_statistics, predict_image, set_views, view_options
from engine.run_directory import read_log
from engine.summary import rate_images, summarise_sets
from engine.trained_run import (
    alarms_of,
    comparable_sets,
    is_other_set,
    layout_map_of,
    load_predictor,
    open_evaluated,
    own_layouts,
)
from report.files import save_picture, write_json, write_report
from report.pictures import anomaly_panel, confusion_picture, feature_picture, panel
from report.tables import anomaly_table, class_table, confusion_words, feature_table, score_text, sets_table

FEATURE_IMAGES, FEATURE_CHANNELS = 6, 8  # images behind the figures of a stage where no panel is drawn; channels drawn
SIZES = {"min-prediction": 500, "min-truth": 100}  # pixels; SegmentMeIfYouCan's anomaly track


def build_parser():
    """All flags of evaluate.py."""
    parser = cli.Parser(__doc__)
    parser.add_argument("--ckpt", required=True, metavar="FILE", help="the checkpoint, best.pth of a run")
    parser.add_argument("--split", default="test", choices=("train", "val", "test"), help="which split")
    parser.add_argument(
        "--dataset",
        metavar="NAME,...",
        help="other sets, seen in the model's classes by name; acdc/fog: one condition; empty: what the run trained on",
    )
    parser.add_argument(
        "--data-dir", metavar="DIR,...", help="where they lie; empty: where the run found its own, data/NAME"
    )
    parser.add_argument("--json", metavar="FILE", help="where the numbers go; empty: OUT/evaluation.json")
    parser.add_argument(
        "--out",
        metavar="DIR",
        help="folder for report and pictures; empty: the checkpoint's own, for other sets DATASET below it",
    )
    parser.add_argument("--panels", type=cli.natural, default=6, help="pictures from worst to best; 0: none")
    parser.add_argument("--features", action="store_true", help="pictures and figures of each stage's maps; off: none")
    parser.add_argument("--limit", type=cli.natural, default=0, help="first N images; 0: all")
    parser.add_argument("--batch-size", type=cli.positive_int, default=8, help="images at once")
    parser.add_argument("--workers", type=cli.natural, default=2, help="reading processes; 0: read in this one")
    parser.add_argument("--device", default="auto", help="auto (CUDA when there is one), cpu, cuda, cuda:N")
    add_anomaly_flags(parser)
    add_prediction_flags(parser)
    return parser


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


# ---------------------------------------------------------------------------------------------------------------------
# What is asked


def check_files(split):
    """Read every pair once before anything is computed. Raises UserError for a damaged file or an undeclared label."""
    found = audit_split(split, metrics.GRID)
    fault = found.fault()
    if fault and fault[0] not in ("no_labels", "anomaly_in_training"):  # neither hinders counting
        raise fault[1]


def choose_scores(predictor, split, wanted="all", components=False):
    """The names of the scores to compute, [] where the split has no anomaly.

    wanted: as --scores takes it. Raises UserError for a score that does not exist, or that this checkpoint cannot give.
    """
    named = [] if wanted == "all" else parse_scores(wanted)
    known = predictor.scores()
    for name in named:
        if name.partition(":")[0] not in known:
            raise UserError(f"this checkpoint gives no score {name!r}", "--scores", why_missing(name))
    if not split.spec.anomaly:
        if named or components:
            cli.warn(f"{split.name} of {split.spec.name} has no anomalies: no anomaly score is computed")
        return []
    if not predictor.plain:
        cli.warn("alarm thresholds were taken with each image seen once, as it is; here they may not hold their rate")
    if wanted == "all" and "sml" not in known:
        cli.warn(f"no score statistics in the checkpoint, so no sml, similarity, mahalanobis; {why_missing('sml')}")
    return named or known


def why_missing(name):
    """What a checkpoint lacks that does not give a score."""
    if name in DISTANCE_SCORES:
        return "train a model with centres=fixed or centres=learnt"
    if name == "residual":
        return "train a model with residual=on"
    return "use best.pth of a finished run; train.py --run-dir RUN --resume adds the statistics to an older one"


def parse_sizes(text):
    """'min-prediction=50,min-truth=10' -> {name: pixels}, None for no text or 'none'.

    Raises UserError for a name unknown or a size below 1.
    """
    if text in (None, "none"):
        return None
    sizes = {**SIZES, **cli.parse_items(text, SIZES)}
    if min(sizes.values()) < 1:
        raise UserError(f"a size of {min(sizes.values())}", "--components", "sizes are at least 1 pixel")
    return sizes


def compute(predictor, content, split, scores, *, batch_size=8, workers=0, limit=0):
    """{set: EvaluationCounts} of the split, with a line of progress."""
    progress = cli.Progress(len(split), f"evaluate {split.name}", "images")
    own_maps = own_layouts(split, content, limit)
    done = itertools.count(1)
    parts = evaluate_sets(
        predictor,
        split,
        batch_size=batch_size,
        workers=workers,
        layout_map=layout_map_of(content),
        own_maps=own_maps,
        scores=scores,
        alarms=alarms_of(content),
        observe=lambda *_: progress.update(next(done)),
    )
    progress.close()
    return parts


# ---------------------------------------------------------------------------------------------------------------------
# What is shown


def print_summary(result, split):
    """The figures on the terminal."""
    print(class_table(list(result["iou"]), list(result["iou"].values()), list(result["pixel_share"].values())))
    for row in result["confusions"][:3]:
        print(f"  {confusion_words(row)}")
    if result["miou"] is None:
        print(f"{result['images']} images of {split.name}: no labelled pixel, no mIoU")
    else:
        own = "" if result["own_layout_floor"] is None else f" (of its own layout {result['own_layout_floor']:.3f})"
        interval = "" if result["miou_interval"] is None else " [{:.3f}, {:.3f}]".format(*result["miou_interval"])
        names = ("layout_floor", "semantic_gain", "pixel_accuracy")
        floor, gain, accuracy = (score_text(result[name], "undefined") for name in names)
        print(
            f"{split.name} mIoU {result['miou']:.3f}{interval} over {result['classes_averaged']} classes, layout floor "
            f"{floor}{own}, semantic gain {gain}, pixel accuracy {accuracy}"
        )
    if "safe_miou" in result:
        safe = score_text(result["safe_miou"], "undefined")
        print(f"safe mIoU {safe}: mIoU less a penalty for what is taken for road users, or they for")
    if "sets" in result:
        print(sets_table(result))
    worst = [f"{row['file']} {row['miou']:.3f}" for row in result["worst_images"][:3]]
    if worst:
        print(f"worst images by mIoU: {', '.join(worst)}")
    if result["anomaly"]:
        print(anomaly_table(result["anomaly"], result["anomaly_share"]))


def spread_evenly(rated, count):
    """`count` rows of a sorted list evenly from first to last: [(place, row)]."""
    if not rated or not count:
        return []
    places = np.unique(np.linspace(0, len(rated) - 1, count).round().astype(int)).tolist()
    return [(place, rated[place]) for place in places]


def choose_images(totals, count):
    """`count` images evenly from worst to best per-image mIoU: [(index, mIoU, rank in words)]."""
    rated = [pair for pair in rate_images(totals) if pair[0] is not None]
    words = {0: "worst", len(rated) - 1: "best", len(rated) // 2: "median"}
    return [
        (index, miou, words.get(place, f"{place + 1} of {len(rated)} from the worst"))
        for place, (miou, index) in spread_evenly(rated, count)
    ]


def draw_panels(predictor, split, chosen, palette):
    """Pictures of the images that `choose_images` chose: yields (caption, PIL image)."""
    for index, miou, rank in chosen:
        image, target = split.read(index)
        found = predict_image(predictor, image, target.shape)
        caption = f"{split.file(index)}: mIoU {miou:.3f} ({rank})"
        answer = found.labels.numpy(), found.confidence.numpy()
        yield caption, panel(np.asarray(image), target, *answer, split.spec.classes, palette, caption)


def draw_anomaly_panels(predictor, split, totals, figures, count, palette):
    """Pictures of `count` images evenly from worst to best by the best score's own AUPR: (caption, PIL image) each."""
    best = max(figures, key=lambda name: figures[name]["aupr"])
    rated = sorted((row["aupr"], index) for index, row in totals.image_scores.get(best, {}).items())
    threshold = totals.alarms.get(best)
    alarm = "" if threshold is None else f", outlined at the alarm threshold {threshold:.4g}"
    for place, (aupr, index) in spread_evenly(rated, count):
        image, target = split.read(index)
        found = predict_image(predictor, image, target.shape, [best])
        caption = f"{split.file(index)}: {best} AUPR {aupr:.3f} ({place + 1} of {len(rated)} from the worst){alarm}"
        answer = found.labels.numpy(), found.scores[best].numpy(), threshold
        yield caption, anomaly_panel(np.asarray(image), target, *answer, split.spec.classes, palette, caption)


def save_all(folder, name, pictures):
    """Save pictures as FOLDER/NAME-1.png …; pictures: of (caption, PIL image). Returns [(caption, path)]."""
    saved = []
    for number, (caption, picture) in enumerate(pictures, 1):
        saved.append((caption, folder / f"{name}-{number}.png"))
        save_picture(picture, saved[-1][1])
    return saved


def write_features(out, predictor, split, indices):
    """The stages' maps of the first image as pictures in OUT/features, their figures over all in OUT/features.json.

    Returns {"images", "drawn": files, "stages": rows, "pictures": [(caption, path)]}.
    """
    images = (predictor.geometry.resize(split.read(index)[0]) for index in indices)
    stages = feature_statistics(predictor, images)
    image = predictor.geometry.resize(split.read(indices[0])[0])  # (h, w, 3)
    maps = {stage: found[0].cpu().numpy() for stage, found in predictor.features(image[None]).items()}  # (D, rows, …)
    size, drawn = tuple(image.shape[:2]), split.file(indices[0])
    title = f"{drawn}: channel mean of each stage"
    means = {stage: found.mean(0) for stage, found in maps.items()}
    sheets = [("means", title, feature_picture(means, title, size, photo=image.numpy()))]
    for stage, found in maps.items():
        title = f"{drawn}: {stage}, first {min(FEATURE_CHANNELS, len(found))} of {len(found)} channels"
        channels = {f"channel {n}": one for n, one in enumerate(found[:FEATURE_CHANNELS])}
        sheets.append((stage.replace(" ", "-"), title, feature_picture(channels, title, size, columns=4)))
    pictures = [(caption, out / "features" / f"{name}.png") for name, caption, _ in sheets]
    for (_, path), (_, _, sheet) in zip(pictures, sheets, strict=True):
        save_picture(sheet, path)
    about = {"images": [split.file(index) for index in indices], "drawn": drawn, "stages": stages}
    write_json(out / "features.json", about)
    return {**about, "pictures": pictures}


def report_title(split, content):
    """What was evaluated, by which model, and what that was trained on where it is another set."""
    trained, name = content["data"]["dataset"], split.spec.name
    return f"{name}: {content['model']['name']}" + (f" trained on {trained}" if trained != name else "")


def write_pages(out, run_dir, predictor, content, split, totals, result, panels=6, features=False):
    """Draw the pictures and write the report page into OUT."""
    palette = [tuple(colour) for colour in content["data"]["palette"]]
    chosen, stages = choose_images(totals, panels), None
    if features:
        some = [index for index, *_ in chosen] or list(range(min(FEATURE_IMAGES, len(split))))
        stages = write_features(out, predictor, split, some)
        print(feature_table(stages["stages"]))
    folder = out / "pictures"
    pictures = save_all(folder, "panel", draw_panels(predictor, split, chosen, palette))
    if result["anomaly"]:
        drawn = draw_anomaly_panels(predictor, split, totals, result["anomaly"], panels, palette)
        pictures += save_all(folder, "anomaly", drawn)
    confusion = folder / "confusion.png"
    save_picture(confusion_picture(totals.confusion.numpy(), content["data"]["classes"]), confusion)
    diagnosis = out / "diagnosis.json"
    write_report(
        out / "report.html",
        title=report_title(split, content),
        config=content["config"],
        evaluation=result,
        log=read_log(run_dir),
        pictures=pictures,
        diagnosis=json.loads(diagnosis.read_text()) if diagnosis.is_file() else None,
        palette=palette,
        confusion=confusion,
        features=stages,
    )
    print(f"report: {out / 'report.html'}")


def main(words=None):
    """Evaluate."""
    args = build_parser().parse_args(words)
    predictor, content = load_predictor(args.ckpt, choose_device(args.device))
    set_views(predictor, **view_options(args))
    split = open_evaluated(content, args.split, args.dataset, args.data_dir, args.limit)
    check_files(split)
    sizes = parse_sizes(args.components)
    scores = choose_scores(predictor, split, args.scores, components=sizes is not None)
    reading = {"batch_size": args.batch_size, "workers": args.workers}
    parts = compute(predictor, content, split, scores, limit=args.limit, **reading)
    totals, result = summarise_sets(parts, split, content, predictor)
    if sizes and result["anomaly"]:
        add_components(result, predictor, split, sizes, **reading)
    run_dir, elsewhere = Path(args.ckpt).parent, is_other_set(content, args.dataset, args.data_dir)
    out = Path(args.out or (run_dir / run_name(args.dataset) if elsewhere else run_dir))
    write_json(args.json or out / "evaluation.json", result)
    print_summary(result, split)
    if elsewhere and (others := comparable_sets(split, content)):
        print(f"why the score drops there: python diagnose.py --ckpt {args.ckpt} --cross-dataset {others}")
    write_pages(out, run_dir, predictor, content, split, totals, result, args.panels, args.features)
    return 0


if __name__ == "__main__":
    sys.exit(cli.run(main))
