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
from argparse import Namespace
from pathlib import Path

import numpy as np

import cli
import data
import metrics
from cli import UserError
from datasets.audit import audit_split
from datasets.catalogue import IN_FOLDERS, parse_name
from datasets.label_spaces import declared_classes, declared_names, parse_sets, run_name
from engine import summary
from engine.devices import choose_device, open_dataset
from engine.evaluation import evaluate_sets, merge_counts
from engine.predictor import add_prediction_flags, apply_prediction_flags, feature_statistics, predict_image
from engine.safe_miou import safe_miou
from engine.summary import add_anomaly_flags, add_components, choose_scores, thresholds
from engine.trained_run import check_classes, layout_map_of, load_predictor, space_of, trained_on
from report.files import save_picture, write_json, write_report
from report.pictures import confusion_picture, feature_picture, panel
from report.tables import anomaly_table, class_table, confusion_words, feature_table, score_text, sets_table

WORST = CONFUSIONS = 10  # named in report and JSON; three of each on the terminal
FEATURE_IMAGES, FEATURE_CHANNELS = 6, 8  # images behind the figures of a stage where no panel is drawn; channels drawn


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


def is_other_set(args, content):
    """Whether --dataset names other sets than the checkpoint's own; a set that only its classes.json describes is told
    by its folder."""
    if args.dataset is None:
        return False
    own = trained_on(content)
    if run_name(args.dataset) != run_name(own.dataset):
        return True
    named = parse_sets(args.dataset, args.data_dir) if args.data_dir else []
    pairs = zip(named, parse_sets(own.dataset, own.data_dir), strict=False)
    return any(name in IN_FOLDERS and root.resolve() != found.resolve() for (name, root, _), (_, found, _) in pairs)


def own_folders(args, own):
    """--data-dir for other sets where it is not given: the run's own sets lie where it found them, others in data/NAME.

    Raises UserError where the run knows several sets of a name.
    """
    found = {}
    for name, root, _ in parse_sets(own.dataset, own.data_dir):
        found.setdefault(parse_name(name)[0], set()).add(root)
    folders = []
    for name, root, _ in parse_sets(args.dataset, None):
        known = found.get(parse_name(name)[0], {root})
        if len(known) > 1:
            what = f"the model was trained on {len(known)} sets named {name}"
            raise UserError(what, "--dataset", "say which with --data-dir, or leave both out for all")
        folders.append(str(*known))
    return ",".join(folders)


def open_split(args, content):
    """The split to evaluate: of the checkpoint's own data, or of other sets in its classes. Raises UserError."""
    own = trained_on(content)
    if not is_other_set(args, content):
        spec, root = open_dataset(trained_on(content, args.data_dir))
        check_classes(spec, content)
        return data.open_split(spec, root, args.split, args.limit)
    data_dir = args.data_dir or own_folders(args, own)
    where = Namespace(dataset=args.dataset, data_dir=data_dir, anomaly_classes=own.anomaly_classes)
    spec, root = open_dataset(where, space_of(content))
    for label, part in [(part.label, part.spec) for part in spec.parts] or [(spec.name, spec)]:
        if len(declared_classes(part)) == 1:
            only = declared_names(part)[0]
            raise UserError(f"{label} shares only {only} with the model", "--dataset", "there is nothing to tell apart")
    return data.open_split(spec, root, args.split, args.limit)


def is_the_trained_set(part, content):
    """Whether a set is the one that the checkpoint's layout map was made of: by name, or by folder (`is_other_set`)."""
    own = trained_on(content)
    sets = parse_sets(own.dataset, own.data_dir)
    same = len(sets) == 1 and part.spec.name == sets[0][0]
    return same and (part.spec.name not in IN_FOLDERS or part.root.resolve() == sets[0][1].resolve())


def own_layouts(split, content, limit):
    """{set: layout map of its own training targets} of the sets that the checkpoint's one map is not made of alone."""
    maps = {}
    for label, part, _ in split.ranges():
        if is_the_trained_set(part, content) or "train" not in {*part.spec.splits, *part.spec.cut}:
            continue
        try:
            train = audit_split(data.open_split(part.spec, part.root, "train", limit), metrics.GRID, images=False)
            if train.error():
                raise train.error()
        except UserError as error:
            cli.warn(f"no floor from {label}'s own layout: {error}")
            continue
        maps[label] = metrics.fit_layout(train.grids, part.spec.num_classes).map
    return maps


def comparable_sets(split, content):
    """The other sets that have classes and a training split, as diagnose's --cross-dataset takes them."""
    return ",".join(
        f"{part.spec.name}:{part.root.as_posix()}"
        for _, part, _ in split.ranges()
        if declared_classes(part.spec)
        and {"train", "val"} <= {*part.spec.splits, *part.spec.cut}
        and not is_the_trained_set(part, content)
    )


def check_files(split):
    """Read every pair once before anything is computed. Raises UserError for a damaged file or an undeclared label."""
    found = audit_split(split, metrics.GRID)
    fault = found.fault()
    if fault and fault[0] not in ("no_labels", "anomaly_in_training"):  # neither hinders counting
        raise fault[1]


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
        **summary.summarise(totals, classes),
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
        **(summary.protocol(alarms) if spec.anomaly else {}),
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


def choose_panels(totals, count):
    """Indices of `count` images evenly from worst to best per-image mIoU, with their rank in words."""
    rated = [pair for pair in rate_images(totals) if pair[0] is not None]
    if not rated or not count:
        return []
    places = np.unique(np.linspace(0, len(rated) - 1, count).round().astype(int)).tolist()
    words = {0: "worst", len(rated) - 1: "best", len(rated) // 2: "median"}
    return [(rated[p][1], rated[p][0], words.get(p, f"{p + 1} of {len(rated)} from the worst")) for p in places]


def write_panels(folder, predictor, split, chosen, palette):
    """Draw the chosen images; returns [(caption, path)]."""
    folder.mkdir(parents=True, exist_ok=True)
    pictures = []
    for number, (index, miou, rank) in enumerate(chosen):
        image, target = split.read(index)
        found = predict_image(predictor, image, target.shape)
        caption = f"{split.file(index)}: mIoU {miou:.3f} ({rank})"
        picture = panel(
            np.asarray(image),
            target,
            found.labels.numpy(),
            found.confidence.numpy(),
            split.spec.classes,
            palette,
            caption,
        )
        path = folder / f"panel-{number + 1}.png"
        save_picture(picture, path)
        pictures.append((caption, path))
    return pictures


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
    pictures = []
    for name, caption, sheet in sheets:
        path = out / "features" / f"{name}.png"
        save_picture(sheet, path)
        pictures.append((caption, path))
    about = {"images": [split.file(index) for index in indices], "drawn": drawn, "stages": stages}
    write_json(out / "features.json", about)
    return {**about, "pictures": pictures}


def read_log(run_dir):
    """The lines of a run's log.jsonl, [] where there is none."""
    path = run_dir / "log.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []


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


def compute(args, predictor, content, split, scores):
    """{set: EvaluationCounts} of the split, with a line of progress."""
    progress = cli.Progress(len(split), f"evaluate {split.name}", "images")
    own_maps = own_layouts(split, content, args.limit)
    done = itertools.count(1)
    parts = evaluate_sets(
        predictor,
        split,
        batch_size=args.batch_size,
        workers=args.workers,
        layout_map=layout_map_of(content),
        own_maps=own_maps,
        scores=scores,
        alarms=thresholds(content),
        observe=lambda *_: progress.update(next(done)),
    )
    progress.close()
    return parts


def report_title(split, content):
    """What was evaluated, by which model, and what that was trained on where it is another set."""
    trained, name = content["data"]["dataset"], split.spec.name
    return f"{name}: {content['model']['name']}" + (f" trained on {trained}" if trained != name else "")


def write_confusion(folder, totals, classes):
    """Draw the confusion matrix; returns its path."""
    path = folder / "confusion.png"
    save_picture(confusion_picture(totals.confusion.numpy(), classes), path)
    return path


def main():
    """Evaluate."""
    args = build_parser().parse_args()
    device = choose_device(args.device)
    predictor, content = load_predictor(args.ckpt, device)
    apply_prediction_flags(predictor, args)
    split = open_split(args, content)
    check_files(split)
    scores = choose_scores(args, predictor, split)
    parts = compute(args, predictor, content, split, scores)
    totals, result = summarise_sets(parts, split, content, predictor)
    if args.components and result["anomaly"]:
        add_components(result, args, predictor, split)
    own = Path(args.ckpt).parent
    out = Path(args.out or (own / run_name(args.dataset) if is_other_set(args, content) else own))
    write_json(args.json or out / "evaluation.json", result)
    print_summary(result, split)
    if is_other_set(args, content) and (others := comparable_sets(split, content)):
        print(f"what does not travel, and why: python diagnose.py --ckpt {args.ckpt} --cross-dataset {others}")
    palette = [tuple(colour) for colour in content["data"]["palette"]]
    chosen = choose_panels(totals, args.panels)
    features = None
    if args.features:
        some = [index for index, *_ in chosen] or list(range(min(FEATURE_IMAGES, len(split))))
        features = write_features(out, predictor, split, some)
        print(feature_table(features["stages"]))
    pictures = write_panels(out / "pictures", predictor, split, chosen, palette)
    if result["anomaly"] and args.panels:
        pictures += summary.write_panels(
            out / "pictures", predictor, split, totals, result["anomaly"], args.panels, palette
        )
    diagnosis = out / "diagnosis.json"
    write_report(
        out / "report.html",
        title=report_title(split, content),
        config=content["config"],
        evaluation=result,
        log=read_log(Path(args.ckpt).parent),
        pictures=pictures,
        diagnosis=json.loads(diagnosis.read_text()) if diagnosis.is_file() else None,
        palette=palette,
        confusion=write_confusion(out / "pictures", totals, content["data"]["classes"]),
        features=features,
    )
    print(f"report: {out / 'report.html'}")
    return 0


if __name__ == "__main__":
    sys.exit(cli.run(main))
