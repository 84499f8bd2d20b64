"""The four figures that keep the embedded streets from being a toy.

    python benchmarks/streets.py                            trains the default recipe first
    python benchmarks/streets.py --ckpt runs/streets/best.pth

1. layout floor, 0.20 to 0.40   what the training masks alone give on the test split
2. colour alone, at most 0.35   a classifier that sees a pixel's own RGB and nothing else
3. test mIoU, at least 0.60     the default recipe over the 13 known classes
4. anomaly AUPR, 0.1 to 0.6     max logit of the same model
"""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import cli
import data
import metrics
from datasets.audit import audit_split
from engine.devices import open_dataset

SHADES = 24  # a colour is one of 24 x 24 x 24 bins


def colour_bins(image):
    """A PIL image -> (H, W) number of each pixel's colour bin."""
    red, green, blue = (np.asarray(image, np.int64) * SHADES // 256).transpose(2, 0, 1)
    return (red * SHADES + green) * SHADES + blue


def colour_counts(split):
    """(bins, C) pixels of each class in each colour bin, over a split."""
    classes = split.spec.num_classes
    counts = np.zeros(SHADES**3 * classes, np.int64)
    for index in range(len(split)):
        image, target = split.read(index)
        known = target < classes
        counts += np.bincount(colour_bins(image)[known] * classes + target[known], minlength=len(counts))
    return counts.reshape(-1, classes)


def table_confusion(table, split):
    """Confusion of predicting table[colour bin] on a split."""
    confusion = 0
    for image, target in map(split.read, range(len(split))):
        guess = torch.from_numpy(table[colour_bins(image)])
        confusion = confusion + metrics.confusion_matrix(guess, torch.from_numpy(target), split.spec.num_classes)
    return confusion


def colour_alone(train, test):
    """Test mIoU of argmax n_c(colour) / f_c^a, the exponent a chosen on the training split."""
    counts = colour_counts(train)
    shares = counts.sum(0) / counts.sum()

    def table(exponent):
        return (counts / shares**exponent).argmax(1).astype(np.uint8)

    def training_miou(exponent):
        chosen = table(exponent)
        confusion = np.zeros((len(shares), len(shares)))
        np.add.at(confusion.T, chosen, counts)
        return metrics.segmentation_scores(torch.from_numpy(confusion).long())["miou"]

    best = max((0, 0.25, 0.5, 0.75, 1), key=training_miou)
    return metrics.segmentation_scores(table_confusion(table(best), test))["miou"], best


def main():
    """Print the four figures."""
    parser = cli.Parser(__doc__)
    parser.add_argument("--ckpt", metavar="FILE", help="a trained model; empty: train the default recipe now")
    args = parser.parse_args()
    spec, root = open_dataset("streets")
    train, test = (data.open_split(spec, root, name) for name in ("train", "test"))
    layout = metrics.fit_layout(audit_split(train, metrics.GRID).grids, spec.num_classes)
    colour, exponent = colour_alone(train, test)
    if not args.ckpt:
        subprocess.run([sys.executable, "train.py", "@recipes/streets.args", "--run-dir", "runs/streets"], check=True)
    checkpoint = args.ckpt or "runs/streets/best.pth"
    out = Path(checkpoint).parent / "figures"  # beside the run's own report, not over it
    subprocess.run(
        [sys.executable, "evaluate.py", "--ckpt", checkpoint, "--panels", "0", "--out", str(out)], check=True
    )
    result = json.loads((out / "evaluation.json").read_text())
    print(f"1. layout floor  {result['layout_floor']:.3f}  (a = {layout.exponent})")
    print(f"2. colour alone  {colour:.3f}  (a = {exponent})")
    print(f"3. test mIoU     {result['miou']:.3f}")
    print(f"4. anomaly AUPR  {result['anomaly']['maxlogit']['aupr']:.3f}")
    return 0


if __name__ == "__main__":
    sys.exit(cli.run(main))
