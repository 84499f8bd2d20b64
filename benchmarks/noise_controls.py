"""Is the noise test itself honest? Faults planted in it must come out as what they are.

    python benchmarks/noise_controls.py --dataset camvid --data-dir DIR         about 12 minutes on 2 cores

healthy     fresh noise, true targets          -> the labels' layout, nothing else
lr 0        a learning rate of 0               -> nothing learnt
real        real images let through as noise   -> refused by the proof
leak        noise whose size tells the label   -> the labels leak in
repeated    one noise image for each image     -> memorised (16 images, so that there is time to learn them by heart)
"""

import sys
from dataclasses import replace
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import cli
import data
from probes.noise_test import TrainingSettings, noise_test
from probes.replacement_inputs import noise
from probes.subject import Subject


def real(images, targets, _generator):
    """The images themselves."""
    return images, targets


def leak(images, targets, generator):
    """White noise around 127 whose distance from it grows with the label: no picture, and yet the label is in it."""
    step = 110 // max(1, int(targets[targets < 254].max()))
    sign = torch.randint(0, 2, images.shape, generator=generator) * 2 - 1
    size = step * targets.clamp(max=110 // step)[..., None].int()
    noisy = 127 + sign * (size + torch.randint(0, step + 1, images.shape, generator=generator))
    return noisy.to(torch.uint8), targets


def repeated(images, targets, _generator):
    """Noise drawn from a seed that the image itself gives: always the same for the same image."""
    seeded = (torch.Generator().manual_seed(int(image.long().sum())) for image in images)
    return torch.stack([noise(images[0], targets[0], generator)[0] for generator in seeded]), targets


CONTROLS = {  # name: (what replaces the images, whether it is declared fresh, training images, settings, cause)
    "healthy": (noise, True, None, {}, None),
    "lr 0": (noise, True, None, {"lr": 0.0, "iters": 20}, "nothing_learnt"),
    "real": (real, True, None, {}, "noise_is_not_noise"),
    "leak": (leak, True, None, {}, "label_leak"),
    "repeated": (repeated, False, 16, {}, "memorised_noise"),
}


def main(words=None):
    """Run every control; exit code 1 if one comes out as something else."""
    parser = cli.Parser(__doc__)
    data.add_data_flags(parser)
    parser.add_argument("--only", choices=list(CONTROLS), help="one of them; empty: all")
    args = parser.parse_args(words)
    settings = TrainingSettings(iters=600, workers=args.workers)
    train, val, *_ = Subject.open(**data.dataset_options(args), limit=args.limit).splits.values()
    wrong = 0
    for name, (change, fresh, images, changes, expected) in CONTROLS.items():
        if args.only not in (None, name):
            continue
        few = replace(train, pairs=train.pairs[:images]) if images else train
        one = Subject({"train": few, "val": val}, settings=replace(settings, **changes))
        progress = cli.Progress(one.settings.iters, name, "steps")
        one.tell = lambda done, _total, progress=progress: progress.update(done)
        [finding] = noise_test(one, change, fresh)
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
