"""Images a second of our training loop against the plain recipe, in one run, the two in turn.

    python benchmarks/throughput.py                   mobilenetv2, 240x240, batch 8, on images it writes itself
    python benchmarks/throughput.py --rounds 5

The plain recipe is what a tutorial has: torchvision transforms on each sample in the workers (resize, the same flip,
scale and colour jitter, to float, normalise), float32, default memory format, torch's cross-entropy, AdamW. Same model,
same images on disk (480x360 JPEG with PNG masks), same number of workers, nothing else running.
"""

import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch.utils.data import DataLoader, Dataset
from torchvision import tv_tensors
from torchvision.transforms import v2

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import cli
import data
import losses
import metrics
import models
from datasets.audit import audit_split
from datasets.driving import CAMVID
from engine.devices import autocast_dtype, describe_device
from engine.optim import Schedule, build_optimizer
from engine.sampling import Sampling
from engine.training import Training, train_one_epoch
from networks.blocks import MEAN, STD, Normalise

CLASSES, BATCH = 11, 8


def write_images(root, count):
    """Images of random smooth texture in CamVid's layout and size, with blocky masks."""
    rng = np.random.RandomState(0)
    for part in ("train", "trainannot"):
        (root / part).mkdir()
    for i in range(count):
        small = rng.randint(0, 256, (24, 32, 3)).astype(np.uint8)
        Image.fromarray(small).resize((480, 360), Image.Resampling.BICUBIC).save(
            root / "train" / f"{i:03}.jpg", quality=92
        )
        mask = Image.fromarray(rng.randint(0, 12, (24, 32)).astype(np.uint8))
        mask.resize((480, 360), Image.Resampling.NEAREST).save(root / "trainannot" / f"{i:03}.png")


class PlainDataset(Dataset):
    """What a tutorial has: decode, transform one sample at a time."""

    def __init__(self, pairs, size):
        self.pairs = pairs
        self.transform = v2.Compose(
            [
                v2.ToImage(),
                v2.Resize(size, antialias=True),
                v2.RandomHorizontalFlip(0.5),
                v2.RandomAffine(0, scale=(0.75, 1.5), fill={tv_tensors.Mask: 255, "others": 0}),
                v2.ColorJitter(0.3, 0.3, 0.3),
                v2.ToDtype({tv_tensors.Image: torch.float32, tv_tensors.Mask: torch.int64, "others": None}, scale=True),
                v2.Normalize(MEAN, STD),
            ]
        )

    def __len__(self):
        return len(self.pairs)

    def __getitem__(self, index):
        image, mask = (Image.open(path) for path in self.pairs[index])
        mask = tv_tensors.Mask(torch.from_numpy(np.array(mask))[None])
        image, mask = self.transform(image.convert("RGB"), mask)
        return image, mask[0]


def plain_epoch(pairs, size, model, optimizer, workers):
    """One epoch of the plain recipe; returns images seen."""
    model.train()
    loader = DataLoader(PlainDataset(pairs, size), BATCH, shuffle=True, num_workers=workers, drop_last=True)
    for images, targets in loader:
        targets[targets >= CLASSES] = 255
        loss = F.cross_entropy(model(images)["out"], targets, ignore_index=255)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return len(loader) * BATCH


def our_epoch(training, criterion, split, geometry, workers):
    """One epoch of ours; returns images seen."""
    seen = 0
    for result in train_one_epoch(training, criterion, split, geometry, BATCH, workers, 10**9):
        seen += result["images"]
    training.finish_epoch()
    return seen


def start_training(split, size, device):
    """Our training state as train.py makes it."""
    ours = models.build_model("mobilenetv2", CLASSES).to(memory_format=torch.channels_last)
    audit = audit_split(split, metrics.GRID)
    return Training(
        model=ours,
        optimizer=build_optimizer(ours, "adamw", lr=1e-3),
        schedule=Schedule("constant", 1, 1),
        sampling=Sampling("uniform", {}, audit, data.Geometry(size)),
        augment=data.Augment(data.parse_augment("flip=0.5,scale=0.75:1.5,colour=0.3")),
        device=device,
        dtype=autocast_dtype("auto", device),
        clip=0.0,
        seed=0,
    )


def main():
    """Print images a second of both, round by round, and the median ratio."""
    parser = cli.Parser(__doc__)
    parser.add_argument("--rounds", type=cli.positive_int, default=3, help="epochs of each, in turn")
    parser.add_argument("--images", type=cli.positive_int, default=160, help="images an epoch")
    parser.add_argument("--workers", type=cli.natural, default=2, help="reading processes of each")
    args = parser.parse_args()
    size, device = [240, 240], torch.device("cpu")
    torch.manual_seed(0)
    plain = models.build_model("mobilenetv2", CLASSES)
    optimizer = torch.optim.AdamW(plain.parameters(), 1e-3)
    criterion = losses.Criterion({"ce": [1.0]}, CLASSES, Normalise())
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        write_images(root, args.images)
        split = data.open_split(CAMVID, root, "train")
        training = start_training(split, size, device)
        ratios = []
        for number in range(args.rounds + 1):  # the first warms both up and is not counted
            rates = []
            for run in (
                lambda: our_epoch(training, criterion, split, data.Geometry(size), args.workers),
                lambda: plain_epoch(split.pairs, size, plain, optimizer, args.workers),
            ):
                start = time.perf_counter()
                rates.append(run() / (time.perf_counter() - start))
            if number:
                ratios.append(rates[0] / rates[1])
                print(
                    f"ours {rates[0]:5.1f} images/s, plain recipe {rates[1]:5.1f}, ratio {ratios[-1]:.2f}", flush=True
                )
    print(f"median ratio {np.median(ratios):.2f}, {describe_device(device)}, autocast {training.dtype}")
    return 0


if __name__ == "__main__":
    sys.exit(cli.run(main))
