"""Segment a person's own photos with a trained checkpoint.

    python predict.py --ckpt runs/streets/best.pth photo.jpg --out predicted
    python predict.py --ckpt runs/streets/best.pth photos/ --out predicted      a folder, below which names are kept
    python predict.py --ckpt best.pth photos/ --score energy --alarm 0.01       mark what is like nothing learnt

Writes OUT/classes/NAME.png (class numbers, with the palette), OUT/overlay/NAME.png and OUT/SCORE/NAME.png (a heat map:
brighter is less like anything learnt), all at the photo's own size. With --alarm, pixels at or above the threshold that
this share of the known validation pixels reached get the number after the last class, and the anomaly's colour.
"""

import sys
from pathlib import Path

import numpy as np
from PIL import ImageOps

import cli
from anomaly.scores import NAMES, parse_scores
from cli import UserError
from datasets.masks import read_image
from datasets.pairs import find_images
from engine.devices import choose_device
from engine.evaluation import ALARM_RATES
from engine.predictor import add_prediction_flags, predict_image, set_views, view_options
from engine.trained_run import load_predictor
from report.files import save_mask, save_picture
from report.pictures import heat_map, overlay


def build_parser():
    """All flags of predict.py."""
    parser = cli.Parser(__doc__)
    parser.add_argument("photos", nargs="+", metavar="PHOTO", help="image files or folders of them")
    parser.add_argument("--ckpt", required=True, metavar="FILE", help="the checkpoint, best.pth of a run")
    parser.add_argument("--out", default="predicted", metavar="DIR", help="where the pictures go")
    parser.add_argument("--device", default="auto", help="auto (CUDA when there is one), cpu, cuda, cuda:N")
    parser.add_argument("--score", default="maxlogit", metavar="NAME", help=f"of the heat map: {', '.join(NAMES)}")
    parser.add_argument(
        "--alarm",
        type=cli.non_negative,
        default=0,
        metavar="RATE",
        help=f"false alarms of known pixels, {' or '.join(f'{rate:g}' for rate in ALARM_RATES)}; 0: no alarm",
    )
    add_prediction_flags(parser)
    return parser


def choose_score(args, predictor):
    """The score that --score names. Raises UserError for one that does not exist, or that the checkpoint lacks."""
    names = parse_scores(args.score)
    if len(names) > 1:
        raise UserError(f"{len(names)} scores", "--score", "name one")
    if names[0].partition(":")[0] not in predictor.scores():
        remedy = f"it gives {', '.join(predictor.scores())}; statistics are in best.pth of a finished run"
        raise UserError(f"this checkpoint gives no score {names[0]!r}", "--score", remedy)
    return names[0]


def alarm_threshold(args, content):
    """The score at and above which a pixel raises the alarm, None without --alarm.

    Raises UserError for a rate, or a score, that the checkpoint has no threshold for.
    """
    if not args.alarm:
        return None
    known = content["data"].get("alarms", {}).get(args.score, {})
    if f"{args.alarm:g}" not in known:
        remedy = f"known rates: {', '.join(known)}" if known else "use best.pth of a finished run, and a whole score"
        raise UserError(f"no threshold of {args.score} for {args.alarm:g} in the checkpoint", "--alarm", remedy)
    return known[f"{args.alarm:g}"]


def find_photos(paths):
    """{name without ending, below its folder: file}. Raises UserError for nothing there, or two photos of one name."""
    found = {}
    for path in map(Path, paths):
        if not path.exists():
            raise UserError("no such file", path, "check the path")
        files = find_images(path) if path.is_dir() else [path]
        if not files:
            raise UserError("no image in this folder", path, "photos end in .jpg, .png, …")
        for file in files:
            name = file.relative_to(path if path.is_dir() else path.parent).with_suffix("").as_posix()
            if name in found:
                raise UserError(f"two photos named {name}", f"{found[name]}, {file}", "predict them into two folders")
            found[name] = file
    return found


def segment(predictor, path, score="maxlogit"):
    """(PIL image as a person sees it, its EXIF orientation applied; Prediction at its size)."""
    image = ImageOps.exif_transpose(read_image(path))
    return image, predict_image(predictor, image, (image.height, image.width), [score])


def main():
    """Predict every photo; one that cannot be read is named at the end and costs the others nothing."""
    args = build_parser().parse_args()
    predictor, content = load_predictor(args.ckpt, choose_device(args.device))
    set_views(predictor, **view_options(args))
    score_name = choose_score(args, predictor)
    threshold = alarm_threshold(args, content)
    if threshold is not None and not predictor.plain:
        cli.warn("the alarm threshold was taken with each image seen once, as it is; here it may not hold its rate")
    palette = [tuple(colour) for colour in content["data"]["palette"]]
    photos, errors = find_photos(args.photos), []
    score_folder = score_name.replace(":", "-")
    progress = cli.Progress(len(photos), "predict", "photos")
    for done, (name, path) in enumerate(photos.items(), 1):
        try:
            image, found = segment(predictor, path, score_name)
        except UserError as error:
            errors.append(error)
            continue
        labels, score, out = found.labels.numpy(), found.scores[score_name].numpy(), Path(args.out)
        if threshold is not None:
            labels = np.where(score >= threshold, predictor.num_classes, labels).astype(np.uint8)
        for folder in ("classes", "overlay", score_folder):
            (out / folder / f"{name}.png").parent.mkdir(parents=True, exist_ok=True)
        save_mask(out / "classes" / f"{name}.png", labels, palette)
        save_picture(overlay(np.asarray(image), labels, palette), out / "overlay" / f"{name}.png")
        save_picture(heat_map(score), out / score_folder / f"{name}.png")
        progress.update(done)
    progress.close()
    print(f"{len(photos) - len(errors)} of {len(photos)} photos in {args.out}/{{classes,overlay,{score_folder}}}")
    for error in errors:
        print(f"error: {error}", file=sys.stderr)
    return 2 if errors else 0


if __name__ == "__main__":
    sys.exit(cli.run(main))
