"""Which backbone? What every model costs, and what equal training makes of it.

    python benchmarks/models.py                                 parameters, size, GMACs, milliseconds: a few minutes
    python benchmarks/models.py --data-dir DIR --epochs 6       the same, and mIoU on CamVid after equal training
    python benchmarks/models.py --data-dir DIR --only fpn_swin_t,fpn_resnet50

GMACs are multiply-adds of one 512x512 image, half of what torch's own counter of operations says. Milliseconds are of
one image in evaluation, the median of several, on this machine. Training: the same images in the same order, the same
number of steps, from scratch or, where --weights imagenet can be downloaded, from there; best.pth's test mIoU.
"""

import sys
import time
from pathlib import Path

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from ablation import measure, train

import engine
import flags
import metrics
import models
import report

CLASSES = 11
TRAINING = (
    "--dataset camvid --image-size 96x128 --augment flip=0.5,scale=0.75:1.5,colour=0.3 --class-weights sqrt --lr 1e-3"
)
TRAINING += " --clip 1 --validate-every 100"


def cost(name, size, device, rounds=7):
    """{"parameters", "megabytes", "gmacs" at 512x512, "milliseconds" at `size`} of a model."""
    with torch.device("meta"):
        model = models.build_model(name, CLASSES).eval()
        counter = FlopCounterMode(display=False)
        with torch.no_grad(), counter:
            model(torch.empty(1, 3, 512, 512))
    state = model.state_dict().values()
    model = models.build_model(name, CLASSES).eval().to(device, memory_format=torch.channels_last)
    images = torch.randn(1, 3, *size, device=device).contiguous(memory_format=torch.channels_last)
    times = []
    for _ in range(rounds):
        start = time.perf_counter()
        with torch.inference_mode():
            model(images)["out"].sum().item()  # waits for the device
        times.append(time.perf_counter() - start)
    return {
        "parameters": sum(p.numel() for p in model.parameters()),
        "megabytes": sum(value.numel() * value.element_size() for value in state) / 1e6,
        "gmacs": counter.get_total_flops() / 2e9,
        "milliseconds": 1000 * float(np.median(times)),
    }


def learn(name, args):
    """{"miou", "gain", "minutes"} after the equal training."""
    run = Path(args.runs).resolve() / name
    words = f"{TRAINING} --model {name} --data-dir {Path(args.data_dir).resolve()} --epochs {args.epochs}"
    words += f" --weights {args.weights} --workers {args.workers} --device {args.device} --limit {args.limit}"
    run.mkdir(parents=True, exist_ok=True)
    seconds = train(run, words.split())
    result = measure(run, args)
    gain = metrics.semantic_gain(result["miou"], result["floor"])
    return {"miou": result["miou"], "gain": gain, "minutes": seconds / 60 if seconds else None}


def main():
    """Print one row a model; with --data-dir, the trained ones by mIoU."""
    parser = flags.Parser(__doc__)
    parser.add_argument("--only", default="", help="models, comma-separated; empty: all")
    parser.add_argument("--size", type=flags.size, default=[240, 320], metavar="HxW", help="of the image that is timed")
    parser.add_argument("--data-dir", metavar="DIR", help="CamVid; empty: train nothing")
    parser.add_argument("--weights", default="none", help="what training starts from: none or imagenet")
    parser.add_argument("--epochs", type=flags.positive_int, default=6, help="of the equal training")
    parser.add_argument("--runs", default="runs/models", metavar="DIR", help="where the runs go")
    parser.add_argument("--limit", type=flags.natural, default=0, help="first N images of each split; 0: all")
    parser.add_argument("--workers", type=flags.natural, default=2, help="reading processes; 0: read in this one")
    parser.add_argument("--device", default="auto", help="auto (CUDA when there is one), cpu, cuda, cuda:N")
    args = parser.parse_args()
    args.table = "models"
    names = args.only.split(",") if args.only else list(models.MODELS)
    for name in names:
        models.parse_model(name)
    device = engine.choose_device(args.device)
    rows = {}
    print("| model | M parameters | MB | GMACs | ms | test mIoU | semantic gain | training |\n|" + "---|" * 8)
    for name in names:
        row = rows[name] = cost(name, args.size, device)
        cells = [name, f"{row['parameters'] / 1e6:.2f}", f"{row['megabytes']:.0f}", f"{row['gmacs']:.1f}"]
        cells += [f"{row['milliseconds']:.0f}"]
        if args.data_dir:
            row.update(learn(name, args))
            cells += [f"{row['miou']:.3f}", f"{row['gain']:.3f}"]
            cells += [f"{row['minutes']:.1f} min" if row["minutes"] else "–"]
        print("| " + " | ".join(cells) + " |", flush=True)
    report.write_json(Path(args.runs) / "models.json", rows)
    return 0


if __name__ == "__main__":
    sys.exit(flags.run(main))
