"""Images and targets on their way to the network.

The main process draws tickets (which image, which crop box); DataLoader workers obey them: read, decode the labels,
bring image and target to the canvas. They draw nothing, so any number of workers gives the same batches. Batches are
uint8 and are augmented on the device by `Augment`, with one sampling grid for image and target.

Train ids: 0 … C-1 the known classes, C anomaly where a set has it, 253 normal but of no known class, 255 void.
"""

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import nn
from torch.utils.data import DataLoader, Dataset

import flags
from data_sampling import (  # noqa: F401  the front of its parts
    Sampling,
    Ticket,
    draw_tickets,
    parse_sampling,
    share_batches,
)
from data_specs import (  # noqa: F401
    DATASETS,
    NORMAL,
    UNKNOWN,
    VOID,
    Spec,
    adopt_classes,
    build_spec,
    find_images,
    find_pairs,
    hold_out,
    recognise,
)
from flags import UserError

MEAN = (0.485, 0.456, 0.406)  # of ImageNet's RGB images in [0, 1], what the published weights expect
STD = (0.229, 0.224, 0.225)
FILL = tuple(round(255 * mean) for mean in MEAN)  # the colour outside an image, which normalisation turns into 0
LOGIT_BYTES = 640 << 20  # the most that one image's logits may take; a larger image enters the network reduced

AUGMENTATIONS = {"flip": 0.5, "scale": [0.5, 2.0], "translate": 0.1, "rotate": 10.0, "colour": 0.3, "noise": 0.05}


def add_data_flags(parser):
    """The flags that choose what is read."""
    group = parser.add_argument_group("data")
    group.add_argument("--dataset", default="streets", choices=DATASETS, help="the data set")
    group.add_argument("--data-dir", metavar="DIR", help="where it lies; empty: data/DATASET")
    group.add_argument(
        "--anomaly-classes",
        default="",
        metavar="NAME,...",
        help="hold these classes out: void in training, anomalies in validation and test; empty: none",
    )
    group.add_argument("--limit", type=flags.natural, default=0, help="first N images of each split; 0: all")
    group.add_argument("--workers", type=flags.natural, default=2, help="reading processes; 0: read in this one")


def add_geometry_flags(parser):
    """The flags that choose how an image is brought to the network's size, and how it is varied in training."""
    group = parser.add_argument_group("geometry and augmentation")
    group.add_argument("--image-size", type=flags.size, default=[180, 320], metavar="HxW", help="canvas, pixels")
    group.add_argument("--crop", type=flags.size, metavar="HxW", help="cut this from the full size instead; empty: off")
    group.add_argument("--short-side", type=flags.natural, default=0, help="with --crop: resize to it first; 0: off")
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
# Reading


def read_image(path):
    """Read a file as an RGB PIL image, its EXIF orientation not applied (but kept in `getexif()`).

    Raises UserError for a file that cannot be decoded to its end.
    """
    try:
        with Image.open(path) as image:
            exif = image.getexif()
            if image.mode.startswith("I;16"):  # convert would clip at 255
                image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
            if image.mode in ("I", "F"):
                raise ValueError(f"its pixels are of mode {image.mode}, which has no range; save it as 8 or 16 bit")
            rgb = image.convert("RGB")
    except FileNotFoundError:
        raise UserError("no such file", path, "check the path") from None
    except (OSError, SyntaxError, ValueError, UnidentifiedImageError, Image.DecompressionBombError) as error:
        raise UserError(f"cannot read image ({error})", path, "the file is damaged or no image; replace it") from None
    rgb.getexif().update(exif)
    return rgb


def read_labels(path, spec):
    """Decode a mask file into train ids.

    Returns target (H, W) uint8, UNKNOWN (254) where the value is neither a class nor void, and the mask's own values
    (H, W): numbers, or r·65536 + g·256 + b for a mask drawn in colours.
    Raises UserError for an unreadable file, or a mask in colours where the set declares none.
    """
    try:
        with Image.open(path) as mask:
            coloured = mask.mode in ("RGB", "RGBA", "LA", "PA", "CMYK", "YCbCr") or _palette_is_declared(mask, spec)
            values = np.asarray(mask.convert("RGB") if coloured else mask)
    except (OSError, SyntaxError, ValueError, UnidentifiedImageError, Image.DecompressionBombError) as error:
        raise UserError(f"cannot read mask ({error})", path, "the file is damaged or no image; replace it") from None
    if coloured and spec.colours:
        values = values[..., 0].astype(np.int32) << 16 | values[..., 1].astype(np.int32) << 8 | values[..., 2]
        return spec.colour_table[values], values
    if coloured:  # one number a pixel, stored three times
        if (values[..., :1] != values).any():
            remedy = 'give every class its "color" in classes.json, or save masks with one class number a pixel'
            raise UserError(f"a mask in colours, but {spec.name} declares none", path, remedy)
        values = values[..., 0]
    return spec.value_table[np.clip(values.astype(np.int32), 0, 65535)], values


def _palette_is_declared(mask, spec):
    """Whether a palette image shows declared class colours only: then those count, not its arbitrary indices."""
    if mask.mode != "P" or not spec.colours:
        return False
    used = {colour for _, colour in mask.convert("RGB").getcolors(maxcolors=256)}
    return used <= spec.colours.keys()


def read_target(path, spec):
    """Read a mask as target (H, W) uint8 train ids.

    Raises UserError for values that are neither a class nor void, with their counts and the likely cause.
    """
    target, values = read_labels(path, spec)
    if (target == UNKNOWN).any():
        raise label_error(count_values(values[target == UNKNOWN]), count_values(values), path, spec)
    return target


def read_pair(image_path, mask_path, spec):
    """An image as RGB PIL image and its target (H, W) uint8, of the same size.

    The EXIF orientation is applied only where that makes the image's size match the mask's.
    Raises UserError for sizes that differ.
    """
    image, target = read_image(image_path), read_target(mask_path, spec)
    return match_size(image, target.shape, image_path), target


def match_size(image, shape, path):
    """The image, turned by its EXIF orientation if only that makes its size the mask's (H, W)."""
    if (image.height, image.width) == shape:
        return image
    turned = ImageOps.exif_transpose(image)
    if (turned.height, turned.width) == shape:
        return turned
    sizes = f"image {image.height}x{image.width}, mask {shape[0]}x{shape[1]}"
    raise UserError(f"image and mask differ in size ({sizes})", path, "save the mask at its image's size")


def count_values(values):
    """{mask value: pixels} of an array of whole numbers."""
    found, counts = np.unique(values, return_counts=True)
    return dict(zip(found.tolist(), counts.tolist(), strict=True))


def label_error(unknown, seen, where, spec, files=None):
    """The error for mask values a set does not declare, with the likely cause.

    unknown, seen: {mask value: pixels}, the undeclared ones and all that occur in the masks that hold such.
    """
    _, cause, remedy = likely_cause(unknown, seen, where, spec)
    first = ", ".join(f"{value_text(v, spec)} ({n:,} pixels)" for v, n in sorted(unknown.items())[:4])
    more = f" and {len(unknown) - 4} more values" if len(unknown) > 4 else ""
    spread = f" in {files} files" if files and files > 1 else ""
    what = f"label {first}{more} outside the {spec.num_classes} classes of {spec.name}{spread}"
    return UserError(what, where, f"{cause}: {remedy}")


def value_text(value, spec):
    """A mask value as a person would look it up: a number, or r,g,b for a mask in colours."""
    return f"rgb {value >> 16},{value >> 8 & 255},{value & 255}" if spec.colours and value > 255 else str(value)


def likely_cause(unknown, seen, where, spec):
    """What most often leads to such values, and the remedy: (cause as the doctor names it, cause in words, remedy)."""
    declared = [v for v, i in spec.values.items() if i != VOID]
    if Path(where).suffix.lower() in (".jpg", ".jpeg"):
        words = "the mask is a JPEG, whose compression invents values along every border"
        return "jpeg_masks", words, "export masks as PNG"
    if not declared and max(unknown) < 256:
        words = f"one number a pixel, where {spec.name} codes its classes by colour"
        return "unknown_labels", words, "use the set's own masks"
    if spec.colours and max(unknown) > 255 and len(unknown) > len(spec.colours):
        return _mixed_colours(unknown, seen, spec)
    known = 1 - sum(unknown.values()) / sum(seen.values())
    if len(unknown) > 16 and known > 0.5 and max(unknown) < max(spec.values):
        words = f"{len(unknown)} values between the declared ones, mixed along borders by resizing or compression"
        return "blended_masks", words, "save masks as PNG, resized by nearest neighbour only"
    if len(seen) > 64 and len(seen) > 2 * len(spec.values):
        words = f"{len(seen)} different values make a grey-scale picture, not class numbers"
        return "greyscale_masks", words, "export class numbers"
    if starts_at_one(seen, spec):
        return "one_based_labels", "labels that start at 1", 'map them with "label_map" or "values" in classes.json'
    if declared and _are_train_ids(unknown, seen, spec):
        words = "train ids on disk, which the set's own mapping would map a second time"
        return "mapped_twice", words, "use the set's own masks, or a folder set whose classes are these ids"
    if set(unknown) == {VOID} and len(declared) == 2 and set(seen) <= {min(declared), VOID}:
        words = f"masks of black and white, where the second class is {max(declared)}"
        return "unknown_labels", words, 'give the second class "values": [255] in classes.json'
    if set(unknown) == {VOID}:
        return "unknown_labels", "255 usually marks void", 'declare "void": [255] in classes.json'
    if _are_stretched(seen, declared):
        shown = ", ".join(map(str, sorted(seen)))
        words = f"class numbers stretched to shades of grey ({shown})"
        return "greyscale_masks", words, 'give each class its "values" in classes.json, or export class numbers'
    words = "a class the set does not declare, or another set's coding"
    return "unknown_labels", words, "declare the value, or fix the masks"


def _mixed_colours(unknown, seen, spec):
    """Which mixture: compression leaves most colours within a few levels of a declared one, resizing does not."""
    values, pixels = (np.fromiter(part, np.int64, len(unknown)) for part in (unknown.keys(), unknown.values()))
    colours = np.stack([values >> 16, values >> 8 & 255, values & 255], axis=1)  # (n, 3)
    near = np.zeros(len(colours), bool)
    for colour in spec.colours:
        near |= np.abs(colours - colour).max(axis=1) <= 3
    near, rare = pixels[near].sum() / pixels.sum(), pixels.sum() < 0.5 * sum(seen.values())
    # Measured on MSRC, near: JPEG of quality 50 to 92 0.56 to 0.91, resized 0.12 to 0.44, photographs 0.01; resized
    # masks keep more than 0.83 of their pixels, JPEGs as few as 0.06.
    if near > (0.55 if rare else 0.1):
        return "jpeg_masks", "colours changed by compression, as a JPEG does", "export masks as PNG"
    if rare:
        words, remedy = (
            "colours mixed by resizing or compression",
            "save masks as PNG, resized by nearest neighbour only",
        )
        return "blended_masks", words, remedy
    return "unknown_labels", f"{len(seen)} different colours make a photograph, not a mask", "use the set's own masks"


def starts_at_one(seen, spec):
    """Whether the lowest class is missing and every value less one would be declared; void may have kept its value.

    seen: the mask values of the files in question.
    """
    declared = [v for v, i in spec.values.items() if i != VOID]
    fits = all(v - 1 in spec.values or spec.values.get(v) == VOID for v in seen)
    return bool(declared) and fits and min(declared) not in seen


def _are_stretched(seen, declared):
    """Whether as many values as classes lie evenly from 0 up, far wider than the classes' numbers."""
    values = sorted(seen)
    far = bool(declared) and values[-1] > 3 * max(declared)
    return far and values[0] == 0 and 2 <= len(values) <= len(declared) and np.ptp(np.diff(values)) <= 1


def _are_train_ids(unknown, seen, spec):
    """Whether the masks hold 255 and train ids alone, 0 among them, where the set codes its classes otherwise."""
    own = all(spec.values.get(i) == i for i in range(spec.num_classes))
    return set(unknown) == {VOID} and 0 in seen and not own and set(seen) <= {VOID, *range(spec.num_classes)}


# ---------------------------------------------------------------------------------------------------------------------
# Geometry


@dataclass(frozen=True)
class Geometry:
    """How an image is brought to the network's size: stretched to `canvas`, or cut to `crop` from its full size.

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

    def resize(self, image):
        """A whole PIL image -> (h, w, 3) uint8 tensor at the network's size, antialiased."""
        height, width = self.network_size(image.height, image.width)
        if (image.height, image.width) != (height, width):
            image = image.resize((width, height), Image.Resampling.BILINEAR)
        return torch.from_numpy(np.array(image))

    def cut(self, image, target, ticket):
        """Image and target as one training example: (h, w, 3) uint8 and (h, w) uint8 tensors of canvas or crop size."""
        image = self.resize(image)  # (h, w, 3)
        height, width = image.shape[:2]
        if target.shape != (height, width):
            target = np.asarray(Image.fromarray(target).resize((width, height), Image.Resampling.NEAREST))
        target = torch.from_numpy(np.array(target))  # (h, w)
        if self.crop is None:
            return image, target
        rows, columns = self.crop
        top = int(ticket.top * (max(height - rows, 0) + 1))
        left = int(ticket.left * (max(width - columns, 0) + 1))
        image, target = image[top : top + rows, left : left + columns], target[top : top + rows, left : left + columns]
        missing = (0, columns - target.shape[1], 0, rows - target.shape[0])  # right and bottom border
        canvas = torch.tensor(FILL, dtype=torch.uint8).expand(rows, columns, 3).clone()
        canvas[: image.shape[0], : image.shape[1]] = image
        return canvas, F.pad(target, missing, value=VOID)


# ---------------------------------------------------------------------------------------------------------------------
# Splits and batches


@dataclass(frozen=True)
class Split:
    """The pairs of one split of one set."""

    name: str
    spec: Spec
    root: Path
    pairs: list

    def __len__(self):
        return len(self.pairs)

    def read(self, index):
        """(PIL image, target (H, W) uint8) of one pair."""
        return read_pair(*self.pairs[index], self.spec)

    def read_target(self, index):
        """The target (H, W) uint8 alone."""
        return read_target(self.pairs[index][1], self.spec)

    def file(self, index):
        """An image's path below the data folder: its name in figures and captions."""
        return self.pairs[index][0].relative_to(self.root).as_posix()


def open_dataset(args):
    """The spec that --dataset names and the folder it lies in."""
    root = Path(args.data_dir or Path("data") / args.dataset)
    spec = build_spec(args.dataset, root)
    if spec.note:
        flags.warn(f"{spec.name}: {spec.note}")
    if held_out := flags.names(args.anomaly_classes):
        spec = hold_out(spec, held_out)
    return spec, root


def open_split(spec, root, split, limit=0):
    """List a split's pairs (nothing is decoded); limit: the first N of them, 0 for all."""
    pairs = find_pairs(spec, root, split)
    return Split(split, spec.of_split(split), Path(root), pairs[:limit] if limit else pairs)


class TrainingPairs(Dataset):
    """Ticket -> (image (h, w, 3) uint8, target (h, w) uint8), both at the canvas's or crop's size.

    outliers: what the ticket's pastes are taken from (`data_outliers`), None without.
    """

    def __init__(self, split, geometry, outliers=None):
        self.split, self.geometry, self.outliers = split, geometry, outliers

    def __getitem__(self, ticket):
        image, target = self.geometry.cut(*self.split.read(ticket.index), ticket)
        for paste in ticket.pastes:
            self.outliers.paste(image, target, paste)
        return image, target


class EvaluationPairs(Dataset):
    """Index -> (index, image (h, w, 3) uint8 at the network's size, target (H, W) uint8 at its own)."""

    def __init__(self, split, geometry):
        self.split, self.geometry = split, geometry

    def __len__(self):
        return len(self.split)

    def __getitem__(self, index):
        image, target = self.split.read(index)
        return index, self.geometry.resize(image), torch.from_numpy(np.array(target))


def training_batches(split, geometry, batches, workers=0, pin_memory=False, outliers=None):
    """Read batches of tickets: yields images (N, h, w, 3) uint8, targets (N, h, w) uint8."""
    return _checked(_loader(TrainingPairs(split, geometry, outliers), batches, workers, pin_memory, None))


def evaluation_batches(split, geometry, batch_size, workers=0, pin_memory=False, indices=None):
    """Read a split in order: yields indices, images (N, h, w, 3) uint8, and a list of N targets (H, W) uint8.

    Images that keep their own size (crop geometry) come one at a time.
    """
    indices = list(range(len(split)) if indices is None else indices)
    size = batch_size if geometry.crop is None else 1
    batches = [indices[i : i + size] for i in range(0, len(indices), size)]
    return _checked(_loader(EvaluationPairs(split, geometry), batches, workers, pin_memory, _stack_images))


def _stack_images(examples):
    indices, images, targets = zip(*examples, strict=True)
    return list(indices), torch.stack(images), list(targets)


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


def _checked(loader):
    """Iterate, with a worker's UserError as its own one line: the DataLoader wraps it in the worker's traceback."""
    try:
        yield from loader
    except UserError as error:
        raise UserError(str(error).strip().rpartition("UserError: ")[2]) from None


# ---------------------------------------------------------------------------------------------------------------------
# On the device


class Normalise(nn.Module):
    """(x - mean) / std per channel; images (N, 3, H, W) float in [0, 1]. The one place where that happens."""

    def __init__(self, mean=MEAN, std=STD):
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(1, 3, 1, 1))

    def forward(self, images):
        return (images - self.mean) / self.std


def to_float(images):
    """(N, H, W, 3) uint8 -> (N, 3, H, W) float32 in [0, 1], channels_last in memory."""
    return images.permute(0, 3, 1, 2).float().div_(255)


def parse_augment(text):
    """Read --augment into {name: value}; raises UserError for an unknown name or a value out of range."""
    options = flags.parse_items(text, AUGMENTATIONS)
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
