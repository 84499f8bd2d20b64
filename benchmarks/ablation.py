"""Tables that say what a choice is worth: every row is one `train.py` command, told apart by a few flags.

    python benchmarks/ablation.py imbalance                                  remedies for rare classes, on streets
    python benchmarks/ablation.py pyramid --data-dir DIR --weights FILE      the pyramid's options, on CamVid
    python benchmarks/ablation.py remedies --data-dir DIR --weights FILE     against shortcuts, on CamVid, three seeds

Each run lies in RUNS/TABLE/ROW-SEED; what is done is not done again, what was interrupted goes on. A difference to the
first row stands beside each row: with several seeds its mean and spread over seeds, with one its 95 % interval from a
bootstrap over the test images, the same images drawn for both rows.
"""

import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import cli
import data
import metrics
import models
from datasets.catalogue import build_spec
from datasets.streets.render import write_streets
from engine.devices import choose_device, open_dataset
from engine.evaluation import evaluate
from engine.trained_run import layout_map_of, load_predictor, trained_on
from report.files import write_json

ROOT = Path(__file__).resolve().parent.parent
IMBALANCE = (
    "--dataset folder --image-size 120x208 --model fpn_mobilenet_v2 --augment flip=0.5,scale=0.8:1.25,colour=0.2 "
)
IMBALANCE += "--epochs 10 --validate-every 10"
CAMVID = "--dataset camvid --image-size 96x128 --model fpn_mobilenet_v2 --augment flip=0.5,scale=0.75:1.5,colour=0.3 "
CAMVID += "--lr 2e-3 --backbone-lr 3e-4 --class-weights sqrt --validate-every 10"

TABLES = {  # table: (flags of all rows, seeds, {row: its own flags})
    "imbalance": (
        IMBALANCE,
        1,
        {
            "unweighted": "",
            "weights sqrt": "--class-weights sqrt",
            "weights inverse": "--class-weights inverse",
            "weights median": "--class-weights median",
            "weights effective": "--class-weights effective",
            "balanced sampling": "--sampling balanced",
            "focal": "--loss focal=1:2",
            "OHEM": "--loss ohem=1:0.7",
            "Dice": "--loss ce=1,dice=1",
            "Lovász": "--loss ce=1,lovasz=1",
        },
    ),
    "pyramid": (
        f"{CAMVID} --epochs 4",
        1,
        {
            "channels=128": "--model fpn_mobilenet_v2:channels=128",
            "channels=64": "--model fpn_mobilenet_v2:channels=64",
            "channels=256": "--model fpn_mobilenet_v2:channels=256",
            "laterals=off": "--model fpn_mobilenet_v2:channels=128,laterals=off",
            "upsample=nearest": "--model fpn_mobilenet_v2:channels=128,upsample=nearest",
            "upsample=transposed": "--model fpn_mobilenet_v2:channels=128,upsample=transposed",
            "attention=se": "--model fpn_mobilenet_v2:channels=128,attention=se",
            "attention=cbam": "--model fpn_mobilenet_v2:channels=128,attention=cbam",
        },
    ),
    "remedies": (
        f"{CAMVID} --epochs 8",
        3,
        {
            "plain": "",
            "robustness": "--loss ce=1,noisy=0.1,consistency=0.05",
            "contrastive": "--loss ce=1,contrastive=0.1",
            "spatial": "--loss ce=1,spatial=0.1",
            "multi-task": "--aux-task properties",
        },
    ),
}
NOISE = (0.1, 0.2)  # standard deviations in normalised units, as the robustness terms have it

# streets with its large classes merged and cars left out, so that two classes hold most of what is labelled
HARSH = {
    "ground": ("road", "road line", "sidewalk"),
    "scenery": ("unlabeled", "building", "wall", "vegetation", "pole"),
    "other": ("other",),
    "fence": ("fence",),
    "pedestrian": ("pedestrian",),
    "traffic sign": ("traffic sign",),
}


def write_harsh_streets(folder, streets):
    """The embedded scenes as a folder set with HARSH's classes: the same files, by links, and another classes.json."""
    if not streets.exists():
        write_streets(streets)
    spec = build_spec("streets", streets)
    on_disk = {spec.classes[train_id]: value for value, train_id in spec.values.items() if train_id < spec.num_classes}
    classes = [{"name": name, "values": [on_disk[old] for old in merged]} for name, merged in HARSH.items()]
    used = {value for one in classes for value in one["values"]}
    void = [0, *sorted({*spec.values, 255} - used - {0})]
    for kind, parts in (("images", 0), ("masks", 1)):
        (folder / kind).mkdir(parents=True, exist_ok=True)
        for split, places in spec.splits.items():
            link = folder / kind / split
            if not link.is_symlink():
                link.symlink_to((streets / places[parts]).resolve())
    (folder / "classes.json").write_text(json.dumps({"classes": classes, "void": void}))


def train(run, words):
    """Run train.py, or go on with it; returns its seconds, None where an earlier call had trained some of it.

    Raises UserError where the folder holds a run of other flags: it would pass for a row of this table.
    """
    run.mkdir(parents=True, exist_ok=True)
    asked = run / "words.json"
    if asked.is_file() and json.loads(asked.read_text()) != words:
        raise cli.UserError("this run was trained with other flags", run, "remove it, or choose another --runs")
    asked.write_text(json.dumps(words))
    if (run / "trained").is_file():
        return json.loads((run / "trained").read_text())
    resumed = (run / "last.pth").is_file()
    words = ["--run-dir", str(run), "--resume"] if resumed else [*words, "--run-dir", str(run)]
    start = time.perf_counter()
    done = subprocess.run([sys.executable, str(ROOT / "train.py"), *words], cwd=ROOT, check=False)
    if done.returncode:
        sys.exit(done.returncode)
    seconds = None if resumed else time.perf_counter() - start
    (run / "trained").write_text(json.dumps(seconds))
    return seconds


def noisy(sigma, normalise):
    """What evaluation sees instead: its images with Gaussian noise of `sigma`, normalised units; always the same."""

    def change(images, _targets, indices):
        values = images.float()  # (N, h, w, 3), 0 to 255
        for image, index in zip(values, indices, strict=True):
            noise = torch.randn(image.shape, generator=torch.Generator().manual_seed(index))
            image += 255 * sigma * normalise.std.flatten().cpu() * noise
        return values.clamp_(0, 255)

    return change


def measure(run, args):
    """{"miou", "accuracy", "active", "floor", "counts", "noise": {sigma: miou}} of a run's test split."""
    kept = run / "measured.pt"
    if kept.is_file():
        return torch.load(kept, weights_only=True)
    predictor, content = load_predictor(run / "best.pth", choose_device(args.device))
    split = data.open_split(*open_dataset(**trained_on(content)), "test", args.limit)
    layout_map = layout_map_of(content)
    options = {"batch_size": 8, "workers": args.workers}
    totals = evaluate(predictor, split, layout_map=layout_map, **options)
    scores = totals.scores()
    result = {
        "miou": scores["miou"],
        "accuracy": scores["pixel_accuracy"],
        "active": scores["active_classes"],
        "iou": scores["iou"],
        "classes": list(split.spec.classes),
        "floor": totals.layout_floor(),
        "counts": torch.stack([totals.images[i] for i in sorted(totals.images)]),
        "noise": {},
    }
    for sigma in NOISE if args.table == "remedies" else ():
        change = noisy(sigma, predictor.normalise)
        result["noise"][sigma] = evaluate(predictor, split, change=change, **options).scores()["miou"]
    torch.save(result, kept)
    return result


def difference_interval(first, second, samples=1000):
    """95 % interval of mIoU(second) - mIoU(first), both from (N, 3, C) counts: images drawn anew, for both the same."""
    generator = torch.Generator().manual_seed(0)
    drawn = torch.randint(len(first), (samples, len(first)), generator=generator)
    gaps = [float(metrics.mean_iou(second[i].sum(0))[0] - metrics.mean_iou(first[i].sum(0))[0]) for i in drawn]
    return np.quantile(gaps, (0.025, 0.975)).tolist()


def over_seeds(values):
    """'0.512 ± 0.004': mean and standard deviation (n - 1); one value as it is."""
    if len(values) == 1:
        return f"{values[0]:.3f}"
    return f"{np.mean(values):.3f} ± {np.std(values, ddof=1):.3f}"


def compare(rows, first):
    """How far a row's mIoU lies from the first row's."""
    if rows is first:
        return "–"
    if len(rows) == 1:
        low, high = difference_interval(first[0]["counts"], rows[0]["counts"])
        return f"{rows[0]['miou'] - first[0]['miou']:+.3f} [{low:+.3f}, {high:+.3f}]"
    gaps = [row["miou"] - base["miou"] for row, base in zip(rows, first, strict=True)]
    return f"{np.mean(gaps):+.3f} ± {np.std(gaps, ddof=1):.3f}"


def cost(text, num_classes, size, device, rounds=7):
    """{"parameters", "megabytes", "gmacs" at 512x512, "milliseconds" of one image of `size`} of a --model."""
    name, options = models.parse_model(text)
    with torch.device("meta"):
        model = models.build_model(name, num_classes, options).eval()
        counter = FlopCounterMode(display=False)
        with torch.no_grad(), counter:
            model(torch.empty(1, 3, 512, 512))
    state = model.state_dict().values()
    model = models.build_model(name, num_classes, options).eval().to(device, memory_format=torch.channels_last)
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


def show(table, rows, size, device):
    """The table on the terminal, in Markdown."""
    first = next(iter(rows.values()))
    head = ["row", "test mIoU", "to the first row", "semantic gain", "accuracy", "active", "training"]
    head += [f"mIoU at noise {sigma}" for sigma in first[0]["noise"]]
    head += ["M parameters", "GMACs at 512×512", "ms"] if table == "pyramid" else []
    print("| " + " | ".join(head) + " |\n|" + "---|" * len(head))
    for name, runs in rows.items():
        seconds = [run["seconds"] for run in runs if run["seconds"]]
        cells = [name, over_seeds([run["miou"] for run in runs]), compare(runs, first)]
        cells += [over_seeds([metrics.semantic_gain(run["miou"], run["floor"]) for run in runs])]
        cells += [over_seeds([run["accuracy"] for run in runs])]
        cells += [f"{np.mean([run['active'] for run in runs]):.3g} of {len(runs[0]['classes'])}"]
        cells += [f"{np.mean(seconds) / 60:.1f} min" if seconds else "–"]
        cells += [over_seeds([run["noise"][sigma] for run in runs]) for sigma in first[0]["noise"]]
        if table == "pyramid":
            about = cost(runs[0]["model"], len(runs[0]["classes"]), size, device)
            cells += [f"{about['parameters'] / 1e6:.2f}", f"{about['gmacs']:.2f}", f"{about['milliseconds']:.0f}"]
        print("| " + " | ".join(cells) + " |")


def main():
    """Train what is missing, measure it, show the table."""
    parser = cli.Parser(__doc__)
    parser.add_argument("table", choices=TABLES, help="which table")
    parser.add_argument("--data-dir", metavar="DIR", help="where CamVid lies; for imbalance the embedded streets")
    parser.add_argument("--weights", default="none", help="what pyramid and remedies start from, as train.py's")
    parser.add_argument("--runs", default="runs/ablation", metavar="DIR", help="where the runs go")
    parser.add_argument("--seeds", type=cli.natural, default=0, help="runs a row; 0: the table's own number")
    parser.add_argument("--limit", type=cli.natural, default=0, help="first N images of each split; 0: all")
    parser.add_argument("--workers", type=cli.natural, default=2, help="reading processes; 0: read in this one")
    parser.add_argument("--device", default="auto", help="auto (CUDA when there is one), cpu, cuda, cuda:N")
    parser.add_argument("--args", default="", help="more flags for every train.py, such as '--epochs 1'")
    args = parser.parse_args()
    common, seeds, variants = TABLES[args.table]
    folder = Path(args.runs).resolve() / args.table
    folder.mkdir(parents=True, exist_ok=True)
    if args.table == "imbalance":
        streets = Path(args.data_dir or ROOT / "data" / "streets")
        write_harsh_streets(folder / "data", streets)
        source = ["--data-dir", str(folder / "data")]
    else:
        if not args.data_dir:
            raise cli.UserError("no CamVid", "--data-dir", "name its folder")
        source = ["--data-dir", str(Path(args.data_dir).resolve()), "--weights", args.weights]
    machine = f"--workers {args.workers} --device {args.device} --limit {args.limit} {args.args}".split()
    rows = {name: [] for name in variants}
    for seed in range(args.seeds or seeds):  # seed by seed, so that a table broken off has whole columns
        for name, own in variants.items():
            run = folder / f"{name.replace(' ', '-').replace('=', '-')}-{seed}"
            words = [*common.split(), *source, *machine, *own.split(), "--seed", str(seed)]
            seconds = train(run, words)
            model = json.loads((run / "config.json").read_text())["model"]
            rows[name].append({**measure(run, args), "seconds": seconds, "model": model})
    size = cli.size(common.partition("--image-size ")[2].split()[0])
    show(args.table, rows, size, choose_device(args.device))
    kept = {
        name: [{key: value for key, value in run.items() if key != "counts"} for run in runs]
        for name, runs in rows.items()
    }
    write_json(folder / "table.json", kept)
    return 0


if __name__ == "__main__":
    sys.exit(cli.run(main))
