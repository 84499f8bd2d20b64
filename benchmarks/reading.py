"""Images a second of our reader, with and without its cache, against a plain Dataset; in one run, all in turn.

    python benchmarks/reading.py                       1280x720 PNG pairs that it writes itself
    python benchmarks/reading.py --camvid DIR          CamVid too, and its photos as what the 1280x720 pairs show
    python benchmarks/reading.py --caches none --audit 300

The plain Dataset opens both files with PIL, converts, and resizes or crops as we do; it neither maps labels nor checks
them. Same files, same batches, same DataLoader workers, same uint8 tensors; a pass is read to its end, the workers'
start included. --audit N times the audit of N of the 1280x720 pairs, with and without verifying the images.
"""

import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import cli
import data
import metrics
from datasets.audit import audit_split
from datasets.driving import CAMVID
from engine.cache import cache_split
from engine.sampling import draw_requests

BATCH, HEIGHT, WIDTH = 8, 720, 1280
GEOMETRIES = {"180x320": data.Geometry([180, 320]), "crop 360x360": data.Geometry([180, 320], crop=[360, 360])}


def write_pairs(root, count, camvid=None):
    """1280x720 PNG images and masks in CamVid's layout: its photos enlarged, or smooth texture; with sensor noise."""
    rng = np.random.RandomState(0)
    photos = data.open_split(CAMVID, camvid, "train") if camvid else None
    for part in ("train", "trainannot"):
        (root / part).mkdir(parents=True)
    for i in range(count):
        image, mask = draw_pair(rng, photos, i)
        image = np.asarray(image.resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC), np.int16)
        image = image + rng.randint(-3, 4, image.shape, dtype=np.int16)
        Image.fromarray(image.clip(0, 255).astype(np.uint8)).save(root / "train" / f"{i:03}.png")
        mask.resize((WIDTH, HEIGHT), Image.Resampling.NEAREST).save(root / "trainannot" / f"{i:03}.png")


def draw_pair(rng, photos, index):
    """An image and a mask of CamVid's values as PIL images, of any size."""
    if photos is None:
        image = Image.fromarray(rng.randint(0, 256, (24, 32, 3), dtype=np.uint8))
        return image.resize((480, 360), Image.Resampling.BICUBIC), Image.fromarray(
            rng.randint(0, 12, (24, 32), dtype=np.uint8)
        )
    image, mask = photos.pairs[index * 7 % len(photos)]
    return Image.open(image).convert("RGB"), Image.open(mask)


class PlainPairs(Dataset):
    """What a person writes first: open, convert, resize or crop, to tensors."""

    def __init__(self, pairs, geometry):
        self.pairs, self.geometry = pairs, geometry

    def __getitem__(self, request):
        image, mask = (Image.open(path) for path in self.pairs[request.index])
        image = image.convert("RGB")
        if self.geometry.crop is None:
            size = self.geometry.canvas[::-1]
            image, mask = image.resize(size, Image.Resampling.BILINEAR), mask.resize(size, Image.Resampling.NEAREST)
        else:
            rows, columns = self.geometry.crop
            left, top = int(request.left * (image.width - columns + 1)), int(request.top * (image.height - rows + 1))
            image, mask = (part.crop((left, top, left + columns, top + rows)) for part in (image, mask))
        return torch.from_numpy(np.array(image)), torch.from_numpy(np.array(mask))


def plain_batches(split, geometry, batches, workers):
    """The plain Dataset through a DataLoader."""
    return DataLoader(PlainPairs(split.pairs, geometry), batch_sampler=batches, num_workers=workers)


def draw_batches(images, least=1200):
    """Batches of requests for a pass over at least that many images, so that the workers' start weighs little."""
    order = torch.Generator().manual_seed(0)
    return [batch for _ in range(-(-least // images)) for batch in draw_requests(images, BATCH, order)]


def time_pass(batches):
    """Images a second of one pass; every batch is copied once, as on its way to the device."""
    start, seen, device = time.perf_counter(), 0, {}
    for batch in batches:
        seen += len(batch[0])
        for place, part in enumerate(batch):
            device.setdefault((place, part.shape), torch.empty_like(part)).copy_(part)
    return seen / (time.perf_counter() - start)


def compare(label, split, geometry, args, cache_dir):
    """Print every way's median images a second and the median of its ratios to the plain Dataset, round by round."""
    least = 400 if len(split) < 100 else 1200  # 1280x720: an image takes a tenth as long to store as to decode
    batches = draw_batches(len(split), least)
    ways = {"plain": lambda: plain_batches(split, geometry, batches, args.workers)}
    for kind in args.caches:
        start = time.perf_counter()
        cached = cache_split(split, geometry, kind_at(kind, cache_dir), training=True)
        if kind != "none":
            print(f"{label}: cache {kind} built in {time.perf_counter() - start:.1f} s", flush=True)
        ways[f"cache {kind}"] = lambda cached=cached: data.training_batches(cached, geometry, batches, args.workers)
    rates = {way: [] for way in ways}
    for number in range(args.rounds + 1):  # the first warms all up and is not counted
        for way, make in ways.items():
            rate = time_pass(make())
            if number:
                rates[way].append(rate)
    for way, values in rates.items():
        ratio = np.median(np.divide(values, rates["plain"]))
        print(f"{label}: {way:10} {np.median(values):7.0f} images/s, {ratio:.2f} times the plain Dataset", flush=True)


def kind_at(kind, cache_dir):
    """The benchmark's own folder for a cache on disk."""
    return f"disk:{cache_dir}" if kind == "disk" else kind


def time_audit(split):
    """Print the audit's seconds with and without the images, and what 7,000 pairs would take at that rate."""
    for images in (False, True):
        start = time.perf_counter()
        audit = audit_split(split, metrics.GRID, images=images)
        audited = time.perf_counter() - start
        metrics.fit_layout(audit.grids, split.spec.num_classes)
        seconds = time.perf_counter() - start
        about = "masks, images verified" if images else "masks alone"
        scaled = seconds * 7000 / len(split)
        print(
            f"audit of {len(split)} {about}: {audited:.2f} s, layout {seconds - audited:.2f} s; 7,000 in {scaled:.0f} s"
        )


def main():
    """Write the pairs, run the comparisons."""
    parser = cli.Parser(__doc__)
    parser.add_argument("--camvid", metavar="DIR", help="where CamVid lies; empty: without it")
    parser.add_argument("--caches", type=cli.names, default=["none", "ram", "disk"], help="of none, ram, disk")
    parser.add_argument("--rounds", type=cli.positive_int, default=5, help="passes of each, in turn")
    parser.add_argument("--images", type=cli.positive_int, default=64, help="1280x720 pairs to write")
    parser.add_argument("--workers", type=cli.natural, default=2, help="reading processes of each")
    parser.add_argument("--audit", type=cli.natural, default=0, help="pairs to audit; 0: off")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        write_pairs(root / "large", max(args.images, args.audit), args.camvid)
        large = data.open_split(CAMVID, root / "large", "train")
        sets = {"1280x720 PNG": data.open_split(CAMVID, root / "large", "train", args.images)}
        if args.camvid:
            sets = {"CamVid": data.open_split(CAMVID, args.camvid, "train"), **sets}
        for name, split in sets.items() if args.caches else ():
            for size, geometry in GEOMETRIES.items():
                compare(f"{name} -> {size}", split, geometry, args, root / "cache")
        if args.audit:
            time_audit(large)
    return 0


if __name__ == "__main__":
    sys.exit(cli.run(main))
