"""Is the noise test itself honest? Faults planted in it must come out as what they are.

    python benchmarks/noise_controls.py --dataset camvid --data-dir DIR         about 12 minutes on 2 cores

healthy     fresh noise, true targets          -> the labels' layout, nothing else
lr 0        a learning rate of 0               -> nothing learnt
real        real images let through as noise   -> refused by the proof
leak        noise whose size tells the label   -> the labels leak in
repeated    one noise image for each image     -> memorised (16 images, so that there is time to learn them by heart)
"""

import sys
from argparse import Namespace
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import cli
import data
import metrics
from datasets.audit import audit_split
from engine.devices import open_dataset
from probes.noise_test import fresh_noise, noise_test


def real(images, _targets, _generator):
    """The images themselves."""
    return images


def leak(images, targets, generator):
    """White noise around 127 whose distance from it grows with the label: no picture, and yet the label is in it."""
    step = 110 // max(1, int(targets[targets < 254].max()))
    sign = torch.randint(0, 2, images.shape, generator=generator) * 2 - 1
    size = step * targets.clamp(max=110 // step)[..., None].int()
    return (127 + sign * (size + torch.randint(0, step + 1, images.shape, generator=generator))).to(torch.uint8)


def repeated(images, _targets, _generator):
    """Noise drawn from a seed that the image itself gives: always the same for the same image."""
    noise = []
    for image in images:
        generator = torch.Generator().manual_seed(int(image.long().sum()))
        noise.append(torch.randint(0, 256, image.shape, dtype=torch.uint8, generator=generator))
    return torch.stack(noise)


CONTROLS = {
    "healthy": (fresh_noise, {}, None),
    "lr 0": (fresh_noise, {"lr": 0.0, "iters": 20}, "nothing_learnt"),
    "real": (real, {}, "noise_is_not_noise"),
    "leak": (leak, {}, "label_leak"),
    "repeated": (repeated, {"limit": 16, "fresh": False}, "memorised_noise"),
}


def main():
    """Run every control; exit code 1 if one comes out as something else."""
    parser = cli.Parser(__doc__)
    data.add_data_flags(parser)
    parser.add_argument("--only", choices=list(CONTROLS), help="one of them; empty: all")
    args = parser.parse_args()
    spec, root = open_dataset(**data.dataset_options(args))
    wrong = 0
    for name, (make, changes, expected) in CONTROLS.items():
        if args.only not in (None, name):
            continue
        settings = {
            "model": "fpn_mobilenet_v2",
            "weights": "none",
            "freeze": "none",
            "aux_task": "none",
            "image_size": [120, 160],
            "batch_size": 8,
            "lr": 2e-3,
            "iters": 600,
        }
        settings |= {"seed": 0, "workers": args.workers, "limit": args.limit, "fresh": True} | changes
        chosen = Namespace(**settings)
        splits = {
            s: data.open_split(spec, root, s, chosen.limit if s == "train" else args.limit) for s in ("train", "val")
        }
        audits = {s: audit_split(split, metrics.GRID) for s, split in splits.items()}
        progress = cli.Progress(chosen.iters, name, "steps")
        finding = noise_test(chosen, splits, audits, torch.device("cpu"), make, chosen.fresh, progress.update)
        progress.close()
        as_expected = finding.cause == expected
        wrong += not as_expected
        print(
            f"{name}: {finding.verdict}, {finding.cause} ({'as expected' if as_expected else f'expected {expected}'})"
        )
        print(f"    {finding.why} ({finding.seconds:.0f} s)", flush=True)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(cli.run(main))
