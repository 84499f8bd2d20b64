"""Which backbone? What every model costs, and what equal training makes of it.

    python benchmarks/models.py                                 parameters, size, GMACs, milliseconds: a few minutes
    python benchmarks/models.py --data-dir DIR --epochs 6       the same, and mIoU on CamVid after equal training
    python benchmarks/models.py --data-dir DIR --only fpn_swin_t,fpn_resnet50

GMACs are multiply-adds of one 512x512 image, half of what torch's own counter of operations says. Milliseconds are of
one image in evaluation, the median of several, on this machine. Training: the same images in the same order, the same
number of steps, from scratch or, where --weights imagenet can be downloaded, from there; best.pth's test mIoU.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import cli
import metrics
import models
from benchmarks.ablation import cost, measure, train
from engine.devices import choose_device
from report.files import write_json

CLASSES = 11
TRAINING = (
    "--dataset camvid --image-size 96x128 --augment flip=0.5,scale=0.75:1.5,colour=0.3 --class-weights sqrt --lr 1e-3"
)
TRAINING += " --clip 1 --validate-every 100"


def learn(name, args):
    """{"miou", "gain", "minutes"} after the equal training."""
    run = Path(args.runs).resolve() / name
    weights = args.weights if args.weights == "none" or models.build_model(name, 2).imagenet else "none"
    words = [*TRAINING.split(), "--model", name, "--data-dir", str(Path(args.data_dir).resolve()), "--weights", weights]
    words += f"--epochs {args.epochs} --workers {args.workers} --device {args.device} --limit {args.limit}".split()
    seconds = train(run, words)
    result = measure(run, args)
    gain = metrics.semantic_gain(result["miou"], result["floor"])
    return {"miou": result["miou"], "gain": gain, "weights": weights, "minutes": seconds / 60 if seconds else None}


def main():
    """Print one row a model; with --data-dir, the trained ones by mIoU."""
    parser = cli.Parser(__doc__)
    parser.add_argument("--only", default="", help="models, comma-separated; empty: all")
    parser.add_argument("--size", type=cli.size, default=[240, 320], metavar="HxW", help="of the image that is timed")
    parser.add_argument("--data-dir", metavar="DIR", help="CamVid; empty: train nothing")
    parser.add_argument("--weights", default="none", help="what training starts from: none or imagenet")
    parser.add_argument("--epochs", type=cli.positive_int, default=6, help="of the equal training")
    parser.add_argument("--runs", default="runs/models", metavar="DIR", help="where the runs go")
    parser.add_argument("--limit", type=cli.natural, default=0, help="first N images of each split; 0: all")
    parser.add_argument("--workers", type=cli.natural, default=2, help="reading processes; 0: read in this one")
    parser.add_argument("--device", default="auto", help="auto (CUDA when there is one), cpu, cuda, cuda:N")
    args = parser.parse_args()
    args.table = "models"
    names = args.only.split(",") if args.only else list(models.MODELS)
    for name in names:  # a wrong name is told before the first training
        models.parse_model(name)
    device = choose_device(args.device)
    rows, trained = {}, "test mIoU | semantic gain | training |" if args.data_dir else ""
    print("| model | M parameters | MB | GMACs | ms | " + trained + "\n|" + "---|" * (5 + trained.count("|")))
    for name in names:
        row = rows[name] = cost(name, CLASSES, args.size, device)
        cells = [name, f"{row['parameters'] / 1e6:.2f}", f"{row['megabytes']:.0f}", f"{row['gmacs']:.1f}"]
        cells += [f"{row['milliseconds']:.0f}"]
        if args.data_dir:
            row.update(learn(name, args))
            cells += [f"{row['miou']:.3f}", f"{row['gain']:.3f}"]
            cells += [f"{row['minutes']:.1f} min" if row["minutes"] else "–"]
        print("| " + " | ".join(cells) + " |", flush=True)
        write_json(Path(args.runs) / "models.json", rows)
    return 0


if __name__ == "__main__":
    sys.exit(cli.run(main))
