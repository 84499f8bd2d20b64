"""Images and targets on their way to the network.

The main process draws requests (which image, which crop box); DataLoader workers obey them: read, decode the labels,
resize or cut image and target to the canvas. They draw nothing, so any number of workers gives the same batches.
Batches are uint8 and are augmented on the device by `Augment`, with one sampling grid for image and target.

Train ids: 0 … C-1 the known classes, C anomaly where a set has it, 253 normal but of no known class, 255 void.
"""

import itertools
import math
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch.utils.data import DataLoader, Dataset

import cli
from cli import UserError
from datasets.catalogue import DATASETS, build_spec, hold_out
from datasets.label_spaces import LABEL_SPACES, build_space, join, parse_sets, translate
from datasets.masks import read_image, read_pair, read_target
from datasets.pairs import find_pairs
from datasets.spec import VOID, Spec
from networks.blocks import MEAN

LOGIT_BYTES = 640 << 20  # the most that one image's logits may take; a larger image enters the network reduced


def add_data_flags(parser):
    """The flags that choose what is read."""
    group = parser.add_argument_group("data")
    group.add_argument(
        "--dataset",
        default="streets",
        metavar="NAME,...",
        help=f"the data set, of {', '.join(DATASETS)}; acdc/fog: one condition of it; several: camvid:0.7,streets:0.3, "
        "the shares of every batch (none given: each image once)",
    )
    group.add_argument("--data-dir", metavar="DIR,...", help="where it lies, one for each set; empty: data/NAME")
    group.add_argument(
        "--label-space",
        default="own",
        choices=LABEL_SPACES,
        help="the classes: own (the first set's), intersection (those all sets have), Cityscapes' 19, or CamVid's 11 "
        "groups of them; what a set has beside them becomes void",
    )
    group.add_argument(
        "--anomaly-classes",
        default="",
        metavar="NAME,...",
        help="hold these classes out: void in training, anomalies in validation and test; empty: none",
    )
    group.add_argument("--limit", type=cli.natural, default=0, help="first N images of each split; 0: all")
    group.add_argument("--workers", type=cli.natural, default=2, help="reading processes; 0: read in this one")


def add_geometry_flags(parser):
    """The flags that choose how an image is resized for the network, and how it is varied in training."""
    group = parser.add_argument_group("geometry and augmentation")
    group.add_argument("--image-size", type=cli.size, default=[180, 320], metavar="HxW", help="canvas, pixels")
    group.add_argument("--crop", type=cli.size, metavar="HxW", help="cut this from the full size instead; empty: off")
    group.add_argument("--short-side", type=cli.natural, default=0, help="with --crop: resize to it first; 0: off")
    group.add_argument(
        "--augment",
        default="flip=0.5,scale=0.75:1.5,colour=0.3",
        help="flip=chance, scale=low:high, translate=share of the canvas, rotate=degrees, colour=strength, noise=sigma "
        "of [0, 1]; none: off",
    )
    group.add_argument(
        "--sampling",
        default="uniform",
        help="which images an epoch shows: uniform (each once), balanced (each class as often as any other), "
        "rare-crops:share=0.5 (that share of the crops holds a rare class; with --crop)",
    )


# ---------------------------------------------------------------------------------------------------------------------
# Geometry


@dataclass(frozen=True)
class Geometry:
    """How an image is resized for the network: stretched to `canvas`, or cut to `crop` from its full size.

    All sizes (height, width) in pixels; short_side: with crop, resize so that the shorter side has this length, 0: off;
    most_pixels: a larger whole image is reduced to that many, so that memory stays bounded for any photo.
    """

    canvas: list
    crop: list | None = None
    short_side: int = 0
    most_pixels: int = 4 << 20

    @classmethod
    def from_args(cls, args, num_classes):
        """The geometry that --image-size, --crop and --short-side describe. Raises UserError for a contradiction."""
        if args.short_side and not args.crop:
            raise UserError("--short-side without --crop", remedy="add --crop HxW, or use --image-size HxW")
        most_pixels = min(cls.most_pixels, LOGIT_BYTES // (4 * num_classes))
        return cls(args.image_size, args.crop, args.short_side, most_pixels)

    def network_size(self, height, width):
        """The size at which a whole image of this size enters the network in evaluation."""
        if self.crop is None:
            return tuple(self.canvas)
        scale = min(self.wanted_scale(height, width), self.largest_scale(height, width))
        return max(1, round(height * scale)), max(1, round(width * scale))

    def wanted_scale(self, height, width):
        """The factor that --short-side asks for."""
        return self.short_side / min(height, width) if self.short_side else 1.0

    def largest_scale(self, height, width):
        """The factor at which a whole image's logits still fit; crops are cut from the same, so that sizes agree."""
        return math.sqrt(self.most_pixels / (height * width))

    def count_reduced(self, sizes):
        """How many images of {(height, width): images} are smaller in the network than they were asked to be."""
        if self.crop is None:
            return 0
        return sum(n for size, n in sizes.items() if self.largest_scale(*size) < self.wanted_scale(*size))

    def cache_key(self, training):
        """What decides the pixels of an example before it is cut, as plain values: the same for crops of any size."""
        if self.crop is None:
            return {"training": training, "canvas": list(self.canvas)}
        return {"training": training, "short_side": self.short_side, "most_pixels": self.most_pixels}

    def resize(self, image):
        """A whole PIL image -> (h, w, 3) uint8 tensor at the network's size, antialiased."""
        return torch.from_numpy(np.array(self.resize_image(image)))

    def resize_to_network(self, image, target):
        """A whole PIL image and its target (H, W) uint8 to the network's size: PIL image, target (h, w) uint8."""
        image = self.resize_image(image)
        return image, self.resize_target(target, image)

    def resize_image(self, image):
        """A whole PIL image to the network's size, antialiased."""
        size = self.network_size(image.height, image.width)
        return image if size == (image.height, image.width) else image.resize(size[::-1], Image.Resampling.BILINEAR)

    def resize_target(self, target, image):
        """A target (H, W) uint8 to the size of a PIL image, nearest."""
        if target.shape == (image.height, image.width):
            return target
        return np.asarray(Image.fromarray(target).resize(image.size, Image.Resampling.NEAREST))

    def cut(self, image, target, request):
        """Image and target as one training example: (h, w, 3) uint8 and (h, w) uint8 tensors of canvas or crop size."""
        return to_tensors(self.cut_box(*self.resize_to_network(image, target), request))

    def cut_box(self, image, target, request):
        """The request's box of a resized pair, as arrays: image (h, w, 3) uint8, target (h, w) uint8.

        image: a PIL image or (h, w, 3) uint8; of arrays, the box is a view where it lies inside them.
        """
        if self.crop is None:
            return np.asarray(image), target
        height, width = target.shape
        rows, columns = self.crop
        top = int(request.top * (max(height - rows, 0) + 1))
        left = int(request.left * (max(width - columns, 0) + 1))
        bottom, right = min(top + rows, height), min(left + columns, width)
        target = target[top:bottom, left:right]
        if isinstance(image, Image.Image):  # only the box leaves PIL
            image = np.asarray(image.crop((left, top, right, bottom)))
        else:
            image = image[top:bottom, left:right]
        if target.shape == (rows, columns):
            return image, target
        return _pad(image, (rows, columns), FILL), _pad(target, (rows, columns), VOID)


def _pad(array, size, fill):
    """An array (h, w, …) in the upper left corner of a new one of `size`, the rest `fill`."""
    padded = np.empty((*size, *array.shape[2:]), array.dtype)
    padded[:] = fill
    padded[: array.shape[0], : array.shape[1]] = array
    return padded


def to_tensors(arrays):
    """Arrays as tensors with memory of their own."""
    return tuple(torch.from_numpy(np.array(array)) for array in arrays)


# ---------------------------------------------------------------------------------------------------------------------
# Splits and batches


@dataclass(frozen=True)
class Split:
    """The pairs of one split: of one set, or of several, one set after the other (`parts`, each a Split).

    cache: where its examples lie decoded, for the batches alone (`engine/cache.py`); None: nowhere.
    """

    name: str
    spec: Spec
    root: Path
    pairs: list
    parts: tuple = ()
    cache: object = field(default=None, kw_only=True, compare=False, repr=False)

    def __len__(self):
        return len(self.pairs)

    def ranges(self):
        """[(a set's name in figures, its Split, the range of its indices here)]."""
        if not self.parts:
            return [(self.spec.name, self, range(len(self)))]
        ends = list(itertools.accumulate(map(len, self.parts)))
        return [
            (source.label, part, range(end - len(part), end))
            for source, part, end in zip(self.spec.parts, self.parts, ends, strict=True)
        ]

    def spec_of(self, index):
        """The spec that codes one pair's mask."""
        return next(part.spec for _, part, indices in self.ranges() if index in indices)

    def read(self, index):
        """(PIL image, target (H, W) uint8) of one pair."""
        return read_pair(*self.pairs[index], self.spec_of(index))

    def read_target(self, index):
        """The target (H, W) uint8 alone."""
        return read_target(self.pairs[index][1], self.spec_of(index))

    def file(self, index):
        """An image's path below its data folder, behind its set's name where there are several."""
        if not self.parts:
            return self.pairs[index][0].relative_to(self.root).as_posix()
        label, part, indices = next(row for row in self.ranges() if index in row[2])
        return f"{label}/{part.file(index - indices.start)}"


def dataset_options(args):
    """What the flags of the data set say, as `open_dataset` takes it."""
    held_out = cli.names(args.anomaly_classes)
    return {"dataset": args.dataset, "data_dir": args.data_dir, "label_space": args.label_space, "held_out": held_out}


def open_dataset(dataset="streets", data_dir=None, *, label_space="own", held_out=(), space=None):
    """A data set by name: (its spec, the folder it lies in); of several sets as one, the first one's folder.

    dataset, data_dir, label_space: as --dataset, --data-dir and --label-space take them; held_out: names of the classes
    that are anomalies by agreement; space: the LabelSpace to see it in, None for label_space's.
    Raises UserError.
    """
    names, roots, shares = zip(*parse_sets(dataset, data_dir), strict=True)
    specs = [build_spec(name, root) for name, root in zip(names, roots, strict=True)]
    for note in dict.fromkeys(f"{spec.name}: {spec.note}" for spec in specs if spec.note):
        cli.warn(note)
    if space is None and (len(specs) > 1 or label_space != "own"):
        space = build_space(label_space, specs)
    if space is not None:
        specs = [translate(spec, space) for spec in specs]
    if held_out:
        specs = [hold_out(spec, held_out) for spec in specs]
    return specs[0] if len(specs) == 1 else join(specs, roots, shares), roots[0]


def open_split(spec, root, split, limit=0):
    """List a split's pairs (nothing is decoded); limit: the first N of them, of each set, 0 for all."""
    if spec.parts:
        parts = tuple(open_split(part.spec, part.root, split, limit) for part in spec.parts)
        return Split(split, spec, Path(root), [pair for part in parts for pair in part.pairs], parts)
    pairs = find_pairs(spec, root, split)
    return Split(split, spec.of_split(split), Path(root), pairs[:limit] if limit else pairs)


def read_sized(split, index, geometry):
    """A pair at the size that examples are cut from: PIL image, target (h, w) uint8.

    As `geometry.resize_to_network(*split.read(index))`, but the image is resized while the processor's cache holds it.
    """
    if type(split).read is not Split.read:  # a split of another kind, which knows itself what it shows
        return geometry.resize_to_network(*split.read(index))
    image_path, mask_path = split.pairs[index]
    image = read_image(image_path)
    shape = image.height, image.width
    image, target = geometry.resize_image(image), read_target(mask_path, split.spec_of(index))
    if target.shape != shape:  # an EXIF orientation, or an error
        return geometry.resize_to_network(*split.read(index))
    return image, geometry.resize_target(target, image)


def cache_of(split, geometry, training):
    """The split's cache where it holds what these batches need, else None."""
    cache = split.cache
    fits = cache and cache.cache_key == geometry.cache_key(training) and cache.pairs == split.pairs
    return cache if fits and type(split).read is Split.read else None


class TrainingPairs(Dataset):
    """SampleRequest -> (image (h, w, 3) uint8, target (h, w) uint8), both at the canvas's or crop's size.

    outliers: what the request's pastes are taken from (`anomaly/outliers.py`), None without.
    """

    def __init__(self, split, geometry, outliers=None):
        self.split, self.geometry, self.outliers = split, geometry, outliers
        self.cache = cache_of(split, geometry, training=True)

    def cut(self, request):
        """The request's example as arrays, views of the cache where there is one; without pastes."""
        stored = self.cache.read(request.index) if self.cache else read_sized(self.split, request.index, self.geometry)
        return self.geometry.cut_box(*stored, request)

    def __getitem__(self, request):
        image, target = to_tensors(self.cut(request))
        for paste in request.pastes:
            self.outliers.paste(image, target, paste)
        return image, target


class EvaluationPairs(Dataset):
    """Index -> (index, image (h, w, 3) uint8 at the network's size, target (H, W) uint8 at its own)."""

    def __init__(self, split, geometry):
        self.split, self.geometry = split, geometry
        self.cache = cache_of(split, geometry, training=False)

    def __len__(self):
        return len(self.split)

    def __getitem__(self, index):
        return index, *to_tensors(self.cache.read(index) if self.cache else self.read(index))

    def read(self, index):
        """What is read without a cache, and what a cache holds: image at the network's size, target at its own."""
        image, target = self.split.read(index)
        return self.geometry.resize_image(image), target


def training_batches(split, geometry, batches, workers=0, pin_memory=False, outliers=None):
    """Read batches of requests: yields images (N, h, w, 3) uint8, targets (N, h, w) uint8."""
    pairs = TrainingPairs(split, geometry, outliers)
    if pairs.cache and not outliers:
        return _read_ahead(lambda batch: _stack_pairs(map(pairs.cut, batch)), batches, workers, pin_memory)
    return _checked(_loader(pairs, batches, workers, pin_memory, None))


def evaluation_batches(split, geometry, batch_size, workers=0, pin_memory=False, indices=None):
    """Read a split in order: yields indices, images (N, h, w, 3) uint8, and a list of N targets (H, W) uint8.

    Images that keep their own size (crop geometry) come one at a time.
    """
    indices = list(range(len(split)) if indices is None else indices)
    size = batch_size if geometry.crop is None else 1
    batches = [indices[i : i + size] for i in range(0, len(indices), size)]
    pairs = EvaluationPairs(split, geometry)
    if pairs.cache:
        return _read_ahead(lambda batch: _stack_images(map(pairs.__getitem__, batch)), batches, workers, pin_memory)
    return _checked(_loader(pairs, batches, workers, pin_memory, _stack_images))


def _stack_images(examples):
    indices, images, targets = zip(*examples, strict=True)
    return list(indices), torch.from_numpy(np.stack(images)), list(targets)


def _stack_pairs(examples):
    return [torch.from_numpy(np.stack(part)) for part in zip(*examples, strict=True)]


def _pin(part):
    """Every tensor in lists of lists in page-locked memory."""
    if isinstance(part, (list, tuple)):
        return [_pin(one) for one in part]
    return part.pin_memory() if isinstance(part, torch.Tensor) else part


def _loader(dataset, batches, workers, pin_memory, collate):
    # A generator of its own, so that making an iterator draws from no state that a checkpoint keeps.
    return DataLoader(
        dataset,
        batch_sampler=batches,
        num_workers=min(workers, len(batches)),
        pin_memory=pin_memory,
        collate_fn=collate,
        generator=torch.Generator(),
    )


def _read_ahead(read, batches, workers, pin_memory):
    """What a DataLoader yields, by as many threads: out of a cache there is nothing to compute, only to copy.

    Processes would copy every batch twice more on its way through shared memory.
    read: makes a batch, by numpy alone: torch starts a team of threads in every thread that calls it.
    """

    def make(batch):
        return _pin(read(batch)) if pin_memory else read(batch)

    if not workers:
        yield from map(make, batches)
        return
    with ThreadPoolExecutor(workers) as pool:
        waiting = deque()
        for batch in batches:
            waiting.append(pool.submit(make, batch))
            if len(waiting) > 2 * workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def _checked(loader):
    """Iterate, with a worker's UserError as its own one line: the DataLoader wraps it in the worker's traceback."""
    try:
        yield from loader
    except UserError as error:
        raise UserError(str(error).strip().rpartition("UserError: ")[2]) from None


FILL = tuple(round(255 * mean) for mean in MEAN)  # the colour outside an image, which normalisation turns into 0

AUGMENTATIONS = {"flip": 0.5, "scale": [0.5, 2.0], "translate": 0.1, "rotate": 10.0, "colour": 0.3, "noise": 0.05}


def to_float(images):
    """(N, H, W, 3) uint8 -> (N, 3, H, W) float32 in [0, 1], channels_last in memory."""
    return images.permute(0, 3, 1, 2).float().div_(255)


def parse_augment(text):
    """Read --augment into {name: value}; raises UserError for an unknown name or a value out of range."""
    options = cli.parse_items(text, AUGMENTATIONS)
    limits = {"scale": (0.5, 2), "rotate": (0, 180), "colour": (0, 0.9)}
    for name, value in options.items():
        low, high = limits.get(name, (0, 1))
        ends = value if isinstance(value, list) else [value]
        if not all(low <= end <= high for end in ends) or ends != sorted(ends) or len(ends) > 2:
            raise UserError(f"{name}={value} is out of range", "--augment", f"it lies between {low} and {high}")
    return options


class Augment:
    """Vary images and targets together on the device: one sampling grid moves both.

    options: `parse_augment`'s. Images are sampled bilinearly, targets by nearest neighbour; what lies outside the image
    gets the mean colour, which no jitter changes, and void.
    """

    def __init__(self, options):
        self.options = options

    def __call__(self, images, targets, generator):
        """images (N, H, W, 3) uint8, targets (N, H, W) uint8 -> (N, 3, H, W) float32 in [0, 1], (N, H, W) uint8.

        generator: on the images' device; every draw comes from it.
        """
        raw, images = images, to_float(images)  # (N, H, W, 3), (N, 3, H, W)
        moving = self.options.keys() & {"flip", "scale", "translate", "rotate"}
        affine = self.draw_affine(images, generator) if moving else None
        if self.options.get("colour"):  # before the warp, which brings the mean colour in from outside
            images = images.contiguous()  # sums over channels are twice as fast
            jittered = jitter_colour(images, self.options["colour"], generator)
            images = torch.where(find_outside(raw, targets), images, jittered)
        if moving:
            images, targets = warp(images, targets, affine)
        if self.options.get("noise"):
            sigma = torch.rand(len(images), 1, 1, 1, generator=generator, device=images.device) * self.options["noise"]
            noise = torch.randn(images.shape, generator=generator, device=images.device)
            images = (images + sigma * noise).clamp_(0, 1)
        return images, targets

    def draw_affine(self, images, generator):
        """(N, 2, 3) float32: for each place of the output, in [-1, 1]², where it is read from.

        Zooming in by s shows a window of 1/s, anywhere inside the image; zooming out puts the image anywhere inside
        the canvas. `scale` is drawn uniformly in its logarithm.
        """
        count, (height, width), device = len(images), images.shape[2:], images.device

        def uniform(low, high):
            return low + (high - low) * torch.rand(count, generator=generator, device=device)

        low, high = (self.options.get("scale", [1.0]) * 2)[:2]
        zoom = uniform(math.log(low), math.log(high)).exp()
        angle = uniform(-1.0, 1.0) * math.radians(self.options.get("rotate", 0.0))
        mirror = 1.0 - 2.0 * (uniform(0.0, 1.0) < self.options.get("flip", 0.0)).float()
        room = (1 - 1 / zoom).abs() + 2 * self.options.get("translate", 0.0)  # the canvas is 2 wide in these units
        shift_x, shift_y = uniform(-1.0, 1.0) * room, uniform(-1.0, 1.0) * room
        cos, sin = angle.cos() / zoom, angle.sin() / zoom
        aspect = height / width  # a rotation in pixels, written for axes that both run from -1 to 1
        rows = [mirror * cos, -sin * aspect, shift_x, mirror * sin / aspect, cos, shift_y]
        return torch.stack(rows, dim=1).view(count, 2, 3)


def warp(images, targets, affine):
    """Sample images (N, 3, H, W) float and targets (N, H, W) uint8 at the same places, `affine` (N, 2, 3).

    Outside lies the mean colour, and void: targets are sampled as (target - 255), so that the zeros that pad are void.
    """
    grid = F.affine_grid(affine, images.shape, align_corners=False)  # (N, H, W, 2)
    fill = torch.tensor(MEAN, device=images.device).view(1, 3, 1, 1)
    images = F.grid_sample(images - fill, grid, mode="bilinear", align_corners=False) + fill
    labels = targets[:, None].float() - VOID  # (N, 1, H, W)
    labels = F.grid_sample(labels, grid, mode="nearest", align_corners=False) + VOID
    return images, labels[:, 0].round_().to(torch.uint8)


def find_outside(images, targets):
    """(N, 1, H, W) bool: what `Geometry.cut` added around images (N, H, W, 3) uint8; targets (N, H, W) uint8."""
    red, green, blue = (images[..., channel] == FILL[channel] for channel in range(3))
    return ((targets == VOID) & red & green & blue)[:, None]


def jitter_colour(images, strength, generator):
    """Vary brightness, contrast and saturation of images (N, 3, H, W) in [0, 1], each by a factor of 1 ± strength.

    Contrast is the distance to the image's mean grey g, saturation that to the pixel's mean m over channels:
    x1 = ((x - g) · contrast + g) · brightness, x2 = (x1 - m1) · saturation + m1; here multiplied out.
    """
    draws = torch.rand(3, len(images), 1, 1, 1, generator=generator, device=images.device)
    brightness, contrast, saturation = 1 + strength * (2 * draws - 1)
    grey = images.mean(dim=(1, 2, 3), keepdim=True)
    luma = images.mean(dim=1, keepdim=True)  # (N, 1, H, W)
    gain = brightness * contrast
    rest = brightness * (1 - contrast) * grey + gain * (1 - saturation) * luma
    return torch.addcmul(rest, images, gain * saturation).clamp_(0, 1)
